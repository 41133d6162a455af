//! What plays containerd: bundles, `start` and `delete`, a ttrpc client, an event sink, FIFOs, a
//! scripted runtime, and a guard that finds what a test leaves behind.

mod counters;
mod events;
mod fields;
mod fifo;
mod host;
#[allow(dead_code, reason = "tests/bench has no use for it")]
pub mod http;
mod image;
mod leaks;
mod options;
#[allow(dead_code, reason = "tests/bench has no use for it")]
pub mod otlp;
mod rpc;
mod runtime;
mod shim;
mod spec;
pub mod streaming;
mod streams;

use std::time::{Duration, Instant};

pub use counters::{Counters, Fields, differences, hierarchies};
pub use events::{Event, EventSink, Mood};
pub use fields::fields;
use fifo::writer;
pub use fifo::{Reader, mkfifo};
pub use host::{APART, Host, RUN, Stdin};
pub use image::image;
pub use leaks::processes;
pub use options::{arguments, generic, of_preset, of_runtime, wrapper};
pub use rpc::{Answer, Api, Code, Task};
pub use runtime::Script;
pub use shim::{Shim, bind};
pub use spec::Spec;
pub use streams::Streams;

/// How long a test waits for something that should happen at once; generous, for loaded machines.
pub const SOON: Duration = Duration::from_secs(30);

/// The shim binary under test.
pub fn binary() -> String {
    std::env::var("BERTH_TEST_SHIM")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_containerd-shim-berth-v1").to_owned())
}

/// Whether the shim under test is containerd's own, which proves the tests but lacks some rules.
pub fn stock() -> bool {
    binary().contains("shim-runc-v2")
}

/// True, and says so, when a rule that only berth keeps is tested against the stock shim.
pub fn skipped(rule: &str) -> bool {
    if stock() {
        eprintln!("skipped, the stock shim does not keep this rule: {rule}");
    }
    stock()
}

/// Waits until `condition` gives a value; panics with `what` after [`SOON`].
#[track_caller]
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(SOON, what, condition)
}

/// What `limit` is on this machine: `BERTH_TEST_SLOW` times as long, as `tests/cgroup2` asks for.
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("BERTH_TEST_SLOW");
    limit * factor.map_or(1, |factor| factor.parse().unwrap())
}

/// Waits until `condition` gives a value; panics with `what` after `limit`, which is [`patient`].
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    let limit = patient(limit);
    poll(limit, condition).unwrap_or_else(|| panic!("not within {limit:?}: {what}"))
}

/// Waits until `condition` gives a value, `limit` at most.
pub fn poll<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let value = condition();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `action` and says how long it took.
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let value = action();
    (value, begin.elapsed())
}
