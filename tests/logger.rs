//! containerd's logging protocol, with shell scripts as loggers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::http::{get, samples};
use crate::support::{Code, Host, Shim, Spec, eventually, skipped, stock, timed};

/// The beginning of a logger that is ready at once, by either version of the protocol.
const READY: &str = "echo $$ >$1/pid; echo r >&5; exec 5>&-;";
/// The same, and it takes both outputs.
const COPY: &str = "echo $$ >$1/pid; echo r >&5; exec 5>&-;
    cat <&4 >>$1/err & cat <&3 >>$1/out; wait; echo end >$1/end";

/// A logger: a shell with a script whose `$1` is a directory of its own.
struct Logger {
    directory: PathBuf,
    uri: String,
}

impl Logger {
    fn new(host: &Host, name: &str, scheme: &str, script: &str) -> Self {
        let directory = host.dir().join("logger").join(name);
        fs::create_dir_all(&directory).unwrap();
        let script = utf8_percent_encode(script, NON_ALPHANUMERIC);
        let uri = format!("{scheme}:///bin/sh?-c={script}&logger={}", directory.display());
        Self { directory, uri }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }

    /// Waits for a line that the script writes to `name`.
    fn line(&self, name: &str) -> String {
        let line = || Some(self.text(name)).filter(|text| text.ends_with('\n'));
        eventually(name, line).trim_end().to_owned()
    }

    /// What the script wrote as `echo $$ >$1/pid`.
    fn pid(&self) -> Pid {
        Pid::from_raw(self.line("pid").parse().unwrap())
    }

    /// Create for container `c` with both outputs here.
    fn request(&self, shim: &Shim<'_>) -> CreateTaskRequest {
        let (stdout, stderr) = (self.uri.clone(), self.uri.clone());
        CreateTaskRequest { stdout, stderr, ..shim.request("c") }
    }

    /// Creates and starts container `c` with both outputs here.
    #[track_caller]
    fn run(&self, shim: &Shim<'_>) {
        shim.create(&self.request(shim)).unwrap();
        shim.start("c", "").unwrap();
    }
}

/// The daemon's descriptors but for its connections.
fn held(shim: &Shim<'_>) -> Vec<String> {
    shim.descriptors().into_iter().filter(|name| !name.starts_with("socket")).collect()
}

fn is_there(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_logger_gets_its_protocol_and_nothing_else() {
    const SCRIPT: &str =
        "tr '\\0' '\\n' </proc/$$/environ | sort >$1/env; echo \"$0|$2|$3\" >$1/args
        (ls -1 /proc/$$/fd >$1/fds); exec 5>&-; cat <&3 >$1/out; cat <&4 >$1/err";
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo out; echo err >&2; sleep 1000"));
    let before = held(&shim);
    let [init, exec] = ["init", "exec"].map(|name| {
        let mut logger = Logger::new(&host, name, "binary", SCRIPT);
        logger.uri += "&key=a%20value";
        logger
    });
    init.run(&shim);
    let mut request = shim.exec_request("c", "e", "echo out; echo err >&2");
    request.stdout.clone_from(&exec.uri);
    request.stderr.clone_from(&exec.uri);
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    let status = shim.reap("c", "e");
    assert!(stock() || status == 0, "{status}");
    shim.remove("c");
    for (id, logger) in [("c", init), ("e", exec)] {
        let env = format!("CONTAINER_ID={id}\nCONTAINER_NAMESPACE=tests\n");
        assert_eq!(logger.text("env"), env);
        if !stock() {
            // The stock shim gives the arguments in any order.
            assert_eq!(logger.text("args"), "logger|key|a value\n", "{id}");
        }
        // The stock shim hands on what it was started with, and does not wait for the logger.
        if skipped("exactly six descriptors, and all that was written") {
            continue;
        }
        assert_eq!(logger.text("fds"), "0\n1\n2\n3\n4\n5\n", "{id}");
        assert_eq!([logger.text("out"), logger.text("err")], ["out\n", "err\n"], "{id}");
    }
    assert_eq!(held(&shim), before);
    shim.stop();
}

#[test]
fn a_logger_is_ready_before_the_runtime_runs() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::sh("echo out"));
    let calls = format!("{}.d/calls", host.script().path());
    let wait = format!("sleep 0.3; grep -c create {calls} >$1/creates;");
    for (scheme, word) in
        [("binary", "exec 5>&-"), ("binary", "echo r >&5"), ("binary-v2", "echo r >&5")]
    {
        if scheme == "binary-v2" && skipped("the protocol's second version") {
            continue;
        }
        host.prepare("c", Spec::sh("echo out"));
        drop(fs::write(&calls, ""));
        let script = format!("{wait} {word}; exec 5>&-; cat <&3 >$1/out");
        let logger = Logger::new(&host, &format!("{scheme}-{}", word.len()), scheme, &script);
        logger.run(&shim);
        assert_eq!(shim.reap("c", ""), 0);
        assert_eq!(
            [logger.text("creates"), logger.text("out")],
            ["0\n", "out\n"],
            "{scheme}, {word}"
        );
    }
    shim.stop();
}

