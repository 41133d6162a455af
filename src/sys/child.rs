//! Child processes: spawn, reap, walk and kill.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::ids::Pid;

/// Standard input, output and error of a new process, in this order.
pub(crate) type Streams = [OwnedFd; 3];

/// How many descriptors a process may have: now, and at most if it asks for more.
pub(crate) type FileLimit = (u64, u64);

/// Lets this process have as many descriptors as it may; returns the limit that it had.
pub(crate) fn raise_file_limit() -> io::Result<FileLimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((soft, hard))
}

/// Starts `program` in a process group of its own, with the limit `files` or else ours; the caller
/// owes it a wait.
///
/// It gets SIGKILL when the thread that called ends ([prctl(2)], `PR_SET_PDEATHSIG`), so a killed
/// daemon leaves no half-done runtime command behind: call this from the main thread only. The
/// signal mask is emptied, descriptors other than 0, 1 and 2 are close-on-exec by habit.
///
/// The environment is ours with `env`, but for `NOTIFY_SOCKET`: the runtime would take containerd's
/// place under systemd for the container's, and wait in `start` for a word from the container.
///
/// [prctl(2)]: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
pub(crate) fn spawn(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    cwd: &Path,
    env: &[(String, String)],
    streams: Streams,
    files: Option<FileLimit>,
) -> io::Result<Pid> {
    let [stdin, stdout, stderr] = streams;
    let mut command = command(program, args, cwd, env);
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    spawn_bound(command, files)
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

fn command(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    cwd: &Path,
    env: &[(String, String)],
) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(cwd).env_remove("NOTIFY_SOCKET");
    command.envs(env.iter().map(|(key, value)| (key, value)));
    command
}

/// Takes the exit of any child: its pid, and its status as containerd counts (128 + signal).
/// `None` when no child has ended. Children that were cloned with another exit signal than SIGCHLD
/// are left to whoever made them.
///
/// nix's `waitpid` has no value for a death by real-time signal and would lose such an exit.
pub(crate) fn reap() -> io::Result<Option<(Pid, u32)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the kernel to write an int to.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid < 0 {
            match Errno::last() {
                Errno::EINTR => continue,
                Errno::ECHILD => return Ok(None),
                error => return Err(error.into()),
            }
        }
        let Some(pid) = Pid::new(pid) else { return Ok(None) };
        if libc::WIFEXITED(status) {
            return Ok(Some((pid, libc::WEXITSTATUS(status).unsigned_abs())));
        }
        if libc::WIFSIGNALED(status) {
            return Ok(Some((pid, 128 + libc::WTERMSIG(status).unsigned_abs())));
        }
    }
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let flags = rest.split(' ').nth(6).and_then(|flags| flags.parse().ok()).unwrap_or(0_u64);
    !rest.starts_with(['Z', 'X']) && flags & PF_EXITING == 0
}

/// When a process was started, in clock ticks since boot: with its pid it names one process for
/// good, also in a file. Field 22 of proc_pid_stat(5).
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold any character.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
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
    // ESRCH: nobody is left, which is what was wanted.
    let _ = killpg(nix::unistd::Pid::from_raw(leader.get()), Signal::SIGKILL);
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
        let pid = pid.unwrap();
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
        let env = [("A".to_owned(), "b".to_owned())];
        let command = command(Path::new("/runc"), &["start"], Path::new("/"), &env);
        let set: Vec<_> = command.get_envs().collect();
        let expected = [("A", Some("b")), ("NOTIFY_SOCKET", None)];
        assert_eq!(set, expected.map(|(key, value)| (OsStr::new(key), value.map(OsStr::new))));
    }
}
