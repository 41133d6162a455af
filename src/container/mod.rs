//! The daemon's containers by id, and what they share.

mod checkpoint;
#[expect(clippy::module_inception, reason = "it is the type after which the directory is named")]
mod container;
mod create;
mod exec;
mod exit;
mod handover;
mod idle;
mod oom;
mod pause;
mod pod;
mod process;
mod state;
mod undo;
mod view;

pub(crate) use container::Container;
pub(crate) use create::Creation;
pub(crate) use idle::Need;
pub(crate) use process::Process;
pub(crate) use state::State;
pub(crate) use view::{Pod, View};

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::{Config, Seen};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::ids::{ContainerId, Namespace};
use crate::io::Registry;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::sandbox::kind::Kind;

/// What all containers of one daemon share.
pub(crate) struct Containers {
    /// containerd's namespace.
    pub(crate) namespace: Namespace,
    /// The pod's id, or the only container's.
    pub(crate) group: String,
    /// The daemon's own socket.
    pub(crate) socket: PathBuf,
    /// The daemon's waiter.
    pub(crate) reaper: Reaper,
    /// The daemon's journal.
    pub(crate) events: Events,
    /// The streams that clients have opened for processes.
    pub(crate) streams: Rc<Registry>,
    map: RefCell<BTreeMap<ContainerId, Slot>>,
    /// The pod's, if it is no container.
    sandbox: RefCell<Option<Rc<Sandbox>>>,
    /// That of the first container, for all that come after it.
    config: RefCell<Option<Rc<Config>>>,
    /// Where each of its values is from.
    seen: RefCell<Seen>,
    /// There is a container, or was, or a sandbox that is none.
    begun: Cell<bool>,
    begins: Notify,
    /// Shutdown was asked for while all that there was were creations under way.
    asked_to_close: Cell<bool>,
    closing: Cell<bool>,
    closes: Notify,
    ended: Cell<bool>,
    closed: Notify,
    /// A container has ended or is gone.
    changed: Notify,
    /// Processes that were deleted since memory was given back.
    deleted: Cell<u32>,
}

enum Slot {
    /// Create is under way.
    Reserved(Kind, Rc<Progress>),
    Ready(Rc<Container>),
}

/// How far a Create is.
struct Progress {
    began: Instant,
    step: Cell<&'static str>,
}

impl Progress {
    fn new() -> Rc<Self> {
        Rc::new(Self { began: Instant::now(), step: Cell::new("it begins") })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "since {} s: {}", self.began.elapsed().as_secs(), self.step.get())
    }
}

impl Slot {
    fn kind(&self) -> &Kind {
        match self {
            Self::Reserved(kind, _) => kind,
            Self::Ready(container) => &container.kind,
        }
    }

    fn ready(&self) -> Option<Rc<Container>> {
        match self {
            Self::Ready(container) => Some(container.clone()),
            Self::Reserved(..) => None,
        }
    }

    fn is_ready_sandbox(&self) -> bool {
        matches!(self, Self::Ready(container) if container.kind == Kind::Sandbox)
    }
}

impl Containers {
    /// No containers yet.
    pub(crate) fn new(
        namespace: Namespace,
        group: String,
        socket: PathBuf,
        reaper: Reaper,
        events: Events,
    ) -> Self {
        Self {
            namespace,
            group,
            streams: Registry::new(socket.clone()),
            socket,
            reaper,
            events,
            map: RefCell::default(),
            sandbox: RefCell::default(),
            config: RefCell::default(),
            seen: RefCell::default(),
            begun: Cell::default(),
            begins: Notify::new(),
            asked_to_close: Cell::default(),
            closing: Cell::default(),
            closes: Notify::new(),
            ended: Cell::default(),
            closed: Notify::new(),
            changed: Notify::new(),
            deleted: Cell::default(),
        }
    }

    /// The id of the pod's sandbox, if it is a container.
    fn sandbox_container(&self) -> Option<ContainerId> {
        let map = self.map.borrow();
        map.iter().find(|(_, slot)| *slot.kind() == Kind::Sandbox).map(|(id, _)| id.clone())
    }

    /// The container named `id`.
    ///
    /// # Errors
    /// [`Error::NotFound`], also while its Create is under way.
    pub(crate) fn get(&self, id: &str) -> Result<Rc<Container>> {
        let id = ContainerId::new(id)?;
        match self.map.borrow().get(&id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(Error::NotFound { what: "container", id: id.to_string() }),
        }
    }

    /// Ends the daemon if it has no container and no sandbox, or when the creations that are under way have all
    /// failed; otherwise nothing changes.
    fn shut_down_if_empty(&self) {
        let ready = |slot: &Slot| matches!(slot, Slot::Ready(_));
        self.asked_to_close.set(!self.map.borrow().values().any(ready));
        self.close_if_asked();
    }

    fn close_if_asked(&self) {
        let empty = self.map.borrow().is_empty() && self.sandbox.borrow().is_none();
        if self.asked_to_close.get() && empty {
            self.close();
        }
    }

    /// Whether containers can still be created.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`].
    pub(crate) fn takes_new(&self) -> Result<()> {
        if self.closing.get() { Err(Error::ShuttingDown) } else { Ok(()) }
    }

    /// From now on nothing is created, and no reader is waited for; what there is may still be removed.
    fn begin_to_close(&self) {
        self.closing.set(true);
        self.closes.notify_waiters();
    }

    /// Resolves when the daemon begins to end.
    async fn begins_to_close(&self) {
        while !self.closing.get() {
            self.closes.notified().await;
        }
    }

    /// The same, and [`Containers::closed`] resolves.
    pub(crate) fn close(&self) {
        self.begin_to_close();
        self.ended.set(true);
        self.closed.notify_waiters();
    }

    /// Resolves when the daemon is to end.
    pub(crate) async fn closed(&self) {
        while !self.ended.get() {
            self.closed.notified().await;
        }
    }

    /// One line for each process, for a person who looks for a stuck one.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(
            self.held().map(|sandbox| format!("sandbox {}: {:?}", sandbox.id, sandbox.stage())),
        );
        for (id, slot) in self.map.borrow().iter() {
            match slot {
                Slot::Reserved(_, progress) => {
                    lines.push(format!("container {id}: being created, {progress}"));
                }
                Slot::Ready(container) => {
                    lines.push(format!("container {id}: {}", container.init.describe()));
                    let toll = container.oom_toll();
                    if toll.kills > 0 {
                        lines.push(format!("container {id}: out of memory: {toll}"));
                    }
                    for (exec_id, exec) in container.execs.borrow().iter() {
                        lines.push(format!("container {id} exec {exec_id}: {}", exec.describe()));
                    }
                }
            }
        }
        lines.push(format!("{} events wait for containerd", self.events.waiting()));
        lines
    }
}
