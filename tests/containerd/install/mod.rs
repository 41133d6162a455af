//! What installs berth: the Debian package and the tarball, and the DaemonSet's program on the node of a
//! cluster. Both leave running containers alone.

mod cluster;
mod node;
mod package;

use crate::{Case, own, pod};

pub(crate) const CASES: &[Case] = &[
    own("install-package", package::upgrade),
    own("install-node-config", cluster::configurations),
    own("install-node-refused", cluster::refusals),
    Case { own: true, ..pod("install-node-pod", cluster::pod) },
];

/// Whether `case` is about the handlers that an installer makes, whatever the others are.
pub(crate) fn is_own(case: &Case) -> bool {
    CASES.iter().any(|own| own.name == case.name)
}
