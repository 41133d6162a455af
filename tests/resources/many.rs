//! OOM kills in more containers than the host has inotify(7) instances for one user.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use super::limited;
use crate::support::{Host, Reader, Shim, Spec, eventually, mkfifo, patient, skipped, within};

/// How many containers, each with a shim of its own; half as many in one pod, and either is more than
/// there are instances.
const CONTAINERS: &str = "BERTH_OOM_CONTAINERS";
const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// The kernel's and every distribution's value.
const USUAL: u32 = 128;
/// How many are let go at a time: each takes 16 MiB of the host before it dies.
const BATCH: usize = 20;

fn containers() -> usize {
    let count = std::env::var(CONTAINERS).map(|number| number.parse().expect(CONTAINERS));
    // Where everything is slow, as on the cgroup v2 host, that none has an instance has to do.
    let is_slow = patient(Duration::from_secs(1)) > Duration::from_secs(1);
    count.unwrap_or(if is_slow { 40 } else { 300 })
}

/// The usual limit of instances, where it is higher; set back when dropped.
struct Usual(String);

impl Usual {
    fn set() -> Self {
        let before = fs::read_to_string(INSTANCES).unwrap();
        if before.trim().parse::<u32>().unwrap() > USUAL {
            fs::write(INSTANCES, USUAL.to_string()).unwrap();
        }
        Self(before)
    }
}

impl Drop for Usual {
    fn drop(&mut self) {
        fs::write(INSTANCES, &self.0).unwrap();
    }
}

/// All of the user's inotify instances. Other tests have none meanwhile, so it is for a moment only.
struct UsedUp {
    _usual: Usual,
    _instances: Vec<Inotify>,
}

impl UsedUp {
    fn new() -> Self {
        let usual = Usual::set();
        let mut instances = Vec::new();
        loop {
            match Inotify::init(InitFlags::IN_CLOEXEC) {
                Ok(instance) => instances.push(instance),
                Err(errno) => {
                    assert_eq!(errno, Errno::EMFILE);
                    return Self { _usual: usual, _instances: instances };
                }
            }
        }
    }
}

/// A container that waits for a line in the FIFO `go/line` of the host, and then outgrows its memory.
fn waiting(host: &Host) -> Spec {
    let source = host.dir().join("go");
    let mut spec = limited(Spec::sh("read line </go/line; exec tail /dev/zero"), 16 << 20);
    let mounts = spec.0["mounts"].as_array_mut().unwrap();
    let options = ["rbind", "ro"];
    mounts
        .push(json!({"destination": "/tmp", "type": "bind", "source": source, "options": options}));
    spec.0["process"]["args"][2] = json!("read line </tmp/line; exec tail /dev/zero");
    spec
}

/// Makes `count` containers at once by `run`, lets them all die of it, and checks what was told.
fn all_report(host: &Host, count: usize, run: impl Fn(&str) + Sync) {
    mkfifo(&host.dir().join("go/line"));
    let ids: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
    thread::scope(|scope| {
        for part in ids.chunks(count.div_ceil(4)) {
            let run = &run;
            scope.spawn(move || part.iter().for_each(|id| run(id)));
        }
    });
    let used = host.processes().into_iter().map(|process| inotify_instances(process.pid));
    assert_eq!(used.sum::<usize>(), 0, "for {count} containers that run");
    let mut line =
        OpenOptions::new().read(true).write(true).open(host.dir().join("go/line")).unwrap();
    let ended = || host.sink.lines().iter().filter(|line| line.starts_with("exit ")).count();
    for part in ids.chunks(BATCH) {
        let expected = ended() + part.len();
        part.iter().for_each(|_| line.write_all(b"\n").unwrap());
        within(Duration::from_secs(120), "the ends of a batch", || {
            (ended() >= expected).then_some(())
        });
    }
    let all = host.sink.lines();
    for id in &ids {
        let lines: Vec<_> = all.iter().filter(|line| line.split(' ').nth(1) == Some(id)).collect();
        let expected = [format!("oom {id}"), format!("exit {id} 137")];
        assert_eq!(lines[lines.len() - 2..], expected.each_ref(), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("oom")).count(), 1, "{lines:?}");
    }
}

fn inotify_instances(pid: i32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target == Path::new("anon_inode:inotify")).count()
}

fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A pod with all of them, and a shim for each.
#[test]
fn every_oom_kill_of_more_containers_than_inotify_instances_is_told() {
    if skipped("OOM without inotify instances") {
        return;
    }
    raise_file_limit();
    let _usual = Usual::set();
    let count = containers() / 2;

    let host = Host::new();
    fs::create_dir(host.dir().join("go")).unwrap();
    let pod = host.start("pod", Spec::idle());
    pod.run("pod");
    all_report(&host, count, |id| {
        host.prepare(id, waiting(&host).of_pod("pod"));
        pod.run(id);
    });
    (0..count).for_each(|number| assert_eq!(pod.reap(&format!("c{number}"), ""), 137));
    pod.end();
    drop(host);

    let count = containers();
    let host = Host::new();
    fs::create_dir(host.dir().join("go")).unwrap();
    let shims: std::sync::Mutex<Vec<(String, Shim<'_>)>> = std::sync::Mutex::default();
    all_report(&host, count, |id| {
        let shim = host.start(id, waiting(&host));
        shim.run(id);
        shims.lock().unwrap().push((id.to_owned(), shim));
    });
    for (id, shim) in shims.into_inner().unwrap() {
        assert_eq!(shim.reap(&id, ""), 137);
        shim.stop();
    }
}

/// What berth does use an instance for: output that waits for a reader who comes late.
#[test]
fn output_reaches_a_late_reader_with_no_inotify_instance_left_on_the_host() {
    let _used_up = UsedUp::new();
    let host = Host::new();
    let shim = host.start("c", Spec::sh("echo hello; exit 3"));
    let mut request = shim.request("c");
    request.stdout = mkfifo(&host.dir().join("out"));
    shim.create(&request).unwrap();
    shim.start("c", "").unwrap();
    assert_eq!(shim.wait("c", "").unwrap().exit_status, 3);
    thread::sleep(Duration::from_millis(300)); // so that berth waits for the reader
    assert_eq!(Reader::open(&request.stdout).finish(), "hello\n");
    shim.delete("c", "").unwrap();
    eventually("nothing to hold an instance", || {
        (inotify_instances(shim.pid()) == 0).then_some(())
    });
    shim.stop();
}
