//! Who has the other end of a process's stream, now and after it was cut off.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::link::Link;
use super::registry::Claim;
use crate::error::{Error, Result};
use crate::io::Context;
use crate::io::look;
use crate::io::task::Task;
use crate::io::uri::StreamingTarget;
use crate::rpc::duplex::{self, End};

/// How long a client's stream may follow behind the Create or Exec that names it, and a server may take
/// to answer.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Between two attempts to reach a server that has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a server may take the news that a stream ends.
const FAREWELL: Duration = Duration::from_secs(1);

const METHOD: (&str, &str) = ("containerd.services.streaming.v1.Streaming", "Stream");

/// The other end of a process's stream.
pub(super) enum Peer {
    /// Clients open it here.
    Client(Claim),
    /// It is opened at a server.
    Server(Server),
}

/// A server of the streaming API.
pub(super) struct Server {
    target: StreamingTarget,
    /// Reads what comes from it.
    reader: RefCell<Option<(Task, Rc<Link>)>>,
}

impl Peer {
    /// The peer that a URI names and its first stream.
    ///
    /// # Errors
    /// [`Error::Deadline`] names the stream if it does not come in time; [`Error::Exists`] if another
    /// process has it; as the server says.
    pub(super) async fn find(
        target: &StreamingTarget,
        context: &Context<'_>,
    ) -> Result<(Self, Rc<Link>)> {
        let until = Instant::now() + ARRIVAL;
        let until = context.deadline.map_or(until, |deadline| deadline.min(until));
        let limit = until.saturating_duration_since(Instant::now()).as_millis();
        let limit = Duration::from_millis(u64::try_from(limit).unwrap_or(u64::MAX));
        let late = |what: String| Error::Deadline { what, limit };
        if context.streams.is_at(&target.socket, context.deadline).await? {
            let claim = context.streams.claim(&target.id)?;
            return match timeout_at(until, claim.next()).await {
                Ok(link) => Ok((Self::Client(claim), link)),
                Err(_) => {
                    Err(late(format!("waiting for a client that opens stream {:?}", target.id)))
                }
            };
        }
        let server = Server { target: target.clone(), reader: RefCell::default() };
        match timeout_at(until, server.open()).await {
            Ok(link) => Ok((Self::Server(server), link?)),
            Err(_) => {
                let socket = target.socket.display();
                Err(late(format!("opening stream {:?} at {socket}", target.id)))
            }
        }
    }

    /// The stream's name.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Client(claim) => &claim.id,
            Self::Server(server) => &server.target.id,
        }
    }

    /// The next stream of this name, after one has ended. A server that has closed its stream is not
    /// asked for another.
    pub(super) async fn next(&self) -> Rc<Link> {
        match self {
            Self::Client(claim) => claim.next().await,
            Self::Server(server) if server.has_closed() => std::future::pending().await,
            Self::Server(server) => loop {
                sleep(AGAIN).await;
                match server.open().await {
                    Ok(link) => return link,
                    Err(error) => log::debug!("stream {:?}: {error}", server.target.id),
                }
            },
        }
    }
}

impl Server {
    fn has_closed(&self) -> bool {
        let reader = self.reader.borrow();
        reader.as_ref().is_some_and(|(_, link)| link.ended() == Some(End::Closed))
    }

    async fn open(&self) -> Result<Rc<Link>> {
        if let Some((reader, _)) = self.reader.take() {
            reader.stop();
        }
        let StreamingTarget { socket, id } = &self.target;
        let mut made = None;
        let make = |out| {
            let link = Link::new(out);
            made = Some(link.clone());
            Ok(link as Rc<dyn duplex::Inbound>)
        };
        let refusal: Rc<RefCell<Option<Error>>> = Rc::default();
        let told = refusal.clone();
        let failed = move |error: Error| {
            log::debug!("the server of a stream: {error}");
            told.borrow_mut().get_or_insert(error);
        };
        let connection = look::connect(socket).await?;
        let reading = duplex::connect(connection, METHOD, make, failed).await?;
        let Some(link) = made else { return Err(lost(socket)) };
        self.reader.replace(Some((Task::spawn(reading), link.clone())));
        let _ = link.name(id).await; // if it is refused, the reason follows
        while !link.is_acknowledged() {
            if link.ended().is_some() {
                return Err(refusal.take().unwrap_or_else(|| lost(socket)));
            }
            link.change().await;
        }
        Ok(link)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some((reader, link)) = self.reader.take() else { return };
        spawn_local(async move {
            let _ = timeout(FAREWELL, link.close()).await; // nobody is left to tell
            reader.stop();
        });
    }
}

fn lost(socket: &Path) -> Error {
    Error::io("open a stream at", socket)(std::io::ErrorKind::UnexpectedEof.into())
}
