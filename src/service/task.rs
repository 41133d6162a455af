//! containerd's task service, versions 2 and 3 ([shim.proto]).
//!
//! [shim.proto]: https://github.com/containerd/containerd/blob/main/api/runtime/task/v3/shim.proto

use std::rc::Rc;

use containerd_shim_protos::api;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::time::{Instant, timeout_at};

use crate::cgroup::stats;
use crate::container::{Containers, Creation, Process};
use crate::error::{Error, Result};
use crate::ids::{ContainerId, ExecId, Pid};
use crate::io::StdioSpec;
use crate::service::{decode, empty, encode};
use crate::wire::{self, options};

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
        "State" => encode(state(containers, decode(payload)?)?),
        "Create" => encode(create(containers, decode(payload)?, deadline).await?),
        "Start" => encode(start(containers, decode(payload)?, deadline).await?),
        "Delete" => encode(delete(containers, decode(payload)?, deadline).await?),
        "Pids" => encode(pids(containers, decode(payload)?)?),
        "Pause" => {
            let request: api::PauseRequest = decode(payload)?;
            containers.get(&request.id)?.pause(deadline).await?;
            empty()
        }
        "Resume" => {
            let request: api::ResumeRequest = decode(payload)?;
            containers.get(&request.id)?.resume(deadline).await?;
            empty()
        }
        "Kill" => {
            kill(containers, decode(payload)?, deadline).await?;
            empty()
        }
        "Exec" => {
            exec(containers, decode(payload)?)?;
            empty()
        }
        "ResizePty" => {
            resize(containers, &decode(payload)?)?;
            empty()
        }
        "CloseIO" => {
            close_io(containers, &decode(payload)?)?;
            empty()
        }
        "Update" => {
            update(containers, decode(payload)?, deadline).await?;
            empty()
        }
        "Checkpoint" => {
            let request: api::CheckpointTaskRequest = decode(payload)?;
            let options = wire::checkpoint::decode(request.options.get_or_default())?;
            containers.get(&request.id)?.checkpoint(&request.path, options, deadline).await?;
            empty()
        }
        "Wait" => encode(wait(containers, decode(payload)?, deadline).await?),
        "Stats" => encode(task_stats(containers, &decode(payload)?)?),
        "Connect" => encode(connect(containers, &decode(payload)?)?),
        "Shutdown" => {
            let request: api::ShutdownRequest = decode(payload)?;
            containers.shut_down(&request.id).await;
            empty()
        }
        method => Err(Error::Unimplemented(format!("method {method} of the task service"))),
    }
}

fn state(containers: &Containers, request: api::StateRequest) -> Result<api::StateResponse> {
    let container = containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let mut response = api::StateResponse::new();
    response.id = request.id;
    response.exec_id = request.exec_id;
    response.bundle = container.bundle.dir().to_string_lossy().into_owned();
    response.pid = process.pid().map_or(0, Pid::wire);
    response.status = wire::task::status(process.state()).into();
    response.stdin.clone_from(&process.stdio.stdin);
    response.stdout.clone_from(&process.stdio.stdout);
    response.stderr.clone_from(&process.stdio.stderr);
    response.terminal = process.stdio.terminal;
    if let Some(exit) = process.state().exit() {
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(wire::timestamp(exit.at));
    }
    Ok(response)
}

