//! A daemon, or a command, that may open few files: each step says so or works, and nothing is lost.

use std::fs;
use std::process::{self, Command};

use crate::crash::Holdings;
use crate::support::{Answer, Code, Host, Shim, Spec, Stdin, eventually, skipped};

/// Sets how many descriptors the daemon may have.
fn limit(shim: &Shim<'_>, soft: u64) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={}", shim.pid()), format!("--nofile={soft}:")]);
    assert!(prlimit.status().unwrap().success());
}

fn usual(shim: &Shim<'_>) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{}/limits", shim.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// The limit that leaves the daemon `free` descriptors.
fn leaving(shim: &Shim<'_>, free: usize) -> u64 {
    let entries = fs::read_dir(format!("/proc/{}/fd", shim.pid())).unwrap().flatten();
    let used: Vec<usize> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut free_numbers = (0..).filter(|number| !used.contains(number));
    free_numbers.nth(free).unwrap() as u64
}

/// What the daemon may not have enough descriptors for; it is called with none to all that it needs.
struct Step {
    name: &'static str,
    before: fn(&Shim<'_>),
    call: fn(&Shim<'_>) -> Answer<()>,
    /// What it leaves when it worked, and when it failed.
    undo: fn(&Shim<'_>, bool),
}

fn with_streams(shim: &Shim<'_>, name: &str) -> Answer<()> {
    let streams = shim.host().streams(name, [true, true, true]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    let answer = shim.create(&request).map(drop);
    fs::remove_dir_all(shim.host().dir().join("fifo").join(name)).unwrap();
    answer
}

const STEPS: [Step; 5] = [
    Step {
        name: "Create",
        before: |_| {},
        call: |shim| with_streams(shim, "c"),
        undo: |shim, worked| {
            if worked {
                shim.remove("c");
            }
        },
    },
    Step {
        name: "Start",
        before: |shim| assert!(shim.create_plain("c").is_ok()),
        call: |shim| shim.start("c", "").map(drop),
        undo: |shim, _| assert_eq!(shim.remove("c"), 137),
    },
    Step {
        name: "Exec",
        before: |shim| assert!(shim.run("c") > 0),
        call: |shim| shim.exec_run("c", "e", "exit 3").map(drop),
        undo: |shim, worked| {
            if worked {
                assert_eq!(shim.wait("c", "e").unwrap().exit_status, 3);
            }
            // Exec or its Start has failed.
            assert!(shim.delete("c", "e").is_ok() || !worked);
            assert_eq!(shim.state("c", "e").unwrap_err().code, Code::NOT_FOUND);
            shim.remove("c");
        },
    },
    Step {
        name: "Kill",
        before: |shim| assert!(shim.run("c") > 0),
        call: |shim| shim.kill_all("c", libc::SIGKILL),
        undo: |shim, _| assert_eq!(shim.remove("c"), 137),
    },
    Step {
        name: "Delete",
        before: |shim| {
            shim.run("c");
            shim.kill_all("c", libc::SIGKILL).unwrap();
            shim.wait("c", "").unwrap();
        },
        call: |shim| shim.delete("c", "").map(drop),
        undo: |shim, worked| {
            if !worked {
                shim.delete("c", "").unwrap();
            }
        },
    },
];

#[test]
fn a_step_without_descriptors_says_so_and_leaves_nothing() {
    if skipped("a lack of descriptors") {
        return;
    }
    std::thread::scope(|scope| {
        for step in &STEPS {
            let thread = std::thread::Builder::new().name(step.name.into());
            thread.spawn_scoped(scope, move || check(step)).unwrap();
        }
    });
}

fn check(step: &Step) {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    with_streams(&shim, "first").unwrap(); // what a first container adds for good is there
    shim.remove("c");
    let (before, usual) = (Holdings::of(&host, &shim), usual(&shim));
    let mut failures = 0;
    for free in 0.. {
        let name = format!("{} with {free} free descriptors", step.name);
        (step.before)(&shim);
        limit(&shim, leaving(&shim, free));
        let answer = (step.call)(&shim);
        assert!(shim.state("c", "").is_ok() || step.name != "Exec", "{name}");
        limit(&shim, usual);
        if let Err(refusal) = &answer {
            assert_ne!(refusal.code, Code::OK, "{name}: no answer: {refusal:?}");
            assert!(refusal.message.contains("Too many open files"), "{name}: {refusal:?}");
            failures += 1;
        }
        (step.undo)(&shim, answer.is_ok());
        before.expect(&host, &shim, &name);
        if answer.is_ok() {
            break;
        }
        assert!(free < 40, "{name}: {answer:?}");
    }
    assert!(failures > 0 || step.name == "Kill", "{} needs no descriptor", step.name);
    shim.run("c");
    shim.end();
    let lines = host.sink.lines();
    let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!(count("create c"), count("delete c"), "{lines:?}");
    assert_eq!(count("exit c 137"), count("delete c"), "{lines:?}");
}

/// Runs the shim binary with at most `files` descriptors, and what it starts too.
fn run_with(host: &Host, action: &str, files: u32) -> process::Output {
    let usual = host.command("c", action);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={files}:{files}")).arg(usual.get_program());
    limited.args(usual.get_args()).current_dir(host.bundle("c"));
    limited.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
        .stdin(process::Stdio::null())
        .stdout(process::Stdio::piped())
        .stderr(process::Stdio::piped());
    limited.output().unwrap()
}

#[test]
fn start_and_delete_without_descriptors_say_so_and_leave_nothing() {
    if skipped("a lack of descriptors") {
        return;
    }
    let says = |text: &[u8]| String::from_utf8_lossy(text).contains("os error 24");
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let log = host.log("c");
    // One that could not even take calls is not started.
    for files in (4..20).chain([63]) {
        let output = run_with(&host, "start", files);
        assert!(!output.status.success(), "start with {files}: {output:?}");
        assert!(says(&output.stderr) && output.stdout.is_empty(), "start with {files}: {output:?}");
        eventually("no process", || host.processes().is_empty().then_some(()));
        assert_eq!(host.files("c"), ["config.json", "rootfs"], "start with {files}");
    }
    assert!(run_with(&host, "start", 64).status.success());
    let shim = host.attach("c", &Stdin::Nothing);
    with_streams(&shim, "few").unwrap();
    shim.remove("c");
    shim.stop();
    drop(log);
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.crash();
    for files in (4..20).chain([63]) {
        let output = run_with(&host, "delete", files);
        assert!(!output.status.success(), "delete with {files}: {output:?}");
        assert!(
            says(&output.stderr) && output.stdout.is_empty(),
            "delete with {files}: {output:?}"
        );
    }
    assert!(run_with(&host, "delete", 64).status.success());
    let left = (host.processes(), host.mounts(), host.cgroups(), host.states());
    assert_eq!(left, (vec![], vec![], vec![], vec![]));
    host.start("c", Spec::idle()).stop();
}
