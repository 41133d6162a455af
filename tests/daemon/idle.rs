//! A daemon that nobody needs ends by itself, and no other.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::sandbox::pod::{PLAIN, Pod};
use crate::support::{Host, Shim, Spec, Stdin, eventually, skipped};

/// The grace time, in seconds.
const GRACE: u64 = 1;

fn host() -> Host {
    Host::new().with_env("BERTH_TEST_GRACE", &GRACE.to_string())
}

fn socket(shim: &Shim<'_>) -> PathBuf {
    shim.address().trim_start_matches("unix://").into()
}

fn run_to_its_end(shim: &Shim<'_>) {
    shim.run("c");
    shim.kill("c", "", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap();
    shim.host().sink.wait_for("exit c 137");
}

/// Removes the bundle as nobody should.
fn remove_bundle(shim: &Shim<'_>) {
    for mount in shim.host().mounts() {
        umount2(&mount, MntFlags::MNT_DETACH).unwrap();
    }
    fs::remove_dir_all(shim.host().bundle("c")).unwrap();
}

/// Runs all cases at once, each in a thread of its name.
fn all<T: Sync>(cases: &[(&'static str, T)], check: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for (name, case) in cases {
            let thread = thread::Builder::new().name((*name).into());
            thread.spawn_scoped(scope, || check(case)).unwrap();
        }
    });
}

#[test]
fn a_daemon_that_nobody_needs_ends_by_itself() {
    if skipped("an idle daemon ends") {
        return;
    }
    type Case = (&'static str, (fn(&Shim<'_>), &'static str));
    let cases: [Case; 5] = [
        ("no Create ever", (|_| {}, "no container")),
        (
            "the last container is deleted",
            (
                |shim| {
                    shim.run("c");
                    shim.remove("c");
                },
                "no container",
            ),
        ),
        (
            "its only Create failed",
            (
                |shim| {
                    let mut request = shim.request("c");
                    request.rootfs[0].source = "/nowhere".into();
                    shim.create(&request).unwrap_err();
                },
                "no container",
            ),
        ),
        (
            "the bundle is gone",
            (
                |shim| {
                    run_to_its_end(shim);
                    remove_bundle(shim);
                },
                "bundles of all containers are gone",
            ),
        ),
        (
            "events waited",
            (
                |shim| {
                    shim.host().sink.stop();
                    shim.run("c");
                    shim.remove("c");
                    thread::sleep(Duration::from_secs(3 * GRACE));
                    assert!(shim.alive(), "with events that nobody has taken");
                    shim.host().sink.resume();
                    shim.host().sink.wait_for("delete c 137");
                },
                "no container",
            ),
        ),
    ];
    all(&cases, |(prepare, reason)| {
        let host = host();
        let shim = host.start("c", Spec::idle());
        prepare(&shim);
        shim.log().wait_for(reason);
        shim.wait_gone();
        assert!(!socket(&shim).exists());
    });
}

#[test]
fn a_daemon_that_somebody_needs_lives_on() {
    if skipped("an idle daemon ends") {
        return;
    }
    type Case = (&'static str, fn(&Shim<'_>));
    let cases: [Case; 4] = [
        ("a container lives", |shim| {
            shim.run("c");
        }),
        ("a container lives, and all its files are gone", |shim| {
            shim.run("c");
            fs::remove_file(socket(shim)).unwrap();
            fs::rename(shim.host().bundle("c"), shim.host().dir().join("gone")).unwrap();
        }),
        ("a container has ended and can be deleted", run_to_its_end),
        ("a container was never started", |shim| {
            shim.create_plain("c").unwrap();
        }),
    ];
    all(&cases, |prepare| {
        let host = host();
        let shim = host.start("c", Spec::idle());
        prepare(&shim);
        thread::sleep(Duration::from_secs(3 * GRACE));
        assert!(shim.alive() && shim.state("c", "").is_ok());
        let gone = host.dir().join("gone");
        if gone.exists() {
            fs::rename(gone, host.bundle("c")).unwrap();
        }
        shim.end();
    });
}

