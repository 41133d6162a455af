//! User namespaces that exist only for the sake of their id mapping.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::pipe2;

/// A new user namespace with these maps, each in the form of `/proc/PID/uid_map`.
///
/// A namespace is born with a process only. That process lives for the length of this call and
/// sends no SIGCHLD, so wait calls without `__WALL` (the reaper's) do not see it. Linux 5.3.
pub(crate) fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (child_end, our_end) = pipe2(OFlag::O_CLOEXEC)?;
    let child = Child::start(&child_end, &our_end)?;
    let proc = format!("/proc/{}", child.pid);
    let namespace = fs::write(format!("{proc}/uid_map"), uid_map)
        .and_then(|()| fs::write(format!("{proc}/gid_map"), gid_map))
        .and_then(|()| File::open(format!("{proc}/ns/user")));
    drop(our_end); // the child reads the end of file and exits
    child.wait()?;
    namespace.map(OwnedFd::from)
}

/// The process that holds the namespace open; nobody else waits for it, so its pid is its own.
struct Child {
    pid: libc::c_long,
    pidfd: OwnedFd,
}

impl Child {
    /// A copy of this process in a new user namespace that exits when `our_end` is closed, also
    /// by our death.
    fn start(child_end: &OwnedFd, our_end: &OwnedFd) -> io::Result<Self> {
        let mut pidfd: RawFd = -1;
        // SAFETY: the struct is integers only, for which zero is valid and means "not set".
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD) as u64;
        args.pidfd = (&raw mut pidfd) as u64;
        let size = size_of::<libc::clone_args>();
        // SAFETY: `args` is a live struct of `size` bytes and `pidfd` lives as long. Without
        // CLONE_VM the child has its own memory, as after fork(2).
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size) };
        if pid == 0 {
            let mut byte = 0_u8;
            // SAFETY: the child of a process with threads may only make calls that are safe in a
            // signal handler: close, read and _exit are. `byte` has room for the one byte.
            unsafe {
                libc::close(our_end.as_raw_fd());
                libc::read(child_end.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: clone3 succeeded, so `pidfd` is a new open descriptor without another owner.
        Ok(Self { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }

    fn wait(self) -> io::Result<()> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::__WALL;
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), flags) {
                Err(Errno::EINTR) => {}
                // Somebody waits for all children of all kinds: as good.
                Ok(_) | Err(Errno::ECHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_namespace_has_the_maps_and_outlives_its_process() {
        let namespace = user_namespace("0 1000 10\n", "0 2000 5\n5 3000 5\n").unwrap();
        // nsenter(1) has the descriptor as its standard input.
        let output = Command::new("nsenter")
            .args(["--user=/proc/self/fd/0", "cat", "/proc/self/uid_map", "/proc/self/gid_map"])
            .stdin(namespace)
            .output()
            .unwrap();
        let words: Vec<_> = String::from_utf8(output.stdout)
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(words, ["0", "1000", "10", "0", "2000", "5", "5", "3000", "5"]);
        let refused = user_namespace("not a map", "0 0 1").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
