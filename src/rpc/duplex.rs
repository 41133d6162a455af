//! Streams in both directions beside the calls of one connection, the same for both its sides.
//!
//! A client opens a stream with a request, flagged as one that stays open; from then on both sides
//! send data frames until each has said that it is done. Both know a stream by its number.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use ttrpc::proto::{
    FLAG_NO_DATA, FLAG_REMOTE_CLOSED, MESSAGE_TYPE_DATA, MESSAGE_TYPE_RESPONSE, MessageHeader,
};

use crate::error::{Error, Result};
use crate::rpc;
use crate::rpc::writer::Writer;

/// Streams that one connection may have at a time.
const MOST_STREAMS: usize = 1024;
/// Between two looks whether a connection without room is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What takes what comes in on a stream. It is told at once, frame by frame, so it decides itself how
/// much it keeps; the frames of other streams and calls wait for it.
pub(crate) trait Inbound {
    /// A message.
    ///
    /// # Errors
    /// What the other side did wrong: it is told, and the stream is at its end.
    fn take(&self, message: Vec<u8>) -> Result<()>;

    /// Nothing more comes; called once.
    fn end(&self, end: End);
}

/// How the other side's part of a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It said so.
    Closed,
    /// Its connection is gone, or a side broke the protocol.
    Lost,
}

/// The streams of one connection.
///
/// A connection that has served streams and nothing else is hung up behind the last of them: containerd
/// up to 2.1 takes one for each stream and [never closes it].
///
/// [never closes it]: https://github.com/containerd/containerd/blob/v2.1.9/internal/cri/io/helpers.go#L242
pub(crate) struct Streams {
    writer: Rc<Writer>,
    map: RefCell<BTreeMap<u32, Open>>,
    /// Whether it also serves calls.
    serves_calls: Cell<bool>,
}

/// A stream, until both sides have ended.
struct Open {
    /// `None` once the other side has ended.
    inbound: Option<Rc<dyn Inbound>>,
    /// Whether this side has not ended.
    sends: bool,
}

impl Streams {
    pub(super) fn new(writer: Rc<Writer>) -> Rc<Self> {
        Rc::new(Self { writer, map: RefCell::default(), serves_calls: Cell::default() })
    }

    /// The connection is for calls too.
    pub(super) fn serve_calls(&self) {
        self.serves_calls.set(true);
    }

    /// Adds the stream `id`, for whose messages `make` says who takes them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that is in use, [`Error::Full`], else as `make`.
    pub(super) fn open(
        self: &Rc<Self>,
        id: u32,
        make: impl FnOnce(Outbound) -> Result<Rc<dyn Inbound>>,
    ) -> Result<Rc<dyn Inbound>> {
        if self.map.borrow().contains_key(&id) {
            return Err(Error::Invalid(format!("stream {id} is open already")));
        }
        if self.map.borrow().len() >= MOST_STREAMS {
            return Err(Error::Full { what: "streams of a connection", limit: MOST_STREAMS });
        }
        let streams = Rc::downgrade(self);
        let inbound = make(Outbound { id, writer: self.writer.clone(), streams })?;
        let open = Open { inbound: Some(inbound.clone()), sends: true };
        self.map.borrow_mut().insert(id, open);
        Ok(inbound)
    }

    /// Takes a data frame to the stream that it is of.
    ///
    /// # Errors
    /// What the other side has to be told; its stream is at its end then.
    pub(super) fn deliver(&self, header: MessageHeader, message: Result<Vec<u8>>) -> Result<()> {
        let id = header.stream_id;
        let is_last = header.flags & FLAG_REMOTE_CLOSED != 0;
        let is_empty = header.flags & FLAG_NO_DATA != 0;
        let inbound = match self.map.borrow().get(&id) {
            Some(Open { inbound: Some(inbound), .. }) => inbound.clone(),
            // This side has ended, and the other one did not know.
            Some(_) => return Ok(()),
            None if is_last && is_empty => return Ok(()),
            None => return Err(Error::Invalid(format!("stream {id} is not open"))),
        };
        let taken = message.and_then(|bytes| if is_empty { Ok(()) } else { inbound.take(bytes) });
        if taken.is_err() {
            self.forget(id, End::Lost);
        } else if is_last {
            self.end_inbound(id, End::Closed);
            self.hang_up_if_done();
        }
        taken
    }

    fn sends(&self, id: u32) -> bool {
        self.map.borrow().get(&id).is_some_and(|open| open.sends)
    }

    /// Whether no stream is left.
    pub(super) fn is_empty(&self) -> bool {
        self.map.borrow().is_empty()
    }

    /// The other side sends no more on stream `id`.
    fn end_inbound(&self, id: u32, end: End) {
        let inbound = match self.map.borrow_mut().get_mut(&id) {
            Some(open) => open.inbound.take(),
            None => None,
        };
        self.clear();
        if let Some(inbound) = inbound {
            inbound.end(end);
        }
    }

    /// Removes what has ended on both sides.
    fn clear(&self) {
        let mut map = self.map.borrow_mut();
        map.retain(|_, open| open.inbound.is_some() || open.sends);
    }

    /// Hangs up, behind what is to be written, if the connection has served its purpose.
    pub(super) fn hang_up_if_done(&self) {
        if self.is_empty() && !self.serves_calls.get() {
            spawn_local(self.writer.clone().hang_up());
        }
    }

