//! The part `life`: what it costs to run a container that exits at once, from `start` to the end of
//! `delete`.
//!
//! This process is a sub-reaper meanwhile: the daemon becomes its child, and the kernel says of each
//! child that was waited for what it and its own children used, to the nanosecond and without a
//! cgroup, which would slow the start.

use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde_json::json;

use crate::args::Args;
use crate::bare::Bare;
use crate::contest::{self, Load, Row, Sample, Subject};
use crate::line::Line;
use crate::support::{Host, Spec, Stdin};
use crate::table::Figure;

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "CPU ms, all", key: "cpu_ms", digits: 2 },
    Figure { name: "start", key: "start_ms", digits: 2 },
    Figure { name: "shim itself", key: "shim_ms", digits: 2 },
    Figure { name: "delete", key: "delete_ms", digits: 2 },
    Figure { name: "runtime and container", key: "runtime_ms", digits: 2 },
    Figure { name: "wall ms", key: "wall_ms", digits: 1 },
];

/// The row's name.
pub(crate) const ROW: &str = "a container that exits at once";

/// berth spoken to as containerd 2.3 does: bootstrap parameters on standard input.
pub(crate) const BOOTSTRAP: &str = "berth, as 2.3 starts it";

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let runtime = runtime.to_owned();
    let turn = move |subject: &Subject, _: Load| Some(turn(subject, &runtime));
    vec![Row { name: ROW.into(), turn: Box::new(turn) }]
}

/// The bare runtime, the shims, and berth in the new dialect.
pub(crate) fn subjects(args: &Args) -> Vec<Subject> {
    let mut subjects = contest::all(args);
    let stdin = Stdin::Bootstrap;
    subjects.push(Subject { stdin, ..contest::berth(BOOTSTRAP, None) });
    subjects
}

/// Adopts processes whose parents have ended, as shims do, as long as it lives.
pub(crate) struct SubReaper(());

impl SubReaper {
    pub(crate) fn begin() -> Self {
        set_child_subreaper(true).unwrap();
        Self(())
    }
}

impl Drop for SubReaper {
    fn drop(&mut self) {
        set_child_subreaper(false).unwrap();
    }
}

fn turn(subject: &Subject, runtime: &str) -> Sample {
    let _reaper = SubReaper::begin();
    let host = subject.host(runtime);
    let spec = Spec::sh("").set("/process/args", json!(["/bin/true"]));
    if subject.is_bare() { bare(&host, spec) } else { shim(&host, spec, &subject.stdin) }
}

fn bare(host: &Host, spec: Spec) -> Sample {
    let container = Bare::new(host, "c", spec);
    let (before, began) = (children(), Instant::now());
    let init = container.run();
    waitpid(init, None).unwrap();
    container.delete();
    let wall = ms(began.elapsed());
    vec![ms(children() - before), None, None, None, None, wall]
}

fn shim(host: &Host, spec: Spec, stdin: &Stdin) -> Sample {
    host.prepare("c", spec);
    let log = host.log("c"); // open beforehand, as containerd has it
    let (before, began) = (children(), Instant::now());
    let address = host.launch("c", stdin);
    let started = children();
    let (mut line, daemon) = Line::connect(&address);
    let daemon = Pid::from_raw(daemon);
    let clock = clock_getcpuclockid(daemon).unwrap();
    line.run(&host.request("c"));
    assert_eq!(line.reap(), 0);
    line.shut_down();
    waitid(Id::Pid(daemon), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    let own = Duration::from(clock.now().unwrap());
    waitpid(daemon, None).unwrap();
    let ended = children();
    let _ = host.delete("c");
    let wall = ms(began.elapsed());
    let after = children();
    drop(log);
    host.forgive_sockets();
    vec![
        ms(after - before),
        ms(started - before),
        ms(own),
        ms(after - ended),
        ms((ended - started).saturating_sub(own)),
        wall,
    ]
}

/// What all children used that have been waited for, and theirs.
fn children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        let (seconds, micros) = (time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs());
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    of(usage.user_time()) + of(usage.system_time())
}

#[expect(clippy::unnecessary_wraps, reason = "a figure of a sample")]
fn ms(time: Duration) -> Option<f64> {
    Some(time.as_secs_f64() * 1e3)
}
