//! The OCI runtime: one method per command, each with a deadline.
//!
//! A command runs with the bundle as working directory and `--log FILE` among its arguments;
//! wrappers rely on both. When its time has passed, it is killed with every process below it.

pub(crate) mod args;
mod criu;
pub(crate) mod failure;
mod output;
mod state;
pub(crate) mod table;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};

use crate::bundle::{Bundle, Scratch};
use crate::cgroup::Cgroup;
use crate::config::Deadlines;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, Pid};
use crate::meters::Unkillable;
use crate::reaper::{Child, Exit, Reaper, UNSEEN};
use crate::runtime::args::Checkpoint;
use crate::runtime::output::Output;
use crate::sys::child::{self, Streams, start_time};
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};
use crate::trace::{Kind, Span};

/// How long a killed command may take to disappear; it is unkillable only in the kernel.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// A runtime as it was resolved at Create: plain data, kept in the bundle for `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    /// Absolute path of the program.
    pub(crate) path: PathBuf,
    /// What stands before all other arguments.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// What its commands have in their environment on top of the daemon's.
    #[serde(default)]
    pub(crate) env: Vec<(String, String)>,
    /// `--root`: where it keeps its state of the namespace's containers.
    pub(crate) root: PathBuf,
    /// `--systemd-cgroup`.
    pub(crate) systemd_cgroup: bool,
    /// `--no-pivot` at create.
    pub(crate) no_pivot_root: bool,
    /// `--no-new-keyring` at create.
    pub(crate) no_new_keyring: bool,
    /// The criu program, a name on PATH or a path; empty for the first `criu` on PATH.
    pub(crate) criu_path: String,
    /// How long a command may take.
    #[serde(default)]
    pub(crate) deadlines: Deadlines,
    /// Whether exec processes are signalled by their pids inside; `delete` does not need it.
    #[serde(skip)]
    pub(crate) inner_pids: bool,
}

/// What a command needs beyond its runtime: whose it is and until when its caller waits.
pub(crate) struct Call<'a> {
    /// The container.
    pub(crate) id: &'a ContainerId,
    /// Its bundle: working directory and place for the log.
    pub(crate) bundle: &'a Bundle,
    /// The daemon's waiter.
    pub(crate) reaper: &'a Reaper,
    /// The caller's deadline, where it set one.
    pub(crate) deadline: Option<Instant>,
    stray: RefCell<Option<Cgroup>>,
    ended: Cell<u64>,
}

impl<'a> Call<'a> {
    /// A call for one container.
    pub(crate) fn new(
        id: &'a ContainerId,
        bundle: &'a Bundle,
        reaper: &'a Reaper,
        deadline: Option<Instant>,
    ) -> Self {
        let ended = Cell::new(UNSEEN);
        Self { id, bundle, reaper, deadline, stray: RefCell::default(), ended }
    }

    /// The cgroup that a command had made when it was killed, which the runtime may not know of.
    pub(crate) fn stray(&self) -> Option<Cgroup> {
        self.stray.borrow().clone()
    }

    /// The [`Exit::nth`] of the last command: what it has named was there until then.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.get()
    }
}

impl Runtime {
    /// Makes a container whose init process waits for `start`; its pid is then in `pid_file`.
    ///
    /// # Errors
    /// As all methods here: [`Error::Runtime`] with the runtime's own words, [`Error::Deadline`]
    /// that names the command, [`Error::NoRuntime`] if the program is gone.
    pub(crate) async fn create(
        &self,
        call: &Call<'_>,
        pid_file: &Path,
        console: Option<&Path>,
        streams: Option<Streams>,
    ) -> Result<()> {
        let args = args::create(self, call.bundle.dir(), pid_file, console, call.id);
        self.run(call, "create", args, streams).await
    }

    /// Lets the init process run the user's program.
    pub(crate) async fn start(&self, call: &Call<'_>) -> Result<()> {
        self.run(call, "start", args::start(call.id), None).await
    }

    /// Runs the process described in `process_file` inside the container; its pid is then in
    /// `pid_file`.
    pub(crate) async fn exec(
        &self,
        call: &Call<'_>,
        process_file: &Path,
        pid_file: &Path,
        console: Option<&Path>,
        streams: Option<Streams>,
    ) -> Result<()> {
        let args = args::exec(self, process_file, pid_file, console, call.id);
        self.run(call, "exec", args, streams).await
    }

    /// Sends a signal to the init process, or to every process of the container.
    pub(crate) async fn kill(&self, call: &Call<'_>, signal: u32, all: bool) -> Result<()> {
        self.run(call, "kill", args::kill(call.id, signal, all), None).await
    }

    /// Sends a signal to the exec process that has `pid` inside.
    pub(crate) async fn kill_inner(&self, call: &Call<'_>, signal: u32, pid: Pid) -> Result<()> {
        self.run(call, "kill", args::kill_inner(call.id, signal, pid), None).await
    }

    /// Removes the container's cgroup and the runtime's state of it; `force` kills what still runs.
    pub(crate) async fn delete(&self, call: &Call<'_>, force: bool) -> Result<()> {
        self.run(call, "delete", args::delete(call.id, force), None).await
    }

