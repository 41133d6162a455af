//! What the daemon counts of its own work, for whoever asks (`manage`): plain cells, and memory only for
//! what has occurred. Nothing here waits, and nothing is made ready for a client that may never come.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::{ContainerId, Pid};

/// Upper bounds of the histograms' buckets, in microseconds: from a State to a runtime's deadline.
pub(crate) const BOUNDS: [u64; 11] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 30_000_000];

/// Everything that is counted since the daemon began.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// Requests that were answered, by method and status.
    pub(crate) calls: Timings,
    /// Commands of the OCI runtime that have ended, by command and what came of them.
    pub(crate) commands: Timings,
    /// Commands that run.
    running: RefCell<Vec<Running>>,
    /// Commands that could not be killed, as far as is known.
    unkillable: RefCell<Vec<Unkillable>>,
    /// Bytes of output that went through berth's hands; some of its threads count too.
    pub(crate) output_bytes: Bytes,
    /// Bytes of output that were dropped.
    pub(crate) dropped_bytes: Cell<u64>,
    /// How often a logger was started again.
    pub(crate) logger_restarts: Cell<u64>,
    /// Processes killed for lack of memory: by the container's own limit, most likely by that, by one
    /// around it.
    pub(crate) oom_kills: [Cell<u64>; 3],
}

/// A count that threads may add to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bytes(Arc<AtomicU64>);

impl Bytes {
    /// Counts so many more.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Adds to a count.
pub(crate) fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get().saturating_add(more));
}

/// How long things took: a histogram for each pair of name and outcome that has occurred. There are few of
/// them: names and outcomes are berth's own words.
#[derive(Debug, Default)]
pub(crate) struct Timings(RefCell<Vec<Series>>);

/// One histogram.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// What was done.
    pub(crate) name: &'static str,
    /// What came of it.
    pub(crate) outcome: &'static str,
    /// How long all took together, in microseconds.
    pub(crate) sum: u64,
    /// How many took no longer than each of [`BOUNDS`] and longer than the one before; the last: longer.
    pub(crate) counts: [u32; BOUNDS.len() + 1],
}

impl Timings {
    /// Notes one that took so long.
    pub(crate) fn note(&self, name: &'static str, outcome: &'static str, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        let mut all = self.0.borrow_mut();
        let found = all.iter().position(|one| one.name == name && one.outcome == outcome);
        let at = found.unwrap_or_else(|| {
            all.reserve_exact(1);
            all.push(Series { name, outcome, sum: 0, counts: Default::default() });
            all.len() - 1
        });
        let series = &mut all[at];
        series.sum = series.sum.saturating_add(micros);
        series.counts[bucket] = series.counts[bucket].wrapping_add(1);
    }

    /// All histograms, sorted.
    pub(crate) fn all(&self) -> Vec<Series> {
        let mut all = self.0.borrow().clone();
        all.sort_unstable_by_key(|one| (one.name, one.outcome));
        all
    }
}

/// A command that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whose container it is about.
    pub(crate) id: ContainerId,
    /// When it began.
    pub(crate) since: Instant,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// Tells it from others.
    number: u64,
}

/// A command that was killed and did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unkillable {
    /// What it is, for people.
    pub(crate) what: String,
    /// Its pid, which is another process's once this one has ended.
    pub(crate) pid: Pid,
    /// When it was started, in the kernel's ticks: that tells the two apart.
    pub(crate) started: u64,
}

/// A command counts as running until this is dropped.
pub(crate) struct Command {
    meters: Rc<Meters>,
    name: &'static str,
    since: Instant,
    number: u64,
    outcome: &'static str,
}

impl Meters {
    /// A command of the OCI runtime begins.
    pub(crate) fn command(
        self: &Rc<Self>,
        name: &'static str,
        id: &ContainerId,
        limit: Duration,
    ) -> Command {
        let since = Instant::now();
        let mut running = self.running.borrow_mut();
        let number = running.last().map_or(0, |last| last.number + 1);
        running.push(Running { name, id: id.clone(), since, limit, number });
        Command { meters: self.clone(), name, since, number, outcome: "abandoned" }
    }

    /// The commands that run.
    pub(crate) fn running(&self) -> Vec<Running> {
        self.running.borrow().clone()
    }

    /// A killed command does not go away.
    pub(crate) fn note_unkillable(&self, command: Unkillable) {
        self.unkillable.borrow_mut().push(command);
    }

    /// The commands that were killed and are still there, as `lives` says.
    pub(crate) fn unkillable(&self, lives: impl Fn(&Unkillable) -> bool) -> Vec<Unkillable> {
        let mut unkillable = self.unkillable.borrow_mut();
        unkillable.retain(lives);
        unkillable.clone()
    }
}

impl Command {
    /// What came of it.
    pub(crate) fn ended(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.meters.running.borrow_mut().retain(|one| one.number != self.number);
        self.meters.commands.note(self.name, self.outcome, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_into_buckets() {
        let timings = Timings::default();
        let cases = [(0, 0), (500, 0), (501, 1), (100_000, 7), (30_000_000, 10), (30_000_001, 11)];
        for (micros, _) in cases {
            timings.note("State", "OK", Duration::from_micros(micros));
        }
        timings.note("State", "NOT_FOUND", Duration::MAX);
        timings.note("Create", "OK", Duration::ZERO);
        let all = timings.all();
        let names: Vec<_> = all.iter().map(|one| (one.name, one.outcome)).collect();
        assert_eq!(names, [("Create", "OK"), ("State", "NOT_FOUND"), ("State", "OK")]);
        let mut expected = [0; BOUNDS.len() + 1];
        cases.iter().for_each(|(_, bucket)| expected[*bucket] += 1);
        assert_eq!(all[2].counts, expected);
        assert_eq!(all[2].sum, cases.iter().map(|(micros, _)| micros).sum::<u64>());
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn a_command_runs_until_it_is_dropped() {
        let meters = Rc::new(Meters::default());
        let id = ContainerId::new("c").unwrap();
        let mut first = meters.command("create", &id, Duration::from_secs(1));
        let second = meters.command("kill", &id, Duration::from_secs(1));
        let names = || meters.running().iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(names(), ["create", "kill"]);
        first.ended("ok");
        drop(first);
        let third = meters.command("state", &id, Duration::from_secs(1));
        drop(second);
        assert_eq!(names(), ["state"]);
        drop(third);
        let noted = meters.commands.all();
        let noted: Vec<_> = noted.iter().map(|one| (one.name, one.outcome)).collect();
        assert_eq!(noted, [("create", "ok"), ("kill", "abandoned"), ("state", "abandoned")]);
    }
}
