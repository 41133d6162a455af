//! The management sockets of a host.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::manage::{APART, SUFFIX};
use crate::rootless;

/// A management socket that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    /// containerd's namespace; empty where the path does not tell.
    pub(crate) namespace: String,
    /// The pod, or the container on its own; a digest where it was too long.
    pub(crate) group: String,
    /// The socket.
    pub(crate) path: PathBuf,
}

/// Every management socket of this host, also those of the dead, sorted.
///
/// # Errors
/// [`Error::Io`] for one who may not see them.
pub(crate) fn all() -> Result<Vec<Found>> {
    all_in(&rootless::run_dir())
}

fn all_in(dir: &Path) -> Result<Vec<Found>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("look for shims in", dir))?,
    };
    let mut found = sockets(dir, "");
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(sockets(&entry.path(), &entry.file_name().to_string_lossy()));
        }
    }
    found.sort();
    Ok(found)
}

fn sockets(dir: &Path, namespace: &str) -> Vec<Found> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name();
        let stem = name.to_str()?.strip_suffix(SUFFIX)?;
        let group = stem.split_once(APART).map_or(stem, |(group, _)| group).to_owned();
        Some(Found { namespace: namespace.to_owned(), group, path: entry.path() })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sockets_of_a_host_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all_in(&dir.path().join("none")).unwrap(), []);
        fs::create_dir(dir.path().join("ns")).unwrap();
        for name in ["ns/b@12345678.sock", "ns/a.sock", "ns/other", "d1.sock"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = all_in(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|one| (&*one.namespace, &*one.group)).collect();
        assert_eq!(names, [("", "d1"), ("ns", "a"), ("ns", "b")]);
    }
}
