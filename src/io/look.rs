//! Looking at paths that callers name. A dead network mount or FUSE server lets a look at them wait for
//! ever, so it has a thread of its own; but not where containerd keeps FIFOs, which is in memory.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::sys::thread::blocking;

/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Looks at a time, of which each has a thread. Others wait for one of them to end; where none will, they
/// are refused.
const MOST: usize = 16;
/// What is below is in memory, as far as nobody mounts something there.
const MEMORY: [&str; 3] = ["/run", "/var/run", "/dev"];

/// Does `work`, which looks at `path` or opens it; not past `deadline`, if there is one.
///
/// # Errors
/// [`Error::Io`] says that `action` failed; [`Error::Deadline`]. The thread is left behind then, and what
/// it returns is dropped. [`Error::Hangs`] at once where too many have been left behind.
pub(crate) async fn at<T: Send + 'static>(
    path: &Path,
    action: &'static str,
    deadline: Option<Instant>,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    if is_in_memory(path) {
        return work(path).map_err(Error::io(action, path));
    }
    let begin = Instant::now();
    let until = deadline.map_or(begin + LIMIT, |deadline| deadline.min(begin + LIMIT));
    let owned = path.to_owned();
    let look = Look::begin(path, action, until).await?;
    let stage = look.stage.clone();
    let work = move || {
        let result = work(&owned);
        drop(look);
        result
    };
    let Ok(result) = timeout_at(until, blocking("look", work)).await else {
        give_up(&stage);
        return Err(late(path, action, begin, until));
    };
    result.and_then(|result| result).map_err(Error::io(action, path))
}

/// Connects to the socket at `path`.
///
/// # Errors
/// As [`at`].
pub(super) async fn connect(path: &Path) -> Result<UnixStream> {
    const ACTION: &str = "connect to";
    if is_in_memory(path) {
        return UnixStream::connect(path).await.map_err(Error::io(ACTION, path));
    }
    let connect = |path: &Path| {
        let stream = StdStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let stream = at(path, ACTION, None, connect).await?;
    UnixStream::from_std(stream).map_err(Error::io(ACTION, path))
}

/// Room for looks that have not come to their end.
static ROOM: Semaphore = Semaphore::const_new(MOST);
/// How many of those have been given up.
static HUNG: AtomicUsize = AtomicUsize::new(0);

/// A look under way, on both sides.
struct Look {
    _room: SemaphorePermit<'static>,
    stage: Arc<AtomicU8>,
}

const RUNS: u8 = 0;
const GIVEN_UP: u8 = 1;
const ENDED: u8 = 2;

impl Look {
    /// Begins one as soon as there is room for it.
    ///
    /// # Errors
    /// [`Error::Hangs`] if there will be none; [`Error::Deadline`] names `what`.
    async fn begin(path: &Path, action: &'static str, until: Instant) -> Result<Self> {
        if ROOM.available_permits() == 0 && HUNG.load(Ordering::Acquire) >= MOST {
            return Err(Error::Hangs { action, path: path.to_owned(), looks: MOST });
        }
        let begin = Instant::now();
        match timeout_at(until, ROOM.acquire()).await {
            Ok(Ok(room)) => Ok(Self { _room: room, stage: Arc::default() }),
            Ok(Err(_)) => Err(Error::ShuttingDown), // nobody closes it
            Err(_) => Err(late(path, action, begin, until)),
        }
    }
}

/// Counts a look as given up until it ends, if it has not yet.
fn give_up(stage: &AtomicU8) {
    HUNG.fetch_add(1, Ordering::AcqRel);
    if stage.compare_exchange(RUNS, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_err() {
        HUNG.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if self.stage.swap(ENDED, Ordering::AcqRel) == GIVEN_UP {
            HUNG.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn late(path: &Path, action: &'static str, begin: Instant, until: Instant) -> Error {
    let what = format!("trying to {action} {}", path.display());
    Error::Deadline { what, limit: until.saturating_duration_since(begin) }
}

fn is_in_memory(path: &Path) -> bool {
    MEMORY.iter().any(|dir| path.starts_with(dir))
        && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_hang_leave_so_many_threads_and_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let path = Path::new("/mnt/dead");
            let soon = || Some(Instant::now() + Duration::from_millis(20));
            let mut ends = Vec::new();
            for number in 0..MOST {
                let (end, hang) = std::sync::mpsc::channel::<()>();
                ends.push(end);
                let work = move |_: &Path| {
                    let _ended = hang.recv();
                    Ok(())
                };
                let error = at(path, "look at", soon(), work).await.unwrap_err();
                assert!(matches!(error, Error::Deadline { .. }), "{number}: {error}");
            }
            let error = at(path, "look at", None, |_| Ok(())).await.unwrap_err();
            assert!(matches!(error, Error::Hangs { .. }), "{error}");
            ends.pop();
            // One has ended: many may look, one after the other.
            let good = |_: usize| at(path, "look at", None, |_| Ok(()));
            while ROOM.available_permits() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let local = tokio::task::LocalSet::new();
            let many = (0..50).map(|number| local.spawn_local(good(number))).collect::<Vec<_>>();
            local
                .run_until(async {
                    for one in many {
                        one.await.unwrap().unwrap();
                    }
                })
                .await;
            ends.clear();
            while HUNG.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(ROOM.available_permits(), MOST);
        });
    }

    #[test]
    fn what_may_hang_has_its_own_thread() {
        let cases = [
            ("/run/containerd/fifo/1/x-stdout", true),
            ("/dev/null", true),
            ("/runs/x", false),
            ("/run/../mnt/x", false),
            ("/var/log/x", false),
            ("/mnt/run/x", false),
        ];
        for (path, expected) in cases {
            assert_eq!(is_in_memory(Path::new(path)), expected, "{path}");
        }
    }
}
