//! The typed configuration, checked once when it is loaded. `config/berth.toml` explains each key.

mod body;
mod document;
mod file;
mod section;
mod show;
mod source;

pub(crate) use show::{check, show};
pub(crate) use source::{CONFIG_ANNOTATION, Environment, RUNTIME_ANNOTATION, Request, allow, load};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::document::{Node, Place, Table, Value, Via};
use self::section::{Report, Section};
use crate::wire::options::RuntimeOptions;

/// Runtimes that need no entry in the table, in the order in which `"auto"` tries them: the names
/// of programs that have runc's command line.
pub(crate) const BUILT_IN: [&str; 4] = ["runc", "crun", "youki", "buildkit-runc"];
/// What stands for the first of [`BUILT_IN`] that is there.
const AUTO: &str = "auto";
/// Where presets lie that an annotation may select.
const PRESET_DIR: &str = "/etc/berth/presets";
/// A runtime command's time where nothing else is configured.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// The key of a runtime command's time.
const DEADLINE: &str = "deadline";
/// Longer than any command needs; a bound keeps arithmetic on times safe.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// A key that is `true`, `false` or `"auto"`: what `true` asks for must be possible, `"auto"` does
/// without it where it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    /// `"auto"`
    #[default]
    Auto,
    /// `true`
    On,
    /// `false`
    Off,
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Switch(bool),
            Word(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Switch(true)) => Ok(Self::On),
            Ok(Written::Switch(false)) => Ok(Self::Off),
            Ok(Written::Word(word)) if word == AUTO => Ok(Self::Auto),
            _ => Err(serde::de::Error::custom("must be true, false or \"auto\"")),
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

/// What the administrator decides.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// Which runtime a container gets when it asks for none.
    pub(crate) runtime: DefaultRuntime,
    /// The table of named runtimes.
    pub(crate) runtimes: BTreeMap<String, Entry>,
    /// How long runtime commands may take where no entry says otherwise.
    pub(crate) deadlines: Deadlines,
    /// Whether annotations of containers may choose a preset or a runtime.
    pub(crate) allow_annotations: bool,
    /// The directory of the presets.
    pub(crate) preset_dir: PathBuf,
    /// Whether fuse-overlayfs mounts overlays.
    pub(crate) fuse_overlayfs: Choice,
    /// Single values under the names of runc's options; only `config_body` can have them.
    pub(crate) options: RuntimeOptions,
    /// What the configuration is, for errors that it leads to.
    pub(crate) origin: String,
}

/// The runtime of containers that ask for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum DefaultRuntime {
    /// The first of [`BUILT_IN`] that is there.
    #[default]
    Auto,
    /// A program: a name on PATH or an absolute path.
    Program(String),
    /// An entry of the table, or one of [`BUILT_IN`].
    Named(String),
}

/// One runtime of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Where it was configured; `None` for one that is built in.
    pub(crate) place: Option<String>,
    /// Names on PATH or absolute paths; the first that is there is taken.
    pub(crate) candidates: Vec<String>,
    /// Arguments before the subcommand.
    pub(crate) args: Vec<String>,
    /// The directory of the runtime's state, without the namespace.
    pub(crate) root: Option<PathBuf>,
    /// Whether systemd makes the cgroups.
    pub(crate) systemd_cgroup: Choice,
    /// `--no-pivot`
    pub(crate) no_pivot_root: bool,
    /// `--no-new-keyring`
    pub(crate) no_new_keyring: bool,
    /// The criu program; empty for the runtime's own choice.
    pub(crate) criu_path: String,
    /// Whether to do without what only root outside of user namespaces can do.
    pub(crate) rootless: Choice,
    /// How long its commands may take.
    pub(crate) deadlines: Deadlines,
    /// What is done with a root file system that is a block device.
    pub(crate) block_rootfs: BlockRootfs,
    /// Environment of the runtime's commands, on top of the daemon's.
    pub(crate) env: BTreeMap<String, String>,
    /// Put into each container's spec for the runtime to see.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What is done with a root file system whose only mount is a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlockRootfs {
    /// It is mounted.
    #[default]
    Mount,
    /// The runtime mounts it: annotations of the spec name it.
    Pass,
}

/// How long the commands of a runtime may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deadlines {
    default: Duration,
    #[serde(default)]
    commands: BTreeMap<String, Duration>,
}

impl Deadlines {
    /// Commands whose deadline can be set.
    const COMMANDS: [&str; 9] =
        ["create", "start", "exec", "kill", "delete", "pause", "resume", "update", "mount"];

