//! Protobuf messages <-> our types; pure. But for `service`, the only code that sees a message.

pub(crate) mod bootstrap;
pub(crate) mod checkpoint;
pub(crate) mod event;
pub(crate) mod mount;
pub(crate) mod options;
pub(crate) mod pod;
pub(crate) mod sandbox;
pub(crate) mod streaming;
pub(crate) mod task;

use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;

/// Wraps a message under `type_url`, as containerd's typeurl package writes it.
pub(crate) fn any(type_url: &str, message: &impl Message) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.into();
    // Encoding fails only over 2 GiB, which none of our messages can reach.
    any.value = message.write_to_bytes().unwrap_or_default();
    any
}

/// Seconds and nanoseconds since 1970; a clock before that counts as 1970.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    timestamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or_default();
    timestamp
}
