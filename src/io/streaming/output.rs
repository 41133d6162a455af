//! stdout and stderr on their way to whoever reads a stream.

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;

use nix::errno::Errno;
use nix::poll::PollFlags;
use tokio::io::Interest;

use super::link::{Link, PIECE};
use super::peer::Peer;
use super::piece::{Piece, Rush, Source, Unread};
use crate::error::{Error, Result};
use crate::io::Context;
use crate::io::backlog::{Backlog, Keep};
use crate::io::driver::Feed;
use crate::io::output::{Output, Taking};
use crate::io::pipe::{LARGE, capacity, enlarge};
use crate::io::task::Work;
use crate::io::uri::StreamingTarget;
use crate::ready::Ready;
use crate::rpc::duplex::End;

/// A stream lets others run after this many pieces (1 MiB).
const TURN: u32 = 32;

/// Finds the reader of a stream and begins to send it an output.
///
/// # Errors
/// As [`Peer::find`].
pub(in crate::io) async fn start(
    target: &StreamingTarget,
    feeds: Vec<Feed>,
    context: &Context<'_>,
) -> Result<Work> {
    let [feed] = <[Feed; 1]>::try_from(feeds)
        .map_err(|_| Error::Invalid(format!("stream {:?} for two outputs", target.id)))?;
    let (peer, link) = Peer::find(target, context).await?;
    let Feed { pipe, output } = feed;
    output.name_taker(format!("the reader of stream {:?}", peer.id()));
    let ready = Ready::register(pipe.clone(), Interest::READABLE);
    let ready = ready.map_err(Error::sys("watch a process's output"))?;
    let taking = Rc::new(Taking::default());
    output.wait_for(&taking);
    let outgoing = Outgoing {
        source: Some(Source { pipe, ready }),
        keep: output.keep(context),
        taking,
        piece: Piece::default(),
        again: VecDeque::new(),
        unread: Unread::default(),
        rush: Rush::default(),
    };
    Ok(Box::pin(run(outgoing, output, peer, link)))
}

/// Sends all, to one reader after the other, until the last has read it.
async fn run(mut outgoing: Outgoing, output: Rc<Output>, peer: Peer, mut link: Rc<Link>) {
    let name = outgoing.keep.name.clone();
    let taking = outgoing.taking.clone();
    loop {
        let stop = match outgoing.send(&link).await {
            Stop::Overflow => outgoing.store(&peer, &mut link).await,
            stop => stop,
        };
        let end = match stop {
            Stop::Overflow => continue,
            Stop::Ended(end) => end,
            Stop::Drained => {
                outgoing.source = None;
                let _ = link.close().await; // if it is gone, that is seen at once
                output.finish();
                outgoing.settle(&link).await
            }
        };
        if end == End::Closed && outgoing.source.is_none() {
            break;
        }
        if end == End::Lost {
            log::info!("{name}: the reader of stream {:?} is gone", peer.id());
            outgoing.send_again();
            if outgoing.source.is_none() && outgoing.again.is_empty() {
                break;
            }
            taking.is_away.set(true);
            tokio::select! {
                biased;
                next = peer.next() => link = next,
                () = outgoing.nothing_left() => break,
            }
            taking.is_away.set(false);
            continue;
        }
        log::info!("{name}: the reader of stream {:?} wants no more", peer.id());
        link.close_soon();
        tokio::select! {
            biased;
            next = peer.next() => link = next,
            () = outgoing.discard() => break,
        }
    }
    drop(outgoing);
    output.finish();
    taking.done.set();
    // A containerd that was away opens the streams of a process again whether or not it has ended.
    loop {
        let _ = peer.next().await.close().await; // it may be gone
    }
}

/// Why an output is not sent on.
enum Stop {
    /// No writer is left, and everything is sent.
    Drained,
    /// The reader's part has ended.
    Ended(End),
    /// The reader has no window for what is there, or is not there, and there is another place for it.
    Overflow,
}

struct Outgoing {
    /// `None` once it is at its end.
    source: Option<Source>,
    keep: Keep,
    taking: Rc<Taking>,
    /// What was read last.
    piece: Piece,
    /// What goes before that: it was sent to a reader that is gone.
    again: VecDeque<Piece>,
    unread: Unread,
    rush: Rush,
}

