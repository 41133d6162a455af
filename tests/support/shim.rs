//! A running shim daemon, as containerd sees it.

use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse, ExecProcessRequest, Mount};
use containerd_shim_protos::shim::oci::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::Value;

use super::rpc::{Answer, spec_any};
use super::{Api, Host, Reader, Stdin, Task, eventually, spec};

/// A connection to a daemon, with shorthands for the container it was started for.
pub struct Shim<'h> {
    host: &'h Host,
    id: String,
    address: String,
    pid: i32,
    log: Reader,
    task: Task,
}

impl std::ops::Deref for Shim<'_> {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

/// What the `delete` subcommand answered.
#[derive(Debug)]
pub struct Deleted {
    pub response: DeleteResponse,
    pub took: Duration,
}

impl<'h> Shim<'h> {
    pub(super) fn connect(host: &'h Host, id: &str, address: String, log: Reader) -> Self {
        let task = Task::connect(&address, Api::V3).expect(&address);
        let mut tasks = host.apis().iter().map(|&api| task.speaking(api));
        let answers = |task: Task| Some((task.ask(id).ok()?.shim_pid, task));
        let (pid, task) = tasks.find_map(answers).expect("an answer of the shim");
        let pid = i32::try_from(pid).unwrap();
        Self { host, id: id.into(), address, pid, log, task }
    }

    /// Where it runs.
    pub fn host(&self) -> &'h Host {
        self.host
    }

    /// The address that `start` printed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The daemon's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What the daemon wrote to the `log` FIFO.
    pub fn log(&self) -> &Reader {
        &self.log
    }

    /// The connection, to be used from another thread.
    pub fn task(&self) -> Task {
        self.task.clone()
    }

    /// [`Host::request`].
    pub fn request(&self, id: &str) -> CreateTaskRequest {
        self.host.request(id)
    }

    /// [`Host::options`].
    pub fn options(&self, change: impl FnOnce(&mut Options)) -> Any {
        self.host.options(change)
    }

    /// Creates container `id` without stdio; its pid.
    pub fn create_plain(&self, id: &str) -> Answer<u32> {
        self.create(&self.request(id))
    }

    /// Creates and starts container `id` without stdio; its pid.
    #[track_caller]
    pub fn run(&self, id: &str) -> u32 {
        let pid = self.create_plain(id).unwrap();
        assert_eq!(self.start(id, "").unwrap(), pid);
        pid
    }

    /// Exec of `script` without stdio in container `id`.
    pub fn exec_request(&self, id: &str, exec: &str, script: &str) -> ExecProcessRequest {
        self.exec_process(id, exec, spec::process(script))
    }

    /// Exec of a runtime-spec `Process` without stdio in container `id`.
    pub fn exec_process(&self, id: &str, exec: &str, mut process: Value) -> ExecProcessRequest {
        spec::mark(&mut process, self.host.tag());
        let spec = MessageField::some(spec_any("Process", &process));
        ExecProcessRequest { id: id.into(), exec_id: exec.into(), spec, ..Default::default() }
    }

    /// Adds and starts an exec process that runs `script`; its pid.
    pub fn exec_run(&self, id: &str, exec: &str, script: &str) -> Answer<u32> {
        self.exec(&self.exec_request(id, exec, script))?;
        self.start(id, exec)
    }

    /// Waits for the process, deletes it, and returns its exit status.
    #[track_caller]
    pub fn reap(&self, id: &str, exec: &str) -> u32 {
        let waited = self.wait(id, exec).unwrap();
        let deleted = self.delete(id, exec).unwrap();
        assert_eq!(waited.exit_status, deleted.exit_status);
        assert_eq!(waited.exited_at, deleted.exited_at);
        deleted.exit_status
    }

    /// Kills and deletes container `id`.
    #[track_caller]
    pub fn remove(&self, id: &str) -> u32 {
        drop(self.kill_all(id, libc::SIGKILL));
        self.reap(id, "")
    }

    /// Kills and deletes the shim's own container, then ends the daemon.
    #[track_caller]
    pub fn end(self) {
        self.remove(&self.id);
        self.stop();
    }

    /// Ends a daemon that has no containers.
    #[track_caller]
    pub fn stop(self) {
        drop(self.shutdown(&self.id)); // the connection may close before the answer is read
        self.wait_gone();
    }

    /// Waits until the daemon has ended.
    #[track_caller]
    pub fn wait_gone(&self) {
        eventually("the daemon's end", || (!self.alive()).then_some(()));
    }

    /// Whether the daemon lives.
    pub fn alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// Kills the daemon as a crash does.
    pub fn crash(&self) {
        self.signal(Signal::SIGKILL);
        self.wait_gone();
    }

    /// Another connection to the daemon.
    pub fn reconnect(&self) -> Task {
        Task::connect(&self.address, self.task.api()).unwrap()
    }

    /// What the daemon's descriptors are, sorted, without the numbers of pipes and sockets, and without
    /// the management socket, which comes at a time of its own.
    pub fn descriptors(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        let dir = self.host.management_dir().display().to_string();
        let inodes: Vec<_> = table
            .lines()
            .filter(|line| line.contains(&dir))
            .filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(6)?)))
            .collect();
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().flatten();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let names = targets.map(|path| path.display().to_string());
        let names = names.filter(|name| !inodes.contains(name));
        let mut names: Vec<_> = names.map(|name| name.split('[').next().unwrap().into()).collect();
        names.sort();
        names
    }
}

impl Host {
    /// Create for container `id` with a read-only bind mount of the image, and no stdio.
    pub fn request(&self, id: &str) -> CreateTaskRequest {
        let mount = bind(super::image().to_str().unwrap(), &["rbind", "ro"]);
        let bundle = self.bundle(id).to_str().unwrap().into();
        let options = MessageField::some(self.options(|_| {}));
        let rootfs = vec![mount];
        CreateTaskRequest { id: id.into(), bundle, rootfs, options, ..Default::default() }
    }

    /// The runc options of every Create, after `change`.
    pub fn options(&self, change: impl FnOnce(&mut Options)) -> Any {
        let root = self.root().to_str().unwrap().into();
        let mut options = Options { binary_name: self.runtime(), root, ..Default::default() };
        change(&mut options);
        let value = options.write_to_bytes().unwrap();
        Any { type_url: "containerd.runc.v1.Options".into(), value, ..Default::default() }
    }

    /// Runs the `delete` subcommand for container `id` as containerd does after a crash.
    #[track_caller]
    pub fn delete(&self, id: &str) -> Deleted {
        let (output, took) = super::timed(|| self.run(id, "delete", &Stdin::Nothing));
        assert!(output.status.success(), "delete {id}: {output:?}");
        let response = DeleteResponse::parse_from_bytes(&output.stdout)
            .unwrap_or_else(|error| panic!("delete {id}: {error}: {output:?}"));
        Deleted { response, took }
    }
}

/// A bind mount of `source`.
pub fn bind(source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    Mount { type_: "bind".into(), source: source.into(), options, ..Default::default() }
}
