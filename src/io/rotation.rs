//! A log file that is moved away when it is large: `log` becomes `log.1`, that becomes `log.2`, and so
//! on.
//!
//! Several processes, of one shim or of many, may write one file. Each holds a lock on the file while it
//! writes or rotates, and looks before whether the file still has its name: so nothing is written to a
//! file that is gone, records do not mix, and no file is rotated twice.

use std::fs::{remove_file, rename};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memchr::memrchr;
use nix::fcntl::{FcntlArg, fcntl};

use super::drain::{Control, Stopped};
use super::format::fits;
use super::log_file::Appended;

/// When to try again what has failed.
const AGAIN: Duration = Duration::from_secs(1);

/// How often another file may have the log's name right after it was opened by that name.
const STRANGERS: u32 = 16;

/// How often a failure is logged.
const REMIND: Duration = Duration::from_secs(60);

/// When a file is rotated, and how far one is.
pub(super) struct Rotation {
    max: u64,
    files: u32,
    /// Lines of more bytes than this may be cut.
    longest: u64,
    /// Bytes of the line that the file ends with, as far as it is ours.
    line: u64,
    /// A rotation has failed: the file grows until the next attempt.
    grows_until: Option<Instant>,
    logged: Option<Instant>,
    strangers: u32,
}

impl Rotation {
    /// Files of at most `max` bytes, `files` of them. Only a raw log cuts lines, those of more than
    /// `max`.
    pub(super) fn new(max: u64, files: u32, raw: bool) -> Self {
        let longest = if raw { max } else { u64::MAX };
        Self { max, files, longest, line: 0, grows_until: None, logged: None, strangers: 0 }
    }

    /// Writes `bytes` to `file`, which is rotated when it is full.
    ///
    /// # Errors
    /// The thread was told to stop.
    pub(super) fn append(
        &mut self,
        file: &mut Appended,
        mut bytes: &[u8],
        control: &Control,
    ) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            control.check()?;
            lock(file, libc::F_WRLCK);
            let appended = self.append_some(file, bytes);
            lock(file, libc::F_UNLCK); // a file that was left meanwhile is closed, and free by that
            match appended {
                Ok(0) => {}
                Ok(count) => {
                    control.goes_on();
                    bytes = &bytes[count..];
                }
                Err(error) => control.pause(&error)?,
            }
        }
        Ok(())
    }

    /// Writes what fits into the file, or finds another one for it.
    fn append_some(&mut self, file: &mut Appended, bytes: &[u8]) -> io::Result<usize> {
        let grows = self.grows_until.is_some_and(|until| Instant::now() < until);
        let size = match file.named() {
            _ if grows => 0,
            Some(found) => found.len(),
            None => {
                let reopened = self.reopen(file);
                self.changed(file, reopened);
                return Ok(0);
            }
        };
        let max = if grows { u64::MAX } else { self.max };
        let fitting = fits(bytes, size, self.line, max, self.longest);
        if fitting == 0 {
            let rotated = self.rotate(file);
            self.changed(file, rotated);
            return Ok(0);
        }
        let mut written = 0;
        while written < fitting {
            match file.attempt(&bytes[written..fitting]) {
                Ok(count) => written += count,
                Err(error) if written == 0 => return Err(error),
                Err(_) => break, // it comes again
            }
        }
        self.line = match memrchr(b'\n', &bytes[..written]) {
            Some(newline) => (written - newline - 1) as u64,
            None => self.line + written as u64,
        };
        Ok(written)
    }

    /// Goes on in the file that has the log's name now.
    fn reopen(&mut self, file: &mut Appended) -> io::Result<()> {
        file.reopen()?;
        self.strangers = if file.named().is_some() { 0 } else { self.strangers + 1 };
        if self.strangers < STRANGERS {
            return Ok(()); // another writer was quick
        }
        Err(io::Error::other("its file system does not know a file again"))
    }

    /// The log has gone on to another file, or that has failed and it goes on in the present one.
    fn changed(&mut self, file: &Appended, change: io::Result<()>) {
        let now = Instant::now();
        let Err(error) = change else {
            (self.line, self.grows_until) = (0, None);
            return;
        };
        self.grows_until = Some(now + AGAIN);
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= REMIND) {
            self.logged = Some(now);
            log::warn!("cannot rotate {}, which grows on: {error}", file.path.display());
        }
    }

    /// Moves the file and the older ones, and begins a new one. A crash in between leaves each of them
    /// under one name; a failure is tried again without moving an older one twice.
    fn rotate(&self, file: &mut Appended) -> io::Result<()> {
        let name = |number: u32| {
            let mut name = file.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        // Left by a run with more files.
        for number in self.files.. {
            if remove_file(name(number)).is_err() {
                break;
            }
        }
        if self.files == 1 {
            return file.file.set_len(0);
        }
        let oldest = self.files - 1;
        let is_free = |number: &u32| name(*number).symlink_metadata().is_err();
        let free = (1..oldest).find(is_free).unwrap_or(oldest);
        for number in (1..free).rev() {
            rename(name(number), name(number + 1))?;
        }
        rename(&file.path, name(1))?;
        file.reopen()
    }
}

/// Locks or unlocks the file against the others that write it. Where that is impossible, such as on
/// some network mounts, they may disturb each other.
fn lock(file: &Appended, kind: i32) {
    let whole = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    if let Err(errno) = fcntl(&file.file, FcntlArg::F_OFD_SETLKW(&whole)) {
        log::debug!("cannot lock {}: {errno}", file.path.display());
    }
}
