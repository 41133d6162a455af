//! The writing half of a connection.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use crate::sys;

/// How long an answer may wait for its turn behind other frames, such as one of a stream that nobody reads.
/// A containerd that is stopped for a while takes a closed connection for a dead shim: it is long.
const TURN: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 120 });
/// Answers that may wait to be written before no more requests are read.
const MOST_WAITING: usize = 256;

/// The writing half of a connection. Frames stay whole also when a writer gives up half-way.
pub(crate) struct Writer {
    half: Mutex<Half>,
    /// Answers that are not yet written.
    waiting: Cell<usize>,
    written: Notify,
    /// The other side reads nothing: those who write fail.
    given_up: Cell<bool>,
    gives_up: Notify,
}

struct Half {
    write: OwnedWriteHalf,
    /// The end of a frame that whoever began it did not finish.
    rest: Vec<u8>,
}

impl Writer {
    pub(super) fn new(write: OwnedWriteHalf) -> Rc<Self> {
        Rc::new(Self {
            half: Mutex::new(Half { write, rest: Vec::new() }),
            waiting: Cell::default(),
            written: Notify::new(),
            given_up: Cell::default(),
            gives_up: Notify::new(),
        })
    }

    /// Writes one frame, behind those of earlier callers, however long the other side lets it wait.
    pub(super) async fn write(&self, frame: &[u8]) -> io::Result<()> {
        let write = async { self.half.lock().await.write(frame).await };
        tokio::select! {
            biased;
            () = self.gone() => Err(io::ErrorKind::BrokenPipe.into()),
            written = write => written,
        }
    }

    async fn gone(&self) {
        while !self.given_up.get() {
            self.gives_up.notified().await; // one thread: nothing happens between the look and the wait
        }
    }

    /// Resolves when few answers wait to be written, so that a peer that does not read them sends no more.
    pub(super) async fn has_few_waiting(&self) {
        while self.waiting.get() > MOST_WAITING {
            self.written.notified().await;
        }
    }

