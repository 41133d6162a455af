//! The worked example of the contributors' page, carried out: a pod that is stuck, and what berth says of it. What is
//! printed has to be what the page shows, but for numbers, times and the socket's name.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use crate::machine::Machine;
use crate::{command, commands, host, read};

const PAGE: &str = ".github/CONTRIBUTING.md";
/// Where the page puts its program.
const RUNTIME: &str = "/usr/local/bin/runc-hangs";
/// The shim's pid on the page.
const PID: &str = "64";

/// The pod, once it is there.
#[derive(Default)]
pub(crate) struct Stuck(RefCell<Option<Child>>);

/// Runs one command of the example and compares what it prints.
pub(crate) fn check(machine: &Machine, text: &str) {
    machine.containerd();
    begin(machine);
    let shown = shown(text);
    let shim = machine.shim("web");
    let real = text.replace(&format!(" {PID}"), &format!(" {}", shim));
    let mut printed = Vec::new();
    let same = command::poll(|| {
        printed = plain(&machine.well("/", &real, ""));
        (printed == shown).then_some(())
    });
    assert!(
        same.is_some(),
        "`{real}` prints\n{}\nand not\n{}",
        printed.join("\n"),
        shown.join("\n")
    );
}

/// The columns that the page shows are those that there are.
pub(crate) fn check_columns(text: &str, printed: &str) {
    let (shown, printed) = (shown(text), plain(printed));
    assert_eq!(shown[0], printed[0], "the columns on {PAGE}");
    let columns = |line: &str| line.split(' ').count();
    assert_eq!(columns(&shown[1]), columns(&printed[1]), "the line on {PAGE}");
}

/// Starts the pod `web` with the page's program and has an exec hang, long enough to be worth a line.
fn begin(machine: &Machine) {
    let mut stuck = machine.stuck.0.borrow_mut();
    if stuck.is_some() {
        return;
    }
    let blocks = commands::blocks(&read(PAGE), "text");
    let program = blocks.into_iter().find(|block| block.starts_with("#!")).expect("its program");
    fs::write(RUNTIME, program).unwrap();
    fs::set_permissions(RUNTIME, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all("/etc/berth").unwrap();
    fs::write("/etc/berth/config.toml", format!("runtime = {RUNTIME:?}\n")).unwrap();
    machine.pod("web");
    let exec =
        machine.spawn("ctr -n k8s.io task exec --exec-id probe web echo hello", "/run/exec.log");
    *stuck = Some(exec);
    command::until("it is told that the exec takes long", || {
        let health = machine.well(
            "/",
            "curl -s --unix-socket /run/berth/k8s.io/web.sock http://berth/healthz",
            "",
        );
        health.contains("runs for").then_some(())
    });
}

/// Lets the exec fail, as a runtime does that is killed.
pub(crate) fn end(machine: &Machine) {
    let Some(mut exec) = machine.stuck.0.take() else { return };
    let processes = host::processes();
    let is_hung = |process: &&host::Process| process.describe().contains(RUNTIME);
    for host::Process { pid, .. } in processes.iter().filter(is_hung) {
        machine.run("/", &format!("kill -KILL {pid} $(ps -o pid= --ppid {pid})"));
    }
    command::wait(&mut exec, "ctr task exec");
}

/// What the page shows below a command.
fn shown(text: &str) -> Vec<String> {
    let page = read(PAGE);
    let blocks = commands::blocks(&page, "console");
    let prompt = format!("$ {text}");
    let lines = blocks.iter().find_map(|block| {
        let mut lines = block.lines().skip_while(|line| **line != prompt);
        lines.next()?;
        Some(lines.take_while(|line| !line.starts_with("$ ")).collect::<Vec<_>>().join("\n"))
    });
    plain(&lines.unwrap_or_else(|| panic!("{PAGE} has no `{prompt}`")))
}

/// Lines without what differs from run to run: numbers, digests, times, the width of columns.
fn plain(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let digest = |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        if word.split(['/', '"']).any(digest) {
            return "DIGEST".to_owned();
        }
        let mut plain = String::new();
        for letter in word.chars() {
            let letter = if letter.is_ascii_digit() { '0' } else { letter };
            if letter != '0' || !plain.ends_with('0') {
                plain.push(letter);
            }
        }
        plain.replace("0m0s", "0s").replace("0h0m", "0s")
    };
    let lines =
        text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}
