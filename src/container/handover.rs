//! What a runtime is told in annotations of the spec, because it does it in place of berth.

use std::collections::BTreeMap;

use crate::bundle::Spec;
use crate::config::{BlockRootfs, NydusRootfs};
use crate::error::{Error, Result};
use crate::rootfs::{self, Mount};
use crate::runtime::Runtime;
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;

/// Begins the names of the annotations that berth adds.
const PREFIX: &str = "io.containerd.berth";
/// In the path of every Kubernetes emptyDir.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The annotations for the runtime, and the mounts that are left for berth.
pub(super) struct Handover<'a> {
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) mounts: &'a [Mount],
}

impl<'a> Handover<'a> {
    /// What `runtime` wants to know of a container, and what of its rootfs it takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rootfs that only another kind of runtime can mount.
    pub(super) fn new(
        runtime: &Runtime,
        spec: &Spec,
        kind: &Kind,
        mounts: &'a [Mount],
    ) -> Result<Self> {
        let mut annotations = runtime.annotations.clone();
        let mut tell = |name: &str, value: String| {
            annotations.insert(format!("{PREFIX}.{name}"), value);
        };
        if runtime.sizing {
            let sizing = Sizing::of(kind, &spec.annotations, spec.limits());
            tell("sizing.cpus", sizing.cpus.to_string());
            tell("sizing.memory", sizing.memory_mib.to_string());
        }
        if runtime.guest_empty_dir {
            let inside = spec.mounts.iter().filter(|mount| is_empty_dir(&mount.source));
            let inside: Vec<_> = inside.map(|mount| mount.destination.as_str()).collect();
            tell("empty-dirs", serde_json::json!(inside).to_string());
        }
        let Some(passed) = passed(runtime, mounts)? else {
            return Ok(Self { annotations, mounts });
        };
        tell("rootfs.source", passed.source.clone());
        tell("rootfs.type", passed.kind.clone());
        tell("rootfs.options", passed.options.join(","));
        Ok(Self { annotations, mounts: &[] })
    }
}

/// The one mount that the runtime makes in place of berth.
fn passed<'a>(runtime: &Runtime, mounts: &'a [Mount]) -> Result<Option<&'a Mount>> {
    let nydus = mounts.iter().find(|mount| rootfs::is_nydus(mount));
    match (mounts, nydus, runtime.nydus_rootfs, runtime.block_rootfs) {
        ([mount], Some(_), NydusRootfs::Pass, _) => Ok(Some(mount)),
        (_, Some(mount), ..) => Err(Error::Invalid(format!(
            "rootfs of type {:?} is for a runtime with `nydus_rootfs = \"pass\"`, which mounts it by \
             itself; {:?} is none: choose another runtime or another snapshotter",
            mount.kind,
            runtime.name(),
        ))),
        ([mount], None, _, BlockRootfs::Pass) if rootfs::is_block_device(mount) => Ok(Some(mount)),
        _ => Ok(None),
    }
}

/// Whether a mount's source is an emptyDir: `…/volumes/kubernetes.io~empty-dir/NAME`.
fn is_empty_dir(source: &str) -> bool {
    let mut parts = source.trim_end_matches('/').rsplit('/');
    parts.next().is_some_and(|name| !name.is_empty()) && parts.next() == Some(EMPTY_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_dirs_are_known_by_their_path() {
        let cases = [
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache", true),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache/", true),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache/sub", false),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir", false),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/x", false),
            ("tmpfs", false),
            ("", false),
        ];
        for (source, expected) in cases {
            assert_eq!(is_empty_dir(source), expected, "{source}");
        }
    }
}
