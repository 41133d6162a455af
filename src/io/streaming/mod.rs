//! Streams of containerd's streaming API in place of FIFOs: `ttrpc+unix://SOCKET?streaming_id=ID`.
//!
//! The CRI plugin (`io_type = "streaming"`) opens a connection to the shim's own socket for each stream,
//! names it, and then passes the names in Create and Exec; where the socket is another's, berth is the
//! client. The bytes are the same in both cases: the receiver grants a window, and the sender sends no
//! more than that.
//!
//! Three ends are told apart. Who has its connection cut off (containerd ended) may come again under the
//! same name, and gets what it has not read, in order; what it read since berth last looked, at most
//! 256 KiB of a stream that flows, comes twice. Until then output is kept as for a FIFO without a reader. Who closes its stream (containerd
//! removes a container, a client detaches) wants no more: output is dropped, input is at its end. And
//! berth closes a stream behind the last byte; the news that a container has ended waits for its readers.

mod input;
mod link;
mod output;
mod peer;
mod piece;
mod registry;

pub(super) use input::start as start_input;
pub(super) use output::start as start_output;
pub(crate) use registry::{Opening, Registry};
