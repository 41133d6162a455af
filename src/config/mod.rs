//! The typed configuration, checked once when it is loaded. `config/berth.toml` explains each key.

mod body;
mod choices;
mod document;
mod entry;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod io;
mod section;
mod seen;
mod show;
mod source;
mod tracing;

pub(crate) use body::shim_cgroup;
pub(crate) use choices::choices;
pub(crate) use entry::{BlockRootfs, Deadlines, Entry, Guest, NydusRootfs};
pub(crate) use io::{Io, OnFull};
pub(crate) use seen::{Seen, load_seen};
pub(crate) use show::{check, show};
pub(crate) use source::{
    CONFIG_ANNOTATION, Environment, RUNTIME_ANNOTATION, Request, load, machine,
};
pub(crate) use tracing::Tracing;
#[cfg(feature = "otel")]
pub(crate) use tracing::{DISABLED, Endpoint, Sampler, check_header, is_containerds};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::document::{Place, Table, Via};
use self::entry::{check_absolute, check_program, deadlines, entry};
use self::section::{Report, Section};
use crate::error::Error;
use crate::wire::options::RuntimeOptions;

/// Runtimes that need no entry in the table, in the order in which `"auto"` tries them: the names
/// of programs that have runc's command line.
pub(crate) const BUILT_IN: [&str; 4] = ["runc", "crun", "youki", "buildkit-runc"];
/// What stands for the first of [`BUILT_IN`] that is there.
const AUTO: &str = "auto";

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
    /// What annotations of containers may choose.
    pub(crate) gate: Gate,
    /// Whether fuse-overlayfs mounts overlays.
    pub(crate) fuse_overlayfs: Choice,
    /// What happens to output that nobody takes.
    pub(crate) io: Io,
    /// Whether the daemon answers questions about itself.
    pub(crate) management: bool,
    /// Whether spans are sent, and where to.
    pub(crate) tracing: Tracing,
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
    Program {
        /// The name or path.
        name: String,
        /// Where it is configured.
        place: String,
    },
    /// An entry of the table, or one of [`BUILT_IN`].
    Named {
        /// The entry's name.
        name: String,
        /// Where it is configured.
        place: String,
    },
}

/// What annotations of containers may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// Why they may choose nothing; `None` if they may.
    shut: Option<String>,
    /// The directory of the presets, if it is not the usual one.
    preset_dir: Option<PathBuf>,
}

impl Gate {
    /// Nothing may be chosen, because what would say so cannot be read.
    fn shut(error: &Error) -> Self {
        Self { shut: Some(error.to_string()), preset_dir: None }
    }

    /// A gate that is shut for the reason `shut`, or open.
    #[cfg(test)]
    pub(crate) fn new(shut: Option<&str>, preset_dir: Option<PathBuf>) -> Self {
        Self { shut: shut.map(str::to_owned), preset_dir }
    }

    /// What this gate and `other` let pass; of two directories this one's counts.
    fn and(&self, other: &Self) -> Self {
        Self {
            shut: self.shut.clone().or_else(|| other.shut.clone()),
            preset_dir: self.preset_dir.clone().or_else(|| other.preset_dir.clone()),
        }
    }

