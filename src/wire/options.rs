//! The options of a task, by the type URL they come with. Which client sends which type is
//! containerd's affair; one kind is never taken for another, because field 3 is a cgroup in one
//! and a whole configuration file in the next.

use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the client asked of the shim and of the OCI runtime; empty and false where it did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RuntimeOptions {
    /// The OCI runtime: a name on PATH, or a path.
    pub(crate) binary_name: String,
    /// The runtime's state directory, without the namespace.
    pub(crate) root: String,
    /// The runtime makes cgroups through systemd.
    pub(crate) systemd_cgroup: bool,
    /// `--no-pivot`
    pub(crate) no_pivot_root: bool,
    /// `--no-new-keyring`
    pub(crate) no_new_keyring: bool,
    /// The criu program; removed in containerd 2.0, still sent by older ones.
    pub(crate) criu_path: String,
    /// Where checkpoints are restored from.
    pub(crate) criu_image_path: String,
    /// criu's scratch directory.
    pub(crate) criu_work_path: String,
    /// The cgroup the shim itself joins.
    pub(crate) shim_cgroup: String,
    /// Owner of the pipes for standard streams.
    pub(crate) io_uid: u32,
    /// Group of the pipes for standard streams.
    pub(crate) io_gid: u32,
    /// The type that generic options name for their configuration.
    pub(crate) config_type: String,
    /// A configuration file of the client's choice.
    pub(crate) config_path: String,
    /// Configuration in place of a file: with CRI the runtime's whole `options` table, as TOML.
    pub(crate) config_body: Vec<u8>,
}

impl RuntimeOptions {
    /// These options, with those of `other` where these say nothing.
    pub(crate) fn or(self, other: &Self) -> Self {
        let text = |own: String, other: &str| if own.is_empty() { other.to_owned() } else { own };
        let number = |own: u32, other: u32| if own == 0 { other } else { own };
        Self {
            binary_name: text(self.binary_name, &other.binary_name),
            root: text(self.root, &other.root),
            systemd_cgroup: self.systemd_cgroup || other.systemd_cgroup,
            no_pivot_root: self.no_pivot_root || other.no_pivot_root,
            no_new_keyring: self.no_new_keyring || other.no_new_keyring,
            criu_path: text(self.criu_path, &other.criu_path),
            criu_image_path: text(self.criu_image_path, &other.criu_image_path),
            criu_work_path: text(self.criu_work_path, &other.criu_work_path),
            shim_cgroup: text(self.shim_cgroup, &other.shim_cgroup),
            io_uid: number(self.io_uid, other.io_uid),
            io_gid: number(self.io_gid, other.io_gid),
            ..self
        }
    }
}

/// The options types there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `containerd.runc.v1.Options`, from clients that take berth for runc's shim.
    Runc,
    /// `runtimeoptions.v1.Options`, for any other shim; until containerd 1.4 under a `cri.` name.
    Generic,
    /// `containerd.linux.runc.CreateOptions` of the runtime v1 API.
    LinuxCreate,
    /// `containerd.linux.runc.RuncOptions` of the runtime v1 API.
    LinuxRunc,
}

impl Kind {
    fn of(url: &str) -> Option<Self> {
        match url.strip_prefix("type.googleapis.com/").unwrap_or(url) {
            "containerd.runc.v1.Options" => Some(Self::Runc),
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options" => Some(Self::Generic),
            "containerd.linux.runc.CreateOptions" => Some(Self::LinuxCreate),
            "containerd.linux.runc.RuncOptions" => Some(Self::LinuxRunc),
            _ => None,
        }
    }
}

/// Whether `any` is of one of the options types.
pub(crate) fn is_options(any: &Any) -> bool {
    Kind::of(&any.type_url).is_some()
}

