//! The part `exec`: what an exec of `true` costs, one after the other and ten at once.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use serde_json::{Value, json};

use crate::args::Args;
use crate::bare::Bare;
use crate::contest::{Load, Row, Sample, Subject};
use crate::life::SubReaper;
use crate::meter::Meter;
use crate::support::{Host, Shim, Spec};
use crate::table::Figure;
use crate::usage::Usage;

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "CPU ms, all", key: "cpu_ms", digits: 2 },
    Figure { name: "shim CPU µs", key: "shim_us", digits: 0 },
    Figure { name: "per second", key: "per_second", digits: 0 },
];

/// The rows' names.
pub(crate) const SERIAL: &str = "an exec of true";
pub(crate) const AT_ONCE: &str = "ten execs at once";

const EXECS: u32 = 30;
const EXECS_TO_WARM_UP: u32 = 3;
/// How many clients there are, and how often each execs.
const CLIENTS: u32 = 10;
const TIMES: u32 = 8;

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let (one, other) = (runtime.to_owned(), runtime.to_owned());
    let serial = move |subject: &Subject, load| Some(serial(subject, &one, load));
    let at_once = move |subject: &Subject, load| at_once(subject, &other, load);
    vec![
        Row { name: SERIAL.into(), turn: Box::new(serial) },
        Row { name: AT_ONCE.into(), turn: Box::new(at_once) },
    ]
}

fn process() -> Value {
    json!({
        "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    })
}

fn serial(subject: &Subject, runtime: &str, load: Load) -> Sample {
    let host = subject.host(runtime);
    let count = if load == Load::WarmUp { EXECS_TO_WARM_UP } else { EXECS };
    let meter = Meter::new(host.tag());
    let sample = match subject.is_bare() {
        true => bare(&host, &meter, count),
        false => through_shim(&host, &meter, count, subject),
    };
    drop(meter);
    sample
}

fn bare(host: &Host, meter: &Meter, count: u32) -> Sample {
    let _reaper = SubReaper::begin();
    let container = Bare::new(host, "c", Spec::idle());
    let ((init, sample), _) = meter.within(|| {
        let init = container.run();
        (0..EXECS_TO_WARM_UP).for_each(|_| container.exec(&process()));
        let own = || Usage::of_this_thread();
        let (before, began, mine) = (meter.usage(), Instant::now(), own());
        (0..count).for_each(|_| container.exec(&process()));
        let (took, mine) = (began.elapsed(), own() - mine);
        (init, sample(count, meter.usage() - before - mine, None, took))
    });
    kill(init, Signal::SIGKILL).unwrap();
    waitpid(init, None).unwrap();
    container.delete();
    sample
}

fn through_shim(host: &Host, meter: &Meter, count: u32, subject: &Subject) -> Sample {
    host.prepare("c", Spec::idle());
    let (shim, _) = meter.within(|| host.attach("c", &subject.stdin));
    shim.run("c");
    let exec = |number: u32| run(&shim, &number.to_string());
    (0..EXECS_TO_WARM_UP).for_each(exec);
    let (before, began, own) = (meter.usage(), Instant::now(), Usage::of(shim.pid()));
    (0..count).for_each(exec);
    let took = began.elapsed();
    let (all, own) = (meter.usage() - before, Usage::of(shim.pid()).since(&own).cpu);
    shim.end();
    let _ = host.delete("c");
    host.forgive_sockets();
    sample(count, all, Some(own), took)
}

fn run(shim: &Shim<'_>, exec: &str) {
    shim.exec(&shim.exec_process("c", exec, process())).unwrap();
    shim.start("c", exec).unwrap();
    assert_eq!(shim.reap("c", exec), 0);
}

fn sample(count: u32, all: Duration, own: Option<Duration>, took: Duration) -> Sample {
    let each = |time: Duration| time.as_secs_f64() / f64::from(count);
    vec![Some(each(all) * 1e3), own.map(|own| each(own) * 1e6), Some(1.0 / each(took))]
}

/// All clients share one connection, as containerd's do.
fn at_once(subject: &Subject, runtime: &str, load: Load) -> Option<Sample> {
    if subject.is_bare() {
        return None;
    }
    let host = subject.host(runtime);
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let times = if load == Load::WarmUp { 1 } else { TIMES };
    let (shared, began, own) = (&shim, Instant::now(), Usage::of(shim.pid()));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                (0..times).for_each(|time| run(shared, &format!("{client}-{time}")))
            });
        }
    });
    let (took, own) = (began.elapsed(), Usage::of(shim.pid()).since(&own).cpu);
    shim.end();
    let _ = host.delete("c");
    host.forgive_sockets();
    let mut sample = sample(CLIENTS * times, Duration::ZERO, Some(own), took);
    sample[0] = None;
    Some(sample)
}
