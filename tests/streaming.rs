//! Streams of containerd's streaming API in place of FIFOs.

mod stuck;
mod wrong;

use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::streaming::{
    self, OPEN, REQUEST, RESPONSE, Reader, WINDOW, Wire, Writer, await_hang_up, uri,
};
use crate::support::{Code, Host, Shim, Spec, eventually, skipped, timed};

const STREAM: &str = "containerd.services.streaming.v1.Streaming";

/// After this time the shim knows that what a client has read is read.
const READ: Duration = Duration::from_millis(300);

/// How much is moved where the amount matters.
fn bytes() -> usize {
    std::env::var("BERTH_IO_BYTES").map_or(64 << 20, |text| text.parse().unwrap())
}

/// The streams of one process, opened as containerd does before Create and Exec.
struct Streams {
    stdin: Option<Writer>,
    out: Reader,
    err: Option<Reader>,
    uris: [String; 3],
    terminal: bool,
}

impl Streams {
    fn open(shim: &Shim<'_>, name: &str, stdin: bool, terminal: bool) -> Self {
        let address = shim.address();
        let id = |stream: &str| format!("{name}-{stream}");
        let uris = ["stdin", "stdout", "stderr"].map(|stream| uri(address, &id(stream)));
        Self {
            stdin: stdin.then(|| Writer::open(address, &id("stdin"))),
            out: Reader::open(address, &id("stdout")),
            err: (!terminal).then(|| Reader::open(address, &id("stderr"))),
            uris,
            terminal,
        }
    }

    /// Creates and starts container `c`, or adds and starts its exec process `exec` of `script`.
    #[track_caller]
    fn run(&self, shim: &Shim<'_>, exec: &str, script: &str) {
        let [stdin, stdout, stderr] = self.uris.clone();
        let stdin = if self.stdin.is_some() { stdin } else { String::new() };
        let stderr = if self.terminal { String::new() } else { stderr };
        if exec.is_empty() {
            let mut request = shim.request("c");
            (request.stdin, request.stdout, request.stderr) = (stdin, stdout, stderr);
            request.terminal = self.terminal;
            shim.create(&request).unwrap();
        } else {
            let process = json!({
                "args": ["/bin/sh", "-c", script], "terminal": self.terminal,
                "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            });
            let mut request = shim.exec_process("c", exec, process);
            (request.stdin, request.stdout, request.stderr) = (stdin, stdout, stderr);
            request.terminal = self.terminal;
            shim.exec(&request).unwrap();
        }
        shim.start("c", exec).unwrap();
    }
}

/// Adds and starts exec `e` of `script` with stdout alone.
#[track_caller]
fn exec(shim: &Shim<'_>, exec: &str, stdout: &str, script: &str) {
    let mut request = shim.exec_request("c", exec, script);
    request.stdout = stdout.into();
    shim.exec(&request).unwrap();
    shim.start("c", exec).unwrap();
}

#[test]
fn streams_serve_init_and_exec_processes() {
    const SCRIPT: &str = "cat; echo out; echo err >&2; exit 3";
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.remove("c");
    let before = shim.descriptors(); // among them the connection for events
    for stdin in [false, true] {
        for process in ["", "e"] {
            host.prepare("c", if process.is_empty() { Spec::sh(SCRIPT) } else { Spec::idle() });
            if !process.is_empty() {
                shim.run("c");
            }
            let mut streams = Streams::open(&shim, &format!("{stdin}{process}"), stdin, false);
            streams.run(&shim, process, SCRIPT);
            let mut expected = "out\n".to_owned();
            let mut connection = None;
            if let Some(mut writer) = streams.stdin.take() {
                writer.write(b"some ");
                writer.write(b"input\n");
                streams.out.wait_for("some input\n");
                connection = Some(writer.close());
                expected.insert_str(0, "some input\n");
            }
            assert_eq!(shim.reap("c", process), 3, "{stdin} {process}");
            assert_eq!(streams.out.finish(), expected, "{stdin} {process}");
            assert_eq!(streams.err.unwrap().finish(), "err\n", "{stdin} {process}");
            connection.into_iter().for_each(await_hang_up);
            if !process.is_empty() {
                shim.remove("c");
            }
        }
    }
    eventually("no descriptor is left", || (shim.descriptors() == before).then_some(()));
    shim.stop();
}

#[test]
fn a_terminal_has_streams_too() {
    const SCRIPT: &str = "read x; stty size; read x; stty size; exit 3";
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT).terminal());
    for process in ["", "e"] {
        if !process.is_empty() {
            host.prepare("c", Spec::idle());
            shim.run("c");
        }
        let mut streams = Streams::open(&shim, &format!("t{process}"), true, true);
        streams.run(&shim, process, SCRIPT);
        let mut writer = streams.stdin.take().unwrap();
        for (width, height, expected) in [(80, 25, "25 80\r\n"), (100, 30, "30 100\r\n")] {
            shim.resize("c", process, width, height).unwrap();
            writer.write(b"\n");
            streams.out.wait_for(expected);
        }
        assert_eq!(shim.reap("c", process), 3);
        assert_eq!(streams.out.finish(), "\r\n25 80\r\n\r\n30 100\r\n");
    }
    shim.end();
}

