//! Moves bytes from one descriptor to another, inside the kernel where splice(2) can.
//!
//! A stream that has been quiet waits for an event and moves what comes at once. One that is busy would
//! have an event for every write of its process: it sleeps a tick between two moves, and does not
//! listen meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{read, write};
use tokio::time::{Instant, sleep};

use super::backlog::{Backlog, Keep, LEAST};
use super::clock::Clock;
use super::end::{End, poll_now};
use super::pipe::{LARGE, capacity, enlarge};
use crate::sys::pipe::unread;

/// The buffer of one read and write, in bytes: more than a terminal ever hands out at once.
const BUFFER: usize = 8192;
/// A stream lets others run after this many bytes, and those that follow are there already.
const TURN: usize = 1 << 20;
/// A stream that moves so many bytes at once has pipes that are too small.
const BUSY: usize = 32 << 10;
/// What one read takes while the sink is full, in bytes.
const STORE: usize = 64 << 10;
/// Bytes that come within this time of others are a rush.
const RUSH: Duration = Duration::from_millis(3);
/// Between two moves of a rush; the event loop's clock makes it up to 1 ms more.
const TICK: Duration = Duration::from_micros(500);
/// The same for a stream that would fill its pipes within a tick.
const FAST_TICK: Duration = Duration::from_micros(150);
/// Ticks without a byte until a rush is over.
const PATIENCE: u32 = 4;

/// How bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// splice(2): they never enter this process. Falls back to `Copy` where the kernel cannot.
    Splice,
    /// read(2) and write(2), for terminals and files open for appending.
    Copy,
}

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Moved(usize),
    Blocked,
    End,
}

/// What a burst of steps came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Burst {
    /// There is more; others have their turn first.
    More,
    /// So many bytes moved, then one of the ends had no more, or no room.
    Blocked(usize),
    End,
}

/// A source, a sink and the bytes between them.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) source: End,
    pub(super) sink: End,
    mode: Mode,
    /// Read and not yet written; empty, without memory, but while the sink is full.
    pending: Vec<u8>,
    /// What is kept of an output while nobody takes it.
    keep: Option<Keep>,
    /// The sink is full of all that was to be kept: the next bytes wait for it.
    waits: bool,
    /// When bytes last moved.
    last: Option<Instant>,
    /// Pipes are enlarged once, when they prove too small.
    grown: Grown,
}

/// Which ends have been enlarged, or cannot be.
#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    source: bool,
    sink: bool,
}

impl Relay {
    /// A relay that lets the source wait while the sink is full.
    pub(super) fn new(source: End, sink: End, mode: Mode) -> Self {
        let (pending, grown) = (Vec::new(), Grown::default());
        Self { source, sink, mode, pending, keep: None, waits: false, last: None, grown }
    }

