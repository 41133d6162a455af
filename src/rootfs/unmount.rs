//! Unmounting: everything at and below a path, whoever mounted it.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sys::mount as sys;

/// How long a mount may stay busy (a file just being closed) before it is detached instead.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);

/// How long to wait between two attempts on a busy mount.
const PAUSE: Duration = Duration::from_millis(10);

/// How often the table of mounts is read: more than once only if something mounts meanwhile.
const ROUNDS: u32 = 8;

/// Unmounts everything at and below `rootfs`, the latest mount first, however often. It neither
/// needs the path to exist nor touches what is mounted, which may be a dead FUSE file system.
///
/// What is still busy after [`PATIENCE`] is detached: no longer visible, gone with its last user.
///
/// # Errors
/// [`Error::Io`] for the mount that could not be taken off; the others are.
pub(crate) fn unmount_all(rootfs: &Path) -> Result<()> {
    unmount_within(rootfs, PATIENCE)
}

/// [`unmount_all`] with another patience, for all mounts together.
pub(super) fn unmount_within(rootfs: &Path, patience: Duration) -> Result<()> {
    let Some(rootfs) = without_links(rootfs)? else { return Ok(()) };
    let deadline = Instant::now() + patience;
    let mut failure = Ok(());
    for _ in 0..ROUNDS {
        let places = sys::mounted_below(&rootfs).map_err(Error::sys("read the table of mounts"))?;
        if places.is_empty() {
            return Ok(());
        }
        for place in places.iter().rev() {
            if let Err(error) = unmount(place, deadline) {
                failure = Err(Error::Io { action: "unmount", path: place.clone(), source: error });
            }
        }
        if failure.is_err() {
            break;
        }
    }
    failure
}

/// `rootfs` as the table of mounts has it, or `None` if its directory is gone and thus no mount is
/// left. The last component stays unseen: looking at it may hang.
fn without_links(rootfs: &Path) -> Result<Option<PathBuf>> {
    let (Some(parent), Some(name)) = (rootfs.parent(), rootfs.file_name()) else {
        return Err(Error::Invalid(format!("{} is no rootfs", rootfs.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match parent.canonicalize() {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "find", path: parent.to_owned(), source }),
    }
}

/// Takes one mount off `place`, if there still is one.
fn unmount(place: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match sys::unmount(place) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if Instant::now() >= deadline {
                    log::warn!("{} is in use: detached instead of unmounted", place.display());
                    return sys::detach(place);
                }
                thread::sleep(PAUSE);
            }
            // EINVAL: no mount. Another one took it along, or somebody was faster.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                return Ok(());
            }
            result => return result,
        }
    }
}
