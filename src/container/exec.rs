//! Exec processes: described, started, removed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use serde::Deserialize;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::bundle::{self, Scratch};
use crate::container::container::{Streams, UnderWay, drain_until};
use crate::container::create::receive;
use crate::container::state::{Change, State};
use crate::container::{Container, Process};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::ids::{ExecId, Pid};
use crate::io::{ConsoleSocket, ProcessIo, StdioSpec, TerminalIo};
use crate::reaper::{Child, Exit};
use crate::runtime::args;
use crate::sys::pidfd::pidfd_send_signal;

impl Container {
    /// Describes a process to run inside: `process` is OCI `Process` as JSON, whose `terminal` is
    /// replaced by the caller's.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::State`] unless the container is created or runs;
    /// [`Error::Invalid`] for streams or a description that make no sense.
    pub(crate) fn add_exec(&self, id: &ExecId, process: &[u8], stdio: StdioSpec) -> Result<()> {
        self.takes_execs()?;
        if id.as_str() == self.id.as_str() {
            // The exit event of an exec process has its id where that of init has the container's.
            return Err(Error::Invalid(format!("exec id {id} is the container's own id")));
        }
        stdio.check()?;
        if self.execs.borrow().contains_key(id) {
            return Err(Error::Exists { what: "exec process", id: id.to_string() });
        }
        let described = describe(process, stdio.terminal)
            .map_err(|error| Error::Invalid(format!("spec of exec process {id}: {error}")))?;
        bundle::write(&self.bundle.exec_process_file(id), &described)?;
        let exec = Rc::new(Process::new(id.to_string(), Some(id.clone()), stdio));
        self.execs.borrow_mut().insert(id.clone(), exec);
        let added = Event::ExecAdded { id: self.id.clone(), exec_id: id.clone() };
        self.shared.events.queue(added);
        Ok(())
    }

    /// Runs a described process; returns its pid. `/tasks/exec-started` is queued before anything
    /// waits for its exit.
    ///
    /// # Errors
    /// [`Error::State`] if it was started before, or the container is not there to run it; as the
    /// runtime says: the process then stays described, and can be started again or deleted.
    pub(crate) async fn start_exec(
        self: &Rc<Self>,
        exec: &Rc<Process>,
        deadline: Option<Instant>,
    ) -> Result<Pid> {
        let Some(id) = exec.exec_id.clone() else { return self.start(deadline).await };
        let _turn = exec.take_turn(deadline).await?;
        exec.check(Change::Start, "start")?;
        self.takes_execs()?;
        let starting = UnderWay::begin(&self.starting);
        exec.may_run();
        let child = self.run_exec(exec, &id, deadline).await.inspect_err(|_| exec.never_ran())?;
        drop(starting);
        drop(Scratch::new(self.bundle.exec_process_file(&id))); // it may hold secrets
        if self.init.state().exit().is_some() {
            // The runtime took so long that the container's end has been announced meanwhile, and
            // nothing may follow that.
            let _ = exec.signal(9); // it may have ended by itself
            exec.mark_dead(); // nobody hears of its end, from which on its pid may be another's
            exec.never_ran();
            return Err(self.ended("exec in"));
        }
        let pid = child.pid;
        exec.apply(Change::Start);
        let started = Event::ExecStarted { id: self.id.clone(), exec_id: id, pid };
        self.shared.events.queue(started);
        self.clone().watch_exec(exec.clone(), child);
        Ok(pid)
    }

