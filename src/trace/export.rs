//! What waits for the collector, and its way there: HTTP on the daemon's own loop, one connection a batch.
//!
//! Nothing waits for it but the shim's end, and that a second at most. A batch that a collector does not take is
//! lost, and so is a span for which there is no room.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::otlp::{self, Value};
use super::settings::Settings;
use crate::config::Endpoint;

/// Bytes of spans that wait, at most.
const MOST_WAITING: usize = 256 << 10;
/// So many do not wait for more to come.
const ENOUGH: usize = 64 << 10;
/// How long the first span waits for others.
const GATHER: Duration = Duration::from_secs(5);
/// The longest answer of a collector, in bytes.
const LONGEST_ANSWER: usize = 16 << 10;
/// Headers of it, at most.
const MOST_HEADERS: usize = 64;

/// Spans that have ended and were not sent yet.
#[derive(Default)]
pub(super) struct Queue {
    spans: RefCell<Vec<Vec<u8>>>,
    bytes: Cell<usize>,
    /// There is something to do: a first span, enough of them, or the end.
    due: Notify,
    closing: Cell<bool>,
    sent: Cell<u64>,
    lost: Cell<u64>,
    /// That spans are lost was said.
    is_said: Cell<bool>,
}

impl Queue {
    /// Takes a span, unless there is no room for it.
    pub(super) fn push(&self, span: Vec<u8>) {
        let bytes = self.bytes.get() + span.len();
        if bytes > MOST_WAITING {
            return self.lose(1, format_args!("more than {MOST_WAITING} bytes of them wait"));
        }
        self.bytes.set(bytes);
        self.spans.borrow_mut().push(span);
        if self.spans.borrow().len() == 1 || bytes >= ENOUGH {
            self.due.notify_one();
        }
    }

    /// Forgets what waits: it is not wanted.
    pub(super) fn clear(&self) {
        self.take();
    }

    /// Lets [`run`] send what there is, and end.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.due.notify_one();
    }

    /// How many spans were sent, and how many were lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.sent.get(), self.lost.get())
    }

    /// Whether so much waits that it would be sent.
    pub(super) fn has_enough(&self) -> bool {
        self.bytes.get() >= ENOUGH
    }

    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        self.bytes.set(0);
        self.spans.take()
    }

    /// Counts lost spans; the first ones since some were sent are worth a line.
    fn lose(&self, count: u64, why: std::fmt::Arguments<'_>) {
        self.lost.set(self.lost.get() + count);
        if count > 0 && !self.is_said.replace(true) {
            log::warn!("spans are lost: {why}");
        }
    }

    async fn gathered(&self) {
        while self.spans.borrow().is_empty() && !self.closing.get() {
            self.due.notified().await;
        }
        let enough = async {
            while !self.has_enough() && !self.closing.get() {
                self.due.notified().await;
            }
        };
        let _ = timeout(GATHER, enough).await; // what there is has to do
    }
}

/// Sends what is queued, until it is closed.
pub(super) async fn run(queue: Rc<Queue>, settings: Settings, resource: Vec<(String, Value)>) {
    loop {
        queue.gathered().await;
        let (closing, spans) = (queue.closing.get(), queue.take());
        if !spans.is_empty() {
            let count = spans.len() as u64;
            let body = otlp::request(&resource, &spans);
            drop(spans);
            let answer = timeout(settings.timeout, post(&settings, &body)).await;
            let rejected = answer.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            let lost = rejected.as_ref().map_or(count, |rejected| (*rejected).min(count));
            queue.sent.set(queue.sent.get() + (count - lost));
            let Endpoint { host, port, .. } = &settings.endpoint;
            match rejected {
                Ok(0) if queue.is_said.replace(false) => log::info!("spans are sent again"),
                Ok(0) => {}
                Ok(_) => queue.lose(lost, format_args!("{host}:{port} does not want some")),
                Err(error) => queue.lose(lost, format_args!("{host}:{port}: {error}")),
            }
        }
        if closing {
            return;
        }
    }
}

/// Sends one request; says how many of its spans were refused.
async fn post(Settings { endpoint, headers, .. }: &Settings, body: &[u8]) -> io::Result<u64> {
    let mut stream = connect(endpoint).await?;
    stream.set_nodelay(true)?; // or the body waits until the collector's side has acknowledged the head
    let Endpoint { host, port, path } = endpoint;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: berth/{}\r\n\
         Content-Type: application/x-protobuf\r\nContent-Length: {}\r\nConnection: close\r\n",
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let answer = receive(&mut stream).await?;
    match answer.status {
        200..=299 => Ok(otlp::rejected(&answer.body)),
        status => Err(io::Error::other(format!("HTTP status {status}"))),
    }
}

