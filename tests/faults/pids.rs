//! A pid that is used again is another process: it is not signalled, and its end is nobody else's.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use super::apart::is_apart;
use super::inside::in_hosts_namespace;
use super::{assert_clean, remove_bundle};
use crate::support::{Code, Host, Shim, Spec, skipped};

/// The pid after which the kernel looks for the next free one; of this PID namespace.
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// A process that has nothing to do with berth; killed in the end.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    /// One that has this pid.
    fn with_pid(pid: u32) -> Self {
        for _ in 0..1000 {
            fs::write(LAST, (pid - 1).to_string()).unwrap();
            let stranger = Self::new();
            if stranger.0.id() == pid {
                return stranger;
            }
        }
        panic!("pid {pid} is not free");
    }

    #[track_caller]
    fn expect_alive(&mut self, name: &str) {
        assert_eq!(self.0.try_wait().unwrap(), None, "{name}: the stranger was killed");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A request that comes too late.
type Late = (&'static str, fn(&Shim<'_>));

const LATE: [Late; 5] = [
    ("Kill", |shim| {
        assert_eq!(shim.kill("c", "", 9).unwrap_err().code, Code::NOT_FOUND);
    }),
    ("Kill of all", |shim| drop(shim.kill_all("c", 9))),
    ("Kill of an exec process", |shim| {
        assert_eq!(shim.kill("c", "e", 9).unwrap_err().code, Code::NOT_FOUND);
    }),
    ("State, Pids, Stats", |shim| {
        assert_eq!(shim.state("c", "").unwrap().exit_status, 137);
        assert_eq!(shim.state("c", "e").unwrap().exit_status, 3);
        drop((shim.pids("c"), shim.stats("c")));
    }),
    ("Delete", |shim| {
        assert_eq!(shim.delete("c", "e").unwrap().exit_status, 3);
        assert_eq!(shim.delete("c", "").unwrap().exit_status, 137);
    }),
];

#[test]
fn a_request_that_comes_too_late_hits_nobody_who_has_the_pid() {
    const NAME: &str = "faults::pids::a_request_that_comes_too_late_hits_nobody_who_has_the_pid";
    if skipped("a pid is bound to its process") || !can_choose() || !is_apart(NAME, &[], "") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    let init = shim.run("c");
    let exec = shim.exec_run("c", "e", "exit 3").unwrap();
    shim.wait("c", "e").unwrap();
    shim.kill("c", "", 9).unwrap();
    shim.wait("c", "").unwrap();
    let mut strangers = [init, exec].map(Stranger::with_pid);
    for (name, late) in LATE {
        late(&shim);
        strangers.iter_mut().for_each(|stranger| stranger.expect_alive(name));
    }
    shim.stop();
}

#[test]
fn delete_hits_nobody_who_has_the_pid() {
    const NAME: &str = "faults::pids::delete_hits_nobody_who_has_the_pid";
    if skipped("a pid is bound to its process") || !can_choose() || !is_apart(NAME, &[], "") {
        return;
    }
    // The container ended before its daemon, or after.
    for is_before in [true, false] {
        let host = Host::new();
        let shim = host.start("c", Spec::idle());
        let init = shim.run("c");
        let end = || {
            nix::sys::signal::kill(pid(init), nix::sys::signal::Signal::SIGKILL).unwrap();
            crate::support::eventually("its end", || {
                (!Path::new(&format!("/proc/{init}")).exists()).then_some(())
            });
        };
        if is_before {
            end();
            shim.wait("c", "").unwrap();
        }
        shim.crash();
        if !is_before {
            end();
        }
        let mut stranger = Stranger::with_pid(init);
        let deleted = host.delete("c").response;
        assert_eq!((deleted.pid, deleted.exit_status), (init, 137));
        stranger.expect_alive("delete");
        assert_clean(&host, "delete");
        remove_bundle(&host, "c");
    }
}

fn pid(pid: u32) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap())
}

/// Whether a process can be given the pid one wants: the kernel's `CHECKPOINT_RESTORE`.
fn can_choose() -> bool {
    let can = Path::new(LAST).exists();
    if !can {
        eprintln!("skipped, this kernel has no {LAST}");
    }
    can
}

/// Whether a PID namespace has a `pid_max` of its own: Linux 6.14. Before, it is the whole machine's.
fn has_own_limit() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let has =
        numbers.next() >= Some(7) || (release.starts_with("6.") && numbers.next() >= Some(14));
    if !has {
        eprintln!("skipped, {release:?} has one pid_max for all");
    }
    has
}

#[test]
fn among_few_pids_each_process_has_its_own_end() {
    const NAME: &str = "faults::pids::among_few_pids_each_process_has_its_own_end";
    const COUNT: u32 = 60;
    // The first 300 are not given again, so these are 150, and an exec takes more than ten. crun lets go of
    // an exec process before it ends itself: where its pid is used again in that time, nobody can tell whose
    // exit is whose.
    let pid_max = if Host::new().runtime() == "runc" { 450 } else { 1500 };
    let few = format!("echo {pid_max} >/proc/sys/kernel/pid_max || exit");
    if skipped("a pid is bound to its process") || !has_own_limit() || !is_apart(NAME, &[], &few) {
        return;
    }
    // Its orphans are the daemon's, which knows nothing of them and reaps them.
    // There are not more at a time than leave room for others.
    let orphans = "trap '' TERM; while :; do set -- /proc/[0-9]*; [ $# -gt 50 ] || (: & :); done";
    let host = Host::new();
    let shim = host.start("c", in_hosts_namespace(Spec::sh(orphans)));
    shim.run("c");
    let mut strangers: Vec<_> = (0..10).map(|_| Stranger::new()).collect();
    let pids: Vec<u32> = thread::scope(|scope| {
        let of = |first: u32| {
            let (task, shim) = (shim.task(), &shim);
            scope.spawn(move || {
                let run = |n: u32| {
                    let id = format!("e{n}");
                    let script =
                        if n % 3 == 0 { "exec sleep 1000".to_owned() } else { format!("exit {n}") };
                    task.exec(&shim.exec_request("c", &id, &script)).unwrap();
                    let pid = task.start("c", &id).unwrap();
                    if n % 3 == 0 {
                        task.kill("c", &id, libc::SIGKILL).unwrap();
                    }
                    let expected = if n % 3 == 0 { 137 } else { n };
                    assert_eq!(task.wait("c", &id).unwrap().exit_status, expected, "{id}");
                    drop(task.kill("c", &id, libc::SIGKILL)); // too late
                    let deleted = task.delete("c", &id).unwrap();
                    assert_eq!((deleted.pid, deleted.exit_status), (pid, expected), "{id}");
                    pid
                };
                (first..COUNT).step_by(2).map(run).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..2).map(of).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    strangers.iter_mut().for_each(|stranger| stranger.expect_alive("execs"));
    for n in 0..COUNT {
        let expected = if n % 3 == 0 { 137 } else { n };
        host.sink.wait_for(&format!("exit c/e{n} {expected}"));
    }
    let of_one_thread = &pids[..pids.len() / 2];
    assert!(!of_one_thread.is_sorted(), "no pid was used again: {of_one_thread:?}");
    shim.end();
}
