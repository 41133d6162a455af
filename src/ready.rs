//! When a descriptor is ready: the event loop tells it. Where the kernel has no room for that
//! (`fs.epoll.max_user_watches`, or memory), one looks again and again: late, but nothing ends for it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFdReadyGuard;
use tokio::time::sleep;

use crate::log::Seldom;
use crate::sys::ready::Registered;

/// Between two looks; doubled each time that nothing was there.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(320);

/// A shortage concerns all descriptors of a busy daemon: it is said once a minute.
static NO_ROOM: Seldom = Seldom::every(Duration::from_secs(60));

/// A descriptor that can be waited for. It stays open at least as long as this value.
#[derive(Debug)]
pub(crate) struct Ready(Way);

#[derive(Debug)]
enum Way {
    /// The event loop tells.
    Told(Registered),
    /// It had no room: poll(2) is asked now and then.
    Asked(Asked),
}

#[derive(Debug)]
struct Asked {
    fd: Rc<OwnedFd>,
    /// What was ready led to nothing. poll(2) may say the same for ever, as of a cgroup's file that is
    /// gone: without a pause before it is asked again, nobody else would have a turn.
    rests: Cell<bool>,
}

/// Until it is told to clear it, what is ready stays so.
pub(crate) enum Notice<'a> {
    Told(AsyncFdReadyGuard<'a, Rc<OwnedFd>>),
    Asked(&'a Cell<bool>),
}

impl Notice<'_> {
    /// The next wait needs a new word from the kernel; to be called when there is nothing left.
    pub(crate) fn clear_ready(&mut self) {
        match self {
            Self::Told(guard) => guard.clear_ready(),
            Self::Asked(rests) => rests.set(true),
        }
    }
}

impl Ready {
    /// Prepares to wait for `fd`, each open descriptor at most once at a time.
    ///
    /// # Errors
    /// `EPERM` for what is always ready: regular files, directories, `/dev/null`.
    pub(crate) fn register(fd: Rc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        match Registered::new(fd.clone(), interest) {
            Ok(registered) => Ok(Self(Way::Told(registered))),
            Err(error) if is_lack_of_room(&error) => {
                NO_ROOM.warn(format_args!(
                    "no room in epoll, a stream or file is polled: raise fs.epoll.max_user_watches: {error}"
                ));
                Ok(Self(Way::Asked(Asked { fd, rests: Cell::default() })))
            }
            Err(error) => Err(error),
        }
    }

    /// The descriptor.
    pub(crate) fn get_ref(&self) -> &Rc<OwnedFd> {
        match &self.0 {
            Way::Told(registered) => registered.get_ref(),
            Way::Asked(asked) => &asked.fd,
        }
    }

    /// Resolves when something of `interest` is true, or the other end is gone.
    ///
    /// # Errors
    /// Only of an event loop that is going away, or of a kernel without memory.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Notice<'_>> {
        match &self.0 {
            Way::Told(registered) => registered.ready(interest).await.map(Notice::Told),
            Way::Asked(asked) => asked.look(interest).await.map(|()| Notice::Asked(&asked.rests)),
        }
    }

    /// As [`Ready::ready`], for bytes to read.
    pub(crate) async fn readable(&self) -> io::Result<Notice<'_>> {
        self.ready(Interest::READABLE).await
    }

    /// Makes the next wait for `interest` need a new word from the kernel. `false` if the event loop
    /// holds that it is ready all the same: it never forgets a hang-up.
    pub(crate) fn forget(&self, interest: Interest) -> bool {
        let registered = match &self.0 {
            Way::Told(registered) => registered,
            Way::Asked(asked) => {
                asked.rests.set(true);
                return true;
            }
        };
        let blocked = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
        let mut stuck = false;
        let _cleared = registered.try_io(interest, |_| blocked());
        let _still = registered.try_io(interest, |_| {
            stuck = true;
            blocked()
        });
        !stuck
    }
}

fn is_lack_of_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM))
}

