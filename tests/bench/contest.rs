//! Rounds in which the shims take turns.

use std::path::PathBuf;

use crate::figures::Summary;
use crate::ground;

/// A shim in one of its ways of working.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// berth's configuration file, where the way of working takes one.
    pub(crate) config: Option<&'static str>,
}

/// How much of the work a turn does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// A little, to have every program and page in memory.
    WarmUp,
    Full,
}

/// The figures of one turn, in the order of the part's; `None` where one means nothing for the row.
pub(crate) type Sample = Vec<Option<f64>>;

/// `None` where the subject has no such way of working.
pub(crate) type Turn = Box<dyn Fn(&Subject, Load) -> Option<Sample>>;

/// Something that every shim has to do.
pub(crate) struct Row {
    pub(crate) name: String,
    /// Does it once.
    pub(crate) turn: Turn,
}

/// What one subject needed for one row.
pub(crate) struct Line {
    pub(crate) row: String,
    pub(crate) subject: String,
    pub(crate) samples: Vec<Sample>,
    /// The first subject of the row: the ratios are to it.
    pub(crate) base: bool,
}

impl Line {
    /// The samples of the figure at `index`.
    pub(crate) fn values(&self, index: usize) -> Vec<f64> {
        self.samples.iter().filter_map(|sample| sample[index]).collect()
    }

    /// Median, minimum and p95 of the figure at `index`.
    pub(crate) fn summary(&self, index: usize) -> Option<Summary> {
        Summary::of(&self.values(index))
    }
}

/// Lets every subject do every row, `rounds` times after a warm-up. All rounds of a row come one after
/// the other, so that what changes on the machine meanwhile changes for all.
pub(crate) fn hold(rows: &[Row], subjects: &[Subject], rounds: u32) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in rows {
        eprint!("{} ", row.name);
        let mut samples = vec![Vec::new(); subjects.len()];
        for round in 0..=rounds as usize {
            let load = if round == 0 { Load::WarmUp } else { Load::Full };
            for turn in 0..subjects.len() {
                let index = (turn + round) % subjects.len();
                ground::check_interrupt();
                let sample = (row.turn)(&subjects[index], load);
                samples[index].extend(sample.filter(|_| load == Load::Full));
            }
            eprint!(".");
        }
        eprintln!();
        let measured = subjects.iter().zip(samples).filter(|(_, samples)| !samples.is_empty());
        for (place, (subject, samples)) in measured.enumerate() {
            let (row, subject) = (row.name.clone(), subject.name.clone());
            lines.push(Line { row, subject, samples, base: place == 0 });
        }
    }
    lines
}
