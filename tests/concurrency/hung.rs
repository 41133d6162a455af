//! Things around a container that hang: a file system, a mount helper, a logger, a reader, containerd.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::others_answer_at_once;
use crate::support::{Code, Host, Mood, Spec, eventually, mkfifo, skipped, timed};

/// A file system whose server never answers, as a dead network mount's. Away from `/run`, of which berth
/// knows that it is in memory.
struct Hung {
    server: Option<File>,
    dir: PathBuf,
}

impl Hung {
    fn new() -> Self {
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let dir = tempfile::tempdir().unwrap().keep();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hung"), &dir, Some("fuse"), flags, Some(data.as_str())).unwrap();
        Self { server: Some(server), dir }
    }

    fn path(&self) -> String {
        self.dir.join("x").to_str().unwrap().to_owned()
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.server.take(); // whoever waits gets an error
        umount2(&self.dir, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir(&self.dir).unwrap();
    }
}

/// A program that never ends, named `name` in `dir`.
fn sleeper(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, "#!/bin/sh\nexec sleep 4321\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Whether it is the kernel's mount(2) that hangs.
fn request_mounts(name: &str) -> bool {
    name == "the root file system's source"
}

/// What of a Create hangs.
type Change = fn(&mut CreateTaskRequest, &Hung, &Host);

const CASES: [(&str, Change); 9] = [
    ("stdout at a path", |request, hung, _| request.stdout = hung.path()),
    ("stdout and stderr at a path", |request, hung, _| {
        (request.stdout, request.stderr) = (hung.path(), hung.path());
    }),
    ("stdin at a path", |request, hung, _| request.stdin = hung.path()),
    ("the output of a terminal", |request, hung, _| {
        (request.stdout, request.terminal) = (hung.path(), true);
    }),
    ("a log file", |request, hung, _| request.stdout = format!("file://{}", hung.path())),
    ("a stream's socket", |request, hung, _| {
        request.stdout = format!("ttrpc+unix://{}?streaming_id=s", hung.path());
    }),
    ("the root file system's source", |request, hung, _| {
        request.rootfs[0].source = hung.path();
    }),
    ("a mount helper", |request, _, _| request.rootfs[0].type_ = "fuse3.hang".into()),
    ("a logger", |request, _, host| {
        request.stdout = format!("binary://{}", sleeper(host.dir(), "logger"));
    }),
];

#[test]
fn what_hangs_in_create_costs_its_caller_its_deadline_and_nobody_else_anything() {
    if skipped("what a caller names may hang") {
        return;
    }
    thread::scope(|scope| {
        for (name, change) in CASES {
            let thread = thread::Builder::new().name(name.into());
            thread.spawn_scoped(scope, move || check(name, change)).unwrap();
        }
    });
}

fn check(name: &str, change: Change) {
    let hung = Hung::new();
    let host = Host::new();
    sleeper(host.dir(), "mount.fuse3");
    let path = format!("{}:{}", host.dir().display(), std::env::var("PATH").unwrap());
    let host = host.with_env("PATH", &path);
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    shim.exec_run("pod", "done", "true").unwrap();
    shim.wait("pod", "done").unwrap();
    host.prepare("c", Spec::idle().of_pod("pod"));
    let mut request = shim.request("c");
    change(&mut request, &hung, &host);
    thread::scope(|scope| {
        let task = shim.within(Duration::from_secs(3));
        let call = scope.spawn(move || timed(|| task.create(&request)));
        thread::sleep(Duration::from_millis(300));
        assert!(!call.is_finished(), "{name}: {:?}", call.join());
        others_answer_at_once(&shim, name);
        let (answer, took) = call.join().unwrap();
        assert!(answer.is_err(), "{name}: {answer:?}");
        assert!(took < Duration::from_secs(6), "{name}: {took:?}");
    });
    if request_mounts(name) {
        let (second, took) = timed(|| shim.create_plain("c").unwrap_err());
        assert_eq!(second.code, Code::ALREADY_EXISTS, "{second:?}");
        assert!(second.message.contains("root file system is being mounted"), "{second:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    // The place is free again, and what works does. A mount that hangs may still come: it keeps the place.
    if request_mounts(name) {
        drop(hung);
    }
    eventually("another container of that name", || shim.create_plain("c").ok());
    shim.remove("c");
    shim.end();
}

#[test]
fn readers_and_a_containerd_that_hang_delay_nobody() {
    if skipped("a hanging containerd delays nobody") {
        return;
    }
    let host = Host::new();
    let shim = host.start("pod", Spec::idle());
    shim.run("pod");
    shim.exec_run("pod", "done", "true").unwrap();
    shim.wait("pod", "done").unwrap();
    host.sink.set(Mood::Silent);
    host.prepare("c", Spec::sh("exec yes").of_pod("pod"));
    let mut request = shim.request("c");
    request.stdout = mkfifo(&host.dir().join("out")); // nobody opens it to read
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    thread::sleep(Duration::from_millis(300));
    others_answer_at_once(&shim, "a reader");
    shim.kill_all("c", libc::SIGKILL).unwrap();
    shim.wait("c", "").unwrap(); // a Delete of what still runs is refused
    thread::scope(|scope| {
        let delete = scope.spawn(|| shim.delete("c", ""));
        others_answer_at_once(&shim, "a reader, under Delete,");
        assert_eq!(delete.join().unwrap().unwrap().exit_status, 137);
    });
    others_answer_at_once(&shim, "containerd");
    host.sink.stop();
    host.sink.set(Mood::Answer);
    host.sink.resume();
    host.sink.wait_for("delete c 137");
    shim.end();
}
