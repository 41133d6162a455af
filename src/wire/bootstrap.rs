//! What `start` is told on stdin and answers on stdout. containerd 2.3 and later speak the
//! [bootstrap protocol]; before it there were flags, the environment and the bare options.
//!
//! [bootstrap protocol]: https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use log::LevelFilter;
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message};

use super::options::{self, RuntimeOptions};
use crate::error::{Error, Result};

/// The language of the caller, in which it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// containerd 1.6 to 2.2: the plain address, which is all that every one of them takes.
    #[default]
    Legacy,
    /// containerd 2.3 and later: a `BootstrapResult`.
    Bootstrap,
}

/// What stdin said; empty and `None` where it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params {
    /// How to answer.
    pub(crate) dialect: Dialect,
    /// The task's options.
    pub(crate) options: RuntimeOptions,
    /// How much the daemon logs.
    pub(crate) level: Option<LevelFilter>,
    /// Where the socket goes.
    pub(crate) socket_dir: String,
    /// containerd's gRPC address.
    pub(crate) grpc_address: String,
    /// containerd's ttrpc address, which takes the events.
    pub(crate) ttrpc_address: String,
    /// containerd's own path.
    pub(crate) containerd_binary: String,
}

/// Reads stdin of `start -id ID -namespace NS`.
///
/// The bare options of old are often valid bootstrap parameters too (both begin with two strings)
/// and the other way round. Only the identity tells: the parameters repeat both flags, which
/// options never do.
///
/// # Errors
/// [`Error::Invalid`] for input that is neither, and for options of an unknown type. Extensions
/// of other types than options belong to somebody else and are skipped.
pub(crate) fn decode(input: &[u8], id: &str, namespace: &str) -> Result<Params> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(input) {
        if !id.is_empty() && params.instance_id == id && params.namespace == namespace {
            return from_bootstrap(params);
        }
    }
    let any = Any::parse_from_bytes(input).map_err(|error| {
        Error::Invalid(format!("stdin is neither bootstrap parameters nor options: {error}"))
    })?;
    Ok(Params { options: options::decode(&any)?.unwrap_or_default(), ..Params::default() })
}

fn from_bootstrap(params: BootstrapParams) -> Result<Params> {
    let mut found = None;
    for any in params.extensions.iter().filter_map(|extension| extension.value.as_ref()) {
        if found.is_none() && options::is_options(any) {
            found = options::decode(any)?;
        }
    }
    Ok(Params {
        dialect: Dialect::Bootstrap,
        options: found.unwrap_or_default(),
        level: Some(level(params.log_level)),
        socket_dir: params.socket_dir.unwrap_or_default(),
        grpc_address: params.containerd_grpc_address,
        ttrpc_address: params.containerd_ttrpc_address,
        containerd_binary: params.containerd_binary,
    })
}

/// The nearest level of ours, the more talkative of two: the values are 4 apart, and others may
/// come between and beyond them.
fn level<E: protobuf::Enum>(level: EnumOrUnknown<E>) -> LevelFilter {
    match level.value() {
        ..=-6 => LevelFilter::Trace,
        -5..=-2 => LevelFilter::Debug,
        -1..=2 => LevelFilter::Info,
        3..=6 => LevelFilter::Warn,
        7.. => LevelFilter::Error,
    }
}

