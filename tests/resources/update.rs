//! Update: what of OCI `LinuxResources` reaches the kernel through which runtime.

use std::fs;
use std::process::Command;

use protobuf::{Message, MessageField};
use serde_json::{Value, json};

use super::{cgroup, is_v2};
use crate::support::{Answer, Api, Code, Host, Shim, Spec, skipped};

/// What is in a file afterwards: by runc 1.1, and by crun 1.8.
struct Expected {
    /// v1's controller.
    controller: &'static str,
    /// Empty where nothing can be seen of it, but whether it is refused.
    file: &'static str,
    first_lines: [&'static str; 2],
}

/// In place of a line: the runtime refuses, and the file does not matter.
const REFUSED: &str = "refused";
/// What a kernel may be built, or booted, without.
const OPTIONAL: [&str; 3] = ["memory.memsw.limit_in_bytes", "memory.swap.max", "cpu.idle"];

/// By both the same.
const fn at(controller: &'static str, file: &'static str, line: &'static str) -> Option<Expected> {
    Some(Expected { controller, file, first_lines: [line, line] })
}

const fn by(
    controller: &'static str,
    file: &'static str,
    first_lines: [&'static str; 2],
) -> Option<Expected> {
    Some(Expected { controller, file, first_lines })
}

/// Resources, and what becomes of them on v1 and on v2; `None`: that depends on the host.
type Row = (Value, Option<Expected>, Option<Expected>);

/// What both runtimes do.
fn done_by_all() -> Vec<Row> {
    let memory = |file, line| at("memory", file, line);
    let cpu = |file, line| at("cpu", file, line);
    let refused = || at("", "", REFUSED);
    vec![
        (
            json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}}),
            memory("memory.limit_in_bytes", "67108864"),
            memory("memory.max", "67108864"),
        ),
        (
            json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
            memory("memory.memsw.limit_in_bytes", "134217728"),
            memory("memory.swap.max", "67108864"),
        ),
        (
            json!({"memory": {"reservation": 32 << 20}}),
            memory("memory.soft_limit_in_bytes", "33554432"),
            memory("memory.low", "33554432"),
        ),
        (json!({"cpu": {"shares": 512}}), cpu("cpu.shares", "512"), cpu(WEIGHT, "20")),
        (
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
            cpu("cpu.cfs_quota_us", "50000"),
            cpu("cpu.max", "50000 100000"),
        ),
        (
            json!({"cpu": {"quota": 20_000, "period": 40_000}}),
            cpu("cpu.cfs_period_us", "40000"),
            cpu("cpu.max", "20000 40000"),
        ),
        (json!({"cpu": {"cpus": "0", "mems": "0"}}), at("cpuset", "cpuset.cpus", "0"), None),
        (json!({"pids": {"limit": 77}}), at("pids", "pids.max", "77"), at("", "pids.max", "77")),
        (
            json!({"unified": {"memory.high": "60000000"}}),
            refused(),
            memory("memory.high", "59998208"), // whole pages
        ),
        (json!({"unified": {"pids.max": "55"}}), refused(), at("", "pids.max", "55")),
        // A part that is null is one that is not there; runc 1.1 crashes at some of these.
        (
            json!({"pids": {"limit": 33}, "memory": null, "cpu": null, "blockIO": null}),
            at("pids", "pids.max", "33"),
            at("", "pids.max", "33"),
        ),
        (json!({}), memory("memory.limit_in_bytes", "67108864"), memory("memory.max", "67108864")),
    ]
}

/// Newer runtimes convert shares to it by another curve.
const WEIGHT: &str = "cpu.weight";

/// Where they differ: mostly in what runc 1.1 passes over without a word, and crun 1.8 does, or says
/// that v2 does not have. berth passes it on to either.
fn done_by_some() -> Vec<Row> {
    let memory = |file, lines| by("memory", file, lines);
    let crun_refuses = || by("", "", ["", REFUSED]);
    let read = json!([{"major": 7, "minor": 0, "rate": 1 << 20}]);
    let write = json!([{"major": 7, "minor": 0, "rate": 100}]);
    let [reads, both] = [
        "7:0 rbps=1048576 wbps=max riops=max wiops=max",
        "7:0 rbps=1048576 wbps=max riops=max wiops=100",
    ];
    vec![
        (
            json!({"pids": {"limit": -1}}),
            by("pids", "pids.max", ["max", REFUSED]),
            at("", "pids.max", "max"),
        ),
        (
            json!({"memory": {"swappiness": 10}}),
            memory("memory.swappiness", ["60", "10"]),
            crun_refuses(),
        ),
        (
            json!({"memory": {"kernelTCP": 20 << 20}}),
            memory("memory.kmem.tcp.limit_in_bytes", ["9223372036854771712", "20971520"]),
            crun_refuses(),
        ),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            memory("memory.oom_control", ["oom_kill_disable 0", "oom_kill_disable 1"]),
            crun_refuses(),
        ),
        (
            json!({"blockIO": {"throttleReadBpsDevice": read}}),
            by("blkio", "blkio.throttle.read_bps_device", ["", "7:0 1048576"]),
            by("", "io.max", ["", reads]),
        ),
        (
            json!({"blockIO": {"throttleWriteIOPSDevice": write}}),
            by("blkio", "blkio.throttle.write_iops_device", ["", "7:0 100"]),
            by("", "io.max", ["", both]),
        ),
        (
            json!({"cpu": {"idle": 1}}),
            by("cpu", "cpu.idle", ["0", "1"]),
            by("", "cpu.idle", ["0", "1"]),
        ),
        (json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}), None, crun_refuses()),
    ]
}

/// Which of the two the containers run with; `None` for other runtimes and versions.
fn column(host: &Host) -> Option<usize> {
    let output = Command::new(host.runtime()).arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ["runc version 1.1.", "crun version 1.8."].iter().position(|known| said.starts_with(known))
}

/// Updates container `c`, and looks at what has become of it.
fn check(shim: &Shim<'_>, column: Option<usize>, row: Row) {
    let (resources, v1, v2) = row;
    let Some(Expected { controller, file, first_lines }) = (if is_v2() { v2 } else { v1 }) else {
        return;
    };
    let line = match column {
        Some(column) => first_lines[column],
        None if first_lines[0] == first_lines[1] && file != WEIGHT => first_lines[0],
        None => return eprintln!("{resources}: unknown of this runtime's version"),
    };
    match shim.update("c", &resources) {
        Err(refusal) => {
            assert_eq!(line, REFUSED, "{resources}: {refusal:?}");
            if !skipped("the runtime's command is named") {
                assert!(refusal.message.contains("update` failed"), "{refusal:?}");
            }
            return;
        }
        Ok(()) => assert_ne!(line, REFUSED, "{resources}"),
    }
    if file.is_empty() {
        return;
    }
    let dir = cgroup(shim.host(), controller, "c");
    if OPTIONAL.contains(&file) && !dir.parent().unwrap().join(file).exists() {
        return eprintln!("{resources}: this kernel has no {file}");
    }
    let text = fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(text.lines().next().unwrap_or_default(), line, "{resources}: {file}");
}

#[test]
fn resources_reach_the_kernel_through_the_runtime() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let column = column(&host);
    for row in done_by_all().into_iter().chain(done_by_some()) {
        check(&shim, column, row);
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
