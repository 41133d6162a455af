//! Output in files, and (journal.rs) in the journal.

mod journal;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::{Code, Host, Shim, Spec, eventually, skipped, timed};

/// Creates and starts container `c` with both outputs in `uri`.
fn run(shim: &Shim<'_>, uri: &str) {
    let mut request = shim.request("c");
    request.stdout = uri.into();
    request.stderr = uri.into();
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
}

/// Adds and starts exec `id` of `script` with both outputs in `uri`.
fn exec(shim: &Shim<'_>, id: &str, uri: &str, script: &str) {
    let mut request = shim.exec_request("c", id, script);
    request.stdout = uri.into();
    request.stderr = uri.into();
    shim.exec(&request).unwrap();
    shim.start("c", id).unwrap();
}

/// A directory for logs and the URI of one there.
fn place(query: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/log?{query}", directory.path().display());
    (directory, uri)
}

/// The files of a log, the oldest first.
fn files(directory: &Path) -> Vec<String> {
    let old = |number: usize| directory.join(format!("log.{number}"));
    let count = (1..).find(|number| !old(*number).exists()).unwrap();
    let old = (1..count).rev().map(|number| fs::read_to_string(old(number)).unwrap());
    old.chain([fs::read_to_string(directory.join("log")).unwrap()]).collect()
}

fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[test]
fn a_file_gets_all_output_in_order_and_keeps_what_it_had() {
    const SCRIPT: &str =
        "i=1; while [ $i -lt 10000 ]; do echo $i; echo $((i+1)) >&2; i=$((i+2)); done";
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b c/log");
    let uri = format!("file://{}", path.display().to_string().replace(' ', "%20"));
    run(&shim, &uri);
    assert_eq!(shim.reap("c", ""), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), numbers(1..=10_000));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o755, 0o644));
    host.prepare("c", Spec::sh("echo out; echo err >&2"));
    run(&shim, &uri);
    assert_eq!(shim.reap("c", ""), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), numbers(1..=10_000) + "out\nerr\n");
    shim.stop();
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_anything_runs() {
    if skipped("files are opened before the runtime runs") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let fifo = crate::support::mkfifo(&host.dir().join("fifo"));
    let cases = [
        ("file:///tmp", Code::INTERNAL, "cannot open log file /tmp: Is a directory"),
        ("file:///proc/x/log", Code::INTERNAL, "cannot open log file /proc/x/log: No such file"),
        ("file:///etc/hostname/log", Code::INTERNAL, "Not a directory"),
        (&format!("file://{fifo}"), Code::INVALID_ARGUMENT, "is a FIFO: use fifo:///"),
        ("file:///tmp/x?max-size=1", Code::INVALID_ARGUMENT, "max-size"),
    ];
    for (uri, code, part) in cases {
        let mut request = shim.request("c");
        request.stdout = uri.into();
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.code == code && refusal.message.contains(part), "{uri}: {refusal:?}");
        assert!(host.mounts().is_empty() && host.states().is_empty());
    }
    shim.stop();
}

#[test]
fn all_bytes_are_in_the_file_when_delete_answers() {
    let bytes = std::env::var("BERTH_IO_BYTES").map_or(64 << 20, |bytes| bytes.parse().unwrap());
    let host = Host::new();
    let script = format!("yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c {bytes}");
    let shim = host.start("c", Spec::sh(&script));
    let (directory, uri) = place("");
    run(&shim, &uri);
    assert_eq!(shim.reap("c", ""), 0);
    let mut expected = Sha256::new();
    let line = b"0123456789abcdefghijklmnopqrstuvwxyz\n";
    let block = line.repeat(1 << 15);
    let mut left: usize = bytes;
    while left > 0 {
        let part = left.min(block.len());
        expected.update(&block[..part]);
        left -= part;
    }
    let mut found = Sha256::new();
    let mut file = fs::File::open(directory.path().join("log")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = file.read(&mut buffer) {
        found.update(&buffer[..count]);
    }
    assert_eq!(found.finalize(), expected.finalize());
    shim.stop();
}

#[test]
fn streams_of_a_process_may_go_to_different_places() {
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo out; echo err >&2"));
    let streams = host.streams("c", [false, false, true]);
    let (directory, uri) = place("");
    let mut request = shim.request("c");
    (request.stdout, request.stderr) = (uri, streams.stderr.clone());
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    assert_eq!(shim.reap("c", ""), 0);
    assert_eq!(files(directory.path()), ["out\n"]);
    assert_eq!(streams.err().finish(), "err\n");
    shim.stop();
}

#[test]
fn a_terminal_may_go_to_a_file() {
    if skipped("a terminal in a file") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("[ -t 1 ] && seq 1 20000").terminal());
    for (query, records) in [("", false), ("format=cri", true)] {
        host.prepare("c", Spec::sh("[ -t 1 ] && seq 1 20000").terminal());
        let (directory, uri) = place(query);
        let mut request = shim.request("c");
        (request.stdout, request.terminal) = (uri, true);
        shim.create(&request).unwrap();
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 0);
        let text = files(directory.path()).concat();
        let text: String = if records {
            text.lines().map(|line| cri(line).2.to_owned() + "\n").collect()
        } else {
            text.replace('\r', "")
        };
        assert!(text == numbers(1..=20_000), "{query}");
    }
    shim.stop();
}

