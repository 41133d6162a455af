//! Readiness of a descriptor, told by the event loop.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor known to the event loop. It stays open at least as long as this value.
#[derive(Debug)]
pub(crate) struct Registered(AsyncFd<Rc<OwnedFd>>);

impl Registered {
    /// Registers `fd`, each open descriptor at most once. `EPERM` for what is always ready:
    /// regular files, directories, `/dev/null`; `ENOSPC` and `ENOMEM` where the kernel has no room.
    pub(crate) fn new(fd: Rc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        // SAFETY: the `Rc` keeps the descriptor open, and always the same one, as long as the
        // `AsyncFd` lives: without `DerefMut` nobody can put another into its place.
        let ready = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Self(ready?))
    }
}

impl Deref for Registered {
    type Target = AsyncFd<Rc<OwnedFd>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
