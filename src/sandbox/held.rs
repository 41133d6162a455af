//! A sandbox without a container: its namespaces, held by a process of berth's own, its cgroup and
//! its files.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::net::UnixStream;
use tokio::select;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use crate::bundle::{Bundle, PodState, SharedMount};
use crate::cgroup::stats::{Stats, stats};
use crate::cgroup::{Cgroup, Hierarchies, Removal};
use crate::error::{Error, Result};
use crate::ids::{ContainerId, Namespace, Pid};
use crate::reaper::{Exit, Reaper};
use crate::rootless;
use crate::sandbox::files::Files;
use crate::sandbox::pod::Pod;
use crate::sandbox::spawn;
use crate::sys::child::start_time;
use crate::sys::pidfd::pidfd_send_signal;

/// How long the end of a killed process, and the removal of its cgroup, may take.
const END: Duration = Duration::from_secs(5);

/// What CreateSandbox says.
pub(crate) struct Request {
    /// The sandbox's id.
    pub(crate) id: ContainerId,
    /// Its bundle's directory.
    pub(crate) bundle: String,
    /// The pod's network namespace; empty if it has the host's.
    pub(crate) network: String,
    /// How the pod was asked for; `None` by a client that is not CRI.
    pub(crate) pod: Option<Pod>,
}

/// Whose daemon the sandbox is in.
pub(crate) struct Home {
    /// The group of all containers of the pod.
    pub(crate) group: String,
    pub(crate) namespace: Namespace,
    pub(crate) socket: PathBuf,
    pub(crate) reaper: Reaper,
}

/// Where a sandbox is in its life: `Created -> Ready -> Ended`, or right to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Start is to come.
    Created,
    /// The holder runs.
    Ready,
    /// The holder has ended, or will never run.
    Ended(Exit),
}

/// A pod's sandbox.
pub(crate) struct Sandbox {
    pub(crate) id: ContainerId,
    pub(crate) pod: Pod,
    home: Home,
    bundle: Bundle,
    network: String,
    files: Files,
    saved: RefCell<PodState>,
    /// Start and Stop take turns.
    turn: Mutex<()>,
    /// How many Stops want theirs: no Start goes on then.
    stopping: watch::Sender<usize>,
    stage: watch::Sender<Stage>,
    created_at: Cell<SystemTime>,
    pid: Cell<Option<Pid>>,
    pidfd: RefCell<Option<OwnedFd>>,
    /// Its end is the holder's end too.
    lifeline: RefCell<Option<UnixStream>>,
}

impl Sandbox {
    /// Checks what was asked for and notes it down; nothing runs yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a pod that berth cannot make; [`Error::Io`].
    pub(crate) fn new(request: Request, home: Home) -> Result<Self> {
        let Request { id, bundle, network, pod } = request;
        let bundle = Bundle::open(&bundle)?;
        let pod = spawn::complete(pod, &network);
        pod.sysctls()?;
        pod.cgroup(home.namespace.as_str(), &id)?;
        let saved = PodState::new(home.group.clone(), home.socket.clone());
        bundle.save_pod(&saved)?;
        Ok(Self {
            files: Files::of(bundle.dir()),
            id,
            pod,
            home,
            bundle,
            network,
            saved: RefCell::new(saved),
            turn: Mutex::default(),
            stopping: watch::Sender::new(0),
            stage: watch::Sender::new(Stage::Created),
            created_at: Cell::new(SystemTime::now()),
            pid: Cell::default(),
            pidfd: RefCell::default(),
            lifeline: RefCell::default(),
        })
    }

