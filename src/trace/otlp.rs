//! Spans as OTLP has them: [messages] of Protocol Buffers, field by field. Pure.
//!
//! A span is encoded when it ends, so that what waits for the collector is no larger than what is sent.
//!
//! [messages]: https://github.com/open-telemetry/opentelemetry-proto/blob/v1.9.0/opentelemetry/proto/trace/v1/trace.proto

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protobuf::{CodedInputStream, CodedOutputStream};

use super::context::{Context, SpanId};

/// The longest text of a span, in bytes; a longer one is cut.
const LONGEST: usize = 512;

/// What a span is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Work of its own.
    Internal = 1,
    /// It answers a request.
    Server = 2,
    /// It has another program do something.
    Client = 3,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

/// A span that has ended.
pub(super) struct Ended<'a> {
    pub(super) context: &'a Context,
    pub(super) parent: Option<SpanId>,
    /// Whether the parent is another program's.
    pub(super) is_remote: bool,
    /// A span elsewhere that has to do with it.
    pub(super) link: Option<&'a Context>,
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    pub(super) began: SystemTime,
    pub(super) took: Duration,
    pub(super) attributes: &'a [(&'static str, Value)],
    /// What went wrong.
    pub(super) failure: Option<&'a str>,
}

/// Writes a message. There is no error: memory takes all.
fn message(write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut bytes);
    let written = write(&mut stream).and_then(|()| stream.flush());
    drop(stream);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes
}

/// `opentelemetry.proto.trace.v1.Span`
pub(super) fn span(ended: &Ended<'_>) -> Vec<u8> {
    let Context { trace, span, state, .. } = ended.context;
    let (began, took) = (nanos(ended.began), ended.took.as_nanos());
    let end = began.saturating_add(u64::try_from(took).unwrap_or(u64::MAX));
    message(|out| {
        out.write_bytes(1, trace)?;
        out.write_bytes(2, span)?;
        if !state.is_empty() {
            out.write_string(3, state)?;
        }
        if let Some(parent) = &ended.parent {
            out.write_bytes(4, parent)?;
        }
        out.write_string(5, cut(ended.name))?;
        out.write_enum(6, ended.kind as i32)?;
        out.write_fixed64(7, began)?;
        out.write_fixed64(8, end)?;
        for (key, value) in ended.attributes {
            out.write_bytes(9, &attribute(key, value))?;
        }
        if let Some(link) = ended.link {
            out.write_bytes(13, &self::link(link))?;
        }
        if let Some(failure) = ended.failure {
            out.write_bytes(15, &status(failure))?;
        }
        out.write_fixed32(16, flags(ended.context.sampled, ended.is_remote))
    })
}

/// `ExportTraceServiceRequest` with `spans`, each encoded, of a program that `resource` describes.
pub(super) fn request(resource: &[(String, Value)], spans: &[Vec<u8>]) -> Vec<u8> {
    let resource = message(|out| {
        resource.iter().try_for_each(|(key, value)| out.write_bytes(1, &attribute(key, value)))
    });
    let scope = message(|out| {
        out.write_string(1, env!("CARGO_PKG_NAME"))?;
        out.write_string(2, env!("CARGO_PKG_VERSION"))
    });
    let scope_spans = message(|out| {
        out.write_bytes(1, &scope)?;
        spans.iter().try_for_each(|span| out.write_bytes(2, span))
    });
    let resource_spans = message(|out| {
        out.write_bytes(1, &resource)?;
        out.write_bytes(2, &scope_spans)
    });
    message(|out| out.write_bytes(1, &resource_spans))
}

/// How many spans the collector did not want, of an `ExportTraceServiceResponse`.
pub(super) fn rejected(response: &[u8]) -> u64 {
    // Field 1, `partial_success`; in it field 1, the number.
    let Some(partial) = field(response, 1, |stream| stream.read_bytes()) else { return 0 };
    let count = field(&partial, 1, |stream| stream.read_int64());
    count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}

/// The last value of the field `number`, which `read` reads.
fn field<T>(
    bytes: &[u8],
    number: u32,
    read: impl Fn(&mut CodedInputStream<'_>) -> protobuf::Result<T>,
) -> Option<T> {
    let mut stream = CodedInputStream::from_bytes(bytes);
    let mut found = None;
    while let Some(tag) = stream.read_raw_tag_or_eof().ok()? {
        if tag >> 3 == number {
            found = Some(read(&mut stream).ok()?);
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut stream).ok()?;
        }
    }
    found
}

/// `KeyValue` with an `AnyValue`
fn attribute(key: &str, value: &Value) -> Vec<u8> {
    let value = message(|out| match value {
        Value::Text(text) => out.write_string(1, cut(text)),
        Value::Number(number) => out.write_int64(3, *number),
    });
    message(|out| {
        out.write_string(1, key)?;
        out.write_bytes(2, &value)
    })
}

