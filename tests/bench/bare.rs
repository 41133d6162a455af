//! The floor: the OCI runtime called as a shim calls it, and nothing else.

use std::fs;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::support::{Host, Spec, image};

/// A container without a shim. This process has to be a sub-reaper, as shims are.
pub(crate) struct Bare<'h> {
    host: &'h Host,
    id: &'h str,
    runtime: String,
}

impl<'h> Bare<'h> {
    /// Makes the bundle, with its rootfs mounted, of a container `id` that `spec` describes.
    pub(crate) fn new(host: &'h Host, id: &'h str, spec: Spec) -> Self {
        host.prepare(id, spec);
        let (rootfs, flags) = (host.bundle(id).join("rootfs"), MsFlags::MS_BIND | MsFlags::MS_REC);
        mount(Some(image()), &rootfs, None::<&str>, flags, None::<&str>).unwrap();
        Self { host, id, runtime: host.runtime() }
    }

    /// Creates and starts the container; its init process.
    pub(crate) fn run(&self) -> Pid {
        let bundle = self.host.bundle(self.id);
        let bundle = bundle.to_str().unwrap();
        self.call(&["create", "--bundle", bundle, "--pid-file", "init.pid", self.id]);
        self.call(&["start", self.id]);
        self.pid("init.pid")
    }

    /// Runs a process in the container to its end.
    pub(crate) fn exec(&self, process: &serde_json::Value) {
        fs::write(self.host.bundle(self.id).join("exec.json"), process.to_string()).unwrap();
        let pid_file = ["--detach", "--pid-file", "exec.pid"];
        self.call(&[&["exec", "--process", "exec.json"], &pid_file[..], &[self.id]].concat());
        waitpid(self.pid("exec.pid"), None).unwrap();
    }

    /// Removes the container, whose init process has ended and was waited for.
    pub(crate) fn delete(&self) {
        self.call(&["delete", self.id]);
    }

    fn pid(&self, name: &str) -> Pid {
        let text = fs::read_to_string(self.host.bundle(self.id).join(name)).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }

    fn call(&self, args: &[&str]) {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.host.root().join("tests"));
        command.args(["--log", "log.json", "--log-format", "json"]).args(args);
        command.current_dir(self.host.bundle(self.id)).env("GOMAXPROCS", "2");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{} {args:?}", self.runtime);
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        umount2(&self.host.bundle(self.id).join("rootfs"), MntFlags::MNT_DETACH).unwrap();
    }
}
