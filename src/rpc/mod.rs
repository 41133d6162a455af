//! ttrpc frames: a header of ten bytes, then one protobuf message. Pure; [`blocking`], the client and
//! the server move the bytes; [`duplex`] has the streams that stay open beside the calls.
//!
//! The [protocol]: length (4 bytes, big endian), stream id (4), type, flags. A client numbers its
//! calls with odd stream ids; the response has the number of its request.
//!
//! [protocol]: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md

pub(crate) mod blocking;
pub(crate) mod client;
pub(crate) mod duplex;
mod peers;
pub(crate) mod server;
mod stream;
mod writer;

use std::time::Duration;

use protobuf::{EnumOrUnknown, Message, MessageField};
use ttrpc::proto::{
    Code, FLAG_REMOTE_OPEN, KeyValue, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX,
    MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response, Status,
};

use crate::error::{Error, Result};

/// Bytes of a header.
pub(crate) const HEADER: usize = MESSAGE_HEADER_LENGTH;

/// Reads a header.
///
/// # Errors
/// [`Error::TooLarge`] if the message that follows is longer than 4 MiB; its stream is still good
/// once these bytes are skipped.
pub(crate) fn header(bytes: [u8; HEADER]) -> (MessageHeader, Result<usize>) {
    let header = MessageHeader::from(bytes);
    let length = header.length as usize;
    (header, if length > MESSAGE_LENGTH_MAX { Err(Error::TooLarge(length)) } else { Ok(length) })
}

/// One frame with a request, ready to be written. `payload` is an encoded message; a `timeout` of zero
/// is none.
///
/// # Errors
/// [`Error::TooLarge`] above 4 MiB.
pub(crate) fn request(
    stream: u32,
    (service, method): (&str, &str),
    payload: Vec<u8>,
    timeout: Duration,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let pair = |&(key, value): &(&str, &str)| KeyValue {
        key: key.into(),
        value: value.into(),
        ..KeyValue::default()
    };
    let request = Request {
        service: service.into(),
        method: method.into(),
        payload,
        timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
        metadata: metadata.iter().map(pair).collect(),
        ..Request::default()
    };
    frame(stream, MESSAGE_TYPE_REQUEST, &request)
}

/// One frame with the request for a stream, to which messages of both sides follow.
///
/// # Errors
/// As [`request`].
pub(crate) fn stream_request(stream: u32, method: (&str, &str)) -> Result<Vec<u8>> {
    let mut frame = request(stream, method, Vec::new(), Duration::ZERO, &[])?;
    frame[HEADER - 1] = FLAG_REMOTE_OPEN;
    Ok(frame)
}

/// One frame with the response to the request on `stream`, ready to be written. A result that is
/// too large to be sent turns into the error that says so.
///
/// # Errors
/// [`Error::TooLarge`] never: the error that says so is short.
pub(crate) fn response(stream: u32, result: Result<Vec<u8>>) -> Result<Vec<u8>> {
    let sent = result.and_then(|payload| {
        let response =
            Response { status: status(Code::OK, String::new()), payload, ..Response::default() };
        frame(stream, MESSAGE_TYPE_RESPONSE, &response)
    });
    let refuse = |error: Error| {
        let response =
            Response { status: status(error.code(), error.to_string()), ..Response::default() };
        frame(stream, MESSAGE_TYPE_RESPONSE, &response)
    };
    sent.or_else(refuse).or_else(refuse)
}

/// What a response says: the payload, or the peer's own error.
///
/// # Errors
/// [`Error::Remote`] with the peer's code and words; [`Error::Invalid`] if it is no response.
pub(crate) fn result(message: &[u8]) -> Result<Vec<u8>> {
    let response = Response::parse_from_bytes(message).map_err(broken)?;
    let status = response.status.unwrap_or_default();
    match status.code.enum_value_or(Code::UNKNOWN) {
        Code::OK => Ok(response.payload),
        code => Err(Error::Remote { code, message: status.message }),
    }
}

