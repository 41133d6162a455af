//! containerd's side of its streaming API, frame by frame, as the Go client behaves: a connection for
//! each stream, windows counted as its reader and its writer count them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};
use sha2::{Digest, Sha256};
use ttrpc::{Request, Response};

use super::rpc::Refusal;
use super::{Code, SOON, eventually, within};

/// What containerd's client takes at a time, and twice that is its window.
pub const PIECE: usize = 32 << 10;
pub const WINDOW: usize = 2 * PIECE;

pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const DATA: u8 = 3;
pub const CLOSED: u8 = 1;
pub const OPEN: u8 = 2;
pub const NOTHING: u8 = 4;

/// The URI that Create and Exec are told.
pub fn uri(address: &str, id: &str) -> String {
    format!("ttrpc+{address}?streaming_id={id}")
}

/// A message in its `Any`. The wrapper types have the fields of the API's own.
pub fn any(kind: &str, message: &impl Message) -> Vec<u8> {
    let any = Any {
        type_url: kind.into(),
        value: message.write_to_bytes().unwrap(),
        ..Default::default()
    };
    any.write_to_bytes().unwrap()
}

pub fn data(bytes: &[u8]) -> Vec<u8> {
    let message = BytesValue { value: bytes.to_vec(), ..Default::default() };
    any("containerd.types.transfer.Data", &message)
}

pub fn window(update: i32) -> Vec<u8> {
    let message = Int32Value { value: update, ..Default::default() };
    any("containerd.types.transfer.WindowUpdate", &message)
}

pub fn init(id: &str) -> Vec<u8> {
    let message = StringValue { value: id.into(), ..Default::default() };
    any("containerd.services.streaming.v1.StreamInit", &message)
}

pub fn request(service: &str, method: &str) -> Vec<u8> {
    let request = Request { service: service.into(), method: method.into(), ..Default::default() };
    request.write_to_bytes().unwrap()
}

/// What the other side sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Data(Vec<u8>),
    Window(i32),
    Ack,
    /// It has ended its part.
    End,
    /// It has refused or ended the stream.
    Refused(Code, String),
    /// The connection is gone.
    Lost,
}

/// One end of a connection, with stream 1 on it.
pub struct Wire(pub UnixStream);

impl Wire {
    pub fn connect(address: &str) -> Self {
        Self(UnixStream::connect(address.trim_start_matches("unix://")).unwrap())
    }

    pub fn try_clone(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    /// Writes a frame; the other side may be gone.
    pub fn frame(&mut self, id: u32, kind: u8, flags: u8, message: &[u8]) -> std::io::Result<()> {
        let mut frame = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(id.to_be_bytes());
        frame.extend([kind, flags]);
        frame.extend(message);
        self.0.write_all(&frame)
    }

    pub fn send(&mut self, message: &[u8]) -> std::io::Result<()> {
        self.frame(1, DATA, 0, message)
    }

    /// Reads the next frame.
    pub fn next(&mut self) -> Event {
        self.numbered().1
    }

    /// The same with the number of its stream.
    pub fn numbered(&mut self) -> (u32, Event) {
        let Some((id, kind, flags, message)) = self.read() else { return (0, Event::Lost) };
        let event = match kind {
            RESPONSE => {
                let status = Response::parse_from_bytes(&message).unwrap().status.unwrap();
                Event::Refused(status.code(), status.message)
            }
            DATA if flags == CLOSED | NOTHING => Event::End,
            DATA => {
                assert_eq!(flags, 0);
                message_of(&message)
            }
            _ => panic!("a frame of type {kind}"),
        };
        (id, event)
    }

    pub fn read(&mut self) -> Option<(u32, u8, u8, Vec<u8>)> {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        assert!(length <= 4 << 20, "a message of {length} bytes");
        let mut message = vec![0; length as usize];
        self.0.read_exact(&mut message).ok()?;
        Some((u32::from_be_bytes(header[4..8].try_into().unwrap()), header[8], header[9], message))
    }
}

fn message_of(message: &[u8]) -> Event {
    let any = Any::parse_from_bytes(message).unwrap();
    match any.type_url.as_str() {
        "containerd.types.transfer.Data" => {
            Event::Data(BytesValue::parse_from_bytes(&any.value).unwrap().value)
        }
        "containerd.types.transfer.WindowUpdate" => {
            Event::Window(Int32Value::parse_from_bytes(&any.value).unwrap().value)
        }
        "google.protobuf.Empty" => {
            assert_eq!(Empty::parse_from_bytes(&any.value).unwrap(), Empty::new());
            Event::Ack
        }
        kind => panic!("a message {kind:?}"),
    }
}

/// Opens stream `id` on a connection of its own.
pub fn open(address: &str, id: &str) -> Result<Wire, Refusal> {
    let mut wire = Wire::connect(address);
    let request = request("containerd.services.streaming.v1.Streaming", "Stream");
    wire.frame(1, REQUEST, OPEN, &request).unwrap();
    wire.send(&init(id)).unwrap();
    match wire.next() {
        Event::Ack => Ok(wire),
        Event::Refused(code, message) => Err(Refusal { code, message }),
        other => panic!("{other:?} in place of an ack"),
    }
}

/// A thread that reads a stream as containerd's `io.Copy` does.
pub struct Reader {
    shared: Arc<Shared>,
    wire: Wire,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    hash: Mutex<Sha256>,
    count: AtomicUsize,
    frames: AtomicUsize,
    keep: AtomicBool,
    hold: AtomicBool,
    end: Mutex<Option<Event>>,
}

impl Reader {
    pub fn open(address: &str, id: &str) -> Self {
        Self::over(open(address, id).unwrap(), true)
    }

