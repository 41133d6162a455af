//! A pod, its containers, and what they leave.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::messages::{
    ContainerConfig, ContainerId, ContainerMetadata, ContainerStatus, ContainerStatusResponse,
    CreateContainerRequest, EXITED, Empty, ExecSyncRequest, ExecSyncResponse, ImageSpec,
    PodSandboxConfig, PodSandboxId, PodSandboxStatus, PodSandboxStatusResponse,
    StopContainerRequest,
};
use super::setup::{self, NAMESPACE};
use super::{Cri, owned};
use crate::{command, daemon, host, image};

/// A pod that runs. When dropped in a failed case it is removed by force.
pub(crate) struct Pod<'a> {
    pub(crate) cri: &'a Cri<'a>,
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    /// Its own and those of its containers.
    ids: RefCell<Vec<String>>,
    gone: bool,
}

impl<'a> Pod<'a> {
    pub(super) fn new(cri: &'a Cri<'a>, id: String, config: PodSandboxConfig) -> Self {
        Self { cri, ids: RefCell::new(vec![id.clone()]), id, config, gone: false }
    }

    /// Makes a container for `program` with the pod's namespaces, after `change` to its request.
    #[track_caller]
    pub(crate) fn create(
        &self,
        name: &str,
        program: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.into() }),
            command: owned(program),
            log_path: format!("{name}.log"),
            ..ContainerConfig::default()
        };
        config.security().namespace_options = Some(self.config.clone().namespaces().clone());
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let container: ContainerId = self.cri.call("CreateContainer", &request);
        self.ids.borrow_mut().push(container.id.clone());
        container.id
    }

    /// Starts what [`Pod::create`] made.
    #[track_caller]
    pub(crate) fn launch(&self, container: &str) {
        let _: Empty = self.cri.call("StartContainer", &ContainerId { id: container.into() });
    }

    /// Starts `program` in a container of the pod; returns its id.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, program: &[&str]) -> String {
        self.start_with(name, program, |_| ())
    }

    #[track_caller]
    pub(crate) fn start_with(
        &self,
        name: &str,
        program: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        let container = self.create(name, program, change);
        self.launch(&container);
        container
    }

    /// Runs `program` in a container to its end.
    #[track_caller]
    pub(crate) fn exec(&self, container: &str, program: &[&str]) -> ExecSyncResponse {
        let request =
            ExecSyncRequest { container_id: container.into(), cmd: owned(program), timeout: 20 };
        self.cri.call("ExecSync", &request)
    }

    /// What `script` prints in a container, after it ended well.
    #[track_caller]
    pub(crate) fn ask(&self, container: &str, script: &str) -> String {
        let answer = self.exec(container, &["sh", "-c", script]);
        assert_eq!(answer.exit_code, 0, "{script}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }

    #[track_caller]
    pub(crate) fn status(&self, container: &str) -> ContainerStatus {
        let request = ContainerId { id: container.into() };
        let answer: ContainerStatusResponse = self.cri.call("ContainerStatus", &request);
        answer.status.unwrap()
    }

    /// Waits until a container has ended.
    #[track_caller]
    pub(crate) fn await_exit(&self, container: &str) -> ContainerStatus {
        command::until("the container ends", || {
            Some(self.status(container)).filter(|status| status.state == EXITED)
        })
    }

    /// Ends a container, by force after `grace` seconds.
    #[track_caller]
    pub(crate) fn stop(&self, container: &str, grace: i64) {
        let request = StopContainerRequest { container_id: container.into(), timeout: grace };
        let _: Empty = self.cri.call("StopContainer", &request);
    }

    #[track_caller]
    pub(crate) fn remove_container(&self, container: &str) {
        let _: Empty = self.cri.call("RemoveContainer", &ContainerId { id: container.into() });
    }

    /// The pod's own status.
    #[track_caller]
    pub(crate) fn state(&self) -> PodSandboxStatus {
        let request = PodSandboxId { id: self.id.clone() };
        let answer: PodSandboxStatusResponse = self.cri.call("PodSandboxStatus", &request);
        answer.status.unwrap()
    }

    /// The log file of the container `name`.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        Path::new(&self.config.log_directory).join(format!("{name}.log"))
    }

    /// The pod's own cgroups, which a kubelet makes and removes.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        cgroups(&self.config)
    }

    /// The path of the pod's own cgroup, the same in each hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        self.config.linux.as_ref().unwrap().cgroup_parent.clone()
    }

    /// The processes of the pod: its shim, its holder or pause container, its containers' programs.
    pub(crate) fn processes(&self) -> Vec<host::Process> {
        let cgroup = self.config.linux.as_ref().unwrap().cgroup_parent.clone() + "/";
        let all = host::processes().into_iter();
        all.filter(|process| process.mentions(&self.id) || process.mentions(&cgroup)).collect()
    }

    /// The pid of the pod's shim.
    #[track_caller]
    pub(crate) fn shim(&self) -> i32 {
        let mut all = self.processes().into_iter();
        let shim = all.find(|process| {
            process.mentions("containerd-shim-") && !process.mentions("hold-sandbox")
        });
        shim.unwrap_or_else(|| panic!("no shim of {}", self.id)).pid
    }

    /// The pid of what stands for the pod: its pause container's program or its holder.
    #[track_caller]
    pub(crate) fn sandbox(&self) -> i32 {
        let mut all = self.processes().into_iter();
        let sandbox = all
            .find(|process| process.mentions("sleep 100000") || process.mentions("hold-sandbox"));
        sandbox.unwrap_or_else(|| panic!("nothing stands for {}", self.id)).pid
    }

    /// Stops the pod.
    #[track_caller]
    pub(crate) fn stop_all(&self) {
        let _: Empty = self.cri.call("StopPodSandbox", &PodSandboxId { id: self.id.clone() });
    }

    /// Stops and removes the pod with all its containers; fails if anything is left of it.
    #[track_caller]
    pub(crate) fn remove(mut self) {
        self.stop_all();
        let _: Empty = self.cri.call("RemovePodSandbox", &PodSandboxId { id: self.id.clone() });
        self.gone = true;
        let mut left = Vec::new();
        let clean = command::poll(|| {
            left = self.traces();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left of {}: {}", self.id, left.join(", "));
        let cgroups = remove_cgroup(&self.config);
        assert!(cgroups.is_empty(), "cannot be removed: {cgroups:?}");
    }

    /// Overlooks a socket that the stock shim leaves when it is killed.
    pub(crate) fn excuse_socket(&self) {
        let _ = fs::remove_file(self.cri.daemon.shim_socket(NAMESPACE, &self.id));
    }

    /// Removes by force what there is of the pod beside containerd's own files.
    pub(crate) fn sweep(&self) {
        self.excuse_socket();
        for process in self.processes() {
            host::signal(process.pid, "KILL");
        }
        command::poll(|| self.processes().is_empty().then_some(()));
        for id in self.ids.borrow().iter() {
            daemon::sweep(id);
            for state in host::runtime_states(NAMESPACE, id) {
                let _ = fs::remove_dir_all(state);
            }
        }
        for cgroup in self.cgroups() {
            host::remove_children(&cgroup);
        }
    }

    /// What there is of the pod and of its containers.
    fn traces(&self) -> Vec<String> {
        let mut found: Vec<_> =
            self.processes().into_iter().map(|process| process.describe()).collect();
        for id in self.ids.borrow().iter() {
            found.extend(host::mounts(id).into_iter().map(|path| format!("mount {path}")));
            let mut paths = host::runtime_states(NAMESPACE, id);
            paths.push(self.cri.daemon.shim_socket(NAMESPACE, id));
            for cgroup in self.cgroups() {
                paths.push(cgroup.join(id));
            }
            let state = self.cri.daemon.dir().join("state");
            for plugin in fs::read_dir(state).unwrap().filter_map(Result::ok) {
                for group in ["", NAMESPACE, "containers", "sandboxes"] {
                    paths.push(plugin.path().join(group).join(id));
                }
            }
            paths.extend(setup::network_files(self.cri.daemon.dir(), id));
            found.extend(
                paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()),
            );
        }
        found
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.gone || !thread::panicking() {
            return;
        }
        let request = PodSandboxId { id: self.id.clone() };
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let _: Result<Empty, _> = self.cri.attempt(method, &request);
        }
        self.sweep();
        remove_cgroup(&self.config);
    }
}

fn cgroups(config: &PodSandboxConfig) -> Vec<PathBuf> {
    let parent = &config.linux.as_ref().unwrap().cgroup_parent;
    host::cgroups(parent.trim_start_matches('/'))
}

/// Removes a pod's own cgroups; returns those that could not be.
pub(super) fn remove_cgroup(config: &PodSandboxConfig) -> Vec<PathBuf> {
    command::poll(|| {
        let left = cgroups(config).into_iter();
        let left: Vec<_> = left.filter(|path| fs::remove_dir(path).is_err()).collect();
        left.is_empty().then_some(left)
    })
    .unwrap_or_else(|| cgroups(config))
}
