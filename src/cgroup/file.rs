//! Control files and small files of procfs, read into one buffer that is used again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;

/// Holds all that a cgroup's largest control file has on a host of usual size; grows if need be.
const BUFFER: usize = 4 * 1024;

/// Reads text files, one after the other, into the same buffer.
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// A reader with its buffer.
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER] }
    }

    /// The text of a control file, taken from `dir`, or `None` if there is none: it is not there, its
    /// cgroup was just removed, or the kernel runs without it (as pressure files do).
    ///
    /// Costs three system calls: the kernel makes such a file as one record, so a read that does
    /// not fill the buffer has all of it.
    pub(super) fn control(&mut self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<Option<&str>> {
        absent(self.load(dir, path, Records::One))
    }

    /// The whole text of the file at `path`, which may be a list of many records (a mount table,
    /// a list of processes), or `None` if there is none.
    pub(super) fn list(&mut self, path: &Path) -> io::Result<Option<&str>> {
        absent(self.load(AT_FDCWD, path, Records::Many))
    }

    fn load(&mut self, dir: BorrowedFd<'_>, path: &Path, records: Records) -> io::Result<&str> {
        let mut file = File::from(openat(dir, path, OFlag::O_CLOEXEC, Mode::empty())?);
        let mut len = 0;
        loop {
            let got = match file.read(&mut self.buffer[len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            len += got;
            let full = len == self.buffer.len();
            if full {
                self.buffer.resize(2 * len, 0);
            }
            if got == 0 || (records == Records::One && !full) {
                break;
            }
        }
        // A name that is no UTF-8 can only be a stranger's; up to there the text is good.
        let text = &self.buffer[..len];
        Ok(std::str::from_utf8(text).unwrap_or_else(|bad| {
            std::str::from_utf8(&text[..bad.valid_up_to()]).unwrap_or_default()
        }))
    }
}

/// How the kernel makes a file's text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Records {
    One,
    Many,
}

/// A descriptor of the directory `path`, to open its files by their short names; `None` if it is
/// gone.
pub(super) fn directory(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    absent(open(path, flags, Mode::empty()).map_err(io::Error::from))
}

/// Writes `value` to an existing control file with one write(2).
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Turns the errors that mean "there is no such thing (any more)" into `None`.
///
/// `ENODEV`: the cgroup went between open and read. `ESRCH`: the process did, or the process that
/// should join. `EOPNOTSUPP`: pressure files when PSI is off.
pub(super) fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}
