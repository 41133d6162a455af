//! A connection to a shim by the one thread that uses it: it is there at once, and gone at once when it is
//! dropped, as containerd's is. That of the `ttrpc` crate takes up to 10 ms for that, for which a shim waits.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest, DeleteResponse, Empty,
    ShutdownRequest, StartRequest, WaitRequest,
};
use protobuf::Message;
use ttrpc::{Code, Request, Response};

const ID: &str = "c";

/// A connection, for calls about container `c`.
pub(crate) struct Line {
    stream: UnixStream,
    service: &'static str,
    next: u32,
}

impl Line {
    /// Connects to the address that `start` printed; the daemon's pid.
    pub(crate) fn connect(address: &str) -> (Self, i32) {
        let stream = UnixStream::connect(address.trim_start_matches("unix://")).unwrap();
        let mut line = Self { stream, service: "containerd.task.v3.Task", next: 1 };
        let request = ConnectRequest { id: ID.into(), ..Default::default() };
        let answer = line.call::<ConnectResponse>("Connect", &request).unwrap_or_else(|_| {
            line.service = "containerd.task.v2.Task";
            line.call("Connect", &request).unwrap()
        });
        (line, i32::try_from(answer.shim_pid).unwrap())
    }

    /// Create with `request`, and Start.
    pub(crate) fn run(&mut self, request: &CreateTaskRequest) {
        self.call::<Empty>("Create", request).unwrap();
        let start = StartRequest { id: ID.into(), ..Default::default() };
        self.call::<Empty>("Start", &start).unwrap();
    }

    /// Waits for the end, and deletes; the exit status.
    pub(crate) fn reap(&mut self) -> u32 {
        self.call::<Empty>("Wait", &WaitRequest { id: ID.into(), ..Default::default() }).unwrap();
        let delete = DeleteRequest { id: ID.into(), ..Default::default() };
        self.call::<DeleteResponse>("Delete", &delete).unwrap().exit_status
    }

    /// Shuts the daemon down, and hangs up.
    pub(crate) fn shut_down(mut self) {
        // The connection may close before the answer is read.
        let request = ShutdownRequest { id: ID.into(), ..Default::default() };
        drop(self.call::<Empty>("Shutdown", &request));
    }

    fn call<A: Message>(&mut self, method: &str, message: &impl Message) -> Result<A, String> {
        let mut request = Request::new();
        (request.service, request.method) = (self.service.into(), method.into());
        request.payload = message.write_to_bytes().unwrap();
        let bytes = request.write_to_bytes().unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        let number = self.next.to_be_bytes();
        self.next += 2;
        let frame = [&length.to_be_bytes()[..], &number, &[1, 0], &bytes].concat();
        self.stream.write_all(&frame).map_err(|error| error.to_string())?;
        let mut header = [0; 10];
        self.stream.read_exact(&mut header).map_err(|error| error.to_string())?;
        let mut body = vec![0; u32::from_be_bytes(*header.first_chunk().unwrap()) as usize];
        self.stream.read_exact(&mut body).map_err(|error| error.to_string())?;
        let response = Response::parse_from_bytes(&body).unwrap();
        match response.status().code() {
            Code::OK => Ok(A::parse_from_bytes(&response.payload).unwrap()),
            _ => Err(response.status().message().to_owned()),
        }
    }
}
