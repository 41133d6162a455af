//! Output that nobody takes: kept in memory, then in a file, then dropped or made to wait.
//!
//! The sink's own buffer has the oldest bytes, then come those of the file, then those in memory.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use super::spill::Ring;
use crate::config::{self, OnFull};
use crate::meters::{self, Meters};

/// Memory that a stream may have beside the sink's buffer whatever is configured: the unit in which
/// bytes come.
pub(super) const LEAST: usize = 64 << 10;
/// The most that one operation on the file moves.
const CHUNK: usize = 256 << 10;

/// What is kept of an output, and where.
#[derive(Clone, Debug)]
pub(super) struct Keep {
    pub(super) policy: config::Io,
    /// The bundle, whose work directory has the file.
    pub(super) bundle: PathBuf,
    /// How messages name the stream.
    pub(super) name: String,
    /// Bytes that were dropped so far.
    pub(super) dropped: Rc<Cell<u64>>,
    /// Where those of all streams are counted, and the bytes that move.
    pub(super) meters: Rc<Meters>,
}

/// The bytes that wait for a sink.
#[derive(Debug)]
pub(super) struct Backlog<'a> {
    keep: &'a Keep,
    /// The youngest bytes.
    memory: VecDeque<u8>,
    /// How many of them there may be.
    limit: usize,
    /// What was read back from the file and is not written yet: the oldest bytes.
    front: VecDeque<u8>,
    file: Option<Ring>,
    /// The file cannot be written, until it has been emptied.
    broken: bool,
    before: u64,
}

impl<'a> Backlog<'a> {
    /// A backlog that begins with `first`; the sink itself has `in_sink` bytes of the buffer.
    pub(super) fn new(keep: &'a Keep, in_sink: usize, first: Vec<u8>) -> Self {
        let limit = keep.policy.buffer.bytes().saturating_sub(in_sink).max(LEAST);
        let before = keep.dropped.get();
        let memory = first.into();
        Self { keep, memory, limit, front: VecDeque::new(), file: None, broken: false, before }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.front.is_empty() && self.in_file() == 0
    }

    /// The oldest bytes, some of them; after [`Backlog::fetch`] none only if nothing waits.
    pub(super) fn oldest(&self) -> &[u8] {
        let queue = if self.front.is_empty() { &self.memory } else { &self.front };
        let (first, second) = queue.as_slices();
        if first.is_empty() { second } else { first }
    }

    /// The first `count` of [`Backlog::oldest`] are written.
    pub(super) fn written(&mut self, count: usize) {
        let queue = if self.front.is_empty() { &mut self.memory } else { &mut self.front };
        queue.drain(..count);
        if queue.is_empty() {
            *queue = VecDeque::new();
        }
    }

    /// Brings the oldest bytes into memory, if they are in the file.
    pub(super) async fn fetch(&mut self) {
        let chunk = self.chunk();
        let Some(file) = self.file.as_mut().filter(|file| file.length > 0) else { return };
        if !self.front.is_empty() {
            return;
        }
        let length = file.length;
        match file.take(chunk).await {
            Ok(bytes) => self.front = bytes.into(),
            Err(error) => {
                log::error!("{} cannot be read back from its file: {error}", self.keep.name);
                self.dropped(length);
                self.file = None;
            }
        }
        if self.in_file() == 0 {
            self.file = None; // its room on the disk is free again
            self.broken = false;
        }
    }

    /// Whether more can be taken, now or after room was made.
    pub(super) fn takes_more(&self) -> bool {
        self.keeps_more() || self.keep.policy.on_full == OnFull::DropOldest
    }

    /// Whether more can be taken, and nothing has to be dropped for it.
    pub(super) fn keeps_more(&self) -> bool {
        self.memory.len() < self.limit || self.can_spill()
    }

    /// How many bytes can be pushed, after the file took some of the memory's or the oldest were
    /// dropped.
    pub(super) async fn room(&mut self) -> usize {
        if self.memory.len() >= self.limit && self.can_spill() {
            self.spill(self.chunk()).await;
        }
        if self.memory.len() >= self.limit && self.keep.policy.on_full == OnFull::DropOldest {
            let quarter = (self.limit / 4).min(CHUNK);
            self.drop_oldest(quarter);
            if !self.broken && self.room_in_file() >= quarter as u64 {
                self.spill(quarter).await;
            }
        }
        self.limit.saturating_sub(self.memory.len())
    }

