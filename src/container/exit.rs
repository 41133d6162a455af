//! The end of an init process: what must happen before it is announced.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::container::state::State;
use crate::container::{Container, Process};
use crate::events::Event;
use crate::reaper::{Child, Exit};

/// How long the end of a container's other processes may delay the news of its init's. They are
/// killed; only one that hangs in the kernel takes longer.
const OTHERS: Duration = Duration::from_secs(10);
/// How long a Start that is under way may delay the news that its process has ended. It comes
/// first if it ends in time, as it does unless the runtime hangs.
const START: Duration = Duration::from_secs(2);
/// How long a checkpoint that ends the container may delay the news of its end: CRIU kills last of all, and
/// the runtime has a little to clean up then.
const LEAVING: Duration = Duration::from_secs(30);
/// Between two looks at processes that are being killed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Container {
    /// Waits for the end of the init process and announces it.
    pub(super) fn watch_init(self: Rc<Self>, child: Child) {
        spawn_local(async move {
            let exit = child.exit.await.unwrap_or_else(|_| Exit::killed());
            self.note_oom();
            self.init.mark_dead();
            if self.leaving.get() {
                // It ends because it was saved, which is told first.
                drop(timeout(LEAVING, self.adjusting.lock()).await);
            }
            let _turn = timeout(START, self.init.turn.lock()).await;
            if timeout(OTHERS, self.others_ended()).await.is_err() {
                log::warn!("processes of {:?} outlive its init process", self.id.as_str());
            }
            // One that was never started has written nothing, and a Delete waits for its end.
            if self.init.state() != State::Created {
                if let Some(io) = self.init.io() {
                    tokio::select! {
                        () = io.taken() => {}
                        () = self.shared.begins_to_close() => {} // its last calls have no time
                    }
                }
            }
            self.tell_last_oom();
            self.init.stop(exit);
            let id = self.id.clone();
            self.shared.events.queue(Event::Exited { id, exec_id: None, pid: child.pid, exit });
            self.shared.note_change();
        });
    }

    /// Resolves when every exec process has ended and its exit is queued.
    ///
    /// With a PID namespace of the container's own the kernel has killed them all. Otherwise they
    /// live on, and are killed here, as containerd's clients expect of a container that has ended.
    async fn others_ended(&self) {
        let execs: Vec<Rc<Process>> = self.execs.borrow().values().cloned().collect();
        for exec in execs {
            drop(timeout(START, exec.turn.lock()).await);
            while exec.pid().is_some() && exec.state().exit().is_none() {
                let _ = exec.signal(9); // it may have ended by itself
                let _ = timeout(LOOK_AGAIN, exec.wait()).await;
            }
        }
        if self.own_pid_namespace {
            return;
        }
        let Some(cgroup) = self.cgroup.get() else { return };
        while cgroup.populated().unwrap_or(false) {
            if let Err(error) = cgroup.kill() {
                log::warn!("cannot kill what is left of {:?}: {error}", self.id.as_str());
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}
