//! A cgroup's directory with all that are nested in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cgroup::file::{Reader, absent};
use crate::ids::Pid;

/// `dir` and everything nested in it, parents first; empty if `dir` is gone.
pub(super) fn nested(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(about) = absent(fs::symlink_metadata(dir))? else { return Ok(Vec::new()) };
    let mut dirs = vec![dir.to_owned()];
    // A directory has a link from each of its children, so 2 says that there are none, which
    // saves to list the 50 control files.
    if about.nlink() == 2 {
        return Ok(dirs);
    }
    let mut next = 0;
    while next < dirs.len() {
        let Some(entries) = absent(fs::read_dir(&dirs[next]))? else {
            next += 1;
            continue;
        };
        for entry in entries {
            let Some(entry) = absent(entry)? else { break };
            let kind = absent(entry.file_type())?;
            if kind.is_some_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(dirs)
}

/// The processes in `dir` and everything nested, sorted, each once; `None` if `dir` is gone.
pub(super) fn processes(dir: &Path) -> io::Result<Option<Vec<Pid>>> {
    let dirs = nested(dir)?;
    if dirs.is_empty() {
        return Ok(None);
    }
    let mut reader = Reader::new();
    let mut pids = Vec::new();
    for dir in &dirs {
        // A threaded cgroup of v2 lists no processes (EOPNOTSUPP), only threads.
        match reader.list(&dir.join("cgroup.procs"))? {
            Some(text) => pids.extend(numbers(text)),
            None => pids.extend(owners(&mut reader, &dir.join("cgroup.threads"))?),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(Some(pids))
}

/// What [`remove`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nothing is left.
    Gone,
    /// Something is in there, or was a moment ago: try again.
    Busy,
}

/// Removes `dir` and everything nested in it, the deepest first.
pub(super) fn remove(dir: &Path) -> io::Result<Removal> {
    let mut removal = Removal::Gone;
    for dir in nested(dir)?.iter().rev() {
        match absent(fs::remove_dir(dir)) {
            Err(error) if busy(&error) => removal = Removal::Busy,
            done => drop(done?),
        }
    }
    Ok(removal)
}

/// Processes or new nested cgroups are in it; v1 says so for a moment after the last one ended.
fn busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY | libc::EEXIST))
}

/// The process ids in a list; those of other PID namespaces are there as 0.
fn numbers(text: &str) -> impl Iterator<Item = Pid> + '_ {
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok().and_then(Pid::new))
}

/// The processes of the threads in the list at `path`.
fn owners(reader: &mut Reader, path: &Path) -> io::Result<Vec<Pid>> {
    let Some(text) = reader.list(path)? else { return Ok(Vec::new()) };
    let threads: Vec<Pid> = numbers(text).collect();
    let mut pids = Vec::new();
    for thread in threads {
        let status = PathBuf::from(format!("/proc/{thread}/status"));
        pids.extend(reader.list(&status)?.and_then(owner));
    }
    Ok(pids)
}

/// The process of a thread, from its `/proc/TID/status`.
fn owner(status: &str) -> Option<Pid> {
    let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    numbers(tgid).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_lists_are_read_leniently() {
        let cases: &[(&str, &str, &[i32])] = &[
            ("plain", "1\n20\n300\n", &[1, 20, 300]),
            ("other namespace", "0\n7\n0\n", &[7]),
            ("empty", "", &[]),
            ("garbage", "x\n-5\n8\n99999999999\n", &[8]),
        ];
        for (name, text, expected) in cases {
            let pids: Vec<i32> = numbers(text).map(Pid::get).collect();
            assert_eq!(&pids, expected, "{name}");
        }
        assert_eq!(owner("Name:\tx\nTgid:\t42\nPid:\t43\n"), Pid::new(42));
        assert_eq!(owner("Name:\tx\n"), None);
    }

    #[test]
    fn processes_of_nested_cgroups_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("c");
        for (path, procs) in [("", "9\n3\n"), ("a", "3\n"), ("a/b", "1\n"), ("z", "0\n")] {
            fs::create_dir_all(top.join(path)).unwrap();
            fs::write(top.join(path).join("cgroup.procs"), procs).unwrap();
        }
        let me = std::process::id();
        fs::create_dir(top.join("threaded")).unwrap();
        fs::write(top.join("threaded/cgroup.threads"), format!("{me}\n{me}\n")).unwrap();
        let pids: Vec<i32> = processes(&top).unwrap().unwrap().into_iter().map(Pid::get).collect();
        let mut expected = vec![1, 3, 9, i32::try_from(me).unwrap()];
        expected.sort_unstable();
        assert_eq!(pids, expected);
        assert_eq!(processes(&dir.path().join("none")).unwrap(), None);
    }
}
