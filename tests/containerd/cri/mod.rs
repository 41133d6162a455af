//! containerd's CRI plugin, driven as a kubelet does it.

pub(crate) mod messages;
mod pod;
mod rpc;
pub(crate) mod runtimes;
pub(crate) mod setup;
pub(crate) mod stream;

use std::fs;
use std::path::PathBuf;

use prost::Message;

use self::messages::{
    CONTAINER, Container, ContainerConfig, ContainerSecurityContext, Empty, LinuxContainerConfig,
    LinuxPodSandboxConfig, ListContainersResponse, NamespaceOption, PodSandboxConfig, PodSandboxId,
    PodSandboxMetadata, RunPodSandboxRequest, SecurityContext,
};
pub(crate) use self::pod::Pod;
use self::rpc::Status;
use crate::daemon::Daemon;

/// The CRI plugin of a daemon.
pub(crate) struct Cri<'a> {
    pub(crate) daemon: &'a Daemon,
    socket: PathBuf,
}

impl<'a> Cri<'a> {
    pub(crate) fn of(daemon: &'a Daemon) -> Self {
        Self { daemon, socket: daemon.dir().join("c.sock") }
    }

    #[track_caller]
    fn call_service<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        rpc::call(&self.socket, &format!("/runtime.v1.{method}"), request)
    }

    /// Calls a method of `RuntimeService`.
    #[track_caller]
    pub(crate) fn attempt<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        self.call_service(&format!("RuntimeService/{method}"), request)
    }

    /// Calls a method of `RuntimeService` that has to succeed.
    #[track_caller]
    pub(crate) fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> A {
        self.attempt(method, request).unwrap_or_else(|status| panic!("{method}: {status:?}"))
    }

    /// What asks for a pod of the usual kind: it has its own network and IPC, each container sees only
    /// its own processes.
    pub(crate) fn config(&self, name: &str) -> PodSandboxConfig {
        let namespaces = NamespaceOption { pid: CONTAINER, ..NamespaceOption::default() };
        let security =
            SecurityContext { namespace_options: Some(namespaces), ..SecurityContext::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "test".into(),
            }),
            log_directory: self.daemon.dir().join("logs").join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/berth-test-{}-{name}", std::process::id()),
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Runs a pod with the runtime `handler`, after `change` to its [`Cri::config`].
    #[track_caller]
    pub(crate) fn run(
        &self,
        handler: &str,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Pod<'_> {
        let pod = self.attempt_run(handler, name, change);
        pod.unwrap_or_else(|status| panic!("RunPodSandbox {name}: {status:?}"))
    }

    /// As [`Cri::run`], but it may be refused.
    #[track_caller]
    pub(crate) fn attempt_run(
        &self,
        handler: &str,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod<'_>, Status> {
        let mut config = self.config(name);
        change(&mut config);
        // The same case may have run with another shim.
        let _ = fs::remove_dir_all(&config.log_directory);
        fs::create_dir_all(&config.log_directory).unwrap();
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer: Result<PodSandboxId, _> = self.attempt("RunPodSandbox", &request);
        if answer.is_err() {
            pod::remove_cgroup(&config);
        }
        let id = answer?.id;
        Ok(Pod::new(self, id, config))
    }

    /// All containers, those that ended too.
    #[track_caller]
    pub(crate) fn containers(&self) -> Vec<Container> {
        let answer: ListContainersResponse = self.call("ListContainers", &Empty {});
        answer.containers
    }
}

impl PodSandboxConfig {
    pub(crate) fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.linux.get_or_insert_default()
    }

    pub(crate) fn namespaces(&mut self) -> &mut NamespaceOption {
        let security = self.linux().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default()
    }
}

impl ContainerConfig {
    pub(crate) fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.linux.get_or_insert_default()
    }

    pub(crate) fn security(&mut self) -> &mut ContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }
}

pub(crate) fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
