//! Many calls at once, and runtime commands that never end.

mod hung;

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Answer, Code, Host, Shim, Spec, eventually, skipped, stock, timed};

#[test]
fn fifty_execs_at_once_all_report_their_status() {
    // The stock shim holds one lock while runc runs, and its reaper waits for it: 50 take minutes.
    let count = if stock() { 5 } else { 50 };
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    thread::scope(|scope| {
        for n in 0..count {
            let (task, exec) = (shim.task(), format!("e{n}"));
            let request = shim.exec_request("c", &exec, &format!("exit {n}"));
            scope.spawn(move || {
                task.exec(&request).unwrap();
                let pid = task.start("c", &exec).unwrap();
                assert_eq!(task.wait("c", &exec).unwrap().exit_status, n);
                let deleted = task.delete("c", &exec).unwrap();
                assert_eq!((deleted.pid, deleted.exit_status), (pid, n));
            });
        }
    });
    assert_eq!(shim.pids("c").unwrap().iter().filter(|(_, exec)| exec.is_some()).count(), 0);
    for n in 0..count {
        let (added, started) = (format!("exec-added c/e{n}"), format!("exec-started c/e{n}"));
        host.sink.expect(&format!("c/e{n}"), &[&added, &started, &format!("exit c/e{n} {n}")]);
    }
    shim.end();
}

#[test]
fn twenty_containers_of_a_pod_at_once() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    thread::scope(|scope| {
        for n in 0..20 {
            let (task, id) = (shim.task(), format!("c{n}"));
            host.prepare(&id, Spec::sh(&format!("exit {n}")).of_pod("pod"));
            let request = shim.request(&id);
            scope.spawn(move || {
                task.create(&request).unwrap();
                task.start(&id, "").unwrap();
                assert_eq!(task.wait(&id, "").unwrap().exit_status, n);
                assert_eq!(task.delete(&id, "").unwrap().exit_status, n);
            });
        }
    });
    for n in 0..20 {
        let lines = ["create cN", "start cN", "exit cN N", "delete cN N"];
        let lines = lines.map(|line| line.replace('N', &n.to_string()));
        host.sink.expect(&format!("c{n}"), &lines.each_ref().map(String::as_str));
    }
    shim.end();
}