/// A pseudo-random text, the same for every call, `BYTES` long.
fn pattern(length: usize) -> Vec<u8> {
    let block: Vec<u8> = (0..1_000_003_u64).map(|n| (n * n % 251) as u8).collect();
    block.iter().copied().cycle().take(length).collect()
}

#[test]
fn everything_arrives_both_ways() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let address = shim.address();
    let mut writer = Writer::open(address, "in");
    let (mut out, mut err) = (Reader::counting(address, "out"), Reader::counting(address, "err"));
    let mut request = shim.exec_request("c", "e", "tee /dev/stderr");
    request.stdin = uri(address, "in");
    (request.stdout, request.stderr) = (uri(address, "out"), uri(address, "err"));
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    let all = pattern(bytes());
    writer.write(&all);
    assert!(writer.most <= WINDOW, "a window of {}", writer.most);
    writer.close();
    assert_eq!(shim.reap("c", "e"), 0);
    let expected = Sha256::digest(&all).to_vec();
    for reader in [&mut out, &mut err] {
        reader.wait_end();
        assert_eq!((reader.len(), reader.hash()), (all.len(), expected.clone()));
    }
    shim.end();
}

#[test]
fn single_bytes_are_gathered() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "out");
    let script = "i=0; while [ $i -lt 20000 ]; do echo -n .; i=$((i+1)); done";
    exec(&shim, "e", &uri(shim.address(), "out"), script);
    assert_eq!(shim.reap("c", "e"), 0);
    assert_eq!(out.finish().len(), 20000);
    assert!(out.frames() < 200, "{} frames", out.frames());
    shim.end();
}

#[test]
fn a_slow_reader_delays_only_its_own_process() {
    const BYTES: usize = 4 << 20;
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "out");
    out.hold(true);
    exec(&shim, "e", &uri(shim.address(), "out"), &format!("head -c {BYTES} /dev/zero"));
    thread::sleep(Duration::from_millis(200));
    assert!(out.len() <= 2 * WINDOW, "{}", out.len());
    let (_, took) = timed(|| {
        shim.exec_run("c", "other", "exit 1").unwrap();
        assert_eq!(shim.reap("c", "other"), 1);
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
    let early = shim.within(Duration::from_millis(200)).wait("c", "e");
    assert!(early.is_err(), "4 MiB are more than can be kept: {early:?}");
    out.hold(false);
    assert_eq!(shim.reap("c", "e"), 0);
    assert_eq!(out.finish().len(), BYTES);
    shim.end();
}

#[test]
fn output_waits_for_a_reader_that_vanishes_and_comes_back() {
    // Each line waits for the word that the one before has been read: nothing is on its way then.
    const SCRIPT: &str = "while read n; do i=0; while [ $i -lt $n ]; do echo line $i; \
        i=$((i+1)); done; done; exit 4";
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT));
    let mut streams = Streams::open(&shim, "s", true, false);
    streams.run(&shim, "", "");
    let mut writer = streams.stdin.take().unwrap();
    writer.write(b"10\n");
    streams.out.wait_for("line 9\n");
    thread::sleep(READ);
    streams.out.vanish();
    drop(writer); // its connection goes too: no end of input
    let again = Writer::open(shim.address(), "s-stdin");
    thread::sleep(Duration::from_millis(50));
    let mut writer = again;
    writer.write(b"20000\n");
    thread::sleep(Duration::from_millis(200)); // 230 kB are kept, and the process goes on
    writer.write(b"1\n");
    writer.close();
    eventually("the process ends unread", || host.processes().len().eq(&1).then_some(()));
    let early = shim.within(Duration::from_millis(200)).wait("c", "");
    assert!(early.is_err(), "the reader hears of the end when it has come back: {early:?}");
    let mut out = Reader::open(shim.address(), "s-stdout");
    assert_eq!(shim.reap("c", ""), 4);
    let expected: String = (0..20000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(out.finish(), expected + "line 0\n");
    // The same names again, of a process that is gone: nobody takes them.
    Reader::open(shim.address(), "s-stdout").vanish();
    shim.stop();
}

#[test]
fn output_without_a_reader_spills_into_a_file() {
    const BYTES: usize = 10 << 20;
    if skipped("streams") {
        return;
    }
    let host = Host::new().configured("[io]\nspill = \"64MiB\"\n");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for case in ["vanished", "slow"] {
        let first = Reader::open(shim.address(), case);
        let script = format!("sleep 0.2; head -c {BYTES} /dev/zero; echo end");
        first.hold(case == "slow");
        exec(&shim, case, &uri(shim.address(), case), &script);
        let slow = if case == "slow" {
            Some(first)
        } else {
            first.vanish();
            None
        };
        assert_eq!(shim.wait("c", case).unwrap().exit_status, 0, "{case}: it was not blocked");
        let mut out = slow.unwrap_or_else(|| Reader::open(shim.address(), case));
        out.hold(false);
        assert_eq!(shim.reap("c", case), 0);
        assert_eq!(out.finish().len(), BYTES + 4, "{case}");
        assert!(out.text().ends_with("end\n"), "{case}");
    }
    shim.end();
}

