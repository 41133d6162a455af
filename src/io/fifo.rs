//! The FIFOs that containerd's clients make for a process's streams: opening them without ever
//! waiting for the other side, and leaving them so that the other side gets everything.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;

use super::end::poll_now;
use crate::ready::Ready;
use crate::sys;

/// How often to look for a reader where inotify(7) is used up (`fs.inotify.max_user_instances`).
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A reader that is there takes the rest of what was written within this time, most often.
const SOON: Duration = Duration::from_millis(2);

/// A stream's file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    /// For a FIFO, `fd` is both its ends, so the other side may come and go: no reader is no
    /// SIGPIPE and no loss, no writer is no end of input.
    pub(super) fifo: bool,
}

/// Which way bytes go, seen from berth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

/// Opens a stream's file at once, whoever is there. Anything but a FIFO is opened as what it is;
/// output is appended.
pub(super) fn open(path: &Path, direction: Direction) -> io::Result<Opened> {
    let fifo = std::fs::metadata(path)?.file_type().is_fifo();
    let mut options = OpenOptions::new();
    match direction {
        // Linux opens a FIFO for both without waiting: fifo(7).
        _ if fifo => options.read(true).write(true),
        Direction::In => options.read(true),
        Direction::Out => options.append(true),
    };
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    Ok(Opened { fd: file.into(), fifo })
}

/// A descriptor of the FIFO behind `both` for one direction only. Works when the path is gone.
pub(super) fn half(both: impl AsFd, direction: Direction) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    match direction {
        Direction::In => options.read(true),
        Direction::Out => options.write(true),
    };
    let path = format!("/proc/self/fd/{}", both.as_fd().as_raw_fd());
    Ok(options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?.into())
}

/// Ends an output: a reader gets what is in the FIFO, then the end of the file.
///
/// containerd's client opens the FIFO in the background, and is away altogether while it
/// restarts. Closing a FIFO that nobody else has open would destroy what is in it and leave a
/// later opener waiting for ever, so berth's end stays open until a reader has come and has taken it
/// all: one that goes before leaves the rest to the next.
///
/// Until then `rest` is the writing end, for [`abandoned`].
pub(super) async fn leave(reader: impl AsFd, rest: &Rest) -> io::Result<()> {
    let writer = Rc::new(half(&reader, Direction::Out)?);
    drop(reader); // from here on, the readers are the others
    rest.replace(Rc::downgrade(&writer));
    if is_taken(&writer)? {
        return Ok(());
    }
    tokio::time::sleep(SOON).await;
    let mut changes = None;
    while !is_taken(&writer)? {
        match &changes {
            None => changes = Some(Changes::of(&writer)),
            Some(changes) => changes.next().await?,
        }
    }
    Ok(())
}

/// A FIFO that berth is about to leave.
pub(super) type Rest = RefCell<Weak<OwnedFd>>;

/// How many bytes would be lost if berth closed the FIFO now: nobody has it open to read.
pub(super) fn abandoned(rest: &Rest) -> usize {
    let Some(writer) = rest.borrow().upgrade() else { return 0 };
    match has_reader(&writer) {
        Ok(false) => sys::pipe::unread(writer.as_fd()).unwrap_or_default(),
        _ => 0,
    }
}

/// How many bytes a reader that has the FIFO open has still to take; `None` unless berth is leaving.
pub(super) fn awaited(rest: &Rest) -> Option<usize> {
    let writer = rest.borrow().upgrade()?;
    match has_reader(&writer) {
        Ok(true) => sys::pipe::unread(writer.as_fd()).ok(),
        _ => Some(0),
    }
}

/// Whether somebody has the FIFO open for reading, and nothing is left to read.
fn is_taken(writer: &OwnedFd) -> io::Result<bool> {
    Ok(has_reader(writer)? && sys::pipe::unread(writer.as_fd())? == 0)
}

/// poll(2) reports an error on a pipe's write end when no read end is open.
fn has_reader(writer: &OwnedFd) -> io::Result<bool> {
    let mut ends = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    poll_now(&mut ends)?;
    Ok(!ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
}

/// Tells when anyone has opened, read or closed a file: no timer, no polling.
#[derive(Debug)]
struct Changes(Option<Ready>);

impl Changes {
    fn of(file: &OwnedFd) -> Self {
        Self(Self::watch(file).inspect_err(|error| log::debug!("no inotify: {error}")).ok())
    }

    fn watch(file: &OwnedFd) -> io::Result<Ready> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let events = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE;
        inotify.add_watch(path.as_str(), events)?;
        Ready::register(Rc::new(inotify.into()), Interest::READABLE)
    }

    /// Resolves after the next change; sometimes without one.
    async fn next(&self) -> io::Result<()> {
        let Some(events) = &self.0 else {
            tokio::time::sleep(LOOK_AGAIN).await;
            return Ok(());
        };
        let mut ready = events.readable().await?;
        // Nothing in the events is of use. They are read because an unread one swallows the next.
        while nix::unistd::read(events.get_ref(), &mut [0; 4096]).is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}
