//! The part `delete`: how long Delete takes for a task that was created and never started.

use crate::args::Args;
use crate::contest::{self, Load, Row, Sample, Subject};
use crate::support::{Mood, Spec, timed};
use crate::table::Figure;

pub(crate) const FIGURES: &[Figure] = &[Figure { name: "ms", key: "ms", digits: 1 }];

/// The row's name.
pub(crate) const ROW: &str = "Delete of a task that was never started";

pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let runtime = runtime.to_owned();
    let turn = move |subject: &Subject, _: Load| turn(subject, &runtime);
    vec![Row { name: ROW.into(), turn: Box::new(turn) }]
}

/// The stock shim refuses it after ten seconds; what is left is containerd's `delete` to remove.
fn turn(subject: &Subject, runtime: &str) -> Option<Sample> {
    let host = subject.host(runtime);
    let shim = host.start("c", Spec::idle());
    shim.create_plain("c").unwrap();
    if subject.program != contest::berth("", None).program {
        host.sink.set(Mood::Silent); // the times in its events are not what a sink looks at
    }
    let (deleted, took) = timed(|| shim.delete("c", ""));
    if deleted.is_err() {
        shim.crash();
    } else {
        shim.stop();
    }
    let _ = host.delete("c");
    host.clear();
    Some(vec![Some(took.as_secs_f64() * 1e3)])
}
