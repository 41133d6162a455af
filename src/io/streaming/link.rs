//! One stream of one connection, and the windows of its two directions.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::error::{Error, Result};
use crate::rpc::duplex::{End, Inbound, Outbound};
use crate::wire::streaming::{self, Message};

/// The most bytes in one message. containerd's [reader] forgets to count what it did not read in one
/// go, which is 32 KiB: after larger messages its windows would run out.
///
/// [reader]: https://github.com/containerd/containerd/blob/v2.1.9/core/transfer/streaming/reader.go#L96
pub(super) const PIECE: usize = 32 << 10;

/// Room before the bytes of a frame for all that comes before them.
pub(super) const ROOM: usize = 64;

/// What the other side may send before it has to wait.
pub(super) const WINDOW: usize = 64 << 10;

/// Small messages are joined up to this size.
const JOINED: usize = 4 << 10;

/// A stream that has been named.
pub(super) struct Link {
    out: Rc<Outbound>,
    /// Bytes that the other side takes.
    window: Cell<usize>,
    /// Its connection has no room.
    is_full: Cell<bool>,
    /// Bytes that the other side may send.
    granted: Cell<usize>,
    /// Bytes that came and were not consumed, as they came.
    queue: RefCell<VecDeque<Piece>>,
    end: Cell<Option<End>>,
    /// The first answer that the other side expects.
    acknowledged: Cell<bool>,
    changed: Notify,
}

struct Piece {
    message: Vec<u8>,
    at: usize,
}

impl Link {
    pub(super) fn new(out: Outbound) -> Rc<Self> {
        Rc::new(Self {
            out: Rc::new(out),
            window: Cell::default(),
            is_full: Cell::default(),
            granted: Cell::default(),
            queue: RefCell::default(),
            end: Cell::default(),
            acknowledged: Cell::default(),
            changed: Notify::new(),
        })
    }

    /// How the other side's part ended, if it did.
    pub(super) fn ended(&self) -> Option<End> {
        self.end.get()
    }

    /// Resolves when the other side's part has ended.
    pub(super) async fn wait_end(&self) -> End {
        loop {
            if let Some(end) = self.end.get() {
                return end;
            }
            self.changed.notified().await;
        }
    }

    /// Resolves when something came, at its next change.
    pub(super) async fn change(&self) {
        self.changed.notified().await;
    }

    /// How many bytes the other side takes now; none while the connection is full, as it is of small
    /// messages long before the window is used up.
    pub(super) fn window(&self) -> usize {
        if self.is_full.get() { 0 } else { self.window.get() }
    }

    /// Whether the other side has been told that its stream is known, or has told so.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.acknowledged.get()
    }

    /// Tells the other side that its stream is known.
    pub(super) async fn acknowledge(&self) -> io::Result<()> {
        self.out.send(&streaming::ack()).await?;
        self.acknowledged.set(true);
        Ok(())
    }

    /// Names the stream to a server.
    pub(super) async fn name(&self, id: &str) -> io::Result<()> {
        self.out.send(&streaming::init(id)).await
    }

    /// Sends the bytes of `buffer` from `at`, before which there are [`ROOM`] others that are
    /// overwritten; whether there was room for them, without which the window shuts until there is.
    /// `count` is within the window and at most a [`PIECE`].
    ///
    /// # Errors
    /// The stream or its connection has ended: the bytes count as not sent.
    pub(super) fn send(
        self: &Rc<Self>,
        buffer: &mut [u8],
        at: usize,
        count: usize,
    ) -> io::Result<bool> {
        let data = streaming::data_head(count);
        let mut head = self.out.header(data.len() + count);
        head.extend(data);
        let begin = at - head.len();
        buffer[begin..at].copy_from_slice(&head);
        let had_room = self.out.try_write(&buffer[begin..at + count])?;
        if had_room {
            self.window.set(self.window.get().saturating_sub(count));
        }
        if (!had_room || self.out.has_rest()) && !self.is_full.replace(true) {
            let this = self.clone();
            spawn_local(async move {
                this.out.room().await;
                this.is_full.set(false);
                this.changed.notify_waiters();
            });
        }
        Ok(had_room)
    }

    /// Whether the other side has read all that was sent.
    pub(super) fn is_read(&self) -> bool {
        self.out.is_read()
    }

    /// Lets the other side send so many bytes more.
    pub(super) async fn grant(&self, count: usize) -> io::Result<()> {
        self.granted.set(self.granted.get() + count);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.out.send(&streaming::window(count)).await
    }

    /// The oldest bytes that came, or `None`.
    pub(super) fn oldest(&self) -> Option<Ref<'_, [u8]>> {
        let queue = self.queue.borrow();
        Ref::filter_map(queue, |queue| queue.front().map(|piece| &piece.message[piece.at..])).ok()
    }

    /// So many of [`Link::oldest`] are done with.
    pub(super) fn consumed(&self, count: usize) {
        let mut queue = self.queue.borrow_mut();
        if let Some(piece) = queue.front_mut() {
            piece.at += count;
            if piece.at >= piece.message.len() {
                queue.pop_front();
            }
        }
        if queue.is_empty() {
            *queue = VecDeque::new();
        }
    }

    /// Drops all that came; returns how much that was.
    pub(super) fn discard(&self) -> usize {
        self.queue.take().iter().map(|piece| piece.message.len() - piece.at).sum()
    }

    /// Says behind what was sent that no more comes.
    pub(super) async fn close(&self) -> io::Result<()> {
        self.out.close().await
    }

    /// The same without waiting for it.
    pub(super) fn close_soon(&self) {
        self.out.close_soon();
    }

    fn push(&self, mut message: Vec<u8>, bytes: std::ops::Range<usize>) -> Result<()> {
        let Some(granted) = self.granted.get().checked_sub(bytes.len()) else {
            let (came, may) = (bytes.len(), self.granted.get());
            return Err(Error::Invalid(format!("{came} bytes of a stream where {may} may come")));
        };
        self.granted.set(granted);
        if bytes.is_empty() {
            return Ok(());
        }
        let mut queue = self.queue.borrow_mut();
        match queue.back_mut() {
            // A window of single bytes would otherwise take a hundred times its size.
            Some(last) if last.message.len() + bytes.len() <= JOINED => {
                last.message.extend(&message[bytes]);
            }
            _ => {
                message.truncate(bytes.end);
                queue.push_back(Piece { message, at: bytes.start });
            }
        }
        Ok(())
    }
}

