//! A kernel that has no room in epoll for one more descriptor (`fs.epoll.max_user_watches`).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Host, Shim, Spec, eventually, skipped};

/// Refuses all that the process asks of epoll until it is dropped.
struct NoRoom(Child);

impl NoRoom {
    fn new(shim: &Shim<'_>) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-p", &shim.pid().to_string(), "-o", "/dev/null"]);
        strace.args(["-e", "trace=epoll_ctl", "-e", "inject=epoll_ctl:error=ENOSPC"]);
        let mut child = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("attached") && stderr.read_line(&mut said).unwrap() > 0 {}
        assert!(said.contains("attached"), "{said}");
        Self(child)
    }
}

impl Drop for NoRoom {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGINT);
        drop(self.0.wait());
    }
}

const LINES: usize = 3000;

fn expected() -> String {
    (1..=LINES).map(|number| format!("line {number}\n")).collect()
}

fn writer() -> Spec {
    Spec::sh(&format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; done; read x; exit 3"
    ))
}

#[test]
fn without_room_in_epoll_nothing_of_the_output_is_lost() {
    if skipped("a lack of room in epoll") {
        return;
    }
    type Place = (&'static str, fn(Host));
    let places: [Place; 3] =
        [("FIFOs", to_fifos), ("a log file", to_a_file), ("a logger", to_a_logger)];
    std::thread::scope(|scope| {
        for (name, check) in places {
            let thread = std::thread::Builder::new().name(name.into());
            thread.spawn_scoped(scope, move || check(Host::new())).unwrap();
        }
    });
}

fn to_fifos(host: Host) {
    // Else the process would have the FIFO itself.
    let host = host.configured("[io]\nhandover = false\n");
    let shim = host.start("c", writer());
    let streams = host.streams("c", [true, true, true]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    let no_room = NoRoom::new(&shim);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    streams.writer().write_all(b"go on\n").unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 3);
    assert_eq!(shim.delete("c", "").unwrap().exit_status, 3);
    assert!(streams.out().finish() == expected(), "{} bytes", streams.out().len());
    let said = shim.log().text().matches("no room in epoll").count();
    assert_eq!(said, 1, "{}", shim.log().text());
    drop(no_room); // there was none for the connection to containerd either
    host.sink.expect("c", &["create c", "start c", "exit c 3", "delete c 3"]);
    shim.stop();
}

/// Runs it with its output at `uri`; returns what `read` finds there in the end.
fn to_uri(host: &Host, uri: &str, read: impl Fn() -> String) {
    let shim = host.start("c", writer());
    let mut request = shim.request("c");
    (request.stdout, request.stderr) = (uri.to_owned(), uri.to_owned());
    let no_room = NoRoom::new(&shim);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 3); // its stdin is at its end
    shim.delete("c", "").unwrap();
    drop(no_room);
    eventually("all of the output", || (read() == expected()).then_some(()));
    shim.stop();
}

fn to_a_file(host: Host) {
    let file = host.dir().join("log.txt");
    let uri = format!("file://{}", file.display());
    to_uri(&host, &uri, || fs::read_to_string(&file).unwrap_or_default());
}

fn to_a_logger(host: Host) {
    use std::os::unix::fs::PermissionsExt;
    let (logger, file) = (host.dir().join("logger"), host.dir().join("logged"));
    let script = format!("#!/bin/sh\ncat <&3 >{} &\necho >&5\nexec 5>&-\nwait\n", file.display());
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}", logger.display());
    to_uri(&host, &uri, || fs::read_to_string(&file).unwrap_or_default());
}
