//! What can go wrong, in words for the person who has to mend it, and the ttrpc status that
//! containerd branches on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ttrpc::Code;

/// The result of everything that can fail with an [`Error`].
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what was tried, on what, and what to do. The cause is `source`, said once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The caller's input is wrong; nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// The configuration has faults: a sentence for each, which names file and line.
    #[error("configuration {}", some(.0))]
    Config(Vec<String>),
    /// The caller, or a file, may not be trusted with what it asks for.
    #[error("{0}")]
    Denied(String),
    /// A container or process that the caller named does not exist (any more).
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    /// Signals and other changes come too late: containerd's clients take this for "done".
    #[error("process already finished: {id:?}")]
    Finished { id: String },
    /// An id that is in use.
    #[error("{what} {id:?} already exists")]
    Exists { what: &'static str, id: String },
    /// An id that somebody else uses.
    #[error(
        "{what} {id:?} is there already: give one of them another id, namespace or runtime root"
    )]
    Taken { what: String, id: String },
    /// A pod's container before its sandbox.
    #[error("container {id:?} is of sandbox {sandbox:?}, which does not exist: create it first")]
    NoSandbox { id: String, sandbox: String },
    /// The lifecycle has no such step from where the process is.
    #[error("cannot {change} {id:?} while it is {state}")]
    State { id: String, change: &'static str, state: &'static str },
    /// None of the runtimes is there: the reasons, then where it was asked for, or what to do.
    #[error("OCI runtime {name:?}: {why}")]
    NoRuntime { name: String, why: String },
    /// A checkpoint or restore where CRIU is not there: what is missing, and what to do.
    #[error("CRIU, which makes and restores checkpoints, cannot be used: {0}")]
    NoCriu(String),
    /// The OCI runtime refused; its own words are in `message`, but for what nobody can read.
    #[error("`{runtime} {command}` failed ({status}): {message}")]
    Runtime { runtime: String, command: &'static str, status: String, message: String },
    /// A step that outlived its deadline and was ended.
    #[error("{what} did not end within {} s", limit.as_secs_f32())]
    Deadline { what: String, limit: Duration },
    /// What was asked for before, of the same kind, has not come to its end.
    #[error(
        "cannot {action} {}: {looks} others hang that were tried before, as on a dead network mount",
        path.display()
    )]
    Hangs { action: &'static str, path: PathBuf, looks: usize },
    /// A Create of that id is still under way.
    #[error("container {id:?} is being created by an earlier call, {progress}")]
    Creating { id: String, progress: String },
    /// A system call on a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A part of a container's root file system could not be mounted; `hint` starts with its `;`.
    #[error(
        "cannot mount rootfs component {number} (type {kind}, source {from}) on {}: {source}{hint}",
        target.display()
    )]
    Mount {
        number: usize,
        kind: String,
        from: String,
        target: PathBuf,
        source: io::Error,
        hint: String,
    },
    /// A system call that concerns no file failed.
    #[error("cannot {action}: {source}")]
    Sys { action: &'static str, source: io::Error },
    /// A method or option that berth does not have. containerd falls back on this code only.
    #[error("{0} is not implemented")]
    Unimplemented(String),
    /// The shim is ending and takes nothing new.
    #[error("the shim is shutting down")]
    ShuttingDown,
    /// As many as there may be.
    #[error("too many {what}: at most {limit}")]
    Full { what: &'static str, limit: usize },
    /// A message over ttrpc's limit of 4 MiB.
    #[error("message of {0} bytes exceeds the limit of 4194304 bytes")]
    TooLarge(usize),
    /// The peer answered with a status of its own.
    #[error("{message}")]
    Remote { code: Code, message: String },
}

impl Error {
    /// Wraps the failure of a system call on `path`; reads well after "cannot".
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Wraps the failure of a system call without a path; reads well after "cannot".
    pub(crate) fn sys(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Sys { action, source }
    }

    /// The status on the wire: gRPC's numbers, as containerd's errdefs package maps them.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Config(_) => Code::INVALID_ARGUMENT,
            Self::Denied(_) => Code::PERMISSION_DENIED,
            Self::NotFound { .. } | Self::Finished { .. } => Code::NOT_FOUND,
            Self::Exists { .. } | Self::Taken { .. } | Self::Creating { .. } => {
                Code::ALREADY_EXISTS
            }
            Self::State { .. }
            | Self::NoRuntime { .. }
            | Self::NoCriu(_)
            | Self::NoSandbox { .. } => Code::FAILED_PRECONDITION,
            Self::Runtime { .. } => Code::UNKNOWN,
            Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::Io { .. } | Self::Mount { .. } | Self::Sys { .. } => Code::INTERNAL,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::ShuttingDown => Code::UNAVAILABLE,
            Self::Full { .. } | Self::Hangs { .. } | Self::TooLarge(_) => Code::RESOURCE_EXHAUSTED,
            Self::Remote { code, .. } => *code,
        }
    }
}

/// As many faults as fit into an answer, and how many more there are.
fn some(faults: &[String]) -> String {
    const MOST: usize = 10;
    let mut text = faults[..faults.len().min(MOST)].join("; ");
    if faults.len() > MOST {
        text += &format!("; and {} more: see `config check`", faults.len() - MOST);
    }
    text
}
