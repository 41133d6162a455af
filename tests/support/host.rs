//! containerd's side of one or more shims: bundles, sockets, `start`, and the guard over it all.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;

use super::{Api, EventSink, Reader, Script, Shim, Spec, leaks};

/// Names the directory for hosts where it is not `/run`.
pub const RUN: &str = "BERTH_TEST_RUN";

/// Names a run of this program in namespaces of its own, where its pid is no name.
pub const APART: &str = "BERTH_TEST_APART";

/// What the caller of `start` writes to its standard input.
#[derive(Clone, Debug)]
pub enum Stdin {
    /// containerd up to 2.2 without options.
    Nothing,
    /// containerd up to 2.2 with options: a bare `Any`.
    Options(Vec<u8>),
    /// containerd 2.3: the bootstrap parameters of this container.
    Bootstrap,
}

/// What runs in place of the shim and the runtime that the environment names.
struct Other {
    shim: PathBuf,
    runtime: String,
}

/// A containerd in a directory of its own; dropped, it fails the test if anything remains.
pub struct Host {
    dir: PathBuf,
    tag: String,
    env: Vec<(String, String)>,
    script: Option<Script>,
    other: Option<Other>,
    sockets: Mutex<Vec<PathBuf>>,
    /// The events of every shim of this host.
    pub sink: EventSink,
}

