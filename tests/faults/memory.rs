//! A shim whose own cgroup has too little memory.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;

use super::processes::Around;
use crate::support::{Code, Host, Spec, eventually, skipped};

#[test]
fn a_runtime_that_finds_no_memory_fails_its_call_and_no_more() {
    if skipped("memory of the shim's cgroup") {
        return;
    }
    thread::scope(|scope| {
        for limit in ["256k", "2m", "6m"] {
            scope.spawn(move || starve_the_runtime(limit));
        }
    });
}

fn starve_the_runtime(limit: &str) {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let Some(around) = Around::new(&shim, "memory") else { return shim.stop() };
    around.set("memory.limit_in_bytes", limit);
    let answer = shim.create_plain("c").and_then(|_| shim.start("c", ""));
    around.set("memory.limit_in_bytes", "-1");
    if answer.as_ref().is_err_and(|refusal| refusal.code == Code::OK) {
        shim.wait_gone(); // it was the shim that was killed, and had no answer
    }
    if shim.alive() {
        if let Err(refusal) = answer {
            assert!(
                ![Code::OK, Code::DEADLINE_EXCEEDED].contains(&refusal.code),
                "{limit}: {refusal:?}"
            );
        }
        if shim.state("c", "").is_ok() {
            shim.remove("c");
        }
        shim.run("c");
        drop(around);
        shim.end();
    } else {
        drop(around);
        answer.unwrap_err();
        host.delete("c");
    }
    assert!(host.processes().is_empty() && host.mounts().is_empty() && host.states().is_empty());
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.end();
}

#[test]
fn a_shim_that_is_killed_for_its_memory_is_cleaned_up_by_delete() {
    if skipped("memory of the shim's cgroup") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    let Some(around) = Around::new(&shim, "memory") else { return shim.end() };
    around.set("memory.limit_in_bytes", "16m");
    // Messages that come to all but their last bytes have to be kept.
    let path = shim.address().trim_start_matches("unix://").to_owned();
    let _peers: Vec<_> = (0..20)
        .map_while(|_| {
            let mut peer = UnixStream::connect(&path).ok()?;
            peer.write_all(&[0, 0x40, 0, 0, 0, 0, 0, 1, 1, 0]).ok()?;
            drop(peer.write_all(&vec![0xff; (4 << 20) - 1]));
            Some(peer)
        })
        .collect();
    eventually("the shim to be killed", || (!shim.alive()).then_some(()));
    drop(around);
    let deleted = host.delete("c").response;
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
    assert!(host.processes().is_empty() && host.mounts().is_empty() && host.cgroups().is_empty());
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.end();
}
