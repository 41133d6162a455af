//! Messages of containerd's streaming API, each in an `Any`: [stream], [transfer]. Bytes are read where
//! they lie, since a copy of them would be half of what moving them costs.
//!
//! [stream]: https://github.com/containerd/containerd/blob/main/api/services/streaming/v1/streaming.proto
//! [transfer]: https://github.com/containerd/containerd/blob/main/api/types/transfer/streaming.proto

use std::ops::Range;

use protobuf::CodedInputStream;
use protobuf::rt::WireType;

use crate::error::{Error, Result};

const INIT: &str = "containerd.services.streaming.v1.StreamInit";
const DATA: &str = "containerd.types.transfer.Data";
const WINDOW: &str = "containerd.types.transfer.WindowUpdate";
const EMPTY: &str = "google.protobuf.Empty";

/// What is in one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The stream's name: the first message of a client.
    Init(String),
    /// Where in the message the bytes of the stream are.
    Data(Range<usize>),
    /// The other side may be sent so many bytes more.
    Window(u32),
    /// That a stream is known from now on.
    Ack,
    /// Nothing that berth knows, by the name of its type.
    Other(String),
}

/// Reads a message.
///
/// # Errors
/// [`Error::Invalid`] for what is none, and for a window that shrinks.
pub(crate) fn decode(any: &[u8]) -> Result<Message> {
    let mut kind = 0..0;
    let mut value = 0..0;
    fields(any, 0..any.len(), |number, field| match (number, field) {
        (1, Field::Bytes(range)) => kind = range,
        (2, Field::Bytes(range)) => value = range,
        _ => {}
    })?;
    let kind = text(any, kind)?;
    match kind.rsplit('/').next().unwrap_or_default() {
        DATA => {
            let mut data = 0..0;
            fields(any, value, |number, field| {
                if let (1, Field::Bytes(range)) = (number, field) {
                    data = range;
                }
            })?;
            Ok(Message::Data(data))
        }
        WINDOW => {
            let mut update = 0;
            fields(any, value, |number, field| {
                if let (1, Field::Number(number)) = (number, field) {
                    update = number;
                }
            })?;
            // An int32: what is negative has its upper bits set.
            let update = i32::try_from(update).ok().and_then(|update| u32::try_from(update).ok());
            update.map(Message::Window).ok_or_else(|| broken("a window of less than nothing"))
        }
        INIT => {
            let mut id = 0..0;
            fields(any, value, |number, field| {
                if let (1, Field::Bytes(range)) = (number, field) {
                    id = range;
                }
            })?;
            text(any, id).map(Message::Init)
        }
        EMPTY => Ok(Message::Ack),
        other => Ok(Message::Other(other.chars().take(100).collect())),
    }
}

/// All that comes before the bytes of a message with `length` of them.
pub(crate) fn data_head(length: usize) -> Vec<u8> {
    let mut data = vec![0x0a];
    varint(&mut data, length);
    let mut head = Vec::with_capacity(48);
    bytes(&mut head, 0x0a, DATA.as_bytes());
    head.push(0x12);
    varint(&mut head, data.len() + length);
    head.extend(data);
    head
}

/// Lets the other side send `count` bytes more.
pub(crate) fn window(count: u32) -> Vec<u8> {
    let mut update = vec![0x08];
    varint(&mut update, count as usize);
    any(WINDOW, &update)
}

/// Asks a server for the stream `id`.
pub(crate) fn init(id: &str) -> Vec<u8> {
    let mut init = Vec::new();
    bytes(&mut init, 0x0a, id.as_bytes());
    any(INIT, &init)
}

/// Says that a stream is known from now on.
pub(crate) fn ack() -> Vec<u8> {
    any(EMPTY, &[])
}

fn any(kind: &str, value: &[u8]) -> Vec<u8> {
    let mut any = Vec::new();
    bytes(&mut any, 0x0a, kind.as_bytes());
    if !value.is_empty() {
        bytes(&mut any, 0x12, value);
    }
    any
}

fn bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    varint(out, value.len());
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of a message.
enum Field {
    Number(u64),
    Bytes(Range<usize>),
}

