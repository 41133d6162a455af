//! The part `many`: a node's worth of shims, each with one container and its FIFOs, at the same time.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::contest::{Line, Load, Row, Sample, Subject};
use crate::memory::{self, look};
use crate::projection::{self, Measured};
use crate::support::{Host, Shim, Spec, eventually};
use crate::table::Figure;
use crate::usage::Usage;

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "PSS MiB", key: "pss_mib", digits: 1 },
    Figure { name: "private dirty MiB", key: "private_dirty_mib", digits: 1 },
    Figure { name: "threads", key: "threads", digits: 0 },
    Figure { name: "descriptors", key: "descriptors", digits: 0 },
    Figure { name: "sockets", key: "sockets", digits: 0 },
    Figure { name: "shims' CPU s to start", key: "start_cpu_s", digits: 2 },
    Figure { name: "wall s to start", key: "start_s", digits: 1 },
    Figure { name: "idle CPU ms in 60 s", key: "idle_cpu_ms", digits: 1 },
    Figure { name: "idle wake-ups per s", key: "idle_wake_ups_per_s", digits: 1 },
    Figure { name: "wall s to stop", key: "stop_s", digits: 1 },
];

const IDLE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) fn rows(runtime: &str, args: &Args) -> Vec<Row> {
    let (runtime, count) = (runtime.to_owned(), args.count);
    let turn = move |subject: &Subject, load: Load| {
        Some(turn(subject, &runtime, if load == Load::WarmUp { 1 } else { count }, load))
    };
    vec![Row { name: format!("{count} shims"), turn: Box::new(turn) }]
}

/// What the lines come to on larger nodes.
pub(crate) fn project(lines: &[Line], args: &Args) -> String {
    let line = |line: &Line| {
        let median = |key: &str| {
            let index = FIGURES.iter().position(|figure| figure.key == key)?;
            Some(line.summary(index)?.median)
        };
        let measured = Measured {
            count: args.count.into(),
            pss_mib: median("pss_mib")?,
            idle_cpu_ms: median("idle_cpu_ms")?,
            idle_wake_ups_per_s: median("idle_wake_ups_per_s")?,
            start_cpu_s: median("start_cpu_s")?,
        };
        Some(projection::line(&line.subject, measured))
    };
    projection::HEAD.to_owned() + &lines.iter().filter_map(line).collect::<String>()
}

type Running<'h> = (String, Shim<'h>, memory::Ends);

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn turn(subject: &Subject, runtime: &str, count: u32, load: Load) -> Sample {
    let host = subject.host(runtime);
    let began = Instant::now();
    let shims: Vec<Running<'_>> = (0..count).map(|number| begin(&host, number, subject)).collect();
    let started = began.elapsed();
    let cpu: Duration = shims.iter().map(|(_, shim, _)| Usage::of(shim.pid()).cpu()).sum();
    thread::sleep(SETTLE);
    let looks: Vec<Sample> = shims.iter().map(|(_, shim, _)| look(shim.pid())).collect();
    let sum = |index: usize| looks.iter().filter_map(|sample| sample[index]).sum::<f64>();
    let sockets: usize = shims.iter().map(|(_, shim, _)| sockets(shim.pid())).sum();
    let before: Vec<Usage> = shims.iter().map(|(_, shim, _)| Usage::of(shim.pid())).collect();
    thread::sleep(if load == Load::WarmUp { Duration::ZERO } else { IDLE });
    let spent = shims.iter().zip(&before).map(|((_, shim, _), before)| {
        let spent = Usage::of(shim.pid()).since(before);
        (spent.cpu.as_secs_f64() * 1e3, spent.wake_ups as f64 / IDLE.as_secs_f64())
    });
    let (idle_cpu, wake_ups) = spent.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let ending = Instant::now();
    for (id, shim, ends) in shims {
        ends.close();
        shim.remove(&id);
        let daemon = format!("/proc/{}/exe", shim.pid());
        drop(shim.shutdown(&id));
        drop(shim); // a daemon waits a moment for its peers to hang up
        eventually("the daemon's end", || fs::read_link(&daemon).is_err().then_some(()));
        let _ = host.delete(&id);
    }
    let stopped = ending.elapsed();
    host.forgive_sockets();
    [
        sum(1) / 1024.0,
        sum(0) / 1024.0,
        sum(3),
        sum(4),
        sockets as f64,
        cpu.as_secs_f64(),
        started.as_secs_f64(),
        idle_cpu,
        wake_ups,
        stopped.as_secs_f64(),
    ]
    .map(Some)
    .to_vec()
}

fn begin<'h>(host: &'h Host, number: u32, subject: &Subject) -> Running<'h> {
    let id = format!("c{number}");
    host.prepare(&id, Spec::idle());
    let shim = host.attach(&id, &subject.stdin);
    let ends = memory::run(&shim, &id);
    (id, shim, ends)
}

/// How many sockets process `pid` has open.
fn sockets(pid: i32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}
