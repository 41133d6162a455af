//! The daemon's only wait: takes the exit of every child and gives it to whoever has claimed it.
//!
//! As a sub-reaper the daemon inherits the init and exec processes when the runtime command that
//! made them ends, and orphans that nobody knows. Exits go to one of three places: a runtime
//! command that [`Reaper::spawn`] started, a process that a [`Watch`] claimed, or every open watch,
//! in case the pid is announced only after the process has died.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::SystemTime;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::meters::Meters;
use crate::sys::child::{self, FileLimit, Streams};
use crate::sys::pidfd::pidfd_open;
use crate::sys::program::Starting;
use crate::trace::Tracer;

/// How and when a process ended. `status` is 0 to 255, or 128 + signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The code that containerd shows.
    pub(crate) status: u32,
    /// When the daemon reaped the process.
    pub(crate) at: SystemTime,
    /// Its place among all that the daemon has reaped; [`UNSEEN`] if it was not.
    pub(crate) nth: u64,
}

/// Behind every exit.
pub(crate) const UNSEEN: u64 = u64::MAX;

impl Exit {
    /// An exit that nobody saw, as a process killed by SIGKILL would have it, now.
    pub(crate) fn killed() -> Self {
        Self { status: 137, at: SystemTime::now(), nth: UNSEEN }
    }
}

type Early = RefCell<Vec<(Pid, Exit)>>;

/// Hands out exits; cheap to clone, all clones are one reaper.
#[derive(Clone, Default)]
pub(crate) struct Reaper(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// What the children get, where the daemon has taken more for itself.
    files: Option<FileLimit>,
    meters: Rc<Meters>,
    tracer: Tracer,
    claimed: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
    /// Those of [`Reaper::spawn_apart`].
    apart: RefCell<HashSet<Pid>>,
    watches: RefCell<Vec<Weak<Early>>>,
    /// Children of [`Reaper::spawn`] that are not known to be programs of their own.
    starting: RefCell<Vec<(Starting, Failure)>>,
    /// How many exits there were.
    reaped: Cell<u64>,
}

/// Why a child never became the program that it was to be: an `errno`, or 0.
type Failure = Rc<Cell<i32>>;

/// A child that a claim is open for: its exit arrives at `exit`, once.
pub(crate) struct Child {
    /// Its pid; it stays this child's own until `exit` has arrived.
    pub(crate) pid: Pid,
    /// Resolves when the child was reaped.
    pub(crate) exit: oneshot::Receiver<Exit>,
    failure: Option<Failure>,
}

impl Child {
    /// One that was reaped already.
    fn ended(pid: Pid, exit: Exit) -> Self {
        let (sender, receiver) = oneshot::channel();
        let _ = sender.send(exit); // the other end is here
        Self { pid, exit: receiver, failure: None }
    }

    /// Why its program could not be started, if it could not; to be asked behind its exit.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        let errno = self.failure.as_ref().map_or(0, |failure| failure.get());
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }
}

/// Open while a runtime command makes a process, so that an exit before its pid is known is kept.
pub(crate) struct Watch {
    reaper: Reaper,
    early: Rc<Early>,
}

impl Reaper {
    /// A reaper whose children get the limit `files`.
    pub(crate) fn new(files: Option<FileLimit>) -> Self {
        Self(Rc::new(Inner { files, ..Inner::default() }))
    }

    /// What the daemon counts; whoever starts a child has something to count.
    pub(crate) fn meters(&self) -> &Rc<Meters> {
        &self.0.meters
    }

    /// What tells of the daemon's work elsewhere; whoever starts a child has something to tell.
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// Reaps all children that have ended; call it on SIGCHLD.
    pub(crate) fn reap(&self) {
        loop {
            let no_groups = self.0.apart.borrow().is_empty();
            let reaped = match no_groups {
                true => child::reap(),
                false => child::reap_after(|pid, status| self.end_group(pid, status)),
            };
            match reaped {
                Ok(Some((pid, status))) => self.deliver(pid, self.exit(status)),
                Ok(None) => return,
                Err(error) => return log::error!("cannot wait for children: {error}"),
            }
        }
    }

