//! Parts of the task service's messages.

use containerd_shim_protos::api::{ProcessInfo, Status};
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;

use crate::container::State;
use crate::error::{Error, Result};
use crate::ids::{ExecId, Pid};
use crate::wire::any;

/// The status that containerd knows for a state.
pub(crate) fn status(state: State) -> Status {
    match state {
        State::Created => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Pausing => Status::PAUSING,
        State::Paused => Status::PAUSED,
        State::Stopped(_) => Status::STOPPED,
    }
}

/// OCI `LinuxResources` as JSON.
///
/// # Errors
/// [`Error::Invalid`] for anything else, as Windows' resources.
pub(crate) fn resources(any: &Any) -> Result<&[u8]> {
    let url = any.type_url.as_str();
    match url.strip_prefix("type.googleapis.com/").unwrap_or(url) {
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources" => Ok(&any.value),
        "" => Err(Error::Invalid("no resources are given".into())),
        _ => Err(Error::Invalid(format!("resources of type {url:?} are not known"))),
    }
}

/// A process with the exec id under which containerd knows it.
pub(crate) fn process_info(pid: Pid, exec_id: Option<&ExecId>) -> ProcessInfo {
    let mut info = ProcessInfo::new();
    info.pid = pid.wire();
    if let Some(id) = exec_id {
        let mut details = ProcessDetails::new();
        details.exec_id = id.to_string();
        info.info = MessageField::some(any("containerd.runc.v1.ProcessDetails", &details));
    }
    info
}
