//! A pod's sandbox as containerd's sandbox controller drives it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::sandbox_api::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, getsid};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedOutputStream, Message, MessageField};
use serde_json::json;

use crate::support::{Answer, Host, Shim, Spec, Stdin, Task, bind, image};

/// A field of a CRI message: a number, a text, or a message in it.
pub enum Field {
    Number(u32, u64),
    Text(u32, String),
    Message(u32, Vec<Field>),
}

pub fn text(number: u32, value: &str) -> Field {
    Field::Text(number, value.into())
}

pub fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    for field in fields {
        match field {
            Field::Number(number, value) => out.write_uint64(*number, *value).unwrap(),
            Field::Text(number, value) => out.write_string(*number, value).unwrap(),
            Field::Message(number, fields) => out.write_bytes(*number, &encode(fields)).unwrap(),
        }
    }
    out.flush().unwrap();
    drop(out);
    bytes
}

/// CRI's `NamespaceMode`.
pub const POD: u64 = 0;
pub const CONTAINER: u64 = 1;
pub const NODE: u64 = 2;

/// How a pod is asked for.
#[derive(Clone)]
pub struct Config {
    pub network: u64,
    pub pid: u64,
    pub ipc: u64,
    pub sysctls: Vec<(&'static str, &'static str)>,
    /// Where the pod's root is on the host, if the pod has users of its own.
    pub user: Option<u64>,
    pub parent: Option<&'static str>,
    pub dns: bool,
}

pub const PLAIN: Config = Config {
    network: POD,
    pid: CONTAINER,
    ipc: POD,
    sysctls: Vec::new(),
    user: None,
    parent: None,
    dns: true,
};

impl Config {
    /// `PodSandboxConfig`, in a cgroup of the host's.
    pub fn any(&self, host: &Host) -> Any {
        let mut spaces = vec![
            Field::Number(1, self.network),
            Field::Number(2, self.pid),
            Field::Number(3, self.ipc),
        ];
        if let Some(outside) = self.user {
            let map = || vec![Field::Number(1, outside), Field::Number(3, 65536)];
            spaces.push(Field::Message(
                5,
                vec![Field::Number(1, POD), Field::Message(2, map()), Field::Message(3, map())],
            ));
        }
        let parent = format!("/berth-test-{}/{}", host.tag(), self.parent.unwrap_or("pod"));
        let mut linux =
            vec![Field::Text(1, parent), Field::Message(2, vec![Field::Message(1, spaces)])];
        for (name, value) in &self.sysctls {
            linux.push(Field::Message(3, vec![text(1, name), text(2, value)]));
        }
        let mut config = vec![text(2, "pod-host"), Field::Message(8, linux)];
        if self.dns {
            let dns = vec![text(1, "10.1.2.3"), text(2, "a.test"), text(3, "ndots:5")];
            config.push(Field::Message(4, dns));
        }
        let (type_url, value) = ("runtime.v1.PodSandboxConfig".into(), encode(&config));
        Any { type_url, value, ..Any::default() }
    }
}

/// A network namespace with a name, as containerd makes it.
pub struct Network(pub PathBuf);

impl Network {
    pub fn new(host: &Host) -> Self {
        let path = host.dir().join("netns");
        File::create(&path).unwrap();
        let place = path.clone();
        let none: Option<&str> = None;
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            mount(Some("/proc/thread-self/ns/net"), &place, none, MsFlags::MS_BIND, none).unwrap();
        })
        .join()
        .unwrap();
        Self(path)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

pub fn call<A: Message>(task: &Task, method: &str, request: &impl Message) -> Answer<A> {
    let payload = request.write_to_bytes().unwrap();
    let reply = task.raw("containerd.runtime.sandbox.v1.Sandbox", method, payload)?;
    Ok(A::parse_from_bytes(&reply).unwrap())
}

/// A sandbox and its shim.
pub struct Pod<'h> {
    pub host: &'h Host,
    pub shim: Shim<'h>,
}

impl<'h> Pod<'h> {
    pub fn new(host: &'h Host) -> Self {
        host.prepare_sandbox("pod");
        Self { host, shim: host.attach("pod", &Stdin::Nothing) }
    }

    /// One that is created and started; the holder's pid too.
    #[track_caller]
    pub fn started(host: &'h Host, config: &Config, network: &str) -> (Self, i32) {
        let pod = Self::new(host);
        pod.create("pod", config, network).unwrap();
        let pid = pod.start().unwrap();
        (pod, pid)
    }

    pub fn create(&self, id: &str, config: &Config, network: &str) -> Answer<()> {
        let request = CreateSandboxRequest {
            sandbox_id: id.into(),
            bundle_path: self.host.bundle("pod").to_str().unwrap().into(),
            options: MessageField::some(config.any(self.host)),
            netns_path: network.into(),
            ..Default::default()
        };
        call::<CreateSandboxResponse>(&self.shim, "CreateSandbox", &request).map(drop)
    }