#[test]
fn a_logger_that_does_not_begin_fails_create_and_leaves_nothing() {
    if skipped("the protocol's second version") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::sh("exit 3"));
    let before = held(&shim);
    let not_executable = host.dir().join("data");
    fs::write(&not_executable, "").unwrap();
    fs::set_permissions(&not_executable, fs::Permissions::from_mode(0o644)).unwrap();
    let script = |script: &str| {
        let script = format!("echo $$ >$1/pid; {script}");
        Logger::new(&host, "v2", "binary-v2", &script).uri
    };
    let missing = "cannot start logger /nowhere/logger: No such file or directory";
    let cases = [
        ("missing", "binary:///nowhere/logger".into(), missing),
        (
            "no program",
            format!("binary://{}", not_executable.display()),
            "/data: Permission denied",
        ),
        ("no word", script("exec 5>&-; sleep 1000"), "logger /bin/sh: it closed descriptor 5"),
        ("its end", script("sleep 1000 & exit 7"), "logger /bin/sh: it ended with status 7"),
        ("too slow", script("sleep 1000"), "the start of logger /bin/sh (pid "),
    ];
    for (name, uri, expected) in cases {
        let request = CreateTaskRequest { stdout: uri.clone(), stderr: uri, ..shim.request("c") };
        let (refusal, took) = timed(|| shim.create(&request).unwrap_err());
        let is_late = name == "too slow";
        assert_eq!((10..13).contains(&took.as_secs()), is_late, "{name}: {took:?}");
        assert_eq!(refusal.code == Code::DEADLINE_EXCEEDED, is_late, "{name}: {refusal:?}");
        assert!(refusal.message.contains(expected), "{name}: {refusal:?}");
        eventually(name, || (host.processes().len() == 1).then_some(()));
        assert!(host.mounts().is_empty() && host.states().is_empty(), "{name}");
        assert!(!host.script().calls().contains(&"create".into()), "{name}");
    }
    // One that is ready, for a runtime that fails.
    host.script().set("create", "fail because");
    let script = format!("trap '' TERM; {READY} cat <&3; sleep 1000");
    let logger = Logger::new(&host, "ready", "binary-v2", &script);
    assert!(shim.create(&logger.request(&shim)).unwrap_err().message.contains("because"));
    eventually("its end", || (!is_there(logger.pid())).then_some(()));
    host.script().reset();
    eventually("descriptors", || (held(&shim) == before).then_some(()));
    // The same for an exec process, which can be tried again.
    host.prepare("c", Spec::idle());
    shim.run("c");
    let mut request = shim.exec_request("c", "e", "exit 4");
    request.stdout = "binary:///nowhere/logger".into();
    shim.exec(&request).unwrap();
    let refusal = shim.start("c", "e").unwrap_err();
    assert!(refusal.message.contains(missing), "{refusal:?}");
    shim.delete("c", "e").unwrap();
    shim.end();
}

#[test]
fn a_killed_logger_is_replaced_and_the_pipe_loses_nothing() {
    const LINES: usize = 2_500_000; // 19 MB
    // The first one takes 2 MiB and no more.
    const SCRIPT: &str = "echo r >&5; exec 5>&-; [ -e $1/pid ] || {
            echo $$ >$1/pid; dd bs=64k count=32 <&3 >>$1/out; echo stuck >$1/stuck; sleep 1000; }
        exec cat <&3 >>$1/out";
    if skipped("a logger that dies is replaced") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh(&format!("seq 1 {LINES}; exit 3")));
    let logger = Logger::new(&host, "c", "binary-v2", SCRIPT);
    logger.run(&shim);
    logger.line("stuck");
    thread::sleep(Duration::from_millis(100)); // the pipe is full
    kill(logger.pid(), Signal::SIGKILL).unwrap();
    shim.log().wait_for("ended with status 137: restart 1 in 100 ms");
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 3);
    shim.signal(Signal::SIGUSR1);
    shim.log().wait_for("streams open, logger restarted 1 times");
    let metrics = samples(&get(&host.management("c"), "/metrics").body);
    assert_eq!(metrics["berth_logger_restarts_total"], 1.0);
    assert_eq!(shim.reap("c", ""), 3);
    let expected: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    let out = logger.text("out");
    assert!(out == expected, "{} of {} bytes", out.len(), expected.len());
    shim.stop();
}

