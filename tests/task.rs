//! The task service: a container's lifecycle, error codes, the runtime's own words.

use std::thread;

use containerd_shim_protos::api::Status;
use serde_json::json;

use crate::support::{Answer, Api, Code, Host, Reader, Script, Shim, Spec, mkfifo, skipped, stock};

#[test]
fn every_call_serves_a_containers_whole_life() {
    for api in [Api::V2, Api::V3] {
        if api == Api::V3 && skipped("v2 and v3 on the same socket") {
            return;
        }
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let task = shim.speaking(api);
        let state = |exec: &str| task.state("c", exec).unwrap().status.unwrap();

        let pid = task.create(&shim.request("c")).unwrap();
        assert_eq!(state(""), Status::CREATED);
        assert_eq!(task.pids("c").unwrap(), [(pid, None)]);
        assert_eq!(task.start("c", "").unwrap(), pid);
        assert_eq!(state(""), Status::RUNNING);

        task.exec(&shim.exec_request("c", "e", "exec sleep 1000")).unwrap();
        assert_eq!(state("e"), Status::CREATED);
        let exec = task.start("c", "e").unwrap();
        assert_eq!(state("e"), Status::RUNNING);
        let pids = task.pids("c").unwrap();
        assert!(pids.contains(&(pid, None)), "{pids:?}");
        assert!(pids.contains(&(exec, Some("e".into()))), "{pids:?}");

        task.pause("c").unwrap();
        assert_eq!(state(""), Status::PAUSED);
        task.resume("c").unwrap();
        assert_eq!(state(""), Status::RUNNING);
        task.update("c", &json!({"memory": {"limit": 64 << 20}})).unwrap();
        let stats = task.stats("c").unwrap().stats.unwrap();
        assert!(stats.type_url.starts_with("io.containerd.cgroups.v"), "{stats:?}");
        assert!(!stats.value.is_empty());
        let about = task.ask("c").unwrap();
        assert_eq!((i32::try_from(about.shim_pid).unwrap(), about.task_pid), (shim.pid(), pid));

        task.kill("c", "e", libc::SIGKILL).unwrap();
        assert_eq!(task.wait("c", "e").unwrap().exit_status, 137);
        assert_eq!(state("e"), Status::STOPPED);
        assert_eq!(shim.reap("c", "e"), 137);
        task.shutdown("c").unwrap(); // is ignored: there is a container
        task.kill("c", "", libc::SIGTERM).unwrap();
        assert_eq!(task.wait("c", "").unwrap().exit_status, 143);
        let stopped = task.state("c", "").unwrap();
        assert_eq!((stopped.status.unwrap(), stopped.exit_status), (Status::STOPPED, 143));
        assert!(stopped.exited_at.seconds > 1_700_000_000);
        let deleted = task.delete("c", "").unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 143));
        let first = ["create c", "start c", "exec-added c/e", "exec-started c/e", "paused c"];
        let last = ["resumed c", "exit c/e 137", "exit c 143", "delete c 143"];
        host.sink.expect("c", &[&first[..], &last].concat());
        shim.stop();
    }
}

#[test]
fn a_state_tells_what_create_was_given() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    request.stdout = mkfifo(&host.dir().join("out"));
    request.stderr = mkfifo(&host.dir().join("err"));
    let readers = [Reader::open(&request.stdout), Reader::open(&request.stderr)];
    let pid = shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let state = shim.state("c", "").unwrap();
    assert_eq!((state.id.as_str(), state.pid), ("c", pid));
    assert_eq!(state.bundle, request.bundle);
    assert_eq!((state.stdin.as_str(), state.stdout.as_str()), ("", request.stdout.as_str()));
    assert_eq!((state.stderr.as_str(), state.terminal), (request.stderr.as_str(), false));
    // Go's zero time, or no time at all; the epoch would be a date.
    assert!(state.exited_at.as_ref().is_none_or(|at| at.seconds == -62_135_596_800), "{state:?}");
    shim.end();
    assert_eq!(readers.each_ref().map(Reader::finish), ["", ""]);
}

/// A call and the code it must be refused with; [`Code::OK`]: it must succeed.
type Row = (&'static str, fn(&Shim<'_>) -> Answer<()>, Code);

