//! A bundle: every file that berth reads or writes in one.

mod pod;
mod shared;
mod spec;

pub(crate) use pod::PodState;
pub(crate) use shared::SharedMount;
pub(crate) use spec::{RESERVED, Spec};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::ids::{ExecId, Pid};
use crate::runtime::Runtime;

/// The state file; its name begins like no file of containerd or of a runtime.
const STATE: &str = "berth.json";
/// The version of [`State`] that this build writes. A reader takes what it knows of any version.
const STATE_VERSION: u32 = 1;
/// What is read of a pid file, in bytes: more than any pid and its end of line.
const PID_LIMIT: u64 = 32;

/// The fields of config.json, as they are written.
type Config = BTreeMap<String, Box<RawValue>>;

/// A directory with `config.json`, made and removed by containerd ([OCI bundle]).
///
/// [OCI bundle]: https://github.com/opencontainers/runtime-spec/blob/main/bundle.md
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    dir: PathBuf,
}

/// What `delete` must know when the daemon was killed; written before the first side effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`STATE_VERSION`] of the writer.
    pub(crate) version: u32,
    /// The pod: containers of one daemon have the same group.
    pub(crate) group: String,
    /// The daemon's socket, which tells whether the daemon lives.
    pub(crate) socket: PathBuf,
    /// The runtime as it was resolved at Create; a configuration that changes later is no matter.
    pub(crate) runtime: Runtime,
    /// The init process, once it is known: its pid and start time in clock ticks since boot.
    #[serde(default)]
    pub(crate) init: Option<(i32, u64)>,
    /// The container's own cgroup, once it is known.
    #[serde(default)]
    pub(crate) cgroup: Option<Cgroup>,
}

impl State {
    /// The state before the runtime has run.
    pub(crate) fn new(group: String, socket: PathBuf, runtime: Runtime) -> Self {
        Self { version: STATE_VERSION, group, socket, runtime, init: None, cgroup: None }
    }
}

impl Bundle {
    /// The bundle at `dir`.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `dir` is an absolute path to a directory.
    pub(crate) fn open(dir: &str) -> Result<Self> {
        let invalid = |why: &str| Error::Invalid(format!("invalid bundle path {dir:?}: {why}"));
        let path = PathBuf::from(dir);
        if !path.is_absolute() {
            return Err(invalid("it is not absolute"));
        }
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(Self { dir: path }),
            Ok(_) => Err(invalid("it is not a directory")),
            Err(error) => Err(invalid(&error.to_string())),
        }
    }

    /// The bundle's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the rootfs is mounted.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Where the runtime writes the init process's pid; `delete` of other shims reads it too.
    pub(crate) fn init_pid_file(&self) -> PathBuf {
        self.dir.join("init.pid")
    }

    /// Where the runtime writes an exec process's pid; unlike other shims' `<id>.pid` no exec id
    /// can make it the init process's.
    pub(crate) fn exec_pid_file(&self, id: &ExecId) -> PathBuf {
        self.dir.join(format!("exec-{}.pid", id.as_str()))
    }

    /// Where the description of an exec process is handed to the runtime.
    pub(crate) fn exec_process_file(&self, id: &ExecId) -> PathBuf {
        self.dir.join(format!("exec-{}.json", id.as_str()))
    }

    /// Reads config.json.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Invalid`] if it is not what OCI says.
    pub(crate) fn spec(&self) -> Result<Spec> {
        let path = self.dir.join("config.json");
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
    }

    /// Adds annotations to config.json, in the place of those with the same names, and removes all
    /// others that only berth may write; every other value stays as it is written. The file is
    /// replaced atomically.
    ///
    /// # Errors
    /// As [`spec`](Self::spec); the old file is then still there.
    pub(crate) fn annotate(&self, added: &BTreeMap<String, String>) -> Result<()> {
        self.rewrite(|config| {
            let mut annotations: BTreeMap<String, String> = match config.get("annotations") {
                Some(old) => serde_json::from_str::<Option<_>>(old.get())?,
                None => None,
            }
            .unwrap_or_default();
            annotations.retain(|name, _| !spec::is_reserved(name));
            annotations.extend(added.clone());
            config.insert("annotations".into(), serde_json::value::to_raw_value(&annotations)?);
            Ok(())
        })
    }

    /// Changes config.json; values that `change` leaves alone stay as they are written.
    fn rewrite(&self, change: impl FnOnce(&mut Config) -> serde_json::Result<()>) -> Result<()> {
        let path = self.dir.join("config.json");
        let invalid = |error| Error::Invalid(format!("{}: {error}", path.display()));
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut spec: Config = serde_json::from_str(&text).map_err(invalid)?;
        change(&mut spec).map_err(invalid)?;
        let new = self.dir.join(".config.json.new");
        let _new = Scratch::write(new.clone(), &serde_json::to_vec(&spec).map_err(invalid)?)?;
        fs::metadata(&path)
            .and_then(|old| fs::set_permissions(&new, old.permissions()))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(Error::io("replace", &path))
    }

    /// Replaces the state file atomically.
    ///
    /// # Errors
    /// [`Error::Io`]; the old state is then still there.
    pub(crate) fn save(&self, state: &State) -> Result<()> {
        self.replace_state(state)
    }

    fn replace_state(&self, state: &impl Serialize) -> Result<()> {
        let path = self.dir.join(STATE);
        let new = self.dir.join(".berth.json.new");
        let text = serde_json::to_vec(state).map_err(|error| Error::Io {
            action: "encode",
            path: path.clone(),
            source: error.into(),
        })?;
        write(&new, &text)?; // what it says of the runtime's environment may be secret
        fs::rename(&new, &path).map_err(Error::io("replace", &path))
    }

    /// The state file, or `None` if there is none or it makes no sense: a daemon that was killed
    /// may not have got so far.
    pub(crate) fn state(&self) -> Option<State> {
        self.read_state()
    }

    fn read_state<T: for<'de> Deserialize<'de>>(&self) -> Option<T> {
        let text = fs::read(self.dir.join(STATE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes the files that berth made, for a Create that failed and after Delete; missing ones
    /// are fine.
    pub(crate) fn remove_state(&self) {
        for name in [STATE, ".berth.json.new", "init.pid"] {
            let _ = fs::remove_file(self.dir.join(name)); // containerd removes the whole bundle
        }
    }
}

/// Writes a file that only berth's own uid reads: it may hold a user's environment.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(Error::io("write", path))
}

/// Reads a pid file that a runtime wrote.
///
/// # Errors
/// [`Error::Io`] if it is missing or holds no pid.
pub(crate) fn read_pid(path: &Path) -> Result<Pid> {
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(PID_LIMIT).read_to_end(&mut text))
        .map_err(Error::io("read the runtime's pid file", path))?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().ok().and_then(Pid::new).ok_or_else(|| Error::Io {
        action: "use the runtime's pid file",
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no pid", text.trim())),
    })
}

