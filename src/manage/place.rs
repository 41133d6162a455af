//! Where the management socket of a daemon is: a name that a person can type, the same for the daemon,
//! for `delete` after its death and for whoever looks for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::ids::{ContainerId, Namespace, hex};
use crate::{rootless, socket};

/// Ends the name of each.
pub(crate) const SUFFIX: &str = ".sock";
/// Stands between the pod's name, which cannot have it, and what tells pods of several containerds apart.
pub(crate) const APART: char = '@';
/// containerd's address where nobody has changed it. Its pods need nothing to tell them apart.
const USUAL: &str = "/run/containerd/containerd.sock";
/// Digits of what tells pods apart.
pub(crate) const DIGITS: usize = 8;

/// The path for the daemon whose own socket is `own`, which may be one of several with the same group
/// in the same namespace: `DIR/NAMESPACE/GROUP.sock`, or `GROUP@XXXXXXXX.sock` with the first digits of its
/// own socket's name if its containerd is not the usual one. A group that is no id, or a path that is too
/// long, becomes `DIR/DIGEST.sock`.
pub(crate) fn of(own: &Path, namespace: &str, group: &str) -> PathBuf {
    at(&rootless::run_dir(), own, namespace, group)
}

fn at(dir: &Path, own: &Path, namespace: &str, group: &str) -> PathBuf {
    let own = own.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let usual = socket::path(Path::new(""), USUAL, namespace, group);
    let apart = match usual {
        Ok(usual) if usual == Path::new(own) => String::new(),
        _ => own.chars().filter(char::is_ascii_alphanumeric).take(DIGITS).collect(),
    };
    let at = if apart.is_empty() { String::new() } else { format!("{APART}{apart}") };
    let path = dir.join(namespace).join(format!("{group}{at}{SUFFIX}"));
    let names = ContainerId::new(group).is_ok() && Namespace::new(namespace).is_ok();
    if names && path.as_os_str().len() <= socket::MAX_PATH {
        return path;
    }
    let name = Sha256::digest(format!("{own}/{namespace}/{group}"));
    dir.join(format!("{}{SUFFIX}", hex(&name)))
}

/// Removes the socket of a dead daemon whose own one was `own`; for `delete`.
pub(crate) fn remove_dead(own: &Path, namespace: &str, group: &str) {
    let path = of(own, namespace, group);
    if path.exists() {
        socket::remove_dead(&path);
    }
    if is_in_namespace(&path) {
        socket::remove_directory(&path);
    }
}

/// Whether a socket is in a directory of its namespace's, which nobody needs when it is empty.
pub(super) fn is_in_namespace(path: &Path) -> bool {
    path.parent().is_some_and(|dir| *dir != rootless::run_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_a_name_that_a_person_can_type() {
        let dir = Path::new("/run/berth");
        let long = "n".repeat(76);
        let own = |address: &str, namespace: &str, group: &str| {
            socket::path(Path::new("/run/containerd/s"), address, namespace, group).unwrap()
        };
        let path = |address, namespace: &str, group: &str| {
            at(dir, &own(address, namespace, group), namespace, group).display().to_string()
        };
        assert_eq!(path(USUAL, "k8s.io", "pod"), "/run/berth/k8s.io/pod.sock");
        let other = path("/run/k3s/containerd.sock", "k8s.io", "pod");
        assert!(other.starts_with("/run/berth/k8s.io/pod@") && other.len() == 35, "{other}");
        for (namespace, group) in [("n", "../x"), ("n", ""), (&*long, &*long), ("n", "a/b")] {
            let hashed = path(USUAL, namespace, group);
            let name = hashed.strip_prefix("/run/berth/").unwrap();
            assert!(name.len() == 69 && !name.contains('/'), "{group}: {hashed}");
        }
        assert_ne!(path(USUAL, "n", "a/b"), path("/other", "n", "a/b"));
    }
}
