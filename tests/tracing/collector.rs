//! What plays a collector of spans, well or badly.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use prost::Message;

use crate::support::eventually;
use crate::support::otlp::{AnyValue, KeyValue, Request, Span};

/// How a collector behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    /// It takes what it gets.
    Takes,
    /// It takes connections and says nothing.
    Mute,
    /// It hangs up at once.
    Closes,
    /// It reads a byte now and then.
    Slow,
    /// It says something, for ever.
    Talks,
    /// It answers 503.
    Refuses,
    /// It answers what is no HTTP.
    Garbage,
}

/// One export: the head of its request, and what it has.
pub struct Export {
    pub head: String,
    pub request: Request,
}

/// A collector on this machine; it ends when dropped.
pub struct Collector {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    exports: Mutex<Vec<Export>>,
    connections: AtomicUsize,
    mood: Mutex<Option<Mood>>,
    ends: AtomicBool,
}

impl Collector {
    pub fn new(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { mood: Mutex::new(Some(mood)), ..State::default() });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ends.load(Ordering::SeqCst) {
                    return;
                }
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let state = shared.clone();
                std::thread::spawn(move || state.serve(stream.unwrap()));
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    /// Where it is, as `OTEL_EXPORTER_OTLP_ENDPOINT` says it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Behaves otherwise from now on.
    pub fn change(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = Some(mood);
    }

    /// How many have called.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Does something with what came so far.
    pub fn exports<T>(&self, look: impl FnOnce(&[Export]) -> T) -> T {
        look(&self.state.exports.lock().unwrap())
    }

    /// Every span so far.
    pub fn spans(&self) -> Spans {
        self.exports(|exports| {
            let resources = exports.iter().flat_map(|export| &export.request.resource_spans);
            let scopes = resources.flat_map(|resource| &resource.scope_spans);
            Spans(scopes.flat_map(|scope| scope.spans.clone()).collect())
        })
    }

    /// All spans of a shim that has ended: the sandbox's own one comes last.
    #[track_caller]
    pub fn all(&self) -> Spans {
        eventually("the span of the sandbox", || {
            let spans = self.spans();
            spans.0.iter().any(|span| span.name == "sandbox").then_some(spans)
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address)); // so that it looks
        self.thread.take().unwrap().join().unwrap();
    }
}

impl State {
    fn ends(&self) -> bool {
        self.ends.load(Ordering::SeqCst)
    }

    fn serve(&self, mut stream: TcpStream) {
        let mood = self.mood.lock().unwrap().unwrap();
        let pause = || std::thread::sleep(Duration::from_millis(10));
        match mood {
            Mood::Takes => drop(self.take(&mut stream, "200 OK")),
            Mood::Refuses => drop(self.take(&mut stream, "503 Service Unavailable")),
            Mood::Closes => {}
            Mood::Garbage => drop(stream.write_all(b"\x16\x03\x01 no HTTP")),
            Mood::Mute => {
                while !self.ends() {
                    pause();
                }
            }
            Mood::Slow => {
                while !self.ends() && stream.read(&mut [0]).is_ok() {
                    pause();
                }
            }
            Mood::Talks => {
                while !self.ends() && stream.write_all(&[b'x'; 4096]).is_ok() {
                    pause();
                }
            }
        }
    }

    fn take(&self, stream: &mut TcpStream, status: &str) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let (head, body) = loop {
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&chunk[..count]);
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.split("Content-Length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                break (head, bytes[end + 4..].to_vec());
            }
        };
        if status.starts_with("200") {
            let request = Request::decode(body.as_slice()).expect("what OTLP has");
            self.exports.lock().unwrap().push(Export { head, request });
        }
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    }
}

/// Spans, to be asked for by name.
pub struct Spans(pub Vec<Span>);

impl Spans {
    /// Those with that name, in the order in which they began.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        let mut found: Vec<_> = self.0.iter().filter(|span| span.name == name).collect();
        found.sort_by_key(|span| span.start_time_unix_nano);
        found
    }

    /// The one with that name.
    #[track_caller]
    pub fn one(&self, name: &str) -> &Span {
        let found = self.named(name);
        assert_eq!(found.len(), 1, "{name} in {:?}", self.names());
        found[0]
    }

    /// The name of what a span is below.
    pub fn parent_name(&self, span: &Span) -> Option<&str> {
        let parent = self.0.iter().find(|other| other.span_id == span.parent_span_id);
        parent.map(|parent| parent.name.as_str())
    }

    /// Every name with that of its parent.
    pub fn names(&self) -> Vec<(&str, Option<&str>)> {
        self.0.iter().map(|span| (span.name.as_str(), self.parent_name(span))).collect()
    }
}

/// Attributes as texts.
pub fn attributes(list: &[KeyValue]) -> HashMap<&str, String> {
    let text = |value: &AnyValue| match (&value.string_value, value.int_value) {
        (Some(text), None) => text.clone(),
        (None, Some(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.as_str(), text(pair.value.as_ref().unwrap()))).collect()
}
