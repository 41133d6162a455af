//! Checkpoint and restore: with a scripted runtime, and with a real CRIU where there is one that works.
//!
//! What was found of CRIU: 3.17 of Debian 12 works with runc 1.1.5 where the kernel is of its time; on
//! Linux 6.18 it fails ("Unexpected rt vDSO area bounds"). 4.2 of Debian's testing works there with
//! runc 1.1.5 and 1.3.6, so `packaging/fetch-containerd.sh` fetches it. crun of Debian 12 is built without
//! CRIU. The kernel of Debian's user-mode-linux is built without CONFIG_CHECKPOINT_RESTORE: what `criu check`
//! says there is printed, and the tests with a real CRIU are skipped.

mod failures;
mod options;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, Status};
use containerd_shim_protos::shim::oci::CheckpointOptions;

use super::support::{Code, Host, Shim, Spec, Streams, eventually, within};

/// The fetched CRIU, unless it cannot work here; says so then.
fn criu() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    let fetched = built.ancestors().map(|dir| dir.join("containerd/criu/bin/criu"));
    let Some(criu) = fetched.into_iter().find(|path| path.exists()) else {
        loudly("NO CRIU: skipped; packaging/fetch-containerd.sh fetches it");
        return None;
    };
    if std::env::var("BERTH_TEST_RUNTIME").is_ok_and(|runtime| runtime != "runc") {
        eprintln!("skipped: the runtime is not runc, which is the one with CRIU");
        return None;
    }
    // Others may use up the host's inotify instances for a moment, of which it makes one.
    let mut said = String::new();
    for _ in 0..20 {
        let check = Command::new(&criu).arg("check").output().unwrap();
        if check.status.success() {
            return Some(criu);
        }
        said = String::from_utf8_lossy(&check.stderr).into_owned();
        std::thread::sleep(Duration::from_millis(500));
    }
    loudly(&format!("CRIU CANNOT WORK HERE: skipped; `criu check` says: {said}"));
    None
}

/// Past the harness, which keeps what a test that passes prints to itself.
fn loudly(words: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "{name}: {words}");
}

/// The PATH on which `criu` comes first.
fn path_with(criu: &Path) -> String {
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}", criu.parent().unwrap().display())
}

/// A host whose runtime finds CRIU.
fn host_with(criu: &Path) -> Host {
    Host::new().with_env("PATH", &path_with(criu))
}

/// Prints a number ten times a second, and ends with 7 when it is told to.
const COUNTER: &str = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";

/// Complete lines that are numbers.
fn numbers(text: &str) -> Vec<u32> {
    let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
    complete.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn exit() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..Default::default() }
}

/// A directory for an image.
fn image(host: &Host, name: &str) -> String {
    host.dir().join(name).to_str().unwrap().to_owned()
}

/// Create of container `id` from the checkpoint at `image`.
fn restoring(shim: &Shim<'_>, id: &str, image: &str) -> CreateTaskRequest {
    let mut request = shim.request(id);
    request.checkpoint = image.into();
    request
}

#[track_caller]
fn counts(streams: &Streams, from: usize) -> Vec<u32> {
    let some = || Some(numbers(&streams.out().text())).filter(|all| all.len() >= from);
    within(Duration::from_secs(60), "numbers", some)
}

/// Where the output of a counter goes: a configuration, and whether it has a terminal.
const WAYS: [(&str, &str, bool); 3] = [
    ("FIFOs of its own", "", false),
    ("pipes", "[io]\nhandover = false\n", false),
    ("a terminal", "", true),
];

