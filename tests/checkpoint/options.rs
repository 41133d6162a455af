//! Each option of a checkpoint.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde_json::json;

use super::super::support::{Host, Script, Shim, Spec, Streams, eventually, within};
use super::{COUNTER, counts, criu, exit, host_with, image, restoring, with_network};

/// The option's name, its value, and its arguments.
type Row = (&'static str, fn(&mut CheckpointOptions), &'static [&'static str]);

const ROWS: [Row; 9] = [
    ("nothing", |_| {}, &[]),
    ("open TCP", |o| o.open_tcp = true, &["--tcp-established"]),
    ("unix sockets", |o| o.external_unix_sockets = true, &["--ext-unix-sk"]),
    ("terminal", |o| o.terminal = true, &["--shell-job"]),
    ("file locks", |o| o.file_locks = true, &["--file-locks"]),
    ("cgroups mode", |o| o.cgroups_mode = "full".into(), &["--manage-cgroups-mode", "full"]),
    (
        "empty namespaces",
        |o| o.empty_namespaces = ["network".into(), "ipc".into()].into(),
        &["--empty-ns", "network", "--empty-ns", "ipc"],
    ),
    ("exit", |o| o.exit = true, &[]),
    ("work path", |o| o.work_path = "/run/berth-no-such/work".into(), &[]),
];

#[test]
fn every_option_reaches_the_runtimes_arguments_and_those_of_the_restore() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "nopid");
    host.script().set("restore", "fail on purpose");
    let arguments = |command: &str| {
        let all = Script::arguments(&host.script().last(command));
        let from = all.iter().position(|argument| argument == command).unwrap();
        all[from + 1..].to_vec()
    };
    for (name, change, expected) in ROWS {
        let mut options = CheckpointOptions::default();
        change(&mut options);
        let image = image(&host, &name.replace(' ', "-"));
        shim.checkpoint("c", &image, &options).unwrap();
        let bundle = host.bundle("c");
        let own = bundle.join("criu-work").to_str().unwrap().to_owned();
        let work = if options.work_path.is_empty() { own } else { options.work_path.clone() };
        let mut all = vec!["--image-path", &image, "--work-path", &work];
        all.extend(expected);
        all.extend(if options.exit { &["c"][..] } else { &["--leave-running", "c"] });
        assert_eq!(arguments("checkpoint"), all, "{name}");
        assert_eq!(Path::new(&work).exists(), !options.work_path.is_empty(), "{name}");

        host.prepare("r", Spec::idle());
        shim.create(&restoring(&shim, "r", &image)).unwrap();
        let refusal = shim.start("r", "").unwrap_err();
        assert!(refusal.message.contains("on purpose"), "{name}: {refusal:?}");
        let bundle = host.bundle("r");
        let [bundle, pid, work] =
            ["", "/init.pid", "/criu-work"].map(|file| format!("{}{file}", bundle.display()));
        let mut all = vec!["--bundle", &bundle, "--detach", "--no-subreaper", "--pid-file", &pid];
        all.extend(["--image-path", &image, "--work-path", &work]);
        all.extend(expected);
        all.push("r");
        assert_eq!(arguments("restore"), all, "{name}");
        shim.delete("r", "").unwrap();
    }
    std::fs::remove_dir_all("/run/berth-no-such").unwrap();
    shim.end();
}

