//! containerd's CRI plugin, driven as a kubelet does it.

mod messages;
mod rpc;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use prost::Message;

use self::messages::{
    ContainerConfig, ContainerId, ContainerMetadata, ContainerSecurityContext, ContainerStatus,
    ContainerStatusResponse, CreateContainerRequest, EXITED, Empty, ExecSyncRequest,
    ExecSyncResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, LinuxContainerConfig,
    LinuxPodSandboxConfig, NODE, NamespaceOption, PodSandboxConfig, PodSandboxId,
    PodSandboxMetadata, RunPodSandboxRequest, SecurityContext,
};
use self::rpc::Status;
use crate::bed::Bed;
use crate::daemon::{self, Daemon};
use crate::recorder::Recorder;
use crate::{Case, Runtime, command, config, host, image, own};

pub(crate) const CASES: &[Case] = &[own("cri-runtimes", runtimes)];

/// The image of the pods' own containers, which only wait.
const PAUSE: &str = "berth.test/pause:1";
/// containerd's namespace of all pods.
const NAMESPACE: &str = "k8s.io";
/// What the private daemon does not need.
const DISABLED: &[&str] = &["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"];

/// A containerd with the CRI plugin.
struct Cri {
    daemon: Daemon,
    socket: PathBuf,
    cgroup: Cgroup,
}

/// The parent of all pods' cgroups, without its slash; removed when dropped.
struct Cgroup(String);

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in host::cgroups(&self.0) {
            host::remove_children(&path);
            let _ = fs::remove_dir(path);
        }
    }
}

impl Cri {
    /// Starts one for `bed` in `dir`; `handlers` are entries of its table `runtimes`, as TOML whose
    /// table names begin with `@`, and `default` is one of them.
    fn start(bed: &Bed<'_>, dir: &Path, default: &str, handlers: &str) -> Self {
        fs::create_dir_all(dir.join("bin")).unwrap();
        // Clients that want runc's shim send runc's options, and get berth.
        let berth = Path::new(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
        symlink(berth, dir.join("bin/containerd-shim-runc-v2")).unwrap();
        let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
        let config = format!(
            "{basis}\
             [plugins.\"io.containerd.nri.v1.nri\"]\n\
             disable = true\n\
             [{plugin}]\n\
             sandbox_image = {PAUSE:?}\n\
             restrict_oom_score_adj = true\n\
             disable_apparmor = true\n\
             tolerate_missing_hugetlb_controller = true\n\
             netns_mounts_under_state_dir = true\n\
             [{plugin}.containerd]\n\
             default_runtime_name = {default:?}\n\
             [{plugin}.cni]\n\
             conf_dir = {nothing:?}\n\
             bin_dir = {nothing:?}\n\
             {handlers}",
            basis = daemon::config(dir, DISABLED),
            nothing = dir.join("cni"),
            handlers = handlers.replace('@', &format!("{plugin}.containerd.runtimes.")),
        );
        let version = &bed.daemon.version;
        let programs = bed.daemon.programs();
        let daemon = Daemon::start_with(version, programs, Runtime::Runc, dir, &config);
        for (name, program) in [(PAUSE, &["sleep", "100000"][..]), (image::NAME, &["sh"])] {
            let archive = image::write_named(&dir.join(image::hex(name.as_bytes())), name, program);
            let mut import = daemon.ctr(NAMESPACE);
            command::run(import.args(["image", "import"]).arg(archive), b"").ok();
        }
        let cgroup = Cgroup(format!("berth-test-{}-cri", std::process::id()));
        let cri = Self { socket: dir.join("c.sock"), daemon, cgroup };
        let served: Result<Empty, _> = cri.call_service("RuntimeService/Version", &Empty {});
        assert!(served.is_ok(), "no CRI: {served:?}, {}", cri.daemon.log_about("cri"));
        command::until("the image is known", || {
            let image = Some(ImageSpec { image: image::NAME.into() });
            let request = ImageStatusRequest { image };
            let answer = cri.call_service("ImageService/ImageStatus", &request);
            answer.ok().and_then(|known: ImageStatusResponse| known.image)
        });
        cri
    }

    #[track_caller]
    fn call_service<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        rpc::call(&self.socket, &format!("/runtime.v1.{method}"), request)
    }