#[test]
fn a_restored_process_goes_on_where_it_was() {
    let Some(criu) = criu() else { return };
    for (way, config, terminal) in WAYS {
        eprintln!("{way}");
        let host = host_with(&criu).configured(config);
        let spec = if terminal { Spec::sh(COUNTER).terminal() } else { Spec::sh(COUNTER) };
        let shim = host.start("c", spec.clone());
        let first = host.streams("c", [false, true, !terminal]);
        let mut request = shim.request("c");
        first.to_create(&mut request);
        request.terminal = terminal;
        let pid = shim.create(&request).unwrap();
        assert_eq!(shim.start("c", "").unwrap(), pid);
        counts(&first, 3);
        let image = image(&host, "image");
        shim.checkpoint("c", &image, &exit()).unwrap();
        assert_eq!(shim.reap("c", ""), 137, "{way}");
        host.sink
            .expect("c", &["create c", "start c", "checkpointed c", "exit c 137", "delete c 137"]);
        let before = numbers(&first.out().finish());

        host.prepare("r", spec);
        let second = host.streams("r", [false, true, !terminal]);
        let mut request = restoring(&shim, "r", &image);
        second.to_create(&mut request);
        request.terminal = terminal;
        assert_eq!(shim.create(&request).unwrap(), 0, "{way}");
        let state = shim.state("r", "").unwrap();
        assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, 0), "{way}");
        let pid = shim.start("r", "").unwrap();
        assert_eq!(shim.state("r", "").unwrap().status.unwrap(), Status::RUNNING, "{way}");
        assert!(shim.pids("r").unwrap().iter().any(|(known, _)| *known == pid), "{way}");
        shim.stats("r").unwrap();
        shim.exec_run("r", "e", "exit 3").unwrap();
        assert_eq!(shim.reap("r", "e"), 3, "{way}");
        let after = counts(&second, 5);
        // Every number once: nothing of the output is lost, or comes twice.
        let all: Vec<_> = before.iter().chain(&after).copied().collect();
        let expected: Vec<_> = (0..).take(all.len()).collect();
        assert_eq!(all, expected, "{way}");
        shim.kill("r", "", 15).unwrap();
        assert_eq!(shim.reap("r", ""), 7, "{way}");
        let exec = ["exec-added r/e", "exec-started r/e", "exit r/e 3"];
        let events = [&["create r", "start r"][..], &exec, &["exit r 7", "delete r 7"]].concat();
        host.sink.expect("r", &events);
        assert_eq!(host.sink.wait_for("start r").pid, pid);
        assert_eq!(host.sink.wait_for("create r").pid, 0);
        shim.stop();
    }
}

#[test]
fn a_container_that_is_saved_goes_on() {
    let Some(criu) = criu() else { return };
    let host = host_with(&criu);
    let shim = host.start("c", Spec::sh(COUNTER));
    let streams = host.streams("c", [true, true, true]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    let count = counts(&streams, 2).len();
    // Any number of times, also while it is paused: then it stays so.
    for round in 0..2 {
        let image = image(&host, &format!("image{round}"));
        shim.checkpoint("c", &image, &CheckpointOptions::default()).unwrap();
    }
    let count = counts(&streams, count + 2).len();
    shim.pause("c").unwrap();
    let paused = image(&host, "paused");
    shim.checkpoint("c", &paused, &CheckpointOptions::default()).unwrap();
    assert_eq!(shim.state("c", "").unwrap().status.unwrap(), Status::PAUSED);
    let stopped = numbers(&streams.out().text()).len();
    std::thread::sleep(Duration::from_millis(500));
    assert!(numbers(&streams.out().text()).len() <= stopped + 1, "it runs");
    shim.resume("c").unwrap();
    counts(&streams, stopped.max(count) + 3);
    shim.kill("c", "", 15).unwrap();
    assert_eq!(shim.reap("c", ""), 7);
    let saved = "checkpointed c";
    let middle = [saved, saved, "paused c", saved, "resumed c"];
    let events = [&["create c", "start c"][..], &middle, &["exit c 7", "delete c 7"]].concat();
    host.sink.expect("c", &events);
    let all = numbers(&streams.out().finish());
    assert_eq!(all, (0..).take(all.len()).collect::<Vec<_>>());
    // What was saved while it was paused runs when it is restored.
    host.prepare("r", Spec::sh(COUNTER));
    let streams = host.streams("r", [true, true, true]);
    let mut request = restoring(&shim, "r", &paused);
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start("r", "").unwrap();
    counts(&streams, 2);
    shim.remove("r");
    shim.stop();
}

/// Container `c`, which counts on its standard output.
fn counting(host: &Host) -> (Shim<'_>, Streams) {
    let shim = host.start("c", Spec::sh(COUNTER));
    let streams = host.streams("c", [false, true, true]);
    let mut request = shim.request("c");
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    counts(&streams, 2);
    (shim, streams)
}

#[test]
fn a_restored_container_may_have_other_streams() {
    let Some(criu) = criu() else { return };
    let host = host_with(&criu);
    let (shim, _streams) = counting(&host);
    let image = image(&host, "image");
    shim.checkpoint("c", &image, &exit()).unwrap();
    shim.reap("c", "");
    let log = host.dir().join("r.log");
    let cases = [("nowhere", String::new()), ("a file", format!("file://{}", log.display()))];
    for (name, stdout) in cases {
        host.prepare("r", Spec::sh(COUNTER));
        let mut request = restoring(&shim, "r", &image);
        request.stdout = stdout;
        shim.create(&request).unwrap();
        shim.start("r", "").unwrap();
        // It lives as long as its output has somewhere to go.
        let cpu = || std::fs::read_to_string(&log).map_or(0, |text| numbers(&text).len());
        if name == "a file" {
            eventually("numbers in the file", || (cpu() > 2).then_some(()));
        } else {
            std::thread::sleep(Duration::from_millis(500));
        }
        shim.kill("r", "", 15).unwrap();
        assert_eq!(shim.reap("r", ""), 7, "{name}");
    }
    shim.stop();
}

#[test]
fn a_container_to_be_restored_can_go_without_having_run() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let image = image(&host, "image");
    std::fs::create_dir(&image).unwrap();
    let create = || {
        host.prepare("c", Spec::idle());
        assert_eq!(shim.create(&restoring(&shim, "c", &image)).unwrap(), 0);
    };
    create();
    assert_eq!(shim.kill("c", "", 9).unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.pids("c").unwrap(), []);
    assert_eq!(shim.stats("c").unwrap_err().code, Code::NOT_FOUND);
    for refused in [
        shim.pause("c"),
        shim.checkpoint("c", "/x", &exit()),
        shim.exec_run("c", "e", "true").map(drop),
    ] {
        refused.unwrap_err();
    }
    let deleted = shim.delete("c", "").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (0, 0));
    assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND);
    eventually("the events", || (host.sink.lines().last()? == "delete c").then_some(()));
    // A daemon that was killed leaves nothing either.
    create();
    shim.crash();
    host.delete("c");
}

