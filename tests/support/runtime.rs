//! The scripted runtime: `runtime.sh` beside its control directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A copy of `runtime.sh` that one test tells what to do.
pub struct Script {
    path: PathBuf,
    control: PathBuf,
}

impl Script {
    pub(super) fn new(dir: &Path) -> Self {
        let path = dir.join("runtime.sh");
        let control = dir.join("runtime.sh.d");
        fs::create_dir(&control).unwrap();
        fs::write(control.join("real"), real()).unwrap();
        fs::write(&path, include_str!("runtime.sh")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, control }
    }

    /// Its path, for `BinaryName`.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Makes `command` behave as `mood` says; see `runtime.sh`.
    pub fn set(&self, command: &str, mood: &str) {
        let fresh = self.control.join("fresh");
        fs::write(&fresh, format!("{mood}\n")).unwrap();
        fs::rename(fresh, self.control.join(command)).unwrap();
    }

    /// Whether a command has left the file `name` in `$dir`.
    #[allow(dead_code, reason = "tests/bench has no use for it")]
    pub fn has_left(&self, name: &str) -> bool {
        self.control.join(name).exists()
    }

    /// Lets the real runtime do `command` again.
    pub fn clear(&self, command: &str) {
        fs::remove_file(self.control.join(command)).unwrap();
    }

    /// Lets the real runtime do everything again.
    pub fn reset(&self) {
        let ours = ["real", "calls"];
        for entry in fs::read_dir(&self.control).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if !ours.contains(&name.as_str())
                && !name.starts_with("last.")
                && !name.starts_with("files.")
            {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// The commands so far, in order.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.control.join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Arguments, `cwd=` and environment of the last `command`, one a line.
    pub fn last(&self, command: &str) -> Vec<String> {
        let name = self.control.join(format!("last.{command}"));
        let last = fs::read_to_string(name).unwrap_or_default();
        last.lines().map(str::to_owned).collect()
    }

    /// The descriptors that the last `command` had, one a line: number and file.
    #[allow(dead_code, reason = "tests/bench has no use for it")]
    pub fn descriptors(&self, command: &str) -> String {
        let list = fs::read_to_string(self.control.join(format!("files.{command}"))).unwrap();
        let entry = |line: &str| {
            let (start, file) = line.split_once(" -> ")?;
            Some(format!("{} {file}\n", start.rsplit(' ').next()?))
        };
        list.lines().filter_map(entry).collect()
    }

    /// Only the arguments out of what [`Script::last`] gives.
    pub fn arguments(last: &[String]) -> Vec<String> {
        last.iter().take_while(|line| !line.starts_with("cwd=")).cloned().collect()
    }
}

/// The runtime that runs the containers.
pub(super) fn real() -> String {
    std::env::var("BERTH_TEST_RUNTIME").unwrap_or_else(|_| "runc".to_owned())
}
