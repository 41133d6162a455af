//! New cgroups, for processes that no OCI runtime takes care of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::file::{Reader, write};
use crate::cgroup::hierarchy::{Hierarchies, clean};
use crate::cgroup::{Cgroup, Directory, tree};
use crate::error::{Error, Result};
use crate::ids::Pid;

impl Hierarchies {
    /// The cgroup `path`, as seen from the root of the hierarchies, whether it exists or not. On
    /// v1 and hybrid hosts that is one in every v1 hierarchy.
    pub(crate) fn at(&self, path: &Path) -> Cgroup {
        let relative = clean(&path.to_string_lossy());
        let mut cgroup = Cgroup { v1: Vec::new(), v2: None };
        for (controllers, root) in self.roots() {
            let dir = root.join(&relative);
            match controllers {
                Some(controllers) => {
                    cgroup.v1.push(Directory { controllers: controllers.into(), path: dir });
                }
                None => cgroup.v2 = Some(dir),
            }
        }
        cgroup
    }

    /// Refuses a cgroup in which a process is, in any hierarchy or nested cgroup, and those that
    /// [`Cgroup::of`] leaves out: whoever ended or removed them would hit strangers.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Io`] if that cannot be found out.
    pub(crate) fn refuse_used(&self, cgroup: &Cgroup) -> Result<()> {
        let (mut reader, own) = (Reader::new(), Path::new("/proc/self/cgroup"));
        let shim = reader.list(own).map_err(Error::io("read", own))?.unwrap_or_default();
        for dir in cgroup.directories() {
            let used = self.is_around(dir, shim) || occupied(dir)?;
            if used {
                let id = dir.display().to_string();
                return Err(Error::Exists { what: "populated cgroup", id });
            }
        }
        Ok(())
    }

    /// Makes the cgroup [`at`](Self::at) `path`, with those around it, where it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`]; what was made until then stays.
    pub(crate) fn make(&self, path: &Path) -> Result<()> {
        let relative = clean(&path.to_string_lossy());
        let parts: Vec<_> = relative.ancestors().filter(|part| *part != Path::new("")).collect();
        for (controllers, root) in self.roots() {
            for part in parts.iter().rev() {
                let dir = root.join(part);
                make_one(&dir, controllers).map_err(Error::io("make cgroup", &dir))?;
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// Moves a process here.
    ///
    /// # Errors
    /// [`Error::Io`] if one of the hierarchies refuses.
    pub(crate) fn add(&self, pid: Pid) -> Result<()> {
        for dir in self.directories() {
            let procs = dir.join("cgroup.procs");
            write(&procs, &pid.to_string())
                .map_err(Error::io("move a process to a cgroup by writing", &procs))?;
        }
        Ok(())
    }

    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|dir| &dir.path).chain(&self.v2)
    }
}

/// Whether a process is in `dir` or nested in it, also one whose pid is not known here.
fn occupied(dir: &Path) -> Result<bool> {
    let mut reader = Reader::new();
    for dir in tree::nested(dir).map_err(Error::io("list the processes of", dir))? {
        // A threaded cgroup of v2 lists threads only.
        for list in ["cgroup.procs", "cgroup.threads"] {
            let path = dir.join(list);
            let text = reader.list(&path).map_err(Error::io("read", &path))?;
            if text.is_some_and(|text| !text.trim().is_empty()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Makes one directory, unless it is there, such that processes can be in it or below it.
fn make_one(dir: &Path, controllers: Option<&str>) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => done?,
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    match controllers {
        None => enable_controllers(parent),
        Some(controllers) if controllers.split(',').any(|name| name == "cpuset") => {
            for name in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&parent.join(name), &dir.join(name))?;
            }
        }
        Some(_) => {}
    }
    Ok(())
}

/// A new v1 cpuset has no CPUs and no memory, and takes no process before it does.
fn inherit(from: &Path, to: &Path) -> io::Result<()> {
    if fs::read_to_string(to)?.trim().is_empty() {
        write(to, fs::read_to_string(from)?.trim())?;
    }
    Ok(())
}

/// Lets the cgroups in `parent` have what controllers `parent` has. Those that it cannot hand on
/// (it has processes of its own) its children do without.
fn enable_controllers(parent: &Path) {
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = write(&parent.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// The directory of a systemd slice: `a-b.slice` lies in `a.slice` ([systemd.slice]).
///
/// [systemd.slice]: https://www.freedesktop.org/software/systemd/man/latest/systemd.slice.html
pub(crate) fn slice_path(slice: &str) -> PathBuf {
    let name = match slice {
        "" => "system",
        slice => slice.strip_suffix(".slice").unwrap_or(slice),
    };
    let mut path = PathBuf::from("/");
    if name == "-" {
        return path; // the root slice
    }
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..end]));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_made_in_every_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        for name in ["cpuset", "pids", "unified"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let hybrid = format!(
            "1 1 0:1 / {root}/pids rw - cgroup x rw,pids\n1 1 0:1 / {root}/unified rw - cgroup2 x rw\n"
        );
        let v2 = format!("1 1 0:1 / {root}/unified rw - cgroup2 x rw\n");
        for (name, table, expected) in [("hybrid", hybrid, "pids"), ("v2", v2, "unified")] {
            let (hierarchies, path) = (Hierarchies::parse(&table), Path::new("/a/../b/c"));
            hierarchies.make(path).unwrap();
            let cgroup = hierarchies.at(path);
            let made = dir.path().join(expected).join("b/c");
            assert!(made.is_dir(), "{name}");
            assert_eq!(cgroup.directories().collect::<Vec<_>>(), [&made], "{name}");
        }
    }

    #[test]
    fn a_cgroup_with_processes_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let table = format!(
            "1 1 0:1 / {root}/cpu rw - cgroup x rw,cpu\n1 1 0:1 / {root}/pids rw - cgroup x rw,pids\n"
        );
        let lists = [
            ("free", "", ""),
            ("used/nested", "cgroup.procs", "7\n"),
            ("far", "cgroup.procs", "0\n"), // of another PID namespace
            ("threaded", "cgroup.threads", "7\n"),
        ];
        for (path, list, text) in lists {
            let path = dir.path().join("cpu").join(path);
            fs::create_dir_all(&path).unwrap();
            fs::create_dir_all(dir.path().join("pids")).unwrap();
            fs::write(path.join("cgroup.procs"), "").unwrap();
            if !list.is_empty() {
                fs::write(path.join(list), text).unwrap();
            }
        }
        let hierarchies = Hierarchies::parse(&table);
        let cases = [("/none", true), ("/free", true), ("/used", false), ("/far", false)];
        for (path, expected) in cases.into_iter().chain([("/threaded", false), ("/", false)]) {
            let checked = hierarchies.refuse_used(&hierarchies.at(Path::new(path)));
            assert_eq!(checked.is_ok(), expected, "{path}: {checked:?}");
            if let Err(error) = checked {
                assert!(matches!(error, Error::Exists { .. }), "{path}: {error}");
            }
        }
        let shim = "2:pids:/s/shim\n1:cpu:/\n";
        for (path, expected) in [("s", true), ("s/shim", true), ("s/shim/c", false), ("x", false)] {
            let dir = dir.path().join("pids").join(path);
            assert_eq!(hierarchies.is_around(&dir, shim), expected, "{path}");
        }
    }
}
