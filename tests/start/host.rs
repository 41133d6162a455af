//! What plays containerd for `start` alone: bundles, a socket directory, the daemons that it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::shim::oci;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tempfile::TempDir;

pub(super) const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-berth-v1");
pub(super) const GRPC: &str = "/run/berth-test/containerd.sock";

/// A containerd of our own: bundles, a socket directory, and the end of every daemon in it.
pub(super) struct Host {
    pub(super) dir: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        host.bundle("x", "");
        host
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Makes a bundle whose container is in `group`, or on its own.
    pub(super) fn bundle(&self, id: &str, group: &str) -> PathBuf {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        let annotation =
            format!("{{\"annotations\":{{\"io.kubernetes.cri.sandbox-id\":\"{group}\"}}}}");
        fs::write(bundle.join("config.json"), annotation).unwrap();
        bundle
    }

    pub(super) fn params(&self, id: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: "ns".into(),
            containerd_grpc_address: GRPC.into(),
            containerd_ttrpc_address: "/run/berth-test/events".into(),
            socket_dir: Some(self.sockets().display().to_string()),
            ..BootstrapParams::default()
        }
    }

    pub(super) fn command(&self, id: &str) -> Command {
        let mut command = Command::new(SHIM);
        command.args([
            "-namespace",
            "ns",
            "-address",
            "/flag.sock",
            "-publish-binary",
            "/bin/true",
        ]);
        command.args(["-id", id, "start"]).current_dir(self.dir.path().join(id));
        command.env_remove("BERTH_LOG_LEVEL").env_remove("SCHED_CORE").process_group(0);
        command
    }

    pub(super) fn start(&self, params: &BootstrapParams) -> Output {
        run(self.command(&params.instance_id), &params.write_to_bytes().unwrap())
    }

    /// Starts and returns the address.
    pub(super) fn started(&self, params: &BootstrapParams) -> String {
        let output = self.start(params);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stderr, b"");
        let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        result.address
    }

    /// Every process whose working directory is in here, `start`s excepted: the daemons.
    pub(super) fn daemons(&self) -> Vec<i32> {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cwd.is_ok_and(|cwd| cwd.starts_with(self.dir.path()))
                && !words.split(|byte| *byte == 0).any(|word| word == b"start")
        })
        .collect()
    }

    pub(super) fn only_daemon(&self) -> i32 {
        let daemons = self.daemons();
        assert_eq!(daemons.len(), 1, "{daemons:?}");
        daemons[0]
    }

    pub(super) fn socket_files(&self) -> usize {
        fs::read_dir(self.sockets()).map_or(0, Iterator::count)
    }

    /// Kills all daemons and waits until they are gone.
    pub(super) fn kill_daemons(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while let [pid, ..] = self.daemons()[..] {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            assert!(Instant::now() < deadline, "daemon {pid} cannot be killed");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            for pid in self.daemons() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        } else {
            self.kill_daemons();
        }
    }
}

pub(super) fn run(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

pub(super) fn runc_options(shim_cgroup: &str) -> Any {
    let options = oci::Options { shim_cgroup: shim_cgroup.into(), ..oci::Options::default() };
    Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes().unwrap(),
        ..Any::default()
    }
}

pub(super) fn extension(any: Any) -> Extension {
    Extension { value: MessageField::some(any), ..Extension::default() }
}

pub(super) fn environment(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap().to_owned()
}

pub(super) fn words(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// Waits until the daemon has come past exec, and so has its own name.
pub(super) fn settled(pid: i32) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "containerd-shim\n" {
        assert!(Instant::now() < deadline, "daemon did not settle");
        thread::sleep(Duration::from_millis(2));
    }
    pid
}
