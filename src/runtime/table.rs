//! Which runtime a container gets: its annotation, its options, the configuration, then what is
//! installed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::bundle::Spec;
use crate::config::{BUILT_IN, Choice, Config, DefaultRuntime, Entry, Guest, RUNTIME_ANNOTATION};
use crate::error::{Error, Result};
use crate::ids::Namespace;
use crate::rootless;
use crate::runtime::Runtime;
use crate::wire::options::RuntimeOptions;

/// The root of runtimes' state where nothing names one, in [`rootless::state_dir`], as the Go shim
/// has it: tools that look for a container with `runc --root` find it.
const DEFAULT_ROOT: &str = "runc";
/// Is there if systemd runs ([sd_booted(3)]), as runtimes look for it too.
///
/// [sd_booted(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_booted.html
const SYSTEMD: &str = "/run/systemd/system";

/// A runtime that was chosen, and its program.
pub(crate) struct Chosen<'a> {
    /// How it is called.
    pub(crate) entry: Cow<'a, Entry>,
    /// Absolute path of the program.
    pub(crate) path: PathBuf,
}

/// The runtime of one container.
pub(crate) struct Resolved {
    /// How its commands are called.
    pub(crate) runtime: Runtime,
    /// What it does in place of berth.
    pub(crate) guest: Guest,
    /// Whether to do without what only the host's root may.
    pub(crate) rootless: bool,
}

/// Resolves the runtime of one container.
///
/// # Errors
/// As [`choose`]; [`Error::Invalid`] for a relative root, and for what the runtime's entry asks for
/// where this host cannot have it.
pub(crate) fn resolve(
    options: &RuntimeOptions,
    config: &Config,
    spec: &Spec,
    namespace: &Namespace,
) -> Result<Resolved> {
    let Chosen { entry, path } = choose(config, options, spec.annotation(RUNTIME_ANNOTATION))?;
    let place = entry.place.clone().unwrap_or_else(|| config.origin.clone());
    let locate = |error: Error| Error::Invalid(format!("{error} (runtime configured in {place})"));
    let entry = entry.into_owned();
    let in_namespace = rootless::in_user_namespace();
    let rootless = rootless::resolve(entry.rootless, geteuid().as_raw(), in_namespace);
    let rootless = rootless.map_err(locate)?;
    let systemd = Path::new(SYSTEMD).is_dir() && (!rootless || rootless::has_systemd_bus());
    let wanted = spec.wants_systemd_cgroup();
    let systemd = systemd_cgroup(entry.systemd_cgroup, wanted, systemd).map_err(locate)?;
    let root = match options.root.as_str() {
        "" => entry.root.unwrap_or_else(|| rootless::state_dir(rootless).join(DEFAULT_ROOT)),
        root => root.into(),
    };
    if !root.is_absolute() {
        return Err(Error::Invalid(format!("option Root {root:?} is not an absolute path")));
    }
    let criu_path = match options.criu_path.as_str() {
        "" => entry.criu_path,
        path => path.to_owned(),
    };
    let runtime = Runtime {
        path,
        args: entry.args,
        env: entry.env.into_iter().collect(),
        root: root.join(namespace.as_str()),
        systemd_cgroup: options.systemd_cgroup || systemd,
        no_pivot_root: options.no_pivot_root || entry.no_pivot_root,
        no_new_keyring: options.no_new_keyring || entry.no_new_keyring,
        criu_path,
        deadlines: entry.deadlines,
        inner_pids: entry.inner_pids,
    };
    Ok(Resolved { runtime, guest: entry.guest, rootless })
}

/// The runtime that a container's annotation, `options` and `config` choose, and its program.
///
/// # Errors
/// As [`select`]; [`Error::NoRuntime`] with the names that were looked for, the reasons against each
/// and where it was asked for.
pub(crate) fn choose<'a>(
    config: &'a Config,
    options: &RuntimeOptions,
    annotation: Option<&str>,
) -> Result<Chosen<'a>> {
    let entry = select(config, options, annotation)?;
    let path = env::var_os("PATH").unwrap_or_default();
    let mut reasons = Vec::new();
    for candidate in &entry.candidates {
        match look_up(candidate, &path) {
            Ok(path) => {
                log::info!("runtime {}", path.display());
                return Ok(Chosen { entry, path });
            }
            Err(why) => {
                log::debug!("runtime {candidate:?} is not taken: {why}");
                reasons.push(why);
            }
        }
    }
    reasons.dedup();
    let reasons = reasons.join(", ");
    let why = match &entry.place {
        Some(place) => format!("{reasons}; it is asked for by {place}"),
        None => format!("{reasons}; install one, or name one in /etc/berth/config.toml"),
    };
    Err(Error::NoRuntime { name: entry.candidates.join(" or "), why })
}

