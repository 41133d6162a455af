//! Pause and Resume: what a paused container can do, and what it cannot.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::Status;
use serde_json::json;

use super::{cgroup, is_v2};
use crate::support::{Code, Host, Shim, Spec, eventually, patient, skipped, timed};

/// How long an answer may take that waits for nothing, on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(5);

fn status(shim: &Shim<'_>) -> Status {
    shim.state("c", "").unwrap().status.unwrap()
}

fn await_status(shim: &Shim<'_>, status: Status) {
    eventually(&format!("{status:?}"), || (self::status(shim) == status).then_some(()));
}

/// The file that tells and says whether the container is frozen, and its words for yes and no.
fn freezer(host: &Host) -> (PathBuf, &'static str, &'static str) {
    let dir = cgroup(host, "freezer", "c");
    if is_v2() {
        (dir.join("cgroup.freeze"), "1", "0")
    } else {
        (dir.join("freezer.state"), "FROZEN", "THAWED")
    }
}

fn is_frozen(host: &Host) -> bool {
    let (file, yes, _) = freezer(host);
    fs::read_to_string(file).unwrap().trim() == yes
}

/// Exec and the start of an exec process that was added before are both refused, at once.
fn refuses_execs(shim: &Shim<'_>, state: &str) {
    for start in [true, false] {
        let call = || match start {
            true => shim.start("c", "before").map(drop),
            false => shim.exec(&shim.exec_request("c", "late", "true")),
        };
        let (answer, took) = timed(call);
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
        assert_eq!(refusal.message, format!("cannot exec in \"c\" while it is {state}"));
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[test]
fn nothing_is_executed_in_a_paused_container() {
    if skipped("exec in a paused container is refused") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec(&shim.exec_request("c", "before", "exit 4")).unwrap();

    host.script().set("pause", "slow 2");
    thread::scope(|scope| {
        let paused = scope.spawn(|| shim.pause("c").unwrap());
        await_status(&shim, Status::PAUSING);
        refuses_execs(&shim, "pausing");
        assert_eq!(shim.pause("c").unwrap_err().code, Code::FAILED_PRECONDITION);
        paused.join().unwrap();
    });
    assert_eq!(status(&shim), Status::PAUSED);
    eventually("the kernel to freeze it", || is_frozen(&host).then_some(()));
    refuses_execs(&shim, "paused");
    shim.resume("c").unwrap();
    assert_eq!(status(&shim), Status::RUNNING);
    shim.start("c", "before").unwrap();
    assert_eq!(shim.reap("c", "before"), 4);

    let (file, yes, no) = freezer(&host);
    shim.exec(&shim.exec_request("c", "before", "exit 5")).unwrap();
    fs::write(&file, yes).unwrap(); // not by Pause
    eventually("the kernel to freeze it", || is_frozen(&host).then_some(()));
    refuses_execs(&shim, "frozen");
    fs::write(&file, no).unwrap();
    shim.start("c", "before").unwrap();
    assert_eq!(shim.reap("c", "before"), 5);
    shim.end();
}

#[test]
fn a_pause_lets_an_exec_that_is_under_way_begin() {
    if skipped("Pause waits for exec") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("exec", "slow 1");
    thread::scope(|scope| {
        let started = scope.spawn(|| shim.exec_run("c", "e", "exit 6").unwrap());
        eventually("the exec", || host.script().calls().contains(&"exec".to_owned()).then_some(()));
        shim.pause("c").unwrap();
        eventually("the kernel to freeze it", || is_frozen(&host).then_some(()));
        started.join().unwrap();
    });
    shim.resume("c").unwrap();
    assert_eq!(shim.reap("c", "e"), 6);
    host.sink.wait_for("exit c/e 6");
    let events = host.sink.of("c");
    let at = |line: &str| events.iter().position(|found| found == line);
    assert!(at("exec-started c/e") < at("paused c"), "{events:?}");
    shim.end();
}

#[test]
fn a_paused_container_can_be_killed() {
    let own = json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]);
    let shared = json!([{"type": "mount"}, {"type": "uts"}]);
    let cases = [
        ("init", false, &own, false),
        ("all", true, &own, false),
        ("init, in the host's PID namespace", false, &shared, false),
        ("init, with a frozen part", false, &own, true),
    ];
    for (name, all, namespaces, part) in cases {
        let host = Host::new();
        let spec = Spec::sh("trap '' TERM; sleep 1000 & sleep 1001 & wait")
            .set("/linux/namespaces", namespaces.clone());
        let shim = host.start("c", spec);
        shim.run("c");
        let exec = shim.exec_run("c", "e", "exec sleep 1002").unwrap();
        if part && !is_v2() {
            let part = cgroup(&host, "freezer", "c").join("part");
            fs::create_dir(&part).unwrap();
            fs::write(part.join("cgroup.procs"), exec.to_string()).unwrap();
            fs::write(part.join("freezer.state"), "FROZEN").unwrap();
        }
        shim.pause("c").unwrap();
        let (_, took) = timed(|| {
            match all {
                true => shim.kill_all("c", libc::SIGKILL).unwrap(),
                false => shim.kill("c", "", libc::SIGKILL).unwrap(),
            }
            host.sink.wait_for("exit c 137");
        });
        assert!(took < AT_ONCE, "{name}: {took:?}");
        assert_eq!(shim.reap("c", "e"), 137, "{name}");
        assert_eq!(shim.reap("c", ""), 137, "{name}");
        shim.stop();
    }
}

