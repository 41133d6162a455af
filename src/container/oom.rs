//! Kills for lack of memory, told before the exit that they explain.

use std::cell::Cell;
use std::rc::Rc;

use tokio::task::{AbortHandle, spawn_local};

use crate::cgroup::{Cgroup, Limit, OomWatch, Toll};
use crate::container::{Container, Process};
use crate::events::{Event, Events};
use crate::ids::ContainerId;
use crate::meters::{self, Meters};

/// Tells of kills in one container, until it is dropped.
pub(super) struct Oom {
    teller: Rc<Teller>,
    task: AbortHandle,
}

struct Teller {
    watch: OomWatch,
    id: ContainerId,
    events: Events,
    toll: Rc<Cell<Toll>>,
    meters: Rc<Meters>,
}

impl Drop for Oom {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Oom {
    /// Begins to tell of kills in `cgroup`; `None` if its memory is not counted.
    ///
    /// Those of processes that nobody waits for are told when the kernel notifies. It takes the
    /// init process's turn, so that a Start that is under way queues its own event first.
    pub(super) fn watch(
        cgroup: &Cgroup,
        id: ContainerId,
        init: Rc<Process>,
        events: Events,
        toll: Rc<Cell<Toll>>,
        meters: Rc<Meters>,
    ) -> Option<Self> {
        let teller = Rc::new(Teller { watch: OomWatch::open(cgroup)?, id, events, toll, meters });
        let told = teller.clone();
        let task = spawn_local(async move {
            loop {
                told.watch.next().await;
                let _turn = init.turn.lock().await;
                told.tell();
            }
        });
        Some(Self { teller, task: task.abort_handle() })
    }
}

impl Teller {
    fn tell(&self) {
        let Some(kills) = self.watch.check(&self.toll) else { return };
        log::info!(
            "out of memory in container {}: {kills}; {} so far",
            self.id,
            self.toll.get().kills
        );
        let limit = match kills.limit {
            Limit::Own => 0,
            Limit::LikelyOwn => 1,
            Limit::Around => 2,
        };
        meters::add(&self.meters.oom_kills[limit], kills.new);
        self.events.queue(Event::Oom { id: self.id.clone() });
    }
}

impl Container {
    /// Notes kills while the cgroup is there for sure: at a process's end, before anything waits.
    pub(super) fn note_oom(&self) {
        if let Some(oom) = &*self.oom.borrow() {
            oom.teller.watch.note();
        }
    }

    /// The kills so far, also after the container's end.
    pub(crate) fn oom_toll(&self) -> Toll {
        self.toll.get()
    }

    /// Queues `/tasks/oom` if a process was killed that it was not queued for; to be called between
    /// a process's end and the event that says so. Without an await: what follows stays next.
    pub(super) fn tell_oom(&self) {
        if let Some(oom) = &*self.oom.borrow() {
            oom.teller.tell();
        }
    }

    /// [`Container::tell_oom`] for the last time: the init process's exit is the container's end.
    pub(super) fn tell_last_oom(&self) {
        self.tell_oom();
        self.oom.take();
    }
}
