//! Cgroups of this machine, v1 or v2, with real processes in them. Root is needed to make one;
//! without it, or where no hierarchy can be written, these tests have nothing to say and pass.

use std::cell::Cell;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::*;

/// A cgroup in every hierarchy, ended and removed when dropped.
struct Playground {
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Playground {
    fn new(name: &str) -> Option<Self> {
        let id = format!("berth-test-{}-{name}", std::process::id());
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        // As a runtime would, from here: the same path in every hierarchy.
        let path = |line: &str| {
            let (front, _) = line.rsplit_once(':').unwrap();
            format!("{front}:/{id}\n")
        };
        let process: String = text.lines().map(path).collect();
        let cgroup = Hierarchies::read().unwrap().own(&process, &text)?;
        let playground = Self { cgroup, children: Vec::new() };
        for dir in playground.dirs() {
            fs::create_dir(&dir).ok()?;
            // A v1 cpuset takes processes only once it has CPUs and memory nodes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(dir.parent().unwrap().join(file)) {
                    fs::write(dir.join(file), value).ok();
                }
            }
        }
        Some(playground)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let v1 = self.cgroup.v1.iter().map(|dir| dir.path.clone());
        v1.chain(self.cgroup.v2.clone()).collect()
    }

    /// Starts a process in `nested` of every hierarchy.
    fn start(&mut self, nested: &str) -> Pid {
        let child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::new(i32::try_from(child.id()).unwrap()).unwrap();
        self.children.push(child);
        for dir in self.dirs() {
            let dir = dir.join(nested);
            fs::create_dir_all(&dir).unwrap();
            if dir.join("cpuset.cpus").exists() && !nested.is_empty() {
                continue; // would need its CPUs first
            }
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        pid
    }

    /// The signals that ended the processes.
    fn ends(&mut self) -> Vec<Option<i32>> {
        self.children.iter_mut().map(|child| child.wait().unwrap().signal()).collect()
    }

    fn remove(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.cgroup.remove().unwrap() == Removal::Busy {
            assert!(Instant::now() < deadline, "busy");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if let Some(freezer) = self.cgroup.controller("freezer") {
            kill::thaw(freezer).ok();
        }
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for _ in 0..100 {
            match self.cgroup.remove() {
                Ok(Removal::Busy) => {
                    self.cgroup.kill().ok(); // what its children have started
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => break,
            }
        }
    }
}

#[test]
fn a_cgroup_is_found_counted_measured_killed_and_removed() {
    let Some(mut playground) = Playground::new("life") else { return };
    assert!(!playground.cgroup.populated().unwrap());
    let init = playground.start("");
    let found = Cgroup::of(init).unwrap().unwrap();
    assert_eq!(found, playground.cgroup);
    let mut pids = vec![init, playground.start("a"), playground.start("a/b")];
    pids.sort_unstable();
    assert_eq!(found.pids().unwrap(), Some(pids));
    assert!(found.populated().unwrap());
    assert_eq!(found.remove().unwrap(), Removal::Busy);

    match stats::stats(&found).unwrap() {
        stats::Stats::V1(metrics) => {
            assert_eq!(metrics.pids.current, 3);
            assert!(metrics.memory.usage.limit > 0 && !metrics.cpu.usage.per_cpu.is_empty());
        }
        stats::Stats::V2(metrics) => {
            assert!(metrics.cpu.is_some());
            assert!(metrics.pids.as_ref().is_none_or(|pids| pids.current == 3));
            assert!(metrics.memory.as_ref().is_none_or(|of| of.usage_limit == u64::MAX));
        }
    }

    let written = serde_json::to_string(&found).unwrap();
    let read: Cgroup = serde_json::from_str(&written).unwrap();
    assert_eq!(read, found, "{written}");
    read.kill_and_wait(Instant::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(playground.ends(), [Some(libc::SIGKILL); 3]);
    assert!(!found.populated().unwrap());
    playground.remove();

    assert!(playground.dirs().iter().all(|dir| !dir.exists()));
    assert_eq!((found.pids().unwrap(), found.populated().unwrap()), (None, false));
    found.kill().unwrap();
    assert_eq!(found.remove().unwrap(), Removal::Gone);
    let gone = stats::stats(&found).unwrap_err();
    assert!(matches!(gone, Error::NotFound { what: "cgroup", .. }), "{gone}");
}

#[test]
fn a_process_joins_an_existing_cgroup() {
    let Some(playground) = Playground::new("join") else { return };
    let path = playground.dirs()[0].file_name().unwrap().to_str().unwrap().to_owned();
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let pid = Pid::new(i32::try_from(child.id()).unwrap()).unwrap();
    let joined = Hierarchies::read().unwrap().join(&format!("/../{path}/"), pid);
    let found = Cgroup::of(pid);
    child.kill().unwrap();
    child.wait().unwrap();
    joined.unwrap();
    assert_eq!(found.unwrap().as_ref(), Some(&playground.cgroup), "in every hierarchy");
}

#[test]
fn frozen_processes_are_killed_too() {
    let Some(mut playground) = Playground::new("frozen") else { return };
    playground.start("");
    playground.start("nested");
    let (file, value) = match playground.cgroup.controller("freezer") {
        Some(dir) => (dir.join("nested/freezer.state"), "FROZEN"),
        None => (playground.dirs()[0].join("nested/cgroup.freeze"), "1"),
    };
    fs::write(file, value).unwrap();
    playground.cgroup.kill_and_wait(Instant::now() + Duration::from_secs(5)).unwrap();
    assert_eq!(playground.ends(), [Some(libc::SIGKILL); 2]);
    playground.remove();
}

#[test]
fn what_left_the_cgroup_is_not_killed() {
    let Some(mut playground) = Playground::new("left") else { return };
    let (member, stranger) = (playground.start(""), playground.start(""));
    let dir = playground.cgroup.counted_in().next().unwrap().to_owned();
    fs::write(dir.parent().unwrap().join("cgroup.procs"), stranger.to_string()).unwrap();
    kill::each(&dir, &[member, stranger]).unwrap();
    let mut children = playground.children.iter_mut();
    let (member, stranger) = (children.next().unwrap(), children.next().unwrap());
    assert_eq!(member.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
}

#[test]
fn the_shims_own_cgroup_is_nobody_elses() {
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let pid = Pid::new(i32::try_from(child.id()).unwrap()).unwrap();
    let found = Cgroup::of(pid);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found.unwrap(), None, "it is in ours");
    assert_eq!(Cgroup::of(pid).unwrap(), None, "it has ended");
}

/// On a hybrid host too, where the v2 hierarchy has no controllers but all the rest.
#[test]
fn v2_cgroups_are_killed_whole_or_thread_by_thread() {
    for kind in ["domain", "threaded"] {
        let Some(mut playground) = Playground::new(kind) else { return };
        let Some(top) = playground.cgroup.v2.clone() else { return };
        let part = top.join("part");
        fs::create_dir(&part).unwrap();
        if kind == "threaded" {
            fs::write(part.join("cgroup.type"), kind).unwrap();
        }
        let pids = vec![playground.start("")];
        fs::write(part.join("cgroup.procs"), pids[0].to_string()).unwrap();
        // A threaded one lists no processes and cannot be killed at once: both are refused.
        let listed = fs::read_to_string(part.join("cgroup.procs"));
        assert_eq!(listed.is_ok(), kind == "domain", "{listed:?}");
        let part = Cgroup { v1: Vec::new(), v2: Some(part) };
        assert_eq!(part.pids().unwrap(), Some(pids), "{kind}");
        assert!(part.populated().unwrap(), "{kind}");
        part.kill_and_wait(Instant::now() + Duration::from_secs(5)).unwrap();
        assert_eq!(playground.ends(), [Some(libc::SIGKILL)], "{kind}");
        assert!(matches!(stats::stats(&part).unwrap(), stats::Stats::V2(_)), "{kind}");
        playground.remove();
    }
}

/// A directory that stands for a v2 cgroup.
fn fake(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let cgroup = Cgroup { v1: Vec::new(), v2: Some(dir.path().to_owned()) };
    (dir, cgroup)
}

#[test]
fn v2_kills_all_at_once() {
    let (dir, cgroup) = fake(&[
        ("cgroup.procs", "1\n"),
        ("cgroup.kill", ""),
        ("cgroup.events", "populated 1\nfrozen 0\n"),
    ]);
    assert!(cgroup.populated().unwrap());
    cgroup.kill().unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("cgroup.kill")).unwrap(), "1");
    let late = cgroup.kill_and_wait(Instant::now()).unwrap_err();
    assert!(matches!(late, Error::Deadline { .. }), "{late}");
    fs::write(dir.path().join("cgroup.events"), "populated 0\n").unwrap();
    cgroup.kill_and_wait(Instant::now()).unwrap();
}

#[test]
fn a_list_that_cannot_be_read_is_an_error_and_not_empty() {
    let (dir, cgroup) = fake(&[]);
    fs::create_dir(dir.path().join("cgroup.procs")).unwrap();
    assert!(matches!(cgroup.pids(), Err(Error::Io { .. })), "{:?}", cgroup.pids());
}

#[test]
fn a_cgroup_with_the_shim_in_it_is_not_killed() {
    let me = format!("{}\n", std::process::id());
    let (dir, cgroup) = fake(&[("cgroup.procs", &me), ("cgroup.kill", "")]);
    let refused = cgroup.kill().unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    assert_eq!(fs::read_to_string(dir.path().join("cgroup.kill")).unwrap(), "");
}

/// What the kernel kills a child of, the one that offers itself, after which its shell lives on.
const HOG: &str = "head -c 64M /dev/zero |
    sh -c 'echo 1000 >/proc/self/oom_score_adj; exec tail >/dev/null'";

/// Checks the number of processes killed for one hog: the kernel takes one more where the memory of
/// the first is not free soon enough, as on a busy machine.
fn some_of_the_hog(killed: u64) -> u64 {
    assert!((1..=3).contains(&killed), "{killed} killed");
    killed
}

impl Playground {
    /// Where memory is counted, if it is.
    fn memory(&self) -> Option<PathBuf> {
        let v2 = self.cgroup.v2.as_deref().filter(|dir| dir.join("memory.max").exists());
        self.cgroup.controller("memory").or(v2).map(Path::to_owned)
    }

    /// Runs `script` in `dir`, to its end.
    fn run(&self, dir: &Path, script: &str) {
        let script = format!("echo $$ >{}/cgroup.procs; {script}", dir.display());
        let shell = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
        assert!(shell.unwrap().code().is_some(), "the shell itself lives on");
    }
}

/// Sets a limit of 8 MiB, without swap.
fn limit_memory(dir: &Path) {
    const LIMIT: &str = "8388608";
    if dir.join("memory.max").exists() {
        fs::write(dir.join("memory.max"), LIMIT).unwrap();
        fs::write(dir.join("memory.swap.max"), "0").ok();
    } else {
        fs::write(dir.join("memory.limit_in_bytes"), LIMIT).unwrap();
        fs::write(dir.join("memory.memsw.limit_in_bytes"), LIMIT).ok();
    }
}

/// Runs `test` in an event loop with a watch on a limited memory cgroup, if this host has such.
fn with_memory_limit(name: &str, test: impl AsyncFnOnce(&mut Playground, &Path, &OomWatch)) {
    let Some(mut playground) = Playground::new(name) else { return };
    let Some(dir) = playground.memory() else { return };
    limit_memory(&dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let watch = OomWatch::open(&playground.cgroup).unwrap();
        test(&mut playground, &dir, &watch).await;
    });
}

