//! The options of a checkpoint, by the type URL they come with.

use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use super::options::{Value, read};
use crate::error::{Error, Result};

/// What a checkpoint may contain and what becomes of the container; empty and false where the client
/// did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CheckpointOptions {
    /// The container ends once it is saved.
    pub(crate) exit: bool,
    /// Established TCP connections are saved.
    pub(crate) open_tcp: bool,
    /// So are unix sockets whose other end is outside.
    pub(crate) external_unix_sockets: bool,
    /// So are terminals that are not the container's own.
    pub(crate) terminal: bool,
    /// So are file locks.
    pub(crate) file_locks: bool,
    /// Namespaces that are restored without what is in them.
    pub(crate) empty_namespaces: Vec<String>,
    /// How cgroups are saved: `soft`, `full`, `strict` or `ignore`.
    pub(crate) cgroups_mode: String,
    /// Where the client wants the image.
    pub(crate) image_path: String,
    /// Where the client wants CRIU's logs.
    pub(crate) work_path: String,
    /// An earlier image, relative to this one, that has the memory that did not change.
    pub(crate) parent_path: String,
}

/// Reads options; an `Any` without a type has none.
///
/// # Errors
/// [`Error::Invalid`] that quotes the type URL: the type is not known, or the value is not of it.
pub(crate) fn decode(any: &Any) -> Result<CheckpointOptions> {
    let url = any.type_url.as_str();
    match url.strip_prefix("type.googleapis.com/").unwrap_or(url) {
        "" if any.value.is_empty() => return Ok(CheckpointOptions::default()),
        "containerd.runc.v1.CheckpointOptions" | "containerd.linux.runc.CheckpointOptions" => {}
        _ => {
            let why = format!("checkpoint options of type {url:?} are not known");
            return Err(Error::Invalid(why));
        }
    }
    let mut options = CheckpointOptions::default();
    read(&any.value, |number, value| set(&mut options, number, value)).map_err(|error| {
        Error::Invalid(format!("checkpoint options are not a message of type {url:?}: {error}"))
    })?;
    Ok(options)
}

/// Puts one field where it belongs: both types have the same numbers, newer fields are skipped.
fn set(options: &mut CheckpointOptions, number: u32, value: Value) -> protobuf::Result<()> {
    match number {
        1 => options.exit = value.flag(),
        2 => options.open_tcp = value.flag(),
        3 => options.external_unix_sockets = value.flag(),
        4 => options.terminal = value.flag(),
        5 => options.file_locks = value.flag(),
        6 => options.empty_namespaces.push(value.text()?),
        7 => options.cgroups_mode = value.text()?,
        8 => options.image_path = value.text()?,
        9 => options.work_path = value.text()?,
        10 => options.parent_path = value.text()?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::shim::oci;
    use protobuf::Message;

    use super::*;

    #[test]
    fn options_are_read_by_their_type() {
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: ["network".into(), "ipc".into()].into(),
            cgroups_mode: "soft".into(),
            image_path: "/i".into(),
            work_path: "/w".into(),
            parent_path: "../0".into(),
        };
        let message = oci::CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: all.empty_namespaces.clone(),
            cgroups_mode: "soft".into(),
            image_path: "/i".into(),
            work_path: "/w".into(),
            ..Default::default()
        };
        let mut message = message.write_to_bytes().unwrap();
        message.extend(b"\x52\x04../0"); // parent_path, which the crate does not know
        let none = CheckpointOptions::default();
        let runc = "containerd.runc.v1.CheckpointOptions";
        let cases: [(&str, &str, &[u8], Option<CheckpointOptions>); 7] = [
            ("no type", "", b"", Some(none.clone())),
            ("runc", runc, &message, Some(all.clone())),
            ("runc, empty", runc, b"", Some(none)),
            ("v1", "containerd.linux.runc.CheckpointOptions", &message, Some(all)),
            ("a task's options", "containerd.runc.v1.Options", b"", None),
            ("no type but a value", "", b"\x08\x01", None),
            ("cut short", runc, b"\x42\x05ab", None),
        ];
        for (name, url, value, expected) in cases {
            let any = Any { type_url: url.into(), value: value.into(), ..Any::default() };
            let read = decode(&any);
            assert_eq!(read.as_ref().ok(), expected.as_ref(), "{name}: {read:?}");
            if let Err(error) = read {
                assert!(error.to_string().contains(&format!("{url:?}")), "{name}: {error}");
            }
        }
    }
}
