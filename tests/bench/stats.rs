//! The part `stats`: what it costs to ask for a container's metrics, and for its state, which reads
//! nothing and so shows what a call costs by itself.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args::Args;
use crate::contest::{Load, Row, Sample, Subject};
use crate::support::{Shim, Spec, eventually};
use crate::table::Figure;
use crate::usage::Usage;

/// The calls of a turn, one after the other on one connection.
const CALLS: u32 = 5000;
const CALLS_TO_WARM_UP: u32 = 500;
/// The calls under strace(1), which are not timed.
const CALLS_TRACED: u32 = 100;

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "shim CPU µs", key: "cpu_us", digits: 1 },
    Figure { name: "answer after µs", key: "latency_us", digits: 0 },
    Figure { name: "system calls", key: "system_calls", digits: 1 },
    Figure { name: "wake-ups", key: "wake_ups", digits: 2 },
];

/// A method of the task service, called once for container `c`.
type Call = fn(&Shim<'_>);

const ROWS: &[(&str, Call)] = &[
    ("a Stats call", |shim| drop(shim.stats("c").unwrap())),
    ("a State call", |shim| drop(shim.state("c", "").unwrap())),
];

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let row = |&(name, call): &(&str, Call)| {
        let runtime = runtime.to_owned();
        let turn = move |subject: &Subject, load| turn(subject, &runtime, call, load);
        Row { name: name.into(), turn: Box::new(turn) }
    };
    ROWS.iter().map(row).collect()
}

/// An idle container with a limit of each kind, asked about again and again.
fn turn(subject: &Subject, runtime: &str, call: Call, load: Load) -> Option<Sample> {
    let host = subject.host(runtime);
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let repeat = |count: u32| (0..count).for_each(|_| call(&shim));
    repeat(CALLS_TO_WARM_UP);
    let sample = (load == Load::Full).then(|| {
        let (before, began) = (Usage::of(shim.pid()), Instant::now());
        repeat(CALLS);
        let took = began.elapsed();
        let spent = Usage::of(shim.pid()).since(&before);
        let each = |sum: f64| Some(sum / f64::from(CALLS));
        let wake_ups = u32::try_from(spent.wake_ups).map_or(f64::INFINITY, f64::from);
        vec![
            each(spent.cpu.as_secs_f64() * 1e6),
            each(took.as_secs_f64() * 1e6),
            Some(traced(shim.pid(), || repeat(CALLS_TRACED)) / f64::from(CALLS_TRACED)),
            each(wake_ups),
        ]
    });
    shim.end();
    host.delete("c");
    host.forgive_sockets();
    // A warm-up's sample is not looked at.
    Some(sample.unwrap_or_else(|| vec![None; FIGURES.len()]))
}

/// How many system calls all threads of process `pid` make during `action`.
fn traced(pid: i32, action: impl FnOnce()) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string(), "-o"]).arg(&path);
    let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("every thread is traced", || {
        let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let traced = tasks.all(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        });
        traced.then_some(())
    });
    action();
    kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let total = text.lines().rfind(|line| line.trim().ends_with("total")).expect(&text);
    total.split_whitespace().next().unwrap().parse().unwrap()
}