    /// As [`Reaper::reap`], of its own children alone: a test is one among others in its process.
    #[cfg(test)]
    pub(crate) fn reap_own(&self) {
        let claimed: Vec<Pid> = self.0.claimed.borrow().keys().copied().collect();
        for pid in claimed {
            if let Some(status) = child::is_zombie(pid) {
                self.end_group(pid, status);
                let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.get()), None);
                self.deliver(pid, self.exit(status));
            }
        }
    }

    fn exit(&self, status: u32) -> Exit {
        self.0.reaped.set(self.0.reaped.get() + 1);
        Exit { status, at: SystemTime::now(), nth: self.0.reaped.get() }
    }

    fn deliver(&self, pid: Pid, exit: Exit) {
        self.note_start(pid);
        if let Some(owner) = self.0.claimed.borrow_mut().remove(&pid) {
            let _ = owner.send(exit); // an owner that went away needs no exit
            return;
        }
        for early in self.0.watches.borrow().iter().filter_map(Weak::upgrade) {
            early.borrow_mut().push((pid, exit));
        }
    }

    /// Lets go of what children needed that are programs by now, and notes why `ended` is none.
    fn note_start(&self, ended: Pid) {
        self.0.starting.borrow_mut().retain(|(child, failure)| {
            if child.pid == ended {
                let error = child.failure();
                failure.set(error.and_then(|error| error.raw_os_error()).unwrap_or(0));
                return false;
            }
            !child.is_over() || child.failure().is_some()
        });
    }

    /// Starts a runtime command or helper; see [`child::spawn`] for what it gets and inherits. Why it could
    /// not be started is known behind its exit: [`Child::failure`].
    pub(crate) fn spawn(
        &self,
        program: &Path,
        args: &[impl AsRef<OsStr>],
        cwd: &Path,
        env: &[(String, String)],
        streams: Streams,
    ) -> io::Result<Child> {
        let starting = child::spawn(program, args, cwd, env, streams, self.0.files)?;
        let mut child = self.claim(starting.pid); // no await since the fork: the exit cannot have been taken yet
        let failure = Failure::default();
        child.failure = Some(failure.clone());
        self.0.starting.borrow_mut().push((starting, failure));
        Ok(child)
    }

    /// Starts a program on its own account; see [`child::spawn_apart`]. What it has started is killed
    /// with it, unless it ends by itself and with status 0.
    pub(crate) fn spawn_apart(
        &self,
        program: &Path,
        args: &[impl AsRef<OsStr>],
        cwd: &Path,
        env: &[(&str, &str)],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Child> {
        let pid = child::spawn_apart(program, args, cwd, env, descriptors, self.0.files)?;
        self.0.apart.borrow_mut().insert(pid);
        Ok(self.claim(pid)) // as above
    }

    /// Called while `pid` is a zombie, whose group's number cannot be another's.
    fn end_group(&self, pid: Pid, status: u32) {
        if self.0.apart.borrow_mut().remove(&pid) && status != 0 {
            child::kill_group(pid);
        }
    }

    /// The [`Exit::nth`] of the last exit so far.
    pub(crate) fn reaped(&self) -> u64 {
        self.0.reaped.get()
    }

    /// Opens a watch. Do so before the command runs that makes the process.
    pub(crate) fn watch(&self) -> Watch {
        let early = Rc::new(Early::default());
        self.0.watches.borrow_mut().push(Rc::downgrade(&early));
        Watch { reaper: self.clone(), early }
    }

    fn claim(&self, pid: Pid) -> Child {
        let (sender, exit) = oneshot::channel();
        self.0.claimed.borrow_mut().insert(pid, sender);
        Child { pid, exit, failure: None }
    }
}

