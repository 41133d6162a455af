//! The end of a daemon that nobody needs and nobody shuts down: containerd was killed in between, or
//! somebody removed its files.
//!
//! There is no timer while anything lives. Behind the end of the last container one runs for a grace
//! time, in which no request comes; then the daemon ends if it has no container, or if nobody can reach
//! those that it has. Each request begins the time anew, so that a `start` that has just been told of
//! this daemon gets its container here.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::container::{Containers, Need};
use crate::events::Events;
use crate::rpc::server::InFlight;
use crate::socket::Own;

/// Between `start` and the first Create, which containerd sends at once: long enough for one that is
/// stopped, or swapped out, or waits for a disk.
const FIRST: Duration = Duration::from_secs(300);
/// Behind the last Delete, to which containerd adds the Shutdown at once; the next Create of a pod
/// comes behind a `start`, which asks.
const LATER: Duration = Duration::from_secs(60);
/// Behind the grace time: a daemon that was stopped all the while, or swapped out, hears in this time of
/// what has been asked for.
const UNREAD: Duration = Duration::from_millis(500);
/// The longest time between two looks at containers that have ended and may still be deleted.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long events may wait for a containerd that does not come back.
const EVENTS: Duration = Duration::from_secs(24 * 3600);
/// Sets both times, in seconds: for tests.
const GRACE: &str = "BERTH_TEST_GRACE";

/// What tells whether the daemon is needed.
pub(super) struct Watch {
    pub(super) containers: Rc<Containers>,
    pub(super) events: Events,
    pub(super) in_flight: Rc<InFlight>,
    pub(super) socket: Rc<Own>,
}

impl Watch {
    /// Closes the daemon when it has not been needed for a grace time.
    pub(super) async fn run(self) {
        let forced = std::env::var(GRACE).ok().and_then(|text| text.parse().ok());
        let forced = forced.map(Duration::from_secs);
        let mut grace = forced.unwrap_or(FIRST);
        let mut since = Instant::now();
        loop {
            if self.containers.need() == Need::Living {
                self.containers.changed().await;
                (grace, since) = (forced.unwrap_or(LATER), Instant::now());
                continue;
            }
            let requests = self.in_flight.begun();
            if timeout(grace, self.containers.changed()).await.is_ok() {
                (grace, since) = (forced.unwrap_or(LATER), Instant::now());
            } else if self.in_flight.begun() != requests || self.in_flight.is_answering() {
                since = Instant::now();
            } else if let Some(reason) = self.reason(since) {
                sleep(UNREAD).await;
                if self.in_flight.begun() == requests && self.reason(since).is_some() {
                    log::warn!("ending: {reason}, and nothing was asked for {grace:?}");
                    return self.containers.end_lost().await;
                }
                since = Instant::now();
            } else if self.events.waiting() == 0 {
                grace = (grace * 2).min(LONGEST);
            }
        }
    }

    /// Why the daemon is not needed; `None` while it may be.
    fn reason(&self, since: Instant) -> Option<&'static str> {
        if self.events.waiting() > 0 && since.elapsed() < EVENTS {
            return None;
        }
        match self.containers.need() {
            Need::Living => None,
            Need::Nothing => Some("no container, and no Shutdown"),
            Need::Lost => Some("the bundles of all containers are gone, which have ended"),
            Need::Ended if !self.in_flight.is_connected() && !self.socket.is_there() => {
                Some("all containers have ended, and the socket is gone")
            }
            Need::Ended => None,
        }
    }
}
