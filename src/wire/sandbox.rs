//! Parts of the sandbox service's messages.

use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::{PlatformResponse, SandboxMetricsResponse};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;

use crate::cgroup::stats::Stats;
use crate::error::Result;
use crate::sandbox::Stage;
use crate::wire::timestamp;

/// What containerd and its clients compare a sandbox's state with: CRI's names.
pub(crate) fn state(stage: Stage) -> &'static str {
    match stage {
        Stage::Ready => "SANDBOX_READY",
        Stage::Created | Stage::Ended(_) => "SANDBOX_NOTREADY",
    }
}

/// The platform that containers run on, in the names of Go and of OCI images.
pub(crate) fn platform() -> PlatformResponse {
    let mut response = PlatformResponse::new();
    let platform = response.platform.mut_or_insert_default();
    platform.os = "linux".into();
    platform.architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
    .into();
    if cfg!(target_arch = "arm") {
        platform.variant = "v7".into();
    }
    response
}

/// A sandbox's metrics as `containerd.types.Metric`.
///
/// # Errors
/// As [`Stats::encode`].
pub(crate) fn metrics(id: &str, stats: &Stats) -> Result<SandboxMetricsResponse> {
    let mut response = SandboxMetricsResponse::new();
    let metric = response.metrics.mut_or_insert_default();
    metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
    metric.id = id.into();
    let mut data = Any::new();
    data.type_url = stats.type_url().into();
    data.value = stats.encode()?;
    metric.data = MessageField::some(data);
    Ok(response)
}
