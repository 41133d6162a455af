//! What the kernel says of a process, for metrics and for people.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

/// Memory and threads of a process, as far as the kernel tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Bytes of its address space.
    pub(crate) virtual_memory: Option<u64>,
    /// Bytes of it that are in memory, shared ones too.
    pub(crate) resident: Option<u64>,
    /// Bytes that it alone has, and has written to: what it costs.
    pub(crate) private_dirty: Option<u64>,
    /// Its threads.
    pub(crate) threads: Option<u64>,
}

impl Figures {
    /// Those of `/proc/PROCESS`: a pid, or `self`.
    pub(crate) fn read(process: &str) -> Self {
        let read = |file| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        Self::of(&read("status"), &read("smaps_rollup"))
    }

    fn of(status: &str, rollup: &str) -> Self {
        Self {
            virtual_memory: number(status, "VmSize:").map(|kib| kib << 10),
            resident: number(status, "VmRSS:").map(|kib| kib << 10),
            private_dirty: number(rollup, "Private_Dirty:").map(|kib| kib << 10),
            threads: number(status, "Threads:"),
        }
    }
}

/// The number in the line that begins with `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

/// CPU time of this process, in user mode and in the kernel.
pub(super) fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let time = |value: nix::sys::time::TimeVal| {
        let micros = value.tv_sec().saturating_mul(1_000_000).saturating_add(value.tv_usec());
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Descriptors that this process has, and how many it may have.
pub(super) fn descriptors() -> (usize, u64) {
    // One of them is the directory's own.
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    (open, getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_from_the_kernels_tables() {
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t       3 kB\nThreads:\t2\n";
        let rollup = "0-1 ---p 00 00:00 0 [rollup]\nPss_Dirty: 9 kB\nPrivate_Dirty:        7 kB\n";
        let expected = Figures {
            virtual_memory: Some(2 << 20),
            resident: Some(3 << 10),
            private_dirty: Some(7 << 10),
            threads: Some(2),
        };
        assert_eq!(Figures::of(status, rollup), expected);
        assert_eq!(Figures::of("VmRSS: x", ""), Figures::default());
        assert!(Figures::read("self").resident.is_some_and(|bytes| bytes > 0));
        assert!(descriptors().0 >= 3);
    }
}