    /// This side sends no more on stream `id`; `false` if that was so before.
    fn end_outbound(&self, id: u32) -> bool {
        let sent = match self.map.borrow_mut().get_mut(&id) {
            Some(open) => std::mem::replace(&mut open.sends, false),
            None => false,
        };
        self.clear();
        sent
    }

    /// Ends both sides of stream `id`.
    pub(super) fn forget(&self, id: u32, end: End) {
        self.end_outbound(id);
        self.end_inbound(id, end);
    }

    /// The connection is gone.
    pub(super) fn lose(&self) {
        let ids: Vec<u32> = self.map.borrow().keys().copied().collect();
        ids.into_iter().for_each(|id| self.forget(id, End::Lost));
    }
}

/// What goes out on a stream.
pub(crate) struct Outbound {
    id: u32,
    writer: Rc<Writer>,
    streams: Weak<Streams>,
}

impl Outbound {
    /// The header of a frame whose message has `length` bytes.
    pub(crate) fn header(&self, length: usize) -> Vec<u8> {
        header(self.id, MESSAGE_TYPE_DATA, 0, length)
    }

    /// Writes a frame that begins with what [`Outbound::header`] gave. When it returns the frame is
    /// with the kernel; when it is dropped before, all of it or nothing comes there later.
    ///
    /// # Errors
    /// The other side is gone, or the stream has ended.
    pub(crate) async fn write(&self, frame: &[u8]) -> io::Result<()> {
        self.check()?;
        self.writer.write(frame).await
    }

    /// The same if the connection has room now: whether it had. The end may be left over then, see
    /// [`Outbound::has_rest`].
    ///
    /// # Errors
    /// As [`Outbound::write`].
    pub(crate) fn try_write(&self, frame: &[u8]) -> io::Result<bool> {
        self.check()?;
        self.writer.try_write(frame)
    }

    /// Whether something is left that [`Outbound::room`] writes.
    pub(crate) fn has_rest(&self) -> bool {
        self.writer.has_rest()
    }

    /// Resolves when all is written and the connection has room, or has ended.
    pub(crate) async fn room(&self) {
        while self.check().is_ok() && timeout(LOOK_AGAIN, self.writer.room()).await.is_err() {}
    }

    fn check(&self) -> io::Result<()> {
        let is_open = self.streams.upgrade().is_some_and(|streams| streams.sends(self.id));
        if is_open { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    /// Whether the other side has read all that was written: then it is not lost with the connection.
    pub(crate) fn is_read(&self) -> bool {
        self.writer.is_read()
    }

    /// Sends a small message.
    ///
    /// # Errors
    /// As [`Outbound::write`].
    pub(crate) async fn send(&self, message: &[u8]) -> io::Result<()> {
        let mut frame = self.header(message.len());
        frame.extend(message);
        self.write(&frame).await
    }

    /// Says that this side sends no more. When it is dropped before it returns, that is still to be said.
    ///
    /// # Errors
    /// As [`Outbound::write`].
    pub(crate) async fn close(&self) -> io::Result<()> {
        let Some(streams) = self.streams.upgrade() else { return Ok(()) };
        if !streams.sends(self.id) {
            return Ok(());
        }
        let flags = FLAG_REMOTE_CLOSED | FLAG_NO_DATA;
        let written = self.writer.write(&header(self.id, MESSAGE_TYPE_DATA, flags, 0)).await;
        if streams.end_outbound(self.id) {
            streams.hang_up_if_done();
        }
        written
    }

    /// The same without waiting for it.
    pub(crate) fn close_soon(self: &Rc<Self>) {
        let this = self.clone();
        spawn_local(async move { this.close().await });
    }
}

fn header(stream_id: u32, type_: u8, flags: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Vec::from(MessageHeader { length, stream_id, type_, flags })
}

/// Opens a stream at the server of a new connection: `method` of a service, with what takes its
/// messages. The work that is returned reads them until the stream ends; dropping it ends the connection.
/// `failed` is told why, where the server gives a reason.
///
/// # Errors
/// As `make`.
pub(crate) async fn connect<F: Fn(Error) + 'static>(
    connection: UnixStream,
    method: (&str, &str),
    make: impl FnOnce(Outbound) -> Result<Rc<dyn Inbound>>,
    failed: F,
) -> Result<Pin<Box<dyn Future<Output = ()>>>> {
    const ID: u32 = 1;
    let (read, write) = connection.into_split();
    let writer = Writer::new(write);
    let streams = Streams::new(writer.clone());
    streams.open(ID, make)?;
    let frame = rpc::stream_request(ID, method)?;
    let _ = writer.write(&frame).await; // a server that has refused already says why
    Ok(Box::pin(read_all(BufReader::new(read), streams, failed)))
}

/// Reads a client's connection with one stream until it ends.
///
/// The server may refuse or end the stream with an answer in place of data.
async fn read_all(
    mut reader: impl tokio::io::AsyncRead + Unpin,
    streams: Rc<Streams>,
    failed: impl Fn(Error),
) {
    while let Ok((header, message)) = rpc::stream::read(&mut reader).await {
        if header.type_ == MESSAGE_TYPE_RESPONSE {
            let end = match message.and_then(|message| rpc::result(&message)) {
                Ok(_) => End::Closed,
                Err(error) => {
                    failed(error);
                    End::Lost
                }
            };
            streams.forget(header.stream_id, end);
        } else if let Err(error) = streams.deliver(header, message) {
            failed(error);
        }
        if streams.is_empty() {
            break;
        }
    }
    streams.lose();
}

#[cfg(test)]
mod tests;
