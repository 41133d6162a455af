//! Child processes: spawn, reap, walk and kill.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::ids::Pid;
use crate::sys::program::{self, Program, Starting};

/// Standard input, output and error of a new process, in this order.
pub(crate) type Streams = [OwnedFd; 3];

/// How many descriptors a process may have: now, and at most if it asks for more.
pub(crate) type FileLimit = (u64, u64);

/// Variables that a runtime must not have from us. Of systemd's for services, runc would take the first
/// for the container's own and wait in `start` for a word from it, and hand on descriptors by the
/// `LISTEN_` ones; the rest names containerd's sockets, or is meant for shims.
const NOT_FOR_RUNTIMES: [&str; 15] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
    "MAINPID",
    "TTRPC_ADDRESS",
    "GRPC_ADDRESS",
    "NAMESPACE",
    "MAX_SHIM_VERSION",
    "SCHED_CORE",
    "BERTH_CONF_FILE",
];

/// Lets this process have as many descriptors as it may; returns the limit that it had.
pub(crate) fn raise_file_limit() -> io::Result<FileLimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((soft, hard))
}

/// Starts `program`, an absolute path, in a process group of its own, with the limit `files` or else ours;
/// the caller owes it a wait. Most reasons why a program cannot be started are known only behind that.
///
/// It gets SIGKILL when the thread that called ends ([prctl(2)], `PR_SET_PDEATHSIG`), so a killed
/// daemon leaves no half-done runtime command behind: call this from the main thread only. The
/// signal mask is emptied, descriptors other than 0, 1 and 2 are close-on-exec by habit.
///
/// The environment is ours with `env`, but for what systemd told containerd and containerd told us
/// ([`NOT_FOR_RUNTIMES`]).
///
/// [prctl(2)]: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
pub(crate) fn spawn(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    cwd: &Path,
    env: &[(String, String)],
    streams: Streams,
    files: Option<FileLimit>,
) -> io::Result<Starting> {
    program::start(Program {
        path: program,
        args: args.iter().map(AsRef::as_ref).collect(),
        env: environment(env),
        cwd,
        streams: streams.each_ref().map(AsFd::as_fd),
        files,
    })
}

