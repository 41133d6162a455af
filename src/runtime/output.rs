//! Where a runtime command's own words go: a log file in the bundle and a bounded memory file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::sys::child::Streams;

/// What is kept of a command's output; a runtime that prints more gets EPERM.
const CAPTURE: i64 = 64 * 1024;

/// A log file's path that no other command uses at the same time.
pub(super) fn log_file(bundle: &Path, command: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    bundle.join(format!("log-{command}-{}.json", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Takes standard output and error together, up to [`CAPTURE`] bytes.
pub(super) struct Output(File);

impl Output {
    /// A memory file as output and error, `/dev/null` as input.
    ///
    /// Unlike a pipe it needs no reader, and a process that keeps it open after the command has
    /// ended delays nobody.
    pub(super) fn capture() -> Result<(Self, Streams)> {
        let memory = || -> nix::Result<(OwnedFd, OwnedFd)> {
            let null = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let memory = memfd_create(c"berth-output", flags)?;
            nix::unistd::ftruncate(&memory, CAPTURE)?;
            fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
            Ok((null, memory))
        };
        let failed = "make room for the runtime's output";
        let (null, memory) = memory().map_err(|errno| Error::sys(failed)(errno.into()))?;
        let output = memory.try_clone().map_err(Error::sys(failed))?;
        let error = memory.try_clone().map_err(Error::sys(failed))?;
        Ok((Self(memory.into()), [null, output, error]))
    }

    /// What has been written so far.
    pub(super) fn text(mut self) -> String {
        // All copies share one offset, which tells how much was written.
        let length = self.0.stream_position().unwrap_or_default();
        let mut text = Vec::new();
        if self.0.seek(SeekFrom::Start(0)).is_ok() {
            let _ = self.0.take(length).read_to_end(&mut text); // what was read so far will do
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}
