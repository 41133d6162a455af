//! Starting a program without a copy of this process: until exec the child runs in the parent's memory, as
//! with vfork(2), but the parent goes on meanwhile. One thread serves all containers, and on a busy machine
//! it may be milliseconds until a child has its first turn.
//!
//! fork(2) copies the page tables and makes every page of ours that is written afterwards fault; a shim
//! starts a runtime three times for each container and once for each exec.
//!
//! What the child needs is kept until the kernel says that it uses the memory no longer
//! (`CLONE_CHILD_CLEARTID`). `errno` is the parent's as well, so that libc is not used ([`raw`]).

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

use crate::ids::Pid;
use crate::sys::child::FileLimit;
use crate::sys::raw;

/// Enough for a dozen system calls.
const STACK: usize = 16 * 1024;
/// Where a system call can be made without libc; elsewhere the parent waits for the child.
const BESIDE: bool = cfg!(target_arch = "x86_64");
/// What reads a script that does not say what does.
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// All that the child needs, made before there is one: it may not take memory.
struct Plan {
    program: CString,
    /// [`SHELL`], then the program and its arguments, then a null.
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: CString,
    streams: [RawFd; 3],
    files: Option<libc::rlimit64>,
    parent: libc::pid_t,
    /// Why the program could not be started.
    failure: AtomicI32,
    /// The kernel clears it when the child uses this memory no longer.
    uses: AtomicI32,
    stack: Vec<u128>,
    /// What the lists point to.
    _texts: [Vec<CString>; 2],
}

/// What a program is given.
pub(super) struct Program<'a> {
    /// Absolute.
    pub(super) path: &'a Path,
    /// Without the program's own name.
    pub(super) args: Vec<&'a OsStr>,
    /// All of it.
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) cwd: &'a Path,
    pub(super) streams: [BorrowedFd<'a>; 3],
    pub(super) files: Option<FileLimit>,
}

/// A child that is becoming a program, or has become it.
#[derive(Debug)]
pub(crate) struct Starting {
    pub(crate) pid: Pid,
    plan: NonNull<Plan>,
}

impl Starting {
    /// Whether it is a program of its own by now, or could not become it: [`Starting::failure`].
    pub(crate) fn is_over(&self) -> bool {
        self.plan().uses.load(Ordering::Acquire) == 0
    }

    /// Why the program could not be started; not before [`Starting::is_over`], or the child's end.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        let errno = self.plan().failure.load(Ordering::Acquire);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    fn plan(&self) -> &Plan {
        // SAFETY: only `drop` frees it. The child shares it, and what it writes to is atomic.
        unsafe { self.plan.as_ref() }
    }
}

impl Drop for Starting {
    /// A child that is not over keeps its plan for ever.
    fn drop(&mut self) {
        if self.is_over() {
            // SAFETY: it comes from `Box::into_raw`, and the child has left this memory.
            drop(unsafe { Box::from_raw(self.plan.as_ptr()) });
        }
    }
}

/// Starts a program as [`spawn`](super::child::spawn) says.
pub(super) fn start(program: Program<'_>) -> io::Result<Starting> {
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
        args: [SHELL.as_ptr()].into_iter().chain(pointers(&args)).collect(),
        env: pointers(&env).collect(),
        cwd: CString::new(cwd.as_os_str().as_bytes())?,
        streams: streams.each_ref().map(|(number, _)| *number),
        files: files.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard }),
        // SAFETY: it takes nothing and cannot fail.
        parent: unsafe { libc::getpid() },
        failure: AtomicI32::new(0),
        uses: AtomicI32::new(1),
        stack: Vec::with_capacity(STACK / size_of::<u128>()),
        _texts: [args, env],
    };
    begin(Box::new(plan))
}

/// Makes the child. It has a table of descriptors of its own: the parent may close what it was given.
fn begin(mut plan: Box<Plan>) -> io::Result<Starting> {
    let wait = if BESIDE { 0 } else { libc::CLONE_VFORK };
    let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | wait | libc::SIGCHLD;
    let capacity = plan.stack.capacity();
    let stack = plan.stack.as_mut_ptr();
    let plan = Box::into_raw(plan);
    // SAFETY: the stack has `capacity` words below the address given, aligned to 16, which only the child
    // uses. `plan`, all it points to and the stack live until the kernel has cleared `uses`: only
    // `Starting` frees them. The child makes system calls only, and none by libc while this thread runs.
    let pid = unsafe {
        let (top, uses) = (stack.add(capacity), (&raw const (*plan).uses).cast_mut());
        let nothing = ptr::null_mut::<libc::c_void>();
        libc::clone(child, top.cast(), flags, plan.cast(), nothing, nothing, uses)
    };
    let Ok(pid) = Errno::result(pid) else {
        let error = io::Error::last_os_error();
        // SAFETY: it was a box a moment ago, and there is no child.
        drop(unsafe { Box::from_raw(plan) });
        return Err(error);
    };
    // The child does the same: whoever kills the group now, or is in it, finds it made.
    // SAFETY: the arguments are integers. It fails where the child was faster and is another program.
    unsafe { libc::setpgid(pid, pid) };
    // SAFETY: a box is never null.
    let plan = unsafe { NonNull::new_unchecked(plan) };
    Pid::new(pid).map(|pid| Starting { pid, plan }).ok_or_else(|| Errno::ESRCH.into())
}

