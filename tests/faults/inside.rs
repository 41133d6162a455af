//! Containers that make trouble from the inside: fork bombs, processes that ignore SIGTERM or leave their
//! session, an init process that ends among many exec processes. With PID namespaces of their own, where
//! the kernel ends all with the first, and with the host's, where berth has to.
//!
//! What is expected: Kill and Delete, and `delete` behind a daemon that was killed, leave nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{assert_clean, assert_works, remove_bundle};
use crate::support::{Host, Shim, Spec, eventually, patient, skipped, timed};

/// Shares the PID namespace of the host, where orphans go to the daemon.
pub(super) fn in_hosts_namespace(mut spec: Spec) -> Spec {
    let namespaces = spec.0["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    spec
}

/// With room for so many processes.
fn limited(spec: Spec, pids: u32) -> Spec {
    spec.set("/linux/resources/pids", json!({"limit": pids}))
}

/// What runs inside, in shell, deaf before there is anything to wait for; how many processes that are at least, and the limit of them.
const TROUBLE: [(&str, &str, usize, u32); 4] = [
    // awk goes on when it cannot fork, which a shell does not.
    (
        "a fork bomb",
        "trap '' TERM; for n in 1 2 3; do awk 'BEGIN { while (1) system(\"sleep 1 &\") }' & done; \
         exec sleep 1000",
        20,
        40,
    ),
    ("deaf to SIGTERM", "trap '' TERM; while :; do sleep 1000 & wait; done", 2, 40),
    (
        "out of its session",
        "trap '' TERM HUP; (setsid setsid sleep 1001 &) ; \
         (setsid sh -c 'setsid sleep 1002 & setsid sleep 1003 & exit' &); while :; do sleep 1000 & wait; done",
        5,
        40,
    ),
    (
        "orphans that make orphans",
        "trap '' TERM; spawn() { while :; do (sleep 0.2 &) ; sleep 0.05; done; }; (spawn &); (spawn &); \
         while :; do sleep 1000 & wait; done",
        4,
        40,
    ),
];

/// How a container ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// A Kill of all its processes, which is a request of its own.
    KillAll,
    /// A Kill of its init process.
    Kill,
    /// The daemon is killed, and `delete` follows.
    Crash,
}

#[test]
fn containers_that_make_trouble_leave_nothing() {
    if skipped("the end of a container is the end of all its processes") {
        return;
    }
    thread::scope(|scope| {
        for (name, script, least, limit) in TROUBLE {
            for is_private in [true, false] {
                let own = if is_private { "its own" } else { "the host's" };
                let thread = thread::Builder::new().name(format!("{name}, in {own} namespace"));
                let spec = limited(Spec::sh(script), limit);
                let spec = if is_private { spec } else { in_hosts_namespace(spec) };
                let end = move || {
                    [End::KillAll, End::Kill, End::Crash].map(|end| check(&spec, least, end))
                };
                thread.spawn_scoped(scope, end).unwrap();
            }
        }
    });
}

fn check(spec: &Spec, least: usize, end: End) {
    let host = Host::new();
    let shim = host.start("c", spec.clone());
    let pid = shim.run("c");
    eventually("the trouble", || (shim.pids("c").unwrap().len() >= least).then_some(()));
    shim.kill_all("c", libc::SIGTERM).unwrap();
    assert!(shim.state("c", "").unwrap().exit_status == 0 && shim.pids("c").unwrap().len() > 1);
    match end {
        End::KillAll => shim.kill_all("c", libc::SIGKILL).unwrap(),
        End::Kill => shim.kill("c", "", libc::SIGKILL).unwrap(),
        End::Crash => {
            shim.crash();
            let deleted = host.delete("c").response;
            assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
            assert_clean(&host, "after a crash");
            remove_bundle(&host, "c");
            return assert_works(&host, "c");
        }
    }
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 137, "{end:?}");
    let left: Vec<_> = host.processes().into_iter().filter(|p| p.pid != shim.pid()).collect();
    assert_eq!(left, [], "{end:?}: the end of the container is that of all");
    assert_eq!(shim.reap("c", ""), 137, "{end:?}");
    assert!(host.cgroups().is_empty() && host.mounts().is_empty(), "{end:?}");
    host.prepare("c", Spec::idle());
    shim.run("c");
    shim.end();
}

/// How many exec processes there shall be, and at how many started ones the init process ends.
const CROWDS: [(usize, u32); 2] = [(50, 50), (30, 12)];

#[test]
fn an_init_process_that_ends_among_its_execs_takes_them_along() {
    if skipped("the exits of a container's processes come before its own") {
        return;
    }
    for (count, when) in CROWDS {
        for is_private in [true, false] {
            let (count, when) = if is_private { (count, when) } else { (count / 3, when / 3) };
            let host = Host::new();
            let spec = Spec::idle();
            let spec = if is_private { spec } else { in_hosts_namespace(spec) };
            let shim = host.start("c", spec);
            shim.run("c");
            end_among(&shim, count, when);
            shim.stop();
        }
    }
}

fn end_among(shim: &Shim<'_>, count: usize, when: u32) {
    let started = AtomicU32::new(0);
    thread::scope(|scope| {
        for first in 0..4 {
            let (task, started) = (shim.task(), &started);
            scope.spawn(move || {
                for n in (first..count).step_by(4) {
                    let id = format!("e{n}");
                    // The container may have ended by now: then neither is possible.
                    let request = shim.exec_request("c", &id, "trap '' TERM; sleep 1000 & wait");
                    if task.exec(&request).is_ok() && task.start("c", &id).is_ok() {
                        started.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        scope.spawn(|| {
            eventually("the exec processes", || {
                (started.load(Ordering::SeqCst) >= when).then_some(())
            });
            shim.kill("c", "", libc::SIGKILL).unwrap();
            assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
        });
    });
    let (started, sink) = (started.load(Ordering::SeqCst), &shim.host().sink);
    sink.wait_for("exit c 137");
    let events = sink.of("c");
    let ends = events.iter().filter(|line| line.starts_with("exit c/")).count();
    let starts = events.iter().filter(|line| line.starts_with("exec-started")).count();
    assert!(ends == starts && starts >= started as usize, "{events:?}");
    assert_eq!(events.last().map(String::as_str), Some("exit c 137"), "{events:?}");
    let limit = patient(Duration::from_secs(10));
    for line in events.iter().filter_map(|line| line.strip_prefix("exec-started c/")) {
        let (waited, took) = timed(|| shim.wait("c", line).unwrap());
        assert!(waited.exit_status == 137 && took < limit, "{waited:?} {took:?}");
        assert_eq!(shim.delete("c", line).unwrap().exit_status, 137);
    }
    let (deleted, took) = timed(|| shim.delete("c", "").unwrap());
    assert!(deleted.exit_status == 137 && took < limit, "{deleted:?} {took:?}");
}
