//! The typed configuration, checked once when it is loaded. `config/berth.toml` explains each key.

mod body;
mod document;
mod entry;
mod file;
mod section;
mod show;
mod source;

pub(crate) use body::shim_cgroup;
pub(crate) use entry::{BlockRootfs, Deadlines, Entry, NydusRootfs};
pub(crate) use show::{check, show};
pub(crate) use source::{CONFIG_ANNOTATION, Environment, RUNTIME_ANNOTATION, Request, allow, load};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::document::{Place, Table, Via};
use self::entry::{check_absolute, check_program, deadlines, entry, expand_deadlines};
use self::section::{Report, Section};
use crate::rootless;
use crate::wire::options::RuntimeOptions;

/// Runtimes that need no entry in the table, in the order in which `"auto"` tries them: the names
/// of programs that have runc's command line.
pub(crate) const BUILT_IN: [&str; 4] = ["runc", "crun", "youki", "buildkit-runc"];
/// What stands for the first of [`BUILT_IN`] that is there.
const AUTO: &str = "auto";
/// Where presets lie that an annotation may select, in [`rootless::config_dir`].
const PRESET_DIR: &str = "presets";

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

impl Default for Config {
    fn default() -> Self {
        Self {
            runtime: DefaultRuntime::Auto,
            runtimes: BTreeMap::new(),
            deadlines: Deadlines::default(),
            allow_annotations: true,
            preset_dir: rootless::config_dir().join(PRESET_DIR),
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

#[cfg(test)]
mod tests;
