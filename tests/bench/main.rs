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
//! A word is the name of a part or is in the names of the rows to measure; `--stock PATH` is what
//! berth is compared with (the newest fetched stock shim, else that of `PATH`), `BERTH_TEST_SHIM` the
//! berth to measure, and `--shim [NAME=]PATH`, any number of times, another shim beside them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(missing_docs)]

mod args;
#[path = "../containerd/command.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all")]
mod command;
mod contest;
mod figures;
mod ground;
#[path = "../containerd/host.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all")]
mod host;
mod io;
mod machine;
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
use contest::{Row, Subject};

/// A table of its own: some rows, each with the same figures, and the shims that are compared.
struct Part {
    name: &'static str,
    title: &'static str,
    figures: &'static [table::Figure],
    rows: fn(&Args) -> Vec<Row>,
    subjects: fn(&Args) -> Vec<Subject>,
    rounds: u32,
}

const PARTS: &[Part] = &[
    Part {
        name: "io",
        title: "Output of a process",
        figures: io::FIGURES,
        rows: io::rows,
        subjects: io::subjects,
        rounds: 7,
    },
    Part {
        name: "stats",
        title: "Calls that ask",
        figures: stats::FIGURES,
        rows: stats::rows,
        subjects: stats::subjects,
        rounds: 7,
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
            Ok(args) => ground::supervise(&args, &words),
            Err(fault) => {
                eprintln!("bench: {fault}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Measures what the arguments choose, and prints it.
fn work(args: &Args) -> ExitCode {
    let mut found = false;
    for part in PARTS.iter().filter(|part| args.chooses_part(part.name, &names())) {
        let mut rows = (part.rows)(args);
        rows.retain(|row| args.chooses_row(&row.name, &names()));
        found |= !rows.is_empty();
        if !rows.is_empty() {
            measure(part, &rows, args);
        }
    }
    if !found {
        eprintln!("bench: nothing fits {:?}; the parts are {:?}", args.words, names());
    }
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(part: &Part, rows: &[Row], args: &Args) {
    let subjects = (part.subjects)(args);
    let rounds = args.rounds.unwrap_or(part.rounds);
    let load = machine::load();
    let lines = contest::hold(rows, &subjects, rounds);
    println!("### {}: {}, {rounds} rounds\n", part.title, args.runtime);
    println!("{}", table::markdown(part.figures, &lines));
    println!("{}", machine::describe(&subjects, &args.runtime, &load));
    if let Some(path) = &args.json {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for line in table::json(part.name, &args.runtime, part.figures, &lines) {
            writeln!(file, "{line}").unwrap();
        }
    }
}

fn names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}
