//! Mounts: mount(2), the newer calls on detached mount trees, and the table of mounts.

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::sys::place::open_place;

use super::thread::apart;

/// The mounts that this process sees, one a line.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// The size in bytes of the page into which mount(2) copies its options, with a final NUL.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and has no effect.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// mount(2). An empty `data` is no data, as file systems without options demand.
/// `E2BIG` if it is longer than a page, of which the kernel would drop the rest and say nothing.
pub(crate) fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> io::Result<()> {
    if data.len() >= page_size() {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let data = Some(data).filter(|data| !data.is_empty());
    Ok(nix::mount::mount(Some(source), target, Some(kind), flags, data)?)
}

/// Changes what a mount is, not what is mounted: propagation, or the flags of a bind mount.
pub(crate) fn change(target: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?)
}

/// Takes the topmost mount off `target`, which is not followed if it is a symbolic link.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Like [`unmount`], but of a mount in use: it is out of sight now and gone with its last user.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?)
}

/// Like [`detach`], but `target` is followed: it may be a link in /proc/self/fd.
pub(crate) fn detach_at(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::MNT_DETACH)?)
}

/// How much of a tree a call on a mount concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The one mount.
    Mount,
    /// The mount and every mount below it.
    Tree,
}

/// A detached copy of the mount at `path`, as a bind mount makes it: open_tree(2), Linux 5.2.
/// Dropping it unmounts it.
pub(crate) fn copy_mount(path: &Path, depth: Depth) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let recursive = if depth == Depth::Tree { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | (libc::O_CLOEXEC | recursive) as libc::c_uint;
    // SAFETY: `path` is a C string that outlives the call; the rest are integers.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(check(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned `fd`; it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Shows the files of a detached `tree` with the owners that `user_namespace` maps them to, and
/// cuts its propagation: mount_setattr(2), Linux 5.12. `EINVAL` where the file system cannot.
pub(crate) fn map_owners(
    tree: BorrowedFd<'_>,
    depth: Depth,
    user_namespace: BorrowedFd<'_>,
    attributes: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    let recursive = if depth == Depth::Tree { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recursive;
    let (path, size) = (c"".as_ptr(), size_of::<libc::mount_attr>());
    // SAFETY: `path` is a C string; `attributes` is a live struct of `size` bytes, which the
    // kernel reads; both descriptors are open for the whole call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            path,
            flags,
            &raw const attributes,
            size,
        )
    };
    check(done).map(drop)
}

/// Makes a detached mount read-only, whatever its file system is: mount_setattr(2), Linux 5.12.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let (path, size) = (c"".as_ptr(), size_of::<libc::mount_attr>());
    // SAFETY: `path` is a C string; `attributes` is a live struct of `size` bytes, which the
    // kernel reads; the descriptor is open for the whole call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path,
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    check(done).map(drop)
}

/// Mounts a detached `tree` on `target`: move_mount(2), Linux 5.2.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let (empty, target): (&CStr, _) = (c"", c_string(target)?);
    // `target` may be a link in /proc/self/fd, which only a following look-up goes through.
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS;
    // SAFETY: both paths are C strings that outlive the call; the rest are integers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    check(done).map(drop)
}

/// Runs `work` with `directory` as working directory, which no other thread notices.
pub(crate) fn in_directory<T: Send>(
    directory: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    apart(|| {
        unshare(CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(directory)?;
        work()
    })
}

/// Runs `work` in a mount namespace of its own: what it mounts is seen by nobody else and gone
/// when it returns, even if the process is killed; only a detached tree can be brought back.
pub(crate) fn in_private_namespace<T: Send>(
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    apart(|| {
        unshare(CloneFlags::CLONE_NEWNS)?; // implies CLONE_FS
        change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        work()
    })
}

/// Opens `path` as a process would see it whose root directory is `root`: no symbolic link and no
/// `..` leads out. The descriptor only names the place. As [`open_place`].
pub(crate) fn open_inside(root: &Path, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(root, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    Ok(open_place(root, Path::new(path), ResolveFlag::RESOLVE_IN_ROOT)?)
}

/// Every place at or below `path` where something is mounted, in the order of mounting; a place
/// with several mounts comes several times. `path` has no symbolic links.
pub(crate) fn mounted_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(places_below(&fs::read(MOUNT_TABLE)?, path))
}

/// The fifth word of each line of `table`, see proc_pid_mountinfo(5), that is at or below `path`.
fn places_below(table: &[u8], path: &Path) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|word| PathBuf::from(OsString::from_vec(unescape(word))))
        .filter(|place| place.starts_with(path))
        .collect()
}

/// Space, tab, newline and backslash stand in the table as `\` and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The result of a raw system call, with `errno` for -1.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_gives_each_place_at_or_below_a_path() {
        let table = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
            30 22 0:21 / /run/b/rootfs rw shared:5 - overlay overlay rw,lowerdir=/run/b/rootfs/x\n\
            31 30 0:22 / /run/b/rootfs/a\\040b\\134c rw - tmpfs t rw\n\
            32 22 0:23 / /run/b/rootfs2 rw - tmpfs t rw\n\
            33 30 0:21 / /run/b/rootfs rw - tmpfs t rw\n";
        let cases = [
            (
                "a tree",
                "/run/b/rootfs",
                vec!["/run/b/rootfs", "/run/b/rootfs/a b\\c", "/run/b/rootfs"],
            ),
            ("one mount", "/run/b/rootfs2", vec!["/run/b/rootfs2"]),
            ("a directory that is no mount", "/run/b/rootfs/x", vec![]),
        ];
        for (name, path, expected) in cases {
            let expected: Vec<_> = expected.into_iter().map(PathBuf::from).collect();
            assert_eq!(places_below(table, Path::new(path)), expected, "{name}");
        }
    }
}