/// The runtime that a container's annotation, `options` and `config` choose.
///
/// # Errors
/// [`Error::Denied`] for an annotation that is switched off or is a path, [`Error::Invalid`] for one
/// that is not in the table.
pub(crate) fn select<'a>(
    config: &'a Config,
    options: &RuntimeOptions,
    annotation: Option<&str>,
) -> Result<Cow<'a, Entry>> {
    match (annotation, options.binary_name.as_str()) {
        (Some(name), _) => annotated(config, name).map(Cow::Borrowed),
        (None, "") => Ok(by_default(config)),
        (None, program) => Ok(by_option(config, program)),
    }
}

/// The entry that a container's annotation names.
fn annotated<'a>(config: &'a Config, name: &str) -> Result<&'a Entry> {
    let annotation = RUNTIME_ANNOTATION;
    config.gate.check(annotation)?;
    if name.contains('/') {
        let why = "it selects a runtime of the table by name, never a program by path";
        return Err(Error::Denied(format!("annotation {annotation} = {name:?} is refused: {why}")));
    }
    config.runtimes.get(name).ok_or_else(|| {
        let configured = config.configured();
        let origin = &config.origin;
        Error::Invalid(format!(
            "annotation {annotation}: unknown runtime {name:?} (configured: {configured}; {origin})"
        ))
    })
}

/// The entry that an option names, or that has its program. Any other program gets what the default
/// entry says of the host; what it says of its own program, arguments first of all, does not fit.
fn by_option<'a>(config: &'a Config, program: &str) -> Cow<'a, Entry> {
    if let Some(entry) = config.runtimes.get(program) {
        return Cow::Borrowed(entry);
    }
    let default = by_default(config);
    if default.candidates.iter().any(|candidate| candidate == program) {
        let candidates = vec![program.to_owned()];
        return Cow::Owned(Entry { candidates, ..default.into_owned() });
    }
    Cow::Owned(Entry {
        place: Some("option BinaryName".into()),
        candidates: vec![program.to_owned()],
        args: Vec::new(),
        guest: Guest::default(),
        inner_pids: false,
        env: BTreeMap::new(),
        ..default.into_owned()
    })
}

fn by_default(config: &Config) -> Cow<'_, Entry> {
    let plain = |program: &str, place: &String| {
        let place = Some(place.clone());
        Cow::Owned(Entry { place, ..Entry::plain(program, &config.deadlines) })
    };
    match &config.runtime {
        DefaultRuntime::Named { name, place } => match config.runtimes.get(name) {
            Some(entry) => Cow::Borrowed(entry),
            None => plain(name, place),
        },
        DefaultRuntime::Program { name, place } => plain(name, place),
        DefaultRuntime::Auto => {
            let candidates = BUILT_IN.map(str::to_owned).to_vec();
            Cow::Owned(Entry { candidates, ..Entry::plain("", &config.deadlines) })
        }
    }
}

/// Whether systemd makes the cgroups. `wanted` says that the spec's path is of systemd's form.
///
/// # Errors
/// [`Error::Invalid`] if it must and does not run.
fn systemd_cgroup(choice: Choice, wanted: bool, runs: bool) -> Result<bool> {
    match choice {
        Choice::Off => Ok(false),
        Choice::On if !runs => Err(Error::Invalid(format!(
            "systemd_cgroup = true, but systemd does not run here: {SYSTEMD} is missing, or rootless \
             without the user's bus"
        ))),
        Choice::On => Ok(true),
        Choice::Auto if wanted && !runs => {
            log::warn!("cgroupsPath is systemd's, but systemd does not run here: not used");
            Ok(false)
        }
        Choice::Auto => Ok(wanted),
    }
}

