//! Places that take nothing more, or nothing at all, at each step of a container's life.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{Answer, Code, Host, Shim, Spec, Stdin, patient, skipped, timed};

/// How a place is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// No byte more.
    Full,
    /// No file more: there are no inodes.
    Crowded,
    ReadOnly,
}

impl Fault {
    /// What the kernel calls it; runtimes say it without the capital.
    fn words(self) -> &'static str {
        match self {
            Self::Full | Self::Crowded => "no space left on device",
            Self::ReadOnly => "read-only file system",
        }
    }
}

/// A directory of the test's own, in memory, that can be broken and mended.
struct Place {
    dir: PathBuf,
    fault: Fault,
}

impl Place {
    fn new(dir: PathBuf, fault: Fault) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let size = Some("size=512k,nr_inodes=400,mode=700");
        mount(Some("fault"), &dir, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        Self { dir, fault }
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    fn set_read_only(&self, on: bool) {
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_RDONLY, on);
        mount(None::<&str>, &self.dir, None::<&str>, flags, None::<&str>).unwrap();
    }

    fn fail(&self) {
        let ballast = self.ballast();
        match self.fault {
            Fault::Full => {
                let mut file = File::create(ballast).unwrap();
                while file.write_all(&[0; 4096]).is_ok() {}
            }
            Fault::Crowded => {
                fs::create_dir(&ballast).unwrap();
                let full = |n: &u32| File::create(ballast.join(n.to_string())).is_err();
                (0..).find(full).unwrap();
            }
            Fault::ReadOnly => self.set_read_only(true),
        }
    }

    fn mend(&self) {
        match self.fault {
            Fault::Full => fs::remove_file(self.ballast()).unwrap(),
            Fault::Crowded => fs::remove_dir_all(self.ballast()).unwrap(),
            Fault::ReadOnly => self.set_read_only(false),
        }
    }

    /// Does `action` while the place is broken; it takes no longer than it may.
    fn broken<T>(&self, name: &str, action: impl FnOnce() -> T) -> T {
        self.fail();
        let (value, took) = timed(action);
        self.mend();
        assert!(took < patient(Duration::from_secs(8)), "{name}: {took:?}");
        value
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// A place that breaks, and the steps that fail for it; all others succeed.
struct Row {
    name: &'static str,
    place: fn(&Host) -> PathBuf,
    fault: Fault,
    fails: &'static [&'static str],
}

const fn row(
    name: &'static str,
    place: fn(&Host) -> PathBuf,
    fault: Fault,
    fails: &'static [&'static str],
) -> Row {
    Row { name, place, fault, fails }
}

fn bundle(host: &Host) -> PathBuf {
    host.bundle("c")
}

fn root(host: &Host) -> PathBuf {
    host.root()
}

/// Where the socket is with the bootstrap protocol.
fn sockets(host: &Host) -> PathBuf {
    host.dir().join("s")
}

const ROWS: [Row; 8] = [
    row("the bundle is full", bundle, Fault::Full, &["start", "Create", "Exec"]),
    row("the bundle takes no file", bundle, Fault::Crowded, &["start", "Create", "Exec"]),
    row("the bundle is read-only", bundle, Fault::ReadOnly, &["start", "Create", "Exec"]),
    row("the runtime's root is full", root, Fault::Full, &["Create"]),
    row("the runtime's root takes no file", root, Fault::Crowded, &["Create"]),
    row("the runtime's root is read-only", root, Fault::ReadOnly, &["Create", "Start", "Delete"]),
    row("the sockets' directory takes no file", sockets, Fault::Crowded, &["start"]),
    row("the sockets' directory is read-only", sockets, Fault::ReadOnly, &["start"]),
];

#[test]
fn a_place_that_takes_nothing_costs_the_step_that_needs_it_and_no_more() {
    if skipped("a full or read-only place") {
        return;
    }
    thread::scope(|scope| {
        for row in &ROWS {
            let thread = thread::Builder::new().name(row.name.into());
            thread.spawn_scoped(scope, move || check(row)).unwrap();
        }
    });
}

fn check(row: &Row) {
    let host = Host::new();
    host.prepare("c", Spec::idle());
    let place = Place::new((row.place)(&host), row.fault);
    host.prepare("c", Spec::idle()); // what was there is covered
    let life = Life { host: &host, place: &place, row };
    life.start();
    let shim = host.attach("c", &Stdin::Bootstrap);
    life.create(&shim);
    life.start_task(&shim);
    life.exec(&shim);
    life.end(&shim);
    life.delete_command(&shim);
    drop(shim);
    let shim = host.attach("c", &Stdin::Bootstrap);
    shim.run("c");
    shim.end();
    drop(fs::remove_dir_all(host.root()));
}

struct Life<'a> {
    host: &'a Host,
    place: &'a Place,
    row: &'a Row,
}

