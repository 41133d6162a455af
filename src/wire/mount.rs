//! Rootfs mounts.

use containerd_shim_protos::types::mount as wire;

use crate::rootfs::Mount;

/// The mount that containerd asks for.
pub(crate) fn decode(mount: wire::Mount) -> Mount {
    Mount { kind: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

/// The mount as an event tells of it.
pub(crate) fn encode(mount: &Mount) -> wire::Mount {
    let mut message = wire::Mount::new();
    message.type_.clone_from(&mount.kind);
    message.source.clone_from(&mount.source);
    message.target.clone_from(&mount.target);
    message.options.clone_from(&mount.options);
    message
}