#[test]
fn the_image_is_where_the_client_wants_it_and_where_containerd_does() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "nopid");
    let [wanted, other] = ["wanted", "other"].map(|name| image(&host, name));
    let cases = [
        ("path", other.as_str(), "", &other),
        ("option", "", wanted.as_str(), &wanted),
        ("both, from containerd 2.0", &wanted, &wanted, &wanted),
        ("both, until containerd 1.7", &other, &wanted, &wanted),
    ];
    for (name, path, option, expected) in cases {
        for dir in [&wanted, &other] {
            drop(std::fs::remove_dir_all(dir));
        }
        let options = CheckpointOptions { image_path: option.into(), ..Default::default() };
        if name.contains("1.7") {
            std::fs::create_dir(path).unwrap(); // containerd's, a temporary one
        }
        shim.checkpoint("c", path, &options).unwrap();
        let arguments = Script::arguments(&host.script().last("checkpoint"));
        assert!(arguments.contains(expected), "{name}: {arguments:?}");
        for dir in [path, option].iter().filter(|dir| !dir.is_empty()) {
            assert!(Path::new(dir).join("berth.json").exists(), "{name}: {dir}");
        }
    }
    // Create of a containerd until 1.7 has only the option.
    host.prepare("r", Spec::idle());
    let mut request = shim.request("r");
    let image_path = |o: &mut containerd_shim_protos::shim::oci::Options| {
        o.criu_image_path.clone_from(&wanted);
        o.criu_work_path = image(&host, "work");
    };
    request.options = Some(shim.options(image_path)).into();
    assert_eq!(shim.create(&request).unwrap(), 0);
    host.script().set("restore", "fail on purpose");
    shim.start("r", "").unwrap_err();
    let arguments = Script::arguments(&host.script().last("restore"));
    for expected in [&wanted, &image(&host, "work")] {
        assert!(arguments.contains(expected), "{arguments:?}");
    }
    shim.delete("r", "").unwrap();
    shim.end();
}

/// containerd's copy comes after it, and may take longer than the news of the end can wait.
#[test]
fn a_checkpoint_is_told_of_whatever_becomes_of_its_copy() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    host.script().set("checkpoint", "nopid");
    let wanted = image(&host, "wanted");
    let options = CheckpointOptions { image_path: wanted.clone(), ..Default::default() };
    let refusal = shim.checkpoint("c", "/dev/null/other", &options).unwrap_err();
    assert!(refusal.message.contains("/dev/null/other"), "{refusal:?}");
    host.sink.expect("c", &["create c", "start c", "checkpointed c"]);
    shim.end();
}

/// A container that needs an option to be saved, and goes on counting once it is restored.
struct Needy {
    name: &'static str,
    spec: fn(&Host) -> Made,
    allow: fn(&mut CheckpointOptions),
    /// What CRIU says without.
    refusal: Option<&'static str>,
}

/// A container's spec, and what of the host it uses.
struct Made {
    spec: Spec,
    _network: Option<Network>,
    _socket: Option<Socket>,
}

impl From<Spec> for Made {
    fn from(spec: Spec) -> Self {
        Self { spec, _network: None, _socket: None }
    }
}

/// A process whose network a container can join, as one that CNI has made.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let script = "busybox ip link set lo up; exec sleep 1000";
        let child = Command::new("unshare").args(["-n", "sh", "-c", script]).spawn().unwrap();
        let network = Self(child);
        let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        eventually("a network", || (state(network.0.id())? == "sleep\n").then_some(()));
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A program that starts when `first` has done what it does.
fn counter_after(first: &str) -> Spec {
    Spec::sh(&format!("{first}\n{COUNTER}"))
}

/// A connection to itself, on the loopback of a network that it joins. One of its own would come back
/// empty: runc restores no network.
fn tcp(_: &Host) -> Made {
    let server = "busybox nc -l -p 5000 -e cat &";
    let client =
        "(while sleep 0.1; do echo x; done) | busybox nc 127.0.0.1 5000 >/dev/null & sleep 0.5";
    let network = Network::new();
    let path = format!("/proc/{}/ns/net", network.0.id());
    let spec = counter_after(&format!("{server} sleep 0.5\n{client}"));
    let spec = with_network(spec, json!({"type": "network", "path": path}));
    Made { spec, _network: Some(network), _socket: None }
}

/// A log daemon's socket.
struct Socket {
    path: PathBuf,
    _socket: UnixDatagram,
}

