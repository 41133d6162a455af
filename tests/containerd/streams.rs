//! Standard input, output and error, and how a program ended.

use std::fs;
use std::process::Command;

use crate::bed::Bed;
use crate::command::Output;
use crate::daemon::explain;
use crate::{Case, Runtime, command, image, shared};

pub(crate) const CASES: &[Case] = &[
    shared("output-and-status", output_and_status),
    shared("failing-program", failing_program),
    shared("stdin-pipe", stdin_pipe),
    shared("large-output", large_output),
    shared("read-only", read_only),
    shared("exec-output-and-status", exec_output_and_status),
    shared("exec-stdin", exec_stdin),
];

/// Writes to both streams and waits for the end of its input.
const OUTPUT: &str = "echo out; echo err >&2; read end";

/// Runs a client whose program starts with [`OUTPUT`]. The stock shim overlooks the end of an exec
/// process's input that comes before the event of its start.
fn run_output(bed: &Bed<'_>, client: &mut Command, id: &str, started: &str) -> Output {
    command::run_fed(client, b"", |[stdout, stderr]| {
        bed.await_event(id, started);
        stdout.wait(|text| text == b"out\n");
        stderr.wait(|text| text.ends_with(b"err\n"));
    })
}

/// Output, error output and status reach the client whole and apart.
fn output_and_status(bed: &Bed<'_>) {
    let rows =
        [("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)];
    for (end, status) in rows {
        let id = bed.name("a");
        let script = format!("{OUTPUT}; {end}");
        let program = ["sh", "-c", &script];
        // The first process of a pid namespace is deaf to its own signals: ask a child instead.
        let wrapped = format!("sh -c '{script}'; exit $?");
        let program = if end.starts_with("kill") { ["sh", "-c", &wrapped] } else { program };
        let mut run = bed.run_command(&["--rm"], &id, &program);
        let output = run_output(bed, &mut run, &id, "start");
        assert_eq!(output.status, status, "{end}: {}", explain(&output));
        assert_eq!(output.text(), "out", "{end}");
        assert!(output.stderr.contains("err\n"), "{end}: {}", output.stderr);
        let crun = bed.daemon.crun_calls(&id) > 0;
        assert_eq!(crun, bed.daemon.runtime == Runtime::Crun, "{end}: the other runtime was used");
    }
}

/// The runtime's own words about a program that it cannot start reach the user.
fn failing_program(bed: &Bed<'_>) {
    let error = bed.run(&[], &bed.name("a"), &["/no/such/program"]).refused();
    assert!(error.contains("/no/such/program"), "{error}");
    assert!(error.to_lowercase().contains("no such file or directory"), "{error}");
}

/// Input reaches the program, and its end too. It ends after the start, even where no output is
/// waited for: a client that reads the end before forgets to tell the shim.
fn stdin_pipe(bed: &Bed<'_>) {
    let long = "0123456789abcdef\n".repeat(20_000);
    let rows = [("two-lines", "one\ntwo\n"), ("nothing", ""), ("340-kB", long.as_str())];
    for (name, input) in rows {
        let id = bed.name(name);
        let mut run = bed.run_command(&["--rm"], &id, &["cat"]);
        let output = command::run_fed(&mut run, input.as_bytes(), |[stdout, _]| {
            bed.await_event(&id, "start");
            stdout.wait(|text| text.len() >= input.len());
        });
        assert_eq!(output.status, 0, "{name}: {}", explain(&output));
        assert!(output.stdout == input.as_bytes(), "{name}: got {} bytes", output.stdout.len());
    }
}

/// 50 MB arrive complete and in order.
fn large_output(bed: &Bed<'_>) {
    let part = fs::read(image::busybox()).unwrap();
    let times = 50_000_000 / part.len() + 1;
    let script = format!("for part in $(seq {times}); do cat /bin/busybox; done; read end");
    let mut run = bed.run_command(&["--rm"], &bed.name("a"), &["sh", "-c", &script]);
    let output = command::run_fed(&mut run, b"", |[stdout, _]| {
        stdout.wait(|text| text.len() >= times * part.len());
    });
    assert_eq!(output.stdout.len(), times * part.len(), "{}", output.stderr);
    assert!(output.stdout.chunks(part.len()).all(|chunk| chunk == part), "the content differs");
}

/// A read-only root file system is one.
fn read_only(bed: &Bed<'_>) {
    let script = "touch /file; status=$?; read end; exit $status";
    let program = ["sh", "-c", script];
    let mut run = bed.run_command(&["--rm", "--read-only"], &bed.name("a"), &program);
    let output = command::run_fed(&mut run, b"", |[_, stderr]| {
        stderr.wait(|text| text.ends_with(b"Read-only file system\n"));
    });
    assert_eq!(output.status, 1, "{}", explain(&output));
    assert!(output.stderr.contains("Read-only file system"), "{}", output.stderr);
}

/// An exec process has its own output and status; one that cannot start is refused.
fn exec_output_and_status(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    for (exec, end, status) in [("e1", "true", 0), ("e2", "exit 42", 42), ("e3", "kill -9 $$", 137)]
    {
        let script = format!("{OUTPUT}; {end}");
        let mut run = bed.exec_command(&[], &id, exec, &["sh", "-c", &script]);
        let output = run_output(bed, &mut run, &id, &format!("exec-started {exec}"));
        assert_eq!(output.status, status, "{end}: {}", explain(&output));
        assert_eq!(output.text(), "out", "{end}");
        assert!(output.stderr.contains("err\n"), "{end}: {}", output.stderr);
    }
    let error = bed.exec(&id, "e4", &["/no/such/program"]).refused();
    assert!(error.to_lowercase().contains("no such file or directory"), "{error}");
    bed.remove(&id);
    bed.exec(&id, "e5", &["true"]).refused();
}

/// An exec process reads its client's input to the end.
fn exec_stdin(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    let script = "while read line; do echo got $line; done; exit 3";
    let mut exec = bed.exec_command(&[], &id, "e1", &["sh", "-c", script]);
    let output = command::run_fed(&mut exec, b"one\ntwo\n", |[stdout, _]| {
        bed.await_event(&id, "exec-started e1");
        stdout.wait(|text| text.ends_with(b"got two\n"));
    });
    assert_eq!(output.text(), "got one\ngot two", "{}", explain(&output));
    assert_eq!(output.status, 3);
    bed.remove(&id);
}
