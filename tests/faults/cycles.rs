//! Create, kill and delete again and again, with random delays and random kills.
//!
//! `BERTH_TEST_CYCLES=1000` is how many, `BERTH_TEST_SEED` repeats a run whose seed was printed.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Random, assert_clean, remove_bundle, scripted};
use crate::support::{Host, Shim, Spec, patient, poll, skipped};

/// How many unless the environment says otherwise.
const CYCLES: u64 = 30;

/// Who is killed in a cycle, some time after its first request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Nobody,
    Shim,
    /// The command that it runs at that time.
    Runtime(&'static str),
    Container,
    ShimAndContainer,
}

impl Victim {
    fn choose(random: &mut Random) -> Self {
        const COMMANDS: [&str; 5] = ["create", "start", "exec", "kill", "delete"];
        match random.below(6) {
            0 => Self::Nobody,
            1 | 2 => Self::Shim,
            3 => Self::Runtime(COMMANDS[random.below(5) as usize]),
            4 => Self::Container,
            _ => Self::ShimAndContainer,
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn cycles_with_random_delays_and_kills_leave_nothing() {
    if skipped("whatever is killed, nothing is left") {
        return;
    }
    let count = number("BERTH_TEST_CYCLES").unwrap_or(CYCLES);
    let seed = number("BERTH_TEST_SEED").unwrap_or(1);
    eprintln!("{count} cycles, BERTH_TEST_SEED={seed}");
    let killed = thread::scope(|scope| {
        let worker = |number: u64| {
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(2).wrapping_add(number));
                let host = scripted();
                (number..count).step_by(2).filter(|n| cycle(&host, &mut random, *n)).count()
            })
        };
        let workers = [0, 1].map(worker);
        workers.map(|worker| worker.join().unwrap_or_else(|_| panic!("BERTH_TEST_SEED={seed}")))
    });
    eprintln!("{} daemons were killed", killed[0] + killed[1]);
}

/// One life of a container; whether its daemon was killed.
fn cycle(host: &Host, random: &mut Random, number: u64) -> bool {
    let id = format!("c{}", number % 6);
    let victim = Victim::choose(random);
    let delay = random.below(250);
    let name = format!("cycle {number}: {victim:?} after {delay} ms");
    let shim = host.start(&id, Spec::idle());
    if let Victim::Runtime(command) = victim {
        let shell = format!("do (sleep 0.{:03}; kill -9 $$) >/dev/null 2>&1 &", delay / 4);
        host.script().set(command, &shell);
    }
    let pid = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(delay));
            strike(victim, &shim, &pid);
        });
        live(&shim, &id, random, &pid);
    });
    host.script().reset();
    let is_killed = matches!(victim, Victim::Shim | Victim::ShimAndContainer);
    if is_killed {
        shim.wait_gone();
        assert_eq!(host.delete(&id).response.exit_status, 137, "{name}");
    } else {
        finish(&shim, &id, &name);
    }
    expect_nothing(host, &shim, &name);
    remove_bundle(host, &id);
    is_killed
}

/// What a client asks for; anything may fail, and the rest is asked for all the same.
fn live(shim: &Shim<'_>, id: &str, random: &mut Random, pid: &AtomicU32) {
    let mut pause = || thread::sleep(Duration::from_millis(random.below(40)));
    if let Ok(made) = shim.create_plain(id) {
        pid.store(made, Ordering::SeqCst);
    }
    pause();
    drop(shim.start(id, ""));
    pause();
    drop(shim.exec_run(id, "e", "exec sleep 1000"));
    pause();
    drop(shim.kill(id, "e", libc::SIGTERM));
    pause();
    drop(shim.kill_all(id, libc::SIGKILL));
}

fn strike(victim: Victim, shim: &Shim<'_>, pid: &AtomicU32) {
    if matches!(victim, Victim::Container | Victim::ShimAndContainer) {
        let pid = pid.load(Ordering::SeqCst);
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(shim.host().tag()) {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL); // it may have ended
        }
    }
    if matches!(victim, Victim::Shim | Victim::ShimAndContainer) {
        shim.crash();
    }
}

/// Ends a container whose daemon lives, as containerd does.
fn finish(shim: &Shim<'_>, id: &str, name: &str) {
    if shim.state(id, "").is_ok() {
        drop(shim.kill_all(id, libc::SIGKILL));
        let waited = shim.within(Duration::from_secs(30)).wait(id, "");
        assert_eq!(waited.expect(name).exit_status, 137, "{name}");
        assert_eq!(shim.delete(id, "").expect(name).exit_status, 137, "{name}");
    }
    drop(shim.shutdown(id));
    shim.wait_gone();
}

#[track_caller]
fn expect_nothing(host: &Host, shim: &Shim<'_>, name: &str) {
    let is_clean = || {
        let counts = [host.mounts().len(), host.cgroups().len(), host.states().len()];
        counts == [0; 3] && host.processes().is_empty()
    };
    poll(patient(Duration::from_secs(10)), || is_clean().then_some(()));
    assert_clean(host, name);
    let socket = shim.address().trim_start_matches("unix://");
    assert!(!Path::new(socket).exists(), "{name}: {socket}");
}
