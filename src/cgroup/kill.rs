//! Ends every process of a cgroup, and none outside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cgroup::file::{absent, write};
use crate::cgroup::tree;
use crate::ids::Pid;
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};

/// How many processes are held at a time, each by one descriptor.
const BATCH: usize = 128;

/// Sends SIGKILL to each of `pids` that is, by a second look, still in `dir` or nested in it.
///
/// A pid that was in the list may have ended and be somebody else's. The descriptor comes first
/// and the second look after it: if the pid is listed then and its process is still the one behind
/// the descriptor, that one is a member; if it is not, the signal reaches nobody.
pub(super) fn each(dir: &Path, pids: &[Pid]) -> io::Result<()> {
    for batch in pids.chunks(BATCH) {
        let mut held: Vec<(Pid, OwnedFd)> = Vec::with_capacity(batch.len());
        for &pid in batch {
            held.extend(gone(pidfd_open(pid))?.map(|fd| (pid, fd)));
        }
        let Some(members) = tree::processes(dir)? else { return Ok(()) };
        for (pid, fd) in held {
            if members.binary_search(&pid).is_ok() {
                gone(pidfd_send_signal(fd.as_fd(), libc::SIGKILL))?;
            }
        }
    }
    Ok(())
}

/// Stops the processes of a v1 freezer cgroup, so that none forks while they are counted. The
/// kernel needs a moment for it, which is not waited for: this is a help, no condition.
pub(super) fn freeze(dir: &Path) -> io::Result<()> {
    absent(write(&dir.join("freezer.state"), "FROZEN")).map(drop)
}

/// Lets the processes of a v1 freezer cgroup go on, nested ones included; only then do frozen ones
/// take their SIGKILL.
pub(super) fn thaw(dir: &Path) -> io::Result<()> {
    for dir in tree::nested(dir)? {
        absent(write(&dir.join("freezer.state"), "THAWED"))?;
    }
    Ok(())
}

/// Turns the errors of a process that has ended into `None`. `EINVAL` or `ENOENT` (Linux 6.9):
/// what has the pid now is a thread.
fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL)) => Ok(None),
        result => absent(result),
    }
}
