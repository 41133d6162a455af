//! OOM kills, Update, Pause and Pids, with real cgroups.

mod many;
mod oom;
mod pause;
mod pids;
mod update;

use std::fs;
use std::path::PathBuf;

use super::support::{Host, Spec};

/// Whether this host has cgroup v2 alone; hybrid counts as v1.
fn is_v2() -> bool {
    fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok()
}

/// The cgroup of container `id` for a v1 controller, which v2 has in one.
fn cgroup(host: &Host, controller: &str, id: &str) -> PathBuf {
    let root = if is_v2() { String::new() } else { format!("{controller}/") };
    PathBuf::from(format!("/sys/fs/cgroup/{root}berth-test-{}/{id}", host.tag()))
}

/// Sets a memory limit without swap beside it.
fn limited(spec: Spec, bytes: u64) -> Spec {
    spec.set("/linux/resources/memory", serde_json::json!({"limit": bytes, "swap": bytes}))
}