#[test]
fn loggers_may_be_killed_again_and_again_while_bytes_flow() {
    const LINES: usize = 20_000;
    if skipped("a logger that dies is replaced") {
        return;
    }
    let host = Host::new();
    // It takes 2 s at least.
    let pause = "[ $((i%100)) = 0 ] && sleep 0.01";
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do {pause}; echo $i; i=$((i+1)); done; exit 3");
    let shim = host.start("c", Spec::sh(&script));
    // One file each: what a killed one had read is lost with it, what comes after is in order.
    let script = "echo $$ >$1/pid; echo r >&5; exec 5>&-; exec cat <&3 >$1/out.$$";
    let logger = Logger::new(&host, "c", "binary-v2", script);
    logger.run(&shim);
    let mut pids = vec![logger.pid()];
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(50));
        let last = *pids.last().unwrap();
        kill(last, Signal::SIGKILL).unwrap();
        let next = || Some(logger.text("pid")).filter(|text| text.ends_with('\n'));
        let next = || next()?.trim_end().parse().ok().map(Pid::from_raw).filter(|pid| *pid != last);
        pids.push(eventually("the next logger", next));
    }
    assert_eq!(shim.reap("c", ""), 3);
    let mut last = -1;
    for (round, pid) in pids.iter().enumerate() {
        let text = logger.text(&format!("out.{pid}"));
        let mut numbers: Vec<i64> = Vec::new();
        // A logger may have died between the halves of a line.
        let lines = text.lines().skip(usize::from(round > 0));
        numbers.extend(lines.filter_map(|line| line.parse::<i64>().ok()));
        if round + 1 < pids.len() && !text.ends_with('\n') {
            numbers.pop();
        }
        let Some(first) = numbers.first() else { continue };
        assert!(*first > last, "{pid}: {first} after {last}");
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{pid}: a gap");
        last = *numbers.last().unwrap();
    }
    assert_eq!(last, i64::try_from(LINES).unwrap() - 1, "all that came after the last death");
    shim.stop();
}

#[test]
fn a_logger_that_ignores_the_end_is_terminated_then_killed() {
    if skipped("a logger that lingers is ended within Delete's limit") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo out; exit 3"));
    let script = format!(
        "trap 'echo term >>$1/told' TERM; {READY} cat <&3 >$1/out; while :; do sleep 0.1; done"
    );
    let logger = Logger::new(&host, "c", "binary", &script);
    logger.run(&shim);
    let (exit, took) = timed(|| shim.wait("c", "").unwrap());
    assert!(exit.exit_status == 3 && took < Duration::from_secs(4), "{took:?}");
    let (status, took) = timed(|| {
        thread::scope(|scope| {
            let delete = scope.spawn(|| shim.reap("c", ""));
            thread::sleep(Duration::from_millis(500));
            let (state, took) = timed(|| shim.state("c", ""));
            assert!(state.is_ok() && took < Duration::from_secs(1), "{took:?}");
            delete.join().unwrap()
        })
    });
    assert_eq!((status, logger.text("out").as_str()), (3, "out\n"));
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert_eq!(logger.text("told"), "term\n");
    assert!(!is_there(logger.pid()));
    shim.stop();
}

#[test]
fn a_logger_that_never_reads_delays_delete_alone_and_is_named() {
    if skipped("the drain limit names the logger") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo out; exit 3"));
    let before = held(&shim);
    let logger = Logger::new(&host, "c", "binary-v2", &format!("{READY} sleep 1000"));
    logger.run(&shim);
    let (exit, took) = timed(|| shim.wait("c", "").unwrap());
    assert!(exit.exit_status == 3 && took < Duration::from_secs(4), "{took:?}");
    let (refusal, took) = timed(|| shim.delete("c", "").unwrap_err());
    assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
    let expected = format!("stdout is not taken by logger /bin/sh (pid {})", logger.pid());
    assert!(refusal.message.contains(&expected), "{refusal:?}");
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(13), "{took:?}");
    eventually("the logger's end", || (!is_there(logger.pid())).then_some(()));
    assert_eq!(shim.delete("c", "").unwrap().exit_status, 3);
    assert_eq!(held(&shim), before);
    shim.stop();
}