/// What runc writes a pid to before it becomes `pid_file`. One that was killed in between leaves it, and
/// the next one does not write over it.
pub(crate) fn unfinished(pid_file: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(pid_file.file_name().unwrap_or_default());
    pid_file.with_file_name(name)
}

/// Removes what an earlier run of a runtime has left of its pid file: it must not be taken for the next
/// one's, nor stand in its way.
pub(crate) fn clear_pid_file(pid_file: &Path) {
    for stale in [pid_file, &unfinished(pid_file)] {
        let _ = fs::remove_file(stale); // most often it is not there
    }
}

/// Removes a file when dropped.
#[must_use = "dropping the guard removes the file"]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Guards `path`, which need not exist (yet).
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Writes `content` to a file that only berth's own uid reads.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is left then.
    pub(crate) fn write(path: PathBuf, content: &[u8]) -> Result<Self> {
        let scratch = Self(path);
        write(&scratch.0, content)?;
        Ok(scratch)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // most often it was never made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_added_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::open(dir.path().to_str().unwrap()).unwrap();
        let path = dir.path().join("config.json");
        let cases = [
            ("none", "{}", Some(r#"{"annotations":{"a":"1"}}"#)),
            ("null", r#"{"annotations": null}"#, Some(r#"{"annotations":{"a":"1"}}"#)),
            (
                "some, and numbers as they are written",
                r#"{"linux": {"x": 1.50, "y": 18446744073709551616, "x": 2},
                    "annotations": {"b": "2", "a": "0"}}"#,
                Some(
                    r#"{"annotations":{"a":"1","b":"2"},"linux":{"x": 1.50, "y": 18446744073709551616, "x": 2}}"#,
                ),
            ),
            ("no object", "[]", None),
            ("broken annotations", r#"{"annotations": 1}"#, None),
        ];
        for (name, text, expected) in cases {
            fs::write(&path, text).unwrap();
            let done = bundle.annotate(&BTreeMap::from([("a".into(), "1".into())]));
            assert_eq!(done.is_ok(), expected.is_some(), "{name}: {done:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), expected.unwrap_or(text), "{name}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{name}");
        }
    }

    #[test]
    fn a_half_written_state_is_no_state() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::open(dir.path().to_str().unwrap()).unwrap();
        assert!(bundle.state().is_none());
        fs::write(dir.path().join(STATE), "{\"version\":1,\"gro").unwrap();
        assert!(bundle.state().is_none());
    }
}
