//! Signals, pause, metrics, events, namespaces, groups, and many at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;

use crate::bed::Bed;
use crate::counters::Fields;
use crate::daemon::explain;
use crate::{Case, Shim, alone, command, counters, host, many, shared};

pub(crate) const CASES: &[Case] = &[
    shared("kill", kill),
    shared("kill-exec", kill_exec),
    shared("pause", pause),
    shared("metrics", metrics),
    shared("out-of-memory", out_of_memory),
    shared("pids", pids),
    shared("event-order", event_order),
    shared("host-pid-namespace", host_pid_namespace),
    shared("group", group),
    alone("many-exits", many_exits),
    alone("many-execs", many_execs),
];

/// Ends with 7 on SIGTERM; tells through a file that it is ready.
const TRAP: &str = "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.05; done";

fn await_ready(bed: &Bed<'_>, id: &str) {
    let mut round = 0;
    command::until("the program is ready", || {
        round += 1;
        let ready = bed.exec(id, &format!("ready{round}"), &["ls", "/ready"]);
        (ready.status == 0).then_some(())
    });
}

/// Signals reach the program; a running task is not deleted; a finished one cannot be signalled.
fn kill(bed: &Bed<'_>) {
    for (signal, status) in [("SIGTERM", 7), ("SIGKILL", 137)] {
        let id = bed.name(&signal.to_lowercase());
        bed.start(&[], &id, &["sh", "-c", TRAP]);
        await_ready(bed, &id);
        bed.ctr(&["task", "delete", &id]).refused();
        assert_eq!(bed.state(&id).as_deref(), Some("RUNNING"), "{signal}");
        bed.kill(&id, signal);
        assert_eq!(bed.await_event(&id, "exit").status(), status, "{signal}");
        bed.await_state(&id, "STOPPED");
        let error = bed.ctr(&["task", "kill", "--signal", signal, &id]).refused();
        // The code is NotFound; whether the client says so or gives the shim's words depends on it.
        let told = error.contains("not found") || error.contains("already finished");
        assert!(told, "{signal}: {error}");
        bed.delete(&id);
        let error = bed.ctr(&["task", "kill", &id]).refused();
        assert!(error.contains("not found"), "{signal}: {error}");
    }
}

/// A signal for an exec process reaches that one alone.
fn kill_exec(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    let mut sleep = bed.exec_command(&[], &id, "e1", &["sleep", "1000"]);
    thread::scope(|scope| {
        let exec = scope.spawn(move || command::run(&mut sleep, b"").status);
        bed.await_event(&id, "exec-started e1");
        bed.ctr(&["task", "kill", "--exec-id", "e1", "--signal", "SIGKILL", &id]).ok();
        assert_eq!(command::join(exec), 137);
    });
    assert_eq!(bed.state(&id).as_deref(), Some("RUNNING"));
    bed.remove(&id);
}

/// A paused container does not run, and runs again.
fn pause(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sh", "-c", TRAP]);
    await_ready(bed, &id);
    bed.ctr(&["task", "pause", &id]).ok();
    assert_eq!(bed.state(&id).as_deref(), Some("PAUSED"));
    bed.await_event(&id, "paused");
    bed.ctr(&["task", "resume", &id]).ok();
    assert_eq!(bed.state(&id).as_deref(), Some("RUNNING"));
    bed.await_event(&id, "resumed");
    bed.kill(&id, "SIGTERM");
    assert_eq!(bed.await_event(&id, "exit").status(), 7);
    bed.remove(&id);
}

