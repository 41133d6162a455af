//! gVisor's runsc as a named runtime.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::bed::Bed;
use crate::{Case, command, config, host, own};

const CASES: &[Case] = &[own("runsc", runsc), own("runsc-shim-killed", runsc_shim_killed)];

/// The cases, where runsc was fetched.
pub(crate) fn cases(programs: &Path) -> &'static [Case] {
    if program(programs).exists() { CASES } else { &[] }
}

/// Where `packaging/fetch-containerd.sh` puts it, seen from a containerd's programs.
pub(crate) fn program(programs: &Path) -> PathBuf {
    programs.join("../../runsc/bin/runsc")
}

/// A configuration with runsc in its table, and what chooses it.
struct Sandboxes {
    root: PathBuf,
    flags: Vec<String>,
}

impl Sandboxes {
    fn configure(bed: &Bed<'_>, name: &str) -> Self {
        let dir = bed.daemon.dir().join(name);
        let root = dir.join("root");
        fs::create_dir_all(&dir).unwrap();
        let program = program(bed.daemon.programs()).canonicalize().unwrap();
        let text = format!(
            "[runtimes.gvisor]\npath = {program:?}\nargs = [\"--network=none\"]\nroot = {root:?}\n\
             inner_pids = true\n"
        );
        let mut flags = config::write(&dir.join("config.toml"), &text).to_vec();
        flags.extend(["--annotation".into(), "io.containerd.berth.runtime=gvisor".into()]);
        Self { root, flags }
    }

    fn flags(&self) -> Vec<&str> {
        self.flags.iter().map(String::as_str).collect()
    }

    /// Fails if runsc still knows of a sandbox.
    #[track_caller]
    fn check_empty(&self) {
        let namespaces = fs::read_dir(&self.root).unwrap().filter_map(Result::ok);
        let files = namespaces.filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten();
        let left: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// A container in a kernel of its own: exit status, output, exec, signals, pause, removal.
fn runsc(bed: &Bed<'_>) {
    let sandboxes = Sandboxes::configure(bed, "runsc");
    let flags = &sandboxes.flags()[..];
    let id = bed.name("a");
    // Its kernel is not the host's. What a program prints right before its end, ctr may not read.
    let kernel = fs::read_to_string("/proc/version").unwrap();
    let script = "[ \"$(cat /proc/version)\" = \"$0\" ] || { echo other; sleep 0.5; exit 5; }";
    let output = bed.run(flags, &id, &["sh", "-c", script, kernel.trim()]);
    assert_eq!((output.status, output.text().as_str()), (5, "other"), "{}", output.stderr);
    bed.expect_events(&id, &["create", "start", "exit", "delete"]);

    let id = bed.name("b");
    let trap = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    bed.start(flags, &id, &["sh", "-c", trap]);
    let exec = bed.exec(&id, "e1", &["sh", "-c", "echo inside; sleep 0.5; exit 9"]);
    assert_eq!((exec.status, exec.text().as_str()), (9, "inside"), "{}", exec.stderr);
    thread::scope(|scope| {
        let mut sleep = bed.exec_command(&[], &id, "e2", &["sleep", "1000"]);
        let exec = scope.spawn(move || command::run(&mut sleep, b"").status);
        bed.await_event(&id, "exec-started e2");
        bed.ctr(&["task", "kill", "--exec-id", "e2", "--signal", "SIGKILL", &id]).ok();
        assert_eq!(exec.join().unwrap(), 137);
        let looks = ["sh", "-c", "busybox ps | grep -q '[s]leep 1000' && exit 3; exit 4"];
        assert_eq!(bed.exec(&id, "e3", &looks).status, 4);
    });
    bed.ctr(&["task", "pause", &id]).ok();
    assert_eq!(bed.state(&id).as_deref(), Some("PAUSED"));
    bed.ctr(&["task", "resume", &id]).ok();
    bed.kill(&id, "SIGTERM");
    assert_eq!(bed.await_event(&id, "exit").status(), 7);
    bed.await_state(&id, "STOPPED");
    let error = bed.ctr(&["task", "kill", &id]).refused();
    assert!(error.contains("not found") || error.contains("already finished"), "{error}");
    bed.delete(&id);

    let id = bed.name("c");
    bed.start(flags, &id, &["sleep", "1000"]);
    bed.kill(&id, "SIGKILL");
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    bed.remove(&id);

    let error = bed.run(flags, &bed.name("d"), &["nothing"]).refused();
    assert!(error.contains("error finding executable \"nothing\""), "{error}");
    bed.ctr(&["task", "delete", "--force", &bed.name("d")]);
    bed.ctr(&["container", "delete", &bed.name("d")]);
    sandboxes.check_empty();
}

/// What a dead shim leaves of a sandbox is removed, runsc's own files too.
fn runsc_shim_killed(bed: &Bed<'_>) {
    let sandboxes = Sandboxes::configure(bed, "runsc-shim-killed");
    let id = bed.name("a");
    let init = bed.start(&sandboxes.flags(), &id, &["sleep", "1000"]);
    bed.kill_shim(bed.shim_of(init));
    assert_eq!(bed.await_event(&id, "exit").status(), 137);
    command::until("the task is gone", || bed.state(&id).is_none().then_some(()));
    command::until("the sandbox ends", || (!host::exists(init)).then_some(()));
    bed.ctr(&["container", "delete", &id]).ok();
    sandboxes.check_empty();
}
