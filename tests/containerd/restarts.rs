//! containerd killed at each step of a container's beginning and end, and two containerds beside each
//! other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::bed::Bed;
use crate::daemon::Daemon;
use crate::{Case, Runtime, command, image};

pub(crate) const CASES: &[Case] = &[
    own_alone("containerd-killed-at-each-step", |bed| killed_at_each_step(bed, Then::GoesOn)),
    own_alone("containerd-back-at-each-step", |bed| killed_at_each_step(bed, Then::Waits)),
    own_alone("two-containerds", two_containerds),
];

const fn own_alone(name: &'static str, check: fn(&Bed<'_>)) -> Case {
    Case { name, alone: true, own: true, pods: false, check }
}

/// What the step that was under way does until containerd is back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoesOn,
    Waits,
}

/// What a container does when containerd is killed: which program waits, before or after its work.
const BEGINNINGS: [&str; 6] = [
    "before-shim-start",
    "after-shim-start",
    "before-create",
    "after-create",
    "before-start",
    "after-start",
];
const ENDS: [&str; 2] = ["before-delete", "after-delete"];
const CLEANUPS: [&str; 2] = ["before-shim-delete", "after-shim-delete"];

/// Programs in the place of shim and runtime that wait at a step while a file is there.
struct Gates {
    dir: PathBuf,
    shim: PathBuf,
}

impl Gates {
    fn new(bed: &Bed<'_>) -> Self {
        let dir = bed.daemon.dir().join("gates");
        fs::create_dir_all(&dir).unwrap();
        let bin = bed.daemon.dir().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let gates = Self { dir, shim: bin.join("containerd-shim-berth-v1") };
        let gate = format!(
            "gate() {{\n\
             [ -e {dir}/$id.$1 ] || return 0\n\
             touch {dir}/$id.reached\n\
             while [ -e {dir}/$id.$1 ]; do sleep 0.02; done\n\
             }}\n",
            dir = gates.dir.display(),
        );
        let built = || env!("CARGO_BIN_EXE_containerd-shim-berth-v1").to_owned();
        let berth = std::env::var("BERTH_TEST_SHIM").unwrap_or_else(|_| built());
        // A shim that was never told of its container ends after the grace time.
        write(
            &gates.shim,
            &format!(
                "#!/bin/sh\n{gate}\
                 id= action= last=\n\
                 for word; do\n\
                 case $last in -id) id=$word ;; esac\n\
                 last=$word\n\
                 done\n\
                 export BERTH_TEST_GRACE=3\n\
                 gate before-shim-$last\n\
                 {berth} \"$@\"; status=$?\n\
                 gate after-shim-$last\n\
                 exit $status\n"
            ),
        );
        write(
            &gates.dir.join("runtime"),
            &format!(
                "#!/bin/sh\n{gate}\
                 action=\n\
                 for id; do\n\
                 case $action$id in create|start|delete) action=$id ;; esac\n\
                 done\n\
                 gate before-$action\n\
                 runc \"$@\"; status=$?\n\
                 gate after-$action\n\
                 exit $status\n"
            ),
        );
        let runtime = gates.dir.join("runtime");
        fs::write(gates.config(), format!("runtime = {runtime:?}\n")).unwrap();
        gates
    }

    fn config(&self) -> PathBuf {
        self.dir.join("berth.toml")
    }

    fn close(&self, id: &str, step: &str) {
        fs::write(self.dir.join(format!("{id}.{step}")), "").unwrap();
    }

    fn await_reached(&self, id: &str) {
        let file = self.dir.join(format!("{id}.reached"));
        command::until(&format!("{id} to be there"), || file.exists().then_some(()));
    }

