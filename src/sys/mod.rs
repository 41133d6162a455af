//! System calls: plain arguments in, owned values out, no policy and no logging.
//! The only module with `unsafe`; each use carries its proof.

pub(crate) mod child;
pub(crate) mod holder;
pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod place;
pub(crate) mod process;
pub(crate) mod program;
mod raw;
pub(crate) mod ready;
pub(crate) mod socket;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod tty;
pub(crate) mod user_namespace;
