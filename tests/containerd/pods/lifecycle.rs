//! What a kubelet does with pods and containers all day.

use std::fs;

use crate::bed::Bed;
use crate::counters::Counters;
use crate::cri::messages::{
    CREATED, ContainerId, ContainerStatsResponse, CpuUsage, EXITED, Empty, ExecSyncRequest,
    ExecSyncResponse, MemoryUsage, Number, PodSandboxId, PodSandboxStatsResponse, READY, RUNNING,
    Resources, UpdateContainerResourcesRequest,
};
use crate::cri::{Cri, Pod, owned};
use crate::{Case, command, pod};

pub(crate) const CASES: &[Case] = &[
    pod("pod-lifecycle", lifecycle),
    pod("pod-logs", logs),
    pod("pod-exec-sync", exec_sync),
    pod("pod-stats", stats),
    pod("pod-restart-policy", restart_policy),
];

/// Containers of a pod are created, run and end under one shim.
fn lifecycle(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let state = pod.state();
    assert_eq!((state.state, &*state.runtime_handler), (READY, bed.shim.handler()));
    let first = pod.create("first", &["sh", "-c", "sleep 1000"], |_| ());
    assert_eq!(pod.status(&first).state, CREATED);
    pod.launch(&first);
    assert_eq!(pod.status(&first).state, RUNNING);
    let second = pod.start("second", &["sh", "-c", "exit 3"]);
    let ended = pod.await_exit(&second);
    assert_eq!((ended.exit_code, &*ended.reason), (3, "Error"));
    let third = pod.start("third", &["true"]);
    let ended = pod.await_exit(&third);
    assert_eq!((ended.exit_code, &*ended.reason), (0, "Completed"));
    let unknown = pod.create("fourth", &["nothing"], |_| ());
    let refused = cri.attempt::<Empty>("StartContainer", &ContainerId { id: unknown.clone() });
    assert!(refused.unwrap_err().message.contains("nothing"));
    let state = pod.status(&unknown);
    assert_eq!((state.state, state.exit_code, &*state.reason), (EXITED, 128, "StartError"));
    assert_eq!(pod.status(&first).state, RUNNING);
    check_processes(bed, &pod);
    pod.remove_container(&second);
    assert!(cri.containers().iter().all(|container| container.id != second));
    pod.remove();
}

/// A pod with one program running costs one shim and what stands for the pod.
fn check_processes(bed: &Bed<'_>, pod: &Pod<'_>) {
    let mut processes: Vec<_> = Vec::new();
    command::poll(|| {
        processes = pod.processes().iter().map(|process| process.describe()).collect();
        (processes.len() == 3).then_some(())
    });
    assert_eq!(processes.len(), 3, "{processes:?}");
    let pauses = processes.iter().filter(|process| process.contains("sleep 100000")).count();
    assert_eq!(pauses, usize::from(bed.shim.has_pause()), "{processes:?}");
}

/// Logs have a time, a stream and a tag on each line; long lines come in parts; the kubelet rotates.
fn logs(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; \
                  while [ ! -e /tmp/on ]; do sleep 0.02; done; echo later; printf end";
    let container = pod.start("c", &["sh", "-c", script]);
    let read = || fs::read_to_string(pod.log("c")).unwrap_or_default();
    command::until("the long line arrives", || {
        let parts = [" stdout F xx", " stderr F err\n"];
        parts.iter().all(|part| read().contains(part)).then_some(())
    });
    let (rotated, log) = (pod.log("c").with_extension("1"), pod.log("c"));
    let mut lines = parse(&read());
    lines.sort_by_key(|(stream, ..)| stream.clone());
    let short: Vec<_> = lines.iter().map(|(a, b, text)| (&**a, &**b, text.len())).collect();
    assert_eq!(
        short,
        [("stderr", "F", 3), ("stdout", "F", 3), ("stdout", "P", 16384), ("stdout", "F", 3616)]
    );
    fs::rename(&log, &rotated).unwrap();
    let _: Empty = cri.call("ReopenContainerLog", &ContainerId { id: container.clone() });
    pod.ask(&container, "touch /tmp/on");
    pod.await_exit(&container);
    command::until("the last line arrives", || read().ends_with("end\n").then_some(()));
    let lines: Vec<_> = parse(&read()).into_iter().map(|(_, _, text)| text).collect();
    assert_eq!(lines, ["later", "end"]);
    assert_eq!(parse(&fs::read_to_string(rotated).unwrap()).len(), 4);
    pod.remove();
}

