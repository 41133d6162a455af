//! What peers may send, and how many may come, while calls of others are answered at once.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::StateRequest;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protobuf::Message;
use ttrpc::{Request, Response};

use crate::support::{Code, Host, SOON, Shim, Spec, eventually, skipped, timed};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
/// ttrpc's limit of a message.
const MOST: usize = 4 << 20;

fn connect(shim: &Shim<'_>) -> UnixStream {
    let stream = UnixStream::connect(shim.address().trim_start_matches("unix://")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// A frame on stream `id`.
fn frame(id: u32, kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut frame = [&length.to_be_bytes()[..], &id.to_be_bytes(), &[kind, flags]].concat();
    frame.extend(body);
    frame
}

/// A State of container c, of `size` bytes if that is more than it takes.
fn state(service: &str, method: &str, size: usize) -> Vec<u8> {
    let mut request = Request::new();
    (request.service, request.method) = (service.into(), method.into());
    let payload = StateRequest { id: "c".into(), ..Default::default() };
    request.payload = payload.write_to_bytes().unwrap();
    let bytes = request.write_to_bytes().unwrap();
    if bytes.len() >= size {
        return bytes;
    }
    // The rest is a field that nobody knows: its key, its length in four bytes, and the bytes.
    let rest = size - bytes.len() - 6;
    let varint = |n: usize| [n | 0x80, (n >> 7) | 0x80, (n >> 14) | 0x80, n >> 21];
    let length = varint(rest).map(|part| (part & 0xff) as u8);
    [&bytes[..], &[0xfa, 0x01], &length, &vec![b'x'; rest]].concat()
}

/// The stream and status of the next answer.
fn answer(stream: &mut UnixStream, name: &str) -> (u32, Code) {
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap_or_else(|error| panic!("{name}: {error}"));
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; number(0) as usize];
    stream.read_exact(&mut body).unwrap();
    assert_eq!(header[8], RESPONSE, "{name}");
    (number(4), Response::parse_from_bytes(&body).unwrap().status().code())
}

#[track_caller]
fn others_are_answered_at_once(shim: &Shim<'_>, name: &str) {
    let call = || drop(shim.state("c", "").unwrap());
    let best = (0..5).map(|_| timed(call).1).min().unwrap();
    assert!(best < Duration::from_millis(100), "{name}: {best:?}");
}

const TASK: &str = "containerd.task.v3.Task";

#[test]
fn a_frame_that_is_wrong_is_answered_and_the_next_one_too() {
    if skipped("wrong frames are answered with their own status") {
        return;
    }
    let good = || state(TASK, "State", 0);
    let cases = [
        ("a request", frame(1, REQUEST, 0, &good()), Code::OK),
        ("of another stream number", frame(2, REQUEST, 0, &good()), Code::OK),
        ("of the largest stream number", frame(u32::MAX, REQUEST, 0, &good()), Code::OK),
        ("without a byte", frame(1, REQUEST, 0, b""), Code::UNIMPLEMENTED),
        ("no message", frame(1, REQUEST, 0, &[0xff; 3]), Code::INVALID_ARGUMENT),
        ("half a message", frame(1, REQUEST, 0, &good()[..9]), Code::INVALID_ARGUMENT),
        ("an answer", frame(1, RESPONSE, 0, &good()), Code::INVALID_ARGUMENT),
        ("an unknown type", frame(1, 77, 0, &good()), Code::INVALID_ARGUMENT),
        ("data of no stream", frame(1, DATA, 0, &good()), Code::INVALID_ARGUMENT),
        ("no method", frame(1, REQUEST, 0, &state(TASK, "", 0)), Code::UNIMPLEMENTED),
        ("no service", frame(1, REQUEST, 0, &state("", "State", 0)), Code::UNIMPLEMENTED),
        (
            "a long name of a method",
            frame(1, REQUEST, 0, &state(TASK, &"x".repeat(1 << 20), 0)),
            Code::UNIMPLEMENTED,
        ),
        ("4 MiB", frame(1, REQUEST, 0, &state(TASK, "State", MOST)), Code::OK),
        ("4 MiB of nothing", frame(1, REQUEST, 0, &vec![0xff; MOST]), Code::INVALID_ARGUMENT),
        (
            "4 MiB and a byte",
            frame(1, REQUEST, 0, &state(TASK, "State", MOST + 1)),
            Code::RESOURCE_EXHAUSTED,
        ),
        ("32 MiB", frame(1, REQUEST, 0, &vec![0xff; 32 << 20]), Code::RESOURCE_EXHAUSTED),
    ];
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut peer = connect(&shim);
    for (name, bytes, expected) in cases {
        peer.write_all(&bytes).unwrap();
        let id = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        assert_eq!(answer(&mut peer, name), (id, expected), "{name}");
        peer.write_all(&frame(9, REQUEST, 0, &good())).unwrap();
        assert_eq!(answer(&mut peer, name), (9, Code::OK), "the request behind {name}");
        others_are_answered_at_once(&shim, name);
    }
    shim.end();
}

#[test]
fn who_comes_when_all_places_are_taken_is_refused_and_it_is_said_once_a_second() {
    if skipped("the number of connections is limited") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let speak = || {
        let mut peer = connect(&shim);
        peer.write_all(&frame(1, 77, 0, b"")).unwrap();
        peer
    };
    let mut peers: Vec<_> = (0..2047).map(|_| speak()).collect(); // and our own
    for peer in &mut peers {
        answer(peer, "a speaker");
    }
    let began = Instant::now();
    for number in 0..300 {
        let refused = connect(&shim).read(&mut [0]);
        assert!(matches!(refused, Ok(0) | Err(_)), "{number}: {refused:?}");
    }
    others_are_answered_at_once(&shim, "2048 peers and more");
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    shim.log().wait_for("refused a connection");
    let said = shim.log().text().matches("refused a connection").count();
    assert!(said <= 1 + seconds, "{said} times in {seconds} s");
    drop(peers);
    eventually("a place", || {
        let task = crate::support::Task::connect(shim.address(), shim.api()).ok()?;
        task.state("c", "").ok()
    });
    shim.end();
}

/// A containerd that is killed waits for every process that it has; the next one begins anew.
#[test]
fn a_wait_ends_with_its_callers_connection() {
    if skipped("Wait ends with its caller") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let before = shim.descriptors().len();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(&shim);
            // Both requests have the id in the same place; the second one's answer says that the first is there.
            stream.write_all(&frame(1, REQUEST, 0, &state(TASK, "Wait", 0))).unwrap();
            stream.write_all(&frame(3, REQUEST, 0, &state(TASK, "State", 0))).unwrap();
            assert_eq!(answer(&mut stream, "State"), (3, Code::OK));
            stream
        })
        .collect();
    assert_eq!(shim.descriptors().len(), before + 20);
    drop(callers);
    eventually("the connections are gone", || (shim.descriptors().len() == before).then_some(()));
    shim.kill("c", "", libc::SIGKILL).unwrap();
    assert_eq!(shim.reconnect().wait("c", "").unwrap().exit_status, 137);
    assert_eq!(shim.reap("c", ""), 137);
    shim.shutdown("c").unwrap();
    shim.wait_gone();
}
