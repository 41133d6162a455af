//! Whether anything needs the daemon, as far as its containers tell.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::container::{Containers, Slot};
use crate::sandbox::{Sandbox, Stage};
use crate::sys::thread::trim_heap;

/// So many processes leave memory behind that is worth a look; a probe every now and then does not.
const MANY: u32 = 8;
/// How long after that, so that the others which were there at the same time are gone too.
const CALM: Duration = Duration::from_secs(1);

/// What the daemon is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A container that has not ended or is being created, or a sandbox that is no container.
    Living,
    /// Containers that have ended, and were not deleted. Their bundles are there.
    Ended,
    /// The same, but nobody can delete them: their bundles are gone.
    Lost,
    /// There is nothing.
    Nothing,
}

impl Containers {
    /// What the daemon is needed for now.
    pub(crate) fn need(&self) -> Need {
        let map = self.map.borrow();
        let lives = |slot: &Slot| match slot {
            Slot::Reserved(..) => true,
            Slot::Ready(container) => container.init.state().exit().is_none(),
        };
        // One that was shut down is only kept for the calls that are still to be answered.
        let ended = |sandbox: &Sandbox| matches!(sandbox.stage(), Stage::Ended(_));
        let is_held = self.held().is_some_and(|held| !(self.closing.get() && ended(&held)));
        if is_held || map.values().any(lives) {
            return Need::Living;
        }
        if map.is_empty() {
            return Need::Nothing;
        }
        // A stat where containerd keeps its state, which is no place that hangs.
        let is_lost = |slot: &Slot| match slot {
            Slot::Reserved(..) => false,
            Slot::Ready(container) => {
                let found = container.bundle.dir().symlink_metadata();
                found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
            }
        };
        if map.values().all(is_lost) { Need::Lost } else { Need::Ended }
    }

    /// Says that a container has ended or is gone.
    pub(super) fn note_change(&self) {
        self.changed.notify_one();
    }

    /// Says that a process is gone with all that was held for it. Behind many of them, when a moment has
    /// passed, the memory is given back that those took which were there at the same time.
    pub(super) fn note_deleted(self: &Rc<Self>) {
        self.deleted.set(self.deleted.get() + 1);
        if self.deleted.get() == MANY {
            let shared = self.clone();
            spawn_local(async move {
                sleep(CALM).await;
                shared.deleted.set(0);
                trim_heap();
            });
        }
    }

    /// Resolves when a container has ended or is gone. For one caller.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
