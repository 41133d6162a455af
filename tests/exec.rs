//! Exec processes.

use std::thread;

use serde_json::json;

use crate::support::{Code, Host, Reader, Spec, eventually, mkfifo, skipped, stock};

#[test]
fn an_exec_reports_its_own_status() {
    let cases = [
        ("success", "true", 0),
        ("failure", "exit 9", 9),
        ("the highest", "exit 255", 255),
        ("a signal", "kill -9 $$", 137),
        ("a child that lives on", "sleep 1000 & exit 6", 6),
    ];
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for (name, script, status) in cases {
        shim.exec_run("c", "e", script).unwrap();
        assert_eq!(shim.reap("c", "e"), status, "{name}");
        assert_eq!(shim.state("c", "e").unwrap_err().code, Code::NOT_FOUND, "{name}");
    }
    assert_eq!(shim.remove("c"), 137);
    shim.stop();
}

#[test]
fn execs_end_before_init_for_every_reader() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for exec in ["a", "b", "d"] {
        shim.exec_run("c", exec, "exec sleep 1000").unwrap();
    }
    shim.kill("c", "", libc::SIGKILL).unwrap(); // ends the PID namespace, thus the exec processes
    for exec in ["a", "b", "d", ""] {
        assert_eq!(shim.wait("c", exec).unwrap().exit_status, 137);
    }
    host.sink.wait_for("exit c 137");
    let exits = host.sink.of("c").into_iter().filter(|line| line.starts_with("exit"));
    let mut exits: Vec<_> = exits.collect();
    assert_eq!(exits.pop().unwrap(), "exit c 137");
    exits.sort();
    assert_eq!(exits, ["exit c/a 137", "exit c/b 137", "exit c/d 137"]);
    for exec in ["a", "b", "d", ""] {
        assert_eq!(shim.reap("c", exec), 137);
    }
    shim.stop();
}

#[test]
fn kill_of_all_reaches_exec_processes_too() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let mut spec = Spec::idle();
    shim.run("c");
    for (round, own) in [true, false].into_iter().enumerate() {
        let id = format!("c{round}");
        if !own {
            spec = without_pid_namespace(spec);
        }
        host.prepare(&id, spec.clone());
        shim.run(&id);
        shim.exec_run(&id, "e", "exec sleep 1000").unwrap();
        shim.kill_all(&id, libc::SIGTERM).unwrap();
        let status = |exec: &str| shim.wait(&id, exec).unwrap().exit_status;
        assert_eq!((status("e"), status("")), (143, 143), "own PID namespace: {own}");
        assert_eq!((shim.reap(&id, "e"), shim.reap(&id, "")), (143, 143));
    }
    shim.end();
}

#[test]
fn without_a_pid_namespace_execs_end_with_init_and_are_announced_before_it() {
    let host = Host::new();
    let spec = without_pid_namespace(Spec::sh("read x; exit 4"));
    let shim = host.start("c", spec);
    let streams = host.streams("c", [true, true, true]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    shim.exec_run("c", "e", "trap '' TERM HUP; while :; do sleep 1; done").unwrap();
    std::io::Write::write_all(&mut streams.writer(), b"\n").unwrap();
    assert_eq!(shim.wait("c", "e").unwrap().exit_status, 137);
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 4);
    host.sink.wait_for("exit c 4");
    let exits = host.sink.of("c").into_iter().filter(|line| line.starts_with("exit"));
    assert_eq!(exits.collect::<Vec<_>>(), ["exit c/e 137", "exit c 4"]);
    assert_eq!((shim.reap("c", "e"), shim.reap("c", "")), (137, 4));
    shim.stop();
}

