//! Events as containerd's events service takes them.

use std::time::SystemTime;

use containerd_shim_protos::events::task;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::ids::{Namespace, Pid};
use crate::wire::{any, mount, timestamp};

/// The encoded request that hands one event to containerd.
///
/// # Errors
/// A name in it is longer than any message may be.
pub(crate) fn forward_request(
    event: &Event,
    at: SystemTime,
    namespace: &Namespace,
) -> Result<Vec<u8>> {
    let (topic, event) = encode(event);
    let mut envelope = Envelope::new();
    envelope.timestamp = MessageField::some(timestamp(at));
    envelope.namespace = namespace.as_str().into();
    envelope.topic = topic.into();
    envelope.event = MessageField::some(event);
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    request
        .write_to_bytes()
        .map_err(|source| Error::Sys { action: "encode an event", source: source.into() })
}

/// Topic and message, the type URL being the bare name of the message as containerd registers it.
fn encode(event: &Event) -> (&'static str, Any) {
    match event {
        Event::Created { id, bundle, rootfs, stdio, checkpoint, pid } => {
            let mut io = task::TaskIO::new();
            io.stdin.clone_from(&stdio.stdin);
            io.stdout.clone_from(&stdio.stdout);
            io.stderr.clone_from(&stdio.stderr);
            io.terminal = stdio.terminal;
            let mut message = task::TaskCreate::new();
            message.container_id = id.to_string();
            message.bundle = bundle.to_string_lossy().into_owned();
            message.rootfs = rootfs.iter().map(mount::encode).collect();
            message.io = MessageField::some(io);
            message.checkpoint.clone_from(checkpoint);
            message.pid = pid.map_or(0, Pid::wire);
            (topics::TASK_CREATE_EVENT_TOPIC, any("containerd.events.TaskCreate", &message))
        }
        Event::Started { id, pid } => {
            let mut message = task::TaskStart::new();
            message.container_id = id.to_string();
            message.pid = pid.wire();
            (topics::TASK_START_EVENT_TOPIC, any("containerd.events.TaskStart", &message))
        }
        Event::Exited { id, exec_id, pid, exit } => {
            let mut message = task::TaskExit::new();
            message.container_id = id.to_string();
            message.id = exec_id.as_ref().map_or_else(|| id.to_string(), ToString::to_string);
            message.pid = pid.wire();
            message.exit_status = exit.status;
            message.exited_at = MessageField::some(timestamp(exit.at));
            (topics::TASK_EXIT_EVENT_TOPIC, any("containerd.events.TaskExit", &message))
        }
        Event::Deleted { id, ended } => {
            let mut message = task::TaskDelete::new();
            message.container_id = id.to_string();
            if let Some((pid, exit)) = ended {
                message.pid = pid.wire();
                message.exit_status = exit.status;
                message.exited_at = MessageField::some(timestamp(exit.at));
            }
            (topics::TASK_DELETE_EVENT_TOPIC, any("containerd.events.TaskDelete", &message))
        }
        Event::ExecAdded { id, exec_id } => {
            let mut message = task::TaskExecAdded::new();
            message.container_id = id.to_string();
            message.exec_id = exec_id.to_string();
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, any("containerd.events.TaskExecAdded", &message))
        }
        Event::ExecStarted { id, exec_id, pid } => {
            let mut message = task::TaskExecStarted::new();
            message.container_id = id.to_string();
            message.exec_id = exec_id.to_string();
            message.pid = pid.wire();
            (
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                any("containerd.events.TaskExecStarted", &message),
            )
        }
        Event::Oom { id } => {
            let mut message = task::TaskOOM::new();
            message.container_id = id.to_string();
            (topics::TASK_OOM_EVENT_TOPIC, any("containerd.events.TaskOOM", &message))
        }
        Event::Paused { id } => {
            let mut message = task::TaskPaused::new();
            message.container_id = id.to_string();
            (topics::TASK_PAUSED_EVENT_TOPIC, any("containerd.events.TaskPaused", &message))
        }
        Event::Resumed { id } => {
            let mut message = task::TaskResumed::new();
            message.container_id = id.to_string();
            (topics::TASK_RESUMED_EVENT_TOPIC, any("containerd.events.TaskResumed", &message))
        }
        Event::Checkpointed { id, image } => {
            let mut message = task::TaskCheckpointed::new();
            message.container_id = id.to_string();
            message.checkpoint = image.to_string_lossy().into_owned();
            (
                topics::TASK_CHECKPOINTED_EVENT_TOPIC,
                any("containerd.events.TaskCheckpointed", &message),
            )
        }
    }
}
