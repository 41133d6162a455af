//! The fields of config.json that berth needs; everything else is the runtime's business.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::cgroup::slice_path;
use crate::config::{CONFIG_ANNOTATION, RUNTIME_ANNOTATION};
use crate::ids::ContainerId;
use crate::sandbox::sizing::Limits;

/// Begins the names of the annotations that are berth's own.
pub(crate) const RESERVED: &str = "io.containerd.berth.";

/// Whether a runtime takes an annotation for berth's word, which nobody else may give.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED) && ![CONFIG_ANNOTATION, RUNTIME_ANNOTATION].contains(&name)
}

/// What is read of a config.json; a field that is missing or null has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// Annotations of the container.
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) annotations: HashMap<String, String>,
    /// Mounts of the container.
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) mounts: Vec<SpecMount>,
    #[serde(deserialize_with = "null_is_default")]
    linux: Linux,
    #[serde(deserialize_with = "null_is_default")]
    process: Process,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Process {
    #[serde(deserialize_with = "null_is_default")]
    apparmor_profile: String,
    #[serde(deserialize_with = "null_is_default")]
    selinux_label: String,
    #[serde(deserialize_with = "null_is_default")]
    capabilities: Capabilities,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(deserialize_with = "null_is_default")]
    bounding: Vec<String>,
}

/// One mount of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SpecMount {
    /// Where in the container.
    pub(crate) destination: String,
    /// What of the host.
    pub(crate) source: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    #[serde(deserialize_with = "null_is_default")]
    cgroups_path: String,
    #[serde(deserialize_with = "null_is_default")]
    namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "null_is_default")]
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    #[serde(deserialize_with = "null_is_default")]
    cpu: Cpu,
    #[serde(deserialize_with = "null_is_default")]
    memory: Memory,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    #[serde(deserialize_with = "null_is_default")]
    period: u64,
    #[serde(deserialize_with = "null_is_default")]
    quota: i64,
    #[serde(deserialize_with = "null_is_default")]
    shares: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    #[serde(deserialize_with = "null_is_default")]
    limit: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

