//! The wall clock may jump, and the others need not begin with the machine: nothing that berth waits for
//! is measured by the first, which only tells people when something was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use super::apart::is_apart;
use super::{assert_works, scripted};
use crate::support::{Code, Host, Shim, Spec, eventually, patient, skipped, timed};

/// Where the wall clock is read, and why that is for people's eyes only.
const READERS: [(&str, &str); 12] = [
    ("container/process.rs", "when a process began and ended, for the management interface"),
    ("delete.rs", "exited_at of a container that nobody has seen end"),
    ("events.rs", "the time of an event"),
    ("events/recent.rs", "the time of a recent event, in its test"),
    ("io/log_file.rs", "the time of a line in a log file"),
    ("log.rs", "the time of a record"),
    ("manage/mod.rs", "when the shim began"),
    ("node/doctor/leftovers.rs", "how old a file is that may be left behind; doctor looks twice"),
    ("reaper.rs", "exited_at"),
    ("sandbox/held.rs", "created_at of a sandbox"),
    ("trace/mod.rs", "when a span began"),
    ("wire/sandbox.rs", "the time of a metric"),
];

#[test]
fn the_wall_clock_is_read_for_people_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let words = ["SystemTime::now", "CLOCK_REALTIME", "UNIX_EPOCH.elapsed", "Utc::now"];
    let mut readers: Vec<String> = sources(&root)
        .into_iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            words.iter().any(|word| text.contains(word))
        })
        .map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned())
        .collect();
    readers.sort();
    assert_eq!(readers, READERS.map(|(path, _)| path));
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let of = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(of).collect()
}

/// What else waits: the kernel, by the clock that it is given.
#[test]
fn no_system_call_waits_by_the_wall_clock() {
    const CALLS: &str =
        "timerfd_create,timer_create,setitimer,clock_nanosleep,futex,epoll_wait,epoll_pwait";
    if skipped("the clocks of timers") {
        return;
    }
    let host = scripted().configured("deadline.pause = 1\n[io]\nhandover = false\n");
    let shim = host.start("c", Spec::idle());
    let trace = host.dir().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &shim.pid().to_string(), "-o"]).arg(&trace);
    strace.args(["-e", &format!("trace={CALLS}")]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut strace = strace.spawn().unwrap();
    let traced = format!("/proc/{}/status", shim.pid());
    eventually("strace", || {
        let status = fs::read_to_string(&traced).unwrap();
        (!status.contains("TracerPid:\t0\n")).then_some(())
    });
    let mut request = shim.request("c");
    request.stdout = format!("file://{}", host.dir().join("out.log").display());
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    shim.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(shim.reap("c", "e"), 3);
    hang(&host, &shim);
    let shim_pid = shim.pid();
    shim.end();
    strace.wait().unwrap();
    let text = fs::read_to_string(trace).unwrap();
    let of_the_loop = |line: &str| {
        let call = line.strip_prefix(&shim_pid.to_string());
        call.is_some_and(|call| call.trim_start().starts_with("epoll_"))
    };
    assert!(text.lines().any(of_the_loop), "{text}");
    // A relative time of the wall clock is as long as another clock's.
    let waits = |line: &&str| {
        line.contains("FUTEX_CLOCK_REALTIME")
            || line.contains("CLOCK_REALTIME")
                && (line.contains("ABSTIME") || line.contains("timer"))
    };
    assert_eq!(text.lines().find(waits), None);
}

/// A command that hangs is given up after its deadline of a second.
fn hang(host: &Host, shim: &Shim<'_>) {
    host.script().set("pause", "hang");
    let (answer, took) = timed(|| shim.pause("c"));
    assert_eq!(answer.unwrap_err().code, Code::DEADLINE_EXCEEDED);
    let limits = Duration::from_millis(900)..patient(Duration::from_secs(10));
    assert!(limits.contains(&took), "{took:?}");
    host.script().reset();
}

#[test]
fn clocks_that_began_at_another_time_than_the_machine_change_nothing() {
    const NAME: &str =
        "faults::clock::clocks_that_began_at_another_time_than_the_machine_change_nothing";
    const YEARS: &[&str] = &["--time", "--monotonic", "900000000", "--boottime", "1000000000"];
    if skipped("clocks") || !is_apart(NAME, YEARS, "") {
        return;
    }
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    assert!(uptime.split('.').next().unwrap().parse::<u64>().unwrap() >= 1_000_000_000, "{uptime}");
    let host = scripted().configured("deadline.pause = 1\n");
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    hang(&host, &shim);
    shim.crash();
    assert_eq!(host.delete("c").response.pid, pid);
    super::assert_clean(&host, "another boot time");
    super::remove_bundle(&host, "c");
    assert_works(&host, "c");
}

/// Only in a guest of tests/cgroup2, whose clock is its own.
#[test]
fn a_jump_of_the_wall_clock_changes_no_deadline() {
    let machine = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !machine.contains("User Mode Linux") {
        eprintln!("skipped, this machine's clock is not the test's to set");
        return;
    }
    let host = scripted().configured("deadline.pause = 3\n");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    for days in [400_i64, -800, 400] {
        host.script().set("pause", "hang");
        thread::scope(|scope| {
            let call = scope.spawn(|| timed(|| shim.pause("c")));
            let hangs =
                || host.processes().iter().any(|process| process.line.contains("sleep 4321"));
            eventually("the command to hang", || hangs().then_some(()));
            jump(days);
            let (answer, took) = call.join().unwrap();
            assert_eq!(answer.unwrap_err().code, Code::DEADLINE_EXCEEDED, "{days} days");
            let limits = Duration::from_secs(2)..Duration::from_secs(20);
            assert!(limits.contains(&took), "{days} days: {took:?}");
        });
        host.script().reset();
        shim.exec_run("c", "e", "exit 3").unwrap();
        assert_eq!(shim.reap("c", "e"), 3, "{days} days");
    }
    shim.end();
}

fn jump(days: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let then = now.checked_add_signed(days * 86_400).unwrap();
    let status = Command::new("date").args(["-s", &format!("@{then}")]).status().unwrap();
    assert!(status.success());
}
