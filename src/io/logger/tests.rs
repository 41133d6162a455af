//! Loggers that are shell scripts.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tempfile::TempDir;
use tokio::task::{LocalSet, spawn_local};

use super::super::output::{Output, Taker};
use super::super::{ProcessIo, StdioSpec};
use super::*;
use crate::config;
use crate::ids::Namespace;

/// What loggers read and write, and who reaps them.
struct Bed {
    directory: TempDir,
    reaper: Reaper,
    deadline: Option<Instant>,
}

/// Runs a test beside a reaper that has no SIGCHLD.
fn run(test: impl AsyncFnOnce(Bed)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let reaper = Reaper::default();
        let theirs = reaper.clone();
        spawn_local(async move {
            loop {
                theirs.reap_own();
                sleep(Duration::from_millis(2)).await;
            }
        });
        let bed = Bed { directory: tempfile::tempdir().unwrap(), reaper, deadline: None };
        timeout(Duration::from_secs(60), test(bed)).await.expect("a test within 60 s");
    });
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The URI of a shell with `script`, whose `$1` is the directory.
    fn uri(&self, scheme: &str, script: &str) -> String {
        let script = utf8_percent_encode(script, NON_ALPHANUMERIC);
        format!("{scheme}:///bin/sh?-c={script}&logger={}", self.directory.path().display())
    }

    async fn open(&self, stdout: &str, stderr: &str) -> Result<(ProcessIo, [File; 2])> {
        static NAMESPACE: LazyLock<Namespace> = LazyLock::new(|| Namespace::new("ns").unwrap());
        let context = Context {
            id: "c",
            namespace: &NAMESPACE,
            bundle: self.directory.path(),
            reaper: &self.reaper,
            streams: crate::io::Registry::none(),
            owner: (0, 0),
            policy: config::Io::default(),
            is_confined: false,
            deadline: self.deadline,
        };
        let spec = StdioSpec {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            ..StdioSpec::default()
        };
        let (io, child) = ProcessIo::open(&spec, &context).await?;
        Ok((io, [child.stdout, child.stderr].map(File::from)))
    }

    /// Both outputs to one logger.
    async fn both(&self, scheme: &str, script: &str) -> Result<(ProcessIo, [File; 2])> {
        let uri = self.uri(scheme, script);
        self.open(&uri, &uri).await
    }

    /// Waits for a file that a script writes; its text.
    async fn written(&self, name: &str) -> String {
        until(name, || self.text(name).ends_with('\n')).await;
        self.text(name)
    }

    /// Ends and counts the processes that loggers have left.
    fn others(&self) -> usize {
        let all = crate::sys::child::all().filter(|pid| crate::sys::child::runs(*pid));
        let ours = |pid: &crate::ids::Pid| {
            crate::sys::child::working_directory(*pid).as_deref() == Some(self.directory.path())
        };
        all.filter(ours).map(|pid| kill(pid.get())).count()
    }

    /// The pid that a script wrote as `echo $$ >$1/NAME`.
    async fn pid(&self, name: &str) -> i32 {
        self.written(name).await.trim().parse().unwrap()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = in_ms(10_000);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

fn in_ms(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

fn is_there(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

/// Tells that it is ready, and takes both outputs.
const COPY: &str =
    "echo $$ >$1/pid; echo r >&5; exec 5>&-; cat <&4 >>$1/err & cat <&3 >>$1/out; wait";

#[test]
fn a_logger_gets_what_the_protocol_says() {
    const SCRIPT: &str = "tr '\\0' '\\n' </proc/$$/environ >$1/env
        for n in 0 1 2 3 4 5; do readlink /proc/$$/fd/$n; done >$1/fds
        for n in 3 4; do grep flags /proc/$$/fdinfo/$n; done >$1/flags
        pwd >$1/cwd; echo $# $0 $2 $3 $4 >$1/args; echo r >&5; exec cat <&3 <&4";
    run(async |bed| {
        let uri = bed.uri("binary-v2", SCRIPT) + "&key=a%20b&flag";
        let both = bed.open(&uri, &uri).await.unwrap();
        assert_eq!(bed.text("env"), "CONTAINER_ID=c\nCONTAINER_NAMESPACE=ns\n");
        assert_eq!(bed.text("args"), "5 logger key a b flag\n");
        assert_eq!(bed.text("flags"), "flags:\t00\nflags:\t00\n", "blocking, only for reading");
        assert_eq!(bed.text("cwd"), format!("{}\n", bed.directory.path().display()));
        let fds = bed.text("fds");
        let kinds: Vec<_> = fds.lines().map(|line| line.split('[').next().unwrap()).collect();
        let null = "/dev/null";
        // The script's own 1 is a file at that moment.
        assert_eq!([kinds[0], kinds[2]], [null; 2], "{fds}");
        assert_eq!(kinds[3..], ["pipe:"; 3], "{fds}");
        drop(both);
    });
}

#[test]
fn a_stream_of_another_kind_is_at_its_end() {
    const SCRIPT: &str = "exec 5>&-; cat <&3 >$1/out; cat <&4 >$1/err; sleep 0.1; echo end >$1/end";
    run(async |bed| {
        let logger = bed.uri("binary", SCRIPT);
        let cases = [
            ("stdout", [&logger, ""], 0, ["stdout\n", ""]),
            ("stderr", ["", &logger], 1, ["", "stderr\n"]),
        ];
        for (name, [stdout, stderr], own, expected) in cases {
            let (io, mut ends) = bed.open(stdout, stderr).await.unwrap();
            writeln!(ends[own], "{name}").unwrap();
            drop(ends);
            io.drained(in_ms(5000)).await.expect(name);
            assert_eq!([bed.text("out"), bed.text("err")], expected, "{name}");
            assert_eq!(bed.text("end"), "end\n", "{name}: it has ended");
            fs::remove_file(bed.path("end")).unwrap();
        }
    });
}

#[test]
fn a_logger_is_ready_when_its_version_says_so() {
    let cases = [
        ("end of 5", "binary", "exec 5>&-; cat <&3", ""),
        ("a byte", "binary", "echo r >&5; cat <&3", ""),
        ("its own end", "binary", "exit 1", ""),
        ("a byte and 5 kept", "binary-v2", "echo r >&5; cat <&3", ""),
        ("a byte and its end", "binary-v2", "echo r >&5", ""),
        ("no byte", "binary-v2", "exec 5>&-; exec sleep 60", "closed descriptor 5 without a word"),
        ("its end", "binary-v2", "exit 3", "ended with status 3 before it was ready"),
        ("its end, 5 in other hands", "binary-v2", "sleep 60 & exit 0", "ended with status 0"),
        ("a death", "binary-v2", "sleep 60 & kill -9 $$", "ended with status 137"),
        ("no word", "binary", "exec sleep 60", "the start of logger /bin/sh (pid "),
    ];
    run(async |mut bed| {
        for (name, scheme, script, expected) in cases {
            bed.deadline = Some(in_ms(if name == "no word" { 200 } else { 5000 }));
            let script = format!("echo $$ >$1/pid; {script}");
            let told = bed.both(scheme, &script).await.map(drop);
            let told = told.err().map(|error| error.to_string()).unwrap_or_default();
            let is_right = told.contains(expected) && told.is_empty() == expected.is_empty();
            assert!(
                is_right && (told.is_empty() || told.contains("logger /bin/sh")),
                "{name}: {told}"
            );
            let pid = bed.pid("pid").await;
            if !told.is_empty() {
                assert!(!is_there(pid), "{name}: it is left");
            }
            until(name, || !is_there(pid)).await;
        }
        // What a logger that ended with status 0 has left is its own affair.
        assert_eq!(bed.others(), 1, "one `sleep`");
    });
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let cases = [
        ("/nowhere/logger", "cannot start logger /nowhere/logger: No such file or directory"),
        ("/etc/passwd", "cannot start logger /etc/passwd: Permission denied"),
    ];
    run(async |bed| {
        for (program, expected) in cases {
            let uri = format!("binary://{program}");
            let told = bed.open(&uri, &uri).await.map(drop).unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}");
        }
    });
}

#[test]
fn what_a_dead_logger_left_in_the_pipe_is_the_next_ones() {
    run(async |bed| {
        let (io, [mut out, mut err]) = bed.both("binary-v2", COPY).await.unwrap();
        for round in 0..3 {
            let pid = bed.pid("pid").await;
            writeln!(out, "before {round}").unwrap();
            writeln!(err, "before {round}").unwrap();
            let line = format!("before {round}\n");
            let arrived =
                || [bed.text("out"), bed.text("err")].iter().all(|it| it.ends_with(&line));
            until("both lines", arrived).await;
            fs::remove_file(bed.path("pid")).unwrap();
            kill(pid);
            until("its end", || !is_there(pid)).await;
            sleep(Duration::from_millis(10)).await; // so are the `cat`s by now
            writeln!(out, "between {round}").unwrap(); // no SIGPIPE
            writeln!(err, "between {round}").unwrap();
        }
        bed.written("pid").await;
        drop((out, err));
        io.drained(in_ms(5000)).await.unwrap();
        let expected: String =
            (0..3).map(|round| format!("before {round}\nbetween {round}\n")).collect();
        assert_eq!([bed.text("out"), bed.text("err")], [expected.clone(), expected]);
        assert_eq!(io.logger_restarts(), 3);
    });
}

#[test]
fn a_logger_that_ends_too_early_is_restarted_until_all_is_taken() {
    run(async |bed| {
        let script = "echo r >&5; read line <&3; echo $line >>$1/out";
        let (io, [mut out, err]) = bed.both("binary-v2", script).await.unwrap();
        out.write_all(b"1\n2\n3\n").unwrap(); // a shell reads a pipe byte by byte
        drop((out, err));
        io.drained(in_ms(5000)).await.unwrap();
        assert_eq!((bed.text("out").as_str(), io.logger_restarts()), ("1\n2\n3\n", 2));
    });
}

#[test]
fn a_logger_that_cannot_be_had_again_is_named() {
    run(async |bed| {
        let script = "[ -e $1/again ] && exit 7; >$1/again; echo r >&5";
        let (io, [mut out, err]) = bed.both("binary-v2", script).await.unwrap();
        writeln!(out, "x").unwrap();
        drop((out, err));
        let undrained = io.drained(in_ms(1000)).await.unwrap_err().to_string();
        let expected =
            "stdout is not taken by any logger (cannot start logger /bin/sh: it ended with";
        assert!(undrained.starts_with(expected), "{undrained}");
        assert!((2..=5).contains(&io.logger_restarts()), "{} restarts", io.logger_restarts());
    });
}

#[test]
fn a_logger_that_does_not_read_is_named_and_ends_with_the_streams() {
    let cases = [
        ("asked to end", "trap 'echo term >>$1/told; exit 0' TERM", "term\n", 1000),
        ("made to end", "trap 'echo term >>$1/told' TERM", "term\n", 3500),
    ];
    for (name, trap, told, limit) in cases {
        run(async |bed| {
            let script =
                format!("echo $$ >$1/pid; {trap}; echo r >&5; while :; do sleep 0.05; done");
            let (io, [mut out, err]) = bed.both("binary-v2", &script).await.unwrap();
            let pid = bed.pid("pid").await;
            writeln!(out, "x").unwrap();
            drop((out, err));
            let undrained = io.drained(in_ms(100)).await.unwrap_err().to_string();
            let expected = format!("stdout is not taken by logger /bin/sh (pid {pid})");
            assert_eq!(undrained, expected, "{name}");
            let begin = Instant::now();
            io.close();
            assert!(
                begin.elapsed() < Duration::from_millis(20),
                "{name}: closing waits for nobody"
            );
            until(name, || !is_there(pid)).await;
            let took = begin.elapsed();
            assert!(took < Duration::from_millis(limit), "{name}: {took:?}");
            assert!(bed.text("told").starts_with(told), "{name}");
        });
    }
}

#[test]
fn who_still_writes_is_named_and_not_the_logger_that_reads() {
    run(async |bed| {
        let (io, [out, _err]) = bed.both("binary-v2", COPY).await.unwrap();
        let mut writer = Command::new("sleep").arg("60").stdout(out).spawn().unwrap();
        let undrained = io.drained(in_ms(200)).await.unwrap_err().to_string();
        assert_eq!(undrained, format!("stdout is still open in pid {} (sleep)", writer.id()));
        writer.kill().unwrap();
        writer.wait().unwrap();
    });
}

#[test]
fn a_logger_that_lingers_after_the_end_is_terminated_then_killed() {
    run(async |bed| {
        let script = "trap 'echo term >>$1/told' TERM; echo r >&5; exec 5>&-
            cat <&3 >$1/out; while :; do sleep 0.05; done";
        let (io, [mut out, err]) = bed.both("binary-v2", script).await.unwrap();
        writeln!(out, "x").unwrap();
        drop((out, err));
        let begin = Instant::now();
        io.drained(in_ms(9500)).await.unwrap();
        let took = begin.elapsed();
        assert!((5900..8000).contains(&took.as_millis()), "{took:?}");
        assert_eq!((bed.text("out").as_str(), bed.text("told").as_str()), ("x\n", "term\n"));
        assert_eq!(io.logger_restarts(), 0);
    });
}

#[test]
fn loggers_end_with_the_event_loop() {
    let pids = RefCell::new(Vec::new());
    run(async |bed| {
        let script =
            "trap '' TERM; echo $$ >$1/pid; sleep 60 & echo $! >$1/child; echo r >&5; wait";
        let both = bed.both("binary-v2", script).await.unwrap();
        let started = [bed.pid("pid").await, bed.pid("child").await];
        pids.borrow_mut().extend(started);
        drop(both);
    });
    let gone = |pid: &i32| !crate::sys::child::runs(crate::ids::Pid::new(*pid).unwrap());
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while !pids.borrow().iter().all(gone) {
        assert!(std::time::Instant::now() < deadline, "they live on");
        std::thread::sleep(Duration::from_millis(2));
    }
    for pid in pids.take() {
        // The orphan is not ours to wait for.
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
    }
}

#[test]
fn pauses_grow_and_begin_again_after_a_long_life() {
    let mut pauses = Pauses::default();
    let mut next = |lived: u64| {
        pauses.lived(Duration::from_secs(lived));
        pauses.next().as_millis()
    };
    let short: Vec<_> = [0, 1, 2, 29, 5, 0, 0, 0].map(&mut next).into();
    assert_eq!(short, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!([30, 0].map(next), [100, 200]);
}

#[test]
fn bytes_on_their_way_to_a_logger_wake_nobody() {
    run(async |_bed| {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut logger, mut writer) =
            (File::from(reader.try_clone().unwrap()), File::from(writer));
        let taker = Taker::Driver(RefCell::default());
        let output = Output::new(Stream::Stdout, std::rc::Weak::new(), taker, Rc::default());
        let feed = Feed { pipe: Rc::new(reader), output };
        let polls = Rc::new(Cell::new(0));
        let counted = polls.clone();
        // A future is polled each time that something wakes it.
        let waiting = spawn_local(async move {
            let mut wait = std::pin::pin!(hung_up(&feed));
            std::future::poll_fn(|context| {
                counted.set(counted.get() + 1);
                wait.as_mut().poll(context)
            })
            .await;
        });
        for _ in 0..100 {
            writer.write_all(b"x").unwrap();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(logger.read(&mut [0; 2]).unwrap(), 1);
        }
        assert_eq!(polls.get(), 1);
        drop(writer);
        waiting.await.unwrap();
    });
}