    pub fn start(&self) -> Answer<i32> {
        let request = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        let answer: StartSandboxResponse = call(&self.shim, "StartSandbox", &request)?;
        assert!(answer.created_at.seconds > 1_700_000_000, "{answer:?}");
        Ok(i32::try_from(answer.pid).unwrap())
    }

    pub fn stop(&self) -> Answer<()> {
        let request = StopSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        call::<StopSandboxResponse>(&self.shim, "StopSandbox", &request).map(drop)
    }

    pub fn ping(&self) -> Answer<()> {
        let request = PingRequest { sandbox_id: "pod".into(), ..Default::default() };
        call::<PingResponse>(&self.shim, "PingSandbox", &request).map(drop)
    }

    pub fn status(&self) -> SandboxStatusResponse {
        let sandbox_id = "pod".into();
        let request = SandboxStatusRequest { sandbox_id, verbose: true, ..Default::default() };
        call(&self.shim, "SandboxStatus", &request).unwrap()
    }

    pub fn wait(&self) -> thread::JoinHandle<Answer<WaitSandboxResponse>> {
        let task = self.shim.task();
        let request = WaitSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        thread::spawn(move || call(&task, "WaitSandbox", &request))
    }

    /// Living processes that hold the pod, or are about to: they are in the daemon's session, and
    /// before the cgroup is theirs nothing else tells whose they are.
    pub fn holders(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let session = getsid(Some(Pid::from_raw(*pid)));
            line.contains("hold-sandbox") && session == Ok(Pid::from_raw(self.shim.pid()))
        })
        .collect()
    }

    /// Ends all as containerd does.
    #[track_caller]
    pub fn end(self) {
        self.stop().unwrap();
        self.shutdown();
    }

    #[track_caller]
    pub fn shutdown(self) {
        let request = ShutdownSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        call::<ShutdownSandboxResponse>(&self.shim, "ShutdownSandbox", &request).unwrap();
        self.shim.wait_gone();
        assert_eq!(self.host.files("pod"), ["address", "rootfs"], "nothing that containerd minds");
        clear_parents(self.host);
    }

    /// A container in the pod's namespaces, as containerd's CRI plugin describes it.
    pub fn spec(&self, script: &str, holder: i32, kinds: &[&str]) -> Spec {
        let path = |kind: &str| {
            json!({"type": kind.replace("net", "network"),
            "path": format!("/proc/{holder}/ns/{kind}")})
        };
        let mut spaces: Vec<_> = kinds.iter().map(|kind| path(kind)).collect();
        spaces.push(json!({"type": "mount"}));
        if !kinds.contains(&"pid") {
            spaces.push(json!({"type": "pid"}));
        }
        let spec = Spec::sh(script).of_pod("pod").set("/linux/namespaces", json!(spaces));
        let spec = spec.set("/annotations/io.kubernetes.cri.container-type", json!("container"));
        let mut spec = spec.set("/root/readonly", json!(false));
        spec.0.as_object_mut().unwrap().remove("hostname");
        let shm = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]});
        spec.0["mounts"].as_array_mut().unwrap().push(shm);
        spec
    }

    /// Creates a container with a root directory of its own that it can write to, as a snapshot is.
    #[track_caller]
    pub fn make(&self, id: &str) {
        self.shim.create(&self.request(id)).unwrap();
    }

    /// The Create of [`Pod::make`].
    #[track_caller]
    pub fn request(&self, id: &str) -> CreateTaskRequest {
        let root = self.host.dir().join("root-of").join(id);
        fs::create_dir_all(root.parent().unwrap()).unwrap();
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(image()).arg(&root).status().unwrap().success());
        let mut request = self.shim.request(id);
        request.rootfs = vec![bind(root.to_str().unwrap(), &["rbind", "rw"])];
        request
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, id: &str) {
        self.make(id);
        self.shim.start(id, "").unwrap();
    }

    /// Runs a container of the pod to its end; what it wrote to `/dev/shm/out`, which is the pod's.
    #[track_caller]
    pub fn output(&self, id: &str, script: &str, holder: i32, kinds: &[&str]) -> String {
        let script = format!("{{ {script}; }} > /dev/shm/out 2>&1");
        self.host.prepare(id, self.spec(&script, holder, kinds));
        let same = self.host.attach(id, &Stdin::Nothing);
        assert_eq!(same.address(), self.shim.address());
        self.run(id);
        let status = self.shim.reap(id, "");
        let output = fs::read_to_string(self.host.bundle("pod").join("pod/shm/out")).unwrap();
        assert_eq!(status, 0, "{output}");
        output
    }
}

/// Removes the pods' cgroups, as a kubelet does; there must be nothing left in them.
#[track_caller]
pub fn clear_parents(host: &Host) {
    for path in host.cgroups() {
        fs::remove_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