    /// The time for `command`.
    pub(crate) fn of(&self, command: &str) -> Duration {
        self.commands.get(command).copied().unwrap_or(self.default)
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { default: DEFAULT_DEADLINE, commands: BTreeMap::new() }
    }
}

impl Entry {
    /// An entry that has nothing but a program.
    pub(crate) fn plain(program: &str, deadlines: &Deadlines) -> Self {
        Self {
            place: None,
            candidates: vec![program.to_owned()],
            args: Vec::new(),
            root: None,
            systemd_cgroup: Choice::Auto,
            no_pivot_root: false,
            no_new_keyring: false,
            criu_path: String::new(),
            rootless: Choice::Auto,
            deadlines: deadlines.clone(),
            block_rootfs: BlockRootfs::Mount,
            env: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            runtime: DefaultRuntime::Auto,
            runtimes: BTreeMap::new(),
            deadlines: Deadlines::default(),
            allow_annotations: true,
            preset_dir: PRESET_DIR.into(),
            fuse_overlayfs: Choice::Auto,
            options: RuntimeOptions::default(),
            origin: "built-in defaults".into(),
        }
    }
}

impl Config {
    /// The names that can be asked for, for errors about one that is not among them.
    pub(crate) fn configured(&self) -> String {
        let names: Vec<&str> = self.runtimes.keys().map(String::as_str).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }

    /// Makes sense of a merged table; what is wrong goes to `report`.
    fn read(table: Table, via: Option<Via>, report: &mut Report) -> Self {
        let mut top = Section::new(String::new(), table, report);
        let default = Self::default();
        let options = match via {
            Some(Via::ConfigBody) => body::options(&mut top),
            _ => RuntimeOptions::default(),
        };
        let program = top.take_checked("runtime", Some(AUTO.to_owned()), check_program);
        let named_at = top.place("default_runtime").cloned();
        let named = top.take_checked("default_runtime", None::<String>, |_| Ok(()));
        let deadlines = deadlines(&mut top, &default.deadlines);
        let allow_annotations = top.take("allow_annotations", default.allow_annotations);
        if via == Some(Via::Annotation) {
            if let Some(place) = top.place("preset_dir").cloned() {
                top.fault(Some(&place), "preset_dir", "is for the host's file, not for a preset");
            }
        }
        let preset_dir = default.preset_dir;
        let preset_dir = top
            .take_checked("preset_dir", Some(preset_dir.clone()), check_absolute)
            .unwrap_or(preset_dir);
        let fuse_overlayfs = top.take("fuse_overlayfs", default.fuse_overlayfs);
        let mut runtimes = BTreeMap::new();
        for (name, place, table) in top.take_tables("runtimes") {
            let key = format!("runtimes.{}", show::key(&name));
            if let Err(why) = check_name(&name) {
                top.fault(Some(&place), &key, &why);
            }
            let entry = entry(top.section(&key, table), &place, &deadlines);
            runtimes.insert(name, entry);
        }
        let runtime = default_runtime(&mut top, program, named, named_at.as_ref(), &runtimes);
        top.finish();
        Self {
            runtime,
            runtimes,
            deadlines,
            allow_annotations,
            preset_dir,
            fuse_overlayfs,
            options,
            origin: default.origin,
        }
    }
}

fn default_runtime(
    top: &mut Section<'_>,
    program: Option<String>,
    named: Option<String>,
    named_at: Option<&Place>,
    runtimes: &BTreeMap<String, Entry>,
) -> DefaultRuntime {
    let program = program.filter(|program| !matches!(program.as_str(), "" | AUTO));
    match (program, named.filter(|name| !matches!(name.as_str(), "" | AUTO))) {
        (None, None) => DefaultRuntime::Auto,
        (Some(program), None) if runtimes.contains_key(&program) => {
            let why = format!("{program:?} is in the table: set default_runtime to it");
            top.fault(None, "runtime", &why);
            DefaultRuntime::Named(program)
        }
        (Some(program), None) => DefaultRuntime::Program(program),
        (None, Some(name)) => {
            if !runtimes.contains_key(&name) && !BUILT_IN.contains(&name.as_str()) {
                let names: Vec<_> = runtimes.keys().map(String::as_str).chain(BUILT_IN).collect();
                let names = names.join(", ");
                let why = format!("default runtime {name:?} does not exist (configured: {names})");
                top.fault(named_at, "default_runtime", &why);
            }
            DefaultRuntime::Named(name)
        }
        (Some(_), Some(name)) => {
            top.fault(named_at, "default_runtime", "cannot be configured together with `runtime`");
            DefaultRuntime::Named(name)
        }
    }
}