#[test]
fn every_request_begins_the_grace_time_anew() {
    if skipped("an idle daemon ends") {
        return;
    }
    let host = Host::new().with_env("BERTH_TEST_GRACE", "3");
    let shim = host.start("c", Spec::idle());
    for _ in 0..8 {
        thread::sleep(Duration::from_secs(1));
        shim.ask("c").unwrap();
    }
    shim.run("c");
    shim.remove("c");
    shim.wait_gone();
}

#[test]
fn what_was_asked_for_while_a_daemon_was_stopped_keeps_it() {
    if skipped("an idle daemon ends") {
        return;
    }
    let host = Host::new().with_env("BERTH_TEST_GRACE", "2");
    let shim = host.start("c", Spec::idle());
    thread::sleep(Duration::from_secs(3)); // the second grace time has begun, as `start` asked in the first
    shim.signal(Signal::SIGSTOP);
    thread::scope(|scope| {
        // A new connection: it has to be accepted before anything can be read.
        let asked = scope.spawn(|| shim.reconnect().create(&shim.request("c")));
        thread::sleep(Duration::from_secs(2));
        shim.signal(Signal::SIGCONT);
        asked.join().unwrap().unwrap();
    });
    shim.start("c", "").unwrap();
    shim.end();
}

#[test]
fn a_sandbox_keeps_its_daemon() {
    if skipped("the sandbox service") {
        return;
    }
    let host = host();
    let pod = Pod::new(&host);
    pod.create("pod", &PLAIN, "").unwrap();
    thread::sleep(Duration::from_secs(3 * GRACE));
    pod.ping().unwrap();
    pod.shutdown();
}

#[test]
fn a_daemon_whose_socket_was_removed_spares_the_next_ones() {
    if skipped("an idle daemon ends") {
        return;
    }
    let host = host();
    let first = host.start("pod", Spec::idle());
    first.run("pod");
    fs::remove_file(socket(&first)).unwrap();
    // The next `start` in the pod cannot know of the first: each serves the containers that it has.
    let second = host.start("c", Spec::idle().of_pod("pod"));
    assert_eq!(first.address(), second.address());
    assert_ne!(first.pid(), second.pid());
    second.run("c");
    assert!(first.state("pod", "").is_ok());
    first.remove("pod");
    first.wait_gone();
    assert!(socket(&second).exists(), "the second's socket was removed");
    second.end();
}

#[test]
fn a_daemon_that_nobody_can_reach_ends_after_its_containers() {
    if skipped("an idle daemon ends") {
        return;
    }
    let host = host();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    let (daemon, socket) = (shim.pid(), socket(&shim));
    fs::remove_file(&socket).unwrap();
    drop(shim); // hangs up, as a containerd does that ends
    thread::sleep(Duration::from_secs(3 * GRACE));
    let lives = |pid: i32| host.processes().iter().any(|process| process.pid == pid);
    assert!(lives(pid.try_into().unwrap()), "its container lives on");
    // A containerd that starts again finds no shim.
    let deleted = host.delete("c");
    assert_eq!((deleted.response.pid, deleted.response.exit_status), (pid, 137));
    eventually("the daemon's end", || (!lives(daemon)).then_some(()));
    assert!(host.processes().is_empty(), "{:?}", host.processes());
}

#[test]
fn a_killed_daemons_socket_is_found_wherever_it_is() {
    if skipped("the bootstrap protocol") {
        return;
    }
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let shim = host.attach("c", &Stdin::Bootstrap); // its socket is in a directory of its own
    let socket = socket(&shim);
    assert!(socket.starts_with(host.dir()));
    shim.crash();
    assert!(socket.exists());
    host.delete("c");
    assert!(!socket.exists());
}
