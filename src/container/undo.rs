//! What is left of a Create or a restore that failed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cgroup::{Cgroup, Hierarchies, Removal};
use crate::error::{Error, Result};
use crate::runtime::{Call, Runtime, failure};

/// How long undoing may take on top of what failed.
const UNDO: Duration = Duration::from_secs(5);
/// How long processes may take to end that nobody kills: their runtime was killed, which they notice.
const EMPTY: Duration = Duration::from_secs(1);

/// How long the runtime may take of that to say whose the container is.
const ASK: Duration = Duration::from_secs(1);

/// Removes what a runtime may have made of a container before it failed; whether nothing is left
/// for sure. Failures are expected: most often there is nothing.
pub(super) async fn undo(runtime: &Runtime, call: &Call<'_>) -> bool {
    let begin = Instant::now();
    let until = begin + UNDO;
    if call.stray().is_none() {
        // Another containerd may have made one of that id meanwhile: the runtime has made none for us.
        let ask = Call::new(call.id, call.bundle, call.reaper, Some(begin + ASK));
        if let Ok(Some(owner)) = runtime.other_owner(&ask).await {
            log::warn!("{:?} is a container of {}: left", call.id.as_str(), owner.display());
            return true;
        }
    }
    let undo = Call::new(call.id, call.bundle, call.reaper, Some(until));
    let deleted = match runtime.delete(&undo, true).await {
        Ok(()) => true,
        Err(error) => {
            log::debug!("undoing the failed create of {:?}: {error}", call.id.as_str());
            matches!(error, Error::Runtime { message, .. } if failure::is_deleted(&message))
        }
    };
    let (cgroup, kills) = match call.stray() {
        Some(cgroup) => (Ok(Some(cgroup)), true),
        // A runtime that was killed has made it before it noted down for `delete` that there is a container;
        // what is in there may be another daemon's, of a container with the same path. One that could not
        // delete, for lack of processes, say, has left what is in there.
        None => (named_cgroup(call), !deleted),
    };
    match cgroup {
        Ok(None) => {}
        Ok(Some(cgroup)) => {
            let until = if kills { until } else { until.min(Instant::now() + EMPTY) };
            if !remove_cgroup(&cgroup, kills, until).await {
                return false;
            }
        }
        Err(_) if deleted => {}
        Err(error) => {
            // A process may live, and then it is the runtime's state by which somebody finds it.
            log::warn!("what the runtime has of {:?} stays: {error}", call.id.as_str());
            return false;
        }
    }
    deleted || forget(runtime, call)
}

/// Removes the state of a container that has no process, in place of the runtime: else no other could
/// have that id.
fn forget(runtime: &Runtime, call: &Call<'_>) -> bool {
    log::info!("removing what the runtime keeps of {:?}", call.id.as_str());
    runtime.forget(call.id);
    true
}

/// The cgroup that the spec gives to the container alone, if it is there.
///
/// # Errors
/// The spec names none that is the container's alone, or nobody can say whether it is there.
fn named_cgroup(call: &Call<'_>) -> Result<Option<Cgroup>> {
    let missing = || Error::NotFound { what: "own cgroup of container", id: call.id.to_string() };
    let path = call.bundle.spec()?.cgroup_path(call.id).ok_or_else(missing)?;
    Ok(Hierarchies::read()?.existing(&path))
}

/// Removes a cgroup once it is empty; whether that came to be in time.
async fn remove_cgroup(cgroup: &Cgroup, kills: bool, until: Instant) -> bool {
    loop {
        let empty = !cgroup.populated().unwrap_or(false);
        if kills && !empty {
            let _ = cgroup.kill(); // repeated until nothing is left or the time is over
        }
        let failure = match empty.then(|| cgroup.remove()) {
            Some(Ok(Removal::Gone)) => return true,
            Some(Err(error)) => error.to_string(),
            Some(Ok(Removal::Busy)) | None => "processes are in it".into(),
        };
        if Instant::now() >= until {
            log::warn!("a cgroup stays after a create that failed: {failure}");
            return false;
        }
        sleep(Duration::from_millis(10)).await;
    }
}
