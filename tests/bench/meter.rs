//! CPU time of processes that are together in a cgroup.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::support::{SOON, hierarchies, poll};

/// A cgroup above those of a host's containers, and one in it for their shims. It is gone when dropped.
pub(crate) struct Meter {
    /// Counts all that is below.
    dir: PathBuf,
    /// Where the processes are that would be in the one above; cgroup v2 forbids that.
    place: PathBuf,
    /// Where this thread, or on v2 this process, came from.
    origin: PathBuf,
    is_v1: bool,
}

impl Meter {
    /// Makes both for the host that is marked with `tag`.
    pub(crate) fn new(tag: &str) -> Self {
        let all = hierarchies();
        let has = |options: &Option<String>| {
            options.as_ref().is_some_and(|words| words.split(',').any(|word| word == "cpuacct"))
        };
        let v1 = all.iter().find(|(options, _)| has(options));
        let v2 = || all.iter().find(|(options, _)| options.is_none());
        let (options, root) = v1.or_else(v2).expect("a hierarchy that counts CPU time");
        let is_v1 = options.is_some();
        let dir = root.join(format!("berth-test-{tag}"));
        let place = dir.join("shim");
        fs::create_dir_all(&place).unwrap();
        let text = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let own = text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let names = fields.next()?;
            let wanted = if is_v1 { "cpuacct" } else { "" };
            names.split(',').any(|name| name == wanted).then(|| fields.next().unwrap())
        });
        let origin = root.join(own.unwrap().trim_start_matches('/'));
        Self { dir, place, origin, is_v1 }
    }

    /// Does `action` in the cgroup: what it starts is counted. What this thread (on v2: this process)
    /// uses meanwhile is returned, since it is counted too.
    pub(crate) fn within<T>(&self, action: impl FnOnce() -> T) -> (T, Duration) {
        let clock = match self.is_v1 {
            true => ClockId::CLOCK_THREAD_CPUTIME_ID,
            false => ClockId::CLOCK_PROCESS_CPUTIME_ID,
        };
        let now = || Duration::from(clock_gettime(clock).unwrap());
        self.join(&self.place);
        let before = now();
        let value = action();
        let used = now() - before;
        self.join(&self.origin);
        (value, used)
    }

    fn join(&self, dir: &Path) {
        let file = dir.join(if self.is_v1 { "tasks" } else { "cgroup.procs" });
        fs::write(file, "0").unwrap();
    }

    /// What was used so far by all that are or were in it.
    pub(crate) fn usage(&self) -> Duration {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap();
        if self.is_v1 {
            return Duration::from_nanos(read("cpuacct.usage").trim().parse().unwrap());
        }
        let text = read("cpu.stat");
        let value = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Duration::from_micros(value.unwrap().parse().unwrap())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // A process counts until it is reaped. The host says what is left then.
        let _ = poll(SOON, || fs::remove_dir(&self.place).ok());
    }
}
