//! Work of a stream on the event loop.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What a stream does until it ends.
pub(super) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// A future on the event loop that can be dropped from outside at any moment; the runtime's own
/// abort would do so only at some later turn.
#[derive(Debug)]
pub(super) struct Task {
    work: Rc<Slot>,
    handle: AbortHandle,
}

struct Slot(RefCell<Option<Work>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.borrow().is_some() { "running" } else { "ended" })
    }
}

impl Slot {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.0.borrow_mut();
        if let Some(future) = slot.as_mut() {
            ready!(future.as_mut().poll(context));
        }
        *slot = None;
        Poll::Ready(())
    }
}

impl Task {
    pub(super) fn spawn(work: Work) -> Self {
        let work = Rc::new(Slot(RefCell::new(Some(work))));
        let shared = Rc::clone(&work);
        let driver = std::future::poll_fn(move |context| shared.poll(context));
        Self { work, handle: tokio::task::spawn_local(driver).abort_handle() }
    }

    /// Drops the future with all it holds. Not to be called by the future itself.
    pub(super) fn stop(&self) {
        drop(self.work.0.take());
        self.handle.abort();
    }
}

/// Something that happens once and stays so, for any number of those who wait for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Flag(Rc<(Cell<bool>, Notify)>);

impl Flag {
    pub(super) fn set(&self) {
        self.0.0.set(true);
        self.0.1.notify_waiters();
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.0.get()
    }

    /// Resolves once it is set, at once if it was set before.
    pub(super) async fn wait(&self) {
        while !self.is_set() {
            self.0.1.notified().await; // one thread: nothing happens between the look and the wait
        }
    }
}