/// The answer of `start`: where the shim listens, and the version of the task API (2 or 3) that
/// it speaks; the old dialect has no room for it, and there the shim must speak both.
///
/// # Errors
/// [`Error::Invalid`] should the address not fit into a message.
pub(crate) fn encode(dialect: Dialect, version: i32, address: &str) -> Result<Vec<u8>> {
    match dialect {
        Dialect::Legacy => Ok(address.into()),
        Dialect::Bootstrap => BootstrapResult {
            version,
            address: address.into(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()
        .map_err(|error| Error::Invalid(format!("cannot answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::{Extension, LogLevel};
    use containerd_shim_protos::shim::oci;

    use super::*;

    fn any(url: &str, value: Vec<u8>) -> Any {
        Any { type_url: url.into(), value, ..Any::default() }
    }

    fn runc(shim_cgroup: &str) -> Any {
        let options = oci::Options { shim_cgroup: shim_cgroup.into(), ..oci::Options::default() };
        any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())
    }

    fn params(extensions: Vec<Any>) -> BootstrapParams {
        BootstrapParams {
            instance_id: "x".into(),
            namespace: "ns".into(),
            extensions: extensions
                .into_iter()
                .map(|value| Extension { value: Some(value).into(), ..Extension::default() })
                .collect(),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn the_dialect_is_told_by_identity_alone() {
        let old = Params::default();
        let new = Params {
            dialect: Dialect::Bootstrap,
            level: Some(LevelFilter::Info),
            ..Params::default()
        };
        let with = |params: &Params, shim_cgroup: &str| Params {
            options: RuntimeOptions {
                shim_cgroup: shim_cgroup.into(),
                ..RuntimeOptions::default()
            },
            ..params.clone()
        };
        let body = |bytes: &[u8]| Params {
            options: RuntimeOptions { config_body: bytes.into(), ..RuntimeOptions::default() },
            ..Params::default()
        };
        let generic = |value: &[u8]| any("runtimeoptions.v1.Options", value.to_vec());
        let full = BootstrapParams {
            log_level: LogLevel::LOG_LEVEL_DEBUG.into(),
            containerd_grpc_address: "/g".into(),
            containerd_ttrpc_address: "/t".into(),
            containerd_binary: "/b".into(),
            socket_dir: Some("/s".into()),
            ..params(vec![any("example.Other", vec![1]), runc("/c"), runc("/second")])
        };
        let filled = Params {
            level: Some(LevelFilter::Debug),
            socket_dir: "/s".into(),
            grpc_address: "/g".into(),
            ttrpc_address: "/t".into(),
            containerd_binary: "/b".into(),
            ..with(&new, "/c")
        };
        let bytes = |message: &dyn protobuf::MessageDyn| message.write_to_bytes_dyn().unwrap();
        let cases = [
            ("nothing", vec![], old.clone()),
            ("legacy runc", bytes(&runc("/c")), with(&old, "/c")),
            (
                "legacy runc, non-UTF-8 value",
                bytes(&any("containerd.runc.v1.Options", b"\x20\xff\x01".into())),
                Params {
                    options: RuntimeOptions { io_uid: 255, ..RuntimeOptions::default() },
                    ..old.clone()
                },
            ),
            ("legacy generic, UTF-8 value", bytes(&generic(b"\x1a\x01a")), body(b"a")),
            ("legacy generic, non-UTF-8 value", bytes(&generic(b"\x1a\x01\xff")), body(b"\xff")),
            ("legacy generic, empty", bytes(&generic(b"")), old.clone()),
            ("bootstrap without extensions", bytes(&params(vec![])), new.clone()),
            ("bootstrap with runc", bytes(&params(vec![runc("/c")])), with(&new, "/c")),
            ("bootstrap with no options in it", bytes(&params(vec![generic(b"")])), new.clone()),
            ("bootstrap with a stranger", bytes(&params(vec![any("x.Y", b"\xff".into())])), new),
            ("bootstrap with everything", bytes(&full), filled),
        ];
        for (name, input, expected) in cases {
            assert_eq!(decode(&input, "x", "ns").unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn input_of_another_identity_is_refused_not_guessed() {
        let ours = params(vec![]).write_to_bytes().unwrap();
        let cases = [
            ("other id", "y", "ns", ours.clone()),
            ("other namespace", "x", "other", ours.clone()),
            ("no id", "", "ns", ours),
            ("not protobuf", "x", "ns", b"\xff\xff\xff".to_vec()),
            ("JSON", "x", "ns", b"{\"instance_id\":\"x\"}".to_vec()),
            (
                "unknown type",
                "x",
                "ns",
                any("example.v1.Options", vec![]).write_to_bytes().unwrap(),
            ),
        ];
        for (name, id, namespace, input) in cases {
            let result = decode(&input, id, namespace);
            assert!(matches!(result, Err(Error::Invalid(_))), "{name}: {result:?}");
        }
    }

    #[test]
    fn levels_between_and_beyond_the_known_ones_map_to_the_nearest() {
        let cases = [
            (i32::MIN, LevelFilter::Trace),
            (-8, LevelFilter::Trace),
            (-5, LevelFilter::Debug),
            (-4, LevelFilter::Debug),
            (-1, LevelFilter::Info),
            (0, LevelFilter::Info),
            (4, LevelFilter::Warn),
            (8, LevelFilter::Error),
            (12, LevelFilter::Error),
            (i32::MAX, LevelFilter::Error),
        ];
        for (value, expected) in cases {
            let message =
                BootstrapParams { log_level: EnumOrUnknown::from_i32(value), ..params(vec![]) };
            let bytes = message.write_to_bytes().unwrap();
            assert!(value >= 0 || bytes.len() == 7 + 11, "{value}: ten bytes of varint");
            let read = decode(&bytes, "x", "ns").unwrap();
            assert_eq!(read.level, Some(expected), "{value}");
        }
    }

    #[test]
    fn the_answer_is_in_the_callers_dialect() {
        let address = "unix:///run/containerd/s/0";
        assert_eq!(encode(Dialect::Legacy, 3, address).unwrap(), address.as_bytes());
        let bytes = encode(Dialect::Bootstrap, 3, address).unwrap();
        assert_eq!(bytes, [b"\x08\x03\x12\x1a", address.as_bytes(), b"\x1a\x05ttrpc"].concat());
    }
}
