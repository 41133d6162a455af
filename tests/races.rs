//! Calls that meet: what one of them is in the middle of, another one must not undo.

use std::fs::OpenOptions;
use std::thread;
use std::time::Duration;

use crate::support::{Answer, Code, Host, Reader, Spec, Task, eventually, mkfifo, skipped};

#[test]
fn delete_does_not_kill_a_container_that_is_being_started() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.create_plain("c").unwrap();
    host.script().set("start", "slow 1");
    thread::scope(|scope| {
        let start = scope.spawn(|| shim.start("c", ""));
        let begun = || host.script().calls().iter().any(|call| call == "start");
        eventually("the start", || begun().then_some(()));
        let refusal = shim.delete("c", "").unwrap_err();
        assert_ne!(refusal.code, Code::NOT_FOUND, "{refusal:?}");
        start.join().unwrap().unwrap();
    });
    shim.end();
}

#[test]
fn a_daemon_that_is_ending_says_so_to_a_start() {
    if skipped("Connect is refused at the end") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    host.sink.stop(); // so that the daemon waits to deliver
    shim.run("c");
    shim.remove("c");
    let start = shim.task().within(Duration::from_secs(2));
    start.ask("c").unwrap();
    shim.shutdown("c").unwrap();
    assert_eq!(start.ask("new").unwrap_err().code, Code::UNAVAILABLE);
    host.sink.resume();
    shim.wait_gone();
}

#[test]
fn an_exec_whose_terminal_has_nowhere_to_go_does_not_run_on() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut request = shim.exec_request("c", "e", "trap '' HUP; exec sleep 6789");
    request.terminal = true;
    request.stdout = "/nowhere/stdout".to_owned();
    shim.exec(&request).unwrap();
    assert!(shim.start("c", "e").is_err());
    let runs = || host.processes().iter().any(|process| process.line.contains("sleep 6789"));
    eventually("the process to end", || (!runs()).then_some(()));
    shim.end();
}

/// A process that has the FIFO itself owes berth nothing: all it wrote is there.
const RELAYED: &str = "[io]\nhandover = false\n";

#[test]
fn a_container_whose_output_is_held_stays_for_a_second_delete() {
    if skipped("the drain limit names the holder") {
        return;
    }
    let host = Host::new().configured(RELAYED);
    let shim = host.start("c", Spec::idle());
    let mut request = shim.request("c");
    request.stdout = mkfifo(&host.dir().join("out"));
    let _out = Reader::open(&request.stdout);
    let pid = shim.create(&request).unwrap();
    let held = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    shim.start("c", "").unwrap();
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap();
    let refusal = shim.within(Duration::from_secs(3)).delete("c", "").unwrap_err();
    assert_eq!(refusal.code, Code::DEADLINE_EXCEEDED, "{refusal:?}");
    // Else containerd never asks for the second Delete, and the shim stays for ever.
    assert_eq!(shim.state("c", "").unwrap().exit_status, 137);
    assert_eq!(shim.delete("c", "").unwrap().exit_status, 137);
    drop(held);
    shim.shutdown("c").unwrap();
    shim.wait_gone();
}

#[test]
fn output_for_a_reader_that_is_gone_for_good_does_not_fail_delete() {
    if skipped("Delete tells a slow reader from none") {
        return;
    }
    let host = Host::new().configured(RELAYED);
    let shim = host.start("c", Spec::sh("head -c 9000000 /dev/zero"));
    for reads in [true, false] {
        let mut request = shim.request("c");
        request.stdout = mkfifo(&host.dir().join(format!("out-{reads}")));
        shim.create(&request).unwrap();
        let reader = OpenOptions::new().read(true).open(&request.stdout).unwrap();
        shim.start("c", "").unwrap();
        let waits =
            |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        let blocked =
            || host.processes().iter().any(|process| waits(process.pid).contains("pipe_write"));
        // Both grow first, and it is blocked now and then until they have.
        let full = || {
            (0..30).all(|_| {
                std::thread::sleep(Duration::from_millis(10));
                blocked()
            })
        };
        eventually("pipe and FIFO to be full", || full().then_some(()));
        if !reads {
            drop(reader);
            shim.kill("c", "", libc::SIGKILL).unwrap();
            shim.wait("c", "").unwrap();
            shim.within(Duration::from_secs(3)).delete("c", "").unwrap();
            continue;
        }
        shim.kill("c", "", libc::SIGKILL).unwrap();
        shim.wait("c", "").unwrap();
        let refusal = shim.within(Duration::from_secs(3)).delete("c", "").unwrap_err();
        let reader_is_named = refusal.message.contains(&format!("pid {}", std::process::id()));
        assert!(reader_is_named && refusal.code == Code::DEADLINE_EXCEEDED, "{refusal:?}");
        shim.delete("c", "").unwrap();
    }
    shim.shutdown("c").unwrap();
    shim.wait_gone();
}

#[test]
fn delete_lets_a_kill_end_first() {
    if skipped("Delete lets a Kill end that is under way") {
        return;
    }
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    for (mood, least, most) in [("tired 0.5", 300, 20_000), ("tired 30", 1900, 20_000)] {
        shim.run("c");
        host.script().set("kill", mood);
        let began = std::time::Instant::now();
        let task = shim.task();
        let kill = std::thread::spawn(move || {
            let answer = task.within(Duration::from_secs(4)).kill("c", "", libc::SIGKILL);
            (answer.is_ok(), std::time::Instant::now())
        });
        shim.wait("c", "").unwrap();
        shim.delete("c", "").unwrap();
        let (deleted, took) = (std::time::Instant::now(), began.elapsed().as_millis());
        assert!((least..most).contains(&took), "{mood}: {took} ms");
        let (is_ok, killed) = kill.join().unwrap();
        assert_eq!(is_ok && killed < deleted, mood == "tired 0.5", "{mood}");
        host.script().clear("kill");
    }
    shim.shutdown("c").unwrap();
    shim.wait_gone();
}

#[test]
fn a_hanging_change_does_not_delay_the_news_of_the_end() {
    if skipped("Wait does not queue behind a runtime command") {
        return;
    }
    type Call = fn(&Task) -> Answer<()>;
    let changes: [(&str, Call); 3] = [
        ("pause", |task| task.pause("c")),
        ("update", |task| task.update("c", &serde_json::json!({"pids": {"limit": 50}}))),
        ("exec", |task| task.start("c", "e").map(drop)),
    ];
    for (command, change) in changes {
        let host = Host::scripted();
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        shim.exec(&shim.exec_request("c", "e", "true")).unwrap();
        host.script().set(command, "hang");
        thread::scope(|scope| {
            let task = shim.task();
            let hanging = scope.spawn(move || change(&task.within(Duration::from_secs(6))));
            let begun = || host.script().calls().iter().any(|call| call == command);
            eventually("the command", || begun().then_some(()));
            shim.kill("c", "", 9).unwrap();
            let waited = shim.task().within(Duration::from_secs(4)).wait("c", "");
            assert_eq!(waited.unwrap().exit_status, 137, "{command}");
            hanging.join().unwrap().unwrap_err();
        });
        let events = host.sink.of("c");
        assert_eq!(events.last().map(String::as_str), Some("exit c 137"), "{command}: {events:?}");
        host.script().reset();
        shim.end();
    }
}
