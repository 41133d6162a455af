//! Spans of requests, by OpenTelemetry's [conventions for RPC] of version 1.37, as [containerd's client] has
//! them: the two spans of a call are found by the same attributes. Later ones name some of them otherwise.
//!
//! [conventions for RPC]: https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/rpc/rpc-spans.md
//! [containerd's client]: https://github.com/containerd/otelttrpc

use protobuf::CodedInputStream;
use ttrpc::Code;
use ttrpc::proto::Request;

use crate::container::Containers;
use crate::error::Result;
use crate::service::name;
use crate::trace::Span;

/// Methods whose second field names an exec process.
const OF_PROCESSES: [&str; 8] =
    ["State", "Start", "Delete", "Kill", "Exec", "ResizePty", "CloseIO", "Wait"];

/// The span of one request.
pub(super) fn begin(containers: &Containers, request: &Request) -> Span {
    let metadata = request.metadata.iter().map(|pair| (pair.key.as_str(), pair.value.as_str()));
    let Request { service, method, .. } = request;
    let tracer = containers.reaper.tracer();
    let mut span = tracer.request(|| format!("{service}/{method}"), metadata);
    if span.is_recorded() {
        describe(&mut span, request);
        if tracer.is_undecided() && method == "CreateSandbox" {
            containers.decide_tracing();
        }
    }
    span
}

fn describe(span: &mut Span, request: &Request) {
    let Request { service, method, payload, .. } = request;
    span.set("rpc.system", "ttrpc");
    span.set("rpc.service", service.as_str());
    span.set("rpc.method", method.as_str());
    let is_sandbox = service.ends_with(".Sandbox");
    let (id, exec) = ids(payload);
    if let Some(id) = id {
        span.set(if is_sandbox { "containerd.sandbox_id" } else { "container.id" }, id.as_str());
    }
    let exec = exec.filter(|exec| !exec.is_empty() && OF_PROCESSES.contains(&method.as_str()));
    if let Some(exec) = exec {
        span.set("containerd.exec_id", exec.as_str());
    }
}

/// The first two fields, as far as they are there and are texts: which container, and what else.
fn ids(payload: &[u8]) -> (Option<String>, Option<String>) {
    const TEXT: u32 = 2;
    let mut stream = CodedInputStream::from_bytes(payload);
    let mut found = [None, None];
    while let Ok(Some(tag)) = stream.read_raw_tag_or_eof() {
        let read = match (tag >> 3, tag & 7) {
            (field @ 1..=2, TEXT) => stream.read_bytes().map(|bytes| {
                found[(field - 1) as usize] = String::from_utf8(bytes).ok();
            }),
            (1..=2, _) => protobuf::rt::skip_field_for_tag(tag, &mut stream),
            _ => break, // the fields are in their order
        };
        if read.is_err() {
            break;
        }
    }
    let [id, exec] = found;
    (id, exec)
}

/// Says what the request came to.
pub(super) fn end<T>(span: &mut Span, code: Code, result: &Result<T>) {
    if !span.is_recorded() {
        return;
    }
    span.set("rpc.ttrpc.status_code", code as i64);
    // The others are the caller's fault, or what it wanted to know.
    let ours = [
        Code::UNKNOWN,
        Code::DEADLINE_EXCEEDED,
        Code::UNIMPLEMENTED,
        Code::INTERNAL,
        Code::UNAVAILABLE,
        Code::DATA_LOSS,
    ];
    if ours.contains(&code) {
        span.set("error.type", name(code));
        span.note(result);
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::api::{CreateTaskRequest, KillRequest, ShutdownRequest};

    use super::*;

    #[test]
    fn a_request_names_a_container() {
        let kill =
            KillRequest { id: "c".into(), exec_id: "e".into(), signal: 9, ..Default::default() };
        let create =
            CreateTaskRequest { id: "c".into(), bundle: "/b".into(), ..Default::default() };
        let shutdown = ShutdownRequest { id: "c".into(), now: true, ..Default::default() };
        let text = |message: &dyn protobuf::MessageDyn| message.write_to_bytes_dyn().unwrap();
        let cases = [
            ("kill", text(&kill), Some("c"), Some("e")),
            ("create", text(&create), Some("c"), Some("/b")),
            ("shutdown", text(&shutdown), Some("c"), None),
            ("nothing", Vec::new(), None, None),
            ("halved", text(&kill)[..2].to_vec(), None, None),
            ("no text", b"\x0a\x01\xff".to_vec(), None, None),
            ("junk", b"\xff\xff\xff".to_vec(), None, None),
        ];
        for (name, payload, id, exec) in cases {
            let (found, other) = ids(&payload);
            assert_eq!((found.as_deref(), other.as_deref()), (id, exec), "{name}");
        }
    }
}