impl Drop for Socket {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// A socket whose other end is the host's. CRIU looks for that by its path, which has to be the same
/// inside.
fn unix_socket(host: &Host) -> Made {
    let path = Path::new("/tmp").join(format!("{}-log", host.tag()));
    let socket = Socket { _socket: UnixDatagram::bind(&path).unwrap(), path };
    let path = socket.path.to_str().unwrap();
    let daemon = "busybox mkdir /dev/cron; busybox crond -f -l 0 -c /dev/cron & sleep 0.5";
    let spec = counter_after(&format!("busybox ln -s {path} /dev/log; {daemon}"));
    let mut mounts = spec.0["mounts"].clone();
    let tmpfs = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
    mounts.as_array_mut().unwrap().push(tmpfs);
    let spec = with_bind(spec.set("/mounts", mounts), path, &socket.path);
    Made { spec, _network: None, _socket: Some(socket) }
}

/// A lock that a program of the host's holds: busybox has none that does.
fn file_lock(_: &Host) -> Made {
    let host = "cd /dev/host; set -- usr/lib*/ld-linux*.so.? lib*/*/ld-linux*.so.?; ld=$1; [ -e $1 ] || ld=$2";
    let flock =
        "exec $ld --library-path $(echo usr/lib/*-linux-gnu*) usr/bin/flock /dev/lock /bin/sh -c";
    let spec = Spec::sh(&format!("{host}\n{flock} \"{}\"", COUNTER.replace('$', "\\$")));
    with_bind(spec, "/dev/host", Path::new("/")).into()
}

fn with_bind(spec: Spec, destination: &str, source: &Path) -> Spec {
    let mut mounts = spec.0["mounts"].clone();
    mounts.as_array_mut().unwrap().push(json!({
        "destination": destination, "type": "bind", "source": source, "options": ["bind"],
    }));
    spec.set("/mounts", mounts)
}

const NEEDY: [Needy; 6] = [
    Needy {
        name: "an open TCP connection",
        spec: tcp,
        allow: |o| o.open_tcp = true,
        refusal: Some("Connected TCP socket"),
    },
    Needy {
        name: "a unix socket of the host",
        spec: unix_socket,
        allow: |o| o.external_unix_sockets = true,
        refusal: Some("External socket"),
    },
    Needy {
        name: "a file lock",
        spec: file_lock,
        allow: |o| o.file_locks = true,
        refusal: Some("--file-locks"),
    },
    Needy {
        name: "a namespace that is restored empty",
        spec: |_| with_network(Spec::sh(COUNTER), json!({"type": "network"})).into(),
        allow: |o| o.empty_namespaces.push("network".into()),
        refusal: None,
    },
    Needy {
        name: "cgroups that may be there",
        spec: |_| Spec::sh(COUNTER).into(),
        allow: |o| o.cgroups_mode = "soft".into(),
        refusal: None,
    },
    Needy {
        name: "cgroups in full",
        spec: |_| Spec::sh(COUNTER).into(),
        allow: |o| o.cgroups_mode = "full".into(),
        refusal: None,
    },
];

fn run<'h>(shim: &Shim<'h>, id: &str, image: Option<&str>) -> Streams {
    let streams = shim.host().streams(id, [false, true, true]);
    let mut request = shim.request(id);
    request.checkpoint = image.unwrap_or_default().into();
    streams.to_create(&mut request);
    shim.create(&request).unwrap();
    shim.start(id, "").unwrap();
    streams
}

#[test]
fn what_a_container_has_is_saved_if_that_is_allowed() {
    let Some(criu) = criu() else { return };
    for Needy { name, spec, allow, refusal } in NEEDY {
        eprintln!("{name}");
        let host = host_with(&criu);
        let made = spec(&host);
        let shim = host.start("c", made.spec.clone());
        let streams = run(&shim, "c", None);
        counts(&streams, 2);
        if let Some(words) = refusal {
            let refused = shim.checkpoint("c", &image(&host, "refused"), &exit()).unwrap_err();
            assert!(refused.message.contains(words), "{name}: {refused:?}");
            let more = counts(&streams, 0).len() + 2;
            counts(&streams, more); // it goes on
        }
        let work = image(&host, "work");
        let mut options = CheckpointOptions { work_path: work.clone(), ..exit() };
        allow(&mut options);
        let image = image(&host, "image");
        shim.checkpoint("c", &image, &options).unwrap();
        assert_eq!(shim.reap("c", ""), 137, "{name}");
        assert!(Path::new(&work).join("dump.log").exists(), "{name}");
        assert!(Path::new(&image).join("inventory.img").exists(), "{name}");
        let last = *counts(&streams, 1).last().unwrap();

        host.prepare("r", made.spec.clone());
        let streams = run(&shim, "r", Some(&image));
        let restored = within(Duration::from_secs(60), "numbers", || {
            Some(counts(&streams, 3)).filter(|all| !all.is_empty())
        });
        assert_eq!(restored[0], last + 1, "{name}");
        shim.remove("r");
        shim.stop();
    }
}