    /// Adds the youngest bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.memory.extend(bytes);
    }

    /// What is moved to or from the file at once, which costs a thread.
    fn chunk(&self) -> usize {
        self.limit.min(CHUNK)
    }

    fn in_file(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.length)
    }

    fn room_in_file(&self) -> u64 {
        self.keep.policy.spill.0.saturating_sub(self.in_file())
    }

    fn can_spill(&self) -> bool {
        !self.broken && self.room_in_file() >= self.chunk() as u64
    }

    /// Moves the oldest of memory to the end of the file.
    async fn spill(&mut self, count: usize) {
        let bytes: Vec<u8> = self.memory.drain(..count.min(self.memory.len())).collect();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => Ring::new(self.keep.bundle.clone(), self.keep.policy.spill.0),
        };
        match file.append(bytes).await {
            Ok(()) => {}
            Err((error, bytes)) => {
                log::error!("{} cannot be kept in a file: {error}", self.keep.name);
                self.broken = true;
                for byte in bytes.into_iter().rev() {
                    self.memory.push_front(byte);
                }
            }
        }
        self.file = Some(file);
    }

    fn drop_oldest(&mut self, count: usize) {
        let mut gone = self.front.len() as u64;
        self.front = VecDeque::new();
        match self.file.as_mut().filter(|file| file.length > 0) {
            Some(file) => gone += file.skip(count as u64),
            None => gone += self.memory.drain(..count.min(self.memory.len())).len() as u64,
        }
        self.dropped(gone);
    }

    fn dropped(&mut self, bytes: u64) {
        if self.keep.dropped.get() == self.before && bytes > 0 {
            log::warn!("nobody takes {}: its oldest bytes are dropped from now on", self.keep.name);
        }
        self.keep.dropped.set(self.keep.dropped.get() + bytes);
        meters::add(&self.keep.meters.dropped_bytes, bytes);
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        let dropped = self.keep.dropped.get() - self.before;
        if dropped > 0 {
            log::warn!("{} bytes of {} were dropped", dropped, self.keep.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::size::Size;

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test)
    }

    fn keep(spill: u64, on_full: OnFull, bundle: &Path) -> Keep {
        let policy = config::Io {
            buffer: Size(LEAST as u64),
            spill: Size(spill),
            on_full,
            ..config::Io::default()
        };
        let bundle = bundle.to_owned();
        let meters = Rc::default();
        Keep { policy, bundle, name: "stdout".into(), dropped: Rc::default(), meters }
    }

    /// Pushes numbered bytes as long as there is room, at most `most`; returns how many.
    async fn fill(backlog: &mut Backlog<'_>, from: usize, most: usize) -> usize {
        let mut count = 0;
        while count < most && backlog.takes_more() {
            let part = backlog.room().await.min(most - count).min(5000);
            let bytes: Vec<u8> = (from + count..from + count + part).map(byte).collect();
            backlog.push(&bytes);
            count += part;
            if part == 0 {
                break;
            }
        }
        count
    }

    fn byte(number: usize) -> u8 {
        (number % 251) as u8
    }

    /// Takes at most `most` bytes.
    async fn take(backlog: &mut Backlog<'_>, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < most && !backlog.is_empty() {
            backlog.fetch().await;
            let oldest = backlog.oldest();
            let part = oldest.len().min(777).min(most - all.len());
            all.extend(&oldest[..part]);
            backlog.written(part);
        }
        all
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_no_more_than_allowed() {
        let cases = [
            ("memory", 0, LEAST),
            ("memory and file", 300_000, LEAST + 300_000 / LEAST * LEAST),
            ("a file smaller than what is moved at once", 100, LEAST),
        ];
        for (name, spill, expected) in cases {
            let directory = tempfile::tempdir().unwrap();
            let keep = keep(spill, OnFull::Block, directory.path());
            run(async {
                let mut backlog = Backlog::new(&keep, 1 << 30, Vec::new());
                let (mut pushed, mut taken) = (0, 0);
                for round in 0..7 {
                    pushed += fill(&mut backlog, pushed, 1 << 30).await;
                    assert!(pushed - taken >= expected, "{name}: {}", pushed - taken);
                    assert!(pushed - taken <= expected + LEAST, "{name}: {}", pushed - taken);
                    assert!(!backlog.takes_more(), "{name}");
                    let most = if round == 6 { usize::MAX } else { 50_000 + round * 10_000 };
                    let bytes = take(&mut backlog, most).await;
                    assert!(
                        bytes.iter().copied().eq((taken..).map(byte).take(bytes.len())),
                        "{name}"
                    );
                    taken += bytes.len();
                }
                assert_eq!(taken, pushed, "{name}");
                assert!(backlog.is_empty() && backlog.file.is_none(), "{name}");
            });
            assert_eq!(keep.dropped.get(), 0, "{name}");
            assert_eq!(directory.path().read_dir().unwrap().count(), 0, "{name}: files left");
        }
    }

    #[test]
    fn the_oldest_are_dropped_and_counted() {
        for spill in [0, 200_000] {
            let directory = tempfile::tempdir().unwrap();
            let keep = keep(spill, OnFull::DropOldest, directory.path());
            run(async {
                let mut backlog = Backlog::new(&keep, 0, Vec::new());
                assert_eq!(fill(&mut backlog, 0, 1_000_000).await, 1_000_000);
                let bytes = take(&mut backlog, usize::MAX).await;
                let dropped = usize::try_from(keep.dropped.get()).unwrap();
                assert_eq!(bytes.len() + dropped, 1_000_000, "{spill}");
                assert!(bytes.len() >= LEAST / 2, "{spill}: {}", bytes.len());
                assert!(bytes.iter().copied().eq((dropped..1_000_000).map(byte)), "{spill}");
            });
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_loses_nothing() {
        let keep = keep(1 << 20, OnFull::Block, Path::new("/proc/nowhere"));
        run(async {
            let mut backlog = Backlog::new(&keep, 0, b"before".to_vec());
            let pushed = fill(&mut backlog, 0, 1 << 20).await;
            assert!((LEAST - 6..=LEAST + 5000).contains(&pushed), "{pushed}");
            let bytes = take(&mut backlog, usize::MAX).await;
            assert_eq!(&bytes[..6], b"before");
            assert!(bytes[6..].iter().copied().eq((0..pushed).map(byte)));
        });
    }
}
