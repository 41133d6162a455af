//! `delete`: cleans up after a daemon that is dead, from the bundles alone.
//!
//! containerd runs it when it has lost a shim, and removes the bundle afterwards. If the daemon is
//! dead, every container of its group has lost its supervisor and is removed; if it lives, only the
//! container that was named. It never waits for a runtime longer than [`RUNTIME`]: what a hanging
//! runtime leaves, berth removes itself. Nothing that is missing is an error.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use protobuf::{Message, MessageField};

use crate::bundle::{self, Bundle, PodState, State};
use crate::cgroup::{Cgroup, Hierarchies, Removal};
use crate::cli::Flags;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, Pid};
use crate::rootfs;
use crate::runtime::{self, args};
use crate::sys::child::{self, kill_group, raise_file_limit, reap, spawn, start_time};
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};
use crate::sys::program::Starting;
use crate::wire;
use crate::{manage, sandbox, socket, start};

/// How long all runtime commands together may take; containerd gives `delete` 5 s. runsc looks again
/// whether its sandbox has ended after 0.5 s and after 1.5 s.
const RUNTIME: Duration = Duration::from_secs(2);
/// How long killed processes may take to end after that.
const PROCESSES: Duration = Duration::from_secs(1);
/// Exit status of a container whose daemon was killed: as if by SIGKILL.
const KILLED: u32 = 137;
/// What the kernel calls each `containerd-shim-NAME`.
const SHIM: &str = "containerd-shim";

/// A container that has to go.
struct Leftover {
    id: ContainerId,
    bundle: Bundle,
    state: Option<State>,
}

/// Removes the container of `flags`, and its whole group if their daemon is dead; returns what
/// containerd reads from standard output, an encoded `DeleteResponse`.
///
/// # Errors
/// [`Error::Invalid`] for an id or namespace that containerd cannot have sent; [`Error::Sys`] if too few
/// files may be opened to begin with. Failures of single steps are logged: the others are done all the same.
pub(crate) fn run(flags: &Flags) -> Result<Vec<u8>> {
    let id = ContainerId::new(&flags.id)?;
    start::may_open_files("clean up under so low a limit of open files (RLIMIT_NOFILE)")?;
    if let Err(error) = raise_file_limit() {
        log::warn!("cannot raise the limit of open files: {error}");
    }
    let dir = match &flags.bundle {
        Some(dir) => dir.clone(),
        None => std::env::current_dir().map_err(Error::sys("find the bundle"))?,
    };
    crate::log::init(dir.join("log"), id.as_str(), crate::log::level(log::LevelFilter::Info));
    let mut pid = None;
    if let Some(bundle) = dir.to_str().and_then(|dir| Bundle::open(dir).ok()) {
        let own = Leftover { id, state: bundle.state(), bundle };
        if let Some(pod) = own.bundle.pod_state() {
            pid = pod.holder.and_then(|(pid, _)| Pid::new(pid));
            remove_sandbox(&own, &pod, flags);
        } else {
            pid = own.init_pid();
            if own.state.is_none() {
                remove_unused_socket(&own, flags);
            }
            remove(group(own, flags), Instant::now() + RUNTIME + PROCESSES);
        }
    }
    let mut response = DeleteResponse::new();
    response.pid = pid.map_or(0, Pid::wire);
    response.exit_status = KILLED;
    response.exited_at = MessageField::some(wire::timestamp(SystemTime::now()));
    response.write_to_bytes().map_err(|error| Error::Sys { action: "encode", source: error.into() })
}

/// The containers to remove: `own`, and its group if their daemon does not answer any more.
fn group(own: Leftover, flags: &Flags) -> Vec<Leftover> {
    let mut all = Vec::new();
    if let Some(state) = &own.state {
        if !socket::is_alive(&state.socket, own.id.as_str()) {
            let beside = own.bundle.dir().parent();
            all = beside.map_or(Vec::new(), |dir| members(dir, &state.group));
            all.retain(|other| other.id != own.id);
            socket::remove_dead(&state.socket);
            manage::remove_dead(&state.socket, &flags.namespace, &state.group);
        }
    }
    all.push(own);
    all
}

/// Removes the socket of a daemon that died before it had anything to save: where `start` puts it
/// unless containerd says otherwise, and where the bundle's address file says that it is, if it has the
/// name that it must have. One that answers is a living daemon's.
fn remove_unused_socket(own: &Leftover, flags: &Flags) {
    let Ok(group) = start::group(&own.bundle.dir().join("config.json")) else { return };
    let group = group.as_deref().unwrap_or(own.id.as_str());
    let dir = socket::default_dir();
    let Ok(usual) = socket::path(&dir, &flags.address, &flags.namespace, group) else { return };
    let told =
        start::address(own.bundle.dir()).filter(|told| told.file_name() == usual.file_name());
    for socket in [Some(usual), told].into_iter().flatten() {
        if !socket::is_alive(&socket, own.id.as_str()) {
            socket::remove_dead(&socket);
            manage::remove_dead(&socket, &flags.namespace, group);
        }
    }
}

