//! The tests that cgroups matter to, on a host that has cgroup v2 and nothing else.
//!
//! The machines that berth is developed on have cgroup v1, its users have v2. So `make test` boots a
//! second kernel, Debian's user-mode-linux, which is a program: a guest for each OCI runtime, both
//! at the same time. A guest has this machine's own files, read-only, with memory over the places that
//! are written; [`guest`] is how it is started and watched (with `ptrace.c` in between where processors
//! are too new for it), `init.sh` what it does first, [`parts`] what it runs then: tests of the library, of `tests/main.rs` and of `tests/containerd`, the very
//! binaries that ran outside.
//!
//! Beside the guests, the tests of resources run on this machine with crun, which `cargo test` runs with
//! runc: crun wants hierarchies that a hybrid host has not mounted (`here`).
//!
//! A test that fails inside fails the run, and so does a guest that does not come up, falls silent or
//! goes away before the end. Only where `linux.uml` is not installed, as distributions other than
//! Debian do not have it, the lane is skipped, in words that cannot be overlooked.
//!
//! Words on the command line choose: `runc` or `crun` one of the guests, `here` this machine, words with `::` tests by
//! their names, other words rows of the containerd suite in place of all else.
//!
//! ```sh
//! make cgroup2 TEST='crun resources::'      # one module, with crun
//! make cgroup2 TEST='runc cgroup::tests::'  # unit tests
//! make cgroup2 TEST='2.x berth metrics'     # rows of the containerd suite, with both
//! ```
//!
//! Everything takes a few times as long in there: [`SLOW`] tells the tests so. Nothing remains of
//! a guest, its processes, mounts and memory, not even when this program is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../containerd/command.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod command;
mod guest;
#[path = "../containerd/host.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all")]
mod host;
mod parts;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, thread};

use parts::Binaries;

/// The variable that says how many times as long as on a machine everything may take.
const SLOW: &str = "BERTH_TEST_SLOW";

/// The OCI runtimes, each with a guest of its own.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
/// The word for this machine.
const HERE: &str = "here";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == parts::INSIDE) {
        return parts::run(&arguments[1..]);
    }
    let (chosen, words): (Vec<_>, Vec<_>) =
        arguments.into_iter().partition(|word| word == HERE || RUNTIMES.contains(&word.as_str()));
    let chooses = |name: &str| chosen.is_empty() || chosen.iter().any(|word| word == name);
    let binaries = binaries();
    let Some(linux) = program(guest::PROGRAM) else {
        eprintln!(
            "\n\
             CGROUP V2 LANE SKIPPED: {program} is not installed.\n\
             NOTHING WAS TESTED ON CGROUP V2, which is what most hosts have.\n\
             It is in Debian's package user-mode-linux, which packaging/setup.sh installs.\n",
            program = guest::PROGRAM,
        );
        return verdict(
            chooses(HERE).then(|| parts::here(&binaries, &words)).flatten().into_iter(),
        );
    };
    let shim = guest::build_shim();
    let guests = RUNTIMES.iter().filter(|name| chooses(name));
    let failures: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = guests
            .map(|runtime| {
                let command = parts::inside(runtime, &binaries, &words);
                let (linux, shim) = (&linux, &shim);
                scope.spawn(move || guest::run(runtime, linux, shim, &command).err())
            })
            .collect();
        let here = chooses(HERE).then(|| parts::here(&binaries, &words)).flatten();
        let guests = running.into_iter().filter_map(|guest| guest.join().unwrap());
        guests.chain(here).collect()
    });
    verdict(failures.into_iter())
}

/// Prints the failures; none is what is wanted.
fn verdict(failures: impl Iterator<Item = String>) -> ExitCode {
    let failures: Vec<_> = failures.collect();
    // After all, as the lines of others would bury it.
    failures.iter().for_each(|failure| println!("cgroup v2: FAILED: {failure}"));
    let word = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. Where cgroups matter");
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A program of this name on `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The tests as cargo has built them; it builds what is missing.
fn binaries() -> Binaries {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--locked", "--no-run", "--message-format=json"]);
    cargo.args(["--lib", "--test", "main", "--test", "containerd"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo does not start");
    assert!(output.status.success(), "cargo: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let built: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |name: &str| {
        let found = built
            .iter()
            .find(|line| line["target"]["name"] == name && line["profile"]["test"] == true);
        let found = found.and_then(|line| line["executable"].as_str());
        Path::new(found.unwrap_or_else(|| panic!("cargo built no tests {name:?}"))).to_owned()
    };
    Binaries { unit: find("berth"), protocol: find("main"), containerd: find("containerd") }
}
