//! The sandbox service: pods without a pause container.

mod between;
pub mod pod;
mod shared;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::sandbox_api::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::pod::{CONTAINER, Config, Network, PLAIN, POD, Pod, call, clear_parents, encode, text};
use crate::stats::expect_the_kernels_words;
use crate::support::{Code, Counters, Host, bind, eventually, image, mkfifo, skipped, timed};

#[test]
fn a_sandbox_lives_from_create_to_shutdown() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let network = Network::new(&host);
    let pod = Pod::new(&host);
    pod.create("pod", &PLAIN, network.0.to_str().unwrap()).unwrap();
    assert_eq!((pod.status().state.as_str(), pod.status().pid), ("SANDBOX_NOTREADY", 0));
    pod.ping().unwrap();
    let request = PlatformRequest { sandbox_id: "pod".into(), ..Default::default() };
    let platform = call::<PlatformResponse>(&pod.shim, "Platform", &request).unwrap().platform;
    let expected = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", expected));
    let waiting = pod.wait();

    let pid = pod.start().unwrap();
    assert_eq!(pod.start().unwrap_err().code, Code::ALREADY_EXISTS);
    pod.ping().unwrap();
    let status = pod.status();
    assert_eq!(status.state, "SANDBOX_READY");
    assert_eq!((status.sandbox_id.as_str(), i32::try_from(status.pid).unwrap()), ("pod", pid));
    assert!(status.created_at.seconds > 1_700_000_000 && status.exited_at.is_none(), "{status:?}");
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    assert_eq!(
        (info["pid"].as_i64(), info["processStatus"].as_str()),
        (Some(pid.into()), Some("running"))
    );
    let request = SandboxMetricsRequest { sandbox_id: "pod".into(), ..Default::default() };
    let counters = Counters::of(&format!("berth-test-{}/pod", host.tag()));
    expect_the_kernels_words(&counters, || {
        let metrics: SandboxMetricsResponse = call(&pod.shim, "SandboxMetrics", &request).unwrap();
        let metric = metrics.metrics.unwrap();
        assert!(metric.id == "pod" && metric.timestamp.seconds > 1_700_000_000, "{metric:?}");
        metric.data.unwrap()
    });

    pod.shim.shutdown("container").unwrap();
    assert!(!waiting.is_finished() && pod.status().state == "SANDBOX_READY");
    pod.stop().unwrap();
    let exit = waiting.join().unwrap().unwrap();
    assert_eq!(exit.exit_status, 137);
    assert!(exit.exited_at.seconds > 1_700_000_000, "{exit:?}");
    assert_eq!(pod.wait().join().unwrap().unwrap(), exit);
    let status = pod.status();
    assert_eq!((status.state.as_str(), &status.exited_at), ("SANDBOX_NOTREADY", &exit.exited_at));
    assert!(host.mounts().iter().all(|path| *path == network.0), "{:?}", host.mounts());
    pod.stop().unwrap();
    assert_eq!(pod.ping().unwrap_err().code, Code::FAILED_PRECONDITION);
    assert_eq!(pod.start().unwrap_err().code, Code::FAILED_PRECONDITION);
    pod.shim.shutdown("container").unwrap();
    assert_eq!(pod.status().state, "SANDBOX_NOTREADY");
    pod.shutdown();
}

