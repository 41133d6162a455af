//! A container's cgroup: found once after `create`, then counted, measured, ended and removed.
//!
//! Three layouts: v2 alone, v1 with a hierarchy for each controller, and hybrid: v1, and a v2
//! hierarchy without controllers beside it. All calls are plain file operations that do not wait.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hierarchy;
mod kill;
mod make;
mod oom;
pub(crate) mod stats;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(crate) use self::hierarchy::Hierarchies;
pub(crate) use self::make::slice_path;
pub(crate) use self::oom::{Limit, OomWatch, Toll};
pub(crate) use self::tree::Removal;
use crate::error::{Error, Result};
use crate::ids::Pid;

/// The v1 hierarchies to look for processes in, the best first. Every runtime uses these.
const COUNTED_IN: [&str; 3] = ["pids", "memory", "freezer"];

/// The directories of a container's own cgroup. Plain data: it can be written down, and another
/// process of this host can kill and remove by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// On a v1 or hybrid host: a directory in each hierarchy where the container has its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    v1: Vec<Directory>,
    /// On a v2 host all there is; on a hybrid host the one without controllers, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v2: Option<PathBuf>,
}

/// A cgroup's directory in one v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    /// What the hierarchy is for: `cpu,cpuacct`, `name=systemd`.
    controllers: Box<str>,
    path: PathBuf,
}

impl Directory {
    fn controls(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|own| own == controller)
    }
}

impl Cgroup {
    /// The cgroup of a just created container, by its init process. Whoever asks more than once
    /// keeps a [`Hierarchies`] and asks that.
    ///
    /// `None` if it has none to itself: hierarchy by hierarchy, the root, the shim's own cgroup
    /// and those around it are left out, so that nothing ever kills or removes strangers. `None`
    /// also for a process that has ended.
    ///
    /// # Errors
    /// [`Error::Io`] if procfs cannot be read.
    pub(crate) fn of(pid: Pid) -> Result<Option<Self>> {
        Hierarchies::read()?.cgroup_of(pid)
    }

    /// Every process, those of nested cgroups too, sorted; `None` once the cgroup is gone.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub(crate) fn pids(&self) -> Result<Option<Vec<Pid>>> {
        for dir in self.counted_in() {
            let pids = tree::processes(dir).map_err(Error::io("list the processes of", dir))?;
            if pids.is_some() {
                return Ok(pids);
            }
        }
        Ok(None)
    }

    /// Whether any process is left, in nested cgroups too. On v2 the kernel knows by itself.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub(crate) fn populated(&self) -> Result<bool> {
        if let (true, Some(dir)) = (self.v1.is_empty(), &self.v2) {
            let path = dir.join("cgroup.events");
            let mut reader = file::Reader::new();
            let text = reader.list(&path).map_err(Error::io("read", &path))?;
            return Ok(text.is_some_and(|text| text.lines().any(|line| line == "populated 1")));
        }
        Ok(self.pids()?.is_some_and(|pids| !pids.is_empty()))
    }

    /// Sends SIGKILL to every process, frozen ones included; does not wait for their end.
    ///
    /// With `cgroup.kill` (v2, Linux 5.14) that is all of them at once. Without it this is one
    /// pass, which a process that forks may outrun: repeat while [`Cgroup::populated`].
    ///
    /// # Errors
    /// [`Error::Io`] if a process cannot be killed, or if the shim itself is one of them: then
    /// nothing is killed.
    pub(crate) fn kill(&self) -> Result<()> {
        for dir in self.counted_in() {
            let action = "kill the processes of";
            let Some(pids) = tree::processes(dir).map_err(Error::io(action, dir))? else {
                continue;
            };
            if pids.iter().any(|pid| pid.wire() == std::process::id()) {
                return Err(Error::io(action, dir)(io::Error::other("the shim is one of them")));
            }
            return self.kill_all(dir, &pids).map_err(Error::io(action, dir));
        }
        Ok(())
    }

    /// Kills until no process is left, for callers that have nothing else to do meanwhile.
    ///
    /// # Errors
    /// [`Error::Deadline`] if processes are left then; those of [`Cgroup::kill`].
    pub(crate) fn kill_and_wait(&self, deadline: Instant) -> Result<()> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(1);
        while self.populated()? {
            self.kill()?;
            if !self.populated()? {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("killing the processes of cgroup {}", self.name().display());
                return Err(Error::Deadline { what, limit: deadline - begin });
            }
            std::thread::sleep(pause.min(left));
            pause = (2 * pause).min(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Removes the directories, nested ones first. [`Removal::Busy`] if a process is left, or
    /// ended just now: then try again, until a deadline of the caller's.
    ///
    /// # Errors
    /// [`Error::Io`] for anything but busy or already gone; the other directories are tried first.
    pub(crate) fn remove(&self) -> Result<Removal> {
        let mut result = Ok(Removal::Gone);
        for dir in self.v1.iter().map(|dir| &dir.path).chain(&self.v2) {
            match tree::remove(dir) {
                Ok(Removal::Gone) => {}
                Ok(Removal::Busy) => result = result.and(Ok(Removal::Busy)),
                Err(source) => result = Err(Error::io("remove cgroup", dir)(source)),
            }
        }
        result
    }

    /// The directories that list the processes, the best first: any one that exists is complete.
    fn counted_in(&self) -> impl Iterator<Item = &Path> {
        let best = COUNTED_IN.iter().filter_map(|controller| self.controller(controller));
        best.chain(self.v1.iter().map(|dir| dir.path.as_path())).chain(self.v2.as_deref())
    }

    /// The directory for a v1 controller.
    fn controller(&self, name: &str) -> Option<&Path> {
        let dir = self.v1.iter().find(|dir| dir.controls(name))?;
        Some(&dir.path)
    }

    fn kill_all(&self, dir: &Path, pids: &[Pid]) -> io::Result<()> {
        let at_once = match &self.v2 {
            Some(dir) => file::write(&dir.join("cgroup.kill"), "1").is_ok(),
            None => false,
        };
        if at_once && self.v1.is_empty() {
            return Ok(());
        }
        let Some(freezer) = self.controller("freezer") else { return kill::each(dir, pids) };
        // Frozen ones die on thawing and not before, so none of them runs in between.
        let frozen = kill::freeze(freezer);
        let killed = kill::each(dir, pids);
        kill::thaw(freezer).and(frozen).and(killed)
    }

    /// A directory to name this cgroup by.
    fn name(&self) -> &Path {
        self.counted_in().next().unwrap_or(Path::new("?"))
    }
}

#[cfg(test)]
mod tests;
