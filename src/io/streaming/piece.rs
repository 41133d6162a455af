//! Bytes of an output on their way: read from the process's pipe, sent, read by the other side.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::link::{Link, PIECE, ROOM};
use crate::io::end::poll_now;
use crate::ready::Ready;

/// Pieces below this size are not sent one upon the other.
const SMALL: usize = 4 << 10;
/// The longest pause between two small pieces, and the rest after which the next comes at once.
const PAUSE: Duration = Duration::from_millis(50);
const REST: Duration = Duration::from_millis(100);
/// Bytes that are kept until the other side has read them; twice the window of containerd's client.
const MOST_UNREAD: usize = 256 << 10;
/// The first pause before it is asked for that again, and the longest.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_SELDOM: Duration = Duration::from_millis(256);

/// The read end of the process's pipe.
pub(super) struct Source {
    pub(super) pipe: Rc<OwnedFd>,
    pub(super) ready: Ready,
}

impl Source {
    /// Resolves when something can be read, or the last writer is gone.
    pub(super) async fn wait(&self) {
        // It fails only with the event loop.
        if self.ready.readable().await.is_err() {
            std::future::pending().await
        }
    }

    /// What is true now: `POLLIN` for bytes, `POLLHUP` for no writers.
    pub(super) fn events(&self) -> PollFlags {
        let mut ends = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        let polled = poll_now(&mut ends).ok().and_then(|()| ends[0].revents());
        polled.unwrap_or(PollFlags::empty())
    }

    /// The next wait needs a new word from the kernel.
    pub(super) fn forget(&self) {
        self.ready.forget(Interest::READABLE);
    }

    /// Reads what is there into an empty `piece`, at most `most` bytes and a [`PIECE`].
    pub(super) fn read(&self, piece: &mut Piece, most: usize) -> nix::Result<usize> {
        let buffer = piece.clear();
        let result = nix::unistd::read(&*self.pipe, &mut buffer[ROOM..ROOM + most.min(PIECE)]);
        match result {
            Ok(count) => piece.end = ROOM + count,
            Err(Errno::EAGAIN) => self.forget(),
            Err(_) => {}
        }
        result
    }
}

/// At most [`PIECE`] bytes, with room for a frame's head before them.
#[derive(Default)]
pub(super) struct Piece {
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Piece {
    /// A piece with no more room than these need.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let buffer = [&[0; ROOM], bytes].concat();
        Self { at: ROOM, end: buffer.len(), buffer }
    }

    /// Adds what follows.
    fn extend(&mut self, bytes: &[u8]) {
        self.buffer.truncate(self.end);
        self.buffer.extend(bytes);
        self.end = self.buffer.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.at..self.end).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The buffer, with nothing in it.
    fn clear(&mut self) -> &mut [u8] {
        (self.at, self.end) = (ROOM, ROOM);
        self.buffer.resize(ROOM + PIECE, 0);
        &mut self.buffer
    }
}

/// What was sent, until it is known to be read: it may be lost with the connection, and is sent again
/// then.
#[derive(Default)]
pub(super) struct Unread {
    pieces: VecDeque<Piece>,
    bytes: usize,
    look: Duration,
    /// A buffer for the next piece of a stream that flows.
    spare: Vec<u8>,
}

