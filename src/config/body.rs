//! The create option `config_body`: containerd's CRI plugin writes a runtime's whole options table
//! into it, whose keys are in CamelCase by custom, be they berth's own or those of runc's options.

use std::rc::Rc;

use super::document::{self, Node, Source, Table, Value, Via};
use super::section::Section;
use crate::wire::options::RuntimeOptions;

/// The options of `containerd.runc.v1.Options`, as people know them from other runtimes' tables.
pub(super) fn options(top: &mut Section<'_>) -> RuntimeOptions {
    let options = RuntimeOptions {
        binary_name: top.take("BinaryName", String::new()),
        root: top.take("Root", String::new()),
        systemd_cgroup: top.take("SystemdCgroup", false),
        no_pivot_root: top.take("NoPivotRoot", false),
        no_new_keyring: top.take("NoNewKeyring", false),
        criu_path: top.take("CriuPath", String::new()),
        criu_image_path: top.take("CriuImagePath", String::new()),
        criu_work_path: top.take("CriuWorkPath", String::new()),
        shim_cgroup: top.take("ShimCgroup", String::new()),
        io_uid: top.take("IoUid", 0),
        io_gid: top.take("IoGid", 0),
        ..RuntimeOptions::default()
    };
    // containerd's own keys. A ConfigPath that is not empty would have come instead of the table.
    for key in ["TypeUrl", "ConfigPath", "TaskApiAddress"] {
        top.take(key, String::new());
    }
    top.take("TaskApiVersion", 0);
    options
}

/// Those of `options` that say something, by the names that they have in a table.
pub(super) fn said(options: &RuntimeOptions) -> Vec<(&'static str, serde_json::Value)> {
    let all: [(&str, serde_json::Value); 11] = [
        ("BinaryName", options.binary_name.as_str().into()),
        ("Root", options.root.as_str().into()),
        ("SystemdCgroup", options.systemd_cgroup.into()),
        ("NoPivotRoot", options.no_pivot_root.into()),
        ("NoNewKeyring", options.no_new_keyring.into()),
        ("CriuPath", options.criu_path.as_str().into()),
        ("CriuImagePath", options.criu_image_path.as_str().into()),
        ("CriuWorkPath", options.criu_work_path.as_str().into()),
        ("ShimCgroup", options.shim_cgroup.as_str().into()),
        ("IoUid", options.io_uid.into()),
        ("IoGid", options.io_gid.into()),
    ];
    let says = |value: &serde_json::Value| *value != "" && *value != false && *value != 0;
    all.into_iter().filter(|(_, value)| says(value)).collect()
}

/// The cgroup for the shim that a table of options names. `start` asks, before anything else of the
/// configuration counts: a table with faults is for Create to refuse.
pub(crate) fn shim_cgroup(body: &[u8]) -> Option<String> {
    let source = Rc::new(Source { name: String::new(), via: Via::ConfigBody });
    match document::parse(body, &source).ok()?.remove("ShimCgroup")?.value {
        Value::Leaf(toml::Value::String(path)) => Some(path),
        _ => None,
    }
}

/// Keys of [`options`], which keep their names.
const OPTIONS: [&str; 15] = [
    "BinaryName",
    "Root",
    "SystemdCgroup",
    "NoPivotRoot",
    "NoNewKeyring",
    "CriuPath",
    "CriuImagePath",
    "CriuWorkPath",
    "ShimCgroup",
    "IoUid",
    "IoGid",
    "TypeUrl",
    "ConfigPath",
    "TaskApiAddress",
    "TaskApiVersion",
];

/// Whether a table has nothing but options, none of berth's own keys: then it is no configuration,
/// but single values on top of one.
pub(super) fn is_options(table: &Table) -> bool {
    table.keys().all(|key| OPTIONS.contains(&key.as_str()))
}

/// The same table with berth's own keys as a file has them: `DefaultRuntime` is `default_runtime`.
/// Names that people choose, those of runtimes and of variables, stay as they are.
///
/// # Errors
/// A sentence for each key that is there in both forms.
pub(super) fn normalize(table: Table) -> Result<Table, Vec<String>> {
    let mut faults = Vec::new();
    let mut top = keys(table, &OPTIONS, &mut faults);
    if let Some(Node { value: Value::Table(runtimes), .. }) = top.get_mut("runtimes") {
        for node in runtimes.values_mut() {
            lower(node, &mut faults);
            if let Value::Table(entry) = &mut node.value {
                entry.get_mut("deadline").into_iter().for_each(|node| lower(node, &mut faults));
            }
        }
    }
    top.get_mut("deadline").into_iter().for_each(|node| lower(node, &mut faults));
    if faults.is_empty() { Ok(top) } else { Err(faults) }
}

fn lower(node: &mut Node, faults: &mut Vec<String>) {
    if let Value::Table(table) = &mut node.value {
        *table = keys(std::mem::take(table), &[], faults);
    }
}

fn keys(table: Table, kept: &[&str], faults: &mut Vec<String>) -> Table {
    let mut renamed = Table::new();
    for (key, node) in table {
        let new = if kept.contains(&key.as_str()) { key.clone() } else { snake_case(&key) };
        let place = node.place.clone();
        if renamed.insert(new.clone(), node).is_some() {
            faults.push(format!("{place}: {new}: is there twice, also as {key:?}"));
        }
    }
    renamed
}

/// `NoPivotRoot` is `no_pivot_root`; a key that does not begin with a capital letter stays.
fn snake_case(key: &str) -> String {
    if !key.starts_with(|first: char| first.is_ascii_uppercase()) {
        return key.to_owned();
    }
    let mut snake = String::with_capacity(key.len() + 4);
    for (at, letter) in key.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::Report;

    #[test]
    fn the_shim_s_cgroup_is_found_in_a_table_of_options() {
        let cases = [
            ("ShimCgroup = '/a'", Some("/a")),
            ("BinaryName = 'crun'\nShimCgroup = \"/a\"\n[x]\ny = 1", Some("/a")),
            ("BinaryName = 'crun'", None),
            ("[x]\nShimCgroup = '/a'", None),
            ("ShimCgroup = 1", None),
            ("ShimCgroup = ", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(shim_cgroup(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn options_are_listed_as_they_are_read() {
        let mut report = Report::default();
        let mut section = Section::new(String::new(), Table::new(), &mut report);
        options(&mut section);
        let mut read = section.known().to_vec();
        let mut listed = OPTIONS.to_vec();
        read.sort_unstable();
        listed.sort_unstable();
        assert_eq!(read, listed);
    }

    #[test]
    fn camel_case_is_another_form_of_the_same_key() {
        let cases = [
            ("DefaultRuntime", "default_runtime"),
            ("Runtimes", "runtimes"),
            ("default_runtime", "default_runtime"),
            ("deadline", "deadline"),
            ("", ""),
            ("ÄX", "ÄX"),
        ];
        for (key, expected) in cases {
            assert_eq!(snake_case(key), expected);
        }
    }
}
