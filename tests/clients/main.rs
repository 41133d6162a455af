//! Clients of containerd, with berth: the Docker Engines as Debian packages them, and the files that others
//! read.
//!
//! Needs root, the programs of `packaging/setup.sh`, and those of `packaging/fetch-containerd.sh`. Words on
//! the command line choose: an engine (`docker-26`), `alias` or `name` for how berth is named, `stock` for
//! containerd's own shim, which proves the cases, or a part of
//! a case's name; every word has to fit. `--list` names what would run. Each engine has a containerd
//! and directories of its own; nothing of them may be left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../containerd/command.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod command;
mod docker;
#[path = "../containerd/host.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod host;
mod manifests;
#[path = "../containerd/outcome.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod outcome;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use docker::{CASES, Case, Engine, NAMINGS, Naming};
use host::PlainHierarchies;
use outcome::{Outcome, report};

/// Each engine, and the containerd that Debian packages beside it.
const ENGINES: [(&str, &str); 2] = [("docker-26", "1.7"), ("docker-28", "2.x")];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (flags, words): (Vec<_>, Vec<_>) =
        arguments.into_iter().partition(|word| word.starts_with('-'));
    let fits = |title: &str| words.iter().all(|word| title.contains(word.as_str()));
    let fetched = fetched();
    if flags.iter().any(|flag| flag == "--list") {
        titles().filter(|title| fits(title)).for_each(|title| println!("{title}"));
        return ExitCode::SUCCESS;
    }
    panic::set_hook(Box::new(|_| ())); // the outcome says it
    let mut outcomes = Vec::new();
    for (name, check) in manifests::CASES {
        let title = format!("files {name}");
        if fits(&title) {
            outcomes.push(attempt(title, || check(&fetched)));
        }
    }
    for (engine, containerd) in ENGINES {
        let rows = rows(engine).filter(|(title, ..)| fits(title)).collect::<Vec<_>>();
        if rows.is_empty() {
            continue;
        }
        if !fetched.join(engine).join("bin/dockerd").exists() {
            eprintln!(
                "NO {engine}: its cases are skipped; packaging/fetch-containerd.sh fetches it"
            );
            continue;
        }
        outcomes.extend(run(&fetched, engine, containerd, &rows));
    }
    report(&outcomes)
}

/// The directory in which `packaging/fetch-containerd.sh` puts the programs.
fn fetched() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    let fetched = built.ancestors().map(|dir| dir.join("containerd")).find(|dir| dir.is_dir());
    fetched.expect("no containerd to test with: run packaging/fetch-containerd.sh")
}

type Row = (String, Naming, &'static Case);

fn rows(engine: &'static str) -> impl Iterator<Item = Row> {
    let named = NAMINGS.iter().flat_map(|naming| CASES.iter().map(move |case| (*naming, case)));
    named.map(move |(naming, case)| {
        (format!("{engine} {} {}", naming.word, case.name), naming, case)
    })
}

fn titles() -> impl Iterator<Item = String> {
    let manifests = manifests::CASES.iter().map(|(name, _)| format!("files {name}"));
    manifests.chain(ENGINES.into_iter().flat_map(|(engine, _)| rows(engine)).map(|row| row.0))
}

/// Runs the rows of one engine, one after the other: some of them restart it.
fn run(fetched: &Path, engine: &str, containerd: &str, rows: &[Row]) -> Vec<Outcome> {
    let changes = PlainHierarchies::mount();
    let dir = PathBuf::from(format!("/run/berth-docker-{}/{engine}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mut outcomes = Vec::new();
    let mut started = None;
    outcomes.push(attempt(format!("{engine} starts"), || {
        started = Some(Engine::start(&dir, &fetched.join(engine), &fetched.join(containerd)));
    }));
    if let Some(engine) = started {
        for (title, naming, case) in rows {
            let row = || {
                let outcome = attempt(title.clone(), || {
                    (case.check)(&engine, naming.runtime);
                    engine.check_clean();
                });
                engine.sweep();
                outcome
            };
            // Once more, as the other suites do: the machine may be busy.
            let mut outcome = row();
            if let Some(first) = outcome.failure.take() {
                outcome = Outcome { first: Some(first), ..row() };
            }
            outcome.is_stock = naming.word == "stock";
            outcomes.push(outcome);
        }
        let title = format!("{} leaves nothing behind", rows[0].0.split(' ').next().unwrap());
        outcomes.push(attempt(title, || engine.end()));
    }
    drop(changes);
    let _ = fs::remove_dir_all(dir.parent().unwrap());
    outcomes
}

fn attempt(title: String, check: impl FnOnce()) -> Outcome {
    let began = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(check));
    let failure = result.err().map(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_default()
    });
    Outcome::new(title, failure, began.elapsed())
}
