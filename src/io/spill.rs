//! The file of the output that nobody takes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys::thread::blocking;

/// A file of a fixed size that is written round and round. It has no name, so it goes with the
/// daemon. What may block runs on a thread of its own.
#[derive(Debug)]
pub(super) struct Ring {
    bundle: PathBuf,
    file: Option<Arc<File>>,
    size: u64,
    start: u64,
    /// How many bytes are in it.
    pub(super) length: u64,
}

impl Ring {
    /// A file of `size` bytes for the container in `bundle`, made when it is first written.
    pub(super) fn new(bundle: PathBuf, size: u64) -> Self {
        Self { bundle, file: None, size, start: 0, length: 0 }
    }

    /// Adds `bytes`, for which there is room.
    ///
    /// # Errors
    /// The failure and the bytes, none of which count as written.
    pub(super) async fn append(&mut self, bytes: Vec<u8>) -> Result<(), (io::Error, Vec<u8>)> {
        let (file, bundle) = (self.file.clone(), self.bundle.clone());
        let at = (self.start + self.length) % self.size;
        let until_end = usize::try_from(self.size - at).unwrap_or(usize::MAX);
        let copy = bytes.clone();
        let work = move || {
            let file = file.map_or_else(|| unnamed(&bundle).map(Arc::new), Ok)?;
            let (first, second) = copy.split_at(until_end.min(copy.len()));
            file.write_all_at(first, at)?;
            file.write_all_at(second, 0)?;
            Ok(file)
        };
        match blocking("spill", work).await.and_then(|result| result) {
            Ok(file) => {
                self.file = Some(file);
                self.length += bytes.len() as u64;
                Ok(())
            }
            Err(error) => Err((error, bytes)),
        }
    }

    /// Removes and returns the oldest bytes, at most `most`.
    pub(super) async fn take(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let Some(file) = self.file.clone() else { return Ok(Vec::new()) };
        let count = self.length.min(most as u64);
        let (at, until_end) = (self.start, self.size - self.start);
        let work = move || {
            let mut bytes = vec![0; usize::try_from(count).unwrap_or(most)];
            let first = usize::try_from(until_end).unwrap_or(usize::MAX).min(bytes.len());
            let (first, second) = bytes.split_at_mut(first);
            file.read_exact_at(first, at)?;
            file.read_exact_at(second, 0)?;
            Ok::<_, io::Error>(bytes)
        };
        let bytes = blocking("spill", work).await??;
        self.skip(count);
        Ok(bytes)
    }

    /// Forgets the oldest bytes, at most `most`; returns how many.
    pub(super) fn skip(&mut self, most: u64) -> u64 {
        let count = self.length.min(most);
        self.start = (self.start + count) % self.size;
        self.length -= count;
        count
    }
}

/// A file without a name in the bundle's work directory, which containerd puts on a disk where the
/// bundle is in memory; in the bundle if there is none.
pub(crate) fn unnamed(bundle: &Path) -> io::Result<File> {
    let work = bundle.join("work");
    let directory = if work.is_dir() { work } else { bundle.to_owned() };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(&directory) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            named(&directory, options.create_new(true))
        }
        opened => opened,
    }
}

/// A file whose name is removed at once. Others may do the same in this moment, or have died in it.
fn named(directory: &Path, options: &OpenOptions) -> io::Result<File> {
    for number in 0..1000 {
        let path = directory.join(format!(".berth-spill-{number}"));
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join(".berth-spill-0")).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        for _ in 0..2 {
            named(directory.path(), &options).unwrap();
        }
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }
}
