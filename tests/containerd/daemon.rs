//! A private containerd: a version, an OCI runtime, a directory and a socket of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::command::{self, Output};
use crate::{Runtime, Shim, host, image};

/// What a private daemon neither needs nor may share with the host's own.
const DISABLED: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
];

/// A running containerd. When dropped it is stopped and its directory removed.
pub(crate) struct Daemon {
    pub(crate) version: String,
    pub(crate) runtime: Runtime,
    dir: PathBuf,
    programs: PathBuf,
    /// The program that stands for crun, see [`host::write_crun`].
    crun: PathBuf,
    child: Mutex<Child>,
}

impl Daemon {
    /// Starts the containerd whose programs are in `programs`, with everything it writes in `dir`.
    pub(crate) fn start(version: &str, programs: &Path, runtime: Runtime, dir: &Path) -> Self {
        Self::start_with(version, programs, runtime, dir, &config(dir, DISABLED))
    }

    /// As [`Daemon::start`], with a configuration of its own. Programs in `dir`/bin come before all
    /// others of their name.
    pub(crate) fn start_with(
        version: &str,
        programs: &Path,
        runtime: Runtime,
        dir: &Path,
        config: &str,
    ) -> Self {
        fs::create_dir_all(dir.join("fifo")).unwrap();
        let crun = host::write_crun(dir);
        fs::write(dir.join("containerd.toml"), config).unwrap();
        fs::write(dir.join("berth.toml"), format!("runtime = {crun:?}\n")).unwrap();
        let child = Mutex::new(spawn(programs, runtime, dir));
        let version = version.to_owned();
        let daemon = Self {
            version,
            runtime,
            dir: dir.to_owned(),
            programs: programs.to_owned(),
            crun,
            child,
        };
        daemon.await_answer();
        daemon
    }

    /// Ends the daemon with `signal` ("TERM", "KILL"), but nothing that it started.
    pub(crate) fn stop(&self, signal: &str) {
        let mut child = self.child.lock().unwrap();
        host::signal(i32::try_from(child.id()).unwrap(), signal);
        command::wait(&mut child, "containerd");
    }

    /// Starts it again with the same state.
    pub(crate) fn start_again(&self) {
        *self.child.lock().unwrap() = spawn(&self.programs, self.runtime, &self.dir);
        self.await_answer();
    }

    fn await_answer(&self) {
        command::until("containerd answers", || {
            let answers = command::run(self.ctr("none").arg("version"), b"").status == 0;
            let ended = self.child.lock().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "containerd ended: {}", self.log_about("containerd"));
            answers.then_some(())
        });
    }

    /// Makes the image known in `namespace`.
    pub(crate) fn import(&self, namespace: &str, archive: &Path) {
        command::run(self.ctr(namespace).args(["image", "import"]).arg(archive), b"").ok();
        let known = command::run(self.ctr(namespace).args(["image", "list", "-q"]), b"").ok();
        assert_eq!(known, image::NAME);
    }

    /// The daemon's own client, in `namespace`.
    pub(crate) fn ctr(&self, namespace: &str) -> Command {
        let mut command = Command::new(self.programs.join("ctr"));
        command.arg("--address").arg(self.dir.join("c.sock")).args(["--namespace", namespace]);
        command
    }

    /// The flags of `ctr run` that choose shim and runtime. Only the stock shim's can name another
    /// runtime there; berth finds it in the configuration that [`spawn`] points to.
    pub(crate) fn run_flags(&self, shim: Shim) -> Vec<String> {
        let mut flags = vec!["--runtime".to_owned(), shim.runtime_name().to_owned()];
        if shim == Shim::Stock && self.runtime == Runtime::Crun {
            flags.extend(["--runc-binary".to_owned(), self.crun.display().to_string()]);
        }
        flags
    }

    /// How often the wrapped crun was called for container `id`.
    pub(crate) fn crun_calls(&self, id: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("crun.log")).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').any(|word| word == id)).count()
    }

    pub(crate) fn fifo_dir(&self) -> PathBuf {
        self.dir.join("fifo")
    }

    /// Where the bundles of `namespace` are.
    pub(crate) fn bundles(&self, namespace: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(namespace)
    }

    /// The socket that a shim listens on for `group`: a container's id or the name of a pod.
    pub(crate) fn shim_socket(&self, namespace: &str, group: &str) -> PathBuf {
        let name = self.dir.join("c.sock").join(namespace).join(group);
        Path::new("/run/containerd/s").join(image::hex(name.as_os_str().as_encoded_bytes()))
    }

    /// Where the programs of this version are.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last lines of its log that complain, or that say `word`.
    pub(crate) fn log_about(&self, word: &str) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let tells = |line: &&str| {
            line.contains(word) || line.contains("level=error") || line.contains("level=fatal")
        };
        let lines = log.lines().filter(tells).map(|line| line.get(..400).unwrap_or(line));
        let lines: Vec<_> = lines.collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// What is left of the daemon's containers once all are deleted, after removing it.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop("TERM");
        sweep(&self.dir.display().to_string())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.kill();
        let _ = child.wait();
        sweep(&self.dir.display().to_string());
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends every process and unmounts every mount that mentions `needle`; names them.
pub(crate) fn sweep(needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in host::processes().into_iter().filter(|process| process.mentions(needle)) {
        found.push(process.describe());
        host::signal(process.pid, "KILL");
    }
    for target in host::mounts(needle) {
        command::run(Command::new("umount").args(["-l", &target]), b"");
        found.push(format!("mount {target}"));
    }
    found
}

