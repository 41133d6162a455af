//! A thread that takes outputs to where a write can block: a disk that is full or hangs, a journal that
//! does not read. The event loop only hears of it.
//!
//! It waits in poll(2) while nothing comes and has no buffer then. Nobody joins it: it ends with its
//! last output or when it is told to stop, and one that hangs in a system call ends with the daemon. The
//! descriptors that it has are copies of its own.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::read;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::driver::Feed;
use super::pipe::enlarge;
use super::task::Work;
use super::{Context, Stream};
use crate::error::{Error, Result};
use crate::meters::Bytes;
use crate::sys;

/// The buffer that exists while bytes come, in bytes.
const BUFFER: usize = 128 * 1024;

/// What a pipe is enlarged to once much comes, in bytes: as much as is written in [`GATHER`].
const PIPE: usize = 512 * 1024;

/// Less than this at once, in bytes, and it is worth to wait for more.
const LITTLE: usize = 16 * 1024;

/// How long to wait then.
const GATHER: Duration = Duration::from_millis(1);

/// How long a place may take to open, unless the caller's deadline is sooner.
const OPEN: Duration = Duration::from_secs(10);

/// Pauses between attempts double from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// How often a failure that lasts is logged.
const REMIND: Duration = Duration::from_secs(60);

/// Where outputs are kept. Its functions may block.
pub(super) trait Store {
    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// The thread was told to stop before that.
    fn take(&mut self, stream: Stream, bytes: &[u8], control: &Control) -> Result<(), Stopped>;

    /// Nothing more comes from `stream`.
    ///
    /// # Errors
    /// As [`Store::take`].
    fn end(&mut self, stream: Stream, control: &Control) -> Result<(), Stopped>;
}

/// The thread was told to stop: what it has not kept by now is lost.
#[derive(Debug)]
pub(super) struct Stopped;

/// Begins to take outputs to what `open` opens on the thread, as [`super::driver::start`]; messages
/// call it `name`.
pub(super) async fn start<S: Store>(
    name: String,
    feeds: Vec<Feed>,
    context: &Context<'_>,
    open: impl FnOnce() -> Result<S> + Send + 'static,
) -> Result<Work> {
    let started = Instant::now();
    let limit = context.deadline.unwrap_or(started + OPEN).min(started + OPEN);
    let failed = |error| Error::sys("start a thread for output")(error);
    let pipes = copies(&feeds, &name).map_err(failed)?;
    let stop = Arc::new(Stop::new().map_err(failed)?);
    let guard = StopGuard(Arc::clone(&stop));
    let (words, said) = mpsc::unbounded_channel();
    let (opened, is_open) = oneshot::channel();
    let what = format!("opening {name}");
    let bytes = context.reaper.meters().output_bytes.clone();
    let (failing, warned) = Default::default();
    let control = Control { stop, words, name, bytes, failing, warned };
    let thread = move || match open() {
        Ok(store) => {
            // Else it came too late, and nobody waits.
            if opened.send(Ok(())).is_ok() {
                drop(drain(pipes, store, &control));
            }
        }
        Err(error) => drop(opened.send(Err(error))),
    };
    sys::thread::detached("berth-log", thread).map_err(failed)?;
    match timeout_at(limit, is_open).await {
        Ok(Ok(opened)) => opened?,
        Ok(Err(_)) => return Err(Error::sys("open a log")(io::ErrorKind::BrokenPipe.into())),
        Err(_) => return Err(Error::Deadline { what, limit: limit - started }),
    }
    Ok(Box::pin(listen(said, feeds, guard)))
}

/// What the thread reads.
fn copies(feeds: &[Feed], name: &str) -> io::Result<Vec<Pipe>> {
    let copy = |feed: &Feed| {
        feed.output.name_taker(name.to_owned());
        Ok(Pipe { fd: feed.pipe.try_clone()?, stream: feed.output.stream(), enlarged: false })
    };
    feeds.iter().map(copy).collect()
}

/// Passes on what the thread says until it has ended.
async fn listen(
    mut said: mpsc::UnboundedReceiver<Word>,
    feeds: Vec<Feed>,
    _stop_when_dropped: StopGuard,
) {
    let mut feeds: Vec<Option<Feed>> = feeds.into_iter().map(Some).collect();
    while let Some(word) = said.recv().await {
        match word {
            Word::Ended(stream) => {
                let ended = |feed: &Option<Feed>| {
                    feed.as_ref().is_some_and(|feed| feed.output.stream() == stream)
                };
                if let Some(feed) = feeds.iter_mut().find(|feed| ended(feed)).and_then(Option::take)
                {
                    let Feed { pipe, output } = feed;
                    drop(pipe);
                    output.finish();
                }
            }
            Word::Named(name) => {
                feeds.iter().flatten().for_each(|feed| feed.output.name_taker(name.clone()));
            }
        }
    }
}

/// What the thread tells the event loop.
enum Word {
    /// All of an output is kept.
    Ended(Stream),
    /// How messages name the store from now on.
    Named(String),
}

/// Tells the thread to stop, from the event loop.
struct Stop {
    told: AtomicBool,
    /// Readable from then on.
    wakes: EventFd,
}

