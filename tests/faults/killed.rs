//! The daemon is killed at each point of a request: at the system calls with which it changes something,
//! and before, while and after the runtime does its part.
//!
//! What is expected: `delete` leaves nothing of the container and says how it ended, and a container of
//! the same name starts. `BERTH_TEST_POINTS=all` kills at every call, in place of some of each request.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{assert_clean, assert_works, remove_bundle, scripted};
use crate::support::{Answer, Host, Shim, Spec, Streams, Task, eventually, skipped};

/// System calls that change something outside of the daemon or tell somebody, and those around them.
const CALLS: &str = "openat,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,fchmod,chmod,\
    fchown,chown,mount,umount2,move_mount,open_tree,pipe2,clone,clone3,vfork,memfd_create,\
    pidfd_open,pidfd_send_signal,kill,wait4,waitid,socket,bind,connect,sendto,sendmsg,recvmsg,write,writev";

/// A request, and what the container has been through before it.
struct Request {
    /// The runtime's command for it; empty if there is none.
    command: &'static str,
    spec: fn() -> Spec,
    before: fn(&Shim<'_>),
    call: fn(&Task, &Shim<'_>, &Streams) -> Answer<()>,
}

const CREATE: Request = Request {
    command: "create",
    spec: || Spec::idle().terminal(),
    before: |_| {},
    call: |task, shim, streams| {
        let mut request = shim.request("c");
        request.terminal = true;
        streams.to_create(&mut request);
        task.create(&request).map(drop)
    },
};

const START: Request = Request {
    command: "start",
    spec: Spec::idle,
    before: |shim| {
        shim.create_plain("c").unwrap();
    },
    call: |task, _, _| task.start("c", "").map(drop),
};

const EXEC: Request = Request {
    command: "",
    spec: Spec::idle,
    before: |shim| {
        shim.run("c");
    },
    call: |task, shim, _| task.exec(&shim.exec_request("c", "e", "exec sleep 1000")),
};

const START_EXEC: Request = Request {
    command: "exec",
    spec: Spec::idle,
    before: |shim| {
        shim.run("c");
        let mut request = shim.exec_request("c", "e", "exec sleep 1000");
        request.terminal = true;
        shim.exec(&request).unwrap();
    },
    call: |task, _, _| task.start("c", "e").map(drop),
};

const KILL: Request = Request {
    command: "kill",
    spec: Spec::idle,
    before: |shim| {
        shim.run("c");
        shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    },
    call: |task, _, _| task.kill_all("c", libc::SIGKILL),
};

const KILL_EXEC: Request = Request {
    command: "",
    spec: Spec::idle,
    before: KILL.before,
    call: |task, _, _| task.kill("c", "e", libc::SIGTERM),
};

const DELETE: Request = Request {
    command: "delete",
    spec: Spec::idle,
    before: |shim| {
        shim.run("c");
        shim.kill("c", "", libc::SIGKILL).unwrap();
        shim.wait("c", "").unwrap();
    },
    call: |task, _, _| task.delete("c", "").map(drop),
};

const DELETE_EXEC: Request = Request {
    command: "",
    spec: Spec::idle,
    before: |shim| {
        shim.run("c");
        shim.exec_run("c", "e", "exit 1").unwrap();
        shim.wait("c", "e").unwrap();
    },
    call: |task, _, _| task.delete("c", "e").map(drop),
};

/// Where the daemon is killed.
enum Point {
    /// By the runtime, which does this.
    Runtime(&'static str),
    /// At the `nth` call of that name.
    Call(String, usize),
}

#[test]
fn a_daemon_killed_in_create() {
    check(&CREATE);
}

#[test]
fn a_daemon_killed_in_start() {
    check(&START);
}

#[test]
fn a_daemon_killed_in_exec() {
    check(&EXEC);
}

#[test]
fn a_daemon_killed_in_the_start_of_an_exec() {
    check(&START_EXEC);
}

#[test]
fn a_daemon_killed_in_kill() {
    check(&KILL);
}

#[test]
fn a_daemon_killed_in_the_kill_of_an_exec() {
    check(&KILL_EXEC);
}

#[test]
fn a_daemon_killed_in_delete() {
    check(&DELETE);
}

#[test]
fn a_daemon_killed_in_the_delete_of_an_exec() {
    check(&DELETE_EXEC);
}

fn check(request: &Request) {
    if skipped("delete cleans up whatever the daemon was at") {
        return;
    }
    if !request.command.is_empty() {
        for when in [
            "kill -9 $PPID; exec sleep 4321",
            "(sleep 0.03; kill -9 $PPID) >/dev/null 2>&1 &",
            "real \"$@\"; kill -9 $PPID; exec sleep 4321",
        ] {
            killed(request, &Point::Runtime(when));
        }
    }
    let calls = calls(request);
    let all = std::env::var_os("BERTH_TEST_POINTS").is_some();
    // Some of each request: the first, the last, and one in the middle.
    let some = [0, calls.len() / 2, calls.len().saturating_sub(1)];
    let (mut points, mut hits) = (0, 0);
    for index in (0..calls.len()).filter(|index| all || some.contains(index)) {
        let nth = calls[..=index].iter().filter(|other| **other == calls[index]).count();
        points += 1;
        hits += u32::from(killed(request, &Point::Call(calls[index].clone(), nth)));
    }
    // Not every request makes the same calls: some come a little earlier or later, or not at all.
    assert!(hits > 0, "none of {points}");
    eprintln!("{:?}: killed at {hits} system calls", request.command);
}

/// The system calls of a request in their order, the event loop's: other threads mount and unmount, which
/// is done at once, just before and behind what the runtime does.
fn calls(request: &Request) -> Vec<String> {
    let host = scripted();
    let shim = host.start("c", (request.spec)());
    let streams = host.streams("c", [true, true, false]);
    (request.before)(&shim);
    let trace = host.dir().join("trace");
    let strace = attach(shim.pid(), &["-o", trace.to_str().unwrap()]);
    (request.call)(&shim, &shim, &streams).unwrap();
    detach(strace);
    let calls: Vec<_> = fs::read_to_string(trace).unwrap().lines().filter_map(called).collect();
    assert!(calls.len() > 2, "{calls:?}");
    shim.crash();
    host.delete("c");
    calls
}

/// The name of the call in a line of a trace.
fn called(line: &str) -> Option<String> {
    let (name, _) = line.split_once('(')?;
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| name.to_owned())
}

fn attach(pid: i32, arguments: &[&str]) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-p", &pid.to_string(), "-e", &format!("trace={CALLS}")]).args(arguments);
    let mut child = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !said.contains("attached") && stderr.read_line(&mut said).unwrap() > 0 {}
    assert!(said.contains("attached"), "{said}");
    child
}

fn detach(mut strace: Child) {
    let _ = kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGINT); // it may have ended
    strace.wait().unwrap();
}

