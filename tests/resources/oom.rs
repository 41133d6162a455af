//! Whoever is killed for lack of memory: told once, before the exit that it explains, with whose limit.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::{cgroup, is_v2, limited};
use crate::support::{Host, Shim, Spec, eventually, patient, skipped};

/// Grows until it is killed, alone.
const HOG: &str = "exec tail /dev/zero";
/// Grows in a child that offers itself to the kernel, then stays.
const CHILD: &str = "sh -c 'echo 1000 >/proc/self/oom_score_adj; exec tail /dev/zero'; trap 'exit 0' TERM; sleep 1000 & wait";
const LIMIT: u64 = 24 << 20;

#[test]
fn a_container_that_dies_at_once_says_why_first() {
    if skipped("the OOM event precedes the exit") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", limited(Spec::sh(HOG), LIMIT));
    for round in 0..20 {
        let id = format!("c{round}");
        host.prepare(&id, limited(Spec::sh(HOG), LIMIT));
        shim.run(&id);
        assert_eq!(shim.reap(&id, ""), 137);
        let lines = ["create", "start", "oom", "exit", "delete"];
        let status = |verb: &&str| if ["exit", "delete"].contains(verb) { " 137" } else { "" };
        let lines = lines.map(|verb| format!("{verb} {id}{}", status(&verb)));
        host.sink.expect(&id, &lines.each_ref().map(String::as_str));
    }
    shim.stop();
}

/// systemd removes a unit's cgroup as soon as it is empty, and the counter with it.
#[test]
fn a_kill_is_told_although_the_cgroup_goes_with_the_last_process() {
    if skipped("the OOM event precedes the exit") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", limited(Spec::sh(HOG), LIMIT));
    host.script().set("start", "tired 1");
    let pid = shim.create_plain("c").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| shim.start("c", ""));
        // Sooner, and whoever removes it may be faster than the kernel tells the shim.
        eventually("the shim to have taken the exit", || {
            (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        thread::sleep(patient(Duration::from_millis(50)));
        eventually("the cgroups to be empty and removed", || {
            host.cgroups().iter().for_each(|dir| drop(fs::remove_dir(dir)));
            host.cgroups().is_empty().then_some(())
        });
    });
    assert_eq!(shim.reap("c", ""), 137);
    host.sink.expect("c", &["create c", "start c", "oom c", "exit c 137", "delete c 137"]);
    shim.stop();
}

/// All of them at once: the init process, its children and exec processes.
#[test]
fn a_group_that_is_killed_as_a_whole_is_one_episode() {
    if !is_v2() || skipped("an OOM event for each kill") {
        return; // memory.oom.group is v2's
    }
    let host = Host::new();
    let shim = host.start("c", limited(Spec::idle(), LIMIT));
    shim.run("c");
    fs::write(cgroup(&host, "memory", "c").join("memory.oom.group"), "1").unwrap();
    for exec in ["e1", "e2", "e3"] {
        shim.exec_run("c", exec, "exec sleep 1000").unwrap();
    }
    shim.exec_run("c", "hog", HOG).unwrap();
    for exec in ["e1", "e2", "e3", "hog", ""] {
        assert_eq!(shim.reap("c", exec), 137, "{exec:?}");
    }
    host.sink.wait_for("delete c 137");
    let lines = host.sink.of("c");
    let at = |line: &str| lines.iter().position(|found| found == line).unwrap();
    assert_eq!(lines.iter().filter(|line| *line == "oom c").count(), 1, "{lines:?}");
    for exec in ["e1", "e2", "e3", "hog"] {
        assert!(at("oom c") < at(&format!("exit c/{exec} 137")), "{lines:?}");
    }
    shim.stop();
}

/// Runs `CHILD` in container `c`, whose first OOM event it awaits; the log's line about it, and the
/// one that the dump has later.
fn lines_about(host: &Host, shim: &Shim<'_>) -> [String; 2] {
    shim.run("c");
    host.sink.wait_for("oom c");
    let found = |words: &str| {
        eventually(words, || {
            shim.signal(Signal::SIGUSR1);
            thread::sleep(Duration::from_millis(50));
            let text = shim.log().text();
            text.lines().find(|line| line.contains(words)).map(str::to_owned)
        })
    };
    [found("out of memory in container c"), found("container c: out of memory: ")]
}

#[test]
fn the_log_says_whose_limit_was_hit() {
    if skipped("whose limit was hit") {
        return;
    }
    let own =
        if is_v2() { " at its own memory limit" } else { " probably at its own memory limit" };
    let around = " at the memory limit of a cgroup around it";
    let unlimited = Spec::sh(CHILD);
    let cases = [
        ("own", limited(Spec::sh(CHILD), LIMIT), None, own),
        ("a pod's", unlimited.clone(), Some(LIMIT), around),
        ("the pod's, which is less", limited(unlimited, 4 * LIMIT), Some(LIMIT), around),
    ];
    for (name, spec, pod, expected) in cases {
        let host = Host::new();
        let path = format!("/berth-test-{}/pod/c", host.tag());
        let shim = host.start("c", spec.set("/linux/cgroupsPath", json!(path)));
        if let Some(limit) = pod {
            make_pod(&host, limit);
        }
        for line in lines_about(&host, &shim) {
            assert!(line.contains(expected), "{name}: {line}");
            let number = line.split(' ').find_map(|word| word.parse::<u32>().ok());
            // The kernel takes one more where the memory of the first is not free soon enough.
            assert!(number.is_some_and(|killed| (1..4).contains(&killed)), "{name}: {line}");
        }
        shim.remove("c");
        shim.stop();
        remove_pod(&host);
    }
}

/// A cgroup `pod` with a memory limit.
fn make_pod(host: &Host, limit: u64) {
    let dir = cgroup(host, "memory", "pod");
    fs::create_dir_all(&dir).unwrap();
    if is_v2() {
        for dir in dir.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
            fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        fs::write(dir.join("memory.max"), limit.to_string()).unwrap();
        drop(fs::write(dir.join("memory.swap.max"), "0"));
        return;
    }
    fs::write(dir.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
    drop(fs::write(dir.join("memory.memsw.limit_in_bytes"), limit.to_string()));
}

/// Removes the cgroups around the container, of every hierarchy.
fn remove_pod(host: &Host) {
    for dir in host.cgroups() {
        fs::remove_dir(dir).unwrap();
    }
}
