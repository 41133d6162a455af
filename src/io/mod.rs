//! Standard streams: where containerd wants them becomes pipes or a terminal for the process, and
//! what moves the bytes between.
//!
//! A stream that berth moves has one task and no thread, and an idle one no timer and no buffer. Log
//! files and the journal have a thread for each process, since a disk can block. Descriptors of an idle
//! process with three FIFOs: six, four with a terminal.

mod backlog;
mod clock;
mod console;
mod drain;
mod driver;
mod end;
mod fifo;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handed;
mod holders;
mod input;
mod journal;
mod log_file;
#[cfg(test)]
mod log_tests;
mod logger;
mod look;
mod output;
mod outside;
mod pipe;
mod process;
mod relay;
mod rotation;
mod spill;
mod streaming;
mod task;
#[cfg(test)]
mod tests;
mod uri;

use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(crate) use self::console::{ConsoleSocket, remove_leftovers};
pub(crate) use self::holders::Undrained;
pub(crate) use self::look::at as look_at;
pub(crate) use self::outside::OutsideFile;
pub(crate) use self::process::{ProcessIo, TerminalIo};
pub(crate) use self::spill::unnamed as unnamed_file;
pub(crate) use self::streaming::{Opening, Registry};

use self::uri::Target;
use crate::config;
use crate::error::{Error, Result};
use crate::ids::Namespace;
use crate::reaper::Reaper;

/// The streams that containerd asks for, for one process. An empty one is `/dev/null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StdioSpec {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    /// Without meaning for a terminal, which has one output.
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose streams they are, and what may be done for them.
pub(crate) struct Context<'a> {
    /// The container's id; that of an exec process is its own.
    pub(crate) id: &'a str,
    /// containerd's namespace.
    pub(crate) namespace: &'a Namespace,
    /// The container's bundle.
    pub(crate) bundle: &'a Path,
    /// Starts loggers.
    pub(crate) reaper: &'a Reaper,
    /// The streams that clients have opened.
    pub(crate) streams: &'a Rc<Registry>,
    /// Who owns the pipes, so that the process can open `/dev/stdout` again under a user namespace.
    pub(crate) owner: (u32, u32),
    /// What happens to output that nobody takes.
    pub(crate) policy: config::Io,
    /// Whether every writer of the outputs ends with the process, and nothing but the file mode
    /// decides whether it may write: then it may get a FIFO itself.
    pub(crate) is_confined: bool,
    /// Until when loggers and servers of streams have to be there.
    pub(crate) deadline: Option<Instant>,
}

impl StdioSpec {
    /// Refuses what berth cannot serve, before anything was done for the process.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the stream and what is wrong with its URI.
    pub(crate) fn check(&self) -> Result<()> {
        for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            self.target(stream)?;
        }
        Ok(())
    }

    /// Where a stream goes.
    fn target(&self, stream: Stream) -> Result<Target> {
        let uri = match stream {
            Stream::Stdin => &self.stdin,
            Stream::Stdout => &self.stdout,
            Stream::Stderr if self.terminal => return Ok(Target::Null),
            Stream::Stderr => &self.stderr,
        };
        let wrong = |why: String| Error::Invalid(format!("{} {uri:?}: {why}", stream.name()));
        let target = Target::parse(uri).map_err(wrong)?;
        match (stream, &target) {
            (_, Target::Null | Target::Path(_) | Target::Streaming(_)) => Ok(target),
            (Stream::Stdin, _) => Err(wrong("is for outputs only: use a FIFO".into())),
            (Stream::Stdout | Stream::Stderr, _) => Ok(target),
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