fn frame(stream_id: u32, type_: u8, message: &impl Message) -> Result<Vec<u8>> {
    let size = usize::try_from(message.compute_size()).unwrap_or(usize::MAX);
    if size > MESSAGE_LENGTH_MAX {
        return Err(Error::TooLarge(size));
    }
    let length = u32::try_from(size).map_err(|_| Error::TooLarge(size))?;
    let mut bytes = Vec::with_capacity(HEADER + size);
    bytes.extend(Vec::from(MessageHeader { length, stream_id, type_, flags: 0 }));
    message.write_to_vec(&mut bytes).map_err(broken)?;
    Ok(bytes)
}

fn status(code: Code, message: String) -> MessageField<Status> {
    let status = Status { code: EnumOrUnknown::new(code), message, ..Status::default() };
    MessageField::some(status)
}

pub(crate) fn broken(error: protobuf::Error) -> Error {
    Error::Invalid(format!("broken ttrpc message: {error}"))
}

/// A peer's bytes as frames, one behind the other; what cannot be sent in one is refused in one.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(mut data: &[u8]) {
    while let Some((head, rest)) = data.split_first_chunk::<HEADER>() {
        let (parsed, length) = header(*head);
        let Ok(length) = length else { return };
        let (message, rest) = rest.split_at(length.min(rest.len()));
        let _ = (result(message), Request::parse_from_bytes(message));
        let answer = response(parsed.stream_id, Ok(message.to_owned()));
        assert!(answer.is_ok_and(|frame| frame.len() >= HEADER));
        data = rest;
    }
}

#[cfg(test)]
mod tests {
    use protobuf::well_known_types::wrappers::BytesValue;

    use super::*;

    fn split(frame: &[u8]) -> (MessageHeader, &[u8]) {
        let (header, length) = header(frame[..HEADER].try_into().unwrap());
        assert_eq!(length.unwrap(), frame.len() - HEADER);
        (header, &frame[HEADER..])
    }

    #[test]
    fn a_response_says_what_the_server_meant() {
        let large = vec![0; MESSAGE_LENGTH_MAX];
        let missing = || Error::NotFound { what: "container", id: "x".into() };
        let cases = [
            ("empty", Ok(vec![]), Ok(vec![])),
            ("payload", Ok(vec![1, 2]), Ok(vec![1, 2])),
            ("error", Err(missing()), Err((Code::NOT_FOUND, missing().to_string()))),
            ("too large", Ok(large), Err((Code::RESOURCE_EXHAUSTED, "4194304".into()))),
        ];
        for (name, sent, expected) in cases {
            let frame = response(7, sent).unwrap();
            let (header, message) = split(&frame);
            assert_eq!((header.stream_id, header.type_), (7, MESSAGE_TYPE_RESPONSE), "{name}");
            match (result(message), expected) {
                (Ok(payload), Ok(expected)) => assert_eq!(payload, expected, "{name}"),
                (Err(Error::Remote { code, message }), Err((expected, part))) => {
                    assert_eq!(code, expected, "{name}");
                    assert!(message.contains(&part), "{name}: {message}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_request_carries_its_deadline_and_metadata() {
        let payload = BytesValue { value: vec![1], ..BytesValue::default() };
        let metadata = [("containerd-namespace-ttrpc", "ns")];
        let timeout = Duration::from_millis(2);
        let payload = payload.write_to_bytes().unwrap();
        let frame = request(1, ("s.S", "M"), payload.clone(), timeout, &metadata).unwrap();
        let (header, message) = split(&frame);
        assert_eq!((header.stream_id, header.type_, header.flags), (1, MESSAGE_TYPE_REQUEST, 0));
        let request = Request::parse_from_bytes(message).unwrap();
        assert_eq!((request.service.as_str(), request.method.as_str()), ("s.S", "M"));
        assert_eq!(request.payload, payload);
        assert_eq!(request.timeout_nano, 2_000_000);
        assert_eq!(request.metadata[0].value, "ns");
    }

    #[test]
    fn a_header_over_the_limit_is_refused_and_still_read() {
        let large = MessageHeader { length: (4 << 20) | 1, stream_id: 3, type_: 1, flags: 0 };
        let bytes = Vec::from(large).try_into().unwrap();
        let (header, length) = header(bytes);
        assert_eq!(header, large);
        assert!(matches!(length, Err(Error::TooLarge(4_194_305))));
    }
}
