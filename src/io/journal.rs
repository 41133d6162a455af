//! `journald://`: each line of output an entry of systemd's journal, with the fields of Docker's driver.
//!
//! Everything happens on a thread ([`super::drain`]), since a journal that does not read makes its
//! writers wait. What it does not take is kept and tried again until it does.

use std::borrow::Cow;

use log::{Level, Record};
use systemd_journal_logger::JournalLog;

use super::drain::{self, Control, Stopped, Store};
use super::driver::Feed;
use super::format::{Lines, Piece};
use super::task::Work;
use super::uri::JournalTarget;
use super::{Context, Stream};
use crate::error::{Error, Result};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The first bytes of a container's id that Docker's tools look for.
const SHORT_ID: usize = 12;

/// Begins to take `feeds` to the journal, as [`super::driver::start`].
pub(super) async fn start(
    target: &JournalTarget,
    feeds: Vec<Feed>,
    context: &Context<'_>,
) -> Result<Work> {
    let fields = Fields::new(target, context);
    drain::start("the journal".into(), feeds, context, move || Journal::open(fields)).await
}

/// What all entries of a process have in common.
struct Fields {
    identifier: String,
    common: Vec<(&'static str, String)>,
}

impl Fields {
    fn new(target: &JournalTarget, context: &Context<'_>) -> Self {
        // An exec process has a name of its own, but containerd names the bundle after the container.
        let container = context.bundle.file_name().and_then(|name| name.to_str());
        let container = container.unwrap_or(context.id);
        let short = container.get(..SHORT_ID).unwrap_or(container);
        let tag = if target.tag.is_empty() { container } else { &target.tag };
        let mut common = vec![
            ("CONTAINER_ID", short.to_owned()),
            ("CONTAINER_ID_FULL", container.to_owned()),
            ("CONTAINER_NAME", container.to_owned()),
            ("CONTAINER_TAG", tag.to_owned()),
            ("CONTAINER_NAMESPACE", context.namespace.to_string()),
        ];
        if context.id != container {
            common.push(("CONTAINER_EXEC_ID", context.id.to_owned()));
        }
        Self { identifier: tag.to_owned(), common }
    }

    /// Those of an entry. `bytes` are those of a line that is no UTF-8, which the library cannot send
    /// as it is.
    fn of<'a>(&'a self, partial: bool, bytes: Option<&'a [u8]>) -> Vec<(&'static str, &'a [u8])> {
        let common = self.common.iter().map(|(name, value)| (*name, value.as_bytes()));
        let partial = partial.then_some(("CONTAINER_PARTIAL_MESSAGE", &b"true"[..]));
        common.chain(partial).chain(bytes.map(|bytes| ("CONTAINER_MESSAGE_BYTES", bytes))).collect()
    }
}

/// The journal's socket, and what goes there next.
struct Journal {
    /// Always there, but while its fields are changed.
    socket: Option<JournalLog>,
    fields: Fields,
    /// Whether the socket's fields are those of a partial line without bytes; `None` if of neither.
    partial: Option<bool>,
    lines: [Lines; 2],
}

impl Journal {
    /// # Errors
    /// [`Error::Io`] if nobody listens.
    fn open(fields: Fields) -> Result<Self> {
        let socket = JournalLog::empty().map_err(Error::io("reach the journal at", SOCKET))?;
        let socket = Some(socket.with_syslog_identifier(fields.identifier.clone()));
        Ok(Self { socket, fields, partial: None, lines: Default::default() })
    }

    /// Sends an entry, however often that fails.
    fn send(
        &mut self,
        stream: Stream,
        piece: &Piece<'_>,
        control: &Control,
    ) -> Result<(), Stopped> {
        let text = String::from_utf8_lossy(&piece.text);
        let is_lossy = matches!(text, Cow::Owned(_));
        let partial = !piece.is_last;
        if is_lossy || self.partial != Some(partial) {
            let fields = self.fields.of(partial, is_lossy.then_some(&*piece.text));
            self.socket = self.socket.take().map(|socket| socket.with_extra_fields(fields));
            self.partial = (!is_lossy).then_some(partial);
        }
        // The library makes these the priorities 3 and 6, as Docker's driver has them.
        let level = if stream == Stream::Stderr { Level::Error } else { Level::Debug };
        while let Some(socket) = &self.socket {
            let mut record = Record::builder();
            record.level(level).target("");
            match socket.journal_send(&record.args(format_args!("{text}")).build()) {
                Ok(()) => break,
                Err(error) => control.pause(&error)?,
            }
        }
        control.goes_on();
        Ok(())
    }
}

impl Store for Journal {
    fn take(&mut self, stream: Stream, mut bytes: &[u8], control: &Control) -> Result<(), Stopped> {
        while let Some(piece) = self.lines[usize::from(stream == Stream::Stderr)].next(&mut bytes) {
            self.send(stream, &piece, control)?;
        }
        Ok(())
    }

    fn end(&mut self, stream: Stream, control: &Control) -> Result<(), Stopped> {
        match self.lines[usize::from(stream == Stream::Stderr)].end() {
            Some(piece) => self.send(stream, &piece, control),
            None => Ok(()),
        }
    }
}
