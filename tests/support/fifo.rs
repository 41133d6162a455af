//! Both ends of a FIFO as containerd holds them.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::Mode;

use super::{eventually, within};

/// Makes a FIFO and returns its path as text.
pub fn mkfifo(path: &Path) -> String {
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Opens the writing end once somebody has opened the reading end.
pub fn writer(path: &Path) -> File {
    let mut open = OpenOptions::new();
    open.write(true).custom_flags(libc::O_NONBLOCK);
    let _held = eventually("a reader of the stdin FIFO", || open.open(path).ok());
    OpenOptions::new().write(true).open(path).unwrap() // writes block; the opening does no more
}

/// A thread that collects what arrives in a FIFO.
pub struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    ended: AtomicBool,
    stop: AtomicBool,
    hold: AtomicBool,
}

impl Reader {
    /// Reads until every writer has closed its end.
    pub fn open(path: impl AsRef<Path>) -> Self {
        Self::over(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap())
    }

    /// Reads for ever: this end counts as a writer too, as containerd opens the `log` FIFO.
    pub fn keep(path: impl AsRef<Path>) -> Self {
        let mut open = OpenOptions::new();
        Self::over(open.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap())
    }

    fn over(file: File) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = Some(std::thread::spawn(move || collect(file, &theirs)));
        Self { shared, thread }
    }

    /// What has arrived so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.bytes.lock().unwrap()).into_owned()
    }

    /// How many bytes have arrived so far.
    pub fn len(&self) -> usize {
        self.shared.bytes.lock().unwrap().len()
    }

    /// Stops reading, or goes on, with the FIFO kept open.
    pub fn hold(&self, on: bool) {
        self.shared.hold.store(on, Ordering::SeqCst);
    }

    /// Waits until `part` has arrived.
    #[track_caller]
    pub fn wait_for(&self, part: &str) {
        let ok = |_: &()| self.text().contains(part);
        within(super::SOON, &format!("{part:?} in {:?}", self.text()), || Some(()).filter(ok));
    }

    /// Waits until the last writer has gone; returns everything.
    #[track_caller]
    pub fn finish(&self) -> String {
        eventually("end of the stream", || Some(()).filter(|()| self.ended()));
        self.text()
    }

    /// Closes this end; returns everything that arrived.
    pub fn stop(&mut self) -> String {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        self.text()
    }

    /// Whether the last writer has gone.
    pub fn ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A FIFO that no writer has opened yet is not at its end: poll(2) reports no POLLHUP then.
fn collect(mut file: File, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.hold.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(5));
            continue;
        }
        let mut ready = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, 20u8).unwrap_or(0) == 0 {
            continue;
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => shared.bytes.lock().unwrap().extend_from_slice(&buffer[..n]),
            Err(_) => {}
        }
    }
    shared.ended.store(true, Ordering::SeqCst);
}
