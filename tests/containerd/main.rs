//! berth under real containerds: every case on every packaged containerd, with runc and with crun.
//!
//! The same cases run against the stock shim `io.containerd.runc.v2`, which proves the cases; those of
//! pods also through the Sandbox API of 2.x, which is the shim `pauseless`, and those about streams with
//! its streaming API too, which is `streaming`. Needs root, the programs of
//! `packaging/setup.sh` and the containerds of `packaging/fetch-containerd.sh`.
//! Words on the command line choose: a containerd version, a runtime, a shim or a part of a case's
//! name; every word has to fit. `--list` names what would run.
//!
//! ```sh
//! make && sudo cargo test --test containerd -- 1.7 crun berth shim-killed
//! ```
//!
//! Rows run beside each other on a machine that may be busy, below a containerd with races of its own.
//! So a row that fails is repeated once, by itself, after the others with its daemon; what it said is printed in either
//! case. Of the rows that pass then (`unstable`), a run bears a few of berth's, and any of the
//! stock shim's, which loses output and events at times.
//!
//! `--cgroups` chooses the cases whose ways depend on the host's cgroups, for `tests/cgroup2`.
//!
//! `--soak=MINUTES` keeps a mixed load on the newest containerd for so long, see [`soak`].
//!
//! `--cost` measures instead what a pod costs, `BERTH_ROUNDS` times with each shim, and
//! `BERTH_TEST_SHIM` names another build of berth. `BERTH_MANY` is the number of containers and exec processes that end at once (100), `BERTH_PODS` that
//! of the pods that start at once (30), `BERTH_JOBS` that of the cases that run at the same time (4), `BERTH_TEST_SLOW`
//! how many times as long as usual a condition may need.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod bed;
mod checkpoint;
mod command;
mod config;
#[path = "../support/counters.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the built program")]
mod counters;
mod crash;
mod cri;
mod daemon;
mod doctor;
mod host;
mod image;
mod install;
mod lifecycle;
mod outcome;
mod output;
mod pods;
mod recorder;
mod resources;
mod restarts;
mod runsc;
mod soak;
mod streams;
mod terminal;

use std::cell::RefCell;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use bed::{Bed, RwEvents};
use daemon::{Daemon, EventLog};
use host::{Forwarding, PlainHierarchies};
use outcome::{Outcome, report};

/// The shim that a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shim {
    Stock,
    Berth,
    /// berth through containerd's Sandbox API: its pods have no pause container.
    Pauseless,
    /// The same with streams of containerd's streaming API in place of FIFOs.
    Streaming,
}

impl Shim {
    const ALL: [Self; 4] = [Self::Stock, Self::Berth, Self::Pauseless, Self::Streaming];

    fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Berth => "berth",
            Self::Pauseless => "pauseless",
            Self::Streaming => "streaming",
        }
    }

    /// The handler of pods in containerd's configuration.
    pub(crate) fn handler(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Berth => "berth",
            Self::Pauseless => "berth-pauseless",
            Self::Streaming => "berth-streaming",
        }
    }

    /// Whether its pods have a pause container.
    pub(crate) fn has_pause(self) -> bool {
        matches!(self, Self::Stock | Self::Berth)
    }

    /// The name that containerd makes the program's name of.
    pub(crate) fn runtime_name(self) -> &'static str {
        match self {
            Self::Stock => "io.containerd.runc.v2",
            Self::Berth | Self::Pauseless | Self::Streaming => "io.containerd.berth.v1",
        }
    }
}

/// The OCI runtime below the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Runc,
    Crun,
}

impl Runtime {
    const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// A rule that holds for every containerd, runtime and shim.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Whether it needs the daemon, or the machine, for itself.
    pub(crate) alone: bool,
    /// Whether it is about what only berth does, with runtimes of its own choice: it has no row for
    /// the stock shim, nor for crun.
    pub(crate) own: bool,
    /// Whether it is about pods: the daemon has a CRI plugin.
    pub(crate) pods: bool,
    pub(crate) check: fn(&Bed<'_>),
}

/// A case that others may run beside.
pub(crate) const fn shared(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: false, own: false, pods: false, check }
}

/// A case that restarts the daemon or loads the machine.
pub(crate) const fn alone(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: true, own: false, pods: false, check }
}

