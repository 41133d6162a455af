//! One runtime of the table, and how long its commands may take.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Choice;
use super::document::{Node, Place, Table, Value};
use super::section::Section;

/// Kata's name for the opposite of `guest_empty_dir`.
const DISABLE_EMPTY_DIR: &str = "disable_guest_empty_dir";
/// A runtime command's time where nothing else is configured.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
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
    /// What is done with a root file system that is a block device.
    pub(crate) block_rootfs: BlockRootfs,
    /// What is done with a root file system that is a Nydus image.
    pub(crate) nydus_rootfs: NydusRootfs,
    /// Whether the runtime makes emptyDirs by itself, in its guest.
    pub(crate) guest_empty_dir: bool,
    /// Whether the runtime wants to know the pod's size.
    pub(crate) sizing: bool,
    /// Whether the runtime's processes are none of the host's.
    pub(crate) inner_pids: bool,
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
            block_rootfs: BlockRootfs::Mount,
            nydus_rootfs: NydusRootfs::Refuse,
            guest_empty_dir: false,
            sizing: false,
            inner_pids: false,
            env: BTreeMap::new(),
            annotations: BTreeMap::new(),
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
        deadlines: deadlines(&mut section, inherited),
        block_rootfs: section.take("block_rootfs", BlockRootfs::Mount),
        nydus_rootfs: section.take("nydus_rootfs", NydusRootfs::Refuse),
        guest_empty_dir: guest_empty_dir(&mut section),
        sizing: section.take("sizing", false),
        inner_pids: section.take("inner_pids", false),
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

/// `guest_empty_dir`, or the opposite under Kata's name for it.
fn guest_empty_dir(section: &mut Section<'_>) -> bool {
    let own = section.take_checked("guest_empty_dir", Some(false), |_: &bool| Ok(()));
    let place = section.place(DISABLE_EMPTY_DIR).cloned();
    let disabled = section.take_checked(DISABLE_EMPTY_DIR, None, |_: &bool| Ok(()));
    match (own, disabled) {
        (Some(own), Some(disabled)) if own == disabled => {
            section.fault(place.as_ref(), DISABLE_EMPTY_DIR, "contradicts guest_empty_dir");
            own
        }
        (Some(own), _) => own,
        (None, disabled) => disabled == Some(false),
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

/// The table `deadline`; what it does not say is `inherited`.
pub(super) fn deadlines(section: &mut Section<'_>, inherited: &Deadlines) -> Deadlines {
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
pub(super) fn expand_deadlines(table: &mut Table) {
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
pub(super) fn check_program(name: &String) -> Result<(), String> {
    if name.contains('/') && !name.starts_with('/') {
        return Err(format!("{name:?} must be an absolute path, or a name without a slash"));
    }
    no_nul(name)
}

pub(super) fn check_absolute(dir: &PathBuf) -> Result<(), String> {
    if dir.is_absolute() { Ok(()) } else { Err(format!("{dir:?} must be an absolute path")) }
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("must not contain a NUL byte".into()) } else { Ok(()) }
}
