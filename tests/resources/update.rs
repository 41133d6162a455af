//! Update: what of OCI `LinuxResources` reaches the kernel through which runtime.

use std::fs;

use protobuf::{Message, MessageField};
use serde_json::{Value, json};

use super::{cgroup, is_v2};
use crate::support::{Answer, Api, Code, Host, Shim, Spec, skipped};

/// Where a value must be found, in one of the forms that runtimes' versions give it.
struct Expected {
    /// v1's controller.
    controller: &'static str,
    file: &'static str,
    values: &'static [&'static str],
}

const fn at(
    controller: &'static str,
    file: &'static str,
    values: &'static [&'static str],
) -> Option<Expected> {
    Some(Expected { controller, file, values })
}

/// Resources, and what is then in a file of v1 and of v2; `None`: the mode has no such thing.
type Row = (Value, Option<Expected>, Option<Expected>);

/// What both runtimes do.
fn done_by_all() -> Vec<Row> {
    let memory = |file, values| at("memory", file, values);
    let cpu = |file, values| at("cpu", file, values);
    vec![
        (
            json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}}),
            memory("memory.limit_in_bytes", &["67108864"]),
            memory("memory.max", &["67108864"]),
        ),
        (
            json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
            memory("memory.memsw.limit_in_bytes", &["134217728"]),
            memory("memory.swap.max", &["67108864"]),
        ),
        (
            json!({"memory": {"reservation": 32 << 20}}),
            memory("memory.soft_limit_in_bytes", &["33554432"]),
            memory("memory.low", &["33554432"]),
        ),
        // Newer runtimes convert shares to weight by another curve.
        (
            json!({"cpu": {"shares": 512}}),
            cpu("cpu.shares", &["512"]),
            cpu("cpu.weight", &["20", "59"]),
        ),
        (
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
            cpu("cpu.cfs_quota_us", &["50000"]),
            cpu("cpu.max", &["50000 100000"]),
        ),
        (
            json!({"cpu": {"quota": 20_000, "period": 40_000}}),
            cpu("cpu.cfs_period_us", &["40000"]),
            cpu("cpu.max", &["20000 40000"]),
        ),
        (json!({"cpu": {"cpus": "0", "mems": "0"}}), at("cpuset", "cpuset.cpus", &["0"]), None),
        (
            json!({"pids": {"limit": 77}}),
            at("pids", "pids.max", &["77"]),
            at("", "pids.max", &["77"]),
        ),
        (
            json!({"unified": {"memory.high": "60000000"}}),
            None,
            memory("memory.high", &["59998208", "59999232", "60000000"]),
        ),
        (json!({"unified": {"pids.max": "55"}}), None, at("", "pids.max", &["55"])),
        // A part that is null is one that is not there; runc 1.1 crashes at some of these.
        (
            json!({"pids": {"limit": 33}, "memory": null, "cpu": null, "blockIO": null}),
            at("pids", "pids.max", &["33"]),
            at("", "pids.max", &["33"]),
        ),
        (
            json!({}),
            memory("memory.limit_in_bytes", &["67108864"]),
            memory("memory.max", &["67108864"]),
        ),
    ]
}

/// What runc 1.1 passes over without a word, and crun 1.8 does: berth passes it on to either. `None`
/// in place of the file: what becomes of it cannot be seen here.
fn done_by_some() -> Vec<Row> {
    let memory = |file, values| at("memory", file, values);
    vec![
        (json!({"memory": {"swappiness": 10}}), memory("memory.swappiness", &["10", "60"]), None),
        (
            json!({"memory": {"kernelTCP": 20 << 20}}),
            memory("memory.kmem.tcp.limit_in_bytes", &["20971520", "9223372036854771712"]),
            None,
        ),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 7, "minor": 0, "rate": 1 << 20}]}}),
            at("blkio", "blkio.throttle.read_bps_device", &["7:0 1048576", ""]),
            None,
        ),
        (
            json!({"cpu": {"idle": 1}}),
            at("cpu", "cpu.idle", &["1", "0"]),
            at("", "cpu.idle", &["1", "0"]),
        ),
        (json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}), None, None),
    ]
}

