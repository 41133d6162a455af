//! The machine that the tests run on: what has to be changed for them, and what they left on it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;

/// Version 1 hierarchies for the controllers that a hybrid layout left in version 2, where crun
/// refuses to run, and for those of version 1 that are mounted nowhere, where the stock shim finds
/// no metrics. Undone when dropped.
#[must_use = "dropping the guard unmounts the hierarchies"]
pub(crate) struct PlainHierarchies(Vec<PathBuf>);

impl PlainHierarchies {
    pub(crate) fn mount() -> Self {
        let top = Path::new("/sys/fs/cgroup");
        let mut mounted = Self(Vec::new());
        if !top.join("unified").is_dir() {
            return mounted;
        }
        let mut controllers =
            fs::read_to_string(top.join("unified/cgroup.controllers")).unwrap_or_default();
        for line in fs::read_to_string("/proc/self/cgroup").unwrap().lines() {
            let names = line.split(':').nth(1).unwrap();
            // A named hierarchy has no controller, and two that share one are mounted by distributions.
            if !names.contains(['=', ',']) {
                controllers.push_str(&format!(" {names}"));
            }
        }
        for controller in controllers.split_whitespace() {
            let target = top.join(controller);
            if target.join("cgroup.procs").exists() {
                continue;
            }
            fs::create_dir_all(&target).unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "cgroup", "-o", controller, "cgroup"]).arg(&target);
            command::run(&mut mount, b"").ok();
            mounted.0.push(target);
        }
        mounted
    }
}

impl Drop for PlainHierarchies {
    fn drop(&mut self) {
        for target in &self.0 {
            // Whatever is in there came with the mount. The kernel keeps the hierarchy, unmounted,
            // as long as one is left.
            remove_children(target);
            command::run(Command::new("umount").arg(target), b"");
            let _ = fs::remove_dir(target);
        }
    }
}

/// Removes the cgroups below `cgroup` that have no process, from the leaves up.
pub(crate) fn remove_children(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok) {
        if entry.path().is_dir() {
            remove_children(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether this machine forwards packets, which pods with an own network turn on. Undone when dropped.
#[must_use = "dropping the guard sets it back"]
pub(crate) struct Forwarding(String);

impl Forwarding {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";

    pub(crate) fn remember() -> Self {
        Self(fs::read_to_string(Self::FILE).unwrap())
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if fs::read_to_string(Self::FILE).is_ok_and(|now| now != self.0) {
            let _ = fs::write(Self::FILE, &self.0);
        }
    }
}

/// Writes a program that calls crun, notes its arguments in `dir`/crun.log, and for crun 1.8 (Debian
/// 12), which has no such command, tells the feature that containerd asks for; it also lowers an
/// `ociVersion` that this crun does not know though it knows all that the tests use.
pub(crate) fn write_crun(dir: &Path) -> PathBuf {
    let script = format!(
        "#!/bin/sh\n\
         echo \"$*\" >>{dir}/crun.log\n\
         [ \"$1\" != features ] || {{ echo '{features}'; exit; }}\n\
         last=\n\
         for word; do\n\
         \t[ \"$last\" != --bundle ] || sed -i 's/\"ociVersion\":\"[^\"]*\"/\"ociVersion\":\"1.0.2\"/' \"$word/config.json\"\n\
         \tlast=$word\n\
         done\n\
         exec crun \"$@\"\n",
        dir = dir.display(),
        features = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.0.2","linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#,
    );
    let path = dir.join("crun");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A process, as far as the tests ask.
pub(crate) struct Process {
    pub(crate) pid: i32,
    command: String,
    environment: String,
    cwd: String,
    cgroups: String,
}

impl Process {
    /// Whether `needle` is in its arguments, environment, working directory or cgroups.
    pub(crate) fn mentions(&self, needle: &str) -> bool {
        [&self.command, &self.environment, &self.cwd, &self.cgroups]
            .iter()
            .any(|text| text.contains(needle))
    }

    pub(crate) fn describe(&self) -> String {
        format!("process {} ({})", self.pid, self.command.trim())
    }
}

/// Every process but zombies, which are as good as gone.
pub(crate) fn processes() -> Vec<Process> {
    let text = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    });
    pids.filter(|(_, dir)| stat_field(dir, 0).is_none_or(|state| state != "Z"))
        .map(|(pid, dir)| Process {
            pid,
            command: text(dir.join("cmdline")),
            environment: text(dir.join("environ")),
            cwd: fs::read_link(dir.join("cwd")).unwrap_or_default().display().to_string(),
            cgroups: text(dir.join("cgroup")),
        })
        .collect()
}

/// The parent of `pid`.
pub(crate) fn parent(pid: i32) -> i32 {
    stat_field(&PathBuf::from(format!("/proc/{pid}")), 1).unwrap().parse().unwrap()
}

/// Field `index` of /proc/PID/stat, counted from the state, which follows the name in brackets.
fn stat_field(dir: &Path, index: usize) -> Option<String> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(index).map(str::to_owned)
}

/// The mount points whose path contains `needle`, the innermost first.
pub(crate) fn mounts(needle: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<_> =
        targets.filter(|path| path.contains(needle)).map(str::to_owned).collect();
    found.reverse();
    found
}

/// The directories of `path` in every cgroup hierarchy.
pub(crate) fn cgroups(path: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mut roots = vec![top.to_owned()];
    roots.extend(fs::read_dir(top).unwrap().map(|entry| entry.unwrap().path()));
    roots.into_iter().map(|root| root.join(path)).filter(|path| path.is_dir()).collect()
}

/// Where OCI runtimes, under any of the shims, keep the state of a container.
pub(crate) fn runtime_states(namespace: &str, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in
        ["/run/containerd/runc", "/run/containerd/crun", "/run/berth", "/run/runc", "/run/crun"]
    {
        found.push(Path::new(root).join(namespace).join(id));
        found.push(Path::new(root).join(id));
    }
    found.retain(|path| path.exists());
    found
}

/// Sends a signal by name ("KILL") to a process; that it has ended already is no failure.
pub(crate) fn signal(pid: i32, name: &str) {
    command::run(Command::new("kill").args(["-s", name, &pid.to_string()]), b"");
}

/// Removes what runtimes leave of a namespace once its containers are gone: empty directories.
pub(crate) fn remove_namespace(namespace: &str) {
    for path in cgroups(namespace) {
        let _ = fs::remove_dir(path);
    }
    for path in runtime_states(namespace, "") {
        let _ = fs::remove_dir(path);
    }
}

/// Whether `pid` runs; a zombie does not.
pub(crate) fn exists(pid: i32) -> bool {
    let state = stat_field(&PathBuf::from(format!("/proc/{pid}")), 0);
    state.is_some_and(|state| state != "Z")
}
