//! Pids: every process of a container, wherever it is below its cgroup.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::{cgroup, is_v2};
use crate::support::{Host, Shim, Spec, eventually, skipped};

type Listed = BTreeMap<u32, Option<String>>;

/// What Pids says once it names `count` processes.
fn listed(shim: &Shim<'_>, count: usize) -> Listed {
    eventually(&format!("{count} processes"), || {
        let pids = shim.pids("c").unwrap();
        assert!(!pids.is_empty());
        let all: Listed = pids.iter().cloned().collect();
        assert_eq!(all.len(), pids.len(), "each once: {pids:?}");
        (pids.len() == count).then_some(all)
    })
}

/// The processes whose cgroup has this host's tag: what the kernel says.
fn inside(host: &Host) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<u32> = pids
        .filter(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            text.contains(host.tag())
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Moves `pid` into `name` below each of the container's cgroups.
fn nest(host: &Host, name: &str, pid: u32) -> Vec<PathBuf> {
    let mut nested = Vec::new();
    for dir in host.cgroups().iter().map(|dir| dir.join(name)) {
        if fs::create_dir_all(&dir).is_ok()
            && fs::write(dir.join("cgroup.procs"), pid.to_string()).is_ok()
        {
            nested.push(dir);
        }
    }
    nested
}

#[test]
fn every_process_is_listed_with_its_exec_id() {
    let family = "trap 'exit 0' TERM; (sleep 1001 & sleep 1002 & wait) & sleep 1003 & wait";
    for terminal in [false, true] {
        let host = Host::new();
        let shim = host.start("c", Spec::sh(family));
        let init = shim.run("c");
        let mut request = shim.exec_request("c", "e", "sleep 1004 & wait");
        request.terminal = terminal;
        shim.exec(&request).unwrap();
        shim.exec(&shim.exec_request("c", "added", "true")).unwrap(); // has no process
        let exec = shim.start("c", "e").unwrap();
        let all = listed(&shim, 7);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), inside(&host));
        assert_eq!((&all[&init], &all[&exec]), (&None, &Some("e".to_owned())));
        assert_eq!(all.values().flatten().count(), 1, "{all:?}");
        shim.end();
    }
}

#[test]
fn processes_of_nested_cgroups_are_listed() {
    if skipped("processes of nested cgroups") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::sh("trap 'exit 0' TERM; sleep 1001 & sleep 1002 & wait"));
    let init = shim.run("c");
    let exec = shim.exec_run("c", "e", "exec sleep 1003").unwrap();
    let all = listed(&shim, 4);
    let child = *all.keys().find(|pid| ![init, exec].contains(pid)).unwrap();
    assert!(!nest(&host, "part", child).is_empty());
    assert!(!nest(&host, "part/inner", exec).is_empty());
    assert_eq!(listed(&shim, 4), all);
    shim.end();
}

/// v2's, whose list of processes cannot be read.
#[test]
fn processes_of_threaded_cgroups_are_listed() {
    if !is_v2() {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let init = shim.run("c");
    let exec = shim.exec_run("c", "e", "exec sleep 1003").unwrap();
    let all = listed(&shim, 3);
    let part = cgroup(&host, "", "c").join("part");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("cgroup.type"), "threaded").unwrap();
    fs::write(part.join("cgroup.procs"), exec.to_string()).unwrap();
    fs::read_to_string(part.join("cgroup.procs")).unwrap_err();
    assert_eq!(listed(&shim, 3), all);
    assert!(all.contains_key(&init));
    // Not all of them: `runc kill --all` of 1.1 cannot read that list either.
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.reap("c", "e");
    shim.reap("c", "");
    shim.stop();
}

/// containerd takes a task without processes for a leaked one.
#[test]
fn no_living_container_is_without_processes() {
    if skipped("Pids knows what berth has started") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let init = shim.create_plain("c").unwrap();
    assert_eq!(shim.pids("c").unwrap(), [(init, None)], "created");
    shim.start("c", "").unwrap();
    let exec = shim.exec_run("c", "e", "exec sleep 1003").unwrap();
    let all = listed(&shim, 3);
    // Out of its cgroup, as a process with the rights for it may go.
    for dir in host.cgroups() {
        let parent = dir.ancestors().nth(2).unwrap().join("cgroup.procs");
        for pid in all.keys() {
            fs::write(&parent, pid.to_string()).unwrap();
        }
    }
    let left: Listed = shim.pids("c").unwrap().into_iter().collect();
    assert_eq!(left, Listed::from([(init, None), (exec, Some("e".to_owned()))]));
    // A Kill of all goes by the cgroup.
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.reap("c", "");
    shim.stop();
}
