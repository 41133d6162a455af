//! One process of a container: its init process or an exec process.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::SystemTime;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{Instant, timeout_at};

use crate::container::state::{Change, State};
use crate::error::{Error, Result};
use crate::ids::{ExecId, Pid};
use crate::io::{ProcessIo, StdioSpec, Undrained};
use crate::reaper::Exit;
use crate::sys::child;

/// Plain data apart from two handles: the open streams and the waiters.
pub(crate) struct Process {
    /// The name that messages use: the container's id, or the exec process's.
    pub(crate) name: String,
    /// `None` for the init process.
    pub(crate) exec_id: Option<ExecId>,
    /// The streams that the caller asked for.
    pub(crate) stdio: StdioSpec,
    /// Held by a change of the lifecycle from its check to its event, so that the queue has the
    /// task's order. State, Wait, Kill and all other reads never take it.
    pub(crate) turn: Mutex<()>,
    state: Cell<State>,
    pid: Cell<Option<Pid>>,
    /// Its pid in the container, where the runtime signals it by that.
    pub(super) inner_pid: Cell<Option<Pid>>,
    io: RefCell<Option<Rc<ProcessIo>>>,
    /// When the runtime had made it, and when its program began to run.
    times: Cell<[Option<SystemTime>; 2]>,
    /// CloseIO was called, perhaps before the streams were opened.
    stdin_closed: Cell<bool>,
    /// Set when the process was reaped; `state` follows when its exit is announced.
    dead: Cell<bool>,
    outcome: watch::Sender<Outcome>,
}

/// What a Wait waits for.
#[derive(Clone, Copy)]
enum Outcome {
    Pending,
    /// The exit has been announced.
    Exited(Exit),
    /// The runtime could not start it.
    NeverRan,
}

impl Process {
    /// A process that is described and does not run.
    pub(crate) fn new(name: String, exec_id: Option<ExecId>, stdio: StdioSpec) -> Self {
        Self {
            name,
            exec_id,
            stdio,
            turn: Mutex::default(),
            state: Cell::new(State::Created),
            pid: Cell::default(),
            inner_pid: Cell::default(),
            io: RefCell::default(),
            times: Cell::default(),
            stdin_closed: Cell::default(),
            dead: Cell::default(),
            outcome: watch::Sender::new(Outcome::Pending),
        }
    }

