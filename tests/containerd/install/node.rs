//! `packaging/kubernetes/node.sh` beside a directory that stands for a node, and the API that it asks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::command::{self, Output};

/// A directory with the image of the DaemonSet, and what is the node's: containerd's configuration and a
/// place for programs.
pub(super) struct Node {
    pub(super) dir: PathBuf,
    /// The directory with containerd and ctr.
    programs: PathBuf,
    pub(super) config: PathBuf,
    /// What the program takes from its environment.
    pub(super) env: BTreeMap<&'static str, String>,
}

impl Node {
    /// A node whose containerd reads `config`; what would restart it notes that in `restarts`, and what
    /// asks it says that all is well.
    pub(super) fn new(dir: &Path, programs: &Path, config: PathBuf) -> Self {
        let image = dir.join("image");
        fs::create_dir_all(&image).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/node.sh");
        fs::copy(script, image.join("node.sh")).unwrap();
        fs::copy(
            env!("CARGO_BIN_EXE_containerd-shim-berth-v1"),
            image.join("containerd-shim-berth-v1"),
        )
        .unwrap();
        let mut node =
            Self { dir: dir.into(), programs: programs.into(), config, env: BTreeMap::new() };
        // The tests' own files are the node's, and so are the programs.
        node.env.insert("HOST_PID", std::process::id().to_string());
        let paths =
            [("BIN_DIR", "bin"), ("RUN_DIR", "run"), ("RANCHER", "rancher"), ("READY", "ready")];
        for (variable, name) in paths {
            node.env.insert(variable, dir.join(name).display().to_string());
        }
        node.env.insert("CONTAINERD_CONFIG", node.config.display().to_string());
        node.env.insert("CONTAINERD", programs.join("containerd").display().to_string());
        node.env.insert("CTR", programs.join("ctr").display().to_string());
        node.env.insert("NODE_NAME", String::new());
        node
    }

    /// Gives the node a containerd that restarts and answers, or does not, as `ctr` decides: the text of a
    /// shell's script, which has containerd's configuration in `$config`.
    pub(super) fn pretend(&mut self, ctr: &str) {
        let restart = format!("echo >>{}", self.dir.join("restarts").display());
        self.write_program("RESTART", "restart", &restart);
        let says = "echo 'io.containerd.grpc.v1 cri - ok'";
        let ctr = format!("config={:?}\n{ctr}\n{says}", self.config.display().to_string());
        self.write_program("CTR", "ctr", &ctr);
        self.env.insert("WAIT", "1".into());
    }

    pub(super) fn write_program(&mut self, variable: &'static str, name: &str, script: &str) {
        let path = self.dir.join("image").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.env.insert(variable, path.display().to_string());
    }

    pub(super) fn restarts(&self) -> usize {
        fs::read_to_string(self.dir.join("restarts")).unwrap_or_default().len()
    }

    pub(super) fn command(&self, action: &str) -> Command {
        let mut command = self.staying(action);
        command.arg("once");
        command
    }

    /// As the DaemonSet runs it: until it is terminated.
    pub(super) fn staying(&self, action: &str) -> Command {
        let mut command = Command::new(self.dir.join("image/node.sh"));
        command.arg(action).envs(&self.env);
        command
    }

    pub(super) fn run(&self, action: &str) -> Output {
        command::run(&mut self.command(action), b"")
    }

    pub(super) fn program(&self) -> PathBuf {
        self.dir.join("bin/containerd-shim-berth-v1")
    }

    /// What containerd makes of the configuration that there is.
    #[track_caller]
    pub(super) fn dump(&self) -> String {
        let mut containerd = Command::new(self.programs.join("containerd"));
        containerd.arg("--config").arg(&self.config).args(["config", "dump"]);
        command::run(&mut containerd, b"").ok()
    }

    /// Every file and directory beside containerd's configuration, with the bytes of each file.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        collect(self.config.parent().unwrap(), &mut found);
        found
    }
}

fn collect(path: &Path, into: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), into);
        }
    }
    if path.exists() {
        into.insert(path.into(), path.is_file().then(|| fs::read(path).unwrap()));
    }
}

/// The API server of the cluster, which answers everything well; what it was asked.
pub(super) struct Api {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The request's first line and its headers.
    pub(super) head: String,
    pub(super) body: serde_json::Value,
}

impl Api {
    /// Serves as long as the process lives.
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let api = Self { address, asked: Arc::default() };
        let asked = Arc::clone(&api.asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                stream.read_exact(&mut body).unwrap();
                let body = serde_json::from_slice(&body).unwrap();
                asked.lock().unwrap().push(Asked { head, body });
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        api
    }

    /// Has `node` ask it, as node `n1` with a token.
    pub(super) fn serve(&self, node: &mut Node) {
        let credentials = node.dir.join("credentials");
        fs::create_dir_all(&credentials).unwrap();
        fs::write(credentials.join("token"), "secret").unwrap();
        fs::write(credentials.join("ca.crt"), "").unwrap();
        node.env.insert("CREDENTIALS", credentials.display().to_string());
        node.env.insert("API", self.address.clone());
        node.env.insert("NODE_NAME", "n1".into());
    }

    /// What was asked since it was looked at last.
    pub(super) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}
