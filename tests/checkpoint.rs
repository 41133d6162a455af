//! Checkpoint and restore, with a scripted runtime.