    /// Whether containers may choose by `annotation`.
    ///
    /// # Errors
    /// [`Error::Denied`] that names what forbids it.
    pub(crate) fn check(&self, annotation: &str) -> Result<(), Error> {
        match &self.shut {
            None => Ok(()),
            Some(why) => Err(Error::Denied(format!(
                "annotation {annotation} is refused, annotations are switched off: {why}"
            ))),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            runtime: DefaultRuntime::Auto,
            runtimes: BTreeMap::new(),
            deadlines: Deadlines::default(),
            gate: Gate::default(),
            fuse_overlayfs: Choice::Auto,
            io: Io::default(),
            management: true,
            tracing: Tracing::default(),
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
        let asked = Asked::read(&mut top);
        let deadlines = deadlines(&mut top, None);
        let gate = gate(&mut top, via);
        let fuse_overlayfs = top.take("fuse_overlayfs", default.fuse_overlayfs);
        let io = io::io(&mut top);
        let management = management(&mut top);
        let tracing = tracing::tracing(&mut top);
        let mut runtimes = BTreeMap::new();
        for (name, place, table) in top.take_tables("runtimes") {
            let key = format!("runtimes.{}", show::key(&name));
            if let Err(why) = check_name(&name) {
                top.fault(Some(&place), &key, &why);
            }
            let entry = entry(top.section(&key, table), &place, &deadlines);
            runtimes.insert(name, entry);
        }
        let runtime = asked.settle(&mut top, &runtimes);
        top.finish();
        let origin = default.origin;
        Self {
            runtime,
            runtimes,
            deadlines,
            gate,
            fuse_overlayfs,
            io,
            management,
            tracing,
            options,
            origin,
        }
    }
}

/// Reads the table `management`.
fn management(top: &mut Section<'_>) -> bool {
    let table = top.take_table("management").unwrap_or_default();
    let mut section = top.section("management", table);
    let enabled = section.take("enabled", true);
    section.finish();
    enabled
}

fn gate(top: &mut Section<'_>, via: Option<Via>) -> Gate {
    let allowed_at = top.place("allow_annotations").cloned();
    let allowed = top.take("allow_annotations", true);
    let place = allowed_at.filter(|_| !allowed);
    let shut = place.map(|place| format!("allow_annotations = false in {place}"));
    if via == Some(Via::Annotation) {
        if let Some(place) = top.place("preset_dir").cloned() {
            top.fault(Some(&place), "preset_dir", "is for the host's file, not for a preset");
        }
    }
    let usual = source::default_preset_dir();
    Gate { shut, preset_dir: top.take_checked("preset_dir", Some(usual), check_absolute) }
}

/// The keys that say which runtime a container gets when it asks for none.
struct Asked {
    program: Option<(String, Place)>,
    named: Option<(String, Place)>,
}

impl Asked {
    fn read(top: &mut Section<'_>) -> Self {
        let mut take = |key, default: Option<String>| {
            let place = top.place(key).cloned();
            let check = |name: &String| match name.as_str() {
                "" | AUTO => Ok(()),
                _ => check_program(name),
            };
            let name = top.take_checked(key, default, check)?;
            (!matches!(name.as_str(), "" | AUTO)).then_some((name, place?))
        };
        Self {
            program: take("runtime", Some(AUTO.to_owned())),
            named: take("default_runtime", None),
        }
    }

    fn settle(self, top: &mut Section<'_>, table: &BTreeMap<String, Entry>) -> DefaultRuntime {
        let text = |place: &Place| place.to_string();
        match (self.program, self.named) {
            (None, None) => DefaultRuntime::Auto,
            (Some((name, place)), None) => {
                if table.contains_key(&name) {
                    let why = format!("{name:?} is in the table: set default_runtime to it");
                    top.fault(Some(&place), "runtime", &why);
                }
                DefaultRuntime::Program { name, place: text(&place) }
            }
            (None, Some((name, place))) => {
                if !table.contains_key(&name) && !BUILT_IN.contains(&name.as_str()) {
                    let names: Vec<_> = table.keys().map(String::as_str).chain(BUILT_IN).collect();
                    let names = names.join(", ");
                    let why =
                        format!("default runtime {name:?} does not exist (configured: {names})");
                    top.fault(Some(&place), "default_runtime", &why);
                }
                DefaultRuntime::Named { name, place: text(&place) }
            }
            (Some(_), Some((name, place))) => {
                let why = "cannot be configured together with `runtime`";
                top.fault(Some(&place), "default_runtime", why);
                DefaultRuntime::Named { name, place: text(&place) }
            }
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
