//! The journal's memory: a bounded part here, the middle of a long queue in a file.
//!
//! In order: `front`, the file, `writing`, `back`. Nothing here waits: the journal's two loops do.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::io::unnamed_file;

/// Events that are kept in memory, in bytes; those behind them go to the file.
const KEEP: usize = 64 << 10;
/// What goes to the file at once, in bytes.
const BATCH: usize = 16 << 10;
/// Where the disk takes nothing: with so much in memory, in bytes, only [`Record::vital`] events are
/// kept, but those all.
const MOST: usize = 256 << 10;
/// Bytes of a record's length in the file.
const LENGTH: usize = 4;
/// What a record costs in memory beside its bytes.
const OVERHEAD: usize = size_of::<Record>() + 16;

/// An event as containerd gets it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) bytes: Box<[u8]>,
    /// Somebody waits for it, or acts on it: an exit, an OOM kill, a delete.
    pub(super) vital: bool,
}

impl Record {
    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

/// A part of the queue in memory.
#[derive(Debug, Default)]
struct Part {
    records: VecDeque<Record>,
    cost: usize,
}

impl Part {
    fn push(&mut self, record: Record) {
        self.cost += record.cost();
        self.records.push_back(record);
    }

    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.cost -= record.cost();
        if self.records.is_empty() {
            self.records = VecDeque::new();
        }
        Some(record)
    }

    /// Puts `other` behind.
    fn append(&mut self, other: &mut Self) {
        self.records.append(&mut other.records);
        self.cost += std::mem::take(&mut other.cost);
    }

    fn len(&self) -> usize {
        self.records.len()
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// What was written to the file at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    at: u64,
    bytes: usize,
    count: usize,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Store {
    front: Part,
    file: Option<Arc<File>>,
    batches: VecDeque<Batch>,
    /// On its way to the file.
    writing: Part,
    back: Part,
    dropped: usize,
}

/// Work on the file, for another thread.
pub(super) struct Write {
    file: Option<Arc<File>>,
    batch: Batch,
    bytes: Vec<u8>,
}

/// As [`Write`].
#[derive(Clone)]
pub(super) struct Read {
    file: Arc<File>,
    batch: Batch,
}

/// The first event, or what has to happen before it can be seen.
pub(super) enum Head {
    None,
    Bytes(Box<[u8]>),
    OnDisk(Read),
}

impl Store {
    /// How many events there are.
    pub(super) fn len(&self) -> usize {
        let stored: usize = self.batches.iter().map(|batch| batch.count).sum();
        self.front.len() + stored + self.writing.len() + self.back.len()
    }

    /// Adds an event. `false` if it had to be dropped.
    pub(super) fn push(&mut self, record: Record) -> bool {
        let behind = self.batches.is_empty() && self.writing.is_empty() && self.back.is_empty();
        if behind && (self.front.is_empty() || self.front.cost < KEEP) {
            self.front.push(record);
            return true;
        }
        let cost = self.front.cost + self.writing.cost + self.back.cost;
        if cost > MOST && !record.vital {
            self.dropped += 1;
            return false;
        }
        self.back.push(record);
        true
    }

    /// The first event.
    pub(super) fn head(&mut self) -> Head {
        if self.front.is_empty() {
            if let (Some(file), Some(batch)) = (&self.file, self.batches.front()) {
                return Head::OnDisk(Read { file: file.clone(), batch: *batch });
            }
            // Also what is on its way to a disk that may hang.
            self.front.append(&mut self.writing);
            self.front.append(&mut self.back);
        }
        match self.front.records.front() {
            Some(record) => Head::Bytes(record.bytes.clone()),
            None => Head::None,
        }
    }

    /// Removes the first event, which [`Store::head`] gave.
    pub(super) fn pop(&mut self) {
        self.front.pop();
    }

    /// What the file had; a failure loses the batch, and says how many events that were.
    pub(super) fn read(
        &mut self,
        result: io::Result<Vec<Record>>,
    ) -> Result<(), (io::Error, usize)> {
        let batch = self.batches.pop_front();
        if self.batches.is_empty() {
            self.file = None; // nothing is in it; a write that is under way has it, and brings it back
        }
        let records = result.map_err(|error| (error, batch.map_or(0, |batch| batch.count)))?;
        records.into_iter().for_each(|record| self.front.push(record));
        Ok(())
    }

    /// Whether there is something to write.
    pub(super) fn overflows(&self) -> bool {
        self.back.cost >= BATCH
    }

    /// Takes out what is to be written next.
    pub(super) fn begin_write(&mut self) -> Write {
        let mut bytes = Vec::new();
        while self.writing.cost < BATCH {
            let Some(record) = self.back.pop() else { break };
            bytes.extend(u32::try_from(record.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(&record.bytes);
            self.writing.push(record);
        }
        let at = self.batches.back().map_or(0, |last| last.at + last.bytes as u64);
        Write {
            file: self.file.clone(),
            batch: Batch { at, bytes: bytes.len(), count: self.writing.len() },
            bytes,
        }
    }

    /// Notes that a write has ended.
    pub(super) fn end_write(
        &mut self,
        batch: Batch,
        result: io::Result<Arc<File>>,
    ) -> io::Result<()> {
        if self.writing.is_empty() {
            return result.map(drop); // its events were needed meanwhile
        }
        match result {
            Ok(file) => {
                self.writing = Part::default();
                self.file = Some(file);
                self.batches.push_back(batch);
                Ok(())
            }
            Err(error) => {
                self.writing.append(&mut self.back);
                self.back = std::mem::take(&mut self.writing);
                Err(error)
            }
        }
    }

    /// How many events were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> usize {
        std::mem::take(&mut self.dropped)
    }
}

impl Write {
    pub(super) fn batch(&self) -> Batch {
        self.batch
    }

    /// Writes, in a file that has no name in the work directory of the first of `bundles` that takes
    /// one; may block.
    pub(super) fn run(self, bundles: &[PathBuf]) -> io::Result<Arc<File>> {
        let file = self.file.map_or_else(|| new_file(bundles).map(Arc::new), Ok)?;
        file.write_all_at(&self.bytes, self.batch.at)?;
        Ok(file)
    }
}

fn new_file(bundles: &[PathBuf]) -> io::Result<File> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for bundle in bundles {
        match unnamed_file(bundle) {
            Ok(file) => return Ok(file),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl Read {
    /// Reads; may block.
    pub(super) fn run(self) -> io::Result<Vec<Record>> {
        let mut bytes = vec![0; self.batch.bytes];
        self.file.read_exact_at(&mut bytes, self.batch.at)?;
        let mut rest = bytes.as_slice();
        let mut records = Vec::with_capacity(self.batch.count);
        while let Some((length, tail)) = rest.split_first_chunk::<LENGTH>() {
            let length = u32::from_le_bytes(*length) as usize;
            let (record, tail) = tail.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
            // Of what has been written nothing is dropped.
            records.push(Record { bytes: record.into(), vital: true });
            rest = tail;
        }
        Ok(records)
    }
}