/// Starts `program` as [`spawn`] does, but with nothing of ours: its environment is `env` alone, 0, 1
/// and 2 are `/dev/null`, and from 3 on it has `descriptors`, in this order.
pub(crate) fn spawn_apart(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    cwd: &Path,
    env: &[(&str, &str)],
    descriptors: &[BorrowedFd<'_>],
    files: Option<FileLimit>,
) -> io::Result<Pid> {
    let mut command = Command::new(program);
    command.args(args).current_dir(cwd).env_clear().envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _taken = hand_over(&mut command, descriptors)?;
    spawn_bound(command, files)
}

/// Lets `command` have `descriptors` from 3 on. What is returned has to live until it was started: it
/// keeps those numbers from the pipe on which [`Command`] hears why a program cannot be started.
fn hand_over(command: &mut Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let end = 3 + i32::try_from(descriptors.len()).map_err(io::Error::other)?;
    // Beyond all the numbers that are given away, so that none is overwritten before it was copied.
    let copies: Vec<_> =
        descriptors.iter().map(|fd| copy_from(end, *fd)).collect::<io::Result<_>>()?;
    let mut taken = Vec::new();
    while let Some(first) = descriptors.first() {
        let copy = copy_from(3, *first)?;
        if copy.as_raw_fd() >= end {
            break;
        }
        taken.push(copy);
    }
    let place = move || {
        for (number, copy) in (3..end).zip(&copies) {
            // SAFETY: both are integers. The forked child has a table of descriptors of its own, and
            // until exec nothing in it uses `number`: neither `copies`, which are all higher, nor
            // `Command`, which got its own while every number up to `end` was taken.
            Errno::result(unsafe { libc::dup2(copy.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only and touches no lock and
    // no memory that another thread could hold.
    unsafe { command.pre_exec(place) };
    Ok(taken)
}

/// A copy of `fd`, close-on-exec, with the first free number from `least` on.
pub(super) fn copy_from(least: i32, fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel just returned `copy`; it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Starts `command` in a process group of its own, with an empty signal mask, the limit `files` or
/// else ours, and a death by SIGKILL with the thread that called; the caller owes it a wait.
pub(super) fn spawn_bound(mut command: Command, files: Option<FileLimit>) -> io::Result<Pid> {
    command.process_group(0);
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        // `Command` hands on our mask, and containers would get it from the runtime.
        SigSet::empty().thread_set_mask()?;
        if let Some((soft, hard)) = files {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before prctl took effect.
        if nix::unistd::getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only and touches no lock and
    // no memory that another thread could hold.
    unsafe { command.pre_exec(before_exec) };
    let child = command.spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::new).ok_or_else(|| Errno::ESRCH.into())
}

/// Our variables but for [`NOT_FOR_RUNTIMES`], and those of `env`. Each name is there once: a program takes
/// the first of two, or the last, as it likes. What comes later in `env` counts, and all of it before ours.
fn environment(env: &[(String, String)]) -> BTreeMap<OsString, OsString> {
    let is_ours = |name: &OsStr| !NOT_FOR_RUNTIMES.iter().any(|other| name == *other);
    let ours = std::env::vars_os().filter(|(name, _)| is_ours(name));
    ours.chain(env.iter().map(|(name, value)| (name.into(), value.into()))).collect()
}

/// Takes the exit of any child: its pid, and its status as containerd counts (128 + signal).
/// `None` when no child has ended. Children that were cloned with another exit signal than SIGCHLD
/// are left to whoever made them.
pub(crate) fn reap() -> io::Result<Option<(Pid, u32)>> {
    wait(libc::P_ALL, 0, libc::WNOHANG)
}

/// As [`reap`], but `first` has its turn while the child is still there as a zombie: its pid, and the
/// number of the process group that it made, cannot be another's by then.
pub(crate) fn reap_after(first: impl FnOnce(Pid, u32)) -> io::Result<Option<(Pid, u32)>> {
    let ended = wait(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT)?;
    let Some((pid, status)) = ended else { return Ok(None) };
    first(pid, status);
    wait(libc::P_PID, pid.get().unsigned_abs(), 0)
}

/// Whether `pid` has ended and is still to be waited for; its status.
#[cfg(test)]
pub(crate) fn is_zombie(pid: Pid) -> Option<u32> {
    let options = libc::WNOHANG | libc::WNOWAIT;
    wait(libc::P_PID, pid.get().unsigned_abs(), options).unwrap().map(|(_, status)| status)
}

/// Waits for children that have ended: waitid(2). `None` if there is none.
///
/// nix's `waitid` has no value for a death by real-time signal and would lose such an exit.
fn wait(kind: libc::idtype_t, id: u32, options: i32) -> io::Result<Option<(Pid, u32)>> {
    // SAFETY: the struct is integers and pointers only, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the kernel to write to.
    while unsafe { libc::waitid(kind, id, &raw mut info, options | libc::WEXITED) } < 0 {
        match Errno::last() {
            Errno::EINTR => {}
            Errno::ECHILD => return Ok(None),
            error => return Err(error.into()),
        }
    }
    // SAFETY: waitid(2) fills these fields for a child, and without one they are still zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let status = status.unsigned_abs();
    let killed = info.si_code != libc::CLD_EXITED;
    Ok(Pid::new(pid).map(|pid| (pid, if killed { 128 + status } else { status })))
}

/// Sends `signal` to a child that has not been reaped, and to no other process: without a wait in between,
/// which is this thread's alone, the number stays the child's.
///
/// `ESRCH` if `pid` is no child (any more), `EINVAL` for a number that is no signal.
pub(crate) fn signal(pid: Pid, signal: i32) -> io::Result<()> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let number = nix::unistd::Pid::from_raw(pid.get());
    if waitid(Id::Pid(number), flags) == Err(Errno::ECHILD) {
        return Err(Errno::ESRCH.into());
    }
    // SAFETY: both arguments are integers, which the kernel checks.
    Errno::result(unsafe { libc::kill(pid.get(), signal) }).map(drop).map_err(io::Error::from)
}

/// Whether the process behind `pidfd` is a child of this process, so that [`reap`] will see its end.
pub(crate) fn is_ours(pidfd: BorrowedFd<'_>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    waitid(Id::PIDFd(pidfd), flags) != Err(Errno::ECHILD)
}

/// Whether a process runs: it is there, not exiting, and no zombie that waits for its parent.
/// Fields 3 and 9 of proc_pid_stat(5).
pub(crate) fn runs(pid: Pid) -> bool {
    const PF_EXITING: u64 = 4;
    let stat = stat(pid).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let flags = rest.split(' ').nth(6).and_then(|flags| flags.parse().ok()).unwrap_or(0_u64);
    !rest.starts_with(['Z', 'X']) && flags & PF_EXITING == 0
}

/// When a process was started, in clock ticks since boot: with its pid it names one process for
/// good, also in a file. Field 22 of proc_pid_stat(5).
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    let stat = stat(pid).ok()?;
    // The second field is the program's name in parentheses, which may hold any character.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// What a process's parent is called: the first 15 bytes of its program's name. Field 4 of
/// proc_pid_stat(5).
pub(crate) fn parent_name(pid: Pid) -> Option<String> {
    let stat = stat(pid).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let parent: i32 = rest.split_whitespace().nth(1)?.parse().ok()?;
    Some(fs::read_to_string(format!("/proc/{parent}/comm")).ok()?.trim_end().to_owned())
}

/// The line of proc_pid_stat(5), which the kernel makes for one read; a buffer that grows from 32 bytes on
/// would take six.
fn stat(pid: Pid) -> io::Result<String> {
    let mut line = [0; 1024];
    let length = fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut line)?;
    Ok(String::from_utf8_lossy(&line[..length]).into_owned())
}

/// Every process of this PID namespace.
pub(crate) fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::new(entry.file_name().to_str()?.parse().ok()?))
}

/// A process's working directory, as it was when the process was looked at.
pub(crate) fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The process after which a process's session is named; it may have ended.
pub(crate) fn session_leader(pid: Pid) -> Option<Pid> {
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid.get()))).ok()?;
    Pid::new(session.as_raw())
}