#[test]
fn refusals_have_the_codes_that_clients_branch_on() {
    const MISSING: Code = Code::NOT_FOUND;
    let missing: &[Row] = &[
        ("State of no container", |s| s.state("no", "").map(drop), MISSING),
        ("State of no exec", |s| s.state("c", "no").map(drop), MISSING),
        ("Start of no container", |s| s.start("no", "").map(drop), MISSING),
        ("Start of no exec", |s| s.start("c", "no").map(drop), MISSING),
        ("Kill of no container", |s| s.kill("no", "", 9), MISSING),
        ("Kill of no exec", |s| s.kill("c", "no", 9), MISSING),
        ("Delete of no container", |s| s.delete("no", "").map(drop), MISSING),
        ("Delete of no exec", |s| s.delete("c", "no").map(drop), MISSING),
        ("Wait for no container", |s| s.wait("no", "").map(drop), MISSING),
        ("Wait for no exec", |s| s.wait("c", "no").map(drop), MISSING),
        ("Pids of no container", |s| s.pids("no").map(drop), MISSING),
        ("Pause of no container", |s| s.pause("no"), MISSING),
        ("Resume of no container", |s| s.resume("no"), MISSING),
        ("Exec in no container", |s| s.exec(&s.exec_request("no", "e", "true")), MISSING),
        ("ResizePty of no container", |s| s.resize("no", "", 1, 1), MISSING),
        ("CloseIO of no container", |s| s.close_stdin("no", ""), MISSING),
        ("Update of no container", |s| s.update("no", &json!({})), MISSING),
        ("Stats of no container", |s| s.stats("no").map(drop), MISSING),
    ];
    let others: &[Row] = &[
        ("an unknown method", |s| s.raw(SERVICE, "Fly", vec![]).map(drop), Code::UNIMPLEMENTED),
        ("an unknown service", |s| s.raw("x.Y", "State", vec![]).map(drop), Code::UNIMPLEMENTED),
        ("an exec id in use", |s| s.exec(&s.exec_request("c", "e", "true")), Code::ALREADY_EXISTS),
        ("Shutdown with a container", |s| s.shutdown("c"), Code::OK),
        ("Connect to no container", |s| s.ask("no").map(drop), Code::OK),
    ];
    let berth_only: &[Row] = &[
        ("a second Create", |s| s.create_plain("c").map(drop), Code::ALREADY_EXISTS),
        (
            "Checkpoint to nowhere",
            |s| s.checkpoint("c", "", &Default::default()),
            Code::INVALID_ARGUMENT,
        ),
        ("Kill with no signal", |s| s.kill("c", "", 99), Code::INVALID_ARGUMENT),
        ("a path as id", |s| s.create_plain("../c").map(drop), Code::INVALID_ARGUMENT),
        ("no id", |s| s.create_plain("").map(drop), Code::INVALID_ARGUMENT),
        ("a path as exec id", |s| s.exec(&s.exec_request("c", "../e", "")), Code::INVALID_ARGUMENT),
        ("a second Start", |s| s.start("c", "").map(drop), Code::FAILED_PRECONDITION),
        ("Delete while running", |s| s.delete("c", "").map(drop), Code::FAILED_PRECONDITION),
        ("Delete of a running exec", |s| s.delete("c", "e").map(drop), Code::FAILED_PRECONDITION),
        ("Resume of a running one", |s| s.resume("c"), Code::FAILED_PRECONDITION),
        (
            "a request that is no message",
            |s| s.raw(SERVICE, "State", vec![255]).map(drop),
            Code::INVALID_ARGUMENT,
        ),
    ];
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    let berth_only = if stock() { &[] } else { berth_only };
    for (name, call, code) in [missing, others, berth_only].concat() {
        let answer = call(&shim).map_err(|refusal| refusal.code).err().unwrap_or(Code::OK);
        assert_eq!(answer, code, "{name}: {:?}", call(&shim));
    }
    shim.end();
}

const SERVICE: &str = "containerd.task.v2.Task";

#[test]
fn a_running_process_is_neither_started_nor_deleted_again() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    for exec in ["", "e"] {
        let started = shim.start("c", exec).unwrap_err();
        let deleted = shim.delete("c", exec).unwrap_err();
        // NotFound would make containerd drop the task.
        assert!(![Code::OK, Code::NOT_FOUND].contains(&deleted.code), "{deleted:?}");
        assert!(![Code::OK, Code::NOT_FOUND].contains(&started.code), "{started:?}");
    }
    assert_eq!(shim.state("c", "").unwrap().status.unwrap(), Status::RUNNING);
    shim.end();
}

#[test]
fn a_finished_process_cannot_be_killed_but_everything_else_still_answers() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.exec_run("c", "e", "exit 4").unwrap();
    assert_eq!(shim.wait("c", "e").unwrap().exit_status, 4);
    assert_eq!(shim.kill("c", "e", 9).unwrap_err().code, Code::NOT_FOUND);
    shim.kill("c", "", 9).unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
    assert_eq!(shim.kill("c", "", 9).unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.state("c", "e").unwrap().exit_status, 4);
    if !skipped("a resize after the end is no error") {
        shim.resize("c", "", 80, 25).unwrap();
        shim.close_stdin("c", "").unwrap();
    }
    assert_eq!(shim.reap("c", "e"), 4);
    assert_eq!(shim.reap("c", ""), 137);
    assert_eq!(shim.delete("c", "").unwrap_err().code, Code::NOT_FOUND);
    shim.stop();
}

