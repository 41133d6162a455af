//! One runtime of the table, and how long its commands may take.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Choice;
use super::document::{Node, Place, Table, Value};
use super::section::Section;

/// Whether a runtime makes emptyDirs by itself.
const EMPTY_DIR: &str = "guest_empty_dir";
/// Kata's name for the opposite of [`EMPTY_DIR`].
const DISABLE_EMPTY_DIR: &str = "disable_guest_empty_dir";
/// A runtime command's time where nothing else is configured.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// A checkpoint's or restore's: it takes as long as a container has memory.
const CRIU_DEADLINE: Duration = Duration::from_secs(600);
/// The table of runtimes.
const RUNTIMES: &str = "runtimes";
/// The key of a runtime command's time.
const DEADLINE: &str = "deadline";
/// Longer than any command needs; a bound keeps arithmetic on times safe.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

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
    /// What the runtime does in place of berth.
    pub(crate) guest: Guest,
    /// Whether the runtime's processes are none of the host's.
    pub(crate) inner_pids: bool,
    /// Environment of the runtime's commands, on top of the daemon's.
    pub(crate) env: BTreeMap<String, String>,
}

/// What a runtime, mostly one whose containers have a kernel of their own, does in place of berth,
/// and what it is told for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guest {
    /// What is done with a root file system that is a block device.
    pub(crate) block_rootfs: BlockRootfs,
    /// What is done with a root file system that is a Nydus image.
    pub(crate) nydus_rootfs: NydusRootfs,
    /// Whether the runtime makes emptyDirs by itself.
    pub(crate) empty_dir: bool,
    /// Whether the runtime wants to know the pod's size.
    pub(crate) sizing: bool,
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

/// What is done with a root file system that is a Nydus image, or layers for a guest to mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NydusRootfs {
    /// Create fails: on the host there is nothing to mount.
    #[default]
    Refuse,
    /// The runtime mounts it: annotations of the spec name it.
    Pass,
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
            guest: Guest::default(),
            inner_pids: false,
            env: BTreeMap::new(),
        }
    }
}

/// Reads the entry that stands at `place`; what is wrong goes to the section's report.
pub(super) fn entry(mut section: Section<'_>, place: &Place, inherited: &Deadlines) -> Entry {
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
        deadlines: deadlines(&mut section, Some(inherited)),
        guest: guest(&mut section),
        inner_pids: section.take("inner_pids", false),
        env: section.take_texts("env", |name, value| {
            let broken = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
            if broken { Err(format!("{name:?} cannot be set in an environment")) } else { Ok(()) }
        }),
    };
    section.finish();
    entry
}

fn guest(section: &mut Section<'_>) -> Guest {
    Guest {
        block_rootfs: section.take("block_rootfs", BlockRootfs::Mount),
        nydus_rootfs: section.take("nydus_rootfs", NydusRootfs::Refuse),
        empty_dir: section.take(EMPTY_DIR, false),
        sizing: section.take("sizing", false),
        annotations: section.take_texts("annotations", |name, _| match name {
            "" => Err("an annotation must have a name".into()),
            _ => Ok(()),
        }),
    }
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
    const COMMANDS: [&str; 11] = [
        "create",
        "start",
        "exec",
        "kill",
        "delete",
        "pause",
        "resume",
        "update",
        "checkpoint",
        "restore",
        "mount",
    ];

    /// The time for `command`.
    pub(crate) fn of(&self, command: &str) -> Duration {
        let default = match command {
            "checkpoint" | "restore" => self.default.max(CRIU_DEADLINE),
            _ => self.default,
        };
        self.commands.get(command).copied().unwrap_or(default)
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { default: DEFAULT_DEADLINE, commands: BTreeMap::new() }
    }
}

/// The table `deadline`; what it does not say is `inherited`, or built in.
pub(super) fn deadlines(section: &mut Section<'_>, inherited: Option<&Deadlines>) -> Deadlines {
    let mut deadlines = inherited.cloned().unwrap_or_default();
    let table = section.take_table(DEADLINE).unwrap_or_default();
    let mut section = section.section(DEADLINE, table);
    let shown = inherited.is_none().then_some(deadlines.default.as_secs_f64());
    if let Some(seconds) = section.take_checked("default", shown, check_seconds) {
        deadlines.default = Duration::from_secs_f64(seconds);
    }
    for command in Deadlines::COMMANDS {
        if let Some(seconds) = section.take_checked(command, None, check_seconds) {
            deadlines.commands.insert(command.to_owned(), Duration::from_secs_f64(seconds));
        }
    }
    section.finish();
    deadlines
}

