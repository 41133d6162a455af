//! Is this host fit: kernel, cgroups, helpers, socket directories, rights.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use super::Level::{Fault, Note, Ok, Warn};
use super::Topic::Host;
use super::{Finding, look};
use crate::rootless;
use crate::runtime::table::look_up;

/// What berth uses of the kernel, with the first Linux that has it and what is without.
const KERNEL: [((u32, u32), &str, bool); 4] = [
    ((5, 3), "pidfd_open: no process can be watched without", true),
    ((5, 9), "close_range: descriptors are closed one by one", false),
    ((5, 12), "mount_setattr: no volumes in pods with a user namespace of their own", false),
    ((5, 14), "cgroup.kill and core scheduling: processes are killed one by one", false),
];
/// Namespaces that containers have.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Controllers without which limits are not kept.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// All of it; `sockets` are the directories of the shims' own sockets.
pub(super) fn look(sockets: &[PathBuf]) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut findings = Vec::new();
    if !geteuid().is_root() {
        findings.push(
            Finding::new(Host, Warn, "doctor runs without root")
                .why("most of what it looks for is seen by root alone")
                .command("sudo containerd-shim-berth-v1 doctor"),
        );
    }
    findings.push(kernel(read("/proc/sys/kernel/osrelease").trim()));
    let namespaces = |name: &&str| Path::new("/proc/self/ns").join(name).symlink_metadata().is_ok();
    let seccomp = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    findings.extend(features(
        &NAMESPACES.into_iter().filter(namespaces).collect::<Vec<_>>(),
        &read("/proc/filesystems"),
        seccomp,
    ));
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    findings.push(cgroups(&read("/proc/self/mountinfo"), &unified));
    findings.extend(user_namespace());
    findings.extend(helpers());
    for dir in sockets {
        findings.push(directory(dir, "shims' sockets"));
    }
    findings.push(directory(&rootless::run_dir(), "management sockets"));
    findings
}

/// Whether a release as `uname -r` has it is new enough.
fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit());
    let mut next = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (next(), next()) else {
        return Finding::new(Host, Note, format!("kernel {release:?} has no number that is known"));
    };
    let what = format!("Linux {release}");
    let missing: Vec<_> = KERNEL.iter().filter(|(since, ..)| (major, minor) < *since).collect();
    let words: Vec<_> = missing.iter().map(|(_, words, _)| *words).collect();
    match missing.iter().any(|(.., must)| *must) {
        true => Finding::new(Host, Fault, what).why(format!("it lacks {}", words.join("; "))),
        false if missing.is_empty() => {
            Finding::new(Host, Ok, format!("{what} has all that berth uses"))
        }
        false => Finding::new(Host, Note, what).why(format!("it lacks {}", words.join("; "))),
    }
}

/// What the kernel was built without.
fn features(namespaces: &[&str], filesystems: &str, seccomp: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in NAMESPACES.iter().filter(|name| !namespaces.contains(name)) {
        let level = if matches!(*name, "user" | "cgroup") { Note } else { Fault };
        findings.push(Finding::new(Host, level, format!("the kernel has no {name} namespaces")));
    }
    let has =
        |name: &str| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    if !has("overlay") {
        let finding = Finding::new(Host, Note, "no overlay file system (yet)");
        findings.push(
            finding.why("containerd's usual snapshotter needs it").command("modprobe overlay"),
        );
    }
    if !seccomp {
        findings.push(Finding::new(Host, Note, "the kernel has no seccomp: profiles are not kept"));
    }
    findings
}

