//! As much of HTTP/1.1 as questions need: a request, bounded in size and time, and one answer. Then the
//! connection ends, so that nobody keeps a place that others may want. What reads and writes text is pure.

use std::fmt::Write;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::places::Place;

/// The longest head of a request, in bytes.
pub(crate) const MAX_HEAD: usize = 8 << 10;
/// The longest body of a request, in bytes.
pub(crate) const MAX_BODY: usize = 1 << 10;
/// The most headers.
const MAX_HEADERS: usize = 64;
/// What is read at once.
const CHUNK: usize = 1 << 10;
/// How long a connection may take; less while others wait for its place.
const TIME: Duration = Duration::from_secs(10);
/// How long a client that was refused may go on sending, so that it sees why.
const LINGER: Duration = Duration::from_millis(500);

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Put,
    Post,
    Other,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What is wanted.
    pub(crate) method: Method,
    /// Of what, as it is written and without a query.
    pub(crate) path: String,
    /// The client asks for OpenMetrics rather than for what came before it.
    pub(crate) open_metrics: bool,
    /// What it sent along.
    pub(crate) body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The type of the body.
    pub(crate) content_type: &'static str,
    /// The methods that are allowed, for a method that is not.
    pub(crate) allow: Option<&'static str>,
    /// What there is to say.
    pub(crate) body: Vec<u8>,
}

/// Plain text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
/// JSON.
pub(crate) const JSON: &str = "application/json";

impl Response {
    /// An answer of some type.
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type, allow: None, body: body.into() }
    }

    /// An answer in words, which end with a newline.
    pub(crate) fn text(status: u16, words: impl Into<String>) -> Self {
        Self::new(status, TEXT, words.into().into_bytes())
    }

    /// The bytes of the answer; `HEAD` gets no body.
    pub(crate) fn encode(&self, method: Method) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let length = self.body.len();
        let _ = write!(head, "Content-Type: {}\r\nContent-Length: {length}\r\n", self.content_type);
        if let Some(allow) = self.allow {
            let _ = write!(head, "Allow: {allow}\r\n");
        }
        head += "Cache-Control: no-store\r\nConnection: close\r\n\r\n";
        let mut bytes = head.into_bytes();
        if method != Method::Head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// The request at the beginning of `bytes`, if all of it is there.
///
/// # Errors
/// The answer to what is no request, or one that is too large.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Request>, Response> {
    let refuse = |status: u16, why: &str| Err(Response::text(status, format!("{why}\n")));
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(Status::Partial) => return refuse(431, "the request's head is longer than 8 KiB"),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "too many headers"),
        Err(httparse::Error::Version) => return refuse(505, "HTTP/1.1, please"),
        Err(error) => return refuse(400, &format!("no HTTP request: {error}")),
    };
    let (mut open_metrics, mut expected) = (false, None);
    for header in &*head.headers {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(501, "a body has to have a Content-Length");
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if !digits || expected.is_some_and(|other| other != value) {
                return refuse(400, "wrong Content-Length");
            }
            expected = Some(value);
        } else if header.name.eq_ignore_ascii_case("accept") {
            open_metrics |= value.contains("application/openmetrics-text");
        }
    }
    let expected = expected.map_or(Ok(0), str::parse::<usize>).unwrap_or(usize::MAX);
    if expected > MAX_BODY {
        return refuse(413, "the body is longer than 1 KiB");
    }
    let Some(body) = bytes[length..].get(..expected) else { return Ok(None) };
    let Some(path) = head.path.and_then(path) else { return refuse(400, "no path") };
    let (method, body) = (method(head.method.unwrap_or_default()), body.to_vec());
    Ok(Some(Request { method, path: path.to_owned(), open_metrics, body }))
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "POST" => Method::Post,
        _ => Method::Other,
    }
}

/// The path in a request's target, which may be a whole URL.
fn path(target: &str) -> Option<&str> {
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    let path = target.split(['?', '#']).next()?;
    path.starts_with('/').then_some(path)
}

/// Reads one request from a client and answers it, for as long as the client may have its `place`.
pub(crate) async fn converse<S, A>(mut stream: S, place: &Place, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: AsyncFnOnce(Request) -> Response,
{
    let late = "a request takes 10 s at most, half a second while others wait\n";
    let (request, refused) = match bounded(place, receive(&mut stream)).await {
        Some(Some(Ok(request))) => (Some(request), None),
        Some(Some(Err(refusal))) => (None, Some(refusal)),
        Some(None) => return, // it has hung up
        None => (None, Some(Response::text(408, late))),
    };
    let method = request.as_ref().map_or(Method::Get, |request| request.method);
    let refuses = refused.is_some();
    let response = match (request, refused) {
        (Some(request), _) => answer(request).await,
        (None, refusal) => refusal.unwrap_or_else(|| Response::text(500, "\n")),
    };
    let bytes = response.encode(method);
    let write = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    // A refusal is written to whoever can take it at once, also after the time is over.
    let written = match refuses {
        true => timeout(LINGER, write).await.is_ok_and(|result| result.is_ok()),
        false => bounded(place, write).await.is_some_and(|result| result.is_ok()),
    };
    if refuses && written {
        // A connection that is closed with unread bytes may take the answer with it.
        let _ = timeout(LINGER, discard(&mut stream)).await;
    }
}

/// What comes of `work`, unless the client's time is over before.
async fn bounded<T>(place: &Place, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = place.over(TIME) => None,
    }
}

