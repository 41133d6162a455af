//! Processes that the kernel killed for lack of memory, counted by their cgroup.
//!
//! The kernel counts a kill before it sends the signal, so whoever reads the counter after the
//! process was reaped knows why it died. A notification comes earlier, for those who live on.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::pread;
use nix::unistd::read;
use tokio::io::Interest;

use crate::cgroup::{Cgroup, file, tree};
use crate::ready::Ready;

/// Kills within this time are one episode: the kernel may kill several processes for one shortage
/// (`memory.oom.group`), and a storm of shortages makes no storm of events.
const EPISODE: Duration = Duration::from_millis(100);
/// Milliseconds between looks at a v1 counter: v1 notifies before it kills, and the kernel's report
/// of a kill goes to the console first.
const PAUSES: [u64; 7] = [5, 10, 20, 40, 80, 160, 320];
/// What does not fit any more when memory runs out: at most 8 pages at once, of which some are left.
const LARGEST_CHARGE: u64 = 64 << 10;
/// Takes the whole of `memory.events` or `memory.oom_control`, several times over.
const BUFFER: usize = 1024;

/// Watches the memory cgroup of one container; holds one descriptor.
pub(crate) struct OomWatch {
    counter: Counter,
    /// Tells of kills, or of what may lead to one; without it only [`OomWatch::check`] does.
    ready: Option<Ready>,
    last: Cell<Counts>,
    /// What the kernel said most recently: systemd removes a cgroup as soon as it is empty, which may
    /// be before [`OomWatch::check`].
    seen: Cell<Counts>,
    /// Whose limit the kills in `seen` are about.
    limit: Cell<Limit>,
    told: Cell<Option<Instant>>,
}

/// Where the kills are counted.
enum Counter {
    /// The directory, whose `memory.oom_control` says `oom_kill N`, nested cgroups not included.
    V1(PathBuf),
    /// `memory.events`, which includes nested cgroups.
    V2(Rc<OwnedFd>),
}

/// What a memory cgroup has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Processes killed; each one of a group that was killed as a whole.
    kills: u64,
    /// On v1 those of nested cgroups, whose count goes when they are removed.
    nested: u64,
    /// On v2: how often memory ran out because of a limit of this cgroup or a nested one.
    own: u64,
}

/// An episode that has not been told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kills {
    /// Processes killed since the last look.
    pub(crate) new: u64,
    /// Whose limit was hit.
    pub(crate) limit: Limit,
}

/// All kills in a container since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toll {
    /// Processes killed.
    pub(crate) kills: u64,
    /// How often that was told.
    pub(crate) episodes: u64,
    /// Whose limit was hit at the last kill; `None` without one.
    pub(crate) limit: Option<Limit>,
}

/// Whose limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The container's, or one that it has set for a part of itself.
    Own,
    /// On v1: the container's was reached at least once, or a process of a nested cgroup died.
    LikelyOwn,
    /// That of a cgroup around the container, as a pod's, or the host's memory.
    Around,
}

impl OomWatch {
    /// Begins to watch; what was killed before is not told. `None` if the container has no memory
    /// cgroup of its own. Where the kernel does not notify (real-time kernels with v1), it is
    /// still counted.
    pub(crate) fn open(cgroup: &Cgroup) -> Option<Self> {
        let (counter, ready) = match (cgroup.controller("memory"), &cgroup.v2) {
            (Some(dir), _) => (Counter::V1(dir.to_owned()), notify(dir)),
            (None, Some(dir)) => {
                let events: Rc<OwnedFd> =
                    Rc::new(File::open(dir.join("memory.events")).ok()?.into());
                let ready = Ready::register(events.clone(), Interest::PRIORITY);
                (Counter::V2(events), ready)
            }
            (None, None) => return None,
        };
        let last = Cell::new(counter.read().ok()?);
        let ready = ready.inspect_err(|error| log::debug!("no notice of OOM kills: {error}")).ok();
        let (seen, limit) = (last.clone(), Cell::new(Limit::Around));
        Some(Self { counter, ready, last, seen, limit, told: Cell::default() })
    }

