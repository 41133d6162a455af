//! The pod's sandbox where it is no container: at most one, before its containers and after them.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use crate::container::{Container, Containers, Need, Slot};
use crate::error::{Error, Result};
use crate::sandbox::kind::Kind;
use crate::sandbox::{Home, Request, Sandbox};

/// How long the removal of containers that the caller has left may take.
const REMOVAL: Duration = Duration::from_secs(3);
/// How much later the removal of one may say that it had no time.
const LATE: Duration = Duration::from_millis(500);
/// Pause between looks at containers that are still being created.
const PAUSE: Duration = Duration::from_millis(10);

impl Containers {
    /// Notes what the pod's sandbox shall be.
    ///
    /// # Errors
    /// [`Error::Exists`] if the pod has one, or the shim has a container without it; and as
    /// [`Sandbox::new`].
    pub(crate) fn create_sandbox(&self, request: Request) -> Result<()> {
        self.takes_new()?;
        let other = self.held().map(|first| first.id.clone()).or_else(|| self.sandbox_container());
        if let Some(first) = other {
            return Err(Error::Exists { what: "the pod's sandbox", id: first.to_string() });
        }
        if let Some(container) = self.map.borrow().keys().next() {
            let what = "the shim is taken: a container without this sandbox,";
            return Err(Error::Exists { what, id: container.to_string() });
        }
        let home = Home {
            group: self.group.clone(),
            namespace: self.namespace.clone(),
            socket: self.socket.clone(),
            reaper: self.reaper.clone(),
        };
        self.sandbox.replace(Some(Rc::new(Sandbox::new(request, home)?)));
        Ok(())
    }

    /// The pod's sandbox, if `id` is its.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for a sandbox that is a container.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Rc<Sandbox>> {
        let found = self.held().filter(|sandbox| sandbox.id.as_str() == id);
        found.ok_or_else(|| Error::NotFound { what: "sandbox", id: id.to_owned() })
    }

    /// The pod's sandbox, if it is no container.
    pub(super) fn held(&self) -> Option<Rc<Sandbox>> {
        self.sandbox.borrow().clone()
    }

    /// Refuses a container for which the pod is not ready, or a second sandbox.
    ///
    /// # Errors
    /// [`Error::Exists`] that names the first sandbox; [`Error::State`].
    pub(super) fn admits(&self, kind: &Kind) -> Result<Admission> {
        let Some(held) = self.held() else { return Ok(Admission::AsContainersSay) };
        match kind {
            Kind::Sandbox => {
                Err(Error::Exists { what: "the pod's sandbox", id: held.id.to_string() })
            }
            Kind::Container { sandbox } if sandbox != held.id.as_str() => {
                Ok(Admission::AsContainersSay)
            }
            Kind::Container { .. } | Kind::Single => {
                held.admits_containers().map(|()| Admission::Granted)
            }
        }
    }

    /// Ends the daemon if nothing needs it, for the task service: neither a container nor a sandbox
    /// that is none.
    ///
    /// Such a sandbox's own `id` is an exception. With it containerd 2.x asks, when it starts, of
    /// every shim whose sandbox it does not know: a pod that it gave up half-way.
    pub(crate) async fn shut_down(&self, id: &str) {
        if self.map.borrow().is_empty() && self.sandbox(id).is_ok() {
            log::info!("sandbox {id:?} is not known to containerd any more");
            // It is there, as was just seen.
            return self.shut_down_sandbox(id).await.unwrap_or_default();
        }
        self.shut_down_if_empty();
    }

    /// Ends the daemon with all it has: containers that are left, then the sandbox. A sandbox
    /// whose creation failed leaves a daemon that has none; it ends too.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the daemon is there for something else.
    pub(crate) async fn shut_down_sandbox(&self, id: &str) -> Result<()> {
        match self.held() {
            Some(sandbox) if sandbox.id.as_str() == id => {
                self.begin_to_close();
                self.remove_all(Instant::now() + REMOVAL).await;
                // What is left then is for `delete`, and the answer is that it goes.
                let stopped = sandbox.stop().await;
                let left: Vec<_> = self.map.borrow().keys().map(ToString::to_string).collect();
                match stopped {
                    Ok(()) if left.is_empty() => sandbox.forget(),
                    Ok(()) => log::warn!("sandbox {id:?} leaves its containers {left:?}"),
                    Err(error) => log::warn!("sandbox {id:?}: {error}; its containers: {left:?}"),
                }
            }
            None if self.map.borrow().is_empty() => {}
            _ => return Err(Error::NotFound { what: "sandbox", id: id.to_owned() }),
        }
        self.close();
        Ok(())
    }

    /// Ends the daemon, which nobody needs; containers whose bundles are gone have no `delete`.
    pub(crate) async fn end_lost(&self) {
        self.begin_to_close();
        if self.need() == Need::Lost {
            // The runtime wants its bundle as working directory, and for its log.
            let bundles: Vec<PathBuf> = {
                let map = self.map.borrow();
                let ready = map.values().filter_map(Slot::ready);
                ready.map(|container| container.bundle.dir().to_owned()).collect()
            };
            let made = |dir: &PathBuf| DirBuilder::new().mode(0o700).create(dir).is_ok();
            let made: Vec<PathBuf> = bundles.into_iter().filter(made).collect();
            self.remove_all(Instant::now() + REMOVAL).await;
            for dir in made {
                let _ = fs::remove_dir_all(dir); // or somebody else did
            }
        }
        self.close();
    }

    /// Kills and deletes every container, also those that are still being created.
    async fn remove_all(&self, until: Instant) {
        while !self.map.borrow().is_empty() && Instant::now() < until {
            let found: Vec<_> = self.map.borrow().values().filter_map(Slot::ready).collect();
            let removals: Vec<_> =
                found.into_iter().map(|container| spawn_local(remove(container, until))).collect();
            for removal in removals {
                // It has logged what went wrong, unless it hangs in an unmount, which has no limit.
                let _ = timeout_at(until + LATE, removal).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a container may be created.
pub(super) enum Admission {
    /// Its sandbox is there.
    Granted,
    /// Its sandbox is a container, if it has one.
    AsContainersSay,
}

async fn remove(container: Rc<Container>, until: Instant) {
    let ended = container.init.wait();
    let killed = match container.cgroup() {
        Ok(cgroup) => cgroup.kill(),
        Err(_) => container.kill(9, true, Some(until)).await,
    };
    if container.init.pid().is_none() {
        drop(ended); // it was to be restored, and nothing runs
    } else {
        let _ = timeout_at(until, ended).await;
    }
    // Delete says what is the matter then
    if let Err(error) = container.delete(Some(until)).await {
        log::warn!("container {:?} of a pod that is shut down: {error}", container.id.as_str());
        killed.unwrap_or_else(|error| log::warn!("{error}"));
    }
}
