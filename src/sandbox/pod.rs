//! What a pod is to be, in the terms of the kernel; pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::ContainerId;
use crate::sandbox::sizing::Limits;

/// How a pod was asked for: the fields of CRI's `PodSandboxConfig` that matter to its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Empty: the host's.
    pub(crate) hostname: String,
    /// `None`: the host's resolv.conf.
    pub(crate) dns: Option<Dns>,
    /// The cgroup that is the pod's; the sandbox's own is made in it.
    pub(crate) cgroup_parent: String,
    /// Kernel parameters of the pod's namespaces.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Whose network the pod has.
    pub(crate) network: Share,
    /// Whose processes the pod's containers see.
    pub(crate) pid: Share,
    /// Whose IPC objects and `/dev/shm`.
    pub(crate) ipc: Share,
    /// The maps of the pod's own user namespace.
    pub(crate) user: Option<Maps>,
    /// What all its containers may use together, which whoever makes the pod's cgroup sees to.
    pub(crate) limits: Limits,
}

/// With whom a pod's containers share a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// With each other.
    #[default]
    Pod,
    /// With nobody, or with a container that is not the sandbox.
    Container,
    /// With the host.
    Host,
}

/// Lines for resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// Id maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maps {
    pub(crate) uids: Vec<Range>,
    pub(crate) gids: Vec<Range>,
}

/// Ids in a row, inside and outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) length: u32,
}

impl Maps {
    /// The map of uids, and that of gids, as `/proc/PID/uid_map` takes them.
    pub(crate) fn lines(&self) -> (String, String) {
        let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.length);
        (self.uids.iter().map(line).collect(), self.gids.iter().map(line).collect())
    }

    /// Who the pod's root is on the host: uid and gid.
    pub(crate) fn root(&self) -> (Option<u32>, Option<u32>) {
        let root = |ranges: &[Range]| {
            let zero = ranges.iter().find(|range| range.inside == 0 && range.length > 0);
            zero.map(|range| range.outside)
        };
        (root(&self.uids), root(&self.gids))
    }
}

impl Dns {
    /// The text of resolv.conf, in the order in which containerd writes it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

impl Pod {
    /// Whether the texts can be what they are for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a host name that is longer than the kernel's 64 bytes, and for lines
    /// within what is one line of a file.
    pub(crate) fn check(&self) -> Result<()> {
        const LONGEST: usize = 64; // sethostname(2)
        let Self { hostname, .. } = self;
        if hostname.len() > LONGEST {
            return Err(Error::Invalid(format!("host name {hostname:?} is longer than 64 bytes")));
        }
        let dns = self.dns.iter();
        let lines = dns.flat_map(|dns| [&dns.servers, &dns.searches, &dns.options]).flatten();
        match lines.chain([hostname]).find(|text| text.contains(char::is_control)) {
            Some(text) => Err(Error::Invalid(format!("{text:?} has a control character"))),
            None => Ok(()),
        }
    }

    /// Whether the pod has a host name of its own: with the host's network it has the host's.
    pub(crate) fn own_hostname(&self) -> bool {
        self.network != Share::Host
    }

    /// The kernel parameters to set, each as the path below `/proc/sys` and its value.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is not the pod's own: it would change the host.
    pub(crate) fn sysctls(&self) -> Result<Vec<(String, String)>> {
        let one = |(name, value): (&String, &String)| {
            let path = sysctl_path(name);
            let own = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
                && self.is_own(&path);
            if own {
                return Ok((path, value.clone()));
            }
            Err(Error::Invalid(format!("sysctl {name:?} is not in a namespace of the pod's own")))
        };
        self.sysctls.iter().map(one).collect()
    }

    /// Whether a kernel parameter is one of a namespace, and the pod has such a namespace.
    fn is_own(&self, path: &str) -> bool {
        let in_kernel = |name: &str| {
            let ipc = ["sem", "msgmax", "msgmnb", "msgmni", "msg_next_id", "sem_next_id"];
            name.starts_with("shm") || ipc.contains(&name)
        };
        match path.split_once('/') {
            Some(("net", _)) => self.network != Share::Host,
            Some(("fs", rest)) => self.ipc != Share::Host && rest.starts_with("mqueue/"),
            Some(("kernel", "domainname")) => self.own_hostname(),
            Some(("kernel", name)) => self.ipc != Share::Host && in_kernel(name),
            _ => false,
        }
    }

    /// The cgroup of the sandbox, as seen from the root of the hierarchies.
    ///
    /// As containerd's own sandbox has it: below the pod's, named after the sandbox. A pod's that
    /// is a systemd slice (its last part ends so) lies where systemd has that slice, and the
    /// sandbox's has the name of a scope. Without one it is `/NAMESPACE/ID`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that leads upwards.
    pub(crate) fn cgroup(&self, namespace: &str, id: &ContainerId) -> Result<PathBuf> {
        let parent = self.parent_cgroup()?;
        Ok(match parent {
            None => Path::new("/").join(namespace).join(id.as_str()),
            Some(parent) if parent.to_string_lossy().ends_with(".slice") => {
                parent.join(format!("cri-containerd-{id}.scope"))
            }
            Some(parent) => parent.join(id.as_str()),
        })
    }

