//! Ends every process of a cgroup, and none outside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cgroup::file::{Reader, absent, write};
use crate::cgroup::{Cgroup, tree};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};

/// How many processes are held at a time, each by one descriptor.
const BATCH: usize = 128;

impl Cgroup {
    /// Whether its processes are kept from running, or are about to be: itself or one around it is
    /// frozen.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not say it.
    pub(crate) fn is_frozen(&self) -> Result<bool> {
        let mut reader = Reader::new();
        let mut says = |path: &Path, lines: &[&str]| -> Result<bool> {
            let text = reader.list(path).map_err(Error::io("read", path))?;
            Ok(text.is_some_and(|text| text.lines().any(|found| lines.contains(&found))))
        };
        if let Some(dir) = self.controller("freezer") {
            return says(&dir.join("freezer.state"), &["FROZEN", "FREEZING"]);
        }
        let Some(dir) = &self.v2 else { return Ok(false) };
        Ok(says(&dir.join("cgroup.freeze"), &["1"])?
            || says(&dir.join("cgroup.events"), &["frozen 1"])?)
    }

    /// Lets its processes run, those that a part of it keeps frozen excepted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn thaw(&self) -> Result<()> {
        let file = match (self.controller("freezer"), &self.v2) {
            (Some(dir), _) => (dir.join("freezer.state"), "THAWED"),
            (None, Some(dir)) => (dir.join("cgroup.freeze"), "0"),
            (None, None) => return Ok(()),
        };
        absent(write(&file.0, file.1)).map(drop).map_err(Error::io("thaw", &file.0))
    }

    /// Lets killed processes take their signal, in nested cgroups too; v2 does so by itself.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn thaw_killed(&self) -> Result<()> {
        let Some(dir) = self.controller("freezer") else { return Ok(()) };
        thaw(dir).map_err(Error::io("thaw", dir))
    }
}

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