/// `ctr events` for one namespace into a file, for as long as the daemon lives.
pub(crate) struct EventLog {
    child: Child,
    path: PathBuf,
}

impl EventLog {
    /// Returns once events arrive.
    pub(crate) fn start(daemon: &Daemon, namespace: &str) -> Self {
        let path = daemon.dir.join(format!("events-{namespace}"));
        let file = File::options().create(true).append(true).open(&path).unwrap();
        let mut command = daemon.ctr(namespace);
        command.arg("events").stdin(Stdio::null()).stdout(file);
        let log = Self { child: command.spawn().unwrap(), path };
        let before = log.text().len();
        let mut round = 0;
        command::until("an event arrives", || {
            round += 1;
            let label = format!("round={round}");
            command::run(
                daemon.ctr(namespace).args(["namespaces", "label", namespace, &label]),
                b"",
            )
            .ok();
            (log.text().len() > before).then_some(())
        });
        log
    }

    /// All lines up to now: time, namespace, topic, JSON.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(programs: &Path, runtime: Runtime, dir: &Path) -> Child {
    let built = || env!("CARGO_BIN_EXE_containerd-shim-berth-v1").to_owned();
    let berth = PathBuf::from(std::env::var("BERTH_TEST_SHIM").unwrap_or_else(|_| built()));
    let berth = berth.parent().unwrap();
    let mut path = vec![dir.join("bin"), berth.to_owned(), programs.to_owned()];
    path.push(programs.join("../../criu/bin")); // where it was fetched
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(programs.join("containerd"));
    command.arg("--config").arg(dir.join("containerd.toml"));
    command.env("PATH", std::env::join_paths(path).unwrap());
    command.env_remove("BERTH_CONF_FILE");
    if runtime == Runtime::Crun {
        command.env("BERTH_CONF_FILE", dir.join("berth.toml"));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", programs.display()))
}

/// containerd's configuration with everything below `dir` and without the plugins `disabled`.
pub(crate) fn config(dir: &Path, disabled: &[&str]) -> String {
    format!(
        "version = 2\n\
         root = {root:?}\n\
         state = {state:?}\n\
         disabled_plugins = {disabled:?}\n\
         [grpc]\n\
         address = {address:?}\n\
         [debug]\n\
         level = \"debug\"\n",
        root = dir.join("root"),
        state = dir.join("state"),
        address = dir.join("c.sock"),
    )
}

/// The result of a client's command in the words of a failed assertion.
pub(crate) fn explain(output: &Output) -> String {
    format!("status {}, {:?}, {}", output.status, output.text(), output.stderr.trim())
}
