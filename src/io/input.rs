//! stdin on its way in.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::time::Instant;

use super::end::End;
use super::fifo::{self, Direction, Opened};
use super::look;
use super::pipe::set_nonblocking;
use super::relay::{Mode, Relay};
use super::task::Flag;
use crate::error::{Error, Result};
use crate::sys::thread::detached;

/// The file that input comes from.
pub(super) struct Source {
    pub(super) end: End,
    pub(super) fifo: bool,
}

impl Source {
    /// # Errors
    /// [`Error::Io`] names the path; [`Error::Deadline`].
    pub(super) async fn open(path: &Path, deadline: Option<Instant>) -> Result<Self> {
        let open = |path: &Path| {
            let Opened { fd, fifo } = fifo::open(path, Direction::In)?;
            let file = File::from(fd);
            let is_file = file.metadata()?.is_file();
            Ok((if is_file { fed_by(file)? } else { file.into() }, fifo))
        };
        let (fd, fifo) = look::at(path, "open stdin", deadline, open).await?;
        let end = End::source(fd).map_err(Error::io("watch", path))?;
        Ok(Self { end, fifo })
    }

    /// Input from here to `sink`.
    pub(super) fn into_input(self, sink: End, mode: Mode) -> Input {
        Input { relay: Relay::new(self.end, sink, mode), fifo: self.fifo }
    }
}

/// A pipe that a thread fills from a regular file, which may block as no pipe does; the thread ends with
/// the file, or once nobody has the pipe.
fn fed_by(mut file: File) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&reader)?;
    detached("stdin", move || {
        if let Err(error) = io::copy(&mut file, &mut File::from(writer)) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                log::warn!("cannot read stdin: {error}");
            }
        }
    })?;
    Ok(reader)
}

/// stdin on its way to the process.
pub(super) struct Input {
    relay: Relay,
    fifo: bool,
}

impl Input {
    /// Relays until the source ends, or the process, or until after `close` the last client has gone.
    pub(super) async fn run(mut self, close: Flag) {
        let ended = tokio::select! {
            biased;
            ended = self.relay.run() => ended,
            () = close.wait() => self.finish().await,
        };
        // A process that ends or closes its input while more is coming is nothing unusual.
        if let Err(error) = ended {
            log::debug!("stdin ended: {error}");
        }
    }

    /// Goes on until the other writers are gone too.
    async fn finish(&mut self) -> io::Result<()> {
        if self.fifo {
            let reader = fifo::half(&self.relay.source, Direction::In)?;
            self.relay.source.replace(reader)?;
        }
        self.relay.run().await
    }
}
