//! containerd's logging protocol: a program takes the outputs ([logging]).
//!
//! The logger reads the process's pipes itself, and no byte passes through berth. It has stdout as
//! descriptor 3, stderr as 4, and says on 5 that it is ready. berth holds the pipes too: when a logger
//! dies, nothing that is in them is lost and the process waits, until the next logger goes on there.
//!
//! [logging]: https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md#logging

mod process;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::{pipe2, read};
use tokio::io::Interest;
use tokio::time::{Duration, Instant, sleep, timeout};

use self::process::Process;
use super::driver::Feed;
use super::end::poll_now;
use super::pipe::{LARGE, enlarge, set_nonblocking};
use super::task::Work;
use super::uri::LoggerTarget;
use super::{Context, Stream};
use crate::error::{Error, Result};
use crate::meters;
use crate::ready::Ready;
use crate::reaper::{Exit, Reaper};

/// How long a logger may take until it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long a logger may take to end once it has read all there is. With what it may take to die it is
/// less than the 6.7 s that Delete has for output where its caller gives it 10 s, as kubelet does.
const LINGER: Duration = Duration::from_secs(4);
/// How long the news of an end may take that came before the logger was ready.
const NEWS: Duration = Duration::from_millis(200);
/// Between two looks at a pipe that nobody can write to any more: nothing tells when it is empty.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Starts a logger for `feeds`, and resolves when it is ready. The work is then to start it again
/// whenever it dies, to let it end after the last byte, and to finish the outputs. Dropping the work
/// ends the logger, within 2 s of its own time.
///
/// # Errors
/// [`Error::Io`] names a program that cannot be started, or ended without having been ready;
/// [`Error::Deadline`] one that took more than 10 s, or than the caller has. It is killed then.
pub(super) async fn start(
    target: &LoggerTarget,
    feeds: Vec<Feed>,
    context: &Context<'_>,
) -> Result<Work> {
    let left = context.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    for feed in &feeds {
        enlarge(&feed.pipe, context.policy.buffer.bytes().min(LARGE));
    }
    let logger = Logger {
        target: target.clone(),
        id: context.id.to_owned(),
        namespace: context.namespace.to_string(),
        bundle: context.bundle.to_owned(),
        reaper: context.reaper.clone(),
        feeds,
    };
    let process = logger.start(left.map_or(READY, |left| left.min(READY))).await?;
    Ok(Box::pin(logger.supervise(process)))
}

/// A logger and what it takes, whichever process it is at the moment.
struct Logger {
    target: LoggerTarget,
    id: String,
    namespace: String,
    bundle: PathBuf,
    reaper: Reaper,
    feeds: Vec<Feed>,
}

impl Logger {
    /// Starts the program, and resolves when it is ready.
    ///
    /// # Errors
    /// As [`start`].
    async fn start(&self, limit: Duration) -> Result<Process> {
        let program = &self.target.program;
        let failed = |source| Error::io("start logger", program)(source);
        let (mut process, ready) = self.spawn().map_err(failed)?;
        self.rename(&process.name(program));
        let error = match timeout(limit, self.told_ready(ready, &mut process)).await {
            Ok(Ok(())) => return Ok(process),
            Ok(Err(error)) => failed(error),
            Err(_) => {
                let what = format!("the start of {}", process.name(program));
                Error::Deadline { what, limit }
            }
        };
        process.kill().await;
        Err(error)
    }

