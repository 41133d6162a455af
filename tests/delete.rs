//! The `delete` subcommand: what containerd runs when a daemon has died.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Host, Shim, Spec, patient, skipped, stock};

/// The promise is 3 seconds; a loaded machine gets a little more.
const LIMIT: Duration = Duration::from_secs(5);

/// What `delete` is bound to leave of the host's containers.
#[track_caller]
fn assert_clean(host: &Host) {
    assert!(host.processes().is_empty(), "{:?}", host.processes());
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    assert!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    if stock() {
        host.forgive_sockets();
    }
}

#[track_caller]
fn delete(host: &Host, id: &str, pid: u32) {
    let deleted = host.delete(id);
    assert_eq!((deleted.response.pid, deleted.response.exit_status), (pid, 137), "{id}");
    assert!(deleted.response.exited_at.seconds > 1_700_000_000, "{deleted:?}");
    assert!(deleted.took < patient(LIMIT), "{id}: {:?}", deleted.took);
}

#[test]
fn delete_cleans_up_after_a_killed_daemon_in_whatever_state_it_left_things() {
    type Prepare = fn(&Shim<'_>);
    let cases: [(&str, Prepare); 5] = [
        ("running", |shim| shim.start("c", "").map(drop).unwrap()),
        ("created", |_| {}),
        ("stopped", |shim| {
            shim.kill("c", "", 9).unwrap();
            shim.wait("c", "").unwrap();
        }),
        ("paused", |shim| {
            shim.start("c", "").unwrap();
            shim.pause("c").unwrap();
        }),
        ("with exec processes", |shim| {
            shim.start("c", "").unwrap();
            shim.exec_run("c", "e", "trap '' TERM; while :; do sleep 1; done").unwrap();
            shim.exec(&shim.exec_request("c", "added", "true")).unwrap();
        }),
    ];
    for (name, prepare) in cases {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let pid = shim.create_plain("c").unwrap();
        prepare(&shim);
        shim.crash();
        delete(&host, "c", pid);
        assert_clean(&host);
        let again = host.delete("c");
        assert_eq!(again.response.exit_status, 137, "{name}");
        assert!(again.took < patient(LIMIT), "{name}: {:?}", again.took);
    }
}

/// `text` with `new` in place of the number `old`, where it is not a part of a longer word.
fn with_number(text: &str, old: &str, new: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let replaced = words.map(|word| match word.strip_prefix(old) {
        Some(rest) if !rest.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
            format!("{new}{rest}")
        }
        _ => word.to_owned(),
    });
    replaced.collect()
}

#[test]
fn a_pid_that_is_another_processs_by_now_is_left_alone() {
    if skipped("a pid is bound to its process") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    shim.crash();
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    // Wherever berth or the runtime wrote the pid, the number is the stranger's now.
    let reused = stranger.id().to_string();
    for file in host.files("c") {
        let path = host.bundle("c").join(file);
        if let Ok(text) = fs::read_to_string(&path) {
            fs::write(&path, with_number(&text, &pid.to_string(), &reused)).unwrap();
        }
    }
    assert_eq!(host.delete("c").response.exit_status, 137);
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn one_delete_cleans_the_whole_pod() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    let pod = shim.run("pod");
    let ids = ["c1", "c2"];
    let pids = ids.map(|id| {
        host.prepare(id, Spec::idle().of_pod("pod"));
        shim.run(id)
    });
    shim.exec_run("c2", "e", "exec sleep 1000").unwrap();
    shim.crash();
    delete(&host, "pod", pod);
    if !skipped("delete of the sandbox cleans its whole group") {
        assert_clean(&host);
    }
    for (id, pid) in ids.into_iter().zip(pids) {
        delete(&host, id, pid);
    }
    assert_clean(&host);
}

#[test]
fn a_container_of_a_dead_pod_can_be_deleted_first() {
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    let pod = shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    let pid = shim.run("c");
    shim.crash();
    delete(&host, "c", pid);
    delete(&host, "pod", pod);
    assert_clean(&host);
}

#[test]
fn a_daemon_killed_before_its_first_create_leaves_no_socket() {
    if skipped("delete removes the socket of a daemon that saved nothing") {
        return;
    }
    for (id, spec) in [("c", Spec::idle()), ("of-a-pod", Spec::idle().of_pod("pod"))] {
        let host = Host::new();
        host.start(id, spec).crash();
        delete(&host, id, 0); // the host complains about a socket that is left
    }
}

