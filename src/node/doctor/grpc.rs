//! Asks containerd over gRPC what it is and what it knows: single calls with an empty request, for which a
//! few frames of HTTP/2 are enough. Each has a deadline; a mute containerd costs that time and no more.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::socket;

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is taken, in bytes.
const MOST: usize = 16 << 20;
/// The one stream.
const STREAM: u32 = 1;

// Types and flags of frames (RFC 9113).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody listens.
    Nobody,
    /// Somebody does, and does not answer in time, or not in gRPC.
    Mute(String),
    /// It answered with an error.
    Refused,
}

/// What a containerd has in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) tasks: BTreeSet<String>,
    /// `None` from one that has no sandboxes, or does not tell.
    pub(super) sandboxes: Option<BTreeSet<String>>,
}

/// The version of the containerd at `address`.
pub(super) fn version(address: &Path) -> Result<String, Failure> {
    let answer = call(address, "", "/containerd.services.version.v1.Version/Version")?;
    let version = fields(&answer, 1).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(version).trim_start_matches('v').to_owned())
}

/// The tasks and sandboxes that it knows in a namespace.
pub(super) fn ids(address: &Path, namespace: &str) -> Result<Ids, Failure> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let answer = call(address, namespace, "/containerd.services.tasks.v1.Tasks/List")?;
    // Of a task, `id` is the container's, or else `container_id`.
    let tasks = fields(&answer, 1).flat_map(|task| fields(task, 1).chain(fields(task, 2)));
    let tasks = tasks.map(text).filter(|id| !id.is_empty()).collect();
    let sandboxes = match call(address, namespace, "/containerd.services.sandbox.v1.Store/List") {
        Ok(answer) => Some(fields(&answer, 1).flat_map(|one| fields(one, 1)).map(text).collect()),
        Err(Failure::Refused) => None,
        Err(other) => return Err(other),
    };
    Ok(Ids { tasks, sandboxes })
}

/// The values of the length-delimited field `wanted`; it ends at what is no protobuf.
fn fields(mut message: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut message)?;
            let length = match tag & 7 {
                0 => {
                    varint(&mut message)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut message)?).ok()?,
                5 => 4,
                _ => return None,
            };
            let (value, rest) = message.split_at_checked(length)?;
            message = rest;
            if tag & 7 == 2 && tag >> 3 == wanted {
                return Some(value);
            }
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// One call with an empty request; the answer's message.
fn call(address: &Path, namespace: &str, method: &str) -> Result<Vec<u8>, Failure> {
    let mute = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Failure::Mute(format!("no answer within {} s", LIMIT.as_secs()))
        }
        _ => Failure::Mute(error.to_string()),
    };
    let stream = match socket::connect_now(address) {
        Ok(stream) => stream,
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Err(Failure::Nobody),
        Err(errno) => return Err(mute(errno.into())),
    };
    stream.set_nonblocking(false).map_err(mute)?;
    let deadline = Instant::now() + LIMIT;
    exchange(stream, namespace, method, deadline).map_err(mute)?.ok_or(Failure::Refused)
}

/// Sends the request and reads until the end of the stream; `None` if that comes without a message.
fn exchange(
    mut stream: UnixStream,
    namespace: &str,
    method: &str,
    deadline: Instant,
) -> io::Result<Option<Vec<u8>>> {
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(&request(namespace, method))?;
    let mut message = Vec::new();
    loop {
        let mut head = [0; 9];
        read(&mut stream, &mut head, deadline)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let mut payload = vec![0; length];
        read(&mut stream, &mut payload, deadline)?;
        let ours = u32::from_be_bytes(id) & 0x7fff_ffff == STREAM;
        match kind {
            DATA if ours => message.extend_from_slice(unpadded(&payload, flags)),
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload))?,
            RESET if ours => return Ok(None),
            GO_AWAY => return Err(io::Error::other("it hangs up")),
            _ => {}
        }
        if message.len() > MOST {
            return Err(io::Error::other("its answer is too long"));
        }
        if ours && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(unwrapped(&message));
        }
    }
}