    /// The pod's cgroup, if it was given one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that leads upwards.
    pub(crate) fn parent_cgroup(&self) -> Result<Option<PathBuf>> {
        let parent = Path::new(&self.cgroup_parent);
        let Some(name) = parent.file_name() else { return Ok(None) };
        if self.cgroup_parent.split('/').any(|part| part == "..") {
            let parent = &self.cgroup_parent;
            return Err(Error::Invalid(format!("cgroup parent {parent:?} leads upwards")));
        }
        let name = name.to_string_lossy();
        if name.ends_with(".slice") {
            return Ok(Some(crate::cgroup::slice_path(&name)));
        }
        Ok(Some(Path::new("/").join(parent)))
    }
}

/// The path below `/proc/sys`, as sysctl(8) reads a name: dots are slashes, and slashes dots,
/// unless a slash comes first.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name.to_owned(),
        _ => {
            let swap = |letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_line_of_a_bearable_length() {
        let dns = |text: &str| Some(Dns { searches: vec![text.into()], ..Dns::default() });
        let cases = [
            ("plain", "host", None, None),
            ("longest", &"h".repeat(64), dns("example.org"), None),
            ("too long", &"h".repeat(65), None, Some("longer than 64 bytes")),
            ("two lines", "a\nb", None, Some("control character")),
            ("line in DNS", "host", dns("a\nnameserver 1.2.3.4"), Some("control character")),
        ];
        for (name, hostname, dns, expected) in cases {
            let pod = Pod { hostname: hostname.into(), dns, ..Pod::default() };
            match (pod.check(), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{name}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn only_kernel_parameters_of_the_pods_own_namespaces_are_set() {
        let pod = Pod::default();
        let host = Pod { network: Share::Host, ipc: Share::Host, ..pod.clone() };
        let cases = [
            ("net", &pod, "net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("slashes", &pod, "net/ipv4/conf/a.b/arp", Some("net/ipv4/conf/a.b/arp")),
            ("swapped", &pod, "net.ipv4.conf.a/b.arp", Some("net/ipv4/conf/a.b/arp")),
            ("shm", &pod, "kernel.shmmax", Some("kernel/shmmax")),
            ("sem", &pod, "kernel.sem", Some("kernel/sem")),
            ("mqueue", &pod, "fs.mqueue.msg_max", Some("fs/mqueue/msg_max")),
            ("domain", &pod, "kernel.domainname", Some("kernel/domainname")),
            ("the host's network", &host, "net.ipv4.ip_forward", None),
            ("the host's IPC", &host, "kernel.shmmax", None),
            ("the host's queues", &host, "fs.mqueue.msg_max", None),
            ("the host's domain", &host, "kernel.domainname", None),
            ("the host's memory", &pod, "vm.swappiness", None),
            ("the host's kernel", &pod, "kernel.panic", None),
            ("the host's files", &pod, "fs.file-max", None),
            ("upwards", &pod, "net/../vm/swappiness", None),
            ("upwards, by dots", &pod, "net....vm", None),
            ("a whole table", &pod, "net", None),
            ("nothing", &pod, "", None),
        ];
        for (name, pod, key, expected) in cases {
            let sysctls = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
            let found = Pod { sysctls, ..pod.clone() }.sysctls();
            match expected {
                Some(path) => assert_eq!(found.unwrap(), [(path.into(), "1".into())], "{name}"),
                None => {
                    assert!(found.unwrap_err().to_string().contains("of the pod's own"), "{name}")
                }
            }
        }
    }

    #[test]
    fn the_sandboxs_cgroup_lies_in_the_pods() {
        let id = ContainerId::new("x").unwrap();
        let cases = [
            ("none", "", "/k8s.io/x", None),
            ("cgroupfs", "/kubepods/pod1", "/kubepods/pod1/x", Some("/kubepods/pod1")),
            ("relative", "kubepods/pod1", "/kubepods/pod1/x", Some("/kubepods/pod1")),
            (
                "systemd, as the kubelet has it",
                "/kubepods.slice/kubepods-pod1.slice",
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope",
                Some("/kubepods.slice/kubepods-pod1.slice"),
            ),
            (
                "systemd, the name alone",
                "a-b.slice",
                "/a.slice/a-b.slice/cri-containerd-x.scope",
                Some("/a.slice/a-b.slice"),
            ),
        ];
        for (name, parent, own, pods) in cases {
            let pod = Pod { cgroup_parent: parent.into(), ..Pod::default() };
            assert_eq!(pod.cgroup("k8s.io", &id).unwrap(), Path::new(own), "{name}");
            assert_eq!(pod.parent_cgroup().unwrap().as_deref(), pods.map(Path::new), "{name}");
        }
        let pod = Pod { cgroup_parent: "/a/../b".into(), ..Pod::default() };
        assert!(pod.cgroup("k8s.io", &id).is_err());
    }

    #[test]
    fn resolv_conf_has_what_was_asked_for() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let dns = Dns {
            servers: words(&["10.0.0.1", "10.0.0.2"]),
            searches: words(&["a.b", "c"]),
            options: words(&["ndots:5"]),
        };
        let text = "search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        assert_eq!(dns.text(), text);
        assert_eq!(Dns::default().text(), "");
    }
}
