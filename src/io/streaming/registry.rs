//! The streams that clients have opened here, by name, until a process takes them.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::link::Link;
use crate::error::{Error, Result};
use crate::io::look;
use crate::rpc::duplex::{End, Inbound, Outbound};
use crate::wire::streaming::{self, Message};

/// Streams that may wait for a process to take them.
const MOST_WAITING: usize = 1024;
/// The longest name.
const MOST_NAME: usize = 1024;

/// All streams of one daemon.
pub(crate) struct Registry {
    /// The daemon's socket, by which URIs name it.
    socket: PathBuf,
    ports: RefCell<BTreeMap<String, Rc<Port>>>,
}

/// Where streams of one name arrive.
#[derive(Default)]
struct Port {
    /// The youngest.
    link: RefCell<Option<Rc<Link>>>,
    /// Nobody has seen it.
    is_new: Cell<bool>,
    /// A process has this name in its URI.
    is_taken: Cell<bool>,
    arrived: Notify,
}

impl Port {
    fn live(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone().filter(|link| link.ended().is_none())
    }
}

impl Registry {
    /// No streams yet, for the daemon on `socket`.
    pub(crate) fn new(socket: PathBuf) -> Rc<Self> {
        Rc::new(Self { socket, ports: RefCell::default() })
    }

    /// One for tests that have no streams.
    #[cfg(test)]
    pub(in crate::io) fn none() -> &'static Rc<Self> {
        thread_local!(static NONE: &'static Rc<Registry> =
            Box::leak(Box::new(Registry::new("/tests.sock".into()))));
        NONE.with(|none| *none)
    }

    /// Whether a URI with this socket means this daemon. containerd's client puts a slash more in
    /// front of it, and its state directory may have two names.
    ///
    /// # Errors
    /// [`Error::Deadline`] for a place that does not answer.
    pub(super) async fn is_at(&self, socket: &Path, deadline: Option<Instant>) -> Result<bool> {
        if socket == self.socket {
            return Ok(true);
        }
        let own = self.socket.clone();
        let is_same = move |socket: &Path| {
            let canonical =
                |path: &Path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
            Ok(canonical(socket).is_some_and(|socket| canonical(&own) == Some(socket)))
        };
        look::at(socket, "look at", deadline, is_same).await
    }

    /// Adds a stream of this name.
    ///
    /// # Errors
    /// [`Error::Exists`] while an earlier one lives; [`Error::Full`]; [`Error::Invalid`].
    fn register(&self, id: &str, link: Rc<Link>) -> Result<()> {
        if id.is_empty() || id.len() > MOST_NAME {
            return Err(Error::Invalid(format!("the name of a stream has {} bytes", id.len())));
        }
        let mut ports = self.ports.borrow_mut();
        if let Some(port) = ports.get(id) {
            if port.live().is_some() {
                return Err(Error::Exists { what: "stream", id: id.to_owned() });
            }
        } else if ports.values().filter(|port| !port.is_taken.get()).count() >= MOST_WAITING {
            return Err(Error::Full { what: "streams that no process takes", limit: MOST_WAITING });
        }
        let port = ports.entry(id.to_owned()).or_default();
        port.link.replace(Some(link));
        port.is_new.set(true);
        Ok(())
    }

    /// Tells the client that its stream is known, and then whoever waits for it: the other way round
    /// bytes could come before the answer.
    fn announce(&self, id: &str, link: Rc<Link>) {
        let Some(port) = self.ports.borrow().get(id).cloned() else { return };
        spawn_local(async move {
            if link.acknowledge().await.is_ok() {
                port.arrived.notify_waiters();
            }
        });
    }

    /// Forgets a stream that has ended, if no process has its name.
    fn ended(&self, id: &str, link: &Rc<Link>) {
        let mut ports = self.ports.borrow_mut();
        let Some(port) = ports.get(id) else { return };
        let is_it = port.link.borrow().as_ref().is_some_and(|found| Rc::ptr_eq(found, link));
        if is_it && !port.is_taken.get() {
            ports.remove(id);
            link.close_soon();
        }
    }

    /// Takes the streams of this name for a process.
    ///
    /// # Errors
    /// [`Error::Exists`] if another process has it.
    pub(super) fn claim(self: &Rc<Self>, id: &str) -> Result<Claim> {
        let port = self.ports.borrow_mut().entry(id.to_owned()).or_default().clone();
        if port.is_taken.replace(true) {
            return Err(Error::Exists { what: "process with stream", id: id.to_owned() });
        }
        Ok(Claim { registry: self.clone(), id: id.to_owned(), port })
    }

    /// Closes all streams, for the end of the daemon.
    pub(crate) fn close(&self) {
        let links = |port: &Rc<Port>| port.link.borrow().clone();
        let links: Vec<_> = self.ports.borrow().values().filter_map(links).collect();
        links.iter().for_each(|link| link.close_soon());
    }
}

/// A process's right to the streams of one name. Dropped, it closes the present one.
pub(super) struct Claim {
    registry: Rc<Registry>,
    pub(super) id: String,
    port: Rc<Port>,
}

impl Claim {
    /// The next stream that a client opens, or has opened and nobody got.
    pub(super) async fn next(&self) -> Rc<Link> {
        loop {
            let link = self.port.live().filter(|link| link.is_acknowledged());
            if let Some(link) = link.filter(|_| self.port.is_new.get()) {
                self.port.is_new.set(false);
                return link;
            }
            self.port.arrived.notified().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry.ports.borrow_mut().remove(&self.id);
        if let Some(link) = &*self.port.link.borrow() {
            link.close_soon();
        }
    }
}

/// A stream that a client has opened here; its first message names it.
pub(crate) struct Opening {
    registry: Rc<Registry>,
    out: Cell<Option<Outbound>>,
    named: OnceCell<(String, Rc<Link>)>,
}

impl Opening {
    /// A stream that is to be added to `registry`.
    pub(crate) fn new(registry: Rc<Registry>, out: Outbound) -> Rc<Self> {
        Rc::new(Self { registry, out: Cell::new(Some(out)), named: OnceCell::new() })
    }

    fn name(&self, message: &[u8]) -> Result<()> {
        let id = match streaming::decode(message)? {
            Message::Init(id) => id,
            other => return Err(Error::Invalid(format!("a stream begins with {other:?}"))),
        };
        let Some(out) = self.out.take() else { return Ok(()) };
        let link = Link::new(out);
        self.registry.register(&id, link.clone())?;
        self.registry.announce(&id, link.clone());
        let _ = self.named.set((id, link)); // it was not: there was an `out`
        Ok(())
    }
}

impl Inbound for Opening {
    fn take(&self, message: Vec<u8>) -> Result<()> {
        match self.named.get() {
            Some((_, link)) => link.take(message),
            None => self.name(&message),
        }
    }

    fn end(&self, end: End) {
        if let Some((id, link)) = self.named.get() {
            link.end(end);
            self.registry.ended(id, link);
        }
    }
}