impl Outgoing {
    /// Sends as the reader takes it.
    async fn send(&mut self, link: &Rc<Link>) -> Stop {
        let mut pieces = 0;
        loop {
            if let Some(end) = link.ended() {
                return self.ended(end);
            }
            if self.piece.is_empty() {
                self.piece = self.again.pop_front().unwrap_or_default();
            }
            let Some(source) = self.source.as_ref().filter(|_| self.piece.is_empty()) else {
                if self.piece.is_empty() {
                    return Stop::Drained;
                }
                if link.window() == 0 {
                    if self.overflows() {
                        return Stop::Overflow;
                    }
                    link.change().await;
                } else if self.send_piece(link).is_err() {
                    return self.ended(link.wait_end().await);
                }
                pieces += 1;
                if pieces == TURN {
                    pieces = 0;
                    tokio::task::yield_now().await;
                }
                continue;
            };
            tokio::select! {
                biased;
                end = link.wait_end() => return self.ended(end),
                () = source.wait() => {}
                () = self.unread.due() => {
                    self.unread.look(link);
                    continue;
                }
            }
            let room = link.window();
            if room == 0 {
                let events = source.events();
                if !events.contains(PollFlags::POLLIN) {
                    if events.contains(PollFlags::POLLHUP) {
                        return Stop::Drained; // nothing to send, so no window is needed
                    }
                    source.forget();
                } else if self.overflows() {
                    return Stop::Overflow;
                } else {
                    link.change().await;
                }
                continue;
            }
            let paused = self.rush.pause(source).await;
            match source.read(&mut self.piece, room) {
                Ok(0) => return Stop::Drained,
                Ok(PIECE) if paused => {
                    enlarge(&*source.pipe, LARGE); // the writer is faster than the pause is long
                }
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    self.piece = Piece::default(); // an idle stream has no buffer
                    self.unread.rest();
                }
                Err(errno) => {
                    log::warn!("cannot read {}: {errno}", self.keep.name);
                    return Stop::Drained;
                }
            }
        }
    }

    fn send_piece(&mut self, link: &Rc<Link>) -> std::io::Result<()> {
        let count = self.unread.send(&mut self.piece, link)?;
        if count == 0 {
            return Ok(());
        }
        self.rush.note(count, link.window());
        self.taking.progress.set(self.taking.progress.get() + 1);
        Ok(())
    }

    fn ended(&self, end: End) -> Stop {
        if end == End::Lost && self.overflows() { Stop::Overflow } else { Stop::Ended(end) }
    }

    /// Resolves when there is nothing that a reader could come back for, and will not be.
    async fn nothing_left(&self) {
        let has_piece = !self.piece.is_empty() || !self.again.is_empty();
        let Some(source) = self.source.as_ref().filter(|_| !has_piece) else {
            return std::future::pending().await;
        };
        loop {
            source.wait().await;
            let events = source.events();
            if events.contains(PollFlags::POLLIN) {
                std::future::pending::<()>().await; // nobody reads it before
            } else if events.contains(PollFlags::POLLHUP) {
                return;
            }
            source.forget();
        }
    }

    /// What the reader that is gone may not have read comes first.
    fn send_again(&mut self) {
        let mut again = self.unread.take();
        if !self.piece.is_empty() {
            again.push_back(std::mem::take(&mut self.piece));
        }
        again.append(&mut self.again);
        self.again = again;
    }

    /// Resolves when the reader has closed its stream, behind its end, or its connection is gone.
    async fn settle(&mut self, link: &Link) -> End {
        loop {
            tokio::select! {
                biased;
                end = link.wait_end() => return end,
                () = self.unread.due() => self.unread.look(link),
            }
        }
    }

    /// Whether something else is to be done with what nobody takes than to leave it in the pipe, which
    /// is made as large as it may be.
    fn overflows(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let policy = self.keep.policy;
        let holds = enlarge(&*source.pipe, policy.buffer.bytes().min(LARGE));
        !(policy.is_kept_by_a_fifo() && holds >= policy.buffer.bytes())
    }

    /// Keeps what comes until a reader has taken it all.
    async fn store(&mut self, peer: &Peer, link: &mut Rc<Link>) -> Stop {
        let keep = self.keep.clone();
        let capacity = self.source.as_ref().map_or(0, |source| capacity(&*source.pipe));
        let mut backlog = Backlog::new(&keep, capacity, Vec::new());
        let mut drained = false;
        let mut next = pin!(peer.next());
        loop {
            match link.ended() {
                Some(End::Closed) => return Stop::Ended(End::Closed),
                Some(End::Lost) => self.send_again(),
                None => {}
            }
            self.taking.is_away.set(link.ended().is_some());
            if self.piece.is_empty() {
                self.piece = self.again.pop_front().unwrap_or_default();
            }
            if drained && self.piece.is_empty() && backlog.is_empty() {
                return Stop::Drained; // whether or not a reader is there
            }
            if self.piece.is_empty() && link.ended().is_none() {
                backlog.fetch().await;
                let oldest = backlog.oldest();
                let count = oldest.len().min(PIECE);
                if count > 0 {
                    self.piece = Piece::of(&oldest[..count]);
                    backlog.written(count);
                } else if link.window() > 0 {
                    return Stop::Overflow; // which is over
                }
            }
            let can_send = link.ended().is_none() && link.window() > 0 && !self.piece.is_empty();
            if can_send && self.send_piece(link).is_err() {
                link.wait_end().await;
                continue;
            }
            let Some(source) = self.source.as_ref() else { return Stop::Drained };
            tokio::select! {
                biased;
                fresh = &mut next, if link.ended().is_some() => {
                    self.send_again(); // the end may have come since it was looked for
                    *link = fresh;
                    next.set(peer.next());
                }
                () = link.change(), if link.ended().is_none() && link.window() == 0 => {}
                () = source.wait(), if !drained && backlog.takes_more() => {
                    self.rush.pause(source).await;
                    let most = backlog.room().await.min(PIECE);
                    let mut piece = Piece::default();
                    match source.read(&mut piece, most) {
                        Ok(0) if most > 0 => drained = true,
                        Ok(_) => backlog.push(piece.bytes()),
                        Err(Errno::EAGAIN | Errno::EINTR) => {}
                        Err(errno) => {
                            log::warn!("cannot read {}: {errno}", keep.name);
                            drained = true;
                        }
                    }
                }
                () = tokio::task::yield_now(), if can_send => {}
                else => link.change().await,
            }
        }
    }

    /// Takes and drops all that comes, and what was not sent.
    async fn discard(&mut self) {
        self.unread.take();
        self.again.clear();
        loop {
            self.piece = Piece::default();
            let Some(source) = &self.source else { return };
            source.wait().await;
            match source.read(&mut self.piece, PIECE) {
                Ok(0) => return,
                Err(Errno::EAGAIN | Errno::EINTR) | Ok(_) => {}
                Err(errno) => return log::warn!("cannot read {}: {errno}", self.keep.name),
            }
            tokio::task::yield_now().await;
        }
    }
}
