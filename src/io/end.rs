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

use crate::ready::Ready;

/// Between two looks at a terminal that nothing else tells of.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One end of a relay. Waits through the event loop; what epoll(7) refuses (regular files,
/// `/dev/null`) is always ready.
#[derive(Debug)]
pub(super) struct End {
    fd: Rc<OwnedFd>,
    ready: Option<Ready>,
    interest: Interest,
    /// epoll(7) refuses it: it is always ready.
    is_always: bool,
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
        let mut end = Self { fd: Rc::new(fd), ready: None, interest, is_always: false };
        end.register()?;
        Ok(end)
    }

    /// Registers with the event loop, anew if it was: epoll tells a new registration what is true
    /// now, and nothing of the past remains.
    fn register(&mut self) -> io::Result<()> {
        self.ready = None;
        match Ready::register(Rc::clone(&self.fd), self.interest) {
            Ok(ready) => (self.ready, self.is_always) = (Some(ready), false),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.is_always = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Hears of nothing until [`End::listen`]; until then a wait returns at once.
    pub(super) fn ignore(&mut self) {
        self.ready = None;
    }

    /// Undoes [`End::ignore`]; what is ready by now is heard of.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if self.is_always || self.ready.is_some() { Ok(()) } else { self.register() }
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
            None => Ok(()),
        }
    }

    /// Resolves when nobody is left to read what is written here.
    pub(super) async fn broken(&self) {
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
    pub(super) fn forget(&mut self) -> io::Result<()> {
        let Some(ready) = &self.ready else { return Ok(()) };
        if ready.forget(self.interest) { Ok(()) } else { self.register() }
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
