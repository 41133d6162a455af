//! What a table has to say of the machine and the programs.

use std::fs;
use std::process::Command;

use crate::contest::Subject;

/// How many processes wanted to run during the last minute: others than the benchmark's, before it
/// begins.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Date, processor, `load`, kernel and runtime, and a line for the version of each shim.
pub(crate) fn describe(subjects: &[Subject], runtime: &str, load: &str) -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = thread_count();
    let mut text = format!(
        "{}; {count} × {}, load before {load}; Linux {}; {}\n",
        first_line("date", "-u", "+%F"),
        model.trim_start_matches(['\t', ' ', ':']),
        first_line("uname", "-r", "-s").trim_start_matches("Linux "),
        version(runtime, "--version"),
    );
    for subject in subjects.iter().filter(|subject| !subject.is_bare()) {
        let program = subject.program.to_string_lossy();
        text += &format!("- {}: {}, `{program}`\n", subject.name, version(&program, "-v"));
    }
    text
}

fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn first_line(program: &str, one: &str, two: &str) -> String {
    let output = Command::new(program).args([one, two]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// The line that names a version, in whatever way the program says it.
fn version(program: &str, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return "?".into() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("Version:"));
    line.or(text.lines().next()).unwrap_or("?").trim().to_owned()
}
