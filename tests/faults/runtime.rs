//! The runtime's commands are killed, or stopped: each of them, before, while and after it does its part.
//!
//! What is expected: its caller gets an error that names the command, no later than the command's
//! deadline; meanwhile all others are answered at once; nothing is left of what it has half done, and the
//! container goes on, or another one of its name starts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{assert_works, scripted};
use crate::concurrency::{HANGS, Hang, others_answer_at_once};
use crate::support::{Code, Host, Shim, Spec, Stdin, eventually, patient, skipped, timed};

/// What befalls a command, in shell, and whether it may come too late to be noticed.
const FAULTS: [(&str, &str, bool); 5] = [
    ("killed at once", "kill -9 $$", false),
    ("killed soon", "(sleep 0.01; kill -9 $$) >/dev/null 2>&1 &", true),
    ("killed later", "(sleep 0.04; kill -9 $$) >/dev/null 2>&1 &", true),
    ("killed when all is done", "real \"$@\"; kill -9 $$", false),
    ("stopped soon", "(sleep 0.02; kill -STOP $$) >/dev/null 2>&1 &", true),
];

/// How many containers, mounts, cgroups and states there are, and what the bundle holds.
fn holdings(host: &Host) -> (usize, usize, usize, usize, Vec<String>) {
    let counts = (host.processes().len(), host.mounts().len(), host.cgroups().len());
    (counts.0, counts.1, counts.2, host.states().len(), host.files("c"))
}

#[test]
fn a_command_that_is_killed_or_stopped_leaves_nothing() {
    if skipped("a runtime may be killed") {
        return;
    }
    thread::scope(|scope| {
        for hang in HANGS {
            let thread = thread::Builder::new().name(format!("faults of {}", hang.command));
            thread.spawn_scoped(scope, move || check(&hang)).unwrap();
        }
    });
}

fn check(hang: &Hang) {
    // What the container is made and removed with has more time, but for that command.
    let host = scripted().configured(&format!("deadline.{} = 3\n", hang.command));
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    let sleeps = || host.processes().iter().any(|process| process.line.starts_with("sleep"));
    eventually("the pod to idle", || sleeps().then_some(()));
    let before = holdings(&host);
    for (fault, shell, may_be_late) in FAULTS {
        let name = format!("{}: {fault}", hang.command);
        (hang.before)(&shim);
        host.script().set(hang.command, &format!("do {shell}"));
        let (answer, took) = timed(|| (hang.call)(&shim));
        host.script().clear(hang.command);
        match answer {
            // It had ended by the time that the command did.
            Err(refusal) if hang.command == "kill" && refusal.code == Code::NOT_FOUND => {}
            Err(refusal) => {
                let said = &refusal.message;
                assert!(said.contains(hang.command), "{name}: {refusal:?}");
                let why = if fault.starts_with("killed") { "signal 9" } else { "within 3 s" };
                assert!(said.contains(why), "{name}: {refusal:?}");
            }
            // A container that runs all the same has been resumed.
            Ok(()) => assert!(may_be_late || hang.command == "resume", "{name}"),
        }
        assert!(took < patient(Duration::from_secs(10)), "{name}: {took:?}");
        go_on(hang, &shim);
        eventually(&format!("{name}: {before:?} in place of {:?}", holdings(&host)), || {
            (holdings(&host) == before).then_some(())
        });
    }
    shim.end();
}

/// Whatever the command got done: the container can be removed.
fn go_on(hang: &Hang, shim: &Shim<'_>) {
    match hang.command {
        "create" => {
            drop(shim.delete("c", "")); // it may have been made
            shim.run("c");
            assert_eq!(shim.remove("c"), 137);
        }
        "delete" => drop(shim.delete("c", "")), // the first may have removed it
        "resume" => {
            drop(shim.resume("c"));
            assert_eq!(shim.remove("c"), 137);
        }
        "exec" => {
            drop(shim.kill("c", "e", libc::SIGKILL));
            drop(shim.delete("c", "e"));
            shim.exec_run("c", "another", "exit 3").unwrap();
            assert_eq!(shim.reap("c", "another"), 3);
            shim.remove("c");
        }
        _ => drop(shim.remove("c")),
    }
}

#[test]
fn a_stopped_command_costs_its_own_caller_its_deadline_and_nobody_else_anything() {
    if skipped("runtime commands have a deadline") {
        return;
    }
    thread::scope(|scope| {
        for hang in HANGS {
            let thread = thread::Builder::new().name(format!("stop of {}", hang.command));
            thread.spawn_scoped(scope, move || stopped(&hang)).unwrap();
        }
    });
}

