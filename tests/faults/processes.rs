//! A shim that may have no more processes or threads, at each step of a container's life.

use std::fs;
use std::path::PathBuf;

use crate::crash::Holdings;
use crate::support::{Answer, Code, Host, Shim, Spec, hierarchies, skipped};

/// A cgroup of the daemon's own, which limits what it starts too. Containers have their own.
pub(super) struct Around(PathBuf);

impl Around {
    /// Puts the daemon into a new cgroup of v1's `controller`, if the machine has that.
    pub(super) fn new(shim: &Shim<'_>, controller: &str) -> Option<Self> {
        let has = |options: &Option<String>| {
            options.as_ref().is_some_and(|words| words.split(',').any(|word| word == controller))
        };
        let found = hierarchies().into_iter().find(|(options, _)| has(options));
        let Some((_, point)) = found else {
            eprintln!("skipped, no cgroup v1 has the controller {controller}");
            return None;
        };
        let dir = point.join(format!("berth-test-around-{}", shim.host().tag()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), shim.pid().to_string()).unwrap();
        Some(Self(dir))
    }

    pub(super) fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    fn allow(&self, more: usize) {
        let now: usize =
            fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap();
        self.set("pids.max", &(now + more).to_string());
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        let parent = self.0.parent().unwrap().join("cgroup.procs");
        for _ in 0..1000 {
            for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
                drop(fs::write(&parent, pid));
            }
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

struct Step {
    name: &'static str,
    before: fn(&Shim<'_>),
    call: fn(&Shim<'_>) -> Answer<()>,
    undo: fn(&Shim<'_>, bool),
}

const STEPS: [Step; 4] = [
    Step {
        name: "Create",
        before: |_| {},
        call: |shim| shim.create_plain("c").map(drop),
        undo: |shim, worked| {
            if worked {
                shim.remove("c");
            }
        },
    },
    Step {
        name: "Start",
        before: |shim| assert!(shim.create_plain("c").is_ok()),
        call: |shim| shim.start("c", "").map(drop),
        undo: |shim, _| assert_eq!(shim.remove("c"), 137),
    },
    Step {
        name: "Exec",
        before: |shim| assert!(shim.run("c") > 0),
        call: |shim| shim.exec_run("c", "e", "exit 3").map(drop),
        undo: |shim, worked| {
            if worked {
                assert_eq!(shim.wait("c", "e").unwrap().exit_status, 3);
            }
            assert!(shim.delete("c", "e").is_ok() || !worked);
            shim.remove("c");
        },
    },
    Step {
        name: "Delete",
        before: |shim| {
            shim.run("c");
            shim.kill_all("c", libc::SIGKILL).unwrap();
            shim.wait("c", "").unwrap();
        },
        call: |shim| shim.delete("c", "").map(drop),
        undo: |shim, worked| {
            if !worked {
                shim.delete("c", "").unwrap();
            }
        },
    },
];

/// How many processes and threads there may be beside the daemon's own: none, one thread of berth's,
/// the runtime alone, parts of what it needs.
const ROOM: [usize; 7] = [0, 1, 2, 3, 5, 8, 12];

#[test]
fn a_step_without_processes_says_so_and_leaves_nothing() {
    if skipped("a lack of processes") {
        return;
    }
    std::thread::scope(|scope| {
        for step in &STEPS {
            let thread = std::thread::Builder::new().name(step.name.into());
            thread.spawn_scoped(scope, move || check(step)).unwrap();
        }
    });
}

fn check(step: &Step) {
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let Some(around) = Around::new(&shim, "pids") else { return shim.stop() };
    shim.run("c");
    shim.remove("c");
    let before = Holdings::of(&host, &shim);
    for room in ROOM {
        let name = format!("{} with room for {room}", step.name);
        (step.before)(&shim);
        around.allow(room);
        let answer = (step.call)(&shim);
        around.set("pids.max", "max");
        if let Err(refusal) = &answer {
            assert!(
                ![Code::OK, Code::DEADLINE_EXCEEDED].contains(&refusal.code),
                "{name}: {refusal:?}"
            );
            let said = refusal.message.to_lowercase().contains("resource temporarily unavailable");
            assert!(said || room > 0, "{name}: {refusal:?}");
            assert!(!refusal.message.is_empty(), "{name}");
        }
        assert!(answer.is_err() || room > 0, "{name}: {answer:?}");
        (step.undo)(&shim, answer.is_ok());
        before.expect(&host, &shim, &name);
    }
    shim.run("c");
    shim.remove("c");
    drop(around);
    shim.stop();
    let lines = host.sink.lines();
    let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("create c"), count("exit c 137")), (count("delete c"), count("delete c")));
}