#[test]
fn init_and_exec_processes_rotate_one_file_without_loss() {
    if skipped("files are rotated") {
        return;
    }
    const WRITERS: u32 = 6;
    let script =
        |name: u32| format!("i=1; while [ $i -le 2000 ]; do echo {name}-$i; i=$((i+1)); done");
    let host = Host::new();
    let shim = host.start("c", Spec::sh(&(script(0) + "; trap 'exit 0' TERM; sleep 1000 & wait")));
    let (directory, uri) = place("format=cri&max-size=8k&max-files=1000");
    run(&shim, &uri);
    let names = (1..WRITERS).map(|name| (name, format!("e{name}")));
    names.clone().for_each(|(name, id)| exec(&shim, &id, &uri, &script(name)));
    names.for_each(|(_, id)| assert_eq!(shim.reap("c", &id), 0));
    eventually("the init process's lines", || {
        files(directory.path()).concat().contains(" 0-2000\n").then_some(())
    });
    shim.remove("c");
    let files = files(directory.path());
    assert!(files.iter().all(|file| file.len() <= 8000 && file.ends_with('\n')));
    let mut last = [0; WRITERS as usize];
    for record in files.iter().flat_map(|file| file.lines()) {
        let (stream, tag, text) = cri(record);
        assert_eq!((stream, tag), ("stdout", "F"));
        let (name, number) = text.split_once('-').unwrap();
        let last = &mut last[name.parse::<usize>().unwrap()];
        *last += 1;
        assert_eq!(number.parse(), Ok(*last), "{record}");
    }
    assert_eq!(last, [2000; WRITERS as usize]);
    shim.stop();
}

#[test]
fn a_crash_amid_rotation_loses_no_file() {
    if skipped("files are rotated") {
        return;
    }
    for delay in [20, 60, 130] {
        let host = Host::new();
        let shim = host.start("c", Spec::sh("seq 1 10000000"));
        let (directory, uri) = place("max-size=4KiB&max-files=500");
        run(&shim, &uri);
        eventually("a rotation", || directory.path().join("log.1").exists().then_some(()));
        thread::sleep(Duration::from_millis(delay));
        shim.crash();
        host.delete("c");
        // One name may be free: the crash was between two renames.
        let old =
            |number: usize| fs::read_to_string(directory.path().join(format!("log.{number}")));
        let mut text: String = (1..500).rev().filter_map(|number| old(number).ok()).collect();
        text += &fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        let first: u32 = text.lines().next().unwrap().parse().unwrap();
        let expected = numbers(first..=first + text.lines().count() as u32);
        assert!(expected.starts_with(&text), "{delay}");
        host.forgive_sockets();
    }
}

#[test]
fn no_more_files_stay_than_were_asked_for() {
    if skipped("files are rotated") {
        return;
    }
    let host = Host::new();
    for max in [1, 3] {
        let shim = host.start("c", Spec::sh("seq 1 100000"));
        let (directory, uri) = place(&format!("max-size=10KiB&max-files={max}"));
        run(&shim, &uri);
        assert_eq!(shim.reap("c", ""), 0);
        let files = files(directory.path());
        assert_eq!((files.len(), directory.path().read_dir().unwrap().count()), (max, max));
        assert!(files.iter().all(|file| file.len() <= 10240));
        assert!(numbers(1..=100_000).ends_with(&files.concat()), "the newest");
        shim.stop();
    }
}

/// Stream, tag and text of a record that kubelet would read.
fn cri(record: &str) -> (&str, &str, &str) {
    let mut words = record.splitn(4, ' ');
    let time = words.next().unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!(shape, "9999-99-99T99:99:99.999999999Z", "{record}");
    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
}

/// A long line, an empty one, one of stderr, and an end without a newline.
const LINES: &str = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo; sleep 0.2; echo err >&2; \
    sleep 0.2; printf '\"\\\\\\t\\377'; printf 'no end'";

#[test]
fn records_are_those_of_cri() {
    if skipped("formats") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(LINES));
    let (directory, uri) = place("format=cri");
    run(&shim, &uri);
    assert_eq!(shim.reap("c", ""), 0);
    let log = fs::read(directory.path().join("log")).unwrap();
    let log = String::from_utf8_lossy(&log);
    let (long, rest) = ("x".repeat(16384), "x".repeat(40000 - 2 * 16384));
    let expected = [
        ("stdout", "P", &*long),
        ("stdout", "P", &long),
        ("stdout", "F", &rest),
        ("stdout", "F", ""),
        ("stderr", "F", "err"),
        ("stdout", "P", "\"\\\t\u{fffd}no end"),
    ];
    assert_eq!(log.lines().map(cri).collect::<Vec<_>>(), expected);
    let mut times: Vec<_> = log.lines().map(|line| line.split(' ').next().unwrap()).collect();
    times.dedup();
    assert!(times.len() == expected.len() && times.is_sorted(), "{times:?}");
    shim.stop();
}

