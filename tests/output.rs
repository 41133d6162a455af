//! Output and input in full: each byte once and in order, whichever way a stream takes and whoever
//! reads it when.

mod flow;
mod idle;
mod input;
mod terminal;
mod unread;
mod ways;
mod whole;

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::support::{Host, Shim, Spec, Streams};

const INPUT: [bool; 3] = [true, true, false];
const OUTPUT: [bool; 3] = [false, true, false];

/// The ways from an init process to its FIFO, each with the configuration that takes it. Exec processes
/// have the relay in any case.
const WAYS: [(&str, &str); 3] = [
    ("handed over", ""),
    ("relay", "[io]\nhandover = false\n"),
    ("relay with a file", "[io]\nspill = \"64MiB\"\n"),
];

/// Makes a process wait until [`open_gate`].
const GATE: &str = "until [ -e /tmp/open ]; do sleep 0.02; done;";

/// A host with a directory that its containers see as `/tmp`.
fn host(config: &str) -> Host {
    let host = Host::new().configured(config);
    fs::create_dir(gate(&host)).unwrap();
    host
}

/// Starts the daemon with container `c`, which idles.
fn idle(host: &Host) -> Shim<'_> {
    let shim = host.start("c", with_gate(host, Spec::idle()));
    shim.run("c");
    shim
}

fn gate(host: &Host) -> PathBuf {
    host.dir().join("gate")
}

fn open_gate(host: &Host) {
    fs::write(gate(host).join("open"), "").unwrap();
}

fn close_gate(host: &Host) {
    fs::remove_file(gate(host).join("open")).unwrap();
}

fn with_gate(host: &Host, spec: Spec) -> Spec {
    let mut mounts = spec.0["mounts"].as_array().unwrap().clone();
    let (kind, options) = ("bind", ["rbind", "rw"]);
    let (source, destination) = (gate(host), "/tmp");
    mounts.push(json!({
        "destination": destination, "type": kind, "source": source, "options": options,
    }));
    spec.set("/mounts", json!(mounts))
}

/// A process of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Init,
    Exec,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Init, Self::Exec];
}

/// A process on FIFOs.
struct Process<'s, 'h> {
    shim: &'s Shim<'h>,
    id: String,
    exec: String,
    pid: u32,
}

impl<'s, 'h> Process<'s, 'h> {
    /// Runs `script`, as the init process of a container of its own or as an exec process of container
    /// `c`.
    #[track_caller]
    fn start(shim: &'s Shim<'h>, kind: Kind, name: &str, script: &str, streams: &Streams) -> Self {
        let mut process = Self::describe(shim, kind, name, script, streams);
        process.run();
        process
    }

    /// As [`Process::start`], but it does not run yet.
    #[track_caller]
    fn describe(
        shim: &'s Shim<'h>,
        kind: Kind,
        name: &str,
        script: &str,
        streams: &Streams,
    ) -> Self {
        Self::make(shim, kind, name, &Spec::sh(script), streams)
    }

    /// Runs `script` on a terminal.
    #[track_caller]
    fn on_terminal(
        shim: &'s Shim<'h>,
        kind: Kind,
        name: &str,
        script: &str,
        streams: &Streams,
    ) -> Self {
        let mut process = Self::make(shim, kind, name, &Spec::sh(script).terminal(), streams);
        process.run();
        process
    }

    fn make(shim: &'s Shim<'h>, kind: Kind, name: &str, spec: &Spec, streams: &Streams) -> Self {
        let process = &spec.0["process"];
        let terminal = process["terminal"] == true;
        if kind == Kind::Exec {
            let mut request = shim.exec_process("c", name, process.clone());
            streams.to_exec(&mut request);
            request.terminal = terminal;
            shim.exec(&request).unwrap();
            return Self { shim, id: "c".into(), exec: name.into(), pid: 0 };
        }
        shim.host().prepare(name, with_gate(shim.host(), spec.clone()));
        let mut request = shim.request(name);
        streams.to_create(&mut request);
        request.terminal = terminal;
        let pid = shim.create(&request).unwrap();
        Self { shim, id: name.into(), exec: String::new(), pid }
    }

    #[track_caller]
    fn run(&mut self) {
        self.pid = self.shim.start(&self.id, &self.exec).unwrap();
    }

    #[track_caller]
    fn close_stdin(&self) {
        self.shim.close_stdin(&self.id, &self.exec).unwrap();
    }

    #[track_caller]
    fn kill(&self) {
        self.shim.kill(&self.id, &self.exec, libc::SIGKILL).unwrap();
    }

    /// Waits for its end; its exit status.
    #[track_caller]
    fn wait(&self) -> u32 {
        self.shim.wait(&self.id, &self.exec).unwrap().exit_status
    }

    /// Waits for its end and deletes it; its exit status.
    #[track_caller]
    fn reap(&self) -> u32 {
        self.shim.reap(&self.id, &self.exec)
    }
}

/// A name for what is of `kind`, as an id may be.
fn name(kind: Kind, number: usize) -> String {
    format!("{kind:?}{number}").to_lowercase()
}
