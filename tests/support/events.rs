//! The ttrpc service that containerd offers for events.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ForwardRequest;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use ttrpc::{Request, Response};

/// What the sink does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Takes and acknowledges it.
    Answer,
    /// Reads it, forgets it, and never answers.
    Silent,
    /// Takes it, and acknowledges it so much later.
    Slow(Duration),
    /// Takes it and is killed before it acknowledges it; comes back at once, as [`Mood::Answer`].
    Killed,
}

/// One event as it arrived.
#[derive(Clone, Debug)]
pub struct Event {
    /// Topic without `/tasks/`, container id, `/` and exec id if any, exit status if it has one.
    pub line: String,
    pub namespace: String,
    pub pid: u32,
    /// Seconds and nanoseconds, in those that tell of an end.
    pub exited_at: Option<(i64, i32)>,
}

/// An event service on a unix socket; it can go away and come back as containerd does.
pub struct EventSink {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    events: Mutex<Vec<Event>>,
    streams: Mutex<Vec<UnixStream>>,
    mood: Mutex<Mood>,
    /// Held while an event is taken and acknowledged: [`EventSink::stop`] comes before or after.
    whole: Mutex<()>,
    stop: AtomicBool,
}

impl EventSink {
    /// Listens on `path`.
    pub fn new(path: &Path) -> Self {
        let shared = Arc::new(Shared {
            events: Mutex::default(),
            streams: Mutex::default(),
            mood: Mutex::new(Mood::Answer),
            whole: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let sink = Self { path: path.to_owned(), shared, thread: Mutex::default() };
        sink.resume();
        sink
    }

    /// The socket's path: `TTRPC_ADDRESS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes what becomes of the events that come next.
    pub fn set(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// Goes away: closes every connection and removes the socket. No event is taken without its
    /// acknowledgement being written.
    pub fn stop(&self) {
        let whole = self.shared.whole.lock().unwrap();
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(whole);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    /// Comes back on the same path.
    pub fn resume(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.shared.stop.store(false, Ordering::SeqCst);
        let shared = self.shared.clone();
        let accept = move || {
            while !shared.stop.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                shared.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = shared.clone();
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        };
        *self.thread.lock().unwrap() = Some(std::thread::spawn(accept));
    }

    /// Everything that has arrived, in order.
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.lock().unwrap().clone()
    }

    /// The lines of everything that has arrived, in order.
    pub fn lines(&self) -> Vec<String> {
        self.events().into_iter().map(|event| event.line).collect()
    }

    /// The lines about container `id`, in order.
    pub fn of(&self, id: &str) -> Vec<String> {
        let about = |line: &String| {
            let subject = line.split(' ').nth(1).unwrap_or("");
            subject == id || subject.starts_with(&format!("{id}/"))
        };
        self.lines().into_iter().filter(about).collect()
    }

    /// Waits for `line` and returns its event.
    #[track_caller]
    pub fn wait_for(&self, line: &str) -> Event {
        let deadline = Instant::now() + super::patient(super::SOON);
        loop {
            if let Some(event) = self.events().into_iter().find(|event| event.line == line) {
                return event;
            }
            assert!(Instant::now() < deadline, "no event {line:?} among {:?}", self.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until exactly `lines` have arrived about container `id`, in that order.
    #[track_caller]
    pub fn expect(&self, id: &str, lines: &[&str]) {
        let deadline = Instant::now() + super::SOON;
        while self.of(id).len() < lines.len() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.of(id), lines);
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// Answers one connection; a frame is length and stream (big endian), type, flags, then the message.
fn serve(mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    loop {
        let mut header = [0; 10];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body)?;
        let mood = *shared.mood.lock().unwrap();
        if mood == Mood::Silent {
            continue;
        }
        let request = Request::parse_from_bytes(&body).unwrap();
        assert_eq!(request.service, "containerd.services.events.ttrpc.v1.Events");
        assert_eq!(request.method, "Forward");
        let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
        let _whole = shared.whole.lock().unwrap();
        if shared.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reply = Response::new().write_to_bytes().unwrap();
        let length = u32::try_from(reply.len()).unwrap().to_be_bytes();
        header[..4].copy_from_slice(&length);
        header[8] = 2; // a response
        shared.events.lock().unwrap().push(decode(&forward));
        match mood {
            Mood::Slow(time) => std::thread::sleep(time),
            Mood::Killed => {
                *shared.mood.lock().unwrap() = Mood::Answer;
                return stream.shutdown(std::net::Shutdown::Both);
            }
            Mood::Answer | Mood::Silent => {}
        }
        stream.write_all(&[&header[..], &reply].concat())?;
    }
}

fn decode(forward: &ForwardRequest) -> Event {
    let envelope = &forward.envelope;
    assert!(envelope.timestamp.is_some(), "{envelope:?}");
    let topic = envelope.topic.strip_prefix("/tasks/").expect(&envelope.topic);
    let (kind, value) = (envelope.event.type_url.as_str(), envelope.event.value.as_slice());
    let (subject, pid, exited_at) = describe(kind, value);
    let line = format!("{topic} {subject}");
    Event { line, namespace: envelope.namespace.clone(), pid, exited_at }
}

/// The event's subject (and exit status), its pid, and when that ended.
fn describe(kind: &str, value: &[u8]) -> (String, u32, Option<(i64, i32)>) {
    use containerd_shim_protos::events::task::*;
    fn parse<M: Message>(value: &[u8]) -> M {
        M::parse_from_bytes(value).unwrap()
    }
    let mut exited_at = None;
    let mut ended = |at: &MessageField<Timestamp>| {
        exited_at = at.as_ref().map(|at| (at.seconds, at.nanos));
    };
    let (subject, pid) = match kind.strip_prefix("containerd.events.").expect(kind) {
        "TaskCreate" => {
            let event: TaskCreate = parse(value);
            assert!(event.bundle.ends_with(&event.container_id), "{event:?}");
            (event.container_id, event.pid)
        }
        "TaskStart" => {
            let event: TaskStart = parse(value);
            (event.container_id, event.pid)
        }
        "TaskExit" => {
            let event: TaskExit = parse(value);
            assert!(event.exited_at.seconds > 0, "{event:?}");
            ended(&event.exited_at);
            let exec = if event.id == event.container_id { "" } else { &event.id };
            (subject(&event.container_id, exec, Some(event.exit_status)), event.pid)
        }
        "TaskDelete" => {
            let event: TaskDelete = parse(value);
            // One that was to be restored may never have run.
            let ran = event.exited_at.is_some();
            ended(&event.exited_at);
            assert_eq!((ran, event.pid > 0), (event.exited_at.seconds > 0, ran), "{event:?}");
            (subject(&event.container_id, &event.id, ran.then_some(event.exit_status)), event.pid)
        }
        "TaskExecAdded" => {
            let event: TaskExecAdded = parse(value);
            (subject(&event.container_id, &event.exec_id, None), 0)
        }
        "TaskExecStarted" => {
            let event: TaskExecStarted = parse(value);
            (subject(&event.container_id, &event.exec_id, None), event.pid)
        }
        "TaskPaused" => (parse::<TaskPaused>(value).container_id, 0),
        "TaskResumed" => (parse::<TaskResumed>(value).container_id, 0),
        "TaskCheckpointed" => {
            let event: TaskCheckpointed = parse(value);
            assert!(event.checkpoint.starts_with('/'), "{event:?}");
            (event.container_id, 0)
        }
        "TaskOOM" => (parse::<TaskOOM>(value).container_id, 0),
        other => panic!("an event of type {other}"),
    };
    (subject, pid, exited_at)
}

fn subject(id: &str, exec: &str, status: Option<u32>) -> String {
    let slash = if exec.is_empty() { "" } else { "/" };
    let status = status.map(|status| format!(" {status}")).unwrap_or_default();
    format!("{id}{slash}{exec}{status}")
}