/// `Span.Link`
fn link(context: &Context) -> Vec<u8> {
    message(|out| {
        out.write_bytes(1, &context.trace)?;
        out.write_bytes(2, &context.span)?;
        if !context.state.is_empty() {
            out.write_string(3, &context.state)?;
        }
        out.write_fixed32(6, flags(context.sampled, false))
    })
}

/// `Status` with `STATUS_CODE_ERROR`
fn status(failure: &str) -> Vec<u8> {
    message(|out| {
        out.write_string(2, cut(failure))?;
        out.write_enum(3, 2)
    })
}

/// The flags of a `traceparent`, and above them whether the parent is another program's, which is known.
fn flags(sampled: bool, is_remote: bool) -> u32 {
    u32::from(sampled) | 0x100 | if is_remote { 0x200 } else { 0 }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> &str {
    let mut end = LONGEST.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(cut(text).into())
    }
}

impl From<Cow<'_, str>> for Value {
    fn from(text: Cow<'_, str>) -> Self {
        text.as_ref().into()
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto;
    use super::*;

    fn text(key: &str, value: &str) -> proto::KeyValue {
        let value = proto::AnyValue { string_value: Some(value.into()), int_value: None };
        proto::KeyValue { key: key.into(), value: Some(value) }
    }

    fn number(key: &str, value: i64) -> proto::KeyValue {
        let value = proto::AnyValue { string_value: None, int_value: Some(value) };
        proto::KeyValue { key: key.into(), value: Some(value) }
    }

    #[test]
    fn another_library_reads_what_was_written() {
        let context = Context { trace: [1; 16], span: [2; 8], sampled: true, state: "a=1".into() };
        let link = Context { trace: [3; 16], span: [4; 8], sampled: false, state: "".into() };
        let attributes =
            [("x", Value::Number(-1)), ("y", "é".repeat(LONGEST).as_str().into()), ("z", 0.into())];
        let ended = Ended {
            context: &context,
            parent: Some([5; 8]),
            is_remote: true,
            link: Some(&link),
            name: "name",
            kind: Kind::Server,
            began: UNIX_EPOCH + Duration::from_nanos(7),
            took: Duration::from_nanos(8),
            attributes: &attributes,
            failure: Some("why"),
        };
        let plain = Ended {
            parent: None,
            is_remote: false,
            link: None,
            kind: Kind::Client,
            attributes: &[],
            failure: None,
            context: &link,
            ..ended
        };
        let resource = [("service.name".to_owned(), Value::from("s"))];
        let bytes = request(&resource, &[span(&ended), span(&plain)]);
        let found = proto::Request::decode(bytes.as_slice()).unwrap();
        let [resource_spans] = &found.resource_spans[..] else { panic!("{found:?}") };
        let attributes = vec![text("service.name", "s")];
        assert_eq!(resource_spans.resource, Some(proto::Resource { attributes }));
        let [scope_spans] = &resource_spans.scope_spans[..] else { panic!("{found:?}") };
        assert_eq!(scope_spans.scope.as_ref().unwrap().name, "berth");
        let full = proto::Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            trace_state: "a=1".into(),
            parent_span_id: vec![5; 8],
            name: "name".into(),
            kind: 2,
            start_time_unix_nano: 7,
            end_time_unix_nano: 15,
            attributes: vec![number("x", -1), text("y", &"é".repeat(LONGEST / 2)), number("z", 0)],
            links: vec![proto::Link {
                trace_id: vec![3; 16],
                span_id: vec![4; 8],
                trace_state: String::new(),
                flags: 0x100,
            }],
            status: Some(proto::Status { message: "why".into(), code: 2 }),
            flags: 0x301,
        };
        let empty = proto::Span {
            trace_id: vec![3; 16],
            span_id: vec![4; 8],
            name: "name".into(),
            kind: 3,
            start_time_unix_nano: 7,
            end_time_unix_nano: 15,
            flags: 0x100,
            ..proto::Span::default()
        };
        assert_eq!(scope_spans.spans, [full, empty]);
    }

    #[test]
    fn a_collector_says_what_it_did_not_want() {
        let response = |rejected_spans| {
            let error_message = "no".to_owned();
            let partial = proto::PartialSuccess { rejected_spans, error_message };
            proto::Response { partial_success: Some(partial) }.encode_to_vec()
        };
        let cases = [
            ("all taken", Vec::new(), 0),
            ("three", response(3), 3),
            ("a warning", response(0), 0),
            ("nonsense", response(-1), 0),
            ("junk", b"{\"partialSuccess\":{}}".to_vec(), 0),
            ("halved", response(3)[..2].to_vec(), 0),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(rejected(&bytes), expected, "{name}");
        }
    }
}