/// Kills the daemon at `point` of the request, or behind its answer if it does not get there; whether it
/// did.
fn killed(request: &Request, point: &Point) -> bool {
    let host = scripted();
    let shim = host.start("c", (request.spec)());
    let streams = host.streams("c", [true, true, false]);
    (request.before)(&shim);
    let pid = shim.state("c", "").map_or(0, |state| state.pid);
    let (name, strace) = match point {
        Point::Runtime(when) => {
            host.script().set(request.command, &format!("do {when}"));
            (format!("{}: {when}", request.command), None)
        }
        Point::Call(call, nth) => {
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            (inject.clone(), Some(attach(shim.pid(), &["-o", "/dev/null", "-e", &inject])))
        }
    };
    let answer = (request.call)(&shim.task(), &shim, &streams);
    if answer.is_ok() && shim.alive() {
        shim.crash();
    }
    eventually(&format!("the daemon's end: {name}"), || (!shim.alive()).then_some(()));
    if let Some(strace) = strace {
        detach(strace);
    }
    expect_nothing(&host, &shim, pid, &name);
    answer.is_err()
}

/// What containerd does when it has lost a shim, and what is left then.
fn expect_nothing(host: &Host, shim: &Shim<'_>, pid: u32, name: &str) {
    host.script().reset();
    let deleted = host.delete("c").response;
    assert_eq!(deleted.exit_status, 137, "{name}");
    let pid_is_gone = !host.files("c").contains(&"berth.json".to_owned());
    assert!(deleted.pid == pid || pid == 0 || pid_is_gone, "{name}: {deleted:?}, not {pid}");
    // A runtime that was quicker than what kills the daemon has left that behind for a moment.
    eventually(&format!("the end of all processes: {name}"), || {
        host.processes().is_empty().then_some(())
    });
    assert_clean(host, name);
    let socket = shim.address().trim_start_matches("unix://");
    assert!(!Path::new(socket).exists(), "{name}: {socket}");
    remove_bundle(host, "c");
    assert_works(host, "c");
}