/// Metrics are what the kernel says of this container, as far as this client and shim know its words.
fn metrics(bed: &Bed<'_>) {
    const NEEDED: [&[&str]; 2] = [
        &["cpu.usage.total", "memory.usage.usage", "memory.usage.limit", "memory.total_rss"],
        &["cpu.usage_usec", "memory.usage", "memory.usage_limit", "memory.anon"],
    ];
    let id = bed.name("a");
    let limit = ["--memory-limit", "67108864"];
    bed.start(&limit, &id, &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let counters = bed.counters(&id);
    command::until("two processes are counted", || {
        (counters.read().get("pids.current")? == "3").then_some(())
    });
    bed.ctr(&["task", "pause", &id]).ok();
    let needed = NEEDED[usize::from(!counters.v1())];
    // A client leaves out what is 0, and older ones and stock shims some that they do not know.
    let complete = bed.shim == Shim::Berth && bed.daemon.version.starts_with("2.");
    let mut wrong = Vec::new();
    let found = command::poll(|| {
        let mut before = counters.read();
        let text = bed.ctr(&["task", "metrics", "--format", "json", &id]).ok();
        let mut found = flat(&serde_json::from_str(&text).unwrap());
        if complete {
            for name in before.keys() {
                found.entry(name.clone()).or_insert("0".into());
            }
        }
        before.retain(|name, _| found.contains_key(name));
        wrong = counters::differences(&before, &found, &counters.read());
        wrong.is_empty().then_some(found)
    });
    let found = found.unwrap_or_else(|| panic!("{wrong:#?}"));
    for name in needed.iter().chain(&["pids.current"]) {
        assert!(found.contains_key(*name), "{name} is not in {found:?}");
    }
    assert_eq!(found[needed[2]], "67108864");
    let table = bed.ctr(&["task", "metrics", &id]).ok();
    let row = table.lines().find_map(|line| line.strip_prefix("pids.current"));
    assert_eq!(row.map(str::trim), Some("3"), "{table}");
    bed.ctr(&["task", "resume", &id]).ok();
    bed.remove(&id);
}

/// The numbers and texts in `value` by their paths: `memory.usage.limit`, `hugetlb.0.max`.
fn flat(value: &Value) -> Fields {
    let part = |name: &str, value: &Value| {
        let inner = flat(value).into_iter();
        inner.map(|(rest, value)| (format!("{name}.{rest}"), value)).collect::<Vec<_>>()
    };
    let all: Vec<_> = match value {
        Value::Object(parts) => parts.iter().flat_map(|(name, value)| part(name, value)).collect(),
        Value::Array(parts) => parts
            .iter()
            .enumerate()
            .flat_map(|(index, value)| part(&index.to_string(), value))
            .collect(),
        Value::Null => Vec::new(),
        Value::String(text) => vec![(String::new(), text.clone())],
        other => vec![(String::new(), other.to_string())],
    };
    all.into_iter().map(|(name, value)| (name.trim_end_matches('.').to_owned(), value)).collect()
}

/// The kernel's choice of a victim is an event.
fn out_of_memory(bed: &Bed<'_>) {
    let id = bed.name("a");
    let greedy = ["sh", "-c", "x=$(head -c 100000000 /dev/zero | tail -c 100000000)"];
    bed.start(&["--memory-limit", "16777216"], &id, &["sh", "-c", "sleep 1000"]);
    assert_ne!(bed.exec(&id, "e1", &greedy).status, 0);
    bed.await_event(&id, "oom");
    bed.remove(&id);
}

/// The processes of a task, those of exec among them.
fn pids(bed: &Bed<'_>) {
    let id = bed.name("a");
    let init = bed.start(&[], &id, &["sleep", "1000"]);
    let mut sleep = bed.exec_command(&[], &id, "e1", &["sleep", "1000"]);
    thread::scope(|scope| {
        let exec = scope.spawn(move || command::run(&mut sleep, b"").status);
        let pid = bed.await_event(&id, "exec-started e1").body["pid"].as_i64().unwrap();
        let list = bed.ctr(&["task", "ps", &id]).ok();
        let line = |pid: i64| list.lines().find(|line| line.starts_with(&pid.to_string()));
        assert!(line(init.into()).is_some(), "{list}");
        assert!(line(pid).is_some_and(|line| line.contains("e1")), "{list}");
        bed.ctr(&["task", "kill", "--exec-id", "e1", "--signal", "SIGKILL", &id]).ok();
        command::join(exec);
    });
    bed.remove(&id);
}

/// Events come in the order in which things happened.
fn event_order(bed: &Bed<'_>) {
    let id = bed.name("a");
    bed.start(&[], &id, &["sleep", "1000"]);
    assert_eq!(bed.exec(&id, "e1", &["sh", "-c", "exit 9"]).status, 9);
    bed.remove(&id);
    let all = ["create", "start", "exec-added e1", "exec-started e1", "exit e1", "exit", "delete"];
    bed.expect_events(&id, &all);
    let statuses = bed.events(&id).into_iter().map(|event| (event.short(), event.status()));
    let statuses: BTreeMap<_, _> = statuses.collect();
    assert_eq!((statuses["exit e1"], statuses["exit"]), (9, 137));
    assert_eq!(*statuses.get("delete").unwrap_or(&137), 137);

    let id = bed.name("b");
    for _ in 0..3 {
        bed.run(&[], &id, &["true"]).ok();
    }
    bed.expect_events(&id, &["create", "start", "exit", "delete"].repeat(3));
}

/// Without a pid namespace of its own, a container's processes end with its first one.
fn host_pid_namespace(bed: &Bed<'_>) {
    let id = bed.name("a");
    let script = "sleep 1000 & sleep 1000 & touch /ready; wait";
    let host = format!("pid:/proc/{}/ns/pid", std::process::id());
    bed.start(&["--with-ns", &host], &id, &["sh", "-c", script]);
    await_ready(bed, &id);
    bed.kill(&id, "SIGKILL");
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    bed.remove(&id);
}

/// Containers of one group share a shim, which lives as long as the last of them.
fn group(bed: &Bed<'_>) {
    let annotation = format!("io.containerd.runc.v2.group={}", bed.name("pod"));
    let (a, b) = (bed.name("a"), bed.name("b"));
    let first = bed.start(&["--annotation", &annotation], &a, &["sleep", "1000"]);
    let second = bed.start(&["--annotation", &annotation], &b, &["sleep", "1000"]);
    let shim = bed.shim_of(first);
    assert_eq!(shim, bed.shim_of(second), "two shims");
    bed.remove(&a);
    assert_eq!(bed.state(&b).as_deref(), Some("RUNNING"));
    assert_eq!(bed.exec(&b, "e1", &["sh", "-c", "exit 4"]).status, 4);
    bed.remove(&b);
    bed.excuse_stock_socket();
    command::until("the shim ends", || (!host::exists(shim)).then_some(()));
}

/// A FIFO, with files beside it, that programs of many containers open. Each waits for the end of
/// what comes through; dropping this releases all at the same moment.
struct Gate {
    dir: PathBuf,
    keeper: File,
}

impl Gate {
    fn new(bed: &Bed<'_>) -> Self {
        let dir = bed.daemon.dir().join("many");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("gate");
        command::run(Command::new("mkfifo").arg(&path), b"").ok();
        let keeper = File::options().read(true).write(true).open(path).unwrap();
        Self { dir, keeper }
    }

    /// The mount that makes it `/tmp/gate`.
    fn mount(&self) -> String {
        format!("type=bind,src={},dst=/tmp,options=rbind:rw", self.dir.display())
    }

    /// Opens it when `count` is `expected`, or makes no progress: the number may be any. Returns
    /// the last count.
    fn open_at(self, expected: usize, count: impl Fn(&Path) -> usize) -> usize {
        let mut last = 0;
        while last < expected && command::poll(|| (count(&self.dir) > last).then_some(())).is_some()
        {
            last = count(&self.dir);
        }
        fs::remove_dir_all(&self.dir).unwrap();
        drop(self.keeper);
        last
    }
}

/// Containers that exit at the same moment each report their own status.
fn many_exits(bed: &Bed<'_>) {
    let gate = Gate::new(bed);
    let mount = gate.mount();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for number in 0..many() {
            let id = bed.name(&number.to_string());
            let status = i32::try_from(number % 251).unwrap();
            let script =
                format!("exec 3</tmp/gate; touch /tmp/ready-{number}; read x <&3; exit {status}");
            let mut run =
                bed.run_command(&["--rm", "--mount", &mount], &id, &["sh", "-c", &script]);
            clients.push(scope.spawn(move || (number, status, command::run(&mut run, b""))));
        }
        let ready = gate.open_at(many(), |dir| fs::read_dir(dir).unwrap().count() - 1);
        for client in clients {
            let (number, status, output) = command::join(client);
            assert_eq!(output.status, status, "container {number}: {}", explain(&output));
        }
        assert_eq!(ready, many(), "containers were ready");
    });
}

/// So do exec processes of one container, and their output arrives.
fn many_execs(bed: &Bed<'_>) {
    let id = bed.name("a");
    let gate = Gate::new(bed);
    bed.start(&["--mount", &gate.mount()], &id, &["sleep", "1000"]);
    let printed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for number in 0..bed.many_execs() {
            let status = i32::try_from(number % 251).unwrap();
            let script = format!("exec 3</tmp/gate; echo {number}; read x <&3; exit {status}");
            let mut exec =
                bed.exec_command(&[], &id, &format!("e{number}"), &["sh", "-c", &script]);
            let printed = &printed;
            let mut run = move || {
                command::run_fed(&mut exec, b"", |[stdout, _]| {
                    printed.lock().unwrap().push(stdout.clone());
                })
            };
            clients.push(scope.spawn(move || (number, status, run())));
        }
        gate.open_at(clients.len(), |_| {
            printed.lock().unwrap().iter().filter(|stdout| stdout.has_line()).count()
        });
        for client in clients {
            let (number, status, output) = command::join(client);
            assert_eq!(output.status, status, "exec {number}: {}", explain(&output));
            assert_eq!(output.text(), number.to_string());
        }
    });
    bed.remove(&id);
}
