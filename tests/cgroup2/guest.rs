//! A guest: user-mode-linux with this machine's files, watched from its first line to its last.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::parts::{BOOTED, ENDED};

/// The kernel that is a program.
pub(crate) const PROGRAM: &str = "linux.uml";

/// From the start to [`BOOTED`]; it takes two seconds.
const BOOT: Duration = Duration::from_secs(60);

/// The longest time without a line.
const SILENCE: Duration = Duration::from_secs(300);

/// All of it; it takes minutes.
const ALL: Duration = Duration::from_secs(1200);

/// The lines that a failure shows.
const TAIL: usize = 40;

/// Boots a guest that runs `inside`, and prints what it prints with `name` before each line.
///
/// # Errors
/// Why it counts as failed, with its last lines.
pub(crate) fn run(name: &str, linux: &Path, shim: &Path, inside: &[String]) -> Result<(), String> {
    let mut child = boot(linux, shim, inside);
    let verdict = watch(name, &mut child);
    // Whatever it is doing: with this one goes its PID namespace, so every process of the guest.
    let _ = child.kill();
    let status = child.wait().unwrap();
    verdict.map_err(|reason| format!("the guest with {name} ({status}): {reason}"))
}

/// The guest lives in PID and mount namespaces of its own. The first ends with its first process,
/// which ends with `unshare`, which ends with the thread that started it; what it writes, memory file
/// and management socket, is in a file system that goes with the second.
fn boot(linux: &Path, shim: &Path, inside: &[String]) -> Child {
    let init = concat!("init=", env!("CARGO_MANIFEST_DIR"), "/tests/cgroup2/init.sh");
    let shared = env!("CARGO_TARGET_TMPDIR");
    let own = Path::new(shared).join("cgroup2");
    fs::create_dir_all(&own).unwrap();
    let script = "mount -t tmpfs tmpfs \"$TMPDIR\" && exec env LD_PRELOAD=\"$0\" \"$@\" 2>&1";
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "sh", "-c", script]).arg(shim).arg(linux);
    command.args(["mem=3072M", "root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro"]);
    command.args(["console=tty0", "con=null", "con0=fd:0,fd:1", "loglevel=3", "panic=-1"]);
    command.arg(format!("uml_dir={}/", own.display())).args([init, "--", shared]).args(inside);
    command.env("TMPDIR", own).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().expect("setpriv does not start")
}

/// Builds `ptrace.c`, without which the guest does not boot on some processors.
pub(crate) fn build_shim() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cgroup2/ptrace.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cgroup2-ptrace.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    let status = cc.status().expect("cc does not start");
    assert!(status.success(), "cc: {status}");
    library
}

/// Prints the lines of the guest until it says how it ended.
fn watch(name: &str, child: &mut Child) -> Result<(), String> {
    let lines = lines(child);
    let began = Instant::now();
    let (mut booted, mut tail) = (false, VecDeque::new());
    let failed = loop {
        let patience = if booted { SILENCE } else { BOOT.saturating_sub(began.elapsed()) };
        match lines.recv_timeout(patience.min(ALL.saturating_sub(began.elapsed()))) {
            Ok(line) => {
                // Before it is up there are only the words of a kernel.
                booted |= line == BOOTED;
                if booted {
                    println!("{name} | {line}");
                }
                match line.strip_prefix(ENDED) {
                    Some("ok") => return Ok(()),
                    Some(failed) => break format!("failed: {failed}"),
                    None => tail.push_back(line),
                }
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Err(RecvTimeoutError::Disconnected) => break "it went away before the end".to_owned(),
            Err(RecvTimeoutError::Timeout) if !booted => {
                break format!("it did not come up within {BOOT:?}");
            }
            Err(RecvTimeoutError::Timeout) if began.elapsed() < ALL => {
                break format!("not a word for {SILENCE:?}");
            }
            Err(RecvTimeoutError::Timeout) => break format!("not through after {ALL:?}"),
        }
    };
    let tail = tail.make_contiguous().join("\n    ");
    Err(format!("{failed}; its last lines:\n    {tail}"))
}

/// What it prints, line by line, without the carriage returns of a console.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    // It ends when the last process of the guest does, or when nobody listens.
    thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
