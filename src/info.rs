//! `-info`: what berth is, and what its OCI runtime can do. containerd 2.3 asks before the first
//! task of a runtime, and any version before it passes idmapped mounts to it.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::config::{Environment, Request};
use crate::error::{Error, Result};
use crate::runtime::table::{self, Chosen};
use crate::wire::options;
use crate::{NAME, config, input};

/// The type under which containerd knows the JSON that `runc features` prints.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// For the runtime's `features`; without an answer by then it counts as having none.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer; runc's has some 10 KiB.
const LIMIT: usize = 1 << 20;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit; the build sets it where it knows.
const REVISION: Option<&str> = option_env!("BERTH_REVISION");

/// What `-version` prints.
pub(crate) fn version() -> String {
    format!("berth {VERSION} ({})\n", REVISION.unwrap_or("unknown revision"))
}

/// Reads options (an `Any`, or nothing) from stdin; returns a `RuntimeInfo` for stdout.
///
/// # Errors
/// [`Error::Invalid`] for options that are none; [`Error::NoRuntime`] if the runtime that they
/// name is missing. A runtime that is not named and not there, or has no `features` command,
/// leaves the features out.
pub(crate) fn run() -> Result<Vec<u8>> {
    let broken = |error| Error::Invalid(format!("broken options: {error}"));
    let any = Any::parse_from_bytes(&input::read()?).map_err(broken)?;
    let options = options::decode(&any)?.unwrap_or_default();
    let environment = Environment::read();
    let config =
        config::load(Request { annotation: None, options: &options, environment: &environment })?;
    let options = options.or(&config.options);
    let runtime = match table::choose(&config, &options, None) {
        Err(Error::NoRuntime { .. }) if options.binary_name.is_empty() => None,
        found => Some(found?),
    };
    let features = runtime.and_then(|runtime| features(&runtime, TIMEOUT));
    let version = RuntimeVersion {
        version: VERSION.into(),
        revision: REVISION.unwrap_or_default().into(),
        ..RuntimeVersion::default()
    };
    let info = RuntimeInfo {
        name: NAME.into(),
        version: MessageField::some(version),
        options: if any == Any::default() { None } else { Some(any) }.into(),
        features: features
            .map(|value| Any { type_url: FEATURES.into(), value, ..Any::default() })
            .into(),
        ..RuntimeInfo::default()
    };
    info.write_to_bytes().map_err(|error| Error::Invalid(format!("cannot answer: {error}")))
}

/// The JSON object that `RUNTIME features` prints, or `None` if it prints none in time.
pub(crate) fn features(runtime: &Chosen<'_>, timeout: Duration) -> Option<Vec<u8>> {
    let mut command = Command::new(&runtime.path);
    command.args(&runtime.entry.args).envs(&runtime.entry.env);
    let output = output(command.arg("features"), timeout).ok()?;
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&output);
    object.is_ok().then_some(output)
}

/// What a command prints, if it ends well in time; it and all that it has started are killed otherwise.
///
/// # Errors
/// It cannot be run; `TimedOut`; of kind `Other` if it fails.
pub(crate) fn output(command: &mut Command, timeout: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut group = Group(command.process_group(0).spawn()?);
    let pipe = group.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let output = read_until(pipe, deadline)?;
    match group.ends_well(deadline) {
        true => Ok(output),
        false if Instant::now() >= deadline => Err(io::ErrorKind::TimedOut.into()),
        false => Err(io::Error::other("it failed")),
    }
}

fn read_until(mut pipe: ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut chunk = [0; 16384];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut chunk)? {
            0 => return Ok(output),
            count if output.len() + count > LIMIT => return Err(io::ErrorKind::FileTooLarge.into()),
            count => output.extend_from_slice(&chunk[..count]),
        }
    }
}

/// A command and all that it starts; killed when dropped.
struct Group(Child);

impl Group {
    /// Waits for success; the output has ended, so this takes no time unless something is wrong.
    fn ends_well(&mut self, deadline: Instant) -> bool {
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group outlives its leader while anything else is in it; ESRCH is the usual case.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use crate::config::{Deadlines, Entry};

    fn runtime(path: &Path) -> Chosen<'static> {
        let entry = Entry::plain("runtime", &Deadlines::default());
        Chosen { entry: Cow::Owned(entry), path: path.into() }
    }

    #[test]
    fn features_are_a_json_object_in_time_or_nothing() {
        let cases = [
            ("object", "echo '{\"ociVersionMin\": \"1.0.0\"}'", true),
            ("no such command", "echo unknown >&2; exit 1", false),
            ("object and failure", "echo '{}'; exit 1", false),
            ("usage text", "echo usage", false),
            ("array", "echo '[]'", false),
            ("nothing", "true", false),
            ("hangs", "sleep 60", false),
            ("hangs with its output closed", "exec >&-; sleep 60", false),
            ("endless", "exec yes", false),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (name, script, expected) in cases {
            let path = dir.path().join(name.replace(' ', "-"));
            fs::write(&path, format!("#!/bin/sh\n[ $1 = features ] || exit 9\n{script}\n"))
                .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let begin = Instant::now();
            let found = features(&runtime(&path), Duration::from_secs(1));
            assert_eq!(found.is_some(), expected, "{name}");
            assert!(begin.elapsed() < Duration::from_secs(3), "{name}");
        }
        assert!(features(&runtime(&dir.path().join("missing")), TIMEOUT).is_none());
    }
}
