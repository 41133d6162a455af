//! stdout and stderr on their way to whoever reads a stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::link::{Link, PIECE, ROOM};
use super::peer::Peer;
use crate::error::{Error, Result};
use crate::io::Context;
use crate::io::backlog::{Backlog, Keep};
use crate::io::driver::Feed;
use crate::io::end::poll_now;
use crate::io::output::Output;
use crate::io::pipe::{LARGE, capacity, enlarge};
use crate::io::task::Work;
use crate::io::uri::StreamingTarget;
use crate::rpc::duplex::End;
use crate::sys::ready::Ready;

/// A stream lets others run after this many pieces (1 MiB).
const TURN: u32 = 32;
/// Pieces below this size are not sent one upon the other.
const SMALL: usize = 4 << 10;
/// The longest pause between two small pieces, and the rest after which the next comes at once.
const PAUSE: Duration = Duration::from_millis(50);
const REST: Duration = Duration::from_millis(100);

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
    let keep = output.keep(context);
    let source = Source { pipe, ready };
    let outgoing = Outgoing { source, keep, pending: Pending::default(), rush: Rush::default() };
    Ok(Box::pin(run(outgoing, output, peer, link)))
}

/// Sends all, to one reader after the other, until the process is gone from the pipe.
async fn run(mut outgoing: Outgoing, output: Rc<Output>, peer: Peer, mut link: Rc<Link>) {
    let name = outgoing.keep.name.clone();
    loop {
        let stop = match outgoing.send(&link).await {
            Stop::Overflow => outgoing.store(&peer, &mut link).await,
            stop => stop,
        };
        match stop {
            Stop::Drained => break,
            Stop::Overflow => {}
            Stop::Lost => {
                log::info!("{name}: the reader of stream {:?} is gone", peer.id());
                link = peer.next().await;
            }
            Stop::Refused => {
                log::info!("{name}: the reader of stream {:?} wants no more", peer.id());
                link.close_soon();
                tokio::select! {
                    biased;
                    next = peer.next() => link = next,
                    () = outgoing.discard() => break,
                }
            }
        }
    }
    if let Err(error) = link.close().await {
        log::debug!("{name}: {error}");
    }
    drop(outgoing);
    output.finish();
    // A containerd that was away opens the streams of a process again whether or not it has ended.
    loop {
        let _ = peer.next().await.close().await; // it may be gone
    }
}

/// Why an output is not sent on.
enum Stop {
    /// No writer is left, and everything is sent.
    Drained,
    /// The reader's connection is gone.
    Lost,
    /// The reader has closed its stream.
    Refused,
    /// The reader has no window for what is there, or is not there, and there is another place for it.
    Overflow,
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        match end {
            End::Closed => Self::Refused,
            End::Lost => Self::Lost,
        }
    }
}

struct Outgoing {
    source: Source,
    keep: Keep,
    pending: Pending,
    rush: Rush,
}