impl Inbound for Link {
    fn take(&self, message: Vec<u8>) -> Result<()> {
        match streaming::decode(&message)? {
            Message::Data(bytes) => self.push(message, bytes)?,
            Message::Window(more) => {
                let most = i32::MAX as usize; // what containerd counts in
                self.window.set((self.window.get() + more as usize).min(most));
            }
            Message::Ack => self.acknowledged.set(true),
            Message::Init(id) => {
                return Err(Error::Invalid(format!("a stream has one name only: {id:?}")));
            }
            Message::Other(kind) => log::debug!("ignored in a stream: a message {kind:?}"),
        }
        self.changed.notify_waiters();
        Ok(())
    }

    fn end(&self, end: End) {
        self.end.set(Some(end));
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::net::{UnixListener, UnixStream};

    use super::*;
    use crate::rpc::duplex;

    fn data(bytes: &[u8]) -> Vec<u8> {
        [streaming::data_head(bytes.len()), bytes.to_vec()].concat()
    }

    /// A link on a connection that nobody reads.
    pub(in crate::io::streaming) async fn link(
        directory: &std::path::Path,
    ) -> (Rc<Link>, impl Sized) {
        let path = directory.join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut made = None;
        let make = |out| {
            let link = Link::new(out);
            made = Some(link.clone());
            Ok(link as Rc<dyn Inbound>)
        };
        let connection = UnixStream::connect(&path).await.unwrap();
        let reading = duplex::connect(connection, ("s", "m"), make, |_| ()).await.unwrap();
        (made.unwrap(), (listener, reading))
    }

    pub(in crate::io::streaming) fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn windows_are_kept_by_both_sides() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let (link, _connection) = link(directory.path()).await;
            assert!(link.take(data(b"x")).is_err(), "nothing was granted");
            link.grant(10).await.unwrap();
            for part in [&b"abc"[..], b"", b"defg"] {
                link.take(data(part)).unwrap();
            }
            assert!(link.take(data(b"hijk")).is_err(), "3 bytes are left");
            link.take(data(b"hij")).unwrap();
            let mut all = Vec::new();
            while let Some(bytes) = link.oldest().map(|bytes| bytes[..1].to_vec()) {
                all.extend(bytes);
                link.consumed(1);
            }
            assert_eq!(all, b"abcdefghij");

            assert_eq!(link.window(), 0);
            for update in [5, i32::MAX as u32, i32::MAX as u32] {
                link.take(streaming::window(update)).unwrap();
            }
            assert_eq!(link.window(), i32::MAX as usize);
            let mut buffer = vec![0; ROOM + 7];
            assert!(link.send(&mut buffer, ROOM, 7).unwrap());
            assert_eq!(link.window(), i32::MAX as usize - 7);
            link.take(streaming::ack()).unwrap();
            assert!(link.is_acknowledged() && link.take(streaming::init("x")).is_err());
        });
    }

    #[test]
    fn single_bytes_take_the_room_of_few_messages() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let (link, _connection) = link(directory.path()).await;
            link.grant(WINDOW).await.unwrap();
            for n in 0..WINDOW {
                link.take(data(&[(n % 251) as u8])).unwrap();
            }
            let pieces = link.queue.borrow().len();
            assert!(pieces <= WINDOW / JOINED * 2, "{pieces} messages");
            let mut next = 0;
            while let Some(count) = link.oldest().map(|bytes| {
                assert!(
                    bytes.iter().copied().eq((next..).map(|n| (n % 251) as u8).take(bytes.len()))
                );
                bytes.len()
            }) {
                link.consumed(count);
                next += count;
            }
            assert_eq!(next, WINDOW);
        });
    }
}