/// The bundles in `dir` of containers that say they are of this group.
fn members(dir: &Path, group: &str) -> Vec<Leftover> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let id = ContainerId::new(entry.file_name().to_str()?).ok()?;
            let bundle = Bundle::open(entry.path().to_str()?).ok()?;
            let state = bundle.state()?;
            (state.group == group).then_some(Leftover { id, bundle, state: Some(state) })
        })
        .collect()
}

/// Removes a sandbox that is no container, and all containers of its pod: those are elsewhere, and
/// containerd runs `delete` for none of them. Half of that would help nobody: if the daemon lives,
/// or may live as it hangs, all is left to it.
fn remove_sandbox(own: &Leftover, pod: &PodState, flags: &Flags) {
    if socket::is_alive(&pod.socket, own.id.as_str()) {
        log::warn!("sandbox {:?} is left alone: its daemon lives", own.id.as_str());
        return;
    }
    let holder = pod.holder.and_then(saved_process);
    if let Some(holder) = &holder {
        let _ = pidfd_send_signal(holder.as_fd(), libc::SIGKILL); // it may have ended
    }
    let until = Instant::now() + RUNTIME + PROCESSES;
    remove(pod.bundles.iter().flat_map(|dir| members(dir, &pod.group)).collect(), until);
    socket::remove_dead(&pod.socket);
    manage::remove_dead(&pod.socket, &flags.namespace, &pod.group);
    if let Some(holder) = &holder {
        ended(holder, until);
    }
    let removed = pod.cgroup.as_ref().map_or(Ok(()), |cgroup| remove_cgroup(cgroup, until));
    for failure in
        [removed, sandbox::remove_files(own.bundle.dir())].into_iter().filter_map(Result::err)
    {
        log::warn!("sandbox {:?}: {failure}", own.id.as_str());
    }
}

/// Removes all of them at once, so that many take no longer than one: until then, of which the
/// last [`PROCESSES`] are not the runtime's.
fn remove(leftovers: Vec<Leftover>, until: Instant) {
    let commands: Vec<_> = leftovers.iter().filter_map(Leftover::start_runtime).collect();
    for command in &commands {
        command.end(until - PROCESSES);
    }
    for leftover in &leftovers {
        // Before there is a state the daemon only asks whose container it is, and after an orderly end no command is left:
        // with thousands of processes on the host, a look at each of them takes long.
        if leftover.state.is_some() {
            leftover.kill_orphaned_commands(until);
        }
        leftover.kill(until);
        leftover.remove_rest();
    }
}

/// A runtime's `delete --force` that has been started.
struct Command {
    child: Starting,
    pidfd: OwnedFd,
}

impl Command {
    /// Waits for its end; kills it when the time is over.
    fn end(&self, until: Instant) {
        if !ended(&self.pidfd, until) {
            log::warn!("the runtime's delete did not end in time: killed");
            kill_group(self.child.pid);
        } else if let Some(error) = self.child.failure() {
            log::warn!("cannot run the runtime: {error}");
        }
        let _ = reap(); // whichever has ended: nobody asks for its status
    }
}

/// Waits for the end of a process; false if it has not come by then.
fn ended(pidfd: &OwnedFd, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    let ended = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout);
    matches!(ended, Ok(1..))
}

/// The process that had `pid` when it was saved, unless the number is another's now.
fn saved_process((pid, started): (i32, u64)) -> Option<OwnedFd> {
    let pid = Pid::new(pid)?;
    pidfd_open(pid).ok().filter(|_| start_time(pid) == Some(started))
}

impl Leftover {
    /// The init process's pid, from berth's state or the runtime's pid file.
    fn init_pid(&self) -> Option<Pid> {
        let saved = self.state.as_ref().and_then(|state| state.init);
        let saved = saved.and_then(|(pid, _)| Pid::new(pid));
        saved.or_else(|| bundle::read_pid(&self.bundle.init_pid_file()).ok())
    }

