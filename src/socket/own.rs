//! The daemon's own socket, which somebody may remove or replace while it serves.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::Flock;

use super::{REMOVE, lock_existing, remove, remove_empty};
use crate::error::Result;

/// The daemon's own socket: the file that it was bound to, and not one that has come to be there.
#[derive(Debug)]
pub(crate) struct Own {
    path: PathBuf,
    /// Device and inode; `None` if it was gone at once.
    file: Option<(u64, u64)>,
}

impl Own {
    /// The socket that is at `path` now.
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = Self::file(&path);
        Self { path, file }
    }

    fn file(path: &Path) -> Option<(u64, u64)> {
        path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
    }

    /// Whether a client can still connect.
    pub(crate) fn is_there(&self) -> bool {
        self.file.is_some() && Self::file(&self.path) == self.file
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unlinks the socket, but not one that another daemon has bound there since it was removed.
    pub(crate) fn remove(&self) {
        drop(self.unlink());
    }

    /// The same; then the directory goes too if nothing else is in it.
    pub(crate) fn remove_with_directory(&self) {
        if let Ok(lock) = self.unlink() {
            remove_empty(&self.path, &lock);
        }
    }

    fn unlink(&self) -> Result<Flock<File>> {
        // Without the lock it is done all the same: only in that moment another could come.
        let lock = lock_existing(&self.path, Instant::now() + REMOVE);
        if self.is_there() {
            remove(&self.path);
        } else {
            log::warn!("the socket {} was removed or replaced", self.path.display());
        }
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_directory_that_somebody_removed_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sockets/s");
        std::fs::create_dir(dir.path().join("sockets")).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        let own = Own::new(path.clone());
        std::fs::remove_dir_all(dir.path().join("sockets")).unwrap();
        own.remove();
        super::super::remove_dead(&path);
        assert!(!dir.path().join("sockets").exists());
    }

    #[test]
    fn a_daemon_removes_its_own_socket_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _first = UnixListener::bind(&path).unwrap();
        let own = Own::new(path.clone());
        assert!(own.is_there());
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        assert!(!own.is_there());
        let _second = UnixListener::bind(&path).unwrap();
        own.remove();
        assert!(path.exists() && !own.is_there());
        Own::new(path.clone()).remove();
        assert!(!path.exists());
    }
}
