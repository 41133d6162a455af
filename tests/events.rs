//! Events: their order, and that none is lost while containerd is away.

use std::thread;
use std::time::Duration;

use crate::support::{Host, Mood, Shim, Spec, eventually, patient, skipped, timed};

#[test]
fn events_tell_each_process_story_in_order() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    let exec = shim.exec_run("c", "e", "exit 2").unwrap();
    assert_eq!(shim.reap("c", "e"), 2);
    shim.remove("c");
    let exec_story = ["exec-added c/e", "exec-started c/e", "exit c/e 2"];
    let lines = [&["create c", "start c"], &exec_story[..], &["exit c 137", "delete c 137"]];
    host.sink.expect("c", &lines.concat());
    let of = |line| host.sink.wait_for(line).pid;
    assert_eq!([of("create c"), of("start c"), of("exit c 137"), of("delete c 137")], [pid; 4]);
    assert_eq!([of("exec-started c/e"), of("exit c/e 2")], [exec; 2]);
    assert!(host.sink.events().iter().all(|event| event.namespace == "tests"));
    shim.stop();
}

/// Runs container `id` to its end, with an exec; returns the events that follow from it.
fn story(shim: &Shim<'_>, id: &str) -> Vec<String> {
    shim.run(id);
    shim.exec_run(id, "e", "exit 2").unwrap();
    shim.reap(id, "e");
    shim.remove(id);
    let lines = ["create I", "start I", "exec-added I/e", "exec-started I/e", "exit I/e 2"];
    let lines = [&lines[..], &["exit I 137", "delete I 137"]].concat();
    lines.iter().map(|line| line.replace('I', id)).collect()
}

#[test]
fn events_wait_for_containerd_to_come_back() {
    if skipped("events are kept while containerd is down") {
        return;
    }
    type Trouble = (&'static str, fn(&Host), fn(&Host));
    let cases: [Trouble; 2] = [
        ("the socket is gone", |host| host.sink.stop(), |host| host.sink.resume()),
        (
            "it takes events and never answers",
            |host| host.sink.set(Mood::Silent),
            |host| {
                host.sink.stop();
                host.sink.set(Mood::Answer);
                host.sink.resume();
            },
        ),
    ];
    thread::scope(|scope| {
        for (name, leave, return_) in cases {
            scope.spawn(move || {
                let host = Host::new();
                let shim = host.start("a", Spec::idle());
                host.prepare("b", Spec::idle());
                host.prepare("d", Spec::idle());
                let mut expected = story(&shim, "a");
                host.sink.expect("a", &expected.iter().map(String::as_str).collect::<Vec<_>>());
                leave(&host);
                let (missed, took) = timed(|| story(&shim, "b"));
                assert!(
                    took < patient(Duration::from_secs(5)),
                    "{name}: calls waited for events: {took:?}"
                );
                thread::sleep(Duration::from_secs(4)); // the trouble itself, longer than retries
                return_(&host);
                let later = story(&shim, "d");
                host.sink.wait_for("delete d 137");
                expected.extend([missed, later].concat());
                assert_eq!(host.sink.lines(), expected, "{name}");
                shim.stop();
            });
        }
    });
}

#[test]
fn shutdown_delivers_every_event_first() {
    for round in 0..5 {
        let host = Host::new();
        let shim = host.start("c", Spec::sh("exit 1"));
        shim.run("c");
        shim.reap("c", "");
        shim.stop();
        // The daemon is gone: what has not arrived never will.
        let lines = ["create c", "start c", "exit c 1", "delete c 1"];
        assert_eq!(host.sink.of("c"), lines, "round {round}");
    }
}

#[test]
fn an_oom_kill_is_told_before_the_exit_it_explains() {
    let limit = serde_json::json!({"limit": 32 << 20, "swap": 32 << 20});
    let hog = Spec::sh("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    let host = Host::new();
    let shim = host.start("c", hog.set("/linux/resources/memory", limit));
    shim.run("c");
    let status = shim.reap("c", "");
    assert!(status == 137 || status == 2, "killed, or the shell itself gave up: {status}");
    if status == 137 {
        host.sink.wait_for("delete c 137");
        if !skipped("the OOM event precedes the exit") {
            host.sink.expect("c", &["create c", "start c", "oom c", "exit c 137", "delete c 137"]);
        }
    }
    shim.stop();
}

#[test]
fn an_oom_kill_of_any_process_is_told_once() {
    if skipped("an OOM event for each kill") {
        return;
    }
    const HOG: &str = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let limit = serde_json::json!({"limit": 32 << 20, "swap": 32 << 20});
    let host = Host::new();
    let shim = host.start("c", Spec::idle().set("/linux/resources/memory", limit));
    shim.run("c");
    shim.exec_run("c", "e", HOG).unwrap();
    assert_eq!(shim.reap("c", "e"), 137);
    host.sink.wait_for("exit c/e 137");
    let told =
        host.sink.of("c").into_iter().filter(|line| *line == "oom c" || line.starts_with("exit"));
    assert_eq!(told.collect::<Vec<_>>(), ["oom c", "exit c/e 137"]);

    // Of a process that nobody waits for, while all that containerd knows of live on.
    thread::sleep(Duration::from_millis(200)); // the next episode
    shim.exec_run("c", "f", &format!("({HOG}); exec sleep 1000")).unwrap();
    let ooms = || host.sink.of("c").iter().filter(|line| *line == "oom c").count();
    eventually("a second OOM event", || (ooms() == 2).then_some(()));
    assert_eq!(shim.state("c", "f").unwrap().exit_status, 0);
    shim.remove("c");
    shim.stop();
    assert_eq!(ooms(), 2);
}