/// A name with a slash is a path; any other is looked for in the directories of `path`. The error
/// is the reason why there is no such program.
pub(crate) fn look_up(name: &str, path: &OsStr) -> Result<PathBuf, &'static str> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match path.metadata() {
            _ if !path.is_absolute() => Err("its path is not absolute"),
            Err(error) if error.kind() == ErrorKind::NotFound => Err("executable file not found"),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err("permission denied"),
            Err(_) => Err("it cannot be looked at"),
            Ok(_) if !is_program(&path) => Err("permission denied: it is not executable"),
            Ok(_) => Ok(path),
        };
    }
    env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
        .ok_or("executable file not found on PATH")
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Deadlines, Gate};

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
            assert_eq!(look_up(runtime, &path).is_ok(), found, "{name}");
        }
    }
    #[test]
    fn systemd_makes_cgroups_where_it_is_asked_to_and_runs() {
        let cases = [
            ("auto", Choice::Auto, false, true, Ok(false)),
            ("auto, wanted", Choice::Auto, true, true, Ok(true)),
            ("auto, wanted but missing", Choice::Auto, true, false, Ok(false)),
            ("true", Choice::On, false, true, Ok(true)),
            ("true but missing", Choice::On, true, false, Err("systemd does not run here")),
            ("false", Choice::Off, true, true, Ok(false)),
        ];
        for (name, choice, wanted, runs, expected) in cases {
            match (systemd_cgroup(choice, wanted, runs), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{name}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_nearest_choice_wins() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let deadlines = Deadlines::default();
        let entry = |name: &str, args: &[&str]| {
            let args = args.iter().map(|&arg| arg.to_owned()).collect();
            (name.to_owned(), Entry { args, ..Entry::plain(&program(name), &deadlines) })
        };
        let missing = Entry {
            place: Some("f:7".into()),
            ..Entry::plain(dir.path().join("missing").to_str().unwrap(), &deadlines)
        };
        let candidates =
            Entry { candidates: vec!["/no/such".into(), program("two")], ..missing.clone() };
        let config = Config {
            runtime: DefaultRuntime::Named { name: "one".into(), place: "f:1".into() },
            runtimes: BTreeMap::from([
                entry("one", &["--one"]),
                entry("other", &[]),
                ("missing".into(), missing),
                ("candidates".into(), candidates),
            ]),
            ..Config::default()
        };
        let shut = Config { gate: Gate::new(Some("f:2"), None), ..config.clone() };
        let absolute = program("absolute");
        let cases = [
            ("default", &config, None, "", Ok(("one", 1))),
            ("option", &config, None, absolute.as_str(), Ok(("absolute", 0))),
            ("option that is in the table", &config, None, "other", Ok(("other", 0))),
            ("annotation", &config, Some("other"), &absolute, Ok(("other", 0))),
            ("candidates", &config, Some("candidates"), "", Ok(("two", 0))),
            (
                "annotation switched off",
                &shut,
                Some("other"),
                "",
                Err("annotations are switched off: f:2"),
            ),
            (
                "annotation with a path",
                &config,
                Some("/bin/sh"),
                "",
                Err("never a program by path"),
            ),
            (
                "unknown name",
                &config,
                Some("x"),
                "",
                Err("unknown runtime \"x\" (configured: candidates, missing, one, other; "),
            ),
            ("built in, by annotation", &config, Some("runc"), "", Err("unknown runtime \"runc\"")),
            (
                "missing program",
                &config,
                Some("missing"),
                "",
                Err("executable file not found; it is asked for by f:7"),
            ),
            (
                "missing option",
                &config,
                None,
                "no-runc",
                Err("\"no-runc\": executable file not found on PATH; it is asked for by option"),
            ),
        ];
        for (name, config, annotation, binary_name, expected) in cases {
            let options = RuntimeOptions { binary_name: binary_name.into(), ..Default::default() };
            match (choose(config, &options, annotation), expected) {
                (Ok(chosen), Ok((program, args))) => {
                    assert_eq!(chosen.path.file_name().unwrap(), program, "{name}");
                    assert_eq!(chosen.entry.args.len(), args, "{name}");
                }
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{name}: {error}");
                }
                (got, _) => panic!("{name}: {:?}", got.map(|chosen| chosen.path)),
            }
        }
    }
}
