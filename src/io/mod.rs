//! Standard streams: containerd's three URIs become pipes or a terminal for the process, and
//! relays between those and the FIFOs.
//!
//! Every stream has one task and no thread; an idle stream has no timer and no buffer.
//! Descriptors of an idle process with all streams: six, four with a terminal.

mod console;
mod fifo;
mod holders;
mod process;
mod relay;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use self::console::{ConsoleSocket, remove_leftovers};
pub(crate) use self::holders::Undrained;
pub(crate) use self::process::ProcessIo;

use crate::error::{Error, Result};

/// The streams that containerd asks for, for one process. An empty one is `/dev/null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StdioSpec {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    /// Without meaning for a terminal, which has one output.
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl StdioSpec {
    /// Refuses what berth cannot serve, before anything was done for the process.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the stream and its scheme.
    pub(crate) fn check(&self) -> Result<()> {
        for name in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            self.path(name)?;
        }
        Ok(())
    }

    /// Where a stream goes; `None` is nowhere.
    fn path(&self, stream: Stream) -> Result<Option<&Path>> {
        let uri = match stream {
            Stream::Stdin => &self.stdin,
            Stream::Stdout => &self.stdout,
            Stream::Stderr if self.terminal => return Ok(None),
            Stream::Stderr => &self.stderr,
        };
        let name = stream.name();
        let path = match uri.split_once("://") {
            _ if uri.is_empty() => return Ok(None),
            _ if uri.starts_with('/') => uri,
            Some(("fifo", path)) => path,
            Some((scheme, _)) => {
                let text =
                    format!("{name} {uri:?}: scheme {scheme:?} is not supported: use a FIFO");
                return Err(Error::Invalid(text));
            }
            None => uri,
        };
        if path.starts_with('/') && !path.contains('\0') {
            Ok(Some(Path::new(path)))
        } else {
            Err(Error::Invalid(format!("{name} {uri:?} is not an absolute path")))
        }
    }
}

/// One of a process's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}