impl Asked {
    /// Looks until something of `interest` is true, or nobody has the other end.
    async fn look(&self, interest: Interest) -> io::Result<()> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, interest.is_readable());
        wanted.set(PollFlags::POLLOUT, interest.is_writable());
        wanted.set(PollFlags::POLLPRI, interest.is_priority());
        let mut pause = FIRST_PAUSE;
        let mut rests = self.rests.take();
        loop {
            if rests {
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
            rests = true;
            let mut ends = [PollFd::new(self.fd.as_fd(), wanted)];
            match poll(&mut ends, PollTimeout::ZERO) {
                // Nobody has a terminal open: that is no error, and may change.
                Ok(_) if wanted.is_empty() && ends[0].revents() == Some(PollFlags::POLLHUP) => {}
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use nix::unistd::{pipe, write};
    use tokio::time::timeout;

    use super::*;

    fn asked(fd: OwnedFd) -> Asked {
        Asked { fd: Rc::new(fd), rests: Cell::default() }
    }

    #[test]
    fn what_epoll_has_no_room_for_is_polled() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let asked = |fd: OwnedFd| Ready(Way::Asked(asked(fd)));
            let soon = Duration::from_millis(100);
            let (reader, writer) = pipe().unwrap();
            let source = asked(reader);
            assert!(timeout(soon, source.readable()).await.is_err(), "nothing to read");
            write(&writer, b"x").unwrap();
            source.readable().await.unwrap().clear_ready();
            source.readable().await.unwrap(); // it is still there
            let sink = asked(writer);
            sink.ready(Interest::WRITABLE).await.unwrap();
            assert!(sink.forget(Interest::WRITABLE));
            let broken = sink.ready(Interest::ERROR);
            assert!(timeout(soon, broken).await.is_err(), "it has a reader");
            drop(source);
            sink.ready(Interest::ERROR).await.unwrap();
        });
    }

    #[test]
    fn what_is_ready_for_ever_and_leads_to_nothing_lets_others_run() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        type Clear = fn(&Ready, Notice<'_>);
        let cases: [(&str, Clear); 2] = [
            ("cleared", |_, mut notice| notice.clear_ready()),
            ("forgotten", |ready, _| assert!(ready.forget(Interest::READABLE))),
        ];
        for (name, clear) in cases {
            runtime.block_on(async {
                let (reader, writer) = pipe().unwrap();
                drop(writer);
                let ready = Ready(Way::Asked(asked(reader)));
                let mut notices = 0;
                let hears = async {
                    while notices < 1000 {
                        clear(&ready, ready.readable().await.unwrap());
                        notices += 1;
                    }
                };
                let _ended = timeout(Duration::from_millis(100), hears).await;
                assert!(notices < 10, "{name}: {notices} notices in 100 ms");
            });
        }
    }

    #[test]
    fn a_terminal_that_nobody_has_open_is_not_broken() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let nix::pty::OpenptyResult { master, slave } = nix::pty::openpty(None, None).unwrap();
            drop(slave);
            let master = Ready(Way::Asked(asked(master)));
            let broken = timeout(Duration::from_millis(100), master.ready(Interest::ERROR)).await;
            assert!(broken.is_err());
            master.readable().await.unwrap(); // its end is there to be read
        });
    }

    #[test]
    fn looks_become_rare() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (reader, _writer) = pipe().unwrap();
            let mut looks = 0;
            let reader = asked(reader);
            let mut wait = std::pin::pin!(reader.look(Interest::READABLE));
            let counted = std::future::poll_fn(|context| {
                looks += 1;
                wait.as_mut().poll(context)
            });
            assert!(timeout(Duration::from_millis(700), counted).await.is_err());
            assert!(looks < 10, "{looks} looks in 700 ms");
        });
    }

    #[test]
    fn only_a_lack_of_room_is_polled() {
        let cases = [
            (libc::EPERM, false),
            (libc::ENOSPC, true),
            (libc::ENOMEM, true),
            (libc::EBADF, false),
        ];
        for (errno, expected) in cases {
            assert_eq!(is_lack_of_room(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
    }
}