/// Brings what can be written in several ways into one: a `deadline` that is a plain number, and
/// Kata's name for `guest_empty_dir`.
///
/// # Errors
/// A sentence for each key that is there in both forms.
pub(super) fn expand(mut table: Table) -> Result<Table, Vec<String>> {
    let mut faults = Vec::new();
    expand_deadline(&mut table);
    for entry in entries(&mut table) {
        expand_deadline(entry);
        let Some(node) = entry.get(DISABLE_EMPTY_DIR) else { continue };
        if entry.contains_key(EMPTY_DIR) {
            let place = &node.place;
            faults.push(format!("{place}: {DISABLE_EMPTY_DIR}: is there beside {EMPTY_DIR}"));
        } else if let Value::Leaf(toml::Value::Boolean(disabled)) = node.value {
            let value = Value::Leaf(toml::Value::Boolean(!disabled));
            entry.insert(EMPTY_DIR.into(), Node { value, ..node.clone() });
            entry.remove(DISABLE_EMPTY_DIR);
        }
    }
    if faults.is_empty() { Ok(table) } else { Err(faults) }
}

fn expand_deadline(table: &mut Table) {
    let Some(node) = table.get_mut(DEADLINE) else { return };
    if let Value::Leaf(_) = node.value {
        let default = ("default".to_owned(), node.clone());
        node.value = Value::Table(Table::from([default]));
    }
}

/// Removes from `table` what would contradict the later `over`: of two keys for one thing the later
/// text's counts.
pub(super) fn drop_rivals(table: &mut Table, over: &Table) {
    let rivals = |table: &mut Table, over: &Table, keys: [&str; 2]| {
        for (key, rival) in [(keys[0], keys[1]), (keys[1], keys[0])] {
            if over.contains_key(key) && !over.contains_key(rival) {
                table.remove(rival);
            }
        }
    };
    rivals(table, over, ["runtime", "default_runtime"]);
    let Some(Node { value: Value::Table(over), .. }) = over.get(RUNTIMES) else { return };
    let Some(Node { value: Value::Table(below), .. }) = table.get_mut(RUNTIMES) else { return };
    for (name, node) in over {
        let below = below.get_mut(name).map(|node| &mut node.value);
        if let (Value::Table(over), Some(Value::Table(below))) = (&node.value, below) {
            rivals(below, over, ["path", "candidates"]);
        }
    }
}

/// The entries of the table of runtimes.
fn entries(table: &mut Table) -> impl Iterator<Item = &mut Table> {
    let runtimes = table.get_mut(RUNTIMES).and_then(|node| match &mut node.value {
        Value::Table(runtimes) => Some(runtimes),
        Value::Leaf(_) => None,
    });
    runtimes.into_iter().flat_map(Table::values_mut).filter_map(|node| match &mut node.value {
        Value::Table(entry) => Some(entry),
        Value::Leaf(_) => None,
    })
}

fn check_seconds(seconds: &f64) -> Result<(), String> {
    match Duration::try_from_secs_f64(*seconds) {
        Ok(time) if (Duration::from_millis(1)..=MAX_DEADLINE).contains(&time) => Ok(()),
        _ => Err(format!("{seconds}: must be from 0.001 to 3600 seconds")),
    }
}

/// A program is a name on PATH, or an absolute path.
pub(super) fn check_program(name: &String) -> Result<(), String> {
    match name.as_str() {
        "" | "auto" => Err(format!("{name:?} is no program")),
        _ if name.ends_with('/') => Err(format!("{name:?} is a directory")),
        _ if name.contains('/') && !name.starts_with('/') => {
            Err(format!("{name:?} must be an absolute path, or a name without a slash"))
        }
        _ => no_nul(name),
    }
}

pub(super) fn check_absolute(dir: &PathBuf) -> Result<(), String> {
    if dir.is_absolute() {
        no_nul(&dir.to_string_lossy())
    } else {
        Err(format!("{dir:?} must be an absolute path"))
    }
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("must not contain a NUL byte".into()) } else { Ok(()) }
}
