//! The built binary, as containerd runs it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod start;