/// Every process below `pid`, children of all its threads and theirs; best effort, it races with
/// forks. From `/proc/PID/task/TID/children` (proc_pid_task(5)).
pub(crate) fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|word| word.parse().ok()) {
                if let Some(child) = Pid::new(child) {
                    found.push(child);
                    next.push(child);
                }
            }
        }
    }
    found
}

/// Kills the process group that `leader` made; `leader` must not have been waited for yet, so its
/// number cannot be another's.
pub(crate) fn kill_group(leader: Pid) {
    signal_group(leader, Signal::SIGKILL);
}

/// Asks the process group that `leader` made to end (SIGTERM), under the same condition.
pub(crate) fn terminate_group(leader: Pid) {
    signal_group(leader, Signal::SIGTERM);
}

fn signal_group(leader: Pid, signal: Signal) {
    // ESRCH: nobody is left, which is what was wanted.
    let _ = killpg(nix::unistd::Pid::from_raw(leader.get()), signal);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_child_has_the_limit_it_is_given_and_no_signal_blocked() {
        let output = tempfile::tempfile().unwrap();
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        // The mask is the thread's, so that no other test sees it.
        blocked.thread_block().unwrap();
        let streams = [(); 3].map(|()| output.try_clone().unwrap().into());
        let script = ["-c", "ulimit -Sn; exec grep SigBlk /proc/self/status"];
        let files = Some((100, 200));
        let pid = spawn(Path::new("/bin/sh"), &script, Path::new("/"), &[], streams, files);
        let pid = pid.unwrap().pid;
        // ECHILD: it has ended, and the reaper of another test was faster.
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.get()), None);
        let mut text = [0; 100];
        let length = output.read_at(&mut text, 0).unwrap();
        assert_eq!(
            std::str::from_utf8(&text[..length]).unwrap(),
            "100\nSigBlk:\t0000000000000000\n"
        );
    }

    #[test]
    fn a_runtime_does_not_speak_to_systemd_in_containerds_name() {
        let is_from_us = |name: &str| std::env::var_os(name).is_some();
        let given = [("A", "0"), ("A", "1"), ("LISTEN_FDS", "1"), ("PATH", "0"), ("PATH", "1")];
        let found = environment(&given.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let of = |name: &str| found.get(OsStr::new(name)).map(OsString::as_os_str);
        for name in ["A", "LISTEN_FDS", "PATH"] {
            // A command's own value comes behind that of its runtime's entry in the table.
            assert_eq!(of(name), Some(OsStr::new("1")), "{name}: given, the last of them");
        }
        assert!(is_from_us("PATH") && is_from_us("HOME"));
        assert!(of("HOME").is_some(), "inherited");
        assert!(of("NOTIFY_SOCKET").is_none());
    }

    #[test]
    fn a_program_that_cannot_be_started_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "exit 3").unwrap();
        let mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&script, mode).unwrap();
        };
        let run = |program: &Path, cwd: &str| {
            let streams = [(); 3].map(|()| fs::File::open("/dev/null").unwrap().into());
            spawn(program, &["x"], Path::new(cwd), &[], streams, None)
        };
        let status = |pid| {
            loop {
                if let Some(status) = is_zombie(pid) {
                    break status;
                }
                std::thread::yield_now();
            }
        };
        for (name, program, cwd, expected) in [
            ("no program", Path::new("/nowhere"), "/", libc::ENOENT),
            ("no directory", Path::new("/bin/true"), "/nowhere", libc::ENOENT),
            ("not executable", &script, "/", libc::EACCES),
        ] {
            let child = run(program, cwd).unwrap();
            assert_eq!(status(child.pid), 127, "{name}");
            let error = child.failure().unwrap();
            assert_eq!(error.raw_os_error(), Some(expected), "{name}");
            assert!(child.is_over());
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid.get()), None);
        }
        mode(0o755);
        let child = run(&script, "/").unwrap();
        let pid = child.pid;
        assert_eq!(status(pid), 3, "a script that does not say what reads it");
        assert!(child.is_over() && child.failure().is_none());
        signal(pid, 0).unwrap();
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.get()), None);
        assert_eq!(signal(pid, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_child_on_its_own_account_has_what_it_is_given() {
        let mut files = [(); 3].map(|()| tempfile::tempfile().unwrap());
        files.iter_mut().zip(["a", "b"]).for_each(|(file, text)| {
            io::Write::write_all(file, text.as_bytes()).unwrap();
            io::Seek::rewind(file).unwrap();
        });
        let descriptors = files.each_ref().map(|file| file.as_fd());
        let run = |program: &str, script: &str| {
            let args = ["-c", script];
            spawn_apart(
                Path::new(program),
                &args,
                Path::new("/"),
                &[("X", "x")],
                &descriptors,
                None,
            )
        };
        let missing = run("/nowhere", "").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound, "its pipe was not overwritten");
        let pid = run("/bin/sh", "cat <&3 >&5; cat <&4 >&5; echo $X >&5; echo lost").unwrap();
        while is_zombie(pid).is_none() {
            std::thread::yield_now();
        }
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.get()), None);
        let mut text = [0; 100];
        let length = files[2].read_at(&mut text, 0).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]).unwrap(), "abx\n");
    }

    #[test]
    fn what_is_given_away_is_written_over_nothing() {
        let mut command = Command::new("/bin/true");
        let file = tempfile::tempfile().unwrap();
        let given = [file.as_fd(); 4];
        let taken = hand_over(&mut command, &given).unwrap();
        let is_open = |number: &i32| Path::new(&format!("/proc/self/fd/{number}")).exists();
        assert!((3..7).all(|number| is_open(&number)), "{taken:?}");
    }

    #[test]
    fn a_status_is_counted_as_containerd_does() {
        for (name, script, expected) in [
            ("exit", "exit 7", 7),
            ("signal", "kill -9 $$", 137),
            ("real-time signal", "kill -40 $$", 168),
        ] {
            let args = ["-c", script];
            let pid = spawn_apart(Path::new("/bin/sh"), &args, Path::new("/"), &[], &[], None);
            let pid = pid.unwrap();
            let status = loop {
                if let Some(status) = is_zombie(pid) {
                    break status;
                }
                std::thread::yield_now();
            };
            assert_eq!(status, expected, "{name}");
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.get()), None);
        }
    }
}
