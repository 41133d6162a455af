//! The daemon's own life: signals, Shutdown, who may talk to it.

mod flood;
mod idle;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use containerd_shim_protos::shim::oci::Options;
use nix::sys::signal::Signal;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::support::{Api, Host, Spec, Stdin, Task, eventually, skipped};

#[test]
fn shutdown_ends_a_daemon_without_containers_and_no_other() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    shim.create_plain("c").unwrap();
    shim.shutdown("pod").unwrap();
    shim.remove("pod");
    shim.shutdown("pod").unwrap();
    assert!(shim.alive() && shim.state("c", "").is_ok());
    shim.remove("c");
    let socket = shim.address().trim_start_matches("unix://").to_owned();
    assert!(std::path::Path::new(&socket).exists());
    shim.stop();
    eventually("no socket", || (!std::path::Path::new(&socket).exists()).then_some(()));
}

#[test]
fn a_second_start_of_a_pod_gets_the_first_ones_address() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    let second = host.start("c", Spec::idle().of_pod("pod"));
    assert_eq!((shim.address(), shim.pid()), (second.address(), second.pid()));
    second.run("c");
    second.remove("c");
    shim.end();
}

#[test]
fn callers_of_every_generation_get_a_shim_that_runs_containers() {
    let options = Options { binary_name: "runc".into(), ..Default::default() };
    let any = Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let cases = [
        ("1.6 to 2.2", Stdin::Nothing),
        ("1.6 to 2.2 with options", Stdin::Options(any.write_to_bytes().unwrap())),
        ("2.3", Stdin::Bootstrap),
    ];
    for (name, stdin) in cases {
        if matches!(stdin, Stdin::Bootstrap) && skipped("the bootstrap protocol") {
            continue;
        }
        let host = Host::new();
        host.prepare("c", Spec::sh("exit 3"));
        let shim = host.attach("c", &stdin);
        shim.run("c");
        assert_eq!(shim.reap("c", ""), 3, "{name}");
        shim.stop();
    }
}

#[test]
fn sigterm_ends_the_daemon_and_removes_its_socket() {
    if skipped("SIGTERM ends the daemon gracefully") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.signal(Signal::SIGTERM);
    shim.wait_gone(); // the host's guard looks for the socket
}

#[test]
fn sigterm_under_a_running_container_loses_no_event_and_leaves_it_to_delete() {
    if skipped("SIGTERM ends the daemon gracefully") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    host.sink.stop(); // so that the events are still to be delivered
    let pid = shim.run("c");
    shim.exec_run("c", "e", "exec sleep 1000").unwrap();
    shim.signal(Signal::SIGTERM);
    shim.log().wait_for("ending");
    host.sink.resume();
    shim.wait_gone();
    host.sink.expect("c", &["create c", "start c", "exec-added c/e", "exec-started c/e"]);
    assert!(!std::path::Path::new(shim.address().trim_start_matches("unix://")).exists());
    // containerd sees the connection close and does this.
    assert_eq!(host.delete("c").response.pid, pid);
    assert!(host.processes().is_empty(), "{:?}", host.processes());
}

#[test]
fn an_idle_daemon_is_one_thread() {
    if skipped("one event loop thread") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let threads = || std::fs::read_dir(format!("/proc/{}/task", shim.pid())).unwrap().count();
    assert_eq!(threads(), 1, "before the first container");
    shim.run("c"); // its rootfs was mounted on a thread
    shim.exec_run("c", "e", "exit 1").unwrap();
    eventually("one thread with a container", || (threads() == 1).then_some(()));
    assert_eq!(shim.reap("c", "e"), 1);
    shim.remove("c");
    eventually("one thread after a container", || (threads() == 1).then_some(()));
    shim.stop();
}

#[test]
fn sigusr1_writes_what_the_daemon_holds_to_the_log() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    let before = shim.log().len();
    shim.signal(Signal::SIGUSR1);
    eventually("a dump", || (shim.log().len() > before).then_some(()));
    if !skipped("the dump names containers") {
        shim.log().wait_for(&pid.to_string());
    }
    shim.end();
}

#[test]
fn a_full_log_delays_nobody() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.log().hold(true);
    for round in 0..if crate::support::stock() { 1 } else { 500 } {
        shim.signal(Signal::SIGUSR1);
        assert!(shim.state("c", "").is_ok(), "round {round}");
    }
    shim.exec_run("c", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("c", "e"), 1);
    shim.log().hold(false);
    shim.end();
}

#[test]
fn a_peer_of_another_uid_is_refused() {
    const SOCKET: &str = "BERTH_TEST_PEER";
    if let Ok(socket) = std::env::var(SOCKET) {
        // This is the child below: it exits with 0 if the daemon talks to it.
        let talks = Task::connect(&socket, Api::V2).is_ok_and(|task| task.ask("c").is_ok());
        std::process::exit(if talks { 0 } else { 3 });
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    // A second name, open to all: the directory's and the socket's own modes do not help here.
    let open = host.dir().join("peer");
    std::fs::hard_link(shim.address().trim_start_matches("unix://"), &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    for (uid, expected) in [(0, 0), (65534, 3)] {
        let mut peer = Command::new("/proc/self/exe");
        peer.args(["--exact", "daemon::a_peer_of_another_uid_is_refused"]);
        peer.env(SOCKET, format!("unix://{}", open.display())).uid(uid);
        let output = peer.output().unwrap();
        assert_eq!(output.status.code(), Some(expected), "uid {uid}: {output:?}");
    }
    assert!(shim.state("c", "").is_ok());
    shim.end();
}

#[test]
fn the_daemon_is_a_group_leader_with_nothing_inherited() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim.pid())).unwrap();
    let group = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().to_owned();
    assert_eq!(group, shim.pid().to_string());
    if !skipped("it inherits nothing but its socket") {
        let allowed =
            |name: &String| !name.starts_with('/') || name == "/dev/null" || name.ends_with("/log");
        assert!(shim.descriptors().iter().all(allowed), "{:?}", shim.descriptors());
    }
    shim.stop();
}