/// Reads options; `None` for an `Any` without a type, and for generic options without content,
/// which BuildKit sends to say that it has none.
///
/// # Errors
/// [`Error::Invalid`] that quotes the type URL: the type is not known, or the value is not of it.
pub(crate) fn decode(any: &Any) -> Result<Option<RuntimeOptions>> {
    let url = any.type_url.as_str();
    if url.is_empty() && any.value.is_empty() {
        return Ok(None);
    }
    let Some(kind) = Kind::of(url) else {
        return Err(Error::Invalid(format!("options of type {url:?} are not known")));
    };
    let mut options = RuntimeOptions::default();
    read(&any.value, |number, value| set(kind, &mut options, number, value)).map_err(|error| {
        Error::Invalid(format!("options are not a message of type {url:?}: {error}"))
    })?;
    let none = kind == Kind::Generic && options == RuntimeOptions::default();
    Ok((!none).then_some(options))
}

/// Puts one field where it belongs; numbers that a type does not have are skipped.
fn set(
    kind: Kind,
    options: &mut RuntimeOptions,
    number: u32,
    value: Value,
) -> protobuf::Result<()> {
    match (kind, number) {
        (Kind::Runc | Kind::LinuxCreate, 1) => options.no_pivot_root = value.flag(),
        (Kind::Runc, 2) | (Kind::LinuxCreate, 8) => options.no_new_keyring = value.flag(),
        (Kind::Runc, 3) | (Kind::LinuxCreate, 9) => options.shim_cgroup = value.text()?,
        (Kind::Runc, 4) | (Kind::LinuxCreate, 10) => options.io_uid = value.number(),
        (Kind::Runc, 5) | (Kind::LinuxCreate, 11) => options.io_gid = value.number(),
        (Kind::Runc, 6) | (Kind::LinuxRunc, 1) => options.binary_name = value.text()?,
        (Kind::Runc, 7) | (Kind::LinuxRunc, 2) => options.root = value.text()?,
        (Kind::Runc, 8) | (Kind::LinuxRunc, 3) => options.criu_path = value.text()?,
        (Kind::Runc, 9) | (Kind::LinuxRunc, 4) => options.systemd_cgroup = value.flag(),
        (Kind::Runc, 10) | (Kind::LinuxCreate, 13) => options.criu_image_path = value.text()?,
        (Kind::Runc, 11) | (Kind::LinuxCreate, 12) => options.criu_work_path = value.text()?,
        (Kind::Generic, 1) => options.config_type = value.text()?,
        (Kind::Generic, 2) => options.config_path = value.text()?,
        (Kind::Generic, 3) => options.config_body = value.bytes(),
        _ => {}
    }
    Ok(())
}

/// A field's value as it stands on the wire; one of another wire type reads as empty, as it does
/// in every protobuf library.
pub(super) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Value {
    pub(super) fn flag(&self) -> bool {
        matches!(self, Self::Number(number) if *number != 0)
    }

    pub(super) fn number(&self) -> u32 {
        match self {
            // Protobuf keeps the low 32 bits of a number that is too long.
            Self::Number(number) => (*number & u64::from(u32::MAX)) as u32,
            Self::Bytes(_) => 0,
        }
    }

    pub(super) fn signed(&self) -> i64 {
        match self {
            // Protobuf writes a negative number as its complement.
            Self::Number(number) => i64::from_ne_bytes(number.to_ne_bytes()),
            Self::Bytes(_) => 0,
        }
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Bytes(bytes) => bytes,
        }
    }

    pub(super) fn text(self) -> protobuf::Result<String> {
        String::from_utf8(self.bytes()).map_err(|e| std::io::Error::other(e.utf8_error()).into())
    }
}

