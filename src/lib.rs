//! berth, a containerd shim v2: the process between containerd and an OCI runtime.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cgroup;
mod error;
mod ids;
mod io;
mod rootfs;
#[expect(unsafe_code, reason = "the system calls that no safe wrapper covers; each has its proof")]
mod sys;
