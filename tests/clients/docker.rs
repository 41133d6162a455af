//! The Docker Engine: what its users do, with berth by its runtime's name and by an alias of
//! `config/docker.json`.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::command::{self, Output};
use crate::host;

const STOCK: &str = "io.containerd.runc.v2";

/// How a container's runtime is named.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    pub(crate) word: &'static str,
    pub(crate) runtime: &'static str,
}

/// The stock shim, which proves the cases, and berth by either name.
pub(crate) const NAMINGS: [Naming; 3] = [
    Naming { word: "stock", runtime: STOCK },
    Naming { word: "name", runtime: "io.containerd.berth.v1" },
    Naming { word: "alias", runtime: "berth" },
];

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) check: fn(&Engine, &str),
}

pub(crate) const CASES: &[Case] = &[
    Case { name: "run", check: run },
    Case { name: "exec", check: exec },
    Case { name: "logs", check: logs },
    Case { name: "stop", check: stop },
    Case { name: "live-restore", check: live_restore },
    Case { name: "oom-killed", check: oom_killed },
    Case { name: "health", check: health },
];

/// Imported by each engine, see [`write_image`].
const IMAGE: &str = "berth.test/busybox:1";

/// Output and status, and the statuses that the engine makes of what the runtime says. The alias has the
/// configuration that its options name.
fn run(engine: &Engine, runtime: &str) {
    let before = engine.chosen();
    let output = engine.run(runtime, &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((output.status, &*output.text(), output.stderr.trim()), (3, "out", "err"));
    let mut cat = engine.command(&["run", "--rm", "-i", "--runtime", runtime, IMAGE, "cat"]);
    assert_eq!(command::run(&mut cat, b"in\n").ok(), "in");
    let terminal =
        engine.run(runtime, &["--rm", "-t"], &["sh", "-c", "test -t 0 && echo terminal"]);
    assert_eq!(terminal.ok(), "terminal");
    for (program, status) in [("missing", 127), ("/tmp", 126)] {
        let refused = engine.run(runtime, &["--rm"], &[program]);
        assert_eq!(refused.status, status, "{program}: {}", refused.stderr);
    }
    assert_eq!(engine.chosen() > before, runtime == "berth", "the runtime of ConfigPath");
}

fn exec(engine: &Engine, runtime: &str) {
    let id = engine.launch(runtime, &[], &["sleep", "1000"]);
    let shim = host::parent(engine.inspect(&id, "{{.State.Pid}}").parse().unwrap());
    let name = fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    let stock = runtime == STOCK;
    let expected = if stock { "containerd-shim-runc-v2" } else { "containerd-shim-berth-v1" };
    assert!(name.ends_with(expected), "{name:?} is its shim");
    let status = engine.docker(&["exec", &id, "sh", "-c", "exit 7"]).status;
    assert_eq!(status, 7);
    let mut cat = engine.command(&["exec", "-i", &id, "cat"]);
    assert_eq!(command::run(&mut cat, b"in\n").ok(), "in");
    let told = engine.docker(&[
        "exec",
        "-t",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        &id,
        "sh",
        "-c",
        "pwd; echo $A",
    ]);
    assert_eq!(told.ok(), "/tmp\r\nb c");
    // As the engines themselves do.
    let missing = if engine.major() < 28 { 126 } else { 127 };
    assert_eq!(engine.docker(&["exec", &id, "missing"]).status, missing);
    let top = engine.docker(&["top", &id]).ok();
    assert!(top.contains("sleep 1000"), "{top}");
    engine.docker(&["pause", &id]).ok();
    assert_eq!(engine.inspect(&id, "{{.State.Status}}"), "paused");
    engine.docker(&["unpause", &id]).ok();
    let stats = engine.docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", &id]).ok();
    assert_eq!(stats, "1");
    engine.docker(&["rm", "-f", &id]).ok();
}

fn logs(engine: &Engine, runtime: &str) {
    let lines = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo last >&2";
    let id = engine.launch(runtime, &[], &["sh", "-c", lines]);
    assert_eq!(engine.docker(&["wait", &id]).ok(), "0");
    let logs = engine.docker(&["logs", &id]);
    let expected = (0..2000).map(|line| format!("line {line}\n")).collect::<String>();
    assert_eq!(logs.stdout, expected.as_bytes());
    assert_eq!(logs.stderr, "last\n");
    engine.docker(&["rm", &id]).ok();
}

/// A container gets its signal; one that does not listen is killed; both can be started again.
fn stop(engine: &Engine, runtime: &str) {
    let wait = "while :; do sleep 0.05; done";
    for (trap, time, status) in [("exit 5", "30", "5"), ("", "1", "137")] {
        let script = format!("trap '{trap}' TERM; echo up; {wait}");
        let id = engine.launch(runtime, &[], &["sh", "-c", &script]);
        let up = |count| {
            command::until("it runs", || {
                (engine.docker(&["logs", &id]).text().lines().count() == count).then_some(())
            });
        };
        up(1);
        engine.docker(&["stop", "-t", time, &id]).ok();
        let state =
            engine.inspect(&id, "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}");
        assert_eq!(state, format!("exited {status} false"));
        engine.docker(&["start", &id]).ok();
        up(2);
        engine.docker(&["restart", "-t", time, &id]).ok();
        up(3);
        engine.docker(&["kill", &id]).ok();
        assert_eq!(engine.docker(&["wait", &id]).ok(), "137");
        engine.docker(&["rm", &id]).ok();
    }
}

/// With `live-restore` containers run on without the engine, and it knows afterwards what they did.
fn live_restore(engine: &Engine, runtime: &str) {
    let stays = engine.launch(runtime, &[], &["sh", "-c", "while :; do sleep 0.05; done"]);
    let wait = "until [ -e /tmp/end ]; do sleep 0.05; done; echo ended; exit 9";
    let ends = engine.launch(runtime, &[], &["sh", "-c", wait]);
    let [stays_pid, ends_pid]: [i32; 2] =
        [&stays, &ends].map(|id| engine.inspect(id, "{{.State.Pid}}").parse().unwrap());
    for signal in ["TERM", "KILL"] {
        engine.stop(signal);
        assert!(host::exists(stays_pid) && host::exists(ends_pid), "after SIG{signal}");
        if signal == "KILL" {
            fs::write(format!("/proc/{ends_pid}/root/tmp/end"), "").unwrap();
            command::until("it ends", || (!host::exists(ends_pid)).then_some(()));
        }
        engine.start_again();
        assert_eq!(
            engine.inspect(&stays, "{{.State.Status}} {{.State.Pid}}"),
            format!("running {stays_pid}")
        );
        assert_eq!(engine.docker(&["exec", &stays, "sh", "-c", "exit 6"]).status, 6);
    }
    assert_eq!(engine.docker(&["wait", &ends]).ok(), "9");
    // Written while nobody read it: the stock shim loses that.
    let logged = || engine.docker(&["logs", &ends]).text() == "ended";
    if runtime != STOCK {
        command::until("its last words are logged", || logged().then_some(()));
    }
    engine.docker(&["rm", "-f", &stays, &ends]).ok();
}

fn oom_killed(engine: &Engine, runtime: &str) {
    let eat = "head -c 200000000 /dev/zero | tail";
    let id = engine.launch(runtime, &["-m", "16m", "--memory-swap", "16m"], &["sh", "-c", eat]);
    assert_eq!(engine.docker(&["wait", &id]).ok(), "137");
    let state = engine.inspect(&id, "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}");
    assert_eq!(state, "exited 137 true");
    engine.docker(&["rm", &id]).ok();
}

fn health(engine: &Engine, runtime: &str) {
    let probe =
        ["--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "1"];
    let id = engine.launch(runtime, &probe, &["sh", "-c", "touch /tmp/well; sleep 1000"]);
    let is = |expected: &str| {
        command::until(expected, || {
            (engine.inspect(&id, "{{.State.Health.Status}}") == expected).then_some(())
        });
    };
    is("healthy");
    engine.docker(&["exec", &id, "rm", "/tmp/well"]).ok();
    is("unhealthy");
    engine.docker(&["rm", "-f", &id]).ok();
}

/// A private dockerd and its containerd. When dropped both are stopped.
pub(crate) struct Engine {
    dir: PathBuf,
    programs: PathBuf,
    /// dockerd and containerd.
    daemons: Mutex<(Child, Child)>,
}

impl Engine {
    /// Starts the engine of `docker` with the containerd of `containerd`, all they write in `dir`, and
    /// gives it the image.
    pub(crate) fn start(dir: &Path, docker: &Path, containerd: &Path) -> Self {
        write_settings(dir);
        let programs = docker.join("bin");
        let below = spawn_containerd(dir, &containerd.join("bin"));
        let daemons = Mutex::new((spawn(dir, &programs), below));
        let engine = Self { dir: dir.into(), programs, daemons };
        engine.await_answer();
        let archive = write_image(dir);
        let mut import = engine.command(&["import", "-c", "ENV PATH=/bin"]);
        command::run(import.arg(archive).arg(IMAGE), b"").ok();
        engine
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("docker"));
        command.env("DOCKER_CONFIG", self.dir.join("client"));
        command.arg("-H").arg(format!("unix://{}/docker.sock", self.dir.display())).args(arguments);
        command
    }

    #[track_caller]
    fn docker(&self, arguments: &[&str]) -> Output {
        command::run(&mut self.command(arguments), b"")
    }

    #[track_caller]
    fn run(&self, runtime: &str, flags: &[&str], program: &[&str]) -> Output {
        self.docker(&[&["run", "--runtime", runtime], flags, &[IMAGE], program].concat())
    }

    /// Starts a container; its id.
    #[track_caller]
    fn launch(&self, runtime: &str, flags: &[&str], program: &[&str]) -> String {
        self.run(runtime, &[&["-d"], flags].concat(), program).ok()
    }

    #[track_caller]
    fn inspect(&self, id: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, id]).ok()
    }

    /// Ends the engine, but not its containerd.
    fn stop(&self, signal: &str) {
        let mut daemons = self.daemons.lock().unwrap();
        host::signal(daemons.0.id().try_into().unwrap(), signal);
        command::wait(&mut daemons.0, "dockerd");
        let _ = fs::remove_file(self.dir.join("docker.pid"));
    }

    fn start_again(&self) {
        self.daemons.lock().unwrap().0 = spawn(&self.dir, &self.programs);
        self.await_answer();
    }

    fn await_answer(&self) {
        command::until("the engine answers", || {
            let ended = self.daemons.lock().unwrap().0.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended: {}", self.log());
            (self.docker(&["version"]).status == 0).then_some(())
        });
    }

    fn major(&self) -> u32 {
        let version = self.docker(&["version", "--format", "{{.Server.Version}}"]).ok();
        version.split('.').next().unwrap().parse().unwrap()
    }

    /// How often the runtime of the alias's configuration was called.
    fn chosen(&self) -> usize {
        fs::read_to_string(self.dir.join("chosen.log")).unwrap_or_default().lines().count()
    }

    /// The last lines of the engine's log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log-dockerd")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Nothing of a container may be left once it is removed.
    #[track_caller]
    pub(crate) fn check_clean(&self) {
        let mut left = Vec::new();
        let clean = command::poll(|| {
            left = self.traces();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind: {}", left.join(", "));
    }

    fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let (shims, cgroup) = (format!("-namespace {}", namespace()), cgroup());
        for process in host::processes() {
            if process.mentions(&shims) || process.mentions(&cgroup) {
                found.push(process.describe());
            }
        }
        let bundles = self.dir.join("state/io.containerd.runtime.v2.task").join(namespace());
        let places = [bundles, Path::new("/run/containerd/runc").join(namespace())];
        let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten();
        found.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        let groups = host::cgroups(cgroup.trim_start_matches('/'));
        let groups = groups.iter().filter_map(|group| fs::read_dir(group).ok()).flatten();
        let groups = groups.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        found.extend(groups.map(|path| path.display().to_string()));
        found
    }

    /// Removes by force what a failed case left.
    pub(crate) fn sweep(&self) {
        let ids = self.docker(&["ps", "-aq"]).text();
        for id in ids.lines() {
            self.docker(&["rm", "-f", id]);
        }
    }

    /// Stops both; fails if a process or a mount is left.
    #[track_caller]
    pub(crate) fn end(self) {
        let here = self.dir.display().to_string();
        drop(self);
        let left: Vec<_> =
            host::processes().into_iter().filter(|process| process.mentions(&here)).collect();
        let left: Vec<_> =
            left.iter().map(host::Process::describe).chain(host::mounts(&here)).collect();
        assert!(left.is_empty(), "left behind: {}", left.join(", "));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut daemons = self.daemons.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (dockerd, containerd) = &mut *daemons;
        for child in [dockerd, containerd] {
            host::signal(child.id().try_into().unwrap(), "TERM");
            let ended = command::poll(|| child.try_wait().unwrap());
            if ended.is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for process in host::processes() {
            if process.mentions(&cgroup())
                || process.mentions(&format!("-namespace {}", namespace()))
            {
                host::signal(process.pid, "KILL");
            }
        }
        for target in host::mounts(&self.dir.display().to_string()) {
            command::run(Command::new("umount").args(["-l", &target]), b"");
        }
        for group in host::cgroups(&namespace()) {
            host::remove_children(&group);
            let _ = fs::remove_dir(group);
        }
        host::remove_namespace(&namespace());
        let _ = fs::remove_dir("/run/docker/plugins");
        let _ = fs::remove_dir("/run/docker");
    }
}

/// Containers are in this namespace of containerd, and below the cgroup of this name.
fn namespace() -> String {
    format!("berth-clients-{}", std::process::id())
}

fn cgroup() -> String {
    format!("/{}/", namespace())
}

/// The engine's `daemon.json` is `config/docker.json` with what belongs to this machine around it.
fn write_settings(dir: &Path) {
    let (file, runtime) = (dir.join("berth.toml"), dir.join("chosen"));
    let log = dir.join("chosen.log");
    let script = format!("#!/bin/sh\necho \"$*\" >>{}\nexec runc \"$@\"\n", log.display());
    fs::write(&runtime, script).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, format!("runtime = {runtime:?}\n")).unwrap();
    let mut settings: Value =
        serde_json::from_str(include_str!("../../config/docker.json")).unwrap();
    let path = &mut settings["runtimes"]["berth"]["options"]["ConfigPath"];
    assert!(path.is_string());
    *path = json!(file);
    let own = json!({
        "data-root": dir.join("data"),
        "exec-root": dir.join("exec"),
        "pidfile": dir.join("docker.pid"),
        "hosts": [format!("unix://{}/docker.sock", dir.display())],
        "containerd": dir.join("c.sock"),
        "containerd-namespace": namespace(),
        "containerd-plugins-namespace": format!("{}-plugins", namespace()),
        "cgroup-parent": format!("/{}", namespace()),
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "storage-driver": "vfs",
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "ip-forward": false,
        "userland-proxy": false,
        "debug": true,
    });
    settings.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    fs::write(dir.join("daemon.json"), settings.to_string()).unwrap();
    let disabled = json!([
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.internal.v1.opt",
        "io.containerd.nri.v1.nri",
    ]);
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled}\n[grpc]\naddress = {:?}\n",
        dir.join("root"),
        dir.join("state"),
        dir.join("c.sock"),
    );
    fs::write(dir.join("containerd.toml"), config).unwrap();
}

/// A root file system of one program, as `docker import` takes it.
fn write_image(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    for part in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(tree.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("Debian's busybox-static");
    for applet in ["cat", "echo", "head", "rm", "sh", "sleep", "tail", "test", "touch"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let archive = dir.join("image.tar");
    command::run(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."), b"")
        .ok();
    archive
}

fn spawn(dir: &Path, programs: &Path) -> Child {
    let mut dockerd = Command::new(programs.join("dockerd"));
    dockerd.arg("--config-file").arg(dir.join("daemon.json"));
    spawn_logging(dockerd, &dir.join("log-dockerd"))
}

/// The shim is on containerd's PATH, as it is for users.
fn spawn_containerd(dir: &Path, programs: &Path) -> Child {
    let built = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [built.into(), programs.into()].into_iter().chain(std::env::split_paths(&path));
    let mut containerd = Command::new(programs.join("containerd"));
    containerd.arg("--config").arg(dir.join("containerd.toml"));
    containerd.env("PATH", std::env::join_paths(path).unwrap()).env_remove("BERTH_CONF_FILE");
    spawn_logging(containerd, &dir.join("log-containerd"))
}

fn spawn_logging(mut command: Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
