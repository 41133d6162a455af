//! Places that are found without leaving a directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// More often than any run of bad luck has it.
const TRIES: u32 = 1000;

/// Opens what `path` names, from `dir` on and within the bounds of `resolve`; never through a link
/// of /proc. The descriptor only names the place (`O_PATH`). openat2(2), Linux 5.6.
///
/// The kernel cannot tell whether a `..` left the bounds while anything on the host is mounted or
/// renamed, and says `EAGAIN`; then it is asked again.
pub(crate) fn open_place(
    dir: impl AsFd,
    path: &Path,
    resolve: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 0;
    loop {
        match openat2(dir.as_fd(), path, how) {
            Err(Errno::EAGAIN) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn renames_elsewhere_are_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(dir.path().join("in/deep")).unwrap();
        fs::write(dir.path().join("in/file"), "").unwrap();
        fs::write(&a, "").unwrap();
        let inside = File::open(dir.path().join("in")).unwrap();
        let done = AtomicBool::new(false);
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&a, &b).unwrap();
                    fs::rename(&b, &a).unwrap();
                }
            });
            let path = Path::new("deep/../file");
            let open = |_| open_place(&inside, path, ResolveFlag::RESOLVE_BENEATH);
            let found: Result<Vec<_>, _> = (0..5000).map(open).map(|it| it.map(drop)).collect();
            done.store(true, Ordering::Relaxed);
            found
        });
        assert!(found.is_ok(), "{found:?}");
    }
}
