//! The pipes between a process and what moves its bytes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, pipe2};

use super::fifo::Direction;
use crate::error::{Error, Result};
use crate::rootless;

/// What a busy pipe is enlarged to, in bytes: what the host allows unless it was changed
/// (`fs.pipe-max-size`).
pub(super) const LARGE: usize = 1 << 20;

/// A pipe for the process: its end, blocking, and ours, not.
///
/// # Errors
/// [`Error::Sys`].
pub(super) fn pipe(owner: (u32, u32), direction: Direction) -> Result<(OwnedFd, OwnedFd)> {
    let failed = Error::sys("make a pipe");
    let (reader, writer) = match pipe2(OFlag::O_CLOEXEC) {
        Ok(ends) => ends,
        Err(errno) => return Err(failed(errno.into())),
    };
    let (theirs, ours) = match direction {
        Direction::In => (reader, writer),
        Direction::Out => (writer, reader),
    };
    let mut set_up = set_nonblocking(&ours);
    if set_up.is_ok() && owner != (geteuid().as_raw(), getegid().as_raw()) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        set_up = fchown(&theirs, Some(uid), Some(gid)).map_err(io::Error::from);
    }
    set_up.map_err(failed)?;
    Ok((theirs, ours))
}

/// Makes reads and writes fail where they would wait.
pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// `/dev/null`, opened for one direction.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn null(direction: Direction) -> Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    match direction {
        Direction::In => options.read(true),
        Direction::Out => options.write(true),
    };
    let file = options.open("/dev/null").map_err(Error::io("open", "/dev/null"))?;
    Ok(file.into())
}

/// How many bytes a pipe holds; none for what is no pipe.
pub(super) fn capacity(pipe: impl AsFd) -> usize {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |size| usize::try_from(size).unwrap_or(0))
}

/// Lets a pipe hold `size` bytes, if the host allows it and it holds less; returns what it holds now.
///
/// An ordinary user has a limit for all pipes together, and beyond it new ones get two pages
/// (`fs.pipe-user-pages-soft`): there no pipe of ours grows.
pub(super) fn enlarge(pipe: impl AsFd, size: usize) -> usize {
    let now = capacity(&pipe);
    if now == 0 || now >= size || rootless::in_user_namespace() {
        return now;
    }
    let size = i32::try_from(size).unwrap_or(i32::MAX);
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(size)); // it holds what it holds
    capacity(pipe)
}
