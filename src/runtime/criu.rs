//! CRIU, which a runtime runs for a checkpoint or a restore: how it is found, what it is told on the
//! runtime's head, and what it says when it fails.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::table::look_up;
use super::{Call, Runtime, failure, help};
use crate::bundle::Scratch;
use crate::error::{Error, Result};
use crate::rootless;

/// The variable that names CRIU's configuration file.
const CONFIG: &str = "CRIU_CONFIG_FILE";
/// The directory in the bundle whose `criu` is the configured program.
const PROGRAMS: &str = "criu-program";
/// How long `criu check` may take.
const CHECK: Duration = Duration::from_secs(5);
/// How much of a log's end is looked at.
const LOG_LIMIT: u64 = 256 * 1024;
/// How many bytes of a log's errors are told.
const TOLD: usize = 1024;

/// The environment of one command, and the files that it names.
pub(super) struct Setup {
    pub(super) env: Vec<(String, String)>,
    _config: Option<Scratch>,
    _programs: Option<Programs>,
}

impl Setup {
    /// Lets the runtime find the configured program, and CRIU the `lines` of configuration.
    ///
    /// # Errors
    /// [`Error::NoCriu`] if the configured program is not there; [`Error::Io`].
    pub(super) fn new(runtime: &Runtime, bundle: &Path, lines: &str) -> Result<Self> {
        let mut env = runtime.env.clone();
        let config = match lines {
            "" => None,
            lines => {
                // CRIU reads one file of this name, so that of the host comes first in ours.
                let theirs = variable(runtime, CONFIG).map(fs::read).transpose();
                let mut text = theirs.unwrap_or_default().unwrap_or_default();
                text.extend(format!("\n{lines}").into_bytes());
                let file = Scratch::write(bundle.join("criu.conf"), &text)?;
                env.push((CONFIG.into(), file.path().to_string_lossy().into_owned()));
                Some(file)
            }
        };
        let programs = match runtime.criu_path.as_str() {
            "" => None,
            _ => {
                let programs = Programs::new(bundle, &program(runtime)?)?;
                let mut path = OsString::from(&programs.0);
                // An empty one after a colon would be the working directory.
                if let Some(rest) = variable(runtime, "PATH").filter(|rest| !rest.is_empty()) {
                    path.push(":");
                    path.push(rest);
                }
                env.push(("PATH".into(), path.to_string_lossy().into_owned()));
                Some(programs)
            }
        };
        Ok(Self { env, _config: config, _programs: programs })
    }
}

/// A directory of one program, removed with it. Newer runtimes know no option for CRIU's path, and
/// take the first `criu` on PATH; older ones do so without the option.
struct Programs(PathBuf);

impl Programs {
    fn new(bundle: &Path, criu: &Path) -> Result<Self> {
        let dir = bundle.join(PROGRAMS);
        let _ = fs::remove_dir_all(&dir); // a killed daemon's
        DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("make", &dir))?;
        let link = dir.join("criu");
        let programs = Self(dir);
        symlink(criu, &link).map_err(Error::io("make", link))?;
        Ok(programs)
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // containerd removes the whole bundle
    }
}

/// What a runtime's command has in its environment.
fn variable(runtime: &Runtime, name: &str) -> Option<OsString> {
    let own = runtime.env.iter().rev().find(|(key, _)| key == name);
    own.map(|(_, value)| value.into()).or_else(|| env::var_os(name))
}

/// The criu program that the runtime finds.
fn program(runtime: &Runtime) -> Result<PathBuf> {
    let path = variable(runtime, "PATH").unwrap_or_default();
    let (name, whose) = match runtime.criu_path.as_str() {
        "" => ("criu", ""),
        name => (name, ", which `criu_path` names"),
    };
    look_up(name, &path).map_err(|why| {
        Error::NoCriu(format!(
            "{name:?}{whose}: {why}; install CRIU, or set `criu_path` of the runtime in \
             /etc/berth/config.toml"
        ))
    })
}

/// Where CRIU writes what it does in a runtime's `command`.
fn log(command: &str, work: &Path) -> PathBuf {
    work.join(if command == "checkpoint" { "dump.log" } else { "restore.log" })
}

/// Removes the log of an earlier `command`, which CRIU overwrites, so that a runtime which fails before it
/// runs CRIU is not explained by that.
pub(super) fn forget(command: &str, work: &Path) {
    let _ = fs::remove_file(log(command, work)); // most often there is none
}

