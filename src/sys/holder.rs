//! A pod's holder: its birth, and what it does to itself. It is a process with one thread.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;

use super::child::spawn_bound;
use super::mount::{Depth, copy_mount, make_read_only};
use crate::ids::Pid;

/// `_IO(0xb7, 1)`: the user namespace that owns another namespace ([ioctl_ns(2)]).
///
/// [ioctl_ns(2)]: https://man7.org/linux/man-pages/man2/ioctl_ns.2.html
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// Starts this program again with the one end of a socket as standard input, nothing of our
/// environment, and a death by SIGKILL with the thread that called: call it from the main thread.
/// The caller owes it a wait, and a wait to the child that it may leave in its place.
///
/// The program file is seen through a mount that is read-only, where the kernel can make one
/// (Linux 5.12): whoever in the pod comes by the holder's `/proc/PID/exe` cannot write to the host's
/// program, once that does not run any more ([CVE-2019-5736] was that, in runc).
///
/// [CVE-2019-5736]: https://nvd.nist.gov/vuln/detail/CVE-2019-5736
pub(crate) fn spawn_holder(argv0: &OsStr, args: &[&OsStr], stdin: OwnedFd) -> io::Result<Pid> {
    let file = copy_mount(Path::new("/proc/self/exe"), Depth::Mount)
        .and_then(|file| make_read_only(file.as_fd()).map(|()| file))
        .ok();
    let program = match &file {
        Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        None => PathBuf::from("/proc/self/exe"),
    };
    let mut command = Command::new(program);
    command.arg0(argv0).args(args).env_clear().current_dir("/");
    command.stdin(Stdio::from(stdin)).stdout(Stdio::null()).stderr(Stdio::null());
    spawn_bound(command, None)
}

/// The user namespace that owns `namespace`, of any kind. Linux 4.9.
pub(crate) fn owner_of(namespace: &File) -> io::Result<OwnedFd> {
    // SAFETY: this request takes no argument; a descriptor of anything else refuses it.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just returned `fd`; it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which of the two processes [`fork_init`] returns in.
pub(crate) enum Fork {
    /// In the one that called: the new one's pid, as this one's PID namespace has it.
    Parent(Pid),
    /// In the new one, which is init of a PID namespace.
    Init,
}

/// Forks the init process of a new PID namespace; it is not our child, but our parent's.
///
/// # Errors
/// That of clone3(2), Linux 5.3; `EINVAL` for the init process of a PID namespace.
pub(crate) fn fork_init() -> io::Result<Fork> {
    // SAFETY: the struct is integers only, for which zero is valid and means "not set". With
    // CLONE_PARENT the exit signal has to be 0: the parent gets the one that we have, clone(2).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PARENT | libc::CLONE_NEWPID) as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: `args` is a live struct of `size` bytes. Without CLONE_VM the child has its own
    // memory, and as the caller has one thread no lock in it is held by anybody else.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size) })?;
    match i32::try_from(pid).ok().and_then(Pid::new) {
        Some(pid) => Ok(Fork::Parent(pid)),
        None => Ok(Fork::Init),
    }
}

/// Children that end are nobody's business from now on: the kernel reaps them, also those that
/// were given to this process because their parent ended.
pub(crate) fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whatever this process might execute gets no capability of these sets any more. It needs one
/// itself for this, and keeps those that it has.
pub(crate) fn empty_capability_bounds() {
    let mut capability = 0;
    // SAFETY: the arguments are integers. EINVAL says that there is no such capability any more.
    while unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
        capability += 1;
    }
}

/// Says `last` to the other end of `daemon`, then sleeps until that is closed, and ends. It returns
/// only if it cannot begin.
///
/// From before its last word on the process can read, write and exit, and nothing else: another
/// process of its user can trace it, but have it do nothing ([seccomp(2)], strict mode).
///
/// [seccomp(2)]: https://man7.org/linux/man-pages/man2/seccomp.2.html
pub(crate) fn sleep(daemon: BorrowedFd<'_>, last: &[u8]) -> io::Error {
    let fd = daemon.as_raw_fd();
    // SAFETY: the arguments are integers.
    let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
    if strict != 0 {
        let error = io::Error::last_os_error();
        // A kernel without seccomp; such a host has given up on this for all containers.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return error;
        }
    }
    // SAFETY: `last` is a live slice. What the library's own functions might do besides is deadly.
    unsafe { libc::syscall(libc::SYS_write, fd, last.as_ptr(), last.len()) };
    let mut byte = 0_u8;
    loop {
        // SAFETY: `byte` is a live byte.
        if unsafe { libc::syscall(libc::SYS_read, fd, &raw mut byte, 1) } == 0 {
            // SAFETY: it does not return; there is one thread.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
    }
}

/// Takes every capability from this process.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, whose sets have 64 bits.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0_u32; 6];
    // SAFETY: the kernel reads a header of two words and two times three words of sets.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_an_owner() {
        let owner = owner_of(&File::open("/proc/self/ns/net").unwrap()).unwrap();
        let user = File::open("/proc/self/ns/user").unwrap();
        let id = |fd: &dyn AsRawFd| {
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
        };
        assert_eq!(id(&owner), id(&user));
        let error = owner_of(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