    fn open(&self, id: &str, step: &str) {
        fs::remove_file(self.dir.join(format!("{id}.{step}"))).unwrap();
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.shim);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn write(path: &std::path::Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A client that waits for containerd; it ends when that does, or is ended.
struct Client(Child);

impl Client {
    fn new(mut command: std::process::Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whatever containerd was doing: the container is there and can be used, or nothing of it is left.
fn killed_at_each_step(bed: &Bed<'_>, then: Then) {
    let gates = Gates::new(bed);
    let config = gates.config().display().to_string();
    let flags = ["--detach", "--null-io", "--runtime-config-path", &config];
    let run = |id: &str| Client::new(bed.run_command(&flags, id, &["sleep", "1000"]));
    // A containerd that begins gives the shim's `delete` 5 s, and leaves the bundle of one that waits.
    let cleanups = if then == Then::GoesOn { &CLEANUPS[..] } else { &[] };
    let steps: Vec<(&str, String)> = BEGINNINGS
        .iter()
        .chain(&ENDS)
        .chain(cleanups)
        .map(|step| (*step, bed.name(step)))
        .collect();
    let mut clients = Vec::new();
    for (step, id) in &steps {
        if BEGINNINGS.contains(step) {
            gates.close(id, step);
            clients.push(run(id));
            continue;
        }
        let pid = bed.start(&flags[2..], id, &["sleep", "1000"]);
        gates.close(id, step);
        if CLEANUPS.contains(step) {
            bed.kill_shim(bed.shim_of(pid));
            continue;
        }
        bed.kill(id, "SIGKILL");
        bed.await_state(id, "STOPPED");
        let mut delete = bed.command();
        delete.args(["task", "delete", id]);
        clients.push(Client::new(delete));
    }
    steps.iter().for_each(|(_, id)| gates.await_reached(id));
    let open = || steps.iter().for_each(|(step, id)| gates.open(id, step));
    bed.restart("KILL", || {
        clients.clear();
        if then == Then::GoesOn {
            open();
        }
    });
    if then == Then::Waits {
        open();
    }
    steps.iter().for_each(|(step, id)| use_and_remove(bed, step, id));
    bed.check_clean();
    // And the names are free.
    let (_, id) = &steps[0];
    assert_eq!(bed.run(&flags[2..], id, &["sh", "-c", "exit 5"]).status, 5, "{id}");
    // containerd remembers where it has found the shim.
    bed.restart("TERM", || drop(gates));
}

/// Uses what containerd still has of a container, and removes that.
fn use_and_remove(bed: &Bed<'_>, step: &str, id: &str) {
    let mut used = 0;
    let mut last = String::new();
    let gone = command::poll(|| {
        let state = bed.state(id);
        last = format!("{state:?}");
        match state.as_deref() {
            None => {
                bed.ctr(&["container", "delete", id]);
                let list = bed.ctr(&["container", "list", "-q"]).ok();
                return (!list.lines().any(|line| line == id)).then_some(());
            }
            Some("RUNNING") => {
                used += 1;
                let exec = bed.exec(id, &format!("e{used}"), &["sh", "-c", "exit 6"]);
                assert_eq!(exec.status, 6, "{step}: {exec:?}");
                bed.kill(id, "SIGKILL");
                bed.await_state(id, "STOPPED");
            }
            Some("STOPPED") => last += &bed.ctr(&["task", "delete", id]).stderr,
            _ => last += &bed.ctr(&["task", "delete", "--force", id]).stderr,
        }
        None
    });
    assert!(gone.is_some(), "{step}: {last}");
}

/// Two daemons with state directories of one name, and containers of one namespace and name.
fn two_containerds(bed: &Bed<'_>) {
    let daemon = bed.daemon;
    let dir = daemon.dir().join("twin");
    fs::create_dir_all(&dir).unwrap();
    let twin = Daemon::start(&daemon.version, daemon.programs(), Runtime::Runc, &dir);
    let archive = image::write(&dir);
    twin.import(bed.namespace, &archive);
    let id = bed.name("a");
    let pid = bed.start(&[], &id, &["sleep", "1000"]);
    let root = dir.join("runtime");
    let config = dir.join("own.toml");
    let text = "default_runtime = \"own\"\n[runtimes.own]\npath = \"runc\"\n";
    fs::write(&config, format!("{text}root = {root:?}\n")).unwrap();
    let config = config.display().to_string();
    let run = |flags: &[&str]| {
        let mut run = twin.ctr(bed.namespace);
        run.arg("run").args(twin.run_flags(bed.shim)).args(["--detach", "--null-io"]);
        run.args(flags).args([image::NAME, &id, "sleep", "1000"]);
        command::run(&mut run, b"")
    };
    let ctr = |words: &[&str]| command::run(twin.ctr(bed.namespace).args(words), b"");

    // With the same cgroup and runtime state it is refused, and the other lives.
    let error = run(&[]).refused();
    assert!(error.contains("already"), "{error}");
    ctr(&["container", "delete", &id]);
    assert_eq!(bed.init_pid(&id), pid);
    assert_eq!(bed.exec(&id, "e1", &["sh", "-c", "exit 6"]).status, 6);

    // With its own it runs beside the other, under a shim of its own.
    let cgroup = format!("/{}/{id}-twin", bed.namespace);
    run(&["--runtime-config-path", &config, "--cgroup", &cgroup]).ok();
    let list = ctr(&["task", "list"]).ok();
    let line = list.lines().find(|line| line.starts_with(&id)).expect("a task");
    let other: i32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_ne!((other, bed.shim_of(other)), (pid, bed.shim_of(pid)));
    ctr(&["task", "kill", "--signal", "SIGKILL", &id]).ok();
    command::until("the twin's end", || {
        ctr(&["task", "list"]).text().contains("STOPPED").then_some(())
    });
    ctr(&["task", "delete", &id]).ok();
    ctr(&["container", "delete", &id]).ok();
    assert_eq!(bed.init_pid(&id), pid, "the first was touched");
    bed.remove(&id);
    let left = twin.end();
    assert!(left.is_empty(), "{left:?}");
}
