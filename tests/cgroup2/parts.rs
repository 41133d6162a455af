//! What runs inside a guest, and how it went.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::SLOW;
use crate::host::PlainHierarchies;

/// The argument that says that this is the guest.
pub(crate) const INSIDE: &str = "--inside";

/// The guest's first line.
pub(crate) const BOOTED: &str = "cgroup2: booted";

/// Begins its last line: `ok`, or the parts that failed.
pub(crate) const ENDED: &str = "cgroup2: ended: ";

/// The unit tests that read or write the host's cgroups.
const UNIT: &[&str] = &["cgroup::"];

/// The modules of `tests/main.rs` for which it matters what cgroups the host has. `checkpoint::` is not
/// among them: this kernel is built without `CONFIG_CHECKPOINT_RESTORE`.
const PROTOCOL: &[&str] = &[
    "stats::",
    "resources::",
    "delete::",
    "crash::",
    "events::",
    "faults::clock::a_jump", // sets the clock, which only a guest has for itself
];

/// Words and flags for the containerd suite, by runtime: newer containerds are what v2 hosts have.
const CONTAINERD: &[(&str, &[&[&str]])] = &[
    ("runc", &[&["--cgroups", "2.x", "runc", "berth"]]),
    ("crun", &[&["--cgroups", "1.7", "crun", "berth"]]),
];

/// The test binaries.
pub(crate) struct Binaries {
    pub(crate) unit: PathBuf,
    pub(crate) protocol: PathBuf,
    pub(crate) containerd: PathBuf,
}

/// The command line that makes a guest run the tests with `runtime`.
pub(crate) fn inside(runtime: &str, binaries: &Binaries, words: &[String]) -> Vec<String> {
    let Binaries { unit, protocol, containerd } = binaries;
    let own = std::env::current_exe().unwrap();
    let paths = [unit, protocol, containerd].map(|path| path.display().to_string());
    let mut command = vec![own.display().to_string(), INSIDE.to_owned(), runtime.to_owned()];
    command.extend(paths);
    command.extend_from_slice(words);
    command
}

/// Runs the tests of resources on this machine, with crun; why they have failed.
pub(crate) fn here(binaries: &Binaries, words: &[String]) -> Option<String> {
    let chosen: Vec<_> =
        words.iter().filter(|word| word.contains("::")).map(String::as_str).collect();
    if words.len() > chosen.len() {
        return None; // rows of the containerd suite
    }
    let names = if words.is_empty() { vec!["stats::", "resources::"] } else { chosen };
    let _hierarchies = PlainHierarchies::mount();
    let mut tests = Command::new(&binaries.protocol);
    tests.args(["--test-threads=2", "--color=never"]).args(&names);
    let output = tests.env("BERTH_TEST_RUNTIME", "crun").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().for_each(|line| println!("here | {line}"));
    (!output.status.success()).then(|| format!("crun on this machine: {}", output.status))
}

/// One run of a test binary.
struct Part {
    name: &'static str,
    command: Command,
    /// Names that were asked for and that no test has: a renamed module is not passed over.
    missing: Vec<String>,
}

/// Runs what `arguments`, made by [`inside`], ask for, one part after the other.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    println!("{BOOTED}");
    let [runtime, unit, protocol, containerd, words @ ..] = arguments else {
        println!("{ENDED}wrong arguments {arguments:?}");
        return ExitCode::FAILURE;
    };
    let binaries =
        Binaries { unit: unit.into(), protocol: protocol.into(), containerd: containerd.into() };
    let mut failed = Vec::new();
    for Part { name: kind, mut command, missing } in plan(runtime, &binaries, words) {
        let began = Instant::now();
        if let Some(name) = missing.first() {
            failed.push(format!("{kind} (there is no {name})"));
            continue;
        }
        println!("cgroup2: {kind}: {:?}", command.get_args().collect::<Vec<_>>());
        let status = command.status().map_err(|error| error.to_string());
        let took = began.elapsed().as_secs();
        match status {
            Ok(status) if status.success() => println!("cgroup2: {kind}: ok after {took} s"),
            Ok(status) => failed.push(format!("{kind} ({status})")),
            Err(error) => failed.push(format!("{kind} ({error})")),
        }
    }
    let verdict = if failed.is_empty() { "ok".to_owned() } else { failed.join(", ") };
    println!("{ENDED}{verdict}");
    ExitCode::SUCCESS
}

fn plan(runtime: &str, binaries: &Binaries, words: &[String]) -> Vec<Part> {
    let (names, rows): (Vec<_>, Vec<_>) =
        words.iter().map(String::as_str).partition(|word| word.contains("::"));
    let harness = |name, binary: &Path, names: &[&str]| {
        let mut command = Command::new(binary);
        command.args(["--test-threads=4", "--color=never"]).args(names);
        command.env("BERTH_TEST_RUNTIME", runtime).env(SLOW, "5");
        let missing = names.iter().filter(|name| !has(binary, name));
        Part { name, command, missing: missing.map(|name| (*name).to_owned()).collect() }
    };
    let suite = |words: &[&str]| {
        let mut command = Command::new(&binaries.containerd);
        command.args(words).env(SLOW, "5");
        Part { name: "containerd", command, missing: Vec::new() }
    };
    let mut parts = Vec::new();
    if words.is_empty() {
        parts.push(harness("unit tests", &binaries.unit, UNIT));
        parts.push(harness("protocol tests", &binaries.protocol, PROTOCOL));
        let own = CONTAINERD.iter().filter(|(name, _)| *name == runtime);
        parts.extend(own.flat_map(|(_, runs)| runs.iter()).map(|words| suite(words)));
    }
    for name in names {
        let both =
            [("unit tests", &binaries.unit), ("protocol tests", &binaries.protocol)].into_iter();
        let found: Vec<_> = both.clone().filter(|(_, binary)| has(binary, name)).collect();
        // Where none has it, that is what fails.
        let chosen = if found.is_empty() { both.collect() } else { found };
        parts.extend(chosen.into_iter().map(|(kind, binary)| harness(kind, binary, &[name])));
    }
    if !rows.is_empty() {
        parts.push(suite(&[&rows[..], &[runtime]].concat()));
    }
    parts
}

/// Whether a test in `binary` has `name` in its own.
fn has(binary: &Path, name: &str) -> bool {
    let output = Command::new(binary).args(["--list", name]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(": test\n"))
}