fn null_is_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Spec {
    /// What the container's annotation `name` says; one that is empty says nothing.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether somebody else has written an annotation in berth's name.
    pub(crate) fn has_reserved_annotation(&self) -> bool {
        self.annotations.keys().any(|name| is_reserved(name))
    }

    /// The limits that the container itself has.
    pub(crate) fn limits(&self) -> Limits {
        let Resources { cpu, memory } = &self.linux.resources;
        let Cpu { period, quota, shares } = *cpu;
        Limits { period, quota, shares, memory: memory.limit }
    }

    /// Whether the kernel ends every process of the container with its init: the container has a
    /// PID namespace that is new, neither the host's nor another container's.
    pub(crate) fn has_own_pid_namespace(&self) -> bool {
        self.linux.namespaces.iter().any(|space| space.kind == "pid" && space.path.is_empty())
    }

    /// Whether nobody can write where the init process writes after its end, and the host's security
    /// modules look at nothing but file modes: an AppArmor profile or SELinux label of a container
    /// covers pipes, but most often not a FIFO of the host, and in a user namespace a FIFO has another
    /// owner. Whoever may open files by handle needs no more than a descriptor on the host's file system.
    pub(crate) fn is_confined(&self) -> bool {
        let labelled =
            !self.process.apparmor_profile.is_empty() || !self.process.selinux_label.is_empty();
        let user = self.linux.namespaces.iter().any(|space| space.kind == "user");
        let opens_handles =
            self.process.capabilities.bounding.iter().any(|name| name == "CAP_DAC_READ_SEARCH");
        self.has_own_pid_namespace() && !labelled && !user && !opens_handles
    }

    /// Whether `cgroupsPath` is of systemd's form `slice:prefix:name`, which only the systemd
    /// cgroup driver of a runtime understands.
    pub(crate) fn wants_systemd_cgroup(&self) -> bool {
        let path = &self.linux.cgroups_path;
        !path.starts_with('/') && path.split(':').count() == 3
    }

    /// Where the runtime makes the container's cgroup, from the root of the hierarchies; `None`
    /// unless the path ends with the container's own `id`, as every client of containerd has it:
    /// any other might be somebody else's too.
    pub(crate) fn cgroup_path(&self, id: &ContainerId) -> Option<PathBuf> {
        let path = &self.linux.cgroups_path;
        if !self.wants_systemd_cgroup() {
            let path = Path::new(path);
            let clean = path.components().all(|part| !matches!(part, Component::ParentDir));
            let own = path.file_name().is_some_and(|name| name == id.as_str());
            return (clean && path.is_absolute() && own).then(|| path.to_owned());
        }
        let mut parts = path.split(':');
        let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let own = name == id.as_str() && !slice.contains('/') && !prefix.contains('/');
        own.then(|| slice_path(slice).join(unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_pid_namespace_is_own_only_if_it_is_new() {
        let cases = [
            ("new", r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#, true),
            (
                "joined",
                r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#,
                false,
            ),
            ("host", r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#, false),
            ("null", r#"{"linux":{"namespaces":null}}"#, false),
            ("no linux", "{}", false),
        ];
        for (name, json, expected) in cases {
            assert_eq!(spec(json).has_own_pid_namespace(), expected, "{name}");
        }
    }

    #[test]
    fn what_confines_an_init_process_is_known() {
        let own = r#""linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}"#;
        let cases = [
            ("own PID namespace", format!("{{{own}}}"), true),
            ("null", format!(r#"{{{own},"process":{{"apparmorProfile":null}}}}"#), true),
            ("host's PID namespace", r#"{"linux":{}}"#.into(), false),
            ("AppArmor", format!(r#"{{{own},"process":{{"apparmorProfile":"p"}}}}"#), false),
            (
                "opens files by handle",
                format!(
                    r#"{{{own},"process":{{"capabilities":{{"bounding":["CAP_DAC_READ_SEARCH"]}}}}}}"#
                ),
                false,
            ),
            ("SELinux", format!(r#"{{{own},"process":{{"selinuxLabel":"l"}}}}"#), false),
            (
                "user namespace",
                r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"user"}]}}"#.into(),
                false,
            ),
        ];
        for (name, json, expected) in cases {
            assert_eq!(spec(&json).is_confined(), expected, "{name}");
        }
    }

    #[test]
    fn systemd_cgroups_are_known_by_their_path() {
        let cases = [
            ("systemd", "kubepods-burstable.slice:cri-containerd:abc", true),
            ("default slice", ":docker:abc", true),
            ("cgroupfs", "/default/abc", false),
            ("cgroupfs with colons", "/a:b:c", false),
            ("relative", "abc", false),
            ("none", "", false),
        ];
        for (name, path, expected) in cases {
            let json = format!(r#"{{"linux":{{"cgroupsPath":"{path}"}}}}"#);
            assert_eq!(spec(&json).wants_systemd_cgroup(), expected, "{name}");
        }
    }

    #[test]
    fn a_cgroup_is_known_by_the_containers_id() {
        let cases = [
            ("cgroupfs", "/default/abc", Some("/default/abc")),
            ("somebody else's", "/default/abd", None),
            ("climbing", "/default/../abc", None),
            ("none", "", None),
            (
                "systemd",
                "kubepods-burstable-pod1.slice:cri-containerd:abc",
                Some(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
                ),
            ),
            ("default slice", ":docker:abc", Some("/system.slice/docker-abc.scope")),
            ("root slice", "-.slice:docker:abc", Some("/docker-abc.scope")),
            ("another's scope", "a.slice:docker:abd", None),
        ];
        let id = ContainerId::new("abc").unwrap();
        for (name, path, expected) in cases {
            let json = format!(r#"{{"linux":{{"cgroupsPath":"{path}"}}}}"#);
            let found = spec(&json).cgroup_path(&id);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{name}");
        }
    }
}
