//! Output in the journal.

use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::{LINES, numbers, run};
use crate::support::{Code, Host, Spec, skipped, timed};

/// What stands in for journald, for this thread and whatever it starts: its mounts are its own.
struct Journal {
    path: PathBuf,
    stop: Option<(mpsc::Sender<()>, JoinHandle<Vec<Entry>>)>,
    entries: Vec<Entry>,
}

type Entry = BTreeMap<String, Vec<u8>>;

impl Journal {
    /// Runs `test` on a thread of its own, with no journal yet.
    fn apart(test: impl FnOnce(Self) + Send + 'static) {
        let ran = thread::spawn(|| test(Self::new())).join();
        ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        fs::create_dir_all("/run/systemd").unwrap();
        mount(Some("tmpfs"), "/run/systemd", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::create_dir("/run/systemd/journal").unwrap();
        let path = PathBuf::from("/run/systemd/journal/socket");
        Self { path, stop: None, entries: Vec::new() }
    }

    fn start(&mut self) {
        let socket = UnixDatagram::bind(&self.path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut entries = Vec::new();
            loop {
                match receive(&socket) {
                    Some(entry) if entry.is_empty() => {} // is anybody there?
                    Some(entry) => entries.extend(parse(&entry)),
                    None if stopped.try_recv().is_ok() => return entries,
                    None => {}
                }
            }
        });
        self.stop = Some((stop, thread));
    }

    /// Nobody can send any more, and what was sent is there.
    fn stop(&mut self) {
        fs::remove_file(&self.path).unwrap();
        let (stop, thread) = self.stop.take().unwrap();
        stop.send(()).unwrap();
        self.entries.extend(thread.join().unwrap());
    }
}

/// A datagram, or what is in the file that came with it.
fn receive(socket: &UnixDatagram) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 20];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::empty()).ok()?;
    let count = message.bytes;
    if let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() {
        let found = fs::read(format!("/proc/self/fd/{}", fds[0])).ok();
        nix::unistd::close(fds[0]).unwrap();
        return found;
    }
    buffer.truncate(count);
    Some(buffer)
}

/// The fields of an entry of the native protocol.
fn parse(mut bytes: &[u8]) -> Option<Entry> {
    let mut entry = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(sign) => (&line[..sign], &line[sign + 1..], rest),
            None => {
                let length = u64::from_le_bytes(rest[..8].try_into().ok()?) as usize;
                (line, &rest[8..8 + length], &rest[8 + length + 1..])
            }
        };
        let before = entry.insert(String::from_utf8(name.to_vec()).ok()?, value.to_vec());
        assert_eq!(before, None, "one value for a field");
        bytes = rest;
    }
    Some(entry)
}

#[test]
fn the_journal_gets_every_line_and_may_be_away() {
    if skipped("the journal") {
        return;
    }
    Journal::apart(|mut journal| {
        let host = Host::new();
        let shim = host.start("c", Spec::sh("seq 1 50000; sleep 1; seq 50001 100000"));
        let mut request = shim.request("c");
        request.stdout = "journald://?tag=web".into();
        let refusal = shim.create(&request).unwrap_err();
        let expected = "cannot reach the journal at /run/systemd/journal/socket: No such file";
        assert!(refusal.message.contains(expected), "{refusal:?}");
        journal.start();
        run(&shim, "journald://?tag=web");
        thread::sleep(Duration::from_millis(500));
        journal.stop();
        shim.log().wait_for("cannot write to the journal: ");
        journal.start();
        assert_eq!(shim.reap("c", ""), 0);
        journal.stop();
        let message = |entry: &Entry| String::from_utf8(entry["MESSAGE"].clone()).unwrap() + "\n";
        assert!(journal.entries.iter().map(message).collect::<String>() == numbers(1..=100_000));
        shim.stop();
    });
}

#[test]
fn entries_of_the_journal_have_the_fields_of_docker() {
    if skipped("the journal") {
        return;
    }
    Journal::apart(|mut journal| {
        journal.start();
        let id = "0123456789abcdef";
        let host = Host::new();
        let shim = host.start(id, Spec::sh(LINES));
        let mut request = shim.request(id);
        request.stdout = "journald://?tag=a%20b".into();
        request.stderr = "journald://".into();
        shim.create(&request).unwrap();
        shim.start(id, "").unwrap();
        assert_eq!(shim.reap(id, ""), 0);
        journal.stop();
        let long = "x".repeat(16384);
        let rest = "x".repeat(40000 - 2 * 16384);
        let expected = [
            (&*long, "6", true, "a b"),
            (&long, "6", true, "a b"),
            (&rest, "6", false, "a b"),
            ("", "6", false, "a b"),
            ("err", "3", false, id),
            ("\"\\\t\u{fffd}no end", "6", true, "a b"),
        ];
        assert_eq!(journal.entries.len(), expected.len());
        for (entry, (message, priority, partial, tag)) in journal.entries.iter().zip(expected) {
            let field = |name: &str| entry.get(name).map(|value| String::from_utf8_lossy(value));
            let fields = [
                ("MESSAGE", message),
                ("PRIORITY", priority),
                ("SYSLOG_IDENTIFIER", tag),
                ("CONTAINER_TAG", tag),
                ("CONTAINER_ID", &id[..12]),
                ("CONTAINER_ID_FULL", id),
                ("CONTAINER_NAMESPACE", "tests"),
            ];
            for (name, value) in fields {
                assert_eq!(field(name).as_deref(), Some(value), "{name}");
            }
            assert_eq!(field("CONTAINER_PARTIAL_MESSAGE").is_some(), partial, "{message}");
            let bytes = entry.get("CONTAINER_MESSAGE_BYTES").map(Vec::as_slice);
            let exact = (priority == "6" && message.ends_with("no end"))
                .then_some(&b"\"\\\t\xffno end"[..]);
            assert_eq!(bytes, exact, "{message}");
        }
        shim.stop();
    });
}

#[test]
fn a_journal_that_hangs_fails_create_in_time() {
    if skipped("the journal") {
        return;
    }
    Journal::apart(|journal| {
        let _nobody_reads = UnixDatagram::bind(&journal.path).unwrap();
        let writer = UnixDatagram::unbound().unwrap();
        writer.set_nonblocking(true).unwrap();
        while writer.send_to(b"", &journal.path).is_ok() {}
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let mut request = shim.request("c");
        request.stdout = "journald://".into();
        let (answer, took) = timed(|| shim.create(&request));
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
        assert!(refusal.message.contains("opening the journal did not end within"), "{refusal:?}");
        assert!(took < Duration::from_secs(12), "{took:?}");
        assert!(host.mounts().is_empty() && host.states().is_empty());
        shim.stop();
    });
}
