//! A machine of its own: mounts, processes and a network that nobody else sees, made by `machine.sh`; this program
//! is its first process.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::{self, Output};
use crate::example::{self, Stuck};
use crate::{BUILT, REPOSITORY, host, image};

/// The flag of this program when it is the first process of the machine.
pub(crate) const INSIDE: &str = "--inside";
/// Where the sources are, a user's working directory.
pub(crate) const SOURCES: &str = "/run/home/berth";
/// What `make build` would have built.
const PROGRAM: &str = "/run/home/built/containerd-shim-berth-v1";
/// The image of the documents, as they name it, and as they leave it to the reader.
const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// Containers are in these cgroups, which the machine shares with all others.
const CGROUPS: [&str; 4] = ["default/hello", "default/ID", "k8s.io/web", "default/log"];

/// Runs this program on a new machine with the same words.
pub(crate) fn enter(words: &[String]) {
    assert!(!REPOSITORY.starts_with("/run/"), "the machine's /run is empty, and the sources in it");
    let program = std::env::current_exe().unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]);
    unshare.arg(Path::new(REPOSITORY).join("tests/documents/machine.sh"));
    unshare.arg(program).arg(INSIDE).args(words);
    unshare.env("REPOSITORY", REPOSITORY).env("BUILT", BUILT);
    unshare.env("CONTAINERD", fetched("2.x")).env("KUSTOMIZE", fetched("kustomize"));
    let status = command::wait(&mut unshare.spawn().unwrap(), "unshare");
    let left = cgroups();
    for cgroup in &left {
        host::remove_children(cgroup);
        let _ = fs::remove_dir(cgroup);
    }
    assert!(status.success(), "it is said above");
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Where `packaging/fetch-containerd.sh` puts programs.
fn fetched(name: &str) -> PathBuf {
    let dirs = Path::new(BUILT).ancestors().map(|dir| dir.join("containerd"));
    let fetched = dirs.into_iter().find(|dir| dir.is_dir());
    fetched.expect("run packaging/fetch-containerd.sh").join(name).join("bin")
}

fn cgroups() -> Vec<PathBuf> {
    CGROUPS.iter().flat_map(|path| host::cgroups(path)).collect()
}

/// The machine, from within.
#[derive(Default)]
pub(crate) struct Machine {
    containerd: RefCell<Option<Child>>,
    /// The pod of the worked example.
    pub(crate) stuck: Stuck,
}

impl Machine {
    pub(crate) fn begin() -> Self {
        Self::default()
    }

    /// Runs a command in the sources, before anything is installed or started.
    #[track_caller]
    pub(crate) fn sources(&self, text: &str, expected: &str) -> String {
        self.well(SOURCES, text, expected)
    }

    /// Runs a command where containerd and what the documents have shown before it is there.
    #[track_caller]
    pub(crate) fn says(&self, text: &str, expected: &str) -> String {
        self.containerd();
        self.well(SOURCES, text, expected)
    }

    /// Runs a command in `dir` that has to end well and to print `expected`.
    #[track_caller]
    pub(crate) fn well(&self, dir: &str, text: &str, expected: &str) -> String {
        let output = self.run(dir, text);
        let said = output.text() + &output.stderr;
        assert!(output.status == 0, "`{text}`: {} {said}", output.status);
        assert!(said.contains(expected), "`{text}` does not say {expected:?}: {said}");
        said
    }

    #[track_caller]
    pub(crate) fn run(&self, dir: &str, text: &str) -> Output {
        command::run(Command::new("sh").args(["-c", text]).current_dir(dir), b"")
    }

    /// Starts a command that stays.
    pub(crate) fn spawn(&self, text: &str, log: &str) -> Child {
        let log = File::create(log).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {text}")]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// containerd as an administrator has it: with the handlers of `config/`, and the image.
    #[track_caller]
    pub(crate) fn containerd(&self) {
        if self.containerd.borrow().is_some() {
            return;
        }
        if !Path::new("/usr/bin/containerd-shim-berth-v1").exists() {
            // When words have chosen rows that come after the installation.
            fs::copy(PROGRAM, "/usr/bin/containerd-shim-berth-v1").unwrap();
        }
        fs::create_dir_all("/etc/containerd").unwrap();
        fs::copy(format!("{SOURCES}/config/containerd-2.toml"), "/etc/containerd/config.toml")
            .unwrap();
        self.start_containerd();
        let archive = image::write_named(Path::new("/run/home"), BUSYBOX, &["/bin/sh"]);
        for namespace in ["default", "k8s.io"] {
            let import = format!("ctr -n {namespace} image import {}", archive.display());
            self.well("/", &import, "");
        }
    }

    fn start_containerd(&self) {
        *self.containerd.borrow_mut() = Some(self.spawn("containerd", "/run/containerd.log"));
        command::until("containerd answers", || {
            (self.run("/", "ctr version").status == 0).then_some(())
        });
    }

    /// Ends containerd and starts it again.
    pub(crate) fn restart(&self) {
        let mut containerd = self.containerd.take().expect("containerd runs");
        host::signal(containerd.id().try_into().unwrap(), "TERM");
        command::wait(&mut containerd, "containerd");
        self.start_containerd();
    }

    /// A pod, as the CRI plugin has the annotations of one; it may be there already.
    #[track_caller]
    pub(crate) fn pod(&self, id: &str) {
        self.containerd();
        if Path::new(&format!("/run/berth/k8s.io/{id}.sock")).exists() {
            return;
        }
        let kind = "io.kubernetes.cri.container-type=sandbox";
        let run = format!(
            "ctr -n k8s.io run --detach --null-io --runtime io.containerd.berth.v1 --annotation {kind} \
             --annotation io.kubernetes.cri.sandbox-id={id} {BUSYBOX} {id} sleep 1000"
        );
        self.well("/", &run, "");
        command::until("the pod's socket", || {
            Path::new(&format!("/run/berth/k8s.io/{id}.sock")).exists().then_some(())
        });
    }

    /// The pid of a pod's shim.
    #[track_caller]
    pub(crate) fn shim(&self, pod: &str) -> i32 {
        let listed = self.says("containerd-shim-berth-v1 ps", pod);
        let words = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.into_iter().find(|words| words[1] == pod).unwrap()[2].parse().unwrap()
    }

    /// Ends what is left and looks for what should not be.
    #[track_caller]
    pub(crate) fn end(self) {
        let Some(mut containerd) = self.containerd.take() else { return };
        example::end(&self);
        self.run("/", "ctr -n k8s.io task delete --force web");
        let mut left = Vec::new();
        let clean = command::poll(|| {
            left = host::processes();
            left.retain(|process| process.mentions(" -publish-binary "));
            (left.is_empty() && cgroups().is_empty()).then_some(())
        });
        host::signal(containerd.id().try_into().unwrap(), "TERM");
        command::wait(&mut containerd, "containerd");
        let left: Vec<_> = left.iter().map(host::Process::describe).collect();
        assert!(clean.is_some(), "left behind: {left:?} {:?}", cgroups());
    }
}

/// With what a reader puts in place of the words in capitals.
pub(crate) fn filled(text: &str) -> String {
    text.replace("IMAGE", BUSYBOX).replace("NAMESPACE/POD", "k8s.io/web").replace("POD", "web")
}