/// The layout of the cgroup hierarchies, from a mount table and the root's `cgroup.controllers`.
fn cgroups(mountinfo: &str, unified: &str) -> Finding {
    let (mut v1, mut v2, mut pure) = (Vec::new(), false, false);
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        match back.next() {
            Some("cgroup2") => {
                v2 = true;
                pure |= front.split(' ').nth(4) == Some("/sys/fs/cgroup");
            }
            Some("cgroup") => v1.extend(back.nth(1).unwrap_or_default().split(',')),
            _ => {}
        }
    }
    let (mode, controllers): (_, Vec<&str>) = match (v1.is_empty(), v2, pure) {
        (true, false, _) => {
            return Finding::new(Host, Fault, "no cgroup hierarchy is mounted")
                .why("runtimes refuse to make containers")
                .command("mount -t cgroup2 cgroup2 /sys/fs/cgroup");
        }
        (_, _, true) | (true, true, _) => ("cgroup v2", unified.split_whitespace().collect()),
        (false, true, false) => ("cgroup v1 and v2 (hybrid)", v1),
        (false, false, _) => ("cgroup v1", v1),
    };
    let has = |name: &&&str| controllers.contains(*name);
    let missing: Vec<_> = CONTROLLERS.iter().filter(|name| !has(name)).copied().collect();
    if missing.is_empty() {
        let mut known: Vec<_> =
            controllers.into_iter().filter(|name| is_controller(name)).collect();
        known.sort_unstable();
        known.dedup();
        return Finding::new(Host, Ok, format!("{mode}: {}", known.join(", ")));
    }
    Finding::new(Host, Warn, format!("{mode} without {}", missing.join(", ")))
        .why("limits of what is missing are refused or not kept")
        .command("cat /proc/cmdline   # cgroup_disable=… takes them away")
}

/// Among the mount options of a v1 hierarchy there are others.
fn is_controller(name: &str) -> bool {
    !matches!(name, "rw" | "ro" | "xattr" | "none" | "clone_children" | "noprefix")
        && !name.contains('=')
}

/// What a rootless host needs.
fn user_namespace() -> Option<Finding> {
    if !rootless::in_user_namespace() {
        return None;
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = Path::new("/sys/fs/cgroup").join(path);
    let given = access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
    let what = "rootless: berth runs in a user namespace";
    Some(match given {
        true => Finding::new(Host, Ok, format!("{what}, and its cgroup is delegated")),
        false => Finding::new(Host, Note, format!("{what} without a cgroup of its own"))
            .at(dir.display())
            .why("containers run without limits")
            .command("systemctl --user edit containerd   # [Service] Delegate=yes"),
    })
}

/// Programs that some containers need.
fn helpers() -> Vec<Finding> {
    let find = |name: &'static str| {
        let path = env::var_os("PATH").unwrap_or_default();
        look::bounded(move || look_up(name, &path)).and_then(Result::ok)
    };
    let mut findings = Vec::new();
    findings.push(match find("criu") {
        None => Finding::new(Host, Note, "no criu: no checkpoints").command("apt install criu"),
        Some(path) => {
            // It says more after the first line; `check` asks the kernel.
            let version = look::first_line(&path, &["--version"]).unwrap_or_else(|why| why);
            let what = format!("criu {}", version.trim_start_matches("Version: "));
            match look::first_line(&path, &["check"]) {
                Result::Ok(_) => Finding::new(Host, Ok, what).at(path.display()),
                Err(why) => Finding::new(Host, Note, what)
                    .at(path.display())
                    .why(format!("`criu check`: {why}; checkpoints will fail")),
            }
        }
    });
    findings.push(match find("fuse-overlayfs") {
        Some(path) => Finding::new(Host, Ok, "fuse-overlayfs").at(path.display()),
        None => Finding::new(
            Host,
            Note,
            "no fuse-overlayfs: only for rootless hosts whose kernel refuses overlays",
        )
        .command("apt install fuse-overlayfs"),
    });
    if let (Some(path), false) = (find("mount.fuse3"), Path::new("/dev/fuse").exists()) {
        findings.push(
            Finding::new(Host, Note, "mount.fuse3 is there, but no /dev/fuse")
                .at(path.display())
                .command("modprobe fuse"),
        );
    }
    findings
}