/// Says of a command that failed what CRIU said, and what is missing on the host.
pub(super) async fn explain(
    runtime: &Runtime,
    call: &Call<'_>,
    error: Error,
    work: &Path,
) -> Error {
    let Error::Runtime { runtime: name, command, status, mut message } = error else {
        return error;
    };
    if failure::has_no_command(&message) {
        let why = format!(
            "it has no `{command}` ({message}): take a runtime that is built with CRIU, such as runc"
        );
        return Error::NoRuntime { name, why };
    }
    let log = log(command, work);
    let said = errors(&log);
    if !said.is_empty() {
        message += &format!("; {}: {said}", log.display());
    }
    match program(runtime) {
        Err(missing) if said.is_empty() && failure::lacks_criu(&message) => return missing,
        Err(_) => {} // this runtime needs no program
        Ok(criu) => {
            // It tells what the kernel lacks, and nothing of this container.
            let args = [OsStr::new("check").to_owned()];
            let cwd = call.bundle.dir();
            let checked = help(call.reaper, "check", &criu, &args, cwd, CHECK).await;
            if let Err(Error::Runtime { message: words, .. }) = checked {
                let words = last(words.lines());
                message +=
                    &format!("; this host lacks what `{} check` says: {words}", criu.display());
            }
        }
    }
    if !geteuid().is_root() || rootless::in_user_namespace() {
        message += "; CRIU needs the host's root, and berth runs without";
    }
    Error::Runtime { runtime: name, command, status, message }
}

/// The last errors in a log of CRIU's.
fn errors(log: &Path) -> String {
    let mut text = Vec::new();
    let Ok(mut file) = File::open(log) else { return String::new() };
    let length = file.metadata().map_or(0, |found| found.len());
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT))); // else all of it
    let _ = file.take(LOG_LIMIT).read_to_end(&mut text); // what was read so far will do
    let text = String::from_utf8_lossy(&text);
    last(text.lines().filter(|line| line.contains("Error (")))
}

/// As many lines from the end as may be told, in their order.
fn last<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> String {
    let mut told = Vec::new();
    let mut left = TOLD;
    for line in lines.rev().map(str::trim).filter(|line| !line.is_empty()) {
        let Some(rest) = left.checked_sub(line.len() + 2) else { break };
        left = rest;
        told.push(line);
    }
    told.reverse();
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let long = "(00.1) Error (x.c:1): y\n".repeat(100_000);
        let cases = [
            ("none", "(00.1) Dumping\n(00.2) Warn  (x.c:1): w\n".to_owned(), "".to_owned()),
            (
                "two",
                "(00.1) Error (a.c:1): a\n(00.2) b\n(00.3) Error (c.c:1): c\n".to_owned(),
                "(00.1) Error (a.c:1): a; (00.3) Error (c.c:1): c".to_owned(),
            ),
            ("many", long, ["(00.1) Error (x.c:1): y"; 40].join("; ")),
        ];
        for (name, text, expected) in cases {
            fs::write(&log, text).unwrap();
            assert_eq!(errors(&log), expected, "{name}");
        }
        assert_eq!(errors(&dir.path().join("missing")), "");
    }

    #[test]
    fn the_configured_program_is_the_first_criu_on_path() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = |criu_path: &str| Runtime {
            path: "/usr/bin/runc".into(),
            args: Vec::new(),
            env: [("PATH".to_owned(), "/p".to_owned())].into(),
            root: "/r".into(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
            criu_path: criu_path.into(),
            deadlines: crate::config::Deadlines::default(),
            inner_pids: false,
        };
        let bundle = dir.path();
        let plain = Setup::new(&runtime(""), bundle, "").unwrap();
        assert_eq!(plain.env, runtime("").env);
        let setup = Setup::new(&runtime("/bin/true"), bundle, "external x").unwrap();
        let programs = bundle.join(PROGRAMS);
        assert_eq!(fs::read_link(programs.join("criu")).unwrap(), Path::new("/bin/true"));
        let path = format!("{}:/p", programs.display());
        let config = bundle.join("criu.conf");
        assert!(setup.env.contains(&("PATH".into(), path)), "{:?}", setup.env);
        assert!(setup.env.contains(&(CONFIG.into(), config.display().to_string())));
        assert_eq!(fs::read_to_string(&config).unwrap(), "\nexternal x");
        drop(setup);
        assert_eq!(fs::read_dir(bundle).unwrap().count(), 0);
        let missing = Setup::new(&runtime("/no/criu"), bundle, "").err().unwrap();
        assert!(matches!(missing, Error::NoCriu(_)), "{missing}");
    }
}
