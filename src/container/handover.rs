//! What a runtime is told in annotations of the spec, because it does it in place of berth.

use std::collections::BTreeMap;

use crate::bundle::{RESERVED, Spec};
use crate::config::{BlockRootfs, Guest, NydusRootfs};
use crate::error::{Error, Result};
use crate::rootfs::{self, Mount};
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;

/// In the path of every Kubernetes emptyDir.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The annotations for the runtime, and the mounts that are left for berth.
pub(super) struct Handover<'a> {
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) mounts: &'a [Mount],
}

impl<'a> Handover<'a> {
    /// What a runtime wants to know of a container, and what of its rootfs it takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rootfs that only another kind of runtime can mount.
    pub(super) fn new(
        guest: &Guest,
        spec: &Spec,
        kind: &Kind,
        mounts: &'a [Mount],
    ) -> Result<Self> {
        let mut annotations = guest.annotations.clone();
        let mut tell = |name: &str, value: String| {
            annotations.insert(format!("{RESERVED}{name}"), value);
        };
        if guest.sizing {
            let sizing = Sizing::of(kind, &spec.annotations, spec.limits());
            tell("sizing.cpus", sizing.cpus.to_string());
            tell("sizing.memory", sizing.memory_mib.to_string());
        }
        if guest.empty_dir {
            let inside = spec.mounts.iter().filter(|mount| is_empty_dir(&mount.source));
            let inside: Vec<_> = inside.map(|mount| mount.destination.as_str()).collect();
            tell("empty-dirs", serde_json::json!(inside).to_string());
        }
        let Some(passed) = passed(guest, mounts)? else {
            return Ok(Self { annotations, mounts });
        };
        tell("rootfs.source", passed.source.clone());
        tell("rootfs.type", passed.kind.clone());
        tell("rootfs.options", passed.options.join(","));
        Ok(Self { annotations, mounts: &[] })
    }
}

/// The one mount that the runtime makes in place of berth.
fn passed<'a>(guest: &Guest, mounts: &'a [Mount]) -> Result<Option<&'a Mount>> {
    let nydus = mounts.iter().find(|mount| rootfs::is_nydus(mount));
    let refuse = |mount: &Mount, why: &str| {
        Err(Error::Invalid(format!("rootfs of type {:?} {why}", mount.kind)))
    };
    match (mounts, nydus, guest.nydus_rootfs, guest.block_rootfs) {
        (_, Some(mount), NydusRootfs::Refuse, _) => refuse(
            mount,
            "is for a runtime that mounts it by itself (`nydus_rootfs = \"pass\"`), and this is none: \
             choose another runtime or another snapshotter",
        ),
        ([mount], Some(_), NydusRootfs::Pass, _) => Ok(Some(mount)),
        (_, Some(mount), ..) => refuse(mount, "can be handed on only if it is the only mount"),
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
