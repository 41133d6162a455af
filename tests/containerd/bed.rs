//! What one case works with: container names of its own, and the check that nothing is left.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::{self, Output};
use crate::counters::Counters;
use crate::daemon::{self, Daemon, EventLog};
use crate::{Shim, host, image};

/// One case's share of a daemon and a shim.
pub(crate) struct Bed<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) shim: Shim,
    pub(crate) namespace: &'a str,
    case: String,
    events: &'a RwEvents,
    /// The names of containers and groups that were handed out.
    names: RefCell<Vec<String>>,
    /// Whether the stock shim may leave its socket.
    socket_excused: Cell<bool>,
}

/// The event log of a namespace; replaced when the daemon is started again.
pub(crate) type RwEvents = std::sync::RwLock<Option<EventLog>>;

/// An event of one container: its topic and what it says.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) body: Value,
}

impl Event {
    /// The topic's last word, with what it is about where that is an exec process.
    pub(crate) fn short(&self) -> String {
        let topic = self.topic.trim_start_matches("/tasks/");
        let container = self.body["container_id"].as_str();
        let process = self.body["exec_id"].as_str().or_else(|| self.body["id"].as_str());
        match process.filter(|id| !id.is_empty() && Some(*id) != container) {
            Some(id) => format!("{topic} {id}"),
            None => topic.to_owned(),
        }
    }

    pub(crate) fn status(&self) -> i64 {
        self.body["exit_status"].as_i64().unwrap_or(0)
    }
}

impl<'a> Bed<'a> {
    pub(crate) fn new(
        daemon: &'a Daemon,
        shim: Shim,
        namespace: &'a str,
        case: &str,
        events: &'a RwEvents,
    ) -> Self {
        Self {
            daemon,
            shim,
            namespace,
            case: case.to_owned(),
            events,
            names: RefCell::default(),
            socket_excused: Cell::default(),
        }
    }

    /// A name for a container or group; what it leaves behind is looked for by this name.
    pub(crate) fn name(&self, suffix: &str) -> String {
        let name = format!("{}-{suffix}", self.case);
        let mut names = self.names.borrow_mut();
        if !names.contains(&name) {
            names.push(name.clone());
        }
        name
    }

    /// How many exec processes may end at once. The stock shim of 1.6 and 1.7 takes seconds for
    /// thirty and minutes for a hundred.
    pub(crate) fn many_execs(&self) -> usize {
        let slow = self.shim == Shim::Stock && self.daemon.version.starts_with("1.");
        if slow { crate::many().min(20) } else { crate::many() }
    }

    /// `ctr` with `arguments`.
    #[track_caller]
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Output {
        command::run(self.command().args(arguments), b"")
    }

    pub(crate) fn command(&self) -> Command {
        self.daemon.ctr(self.namespace)
    }

    /// `ctr run` of `program` in container `id`, not yet started.
    pub(crate) fn run_command(&self, flags: &[&str], id: &str, program: &[&str]) -> Command {
        let mut command = self.command();
        command.arg("run").args(self.daemon.run_flags(self.shim));
        command.arg("--fifo-dir").arg(self.daemon.fifo_dir());
        command.args(flags).args([image::NAME, id]).args(program);
        command
    }

    /// Runs `program` in container `id` to its end and removes it.
    #[track_caller]
    pub(crate) fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Output {
        command::run(&mut self.run_command(&[flags, &["--rm"]].concat(), id, program), b"")
    }

    /// Like [`Bed::run`], for a `script` that prints something on its standard output and waits
    /// for the end of its input then, which comes when `expected` has arrived.
    #[track_caller]
    pub(crate) fn run_printing(&self, id: &str, script: &str, expected: &str) -> Output {
        let mut run = self.run_command(&["--rm"], id, &["sh", "-c", script]);
        command::run_fed(&mut run, b"", |[stdout, _]| {
            stdout.wait(|text| text == expected.as_bytes());
        })
    }