fn stopped(hang: &Hang) {
    let command = hang.command;
    let host = scripted().configured(&format!("deadline.{command} = 2\n"));
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    shim.exec_run("pod", "done", "true").unwrap();
    shim.wait("pod", "done").unwrap();
    host.prepare("c", Spec::idle().of_pod("pod"));
    (hang.before)(&shim);
    host.script().set(command, "do kill -STOP $$");
    let is_stopped = || host.processes().iter().any(|process| state(process.pid) == Some('T'));
    thread::scope(|scope| {
        let call = scope.spawn(|| timed(|| (hang.call)(&shim)));
        eventually("the command to stop", || (is_stopped() || call.is_finished()).then_some(()));
        if !call.is_finished() {
            others_answer_at_once(&shim, command);
        }
        let (answer, took) = call.join().unwrap();
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{command}: {refusal:?}");
        assert!(refusal.message.contains(command), "{refusal:?}");
        let limits = Duration::from_millis(1500)..patient(Duration::from_secs(10));
        assert!(limits.contains(&took), "{command}: {took:?}");
    });
    eventually("the stopped command to be gone", || (!is_stopped()).then_some(()));
    host.script().clear(command);
    (hang.after)(&shim);
    shim.end();
}

/// The state letter of a process: proc_pid_stat(5).
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Makes the cgroups of container `c`, in shell, as a runtime does that is killed before it has noted down
/// that there is a container.
const CGROUPS: &str = "for root in /sys/fs/cgroup /sys/fs/cgroup/*; do [ -e $root/cgroup.procs ] || continue; \
    mkdir -p $root/berth-test-$BERTH_TEST_TAG/c; [ -d /sys/fs/cgroup/memory ] || break; done; kill -9 $$";

#[test]
fn cgroups_of_a_create_that_was_killed_are_removed_unless_somebody_is_in_them() {
    if skipped("what a killed runtime leaves") {
        return;
    }
    let host = scripted();
    let shim = host.start("c", Spec::idle());
    host.script().set("create", &format!("do {CGROUPS}"));
    shim.create_plain("c").unwrap_err();
    assert_eq!(host.cgroups(), Vec::<PathBuf>::new());
    // Another one of that name may be another daemon's, of another containerd.
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = stranger.id();
    let join = CGROUPS.replace(
        "/c; ",
        &format!("/c; echo {pid} >$root/berth-test-$BERTH_TEST_TAG/c/cgroup.procs; "),
    );
    host.script().set("create", &format!("do {join}"));
    let (refused, took) = timed(|| shim.create_plain("c"));
    assert!(refused.is_err() && took < patient(Duration::from_secs(10)), "{refused:?} {took:?}");
    assert_ne!(host.cgroups(), Vec::<PathBuf>::new());
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    host.script().set("create", &format!("do {CGROUPS}"));
    shim.create_plain("c").unwrap_err();
    assert_eq!(host.cgroups(), Vec::<PathBuf>::new());
    host.script().reset();
    shim.run("c");
    shim.end();
}

/// A container that could not be deleted, and in which nobody can say whether a process lives: it is the
/// runtime's state by which somebody finds it.
#[test]
fn what_may_live_is_not_forgotten() {
    if skipped("what a killed runtime leaves") {
        return;
    }
    let host = scripted();
    let elsewhere = format!("/berth-test-{}/elsewhere", host.tag());
    let shim = host.start("c", Spec::idle().set("/linux/cgroupsPath", json!(elsewhere)));
    host.script().set("create", "late on purpose");
    host.script().set("delete", "fail for once");
    shim.create_plain("c").unwrap_err();
    host.script().reset();
    assert_eq!(host.states().len(), 1);
    drop(shim.create_plain("c").map(drop)); // it fails, and removes it
    assert_eq!(host.states(), Vec::<PathBuf>::new());
    shim.run("c");
    shim.end();
}

/// What `delete` runs of the runtime has the same faults.
#[test]
fn delete_cleans_up_also_without_the_runtime() {
    if skipped("delete is bounded") {
        return;
    }
    for (fault, shell, _) in FAULTS {
        let host = scripted();
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        shim.crash();
        host.script().set("delete", &format!("do {shell}"));
        let output = host.run("c", "delete", &Stdin::Nothing);
        assert!(output.status.success(), "{fault}: {output:?}");
        // What was to kill the command may still sleep.
        eventually(fault, || host.processes().is_empty().then_some(()));
        super::assert_clean(&host, fault);
        host.script().reset();
        super::remove_bundle(&host, "c");
        assert_works(&host, "c");
    }
}

/// runc writes its pid to a file beside, which it does not write over.
#[test]
fn an_unfinished_pid_file_stands_in_no_ones_way() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    fs::write(host.bundle("c").join(".init.pid"), "1").unwrap();
    shim.run("c");
    shim.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    shim.end();
}