impl Outgoing {
    /// Sends as the reader takes it.
    async fn send(&mut self, link: &Link) -> Stop {
        let mut pieces = 0;
        loop {
            if let Some(end) = link.ended() {
                return self.stopped(end);
            }
            if self.pending.is_empty() {
                tokio::select! {
                    biased;
                    end = link.wait_end() => return self.stopped(end),
                    () = self.source.wait() => {}
                }
            }
            if link.window() == 0 {
                let events = self.source.events();
                if self.pending.is_empty() && !events.contains(PollFlags::POLLIN) {
                    if events.contains(PollFlags::POLLHUP) {
                        return Stop::Drained; // nothing to send, so no window is needed
                    }
                    self.source.forget();
                } else if self.overflows() {
                    return Stop::Overflow;
                } else {
                    link.change().await;
                }
                continue;
            }
            if self.pending.is_empty() {
                let paused = self.rush.pause(&self.source).await;
                match self.source.read(&mut self.pending, link.window()) {
                    Ok(0) => return Stop::Drained,
                    // The writer was faster than the pause is long.
                    Ok(PIECE) if paused => {
                        enlarge(&*self.source.pipe, LARGE);
                    }
                    Ok(_) => {}
                    Err(Errno::EAGAIN | Errno::EINTR) => {
                        self.pending = Pending::default(); // an idle stream has no buffer
                        continue;
                    }
                    Err(errno) => {
                        log::warn!("cannot read {}: {errno}", self.keep.name);
                        return Stop::Drained;
                    }
                }
            }
            let count = self.pending.len().min(link.window()).min(PIECE);
            self.rush.note(count, link.window());
            if self.pending.send(link, count).await.is_err() {
                return self.stopped(link.wait_end().await);
            }
            pieces += 1;
            if pieces == TURN {
                pieces = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn stopped(&self, end: End) -> Stop {
        if end == End::Lost && self.overflows() { Stop::Overflow } else { end.into() }
    }

    /// Whether something else is to be done with what nobody takes than to leave it in the pipe, which
    /// is made as large as it may be.
    fn overflows(&self) -> bool {
        let policy = self.keep.policy;
        let holds = enlarge(&*self.source.pipe, policy.buffer.bytes().min(LARGE));
        !(policy.is_kept_by_a_fifo() && holds >= policy.buffer.bytes())
    }

    /// Keeps what comes until a reader has taken it all.
    async fn store(&mut self, peer: &Peer, link: &mut Rc<Link>) -> Stop {
        let Self { source, keep, pending, rush } = self;
        let mut backlog = Backlog::new(keep, capacity(&*source.pipe), pending.take());
        let mut ended = false;
        let mut next = pin!(peer.next());
        loop {
            let can_send = link.ended().is_none() && link.window() > 0;
            if can_send && !backlog.is_empty() {
                backlog.fetch().await;
                let oldest = backlog.oldest();
                let count = oldest.len().min(link.window()).min(PIECE);
                pending.put(&oldest[..count]);
                if pending.send(link, count).await.is_ok() {
                    backlog.written(count);
                } else {
                    pending.take();
                    link.wait_end().await;
                }
            }
            if backlog.is_empty() && ended {
                return Stop::Drained;
            }
            if backlog.is_empty() && link.ended().is_none() && link.window() > 0 {
                return Stop::Overflow; // it is over
            }
            if link.ended() == Some(End::Closed) {
                return Stop::Refused;
            }
            tokio::select! {
                biased;
                fresh = &mut next, if link.ended().is_some() => {
                    *link = fresh;
                    next.set(peer.next());
                }
                () = link.change(), if link.ended().is_none() && link.window() == 0 => {}
                () = source.wait(), if !ended && backlog.takes_more() => {
                    rush.pause(source).await;
                    let most = backlog.room().await.min(PIECE);
                    match source.read(pending, most) {
                        Ok(0) if most > 0 => ended = true,
                        Ok(_) => backlog.push(&pending.take()),
                        Err(Errno::EAGAIN | Errno::EINTR) => {}
                        Err(errno) => {
                            log::warn!("cannot read {}: {errno}", keep.name);
                            ended = true;
                        }
                    }
                }
                () = tokio::task::yield_now(), if link.ended().is_none() && link.window() > 0 => {}
            }
        }
    }

    /// Takes and drops all that comes.
    async fn discard(&mut self) {
        loop {
            self.source.wait().await;
            match self.source.read(&mut self.pending, PIECE) {
                Ok(0) => return,
                Err(Errno::EAGAIN | Errno::EINTR) | Ok(_) => {}
                Err(errno) => return log::warn!("cannot read {}: {errno}", self.keep.name),
            }
            self.pending = Pending::default();
            tokio::task::yield_now().await;
        }
    }
}

/// The read end of the process's pipe.
struct Source {
    pipe: Rc<OwnedFd>,
    ready: Ready,
}

impl Source {
    /// Resolves when something can be read, or the last writer is gone.
    async fn wait(&self) {
        // It fails only with the event loop.
        if self.ready.readable().await.is_err() {
            std::future::pending().await
        }
    }

    fn events(&self) -> PollFlags {
        let mut ends = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        let polled = poll_now(&mut ends).ok().and_then(|()| ends[0].revents());
        polled.unwrap_or(PollFlags::empty())
    }

    /// The next wait needs a new word from the kernel.
    fn forget(&self) {
        let blocked = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        let _forgotten = self.ready.try_io(Interest::READABLE, |_| blocked());
    }

    /// Reads what is there, at most `most` bytes and a [`PIECE`].
    fn read(&self, into: &mut Pending, most: usize) -> nix::Result<usize> {
        let buffer = into.empty();
        let result = nix::unistd::read(&*self.pipe, &mut buffer[ROOM..ROOM + most.min(PIECE)]);
        match result {
            Ok(count) => into.end = ROOM + count,
            Err(Errno::EAGAIN) => self.forget(),
            Err(_) => {}
        }
        result
    }
}

/// Bytes that were read and not sent, with room for a frame's head before them.
#[derive(Default)]
struct Pending {
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Pending {
    fn len(&self) -> usize {
        self.end - self.at
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer, with nothing in it.
    fn empty(&mut self) -> &mut [u8] {
        (self.at, self.end) = (ROOM, ROOM);
        self.buffer.resize(ROOM + PIECE, 0);
        &mut self.buffer
    }

    fn put(&mut self, bytes: &[u8]) {
        self.empty()[ROOM..ROOM + bytes.len()].copy_from_slice(bytes);
        self.end = ROOM + bytes.len();
    }

    fn take(&mut self) -> Vec<u8> {
        let bytes = self.buffer.get(self.at..self.end).unwrap_or_default().to_vec();
        *self = Self::default();
        bytes
    }

    /// Sends the first `count` bytes; they stay if that fails.
    async fn send(&mut self, link: &Link, count: usize) -> io::Result<()> {
        link.send(&mut self.buffer, self.at, count).await?;
        self.at += count;
        Ok(())
    }
}

/// Small pieces in quick succession. Each costs as much as a large one; and containerd's client from 2.3
/// on [gives a stream up] whose reader is busy for a second while 64 messages wait.
///
/// [gives a stream up]: https://github.com/containerd/ttrpc/blob/v1.2.9/stream.go#L61
#[derive(Default)]
struct Rush {
    /// Pieces since the reader has last widened its window, or had a rest.
    pieces: u32,
    window: usize,
    last: Option<Instant>,
    was_small: bool,
}

impl Rush {
    /// Lets more bytes come, the longer the more pieces the reader may have before it; whether it did.
    async fn pause(&self, source: &Source) -> bool {
        let Some(last) = self.last.filter(|_| self.was_small) else { return false };
        let pause = PAUSE.min(Duration::from_millis(self.pieces.into()));
        let left = pause.saturating_sub(last.elapsed());
        let pauses = !left.is_zero() && !source.events().contains(PollFlags::POLLHUP);
        if pauses {
            sleep(left).await;
        }
        pauses
    }

    fn note(&mut self, count: usize, window: usize) {
        if window > self.window || self.last.is_none_or(|last| last.elapsed() > REST) {
            self.pieces = 0;
        }
        self.pieces = self.pieces.saturating_add(1);
        self.window = window.saturating_sub(count);
        self.last = Some(Instant::now());
        self.was_small = count < SMALL;
    }
}