fn entry(mut section: Section<'_>, place: &Place, inherited: &Deadlines) -> Entry {
    let path = section.take_checked("path", None, check_program);
    let candidates =
        section.take_checked("candidates", None, |all: &Vec<String>| match all.as_slice() {
            [] => Err("names no program".into()),
            all => all.iter().try_for_each(check_program),
        });
    let candidates = match (path, candidates) {
        (Some(path), None) => vec![path],
        (None, Some(candidates)) => candidates,
        (None, None) => {
            section.fault(Some(place), "path", "either path or candidates must be configured");
            Vec::new()
        }
        (Some(path), Some(_)) => {
            let why = "path and candidates cannot be configured for the same runtime";
            section.fault(Some(place), "path", why);
            vec![path]
        }
    };
    let entry = Entry {
        place: Some(place.to_string()),
        candidates,
        args: section
            .take_checked("args", Some(Vec::new()), |args: &Vec<String>| {
                args.iter().try_for_each(|one| no_nul(one))
            })
            .unwrap_or_default(),
        root: section.take_checked("root", None, check_absolute),
        systemd_cgroup: section.take("systemd_cgroup", Choice::Auto),
        no_pivot_root: section.take("no_pivot_root", false),
        no_new_keyring: section.take("no_new_keyring", false),
        criu_path: section.take_checked("criu_path", None, check_program).unwrap_or_default(),
        rootless: section.take("rootless", Choice::Auto),
        deadlines: deadlines(&mut section, inherited),
        block_rootfs: section.take("block_rootfs", BlockRootfs::Mount),
        env: section.take_texts("env", |name, value| {
            let broken = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
            if broken { Err(format!("{name:?} cannot be set in an environment")) } else { Ok(()) }
        }),
        annotations: section.take_texts("annotations", |name, _| match name {
            "" => Err("an annotation must have a name".into()),
            _ => Ok(()),
        }),
    };
    section.finish();
    entry
}

/// The table `deadline`; what it does not say is `inherited`.
fn deadlines(section: &mut Section<'_>, inherited: &Deadlines) -> Deadlines {
    let mut deadlines = inherited.clone();
    let table = section.take_table(DEADLINE).unwrap_or_default();
    let mut section = section.section(DEADLINE, table);
    let shown = Some(deadlines.default.as_secs_f64());
    if let Some(seconds) = section.take_checked("default", shown, check_seconds) {
        deadlines.default = Duration::from_secs_f64(seconds);
    }
    for command in Deadlines::COMMANDS {
        let shown = deadlines.commands.get(command).map(Duration::as_secs_f64);
        if let Some(seconds) = section.take_checked(command, shown, check_seconds) {
            deadlines.commands.insert(command.to_owned(), Duration::from_secs_f64(seconds));
        }
    }
    section.finish();
    deadlines
}

/// Gives a `deadline` that is a plain number the form of a table, so that it merges like one.
fn expand_deadlines(table: &mut Table) {
    let expand = |table: &mut Table| {
        let Some(node) = table.get_mut(DEADLINE) else { return };
        if let Value::Leaf(_) = node.value {
            let default = ("default".to_owned(), node.clone());
            node.value = Value::Table(Table::from([default]));
        }
    };
    expand(table);
    let Some(Node { value: Value::Table(runtimes), .. }) = table.get_mut("runtimes") else {
        return;
    };
    for entry in runtimes.values_mut() {
        if let Value::Table(entry) = &mut entry.value {
            expand(entry);
        }
    }
}

fn check_seconds(seconds: &f64) -> Result<(), String> {
    match Duration::try_from_secs_f64(*seconds) {
        Ok(time) if (Duration::from_millis(1)..=MAX_DEADLINE).contains(&time) => Ok(()),
        _ => Err(format!("{seconds}: must be from 0.001 to 3600 seconds")),
    }
}

/// The empty text and `"auto"` pass: they are dealt with where they have a meaning.
fn check_program(name: &String) -> Result<(), String> {
    if name.contains('/') && !name.starts_with('/') {
        return Err(format!("{name:?} must be an absolute path, or a name without a slash"));
    }
    no_nul(name)
}

fn check_absolute(dir: &PathBuf) -> Result<(), String> {
    if dir.is_absolute() { Ok(()) } else { Err(format!("{dir:?} must be an absolute path")) }
}

fn check_name(name: &str) -> Result<(), String> {
    if BUILT_IN.contains(&name) || name == AUTO {
        let why = "choose another one, and give `path` the program's name";
        return Err(format!("runtime name {name:?} is reserved: {why}"));
    }
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(format!("runtime name {name:?} must not be empty nor have a slash"));
    }
    Ok(())
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("must not contain a NUL byte".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
