//! The host's cgroup hierarchies, and which directories of theirs are a process's own.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::cgroup::file::{self, Reader};
use crate::cgroup::{Cgroup, Directory};
use crate::error::{Error, Result};
use crate::ids::Pid;

/// Where every distribution and runtime has its cgroups; what is mounted there decides the layout.
const ROOT: &str = "/sys/fs/cgroup";

/// The mounted cgroup hierarchies. They do not change while a host runs, and a mount table with a
/// thousand containers is long, so whoever lives long reads this once.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    mounts: Vec<Mount>,
}

/// One mount of a hierarchy, or of a part of one.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The controllers of a v1 hierarchy (`cpu,cpuacct`, `name=systemd`) among other mount
    /// options; `None` for v2.
    options: Option<Box<str>>,
    /// The cgroup that one sees at `target`: `/`, or a container's in its own mount namespace.
    root: PathBuf,
    target: PathBuf,
}

/// A line of `/proc/PID/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Membership<'a> {
    /// The hierarchy's controllers, empty for v2.
    controllers: &'a str,
    path: &'a str,
}

impl Hierarchies {
    /// Reads this process's mount table.
    ///
    /// # Errors
    /// [`Error::Io`] if procfs cannot be read.
    pub(crate) fn read() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let mut reader = Reader::new();
        let text = reader.list(path).map_err(Error::io("read", path))?;
        Ok(Self::parse(text.unwrap_or_default()))
    }

    /// Takes the hierarchies from a mount table in the form of `/proc/PID/mountinfo`.
    ///
    /// With cgroup2 at `/sys/fs/cgroup`, or without any v1 mount, v2 is all that counts: a v1
    /// hierarchy mounted somewhere (as some VPN clients do for `net_cls`) is not the runtimes'.
    pub(super) fn parse(mountinfo: &str) -> Self {
        let mut mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
        let unified = match mounts.iter().rfind(|mount| mount.target == Path::new(ROOT)) {
            Some(mount) => mount.options.is_none(),
            None => false,
        };
        if unified {
            mounts.retain(|mount| mount.options.is_none());
        }
        Self { mounts }
    }

    /// The cgroup that is `pid`'s own, if it has one; see [`Cgroup::of`].
    ///
    /// # Errors
    /// [`Error::Io`] if procfs cannot be read; a process that is gone has no cgroup.
    pub(crate) fn cgroup_of(&self, pid: Pid) -> Result<Option<Cgroup>> {
        let (mut reader, mut shims) = (Reader::new(), Reader::new());
        let shim = Path::new("/proc/self/cgroup");
        let shim = shims.list(shim).map_err(Error::io("read", shim))?.unwrap_or_default();
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = reader.list(&path).map_err(Error::io("read", &path))?;
        Ok(text.and_then(|text| self.own(text, shim)))
    }

    /// Which of the cgroups in `process` are not also around `shim`; both as in
    /// `/proc/PID/cgroup`.
    pub(super) fn own(&self, process: &str, shim: &str) -> Option<Cgroup> {
        let mut cgroup = Cgroup { v1: Vec::new(), v2: None };
        for member in memberships(process) {
            let around = memberships(shim).find(|own| own.controllers == member.controllers);
            // The shim in the same cgroup, or in one below: it is not the container's.
            let shared = around.is_none_or(|own| Path::new(own.path).starts_with(member.path));
            if shared || member.path.ends_with(" (deleted)") {
                continue;
            }
            let Some(path) = self.locate(member) else { continue };
            if member.controllers.is_empty() {
                cgroup.v2 = Some(path);
            } else {
                cgroup.v1.push(Directory { controllers: member.controllers.into(), path });
            }
        }
        (!cgroup.v1.is_empty() || cgroup.v2.is_some()).then_some(cgroup)
    }

    /// The cgroup at `path`, as seen from the root of the hierarchies: in every one that has such a
    /// directory. For a container whose processes are not known any more.
    pub(crate) fn existing(&self, path: &Path) -> Option<Cgroup> {
        let mut cgroup = Cgroup { v1: Vec::new(), v2: None };
        for mount in &self.mounts {
            let path = mount.target.join(path.strip_prefix("/").unwrap_or(path));
            let known = cgroup.v1.iter().any(|directory| directory.path == path);
            if known || !path.join("cgroup.procs").exists() {
                continue;
            }
            match &mount.options {
                None => cgroup.v2 = Some(path),
                Some(options) => {
                    cgroup.v1.push(Directory { controllers: options.clone(), path });
                }
            }
        }
        (!cgroup.v1.is_empty() || cgroup.v2.is_some()).then_some(cgroup)
    }

    /// Where each hierarchy in which cgroups are made is mounted, with its controllers: `None` for
    /// v2, which counts only on a host without v1.
    pub(super) fn roots(&self) -> impl Iterator<Item = (Option<&str>, &Path)> {
        let hybrid = self.mounts.iter().any(|mount| mount.options.is_some());
        let counts = move |mount: &Mount| mount.options.is_some() == hybrid;
        self.mounts.iter().enumerate().filter_map(move |(index, mount)| {
            let again = self.mounts[..index].iter().any(|other| other.options == mount.options);
            let found = (mount.options.as_deref(), mount.target.as_path());
            (counts(mount) && !again).then_some(found)
        })
    }

    /// Puts a process into the existing cgroup `path`, as seen from the root of the hierarchies:
    /// the runc option `shim_cgroup`. On v1 that is every hierarchy that has such a cgroup.
    ///
    /// `path` is taken as absolute, and `..` does not lead out of the hierarchies.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path if no hierarchy has it; [`Error::Io`] if the kernel
    /// refuses.
    pub(crate) fn join(&self, path: &str, pid: Pid) -> Result<()> {
        let relative = clean(path);
        let mut joined = false;
        for (index, mount) in self.mounts.iter().enumerate() {
            if self.mounts[..index].iter().any(|earlier| earlier.options == mount.options) {
                continue; // the same hierarchy again
            }
            let procs = mount.target.join(&relative).join("cgroup.procs");
            let done = file::write(&procs, &pid.to_string());
            match done {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => {
                    done.map_err(Error::io("move the shim to its cgroup by writing", &procs))?;
                    joined = true;
                }
            }
        }
        if joined {
            return Ok(());
        }
        Err(Error::Invalid(format!("shim cgroup {path:?} does not exist: create it first")))
    }

    /// Whether `dir` is a hierarchy's root, a cgroup in `shim` (as in `/proc/PID/cgroup`), or around
    /// one of these.
    pub(super) fn is_around(&self, dir: &Path, shim: &str) -> bool {
        let own = memberships(shim).filter_map(|member| self.locate(member));
        let roots = self.mounts.iter().map(|mount| mount.target.clone());
        own.chain(roots).any(|inner| inner.starts_with(dir))
    }

    /// The directory of a cgroup; `None` if it is not visible here, or is all that is.
    fn locate(&self, member: Membership<'_>) -> Option<PathBuf> {
        let path = Path::new(member.path);
        if path.components().any(|part| part == Component::ParentDir) {
            return None; // outside of our cgroup namespace
        }
        // Of several mounts of a hierarchy the first is the system's; later ones are for somebody.
        let mounts = self.mounts.iter().filter(|mount| mount.has(member.controllers));
        mounts
            .filter_map(|mount| Some((mount, path.strip_prefix(&mount.root).ok()?)))
            .find(|(_, below)| !below.as_os_str().is_empty())
            .map(|(mount, below)| mount.target.join(below))
    }
}