/// Hands every field of a message to `field`, in wire order; deprecated groups are an error.
pub(super) fn read(
    message: &[u8],
    mut field: impl FnMut(u32, Value) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut input = CodedInputStream::from_bytes(message);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        let value = match tag & 7 {
            0 => Value::Number(input.read_raw_varint64()?),
            1 => Value::Number(input.read_fixed64()?),
            2 => Value::Bytes(input.read_bytes()?),
            5 => Value::Number(input.read_fixed32()?.into()),
            other => {
                let text = format!("wire type {other} of field {}", tag >> 3);
                return Err(std::io::Error::other(text).into());
            }
        };
        field(tag >> 3, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::shim::oci;
    use protobuf::Message;

    use super::*;

    fn any(url: &str, value: &[u8]) -> Any {
        Any { type_url: url.into(), value: value.into(), ..Any::default() }
    }

    /// A message of strings and numbers, field by field.
    fn message(fields: &[(u32, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = protobuf::CodedOutputStream::vec(&mut bytes);
        for (number, value) in fields {
            match value.parse() {
                Ok(value) => out.write_uint64(*number, value).unwrap(),
                Err(_) => out.write_string(*number, value).unwrap(),
            }
        }
        out.flush().unwrap();
        drop(out);
        bytes
    }

    #[test]
    fn options_are_read_by_their_type() {
        let none = RuntimeOptions::default();
        let runc = oci::Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shim".into(),
            io_uid: 4_294_967_295,
            io_gid: 5,
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            criu_image_path: "/i".into(),
            criu_work_path: "/w".into(),
            ..oci::Options::default()
        };
        let mut runc = runc.write_to_bytes().unwrap();
        runc.extend(message(&[(8, "criu"), (99, "future")]));
        let all = RuntimeOptions {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            no_new_keyring: true,
            criu_path: "criu".into(),
            criu_image_path: "/i".into(),
            criu_work_path: "/w".into(),
            shim_cgroup: "/shim".into(),
            io_uid: 4_294_967_295,
            io_gid: 5,
            ..none.clone()
        };
        let generic = message(&[(1, "t"), (2, "/c.toml"), (3, "a = true")]);
        let config = RuntimeOptions {
            config_type: "t".into(),
            config_path: "/c.toml".into(),
            config_body: b"a = true".into(),
            ..none.clone()
        };
        let create = message(&[
            (1, "1"),
            (2, "1"), // open_tcp: of a checkpoint, not of a task
            (8, "1"),
            (9, "/shim"),
            (10, "7"),
            (11, "8"),
            (12, "/w"),
            (13, "/i"),
        ]);
        let created = RuntimeOptions {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shim".into(),
            io_uid: 7,
            io_gid: 8,
            criu_work_path: "/w".into(),
            criu_image_path: "/i".into(),
            ..none.clone()
        };
        let linux = message(&[(1, "crun"), (2, "/r"), (3, "criu"), (4, "1")]);
        let linux_options = RuntimeOptions {
            binary_name: "crun".into(),
            root: "/r".into(),
            criu_path: "criu".into(),
            systemd_cgroup: true,
            ..none.clone()
        };
        let cases: [(&str, &str, &[u8], Option<RuntimeOptions>); 11] = [
            ("no type", "", b"", None),
            ("runc", "containerd.runc.v1.Options", &runc, Some(all.clone())),
            ("prefix", "type.googleapis.com/containerd.runc.v1.Options", &runc, Some(all)),
            ("runc, empty", "containerd.runc.v1.Options", b"", Some(none)),
            ("generic", "runtimeoptions.v1.Options", &generic, Some(config.clone())),
            ("generic, old name", "cri.runtimeoptions.v1.Options", &generic, Some(config)),
            ("generic, empty", "runtimeoptions.v1.Options", b"", None),
            ("generic, old and empty", "cri.runtimeoptions.v1.Options", b"", None),
            ("generic, defaults written out", "runtimeoptions.v1.Options", b"\x12\0", None),
            ("linux create", "containerd.linux.runc.CreateOptions", &create, Some(created)),
            ("linux runc", "containerd.linux.runc.RuncOptions", &linux, Some(linux_options)),
        ];
        for (name, url, value, expected) in cases {
            assert_eq!(decode(&any(url, value)).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn unknown_and_broken_options_are_refused_with_their_url() {
        let cases: [(&str, &str, &[u8]); 6] = [
            ("unknown", "example.v1.Options", b""),
            ("unknown with a known tail", "x/containerd.runc.v1.Options", b""),
            ("no type but a value", "", b"\x08\x01"),
            ("cut short", "containerd.runc.v1.Options", b"\x1a\x05ab"),
            ("not UTF-8", "containerd.runc.v1.Options", b"\x1a\x01\xff"),
            ("group", "runtimeoptions.v1.Options", b"\x0b"),
        ];
        for (name, url, value) in cases {
            let error = decode(&any(url, value)).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{name}");
            assert!(error.to_string().contains(&format!("{url:?}")), "{name}: {error}");
        }
    }
}
