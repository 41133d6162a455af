//! What berth costs beside other shims: `make bench [ARGS='io …']`.
//!
//! It plays containerd's part against shim programs, on a tmpfs of its own: `start`, the ttrpc calls
//! of a task's life, the reading ends of its FIFOs, `delete`. The shims take turns, each round begins
//! with another one, and the first round, a short one, does not count. Needs root.
//!
//! ```sh
//! make bench ARGS='io terminal --runtime crun --rounds 9 --json out.json --shim peer=/opt/peer-shim'
//! ```
//!
//! At the end it compares what was measured with the budgets (budget.rs); with `--check`, `make bench-check`,
//! a missed one is a failure. The part `many`, `--count` shims (500) at the same time, has to be named.
//!
//! A word is the name of a part or is in the names of the rows to measure; `--stock PATH` is what
//! berth is compared with (the newest fetched stock shim, else that of `PATH`), `BERTH_TEST_SHIM` the
//! berth to measure, and `--shim [NAME=]PATH`, any number of times, another shim beside them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(missing_docs)]

mod args;
mod bare;
mod budget;
#[path = "../containerd/command.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all")]
mod command;
mod contest;
mod delete;
mod exec;
mod figures;
mod ground;
#[path = "../containerd/host.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all")]
mod host;
mod idle;
mod io;
mod life;
mod limit;
mod line;
mod machine;
mod many;
mod memory;
mod meter;
mod projection;
mod stats;
#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "shared with the tests, which use all"
)]
mod support;
mod table;
mod usage;

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use args::Args;
use budget::Measured;
use contest::{Line, Row, Subject};

/// A table of its own: some rows, each with the same figures, and the shims that are compared.
struct Part {
    name: &'static str,
    title: &'static str,
    figures: &'static [table::Figure],
    rows: fn(&str, &Args) -> Vec<Row>,
    subjects: fn(&Args) -> Vec<Subject>,
    rounds: u32,
    runtimes: &'static [&'static str],
    /// Not one that has to be asked for.
    is_usual: bool,
    /// What else its lines tell.
    tell: Option<fn(&[Line], &Args) -> String>,
}

impl Part {
    /// The runtimes that it is measured with.
    fn runtimes(&self, args: &Args) -> Vec<String> {
        match &args.runtime {
            Some(runtime) => vec![runtime.clone()],
            None => self.runtimes.iter().copied().map(str::to_owned).collect(),
        }
    }
}

const PARTS: &[Part] = &[
    Part {
        name: "life",
        title: "A life",
        figures: life::FIGURES,
        rows: life::rows,
        subjects: life::subjects,
        rounds: 21,
        runtimes: &["runc", "crun"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "exec",
        title: "Exec",
        figures: exec::FIGURES,
        rows: exec::rows,
        subjects: contest::all,
        rounds: 15,
        runtimes: &["runc", "crun"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "memory",
        title: "Memory, threads and descriptors",
        figures: memory::FIGURES,
        rows: memory::rows,
        subjects: contest::shims,
        rounds: 3,
        runtimes: &["runc"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "idle",
        title: "Idle",
        figures: idle::FIGURES,
        rows: idle::rows,
        subjects: contest::shims,
        rounds: 1,
        runtimes: &["runc"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "delete",
        title: "Delete",
        figures: delete::FIGURES,
        rows: delete::rows,
        subjects: contest::shims,
        rounds: 3,
        runtimes: &["runc"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "io",
        title: "Output of a process",
        figures: io::FIGURES,
        rows: io::rows,
        subjects: io::subjects,
        rounds: 7,
        runtimes: &["runc"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "stats",
        title: "Calls that ask",
        figures: stats::FIGURES,
        rows: stats::rows,
        subjects: contest::shims,
        rounds: 7,
        runtimes: &["runc"],
        is_usual: true,
        tell: None,
    },
    Part {
        name: "many",
        title: "A node's worth of shims",
        figures: many::FIGURES,
        rows: many::rows,
        subjects: contest::shims,
        rounds: 1,
        runtimes: &["crun"],
        is_usual: false,
        tell: Some(many::project),
    },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some(io::WRITE) => io::writer::run(&words[1..]),
        Some(ground::WORKER) => {
            ground::heed_the_supervisor();
            Args::parse(&words[1..]).map_or(ExitCode::FAILURE, |args| work(&args))
        }
        _ => match Args::parse(&words) {
            Ok(args) => ground::supervise(&words, needs_plain_hierarchies(&args)),
            Err(fault) => {
                eprintln!("bench: {fault}");
                ExitCode::FAILURE
            }
        },
    }
}

/// crun refuses a hybrid layout of cgroups; other figures are those of the machine as it is.
fn needs_plain_hierarchies(args: &Args) -> bool {
    chosen(args).any(|part| part.runtimes(args).iter().any(|runtime| runtime != "runc"))
}

fn chosen(args: &Args) -> impl Iterator<Item = &'static Part> {
    PARTS.iter().filter(|part| args.chooses_part(part.name, &names(), part.is_usual))
}

/// Measures what the arguments choose, and prints it.
fn work(args: &Args) -> ExitCode {
    let mut all = Vec::new();
    for part in chosen(args) {
        for runtime in part.runtimes(args) {
            let mut rows = (part.rows)(&runtime, args);
            rows.retain(|row| args.chooses_row(&row.name, &names()));
            if !rows.is_empty() {
                all.push(measure(part, &rows, runtime, args));
            }
        }
    }
    if all.is_empty() {
        eprintln!("bench: nothing fits {:?}; the parts are {:?}", args.words, names());
        return ExitCode::FAILURE;
    }
    let others: Vec<_> = contest::others(args).into_iter().map(|subject| subject.name).collect();
    let (table, missed) = budget::table(&all, &others);
    println!("### Budgets\n\n{table}");
    if args.check && !missed.is_empty() {
        eprintln!("bench: missed: {}", missed.join("; "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(part: &'static Part, rows: &[Row], runtime: String, args: &Args) -> Measured {
    let subjects = (part.subjects)(args);
    let rounds = args.rounds.unwrap_or(part.rounds);
    let load = machine::load();
    let lines = contest::hold(rows, &subjects, rounds);
    println!("### {}: {runtime}, {rounds} rounds\n", part.title);
    println!("{}", table::markdown(part.figures, &lines));
    if let Some(tell) = part.tell {
        println!("{}", tell(&lines, args));
    }
    println!("{}", machine::describe(&subjects, &runtime, &load));
    if let Some(path) = &args.json {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for line in table::json(part.name, &runtime, part.figures, &lines) {
            writeln!(file, "{line}").unwrap();
        }
    }
    Measured { part: part.name, runtime, figures: part.figures, lines }
}

fn names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}
