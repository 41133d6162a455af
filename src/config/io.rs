//! The table `io`: what happens to output that nobody takes.

use serde::{Deserialize, Serialize};

use super::section::Section;
use crate::size::Size;

/// The largest `io.buffer`: it is memory of the shim.
const MOST_BUFFER: Size = Size(1 << 30);

/// How the outputs of processes reach FIFOs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Io {
    /// Bytes of each output that are kept in memory while nobody takes them.
    pub(crate) buffer: Size,
    /// Bytes of each output that are kept in a file after that.
    pub(crate) spill: Size,
    /// What happens when both are full.
    pub(crate) on_full: OnFull,
    /// Whether an init process may get the FIFO itself.
    pub(crate) handover: bool,
}

/// What happens to a process whose output is not taken when there is no room left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFull {
    /// It waits in write(2).
    #[default]
    Block,
    /// It goes on; the oldest bytes that berth keeps are dropped and counted.
    DropOldest,
}

impl Default for Io {
    fn default() -> Self {
        Self { buffer: Size(1 << 20), spill: Size(0), on_full: OnFull::Block, handover: true }
    }
}

impl Io {
    /// Whether a FIFO alone, with the buffer that the kernel gives it, keeps what is promised.
    pub(crate) fn is_kept_by_a_fifo(&self) -> bool {
        self.spill == Size(0) && self.on_full == OnFull::Block
    }
}

/// Reads the table `io`.
pub(super) fn io(top: &mut Section<'_>) -> Io {
    let default = Io::default();
    let table = top.take_table("io").unwrap_or_default();
    let mut section = top.section("io", table);
    let at_most = |most: Size| {
        move |size: &Size| match *size <= most {
            true => Ok(()),
            false => Err(format!("is memory of the shim, at most {most}")),
        }
    };
    let buffer = section.take_checked("buffer", Some(default.buffer), at_most(MOST_BUFFER));
    let io = Io {
        buffer: buffer.unwrap_or(default.buffer),
        spill: section.take("spill", default.spill),
        on_full: section.take("on_full", default.on_full),
        handover: section.take("handover", default.handover),
    };
    section.finish();
    io
}
