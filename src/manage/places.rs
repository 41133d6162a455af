//! Places for connections, of which nobody keeps one for long while others wait.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

/// How long a client may have its place in any case: longer than a request takes, and shorter than those wait
/// who ask all shims of a host.
const GRACE: Duration = Duration::from_millis(500);

/// So many places.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    waits: Rc<watch::Sender<bool>>,
}

/// One that is taken until it is dropped.
pub(crate) struct Place {
    since: Instant,
    waits: Rc<watch::Sender<bool>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// So many, all free.
    pub(crate) fn new(count: usize) -> Self {
        let waits = Rc::new(watch::Sender::new(false));
        Self { free: Arc::new(Semaphore::new(count)), waits }
    }

    /// Takes a place, or waits for one: then those give theirs up who have had it for long. For one caller.
    pub(crate) async fn take(&self) -> Place {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                self.waits.send_replace(true);
                let permit = self.free.clone().acquire_owned().await;
                self.waits.send_replace(false);
                permit.ok() // it is never closed
            }
        };
        Place { since: Instant::now(), waits: self.waits.clone(), _permit: permit }
    }
}

impl Place {
    /// Resolves when it is time to give the place to somebody who waits, or when `most` of time is over.
    pub(crate) async fn over(&self, most: Duration) {
        sleep_until(self.since + most.min(GRACE)).await;
        let mut waits = self.waits.subscribe();
        tokio::select! {
            () = sleep_until(self.since + most) => {}
            _ = waits.wait_for(|waits| *waits) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_given_up_to_whoever_waits() {
        const MOST: Duration = Duration::from_secs(60);
        let places = Places::new(1);
        let alone = places.take().await;
        let begin = Instant::now();
        alone.over(Duration::from_millis(20)).await;
        assert!(begin.elapsed() >= Duration::from_millis(20), "nobody waits");
        drop(alone);
        let begin = Instant::now();
        let slow = places.take().await;
        let keep = async {
            slow.over(MOST).await;
            drop(slow);
            begin.elapsed()
        };
        let (kept, _next) = tokio::join!(keep, places.take());
        assert!(kept >= GRACE && kept < MOST, "somebody waits: {kept:?}");
    }
}
