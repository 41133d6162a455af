//! Looking at paths that callers name. A dead network mount or FUSE server lets a look at them wait for
//! ever, so it has a thread of its own; but not where containerd keeps FIFOs, which is in memory.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Component, Path};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::sys::thread::blocking;

/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(10);
/// What is below is in memory, as far as nobody mounts something there.
const MEMORY: [&str; 3] = ["/run", "/var/run", "/dev"];

/// Does `work`, which looks at `path` or opens it; not past `deadline`, if there is one.
///
/// # Errors
/// [`Error::Io`] says that `action` failed; [`Error::Deadline`]. The thread is left behind then, and what
/// it returns is dropped.
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
    let result = timeout_at(until, blocking("look", move || work(&owned))).await;
    let Ok(result) = result else {
        let what = format!("trying to {action} {}", path.display());
        return Err(Error::Deadline { what, limit: until.saturating_duration_since(begin) });
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

fn is_in_memory(path: &Path) -> bool {
    MEMORY.iter().any(|dir| path.starts_with(dir))
        && !path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

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