    /// Calls a method of `RuntimeService` that has to succeed.
    #[track_caller]
    fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> A {
        let answer = self.call_service(&format!("RuntimeService/{method}"), request);
        answer.unwrap_or_else(|status| panic!("{method}: {status:?}"))
    }

    /// Runs a pod on the host's network with the runtime `handler`.
    fn run_pod(&self, handler: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>, Status> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let network = Some(NamespaceOption { network: NODE });
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: handler.into(),
                uid: format!("uid-{handler}"),
                namespace: "test".into(),
            }),
            annotations: annotations.iter().map(owned).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.cgroup.0),
                security_context: Some(SecurityContext { namespace_options: network }),
            }),
            ..PodSandboxConfig::default()
        };
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer: PodSandboxId = self.call_service("RuntimeService/RunPodSandbox", &request)?;
        Ok(Pod { cri: self, id: answer.id, config })
    }

    /// Stops the daemon; fails if anything is left of its pods.
    fn end(self) {
        for path in host::cgroups(&self.cgroup.0) {
            fs::remove_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        host::remove_namespace(NAMESPACE);
        let left = self.daemon.end();
        assert!(left.is_empty(), "left behind: {}", left.join(", "));
    }
}

/// A pod that runs.
struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
}

impl Pod<'_> {
    /// Starts `program` in a container of the pod; returns its id.
    #[track_caller]
    fn start(&self, name: &str, program: &[&str]) -> String {
        let network = Some(NamespaceOption { network: NODE });
        let context = ContainerSecurityContext { namespace_options: network };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(ImageSpec { image: image::NAME.into() }),
            command: owned(program),
            annotations: HashMap::new(),
            linux: Some(LinuxContainerConfig { security_context: Some(context) }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let container: ContainerId = self.cri.call("CreateContainer", &request);
        let _: Empty = self.cri.call("StartContainer", &container);
        container.id
    }

    /// Runs `program` in a container to its end.
    #[track_caller]
    fn exec(&self, container: &str, program: &[&str]) -> ExecSyncResponse {
        let request =
            ExecSyncRequest { container_id: container.into(), cmd: owned(program), timeout: 20 };
        self.cri.call("ExecSync", &request)
    }

    #[track_caller]
    fn status(&self, container: &str) -> ContainerStatus {
        let request = ContainerId { id: container.into() };
        let answer: ContainerStatusResponse = self.cri.call("ContainerStatus", &request);
        answer.status.unwrap()
    }

    /// Stops and removes the pod with all its containers.
    #[track_caller]
    fn remove(self) {
        let request = PodSandboxId { id: self.id };
        let _: Empty = self.cri.call("StopPodSandbox", &request);
        let _: Empty = self.cri.call("RemovePodSandbox", &request);
        let socket = self.cri.daemon.shim_socket(NAMESPACE, &request.id);
        command::until("the shim's socket is gone", || (!socket.exists()).then_some(()));
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Each way of a handler to say which runtime: an options table in the plugin's CamelCase, the path
/// of a configuration, runc's options, and the pod's annotation.
fn runtimes(bed: &Bed<'_>) {
    let dir = bed.daemon.dir().join("cri");
    let names = ["table", "file", "options", "annotated"];
    let [table, file, options, annotated] = names.map(|name| Recorder::write(&dir, name, 0));
    let [_, path] = config::write(
        &dir.join("file.toml"),
        &format!(
            "default_runtime = \"file\"\n\
             runtimes.file.path = {:?}\n\
             runtimes.annotated.path = {:?}\n",
            file.program, annotated.program,
        ),
    );
    let handlers = format!(
        "[@table]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         pod_annotations = [\"io.containerd.berth.*\"]\n\
         [@table.options]\n\
         DefaultRuntime = \"table\"\n\
         [@table.options.Runtimes.table]\n\
         Path = {:?}\n\
         Root = {:?}\n\
         [@file]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         pod_annotations = [\"io.containerd.berth.*\"]\n\
         [@file.options]\n\
         ConfigPath = {path:?}\n\
         [@options]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [@options.options]\n\
         BinaryName = {:?}\n\
         Root = {:?}\n\
         [@wrong]\n\
         runtime_type = \"io.containerd.berth.v1\"\n\
         [@wrong.options]\n\
         DefaultRuntim = \"table\"\n",
        table.program,
        dir.join("table-root"),
        options.program,
        dir.join("options-root"),
    );
    let cri = Cri::start(bed, &dir, "file", &handlers);
    let annotation = ("io.containerd.berth.runtime", "annotated");
    let rows = [
        ("table", None, &table, Some("table-root")),
        ("file", None, &file, None),
        ("options", None, &options, Some("options-root")),
        ("file", Some(annotation), &annotated, None),
    ];
    // The plugin of 1.6 hands a path on, but no table.
    let tables = cri.daemon.version != "1.6";
    for (handler, annotation, recorder, root) in
        rows.into_iter().filter(|(handler, ..)| tables || *handler != "table")
    {
        let pod = cri.run_pod(handler, annotation.as_slice()).unwrap();
        let container = pod.start("c", &["sh", "-c", "sleep 1000"]);
        let exec = pod.exec(&container, &["sh", "-c", "echo inside; exit 6"]);
        assert_eq!((exec.exit_code, &*exec.stdout), (6, &b"inside\n"[..]), "{handler}");
        let second = pod.start("d", &["sh", "-c", "exit 3"]);
        let ended = command::until("the container ends", || {
            Some(pod.status(&second)).filter(|status| status.state == EXITED)
        });
        assert_eq!(ended.exit_code, 3, "{handler}");
        let id = pod.id.clone();
        pod.remove();
        let commands = recorder.commands(&container);
        let own = owned(&["create", "start", "exec"]);
        assert!(commands.starts_with(&own), "{handler}: {commands:?}");
        let commands = recorder.commands(&id);
        assert!(commands.starts_with(&own[..2]), "{handler}: {commands:?}");
        for call in recorder.calls(&container) {
            let root = root.map(|root| dir.join(root).display().to_string());
            let used = root.is_none_or(|root| call.args.contains(&format!("{root}/{NAMESPACE}")));
            assert!(used, "{handler}: {call:?}");
        }
    }
    if tables {
        let refused = cri.run_pod("wrong", &[]).err().expect("a wrong table is refused");
        let told = ["create option ConfigBody", "\"default_runtime\""];
        assert!(told.iter().all(|part| refused.message.contains(part)), "{refused:?}");
    }
    runc_flags(&cri, &dir);
    cri.end();
}

/// `ctr run --runc-binary --runc-root`, from which ctr makes runc's options where the shim bears the
/// name of runc's.
fn runc_flags(cri: &Cri, dir: &Path) {
    let recorder = Recorder::write(dir, "flags", 0);
    let root = dir.join("flags-root").display().to_string();
    let mut run = cri.daemon.ctr(NAMESPACE);
    run.args(["run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-root", &root]);
    run.arg("--runc-binary").arg(&recorder.program).arg("--fifo-dir").arg(cri.daemon.fifo_dir());
    let output = command::run(run.args([image::NAME, "cri-flags", "sh", "-c", "exit 8"]), b"");
    assert_eq!(output.status, 8, "{}", output.stderr);
    assert_eq!(recorder.commands("cri-flags"), ["create", "start", "delete"]);
    for call in recorder.calls("cri-flags") {
        assert!(call.args.contains(&format!("{root}/{NAMESPACE}")), "{call:?}");
    }
}
