//! A pod's sandbox between others: strangers in its cgroup, requests at once, and containers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::sandbox_api::*;
use nix::sys::signal::{Signal, kill};

use super::pod::{PLAIN, Pod, call};
use crate::support::{Code, Host, Spec, Task, bind, eventually, image, mkfifo, skipped, timed};

#[test]
fn a_cgroup_that_somebody_else_is_in_stays_theirs() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    pod.create("pod", &PLAIN, "").unwrap();
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(PathBuf::from);
    let root = roots.iter().find(|root| root.join("cgroup.procs").exists()).unwrap();
    let cgroup = root.join(format!("berth-test-{}/pod/pod", host.tag()));
    fs::create_dir_all(&cgroup).unwrap();
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let moved = fs::write(cgroup.join("cgroup.procs"), stranger.id().to_string());
    let refusals = [pod.start(), pod.start()];
    let stopped = pod.stop();
    let deleted = host.delete("pod");
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    moved.unwrap();
    for refusal in refusals {
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
        assert!(refusal.message.contains(cgroup.to_str().unwrap()), "{refusal:?}");
    }
    stopped.unwrap();
    assert!(alive && deleted.response.pid == 0);
    eventually("the cgroup's removal", || fs::remove_dir(&cgroup).ok());
    pod.shutdown();
}

#[test]
fn a_start_that_hangs_keeps_nobody_waiting() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host);
    let fifo = host.dir().join("fifo"); // to open it takes a writer
    mkfifo(&fifo);
    pod.create("pod", &PLAIN, fifo.to_str().unwrap()).unwrap();
    let start = |task: Task| {
        let request = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        call::<StartSandboxResponse>(&task, "StartSandbox", &request).map(drop)
    };
    let first = pod.shim.task();
    let first = std::thread::spawn(move || start(first));
    eventually("the holder's beginning", || (!pod.holders().is_empty()).then_some(()));
    let (second, took) = timed(|| start(pod.shim.within(Duration::from_secs(1))));
    second.unwrap_err();
    // The client may give up a moment before the answer is there, so the log has it.
    pod.shim.log().wait_for("an earlier request for sandbox \\\"pod\\\" did not end");
    assert!(took < Duration::from_secs(3) && !first.is_finished(), "{took:?}");
    let (stopped, took) = timed(|| pod.stop());
    stopped.unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let refusal = first.join().unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("being stopped"), "{refusal:?}");
    eventually("the holder's end", || pod.holders().is_empty().then_some(()));
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    assert_eq!(pod.wait().join().unwrap().unwrap().exit_status, 137);
    pod.shutdown();
}

#[test]
fn a_sandbox_comes_before_all_containers_and_shares_no_id() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::new();
    let pod = Pod { host: &host, shim: host.start("single", Spec::sh("sleep 1000")) };
    pod.shim.create_plain("single").unwrap();
    host.prepare_sandbox("pod");
    let refusal = pod.create("pod", &PLAIN, "").unwrap_err();
    assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
    assert!(refusal.message.contains("\"single\""), "{refusal:?}");
    pod.shim.remove("single");
    pod.shim.stop();

    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    for spec in [pod.spec("true", holder, &["ipc"]), Spec::sh("true")] {
        host.prepare("other", spec);
        let mut request = pod.shim.request("other");
        request.id = "pod".into();
        let refusal = pod.shim.create(&request).unwrap_err();
        assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
        assert!(refusal.message.contains("sandbox \"pod\""), "{refusal:?}");
    }
    pod.end();
}

#[test]
fn a_container_whose_sandbox_ends_meanwhile_is_not_created() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::scripted();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    host.script().set("create", "slow 1");
    // Nothing of it is the holder's, so that the runtime does not mind the holder's end.
    host.prepare("c", pod.spec("sleep 1000", holder, &[]));
    let task = pod.shim.task();
    let mut request = pod.shim.request("c");
    let root = host.dir().join("root"); // one that can be written to
    assert!(Command::new("cp").arg("-a").arg(image()).arg(&root).status().unwrap().success());
    request.rootfs = vec![bind(root.to_str().unwrap(), &["rbind", "rw"])];
    let create = std::thread::spawn(move || task.create(&request));
    let created = || host.script().calls().iter().any(|call| call == "create").then_some(());
    eventually("the runtime's create", created);
    kill(nix::unistd::Pid::from_raw(holder), Signal::SIGKILL).unwrap();
    assert_eq!(pod.wait().join().unwrap().unwrap().exit_status, 137);
    let refusal = create.join().unwrap().unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("stopped"), "{refusal:?}");
    assert!(host.script().calls().iter().any(|call| call == "delete"));
    assert_eq!(host.states(), Vec::<PathBuf>::new());
    assert!(host.mounts().iter().all(|path| !path.starts_with(host.bundle("c"))));
    pod.end();
}

#[test]
fn a_container_whose_sandbox_has_ended_is_not_restored() {
    if skipped("the sandbox service") {
        return;
    }
    let host = Host::scripted();
    let (pod, holder) = Pod::started(&host, &PLAIN, "");
    host.prepare("c", pod.spec("sleep 1000", holder, &["ipc"]));
    let mut request = pod.shim.request("c");
    request.checkpoint = host.dir().to_str().unwrap().into();
    assert_eq!(pod.shim.create(&request).unwrap(), 0);
    kill(nix::unistd::Pid::from_raw(holder), Signal::SIGKILL).unwrap();
    pod.wait().join().unwrap().unwrap();
    let refusal = pod.shim.start("c", "").unwrap_err();
    assert_eq!(refusal.code, Code::FAILED_PRECONDITION, "{refusal:?}");
    assert!(refusal.message.contains("stopped"), "{refusal:?}");
    assert!(!host.script().calls().iter().any(|call| call == "restore"));
    pod.shim.delete("c", "").unwrap();
    pod.end();
}