#[test]
fn what_is_unknown_or_out_of_order_is_refused() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    let named = text(1, "pod");
    for method in [
        "StartSandbox",
        "Platform",
        "StopSandbox",
        "WaitSandbox",
        "SandboxStatus",
        "PingSandbox",
        "SandboxMetrics",
    ] {
        let payload = encode(std::slice::from_ref(&named));
        let service = "containerd.runtime.sandbox.v1.Sandbox";
        let refusal = pod.shim.raw(service, method, payload).unwrap_err();
        assert_eq!(refusal.code, Code::NOT_FOUND, "{method}: {refusal:?}");
    }
    let sysctls = |name| Config { sysctls: vec![(name, "1")], ..PLAIN };
    let refusal = pod.create("pod", &sysctls("vm.swappiness"), "").unwrap_err();
    assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal:?}");
    let refusal = pod.create("../pod", &PLAIN, "").unwrap_err();
    assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal:?}");
    pod.create("pod", &PLAIN, "").unwrap();
    let refusal = pod.create("other", &PLAIN, "").unwrap_err();
    assert_eq!(refusal.code, Code::ALREADY_EXISTS);
    assert!(refusal.message.contains("\"pod\""), "{refusal:?}");
    let contained = |when: &str, code: Code| {
        host.prepare("c", pod.spec("true", 1, &[]));
        let refusal = pod.shim.create_plain("c").unwrap_err();
        assert_eq!(refusal.code, code, "{when}: {refusal:?}");
    };
    contained("before its sandbox", Code::FAILED_PRECONDITION);
    pod.stop().unwrap();
    assert_eq!(pod.wait().join().unwrap().unwrap().exit_status, 137);
    contained("after its sandbox", Code::FAILED_PRECONDITION);
    pod.shutdown();
}

#[test]
fn a_shim_whose_sandbox_was_never_made_shuts_down() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    Pod::new(&host).shutdown();
    let pod = Pod::new(&host);
    pod.create("pod", &PLAIN, "").unwrap();
    let waiting = pod.wait();
    pod.shutdown();
    // It may have come too late for an answer, but it does not wait for ever.
    let answer = waiting.join().unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|exit| exit.exit_status == 137));
}

#[test]
fn a_sandbox_that_containerd_has_lost_ends_unless_it_has_containers() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    host.prepare("c", pod.spec("sleep 1000", holder, &["ipc"]));
    pod.run("c");
    pod.shim.shutdown("pod").unwrap();
    assert_eq!(pod.status().state, "SANDBOX_READY");
    pod.shim.remove("c");
    drop(pod.shim.shutdown("pod")); // the connection may close before the answer is read
    pod.shim.wait_gone();
    clear_parents(&host);
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() {
    if skipped("the sandbox service") {
        return;
    }
    let cases = [
        ("no network", PLAIN, "/no/such/netns", "/no/such/netns"),
        ("no namespace", PLAIN, "/etc/passwd", "join the network namespace"),
        ("the host's network", PLAIN, "/proc/self/ns/net", "the host's: leave its path empty"),
        (
            "no such sysctl",
            Config { sysctls: vec![("net.no.such", "1")], ..PLAIN },
            "",
            "net/no/such",
        ),
        (
            "no such value",
            { Config { sysctls: vec![("net.ipv4.ip_forward", "x")], ..PLAIN } },
            "",
            "net/ipv4/ip_forward",
        ),
        ("no such user", Config { user: Some(4_294_967_290), ..PLAIN }, "", "user namespace"),
    ];
    for (name, config, network, part) in cases {
        let host = Host::new();
        let pod = Pod::new(&host);
        pod.create("pod", &config, network).unwrap();
        for _ in 0..2 {
            let refusal = pod.start().unwrap_err();
            assert!(refusal.message.contains(part), "{name}: {refusal:?}");
            assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
            let cgroups: Vec<_> =
                host.cgroups().into_iter().filter(|path| path.join("pod").exists()).collect();
            assert_eq!(cgroups, Vec::<PathBuf>::new(), "{name}");
            eventually("the holder's end", || pod.holders().is_empty().then_some(()));
        }
        assert_eq!(pod.status().state, "SANDBOX_NOTREADY", "{name}");
        pod.shutdown();
    }
}