    /// Starts `program` in container `id` and leaves it running; returns its pid.
    #[track_caller]
    pub(crate) fn start(&self, flags: &[&str], id: &str, program: &[&str]) -> i32 {
        let flags = [flags, &["--detach", "--null-io"]].concat();
        command::run(&mut self.run_command(&flags, id, program), b"").ok();
        self.init_pid(id)
    }

    /// The command of an exec process `exec` in container `id`.
    pub(crate) fn exec_command(
        &self,
        flags: &[&str],
        id: &str,
        exec: &str,
        program: &[&str],
    ) -> Command {
        let mut command = self.command();
        command.args(["task", "exec", "--exec-id", exec]);
        command.arg("--fifo-dir").arg(self.daemon.fifo_dir());
        command.args(flags).arg(id).args(program);
        command
    }

    #[track_caller]
    pub(crate) fn exec(&self, id: &str, exec: &str, program: &[&str]) -> Output {
        command::run(&mut self.exec_command(&[], id, exec, program), b"")
    }

    #[track_caller]
    pub(crate) fn kill(&self, id: &str, signal: &str) {
        self.ctr(&["task", "kill", "--signal", signal, id]).ok();
    }

    /// Kills container `id`, waits for its end, deletes task and container.
    #[track_caller]
    pub(crate) fn remove(&self, id: &str) {
        if self.state(id).as_deref() == Some("RUNNING") {
            self.kill(id, "SIGKILL");
        }
        self.await_state(id, "STOPPED");
        self.delete(id);
    }

    /// Deletes the task and the container of a finished `id`.
    #[track_caller]
    pub(crate) fn delete(&self, id: &str) {
        self.ctr(&["task", "delete", id]).ok();
        self.ctr(&["container", "delete", id]).ok();
    }

