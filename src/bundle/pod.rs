//! What a sandbox without a container leaves in its bundle, for `delete` after a killed daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, STATE_VERSION};
use crate::cgroup::Cgroup;
use crate::error::Result;

/// It has the place of a container's [`State`](crate::bundle::State), and none of the two can be
/// read as the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodState {
    version: u32,
    /// The pod: that of its containers too.
    pub(crate) group: String,
    /// The daemon's socket, which tells whether the daemon lives.
    pub(crate) socket: PathBuf,
    /// Where the bundles of the pod's containers are.
    pub(crate) bundles: Vec<PathBuf>,
    /// The holder, once it is known: its pid and start time in clock ticks since boot.
    pub(crate) holder: Option<(i32, u64)>,
    /// The sandbox's own cgroup, once it is made.
    pub(crate) cgroup: Option<Cgroup>,
}

impl PodState {
    /// The state before anything was made.
    pub(crate) fn new(group: String, socket: PathBuf) -> Self {
        let (bundles, holder, cgroup) = (Vec::new(), None, None);
        Self { version: STATE_VERSION, group, socket, bundles, holder, cgroup }
    }
}

impl Bundle {
    /// Replaces the state file atomically.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io); the old state is then still there.
    pub(crate) fn save_pod(&self, state: &PodState) -> Result<()> {
        self.replace_state(state)
    }

    /// The state of a sandbox; `None` if there is none, as for a container's bundle.
    pub(crate) fn pod_state(&self) -> Option<PodState> {
        self.read_state()
    }
}
