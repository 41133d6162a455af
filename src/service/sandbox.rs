//! containerd's sandbox service ([sandbox.proto]), for a runtime handler with `sandboxer = "shim"`:
//! a pod without a pause container.
//!
//! [sandbox.proto]: https://github.com/containerd/containerd/blob/main/api/runtime/sandbox/v1/sandbox.proto

use std::rc::Rc;

use containerd_shim_protos::sandbox_api as api;
use protobuf::MessageField;
use tokio::time::{Instant, timeout_at};

use crate::container::Containers;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, Pid};
use crate::sandbox::{Request, Stage};
use crate::service::{decode, empty, encode};
use crate::wire::{self, pod};

/// Answers one method.
///
/// # Errors
/// [`Error::Unimplemented`] for a method that berth does not have, [`Error::Invalid`] for a request
/// that is no message, else as the method says.
pub(super) async fn call(
    containers: &Rc<Containers>,
    method: &str,
    payload: &[u8],
    deadline: Option<Instant>,
) -> Result<Vec<u8>> {
    match method {
        "CreateSandbox" => {
            create(containers, decode(payload)?)?;
            empty()
        }
        "StartSandbox" => encode(start(containers, &decode(payload)?, deadline).await?),
        "Platform" => {
            let request: api::PlatformRequest = decode(payload)?;
            containers.sandbox(&request.sandbox_id)?;
            encode(wire::sandbox::platform())
        }
        "StopSandbox" => {
            let request: api::StopSandboxRequest = decode(payload)?;
            // The time is for what can end in an orderly way; a holder has nothing to put in order.
            containers.sandbox(&request.sandbox_id)?.stop_by(deadline).await?;
            empty()
        }
        "WaitSandbox" => encode(wait(containers, &decode(payload)?, deadline).await?),
        "SandboxStatus" => encode(status(containers, decode(payload)?)?),
        "PingSandbox" => {
            let request: api::PingRequest = decode(payload)?;
            containers.sandbox(&request.sandbox_id)?.ping()?;
            empty()
        }
        "ShutdownSandbox" => {
            let request: api::ShutdownSandboxRequest = decode(payload)?;
            containers.shut_down_sandbox(&request.sandbox_id).await?;
            empty()
        }
        "SandboxMetrics" => {
            let request: api::SandboxMetricsRequest = decode(payload)?;
            let stats = containers.sandbox(&request.sandbox_id)?.metrics()?;
            encode(wire::sandbox::metrics(&request.sandbox_id, &stats)?)
        }
        method => Err(Error::Unimplemented(format!("method {method} of the sandbox service"))),
    }
}

fn create(containers: &Containers, request: api::CreateSandboxRequest) -> Result<()> {
    let pod = pod::decode(request.options.get_or_default())?;
    let id = ContainerId::new(&request.sandbox_id)?;
    let (bundle, network) = (request.bundle_path, request.netns_path);
    // No root file system: nothing of the pod's would run in it.
    containers.create_sandbox(Request { id, bundle, network, pod })
}

async fn start(
    containers: &Containers,
    request: &api::StartSandboxRequest,
    deadline: Option<Instant>,
) -> Result<api::StartSandboxResponse> {
    let sandbox = containers.sandbox(&request.sandbox_id)?;
    let mut response = api::StartSandboxResponse::new();
    response.pid = sandbox.start(deadline).await?.wire();
    containers.note_begin();
    response.created_at = MessageField::some(wire::timestamp(sandbox.created_at()));
    Ok(response)
}

async fn wait(
    containers: &Containers,
    request: &api::WaitSandboxRequest,
    deadline: Option<Instant>,
) -> Result<api::WaitSandboxResponse> {
    let ended = containers.sandbox(&request.sandbox_id)?.wait();
    let began = Instant::now();
    let exit = match deadline {
        None => ended.await,
        Some(deadline) => timeout_at(deadline, ended).await.map_err(|_| Error::Deadline {
            what: format!("sandbox {:?}", request.sandbox_id),
            limit: deadline.saturating_duration_since(began),
        })?,
    };
    let mut response = api::WaitSandboxResponse::new();
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(wire::timestamp(exit.at));
    Ok(response)
}

fn status(
    containers: &Containers,
    request: api::SandboxStatusRequest,
) -> Result<api::SandboxStatusResponse> {
    let sandbox = containers.sandbox(&request.sandbox_id)?;
    let mut response = api::SandboxStatusResponse::new();
    response.sandbox_id = request.sandbox_id;
    response.pid = sandbox.pid().map_or(0, Pid::wire);
    response.state = wire::sandbox::state(sandbox.stage()).into();
    response.created_at = MessageField::some(wire::timestamp(sandbox.created_at()));
    if let Stage::Ended(exit) = sandbox.stage() {
        response.exited_at = MessageField::some(wire::timestamp(exit.at));
    }
    if request.verbose {
        response.info = sandbox.info().into_iter().collect();
    }
    Ok(response)
}
