//! One container: what can be done with it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::bundle::{self, Bundle};
use crate::cgroup::{Cgroup, Toll};
use crate::config;
use crate::container::checkpoint::Image;
use crate::container::oom::Oom;
use crate::container::process::turn;
use crate::container::state::Change;
use crate::container::{Containers, Process, Slot, State};
use crate::error::{Error, Result};
use crate::events::{Event, Place};
use crate::ids::{ContainerId, ExecId, Pid};
use crate::io;
use crate::reaper::Exit;
use crate::rootfs::RootfsMount;
use crate::runtime::{Call, Runtime, failure};
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;

/// How long Delete waits for output that has not reached its reader.
const DRAIN: Duration = Duration::from_secs(10);
/// How long Delete lets a Kill end that is under way.
const KILLS: Duration = Duration::from_secs(2);
/// How long Delete waits for the end of an init process that was never started.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A container with its init and exec processes: plain data apart from the rootfs's guard and the
/// processes' handles.
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: ContainerId,
    /// Its bundle.
    pub(crate) bundle: Bundle,
    /// The journal may write there.
    pub(super) _place: Place,
    /// Its init process.
    pub(crate) init: Rc<Process>,
    pub(super) shared: Rc<Containers>,
    pub(super) runtime: Runtime,
    /// What it is to its pod.
    pub(super) kind: Kind,
    /// What its pod, or itself on its own, may use; as Create was told.
    pub(super) sizing: Sizing,
    pub(super) streams: Streams,
    pub(super) own_pid_namespace: bool,
    /// What it is restored from at Start, in place of being created.
    pub(super) image: Option<Image>,
    /// A checkpoint is under way, after which the container ends.
    pub(super) leaving: Cell<bool>,
    /// Set once the runtime has made its processes, if they have one of their own.
    pub(super) cgroup: OnceCell<Cgroup>,
    /// Until the init process's exit is announced.
    pub(super) oom: RefCell<Option<Oom>>,
    pub(super) toll: Rc<Cell<Toll>>,
    pub(super) rootfs: RefCell<Option<RootfsMount>>,
    /// Pause, Resume, Update and Checkpoint take turns here: one that hangs does not delay the news that the
    /// container has ended.
    pub(super) adjusting: Mutex<()>,
    /// The kernel has its processes frozen since the last Pause; a runtime with a kernel of its own
    /// pauses without.
    pub(super) frozen: Cell<bool>,
    /// Its init process was sent SIGKILL.
    pub(super) killed: Cell<bool>,
    /// Kills that are under way.
    pub(super) kills: watch::Sender<u32>,
    /// Starts of exec processes that are under way.
    pub(super) starting: watch::Sender<u32>,
    pub(super) execs: RefCell<BTreeMap<ExecId, Rc<Process>>>,
}

/// How the streams of a container's processes are made.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// Who owns the pipes: the options' `IoUid` and `IoGid`.
    pub(super) owner: (u32, u32),
    /// What happens to output that nobody takes.
    pub(super) policy: config::Io,
    /// Whether what the init process writes to can be written by nobody after its end.
    pub(super) is_confined: bool,
}

impl Streams {
    /// For the init process.
    pub(super) fn context<'a>(
        self,
        shared: &'a Containers,
        call: &Call<'a>,
        name: &'a str,
    ) -> io::Context<'a> {
        io::Context {
            id: name,
            namespace: &shared.namespace,
            bundle: call.bundle.dir(),
            reaper: &shared.reaper,
            streams: &shared.streams,
            owner: self.owner,
            policy: self.policy,
            is_confined: self.is_confined,
            deadline: call.deadline,
        }
    }
}

