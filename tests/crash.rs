//! Each step of Create and of an exec's Start fails in turn, and nothing may remain of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::api::CreateTaskRequest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Code, Host, SOON, Shim, Spec, bind, eventually, skipped, stock};

/// What a Create or an exec may use, to be the same before and after it failed.
#[derive(Debug, PartialEq)]
pub(crate) struct Holdings {
    mounts: usize,
    cgroups: usize,
    states: usize,
    processes: usize,
    files: Vec<String>,
    descriptors: Vec<String>,
}

impl Holdings {
    pub(crate) fn of(host: &Host, shim: &Shim<'_>) -> Self {
        let files = if stock() { Vec::new() } else { host.files("c") };
        // Go's runtime opens and closes descriptors of its own as it likes.
        let mut descriptors = if stock() { Vec::new() } else { shim.descriptors() };
        // A socket or pipe has a number for a name, and containerd's connection may come and go.
        descriptors.retain(|name| !name.contains("socket:"));
        let (mounts, cgroups) = (host.mounts().len(), host.cgroups().len());
        let (states, processes) = (host.states().len(), host.processes().len());
        Self { mounts, cgroups, states, processes, files, descriptors }
    }

    /// Whether `self` is all that the host holds; files may be fewer.
    fn hold(&self, host: &Host, shim: &Shim<'_>) -> bool {
        let mut now = Self::of(host, shim);
        if now.files.iter().all(|file| self.files.contains(file)) {
            now.files.clone_from(&self.files);
        }
        now == *self
    }

    /// Waits until `self` is what the host holds again.
    #[track_caller]
    pub(crate) fn expect(&self, host: &Host, shim: &Shim<'_>, name: &str) {
        let deadline = std::time::Instant::now() + SOON;
        while !self.hold(host, shim) && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(self.hold(host, shim), "{name}: {self:#?} became {:#?}", Self::of(host, shim));
    }
}

/// How Create is made to fail: by the host's state, or by the request.
type Fault = (&'static str, fn(&Host, &mut CreateTaskRequest));

const FAULTS: [Fault; 17] = [
    ("no bundle", |_, request| request.bundle += "-no-such"),
    ("no config.json", |host, _| fs::remove_file(host.bundle("c").join("config.json")).unwrap()),
    ("an empty config.json", |host, _| write(host, "config.json", "")),
    ("half a config.json", |host, _| write(host, "config.json", "{\"process\":")),
    ("a config.json the runtime refuses", |host, _| write(host, "config.json", "{}")),
    ("the rootfs is a file", |host, _| {
        fs::remove_dir(host.bundle("c").join("rootfs")).unwrap();
        write(host, "rootfs", "");
    }),
    ("the second mount fails", |_, request| request.rootfs.push(bind("/no/such/dir", &["rbind"]))),
    ("no such FIFO for stdin", |_, request| request.stdin = "/no/such/fifo".into()),
    ("no such directory for output", |_, request| {
        request.stdout = "/no/such/dir/fifo".into();
        request.stderr = "/no/such/dir/fifo".into();
    }),
    ("no such runtime", |host, _| {
        fs::set_permissions(host.runtime(), fs::Permissions::from_mode(0o644)).unwrap();
    }),
    ("the runtime fails", |host, _| host.script().set("create", "fail on purpose")),
    ("the runtime is killed", |host, _| host.script().set("create", "die")),
    ("the runtime says nonsense and makes nothing", |host, _| {
        host.script().set("create", "garbage")
    }),
    ("the runtime makes nothing", |host, _| host.script().set("create", "nopid")),
    ("the runtime fails when all is made", |host, _| {
        host.script().set("create", "late on purpose")
    }),
    ("a terminal that nobody sends", |host, request| {
        request.terminal = true;
        host.script().set("create", "fail on purpose");
    }),
    ("options that are none", |_, request| {
        request.options.mut_or_insert_default().value = b"\xff\xff\xff".to_vec();
    }),
];

fn write(host: &Host, file: &str, text: &str) {
    fs::write(host.bundle("c").join(file), text).unwrap();
}

/// Puts right what a fault has changed.
fn repair(host: &Host) {
    drop(fs::remove_file(host.bundle("c").join("rootfs")));
    host.prepare("c", Spec::idle());
    fs::set_permissions(host.runtime(), fs::Permissions::from_mode(0o755)).unwrap();
    host.script().reset();
}

#[test]
fn a_create_that_fails_at_any_step_leaves_nothing() {
    const NOT_STOCK: [&str; 6] = [
        "no such FIFO for stdin",
        "no such directory for output",
        "the runtime says nonsense and makes nothing",
        "the runtime makes nothing",
        "the runtime fails when all is made",
        "options that are none",
    ];
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c"); // so that what the first Create adds for good is there
    shim.remove("c");
    for (name, fault) in FAULTS {
        if NOT_STOCK.contains(&name) && skipped(name) {
            continue;
        }
        repair(&host);
        let before = Holdings::of(&host, &shim);
        let mut request = shim.request("c");
        fault(&host, &mut request);
        let refusal = shim.create(&request).expect_err(name);
        assert_ne!(refusal.code, Code::OK, "{name}: {refusal:?}");
        assert!(!refusal.message.is_empty(), "{name}");
        assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND, "{name}");
        repair(&host);
        before.expect(&host, &shim, name);
        shim.run("c"); // the id is free, and all works
        assert_eq!(shim.remove("c"), 137, "{name}");
    }
    let told = host.sink.of("c").iter().filter(|line| line.starts_with("create")).count();
    let good = FAULTS.len() + 1 - if stock() { NOT_STOCK.len() } else { 0 };
    assert_eq!(told, good, "a Create that failed is no event");
    shim.stop();
}

