//! Where the shims run: a tmpfs of this run, which is gone afterwards however the run ends.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};

use crate::host::PlainHierarchies;
use crate::support::RUN;

/// The first word of the process that measures.
pub(crate) const WORKER: &str = "worker";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the worker on a tmpfs. SIGINT and SIGTERM reach only this process: it tells the worker by
/// closing its standard input, so that the worker can take down what it has started.
pub(crate) fn supervise(words: &[String], plain_hierarchies: bool) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: it starts containers: run it as root");
        return ExitCode::FAILURE;
    }
    let _lock = lock();
    let _hierarchies = plain_hierarchies.then(PlainHierarchies::mount);
    let base = PathBuf::from(format!("/run/berth-bench-{}", std::process::id()));
    std::fs::create_dir(&base).unwrap();
    mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    // What others do on the machine meanwhile costs wall clock; all that is compared goes before it.
    let mut worker = Command::new("nice");
    worker.args(["-n", "-15"]).arg(std::env::current_exe().unwrap());
    worker.arg(WORKER).args(words).env(RUN, &base).stdin(Stdio::piped()).process_group(0);
    let status = worker.spawn().map(attend);
    umount2(&base, MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_dir(&base).unwrap();
    status.unwrap()
}

/// Waits until no other run measures: two at once would measure each other. The lock is on the
/// directory itself, so that no file remains.
fn lock() -> Flock<File> {
    let file = || File::open("/run").unwrap();
    Flock::lock(file(), FlockArg::LockExclusiveNonblock).unwrap_or_else(|_| {
        eprintln!("bench: waiting for another run");
        Flock::lock(file(), FlockArg::LockExclusive).unwrap()
    })
}

/// Waits for the worker's end.
fn attend(mut worker: Child) -> ExitCode {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD];
    let signals = SigSet::from_iter(signals);
    signals.thread_block().unwrap(); // only now: the worker must not inherit it
    let status = loop {
        if let Some(status) = worker.try_wait().unwrap() {
            break status;
        }
        if signals.wait().unwrap() != Signal::SIGCHLD {
            drop(worker.stdin.take());
        }
    };
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// In the worker: takes the end of standard input as the wish to stop.
pub(crate) fn heed_the_supervisor() {
    thread::spawn(|| {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        INTERRUPTED.store(true, Ordering::SeqCst);
    });
}

/// Ends the run, by a panic that clears away what was started, if that is wished.
#[track_caller]
pub(crate) fn check_interrupt() {
    assert!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
}
