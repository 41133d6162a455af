//! Processes: the daemon's birth, and what it and others inherit.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{Mode, umask};

/// The number under which the daemon finds its listening socket.
const LISTENER: RawFd = 3;

/// Starts this program again as a daemon: `listener` as descriptor 3, `/dev/null` for 0 to 2 and
/// nothing else inherited; a session of its own, no signal blocked or ignored. Working directory
/// and environment are ours, plus `env`.
///
/// The program is `/proc/self/exe`, so that the daemon is of this very build even while the file
/// is being replaced; its name in the process list is `argv0`.
pub(crate) fn spawn_daemon<'a>(
    argv0: &OsStr,
    args: impl IntoIterator<Item = &'a OsStr>,
    env: &[(&str, &str)],
    listener: BorrowedFd<'_>,
) -> io::Result<Child> {
    // With 3 taken, no descriptor that `Command` opens for itself can be the one replaced below.
    let listener = fcntl(listener, FcntlArg::F_DUPFD_CLOEXEC(LISTENER))?;
    // SAFETY: fcntl just returned `listener`; it is open and has no other owner.
    let listener = unsafe { OwnedFd::from_raw_fd(listener) };
    close_on_exec_above(LISTENER)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(argv0).args(args).envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let raw = listener.as_raw_fd();
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock. `raw`
    // is open as long as `listener` lives, which is past the fork.
    unsafe { command.pre_exec(move || become_daemon(raw)) };
    command.spawn()
}

/// Runs in the child between fork and exec: system calls only.
fn become_daemon(listener: RawFd) -> io::Result<()> {
    // SAFETY: both calls take integers; `listener` is open, and 3 is either it or to be replaced.
    unsafe {
        if listener == LISTENER {
            check(libc::fcntl(LISTENER, libc::F_SETFD, 0))?;
        } else {
            check(libc::dup2(listener, LISTENER))?;
        }
        check(libc::setsid())?;
    }
    // exec keeps what is ignored, and containerd may have been started with nohup. An error is
    // one of the two signals that cannot be changed, or of those that libc keeps for itself.
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty `sigset_t` is plain data, made valid by sigemptyset before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// What this process starts from now on gets 0, 1 and 2 and no other descriptor that it was born with, and
/// makes files that their owner alone can write, whatever its own caller's habits are.
pub(crate) fn shed_inheritance() -> io::Result<()> {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    close_on_exec_above(libc::STDERR_FILENO)
}

/// Descriptors above `last` end at exec, also those that the caller's caller leaked to us.
fn close_on_exec_above(last: RawFd) -> io::Result<()> {
    let first = (last + 1).unsigned_abs();
    // SAFETY: the arguments are integers; no descriptor is closed here.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match Errno::result(result) {
        Ok(_) => return Ok(()),
        // Before Linux 5.9, before 5.11 without this flag, and under old seccomp profiles.
        Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        if let Some(fd) = name.to_str().and_then(|name| name.parse().ok()).filter(|&fd| fd > last) {
            // SAFETY: only a flag is set; a number that is no descriptor is refused.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// What glibc reads when a program begins, and a value for a daemon: memory that one thread has freed is
/// not kept aside for it by size ([`tcache`]), where it holds on to the pages around it.
///
/// [`tcache`]: https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// A variable for the environment of a new daemon, unless an administrator has set it.
pub(crate) fn tunables() -> Option<(&'static str, &'static str)> {
    let is_ours = cfg!(target_env = "gnu") && std::env::var_os(TUNABLES.0).is_none();
    is_ours.then_some(TUNABLES)
}

/// Takes the variable of [`tunables`] out of the environment, which children inherit. Call it before
/// there is a second thread.
pub(crate) fn forget_tunables() {
    let (name, value) = TUNABLES;
    if std::env::var_os(name).is_some_and(|found| found == value) {
        // SAFETY: as the caller sees to it, no other thread reads the environment now.
        unsafe { std::env::remove_var(name) };
    }
}

/// The listening socket that a daemon is born with: descriptor 3, from now on closed at exec.
///
/// # Errors
/// `EBADF`, `ENOTSOCK` or `EINVAL`: there is none; whatever 3 is, it is left alone. Call it once,
/// before anything else opens a descriptor.
pub(crate) fn inherited_listener() -> io::Result<OwnedFd> {
    let mut listening: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to live integers of the sizes said.
    check(unsafe {
        libc::getsockopt(
            LISTENER,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listening).cast(),
            &raw mut size,
        )
    })?;
    if listening == 0 {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: 3 is an open socket, handed over by the parent for us to own.
    let listener = unsafe { OwnedFd::from_raw_fd(LISTENER) };
    fcntl(listener.as_fd(), FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(listener)
}

/// Gives this process a core scheduling cookie of its own, which its children inherit: a core's
/// hardware threads then run nothing else beside them. prctl(2), Linux 5.14.
///
/// `ENODEV` where no core has more than one thread, `EINVAL` where the kernel cannot.
pub(crate) fn core_scheduling() -> io::Result<()> {
    let scope = libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP;
    // SAFETY: the arguments are integers; the last one stands for a null pointer, as it must.
    check(unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, scope, 0) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    Errno::result(result).map(drop).map_err(io::Error::from)
}