    /// Writes one frame if the connection has room now; whether it had. What did not fit is left for
    /// [`Writer::room`] or the next writer.
    pub(super) fn try_write(&self, frame: &[u8]) -> io::Result<bool> {
        let Ok(mut half) = self.half.try_lock() else { return Ok(false) };
        if !half.rest.is_empty() {
            return Ok(false);
        }
        match half.write.try_write(frame) {
            Ok(written) => {
                half.rest.extend(&frame[written..]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the end of a frame is left to be written.
    pub(super) fn has_rest(&self) -> bool {
        self.half.try_lock().map_or(true, |half| !half.rest.is_empty())
    }

    /// Writes what is left. Resolves when the connection has room again, or is gone.
    pub(super) async fn room(&self) {
        let room = async {
            let mut half = self.half.lock().await;
            let _ = half.write(&[]).await; // the next write says it
            let _ = half.write.writable().await;
        };
        tokio::select! {
            biased;
            () = self.gone() => {}
            () = room => {}
        }
    }

    /// As [`Writer::write`] with a limit for this frame, at which the connection is ended.
    pub(super) async fn write_within(&self, limit: Duration, frame: &[u8]) {
        self.waiting.set(self.waiting.get() + 1);
        self.write_in_turn(limit, frame).await;
        self.waiting.set(self.waiting.get() - 1);
        self.written.notify_one();
    }

    async fn write_in_turn(&self, limit: Duration, frame: &[u8]) {
        if self.given_up.get() {
            return;
        }
        let late = match timeout(TURN, self.half.lock()).await {
            Err(_) => TURN,
            Ok(_) if self.given_up.get() => return,
            Ok(mut half) => match timeout(limit, half.write(frame)).await {
                Ok(_) => return, // an error is a peer that hung up: nobody is left to tell
                Err(_) => limit,
            },
        };
        if !self.given_up.replace(true) {
            log::warn!("a peer did not take its answer within {late:?}: connection closed");
        }
        self.gives_up.notify_waiters();
        let half = self.half.lock().await; // whoever had it has given up too
        let _ = shutdown(half.write.as_ref().as_fd().as_raw_fd(), Shutdown::Both); // it may be gone
    }

    /// Whether the other side has read all that was written. One that is gone has not.
    pub(super) fn is_read(&self) -> bool {
        let Ok(half) = self.half.try_lock() else { return false };
        let socket = half.write.as_ref().as_fd();
        if !half.rest.is_empty() || !sys::socket::unread(socket).is_ok_and(|bytes| bytes == 0) {
            return false;
        }
        // In this order: a socket that is closed unread is first marked as such (POLLHUP), then emptied.
        let mut ends = [PollFd::new(socket, PollFlags::empty())];
        poll(&mut ends, PollTimeout::ZERO) == Ok(0)
    }

    /// Hangs up behind what is to be written.
    pub(super) async fn hang_up(self: Rc<Self>) {
        let _ = self.half.lock().await.write.shutdown().await; // it may be gone
    }
}

impl Half {
    async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let Self { write, rest } = self;
        while !rest.is_empty() {
            let written = some(write.write(rest).await?)?;
            rest.drain(..written);
        }
        let mut begun = Begun { write, rest, frame, written: 0 };
        while begun.written < frame.len() {
            begun.written += some(begun.write.write(&frame[begun.written..]).await?)?;
        }
        Ok(())
    }
}

fn some(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

/// A frame that is being written; the next writer ends it if it is dropped before.
struct Begun<'a> {
    write: &'a mut OwnedWriteHalf,
    rest: &'a mut Vec<u8>,
    frame: &'a [u8],
    written: usize,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.written > 0 {
            self.rest.extend(&self.frame[self.written..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            timeout(Duration::from_secs(30), test).await.expect("a test within 30 s")
        })
    }

    /// A connection's writer, and what is at its other end.
    fn pair() -> (UnixStream, Rc<Writer>, impl Sized) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = ours.into_split();
        (theirs, Writer::new(write), read)
    }

    #[test]
    fn a_frame_that_is_given_up_half_way_is_ended_by_the_next() {
        run(async {
            let (mut theirs, writer, _read) = pair();
            let large = vec![b'a'; 4 << 20];
            let given_up = timeout(Duration::from_millis(50), writer.write(&large)).await;
            assert!(given_up.is_err(), "4 MiB are more than a socket holds");
            assert!(!writer.is_read());
            // One that has not begun leaves nothing.
            let _ = timeout(Duration::from_millis(10), writer.write(b"nothing")).await;
            let reader = tokio::task::spawn_local(async move {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).await.unwrap();
                all
            });
            writer.write(b"next").await.unwrap();
            while !writer.is_read() {
                tokio::task::yield_now().await;
            }
            writer.hang_up().await;
            let all = reader.await.unwrap();
            assert_eq!(all.len(), large.len() + 4);
            assert!(all.ends_with(b"anext"));
        });
    }

    #[test]
    fn an_answer_does_not_wait_for_ever_behind_a_stream() {
        run(async {
            let (theirs, writer, read) = pair();
            let stream = writer.clone();
            let stuck =
                tokio::task::spawn_local(async move { stream.write(&vec![b'a'; 4 << 20]).await });
            tokio::task::yield_now().await;
            for _ in 0..2 * MOST_WAITING {
                let writer = writer.clone();
                tokio::task::spawn_local(async move {
                    writer.write_within(Duration::from_secs(10), b"answer").await;
                });
            }
            for _ in 0..100 {
                tokio::task::yield_now().await; // some of them begin with each turn
            }
            let few = timeout(Duration::from_secs(1), writer.has_few_waiting()).await;
            assert!(few.is_err(), "{} answers wait", writer.waiting.get());
            writer.has_few_waiting().await;
            assert_eq!(stuck.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert!(writer.write(b"more").await.is_err());
            drop((theirs, read));
        });
    }

    #[test]
    fn a_frame_that_is_tried_comes_whole_or_not_at_all() {
        run(async {
            let (mut theirs, writer, _read) = pair();
            let large = vec![b'a'; 4 << 20];
            assert!(writer.try_write(&large).unwrap() && writer.has_rest(), "a part fits");
            assert!(!writer.try_write(b"not").unwrap());
            let reader = tokio::task::spawn_local(async move {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).await.unwrap();
                all
            });
            writer.room().await;
            assert!(writer.try_write(b"next").unwrap() && !writer.has_rest());
            writer.hang_up().await;
            let all = reader.await.unwrap();
            assert_eq!(all.len(), large.len() + 4);
            assert!(all.ends_with(b"anext"));
        });
    }

    #[test]
    fn what_was_not_read_is_not_read_when_the_other_side_is_gone() {
        run(async {
            let (mut theirs, writer, _read) = pair();
            writer.write(b"one").await.unwrap();
            assert!(!writer.is_read());
            theirs.read_exact(&mut [0; 3]).await.unwrap();
            assert!(writer.is_read());
            writer.write(b"two").await.unwrap();
            drop(theirs);
            assert!(!writer.is_read());
        });
    }
}
