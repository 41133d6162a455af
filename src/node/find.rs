//! The management sockets of a host.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
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
    /// What tells it from pods of other containerds with the same namespace and id; empty for containerd's usual
    /// address.
    pub(crate) apart: String,
    /// The socket.
    pub(crate) path: PathBuf,
}

/// `NAMESPACE/GROUP@XXXXXXXX`, as its socket's path has it: no other pod of the host is called so.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, group, apart, .. } = self;
        if !namespace.is_empty() {
            write!(f, "{namespace}/")?;
        }
        match apart.as_str() {
            "" => f.write_str(group),
            apart => write!(f, "{group}{APART}{apart}"),
        }
    }
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
    // A namespace may have a socket's name.
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let found = sockets.filter_map(|entry| {
        let name = entry.file_name();
        let stem = name.to_str()?.strip_suffix(SUFFIX)?;
        let (group, apart) = stem.split_once(APART).unwrap_or((stem, ""));
        let (namespace, group, apart) = (namespace.to_owned(), group.to_owned(), apart.to_owned());
        Some(Found { namespace, group, apart, path: entry.path() })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn all_sockets_of_a_host_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all_in(&dir.path().join("none")).unwrap(), []);
        for namespace in ["ns", "x.sock"] {
            fs::create_dir(dir.path().join(namespace)).unwrap();
        }
        fs::write(dir.path().join("ns/file.sock"), "").unwrap();
        for name in ["ns/b@12345678.sock", "ns/a.sock", "ns/other", "d1.sock", "x.sock/c.sock"] {
            drop(UnixListener::bind(dir.path().join(name)).unwrap());
        }
        let found = all_in(dir.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|one| (&*one.namespace, &*one.group, &*one.apart)).collect();
        let expected =
            [("", "d1", ""), ("ns", "a", ""), ("ns", "b", "12345678"), ("x.sock", "c", "")];
        assert_eq!(names, expected);
        let names: Vec<_> = found.iter().map(Found::to_string).collect();
        assert_eq!(names, ["d1", "ns/a", "ns/b@12345678", "x.sock/c"]);
    }
}