#[test]
fn one_output_may_go_to_a_logger_and_the_other_to_a_fifo() {
    if skipped("each output has its own kind") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo out; echo err >&2; exit 3"));
    for own in ["stdout", "stderr"] {
        host.prepare("c", Spec::sh("echo out; echo err >&2; exit 3"));
        let logger = Logger::new(&host, own, "binary-v2", COPY);
        let streams = host.streams(own, [false, own == "stderr", own == "stdout"]);
        let mut request = shim.request("c");
        streams.to_create(&mut request);
        let is_out = own == "stdout";
        let slot = if is_out { &mut request.stdout } else { &mut request.stderr };
        slot.clone_from(&logger.uri);
        shim.create(&request).unwrap();
        shim.start("c", "").unwrap();
        assert_eq!(shim.reap("c", ""), 3);
        let fifo = if is_out { streams.err().finish() } else { streams.out().finish() };
        let logged = [logger.text("out"), logger.text("err")];
        let expected = if is_out { ("err\n", ["out\n", ""]) } else { ("out\n", ["", "err\n"]) };
        assert_eq!((fifo.as_str(), logged.each_ref().map(String::as_str)), expected, "{own}");
        assert_eq!(logger.text("end"), "end\n", "{own}");
    }
    shim.stop();
}

#[test]
fn a_terminals_output_goes_to_a_logger() {
    if skipped("a terminal with a logger") {
        return;
    }
    const SCRIPT: &str = "[ -t 1 ] && seq 1 20000 && exit 3";
    let host = Host::new();
    let shim = host.start("c", Spec::sh(SCRIPT).terminal());
    let before = held(&shim);
    let logger = Logger::new(&host, "init", "binary-v2", COPY);
    let mut request = logger.request(&shim);
    request.stderr = String::new();
    request.terminal = true;
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    assert_eq!(shim.reap("c", ""), 3);
    let expected: String = (1..=20_000).map(|line| format!("{line}\r\n")).collect();
    assert!(logger.text("out") == expected, "{} bytes", logger.text("out").len());
    assert_eq!(held(&shim), before);

    host.prepare("c", Spec::idle());
    shim.run("c");
    let logger = Logger::new(&host, "exec", "binary", COPY);
    let process = json!({
        "args": ["/bin/sh", "-c", SCRIPT], "terminal": true,
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
    });
    let mut request = shim.exec_process("c", "e", process);
    request.stdout.clone_from(&logger.uri);
    request.terminal = true;
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    assert!(logger.text("out") == expected, "{} bytes", logger.text("out").len());
    shim.end();
}

/// `BERTH_IO_BYTES` says how many; the promise is for 1 GiB.
#[test]
fn every_byte_is_with_the_logger_when_delete_answers() {
    if skipped("Delete waits for the logger") {
        return;
    }
    let bytes = std::env::var("BERTH_IO_BYTES").map_or(64 << 20, |bytes| bytes.parse().unwrap());
    let host = Host::new();
    let flood = format!("yes 0123456789abcde | head -c {bytes}");
    let shim = host.start("c", Spec::sh(&format!("{flood} >&2 & {flood}; wait; exit 3")));
    let script = format!("{READY} sha256sum <&3 >$1/out & sha256sum <&4 >$1/err; wait");
    let logger = Logger::new(&host, "c", "binary", &script);
    logger.run(&shim);
    assert_eq!(shim.reap("c", ""), 3);
    let mut hash = Sha256::new();
    let block = b"0123456789abcde\n".repeat(1 << 12);
    let mut left = bytes;
    while left > 0 {
        let part = &block[..block.len().min(left)];
        hash.update(part);
        left -= part.len();
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("{hex}  -\n");
    assert_eq!([logger.text("out"), logger.text("err")], [expected.clone(), expected]);
    shim.stop();
}

#[test]
fn a_logger_does_not_outlive_its_daemon() {
    if skipped("loggers end with the daemon") {
        return;
    }
    for (name, signal) in [("end", Signal::SIGTERM), ("crash", Signal::SIGKILL)] {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let script = format!("trap '' TERM; {READY} exec cat <&3 >/dev/null");
        let logger = Logger::new(&host, "c", "binary-v2", &script);
        logger.run(&shim);
        let pid = logger.pid();
        shim.signal(signal);
        shim.wait_gone();
        eventually(name, || (!is_there(pid)).then_some(()));
        host.delete("c");
    }
}
