//! Pods through containerd's CRI plugin, on the handlers of `config/`.

pub(crate) mod cost;
pub(crate) mod endings;
pub(crate) mod isolation;
pub(crate) mod lifecycle;
pub(crate) mod many;
pub(crate) mod overhead;
pub(crate) mod streaming;
pub(crate) mod streams;
pub(crate) mod users;

use crate::bed::Bed;
use crate::cri::messages::PodSandboxConfig;
use crate::cri::{Cri, Pod};

/// Runs a pod of the case, after `change` to its request.
#[track_caller]
fn run<'a>(
    cri: &'a Cri<'_>,
    bed: &Bed<'_>,
    suffix: &str,
    change: impl FnOnce(&mut PodSandboxConfig),
) -> Pod<'a> {
    cri.run(bed.shim.handler(), &bed.name(suffix), change)
}
