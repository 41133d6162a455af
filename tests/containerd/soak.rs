//! A mixed load for a while, with what goes wrong on a node: `--soak=MINUTES`.
//!
//! Pods with containers that tick, end, are stopped and probed; containers of `ctr`; containerd ends
//! every minute, in order or by SIGKILL, and is away for a while, during which programs end; shims are
//! killed. One pod stays all the time and is probed every second: its shim's memory is that of a long
//! life. Every exit status has to be right, and of every pod nothing may be left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::bed::{Bed, RwEvents};
use crate::cri::messages::{ContainerStatus, EXITED};
use crate::cri::{Cri, Pod, setup};
use crate::daemon::{Daemon, EventLog};
use crate::pods::cost::private;
use crate::{Shim, command, host};

/// Between two ends of containerd.
const BETWEEN: Duration = Duration::from_secs(60);
/// Writes ten lines a second.
const TICK: &[&str] = &["sh", "-c", "while :; do echo tick; sleep 0.1; done"];
/// The namespace of the containers of `ctr`.
const NAMESPACE: &str = "berth-test-soak";

/// What all threads share.
struct Soak<'a> {
    daemon: &'a Daemon,
    until: Instant,
    /// Held for reading during each request, for writing while containerd is away.
    away: RwLock<()>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    errors: Mutex<Vec<String>>,
    random: AtomicU64,
}

/// Runs the load for so long and prints what came of it; whether all was well.
pub(crate) fn run(daemon: &Daemon, archive: &std::path::Path, time: Duration) -> bool {
    daemon.import(NAMESPACE, archive);
    let events: RwEvents = RwLock::new(Some(EventLog::start(daemon, NAMESPACE)));
    let seed = std::process::id().into();
    let soak = Soak {
        daemon,
        until: Instant::now() + time,
        away: RwLock::default(),
        counts: Mutex::default(),
        errors: Mutex::default(),
        random: AtomicU64::new(seed),
    };
    let memory = thread::scope(|scope| {
        for (number, shim) in [Shim::Berth, Shim::Pauseless, Shim::Berth].into_iter().enumerate() {
            let soak = &soak;
            scope.spawn(move || {
                soak.repeat(|round| soak.pod(shim, &format!("soak-{number}-{round}")))
            });
        }
        for number in 0..2 {
            let (soak, events) = (&soak, &events);
            scope.spawn(move || {
                soak.repeat(|round| soak.single(events, &format!("soak-{number}-{round}")));
            });
        }
        scope.spawn(|| soak.restarts(&events));
        scope.spawn(|| soak.resident(time)).join()
    });
    drop(events);
    host::remove_namespace(NAMESPACE);
    soak.report(time, memory.ok())
}

