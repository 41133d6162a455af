//! Finds, and clears away, what a test's containers and daemons left on the machine.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A living process that belongs to a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub line: String,
}

/// Living processes (no zombies) that carry `tag` in environment, command line, cgroup or directory.
pub fn processes(tag: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let dir = entry.path();
        if pid != std::process::id() as i32 && alive(&dir) && carries(&dir, tag) {
            let line = fs::read(dir.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(Process { pid, line });
        }
    }
    found
}

fn alive(dir: &Path) -> bool {
    let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    // The kernel's PF_EXITING: an init process waits there until the host's init has reaped the
    // exec processes of its PID namespace, however long that takes.
    let exiting = rest.split(' ').nth(6).and_then(|flags| flags.parse().ok()).unwrap_or(0_u64) & 4;
    !rest.starts_with(['Z', 'X']) && exiting == 0
}

fn carries(dir: &Path, tag: &str) -> bool {
    let contains = |name| {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        bytes.windows(tag.len()).any(|part| part == tag.as_bytes())
    };
    let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
    ["environ", "cmdline", "cgroup"].into_iter().any(contains)
        || cwd.to_string_lossy().contains(tag)
}

/// Mount points below `dir` in this mount namespace, in the order of mounting.
pub fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Cgroups of containers with `tag`, in every hierarchy: `/berth-test-TAG/…`.
pub fn cgroups(tag: &str) -> Vec<PathBuf> {
    parents(tag).iter().flat_map(|parent| children(parent)).collect()
}

fn parents(tag: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let points =
        fields.filter(|field| field[2].starts_with("cgroup")).map(|field| field[1].to_owned());
    points.map(|point| Path::new(&point).join(format!("berth-test-{tag}"))).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect()
}

/// Kills, unmounts and removes everything that [`processes`], [`mounts`] and [`cgroups`] find.
pub(super) fn clear(tag: &str, dir: &Path) {
    for _ in 0..400 {
        let left = processes(tag);
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        for group in cgroups(tag) {
            drop(fs::write(group.join("freezer.state"), "THAWED"));
        }
        if left.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for point in mounts(dir).iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    for parent in parents(tag) {
        remove(&parent);
    }
}

fn remove(group: &Path) {
    for child in children(group) {
        remove(&child);
    }
    drop(fs::remove_dir(group));
}