impl Mount {
    /// Whether this is a mount of the hierarchy with these controllers. A hierarchy's controllers
    /// are in no other one, so the first of them is enough; their order may differ.
    fn has(&self, controllers: &str) -> bool {
        match (&self.options, controllers.split(',').next()) {
            (None, _) => controllers.is_empty(),
            (Some(options), Some(first)) => options.split(',').any(|option| option == first),
            (Some(_), None) => false,
        }
    }
}

/// A line of `/proc/PID/mountinfo`, if it is about a cgroup hierarchy.
fn mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut back = back.split(' ');
    let options = match back.next()? {
        "cgroup2" => None,
        "cgroup" => Some(back.nth(1)?.into()),
        _ => return None,
    };
    let mut front = front.split(' ').skip(3);
    let (root, target) = (front.next()?, front.next()?);
    Some(Mount { options, root: unescape(root).into(), target: unescape(target).into() })
}

/// A mount table's path: blank, tab, newline and backslash are there as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

/// The lines of `/proc/PID/cgroup`.
fn memberships(text: &str) -> impl Iterator<Item = Membership<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some(Membership { controllers: fields.next()?, path: fields.next()? })
    })
}

/// `path` without a leading slash, and with `.` and `..` resolved as if it stood at the root.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:1 - cgroup cgroup rw,cpuacct,cpu
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
garbage
36 31 - cgroup
";
    const UNIFIED: &str = "\
30 23 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
40 23 0:40 / /run/vpn/net_cls rw - cgroup net_cls rw,net_cls
";
    const INSIDE: &str = "\
33 31 0:30 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:30 / /mnt/the\\040host rw - cgroup cgroup rw,memory
";

    fn found(mounts: &str, process: &str, shim: &str) -> Vec<String> {
        let Some(cgroup) = Hierarchies::parse(mounts).own(process, shim) else { return vec![] };
        let v1 = cgroup.v1.iter().map(|dir| format!("{}={}", dir.controllers, dir.path.display()));
        let v2 = cgroup.v2.iter().map(|dir| format!("v2={}", dir.display()));
        v1.chain(v2).collect()
    }

    #[test]
    fn a_cgroup_is_the_containers_only_if_the_shim_is_not_in_it() {
        let hybrid_shim = "3:cpu,cpuacct:/\n2:memory:/shim\n1:name=systemd:/a/b\n0::/\n";
        let cases: &[(&str, &str, &str, &str, &[&str])] = &[
            (
                "hybrid",
                HYBRID,
                hybrid_shim,
                "3:cpu,cpuacct:/c\n2:memory:/c:d\n1:name=systemd:/a/b/c\n0::/c\n",
                &[
                    "cpu,cpuacct=/sys/fs/cgroup/cpu,cpuacct/c",
                    "memory=/sys/fs/cgroup/memory/c:d",
                    "name=systemd=/sys/fs/cgroup/systemd/a/b/c",
                    "v2=/sys/fs/cgroup/unified/c",
                ],
            ),
            (
                "root, shim's own, the shim's parent: refused one by one",
                HYBRID,
                hybrid_shim,
                "3:cpu,cpuacct:/\n2:memory:/shim\n1:name=systemd:/a\n0::/c\n",
                &["v2=/sys/fs/cgroup/unified/c"],
            ),
            (
                "a name that only begins alike",
                HYBRID,
                hybrid_shim,
                "2:memory:/shi\n1:name=systemd:/a/bc\n",
                &["memory=/sys/fs/cgroup/memory/shi", "name=systemd=/sys/fs/cgroup/systemd/a/bc"],
            ),
            ("all refused", HYBRID, hybrid_shim, "2:memory:/shim\n0::/\n", &[]),
            ("not mounted", HYBRID, "5:pids:/", "5:pids:/c\n", &[]),
            ("the shim's is unknown", HYBRID, "", "2:memory:/c\n", &[]),
            ("removed", UNIFIED, "0::/s", "0::/c (deleted)\n", &[]),
            ("unified", UNIFIED, "0::/s", "0::/c/d\n", &["v2=/sys/fs/cgroup/c/d"]),
            ("a stray v1", UNIFIED, "1:net_cls:/\n0::/s", "1:net_cls:/c\n0::/s\n", &[]),
            ("unified, same", UNIFIED, "0::/s", "0::/s\n", &[]),
            ("unified, below the shim", UNIFIED, "0::/s", "0::/s/c\n", &["v2=/sys/fs/cgroup/s/c"]),
            ("outside of the namespace", UNIFIED, "0::/", "0::/../c\n", &[]),
            (
                "in a container",
                INSIDE,
                "2:memory:/docker/abc/s",
                "2:memory:/docker/abc/c\n",
                &["memory=/sys/fs/cgroup/memory/c"],
            ),
            (
                "in a container, seen through another mount",
                INSIDE,
                "2:memory:/docker/abc/s",
                "2:memory:/docker/other\n",
                &["memory=/mnt/the host/docker/other"],
            ),
            ("garbage", HYBRID, hybrid_shim, "\n::\nx\n1:\n", &[]),
        ];
        for (name, mounts, shim, process, expected) in cases {
            assert_eq!(&found(mounts, process, shim), expected, "{name}");
        }
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchies() {
        let cases = [
            ("/a/b", "a/b"),
            ("a//b/", "a/b"),
            ("/a/./b", "a/b"),
            ("/a/../b", "b"),
            ("/../../b", "b"),
            ("..", ""),
            ("/", ""),
            ("", ""),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path), Path::new(expected), "{path:?}");
        }
    }

    #[test]
    fn joining_needs_a_cgroup_that_exists_in_any_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |name: &str, options: &str| {
            format!("1 1 0:1 / {}/{name} rw - {options} rw,{name}\n", dir.path().display())
        };
        let text = mount("cpu", "cgroup x") + &mount("pids", "cgroup x");
        let hierarchies = Hierarchies::parse(&text);
        std::fs::create_dir_all(dir.path().join("cpu")).unwrap();
        std::fs::create_dir_all(dir.path().join("pids/shims")).unwrap();
        let procs = dir.path().join("pids/shims/cgroup.procs");
        std::fs::write(&procs, "").unwrap();
        let pid = Pid::new(7).unwrap();
        hierarchies.join("/../shims/", pid).unwrap();
        assert_eq!(std::fs::read_to_string(&procs).unwrap(), "7");
        let error = hierarchies.join("/none", pid).unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("/none")), "{error}");
    }
}