/// Stream, tag and text of each line.
fn parse(log: &str) -> Vec<(String, String, String)> {
    let line = |line: &str| {
        let [time, stream, tag, text] =
            line.splitn(4, ' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        assert!(time.starts_with("20") && time.contains('T'), "{line}");
        (stream, tag, text)
    };
    log.lines().map(line).collect()
}

/// `ExecSync` tells output, error output and status apart, and ends what takes too long.
fn exec_sync(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start("c", &["sleep", "1000"]);
    let answer = pod.exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((&*answer.stdout, &*answer.stderr), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(answer.exit_code, 7);
    let answer = pod.exec(&container, &["head", "-c", "1000000", "/dev/zero"]);
    assert_eq!(answer.stdout.len(), 1_000_000);
    let request = ExecSyncRequest {
        container_id: container.clone(),
        cmd: owned(&["sleep", "2000"]),
        timeout: 1,
    };
    let late = cri.attempt::<ExecSyncResponse>("ExecSync", &request).unwrap_err();
    assert!(late.message.contains("timeout 1s exceeded"), "{late:?}");
    let request =
        ExecSyncRequest { container_id: container.clone(), cmd: owned(&["nothing"]), timeout: 20 };
    let refused = cri.attempt::<ExecSyncResponse>("ExecSync", &request).unwrap_err();
    assert!(refused.message.contains("nothing"), "{refused:?}");
    let inside = pod.ask(&container, "busybox ps");
    assert!(inside.contains("sleep 1000") && !inside.contains("sleep 2000"), "{inside}");
    pod.remove();
}

/// What containers use, and limits that change while they run.
fn stats(bed: &Bed<'_>) {
    const MIB: i64 = 1 << 20;
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let container = pod.start_with("c", &["sh", "-c", "while :; do :; done"], |container| {
        container.linux().resources =
            Some(Resources { memory_limit_in_bytes: 64 * MIB, ..Resources::default() });
    });
    let counters = Counters::of(&format!("{}/{container}", pod.cgroup()));
    command::until("the container's use is what the kernel says", || {
        let request = ContainerId { id: container.clone() };
        let before = Use::of(&counters);
        let answer: ContainerStatsResponse = cri.call("ContainerStats", &request);
        let after = Use::of(&counters);
        let stats = answer.stats.unwrap();
        agrees(before, (stats.cpu, stats.memory), after, Some(64 << 20)).then_some(())
    });
    let counters = Counters::of(&pod.cgroup());
    command::until("the pod's use is what the kernel says", || {
        let request = PodSandboxId { id: pod.id.clone() };
        let before = Use::of(&counters);
        let answer: PodSandboxStatsResponse = cri.call("PodSandboxStats", &request);
        let after = Use::of(&counters);
        let stats = answer.stats?.linux?;
        let count = stats.containers.len();
        (agrees(before, (stats.cpu, stats.memory), after, None) && count == 1).then_some(())
    });
    let limit = || {
        let files = ["memory.limit_in_bytes", "memory.max"];
        let cgroups = pod.cgroups().into_iter().map(|cgroup| cgroup.join(&container));
        let mut paths = cgroups.flat_map(|cgroup| files.map(|file| cgroup.join(file)));
        paths.find_map(|path| fs::read_to_string(path).ok()).unwrap().trim().parse::<i64>().unwrap()
    };
    assert_eq!(limit(), 64 * MIB);
    let request = UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(Resources { memory_limit_in_bytes: 96 * MIB, ..Resources::default() }),
    };
    let _: Empty = cri.call("UpdateContainerResources", &request);
    assert_eq!(limit(), 96 * MIB);
    pod.remove();
}

/// What the kernel has counted for a cgroup by some moment, in the kubelet's words.
#[derive(Clone, Copy)]
struct Use {
    cpu_nanoseconds: u64,
    memory: u64,
    /// Without the page cache that nothing uses.
    working_set: u64,
    rss: u64,
    page_faults: u64,
    major_page_faults: u64,
}

impl Use {
    fn of(counters: &Counters) -> Self {
        let all = counters.read();
        let number =
            |v1: &str, v2: &str| all[if counters.v1() { v1 } else { v2 }].parse::<u64>().unwrap();
        let memory = number("memory.usage.usage", "memory.usage");
        let idle = number("memory.total_inactive_file", "memory.inactive_file");
        let cpu = number("cpu.usage.total", "cpu.usage_usec");
        Self {
            cpu_nanoseconds: if counters.v1() { cpu } else { 1000 * cpu },
            memory,
            working_set: memory.saturating_sub(idle),
            rss: number("memory.total_rss", "memory.anon"),
            page_faults: number("memory.total_pg_fault", "memory.pgfault"),
            major_page_faults: number("memory.total_pg_maj_fault", "memory.pgmajfault"),
        }
    }
}

/// Whether a CRI plugin's answer lies between two moments, and the program has run by then. What the
/// plugin does not tell (1.6 knows the working set alone) is no fault.
fn agrees(
    before: Use,
    (cpu, memory): (Option<CpuUsage>, Option<MemoryUsage>),
    after: Use,
    limit: Option<u64>,
) -> bool {
    let (Some(cpu), Some(memory)) = (cpu.and_then(|cpu| cpu.usage_core_nano_seconds), memory)
    else {
        return false;
    };
    let within = |told: Option<Number>, of: fn(&Use) -> u64| {
        let (one, other) = (of(&before), of(&after));
        told.is_none_or(|told| (one.min(other)..=one.max(other)).contains(&told.value))
    };
    let rest = memory.working_set_bytes.map(|set| limit.unwrap_or(u64::MAX) - set.value);
    cpu.value > 100_000_000
        && memory.working_set_bytes.is_some_and(|set| set.value > 0)
        && within(Some(cpu), |of| of.cpu_nanoseconds)
        && within(memory.working_set_bytes, |of| of.working_set)
        && within(memory.usage_bytes, |of| of.memory)
        && within(memory.rss_bytes, |of| of.rss)
        && within(memory.page_faults, |of| of.page_faults)
        && within(memory.major_page_faults, |of| of.major_page_faults)
        && (limit.is_none() || memory.available_bytes.is_none_or(|left| Some(left.value) == rest))
}

/// A container that ended is started again, in the same pod and under the same name, as the next
/// attempt; the one before stays until the kubelet removes it.
fn restart_policy(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let pod = super::run(&cri, bed, "pod", |_| ());
    let beside = pod.start("beside", &["sleep", "1000"]);
    let mut ended: Vec<String> = Vec::new();
    for attempt in 0..4 {
        let script = format!("exit {attempt}");
        let container = pod.start_with("c", &["sh", "-c", &script], |container| {
            container.metadata.as_mut().unwrap().attempt = attempt;
        });
        assert_eq!(u32::try_from(pod.await_exit(&container).exit_code), Ok(attempt));
        if let Some(before) = ended.last() {
            pod.remove_container(before);
        }
        ended.push(container);
    }
    let all = cri.containers().into_iter().filter(|container| container.pod_sandbox_id == pod.id);
    let mut left: Vec<_> = all.map(|container| (container.id, container.state)).collect();
    left.sort();
    let mut expected = [(beside, RUNNING), (ended.pop().unwrap(), EXITED)];
    expected.sort();
    assert_eq!(left, expected);
    pod.remove();
}
