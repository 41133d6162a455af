//! `config/runtimeclass.yaml`: what it says of a pod's cost is true, and its handler is there.

use std::fs;

use super::cost::private;
use crate::bed::Bed;
use crate::cri::messages::{RUNNING, Resources};
use crate::cri::{Cri, Pod};
use crate::{Case, pod};

pub(crate) const CASES: &[Case] = &[Case { own: true, ..pod("pod-overhead", overhead) }];

const FILE: &str = include_str!("../../../config/runtimeclass.yaml");
const CONFIGURATIONS: [&str; 2] = [
    include_str!("../../../config/containerd-1.toml"),
    include_str!("../../../config/containerd-2.toml"),
];

const MIB: i64 = 1 << 20;

/// The values of `key` in the file, from top to bottom.
fn values(key: &str) -> Vec<&'static str> {
    let lines = FILE.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect()
}

/// Limits the memory of the pod's own cgroup, as a kubelet does.
fn limit(pod: &Pod<'_>, bytes: i64) {
    let files = ["memory.limit_in_bytes", "memory.max"];
    let paths = pod.cgroups().into_iter().flat_map(|cgroup| files.map(|file| cgroup.join(file)));
    let file = paths.into_iter().find(|path| path.exists()).expect("a memory controller");
    fs::write(file, bytes.to_string()).unwrap();
}

/// The example pod runs within its limit and the overhead, and what it costs is no more than that.
fn overhead(bed: &Bed<'_>) {
    for handler in values("handler") {
        let table = format!(".runtimes.{handler}]");
        let there = |text: &&str| text.contains(&table);
        assert!(CONFIGURATIONS.iter().all(there), "no handler {handler}");
    }
    let memory: Vec<_> = values("memory")
        .into_iter()
        .map(|size| size.strip_suffix("Mi").unwrap().parse::<i64>().unwrap() * MIB)
        .collect();
    let [fixed, container] = memory[..] else { panic!("{memory:?}") };
    let resources =
        |bytes| Some(Resources { memory_limit_in_bytes: bytes, ..Resources::default() });
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |pod| {
        pod.linux().overhead = resources(fixed);
        pod.linux().resources = resources(container);
    });
    limit(&pod, fixed + container);
    let program: Vec<String> = serde_json::from_str(values("command")[0]).unwrap();
    let program: Vec<_> = program.iter().map(String::as_str).collect();
    let id = pod.start_with("shell", &program, |config| {
        config.linux().resources = resources(container);
    });
    assert_eq!(pod.status(&id).state, RUNNING);
    let cost = private(pod.shim()) + private(pod.sandbox());
    assert!(cost <= fixed as u64 / 1024, "{cost} KiB");
    pod.remove();
}