    /// Freezes every process of the container.
    pub(crate) async fn pause(&self, call: &Call<'_>) -> Result<()> {
        self.run(call, "pause", args::pause(call.id), None).await
    }

    /// Lets a paused container run again.
    pub(crate) async fn resume(&self, call: &Call<'_>) -> Result<()> {
        self.run(call, "resume", args::resume(call.id), None).await
    }

    /// Sets the limits that `resources`, a file with OCI `LinuxResources`, names.
    pub(crate) async fn update(&self, call: &Call<'_>, resources: &Path) -> Result<()> {
        self.run(call, "update", args::update(call.id, resources), None).await
    }

    /// Saves the container's processes in `checkpoint`'s image; they go on unless its options say
    /// `exit`. `criu` is configuration for CRIU.
    ///
    /// # Errors
    /// As all methods here, with the last errors of CRIU's log; [`Error::NoCriu`], or
    /// [`Error::NoRuntime`] for a runtime that makes no checkpoints.
    pub(crate) async fn checkpoint(
        &self,
        call: &Call<'_>,
        checkpoint: Checkpoint<'_>,
        criu: &str,
    ) -> Result<()> {
        let args = args::checkpoint(checkpoint, call.id);
        self.with_criu(call, "checkpoint", args, None, checkpoint.work, criu).await
    }

    /// Makes a container with the processes of `checkpoint`, which run at once; the pid of the first
    /// is then in `pid_file`.
    ///
    /// # Errors
    /// As [`Runtime::checkpoint`].
    pub(crate) async fn restore(
        &self,
        call: &Call<'_>,
        pid_file: &Path,
        console: Option<&Path>,
        streams: Option<Streams>,
        checkpoint: Checkpoint<'_>,
        criu: &str,
    ) -> Result<()> {
        let args = args::restore(self, call.bundle.dir(), pid_file, console, checkpoint, call.id);
        self.with_criu(call, "restore", args, streams, checkpoint.work, criu).await
    }

    async fn with_criu(
        &self,
        call: &Call<'_>,
        name: &'static str,
        command: Vec<OsString>,
        streams: Option<Streams>,
        work: &Path,
        lines: &str,
    ) -> Result<()> {
        let setup = criu::Setup::new(self, call.bundle.dir(), lines)?;
        criu::forget(name, work);
        match self.run_in(call, name, command, streams, &setup.env).await {
            Ok(()) => Ok(()),
            Err(error) => Err(criu::explain(self, call, error, work).await),
        }
    }

    async fn run(
        &self,
        call: &Call<'_>,
        name: &'static str,
        command: Vec<OsString>,
        streams: Option<Streams>,
    ) -> Result<()> {
        self.run_in(call, name, command, streams, &self.env).await
    }

    /// Runs one command to its end, with `env` on top of the daemon's. Without `streams` its output is
    /// kept for the error's text.
    async fn run_in(
        &self,
        call: &Call<'_>,
        name: &'static str,
        command: Vec<OsString>,
        streams: Option<Streams>,
        env: &[(String, String)],
    ) -> Result<()> {
        let log = Scratch::new(output::log_file(call.bundle.dir(), name));
        // A bundle that takes no file costs a command its log, and not its success.
        let logs = streams.is_some() || is_writable(log.path());
        let mut args = args::global(self, Some(log.path()).filter(|_| logs));
        args.extend(command);
        let (output, streams) = match streams {
            Some(streams) => (None, streams),
            None => {
                let (output, streams) = Output::capture()?;
                (Some(output), streams)
            }
        };
        let mut span = self.span(call, name);
        let exit = self.spawn(call, name, &args, env, streams, &mut span).await;
        let exit = exit.inspect_err(|error| span.fail(error))?;
        call.ended.set(exit.nth);
        span.set("process.exit.code", i64::from(exit.status));
        if exit.status == 0 {
            return Ok(());
        }
        let output = output.map(|output| output.text()).unwrap_or_default();
        let message = failure::message(log.path(), &output);
        let error = failure::error(self.name(), name, exit.status, message, Some(call.id));
        span.fail(&error);
        Err(error)
    }

    /// Runs a program to its end, as the command `name`.
    async fn spawn(
        &self,
        call: &Call<'_>,
        name: &'static str,
        args: &[OsString],
        env: &[(String, String)],
        streams: Streams,
        span: &mut Span,
    ) -> Result<Exit> {
        let limit = self.deadlines.of(name);
        let mut command = call.reaper.meters().command(name, call.id, limit);
        let child = call
            .reaper
            .spawn(&self.path, args, call.bundle.dir(), env, streams)
            .map_err(|error| self.cannot_start(error))
            .inspect_err(|_| command.ended("not started"))?;
        span.set("process.pid", i64::from(child.pid.get()));
        let what = || format!("`{} {name}`", self.name());
        let ended = ended(child, call.reaper, call.deadline, limit, what).await;
        let exit = ended.map_err(|failed| match failed {
            Failed::Unstarted(error) => {
                command.ended("not started");
                self.cannot_start(error)
            }
            Failed::Late(error, cgroup) => {
                command.ended("deadline");
                call.stray.replace(cgroup);
                error
            }
        })?;
        command.ended(if exit.status == 0 { "ok" } else { "failed" });
        Ok(exit)
    }