    /// Resolves when [`OomWatch::check`] has something to say, and does not take it.
    pub(crate) async fn next(&self) {
        let pauses: &[u64] = match self.counter {
            Counter::V1(_) => &PAUSES,
            Counter::V2(_) => &[],
        };
        loop {
            self.notified().await;
            let mut pauses = pauses.iter();
            loop {
                // v1 notifies of the cgroup's removal, too, and then it counts nothing.
                if self.look().since(self.last.get()) > 0 {
                    return;
                }
                let Some(pause) = pauses.next() else { break };
                tokio::time::sleep(Duration::from_millis(*pause)).await;
            }
        }
    }

    async fn notified(&self) {
        let Some(ready) = &self.ready else { return std::future::pending().await };
        let interest = match self.counter {
            Counter::V1(_) => Interest::READABLE,
            Counter::V2(_) => Interest::PRIORITY,
        };
        // An error comes only from a runtime that is going away.
        let Ok(mut notice) = ready.ready(interest).await else {
            return std::future::pending().await;
        };
        notice.clear_ready();
        if let Counter::V1(_) = self.counter {
            let _ = read(ready.get_ref().as_fd(), &mut [0; 8]); // resets it
        }
    }

    /// Notes what the kernel has counted, for a later [`OomWatch::check`].
    pub(crate) fn note(&self) {
        self.look();
    }

    /// The kernel's counts, or those of the last look if the cgroup is gone.
    fn look(&self) -> Counts {
        let seen = self.seen.get();
        let Ok(counts) = self.counter.read() else { return seen };
        if counts.since(seen) > 0 {
            self.limit.set(match &self.counter {
                Counter::V1(dir) if counts.nested > seen.nested || was_full(dir) => {
                    Limit::LikelyOwn
                }
                Counter::V2(_) if counts.own > self.last.get().own => Limit::Own,
                _ => Limit::Around,
            });
        }
        self.seen.set(counts);
        counts
    }

    /// The kills since the last one of these, which `toll` counts; `None` for those that follow
    /// within 100 ms of an episode that was told, as they are a part of it.
    ///
    /// Costs one system call on v2, four on v1. A cgroup that is gone has said all by then.
    pub(crate) fn check(&self, toll: &Cell<Toll>) -> Option<Kills> {
        let counts = self.look();
        let new = counts.since(self.last.replace(counts));
        if new == 0 {
            return None;
        }
        let limit = self.limit.get();
        let same = self.told.get().is_some_and(|told| told.elapsed() < EPISODE);
        let Toll { kills, episodes, .. } = toll.get();
        let episodes = episodes + u64::from(!same);
        toll.set(Toll { kills: kills + new, episodes, limit: Some(limit) });
        if same {
            return None;
        }
        self.told.set(Some(Instant::now()));
        Some(Kills { new, limit })
    }
}

impl Counter {
    fn read(&self) -> io::Result<Counts> {
        match self {
            Self::V2(events) => Ok(Counts::parse(text(events.as_fd(), &mut [0; BUFFER])?)),
            Self::V1(dir) => {
                let mut all = Counts::default();
                let dirs = tree::nested(dir)?;
                if dirs.is_empty() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                for nested in dirs {
                    let control = file::absent(File::open(nested.join("memory.oom_control")))?;
                    let Some(control) = control else { continue };
                    let counts = Counts::parse(text(control.as_fd(), &mut [0; BUFFER])?);
                    if nested == *dir {
                        all.kills = counts.kills;
                    } else {
                        all.nested += counts.kills;
                    }
                }
                Ok(all)
            }
        }
    }
}

