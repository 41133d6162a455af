//! Which runtime a container gets: its options, then the configuration, then what is installed.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bundle::Spec;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::Namespace;
use crate::runtime::Runtime;
use crate::wire::options::RuntimeOptions;

/// Tried in this order when nothing names a runtime.
const CANDIDATES: [&str; 2] = ["runc", "crun"];
/// The root of runtimes' state where the options name none, as the Go shim has it: tools that look
/// for a container with `runc --root` find it.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// Resolves the runtime of one container.
///
/// # Errors
/// [`Error::NoRuntime`] with the name that was looked for, [`Error::Invalid`] for a relative root.
pub(crate) fn resolve(
    options: &RuntimeOptions,
    config: &Config,
    spec: &Spec,
    namespace: &Namespace,
) -> Result<Runtime> {
    let root = if options.root.is_empty() { DEFAULT_ROOT } else { &options.root };
    if !Path::new(root).is_absolute() {
        return Err(Error::Invalid(format!("option Root {root:?} is not an absolute path")));
    }
    Ok(Runtime {
        path: find(options, config)?,
        root: Path::new(root).join(namespace.as_str()),
        systemd_cgroup: options.systemd_cgroup || spec.wants_systemd_cgroup(),
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        criu_path: options.criu_path.clone(),
        deadline: config.deadline,
    })
}

/// The program that `options` and `config` choose.
///
/// # Errors
/// [`Error::NoRuntime`] with the name that was looked for.
pub(crate) fn find(options: &RuntimeOptions, config: &Config) -> Result<PathBuf> {
    let named = Some(options.binary_name.as_str())
        .filter(|name| !name.is_empty())
        .or(config.runtime.as_deref());
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(name) = named {
        return look_up(name, &path).ok_or_else(|| Error::NoRuntime { name: name.into() });
    }
    for name in CANDIDATES {
        match look_up(name, &path) {
            Some(found) => return Ok(found),
            None => log::debug!("runtime {name:?} is not on PATH"),
        }
    }
    Err(Error::NoRuntime { name: CANDIDATES.join(" or ") })
}

/// A name with a slash is a path; any other is looked for in the directories of `path`.
fn look_up(name: &str, path: &OsStr) -> Option<PathBuf> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return (path.is_absolute() && is_program(&path)).then_some(path);
    }
    env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn programs_are_found_by_name_or_path() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runc");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("text"), "").unwrap();
        fs::set_permissions(dir.path().join("text"), fs::Permissions::from_mode(0o644)).unwrap();
        let path = env::join_paths([Path::new("relative"), dir.path()]).unwrap();
        let (absolute, missing) = (program.to_str().unwrap(), "/nowhere/runc");
        let cases = [
            ("name", "runc", true),
            ("path", absolute, true),
            ("not executable", "text", false),
            ("missing name", "no-runc", false),
            ("missing path", missing, false),
            ("relative path", "./runc", false),
        ];
        for (name, runtime, found) in cases {
            assert_eq!(look_up(runtime, &path).is_some(), found, "{name}");
        }
    }
}