    /// The span of the command `name`.
    fn span(&self, call: &Call<'_>, name: &'static str) -> Span {
        let tracer = call.reaper.tracer();
        let mut span = tracer.span(Kind::Client, || format!("{} {name}", self.name()));
        span.set("process.executable.path", self.path.to_string_lossy());
        span.set("berth.runtime.command", name);
        span.set("container.id", call.id.as_str());
        span
    }

    /// The program's name for messages.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    fn cannot_start(&self, source: std::io::Error) -> Error {
        if source.kind() == std::io::ErrorKind::NotFound && !self.path.exists() {
            let why = "executable file not found: it is gone since the container was made".into();
            return Error::NoRuntime { name: self.path.display().to_string(), why };
        }
        Error::Io { action: "run the OCI runtime", path: self.path.clone(), source }
    }
}

/// Why a command did not come to an end of its own.
enum Failed {
    /// It never ran.
    Unstarted(std::io::Error),
    /// It was killed because its time had passed. With what it had made of a container.
    Late(Error, Option<Cgroup>),
}

impl Failed {
    /// The error, where `cannot_start` says the one.
    fn into_error(self, cannot_start: impl FnOnce(std::io::Error) -> Error) -> Error {
        match self {
            Self::Unstarted(error) => cannot_start(error),
            Self::Late(error, _) => error,
        }
    }
}

/// Waits until a command ends; kills it when its own time `limit` or the `caller`'s has passed.
async fn ended(
    child: Child,
    reaper: &Reaper,
    caller: Option<Instant>,
    limit: Duration,
    what: impl Fn() -> String,
) -> Result<Exit, Failed> {
    let began = Instant::now();
    let own = began + limit;
    let deadline = caller.map_or(own, |caller| caller.min(own));
    let mut child = child;
    let pid = child.pid;
    match timeout_at(deadline, &mut child.exit).await {
        Ok(exit) => match child.failure() {
            Some(error) => Err(Failed::Unstarted(error)),
            None => Ok(exit.unwrap_or_else(|_| Exit::killed())),
        },
        Err(_) => {
            let cgroup = kill_tree(pid);
            if timeout(KILL_GRACE, child.exit).await.is_err() {
                log::error!("{} (pid {pid}) cannot be killed", what());
                // One that has ended in this moment has none, and is nothing to note.
                if let Some(started) = start_time(pid) {
                    let what = what();
                    reaper.meters().note_unkillable(Unkillable { what, pid, started });
                }
            }
            let limit = deadline.saturating_duration_since(began);
            Err(Failed::Late(Error::Deadline { what: what(), limit }, cgroup))
        }
    }
}

/// Whether a runtime can write its log there: it fails otherwise, whatever it was to do.
pub(crate) fn is_writable(log: &Path) -> bool {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(log).is_ok()
}

/// Runs a helper that is no OCI runtime, as `mount.fuse3` is, with the same care; `what` it does is
/// for the error.
///
/// # Errors
/// [`Error::Runtime`] with what it printed, [`Error::Deadline`] after `limit`, [`Error::Io`] if it
/// cannot be run.
pub(crate) async fn help(
    reaper: &Reaper,
    what: &'static str,
    program: &Path,
    args: &[OsString],
    cwd: &Path,
    limit: Duration,
) -> Result<()> {
    let (output, streams) = Output::capture()?;
    let child =
        reaper.spawn(program, args, cwd, &[], streams).map_err(Error::io("run", program))?;
    let late = || format!("`{}`", program.display());
    let ended = ended(child, reaper, None, limit, late).await;
    let exit = ended.map_err(|failed| failed.into_error(Error::io("run", program)))?;
    if exit.status == 0 {
        return Ok(());
    }
    let name = program.display().to_string();
    Err(failure::error(name, what, exit.status, output.text(), None))
}

/// Kills a command that has not been waited for, and every process below it: a half-made
/// container's init process leads a session of its own, out of the group's reach. Returns the
/// container's cgroup, if one of them was in it.
fn kill_tree(leader: Pid) -> Option<Cgroup> {
    // Descriptors first, then the check that each is still below the leader, then the signal: a
    // pid that is reused in between is never hit.
    let bound: Vec<_> = child::descendants(leader)
        .into_iter()
        .filter_map(|pid| pidfd_open(pid).ok().map(|fd| (pid, fd)))
        .collect();
    let still = child::descendants(leader);
    let cgroup = still.iter().find_map(|pid| Cgroup::of(*pid).ok().flatten());
    child::kill_group(leader);
    for (pid, fd) in bound {
        if still.contains(&pid) {
            // ESRCH: it has ended by itself.
            let _ = pidfd_send_signal(fd.as_fd(), libc::SIGKILL);
        }
    }
    cgroup
}
