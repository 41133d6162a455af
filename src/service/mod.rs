//! The ttrpc services: decode, call, encode.

mod sandbox;
mod streaming;
mod task;
mod trace;

use std::pin::pin;
use std::rc::Rc;

use protobuf::Message;
use tokio::time::Instant;
use ttrpc::Code;
use ttrpc::proto::Request;

use crate::container::Containers;
use crate::error::{Error, Result};
use crate::rpc::duplex::{Inbound, Outbound};
use crate::rpc::server::Handler;

/// Answers every request of every connection.
pub(crate) struct Services {
    containers: Rc<Containers>,
}

impl Services {
    /// Services for these containers.
    pub(crate) fn new(containers: Rc<Containers>) -> Self {
        Self { containers }
    }
}

impl Handler for Services {
    async fn call(self: Rc<Self>, request: Request, deadline: Option<Instant>) -> Result<Vec<u8>> {
        let began = Instant::now();
        let mut span = trace::begin(&self.containers, &request);
        let result = span.around(pin!(self.dispatch(&request, deadline))).await;
        let method = METHODS.iter().find(|known| **known == request.method);
        let code = result.as_ref().err().map_or(Code::OK, Error::code);
        trace::end(&mut span, code, &result);
        let calls = &self.containers.reaper.meters().calls;
        calls.note(method.copied().unwrap_or("other"), name(code), began.elapsed());
        result
    }

    fn only_waits(&self, request: &Request) -> bool {
        matches!(request.method.as_str(), "Wait" | "WaitSandbox")
    }

    fn open(self: Rc<Self>, request: &Request, out: Outbound) -> Result<Rc<dyn Inbound>> {
        match (request.service.as_str(), request.method.as_str()) {
            ("containerd.services.streaming.v1.Streaming", method) => {
                streaming::open(&self.containers, method, out)
            }
            (service, method) => {
                Err(Error::Unimplemented(format!("stream {method} of service {service}")))
            }
        }
    }
}

impl Services {
    async fn dispatch(&self, request: &Request, deadline: Option<Instant>) -> Result<Vec<u8>> {
        match request.service.as_str() {
            // Their messages agree in every field that both have.
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                task::call(&self.containers, &request.method, &request.payload, deadline).await
            }
            "containerd.runtime.sandbox.v1.Sandbox" => {
                sandbox::call(&self.containers, &request.method, &request.payload, deadline).await
            }
            // containerd falls back to an older service on this status and no other.
            service => Err(Error::Unimplemented(format!("service {service}"))),
        }
    }
}

/// The methods of both services, as they are counted.
const METHODS: [&str; 26] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
    "CreateSandbox",
    "StartSandbox",
    "Platform",
    "StopSandbox",
    "WaitSandbox",
    "SandboxStatus",
    "PingSandbox",
    "ShutdownSandbox",
    "SandboxMetrics",
];

/// A status as gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::OK => "OK",
        Code::INVALID_ARGUMENT => "INVALID_ARGUMENT",
        Code::DEADLINE_EXCEEDED => "DEADLINE_EXCEEDED",
        Code::NOT_FOUND => "NOT_FOUND",
        Code::ALREADY_EXISTS => "ALREADY_EXISTS",
        Code::PERMISSION_DENIED => "PERMISSION_DENIED",
        Code::RESOURCE_EXHAUSTED => "RESOURCE_EXHAUSTED",
        Code::FAILED_PRECONDITION => "FAILED_PRECONDITION",
        Code::UNIMPLEMENTED => "UNIMPLEMENTED",
        Code::INTERNAL => "INTERNAL",
        Code::UNAVAILABLE => "UNAVAILABLE",
        _ => "UNKNOWN",
    }
}

fn decode<M: Message>(payload: &[u8]) -> Result<M> {
    M::parse_from_bytes(payload)
        .map_err(|error| Error::Invalid(format!("request is not a valid message: {error}")))
}

fn encode(message: impl Message) -> Result<Vec<u8>> {
    message.write_to_bytes().map_err(|error| Error::Sys { action: "encode", source: error.into() })
}

/// `google.protobuf.Empty`, which has no bytes.
fn empty() -> Result<Vec<u8>> {
    Ok(Vec::new())
}
