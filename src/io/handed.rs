//! An output whose FIFO the process has itself: no byte passes through berth.
//!
//! berth keeps an end of each kind open, so that a reader may come and go: no reader is no SIGPIPE and
//! no loss, and no reader gets an end of the file before the process's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::{Rc, Weak};

use nix::sys::stat::fstat;
use nix::unistd::geteuid;
use tokio::sync::Notify;

use super::fifo::{self, Direction};
use super::output::{Output, Taker};
use super::relay::enlarge;
use super::task::Flag;
use super::{Context, Stream};
use crate::error::{Error, Result};

/// What berth holds of such a FIFO.
pub(super) struct Handed {
    reader: OwnedFd,
    writer: OwnedFd,
    output: Rc<Output>,
}

impl Handed {
    /// Opens the FIFO at `path` for a process; the descriptor for it, which blocks. `None` if the process
    /// must not have it, because the promises of the configuration could not be kept, somebody might
    /// write after the process's end, or the process could not open its `/dev/stdout` again.
    ///
    /// # Errors
    /// [`Error::Io`] names the path.
    pub(super) fn open(
        stream: Stream,
        path: &Path,
        context: &Context<'_>,
        changed: &Rc<Notify>,
    ) -> Result<Option<(OwnedFd, Self)>> {
        let policy = context.policy;
        let own = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let wanted = policy.handover && policy.is_kept_by_a_fifo() && context.is_confined;
        if !wanted || context.owner != own {
            return Ok(None);
        }
        let failed = |error| Error::io("open", path)(error);
        let opened = fifo::open(path, Direction::Out).map_err(failed)?;
        let owner = fstat(&opened.fd).map_err(|errno| failed(errno.into()))?.st_uid;
        let buffer = policy.buffer.bytes();
        if !opened.fifo || owner != own.0 || enlarge(&opened.fd, buffer) < buffer {
            return Ok(None);
        }
        let reader = fifo::half(&opened.fd, Direction::In).map_err(failed)?;
        let theirs = blocking_writer(&opened.fd).map_err(failed)?;
        let writer = theirs.try_clone().map_err(failed)?;
        let output = Output::new(stream, Weak::new(), Taker::Sink(Weak::new()), changed.clone());
        Ok(Some((theirs, Self { reader, writer, output })))
    }

    /// What the outside may know of it.
    pub(super) fn output(&self) -> Rc<Output> {
        self.output.clone()
    }

    /// Waits for the end of the process. The kernel has ended all others in its PID namespace before
    /// that is known, so what they wrote is in the FIFO.
    pub(super) async fn run(self, ended: Flag) {
        let Self { reader, writer, output } = self;
        ended.wait().await;
        drop(writer);
        output.finish();
        if let Err(error) = fifo::leave(reader).await {
            log::warn!("cannot wait for a reader of {}: {error}", output.stream().name());
        }
    }
}

/// An end for the process, which waits in write(2) while the FIFO is full, as for any pipe.
fn blocking_writer(both: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", both.as_fd().as_raw_fd());
    let mut options = std::fs::OpenOptions::new();
    Ok(options.write(true).custom_flags(libc::O_NOCTTY).open(path)?.into())
}
