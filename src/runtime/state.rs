//! What a runtime keeps of a container, in a directory of its root.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::output::Output;
use super::{Call, Runtime, args, ended, failure};
use crate::error::{Error, Result};
use crate::ids::ContainerId;

impl Runtime {
    /// Whose container, if not this bundle's, the runtime has by this id: its bundle, if the runtime says so.
    ///
    /// Two containerds may have the same namespaces and ids, and have one root for their runtimes' state.
    ///
    /// # Errors
    /// There is one, and the runtime could not be asked whose it is, or did not answer in time.
    pub(crate) async fn other_owner(&self, call: &Call<'_>) -> Result<Option<PathBuf>> {
        #[derive(Deserialize)]
        struct State {
            bundle: PathBuf,
        }
        if self.root.join(call.id.as_str()).symlink_metadata().is_err() {
            return Ok(None);
        }
        let (output, streams) = Output::capture()?;
        let mut args = args::global(self, Some(Path::new("/dev/null")));
        args.extend(args::state(call.id));
        let dir = call.bundle.dir();
        let child = call
            .reaper
            .spawn(&self.path, &args, dir, &self.env, streams)
            .map_err(|error| self.cannot_start(error))?;
        let limit = self.deadlines.of("state");
        let what = || format!("`{} state`", self.name());
        let exit = ended(child, call.reaper, call.deadline, limit, what).await;
        let exit = exit.map_err(|failed| failed.into_error(|error| self.cannot_start(error)))?;
        match exit.status {
            0 => {}
            1 => return Ok(None), // half of a container, which nobody has
            // It was killed, or could not do what it needs, as Go's programs end with 2 then.
            status => {
                let message = failure::message(Path::new("/dev/null"), &output.text());
                return Err(failure::error(self.name(), "state", status, message, None));
            }
        }
        let state = serde_json::from_str::<State>(&output.text()).ok();
        // containerd may name its bundles by way of a link, as below /var/run.
        let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        Ok(state.map(|state| state.bundle).filter(|bundle| real(bundle) != real(dir)))
    }

    /// Removes what the runtime keeps of a container in its root, a directory of one namespace: a directory
    /// of the container's name, or, as runsc has it, files `ID_sandbox:SANDBOX.state` and `.lock`. No id
    /// has a colon, so these are no other container's.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.remove_state(id).unwrap_or_else(|error| log::warn!("{error}"));
        let files = format!("{}_sandbox:", id.as_str());
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(files.as_bytes()) {
                let _ = fs::remove_file(entry.path()); // the runtime may do so at the same time
            }
        }
    }

    /// Removes the directory that the runtime keeps of a container, most often not there any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_state(&self, id: &ContainerId) -> Result<()> {
        let dir = self.root.join(id.as_str());
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove the runtime's state", &dir)(error))
            }
            _ => Ok(()),
        }
    }
}