impl Host {
    /// One that uses the real runtime.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The letter at the end: no tag is the beginning of another one.
        let own = std::env::var(APART).unwrap_or_else(|_| std::process::id().to_string());
        let tag = format!("bt{own}-{}h", COUNT.fetch_add(1, Ordering::SeqCst));
        let run = std::env::var_os(RUN).unwrap_or_else(|| "/run".into());
        let dir = Path::new(&run).join(&tag);
        fs::create_dir(&dir).unwrap();
        let sink = EventSink::new(&dir.join("ttrpc"));
        let (env, script, other, sockets) = Default::default();
        Self { dir, tag, env, script, other, sockets, sink }
    }

    /// One whose runtime is `runtime.sh`.
    pub fn scripted() -> Self {
        let mut host = Self::new();
        host.script = Some(Script::new(&host.dir));
        host
    }

    /// One that measures the program `shim` with `runtime`: the shim is not asked to log for debugging.
    #[allow(dead_code, reason = "tests/bench uses it, tests/main does not")]
    pub fn measuring(shim: &Path, runtime: &str) -> Self {
        let mut host = Self::new();
        host.other = Some(Other { shim: shim.to_owned(), runtime: runtime.to_owned() });
        host
    }

    /// Gives berth a configuration file with `text`.
    pub fn configured(self, text: &str) -> Self {
        self.configure(text);
        let file = self.dir.join("berth.toml").to_str().unwrap().to_owned();
        self.with_env("BERTH_CONF_FILE", &file)
    }

    /// Puts `text` into the configuration file, as an administrator does while shims run.
    pub fn configure(&self, text: &str) {
        fs::write(self.dir.join("berth.toml"), text).unwrap();
    }

    /// Sets a variable in the environment of its shims.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The scripted runtime.
    pub fn script(&self) -> &Script {
        self.script.as_ref().expect("Host::scripted()")
    }

    /// The runtime for `BinaryName`.
    pub fn runtime(&self) -> String {
        match (&self.script, &self.other) {
            (Some(script), _) => script.path().to_owned(),
            (None, Some(other)) => other.runtime.clone(),
            (None, None) => super::runtime::real(),
        }
    }

    /// The versions of the task service to try, in this order.
    pub(super) fn apis(&self) -> &'static [Api] {
        match (&self.other, super::stock()) {
            (Some(_), _) => &[Api::V3, Api::V2],
            (None, true) => &[Api::V2],
            (None, false) => &[Api::V3],
        }
    }

    /// This host's own directory; everything it makes is below.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What marks every process and cgroup of this host.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The runtime's root, for the option of that name.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The directory of container `id`, or of a sandbox that is none.
    pub fn bundle(&self, id: &str) -> PathBuf {
        let sandbox = self.dir.join("sandbox/tests").join(id);
        if sandbox.exists() {
            return sandbox;
        }
        self.dir.join("task/tests").join(id)
    }

    /// Makes the bundle of container `id` as containerd does.
    pub fn prepare(&self, id: &str, spec: Spec) {
        let bundle = self.bundle(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        spec.write(&bundle, &self.tag, id);
    }

    /// Makes the bundle of sandbox `id` as containerd does: apart from containers', without a spec.
    pub fn prepare_sandbox(&self, id: &str) {
        fs::create_dir_all(self.dir.join("sandbox/tests").join(id).join("rootfs")).unwrap();
    }

    /// Files in the bundle of container `id` but for the `log` FIFO, sorted.
    pub fn files(&self, id: &str) -> Vec<String> {
        let entries = fs::read_dir(self.bundle(id)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "log").collect();
        names.sort();
        names
    }

    /// Living processes of this host.
    pub fn processes(&self) -> Vec<leaks::Process> {
        leaks::processes(&self.tag)
    }

    /// Mount points below the host's directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        leaks::mounts(&self.dir)
    }

    /// Cgroups of the host's containers.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        leaks::cgroups(&self.tag)
    }

    /// Containers that the runtime still keeps state of.
    pub fn states(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root().join("tests")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Prepares container `id`, starts its shim as containerd 1.6 does and connects to it.
    #[track_caller]
    pub fn start(&self, id: &str, spec: Spec) -> Shim<'_> {
        self.prepare(id, spec);
        self.attach(id, &Stdin::Nothing)
    }

    /// Runs `start` in the bundle of container `id` and connects to the address it prints.
    #[track_caller]
    pub fn attach(&self, id: &str, stdin: &Stdin) -> Shim<'_> {
        let log = self.log(id);
        Shim::connect(self, id, self.launch(id, stdin), log)
    }

    /// Runs `start` in the bundle of container `id`; the address it prints.
    #[track_caller]
    pub fn launch(&self, id: &str, stdin: &Stdin) -> String {
        let output = self.run(id, "start", stdin);
        assert!(output.status.success(), "start {id}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "start {id}");
        let address = address(&output.stdout);
        self.sockets.lock().unwrap().push(PathBuf::from(address.trim_start_matches("unix://")));
        address
    }

    /// Opens the `log` FIFO as containerd does before `start`.
    pub fn log(&self, id: &str) -> Reader {
        let path = self.bundle(id).join("log");
        if !path.exists() {
            super::mkfifo(&path);
        }
        Reader::keep(path)
    }

    /// Runs the shim binary as containerd does, to its end.
    pub fn run(&self, id: &str, action: &str, stdin: &Stdin) -> Output {
        let mut child = self.command(id, action).stdin(Stdio::piped()).spawn().unwrap();
        let bytes = match stdin {
            Stdin::Nothing => Vec::new(),
            Stdin::Options(any) => any.clone(),
            Stdin::Bootstrap => self.bootstrap(id),
        };
        drop(child.stdin.take().unwrap().write_all(&bytes)); // it may close its end unread
        child.wait_with_output().unwrap()
    }

    /// The shim binary's command line as containerd 1.6 to 2.4 builds it.
    pub fn command(&self, id: &str, action: &str) -> Command {
        let bundle = self.bundle(id);
        let shim = self.other.as_ref().map(|other| other.shim.clone());
        let mut command = Command::new(shim.unwrap_or_else(|| super::binary().into()));
        command.args(["-namespace", "tests", "-address"]).arg(self.dir.join("grpc"));
        command.args(["-publish-binary", "/usr/bin/containerd", "-id", id]);
        if action == "delete" {
            command.arg("-bundle").arg(&bundle);
        }
        if self.other.is_none() {
            command.arg("-debug");
        }
        command.arg(action).current_dir(bundle).process_group(0);
        command.env("TTRPC_ADDRESS", self.sink.path()).env("GRPC_ADDRESS", self.dir.join("grpc"));
        command.env("NAMESPACE", "tests").env("MAX_SHIM_VERSION", "2").env("GOMAXPROCS", "2");
        command.env("BERTH_RUN_DIR", self.dir.join("berth"));
        command.env("BERTH_TEST_TAG", &self.tag).envs(self.env.iter().cloned());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn bootstrap(&self, id: &str) -> Vec<u8> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: "tests".into(),
            containerd_version: "2.3.4".into(),
            containerd_ttrpc_address: text(self.sink.path().into()),
            containerd_grpc_address: text(self.dir.join("grpc")),
            containerd_binary: "/usr/bin/containerd".into(),
            socket_dir: Some(text(self.dir.join("s"))),
            ..Default::default()
        };
        params.write_to_bytes().unwrap()
    }

    /// What is left on the machine, said in words; empty when nothing is.
    fn remains(&self) -> String {
        let mut words = String::new();
        let mut say = |what: &str, found: Vec<String>| {
            if !found.is_empty() {
                words += &format!("{what}: {found:?}\n");
            }
        };
        let paths = |found: Vec<PathBuf>| found.iter().map(|p| p.display().to_string()).collect();
        let processes = self.processes();
        say("processes", processes.iter().map(|p| format!("{} {}", p.pid, p.line)).collect());
        say("mounts", paths(self.mounts()));
        say("cgroups", paths(self.cgroups()));
        say("runtime state", paths(self.states()));
        let sockets = self.sockets.lock().unwrap();
        say("sockets", paths(sockets.iter().filter(|path| path.exists()).cloned().collect()));
        say("management sockets", paths(self.management_sockets()));
        let bundles = fs::read_dir(self.dir.join("task/tests")).into_iter().flatten().flatten();
        let full = |path: &PathBuf| fs::read_dir(path).is_ok_and(|mut dir| dir.next().is_some());
        say("rootfs", paths(bundles.map(|e| e.path().join("rootfs")).filter(full).collect()));
        words
    }

    /// Removes what a test knowingly left, so that the guard does not complain.
    pub fn clear(&self) {
        leaks::clear(&self.tag, &self.dir);
        self.forgive_sockets();
        drop(fs::remove_dir_all(self.root()));
    }

    /// Forgets a socket that the stock shim leaves to its caller.
    pub fn forgive_sockets(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            drop(fs::remove_file(socket));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let deadline = Instant::now() + super::patient(super::SOON);
        let mut remains = self.remains();
        while !std::thread::panicking() && !remains.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            remains = self.remains();
        }
        leaks::clear(&self.tag, &self.dir);
        self.forgive_sockets();
        drop(fs::remove_dir_all(&self.dir));
        assert!(std::thread::panicking() || remains.is_empty(), "left behind:\n{remains}");
    }
}

/// The address in any of the forms that `start` may print.
fn address(stdout: &[u8]) -> String {
    if stdout.starts_with(b"unix://") {
        return String::from_utf8(stdout.to_vec()).unwrap();
    }
    if stdout.starts_with(b"{") {
        let result: serde_json::Value = serde_json::from_slice(stdout).unwrap();
        return result["address"].as_str().unwrap().to_owned();
    }
    let result = BootstrapResult::parse_from_bytes(stdout)
        .unwrap_or_else(|_| panic!("start printed {:?}", String::from_utf8_lossy(stdout)));
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    result.address
}