    /// The line of `ctr task list` for `id`: pid and state.
    fn listed(&self, id: &str) -> Option<(i32, String)> {
        let list = self.ctr(&["task", "list"]).ok();
        list.lines().find_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words[0] == id).then(|| (words[1].parse().unwrap(), words[2].to_owned()))
        })
    }

    pub(crate) fn state(&self, id: &str) -> Option<String> {
        self.listed(id).map(|(_, state)| state)
    }

    #[track_caller]
    pub(crate) fn init_pid(&self, id: &str) -> i32 {
        self.listed(id).unwrap_or_else(|| panic!("no task {id}")).0
    }

    #[track_caller]
    pub(crate) fn await_state(&self, id: &str, expected: &str) {
        let mut last = None;
        command::until(&format!("{id} is {expected}"), || {
            last = self.state(id);
            (last.as_deref() == Some(expected)).then_some(())
        });
    }

    /// The task events of container `id` up to now, in the order of their arrival.
    pub(crate) fn events(&self, id: &str) -> Vec<Event> {
        let log = self.events.read().unwrap();
        let text = log.as_ref().unwrap().text();
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let parsed = complete.lines().filter_map(|line| {
            let start = line.find(" /tasks/")? + 1;
            let (topic, json) = line[start..].split_once(' ')?;
            let body: Value = serde_json::from_str(json).unwrap();
            (body["container_id"] == id).then(|| Event { topic: topic.to_owned(), body })
        });
        parsed.collect()
    }

    /// Waits until the events of container `id` are `expected`, by their short names and in this
    /// order. The stock shim may end before its last one, `delete`, is delivered.
    #[track_caller]
    pub(crate) fn expect_events(&self, id: &str, expected: &[&str]) {
        let counts = |short: &str| self.shim == Shim::Berth || short != "delete";
        let expected: Vec<_> = expected.iter().filter(|short| counts(short)).collect();
        let mut seen = Vec::new();
        command::poll(|| {
            let all = self.events(id).into_iter().map(|event| event.short());
            seen = all.filter(|short| counts(short)).collect();
            (seen.len() >= expected.len()).then_some(())
        });
        assert!(seen.iter().eq(expected.iter().copied()), "{seen:?} are not {expected:?}");
    }

    /// Waits for the event whose short name is `short`.
    #[track_caller]
    pub(crate) fn await_event(&self, id: &str, short: &str) -> Event {
        command::until(&format!("event {short:?} of {id}"), || {
            self.events(id).into_iter().find(|event| event.short() == short)
        })
    }

    /// Ends the daemon with `signal`, does `between`, and starts it again.
    pub(crate) fn restart(&self, signal: &str, between: impl FnOnce()) {
        let mut events = self.events.write().unwrap();
        *events = None;
        self.daemon.stop(signal);
        between();
        self.daemon.start_again();
        *events = Some(EventLog::start(self.daemon, self.namespace));
    }

    /// Kills a shim. The `delete` of the stock one does not remove the socket.
    pub(crate) fn kill_shim(&self, shim: i32) {
        self.excuse_stock_socket();
        host::signal(shim, "KILL");
    }

    /// Overlooks a socket that the stock shim leaves; berth's has to be gone in any case.
    pub(crate) fn excuse_stock_socket(&self) {
        self.socket_excused.set(self.shim == Shim::Stock);
    }

    /// What the kernel counts for container `id`, which `ctr` started.
    pub(crate) fn counters(&self, id: &str) -> Counters {
        Counters::of(&format!("{}/{id}", self.namespace))
    }

    /// The shim that started process `pid`.
    pub(crate) fn shim_of(&self, pid: i32) -> i32 {
        host::parent(pid)
    }

    /// Waits until nothing is left of the names handed out; panics with what is.
    #[track_caller]
    pub(crate) fn check_clean(&self) {
        if self.socket_excused.get() {
            self.remove_sockets();
        }
        let mut left = Vec::new();
        let clean = command::poll(|| {
            left = self.names.borrow().iter().flat_map(|name| self.traces(name)).collect();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind: {}", left.join(", "));
    }

    fn remove_sockets(&self) {
        for name in self.names.borrow().iter() {
            let _ = fs::remove_file(self.daemon.shim_socket(self.namespace, name));
        }
    }

    /// Every trace of a container or group on this machine.
    fn traces(&self, name: &str) -> Vec<String> {
        let mut found = self.processes(name);
        let here = self.daemon.dir();
        let mounts = host::mounts(&format!("/{name}/")).into_iter();
        let mounts = mounts.filter(|path| Path::new(path).starts_with(here));
        found.extend(mounts.map(|path| format!("mount {path}")));
        let mut paths = host::cgroups(&format!("{}/{name}", self.namespace));
        paths.extend(host::runtime_states(self.namespace, name));
        paths.extend(self.fifos(name));
        paths.push(self.daemon.shim_socket(self.namespace, name));
        paths.push(self.daemon.bundles(self.namespace).join(name));
        paths.retain(|path| path.exists());
        found.extend(paths.into_iter().map(|path| path.display().to_string()));
        found
    }

    /// Shims and container processes of `name` in this daemon.
    fn processes(&self, name: &str) -> Vec<String> {
        let dir = self.daemon.dir().display().to_string();
        let cgroup = format!("/{}/{name}\n", self.namespace);
        let argument = format!(" {name} ");
        let processes = host::processes().into_iter();
        processes
            .filter(|process| {
                let here = process.mentions(&argument) && process.mentions(&dir);
                here || process.mentions(&cgroup)
            })
            .map(|process| process.describe())
            .collect()
    }

    /// The FIFOs that the client made for `name` and that nobody removed.
    fn fifos(&self, name: &str) -> Vec<PathBuf> {
        let dirs = fs::read_dir(self.daemon.fifo_dir()).unwrap().filter_map(Result::ok);
        let files = dirs.filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten();
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        paths
            .filter(|path| {
                path.file_name().unwrap().to_string_lossy().starts_with(&format!("{name}-"))
            })
            .collect()
    }

    /// Removes by force what a failed case left.
    pub(crate) fn sweep(&self) {
        self.remove_sockets();
        for name in self.names.borrow().iter() {
            self.ctr(&["task", "kill", "--signal", "SIGKILL", name]);
            self.ctr(&["task", "delete", "--force", name]);
            self.ctr(&["container", "delete", name]);
            daemon::sweep(&format!("/{}/{name}\n", self.namespace));
            daemon::sweep(&format!("/{}/{name}", self.namespace));
            for path in host::runtime_states(self.namespace, name) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}