#[test]
fn a_reader_that_says_good_bye_blocks_nobody() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "out");
    exec(&shim, "e", &uri(shim.address(), "out"), "echo a; head -c 9000000 /dev/zero; exit 5");
    out.wait_for("a\n");
    out.refuse();
    assert_eq!(shim.reap("c", "e"), 5);
    shim.end();
}

#[test]
fn input_ends_with_its_stream_or_closeio() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let run = |exec: &str, script: &str| {
        let writer = Writer::open(shim.address(), exec);
        let mut request = shim.exec_request("c", exec, script);
        request.stdin = uri(shim.address(), exec);
        shim.exec(&request).unwrap();
        shim.start("c", exec).unwrap();
        writer
    };
    let mut writer = run("closed", "n=$(cat | wc -c); [ $n = 200000 ]");
    writer.write(&[7; 200_000]);
    writer.close();
    assert_eq!(shim.reap("c", "closed"), 0, "all of it, then the end");

    let mut writer = run("closeio", "[ $(cat) = word ]");
    writer.write(b"word\n");
    shim.close_stdin("c", "closeio").unwrap();
    assert_eq!(shim.reap("c", "closeio"), 0, "the client's end stays open");

    let mut writer = run("vanished", "[ $(cat) = word ]");
    writer.write(b"word\n");
    drop(writer);
    let early = shim.within(Duration::from_millis(200)).wait("c", "vanished");
    assert!(early.is_err(), "a client that is gone comes back: {early:?}");
    shim.close_stdin("c", "vanished").unwrap();
    assert_eq!(shim.reap("c", "vanished"), 0, "CloseIO without a client");

    let mut writer = run("unread", "sleep 1000");
    let written = writer.write_for(Duration::from_millis(300), &[7; 8 << 20]);
    assert!((WINDOW..8 << 20).contains(&written), "{written} bytes taken for nobody");
    shim.kill("c", "unread", 9).unwrap();
    assert_eq!(shim.wait("c", "unread").unwrap().exit_status, 137);
    writer.write(&[7; 1 << 20]); // to a process that has ended: nobody waits for it
    assert_eq!(shim.reap("c", "unread"), 137);
    shim.end();
}

#[test]
fn many_processes_stream_at_once() {
    const COUNT: usize = 64;
    const BYTES: usize = 1 << 20;
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut readers: Vec<_> = (0..COUNT)
        .map(|n| {
            let name = format!("e{n}");
            let reader = Reader::counting(shim.address(), &name);
            exec(&shim, &name, &uri(shim.address(), &name), &format!("head -c {BYTES} /dev/zero"));
            reader
        })
        .collect();
    for (n, reader) in readers.iter_mut().enumerate() {
        assert_eq!(shim.reap("c", &format!("e{n}")), 0);
        reader.wait_end();
        assert_eq!(reader.len(), BYTES);
    }
    shim.end();
}

#[test]
fn streams_of_another_server_are_opened_there() {
    if skipped("streams") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let path = host.dir().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix://{}", path.display());
    // The server's side of one stream: its name, and the wire with what follows.
    let accept = |listener: &UnixListener| {
        let mut wire = Wire(listener.accept().unwrap().0);
        let (id, kind, flags, request) = wire.read().unwrap();
        assert_eq!((id, kind, flags), (1, REQUEST, OPEN));
        assert!(String::from_utf8_lossy(&request).contains(STREAM));
        let (_, _, _, message) = wire.read().unwrap();
        wire.send(&streaming::any(
            "google.protobuf.Empty",
            &protobuf::well_known_types::empty::Empty::new(),
        ))
        .unwrap();
        (String::from_utf8_lossy(&message).into_owned(), wire)
    };
    let server = thread::spawn(move || {
        let (name, wire) = accept(&listener);
        assert!(name.ends_with("there"), "{name}");
        let first = Reader::over(wire, true);
        first.wait_for("one\n");
        thread::sleep(READ); // so that it does not come again
        first.vanish();
        let (name, wire) = accept(&listener); // it comes back by itself
        assert!(name.ends_with("there"), "{name}");
        let rest = Reader::over(wire, true).finish();
        let mut refused = Wire(listener.accept().unwrap().0);
        let status = [0x0a, 6, 8, 16, 18, 2, b'n', b'o'];
        refused.frame(1, RESPONSE, 0, &status).unwrap();
        rest
    });
    exec(&shim, "e", &uri(&address, "there"), "echo one; sleep 1; echo two; sleep 2; exit 6");
    assert_eq!(shim.reap("c", "e"), 6);
    let mut refused = shim.exec_request("c", "refused", "true");
    refused.stdout = uri(&address, "refused");
    shim.exec(&refused).unwrap();
    let refusal = shim.start("c", "refused").unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (Code::UNAUTHENTICATED, "no"));
    assert_eq!(server.join().unwrap(), "two\n");
    shim.end();
}