#[test]
fn other_signals_reach_a_paused_container_when_it_goes_on() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    // The trap is there once `sleep` is.
    eventually("the program", || (shim.pids("c").unwrap().len() == 2).then_some(()));
    shim.pause("c").unwrap();
    shim.kill("c", "", libc::SIGTERM).unwrap();
    eventually("the kernel to freeze it", || is_frozen(&host).then_some(()));
    assert_eq!(status(&shim), Status::PAUSED);
    shim.resume("c").unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 143);
    shim.reap("c", "");
    host.sink.wait_for("delete c 143");
    let mut lines = host.sink.of("c");
    // It may end before the runtime says that it runs again, and nothing may follow the news of that.
    lines.retain(|line| line != "resumed c");
    assert_eq!(lines, ["create c", "start c", "paused c", "exit c 143", "delete c 143"]);
    shim.stop();
}

/// What the runtime did before it was killed, or failed, is undone, and State says what is.
#[test]
fn a_pause_or_resume_that_fails_halfway_leaves_the_truth() {
    if skipped("a runtime's deadline") {
        return;
    }
    let (late, unknown) = (Code::DEADLINE_EXCEEDED, Code::UNKNOWN);
    let running = Status::RUNNING;
    // The command, its mood, that of `resume` meanwhile, the answer to it.
    let cases = [
        ("pause", "tired 4321", "", late),
        ("pause", "tired 4321", "hang", late),
        ("pause", "tired 4321", "fail no", late),
        ("pause", "late no", "", unknown),
        ("pause", "hang", "", late),
        ("pause", "fail no", "", unknown),
        ("resume", "tired 4321", "tired 4321", Code::OK),
        ("resume", "late no", "late no", Code::OK),
    ];
    for (command, mood, resume, code) in cases {
        let name = format!("{command} is {mood}, resume {resume}");
        let limit = patient(Duration::from_secs(1)).as_secs();
        let host = Host::scripted().configured(&format!("deadline = {limit}\n"));
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        if command == "resume" {
            shim.pause("c").unwrap();
        }
        host.script().set(command, mood);
        if !resume.is_empty() {
            host.script().set("resume", resume);
        }
        let answer = if command == "pause" { shim.pause("c") } else { shim.resume("c") };
        assert_eq!(answer.map_or_else(|refusal| refusal.code, |()| Code::OK), code, "{name}");
        assert_eq!((status(&shim), is_frozen(&host)), (running, false), "{name}");
        host.script().reset();
        shim.exec_run("c", "e", "exit 3").unwrap();
        assert_eq!(shim.reap("c", "e"), 3, "{name}");
        shim.pause("c").unwrap();
        shim.resume("c").unwrap();
        shim.end();
    }
}

/// A Resume of one that runs again by somebody else's hand.
#[test]
fn a_resume_finds_that_the_container_runs() {
    if skipped("Resume looks for itself") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.pause("c").unwrap();
    let (file, _, no) = freezer(&host);
    fs::write(file, no).unwrap();
    shim.resume("c").unwrap();
    assert_eq!(status(&shim), Status::RUNNING);
    host.sink.expect("c", &["create c", "start c", "paused c", "resumed c"]);
    shim.end();
}

#[test]
fn a_kill_that_comes_while_a_pause_is_under_way_is_not_lost() {
    if skipped("Kill waits for no Pause") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("pause", "tired 2");
    thread::scope(|scope| {
        scope.spawn(|| shim.pause("c"));
        eventually("the freezer", || is_frozen(&host).then_some(()));
        assert_eq!(status(&shim), Status::PAUSING);
        shim.kill("c", "", libc::SIGKILL).unwrap();
        assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
    });
    let lines = ["create c", "start c", "exit c 137"];
    host.sink.expect("c", &lines);
    shim.reap("c", "");
    shim.stop();
}

#[test]
fn a_container_that_was_dying_when_it_was_frozen_can_be_deleted() {
    if skipped("Delete thaws what a Pause has frozen too late") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let (file, yes, _) = freezer(&host);
    shim.kill("c", "", libc::SIGKILL).unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
    // runc freezes a cgroup without asking whether anything lives there, and then calls it paused.
    fs::write(file, yes).unwrap();
    assert_eq!(shim.delete("c", "").unwrap().exit_status, 137);
    shim.stop();
}