/// A command that hangs, the call that runs it, and how the container goes on afterwards.
pub(crate) struct Hang {
    pub(crate) command: &'static str,
    pub(crate) before: fn(&Shim<'_>),
    pub(crate) call: fn(&Shim<'_>) -> Answer<()>,
    pub(crate) after: fn(&Shim<'_>),
}

fn run(shim: &Shim<'_>) {
    shim.run("c");
}

fn run_and_kill(shim: &Shim<'_>) {
    shim.run("c");
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap();
}

fn remove(shim: &Shim<'_>) {
    assert_eq!(shim.remove("c"), 137);
}

pub(crate) const HANGS: [Hang; 8] = [
    Hang {
        command: "create",
        before: |_| {},
        call: |shim| shim.create_plain("c").map(drop),
        after: |shim| {
            assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND);
            shim.run("c");
            remove(shim);
        },
    },
    Hang {
        command: "start",
        before: |shim| assert!(shim.create_plain("c").is_ok()),
        call: |shim| shim.start("c", "").map(drop),
        after: remove,
    },
    Hang {
        command: "exec",
        before: run,
        call: |shim| shim.exec_run("c", "e", "true").map(drop),
        after: |shim| {
            shim.delete("c", "e").unwrap();
            shim.exec_run("c", "e", "exit 3").unwrap();
            assert_eq!(shim.reap("c", "e"), 3);
            remove(shim);
        },
    },
    Hang {
        command: "kill",
        before: run,
        call: |shim| shim.kill_all("c", libc::SIGTERM),
        after: remove,
    },
    Hang {
        command: "delete",
        before: run_and_kill,
        call: |shim| shim.delete("c", "").map(drop),
        after: |shim| drop(shim.delete("c", "")), // the first one may have removed it all the same
    },
    Hang { command: "pause", before: run, call: |shim| shim.pause("c"), after: remove },
    Hang {
        command: "resume",
        before: |shim| {
            shim.run("c");
            shim.pause("c").unwrap();
        },
        call: |shim| shim.resume("c"),
        after: |shim| {
            shim.resume("c").unwrap();
            remove(shim);
        },
    },
    Hang {
        command: "update",
        before: run,
        call: |shim| shim.update("c", &json!({"memory": {"limit": 64 << 20}})),
        after: remove,
    },
];

#[test]
fn a_hanging_command_costs_its_own_caller_its_deadline_and_nobody_else_anything() {
    if skipped("runtime commands have a deadline") {
        return;
    }
    thread::scope(|scope| {
        for hang in HANGS {
            let name = format!("hang in {}", hang.command);
            thread::Builder::new().name(name).spawn_scoped(scope, move || check(&hang)).unwrap();
        }
    });
}

fn check(hang: &Hang) {
    let command = hang.command;
    let host = Host::scripted().configured("deadline = 2\n");
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    shim.exec_run("pod", "done", "true").unwrap();
    shim.wait("pod", "done").unwrap();
    host.prepare("c", Spec::idle().of_pod("pod"));
    (hang.before)(&shim);
    host.script().set(command, "hang");
    let hangs = || host.processes().iter().any(|process| process.line.contains("sleep 4321"));
    thread::scope(|scope| {
        let call = scope.spawn(|| timed(|| (hang.call)(&shim)));
        let began = || hangs() || call.is_finished();
        eventually("the command to hang", || began().then_some(()));
        if hangs() {
            others_answer_at_once(&shim, command);
        }
        let (answer, took) = call.join().unwrap();
        let Err(refusal) = answer else {
            // berth does without the runtime here, which is as good.
            assert!(!host.script().calls().iter().any(|call| call == command), "{command}");
            return;
        };
        assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{command}: {refusal:?}");
        assert!(refusal.message.contains(command), "{refusal:?}");
        assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(5), "{took:?}");
    });
    eventually("the runtime's process group to be gone", || (!hangs()).then_some(()));
    host.script().clear(command);
    (hang.after)(&shim);
    shim.end();
}

/// Everything that reads a snapshot answers in 100 ms (the best of five, for loaded machines).
pub(crate) fn others_answer_at_once(shim: &Shim<'_>, command: &str) {
    let calls: [(&str, &dyn Fn()); 7] = [
        ("State", &|| drop(shim.state("pod", "").unwrap())),
        ("Stats", &|| drop(shim.stats("pod").unwrap())),
        ("Connect", &|| drop(shim.ask("pod").unwrap())),
        ("Wait", &|| drop(shim.wait("pod", "done").unwrap())),
        ("Shutdown", &|| shim.shutdown("pod").unwrap()), // which is refused by doing nothing
        ("State of the one that hangs", &|| drop(shim.state("c", ""))),
        ("Connect to the one that hangs", &|| drop(shim.ask("c").unwrap())),
    ];
    for (name, call) in calls {
        let best = (0..5).map(|_| timed(call).1).min().unwrap();
        assert!(best < Duration::from_millis(100), "{name} while {command} hangs: {best:?}");
    }
}

#[test]
fn the_callers_own_deadline_ends_a_command_too() {
    if skipped("the deadline of a call is honoured") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    host.script().set("create", "hang");
    let (answer, took) = timed(|| shim.within(Duration::from_secs(1)).create(&shim.request("c")));
    assert!(answer.is_err() && took < Duration::from_secs(3), "{answer:?} {took:?}");
    eventually("the hanging runtime to be gone", || {
        (!host.processes().iter().any(|process| process.line.contains("sleep 4321"))).then_some(())
    });
    shim.stop();
}