    fn start_runtime(&self) -> Option<Command> {
        let runtime = &self.state.as_ref()?.runtime;
        let log = self.bundle.dir().join("log-delete.json");
        let log = Some(&*log).filter(|log| runtime::is_writable(log));
        let mut arguments = args::global(runtime, log);
        arguments.extend(args::delete(&self.id, true));
        let run = || -> io::Result<Command> {
            let null = || -> io::Result<OwnedFd> {
                Ok(open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
            };
            let streams = [null()?, null()?, null()?];
            let child =
                spawn(&runtime.path, &arguments, self.bundle.dir(), &runtime.env, streams, None)?;
            let pidfd = pidfd_open(child.pid)?;
            Ok(Command { child, pidfd })
        };
        match run() {
            Ok(command) => Some(command),
            Err(error) => {
                log::warn!("cannot run {}: {error}", runtime.path.display());
                None
            }
        }
    }

    /// Kills what the runtime has left: the cgroup's processes, and the init process if it is still
    /// the one that was saved; waits for its end.
    fn kill(&self, until: Instant) {
        let init = self.state.as_ref().and_then(|state| state.init).and_then(saved_process);
        if let Some(init) = &init {
            let _ = pidfd_send_signal(init.as_fd(), libc::SIGKILL); // it may have ended
        }
        if let Some(cgroup) = self.cgroup() {
            remove_cgroup(&cgroup, until).unwrap_or_else(|error| {
                log::warn!("cgroup of {:?} stays: {error}", self.id.as_str());
            });
        }
        if let Some(init) = &init {
            ended(init, until);
        }
    }

    /// The container's cgroup: as it was saved, else where config.json has it.
    ///
    /// Without a state nobody knows whether anything was begun: another containerd may have a container
    /// of that name there. One whose shim lives is left alone.
    fn cgroup(&self) -> Option<Cgroup> {
        let saved = self.state.as_ref().and_then(|state| state.cgroup.clone());
        saved.or_else(|| {
            let path = self.bundle.spec().ok()?.cgroup_path(&self.id)?;
            let cgroup = Hierarchies::read().ok()?.existing(&path)?;
            if self.state.is_none() && is_supervised(&cgroup) {
                log::warn!("cgroup {} is left alone: it is another shim's", path.display());
                return None;
            }
            Some(cgroup)
        })
    }

    /// Kills what is left of runtime commands that died with the daemon: a wrapper's children.
    ///
    /// They have the bundle as working directory, as every runtime command has, and are in a
    /// session whose leader, the daemon, is gone. A shell that an administrator has in the bundle
    /// has a leader.
    fn kill_orphaned_commands(&self, until: Instant) {
        let orphaned = |pid: &Pid| {
            child::working_directory(*pid).as_deref() == Some(self.bundle.dir())
                && child::session_leader(*pid).is_some_and(|leader| !child::runs(leader))
        };
        loop {
            // Bound first, then looked at once more: a pid that was reused meanwhile is not hit.
            let bound =
                child::all().filter(orphaned).filter_map(|pid| Some((pid, pidfd_open(pid).ok()?)));
            let found: Vec<(Pid, OwnedFd)> = bound.filter(|(pid, _)| orphaned(pid)).collect();
            for (pid, process) in &found {
                log::info!("killing process {pid}, left of a runtime command");
                let _ = pidfd_send_signal(process.as_fd(), libc::SIGKILL); // it may have ended
            }
            // One that forked before it was killed has left another one.
            if found.is_empty() || !found.iter().all(|(_, process)| ended(process, until)) {
                return;
            }
        }
    }

    /// Unmounts the rootfs and removes the files of a runtime that did not do so.
    fn remove_rest(&self) {
        if let Err(error) = rootfs::unmount_all(&self.bundle.rootfs()) {
            log::warn!("{error}");
        }
        if let Err(error) = crate::io::remove_leftovers(self.bundle.dir()) {
            log::warn!("{error}");
        }
        let Some(state) = &self.state else { return };
        state.runtime.forget(&self.id);
        let _ = fs::remove_file(self.bundle.dir().join("log-delete.json")); // most often not there
    }
}

/// Whether a shim, of whatever kind, lives that is the parent of a process in there.
fn is_supervised(cgroup: &Cgroup) -> bool {
    let pids = cgroup.pids().ok().flatten().unwrap_or_default();
    pids.into_iter().any(|pid| child::parent_name(pid).is_some_and(|name| name == SHIM))
}

/// Kills a cgroup's processes and removes it.
fn remove_cgroup(cgroup: &Cgroup, until: Instant) -> Result<()> {
    cgroup.kill_and_wait(until)?;
    loop {
        match cgroup.remove()? {
            Removal::Gone => return Ok(()),
            Removal::Busy if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Removal::Busy => {
                return Err(Error::Sys {
                    action: "remove it",
                    source: io::Error::from_raw_os_error(libc::EBUSY),
                });
            }
        }
    }
}