/// The kernel closes a killed daemon's descriptors one by one: containerd may see its connection
/// end, and call `delete`, while the listener still takes connections.
#[test]
fn a_killed_daemon_whose_listener_is_not_closed_yet_is_dead() {
    if skipped("delete tells a dying daemon from a living one") {
        return;
    }
    for created in [true, false] {
        let host = Host::new();
        let shim = host.start("pod", Spec::idle());
        let pid = if created { shim.run("pod") } else { 0 };
        if created {
            host.prepare("c", Spec::idle().of_pod("pod"));
            shim.run("c");
        }
        shim.crash();
        let socket = shim.address().strip_prefix("unix://").unwrap();
        fs::remove_file(socket).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let kernel = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            drop(listener);
        });
        delete(&host, "pod", pid);
        assert_clean(&host); // and the host complains about a socket that is left
        kernel.join().unwrap();
    }
}

#[test]
fn delete_beside_a_daemon_that_hangs_leaves_its_pod_alone() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    let pid = shim.run("c");
    shim.signal(Signal::SIGSTOP);
    delete(&host, "c", pid);
    shim.signal(Signal::SIGCONT);
    shim.exec_run("pod", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("pod", "e"), 1);
    assert_eq!(shim.remove("c"), 137);
    shim.end();
}

#[test]
fn delete_of_what_was_never_created_leaves_the_living_pod_alone() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    host.prepare("c", Spec::idle().of_pod("pod"));
    shim.run("c");
    let other = host.start("x", Spec::idle().of_pod("pod"));
    assert_eq!(other.pid(), shim.pid());
    let deleted = host.delete("x");
    assert_eq!(deleted.response.exit_status, 137);
    shim.exec_run("pod", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("pod", "e"), 1);
    shim.exec_run("c", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("c", "e"), 1);
    shim.remove("c");
    shim.end();
}

#[test]
fn a_hanging_runtime_does_not_stop_delete() {
    if skipped("delete is bounded") {
        return;
    }
    for commands in [&["delete"][..], &["delete", "kill", "state", "ps"]] {
        let host = Host::scripted();
        let shim = host.start("pod", Spec::idle());
        let pod = shim.run("pod");
        host.prepare("c", Spec::idle().of_pod("pod"));
        shim.run("c");
        for command in commands {
            host.script().set(command, "hang");
        }
        // The files of a runtime that keeps no directory for a container, and of a stranger.
        let files = ["c_sandbox:pod.state", "pod_sandbox:pod.lock", "cc_sandbox:cc.state"];
        let files = files.map(|name| host.root().join("tests").join(name));
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        shim.crash();
        delete(&host, "pod", pod);
        assert_eq!(files.each_ref().map(|file| file.exists()), [false, false, true]);
        fs::remove_file(&files[2]).unwrap();
        assert_clean(&host);
    }
}

#[test]
fn a_half_written_bundle_is_deleted_too() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    type Damage = (&'static str, fn(&str) -> bool);
    let cases: [Damage; 4] = [
        ("no config.json", |name| name == "config.json"),
        ("no init.pid", |name| name == "init.pid"),
        ("nothing that berth wrote", |name| name != "config.json" && name != "rootfs"),
        ("nothing at all", |name| name != "rootfs"),
    ];
    for (name, gone) in cases {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        shim.crash();
        for file in host.files("c").into_iter().filter(|file| gone(file)) {
            fs::remove_file(host.bundle("c").join(file)).unwrap();
        }
        let deleted = host.delete("c");
        assert_eq!(deleted.response.exit_status, 137, "{name}");
        assert!(deleted.took < patient(LIMIT), "{name}: {:?}", deleted.took);
        assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
        if name != "nothing at all" {
            assert!(host.processes().is_empty(), "{name}: {:?}", host.processes());
            assert!(host.cgroups().is_empty(), "{name}: {:?}", host.cgroups());
        }
        host.clear(); // the socket's and the runtime root's names were in the files
    }
}

#[test]
fn a_truncated_file_is_no_worse_than_a_missing_one() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    shim.crash();
    for file in host.files("c").into_iter().filter(|file| file != "rootfs" && file != "config.json")
    {
        let path = host.bundle("c").join(file);
        let half = fs::read(&path).unwrap();
        fs::write(&path, &half[..half.len() / 2]).unwrap();
    }
    assert_eq!(host.delete("c").response.exit_status, 137);
    assert!(host.processes().is_empty(), "{:?}", host.processes());
    host.clear();
}

#[test]
fn a_bundle_that_nothing_was_done_with_is_deleted() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let deleted = host.delete("c");
    assert_eq!((deleted.response.pid, deleted.response.exit_status), (0, 137));
}
