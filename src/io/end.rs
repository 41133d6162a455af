//! A descriptor that bytes come from or go to, and the wait for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::time::sleep;

use crate::sys::ready::Ready;

/// Between two looks at what the event loop has no room for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One end of a relay. Waits through the event loop; what epoll(7) refuses (regular files,
/// `/dev/null`) is always ready. What it has no room for (`fs.epoll.max_user_watches`, or memory) is
/// looked at again and again.
#[derive(Debug)]
pub(super) struct End {
    fd: Rc<OwnedFd>,
    ready: Option<Ready>,
    interest: Interest,
    /// It is not registered, and why.
    unwatched: Option<Unwatched>,
}

/// Why a descriptor is not registered with the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unwatched {
    /// epoll(7) refuses it: it is always ready.
    Always,
    /// There was no room when it was last registered.
    Polled,
}

impl Unwatched {
    /// # Errors
    /// One that is for the caller.
    fn after(error: io::Error) -> io::Result<Self> {
        match error.raw_os_error() {
            Some(libc::EPERM) => Ok(Self::Always),
            Some(libc::ENOSPC | libc::ENOMEM) => Ok(Self::Polled),
            _ => Err(error),
        }
    }
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
        let mut end = Self { fd: Rc::new(fd), ready: None, interest, unwatched: None };
        end.register()?;
        Ok(end)
    }

    /// Registers with the event loop, anew if it was: epoll tells a new registration what is true
    /// now, and nothing of the past remains.
    fn register(&mut self) -> io::Result<()> {
        self.ready = None;
        match Ready::register(Rc::clone(&self.fd), self.interest) {
            Ok(ready) => (self.ready, self.unwatched) = (Some(ready), None),
            Err(error) => {
                let unwatched = Unwatched::after(error)?;
                if unwatched == Unwatched::Polled && self.unwatched.is_none() {
                    log::warn!("no room in epoll (fs.epoll.max_user_watches): a stream is polled");
                }
                self.unwatched = Some(unwatched);
            }
        }
        Ok(())
    }

    /// Hears of nothing until [`End::listen`]; until then a wait returns at once.
    pub(super) fn ignore(&mut self) {
        self.ready = None;
    }

    /// Undoes [`End::ignore`]; what is ready by now is heard of.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        let is_always = self.unwatched == Some(Unwatched::Always);
        if is_always || self.ready.is_some() { Ok(()) } else { self.register() }
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

    pub(super) async fn wait(&self) -> io::Result<()> {
        match &self.ready {
            Some(ready) => ready.ready(self.interest).await.map(drop),
            None if self.unwatched == Some(Unwatched::Polled) => {
                let wanted = if self.interest.is_readable() {
                    PollFlags::POLLIN
                } else {
                    PollFlags::POLLOUT
                };
                self.poll_until(wanted).await
            }
            None => Ok(()),
        }
    }

    /// Looks until one of these is true, or nobody has the other end.
    async fn poll_until(&self, wanted: PollFlags) -> io::Result<()> {
        loop {
            let mut end = [PollFd::new(self.as_fd(), wanted)];
            poll_now(&mut end)?;
            if end[0].any().unwrap_or(true) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Resolves when nobody is left to read what is written here.
    pub(super) async fn broken(&self) {
        let Some(ready) = &self.ready else {
            if self.unwatched == Some(Unwatched::Polled) && !self.interest.is_readable() {
                while self.poll_until(PollFlags::empty()).await.is_err() {
                    sleep(LOOK_AGAIN).await;
                }
                return;
            }
            return std::future::pending().await;
        };
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
    pub(super) fn forget(&mut self) -> io::Result<()> {
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
        let edges = self.edges().inspect_err(|error| log::debug!("a terminal is polled: {error}"));
        loop {
            if let Ok((edges, told)) = &edges {
                let mut ready = told.readable().await?;
                edges.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?; // takes the edge
                ready.clear_ready();
            } else {
                sleep(LOOK_AGAIN).await;
            }
            let mut end = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            poll_now(&mut end)?;
            let now = end[0].revents().unwrap_or(PollFlags::empty());
            if now.contains(PollFlags::POLLIN) || !now.contains(PollFlags::POLLHUP) {
                return Ok(());
            }
        }
    }

    fn edges(&self) -> io::Result<(Epoll, Ready)> {
        let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        edges.add(&self.fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let told = Ready::register(Rc::new(edges.0.try_clone()?), Interest::READABLE)?;
        Ok((edges, told))
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

#[cfg(test)]
mod tests {
    use nix::unistd::{pipe, write};
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn what_epoll_has_no_room_for_is_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let polled = |fd: OwnedFd, interest| End {
                fd: Rc::new(fd),
                ready: None,
                interest,
                unwatched: Some(Unwatched::Polled),
            };
            let soon = Duration::from_millis(100);
            let (reader, writer) = pipe().unwrap();
            let source = polled(reader, Interest::READABLE);
            assert!(timeout(soon, source.wait()).await.is_err(), "nothing to read");
            write(&writer, b"x").unwrap();
            source.wait().await.unwrap();
            let sink = polled(writer, Interest::WRITABLE);
            sink.wait().await.unwrap();
            assert!(timeout(soon, sink.broken()).await.is_err(), "it has a reader");
            drop(source);
            sink.broken().await;
            sink.wait().await.unwrap();
        });
    }

    #[test]
    fn only_a_lack_of_room_is_polled() {
        let cases = [
            (libc::EPERM, Some(Unwatched::Always)),
            (libc::ENOSPC, Some(Unwatched::Polled)),
            (libc::ENOMEM, Some(Unwatched::Polled)),
            (libc::EBADF, None),
        ];
        for (errno, expected) in cases {
            let found = Unwatched::after(io::Error::from_raw_os_error(errno)).ok();
            assert_eq!(found, expected, "{errno}");
        }
    }

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
