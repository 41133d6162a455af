//! An OCI runtime that notes how it is called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A program that notes each call and lets runc do the work.
pub(crate) struct Recorder {
    pub(crate) program: PathBuf,
    log: PathBuf,
}

/// A call of a [`Recorder`].
#[derive(Debug)]
pub(crate) struct Call {
    /// The environment variable `BERTH_TEST`.
    pub(crate) variable: String,
    pub(crate) args: Vec<String>,
}

impl Recorder {
    /// Writes the program as `dir`/`name`. It keeps its first `own` arguments from runc.
    pub(crate) fn write(dir: &Path, name: &str, own: usize) -> Self {
        let (program, log) = (dir.join(name), dir.join(format!("{name}.log")));
        let script = format!(
            "#!/bin/sh\n\
             {{ printf '%s\\037' \"$BERTH_TEST\" \"$@\"; echo; }} >>{log}\n\
             shift {own}\n\
             exec runc \"$@\"\n",
            log = log.display(),
        );
        fs::create_dir_all(dir).unwrap();
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { program, log }
    }

    /// The calls for container `id`.
    pub(crate) fn calls(&self, id: &str) -> Vec<Call> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let calls = log.lines().map(|line| {
            let mut words = line.trim_end_matches('\u{1f}').split('\u{1f}').map(str::to_owned);
            Call { variable: words.next().unwrap(), args: words.collect() }
        });
        calls.filter(|call| call.args.iter().any(|word| word == id)).collect()
    }

    /// The subcommands that it was called with for container `id`.
    #[track_caller]
    pub(crate) fn commands(&self, id: &str) -> Vec<String> {
        let known = ["create", "start", "exec", "kill", "delete"];
        let command = |call: Call| call.args.into_iter().find(|word| known.contains(&&**word));
        self.calls(id).into_iter().filter_map(command).collect()
    }
}