fn unpadded(payload: &[u8], flags: u8) -> &[u8] {
    match payload.split_first() {
        Some((&padding, rest)) if flags & PADDED != 0 => {
            &rest[..rest.len().saturating_sub(padding.into())]
        }
        _ => payload,
    }
}

/// gRPC's one message behind its head: a flag for compression, which nobody asked for, and the length.
fn unwrapped(data: &[u8]) -> Option<Vec<u8>> {
    let (head, message) = data.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    (head[0] == 0).then(|| message.get(..length).map(<[u8]>::to_vec))?
}

/// `read_exact` with a deadline for all of it.
fn read(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::Error::other("it hangs up")),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// All that is sent: windows that need no more credit, the head, and a message without bytes.
fn request(namespace: &str, method: &str) -> Vec<u8> {
    let window = 0x7fff_0000_u32.to_be_bytes();
    let settings = [&[0, 4], window.as_slice()].concat(); // SETTINGS_INITIAL_WINDOW_SIZE
    let mut head = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("containerd-namespace", namespace),
    ] {
        if !value.is_empty() {
            head.push(0); // a literal that the peer need not remember, its name too (RFC 7541)
            for text in [name, value] {
                head.push(u8::try_from(text.len()).unwrap_or(0) & 0x7f); // none is so long
                head.extend_from_slice(text.as_bytes());
            }
        }
    }
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &settings),
        frame(WINDOW, 0, 0, &window),
        frame(HEADERS, END_HEADERS, STREAM, &head),
        frame(DATA, END_STREAM, STREAM, &[0; 5]),
    ]
    .concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, stream.to_be_bytes().as_slice(), payload].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What one call gets whose server sends `frames`.
    fn asked(frames: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&frames).unwrap();
            drop(stream.read_to_end(&mut Vec::new()));
        });
        call(&path, "ns", "/a.B/C")
    }

    #[test]
    fn an_answer_is_a_whole_message_or_a_failure() {
        let body = |text: &[u8]| [&[0, 0, 0, 0, u8::try_from(text.len()).unwrap()], text].concat();
        let data = frame(DATA, 0, 1, &body(b"yes"));
        let end = frame(HEADERS, END_STREAM | END_HEADERS, 1, b"");
        let preface = [frame(SETTINGS, 0, 0, b""), frame(PING, 0, 0, &[7; 8])].concat();
        let halves =
            [frame(DATA, 0, 1, &body(b"yes")[..4]), frame(DATA, 0, 1, &body(b"yes")[4..])].concat();
        let padded =
            frame(DATA, PADDED | END_STREAM, 1, &[&[2], body(b"yes").as_slice(), &[0, 0]].concat());
        let hung = Failure::Mute("it hangs up".into());
        let cases = [
            ("whole", [preface.clone(), data, end.clone()].concat(), Ok(b"yes".to_vec())),
            ("in two frames", [halves, end.clone()].concat(), Ok(b"yes".to_vec())),
            ("padded", padded, Ok(b"yes".to_vec())),
            ("an error", [preface.clone(), end].concat(), Err(Failure::Refused)),
            ("reset", frame(RESET, 0, 1, &[0; 4]), Err(Failure::Refused)),
            ("gone", frame(GO_AWAY, 0, 0, &[0; 8]), Err(hung)),
            ("mute", preface, Err(Failure::Mute("no answer within 2 s".into()))),
        ];
        for (name, frames, expected) in cases {
            assert_eq!(asked(frames), expected, "{name}");
        }
        assert_eq!(call(Path::new("/no/such"), "", "/"), Err(Failure::Nobody));
    }

    #[test]
    fn fields_are_read_as_protobuf_has_them() {
        // 1: "ab", 2: 300, 1: "", 3: fixed32, 9: fixed64, 1: "c", then a field that is cut short
        let message = b"\x0a\x02ab\x10\xac\x02\x0a\x00\x1d\x01\x02\x03\x04\x49\x01\x02\x03\x04\x05\x06\x07\x08\
                        \x0a\x01c\x0a\x05x";
        let found: Vec<&[u8]> = fields(message, 1).collect();
        assert_eq!(found, [b"ab".as_slice(), b"", b"c"]);
        assert_eq!(fields(message, 4).count(), 0);
    }
}