/// The host's processes see the container's, and none of them ends with its first one by itself.
fn without_pid_namespace(spec: Spec) -> Spec {
    let others = ["ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    spec.set("/linux/namespaces", json!(others))
}

#[test]
fn an_exec_while_init_dies_starts_or_fails_but_never_hangs() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    for round in 0..10 {
        let id = format!("c{round}");
        host.prepare(&id, Spec::idle());
        shim.run(&id);
        let execs: Vec<_> =
            (0..4).map(|n| shim.exec_request(&id, &format!("e{n}"), "sleep 1000")).collect();
        let started = thread::scope(|scope| {
            let run = |request| {
                let (task, id) = (shim.task(), &id);
                scope.spawn(move || {
                    task.exec(request).and_then(|()| task.start(id, &request.exec_id))
                })
            };
            let threads: Vec<_> = execs.iter().map(run).collect();
            shim.kill(&id, "", libc::SIGKILL).unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(shim.wait(&id, "").unwrap().exit_status, 137);
        for (request, answer) in execs.iter().zip(started) {
            match answer {
                Ok(_) => assert_eq!(shim.reap(&id, &request.exec_id), 137),
                Err(refusal) => assert_ne!(refusal.code, Code::OK, "{refusal:?}"),
            }
        }
        assert_eq!(shim.reap(&id, ""), 137);
    }
    shim.stop();
}

/// Its pid is soon another's, perhaps that of a process of another container.
#[test]
fn an_exec_whose_start_ends_behind_the_container_is_none_of_its_processes() {
    if skipped("a late exec is refused and forgotten") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    let init = shim.run("c");
    let until_told =
        "do real \"$@\"; : >$dir/made; until [ -e $dir/go ]; do sleep 0.05; done; exit 0";
    host.script().set("exec", until_told);
    thread::scope(|scope| {
        let start = scope.spawn(|| shim.exec_run("c", "e", "exec sleep 1000"));
        eventually("the exec process", || host.script().has_left("made").then_some(()));
        shim.kill("c", "", libc::SIGKILL).unwrap();
        assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
        host.script().set("go", "");
        assert_ne!(start.join().unwrap().unwrap_err().code, Code::OK);
    });
    assert_eq!(shim.pids("c").unwrap(), [(init, None)]);
    assert_eq!(shim.kill("c", "e", libc::SIGKILL).unwrap_err().code, Code::NOT_FOUND);
    shim.delete("c", "e").unwrap();
    assert_eq!(shim.reap("c", ""), 137);
    shim.stop();
}

#[test]
fn an_exec_that_was_never_started_can_be_deleted() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for _ in 0..2 {
        shim.exec(&shim.exec_request("c", "e", "true")).unwrap();
        shim.delete("c", "e").unwrap();
    }
    shim.end();
}

#[test]
fn an_exec_needs_a_running_container_and_a_process() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.create_plain("c").unwrap();
    let process = shim.exec_process("c", "e", json!({"args": 7}));
    if !skipped("Exec refuses what is no process") {
        assert_eq!(shim.exec(&process).unwrap_err().code, Code::INVALID_ARGUMENT);
    }
    shim.start("c", "").unwrap();
    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    let refusal = shim.exec_run("c", "late", "true").unwrap_err();
    assert_ne!(refusal.code, Code::OK, "{refusal:?}");
    shim.end();
}

#[test]
fn execs_leave_no_files_and_no_growing_log() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec_run("c", "first", "true").unwrap();
    shim.reap("c", "first");
    let log = host.bundle("c").join("log.json");
    let size = || std::fs::metadata(&log).map_or(0, |file| file.len());
    let (files, before) = (host.files("c"), size());
    for round in 0..50 {
        let program = if round % 2 == 0 { "/bin/true" } else { "/nope" };
        let process = json!({"args": [program], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        let exec = format!("e{round}");
        shim.exec(&shim.exec_process("c", &exec, process)).unwrap();
        assert_eq!(shim.start("c", &exec).is_ok(), round % 2 == 0);
        if round % 2 == 0 {
            shim.wait("c", &exec).unwrap();
        }
        shim.delete("c", &exec).unwrap();
    }
    if !skipped("the runtime's log does not grow") {
        assert_eq!(host.files("c"), files);
        assert!(size() <= before + 4096, "{} bytes", size());
    }
    shim.end();
}

#[test]
fn an_exec_gets_its_own_user_directory_and_environment() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let process = json!({
        "args": ["/bin/sh", "-c", "id -u; id -g; pwd; echo $X"],
        "cwd": "/tmp", "env": ["PATH=/bin", "X=y z"], "user": {"uid": 65534, "gid": 5},
    });
    let mut request = shim.exec_process("c", "e", process);
    request.stdout = mkfifo(&host.dir().join("out"));
    if stock() {
        request.stderr = mkfifo(&host.dir().join("err"));
    }
    let out = Reader::open(&request.stdout);
    let _err = stock().then(|| Reader::open(&request.stderr));
    shim.exec(&request).unwrap();
    shim.start("c", "e").unwrap();
    assert_eq!(shim.reap("c", "e"), 0);
    assert_eq!(out.finish(), "65534\n5\n/tmp\ny z\n");
    shim.end();
}

#[test]
fn an_exec_that_could_not_be_started_may_be_started_again() {
    if skipped("a failed Start of an exec can be repeated") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec(&shim.exec_request("c", "e", "exit 5")).unwrap();
    host.script().set("exec", "fail on purpose");
    shim.start("c", "e").unwrap_err();
    shim.wait("c", "e").unwrap_err();
    host.script().reset();
    shim.start("c", "e").unwrap();
    assert_eq!(shim.reap("c", "e"), 5);
    shim.end();
}
