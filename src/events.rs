//! What happened to tasks, in one ordered journal, and its delivery to containerd.
//!
//! Whoever changes a task queues the event in the same turn, without an await in between: the
//! queue's order is then the task's order. One loop delivers from the head and takes an event off
//! only when containerd has answered, so nothing is lost while containerd is down, however long: what
//! is more than a little goes to a file without a name in the bundle's work directory.
//!
//! An event arrives twice if containerd took it and its answer did not come here: it was killed in
//! between, or answered later than this waited. containerd and its clients bear that: they find the
//! process ended, or the container gone, which the event tells. One that ends a second time has the
//! same pid, status and time.
//!
//! The daemon ends with events that were not taken only after [`crate::daemon`]'s time for them, if it is
//! killed, or if the disk that has them fails. `delete`, which containerd runs then, answers with an exit
//! in place of the lost one.

mod recent;
mod store;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;
use ttrpc::Code;

pub(crate) use self::recent::Recent;
use self::recent::Ring;
use self::store::{Head, Read, Record, Store};
use crate::error::Error;
use crate::ids::{ContainerId, ExecId, Namespace, Pid};
use crate::io::StdioSpec;
use crate::meters;
use crate::reaper::Exit;
use crate::rootfs::Mount;
use crate::rpc::client::Client;
use crate::sys::thread::blocking;
use crate::wire;

/// How long containerd may take to accept one event, as the Go shim has it; doubled each time that it
/// takes longer, so that one that is slow, but answers, does not get the same event for ever.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// A containerd that is stopped for long reads each of these tries when it goes on, so they are few.
const LAST_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause before the first repetition; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const SECOND_PAUSE: Duration = Duration::from_millis(40);
/// Longest pause, so that a containerd that is back hears of everything soon.
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after the disk has refused events.
const DISK_PAUSE: Duration = Duration::from_secs(2);
/// How often a failing disk is asked for what it has before that is given up.
const READS: u32 = 5;

/// Something that happened to a task. `pid` is the process's own, `id` the container's.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The container was created; its init process waits for Start.
    Created {
        id: ContainerId,
        bundle: PathBuf,
        rootfs: Vec<Mount>,
        stdio: StdioSpec,
        checkpoint: String,
        /// None yet, where it is to be restored from a checkpoint.
        pid: Option<Pid>,
    },
    /// The user's program runs as the init process.
    Started { id: ContainerId, pid: Pid },
    /// The init process (`exec_id` is `None`) or an exec process ended.
    Exited { id: ContainerId, exec_id: Option<ExecId>, pid: Pid, exit: Exit },
    /// The container is gone; one that was to be restored may never have had a process.
    Deleted { id: ContainerId, ended: Option<(Pid, Exit)> },
    /// An exec process was described; it does not run yet.
    ExecAdded { id: ContainerId, exec_id: ExecId },
    /// An exec process runs.
    ExecStarted { id: ContainerId, exec_id: ExecId, pid: Pid },
    /// The kernel killed at least one process of the container for lack of memory.
    Oom { id: ContainerId },
    /// All processes of the container are frozen.
    Paused { id: ContainerId },
    /// All processes of the container run again.
    Resumed { id: ContainerId },
    /// The container's processes were saved in the directory `image`.
    Checkpointed { id: ContainerId, image: PathBuf },
}

impl Event {
    /// Somebody waits for it, or acts on it, and nothing else tells: never dropped.
    fn is_vital(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::Oom { .. } | Self::Deleted { .. })
    }
}

/// The journal; cheap to clone, all clones are one.
#[derive(Clone)]
pub(crate) struct Events(Rc<Journal>);

/// A bundle that the journal may write to, until this is dropped.
#[must_use = "dropping it takes the place away"]
pub(crate) struct Place {
    journal: Rc<Journal>,
    place: Rc<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.journal.places.borrow_mut().retain(|place| !Rc::ptr_eq(place, &self.place));
    }
}