#[test]
fn records_are_those_of_docker() {
    if skipped("formats") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(LINES));
    let (directory, uri) = place("format=json-file");
    run(&shim, &uri);
    assert_eq!(shim.reap("c", ""), 0);
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    let records = log.lines().map(|line| {
        let record: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
        assert_eq!(record.keys().collect::<Vec<_>>(), ["log", "stream", "time"]);
        let text = |key: &str| record[key].as_str().unwrap().to_owned();
        assert!(text("time").ends_with('Z') && text("time").len() == 30);
        (text("stream"), text("log"))
    });
    let (long, rest) = ("x".repeat(16384), "x".repeat(40000 - 2 * 16384) + "\n");
    let expected = [
        ("stdout", &*long),
        ("stdout", &long),
        ("stdout", &rest),
        ("stdout", "\n"),
        ("stderr", "err\n"),
        ("stdout", "\"\\\t\u{fffd}no end"),
    ];
    let expected = expected.map(|(stream, text)| (stream.to_owned(), text.to_owned()));
    assert_eq!(records.collect::<Vec<_>>(), expected);
    shim.stop();
}

/// A small tmpfs, unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(MsFlags::empty(), size);
        disk
    }

    fn mount(&self, flags: MsFlags, size: &str) {
        let options = format!("size={size}");
        mount(Some("tmpfs"), self.0.path(), Some("tmpfs"), flags, Some(&*options)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_makes_the_process_wait_and_loses_nothing() {
    if skipped("a full disk loses nothing") {
        return;
    }
    for query in ["", "max-size=300k&max-files=100", "format=cri"] {
        let disk = Disk::new("1m");
        let host = Host::new();
        let shim = host.start("c", Spec::sh("seq 1 300000"));
        run(&shim, &format!("file://{}/log?{query}", disk.0.path().display()));
        let said = format!("cannot write to file {}/log: No space left", disk.0.path().display());
        shim.log().wait_for(&said);
        let early = shim.within(Duration::from_millis(200)).wait("c", "");
        assert!(early.is_err(), "it waits: {early:?}");
        disk.mount(MsFlags::MS_REMOUNT, "64m");
        assert_eq!(shim.reap("c", ""), 0);
        let text = files(disk.0.path()).concat();
        let lines = text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned() + "\n");
        assert!(lines.collect::<String>() == numbers(1..=300_000), "{query}");
        assert_eq!(shim.log().text().matches("No space left").count(), 1, "once a minute");
        shim.stop();
    }
}

#[test]
fn a_file_that_hangs_delays_only_its_own_delete() {
    if skipped("a file that hangs is named") {
        return;
    }
    // A terminal that nobody reads: writes to it hang.
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname_r(&master).unwrap();
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    exec(&shim, "e", &format!("file://{path}"), "seq 1 10000");
    let quick = |what: &str, call: &dyn Fn()| {
        let ((), took) = timed(call);
        assert!(took < Duration::from_millis(100), "{what}: {took:?}");
    };
    assert_eq!(shim.wait("c", "e").unwrap().exit_status, 0);
    quick("State", &|| drop(shim.state("c", "e").unwrap()));
    quick("Wait", &|| drop(shim.wait("c", "e").unwrap()));
    let task = shim.task();
    let deleted = thread::spawn(move || timed(|| task.delete("c", "e")));
    thread::sleep(Duration::from_millis(200));
    quick("State while it is deleted", &|| drop(shim.state("c", "").unwrap()));
    let (answer, took) = deleted.join().unwrap();
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
    let expected = format!("stdout is not taken by file {path}");
    assert!(refusal.message.contains(&expected), "{refusal:?}");
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(13), "{took:?}");
    assert_eq!(shim.delete("c", "e").unwrap_err().code, Code::NOT_FOUND);
    shim.end();
}

#[test]
fn an_idle_process_costs_one_thread_which_ends_with_it() {
    if skipped("threads") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let threads = || fs::read_dir(format!("/proc/{}/task", shim.pid())).unwrap().count();
    shim.run("c");
    shim.remove("c"); // what is opened once is open now
    let before = shim.descriptors();
    eventually("one thread", || (threads() == 1).then_some(()));
    host.prepare("c", Spec::sh("echo x; trap 'exit 0' TERM; sleep 1000 & wait"));
    let (directory, uri) = place("");
    run(&shim, &uri);
    eventually("a line", || (fs::read(directory.path().join("log")).ok()? == b"x\n").then_some(()));
    eventually("two threads", || (threads() == 2).then_some(()));
    shim.remove("c");
    eventually("the thread's end", || (threads() == 1).then_some(()));
    eventually("no descriptor", || (shim.descriptors() == before).then_some(()));
    shim.stop();
}
