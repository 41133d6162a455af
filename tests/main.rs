//! Tests of the built binary: they play containerd, with a scripted runtime and an event sink.
//!
//! `BERTH_TEST_SHIM=PATH` tests another shim binary (the stock one proves the tests themselves),
//! `BERTH_TEST_RUNTIME=NAME` runs the containers with another OCI runtime than runc,
//! `BERTH_TEST_SLOW=TIMES` is for machines where everything takes that many times as long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, unreachable_pub)]
#![allow(missing_docs)]

mod support;

mod bench;
mod checkpoint;
mod cli;
mod completions;
mod concurrency;
mod config;
mod crash;
mod daemon;
mod delete;
mod doctor;
mod events;
mod exec;
mod faults;
mod io;
mod journal;
mod logfile;
mod logger;
mod manage;
mod model;
mod options;
mod output;
mod pods;
mod races;
mod resources;
mod rootfs;
mod rootless;
mod sandbox;
mod security;
mod start;
mod stats;
mod streaming;
mod task;
mod tracing;
