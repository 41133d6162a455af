//! The shims that run.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::cli::{self, Command, Flags, PROGRAM};
use crate::ids::Pid;
use crate::sys::child;

/// What the kernel calls each `containerd-shim-NAME`.
pub(super) const SHIM: &str = "containerd-shim";

/// Whether a process sees the mounts that we see: what others see is judged from there.
pub(super) fn same_mounts(pid: Pid) -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    of(&pid.to_string()) == of("self")
}

/// Whether a process is of our own user: what others call themselves, and where they say that they are, proves
/// nothing. From its status, as /proc/PID is root's for who is not dumpable.
pub(super) fn same_user(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    effective_user(&status) == Some(geteuid().as_raw())
}

fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A process that is a shim.
pub(super) struct Process {
    pub(super) pid: Pid,
    /// Of berth's daemons that see our mounts; others have none that are known, and only keep from harm what
    /// is theirs.
    pub(super) flags: Option<Flags>,
    /// Its arguments.
    pub(super) words: Vec<String>,
    pub(super) bundle: PathBuf,
    pub(super) gone: bool,
    pub(super) socket: Option<PathBuf>,
}

/// Every shim, or those whose bundles are below `only`.
pub(super) fn processes(only: Option<&Path>) -> Vec<Process> {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    child::all()
        .filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // Before it has given itself a name, berth is `exe`.
            (name.starts_with(SHIM) || name == "exe\n") && child::runs(*pid) && same_user(*pid)
        })
        .filter_map(|pid| process(pid, &sockets))
        .filter(|process| only.is_none_or(|only| process.bundle.starts_with(only)))
        .collect()
}

fn process(pid: Pid, sockets: &str) -> Option<Process> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let ours = Path::new(words.first()?).file_name().is_some_and(|name| name == PROGRAM);
    let flags = match cli::parse(words.iter().skip(1).map(Into::into)) {
        Ok(Command::Daemon(flags)) if ours => Some(flags).filter(|_| same_mounts(pid)),
        // What a person asked, or the holder of a pod; `start` and `delete` are at work in a bundle.
        other if ours && !matches!(other, Ok(Command::Start(_) | Command::Delete(_))) => {
            return None;
        }
        _ => None,
    };
    let cwd = child::working_directory(pid)?.into_os_string().into_vec();
    let live = cwd.strip_suffix(b" (deleted)");
    let bundle = PathBuf::from(std::ffi::OsString::from_vec(live.unwrap_or(&cwd).to_vec()));
    let socket = fs::read_link(format!("/proc/{pid}/fd/3")).ok();
    let socket = socket.and_then(|link| bound(&link.to_string_lossy(), sockets));
    Some(Process { pid, flags, words, bundle, gone: live.is_some(), socket })
}

/// The path that a socket, `socket:[INODE]`, has in the table of /proc/net/unix.
fn bound(link: &str, sockets: &str) -> Option<PathBuf> {
    let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
    let line = sockets.lines().find(|line| line.split_whitespace().nth(6) == Some(inode))?;
    // The path is the rest of the line, and may have blanks.
    let (_, path) = line.split_once(&format!(" {inode} "))?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_path_is_in_the_kernels_table() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/s/x\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 4712\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01  4713 /run/a b/x\n";
        let cases = [
            ("socket:[4711]", Some("/run/s/x")),
            ("socket:[4712]", None),
            ("socket:[4713]", Some("/run/a b/x")),
            ("socket:[1]", None),
            ("/dev/null", None),
        ];
        for (link, expected) in cases {
            assert_eq!(bound(link, table).as_deref(), expected.map(Path::new), "{link}");
        }
    }

    #[test]
    fn the_user_who_counts_is_the_effective_one() {
        let cases = [
            ("Name:\tx\nUid:\t1000\t7\t1000\t1000\nGid:\t1\t2\t3\t4\n", Some(7)),
            ("Name:\tx\n", None),
            ("", None),
        ];
        for (status, expected) in cases {
            assert_eq!(effective_user(status), expected, "{status:?}");
        }
        assert!(same_user(Pid::new(std::process::id().try_into().unwrap()).unwrap()));
    }
}