impl Soak<'_> {
    /// A number below `bound`, another one each time.
    fn random(&self, bound: u64) -> u64 {
        let next = |state: u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let state = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        (state.unwrap_or_default() >> 33) % bound
    }

    fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn pause(&self, most: u64) {
        thread::sleep(Duration::from_millis(self.random(most)));
    }

    /// Does something that needs containerd, and counts it.
    fn step<T>(&self, what: &'static str, action: impl FnOnce() -> T) -> T {
        let _here = self.away.read().unwrap_or_else(PoisonError::into_inner);
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
        action()
    }

    /// Does `round` again and again; one that fails is noted.
    fn repeat(&self, round: impl Fn(u64)) {
        for number in 0.. {
            if self.over() {
                return;
            }
            let done = panic::catch_unwind(AssertUnwindSafe(|| round(number)));
            if let Err(payload) = done {
                let text = payload.downcast_ref::<String>().cloned();
                let text =
                    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).into()));
                let text = format!("{}: {}", crate::FAILED_AT.take(), text.unwrap_or_default());
                println!("soak: {text}");
                self.errors.lock().unwrap().push(text);
            }
        }
    }

    /// The life of a pod, with what happens to one.
    fn pod(&self, shim: Shim, name: &str) {
        let cri = Cri::of(self.daemon);
        let pod = self.step("pods", || cri.run(shim.handler(), name, |_| ()));
        let mut ticking = self.step("containers", || pod.start("tick-0", TICK));
        for round in 1..3 + self.random(10) {
            match self.random(8) {
                0 => {
                    self.step("containers stopped", || pod.stop(&ticking, 0));
                    assert_eq!(self.await_exit(&pod, &ticking).exit_code, 137);
                    let name = format!("tick-{round}");
                    ticking = self.step("containers", || pod.start(&name, TICK));
                }
                1 | 2 => {
                    let status = self.random(100);
                    let script = format!("sleep 0.{}; exit {status}", self.random(10));
                    let program = ["sh", "-c", script.as_str()];
                    let name = format!("ends-{round}");
                    let ends = self.step("containers", || pod.start(&name, &program));
                    self.pause(1000);
                    let ended = self.await_exit(&pod, &ends);
                    if !self.was_forgotten(&ends, status, &ended) {
                        assert_eq!(u64::try_from(ended.exit_code), Ok(status), "{name}");
                    }
                }
                3 if self.random(6) == 0 => {
                    self.step("shims killed", || host::signal(pod.shim(), "KILL"));
                    // The CRI plugin knows no more than that it ended.
                    assert_ne!(self.await_exit(&pod, &ticking).exit_code, 0);
                    break;
                }
                _ => self.probe(&pod, &ticking),
            }
        }
        self.step("pods removed", || pod.remove());
    }

    /// What a kubelet does every second.
    fn probe(&self, pod: &Pod<'_>, container: &str) {
        let number = self.random(1_000_000).to_string();
        let said = self.step("probes", || pod.ask(container, &format!("echo {number}")));
        assert_eq!(said, number, "what an exec process has printed");
        thread::sleep(Duration::from_millis(500));
    }

    fn await_exit(&self, pod: &Pod<'_>, container: &str) -> ContainerStatus {
        command::until("the container's end is known", || {
            let status = self.step("status requests", || pod.status(container));
            Some(status).filter(|status| status.state == EXITED)
        })
    }

    /// Whether containerd was told of an exit, deleted the task, and was killed before its CRI plugin had
    /// written the status down: no shim has it then. Its log says so.
    fn was_forgotten(&self, container: &str, status: u64, ended: &ContainerStatus) -> bool {
        let exited = format!("exit_status:{status} ");
        let told = || {
            let log = BufReader::new(File::open(self.daemon.dir().join("log")).unwrap());
            let mut about =
                log.lines().map_while(Result::ok).filter(|line| line.contains(container));
            about.any(|line| line.contains("exit event") && line.contains(&exited))
        };
        let forgotten = ended.exit_code == 255 && told();
        if forgotten {
            *self
                .counts
                .lock()
                .unwrap()
                .entry("exits told and forgotten by containerd")
                .or_default() += 1;
        }
        forgotten
    }

    /// A container of `ctr` that ends by itself, maybe while containerd is away.
    fn single(&self, events: &RwEvents, name: &str) {
        let bed = Bed::new(self.daemon, Shim::Berth, NAMESPACE, name, events);
        let (id, status) = (bed.name("a"), self.random(100));
        let script = format!("sleep {}.{}; exit {status}", self.random(3), self.random(10));
        self.step("containers of ctr", || bed.start(&[], &id, &["sh", "-c", &script]));
        command::until("the container's end is known", || {
            let state = self.step("status requests", || bed.state(&id));
            (state.as_deref() == Some("STOPPED")).then_some(())
        });
        let deleted = self.step("containers of ctr removed", || {
            let deleted = bed.ctr(&["task", "delete", &id]);
            bed.ctr(&["container", "delete", &id]).ok();
            deleted
        });
        // 2.x says it in words and ends well.
        let (_, said) = deleted.stderr.split_once("non-zero exit code ").unwrap_or_default();
        let said =
            said.split(|end: char| !end.is_ascii_digit()).next().and_then(|n| n.parse().ok());
        let found = said.or_else(|| u64::try_from(deleted.status).ok());
        assert_eq!(found, Some(status), "{}", deleted.stderr);
        bed.check_clean();
    }

    /// Ends containerd and starts it again, in order and by force in turns.
    fn restarts(&self, events: &RwEvents) {
        for round in 0_u64.. {
            let next = Instant::now() + BETWEEN;
            while Instant::now() < next.min(self.until) {
                thread::sleep(Duration::from_millis(100));
            }
            if self.over() {
                return;
            }
            let _away = self.away.write().unwrap_or_else(PoisonError::into_inner);
            let bed = Bed::new(self.daemon, Shim::Berth, NAMESPACE, "restart", events);
            let signal = if round % 2 == 0 { "TERM" } else { "KILL" };
            bed.restart(signal, || self.pause(5000));
            setup::await_service(self.daemon);
            *self.counts.lock().unwrap().entry("ends of containerd").or_default() += 1;
        }
    }

    /// The pod that stays: its shim's private memory after a tenth of the time, and at the end.
    fn resident(&self, time: Duration) -> (u64, u64) {
        let cri = Cri::of(self.daemon);
        let pod = self.step("pods", || cri.run(Shim::Berth.handler(), "soak-resident", |_| ()));
        let container = self.step("containers", || pod.start("tick", TICK));
        let warm = self.until - time / 10 * 9;
        let mut start = None;
        while !self.over() {
            self.probe(&pod, &container);
            if start.is_none() && Instant::now() > warm {
                start = Some(private(pod.shim()));
            }
        }
        let end = private(pod.shim());
        self.step("pods removed", || pod.remove());
        (start.unwrap_or(end), end)
    }

    /// Prints the figures; whether all was well.
    fn report(self, time: Duration, memory: Option<(u64, u64)>) -> bool {
        let errors = self.errors.into_inner().unwrap();
        println!("### {} minutes of mixed load\n", time.as_secs_f64() / 60.0);
        println!("containerd {}, {}\n", self.daemon.version, self.daemon.runtime.name());
        println!("| | |\n|---|---|");
        for (what, count) in self.counts.into_inner().unwrap() {
            println!("| {what} | {count} |");
        }
        println!("| lost or wrong exits, wrong output, leaks, other errors | {} |", errors.len());
        if let Some((start, end)) = memory {
            println!(
                "| private memory of the long-lived shim, early and at the end | {start} KiB, {end} KiB |"
            );
        }
        errors.iter().for_each(|error| println!("error: {error}"));
        // A heap has a little room to move in; a leak of one allocation in each probe is far more.
        let flat = memory.is_some_and(|(start, end)| end < start + 128);
        errors.is_empty() && flat
    }
}