    async fn run_exec(
        &self,
        exec: &Process,
        id: &ExecId,
        deadline: Option<Instant>,
    ) -> Result<Child> {
        let process = &self.bundle.exec_process_file(id);
        let pid_file = Scratch::new(self.bundle.exec_pid_file(id));
        let pid = pid_file.path();
        let _unfinished = Scratch::new(bundle::unfinished(pid));
        let inner_file = Scratch::new(args::inner_pid_file(pid));
        let call = self.call(deadline);
        // Its children may outlive it.
        let streams = Streams { is_confined: false, ..self.streams };
        let context = streams.context(&self.shared, &call, &exec.name);
        let watch = self.shared.reaper.watch();
        if exec.stdio.terminal {
            let io = TerminalIo::open(&exec.stdio, &context).await?;
            let socket = ConsoleSocket::bind(self.bundle.dir())?;
            self.runtime.exec(&call, process, pid, Some(socket.path()), None).await?;
            let (child, pidfd) = watch.claim(bundle::read_pid(pid)?, call.ended())?;
            exec.inner_pid.set(self.inner_pid(inner_file.path()));
            let master = receive(socket).await;
            let io = master.and_then(|master| io.attach(master, &context));
            // It runs, and without its terminal nobody would ever hear of it again.
            let io = io.inspect_err(|_| kill(pidfd.as_ref()))?;
            exec.bind(child.pid, io);
            return Ok(child);
        }
        let (io, child) = ProcessIo::open(&exec.stdio, &context).await?;
        let streams = [child.stdin, child.stdout, child.stderr];
        self.runtime.exec(&call, process, pid, None, Some(streams)).await?;
        let (child, _) = watch.claim(bundle::read_pid(pid)?, call.ended())?;
        exec.inner_pid.set(self.inner_pid(inner_file.path()));
        exec.bind(child.pid, io);
        Ok(child)
    }

    /// What the runtime wrote of an exec process that is none of the host's.
    fn inner_pid(&self, file: &Path) -> Option<Pid> {
        let pid = self.runtime.inner_pids.then(|| bundle::read_pid(file))?;
        pid.inspect_err(|error| log::warn!("an exec process cannot be signalled: {error}")).ok()
    }

    /// Signals an exec process. Where it is none of the host's, the runtime does it: the process that
    /// berth waits for only stands for it.
    ///
    /// # Errors
    /// As [`Process::signal`]; as the runtime says.
    pub(crate) async fn kill_exec(
        &self,
        exec: &Process,
        signal: u32,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let Some(pid) = exec.inner_pid.get().filter(|_| exec.is_alive()) else {
            return exec.signal(signal);
        };
        match self.runtime.kill_inner(&self.call(deadline), signal, pid).await {
            Err(Error::Finished { .. } | Error::Runtime { .. }) if exec.is_dead() => {
                Err(Error::Finished { id: exec.name.clone() })
            }
            result => result,
        }
    }

    /// Waits for the end of an exec process and announces it.
    fn watch_exec(self: Rc<Self>, exec: Rc<Process>, child: Child) {
        spawn_local(async move {
            let exit = child.exit.await.unwrap_or_else(|_| Exit::killed());
            self.tell_oom();
            exec.stop(exit);
            let (id, exec_id) = (self.id.clone(), exec.exec_id.clone());
            self.shared.events.queue(Event::Exited { id, exec_id, pid: child.pid, exit });
        });
    }

    /// Removes an exec process that has ended or was never started; returns its pid and exit where
    /// it has run.
    ///
    /// # Errors
    /// [`Error::State`] while it runs; [`Error::Deadline`] as in [`Container::delete`], and then it
    /// is gone all the same.
    pub(crate) async fn delete_exec(
        &self,
        exec: &Process,
        id: &ExecId,
        deadline: Option<Instant>,
    ) -> Result<Option<(Pid, Exit)>> {
        let _turn = exec.take_turn(deadline).await?;
        let exit = match exec.state() {
            State::Stopped(exit) => Some(exit),
            State::Created => None,
            state => {
                let state = state.name();
                return Err(Error::State { id: id.to_string(), change: "delete", state });
            }
        };
        let drained = exec.finish_io(drain_until(deadline)).await;
        drop(Scratch::new(self.bundle.exec_process_file(id)));
        if self.execs.borrow_mut().remove(id).is_none() {
            return Err(Error::NotFound { what: "exec process", id: id.to_string() });
        }
        self.shared.note_deleted();
        drained.map(|()| exec.pid().zip(exit))
    }
}

fn kill(process: Option<&OwnedFd>) {
    if let Some(process) = process {
        let _ = pidfd_send_signal(process.as_fd(), libc::SIGKILL); // it may have ended
    }
}

/// What must be right in a description, so that a wrong one is refused before it is started.
#[derive(Deserialize)]
struct Described {
    #[serde(rename = "args")]
    _args: Vec<String>,
    #[serde(rename = "env", default)]
    _env: Option<Vec<String>>,
    #[serde(rename = "cwd", default)]
    _cwd: String,
}

/// The description with the caller's `terminal`, which decides about the console socket.
fn describe(process: &[u8], terminal: bool) -> serde_json::Result<Vec<u8>> {
    let _: Described = serde_json::from_slice(process)?;
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(process)?;
    process.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process)
}