/// A case about what only berth does.
pub(crate) const fn own(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: false, own: true, pods: false, check }
}

/// A case about pods that others may run beside.
pub(crate) const fn pod(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: false, own: false, pods: true, check }
}

/// A case about pods that restarts the daemon or loads the machine.
pub(crate) const fn pods_alone(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: true, own: false, pods: true, check }
}

/// The number of containers, or exec processes, in the cases that end many at once.
pub(crate) fn many() -> usize {
    number("BERTH_MANY", 100)
}

fn number(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (flags, words): (Vec<_>, Vec<_>) =
        arguments.into_iter().partition(|word| word.starts_with('-'));
    let versions = versions();
    let mut plan = plan(&versions, &words);
    if flags.iter().any(|flag| flag == "--cgroups") {
        plan.retain(|row| concerns_cgroups(row.case));
    }
    if !versions.iter().all(|(_, programs)| runsc::program(programs).exists()) {
        eprintln!("NO RUNSC: its cases are skipped; packaging/fetch-containerd.sh fetches it");
    }
    if !versions.iter().all(|(_, programs)| checkpoint::program(programs).exists()) {
        eprintln!("NO CRIU: its cases are skipped; packaging/fetch-containerd.sh fetches it");
    }
    if flags.iter().any(|flag| flag == "--list") {
        plan.iter().for_each(|row| println!("{}", row.title()));
        return ExitCode::SUCCESS;
    }
    if flags.iter().any(|flag| flag == "--cost") {
        print_costs(&versions, &words);
        return ExitCode::SUCCESS;
    }
    if let Some(minutes) = flags.iter().find_map(|flag| flag.strip_prefix("--soak=")) {
        return soak(&versions, &words, minutes.parse().expect("--soak=MINUTES"));
    }
    if plan.is_empty() {
        eprintln!("no case fits {words:?}; --list names them");
        return ExitCode::FAILURE;
    }
    if command::run(Command::new("id").arg("-u"), b"").text() != "0" {
        eprintln!("these tests start containers: run them as root");
        return ExitCode::FAILURE;
    }
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        FAILED_AT.with(|at| at.replace(place));
    }));
    report(&run_plan(&plan))
}

thread_local! {
    /// Where this thread has panicked last.
    static FAILED_AT: RefCell<String> = RefCell::default();
}

/// One line of the matrix.
struct Row<'a> {
    version: &'a str,
    programs: &'a Path,
    runtime: Runtime,
    shim: Shim,
    case: &'static Case,
}

impl Row<'_> {
    fn title(&self) -> String {
        format!("{} {} {} {}", self.version, self.runtime.name(), self.shim.name(), self.case.name)
    }

    fn fits(&self, words: &[String]) -> bool {
        let exact = [self.version, self.runtime.name(), self.shim.name()];
        words
            .iter()
            .all(|word| exact.contains(&word.as_str()) || self.case.name.contains(word.as_str()))
    }

    /// Rows with the same key share a daemon.
    fn daemon_key(&self) -> (&str, &str, bool) {
        (self.version, self.runtime.name(), self.case.pods)
    }

    /// Whether the case can be and has to be shown with this version, runtime and shim.
    fn applies(&self) -> bool {
        if pods::streaming::is_own(self.case) && self.shim != Shim::Streaming {
            return false;
        }
        if install::is_own(self.case) && self.shim != Shim::Berth {
            return false;
        }
        match (self.shim, self.runtime) {
            (Shim::Streaming, Runtime::Runc) => {
                pods::streaming::concerns(self.case) && !self.version.starts_with("1.")
            }
            (Shim::Streaming, Runtime::Crun) => false,
            (Shim::Berth, Runtime::Runc) => true,
            (Shim::Pauseless, _) => self.case.pods && !self.version.starts_with("1."),
            (Shim::Stock, _) | (Shim::Berth, Runtime::Crun) => !self.case.own,
        }
    }
}

