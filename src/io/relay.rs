//! Moves bytes from one descriptor to another, inside the kernel where splice(2) can.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{read, write};
use tokio::io::Interest;

use crate::sys::ready::Ready;

/// The most one splice(2) is asked for, in bytes; a pipe holds 64 KiB unless it was enlarged.
const SPLICE: usize = 1 << 20;

/// The buffer of one read and write, in bytes: more than a terminal ever hands out at once.
const BUFFER: usize = 8192;

/// A stream lets others run after this many steps (1 MiB with pipes of the usual size).
const TURN: u32 = 16;

/// One end of a relay. Waits through the event loop; what epoll(7) refuses (regular files,
/// `/dev/null`) is always ready.
#[derive(Debug)]
pub(super) struct End {
    fd: Rc<OwnedFd>,
    ready: Option<Ready>,
    interest: Interest,
}

impl End {
    /// The end that bytes come from. `fd` is non-blocking.
    pub(super) fn source(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// The end that bytes go to. `fd` is non-blocking.
    pub(super) fn sink(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let mut end = Self { fd: Rc::new(fd), ready: None, interest };
        end.register()?;
        Ok(end)
    }

    /// Registers with the event loop, anew if it was: epoll tells a new registration what is true
    /// now, and nothing of the past remains.
    fn register(&mut self) -> io::Result<()> {
        self.ready = None;
        self.ready = match Ready::register(Rc::clone(&self.fd), self.interest) {
            Ok(ready) => Some(ready),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// The descriptor for as long as this end lives, for those who must not prolong that.
    pub(super) fn watch(&self) -> Weak<OwnedFd> {
        Rc::downgrade(&self.fd)
    }

    /// Puts `fd` in the place of the present descriptor, which is closed.
    pub(super) fn replace(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.ready = None;
        self.fd = Rc::new(fd);
        self.register()
    }

    async fn wait(&self) -> io::Result<()> {
        match &self.ready {
            Some(ready) => ready.ready(self.interest).await.map(drop),
            None => Ok(()),
        }
    }

    /// Resolves when nobody is left to read what is written here.
    async fn broken(&self) {
        let Some(ready) = &self.ready else { return std::future::pending().await };
        // An error comes only from a runtime that is going away.
        if ready.ready(Interest::ERROR).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Forgets that the end was ready, so that the next wait needs a new word from the kernel.
    ///
    /// The event loop never forgets a hang-up, and a terminal's is not final: a process that
    /// closes the last descriptor and opens the terminal again is heard once more. A new
    /// registration is what makes waiting possible then.
    fn forget(&mut self) -> io::Result<()> {
        let Some(ready) = &self.ready else { return Ok(()) };
        let blocked = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        let mut stuck = false;
        let _cleared = ready.try_io(self.interest, |_| blocked());
        let _still = ready.try_io(self.interest, |_| {
            stuck = true;
            blocked()
        });
        if stuck { self.register() } else { Ok(()) }
    }

    /// Resolves when a terminal that every process has closed is open again and something was
    /// written, at once if it is by now.
    ///
    /// The event loop and poll(2) see nothing but the hang-up, over and over; an edge-triggered
    /// epoll(7) of its own tells of each change, and of nothing in between.
    pub(super) async fn reopened(&self) -> io::Result<()> {
        let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        edges.add(&self.fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let told = Ready::register(Rc::new(edges.0.try_clone()?), Interest::READABLE)?;
        loop {
            let mut ready = told.readable().await?;
            edges.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?; // takes the edge
            ready.clear_ready();
            let mut end = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            poll_now(&mut end)?;
            let now = end[0].revents().unwrap_or(PollFlags::empty());
            if now.contains(PollFlags::POLLIN) || !now.contains(PollFlags::POLLHUP) {
                return Ok(());
            }
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Asks the kernel what is ready at this moment, without waiting.
pub(super) fn poll_now(ends: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(ends, PollTimeout::ZERO) {
            Err(Errno::EINTR) => {}
            polled => return Ok(polled.map(drop)?),
        }
    }
}

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
    Moved,
    Blocked,
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
}

impl Relay {
    pub(super) fn new(source: End, sink: End, mode: Mode) -> Self {
        Self { source, sink, mode, pending: Vec::new() }
    }

    /// Moves bytes until the source ends. Dropping the future loses nothing: `run` can be
    /// called again.
    ///
    /// # Errors
    /// `BrokenPipe` as soon as nobody can read from the sink, even if no byte is there to be
    /// written; other errors of reading and writing as they come.
    pub(super) async fn run(&mut self) -> io::Result<()> {
        let mut steps = 0_u32;
        loop {
            self.wait().await?;
            match self.step()? {
                Step::End => return Ok(()),
                Step::Moved => steps += 1,
                Step::Blocked => self.settle().await?,
            }
            if steps == TURN {
                steps = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn wait(&self) -> io::Result<()> {
        if self.pending.is_empty() {
            tokio::select! {
                biased;
                ready = self.source.wait() => ready?,
                () = self.sink.broken() => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        self.sink.wait().await
    }

    /// After a step that would have blocked: finds out on which end, and makes the next wait wait
    /// for that one. What becomes ready in between is a new event, which the loop still reports.
    async fn settle(&mut self) -> io::Result<()> {
        let (source, sink) = self.poll()?;
        if !source && self.pending.is_empty() {
            self.source.forget()?;
        } else if sink {
            // It became ready meanwhile; the pause keeps a driver that contradicts itself harmless.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !sink {
            self.sink.forget()?;
        }
        Ok(())
    }

    /// Whether the source can be read and the sink be written, now.
    fn poll(&self) -> io::Result<(bool, bool)> {
        let mut ends = [
            PollFd::new(self.source.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sink.as_fd(), PollFlags::POLLOUT),
        ];
        poll_now(&mut ends)?;
        Ok((ends[0].any().unwrap_or(true), ends[1].any().unwrap_or(true)))
    }

    fn step(&mut self) -> io::Result<Step> {
        let moved = match self.mode {
            Mode::Splice => self.splice(),
            Mode::Copy if self.pending.is_empty() => self.copy(),
            Mode::Copy => self.flush(),
        };
        match moved {
            Ok(0) => Ok(Step::End),
            Ok(_) | Err(Errno::EINTR) => Ok(Step::Moved),
            Err(Errno::EAGAIN) => Ok(Step::Blocked),
            Err(Errno::EINVAL) if self.mode == Mode::Splice => {
                self.mode = Mode::Copy;
                Ok(Step::Moved)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn splice(&self) -> nix::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        splice(&self.source, None, &self.sink, None, SPLICE, flags)
    }

    /// Reads what is there and writes what fits; the rest is kept.
    fn copy(&mut self) -> nix::Result<usize> {
        let mut buffer = [0; BUFFER];
        let bytes = match read(&self.source, &mut buffer) {
            Ok(count) => &buffer[..count],
            // No process has the terminal open; all that was written was read before.
            Err(Errno::EIO) => &[],
            Err(errno) => return Err(errno),
        };
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

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_hang_up_that_is_over_is_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("fifo");
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let writer = || OpenOptions::new().write(true).open(&path).unwrap();
            let mut end = End::source(open().unwrap().into()).unwrap();
            drop(writer());
            end.wait().await.unwrap();
            let another = writer();
            end.forget().unwrap();
            let wait = tokio::time::timeout(Duration::from_millis(50), end.wait());
            assert!(wait.await.is_err(), "nothing to read, nobody gone");
            drop(another);
            end.wait().await.unwrap();
        });
    }
}