#[test]
fn the_runtimes_own_words_reach_the_caller() {
    let host = Host::new();
    let bad = |program: &str| Spec::idle().set("/process/args", json!([program]));
    let shim = host.start("c", Spec::idle());
    let cases = [("/nope", "no such file"), ("/etc/denied", "permission denied")];
    for (program, words) in cases {
        host.prepare("c", bad(program));
        let created = shim.create_plain("c").and_then(|_| shim.start("c", "").map(drop));
        let refusal = created.unwrap_err();
        assert!(refusal.message.to_lowercase().contains(words), "{refusal:?}");
        drop(shim.delete("c", "")); // where Start is what failed
        assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND);
    }
    host.prepare("c", Spec::idle());
    shim.run("c");
    for (program, words) in cases {
        let process = json!({"args": [program], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        shim.exec(&shim.exec_process("c", "e", process)).unwrap();
        let refusal = shim.start("c", "e").unwrap_err();
        assert!(refusal.message.to_lowercase().contains(words), "{refusal:?}");
        shim.delete("c", "e").unwrap();
    }
    shim.end();
}

#[test]
fn every_waiter_gets_the_status_whenever_it_asks() {
    let host = Host::new();
    let shim = host.start("c", Spec::sh("exit 5"));
    shim.create_plain("c").unwrap();
    let wait = || {
        let task = shim.task();
        thread::spawn(move || task.wait("c", "").unwrap())
    };
    let early: Vec<_> = (0..50).map(|_| wait()).collect();
    shim.start("c", "").unwrap();
    shim.wait("c", "").unwrap();
    let late: Vec<_> = (0..50).map(|_| wait()).collect();
    let answers: Vec<_> = early.into_iter().chain(late).map(|t| t.join().unwrap()).collect();
    assert!(answers.iter().all(|answer| answer == &answers[0] && answer.exit_status == 5));
    assert_eq!(shim.reap("c", ""), 5);
    shim.stop();
}

#[test]
fn a_container_that_dies_before_its_start_loses_nothing() {
    type Killer = fn(&Shim<'_>, u32);
    let cases: [(&str, Killer); 2] = [
        ("by Kill", |shim, _| shim.kill("c", "", 9).unwrap()),
        ("from outside", |_, pid| {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }),
    ];
    for (name, kill) in cases {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let pid = shim.create_plain("c").unwrap();
        kill(&shim, pid);
        assert_eq!(shim.wait("c", "").unwrap().exit_status, 137, "{name}");
        assert_eq!(shim.state("c", "").unwrap().status.unwrap(), Status::STOPPED, "{name}");
        shim.start("c", "").unwrap_err();
        assert_eq!(shim.reap("c", ""), 137, "{name}");
        host.sink.expect("c", &["create c", "exit c 137", "delete c 137"]);
        shim.stop();
    }
}

#[test]
fn a_container_that_ends_at_once_reports_its_status() {
    let host = Host::new();
    let shim = host.start("c", Spec::sh("exit 0"));
    for round in 0..100 {
        let (id, status) = (format!("c{round}"), round % 8);
        host.prepare(&id, Spec::sh(&format!("exit {status}")));
        shim.run(&id);
        assert_eq!(shim.reap(&id, ""), status);
        let [create, start] = [format!("create {id}"), format!("start {id}")];
        let [exit, delete] = [format!("exit {id} {status}"), format!("delete {id} {status}")];
        host.sink.expect(&id, &[&create, &start, &exit, &delete]);
    }
    shim.stop();
}

#[test]
fn an_update_and_a_pause_reach_the_cgroup() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.update("c", &json!({"memory": {"limit": 64 << 20}})).unwrap();
    let limit = |group: &std::path::PathBuf| {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file));
        files.iter().find_map(|file| std::fs::read_to_string(file).ok())
    };
    let limits: Vec<_> = host.cgroups().iter().filter_map(limit).collect();
    assert_eq!(limits, [format!("{}\n", 64 << 20)]);
    shim.end();
}

#[test]
fn runc_options_reach_the_runtimes_arguments() {
    let pivot: &[&str] = &["--no-pivot"];
    let keyring: &[&str] = &["--no-new-keyring"];
    let systemd: &[&str] = &["--systemd-cgroup"];
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    let root = host.root().join("tests").to_str().unwrap().to_owned();
    host.script().set("create", "fail on purpose");
    let create = |change: fn(&mut containerd_shim_protos::shim::oci::Options)| {
        let mut request = shim.request("c");
        request.options = Some(shim.options(change)).into();
        let refusal = shim.create(&request).unwrap_err();
        assert!(refusal.message.contains("on purpose"), "{refusal:?}");
        Script::arguments(&host.script().last("create"))
    };
    let has =
        |arguments: &[String], part: &[&str]| arguments.windows(part.len()).any(|w| w == part);

    let plain = create(|_| {});
    assert!(has(&plain, &["--root", &root]), "{plain:?}");
    assert!(has(&plain, &["--bundle", host.bundle("c").to_str().unwrap()]), "{plain:?}");
    assert_eq!(plain.last().unwrap(), "c");
    for part in [pivot, keyring, systemd] {
        assert!(!has(&plain, part), "{plain:?}");
    }
    assert!(has(&create(|options| options.no_pivot_root = true), pivot));
    assert!(has(&create(|options| options.no_new_keyring = true), keyring));
    assert!(has(&create(|options| options.systemd_cgroup = true), systemd));
    shim.stop();
}