fn check(watch: &OomWatch) -> Option<oom::Kills> {
    watch.check(&Cell::default())
}

/// Whether the kernel tells of a kill within `millis`.
async fn told(watch: &OomWatch, millis: u64) -> bool {
    tokio::time::timeout(Duration::from_millis(millis), watch.next()).await.is_ok()
}

#[test]
fn an_oom_kill_is_told_once_each() {
    with_memory_limit("oom", async |playground, dir, watch| {
        assert_eq!(check(watch), None, "nothing happened");
        assert!(!told(watch, 50).await);
        let (mut total, toll) = (0, Cell::default());
        for _ in 0..2 {
            playground.run(dir, HOG);
            // As for a process that was just reaped: the counter knows already.
            let kills = watch.check(&toll).unwrap();
            total += some_of_the_hog(kills.new);
            assert_eq!(toll.get().kills, total);
            assert_eq!(toll.get().limit, Some(kills.limit));
            assert_ne!(kills.limit, oom::Limit::Around);
            assert_eq!(check(watch), None, "told before");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let again = OomWatch::open(&playground.cgroup).unwrap();
        assert_eq!(check(&again), None, "what was before its time");
    });
}

#[test]
fn kills_in_short_order_are_one_episode() {
    with_memory_limit("storm", async |playground, dir, watch| {
        let began = Instant::now();
        let told = (0..8).filter(|_| {
            playground.run(dir, HOG);
            check(watch).is_some()
        });
        let told = told.count() as u128;
        let most = 1 + began.elapsed().as_millis() / 100;
        assert!((1..=most).contains(&told), "{told} of at most {most}");
    });
}

#[test]
fn an_oom_kill_is_told_of_while_others_live_on() {
    with_memory_limit("notice", async |playground, dir, watch| {
        // More than the kernel takes for one shortage.
        for hog in ["", "", "", HOG] {
            let script = format!("echo $$ >{}/cgroup.procs; {hog}\nexec sleep 60", dir.display());
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).stderr(Stdio::null());
            playground.children.push(shell.spawn().unwrap());
        }
        assert!(told(watch, 5000).await);
        let lives = |child: &mut Child| child.try_wait().unwrap().is_none();
        assert!(playground.children.iter_mut().any(lives), "somebody lives on");
        assert!(check(watch).is_some());
    });
}