impl Stop {
    fn new() -> io::Result<Self> {
        let wakes = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { told: AtomicBool::new(false), wakes })
    }
}

struct StopGuard(Arc<Stop>);

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.told.store(true, Ordering::Release);
        let _ = self.0.wakes.write(1); // it has room for more than one
    }
}

/// The thread's side of its ties to the event loop.
pub(super) struct Control {
    stop: Arc<Stop>,
    words: mpsc::UnboundedSender<Word>,
    name: String,
    bytes: Bytes,
    failing: Cell<Option<Failing>>,
    warned: Cell<Option<std::time::Instant>>,
}

/// An attempt that fails again and again.
#[derive(Clone, Copy)]
struct Failing {
    pause: Duration,
    warned: bool,
}

impl Control {
    /// A pause before the next attempt of what has failed with `error`: 10 ms, and up to a second if
    /// it goes on to fail. Logs it, once a minute at most; what does not end in time has this as its
    /// reason.
    ///
    /// # Errors
    /// The thread was told to stop.
    pub(super) fn pause(&self, error: &io::Error) -> Result<(), Stopped> {
        let before = self.failing.get();
        let pause = before.map_or(PAUSES[0], |before| (before.pause * 2).min(PAUSES[1]));
        let warns = self.warned.get().is_none_or(|warned| warned.elapsed() >= REMIND);
        if warns {
            self.warned.set(Some(std::time::Instant::now()));
            log::warn!("cannot write to {}: {error}; its process waits", self.name);
        }
        if before.is_none() {
            self.say(Word::Named(format!("{}: {error}", self.name)));
        }
        let warned = warns || before.is_some_and(|before| before.warned);
        self.failing.set(Some(Failing { pause, warned }));
        self.wait(&[], PollFlags::empty(), Some(pause))
    }

    /// An attempt has succeeded.
    pub(super) fn goes_on(&self) {
        let Some(failing) = self.failing.take() else { return };
        self.say(Word::Named(self.name.clone()));
        if failing.warned {
            log::info!("{} is written again", self.name);
        }
    }

    /// Nobody listens any more when the thread is to stop, which it hears otherwise.
    fn say(&self, word: Word) {
        let _ = self.words.send(word);
    }

    /// # Errors
    /// The thread was told to stop.
    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.stop.told.load(Ordering::Acquire) { Err(Stopped) } else { Ok(()) }
    }

    /// Waits until there is something of `events` on one of `pipes`, at most for `limit`; a hang-up is
    /// always something.
    ///
    /// # Errors
    /// The thread was told to stop.
    fn wait(
        &self,
        pipes: &[Pipe],
        events: PollFlags,
        limit: Option<Duration>,
    ) -> Result<(), Stopped> {
        let mut ends = vec![PollFd::new(self.stop.wakes.as_fd(), PollFlags::POLLIN)];
        ends.extend(pipes.iter().map(|pipe| PollFd::new(pipe.fd.as_fd(), events)));
        let limit =
            limit.map_or(PollTimeout::NONE, |limit| limit.try_into().unwrap_or(PollTimeout::MAX));
        match poll(&mut ends, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel lacks memory. Whoever calls looks again.
            Err(_) => std::thread::sleep(PAUSES[0]),
        }
        self.check()
    }
}

/// An output's end of its pipe.
struct Pipe {
    fd: OwnedFd,
    stream: Stream,
    enlarged: bool,
}

impl Pipe {
    /// Reads what is there; `None` is that nothing is. Nothing comes after 0 bytes.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let count = loop {
            match read(&self.fd, buffer) {
                Ok(count) => break count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(errno) => {
                    log::warn!("cannot read {}: {errno}", self.stream.name());
                    break 0;
                }
            }
        };
        if count >= LITTLE && !self.enlarged {
            self.enlarged = true;
            enlarge(&self.fd, PIPE); // without the room it is slower, no more
        }
        Some(count)
    }
}

/// Takes all that comes from `pipes`.
fn drain(mut pipes: Vec<Pipe>, mut store: impl Store, control: &Control) -> Result<(), Stopped> {
    let mut buffer = Vec::new();
    while !pipes.is_empty() {
        let mut most = None;
        let mut ended = None;
        for (number, pipe) in pipes.iter_mut().enumerate() {
            control.check()?;
            if buffer.is_empty() {
                buffer = vec![0; BUFFER];
            }
            let Some(count) = pipe.read(&mut buffer) else { continue };
            if count == 0 {
                ended = Some(number);
                continue;
            }
            store.take(pipe.stream, &buffer[..count], control)?;
            control.bytes.add(count);
            most = most.max(Some(count));
        }
        if let Some(number) = ended {
            let Pipe { stream, .. } = pipes.swap_remove(number);
            store.end(stream, control)?;
            control.say(Word::Ended(stream));
            continue;
        }
        match most {
            // Once more, with no look at the clock or at the others.
            Some(LITTLE..) => {}
            // The writer is left to write more meanwhile: many small writes are one step.
            Some(_) => control.wait(&pipes, PollFlags::empty(), Some(GATHER))?,
            None => {
                buffer = Vec::new();
                control.wait(&pipes, PollFlags::POLLIN, None)?;
            }
        }
    }
    Ok(())
}