    /// One that counts the bytes and their hash and keeps none.
    pub fn counting(address: &str, id: &str) -> Self {
        Self::over(open(address, id).unwrap(), false)
    }

    pub fn over(wire: Wire, keep: bool) -> Self {
        let shared = Arc::new(Shared::default());
        shared.keep.store(keep, Ordering::SeqCst);
        let (theirs, socket) = (shared.clone(), wire.try_clone());
        let thread = Some(std::thread::spawn(move || collect(socket, &theirs)));
        Self { shared, wire, thread }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.bytes.lock().unwrap()).into_owned()
    }

    pub fn len(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Messages with bytes so far.
    pub fn frames(&self) -> usize {
        self.shared.frames.load(Ordering::SeqCst)
    }

    /// Stops reading, or goes on.
    pub fn hold(&self, on: bool) {
        self.shared.hold.store(on, Ordering::SeqCst);
    }

    #[track_caller]
    pub fn wait_for(&self, part: &str) {
        within(SOON, &format!("{part:?} in {:?}", self.text()), || {
            self.text().contains(part).then_some(())
        });
    }

    /// Waits until the stream has ended as it should; returns everything, having closed it.
    #[track_caller]
    pub fn finish(&mut self) -> String {
        self.wait_end();
        self.text()
    }

    #[track_caller]
    pub fn wait_end(&mut self) {
        let limit = SOON * 10;
        let end = within(limit, "end of the stream", || self.shared.end.lock().unwrap().clone());
        assert_eq!(end, Event::End);
    }

    pub fn hash(&self) -> Vec<u8> {
        self.shared.hash.lock().unwrap().clone().finalize().to_vec()
    }

    /// Goes without a word, as a killed containerd does; returns what had arrived.
    pub fn vanish(mut self) -> String {
        self.wire.0.shutdown(Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.text()
    }

    /// Closes the stream while there may be more, as containerd does when it removes a container.
    pub fn refuse(&mut self) {
        self.wire.frame(1, DATA, CLOSED | NOTHING, &[]).unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.wire.0.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(std::thread::panicking() || joined.is_ok(), "the reader failed");
        }
    }
}

/// The window grows by a step whenever it is below one, and shrinks by what was read in one go; what
/// a message has beyond that is forgotten.
fn collect(mut wire: Wire, shared: &Shared) {
    let (mut window_, mut granted, mut received) = (0, 0, 0);
    let mut grant = |wire: &mut Wire, window_: &mut usize| {
        while *window_ < WINDOW {
            *window_ += WINDOW;
            granted += WINDOW;
            let _ = wire.send(&window(i32::try_from(WINDOW).unwrap())); // its end is read
        }
        granted
    };
    loop {
        let granted = grant(&mut wire, &mut window_);
        while shared.hold.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        match wire.next() {
            Event::Data(bytes) => {
                assert!(!bytes.is_empty(), "a message without bytes");
                received += bytes.len();
                assert!(received <= granted, "{received} bytes for a window of {granted}");
                window_ -= bytes.len().min(PIECE);
                shared.hash.lock().unwrap().update(&bytes);
                shared.count.fetch_add(bytes.len(), Ordering::SeqCst);
                shared.frames.fetch_add(1, Ordering::SeqCst);
                if shared.keep.load(Ordering::SeqCst) {
                    shared.bytes.lock().unwrap().extend(bytes);
                }
            }
            end => {
                if end == Event::End {
                    let _ = wire.frame(1, DATA, CLOSED | NOTHING, &[]); // Close, as Go's does
                }
                shared.end.lock().unwrap().get_or_insert(end);
                return;
            }
        }
    }
}

/// The writer of a stream. Writes wait for windows.
pub struct Writer {
    wire: Wire,
    left: usize,
    /// The most that was ever left.
    pub most: usize,
}

impl Writer {
    pub fn open(address: &str, id: &str) -> Self {
        Self { wire: open(address, id).unwrap(), left: 0, most: 0 }
    }

    /// Writes all; gives up and says how much was written when no window comes for `limit`.
    pub fn write_for(&mut self, limit: Duration, mut bytes: &[u8]) -> usize {
        self.wire.0.set_read_timeout(Some(limit)).unwrap();
        let all = bytes.len();
        while !bytes.is_empty() {
            if self.left == 0 {
                match self.wire.next() {
                    Event::Window(update) => self.left += usize::try_from(update).unwrap(),
                    Event::Lost => break,
                    other => panic!("{other:?} in place of a window"),
                }
                self.most = self.most.max(self.left);
            }
            let count = bytes.len().min(PIECE).min(self.left);
            self.wire.send(&data(&bytes[..count])).unwrap();
            self.left -= count;
            bytes = &bytes[count..];
        }
        all - bytes.len()
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        assert_eq!(self.write_for(SOON, bytes), bytes.len(), "bytes written");
    }

    /// Says that this was all. The connection stays, as containerd's up to 2.1 do.
    pub fn close(mut self) -> Wire {
        self.wire.frame(1, DATA, CLOSED | NOTHING, &[]).unwrap();
        self.wire
    }
}

/// Waits until the other side has ended its part and hung up.
#[track_caller]
pub fn await_hang_up(mut wire: Wire) {
    eventually("the other side hangs up", || (wire.next() == Event::Lost).then_some(()));
}