impl Counts {
    /// From `memory.events` or v1's `memory.oom_control`; what is not there is 0.
    fn parse(text: &str) -> Self {
        let number = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            let (_, value) = lines.find(|(name, _)| *name == key)?;
            value.parse().ok()
        };
        Self {
            kills: number("oom_kill").unwrap_or_default(),
            nested: 0,
            own: number("oom").unwrap_or_default(),
        }
    }

    /// How many were killed since `last`, as far as one can know.
    fn since(self, last: Self) -> u64 {
        self.kills.saturating_sub(last.kills) + self.nested.saturating_sub(last.nested)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "at its own memory limit",
            Self::LikelyOwn => "probably at its own memory limit",
            Self::Around => "at the memory limit of a cgroup around it, or of the host",
        })
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} killed {}", self.new, self.limit)
    }
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(limit) = self.limit else { return f.write_str("none killed") };
        write!(f, "{} killed, told {} times, the last {limit}", self.kills, self.episodes)
    }
}

/// The eventfd that v1's kernel writes to when memory runs out in `dir`, and when `dir` goes.
fn notify(dir: &Path) -> io::Result<Ready> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(dir.join("memory.oom_control"))?; // needed for the registration only
    let both = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    file::write(&dir.join("cgroup.event_control"), &both)?;
    Ready::register(Rc::new(event.into()), Interest::READABLE)
}

/// Whether the v1 cgroup was ever at its limit, of memory or of memory and swap. `memory.failcnt`
/// would say it, but stays 0 on newer kernels (seen with 6.18).
fn was_full(dir: &Path) -> bool {
    let number = |name: String| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    ["memory", "memory.memsw"].iter().any(|kind| {
        let most = number(format!("{kind}.max_usage_in_bytes"));
        let limit = number(format!("{kind}.limit_in_bytes"));
        most.zip(limit).is_some_and(|(most, limit)| most.saturating_add(LARGEST_CHARGE) > limit)
    })
}

/// The present text of an open control file: from its start, the kernel makes it anew.
fn text<'a>(file: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let len = pread(file, buffer, 0)?;
    std::str::from_utf8(&buffer[..len]).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let counts = Counts::parse(text);
    assert_eq!(counts.since(counts), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_leniently() {
        let v2 = "low 0\nhigh 7\nmax 40\noom 3\noom_kill 2\noom_group_kill 1\n";
        let cases = [
            ("v2", v2, (2, 3)),
            ("v2 before Linux 5.17", "oom 1\noom_kill 1\n", (1, 1)),
            ("v1", "oom_kill_disable 0\nunder_oom 1\noom_kill 12\n", (12, 0)),
            ("v1, killing is off", "oom_kill_disable 1\nunder_oom 1\noom_kill 0\n", (0, 0)),
            ("garbage", "oom_kill x\noom\noom_kill 9\n", (0, 0)),
            ("empty", "", (0, 0)),
        ];
        for (name, text, (kills, own)) in cases {
            assert_eq!(Counts::parse(text), Counts { kills, nested: 0, own }, "{name}");
        }
    }

    #[test]
    fn kills_count_although_nested_cgroups_go() {
        let counts = |kills, nested| Counts { kills, nested, own: 0 };
        let cases = [
            ("nothing", counts(1, 2), counts(1, 2), 0),
            ("own", counts(1, 0), counts(3, 0), 2),
            ("nested", counts(1, 1), counts(1, 2), 1),
            ("nested one removed", counts(0, 5), counts(0, 0), 0),
            ("nested one removed, own killed", counts(0, 5), counts(1, 0), 1),
            ("all removed", counts(4, 5), counts(0, 0), 0),
        ];
        for (name, last, now, expected) in cases {
            assert_eq!(now.since(last), expected, "{name}");
        }
    }

    #[test]
    fn an_episode_is_described() {
        let kills = Kills { new: 1, limit: Limit::Own };
        assert_eq!(kills.to_string(), "1 killed at its own memory limit");
        let toll = Toll { kills: 3, episodes: 2, limit: Some(Limit::LikelyOwn) };
        assert_eq!(
            toll.to_string(),
            "3 killed, told 2 times, the last probably at its own memory limit"
        );
        assert_eq!(Toll::default().to_string(), "none killed");
    }
}
