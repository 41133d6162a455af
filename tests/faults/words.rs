//! A runtime that says nonsense: on its output, in its log, in its pid file.
//!
//! What is expected: an error that a person can read and that is no longer than a message should be, no
//! process signalled or waited for that is not the container's, and nothing left.

use std::process::{Child, Command};
use std::time::Duration;

use super::scripted;
use crate::support::{Answer, Code, Host, Shim, Spec, eventually, patient, skipped, timed};

/// The longest message of an error, in bytes.
const MESSAGE: usize = 8 * 1024;

/// What the runtime does before it fails, in shell, and what of it the error says.
const WORDS: [(&str, &str, &str); 8] = [
    ("binary output", "head -c 5000 /dev/urandom; exit 3", "exit status 3"),
    ("10 MiB of output", "head -c 10485760 /dev/zero; exit 3", "exit status 3"),
    ("10 MiB of text", "yes nonsense | head -c 10485760; exit 3", "exit status 3"),
    ("10 MiB of error output", "yes nonsense | head -c 10485760 >&2; exit 3", "exit status 3"),
    ("a binary log", "head -c 5000 /dev/urandom >$log; exit 3", "exit status 3"),
    (
        "a log without an end of line",
        "yes x | head -c 10485760 | tr -d '\\n' >$log; exit 3",
        "exit status 3",
    ),
    (
        "a log full of warnings",
        "yes '{\"level\":\"warning\",\"msg\":\"w\"}' | head -n 300000 >$log; fail at last",
        "at last",
    ),
    (
        "an endless error",
        "(printf '{\"level\":\"error\",\"msg\":\"at first'; yes x | head -c 900000 | tr -d '\\n'; echo '\"}') >$log; exit 3",
        "at first",
    ),
];

/// A request for which the runtime does something, after which the container is there or is not.
type Call = (&'static str, fn(&Shim<'_>) -> Answer<()>);

const CALLS: [Call; 3] = [
    ("create", |shim| shim.create_plain("new").map(drop)),
    ("exec", |shim| shim.exec_run("c", "e", "true").map(drop)),
    ("pause", |shim| shim.pause("c")),
];

#[test]
fn a_runtime_that_fails_with_nonsense_fails_its_caller_in_clear_words() {
    if skipped("the runtime's words are bounded") {
        return;
    }
    let host = scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for (command, call) in CALLS {
        for (fault, shell, said) in WORDS {
            let name = format!("{command}: {fault}");
            host.prepare("new", Spec::idle());
            let before = host.files("c");
            host.script().set(command, &format!("do {shell}"));
            let (answer, took) = timed(|| call(&shim));
            host.script().reset();
            let refusal = answer.expect_err(&name);
            let message = &refusal.message;
            assert!(message.contains(command) && message.contains(said), "{name}: {message:.300}");
            assert!(message.len() <= MESSAGE, "{name}: {} bytes", message.len());
            let unreadable = |c: &char| c.is_control() && !c.is_whitespace();
            assert_eq!(message.chars().find(unreadable), None, "{name}: {message:.300}");
            assert!(took < patient(Duration::from_secs(20)), "{name}: {took:?}");
            drop(shim.delete("c", "e"));
            assert_eq!(host.files("c"), before, "{name}");
            assert_eq!(shim.state("new", "").unwrap_err().code, Code::NOT_FOUND, "{name}");
        }
    }
    shim.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    shim.end();
}

#[test]
fn a_runtime_that_succeeds_with_nonsense_succeeds() {
    if skipped("the runtime's words are bounded") {
        return;
    }
    let host = scripted();
    let shim = host.start("c", Spec::idle());
    for (fault, shell, _) in WORDS {
        let shell = shell.replace("; exit 3", "").replace("; fail at last", "");
        for command in ["create", "start", "exec", "pause", "resume"] {
            host.script().set(command, &format!("do {shell}"));
        }
        shim.run("c");
        shim.exec_run("c", "e", "exit 3").unwrap();
        assert_eq!(shim.reap("c", "e"), 3, "{fault}");
        shim.pause("c").unwrap();
        shim.resume("c").unwrap();
        host.script().reset();
        assert_eq!(shim.remove("c"), 137, "{fault}");
    }
    shim.stop();
}