    /// Where the process is in its life.
    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    /// Its pid, from the moment on that the runtime has made it.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid.get()
    }

    /// When the runtime had made it, and when its program began to run.
    pub(crate) fn times(&self) -> [Option<SystemTime>; 2] {
        self.times.get()
    }

    /// Its open streams, until Delete.
    pub(crate) fn io(&self) -> Option<Rc<ProcessIo>> {
        self.io.borrow().clone()
    }

    /// Binds what the runtime made to this description.
    pub(crate) fn bind(&self, pid: Pid, io: ProcessIo) {
        self.pid.set(Some(pid));
        self.times.set([Some(SystemTime::now()), None]);
        self.io.replace(Some(Rc::new(io)));
        if self.stdin_closed.get() {
            self.close_stdin();
        }
    }

    /// Lets the process's input end behind what its clients have written. A client may ask for that
    /// before it starts the process (`ctr` with nothing on its own input).
    pub(crate) fn close_stdin(&self) {
        self.stdin_closed.set(true);
        if let Some(io) = &*self.io.borrow() {
            io.close_stdin();
        }
    }

    /// The state after `change`, without going there.
    ///
    /// # Errors
    /// [`Error::State`] where the lifecycle has no such step.
    pub(crate) fn check(&self, change: Change, verb: &'static str) -> Result<State> {
        let state = self.state.get();
        let state = if self.dead.get() && state.exit().is_none() {
            "ending"
        } else {
            match state.after(change) {
                Some(next) => return Ok(next),
                None => state.name(),
            }
        };
        Err(Error::State { id: self.name.clone(), change: verb, state })
    }

    /// The process's turn, waited for no longer than the caller waits.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub(super) async fn take_turn(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, ()>> {
        turn(&self.turn, &self.name, deadline).await
    }

    /// State, pid and streams in one line, for a person.
    pub(crate) fn describe(&self) -> String {
        let pid = self.pid.get().map_or(0, Pid::get);
        let state = self.state.get().name();
        let turn = if self.turn.try_lock().is_err() { ", a request is under way" } else { "" };
        let mut io = String::new();
        match &*self.io.borrow() {
            Some(streams) => {
                io += "open";
                if streams.dropped() > 0 {
                    io += &format!(", {} bytes dropped", streams.dropped());
                }
                if streams.logger_restarts() > 0 {
                    io += &format!(", logger restarted {} times", streams.logger_restarts());
                }
            }
            None => io += "closed",
        }
        format!("pid {pid}, {state}, streams {io}{turn}")
    }

    /// Goes where `change` leads; a step that the lifecycle has not, is none.
    pub(crate) fn apply(&self, change: Change) {
        if let Some(next) = self.state.get().after(change) {
            self.state.set(next);
            if change == Change::Start {
                let [made, _] = self.times.get();
                self.times.set([made, Some(SystemTime::now())]);
            }
        }
    }

    /// Notes that the process was reaped: from now on signals come too late.
    pub(crate) fn mark_dead(&self) {
        self.dead.set(true);
        if let Some(io) = &*self.io.borrow() {
            io.process_ended();
        }
    }

    /// Whether the process was reaped.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Whether the runtime has made the process and it has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid.get().is_some() && !self.dead.get()
    }

    /// Ends the process's life and wakes every Wait; the caller queues the exit event in the same
    /// turn.
    pub(crate) fn stop(&self, exit: Exit) {
        self.mark_dead();
        self.apply(Change::Exit(exit));
        self.outcome.send_replace(Outcome::Exited(exit));
    }

    /// A Wait from now on is for the Start that begins, whatever came of an earlier one.
    pub(crate) fn may_run(&self) {
        self.outcome.send_replace(Outcome::Pending);
    }

    /// Wakes every Wait for a process that the runtime could not start; it may be tried again.
    pub(crate) fn never_ran(&self) {
        self.outcome.send_replace(Outcome::NeverRan);
    }

    /// Resolves when the process's exit has been announced; at once if that was earlier. `None` if
    /// it could not be started, or was deleted without ever having run.
    pub(crate) fn wait(&self) -> impl Future<Output = Option<Exit>> + 'static {
        let mut outcome = self.outcome.subscribe();
        async move {
            match *outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending)).await.ok()? {
                Outcome::Exited(exit) => Some(exit),
                Outcome::Pending | Outcome::NeverRan => None,
            }
        }
    }

    /// Sends a signal to this process and no other: the pid stays its own until the daemon reaps it.
    ///
    /// # Errors
    /// [`Error::State`] before the process was made, [`Error::Finished`] after its end,
    /// [`Error::Invalid`] for a number that is no signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let finished = || Error::Finished { id: self.name.clone() };
        if self.dead.get() {
            return Err(finished());
        }
        let Some(pid) = self.pid.get() else {
            return Err(Error::State { id: self.name.clone(), change: "kill", state: "created" });
        };
        let number = i32::try_from(signal).unwrap_or(i32::MAX);
        child::signal(pid, number).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => finished(),
            Some(libc::EINVAL) => Error::Invalid(format!("{signal} is no signal")),
            _ => Error::sys("send a signal")(error),
        })
    }

    /// Waits until all output has reached its reader, then lets go of the streams in any case.
    ///
    /// If by then nobody has the FIFO open, the rest is for nobody: it is dropped and logged.
    ///
    /// # Errors
    /// [`Error::Deadline`] that names who still holds the pipe or does not read.
    pub(crate) async fn finish_io(&self, deadline: Instant) -> Result<()> {
        let Some(io) = self.io() else { return Ok(()) };
        let began = Instant::now();
        let drained = io.drained(deadline).await;
        for (stream, bytes) in io.abandoned(deadline).await {
            log::warn!("nobody has {stream} of {:?} open: {bytes} bytes are lost", self.name);
        }
        io.close();
        self.io.take();
        match drained {
            Err(Undrained::Unread { stream, readers }) if readers.is_empty() => {
                log::warn!("nobody has {stream} of {:?} open: the rest of it is lost", self.name);
                Ok(())
            }
            drained => drained.map_err(|undrained| Error::Deadline {
                what: format!("output of {:?} ({undrained})", self.name),
                limit: deadline.saturating_duration_since(began),
            }),
        }
    }
}

/// The turn of a process or container, waited for no longer than the caller waits.
pub(super) async fn turn<'a>(
    of: &'a Mutex<()>,
    name: &str,
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, ()>> {
    let Some(deadline) = deadline else { return Ok(of.lock().await) };
    let began = Instant::now();
    timeout_at(deadline, of.lock()).await.map_err(|_| Error::Deadline {
        what: format!("an earlier request for {name:?}"),
        limit: deadline.saturating_duration_since(began),
    })
}
