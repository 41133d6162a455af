//! A ttrpc client of the task service.

use std::time::Duration;

use containerd_shim_protos::api::*;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::{Message, MessageField};
use serde_json::Value;
pub use ttrpc::Code;

/// How long a call may take unless a test says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// The service's name on the wire; the messages are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    V2,
    V3,
}

/// Why a call failed; `code` is [`Code::OK`] when no answer came at all.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
}

pub type Answer<T> = Result<T, Refusal>;

/// One connection to a shim; clones share it.
#[derive(Clone)]
pub struct Task {
    client: ttrpc::Client,
    api: Api,
    limit: Duration,
}

impl Task {
    /// Connects to the address that `start` printed.
    pub fn connect(address: &str, api: Api) -> Answer<Self> {
        let client = ttrpc::Client::connect(address).map_err(refusal)?;
        Ok(Self { client, api, limit: super::patient(LIMIT) })
    }

    /// The same connection with another deadline, which the shim is told too.
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The same connection with another version of the service.
    pub fn speaking(&self, api: Api) -> Self {
        Self { api, ..self.clone() }
    }

    /// The version of the service that it speaks.
    pub fn api(&self) -> Api {
        self.api
    }

    /// Calls any method of any service.
    pub fn raw(&self, service: &str, method: &str, payload: Vec<u8>) -> Answer<Vec<u8>> {
        self.raw_with(&[], service, method, payload)
    }

    /// The same with metadata.
    pub fn raw_with(
        &self,
        metadata: &[(&str, &str)],
        service: &str,
        method: &str,
        payload: Vec<u8>,
    ) -> Answer<Vec<u8>> {
        let mut request = ttrpc::Request::new();
        let pair = |&(key, value): &(&str, &str)| ttrpc::proto::KeyValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        request.metadata = metadata.iter().map(pair).collect();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.timeout_nano = i64::try_from(self.limit.as_nanos()).unwrap();
        request.payload = payload;
        Ok(self.client.request(request).map_err(refusal)?.payload)
    }

    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Answer<A> {
        let service = match self.api {
            Api::V2 => "containerd.task.v2.Task",
            Api::V3 => "containerd.task.v3.Task",
        };
        let reply = self.raw(service, method, request.write_to_bytes().unwrap())?;
        Ok(A::parse_from_bytes(&reply).expect("a reply of the method's type"))
    }

    pub fn create(&self, request: &CreateTaskRequest) -> Answer<u32> {
        self.call::<CreateTaskResponse>("Create", request).map(|reply| reply.pid)
    }

    pub fn start(&self, id: &str, exec: &str) -> Answer<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call::<StartResponse>("Start", &request).map(|reply| reply.pid)
    }

    pub fn state(&self, id: &str, exec: &str) -> Answer<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call("State", &request)
    }

    pub fn delete(&self, id: &str, exec: &str) -> Answer<DeleteResponse> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call("Delete", &request)
    }

    /// Every process of the container: its pid, and its exec id where it is an exec process.
    pub fn pids(&self, id: &str) -> Answer<Vec<(u32, Option<String>)>> {
        let request = PidsRequest { id: id.into(), ..Default::default() };
        let reply: PidsResponse = self.call("Pids", &request)?;
        let exec = |info: &ProcessInfo| {
            let any = info.info.as_ref()?;
            assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
            let details =
                containerd_shim_protos::shim::oci::ProcessDetails::parse_from_bytes(&any.value);
            Some(details.unwrap().exec_id)
        };
        Ok(reply.processes.iter().map(|info| (info.pid, exec(info))).collect())
    }

    pub fn pause(&self, id: &str) -> Answer<()> {
        self.call::<Empty>("Pause", &PauseRequest { id: id.into(), ..Default::default() }).map(drop)
    }

    pub fn resume(&self, id: &str) -> Answer<()> {
        self.call::<Empty>("Resume", &ResumeRequest { id: id.into(), ..Default::default() })
            .map(drop)
    }

    /// Saves the container in `path`, unless `options` have a path.
    pub fn checkpoint(&self, id: &str, path: &str, options: &CheckpointOptions) -> Answer<()> {
        let mut any = protobuf::well_known_types::any::Any::new();
        any.type_url = "containerd.runc.v1.CheckpointOptions".into();
        any.value = options.write_to_bytes().unwrap();
        let request = CheckpointTaskRequest {
            id: id.into(),
            path: path.into(),
            options: MessageField::some(any),
            ..Default::default()
        };
        self.call::<Empty>("Checkpoint", &request).map(drop)
    }

    pub fn kill(&self, id: &str, exec: &str, signal: i32) -> Answer<()> {
        self.kill_request(id, exec, signal, false)
    }

    pub fn kill_all(&self, id: &str, signal: i32) -> Answer<()> {
        self.kill_request(id, "", signal, true)
    }

    fn kill_request(&self, id: &str, exec: &str, signal: i32, all: bool) -> Answer<()> {
        let signal = signal.unsigned_abs();
        let (id, exec_id) = (id.into(), exec.into());
        let request = KillRequest { id, exec_id, signal, all, ..Default::default() };
        self.call::<Empty>("Kill", &request).map(drop)
    }

    pub fn exec(&self, request: &ExecProcessRequest) -> Answer<()> {
        self.call::<Empty>("Exec", request).map(drop)
    }

    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Answer<()> {
        let (id, exec_id) = (id.into(), exec.into());
        let request = ResizePtyRequest { id, exec_id, width, height, ..Default::default() };
        self.call::<Empty>("ResizePty", &request).map(drop)
    }

    pub fn close_stdin(&self, id: &str, exec: &str) -> Answer<()> {
        let (id, exec_id) = (id.into(), exec.into());
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.call::<Empty>("CloseIO", &request).map(drop)
    }

    /// Applies `resources`, a runtime-spec `LinuxResources`.
    pub fn update(&self, id: &str, resources: &Value) -> Answer<()> {
        let any = spec_any("LinuxResources", resources);
        let request = UpdateTaskRequest {
            id: id.into(),
            resources: MessageField::some(any),
            ..Default::default()
        };
        self.call::<Empty>("Update", &request).map(drop)
    }

    /// Blocks until the process ends; returns its exit status.
    pub fn wait(&self, id: &str, exec: &str) -> Answer<WaitResponse> {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.call("Wait", &request)
    }

    pub fn stats(&self, id: &str) -> Answer<StatsResponse> {
        self.call("Stats", &StatsRequest { id: id.into(), ..Default::default() })
    }

    pub fn ask(&self, id: &str) -> Answer<ConnectResponse> {
        self.call("Connect", &ConnectRequest { id: id.into(), ..Default::default() })
    }

    pub fn shutdown(&self, id: &str) -> Answer<()> {
        let request = ShutdownRequest { id: id.into(), ..Default::default() };
        self.call::<Empty>("Shutdown", &request).map(drop)
    }
}

/// A runtime-spec object as containerd sends it: JSON in an `Any`.
pub fn spec_any(kind: &str, value: &Value) -> protobuf::well_known_types::any::Any {
    let type_url = format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}");
    let value = value.to_string().into_bytes();
    protobuf::well_known_types::any::Any { type_url, value, ..Default::default() }
}

fn refusal(error: ttrpc::Error) -> Refusal {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            Refusal { code: status.code(), message: status.message().to_owned() }
        }
        other => Refusal { code: Code::OK, message: other.to_string() },
    }
}
