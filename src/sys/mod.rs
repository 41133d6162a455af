//! System calls: plain arguments in, owned values out, no policy and no logging.
//! The only module with `unsafe`; each use carries its proof.

pub(crate) mod pidfd;
