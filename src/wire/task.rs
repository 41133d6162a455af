//! Parts of the task service's messages.

use containerd_shim_protos::api::{ProcessInfo, Status};
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::MessageField;

use crate::container::State;
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
