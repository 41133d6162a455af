//! Streams of known bytes, and what a reader makes of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::support::within;

const MIB: u64 = 1 << 20;

/// How many bytes a large stream has: `BERTH_IO_BYTES`, 64 MiB unless it says otherwise.
pub(super) fn large() -> u64 {
    let text = std::env::var("BERTH_IO_BYTES").ok();
    text.map_or(64 * MIB, |text| text.parse().expect("BERTH_IO_BYTES is a number"))
}

/// The bytes of a stream: a pattern over and over.
#[derive(Clone)]
pub(super) struct Flow {
    pattern: Arc<[u8]>,
    total: u64,
    script: String,
}

impl Flow {
    /// The busybox program again and again, at least `total` bytes. Its pages reach the stream by
    /// sendfile(2).
    pub(super) fn programs(total: u64) -> Self {
        static PROGRAM: OnceLock<Arc<[u8]>> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| fs::read("/bin/busybox").unwrap().into());
        let rounds = total.div_ceil(program.len() as u64);
        let script =
            format!("i=0; while [ $i -lt {rounds} ]; do cat /bin/busybox; i=$((i+1)); done");
        Self { pattern: program.clone(), total: rounds * program.len() as u64, script }
    }

    /// `total` bytes of a line again and again, which are written.
    pub(super) fn lines(total: u64) -> Self {
        let line = "a line of the other stream";
        let pattern = format!("{line}\n").into_bytes().repeat(10_000);
        let script = format!("yes {line} | head -c {total}");
        Self { pattern: pattern.into(), total, script }
    }

    /// The first `total` bytes of the program, each by a write(2) of its own, with a pause after each
    /// 5000.
    pub(super) fn single_bytes(total: u64) -> Self {
        let Self { pattern, .. } = Self::programs(1);
        let script = format!(
            "i=0; while [ $i -lt {} ]; do \
             dd if=/bin/busybox bs=1 count=5000 skip=$((i*5000)) 2>/dev/null; \
             sleep 0.01; i=$((i+1)); done",
            total / 5000,
        );
        Self { pattern, total: total / 5000 * 5000, script }
    }

    /// The numbers from 1 on, a line each, as a terminal hands them out.
    pub(super) fn numbers(last: u64) -> Self {
        let text: String = (1..=last).map(|number| format!("{number}\r\n")).collect();
        let script = format!("busybox seq 1 {last}");
        Self { total: text.len() as u64, pattern: text.into_bytes().into(), script }
    }

    /// What writes it to its standard output.
    pub(super) fn script(&self) -> &str {
        &self.script
    }

    /// The bytes from `at` on, some of them.
    fn part(&self, at: u64) -> &[u8] {
        let length = self.pattern.len() as u64;
        let start = usize::try_from(at % length).unwrap();
        let part = &self.pattern[start..];
        &part[..usize::try_from(self.total - at).unwrap_or(usize::MAX).min(part.len())]
    }

    /// Fails if `bytes` are not those from `at` on.
    fn check(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let part = self.part(at);
            let count = part.len().min(bytes.len());
            assert!(count > 0, "more than {} bytes: {:?}", self.total, text(bytes));
            if part[..count] != bytes[..count] {
                let differ = part.iter().zip(bytes).position(|(a, b)| a != b).unwrap();
                let (expected, found) = (text(&part[differ..]), text(&bytes[differ..]));
                panic!("byte {}: {found:?} is not {expected:?}", at + differ as u64);
            }
            bytes = &bytes[count..];
            at += count as u64;
        }
    }

    /// Writes it to the FIFO `path` as soon as somebody reads that.
    pub(super) fn feed(&self, path: &str) -> Feeder {
        let (flow, path) = (self.clone(), PathBuf::from(path));
        let written = Arc::new(AtomicU64::new(0));
        let count = written.clone();
        let thread = spawn(move || {
            let mut fifo = fs::OpenOptions::new().write(true).open(path).unwrap();
            let mut at = 0;
            while at < flow.total {
                let part = flow.part(at);
                let part = &part[..part.len().min(64 << 10)];
                if let Err(error) = fifo.write_all(part) {
                    assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
                    return;
                }
                at += part.len() as u64;
                count.store(at, Ordering::SeqCst);
            }
        });
        Feeder { thread, written }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned()
}

/// How a reader takes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    /// With a pause after each 64 KiB.
    Slow,
    /// It closes its end again and again, and comes back a little later.
    Coming,
}

/// Somebody who reads a FIFO to its end and compares what comes.
pub(super) struct Taker(JoinHandle<()>);

impl Taker {
    /// Opens `path`, which waits for a writer.
    pub(super) fn start(path: &str, flow: &Flow, pace: Pace) -> Self {
        let (path, flow) = (path.to_owned(), flow.clone());
        Self(spawn(move || take(Path::new(&path), &flow, pace)))
    }

    /// Waits for the end of the stream; fails unless all that was expected has come, and no more.
    #[track_caller]
    pub(super) fn finish(self, what: &str) {
        join(self.0, what);
    }
}

fn take(path: &Path, flow: &Flow, pace: Pace) {
    let mut buffer = vec![0; 64 << 10];
    let (mut fifo, mut at, mut next) = (File::open(path).unwrap(), 0, MIB);
    loop {
        // A reader that comes and goes takes odd parts.
        let most = if pace == Pace::Coming { 50_021 } else { buffer.len() };
        let count = fifo.read(&mut buffer[..most]).unwrap();
        if count == 0 {
            break;
        }
        flow.check(at, &buffer[..count]);
        at += count as u64;
        match pace {
            Pace::Fast => {}
            Pace::Slow => sleep(Duration::from_millis(2)),
            Pace::Coming if at > next && at < flow.total => {
                next = at + flow.total / 10;
                drop(fifo);
                sleep(Duration::from_millis(20));
                fifo = File::open(path).unwrap();
            }
            Pace::Coming => {}
        }
    }
    assert_eq!(at, flow.total, "bytes until the end");
}

/// Somebody who writes a FIFO.
pub(super) struct Feeder {
    thread: JoinHandle<()>,
    written: Arc<AtomicU64>,
}

impl Feeder {
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Waits until nothing was taken for 300 ms; how much was before.
    pub(super) fn stuck_at(&self) -> u64 {
        let mut before = u64::MAX;
        within(limit(), "the writer waits", || {
            let now = self.written();
            let stuck = now > 0 && now == before;
            before = now;
            sleep(Duration::from_millis(300));
            stuck.then_some(now)
        })
    }

    /// Waits until `count` bytes were taken; how many were.
    pub(super) fn at_least(&self, count: u64) -> u64 {
        within(limit(), "bytes are taken", || Some(self.written()).filter(|now| *now >= count))
    }

    /// Waits until it has ended, as [`Feeder::finish`] does.
    pub(super) fn await_end(&self, what: &str) {
        within(limit(), what, || self.thread.is_finished().then_some(()));
    }

    /// Waits until everything was taken, or nobody is left to take it.
    #[track_caller]
    pub(super) fn finish(self, what: &str) {
        join(self.thread, what);
    }
}

/// A loaded machine moves 10 MiB a second.
fn limit() -> Duration {
    Duration::from_secs(60 + large() / (10 * MIB))
}

#[track_caller]
fn join(thread: JoinHandle<()>, what: &str) {
    within(limit(), what, || thread.is_finished().then_some(()));
    if let Err(payload) = thread.join() {
        let text = payload.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("{what}: {text}");
    }
}