struct Journal {
    namespace: Namespace,
    places: RefCell<Vec<Rc<PathBuf>>>,
    store: RefCell<Store>,
    counts: Counts,
    recent: RefCell<Ring>,
    queued: Notify,
    overflows: Notify,
    empty: Notify,
}

/// How many events there have been.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Those that happened.
    pub(crate) queued: Cell<u64>,
    /// Those that containerd took.
    pub(crate) delivered: Cell<u64>,
    /// Those that were dropped, lost with a disk, or refused.
    pub(crate) dropped: Cell<u64>,
    /// When containerd last took one, or the first was queued behind none.
    progress: Cell<Option<Instant>>,
}

impl Events {
    /// An empty journal for the tasks of one containerd namespace.
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self(Rc::new(Journal {
            namespace,
            // The daemon's own directory, as long as somebody has it.
            places: RefCell::new(vec![Rc::new(PathBuf::from("."))]),
            store: RefCell::default(),
            counts: Counts::default(),
            recent: RefCell::default(),
            queued: Notify::new(),
            overflows: Notify::new(),
            empty: Notify::new(),
        }))
    }

    /// Lets what is too much for memory go to the work directory of `bundle`, as long as the guard lives.
    pub(crate) fn may_use(&self, bundle: PathBuf) -> Place {
        let place = Rc::new(bundle);
        self.0.places.borrow_mut().push(place.clone());
        Place { journal: self.0.clone(), place }
    }

    /// Appends an event. Call it in the turn that made the event true, before any await.
    pub(crate) fn queue(&self, event: Event) {
        log::debug!("event: {event:?}");
        let now = SystemTime::now();
        self.0.recent.borrow_mut().push(&event, now);
        let counts = &self.0.counts;
        meters::add(&counts.queued, 1);
        let encoded = wire::event::forward_request(&event, now, &self.0.namespace);
        let bytes = match encoded {
            Ok(bytes) => bytes.into_boxed_slice(),
            Err(error) => {
                meters::add(&counts.dropped, 1);
                return log::error!("an event is lost: {error}");
            }
        };
        let mut store = self.0.store.borrow_mut();
        if store.len() == 0 {
            counts.progress.set(Some(Instant::now()));
        }
        if !store.push(Record { bytes, vital: event.is_vital() }) {
            meters::add(&counts.dropped, 1);
            log::debug!("dropped: {event:?}");
        }
        if store.overflows() {
            self.0.overflows.notify_one();
        }
        self.0.queued.notify_one();
    }

    /// How many events containerd has not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        self.0.store.borrow().len()
    }

    /// How long containerd has taken none of those that wait.
    pub(crate) fn stalled(&self) -> Duration {
        let since = self.0.counts.progress.get().filter(|_| self.waiting() > 0);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How many events there have been.
    pub(crate) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// The last events, the oldest first.
    pub(crate) fn recent(&self) -> Vec<Recent> {
        self.0.recent.borrow().all()
    }

    /// Resolves when containerd has taken everything that is queued.
    pub(crate) async fn delivered(&self) {
        while self.waiting() > 0 {
            self.0.empty.notified().await;
        }
    }

    /// Delivers for ever to the events service on the unix socket at `address`.
    ///
    /// An event that containerd answers with a refusal of the event itself is logged and taken off:
    /// it would be refused again and block all that follow. Every other failure is repeated without
    /// end.
    pub(crate) async fn deliver(self, address: PathBuf) {
        tokio::join!(self.forward_all(address), self.spill());
    }

    async fn forward_all(&self, address: PathBuf) {
        let mut client = Client::new(address);
        let (mut pause, mut limit) = (FIRST_PAUSE, PUBLISH_TIMEOUT);
        loop {
            let Some(request) = self.head().await else {
                self.0.empty.notify_waiters();
                self.say_dropped();
                self.0.queued.notified().await;
                continue;
            };
            let begin = Instant::now();
            match self.forward(&mut client, request, limit).await {
                Ok(()) => {
                    meters::add(&self.0.counts.delivered, 1);
                    self.0.counts.progress.set(Some(Instant::now()));
                    if pause > SECOND_PAUSE {
                        self.say_taken();
                    }
                    pause = FIRST_PAUSE;
                    if begin.elapsed() < PUBLISH_TIMEOUT / 2 {
                        limit = PUBLISH_TIMEOUT;
                    }
                }
                Err(error) if refuses_event(&error) => {
                    meters::add(&self.0.counts.dropped, 1);
                    log::error!("containerd takes no such event, which is dropped: {error}");
                }
                Err(error) => {
                    // The first failure may be a connection to a containerd that was restarted.
                    if pause == SECOND_PAUSE {
                        log::warn!("cannot deliver an event, will try until it is taken: {error}");
                    }
                    if matches!(error, Error::Deadline { .. }) {
                        limit = (limit * 2).min(LAST_TIMEOUT);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                    continue;
                }
            }
            self.0.store.borrow_mut().pop();
        }
    }

    fn say_taken(&self) {
        log::info!("containerd takes events again, {} wait", self.waiting() - 1);
        self.say_dropped();
    }

    fn say_dropped(&self) {
        match self.0.store.borrow_mut().take_dropped() {
            0 => {}
            dropped => log::warn!(
                "{dropped} events were dropped for want of disk space, none an exit, OOM kill or delete"
            ),
        }
    }

    /// The request for the first event, from wherever it is.
    async fn head(&self) -> Option<Vec<u8>> {
        loop {
            let head = self.0.store.borrow_mut().head();
            let result = match head {
                Head::None => return None,
                Head::Bytes(bytes) => return Some(bytes.into_vec()),
                Head::OnDisk(read) => read_events(&read).await,
            };
            if let Err((error, count)) = self.0.store.borrow_mut().read(result) {
                meters::add(&self.0.counts.dropped, count as u64);
                log::error!("{count} events are lost, which the disk had: {error}");
            }
        }
    }

    /// Writes what is too much for memory, for ever.
    async fn spill(&self) {
        let mut failing = false;
        loop {
            if !self.0.store.borrow().overflows() {
                self.0.overflows.notified().await;
                continue;
            }
            let write = self.0.store.borrow_mut().begin_write();
            // The latest first: the pod's first container may be gone, and its bundle with it.
            let places: Vec<_> =
                self.0.places.borrow().iter().rev().map(|place| (**place).clone()).collect();
            let batch = write.batch();
            let result = blocking("events", move || write.run(&places)).await;
            let result = result.and_then(|result| result);
            let ended = self.0.store.borrow_mut().end_write(batch, result);
            match ended {
                Ok(()) if failing => {
                    log::info!("events go to the disk again");
                    failing = false;
                }
                Ok(()) => {}
                Err(error) => {
                    if !failing {
                        log::warn!(
                            "events stay in memory; of very many only exits, OOM kills and deletes: {error}"
                        );
                    }
                    failing = true;
                    tokio::time::sleep(DISK_PAUSE).await;
                }
            }
        }
    }

    async fn forward(
        &self,
        client: &mut Client,
        request: Vec<u8>,
        limit: Duration,
    ) -> Result<(), Error> {
        let method = ("containerd.services.events.ttrpc.v1.Events", "Forward");
        let metadata = [("containerd-namespace-ttrpc", self.0.namespace.as_str())];
        client.call(method, request, &metadata, limit).await.map(drop)
    }
}

async fn read_events(read: &Read) -> io::Result<Vec<Record>> {
    let mut reads = 1;
    loop {
        let work = read.clone();
        match blocking("events", move || work.run()).await.and_then(|result| result) {
            Err(_) if reads < READS => reads += 1,
            result => return result,
        }
        tokio::time::sleep(DISK_PAUSE).await;
    }
}

/// Whether the event itself is wrong, as containerd says or its size, as opposed to the state of containerd.
fn refuses_event(error: &Error) -> bool {
    match error {
        Error::Remote { code, .. } => {
            matches!(*code, Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED | Code::PERMISSION_DENIED)
        }
        // No message may be so large: it would never be sent.
        error => matches!(error, Error::TooLarge(_)),
    }
}