/// A directory whose sockets are root's alone.
fn directory(dir: &Path, what: &str) -> Finding {
    let own = dir.to_owned();
    let found = look::bounded(move || {
        own.metadata().map(|it| (it.is_dir(), it.permissions().mode(), it.uid()))
    });
    let Some(found) = found else {
        return Finding::new(Host, Fault, format!("the directory of {what} hangs"))
            .at(dir.display());
    };
    let Result::Ok((is_dir, mode, owner)) = found else {
        return Finding::new(Host, Ok, format!("{what}: none yet")).at(dir.display());
    };
    judge_directory(dir, what, (is_dir, mode & 0o777, owner), geteuid().as_raw())
}

fn judge_directory(
    dir: &Path,
    what: &str,
    (is_dir, mode, owner): (bool, u32, u32),
    own: u32,
) -> Finding {
    let named = |level, text: String| Finding::new(Host, level, text).at(dir.display());
    let quoted = super::mend::quoted(dir);
    if !is_dir {
        let finding = named(Fault, format!("{what}: there is no directory, but something else"));
        return finding.command(format!("rm {quoted}"));
    }
    if owner != own {
        let finding = named(Warn, format!("{what}: the directory belongs to user {owner}"));
        return finding.command(format!("chown {own} {quoted}"));
    }
    if mode & 0o022 != 0 {
        return named(Warn, format!("{what}: others can write (mode {mode:04o})"))
            .why("they could put sockets of their own there")
            .command(format!("chmod go-w {quoted}"));
    }
    named(Ok, format!("{what} (mode {mode:04o})"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_number() {
        let cases = [
            ("6.18.5", Ok, "all that"),
            ("5.14.0-427.el9", Ok, ""),
            ("5.10.0-28-amd64", Note, "mount_setattr"),
            ("4.18.0-513", Fault, "pidfd_open"),
            ("weird", Note, ""),
        ];
        for (release, level, part) in cases {
            let finding = kernel(release);
            assert_eq!(finding.level, level, "{release}");
            let text = format!("{} {:?}", finding.what, finding.why);
            assert!(text.contains(part), "{release}: {text}");
        }
        let without =
            features(&["mnt", "net", "pid", "ipc", "uts", "cgroup"], "nodev\toverlay\n", true);
        assert_eq!(without.iter().map(|it| it.level).collect::<Vec<_>>(), [Note]);
        let without = features(&NAMESPACES[1..2], "", false);
        assert_eq!(without.iter().map(|it| it.level).max(), Some(Fault));
    }

    #[test]
    fn cgroup_layouts_are_told_apart() {
        let v2 = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpuacct,cpu\n\
                  33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  34 31 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let hybrid = format!("{v1}35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let cases: [(&str, &str, &str, Level, &str); 5] = [
            ("v2", v2, "cpuset cpu io memory pids", Ok, "cgroup v2: cpu, cpuset, io, memory, pids"),
            ("v2 without", v2, "cpu pids", Warn, "without memory"),
            ("v1", v1, "", Ok, "cgroup v1: cpu, cpuacct, memory, pids"),
            ("hybrid", &hybrid, "", Ok, "(hybrid): cpu,"),
            ("none", "", "", Fault, "no cgroup"),
        ];
        for (name, mounts, controllers, level, part) in cases {
            let finding = cgroups(mounts, controllers);
            assert_eq!(finding.level, level, "{name}");
            assert!(finding.what.contains(part), "{name}: {}", finding.what);
        }
    }

    #[test]
    fn directories_of_sockets_are_roots_alone() {
        let cases = [
            ("good", (true, 0o700, 0), Ok),
            ("a file", (false, 0o700, 0), Fault),
            ("another's", (true, 0o700, 7), Warn),
            ("open", (true, 0o777, 0), Warn),
            ("read by all", (true, 0o755, 0), Ok),
        ];
        for (name, found, level) in cases {
            let finding = judge_directory(Path::new("/x"), "sockets", found, 0);
            assert_eq!(finding.level, level, "{name}");
            assert_eq!(finding.mend.is_some(), level != Ok, "{name}");
        }
    }
}