#[test]
fn a_kill_in_a_nested_cgroup_and_its_removal() {
    with_memory_limit("nested", async |playground, dir, watch| {
        let nested = dir.join("nested");
        fs::create_dir(&nested).unwrap();
        playground.run(&nested, HOG);
        let kills = check(watch).unwrap();
        some_of_the_hog(kills.new);
        assert_ne!(kills.limit, oom::Limit::Around);
        playground.remove();
        // v1 notifies of that, too.
        assert!(!told(watch, 700).await);
        assert_eq!(check(watch), None);
    });
}

#[test]
fn a_limit_around_the_container_is_not_its_own() {
    let Some(playground) = Playground::new("around") else { return };
    let Some(pod) = playground.memory() else { return };
    limit_memory(&pod);
    let inner = pod.join("c");
    // On v2 the container is one that has the memory controller by its parent.
    fs::write(pod.join("cgroup.subtree_control"), "+memory").ok();
    fs::create_dir(&inner).unwrap();
    let cgroup = match playground.cgroup.controller("memory") {
        Some(_) => {
            let v1 = Directory { controllers: "memory".into(), path: inner.clone() };
            Cgroup { v1: vec![v1], v2: None }
        }
        None => Cgroup { v1: Vec::new(), v2: Some(inner.clone()) },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let watch = OomWatch::open(&cgroup).unwrap();
        playground.run(&inner, HOG);
        assert_eq!(check(&watch).unwrap().limit, oom::Limit::Around);
    });
}