impl Life<'_> {
    /// Whether a step went as the row says; a failure says what and where.
    #[track_caller]
    fn went<T>(&self, step: &str, message: Result<T, &str>) -> Option<T> {
        let name = self.row.name;
        match message {
            Ok(value) => {
                assert!(!self.row.fails.contains(&step), "{name}: {step} succeeds");
                Some(value)
            }
            Err(message) => {
                assert!(self.row.fails.contains(&step), "{name}: {step} fails: {message}");
                let says = message.to_lowercase().contains(self.place.fault.words());
                // runc has no word for it where it saves a container that is being made.
                let runtime = message.contains("unable to store init state");
                assert!((says && message.contains('/')) || runtime, "{name}: {step}: {message}");
                None
            }
        }
    }

    #[track_caller]
    fn answered<T>(&self, step: &str, answer: &Answer<T>) -> bool {
        let code = answer.as_ref().err().map(|refusal| refusal.code);
        assert_ne!(code, Some(Code::OK), "{}: {step}: no answer", self.row.name);
        let message = answer.as_ref().map(|_| ()).map_err(|refusal| refusal.message.as_str());
        self.went(step, message).is_some()
    }

    fn nothing_runs(&self, step: &str) {
        let (name, processes) = (self.row.name, self.host.processes());
        assert!(processes.is_empty(), "{name}: after {step}: {processes:?}");
        let files = fs::read_dir(self.host.dir().join("s")).into_iter().flatten().flatten();
        let files: Vec<_> = files.map(|entry| entry.path()).collect();
        assert!(files.is_empty(), "{name}: after {step}: {files:?}");
    }

    fn start(&self) {
        let log = self.host.log("c");
        let output = self.place.broken("start", || self.host.run("c", "start", &Stdin::Bootstrap));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = if output.status.success() { Ok(()) } else { Err(said.as_str()) };
        if self.went("start", result).is_none() {
            assert!(output.stdout.is_empty(), "{}: {output:?}", self.row.name);
            self.nothing_runs("start");
            assert_eq!(self.host.files("c"), ["config.json", "rootfs"], "{}", self.row.name);
        }
        drop(log);
    }

    fn create(&self, shim: &Shim<'_>) {
        let created = self.place.broken("Create", || shim.create_plain("c"));
        if !self.answered("Create", &created) {
            assert_eq!(shim.state("c", "").unwrap_err().code, Code::NOT_FOUND);
            assert_eq!((self.host.cgroups().len(), self.host.states().len()), (0, 0));
            shim.create_plain("c").unwrap();
        }
    }

    fn start_task(&self, shim: &Shim<'_>) {
        let started = self.place.broken("Start", || shim.start("c", ""));
        if !self.answered("Start", &started) {
            shim.remove("c");
            shim.run("c");
        }
        self.host.sink.wait_for("start c");
    }

    fn exec(&self, shim: &Shim<'_>) {
        let ran = self.place.broken("Exec", || shim.exec_run("c", "e", "exit 3"));
        if self.answered("Exec", &ran) {
            assert_eq!(shim.reap("c", "e"), 3);
        } else {
            drop(shim.delete("c", "e")); // there is none where Exec itself has failed
        }
        shim.exec_run("c", "f", "exit 4").unwrap();
        assert_eq!(shim.reap("c", "f"), 4);
    }

    /// Kill and exit need no file; Delete may wait until there is a place again.
    fn end(&self, shim: &Shim<'_>) {
        self.place.broken("Kill", || {
            shim.kill_all("c", libc::SIGKILL).unwrap();
            assert_eq!(shim.wait("c", "").unwrap().exit_status, 137);
            self.host.sink.wait_for("exit c 137");
        });
        let deleted = self.place.broken("Delete", || shim.delete("c", ""));
        if !self.answered("Delete", &deleted) {
            shim.delete("c", "").unwrap();
        }
        self.host.sink.wait_for("delete c 137");
        assert_eq!(self.host.states(), Vec::<PathBuf>::new());
    }

    fn delete_command(&self, shim: &Shim<'_>) {
        shim.run("c");
        shim.crash();
        let output = self.place.broken("delete", || self.host.run("c", "delete", &Stdin::Nothing));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = if output.status.success() { Ok(()) } else { Err(said.as_str()) };
        // Whatever becomes of the files: no process and no mount outlives it.
        let processes = self.host.processes();
        assert!(processes.is_empty(), "{}: {processes:?}", self.row.name);
        let left = |path: &PathBuf| !path.starts_with(&self.place.dir) || *path != self.place.dir;
        let mounts: Vec<_> = self.host.mounts().into_iter().filter(left).collect();
        assert!(mounts.is_empty(), "{}: {mounts:?}", self.row.name);
        self.went("delete", result);
        self.host.delete("c");
        self.nothing_runs("delete");
        assert!(Path::new(&self.host.bundle("c")).exists());
    }
}
