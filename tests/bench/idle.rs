//! The part `idle`: what a shim uses while nothing happens.

use std::thread;
use std::time::Duration;

use crate::args::Args;
use crate::contest::{Load, Row, Sample, Subject};
use crate::memory;
use crate::support::Spec;
use crate::table::Figure;
use crate::usage::Usage;

/// Longer than a minute, which some timers take.
const TIME: Duration = Duration::from_secs(65);
/// What Create and Start have set going is over by then.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "CPU ms in 65 s", key: "cpu_ms", digits: 2 },
    Figure { name: "wake-ups per second", key: "wake_ups_per_s", digits: 2 },
];

/// The row's name.
pub(crate) const ROW: &str = "1 container that does nothing";

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let runtime = runtime.to_owned();
    let turn = move |subject: &Subject, load| Some(turn(subject, &runtime, load));
    vec![Row { name: ROW.into(), turn: Box::new(turn) }]
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn turn(subject: &Subject, runtime: &str, load: Load) -> Sample {
    let host = subject.host(runtime);
    let shim = host.start("c", Spec::idle());
    let ends = memory::run(&shim, "c");
    let time = if load == Load::WarmUp { Duration::ZERO } else { TIME };
    thread::sleep(SETTLE);
    let before = Usage::of(shim.pid());
    thread::sleep(time);
    let spent = Usage::of(shim.pid()).since(&before);
    ends.close();
    shim.end();
    let _ = host.delete("c");
    host.forgive_sockets();
    vec![Some(spent.cpu.as_secs_f64() * 1e3), Some(spent.wake_ups as f64 / TIME.as_secs_f64())]
}
