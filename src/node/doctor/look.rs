//! Looks that may hang, each on a thread that is left behind then: the program ends soon after.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::info;

/// For all that there is of one topic.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// For one look at a path, and for what one program says of itself.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// A look under way.
pub(super) struct Looking<T> {
    result: Receiver<T>,
    began: Instant,
}

/// Begins a look; one for which there may be no thread ends at once, with nothing seen.
pub(super) fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Looking<T> {
    let (sender, result) = channel();
    // Nobody may wait any more; without a thread the sender is gone, which tells.
    drop(thread::Builder::new().spawn(move || drop(sender.send(work()))));
    Looking { result, began: Instant::now() }
}

impl<T> Looking<T> {
    /// What was seen; `None` if that takes longer than `limit` from the beginning.
    pub(super) fn end(self, limit: Duration) -> Option<T> {
        self.result.recv_timeout(limit.saturating_sub(self.began.elapsed())).ok()
    }
}

/// One look that takes [`LIMIT`] at most.
pub(super) fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    begin(work).end(LIMIT)
}

/// The first line that `program` prints with `args`.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn first_line(program: &Path, args: &[&str]) -> Result<String, String> {
    let output =
        info::output(Command::new(program).args(args), LIMIT).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::TimedOut => format!("no answer within {} s", LIMIT.as_secs()),
                _ => error.to_string(),
            }
        })?;
    let text = String::from_utf8_lossy(&output);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up() {
        let began = Instant::now();
        assert_eq!(begin(|| 1).end(LIMIT), Some(1));
        let hangs = begin(|| thread::sleep(Duration::from_secs(60)));
        assert_eq!(hangs.end(Duration::from_millis(50)), None);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
