//! What is known of a pod.

pub(crate) mod kind;
pub(crate) mod sizing;