/// The request, or its refusal; `None` if the client hangs up before it was complete.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Option<Result<Request, Response>> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        match parse(&bytes) {
            Ok(None) => {}
            Ok(Some(request)) => return Some(Ok(request)),
            Err(refusal) => return Some(Err(refusal)),
        }
    }
}

async fn discard(stream: &mut (impl AsyncRead + Unpin)) {
    let mut chunk = [0; 256];
    let mut left: usize = 64 << 10;
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}

/// What a client's bytes come to, as a fuzzer sees it: read in two parts they come to the same.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let whole = parse(data);
    if let Ok(Some(request)) = &whole {
        assert!(request.path.starts_with('/') && request.body.len() <= MAX_BODY);
    }
    if let Err(refusal) = &whole {
        assert!(refusal.status >= 400 && reason(refusal.status) != "Unknown");
        let _ = refusal.encode(Method::Get);
    }
    if let Ok(found @ Some(_)) = parse(&data[..data.len() / 2]) {
        assert_eq!(whole, Ok(found), "what follows a request changes it");
    }
    assert!(whole != Ok(None) || data.len() < MAX_HEAD + MAX_BODY);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> u16 {
        match parse(text.as_bytes()) {
            Ok(Some(_)) => 200,
            Ok(None) => 0,
            Err(refusal) => refusal.status,
        }
    }

    #[test]
    fn requests_are_read_as_clients_write_them() {
        let get = |path: &str| Request {
            method: Method::Get,
            path: path.into(),
            open_metrics: false,
            body: Vec::new(),
        };
        let curl =
            "GET /healthz HTTP/1.1\r\nHost: berth\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n";
        let scrape = "GET /metrics?x=1 HTTP/1.1\r\nHost: b\r\nAccept: application/openmetrics-text;\
                      version=1.0.0;q=0.5,text/plain;q=0.3\r\n\r\n";
        let put = "PUT /log-level HTTP/1.1\r\nHost: b\r\ncontent-length: 5\r\n\r\ndebugGET";
        let cases = [
            ("curl", curl, get("/healthz")),
            ("bare newlines", "GET / HTTP/1.0\n\n", get("/")),
            ("a URL", "GET http://b:80/a?b#c HTTP/1.1\r\n\r\n", get("/a")),
            ("a URL alone", "GET http://b HTTP/1.1\r\n\r\n", get("/")),
            ("a query with a URL", "GET /a?u=x://y/z HTTP/1.1\r\n\r\n", get("/a")),
            ("Prometheus", scrape, Request { open_metrics: true, ..get("/metrics") }),
            (
                "a body",
                put,
                Request { method: Method::Put, body: b"debug".into(), ..get("/log-level") },
            ),
            (
                "another method",
                "BREW / HTTP/1.1\r\n\r\n",
                Request { method: Method::Other, ..get("/") },
            ),
        ];
        for (name, text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), Ok(Some(expected)), "{name}");
        }
    }

    #[test]
    fn what_is_no_request_or_too_large_is_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD));
        let endless = format!("GET / HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD));
        let post = |headers: &str| format!("POST / HTTP/1.1\r\n{headers}\r\n\r\nab");
        let cases = [
            ("nothing", String::new(), 0),
            ("half a head", "GET / HTTP/1.1\r\nHost: b\r\n".into(), 0),
            ("half a body", post("Content-Length: 3"), 0),
            ("a whole one", post("Content-Length: 2"), 200),
            ("the same twice", post("Content-Length: 2\r\nContent-Length: 2"), 200),
            ("two lengths", post("Content-Length: 2\r\nContent-Length: 1"), 400),
            ("a sign", post("Content-Length: +2"), 400),
            ("no number", post("Content-Length: two"), 400),
            ("too long", post("Content-Length: 1025"), 413),
            ("far too long", post("Content-Length: 99999999999999999999999"), 413),
            ("chunks", post("Transfer-Encoding: chunked"), 501),
            ("ttrpc", "\0\0\0\x0a\0\0\0\x01\x01\0".into(), 400),
            ("TLS", "\x16\x03\x01\0".into(), 400),
            ("HTTP/2", "PRI * HTTP/2.0\r\n\r\n".into(), 505),
            ("an asterisk", "OPTIONS * HTTP/1.1\r\n\r\n".into(), 400),
            ("no path", "GET x HTTP/1.1\r\n\r\n".into(), 400),
            ("headers", many, 431),
            ("a long path", long, 431),
            ("an endless head", endless, 431),
        ];
        for (name, text, expected) in cases {
            assert_eq!(status(&text), expected, "{name}");
            fuzz(text.as_bytes());
        }
    }

    #[test]
    fn an_answer_has_its_length_and_ends_the_connection() {
        let response = Response { allow: Some("GET"), ..Response::text(405, "no\n") };
        let text = String::from_utf8(response.encode(Method::Get)).unwrap();
        let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n\
                    Content-Length: 3\r\nAllow: GET\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";
        assert_eq!(text, format!("{head}no\n"));
        assert_eq!(response.encode(Method::Head), head.as_bytes());
    }
}
