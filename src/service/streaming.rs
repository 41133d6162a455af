//! containerd's streaming service ([streaming.proto]): its CRI plugin opens the streams of a process
//! here before it creates the process.
//!
//! [streaming.proto]: https://github.com/containerd/containerd/blob/main/api/services/streaming/v1/streaming.proto

use std::rc::Rc;

use crate::container::Containers;
use crate::error::{Error, Result};
use crate::io::Opening;
use crate::rpc::duplex::{Inbound, Outbound};

/// Opens a stream.
///
/// # Errors
/// [`Error::Unimplemented`] for a method that berth does not have.
pub(super) fn open(
    containers: &Containers,
    method: &str,
    out: Outbound,
) -> Result<Rc<dyn Inbound>> {
    match method {
        "Stream" => Ok(Opening::new(containers.streams.clone(), out)),
        method => Err(Error::Unimplemented(format!("method {method} of the streaming service"))),
    }
}