fn check(host: &Host, row: &Row) {
    let (resources, v1, v2) = row;
    let Some(expected) = (if is_v2() { v2 } else { v1 }) else { return };
    let path = cgroup(host, expected.controller, "c").join(expected.file);
    let Ok(text) = fs::read_to_string(&path) else {
        // A kernel without swap accounting, or without this file.
        return assert!(
            !path.parent().unwrap().join("memory.max").exists()
                || expected.file.contains("swap")
                || expected.file.contains("idle"),
            "{path:?}"
        );
    };
    assert!(expected.values.contains(&text.trim()), "{resources}: {path:?} has {text:?}");
}

#[test]
fn resources_reach_the_kernel_through_the_runtime() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for row in done_by_all() {
        if (row.1.is_none() && !is_v2()) || (row.2.is_none() && is_v2()) {
            continue;
        }
        shim.update("c", &row.0).unwrap_or_else(|refusal| panic!("{}: {refusal:?}", row.0));
        check(&host, &row);
    }
    for row in done_by_some() {
        match shim.update("c", &row.0) {
            Ok(()) => check(&host, &row),
            Err(refusal) => assert!(refusal.message.contains("update` failed"), "{refusal:?}"),
        }
    }
    let refusal = shim.update("c", &json!({"cpu": {"cpus": "4000"}})).unwrap_err();
    assert!(!refusal.message.is_empty() && refusal.code == Code::UNKNOWN, "{refusal:?}");
    assert_eq!(host.files("c").iter().filter(|name| name.contains("resources")).count(), 0);
    shim.end();
}

#[test]
fn a_container_is_updated_in_every_state_but_its_last() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod"); // a sandbox container, and one of its pod
    host.prepare("c", Spec::idle().of_pod("pod"));
    let mut limit = 50;
    let mut update = |id: &str| {
        limit += 1;
        shim.update(id, &json!({"pids": {"limit": limit}})).map(|()| {
            let text = fs::read_to_string(cgroup(&host, "pids", id).join("pids.max")).unwrap();
            assert_eq!(text.trim(), limit.to_string(), "{id}");
        })
    };
    update("pod").unwrap();
    shim.create_plain("c").unwrap();
    update("c").unwrap();
    shim.start("c", "").unwrap();
    update("c").unwrap();
    shim.pause("c").unwrap();
    update("c").unwrap();
    shim.resume("c").unwrap();
    update("c").unwrap();
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap();
    let late = update("c").unwrap_err();
    if !skipped("an update after the end is refused as such") {
        assert_eq!(late.code, Code::FAILED_PRECONDITION, "{late:?}");
    }
    shim.reap("c", "");
    shim.end();
}

/// Update with an `Any` as it is.
fn update_any(shim: &Shim<'_>, type_url: &str, value: &str) -> Answer<()> {
    use containerd_shim_protos::api::UpdateTaskRequest;
    let any = protobuf::well_known_types::any::Any {
        type_url: type_url.into(),
        value: value.into(),
        ..Default::default()
    };
    let resources = MessageField::some(any);
    let annotations = [("a".to_owned(), "b".to_owned())].into();
    let request =
        UpdateTaskRequest { id: "c".into(), resources, annotations, ..Default::default() };
    let service = match shim.api() {
        Api::V2 => "containerd.task.v2.Task",
        Api::V3 => "containerd.task.v3.Task",
    };
    shim.raw(service, "Update", request.write_to_bytes().unwrap()).map(drop)
}

#[test]
fn what_is_no_linux_resources_is_refused_with_its_name() {
    if skipped("the type of resources is checked") {
        return;
    }
    const LINUX: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    const WINDOWS: &str = "types.containerd.io/opencontainers/runtime-spec/1/WindowsResources";
    let prefixed = format!("type.googleapis.com/{LINUX}");
    let pids = r#"{"pids":{"limit":50}}"#;
    let cases = [
        ("as containerd has it", LINUX, pids, None),
        ("as other clients may", &prefixed, pids, None),
        ("of another system", WINDOWS, pids, Some("WindowsResources")),
        ("nothing", "", "", Some("no resources")),
        ("no JSON", LINUX, "{", Some("EOF")),
        ("no object", LINUX, "[1]", Some("LinuxResources")),
        ("null", LINUX, "null", Some("LinuxResources")),
    ];
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for (name, url, value, refused) in cases {
        match (update_any(&shim, url, value), refused) {
            (Ok(()), None) => {}
            (Err(refusal), Some(words)) => {
                assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{name}: {refusal:?}");
                assert!(refusal.message.contains(words), "{name}: {refusal:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    shim.end();
}
