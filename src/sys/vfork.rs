//! Starting a program without a copy of this process: the child runs in the parent's memory until exec,
//! as with vfork(2), while the parent's thread waits.
//!
//! fork(2) copies the page tables and makes every page of ours that is written afterwards fault; a shim
//! starts a runtime three times for each container and once for each exec.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;

use nix::errno::Errno;

use crate::ids::Pid;
use crate::sys::child::FileLimit;

/// Enough for a dozen system calls, and for libc's reading of a script's first line.
const STACK: usize = 32 * 1024;

/// All that the child needs, made before there is one: it may not take memory.
struct Plan {
    program: CString,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    cwd: CString,
    streams: [RawFd; 3],
    files: Option<libc::rlimit>,
    parent: libc::pid_t,
    /// Why the program could not be started.
    failure: Cell<i32>,
}

/// What a program is given.
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    /// Without the program's own name.
    pub(super) args: Vec<&'a OsStr>,
    /// All of it.
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) cwd: &'a Path,
    pub(super) streams: [BorrowedFd<'a>; 3],
    pub(super) files: Option<FileLimit>,
}

/// Starts a program as [`spawn`](super::child::spawn) says.
pub(super) fn start(program: Program<'_>) -> io::Result<Pid> {
    let Program { path, args, env, cwd, streams, files } = program;
    let words = [path.as_os_str()].into_iter().chain(args);
    let args =
        words.map(|word| Ok(CString::new(word.as_bytes())?)).collect::<io::Result<Vec<_>>>()?;
    let env = env.into_iter().map(variable).collect::<io::Result<Vec<_>>>()?;
    let streams = streams.map(above_standard);
    let [stdin, stdout, stderr] = streams;
    let streams = [stdin?, stdout?, stderr?];
    let plan = Plan {
        program: CString::new(path.as_os_str().as_bytes())?,
        args: pointers(&args),
        env: pointers(&env),
        cwd: CString::new(cwd.as_os_str().as_bytes())?,
        streams: streams.each_ref().map(|(number, _)| *number),
        files: files.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
        // SAFETY: it takes nothing and cannot fail.
        parent: unsafe { libc::getpid() },
        failure: Cell::new(0),
    };
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `stack` has STACK bytes below the address given, aligned to 16, and only the child uses
    // them. `plan`, `args` and `env`, to which it points, live until the child has called exec or ended,
    // as this thread waits for that (CLONE_VFORK). The child makes system calls only.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity());
        libc::clone(child, top.cast(), flags, ptr::from_ref(&plan).cast_mut().cast())
    };
    let pid = Errno::result(pid)?;
    if plan.failure.get() != 0 {
        // SAFETY: the child has ended, and nobody else waits for it: a null status is allowed.
        while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0 && Errno::last() == Errno::EINTR
        {
        }
        return Err(io::Error::from_raw_os_error(plan.failure.get()));
    }
    Pid::new(pid).ok_or_else(|| Errno::ESRCH.into())
}

/// `name=value` for the child's environment.
fn variable((mut name, value): (OsString, OsString)) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    Ok(CString::new(name.into_vec())?)
}

/// A list as exec takes it: with a null at its end.
fn pointers(list: &[CString]) -> Vec<*const libc::c_char> {
    list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// A descriptor that none of 0 to 2 is put over: `fd`, or its copy, which lives as long as is returned.
fn above_standard(fd: BorrowedFd<'_>) -> io::Result<(RawFd, Option<OwnedFd>)> {
    if fd.as_raw_fd() > 2 {
        return Ok((fd.as_raw_fd(), None));
    }
    let copy = super::child::copy_from(3, fd)?;
    Ok((copy.as_raw_fd(), Some(copy)))
}

/// The child, until it is another program. The return is its end.
extern "C" fn child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes a `Plan` that it keeps until this process has ended or called exec.
    let plan = unsafe { &*plan.cast::<Plan>() };
    plan.failure.set(plan.run());
    127
}

impl Plan {
    /// Becomes the program; returns why not.
    fn run(&self) -> i32 {
        let steps: [fn(&Self) -> libc::c_int; 5] = [
            Self::set_streams,
            Self::set_group,
            Self::set_limit,
            Self::set_place,
            Self::set_signals,
        ];
        for step in steps {
            if step(self) < 0 {
                return Errno::last_raw();
            }
        }
        // SAFETY: as in `set_signals`. The parent may have died before prctl took effect.
        if unsafe { libc::getppid() } != self.parent {
            return libc::ESRCH;
        }
        // SAFETY: the strings end in a zero byte and the lists in a null; all outlive the call.
        unsafe { libc::execvpe(self.program.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        Errno::last_raw()
    }

    fn set_streams(&self) -> libc::c_int {
        for (number, stream) in (0..).zip(self.streams) {
            // SAFETY: both are integers; the child has a table of descriptors of its own.
            if unsafe { libc::dup2(stream, number) } < 0 {
                return -1;
            }
        }
        0
    }

    fn set_group(&self) -> libc::c_int {
        // SAFETY: the arguments are integers.
        unsafe { libc::setpgid(0, 0) }
    }

    fn set_limit(&self) -> libc::c_int {
        let Some(limit) = &self.files else { return 0 };
        // SAFETY: the pointer is to a struct that lives long enough; the child has limits of its own.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) }
    }

    fn set_place(&self) -> libc::c_int {
        // SAFETY: the path ends in a zero byte; the child has a working directory of its own.
        unsafe { libc::chdir(self.cwd.as_ptr()) }
    }

    /// No signal is blocked, and SIGPIPE, which Rust's programs ignore, ends a program as it should;
    /// the parent's end is this process's.
    fn set_signals(&self) -> libc::c_int {
        // SAFETY: an empty `sigset_t` is plain data, made valid by sigemptyset; mask and dispositions
        // are the child's own, and SIG_DFL runs no code of ours.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) < 0 {
                return -1;
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
        }
    }
}