#[test]
fn a_checkpoint_that_is_no_directory_is_refused_at_create() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let file = image(&host, "file");
    std::fs::write(&file, "").unwrap();
    for image in ["relative", "/no/image", &file] {
        let refusal = shim.create(&restoring(&shim, "c", image)).unwrap_err();
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{image}: {refusal:?}");
        assert!(refusal.message.contains(image), "{refusal:?}");
    }
    shim.stop();
}

#[test]
fn only_what_runs_can_be_saved() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.create_plain("c").unwrap();
    let save = || shim.checkpoint("c", "/x/y", &exit()).unwrap_err().code;
    assert_eq!(save(), Code::FAILED_PRECONDITION, "created");
    shim.start("c", "").unwrap();
    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    assert_eq!(save(), Code::FAILED_PRECONDITION, "stopped");
    shim.delete("c", "").unwrap();
    assert_eq!(save(), Code::NOT_FOUND, "gone");
    shim.stop();
}

/// A spec whose container is in `network`, a namespace.
fn with_network(spec: Spec, network: serde_json::Value) -> Spec {
    let mut namespaces = spec.0["linux"]["namespaces"].clone();
    namespaces.as_array_mut().unwrap().push(network);
    spec.set("/linux/namespaces", namespaces)
}

#[test]
fn what_a_killed_daemon_leaves_of_a_restored_container_is_removed() {
    let Some(criu) = criu() else { return };
    let host = host_with(&criu);
    let shim = host.start("c", Spec::sh(COUNTER));
    shim.run("c");
    let image = image(&host, "image");
    shim.checkpoint("c", &image, &exit()).unwrap();
    shim.reap("c", "");
    host.prepare("r", Spec::sh(COUNTER));
    shim.create(&restoring(&shim, "r", &image)).unwrap();
    let pid = shim.start("r", "").unwrap();
    shim.crash();
    assert_eq!(host.delete("r").response.pid, pid);
    assert_eq!(host.processes().len(), 0);
}

#[test]
fn an_end_during_a_checkpoint_is_told() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    let image = image(&host, "image");
    for (name, options) in [("goes on", CheckpointOptions::default()), ("ends", exit())] {
        host.prepare("c", Spec::idle());
        shim.run("c");
        host.script().set("checkpoint", "hang");
        let task = shim.task();
        let path = image.clone();
        let checkpoint = std::thread::spawn(move || task.checkpoint("c", &path, &options));
        eventually("a checkpoint under way", || {
            host.script().calls().last().is_some_and(|call| call == "checkpoint").then_some(())
        });
        // Others are not kept waiting by it.
        assert_eq!(shim.state("c", "").unwrap().status.unwrap(), Status::RUNNING, "{name}");
        shim.stats("c").unwrap();
        shim.kill("c", "", 9).unwrap();
        if name == "goes on" {
            assert_eq!(shim.reap("c", ""), 137, "{name}");
        }
        for process in host.processes().into_iter().filter(|p| p.line.contains("4321")) {
            let pid = nix::unistd::Pid::from_raw(process.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        assert!(checkpoint.join().unwrap().is_err(), "{name}");
        if name == "ends" {
            assert_eq!(shim.reap("c", ""), 137, "{name}");
        }
    }
    // Of a checkpoint that did not come to its end nothing is told.
    let life = ["create c", "start c", "exit c 137", "delete c 137"];
    host.sink.expect("c", &[life, life].concat());
    shim.stop();
}