impl Unread {
    /// Sends of `piece` what the window allows; what is left stays in it.
    ///
    /// # Errors
    /// As [`Link::send`]; then all of it stays.
    pub(super) fn send(&mut self, piece: &mut Piece, link: &Rc<Link>) -> io::Result<usize> {
        self.look(link);
        let count = piece.bytes().len().min(link.window());
        if !link.send(&mut piece.buffer, piece.at, count)? {
            return Ok(0);
        }
        self.look = LOOK;
        self.bytes += count;
        match self.pieces.back_mut() {
            // Each would otherwise take the room of a large one, and be a message again.
            Some(last) if last.bytes().len() + count <= PIECE && count < SMALL => {
                last.extend(&piece.bytes()[..count]);
                piece.at += count;
            }
            _ if count == piece.bytes().len() && count >= SMALL => {
                let buffer = std::mem::take(&mut self.spare);
                let sent = std::mem::replace(piece, Piece { buffer, at: 0, end: 0 });
                self.pieces.push_back(sent);
            }
            _ => {
                self.pieces.push_back(Piece::of(&piece.bytes()[..count]));
                piece.at += count;
            }
        }
        while self.bytes > MOST_UNREAD {
            let Some(oldest) = self.pieces.pop_front() else { break };
            self.bytes -= oldest.bytes().len();
            self.spare = oldest.buffer;
        }
        Ok(count)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets what the other side has read.
    pub(super) fn look(&mut self, link: &Link) {
        if !self.is_empty() && link.is_read() {
            if let Some(last) = self.pieces.pop_back() {
                self.spare = last.buffer;
            }
            self.pieces = VecDeque::new();
            self.bytes = 0;
        }
    }

    /// An idle stream has no memory.
    pub(super) fn rest(&mut self) {
        self.spare = Vec::new();
    }

    /// Resolves when it is time to look again, less often each time; never if there is nothing.
    pub(super) async fn due(&mut self) {
        if self.is_empty() {
            std::future::pending().await
        }
        sleep(self.look).await;
        self.look = LOOK_SELDOM.min(self.look * 2);
    }

    /// What has to be sent again.
    pub(super) fn take(&mut self) -> VecDeque<Piece> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
    }
}

/// Small pieces in quick succession. Each costs as much as a large one; and containerd's client from 2.3
/// on [gives a stream up] whose reader is busy for a second while 64 messages wait.
///
/// [gives a stream up]: https://github.com/containerd/ttrpc/blob/v1.2.9/stream.go#L61
#[derive(Default)]
pub(super) struct Rush {
    /// Pieces since the reader has last widened its window, or had a rest.
    pieces: u32,
    window: usize,
    last: Option<Instant>,
    was_small: bool,
}

impl Rush {
    /// Lets more bytes come, the longer the more pieces the reader may have before it; whether it did.
    pub(super) async fn pause(&self, source: &Source) -> bool {
        let Some(last) = self.last.filter(|_| self.was_small) else { return false };
        let pause = PAUSE.min(Duration::from_millis(self.pieces.into()));
        let left = pause.saturating_sub(last.elapsed());
        let pauses = !left.is_zero() && !source.events().contains(PollFlags::POLLHUP);
        if pauses {
            sleep(left).await;
        }
        pauses
    }

    /// `count` bytes were sent, and the window is `window` now.
    pub(super) fn note(&mut self, count: usize, window: usize) {
        if window + count > self.window || self.last.is_none_or(|last| last.elapsed() > REST) {
            self.pieces = 0;
        }
        self.pieces = self.pieces.saturating_add(1);
        self.window = window;
        self.last = Some(Instant::now());
        self.was_small = count < SMALL;
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::tests::{link, run};
    use super::*;
    use crate::rpc::duplex::Inbound;
    use crate::wire::streaming::window;

    #[test]
    fn what_is_unread_takes_the_room_of_its_bytes_and_keeps_its_order() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let (link, _connection) = link(directory.path()).await;
            link.take(window(1 << 20)).unwrap();
            let mut unread = Unread::default();
            let mut sent = Vec::new();
            for n in 0..120_u8 {
                let large = if n == 60 { SMALL + 1 } else { 3 };
                let bytes = vec![n; large];
                let mut piece = Piece::default();
                piece.clear()[ROOM..ROOM + large].copy_from_slice(&bytes);
                piece.end = ROOM + large;
                assert_eq!(unread.send(&mut piece, &link).unwrap(), large);
                assert!(piece.is_empty());
                sent.extend(bytes);
            }
            let pieces = unread.take();
            let room: usize = pieces.iter().map(|piece| piece.buffer.capacity()).sum();
            assert!(room <= 3 * PIECE, "{room} bytes in {} pieces", pieces.len());
            let all: Vec<&[u8]> = pieces.iter().map(Piece::bytes).collect();
            assert_eq!(all.concat(), sent);
        });
    }
}
