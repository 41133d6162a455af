//! What takes outputs in place of a FIFO's reader: each driver reads the outputs' pipes by itself.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::output::Output;
use super::task::Work;
use super::uri::Target;
use super::{Context, journal, log_file, logger, streaming};
use crate::error::{Error, Result};

/// An output for a driver.
pub(super) struct Feed {
    /// The pipe's read end, non-blocking. It is at its end when the process's last writer is gone.
    pub(super) pipe: Rc<OwnedFd>,
    /// To be finished when the driver has taken the last byte.
    pub(super) output: Rc<Output>,
}

/// Begins to take outputs, all of which go to `target`, and resolves when the driver is ready for the
/// first byte. The work then goes on until the last; when it is dropped, so is the driver with all it
/// holds, at once.
///
/// # Errors
/// Why the driver cannot begin; then nothing of it is left.
pub(super) async fn start(
    target: &Target,
    feeds: Vec<Feed>,
    context: &Context<'_>,
) -> Result<Work> {
    match target {
        Target::File(file) => log_file::start(file, feeds, context).await,
        Target::Logger(target) => logger::start(target, feeds, context).await,
        Target::Journal(journal) => journal::start(journal, feeds, context).await,
        Target::Streaming(target) => streaming::start_output(target, feeds, context).await,
        Target::Null | Target::Path(_) => Err(Error::Unimplemented("no driver".into())),
    }
}
