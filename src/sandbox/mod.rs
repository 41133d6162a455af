//! What is known of a pod, and its sandbox where that is no container.

mod files;
mod held;
pub(crate) mod holder;
pub(crate) mod kind;
pub(crate) mod pod;
pub(crate) mod sizing;
mod spawn;

pub(crate) use files::remove_files;
pub(crate) use held::{Home, Request, Sandbox, Stage};
