//! Who keeps a stream open after its process has ended: a question for the error message only.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Weak;

use nix::sys::stat::{SFlag, fstat};

use crate::sys;

/// Descriptors looked at before the search is given up; some 100 ms.
const MOST_LINKS: usize = 50_000;

/// Processes named in a message.
const MOST_HOLDERS: usize = 5;

/// A process that has a stream open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    /// The command's name, as in `/proc/PID/comm`.
    pub(crate) command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)
    }
}

/// Which of a stream's processes are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Those that have it open in any way.
    All,
    /// Those that can write to it.
    Writers,
}

/// Output that did not reach its reader in time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undrained {
    /// The readers are away or too slow; what they did not take is lost.
    #[error("{} {stream}: its FIFO is full", unread(readers))]
    Unread { stream: &'static str, readers: Vec<Holder> },
    /// A driver does not take it, or has not finished.
    #[error("{stream} is not taken by {taker}")]
    Stuck { stream: &'static str, taker: String },
    /// Processes that outlived the one that the stream belongs to can still write.
    #[error("{stream} is still open in {}", list(holders))]
    Held { stream: &'static str, holders: Vec<Holder> },
}

fn unread(readers: &[Holder]) -> String {
    if readers.is_empty() {
        return "nobody reads".to_owned();
    }
    format!("{} does not read", list(readers))
}

fn list(holders: &[Holder]) -> String {
    let names: Vec<String> = holders.iter().map(Holder::to_string).collect();
    if names.is_empty() { "a process that cannot be found".to_owned() } else { names.join(", ") }
}

/// What the stream's descriptors look like in `/proc/PID/fd`.
#[derive(Debug)]
enum Mark {
    /// The text of the link, the same for both ends of the pipe and in all namespaces.
    Pipe(String),
    /// A FIFO has another path in another mount namespace, but the same name.
    Fifo { name: OsString, dev: u64, ino: u64 },
    /// Every devpts mount counts from 0 and has its own path in each mount namespace, so only
    /// device and inode decide. The number says where it is worth to look at them.
    Terminal { number: String, dev: u64, ino: u64 },
}

impl Mark {
    fn of(source: &OwnedFd) -> io::Result<Self> {
        let stat = fstat(source)?;
        if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits() {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", source.as_raw_fd()))?;
            return Ok(match link.file_name() {
                Some(name) if link.is_absolute() => {
                    Self::Fifo { name: name.to_owned(), dev: stat.st_dev, ino: stat.st_ino }
                }
                _ => Self::Pipe(format!("pipe:[{}]", stat.st_ino)),
            });
        }
        let stat = fstat(sys::tty::peer(source.as_fd())?)?;
        let number = libc::minor(stat.st_rdev);
        Ok(Self::Terminal { number: number.to_string(), dev: stat.st_dev, ino: stat.st_ino })
    }

    fn matches(&self, link: &Path) -> bool {
        let Ok(target) = link.read_link() else { return false };
        match self {
            Self::Pipe(text) => target.as_os_str() == text.as_str(),
            Self::Fifo { name, dev, ino } => {
                target.file_name() == Some(name)
                    && std::fs::metadata(link)
                        .is_ok_and(|found| found.dev() == *dev && found.ino() == *ino)
            }
            Self::Terminal { number, dev, ino } => {
                // Nothing else is looked at: a file on a dead network mount would block the loop.
                target.file_name().is_some_and(|name| name == number.as_str() || name == "console")
                    && std::fs::metadata(link)
                        .is_ok_and(|found| found.dev() == *dev && found.ino() == *ino)
            }
        }
    }
}

/// The other processes that have `source`, a pipe or the master of a terminal, open; the youngest
/// first, at most [`MOST_HOLDERS`]. Lets the event loop run between any two processes.
async fn holders(source: &OwnedFd, who: Who) -> Vec<Holder> {
    let Ok(mark) = Mark::of(source) else { return Vec::new() };
    let mut links = MOST_LINKS;
    let mut found = Vec::new();
    for pid in other_processes() {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        // A process that has ended meanwhile holds nothing.
        let entries = directory.read_dir().into_iter().flatten().flatten().take(links);
        let mut looked = 0;
        let counts = |link: &Path| mark.matches(link) && (who == Who::All || writes(link));
        if entries.inspect(|_| looked += 1).any(|entry| counts(&entry.path())) {
            found.push(Holder { pid, command: command(pid) });
        }
        links -= looked;
        if links == 0 || found.len() == MOST_HOLDERS {
            break;
        }
        tokio::task::yield_now().await;
    }
    found
}

/// The other processes that have a relay's descriptor open.
pub(super) async fn others(descriptor: &Weak<OwnedFd>, who: Who) -> Vec<Holder> {
    // A copy, because the search takes a while and must not prolong the relay's own.
    match descriptor.upgrade().and_then(|descriptor| descriptor.try_clone().ok()) {
        Some(descriptor) => holders(&descriptor, who).await,
        None => Vec::new(),
    }
}

/// Whether the descriptor behind `/proc/PID/fd/N` is open for writing: the link's own mode says so.
fn writes(link: &Path) -> bool {
    link.symlink_metadata().is_ok_and(|link| link.mode() & 0o200 != 0)
}

fn other_processes() -> Vec<u32> {
    let entries = Path::new("/proc").read_dir().into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect();
    pids.sort_unstable_by(|a, b| b.cmp(a));
    pids
}

fn command(pid: u32) -> String {
    let read = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    read.map_or_else(|_| "ended".to_owned(), |name| name.trim_end().to_owned())
}