    /// Where it is in its life.
    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// The holder's pid, also after its end.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid.get()
    }

    /// When it was started, and before that when it was created.
    pub(crate) fn created_at(&self) -> SystemTime {
        self.created_at.get()
    }

    /// Makes files, holder and cgroup; returns the holder's pid. What fails is undone, and may be
    /// tried again.
    ///
    /// # Errors
    /// [`Error::Exists`] once started, as containerd's own sandbox controller has it;
    /// [`Error::State`] after Stop, also if that comes meanwhile; [`Error::Deadline`];
    /// [`Error::Io`] and [`Error::Sys`] with what did not work.
    pub(crate) async fn start(self: &Rc<Self>, deadline: Option<Instant>) -> Result<Pid> {
        let _turn = self.take_turn(deadline).await?;
        match self.stage() {
            Stage::Created => {}
            Stage::Ready => {
                return Err(Error::Exists { what: "running sandbox", id: self.id.to_string() });
            }
            Stage::Ended(_) => return Err(self.refuse("start", "stopped")),
        }
        let mut stopping = self.stopping.subscribe();
        let made = select! {
            biased;
            _ = stopping.wait_for(|stops| *stops > 0) => Err(self.refuse("start", "being stopped")),
            made = self.make(deadline) => made,
        };
        if made.is_err() {
            self.lifeline.take();
            let until = Instant::now() + END;
            self.clean_up(until).await.unwrap_or_else(|error| log::warn!("{error}"));
        }
        made
    }

    async fn make(self: &Rc<Self>, deadline: Option<Instant>) -> Result<Pid> {
        self.files.make(&self.pod)?;
        let cgroup = self.make_cgroup()?;
        let plan = spawn::plan(&self.pod, &self.network)?;
        let held = spawn::spawn(&self.id, &plan, &self.home.reaper, deadline, |pid| {
            cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.add(pid))?;
            self.save(|state| state.holder = start_time(pid).map(|ticks| (pid.get(), ticks)))
        });
        let held = held.await?;
        let pid = held.child.pid;
        self.pid.set(Some(pid));
        self.pidfd.replace(Some(held.pidfd));
        self.lifeline.replace(Some(held.lifeline));
        self.created_at.set(SystemTime::now());
        self.stage.send_replace(Stage::Ready);
        let sandbox = self.clone();
        spawn_local(async move {
            let exit = held.child.exit.await.unwrap_or_else(|_| Exit::killed());
            sandbox.ended(exit);
        });
        log::info!("sandbox {:?}: held by process {pid}", self.id.as_str());
        Ok(pid)
    }

    /// Makes the sandbox's cgroup. A rootless berth may have no right to, and does without.
    fn make_cgroup(&self) -> Result<Option<Cgroup>> {
        let path = self.pod.cgroup(self.home.namespace.as_str(), &self.id)?;
        let hierarchies = Hierarchies::read()?;
        let cgroup = hierarchies.at(&path);
        // What is saved is killed and removed: never a cgroup that somebody else has.
        hierarchies.refuse_used(&cgroup)?;
        self.save(|state| state.cgroup = Some(cgroup.clone()))?;
        match hierarchies.make(&path) {
            Ok(()) => Ok(Some(cgroup)),
            Err(error) if rootless::detected() => {
                log::warn!("sandbox {:?} has no cgroup: {error}", self.id.as_str());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes the holder's end and wakes every Wait.
    fn ended(&self, exit: Exit) {
        self.pidfd.take();
        self.lifeline.take();
        self.stage.send_if_modified(|stage| {
            let lives = !matches!(stage, Stage::Ended(_));
            if lives {
                *stage = Stage::Ended(exit);
            }
            lives
        });
    }

    /// Start's or Stop's turn, waited for no longer than the caller waits.
    async fn take_turn(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, ()>> {
        let Some(deadline) = deadline else { return Ok(self.turn.lock().await) };
        let began = Instant::now();
        timeout_at(deadline, self.turn.lock()).await.map_err(|_| Error::Deadline {
            what: format!("an earlier request for sandbox {:?}", self.id.as_str()),
            limit: deadline.saturating_duration_since(began),
        })
    }

    /// As [`Self::stop_by`], for a caller that waits as long as it takes.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.stop_by(None).await
    }

    /// Ends the holder and removes cgroup and files; once that is done, it is done for good. A
    /// Start that is under way is broken off.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the holder does not end; [`Error::Io`] for what could not be removed.
    pub(crate) async fn stop_by(&self, deadline: Option<Instant>) -> Result<()> {
        let _stop = Stopping::new(&self.stopping);
        let _turn = self.take_turn(deadline).await?;
        let latest = Instant::now() + END;
        let until = deadline.map_or(latest, |deadline| deadline.min(latest));
        if let Some(pidfd) = &*self.pidfd.borrow() {
            let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL); // it may have ended
        }
        match self.stage() {
            Stage::Created => self.ended(Exit::killed()),
            Stage::Ready => {
                let what = format!("the holder of sandbox {:?}", self.id.as_str());
                let limit = until.saturating_duration_since(Instant::now());
                let late = |_| Error::Deadline { what, limit };
                timeout_at(until, self.wait()).await.map_err(late)?;
            }
            Stage::Ended(_) => {}
        }
        self.clean_up(until).await
    }

    /// Resolves when the sandbox has ended; at once if that was earlier.
    pub(crate) fn wait(&self) -> impl Future<Output = Exit> + 'static {
        let mut stage = self.stage.subscribe();
        async move {
            let ended = stage.wait_for(|stage| matches!(stage, Stage::Ended(_))).await;
            match ended.map(|stage| *stage) {
                Ok(Stage::Ended(exit)) => exit,
                _ => Exit::killed(),
            }
        }
    }

    /// Removes cgroup and files, as far as they are there.
    async fn clean_up(&self, until: Instant) -> Result<()> {
        let cgroup = self.saved.borrow().cgroup.clone();
        let removed = match &cgroup {
            Some(cgroup) => remove(cgroup, until).await,
            None => Ok(()),
        };
        let files = self.files.remove();
        removed.and(files)?;
        self.save(|state| (state.holder, state.cgroup) = (None, None))
    }

    /// Refuses containers that have no namespaces to be in.
    ///
    /// # Errors
    /// [`Error::State`] before Start and after the end.
    pub(crate) fn admits_containers(&self) -> Result<()> {
        match self.stage() {
            Stage::Ready => Ok(()),
            Stage::Created => Err(self.refuse("create a container in sandbox", "not started")),
            Stage::Ended(_) => Err(self.refuse("create a container in sandbox", "stopped")),
        }
    }

    /// Prepares the bundle of one of the pod's containers, and notes where it is.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Invalid`] for a config.json that is none.
    pub(crate) fn equip(&self, bundle: &Bundle) -> Result<()> {
        let parent = bundle.dir().parent().unwrap_or(bundle.dir()).to_owned();
        if !self.saved.borrow().bundles.contains(&parent) {
            self.save(|state| state.bundles.push(parent))?;
        }
        bundle.share(&self.mounts())
    }

    /// What the pod's containers have in common.
    pub(crate) fn mounts(&self) -> Vec<SharedMount> {
        self.files.mounts(&self.pod)
    }

    /// Removes what `delete` would go by.
    pub(crate) fn forget(&self) {
        self.bundle.remove_state();
    }

    /// Whether the holder runs.
    ///
    /// # Errors
    /// [`Error::State`] once it has ended.
    pub(crate) fn ping(&self) -> Result<()> {
        match self.stage() {
            Stage::Ended(_) => Err(self.refuse("ping", "stopped")),
            Stage::Created | Stage::Ready => Ok(()),
        }
    }

    /// What the whole pod used: its cgroup where it was given one, else the sandbox's.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such cgroup (any more).
    pub(crate) fn metrics(&self) -> Result<Stats> {
        let missing = || Error::NotFound { what: "cgroup of sandbox", id: self.id.to_string() };
        let cgroup = match self.pod.parent_cgroup()? {
            Some(path) => Hierarchies::read()?.existing(&path),
            None => self.saved.borrow().cgroup.clone(),
        };
        stats(&cgroup.ok_or_else(missing)?)
    }

    /// What a person may want to know, for `crictl inspectp`: JSON in the words of CRI's plugin.
    pub(crate) fn info(&self) -> BTreeMap<String, String> {
        let status = match self.stage() {
            Stage::Created => "created",
            Stage::Ready => "running",
            Stage::Ended(_) => "stopped",
        };
        let cgroup = self.pod.cgroup(self.home.namespace.as_str(), &self.id).ok();
        let info = serde_json::json!({
            "pid": self.pid().map_or(0, Pid::get),
            "processStatus": status,
            "runtimeType": crate::NAME,
            "network": self.network,
            "cgroup": cgroup,
            "mounts": self.mounts().iter().map(|mount| &mount.source).collect::<Vec<_>>(),
        });
        BTreeMap::from([("info".to_owned(), info.to_string())])
    }

    fn save(&self, change: impl FnOnce(&mut PodState)) -> Result<()> {
        change(&mut self.saved.borrow_mut());
        self.bundle.save_pod(&self.saved.borrow())
    }

    fn refuse(&self, change: &'static str, state: &'static str) -> Error {
        Error::State { id: self.id.to_string(), change, state }
    }
}

/// One Stop, from before its turn to its end.
struct Stopping<'a>(&'a watch::Sender<usize>);

impl<'a> Stopping<'a> {
    fn new(stops: &'a watch::Sender<usize>) -> Self {
        stops.send_modify(|stops| *stops += 1);
        Self(stops)
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|stops| *stops -= 1);
    }
}

/// Removes a cgroup whose last process has just ended, or is about to.
async fn remove(cgroup: &Cgroup, until: Instant) -> Result<()> {
    while cgroup.remove()? == Removal::Busy {
        if Instant::now() >= until {
            let busy = io::Error::from_raw_os_error(libc::EBUSY);
            return Err(Error::sys("remove the sandbox's cgroup")(busy));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
