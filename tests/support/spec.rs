//! config.json of a test container.

use std::path::Path;

use serde_json::{Value, json};

/// A config.json in the making: busybox in private namespaces, a read-only rootfs, no network.
#[derive(Clone)]
pub struct Spec(pub Value);

impl Spec {
    /// A container that runs `script` with busybox's shell.
    pub fn sh(script: &str) -> Self {
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
        let dev = ["nosuid", "mode=755"];
        let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
        Self(json!({
            "ociVersion": "1.0.2",
            "process": process(script),
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "berth",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": dev},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
            ],
            "annotations": {},
            "linux": {"namespaces": namespaces, "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
        }))
    }

    /// A container that stays until it is killed, and ends at once on SIGTERM.
    pub fn idle() -> Self {
        Self::sh("trap 'exit 143' TERM; sleep 1000 & wait")
    }

    /// Sets the field that `pointer` (RFC 6901) names; its parent must exist.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        self.0.pointer_mut(parent).expect(pointer).as_object_mut().unwrap().insert(key, value);
        self
    }

    /// Puts the container into the pod of `sandbox`, as CRI's annotations do.
    pub fn of_pod(self, sandbox: &str) -> Self {
        self.set("/annotations/io.kubernetes.cri.sandbox-id", json!(sandbox))
    }

    /// Gives the process a terminal.
    pub fn terminal(self) -> Self {
        self.set("/process/terminal", json!(true))
    }

    /// Writes it for container `id`, marked with `tag` and, unless it has a path already, in the
    /// cgroup `/berth-test-TAG/ID`.
    pub(super) fn write(mut self, bundle: &Path, tag: &str, id: &str) {
        if self.0.pointer("/linux/cgroupsPath").is_none() {
            self = self.set("/linux/cgroupsPath", json!(format!("/berth-test-{tag}/{id}")));
        }
        mark(&mut self.0["process"], tag);
        std::fs::write(bundle.join("config.json"), self.0.to_string()).unwrap();
    }
}

/// A process that runs `script` with busybox's shell as root with few capabilities.
pub(super) fn process(script: &str) -> Value {
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"];
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    })
}

/// Adds the mark by which the leak guard finds the process.
pub(super) fn mark(process: &mut Value, tag: &str) {
    if let Some(env) = process["env"].as_array_mut() {
        env.push(json!(format!("BERTH_TEST_TAG={tag}")));
    }
}