#[test]
fn a_holder_that_hangs_is_killed_when_the_callers_time_is_over() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    let fifo = host.dir().join("fifo"); // to open it takes a writer
    mkfifo(&fifo);
    pod.create("pod", &PLAIN, fifo.to_str().unwrap()).unwrap();
    let request = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    let hurried = pod.shim.within(Duration::from_secs(1));
    let (answer, took) = timed(|| call::<StartSandboxResponse>(&hurried, "StartSandbox", &request));
    answer.unwrap_err();
    assert!(took < Duration::from_secs(3), "{took:?}");
    eventually("the holder's end", || {
        (pod.holders().is_empty() && host.mounts().is_empty()).then_some(())
    });
    fs::remove_file(&fifo).unwrap();
    File::create(&fifo).unwrap();
    assert!(pod.start().unwrap_err().message.contains("join the network namespace"));
    pod.shutdown();
}

#[test]
fn the_end_of_the_holder_is_the_sandboxs() {
    if skipped("the sandbox service") {
        return;
    }
    for (signal, pid) in [(Signal::SIGKILL, POD), (Signal::SIGTERM, CONTAINER)] {
        let host = Host::new();
        let (pod, holder) = Pod::started(&host, &Config { pid, ..PLAIN }, "");
        let waiting = pod.wait();
        kill(Pid::from_raw(holder), signal).unwrap();
        let exit = waiting.join().unwrap().unwrap();
        assert_eq!(exit.exit_status, 128 + signal as u32);
        assert_eq!(pod.status().state, "SANDBOX_NOTREADY");
        pod.end();
    }
}

#[test]
fn what_a_pod_ends_with_is_told_to_a_containerd_that_is_away() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    host.prepare("a", pod.spec("sleep 1000", holder, &["ipc"]));
    pod.run("a");
    host.sink.wait_for("start a");
    host.sink.stop();
    let request = ShutdownSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    call::<ShutdownSandboxResponse>(&pod.shim, "ShutdownSandbox", &request).unwrap();
    pod.shim.log().wait_for("events wait for containerd");
    host.sink.resume();
    host.sink.wait_for("exit a 137");
    host.sink.wait_for("delete a 137");
    pod.shim.wait_gone();
    clear_parents(&host);
}

#[test]
fn shutdown_takes_containers_along() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    for id in ["a", "b", "made"] {
        host.prepare(id, pod.spec("trap '' TERM; while :; do sleep 1; done", holder, &["ipc"]));
        pod.make(id);
    }
    pod.shim.start("a", "").unwrap();
    pod.shim.start("b", "").unwrap();
    pod.shutdown();
    assert_eq!(host.states(), Vec::<PathBuf>::new());
    let lines = host.sink.of("a");
    assert!(lines.iter().any(|line| line.starts_with("delete")), "{lines:?}");
}

/// Runs `delete` of the pod, which leaves nothing of it; the pid that it says.
#[track_caller]
fn delete(host: &Host) -> i32 {
    let deleted = host.delete("pod");
    assert_eq!(deleted.response.exit_status, 137);
    assert!(deleted.took < Duration::from_secs(5), "{:?}", deleted.took);
    assert!(host.processes().is_empty(), "{:?}", host.processes());
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    assert_eq!(host.states(), Vec::<PathBuf>::new());
    clear_parents(host);
    i32::try_from(deleted.response.pid).unwrap()
}