/// The versions that were fetched: name and directory of the programs.
fn versions() -> Vec<(String, PathBuf)> {
    let built = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    let fetched = built.ancestors().map(|dir| dir.join("containerd")).find(|dir| dir.is_dir());
    let fetched = fetched.expect("no containerd to test with: run packaging/fetch-containerd.sh");
    let names = fs::read_dir(&fetched).unwrap().map(|entry| entry.unwrap().file_name());
    let mut found: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .map(|name| (name.clone(), fetched.join(name).join("bin")))
        .filter(|(_, programs)| programs.join("containerd").exists())
        .collect();
    found.sort();
    found
}

fn plan<'a>(versions: &'a [(String, PathBuf)], words: &[String]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (version, programs) in versions {
        for runtime in Runtime::ALL {
            for shim in Shim::ALL {
                let cases = [
                    streams::CASES,
                    output::CASES,
                    terminal::CASES,
                    lifecycle::CASES,
                    resources::CASES,
                    checkpoint::cases(programs, version, runtime, shim),
                    crash::CASES,
                    doctor::CASES,
                    restarts::CASES,
                    config::CASES,
                    install::CASES,
                    cri::runtimes::CASES,
                    runsc::cases(programs),
                    pods::lifecycle::CASES,
                    pods::isolation::CASES,
                    pods::endings::CASES,
                    pods::many::CASES,
                    pods::overhead::CASES,
                    pods::streams::CASES,
                    pods::streaming::CASES,
                    pods::users::cases(version, runtime),
                ];
                for case in cases.into_iter().flatten() {
                    rows.push(Row { version, programs, runtime, shim, case });
                }
            }
        }
    }
    rows.retain(|row| row.applies() && row.fits(words));
    // Those that share a daemon side by side.
    rows.sort_by_key(|row| (row.version, row.runtime.name() != "runc", row.case.pods));
    rows
}

/// The cases beside those of `resources` for which it matters what cgroups the host has.
const CGROUPS: &[&str] = &[
    "output-and-status",
    "kill",
    "kill-exec",
    "pause",
    "metrics",
    "out-of-memory",
    "pids",
    "event-order",
    "host-pid-namespace",
    "group",
    "shim-killed",
    "group-shim-killed",
    "containerd-killed",
    "pod-lifecycle",
    "pod-stats",
    "pod-oom",
    "pod-overhead",
    "pod-shim-killed",
];

fn concerns_cgroups(case: &Case) -> bool {
    resources::CASES.iter().any(|own| own.name == case.name) || CGROUPS.contains(&case.name)
}

/// Before the names of the containers of a row that is repeated.
const AGAIN: &str = "again-";