/// What a collector says.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Reads an answer: its head, and as much of a body as that promises. Whether the connection ends then is not
/// waited for.
async fn receive(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        let count = stream.read_buf(&mut bytes).await?;
        if let Some(answer) = parse(&bytes) {
            return Ok(answer);
        }
        if count == 0 || bytes.len() > LONGEST_ANSWER {
            return Err(io::Error::other("no answer in HTTP"));
        }
    }
}

/// `None` as long as something is missing. Of a refusal the body does not matter, nor one that is too long.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else { return None };
    let is_length =
        |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
    let length =
        response.headers.iter().find(is_length).and_then(|header| {
            std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok()
        });
    let status = response.code?;
    let is_read = |length: &usize| {
        (200..300).contains(&status) && *length <= LONGEST_ANSWER.saturating_sub(head)
    };
    let length = length.filter(is_read).unwrap_or(0);
    let body = bytes[head..].get(..length)?.to_vec();
    Some(Answer { status, body })
}

async fn connect(Endpoint { host, port, .. }: &Endpoint) -> io::Result<TcpStream> {
    let mut last = io::Error::other("no address of that name in /etc/hosts, and berth asks no DNS");
    for address in addresses(host, || fs::read_to_string("/etc/hosts").unwrap_or_default()) {
        match TcpStream::connect(SocketAddr::new(address, *port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a host. One that is looked up elsewhere than in `hosts` would need what a static program
/// does not have, and a thread.
fn addresses(host: &str, hosts: impl Fn() -> String) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let names = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(address)
    };
    let found: Vec<IpAddr> = hosts().lines().filter_map(names).collect();
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_what_is_lost_counted() {
        let queue = Queue::default();
        (0..MOST_WAITING / 1000 + 7).for_each(|_| queue.push(vec![0; 1000]));
        assert_eq!(queue.counts(), (0, 7));
        assert_eq!(queue.take().len(), MOST_WAITING / 1000);
        queue.push(vec![0; 1000]);
        assert_eq!((queue.counts(), queue.bytes.get()), ((0, 7), 1000));
        queue.clear();
        assert_eq!((queue.take().len(), queue.bytes.get()), (0, 0));
    }

    #[test]
    fn a_host_is_an_address_or_in_the_table() {
        let table =
            "# comment\n127.0.0.1 localhost\n::1 localhost ip6\n10.0.0.7\tcollector x # y\nz\n";
        let cases = [
            ("127.0.0.2", table, &["127.0.0.2"][..]),
            ("::2", table, &["::2"]),
            ("localhost", table, &["127.0.0.1", "::1"]),
            ("Collector", table, &["10.0.0.7"]),
            ("y", table, &[]),
            ("10.0.0.8x", table, &[]),
            ("localhost", "", &["127.0.0.1", "::1"]),
        ];
        for (host, table, expected) in cases {
            let found: Vec<_> =
                addresses(host, || table.into()).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{host}");
        }
    }

    #[test]
    fn an_answer_has_a_status() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
        type Found<'a> = Option<(u16, &'a [u8])>;
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONGEST_ANSWER}\r\n\r\n");
        let most = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", usize::MAX);
        let cases: [(_, &[u8], Found<'_>); 11] = [
            ("a refusal", b"HTTP/1.1 503 x\r\nContent-Length: 9\r\n\r\nso", Some((503, b""))),
            ("too long a body", long.as_bytes(), Some((200, b""))),
            ("the longest", most.as_bytes(), Some((200, b""))),
            ("plain", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", Some((200, b"body"))),
            ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbod", None),
            ("no length", b"HTTP/1.1 200 OK\r\na: b\r\n\r\nbody", Some((200, b""))),
            ("old", b"HTTP/1.0 503 x\r\n\r\n", Some((503, b""))),
            ("half", b"HTTP/1.1 200 OK\r\na: b\r\n", None),
            ("none", b"", None),
            ("junk", b"\x16\x03\x01", None),
            ("many headers", many.as_bytes(), None),
        ];
        for (name, answer, expected) in cases {
            let found = parse(answer).map(|found| (found.status, found.body));
            assert_eq!(found, expected.map(|(status, body)| (status, body.to_vec())), "{name}");
        }
    }
}