/// Calls `take` for each number and each run of bytes in the message that is at `range` of `all`.
fn fields(all: &[u8], range: Range<usize>, mut take: impl FnMut(u32, Field)) -> Result<()> {
    let start = range.start;
    let read = || -> protobuf::Result<()> {
        let mut input = CodedInputStream::from_bytes(&all[range]);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match (tag >> 3, tag & 7) {
                (number, 0) => take(number, Field::Number(input.read_raw_varint64()?)),
                (number, 2) => {
                    let length = input.read_raw_varint32()?;
                    let at = start + usize::try_from(input.pos()).unwrap_or(usize::MAX);
                    input.skip_raw_bytes(length)?;
                    take(number, Field::Bytes(at..at + length as usize));
                }
                (_, wire) => match WireType::new(wire) {
                    Some(wire) => input.skip_field(wire)?,
                    None => return Err(std::io::Error::other("an unknown type of field").into()),
                },
            }
        }
        Ok(())
    };
    read().map_err(broken)
}

fn text(all: &[u8], range: Range<usize>) -> Result<String> {
    String::from_utf8(all[range].to_vec()).map_err(broken)
}

fn broken(why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("broken message in a stream: {why}"))
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use protobuf::well_known_types::any::Any;
    use protobuf::well_known_types::wrappers::{BytesValue, Int32Value, StringValue};

    use super::*;

    /// As containerd's typeurl package writes it. The wrappers have the same field as our messages.
    fn wrapped(kind: &str, message: &impl protobuf::Message) -> Vec<u8> {
        super::super::any(kind, message).write_to_bytes().unwrap()
    }

    fn number(value: i32) -> Int32Value {
        Int32Value { value, ..Int32Value::default() }
    }

    #[test]
    fn messages_are_those_of_containerd() {
        let bytes = |length: usize| BytesValue { value: vec![7; length], ..BytesValue::default() };
        for length in [0, 1, 127, 128, 32 << 10] {
            let theirs = wrapped(DATA, &bytes(length));
            let Ok(Message::Data(range)) = decode(&theirs) else { panic!("{length}") };
            assert_eq!(theirs[range], vec![7; length]);
            let mut ours = data_head(length);
            ours.extend(vec![7; length]);
            let Ok(Message::Data(range)) = decode(&ours) else { panic!("{length}") };
            assert_eq!(ours[range], vec![7; length]);
            let any = Any::parse_from_bytes(&ours).unwrap();
            assert_eq!(any.type_url, DATA);
            assert_eq!(BytesValue::parse_from_bytes(&any.value).unwrap(), bytes(length));
        }
        let id = StringValue { value: "c-stdout".into(), ..StringValue::default() };
        assert_eq!(init("c-stdout"), wrapped(INIT, &id));
        assert_eq!(window(65536), wrapped(WINDOW, &number(65536)));
        assert_eq!(ack(), wrapped(EMPTY, &StringValue::default()));
    }

    #[test]
    fn what_a_message_is_decides_its_type() {
        let empty = StringValue::default();
        let mut with_more = wrapped(DATA, &BytesValue { value: vec![1], ..BytesValue::default() });
        with_more.extend([0x1d, 0, 0, 0, 0, 0x20, 5]); // fields that nobody knows yet
        let cases = [
            ("ack", wrapped(EMPTY, &empty), Ok(Message::Ack)),
            ("with a host", wrapped(&format!("x.org/{EMPTY}"), &empty), Ok(Message::Ack)),
            ("another", wrapped("x.Y", &empty), Ok(Message::Other("x.Y".into()))),
            ("nothing", vec![], Ok(Message::Other(String::new()))),
            ("no id", wrapped(INIT, &empty), Ok(Message::Init(String::new()))),
            ("a window", wrapped(WINDOW, &number(i32::MAX)), Ok(Message::Window(0x7fff_ffff))),
            ("less than nothing", wrapped(WINDOW, &number(-1)), Err("less than nothing")),
            ("cut off", with_more[..with_more.len() - 3].to_vec(), Err("broken")),
            ("a length beyond the end", vec![0x0a, 0x7f, 1], Err("broken")),
            ("no UTF-8", vec![0x0a, 1, 0xff], Err("broken")),
            ("with more", with_more, Ok(Message::Data(36..37))),
        ];
        for (name, bytes, expected) in cases {
            match (decode(&bytes), expected) {
                (Ok(message), Ok(expected)) => assert_eq!(message, expected, "{name}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{name}: {error}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }
}
