//! An output whose FIFO the process has itself: no byte passes through berth.
//!
//! berth keeps the FIFO open for both, so that a reader may come and go: no reader is no SIGPIPE and no
//! loss, and no reader gets an end of the file before the process's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::{Rc, Weak};

use nix::sys::stat::fstat;
use nix::unistd::{getegid, geteuid};
use tokio::sync::Notify;

use super::fifo::{self, Opened};
use super::output::{Output, Taker};
use super::pipe::enlarge;
use super::task::Flag;
use super::{Context, Stream};
use crate::error::{Error, Result};

/// What berth holds of such a FIFO.
pub(super) struct Handed {
    both: Rc<OwnedFd>,
    output: Rc<Output>,
}

impl Handed {
    /// Takes an output's file for its process; the descriptor for that, which blocks. The file comes back
    /// if the process must not have it, because the promises of the configuration could not be kept,
    /// somebody might write after the process's end, or it could not open its `/dev/stdout` again.
    ///
    /// # Errors
    /// [`Error::Sys`].
    pub(super) fn take(
        stream: Stream,
        opened: Opened,
        context: &Context<'_>,
        changed: &Rc<Notify>,
    ) -> Result<Result<(OwnedFd, Self), Opened>> {
        let failed = |error| Error::sys("open a FIFO again")(error);
        if !is_wanted(&opened, context).map_err(failed)? {
            return Ok(Err(opened));
        }
        let theirs = blocking_writer(&opened.fd).map_err(failed)?;
        let both = Rc::new(opened.fd);
        let taker = Taker::Sink(Rc::downgrade(&both));
        let output = Output::new(stream, Weak::new(), taker, changed.clone());
        Ok(Ok((theirs, Self { both, output })))
    }

    /// The file, for as long as berth has it.
    pub(super) fn file(&self) -> Weak<OwnedFd> {
        Rc::downgrade(&self.both)
    }

    /// What the outside may know of it.
    pub(super) fn output(&self) -> Rc<Output> {
        self.output.clone()
    }

    /// Waits for the end of the process. The kernel has ended all others in its PID namespace before
    /// that is known, so what they wrote is in the FIFO.
    pub(super) async fn run(self, ended: Flag) {
        let Self { both, output } = self;
        ended.wait().await;
        output.finish();
        if let Err(error) = fifo::leave(both, output.rest()).await {
            log::warn!("cannot wait for a reader of {}: {error}", output.stream().name());
        }
    }
}

/// Whether nobody will notice that berth is not in between.
fn is_wanted(opened: &Opened, context: &Context<'_>) -> io::Result<bool> {
    let policy = context.policy;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let allowed = policy.handover && policy.is_kept_by_a_fifo() && context.is_confined;
    if !(allowed && opened.fifo && context.owner == (uid, gid)) {
        return Ok(false);
    }
    let buffer = policy.buffer.bytes();
    Ok(fstat(&opened.fd)?.st_uid == uid && enlarge(&opened.fd, buffer) >= buffer)
}

/// An end for the process, which waits in write(2) while the FIFO is full, as for any pipe.
fn blocking_writer(both: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", both.as_fd().as_raw_fd());
    let mut options = std::fs::OpenOptions::new();
    Ok(options.write(true).custom_flags(libc::O_NOCTTY).open(path)?.into())
}