#[test]
fn a_log_without_end_is_ended_by_the_deadline() {
    if skipped("runtime commands have a deadline") {
        return;
    }
    let host = scripted().configured("deadline.pause = 1\n");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    // Slow enough for the machine's memory, in which the bundle is.
    let shell = "while :; do head -c 1000000 /dev/zero >>$log; sleep 0.01; done";
    host.script().set("pause", &format!("do {shell}"));
    let (answer, took) = timed(|| shim.pause("c"));
    host.script().reset();
    assert_eq!(answer.unwrap_err().code, Code::DEADLINE_EXCEEDED);
    assert!(took < patient(Duration::from_secs(10)), "{took:?}");
    let logs = || host.files("c").into_iter().any(|file| file.starts_with("log-"));
    eventually("the log to be gone", || (!logs()).then_some(()));
    shim.end();
}

/// A process that is none of the daemon's; killed in the end.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    #[track_caller]
    fn expect_alive(&mut self, name: &str) {
        assert_eq!(self.0.try_wait().unwrap(), None, "{name}: the stranger was killed");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What the runtime does with its pid file when all is made, in shell; STRANGER is one's pid, OTHER the
/// pid of the pod's other container, SHIM the daemon's own.
const PID_FILES: [(&str, &str); 14] = [
    ("none", "rm $pid_file"),
    ("empty", ": >$pid_file"),
    ("no number", "echo abc >$pid_file"),
    ("half a number and a word", "echo 12x >$pid_file"),
    ("binary", "head -c 100 /dev/urandom >$pid_file"),
    ("zero", "echo 0 >$pid_file"),
    ("negative", "echo -1 >$pid_file"),
    ("beyond every pid", "echo 2147483647 >$pid_file"),
    ("beyond 64 bits", "echo 99999999999999999999 >$pid_file"),
    ("10 MiB", "yes 1 | head -c 10485760 | tr -d '\\n' >$pid_file"),
    ("the first process", "echo 1 >$pid_file"),
    ("a stranger", "echo STRANGER >$pid_file"),
    ("another container", "echo OTHER >$pid_file"),
    ("the daemon itself", "echo SHIM >$pid_file"),
];

fn prepare(
    host: &Host,
    shim: &Shim<'_>,
    command: &str,
    shell: &str,
    stranger: &Stranger,
    pod: u32,
) {
    let shell = shell
        .replace("STRANGER", &stranger.0.id().to_string())
        .replace("OTHER", &pod.to_string())
        .replace("SHIM", &shim.pid().to_string());
    host.script().set(command, &format!("do real \"$@\" || exit; {shell}; exit 0"));
}

#[test]
fn a_pid_file_that_is_wrong_fails_the_request_and_hits_nobody() {
    if skipped("a pid is bound to its process") {
        return;
    }
    let host = scripted();
    let shim = host.start("pod", Spec::idle());
    let pod = shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    let sleeps = || host.processes().iter().any(|process| process.line.starts_with("sleep"));
    eventually("the pod to idle", || sleeps().then_some(()));
    let before = (host.processes().len(), host.mounts(), host.cgroups().len(), host.states().len());
    let mut stranger = Stranger::new();
    for (fault, shell) in PID_FILES {
        prepare(&host, &shim, "create", shell, &stranger, pod);
        let refusal = shim.create_plain("c").expect_err(fault);
        host.script().reset();
        assert!(
            refusal.message.contains("pid") || refusal.message.contains("process"),
            "{refusal:?}"
        );
        assert!(refusal.message.len() < MESSAGE, "{fault}: {} bytes", refusal.message.len());
        stranger.expect_alive(fault);
        assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND, "{fault}");
        let now =
            || (host.processes().len(), host.mounts(), host.cgroups().len(), host.states().len());
        eventually(&format!("{fault}: {before:?} in place of {:?}", now()), || {
            (now() == before).then_some(())
        });
        shim.run("c"); // the place is free
        prepare(&host, &shim, "exec", shell, &stranger, pod);
        let refusal = shim.exec_run("c", "e", "exec sleep 1000").expect_err(fault);
        host.script().reset();
        assert!(
            refusal.message.contains("pid") || refusal.message.contains("process"),
            "{refusal:?}"
        );
        assert!(shim.kill("c", "e", libc::SIGKILL).is_err(), "{fault}");
        shim.delete("c", "e").unwrap();
        stranger.expect_alive(fault);
        shim.exec_run("c", "e", "exit 3").unwrap();
        assert_eq!(shim.reap("c", "e"), 3, "{fault}");
        assert_eq!(shim.remove("c"), 137, "{fault}");
    }
    assert!(shim.alive());
    shim.exec_run("pod", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("pod", "e"), 3);
    shim.end();
}