async fn create(
    containers: &Rc<Containers>,
    request: api::CreateTaskRequest,
    deadline: Option<Instant>,
) -> Result<api::CreateTaskResponse> {
    let options = options::decode(request.options.get_or_default())?.unwrap_or_default();
    let creation = Creation {
        id: ContainerId::new(&request.id)?,
        bundle: request.bundle,
        rootfs: request.rootfs.into_iter().map(wire::mount::decode).collect(),
        stdio: StdioSpec {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        checkpoint: request.checkpoint,
        options,
    };
    let mut response = api::CreateTaskResponse::new();
    response.pid = containers.create(creation, deadline).await?.map_or(0, Pid::wire);
    Ok(response)
}

async fn start(
    containers: &Containers,
    request: api::StartRequest,
    deadline: Option<Instant>,
) -> Result<api::StartResponse> {
    let container = containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let mut response = api::StartResponse::new();
    response.pid = container.start_exec(&process, deadline).await?.wire();
    Ok(response)
}

async fn delete(
    containers: &Containers,
    request: api::DeleteRequest,
    deadline: Option<Instant>,
) -> Result<api::DeleteResponse> {
    let container = containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let ended = match &process.exec_id {
        None => container.delete(deadline).await?,
        Some(id) => container.delete_exec(&process, id, deadline).await?,
    };
    let mut response = api::DeleteResponse::new();
    if let Some((pid, exit)) = ended {
        response.pid = pid.wire();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(wire::timestamp(exit.at));
    }
    Ok(response)
}

fn pids(containers: &Containers, request: api::PidsRequest) -> Result<api::PidsResponse> {
    let mut response = api::PidsResponse::new();
    for (pid, exec_id) in containers.get(&request.id)?.pids()? {
        response.processes.push(wire::task::process_info(pid, exec_id.as_ref()));
    }
    Ok(response)
}

async fn kill(
    containers: &Containers,
    request: api::KillRequest,
    deadline: Option<Instant>,
) -> Result<()> {
    let container = containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    match process.exec_id {
        None => container.kill(request.signal, request.all, deadline).await,
        Some(_) => container.kill_exec(&process, request.signal, deadline).await,
    }
}

fn exec(containers: &Containers, request: api::ExecProcessRequest) -> Result<()> {
    let stdio = StdioSpec {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    let id = ExecId::new(&request.exec_id)?;
    containers.get(&request.id)?.add_exec(&id, &request.spec.value, stdio)
}

/// Its annotations are for runtimes that take them, which no OCI runtime's `update` does.
async fn update(
    containers: &Containers,
    request: api::UpdateTaskRequest,
    deadline: Option<Instant>,
) -> Result<()> {
    let container = containers.get(&request.id)?;
    let resources = wire::task::resources(request.resources.get_or_default())?;
    container.update(resources, deadline).await
}

/// The process that a request names, for requests that do nothing once it has ended.
fn process(containers: &Containers, id: &str, exec_id: &str) -> Result<Rc<Process>> {
    containers.get(id)?.process(exec_id)
}

fn resize(containers: &Containers, request: &api::ResizePtyRequest) -> Result<()> {
    let process = process(containers, &request.id, &request.exec_id)?;
    let size = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    process.io().map_or(Ok(()), |io| io.resize(size(request.width), size(request.height)))
}

fn close_io(containers: &Containers, request: &api::CloseIORequest) -> Result<()> {
    let process = process(containers, &request.id, &request.exec_id)?;
    if request.stdin {
        process.close_stdin();
    }
    Ok(())
}

async fn wait(
    containers: &Containers,
    request: api::WaitRequest,
    deadline: Option<Instant>,
) -> Result<api::WaitResponse> {
    let process = process(containers, &request.id, &request.exec_id)?;
    let ended = process.wait();
    drop(process); // so that Delete ends the wait for a process that never ran
    let began = Instant::now();
    let exit = match deadline {
        None => ended.await,
        Some(deadline) => timeout_at(deadline, ended).await.map_err(|_| Error::Deadline {
            what: format!("process of {:?}", request.id),
            limit: deadline.saturating_duration_since(began),
        })?,
    };
    let never = Error::State { id: request.id, change: "wait for", state: "not started" };
    let exit = exit.ok_or(never)?;
    let mut response = api::WaitResponse::new();
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(wire::timestamp(exit.at));
    Ok(response)
}

fn task_stats(containers: &Containers, request: &api::StatsRequest) -> Result<api::StatsResponse> {
    let container = containers.get(&request.id)?;
    let mut response = api::StatsResponse::new();
    let stats = stats::stats(container.cgroup()?)?;
    let mut any = Any::new();
    any.type_url = stats.type_url().into();
    any.value = stats.encode()?;
    response.stats = MessageField::some(any);
    Ok(response)
}

fn connect(containers: &Containers, request: &api::ConnectRequest) -> Result<api::ConnectResponse> {
    containers.takes_new()?; // a `start` that asks needs another daemon then
    let mut response = api::ConnectResponse::new();
    response.shim_pid = std::process::id();
    response.version = env!("CARGO_PKG_VERSION").into();
    // A task that is not there (yet) is no error: containerd asks this of a shim at its restart.
    if let Some(pid) = containers.get(&request.id).ok().and_then(|found| found.init.pid()) {
        response.task_pid = pid.wire();
    }
    Ok(response)
}