#[test]
fn a_system_call_that_fails_during_create_leaves_nothing() {
    if skipped("injected system call errors") {
        return;
    }
    let calls = [
        "mount",
        "open_tree",
        "move_mount",
        "pipe2",
        "clone3",
        "clone,vfork,fork",
        "pidfd_open",
        "umount2",
        "mkdir",
        "renameat,rename,renameat2",
        "fsync,fdatasync",
        "waitid,wait4",
    ];
    for (call, nth) in calls.into_iter().flat_map(|call| [(call, 1), (call, 2)]) {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        shim.run("c");
        shim.remove("c");
        let before = Holdings::of(&host, &shim);
        let streams = host.streams("c", [true, true, true]);
        let mut request = shim.request("c");
        streams.to_create(&mut request);
        let mut strace = inject(shim.pid(), call, nth);
        let name = format!("{call} fails, call {nth}: {:?}", shim.create(&request));
        let created = shim.state("c", "").is_ok();
        kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGINT).unwrap();
        strace.wait().unwrap();
        if created {
            shim.remove("c");
        }
        before.expect(&host, &shim, &name);
        shim.run("c");
        shim.end();
    }
}

/// Makes call number `nth` of each of `calls` in the process (not its children) fail with EIO.
pub(crate) fn inject(pid: i32, calls: &str, nth: u32) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-p", &pid.to_string(), "-o", "/dev/null"]);
    strace.args(["-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:error=EIO:when={nth}")]);
    let mut child = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !said.contains("attached") && stderr.read_line(&mut said).unwrap() > 0 {}
    assert!(said.contains("attached"), "{said}");
    child
}

#[test]
fn an_exec_that_fails_to_start_leaves_nothing() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let sleeps = || host.processes().iter().any(|process| process.line.starts_with("sleep"));
    eventually("the container to idle", || sleeps().then_some(()));
    let before = Holdings::of(&host, &shim);
    for mood in ["fail on purpose", "die", "garbage", "nopid"] {
        if mood != "fail on purpose" && skipped(mood) {
            continue;
        }
        host.script().set("exec", mood);
        let refusal = shim.exec_run("c", "e", "true").expect_err(mood);
        assert!(mood != "fail on purpose" || refusal.message.contains("on purpose"), "{refusal:?}");
        shim.delete("c", "e").unwrap();
        host.script().reset();
        before.expect(&host, &shim, mood);
        shim.exec_run("c", "e", "exit 2").unwrap();
        assert_eq!(shim.reap("c", "e"), 2, "{mood}");
        before.expect(&host, &shim, mood);
    }
    shim.end();
}

#[test]
fn a_daemon_killed_during_create_is_cleaned_up_by_delete() {
    if skipped("delete needs no file of the bundle") {
        return;
    }
    for mood in ["hang", "late on purpose", "slow 1"] {
        let host = Host::scripted();
        let shim = host.start("c", Spec::idle());
        host.script().set("create", mood);
        let (task, request) = (shim.task(), shim.request("c"));
        let call = std::thread::spawn(move || task.create(&request));
        eventually("the runtime's start", || {
            host.script().calls().contains(&"create".to_owned()).then_some(())
        });
        shim.crash();
        call.join().unwrap().unwrap_err();
        let deleted = host.delete("c");
        assert_eq!(deleted.response.exit_status, 137, "{mood}");
        assert!(host.mounts().is_empty() && host.cgroups().is_empty(), "{mood}");
        assert!(host.processes().is_empty(), "{mood}: {:?}", host.processes());
    }
}

#[test]
fn containerd_gone_and_back_finds_its_container() {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let pid = shim.run("c");
    host.sink.stop();
    let again = shim.reconnect();
    host.sink.resume();
    assert_eq!(again.state("c", "").unwrap().pid, pid);
    assert_eq!(again.pids("c").unwrap()[0], (pid, None));
    shim.exec_run("c", "e", "exit 1").unwrap();
    assert_eq!(shim.reap("c", "e"), 1);
    shim.end();
}