impl Container {
    pub(super) fn call(&self, deadline: Option<Instant>) -> Call<'_> {
        Call::new(&self.id, &self.bundle, &self.shared.reaper, deadline)
    }

    /// The init process (empty `exec_id`) or the exec process of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let id = ExecId::new(exec_id)?;
        let found = self.execs.borrow().get(&id).cloned();
        found.ok_or_else(|| Error::NotFound { what: "exec process", id: exec_id.into() })
    }

    /// Runs the user's program in a created container; returns the init process's pid.
    ///
    /// `/tasks/start` is queued before the turn ends, so `/tasks/exit`, which takes the turn too,
    /// cannot overtake it ([event order]).
    ///
    /// # Errors
    /// [`Error::State`] once started or ended; [`Error::Runtime`] with the runtime's own words.
    ///
    /// [event order]: https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md
    pub(crate) async fn start(self: &Rc<Self>, deadline: Option<Instant>) -> Result<Pid> {
        let _turn = self.init.take_turn(deadline).await?;
        self.init.check(Change::Start, "start")?;
        if let Some(image) = &self.image {
            return self.restore(image, deadline).await;
        }
        self.runtime.start(&self.call(deadline)).await?;
        if self.init.state().exit().is_some() {
            return Err(self.ended("start")); // it took so long that its end has been announced
        }
        self.init.apply(Change::Start);
        let pid = self.init_pid()?;
        self.shared.events.queue(Event::Started { id: self.id.clone(), pid });
        Ok(pid)
    }

    /// The refusal of a change that came too late: nothing may follow the news of the end.
    pub(super) fn ended(&self, change: &'static str) -> Error {
        Error::State { id: self.id.to_string(), change, state: "stopped" }
    }

    fn init_pid(&self) -> Result<Pid> {
        self.init.pid().ok_or(Error::NotFound { what: "process", id: self.id.to_string() })
    }

    /// Signals the init process, with `all` every process of the container, or those that berth
    /// knows of a container without a cgroup of its own. It waits for no turn: a container whose
    /// Start or Pause hangs can be killed. A paused one takes SIGKILL at once and other signals when
    /// it goes on.
    ///
    /// # Errors
    /// [`Error::Finished`] if there is nothing left to signal; [`Error::Invalid`] for a number that is no
    /// signal; as the runtime says.
    pub(crate) async fn kill(
        &self,
        signal: u32,
        all: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if self.init.is_dead() {
            return Err(Error::Finished { id: self.id.to_string() });
        }
        if !i32::try_from(signal).is_ok_and(|signal| signal <= libc::SIGRTMAX()) {
            // crun 1.8 freezes the container before it sees that, and leaves it so.
            return Err(Error::Invalid(format!("{signal} is no signal")));
        }
        let _under_way = UnderWay::begin(&self.kills);
        // As an ordinary user's containers may have none, runc refuses, and crun 1.8 goes for the
        // processes of the root cgroup: all of the host's.
        let has_cgroup = self.cgroup.get().is_some();
        if all && !has_cgroup {
            self.signal_execs(signal);
        }
        match self.runtime.kill(&self.call(deadline), signal, all && has_cgroup).await {
            // It ended while the runtime looked for it, whatever the runtime calls that.
            Err(Error::Runtime { .. }) if self.init.is_dead() => {
                Err(Error::Finished { id: self.id.to_string() })
            }
            // One that is to be restored: there is nothing before Start, whatever the runtime calls it.
            Err(Error::Runtime { .. }) if self.init.pid().is_none() => {
                Err(Error::Finished { id: self.id.to_string() })
            }
            // runsc signals no container that was not started; its one process can be killed.
            Err(Error::Runtime { .. }) if signal == 9 && self.init.state() == State::Created => {
                self.init.signal(signal)
            }
            Ok(()) if signal == 9 => {
                self.killed.set(true);
                self.let_die();
                Ok(())
            }
            result => result,
        }
    }

    /// Signals the exec processes that berth started.
    fn signal_execs(&self, signal: u32) {
        let execs: Vec<_> = self.execs.borrow().values().cloned().collect();
        for exec in execs.into_iter().filter(|exec| exec.is_alive()) {
            match exec.signal(signal) {
                Ok(()) | Err(Error::Finished { .. }) => {}
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    /// Sets limits: `resources` is OCI `LinuxResources` as JSON. It is the runtime that does it, so
    /// that its state and a systemd unit follow; what it does not know there, it passes over (runc
    /// 1.1: huge pages, throttled devices, swappiness, RDMA, devices).
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no object; [`Error::State`] after the end; as the runtime says.
    pub(crate) async fn update(&self, resources: &[u8], deadline: Option<Instant>) -> Result<()> {
        let resources = limits(resources)?;
        let _turn = turn(&self.adjusting, self.id.as_str(), deadline).await?;
        if self.init.is_dead() {
            return Err(self.ended("update"));
        }
        let file = bundle::Scratch::write(self.bundle.dir().join("resources.json"), &resources)?;
        self.runtime.update(&self.call(deadline), file.path()).await
    }

    /// Every process of the container, with the id of each exec process that berth started.
    ///
    /// Once nothing lives it is the init process's pid: containerd takes a task without processes
    /// for a leaked shim when it comes back, and would drop it before it hears of the exit
    /// (`cleaning leaked shim process` in its log).
    ///
    /// # Errors
    /// [`Error::Io`] if the cgroup cannot be read.
    pub(crate) fn pids(&self) -> Result<Vec<(Pid, Option<ExecId>)>> {
        let known = self.known_pids();
        let mut pids = match self.cgroup.get() {
            Some(cgroup) => cgroup.pids()?.unwrap_or_default(),
            None => Vec::new(),
        };
        pids.extend(known.keys()); // one with the rights may leave the cgroup
        if pids.is_empty() {
            pids.extend(self.init.pid());
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids.into_iter().map(|pid| (pid, known.get(&pid).cloned().flatten())).collect())
    }

    fn known_pids(&self) -> BTreeMap<Pid, Option<ExecId>> {
        let execs = self.execs.borrow();
        let processes = execs.values().chain([&self.init]).filter(|process| process.is_alive());
        processes.filter_map(|process| Some((process.pid()?, process.exec_id.clone()))).collect()
    }

    /// The container's own cgroup.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has none of its own.
    pub(crate) fn cgroup(&self) -> Result<&Cgroup> {
        let missing = || Error::NotFound { what: "cgroup of container", id: self.id.to_string() };
        self.cgroup.get().ok_or_else(missing)
    }

    /// Removes a container whose init process has ended, or was never started; returns its pid and exit,
    /// unless it was to be restored and has never had a process.
    ///
    /// Order: output to its readers (10 s at most), the runtime's state and cgroup, rootfs,
    /// `/tasks/delete`, the container's entry.
    ///
    /// # Errors
    /// [`Error::State`] while it runs. If output did not reach its reader in time,
    /// [`Error::Deadline`] that names the holder; as the runtime says. The container is then still
    /// there, since containerd asks for the State before it deletes, and would forget to remove the
    /// bundle and the shim of one that is gone. The next Delete waits for no output.
    pub(crate) async fn delete(&self, deadline: Option<Instant>) -> Result<Option<(Pid, Exit)>> {
        if self.init.state() == State::Created {
            self.end_unstarted(deadline).await?;
        }
        let _turn = self.init.take_turn(deadline).await?;
        let ended = self.init.pid().zip(self.init.state().exit());
        if ended.is_none() && self.init.pid().is_some() {
            let state = self.init.state().name();
            return Err(Error::State { id: self.id.to_string(), change: "delete", state });
        }
        if !self.is_known() {
            return Err(Error::NotFound { what: "container", id: self.id.to_string() });
        }
        self.init.finish_io(drain_until(deadline)).await?;
        // containerd hangs up behind the last Delete, also on whoever waits for the answer to a Kill.
        let _ = timeout(KILLS, self.kills.subscribe().wait_for(|count| *count == 0)).await;
        if self.is_frozen() {
            // It was dying when it was frozen. runc calls that paused, and would not delete it.
            self.thaw();
        }
        match self.runtime.delete(&self.call(deadline), false).await {
            Err(Error::Runtime { message, .. }) if failure::is_deleted(&message) => {}
            result => result?,
        }
        // runc ends well although it could not: then no other container could have the id.
        self.runtime.remove_state(&self.id)?;
        let rootfs = self.rootfs.take();
        if let Some(mut rootfs) = rootfs {
            if let Err(error) = rootfs.try_unmount().await {
                self.rootfs.replace(Some(rootfs)); // for the next Delete
                return Err(error);
            }
        }
        self.execs.take(); // those that were never started, and their waiters
        self.bundle.remove_state(); // a later `delete` has nothing to do
        self.shared.events.queue(Event::Deleted { id: self.id.clone(), ended });
        self.shared.map.borrow_mut().remove(&self.id);
        self.shared.note_change();
        self.shared.note_deleted();
        Ok(ended)
    }

    /// Whether the id still means this container: after its end it may be another's.
    fn is_known(&self) -> bool {
        let map = self.shared.map.borrow();
        matches!(map.get(&self.id), Some(Slot::Ready(known)) if std::ptr::eq(&raw const **known, self))
    }

    /// Kills an init process that waits for Start, and waits for its end. One that is just being
    /// started runs by the time that its turn is over, and lives on.
    async fn end_unstarted(&self, deadline: Option<Instant>) -> Result<()> {
        let turn = self.init.take_turn(deadline).await?;
        if self.init.state() != State::Created || self.init.pid().is_none() {
            return Ok(());
        }
        let ended = self.init.wait();
        match self.init.signal(9) {
            Ok(()) | Err(Error::Finished { .. }) => {}
            Err(error) => return Err(error),
        }
        drop(turn); // its end takes the next one
        let late = Error::Deadline {
            what: format!("the killed init process of {:?}", self.id.as_str()),
            limit: KILL_GRACE,
        };
        timeout(KILL_GRACE, ended).await.map(drop).map_err(|_| late)
    }
}

/// Resources without the parts that are `null`, at which runc 1.1 crashes.
fn limits(resources: &[u8]) -> Result<Vec<u8>> {
    let wrong = |error| Error::Invalid(format!("resources are no LinuxResources: {error}"));
    let mut parts: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(resources).map_err(wrong)?;
    parts.retain(|_, part| !part.is_null());
    serde_json::to_vec(&parts).map_err(wrong)
}

/// Counts a request as long as it lives.
pub(super) struct UnderWay<'a>(&'a watch::Sender<u32>);

impl<'a> UnderWay<'a> {
    pub(super) fn begin(count: &'a watch::Sender<u32>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Until when Delete waits for output: 10 s, or less if the caller's time is shorter. A third of
/// that is left for the steps that follow.
pub(super) fn drain_until(deadline: Option<Instant>) -> Instant {
    let now = Instant::now();
    let caller = deadline.map(|deadline| deadline.saturating_duration_since(now) / 3 * 2);
    now + caller.map_or(DRAIN, |caller| caller.min(DRAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_waits_for_output_no_longer_than_its_caller_can_spare() {
        let cases = [
            ("no deadline", None, DRAIN),
            ("short", Some(Duration::from_secs(3)), Duration::from_secs(2)),
            ("CRI's", Some(Duration::from_secs(10)), Duration::from_secs(10) / 3 * 2),
            ("long", Some(Duration::from_secs(120)), DRAIN),
            ("over", Some(Duration::ZERO), Duration::ZERO),
        ];
        let slack = Duration::from_millis(100);
        for (name, left, expected) in cases {
            let now = Instant::now();
            let wait = drain_until(left.map(|left| now + left)).saturating_duration_since(now);
            assert!(wait <= expected + slack && wait + slack >= expected, "{name}: {wait:?}");
        }
    }
}