    /// The process, and where it says that it is ready.
    fn spawn(&self) -> io::Result<(Process, OwnedFd)> {
        let (ready, says_ready) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&ready)?;
        let nothing = pipe2(OFlag::O_CLOEXEC)?.0; // its writer is closed: at its end at once
        let feed = |stream| -> io::Result<BorrowedFd<'_>> {
            match self.feeds.iter().find(|feed| feed.output.stream() == stream) {
                // Only loggers read it, and not all of them can be told to come again later.
                Some(feed) => set_blocking(&feed.pipe).map(|()| feed.pipe.as_fd()),
                None => Ok(nothing.as_fd()),
            }
        };
        let env =
            [("CONTAINER_ID", self.id.as_str()), ("CONTAINER_NAMESPACE", self.namespace.as_str())];
        let child = self.reaper.spawn_apart(
            &self.target.program,
            &self.target.args,
            &self.bundle,
            &env,
            &[feed(Stream::Stdout)?, feed(Stream::Stderr)?, says_ready.as_fd()],
        )?;
        Ok((Process::keep(child), ready))
    }

    /// Resolves when the logger says on `ready` that it is. The end of the file is enough for the
    /// first version of the protocol, in which a logger closes its descriptor and says nothing.
    async fn told_ready(&self, ready: OwnedFd, process: &mut Process) -> io::Result<()> {
        let ready = Ready::register(Rc::new(ready), Interest::READABLE)?;
        let said = tokio::select! {
            biased;
            said = first_byte(&ready) => said?,
            // Something that it has started may still hold the pipe.
            _ = process.ended() => read(ready.get_ref(), &mut [0]).is_ok_and(|count| count > 0),
        };
        if said || !self.target.says_ready {
            return Ok(());
        }
        Err(io::Error::other(match timeout(NEWS, process.ended()).await {
            Ok(Exit { status, .. }) => format!("it ended with status {status} before it was ready"),
            Err(_) => "it closed descriptor 5 without a word that it is ready".to_owned(),
        }))
    }

    /// Sees to it that there is a logger until everything was taken.
    async fn supervise(self, mut process: Process) {
        let mut pauses = Pauses::default();
        loop {
            let exit = tokio::select! {
                biased;
                exit = process.ended() => exit,
                () = self.at_end() => {
                    self.end(process).await;
                    break;
                }
            };
            let end = self.words(&process, exit);
            if self.feeds.iter().all(is_at_end) {
                if exit.status != 0 {
                    log::warn!("{end}");
                }
                break;
            }
            pauses.lived(process.born.elapsed());
            let Some(next) = self.restart(end, &mut pauses).await else { break };
            process = next;
        }
        self.feeds.iter().for_each(|feed| feed.output.finish());
    }

    /// Gives a logger that has read everything the time to end by itself.
    async fn end(&self, mut process: Process) {
        if let Ok(exit) = timeout(LINGER, process.ended()).await {
            if exit.status != 0 {
                log::warn!("{}", self.words(&process, exit));
            }
            return;
        }
        let (name, limit) = (process.name(&self.target.program), LINGER.as_secs());
        log::warn!("{name} of {:?} does not end {limit} s after its input: terminated", self.id);
        process.stop().await;
    }

    /// Starts the logger again, until one is ready; `None` if there is nothing left for it.
    async fn restart(&self, mut why: String, pauses: &mut Pauses) -> Option<Process> {
        loop {
            let (pause, count) = (pauses.next(), self.restarts() + 1);
            log::warn!("{why}: restart {count} in {} ms", pause.as_millis());
            self.rename(&format!("any logger ({why})"));
            tokio::select! {
                biased;
                () = self.at_end() => return None, // it has left somebody who took the rest
                () = sleep(pause) => {}
            }
            if let Some(feed) = self.feeds.first() {
                feed.output.count_restart();
                meters::add(&self.reaper.meters().logger_restarts, 1);
            }
            match self.start(READY).await {
                Ok(process) => return Some(process),
                Err(error) => why = format!("{error}"),
            }
        }
    }

    fn restarts(&self) -> u32 {
        self.feeds.first().map_or(0, |feed| feed.output.restarts())
    }

    /// How messages name it from now on.
    fn rename(&self, name: &str) {
        self.feeds.iter().for_each(|feed| feed.output.name_taker(name.to_owned()));
    }

    fn words(&self, process: &Process, exit: Exit) -> String {
        let name = process.name(&self.target.program);
        format!("{name} of {:?} ended with status {}", self.id, exit.status)
    }

    /// Resolves when nobody can write any more and the logger has read everything.
    async fn at_end(&self) {
        for feed in &self.feeds {
            hung_up(feed).await;
        }
        while !self.feeds.iter().all(is_at_end) {
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Pauses before the next start of a logger that has died.
struct Pauses(Duration);

impl Pauses {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);
    /// A logger that has lived for this long worked.
    const LONG_ENOUGH: Duration = Duration::from_secs(30);

    /// Notes how long the last one lived.
    fn lived(&mut self, time: Duration) {
        if time >= Self::LONG_ENOUGH {
            *self = Self::default();
        }
    }

    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(Self::LONGEST);
        now
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

/// Whether a byte comes before the end of the file.
async fn first_byte(pipe: &Ready) -> io::Result<bool> {
    loop {
        let mut ready = pipe.readable().await?;
        match read(pipe.get_ref(), &mut [0]) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a logger that writes `said` to its descriptor 5 and closes it has said that it is ready.
#[cfg(any(test, fuzzing))]
pub(super) fn says_ready(said: &[u8]) -> io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (ready, says) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let ready = Ready::register(Rc::new(ready), Interest::READABLE)?;
        let _ = nix::unistd::write(&says, said); // as much as there is room for
        drop(says);
        first_byte(&ready).await
    })
}

/// Resolves when nobody can write to a pipe any more.
async fn hung_up(feed: &Feed) {
    while !state(feed).contains(PollFlags::POLLHUP) {
        if let Err(error) = hang_up(feed).await {
            log::warn!("cannot wait for the end of {}: {error}", feed.output.stream().name());
            sleep(Pauses::LONGEST).await;
        }
    }
}

/// The event loop would wake us for each byte that somebody else reads; an epoll(7) of its own that
/// asks for nothing tells of the hang-up alone.
async fn hang_up(feed: &Feed) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&feed.pipe, EpollEvent::new(EpollFlags::empty(), 0))?;
    let told = Ready::register(Rc::new(epoll.0), Interest::READABLE)?;
    told.readable().await.map(drop)
}

/// Whether nobody can write to a pipe any more, and nothing is in it.
fn is_at_end(feed: &Feed) -> bool {
    let state = state(feed);
    state.contains(PollFlags::POLLHUP) && !state.contains(PollFlags::POLLIN)
}

fn state(feed: &Feed) -> PollFlags {
    let mut ends = [PollFd::new(feed.pipe.as_fd(), PollFlags::POLLIN)];
    if poll_now(&mut ends).is_err() {
        return PollFlags::empty();
    }
    ends[0].revents().unwrap_or(PollFlags::empty())
}

fn set_blocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}