#[test]
fn delete_cleans_up_after_a_killed_daemon_and_its_pod() {
    if skipped("the sandbox service") {
        return;
    }
    for pid in [POD, CONTAINER] {
        let host = Host::new();
        let (pod, holder) = Pod::started(&host, &Config { pid, ..PLAIN }, "");
        for id in ["a", "b"] {
            host.prepare(id, pod.spec("sleep 1000", holder, &["ipc", "uts"]));
            pod.run(id);
        }
        pod.shim.crash();
        eventually("the holder's end", || {
            let stat = fs::read_to_string(format!("/proc/{holder}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
        assert_eq!(delete(&host), holder);
        host.delete("pod"); // there is nothing to do any more
    }
}

#[test]
fn delete_cleans_up_after_a_daemon_that_was_killed_while_it_started_the_sandbox() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    let fifo = host.dir().join("fifo"); // to open it takes a writer
    mkfifo(&fifo);
    pod.create("pod", &PLAIN, fifo.to_str().unwrap()).unwrap();
    let task = pod.shim.task();
    let request = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    let start = std::thread::spawn(move || {
        call::<StartSandboxResponse>(&task, "StartSandbox", &request).map(drop)
    });
    eventually("the holder's beginning", || (!pod.holders().is_empty()).then_some(()));
    pod.shim.crash();
    start.join().unwrap().unwrap_err();
    host.delete("pod");
    assert_eq!(pod.holders(), Vec::<i32>::new());
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    clear_parents(&host);
}

#[test]
fn delete_removes_what_shutdown_had_no_time_for() {
    if skipped("the sandbox service") {
        return;
    }
    let hurried = "deadline.delete = 1\n";
    let cases = [
        ("containers", "", false, true),
        ("a creation that is being undone", "", true, true),
        // In place of the runtime then.
        ("a creation that the runtime did not undo", hurried, true, false),
    ];
    for (name, config, creating, leaves) in cases {
        let host = Host::scripted().configured(config);
        let (pod, holder) = Pod::started(&host, &PLAIN, "");
        let ids = if creating { &["a"][..] } else { &["a", "b", "c"] };
        ids.iter().for_each(|id| host.prepare(id, pod.spec("sleep 1000", holder, &["ipc"])));
        host.script().set("delete", "hang");
        if creating {
            host.script().set("create", "late boom");
            let (task, mut request) = (pod.shim.task(), pod.shim.request("a"));
            let root = host.dir().join("root-of-a");
            assert!(
                Command::new("cp").arg("-a").args([image(), &root]).status().unwrap().success()
            );
            request.rootfs = vec![bind(root.to_str().unwrap(), &["rbind", "rw"])];
            std::thread::spawn(move || task.create(&request));
            let undone = || host.script().calls().contains(&"delete".into()).then_some(());
            eventually("the undoing", undone);
        } else {
            ids.iter().for_each(|id| pod.run(id));
        }
        let request = ShutdownSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        call::<ShutdownSandboxResponse>(&pod.shim, "ShutdownSandbox", &request).unwrap();
        pod.shim.wait_gone();
        assert_eq!(!host.states().is_empty(), leaves, "{name}");
        host.script().reset();
        delete(&host);
    }
}

#[test]
fn delete_is_in_time_although_the_runtime_hangs() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::scripted();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    for id in ["a", "b", "c"] {
        host.prepare(id, pod.spec("sleep 1000", holder, &["ipc"]));
        pod.run(id);
    }
    host.script().set("delete", "hang");
    pod.shim.crash();
    assert_eq!(delete(&host), holder);
}

#[test]
fn delete_leaves_a_pod_alone_whose_daemon_lives_or_hangs() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    host.prepare("c", pod.spec("sleep 1000", holder, &["ipc"]));
    pod.run("c");
    let seen = || (host.files("pod"), host.mounts(), host.cgroups(), host.states());
    let before = seen();
    for signal in [Signal::SIGCONT, Signal::SIGSTOP] {
        pod.shim.signal(signal);
        let deleted = host.delete("pod");
        pod.shim.signal(Signal::SIGCONT);
        assert!(deleted.took < Duration::from_secs(5), "{signal}: {:?}", deleted.took);
        assert_eq!(seen(), before, "{signal}");
        assert_eq!(pod.status().state, "SANDBOX_READY", "{signal}");
        pod.shim.exec_run("c", "e", "exit 1").unwrap();
        assert_eq!(pod.shim.reap("c", "e"), 1, "{signal}");
    }
    assert_eq!(pod.shim.remove("c"), 137);
    pod.end();
}
