//! What happened to tasks, in one ordered journal, and its delivery to containerd.
//!
//! Whoever changes a task queues the event in the same turn, without an await in between: the
//! queue's order is then the task's order. One loop delivers from the head and takes an event off
//! only when containerd has answered, so nothing is lost while containerd is down.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::shim::events::ForwardRequest;
use tokio::sync::Notify;
use ttrpc::Code;

use crate::error::Error;
use crate::ids::{ContainerId, ExecId, Namespace, Pid};
use crate::io::StdioSpec;
use crate::reaper::Exit;
use crate::rootfs::Mount;
use crate::rpc::client::Client;
use crate::wire;

/// How long containerd may take to accept one event, as the Go shim has it.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the first repetition; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const SECOND_PAUSE: Duration = Duration::from_millis(40);
/// Longest pause, so that a containerd that is back hears of everything soon.
const LAST_PAUSE: Duration = Duration::from_secs(1);

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
        pid: Pid,
    },
    /// The user's program runs as the init process.
    Started { id: ContainerId, pid: Pid },
    /// The init process (`exec_id` is `None`) or an exec process ended.
    Exited { id: ContainerId, exec_id: Option<ExecId>, pid: Pid, exit: Exit },
    /// The container is gone.
    Deleted { id: ContainerId, pid: Pid, exit: Exit },
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
}

/// The journal; cheap to clone, all clones are one.
#[derive(Clone)]
pub(crate) struct Events(Rc<Journal>);

struct Journal {
    namespace: Namespace,
    queue: RefCell<VecDeque<(Event, SystemTime)>>,
    queued: Notify,
    empty: Notify,
}

impl Events {
    /// An empty journal for the tasks of one containerd namespace.
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self(Rc::new(Journal {
            namespace,
            queue: RefCell::default(),
            queued: Notify::new(),
            empty: Notify::new(),
        }))
    }

    /// Appends an event. Call it in the turn that made the event true, before any await.
    pub(crate) fn queue(&self, event: Event) {
        log::debug!("event: {event:?}");
        self.0.queue.borrow_mut().push_back((event, SystemTime::now()));
        self.0.queued.notify_one();
    }

    /// How many events containerd has not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        self.0.queue.borrow().len()
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
    /// end. A call whose answer got lost is repeated too, so an event may arrive twice, never not
    /// at all.
    pub(crate) async fn deliver(self, address: PathBuf) {
        let mut client = Client::new(address);
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(request) = self.head() else {
                self.0.empty.notify_waiters();
                self.0.queued.notified().await;
                continue;
            };
            match self.forward(&mut client, request).await {
                Ok(()) => {
                    if pause > SECOND_PAUSE {
                        log::info!("containerd takes events again, {} wait", self.waiting() - 1);
                    }
                    pause = FIRST_PAUSE;
                }
                Err(error) if refuses_event(&error) => {
                    log::error!("containerd refuses an event, which is dropped: {error}");
                }
                Err(error) => {
                    // The first failure may be a connection to a containerd that was restarted.
                    if pause == SECOND_PAUSE {
                        log::warn!("cannot deliver an event, will try until it is taken: {error}");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                    continue;
                }
            }
            self.0.queue.borrow_mut().pop_front();
        }
    }

    /// The request for the first event.
    fn head(&self) -> Option<ForwardRequest> {
        let queue = self.0.queue.borrow();
        let (event, at) = queue.front()?;
        Some(wire::event::forward_request(event, *at, &self.0.namespace))
    }

    async fn forward(&self, client: &mut Client, request: ForwardRequest) -> Result<(), Error> {
        let method = ("containerd.services.events.ttrpc.v1.Events", "Forward");
        let metadata = [("containerd-namespace-ttrpc", self.0.namespace.as_str())];
        client.call(method, &request, &metadata, PUBLISH_TIMEOUT).await.map(drop)
    }
}

/// Whether containerd said that the event itself is wrong, as opposed to its own state.
fn refuses_event(error: &Error) -> bool {
    let Error::Remote { code, .. } = error else { return false };
    matches!(*code, Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED | Code::PERMISSION_DENIED)
}
