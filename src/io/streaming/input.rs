//! stdin on its way from whoever writes a stream.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::write;
use tokio::io::Interest;
use tokio::time::timeout;

use super::link::{Link, WINDOW};
use super::peer::Peer;
use crate::error::{Error, Result};
use crate::io::Context;
use crate::io::fifo::Direction;
use crate::io::pipe::{pipe, set_nonblocking};
use crate::io::task::{Flag, Work};
use crate::io::uri::StreamingTarget;
use crate::ready::Ready;
use crate::rpc::duplex::End;

/// After CloseIO the input of a client that keeps its stream open ends when nothing came for so long.
/// containerd closes the stream first, but on another connection.
const QUIET: Duration = Duration::from_secs(1);

/// Finds the writer of a stream; returns a pipe that its bytes come out of, and the work that puts them
/// in.
///
/// # Errors
/// As [`Peer::find`].
pub(in crate::io) async fn start(
    target: &StreamingTarget,
    close: Flag,
    context: &Context<'_>,
) -> Result<(OwnedFd, Work)> {
    let (peer, link) = Peer::find(target, context).await?;
    let (reader, writer) = pipe(context.owner, Direction::In)?;
    set_nonblocking(&reader).map_err(Error::sys("make a pipe"))?;
    let ready = Ready::register(Rc::new(writer), Interest::WRITABLE);
    let sink = ready.map_err(Error::sys("watch a pipe"))?;
    Ok((reader, Box::pin(run(peer, link, sink, close))))
}

/// Passes on all that one client after the other writes until one closes its stream, then drops what
/// still comes: a client that writes must not wait for a process that has ended.
async fn run(peer: Peer, mut link: Rc<Link>, sink: Ready, close: Flag) {
    loop {
        match pour(&link, &sink, &close).await {
            Poured::Ended => break,
            Poured::Lost => {
                log::debug!("the writer of stream {:?} is gone", peer.id());
                tokio::select! {
                    biased;
                    next = peer.next() => link = next,
                    () = close.wait() => break,
                }
            }
        }
    }
    drop(sink);
    loop {
        if link.ended().is_none() {
            discard(&link).await;
        }
        link = peer.next().await;
    }
}

/// Why nothing more comes out of one client's stream.
enum Poured {
    /// It said that this was all, or the process takes no more.
    Ended,
    /// Its connection is gone.
    Lost,
}

async fn pour(link: &Link, sink: &Ready, close: &Flag) -> Poured {
    let mut due = WINDOW;
    loop {
        if due >= WINDOW / 2 && link.ended().is_none() {
            let _ = link.grant(due).await; // its end is seen below
            due = 0;
        }
        let written = match link.oldest() {
            Some(bytes) => write(sink.get_ref(), &bytes),
            None => {
                match link.ended() {
                    Some(End::Closed) => return Poured::Ended,
                    Some(End::Lost) => return Poured::Lost,
                    None if close.is_set() => {
                        if timeout(QUIET, link.change()).await.is_err() {
                            return Poured::Ended;
                        }
                    }
                    None => tokio::select! {
                        () = link.change() => {}
                        () = close.wait() => {}
                    },
                }
                continue;
            }
        };
        match written {
            Ok(count) => {
                link.consumed(count);
                due += count;
            }
            Err(Errno::EAGAIN) => {
                sink.forget(Interest::WRITABLE);
                if sink.ready(Interest::WRITABLE).await.is_err() {
                    return Poured::Ended;
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return Poured::Ended, // nobody can read it any more
        }
    }
}

/// Takes all that comes until the client ends.
async fn discard(link: &Link) {
    let mut due = WINDOW;
    while link.ended().is_none() {
        due += link.discard();
        if due >= WINDOW / 2 {
            let _ = link.grant(due).await; // its end is seen above
            due = 0;
        }
        if link.oldest().is_none() && link.ended().is_none() {
            link.change().await;
        }
    }
}
