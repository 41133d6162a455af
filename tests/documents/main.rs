//! Every command that the documents show is carried out, and each document shows what is true.
//!
//! [`commands`] finds them, [`table`] says of each how it is run, [`steps`] what has to come of it where that is
//! more than a word: most of them word by word on a [`machine`] of its own, which `machine.sh` makes of mounts in
//! memory and namespaces, with a real containerd, the built program installed as the documents say, and a pod; the
//! others here in the repository, or by another part of `make test`, of which it is made sure that it does. A
//! command that the table does not know fails, and so does a row that no document shows any more.
//!
//! Needs root, the programs of `packaging/setup.sh`, and those of `packaging/fetch-containerd.sh`. Words on the
//! command line choose the rows whose commands contain them all. `--list` names what would run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../containerd/command.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod command;
mod commands;
mod example;
#[path = "../containerd/host.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod host;
#[path = "../containerd/image.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod image;
mod machine;
#[path = "../containerd/outcome.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod outcome;
mod repository;
mod steps;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use commands::{DOCUMENTS, Shown};
use host::PlainHierarchies;
use machine::Machine;
use outcome::{Outcome, report};
use table::{How, ROWS, Row};

/// The directory of the sources.
pub(crate) const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// The built program.
pub(crate) const BUILT: &str = env!("CARGO_BIN_EXE_containerd-shim-berth-v1");

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (flags, words): (Vec<_>, Vec<_>) =
        arguments.into_iter().partition(|word| word.starts_with("--"));
    let chosen: Vec<_> = ROWS.iter().filter(|row| fits(row, &words)).collect();
    if flags.iter().any(|flag| flag == "--list") {
        chosen.iter().for_each(|row| println!("{}", row.command));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("no command has {words:?}; --list names them");
        return ExitCode::FAILURE;
    }
    panic::set_hook(Box::new(|_| ())); // the outcome says it
    if flags.iter().any(|flag| flag == machine::INSIDE) {
        return report(&on_machine(&chosen));
    }
    let mut outcomes = Vec::new();
    if words.is_empty() {
        outcomes.push(attempt("commands are found", commands::check));
        outcomes.push(attempt("every command has a row, every row a command", complete));
        outcomes.push(attempt("links lead somewhere", repository::links));
        outcomes.push(attempt("the picture is of this demo", repository::picture));
        outcomes.push(attempt("configurations in the documents", repository::configurations));
    }
    let hierarchies = PlainHierarchies::mount(); // crun wants them
    for row in chosen.iter().filter(|row| !row.how.needs_machine()) {
        outcomes.push(attempt(row.command, || repository::run(row)));
    }
    drop(hierarchies);
    if chosen.iter().any(|row| row.how.needs_machine()) {
        outcomes.push(attempt("a machine of its own", || machine::enter(&words)));
    }
    report(&outcomes)
}

fn fits(row: &Row, words: &[String]) -> bool {
    words.iter().all(|word| row.command.contains(word.as_str()))
}

/// Everything that is done on the machine, in the order of the table.
fn on_machine(chosen: &[&Row]) -> Vec<Outcome> {
    let machine = Machine::begin();
    let rows = chosen.iter().filter(|row| row.how.needs_machine());
    let mut outcomes: Vec<_> = rows
        .map(|row| {
            attempt(row.command, || match row.how {
                How::Sources(expected) => drop(machine.sources(row.command, expected)),
                How::Machine(expected) => drop(machine.says(row.command, expected)),
                How::Special(check) => check(&machine, row.command),
                How::Example => example::check(&machine, row.command),
                _ => unreachable!("not on the machine"),
            })
        })
        .collect();
    outcomes.push(attempt("nothing is left of the containers", || machine.end()));
    outcomes
}

/// What the documents show and what the table knows is the same.
fn complete() {
    let shown: Vec<Shown> = DOCUMENTS
        .iter()
        .flat_map(|document| commands::commands(document, &read(document)))
        .chain(generated())
        .collect();
    let known: BTreeSet<_> = ROWS.iter().map(|row| row.command).collect();
    assert_eq!(known.len(), ROWS.len(), "a command has two rows");
    let mut wrong = Vec::new();
    for Shown { text, document } in &shown {
        if !known.contains(text.as_str()) {
            wrong.push(format!(
                "{document} shows `{text}`: no row of tests/documents/table.rs runs it"
            ));
        }
    }
    for command in known {
        if !shown.iter().any(|shown| shown.text == command) {
            wrong.push(format!(
                "`{command}` is in tests/documents/table.rs, but no document shows it"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the program says of itself: its help, and its manual page.
fn generated() -> Vec<Shown> {
    let mut found = commands::commands("its help", &said("-help"));
    found.extend(commands::examples(&said("man")));
    found
}

/// What the program prints.
#[track_caller]
fn said(word: &str) -> String {
    command::run(std::process::Command::new(BUILT).arg(word), b"").ok()
}

/// A file of the repository.
#[track_caller]
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(Path::new(REPOSITORY).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn attempt(title: impl Into<String>, check: impl FnOnce()) -> Outcome {
    let began = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(check));
    let failure = result.err().map(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_default()
    });
    Outcome::new(title.into(), failure, began.elapsed())
}
