//! `file://`: outputs in a file, as they are or in records, rotated when it is large.
//!
//! Everything happens on a thread ([`super::drain`]), since a disk can block. What cannot be written is
//! kept and tried again until it can be, and the process waits meanwhile.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::drain::{self, Control, Stopped, Store};
use super::driver::Feed;
use super::format::{self, Clock, Lines, Piece};
use super::rotation::Rotation;
use super::task::Work;
use super::uri::{FileTarget, Format};
use super::{Context, Stream};
use crate::error::{Error, Result};

/// Records that are written at once, in bytes; a single one may be longer.
const BATCH: usize = 64 * 1024;

/// How often to look whether the file was moved away.
const LOOK: Duration = Duration::from_secs(1);

/// Begins to take `feeds` to the file, as [`super::driver::start`].
pub(super) async fn start(
    target: &FileTarget,
    feeds: Vec<Feed>,
    context: &Context<'_>,
) -> Result<Work> {
    let name = format!("file {}", target.path.display());
    let target = target.clone();
    drain::start(name, feeds, context, move || LogFile::open(&target)).await
}

/// A file that grows at its end, by whole records unless it is raw.
struct LogFile {
    format: Format,
    lines: [Lines; 2],
    file: Appended,
    rotation: Option<Rotation>,
    /// When to look next whether somebody has moved the file away.
    look: Option<Instant>,
}

impl LogFile {
    fn open(target: &FileTarget) -> Result<Self> {
        let file = Appended::open(&target.path)?;
        let raw = target.format == Format::Raw;
        if !file.regular && (!raw || target.max_size.is_some()) {
            let path = target.path.display();
            return Err(Error::Invalid(format!(
                "{path} is a device: it has neither format nor max-size"
            )));
        }
        let rotation = target.max_size.map(|max| Rotation::new(max.0, target.max_files, raw));
        let look = (!raw).then(|| Instant::now() + LOOK);
        Ok(Self { format: target.format, lines: Default::default(), file, rotation, look })
    }

    /// Adds records of what `bytes` are, in batches.
    fn record(
        &mut self,
        stream: Stream,
        mut bytes: &[u8],
        control: &Control,
    ) -> Result<(), Stopped> {
        let mut clock = Clock::new(SystemTime::now());
        let mut records = Vec::new();
        let lines = usize::from(stream == Stream::Stderr);
        while let Some(piece) = self.lines[lines].next(&mut bytes) {
            encode(self.format, &mut records, &mut clock, stream, &piece);
            if records.len() >= BATCH {
                self.append(&records, control)?;
                records.clear();
            }
        }
        self.append(&records, control)
    }

    fn append(&mut self, bytes: &[u8], control: &Control) -> Result<(), Stopped> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(rotation) = &mut self.rotation {
            return rotation.append(&mut self.file, bytes, control);
        }
        if self.look.is_some_and(|look| look <= Instant::now()) {
            self.look = Some(Instant::now() + LOOK);
            self.file.follow();
        }
        self.file.write(bytes, control)
    }
}

impl Store for LogFile {
    fn take(&mut self, stream: Stream, bytes: &[u8], control: &Control) -> Result<(), Stopped> {
        match self.format {
            Format::Raw => self.append(bytes, control),
            Format::Cri | Format::JsonFile => self.record(stream, bytes, control),
        }
    }

    fn end(&mut self, stream: Stream, control: &Control) -> Result<(), Stopped> {
        let Some(piece) = self.lines[usize::from(stream == Stream::Stderr)].end() else {
            return Ok(());
        };
        let mut record = Vec::new();
        encode(self.format, &mut record, &mut Clock::new(SystemTime::now()), stream, &piece);
        self.append(&record, control)
    }
}

fn encode(format: Format, out: &mut Vec<u8>, clock: &mut Clock, stream: Stream, piece: &Piece<'_>) {
    match format {
        Format::Raw => out.extend_from_slice(&piece.text),
        Format::Cri => format::cri(out, clock, stream, piece),
        Format::JsonFile => format::json(out, clock, stream, piece),
    }
}

/// An open file whose writes go to its end, wherever that is by then.
pub(super) struct Appended {
    pub(super) path: PathBuf,
    pub(super) file: File,
    id: (u64, u64),
    regular: bool,
}

impl Appended {
    /// Opens or makes the file, and its directories.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for a FIFO, which would keep us waiting for its reader and
    /// lose what it holds when we leave.
    fn open(path: &Path) -> Result<Self> {
        if path.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
            let path = path.display();
            return Err(Error::Invalid(format!("{path} is a FIFO: use fifo://{path}")));
        }
        let failed = Error::io("open log file", path);
        match open(path) {
            Ok((file, metadata)) => {
                let (id, regular) = (id(&metadata), metadata.is_file());
                Ok(Self { path: path.to_owned(), file, id, regular })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Opens what now has the file's name, if that is another file: ours was moved or removed.
    ///
    /// # Errors
    /// The log stays in the present file.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let (file, metadata) = open(&self.path)?;
        (self.file, self.id) = (file, id(&metadata));
        Ok(())
    }

    /// What has the file's name, if that is still our file.
    pub(super) fn named(&self) -> Option<Metadata> {
        self.path.metadata().ok().filter(|found| id(found) == self.id)
    }

    /// Goes on in the file that has the name, if ours was moved or removed.
    fn follow(&mut self) {
        if self.regular && self.named().is_none() {
            if let Err(error) = self.reopen() {
                let path = self.path.display();
                log::warn!("{path} was moved and cannot be made again: {error}");
            }
        }
    }

    /// Writes all of `bytes`, however often that fails.
    fn write(&mut self, mut bytes: &[u8], control: &Control) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            match self.attempt(bytes) {
                Ok(count) => {
                    control.goes_on();
                    bytes = &bytes[count..];
                }
                Err(error) => {
                    control.pause(&error)?;
                    if error.raw_os_error() == Some(libc::ESTALE) {
                        self.follow();
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes some of `bytes`, at least one; how many.
    pub(super) fn attempt(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NOCTTY);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
            options.open(path)?
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