/// Runs the rows, daemon by daemon, in a directory of this process.
fn run_plan(plan: &[Row<'_>]) -> Vec<Outcome> {
    let base = PathBuf::from(format!("/run/berth-test-{}", std::process::id()));
    fs::create_dir_all(&base).unwrap();
    let image = image::write(&base);
    let changes = (PlainHierarchies::mount(), Forwarding::remember());
    let mut outcomes = Vec::new();
    for rows in plan.chunk_by(|a, b| a.daemon_key() == b.daemon_key()) {
        let Row { version, programs, runtime, case, .. } = rows[0];
        let kind = if case.pods { " pods" } else { "" };
        let dir = base.join(format!("{version}-{}{}", runtime.name(), kind.replace(' ', "-")));
        let daemon = if case.pods {
            cri::setup::start(version, programs, runtime, &dir)
        } else {
            Daemon::start(version, programs, runtime, &dir)
        };
        for rows in rows.chunk_by(|a, b| a.shim == b.shim) {
            outcomes.extend(run_rows(rows, &daemon, &image));
        }
        let title = format!("{version} {}{kind} leaves nothing behind", runtime.name());
        let left = daemon.end();
        let failure = (!left.is_empty()).then(|| left.join(", "));
        outcomes.push(Outcome::new(title, failure, Duration::ZERO));
    }
    drop(changes);
    fs::remove_dir_all(&base).unwrap();
    outcomes
}

/// Loads the newest of the versions that the words choose, with a runtime that they choose.
fn soak(versions: &[(String, PathBuf)], words: &[String], minutes: f64) -> ExitCode {
    let named = |name: &str| words.iter().any(|word| word == name);
    let newest = versions.iter().rev();
    let chosen =
        newest.clone().find(|(version, _)| named(version)).or_else(|| newest.clone().next());
    let (version, programs) = chosen.unwrap();
    let runtime = if named("crun") { Runtime::Crun } else { Runtime::Runc };
    let base = PathBuf::from(format!("/run/berth-test-{}", std::process::id()));
    fs::create_dir_all(&base).unwrap();
    let image = image::write(&base);
    let changes = (PlainHierarchies::mount(), Forwarding::remember());
    let daemon = cri::setup::start(version, programs, runtime, &base.join("soak"));
    let well = soak::run(&daemon, &image, Duration::from_secs_f64(60.0 * minutes));
    host::remove_namespace(cri::setup::NAMESPACE);
    let left = daemon.end();
    left.iter().for_each(|what| println!("left behind: {what}"));
    drop(changes);
    fs::remove_dir_all(&base).unwrap();
    if well && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what a pod costs, for each of the versions and runtimes that the words choose.
fn print_costs(versions: &[(String, PathBuf)], words: &[String]) {
    let chosen = |names: &[&str], name: &str| {
        let asked = words.iter().any(|word| names.contains(&word.as_str()));
        !asked || words.iter().any(|word| word == name)
    };
    let all: Vec<_> = versions.iter().map(|(version, _)| version.as_str()).collect();
    let base = PathBuf::from(format!("/run/berth-test-{}", std::process::id()));
    let changes = (PlainHierarchies::mount(), Forwarding::remember());
    for (version, programs) in versions.iter().filter(|(version, _)| chosen(&all, version)) {
        for runtime in Runtime::ALL {
            if chosen(&Runtime::ALL.map(Runtime::name), runtime.name()) {
                let dir = base.join(format!("{version}-{}", runtime.name()));
                let daemon = cri::setup::start(version, programs, runtime, &dir);
                pods::cost::print(&daemon, number("BERTH_ROUNDS", 15));
                host::remove_namespace(cri::setup::NAMESPACE);
                let left = daemon.end();
                assert!(left.is_empty(), "left behind: {left:?}");
            }
        }
    }
    drop(changes);
    fs::remove_dir_all(&base).unwrap();
}

/// Runs the rows of one daemon and shim in a namespace of their own.
fn run_rows(rows: &[Row<'_>], daemon: &Daemon, image: &Path) -> Vec<Outcome> {
    let namespace = if rows[0].case.pods {
        cri::setup::NAMESPACE.to_owned()
    } else {
        let namespace = format!("berth-test-{}-{}", std::process::id(), rows[0].shim.name());
        daemon.import(&namespace, image);
        namespace
    };
    let events = RwLock::new(Some(EventLog::start(daemon, &namespace)));
    let (last, first): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.case.alone);

    let queue = Mutex::new(first.into_iter().rev().collect::<Vec<_>>());
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..number("BERTH_JOBS", 4) {
            scope.spawn(|| {
                while let Some(row) = { queue.lock().unwrap().pop() } {
                    let outcome = run_row(row, "", daemon, &namespace, &events);
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.extend(last.iter().map(|row| run_row(row, "", daemon, &namespace, &events)));
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.failure.is_some()) {
        let row = rows.iter().find(|row| row.title() == outcome.title).unwrap();
        println!("once more: {}", outcome.title);
        let first = outcome.failure.take();
        *outcome = Outcome { first, ..run_row(row, AGAIN, daemon, &namespace, &events) };
    }
    outcomes.iter_mut().for_each(|outcome| outcome.is_stock = rows[0].shim == Shim::Stock);
    host::remove_namespace(&namespace);
    outcomes
}

/// The `prefix` makes the names of its containers differ from those of the row before.
fn run_row(
    row: &Row<'_>,
    prefix: &str,
    daemon: &Daemon,
    namespace: &str,
    events: &RwEvents,
) -> Outcome {
    let case = format!("{prefix}{}", row.case.name);
    let bed = Bed::new(daemon, row.shim, namespace, &case, events);
    let began = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        (row.case.check)(&bed);
        bed.check_clean();
    }));
    let took = began.elapsed();
    let failure = result.err().map(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = FAILED_AT.take();
        let log = daemon.log_about(&format!("={case}-"));
        bed.sweep();
        format!("{}\nat: {place}\ncontainerd: {log}", text.unwrap_or_default())
    });
    Outcome::new(row.title(), failure, took)
}