/// `name=value` for the child's environment.
fn variable((mut name, value): (OsString, OsString)) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    Ok(CString::new(name.into_vec())?)
}

/// A list as exec takes it: with a null at its end.
fn pointers(list: &[CString]) -> impl Iterator<Item = *const c_char> + '_ {
    list.iter().map(|text| text.as_ptr()).chain([ptr::null()])
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
    // SAFETY: `begin` passes a `Plan`, which is there until this process has ended or called exec.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let errno = plan.run().unwrap_or_else(|errno| errno);
    plan.failure.store(errno, Ordering::Release);
    127
}

impl Plan {
    /// Becomes the program; returns why not.
    fn run(&self) -> Result<i32, i32> {
        for (number, stream) in (0..).zip(self.streams) {
            call(libc::SYS_dup3, [stream as usize, number, 0, 0])?;
        }
        call(libc::SYS_setpgid, [0; 4])?;
        if let Some(limit) = &self.files {
            let limit = ptr::from_ref(limit) as usize;
            call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, limit, 0])?;
        }
        call(libc::SYS_chdir, [self.cwd.as_ptr() as usize, 0, 0, 0])?;
        // SIGPIPE, which Rust's programs ignore, ends a program as it should: a zero is SIG_DFL, and the
        // rest of the struct means nothing with it. No signal is blocked.
        let zero = [0_u64; 4];
        let (none, length) = (zero.as_ptr() as usize, size_of::<u64>());
        call(libc::SYS_rt_sigaction, [libc::SIGPIPE as usize, none, 0, length])?;
        call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, none, 0, length])?;
        call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0])?;
        // The parent may have died before prctl took effect.
        if call(libc::SYS_getppid, [0; 4])? != self.parent as isize {
            return Err(libc::ESRCH);
        }
        let (args, env) = (&self.args, self.env.as_ptr() as usize);
        let named = args.as_ptr().wrapping_add(1) as usize;
        let error = call(libc::SYS_execve, [self.program.as_ptr() as usize, named, env, 0]);
        if error == Err(libc::ENOEXEC) {
            // As execvp(3) does.
            call(libc::SYS_execve, [SHELL.as_ptr() as usize, args.as_ptr() as usize, env, 0])?;
        }
        error.map(|_| 0)
    }
}

/// Makes a system call of integers, or of pointers into a [`Plan`] that are what the call takes.
fn call(number: libc::c_long, args: [usize; 4]) -> Result<isize, i32> {
    // SAFETY: what the pointers refer to lives as long as the plan does and is laid out as the kernel has
    // it; all that is changed is the child's own.
    match unsafe { raw::call(number, args) } {
        error @ ..0 => Err(error.unsigned_abs() as i32),
        value => Ok(value),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::sys::child;

    /// Nothing behind `dir` answers, as behind a dead network mount: whoever starts a program there waits.
    struct Hung {
        dir: tempfile::TempDir,
        _server: File,
    }

    impl Hung {
        fn new() -> Self {
            let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
            let dir = tempfile::tempdir().unwrap();
            let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("hung"), dir.path(), Some("fuse"), flags, Some(&*data)).unwrap();
            Self { dir, _server: server }
        }
    }

    impl Drop for Hung {
        fn drop(&mut self) {
            umount2(self.dir.path(), MntFlags::MNT_DETACH).unwrap();
        }
    }

    #[test]
    fn a_program_that_cannot_be_read_hangs_nobody_and_can_be_killed() {
        let hung = Hung::new();
        let null = File::open("/dev/null").unwrap();
        let program = Program {
            path: &hung.dir.path().join("x"),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: Path::new("/"),
            streams: [null.as_fd(); 3],
            files: None,
        };
        let child = start(program).unwrap();
        assert!(!child.is_over());
        child::kill_group(child.pid);
        let status = loop {
            match child::is_zombie(child.pid) {
                Some(status) => break status,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(status, 128 + libc::SIGKILL.unsigned_abs());
        assert!(child.is_over() && child.failure().is_none(), "its plan can be let go");
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid.get()), None);
    }
}
