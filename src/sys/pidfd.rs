//! Processes by descriptor: a pidfd never comes to mean another process, as a reused pid does.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::ids::Pid;

/// A descriptor that turns readable when `pid` exits: pidfd_open(2), Linux 5.3. Close-on-exec.
///
/// `ESRCH` if `pid` was already reaped; a zombie still has one. `EINVAL` (`ENOENT` since Linux
/// 6.9) if `pid` is a thread and no process.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: both arguments are integers, which the kernel checks.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.get(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned `fd`; it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `fd`, or only checks that it is there for signal 0:
/// pidfd_send_signal(2), Linux 5.1.
///
/// `ESRCH` once the process was reaped, `EINVAL` for a number that is no signal.
pub(crate) fn pidfd_send_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: `fd` is open for the whole call, the kernel takes a null info for "as kill(2)
    // does", and the other arguments are integers, which it checks.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, no_info, 0) };
    check(done).map(drop)
}

/// The result of a raw system call, with `errno` for -1.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_pidfd_signals_its_process_and_none_after_it() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::new(i32::try_from(child.id()).unwrap()).unwrap();
        let fd = pidfd_open(pid).unwrap();
        pidfd_send_signal(fd.as_fd(), 0).unwrap();
        let refused = pidfd_send_signal(fd.as_fd(), 1000).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        pidfd_send_signal(fd.as_fd(), libc::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let gone = pidfd_send_signal(fd.as_fd(), 0).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }
}