impl Watch {
    /// Binds `pid`, which the runtime named: its pidfd and its exit, also one that came before.
    ///
    /// The process was there when whoever named it had not been reaped, so the first exit behind `named`,
    /// the [`Exit::nth`] of that one, is its own, whoever has the number by now. Else a living process is
    /// bound first: an exit that was kept under the same number is then another's. But a command that ends
    /// hands its children over before it can be reaped itself, so that the process may come first; then
    /// nobody has the number, or somebody who is not ours to wait for, and the last exit under it counts.
    /// Without one, the runtime named a stranger.
    ///
    /// # Errors
    /// [`Error::Sys`] if `pid` is no process that this daemon can wait for, or one that is claimed:
    /// whoever has it would never hear of its end.
    pub(crate) fn claim(self, pid: Pid, named: u64) -> Result<(Child, Option<OwnedFd>)> {
        let early = self.early.borrow();
        let mut kept = early.iter().filter(|(early, _)| *early == pid).map(|(_, exit)| *exit);
        if let Some(exit) = kept.clone().find(|exit| exit.nth > named) {
            return Ok((Child::ended(pid, exit), None));
        }
        let stranger = match pidfd_open(pid) {
            // Between here and the next await nothing is reaped, so the claim is of this process.
            Ok(pidfd) if self.is_free(pid) && child::is_ours(pidfd.as_fd()) => {
                return Ok((self.reaper.claim(pid), Some(pidfd)));
            }
            Ok(_) => Error::Sys {
                action: "wait for the process that the runtime named",
                source: io::Error::from_raw_os_error(libc::ECHILD),
            },
            Err(error) => Error::sys("bind the process that the runtime named")(error),
        };
        kept.next_back().map(|exit| (Child::ended(pid, exit), None)).ok_or(stranger)
    }

    fn is_free(&self, pid: Pid) -> bool {
        !self.reaper.0.claimed.borrow().contains_key(&pid)
    }
}

impl Drop for Watch {
    /// Without this a daemon whose processes are all claimed would keep a record of each.
    fn drop(&mut self) {
        let ours = Rc::as_ptr(&self.early);
        self.reaper.0.watches.borrow_mut().retain(|watch| watch.as_ptr() != ours);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_leaves_nothing_behind() {
        let reaper = Reaper::default();
        let first = reaper.watch();
        drop(reaper.watch());
        assert_eq!(reaper.0.watches.borrow().len(), 1);
        let pid = Pid::new(i32::MAX).unwrap();
        reaper.deliver(pid, Exit::killed());
        assert!(first.claim(pid, UNSEEN).is_ok(), "the other one is still told");
        assert_eq!(reaper.0.watches.borrow().len(), 0);
    }

    #[test]
    fn a_process_has_one_owner() {
        let reaper = Reaper::default();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let streams = [null(), null(), null()];
        let spawned = reaper.spawn(Path::new("/bin/sleep"), &["9"], Path::new("/"), &[], streams);
        let mut child = spawned.unwrap();
        assert!(reaper.watch().claim(child.pid, UNSEEN).is_err());
        child::kill_group(child.pid);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid.get()), None);
        let exit = Exit::killed();
        reaper.deliver(child.pid, exit);
        assert_eq!(child.exit.try_recv(), Ok(exit));
    }

    #[test]
    fn an_exit_is_that_of_the_process_that_was_named() {
        let living = Pid::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let gone = Pid::new(i32::MAX).unwrap();
        let mut sleep = std::process::Command::new("/bin/sleep").arg("9").spawn().unwrap();
        let child = Pid::new(i32::try_from(sleep.id()).unwrap()).unwrap();
        // Places and statuses of exits under that pid, the place of whoever named it, and whose it is;
        // this test is no child of itself, so that it cannot be claimed.
        type Exits = &'static [(u64, u32)];
        let cases: [(_, _, Exits, _, _); 9] = [
            ("ended behind", gone, &[(5, 1)], 4, Some(1)),
            ("ended before", gone, &[(3, 1)], 4, Some(1)),
            ("another before", gone, &[(3, 1), (5, 2)], 4, Some(2)),
            ("another behind", gone, &[(5, 1), (6, 2)], 4, Some(1)),
            ("never there", gone, &[], 4, None),
            ("used again", living, &[(3, 1), (5, 2)], 4, Some(2)),
            ("handed over first, and used again", living, &[(2, 7), (3, 1)], 4, Some(1)),
            ("a stranger's", living, &[], 4, None),
            ("lives", child, &[(3, 1)], 4, None),
        ];
        for (name, pid, exits, named, expected) in cases {
            let reaper = Reaper::default();
            let watch = reaper.watch();
            for &(nth, status) in exits {
                reaper.deliver(pid, Exit { status, at: SystemTime::now(), nth });
            }
            let claimed = watch.claim(pid, named).ok();
            let status =
                claimed.and_then(|(mut child, _)| Some(child.exit.try_recv().ok()?.status));
            assert_eq!(status, expected, "{name}");
        }
        sleep.kill().and_then(|()| sleep.wait()).unwrap();
    }
}
