//! What a process has used so far.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU time and wake-ups of a process at one moment.
pub(crate) struct Usage {
    cpu: Duration,
    switches: BTreeMap<u32, u64>,
}

/// The difference between two moments.
pub(crate) struct Spent {
    pub(crate) cpu: Duration,
    pub(crate) wake_ups: u64,
}

impl Usage {
    /// CPU time in nanoseconds of all threads, those that have ended too, but not of child processes;
    /// voluntary context switches of each living thread.
    pub(crate) fn of(pid: i32) -> Self {
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).unwrap();
        let cpu = Duration::from(clock.now().unwrap());
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let switches = tasks.filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let count =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            Some((task.file_name().to_str()?.parse().ok()?, count.trim().parse().ok()?))
        });
        Self { cpu, switches: switches.collect() }
    }

    /// CPU time of the thread that calls, in nanoseconds.
    pub(crate) fn of_this_thread() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu
    }

    /// What was used since `before`. A thread that ended in between takes its wake-ups with it; the
    /// shims that are known keep their threads.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let earlier = |thread| before.switches.get(thread).copied().unwrap_or(0);
        let wake_ups = self.switches.iter().map(|(thread, &count)| count - earlier(thread)).sum();
        Spent { cpu: self.cpu - before.cpu, wake_ups }
    }
}
