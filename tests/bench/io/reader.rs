//! The client at the other end of a FIFO; the same one for every shim.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pattern::Pattern;
use crate::ground;

const BUFFER: usize = 64 << 10;

/// How long a stream may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A thread that reads a FIFO and compares every byte.
pub(crate) struct Reader {
    told: Receiver<Result<Duration, String>>,
}

impl Reader {
    /// Expects `total` bytes of `expected` in the FIFO at `path`.
    pub(crate) fn open(path: &str, expected: Pattern, total: u64) -> Self {
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = open.unwrap();
        let (tell, told) = channel();
        thread::spawn(move || {
            let end = read(file, &expected, total, &tell);
            drop(tell.send(end));
        });
        Self { told }
    }

    /// Waits for the last byte; how long after the first one it came.
    #[track_caller]
    pub(crate) fn complete(&self) -> Duration {
        self.next()
    }

    /// Waits until every writer has closed its end; nothing but the bytes must have come.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.next();
    }

    #[track_caller]
    fn next(&self) -> Duration {
        let deadline = Instant::now() + LIMIT;
        loop {
            ground::check_interrupt();
            match self.told.recv_timeout(Duration::from_millis(200)) {
                Ok(Ok(took)) => return took,
                Ok(Err(fault)) => panic!("the stream: {fault}"),
                Err(RecvTimeoutError::Timeout) => {
                    assert!(Instant::now() < deadline, "the stream took more than {LIMIT:?}");
                }
                Err(RecvTimeoutError::Disconnected) => panic!("the reader ended"),
            }
        }
    }
}

/// Reads to the end of the stream; tells when all has come. Returns how long that took.
fn read(
    mut file: File,
    expected: &Pattern,
    total: u64,
    tell: &Sender<Result<Duration, String>>,
) -> Result<Duration, String> {
    let mut buffer = vec![0; BUFFER];
    wait_for_a_writer(&file).map_err(|errno| errno.to_string())?;
    let (began, mut bytes, mut took) = (Instant::now(), 0, None);
    loop {
        let count = file.read(&mut buffer).map_err(|error| error.to_string())?;
        if count == 0 {
            return took.ok_or_else(|| format!("{bytes} of {total} bytes"));
        }
        if !expected.holds(bytes, &buffer[..count]) {
            return Err(format!("wrong within {count} bytes after {bytes}"));
        }
        bytes += count as u64;
        if bytes > total {
            return Err(format!("{bytes} bytes instead of {total}"));
        }
        if bytes == total {
            took = Some(began.elapsed());
            drop(tell.send(Ok(began.elapsed())));
        }
    }
}

/// Waits for the first byte, or for the end if none comes; from then on reading blocks.
fn wait_for_a_writer(file: &File) -> nix::Result<()> {
    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty())).map(drop)
}