    /// The same, but what the sink does not take is kept as `keep` says.
    pub(super) fn keeping(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Moves bytes until the source ends. Dropping the future loses nothing that is not kept in a
    /// backlog: `run` can be called again.
    ///
    /// # Errors
    /// `BrokenPipe` as soon as nobody can read from the sink, even if no byte is there to be
    /// written; other errors of reading and writing as they come.
    pub(super) async fn run(&mut self) -> io::Result<()> {
        self.source.listen()?; // it may have been dropped in a rush
        self.sink.listen()?;
        loop {
            self.wait().await?;
            let rushes = self.last.is_some_and(|last| last.elapsed() < RUSH);
            let burst = if rushes { self.rush().await? } else { self.burst()? };
            match burst {
                Burst::End => return Ok(()),
                Burst::More => tokio::task::yield_now().await,
                Burst::Blocked(_) => {
                    let overflows = self.overflows()?;
                    let next = if overflows { self.store().await? } else { self.settle().await? };
                    if next == Burst::End {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn wait(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            tokio::select! {
                biased;
                ready = self.source.wait() => ready?,
                () = self.sink.broken() => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if self.keep.is_some() && !self.waits {
            return Ok(()); // a full sink is found out by trying
        }
        self.sink.wait().await?;
        self.waits = false;
        Ok(())
    }

    /// Moves what is there at every tick, until for some ticks nothing was, or there is no room.
    async fn rush(&mut self) -> io::Result<Burst> {
        self.source.ignore();
        self.sink.ignore();
        let mut clock = None;
        // Short pauses to come before a long one, long ones to come before the rush is over.
        let (mut short, mut long) = (0, PATIENCE);
        let burst = loop {
            let burst = self.burst()?;
            match burst {
                Burst::End => return Ok(burst),
                Burst::Blocked(moved) if moved < self.fast() => {
                    if moved > 0 {
                        long = PATIENCE;
                    }
                    if short > 0 {
                        short -= 1;
                    } else if long > 0 {
                        long -= 1;
                        sleep(TICK).await;
                        continue;
                    } else {
                        break burst;
                    }
                }
                Burst::More | Burst::Blocked(_) => (short, long) = (PATIENCE, PATIENCE),
            }
            clock.get_or_insert_with(Clock::new).sleep(FAST_TICK).await?;
        };
        self.source.listen()?;
        self.sink.listen()?;
        Ok(burst)
    }

    /// The bytes of a burst that tell of a stream too fast for the event loop's clock.
    fn fast(&self) -> usize {
        match self.mode {
            Mode::Splice => LARGE / 8,
            Mode::Copy => BUFFER, // a terminal holds little
        }
    }

    /// Moves what can be moved now.
    fn burst(&mut self) -> io::Result<Burst> {
        let mut moved = 0;
        loop {
            match self.step()? {
                Step::End => {
                    self.count(moved);
                    return Ok(Burst::End);
                }
                Step::Moved(bytes) => moved += bytes,
                Step::Blocked => break,
            }
            if moved >= TURN {
                break;
            }
        }
        if moved > 0 {
            self.last = Some(Instant::now());
            self.count(moved);
        }
        self.grow(moved);
        Ok(if moved >= TURN { Burst::More } else { Burst::Blocked(moved) })
    }

    /// Counts bytes of output.
    fn count(&self, moved: usize) {
        if let Some(keep) = &self.keep {
            keep.meters.output_bytes.add(moved);
        }
    }

    /// Enlarges the pipes of a stream that fills them: fewer and larger moves.
    fn grow(&mut self, moved: usize) {
        if moved < BUSY {
            return;
        }
        if !self.grown.source {
            self.grown.source = true;
            enlarge(&self.source, LARGE);
        }
        if !self.grown.sink {
            self.grown.sink = true;
            let most = self.keep.as_ref().map_or(LARGE, |keep| keep.policy.buffer.bytes());
            enlarge(&self.sink, most.min(LARGE));
        }
    }

    /// After a step that would have blocked: finds out on which end, and makes the next wait wait
    /// for that one. What becomes ready in between is a new event, which the loop still reports.
    /// `Burst::End` if the source has come to its end.
    async fn settle(&mut self) -> io::Result<Burst> {
        let (source, sink) = self.poll()?;
        // splice(2) does not say so while the sink is full.
        if source == PollFlags::POLLHUP && self.mode == Mode::Splice {
            return Ok(Burst::End);
        }
        if source.is_empty() && self.pending.is_empty() {
            self.source.forget()?;
        } else if sink {
            // It became ready meanwhile; the pause keeps a driver that contradicts itself harmless.
            sleep(Duration::from_millis(1)).await;
        }
        if !sink {
            self.sink.forget()?;
        }
        Ok(Burst::More)
    }
}

impl Relay {
    /// Whether bytes are there that the sink has no room for, and more is to be done for them than to
    /// let them wait.
    fn overflows(&mut self) -> io::Result<bool> {
        let Some(keep) = &self.keep else { return Ok(false) };
        let (source, sink) = self.poll()?;
        if sink || (source.is_empty() && self.pending.is_empty()) {
            return Ok(false);
        }
        let buffer = keep.policy.buffer.bytes();
        if !self.grown.sink {
            self.grown.sink = true;
            enlarge(&self.sink, buffer.min(LARGE));
            return Ok(false); // there may be room now
        }
        // Not what it can hold: a page that was moved into it takes the room of a full one. What the
        // source's own pipe holds is enough of a busy stream, and nothing is copied.
        let missing = buffer.saturating_sub(unread(self.sink.as_fd())?);
        let enough = capacity(&self.source).max(LEAST);
        self.waits = keep.policy.is_kept_by_a_fifo() && missing < enough;
        Ok(!self.waits)
    }

    /// Takes what comes although the sink is full, until the sink has it all.
    async fn store(&mut self) -> io::Result<Burst> {
        let Self { source, sink, mode, keep: Some(keep), .. } = self else {
            return Ok(Burst::More);
        };
        let pending = std::mem::take(&mut self.pending);
        let mut backlog = Backlog::new(keep, unread(sink.as_fd())?, pending);
        let mut buffer = vec![0; STORE];
        let mut ended = false;
        // When bytes came, if it is worth while to let more gather.
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                ready = sink.wait(), if !backlog.is_empty() => {
                    ready?;
                    backlog.fetch().await;
                    match write(&*sink, backlog.oldest()) {
                        Ok(count) => {
                            backlog.written(count);
                            keep.meters.output_bytes.add(count);
                        }
                        Err(Errno::EAGAIN) => sink.forget()?,
                        Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    if backlog.is_empty() {
                        return Ok(if ended { Burst::End } else { Burst::More });
                    }
                }
                ready = source.wait(), if !ended && backlog.takes_more() => {
                    ready?;
                    if last.take().is_some_and(|last: Instant| last.elapsed() < RUSH) {
                        source.ignore();
                        sleep(TICK).await;
                        source.listen()?;
                        continue; // the sink may have room by now, and nothing has to be dropped
                    }
                    let most = backlog.room().await.min(buffer.len());
                    match receive(source, &mut buffer[..most]) {
                        Ok(0) if most > 0 => ended = true,
                        Ok(count) => {
                            backlog.push(&buffer[..count]);
                            let full = if *mode == Mode::Copy { BUFFER / 4 } else { most };
                            last = Some(Instant::now());
                            if count >= full && backlog.keeps_more() {
                                last = None;
                                tokio::task::yield_now().await;
                            }
                        }
                        Err(Errno::EAGAIN) => source.forget()?,
                        Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    if ended && backlog.is_empty() {
                        return Ok(Burst::End);
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// What is true of the source, nothing if there is nothing to read, and whether the sink can be
    /// written, now.
    fn poll(&self) -> io::Result<(PollFlags, bool)> {
        let mut ends = [
            PollFd::new(self.source.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sink.as_fd(), PollFlags::POLLOUT),
        ];
        poll_now(&mut ends)?;
        Ok((ends[0].revents().unwrap_or(PollFlags::POLLIN), ends[1].any().unwrap_or(true)))
    }

    fn step(&mut self) -> io::Result<Step> {
        let moved = match self.mode {
            Mode::Splice => self.splice(),
            Mode::Copy if self.pending.is_empty() => self.copy(),
            Mode::Copy => self.flush(),
        };
        match moved {
            Ok(0) => Ok(Step::End),
            Ok(moved) => Ok(Step::Moved(moved)),
            Err(Errno::EINTR) => Ok(Step::Moved(0)),
            Err(Errno::EAGAIN) => Ok(Step::Blocked),
            Err(Errno::EINVAL) if self.mode == Mode::Splice => {
                self.mode = Mode::Copy;
                Ok(Step::Moved(0))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn splice(&self) -> nix::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        splice(&self.source, None, &self.sink, None, LARGE, flags)
    }

    /// Reads what is there and writes what fits; the rest is kept.
    fn copy(&mut self) -> nix::Result<usize> {
        let mut buffer = [0; BUFFER];
        let count = receive(&self.source, &mut buffer)?;
        let bytes = &buffer[..count];
        if bytes.is_empty() {
            return Ok(0);
        }
        let written = match write(&self.sink, bytes) {
            Ok(written) => written,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        self.pending = bytes[written..].to_vec();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> nix::Result<usize> {
        let written = write(&self.sink, &self.pending)?;
        self.pending.drain(..written);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        Ok(written.max(1)) // a write of nothing is not the end of the source
    }
}

fn receive(source: &End, buffer: &mut [u8]) -> nix::Result<usize> {
    match read(source, buffer) {
        // No process has the terminal open; all that was written was read before.
        Err(Errno::EIO) => Ok(0),
        read => read,
    }
}
