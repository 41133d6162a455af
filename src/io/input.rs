//! stdin on its way in.

use std::io;
use std::path::Path;

use super::end::End;
use super::fifo::{self, Direction};
use super::relay::{Mode, Relay};
use super::task::Flag;
use crate::error::{Error, Result};

/// The file that input comes from.
pub(super) struct Source {
    pub(super) end: End,
    pub(super) fifo: bool,
}

impl Source {
    /// # Errors
    /// [`Error::Io`] names the path.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = fifo::open(path, Direction::In).map_err(Error::io("open stdin", path))?;
        let end = End::source(opened.fd).map_err(Error::io("watch", path))?;
        Ok(Self { end, fifo: opened.fifo })
    }

    /// Input from here to `sink`.
    pub(super) fn into_input(self, sink: End, mode: Mode) -> Input {
        Input { relay: Relay::new(self.end, sink, mode), fifo: self.fifo }
    }
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
