//! Rounds in which the shims take turns.

use std::path::{Path, PathBuf};

use crate::args::Args;
use crate::figures::Summary;
use crate::ground;
use crate::support::{self, Host, Stdin};

/// A shim in one of its ways of working.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// What `start` is given on standard input.
    pub(crate) stdin: Stdin,
    /// berth's configuration file, where the way of working takes one.
    pub(crate) config: Option<&'static str>,
}

impl Subject {
    fn new(name: &str, program: &Path, config: Option<&'static str>) -> Self {
        let program = program.canonicalize().unwrap_or_else(|_| program.into());
        Self { name: name.into(), program, stdin: Stdin::Nothing, config }
    }

    /// No shim at all: the floor.
    pub(crate) fn is_bare(&self) -> bool {
        self.program.as_os_str().is_empty()
    }

    /// A containerd of its own, whose containers run with `runtime`.
    pub(crate) fn host(&self, runtime: &str) -> Host {
        let host = Host::measuring(&self.program, runtime);
        match self.config {
            Some(config) => host.configured(config),
            None => host,
        }
    }
}

/// What berth is compared with: the stock shim, then those of the command line.
pub(crate) fn others(args: &Args) -> Vec<Subject> {
    let shims = args.shims.iter().map(|(name, program)| Subject::new(name, program, None));
    [Subject::new("stock", &stock(args), None)].into_iter().chain(shims).collect()
}

/// The OCI runtime by itself, called as a shim calls it.
pub(crate) fn bare() -> Subject {
    let (name, program, config) = ("bare".into(), PathBuf::new(), None);
    Subject { name, program, stdin: Stdin::Nothing, config }
}

/// The stock shim, those of the command line, berth.
pub(crate) fn shims(args: &Args) -> Vec<Subject> {
    let mut subjects = others(args);
    subjects.push(berth("berth", None));
    subjects
}

/// The bare runtime, then [`shims`].
pub(crate) fn all(args: &Args) -> Vec<Subject> {
    [bare()].into_iter().chain(shims(args)).collect()
}

/// The berth that is measured.
pub(crate) fn berth(name: &str, config: Option<&'static str>) -> Subject {
    Subject::new(name, Path::new(&support::binary()), config)
}

/// The stock shim of the newest containerd that was fetched for the tests, else that of `PATH`.
fn stock(args: &Args) -> PathBuf {
    const NAME: &str = "containerd-shim-runc-v2";
    let built = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    let fetched = built.ancestors().map(|dir| dir.join("containerd/2.x/bin").join(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join(NAME)).collect::<Vec<_>>();
    let mut all = args.stock.clone().into_iter().chain(fetched).chain(installed);
    all.find(|path| path.exists()).expect("a stock shim to compare with: --stock PATH")
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
        nix::unistd::sync(); // pages of a new program are private dirty until they are written back
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
