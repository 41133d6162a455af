//! Where a stream goes, by its URI. Pure.
//!
//! The schemes are those of containerd ([logging]) and two drivers of berth's own.
//!
//! [logging]: https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md#logging

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::size::Size;

/// Old files that a log keeps beside the one that is written, unless its URI says otherwise.
const MAX_FILES: u32 = 5;
/// A bound on the names that a rotation moves.
const MOST_FILES: u32 = 1000;
/// The smallest `max-size`: below that a log would be nothing but rotation.
const LEAST_SIZE: Size = Size(4096);

/// Where a stream goes or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere.
    Null,
    /// A FIFO, or whatever else has this path: `/path`, `fifo:///path`.
    Path(PathBuf),
    /// A file that berth writes: `file:///path?…`.
    File(FileTarget),
    /// A program that takes the output: `binary://`, `binary-v2://`.
    Logger(LoggerTarget),
    /// systemd's journal: `journald://?…`.
    Journal(JournalTarget),
    /// A stream that a client opens to a server of the streaming API: `ttrpc+unix://…`.
    Streaming(StreamingTarget),
}

/// A log file and what becomes of it when it is large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileTarget {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    /// Beyond this many bytes the file is moved away and a new one begun.
    pub(super) max_size: Option<Size>,
    /// Files in all, the one that is written included.
    pub(super) max_files: u32,
}

impl FileTarget {
    /// A file that grows without end.
    pub(super) fn raw(path: PathBuf) -> Self {
        Self { path, format: Format::Raw, max_size: None, max_files: MAX_FILES }
    }
}

/// How output stands in a log file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Format {
    /// As the process wrote it.
    #[default]
    Raw,
    /// As kubelet reads it: `TIME stdout F TEXT`.
    Cri,
    /// As Docker reads it: `{"log":"TEXT\n","stream":"stdout","time":"TIME"}`.
    JsonFile,
}

/// A logging program of containerd's protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggerTarget {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    /// It says that it is ready with a byte; its end alone does not (`binary-v2`).
    pub(super) says_ready: bool,
}

/// Entries of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JournalTarget {
    /// `SYSLOG_IDENTIFIER`; the container's id if empty.
    pub(super) tag: String,
}

/// A stream of containerd's streaming API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamingTarget {
    /// Socket of the server.
    pub(super) socket: PathBuf,
    /// The name that both sides know it by.
    pub(super) id: String,
}

impl Target {
    /// Reads what containerd was asked for; an empty text is nowhere.
    ///
    /// # Errors
    /// What is wrong, to be put behind the URI.
    pub(super) fn parse(uri: &str) -> Result<Self, String> {
        if uri.is_empty() {
            return Ok(Self::Null);
        }
        let parts = match uri.strip_prefix("journald:") {
            // Go's clients write a URI that has neither host nor path without its slashes.
            Some(rest) => Some(("journald", rest.strip_prefix("//").unwrap_or(rest))),
            None => uri.split_once("://").filter(|_| !uri.starts_with('/')),
        };
        let Some((scheme, rest)) = parts else {
            return absolute(uri.into()).map(Self::Path);
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = || decoded(path);
        let pairs = || form_urlencoded::parse(query.as_bytes());
        match scheme {
            "fifo" => Ok(Self::Path(absolute(path()?)?)),
            "file" => file(absolute(path()?)?, pairs()).map(Self::File),
            "binary" | "binary-v2" => Ok(Self::Logger(LoggerTarget {
                program: absolute(path()?)?,
                args: arguments(query),
                says_ready: scheme == "binary-v2",
            })),
            "journald" => journal(&path()?, pairs()).map(Self::Journal),
            "ttrpc+unix" => streaming(absolute(path()?)?, pairs()).map(Self::Streaming),
            _ => Err(format!(
                "scheme {scheme:?} is not supported: use fifo, file, binary, binary-v2, journald or \
                 ttrpc+unix"
            )),
        }
    }
}

type Pairs<'a> = form_urlencoded::Parse<'a>;

fn file(path: PathBuf, pairs: Pairs<'_>) -> Result<FileTarget, String> {
    let mut target = FileTarget::raw(path);
    if target.path.file_name().is_none() {
        return Err("names no file".into());
    }
    for (key, value) in pairs {
        match &*key {
            "max-size" => {
                let size: Size = value.parse().map_err(|why| format!("max-size: {why}"))?;
                if size < LEAST_SIZE {
                    return Err(format!("max-size: {value:?} is less than {LEAST_SIZE}"));
                }
                target.max_size = Some(size);
            }
            "max-files" => {
                let files = value.parse().ok().filter(|files| (1..=MOST_FILES).contains(files));
                let why = || format!("max-files: {value:?} is not between 1 and {MOST_FILES}");
                target.max_files = files.ok_or_else(why)?;
            }
            "format" => {
                target.format = match &*value {
                    "raw" => Format::Raw,
                    "cri" => Format::Cri,
                    "json-file" => Format::JsonFile,
                    _ => return Err(format!("format: {value:?} is not raw, cri or json-file")),
                }
            }
            _ => return Err(unknown(&key, &["max-size", "max-files", "format"])),
        }
    }
    Ok(target)
}

fn journal(path: &str, pairs: Pairs<'_>) -> Result<JournalTarget, String> {
    if !path.is_empty() && path != "/" {
        return Err("has a path: the journal's socket is always the same".into());
    }
    let mut target = JournalTarget { tag: String::new() };
    for (key, value) in pairs {
        match &*key {
            "tag" => target.tag = value.into_owned(),
            _ => return Err(unknown(&key, &["tag"])),
        }
    }
    Ok(target)
}

fn streaming(socket: PathBuf, mut pairs: Pairs<'_>) -> Result<StreamingTarget, String> {
    let id = pairs.find(|(key, _)| key == "streaming_id").map(|(_, id)| id.into_owned());
    match id.filter(|id| !id.is_empty()) {
        Some(id) => Ok(StreamingTarget { socket, id }),
        None => Err("has no streaming_id".into()),
    }
}

/// A logger's arguments: each key, then its value where it has one, in the order of the query.
/// containerd's own shim gives an empty one for a key without a value, and so does this.
fn arguments(query: &str) -> Vec<OsString> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .flat_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            [key, value].map(|text| {
                let text = text.replace('+', " ");
                let bytes: Cow<'_, [u8]> = percent_encoding::percent_decode_str(&text).into();
                OsString::from_vec(bytes.into_owned())
            })
        })
        .collect()
}

fn unknown(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(key, known));
    match nearest.filter(|_| key.len() <= 64) {
        Some(nearest) => format!("unknown key {key:?}; the nearest known key is {nearest:?}"),
        None => "unknown key".into(),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| "is no UTF-8".into())
}

fn absolute(path: String) -> Result<PathBuf, String> {
    if !Path::new(&path).is_absolute() {
        return Err("is not an absolute path".into());
    }
    if path.contains('\0') {
        return Err("has a NUL byte".into());
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(path: &str) -> FileTarget {
        FileTarget::raw(path.into())
    }

    fn logger(program: &str, args: &[&str], says_ready: bool) -> Target {
        let args = args.iter().map(OsString::from).collect();
        Target::Logger(LoggerTarget { program: program.into(), args, says_ready })
    }

    #[test]
    fn every_scheme_is_read() {
        let streaming = |socket: &str, id: &str| {
            Target::Streaming(StreamingTarget { socket: socket.into(), id: id.into() })
        };
        let journal = |tag: &str| Target::Journal(JournalTarget { tag: tag.into() });
        let cases = [
            ("", Target::Null),
            ("/run/f", Target::Path("/run/f".into())),
            ("/run/a%20b?c://d", Target::Path("/run/a%20b?c://d".into())),
            ("fifo:///run/f", Target::Path("/run/f".into())),
            ("file:///var/log/a%20b", Target::File(raw("/var/log/a b"))),
            (
                "file:///l?max-size=1MiB&max-files=2&format=cri",
                Target::File(FileTarget {
                    format: Format::Cri,
                    max_size: Some(Size(1 << 20)),
                    max_files: 2,
                    ..raw("/l")
                }),
            ),
            (
                "file:///l?format=json-file",
                Target::File(FileTarget { format: Format::JsonFile, ..raw("/l") }),
            ),
            ("binary:///bin/log", logger("/bin/log", &[], false)),
            ("binary-v2:///bin/log?a=b&c=d+e", logger("/bin/log", &["a", "b", "c", "d e"], true)),
            (
                "binary:///bin/sh?-c=printf%20x%20%3E%265",
                logger("/bin/sh", &["-c", "printf x >&5"], false),
            ),
            ("binary:///l?--flag&b=a%3Dc", logger("/l", &["--flag", "", "b", "a=c"], false)),
            ("journald://", journal("")),
            ("journald:///?tag=web", journal("web")),
            ("journald:?tag=web", journal("web")),
            ("journald:", journal("")),
            ("journald://?tag=a%20b", journal("a b")),
            ("ttrpc+unix:///run/s/x?streaming_id=c-stdout", streaming("/run/s/x", "c-stdout")),
        ];
        for (uri, expected) in cases {
            assert_eq!(Target::parse(uri), Ok(expected), "{uri}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        let cases = [
            ("relative", "is not an absolute path"),
            ("/a\0b", "has a NUL byte"),
            ("fifo://relative", "is not an absolute path"),
            ("http://host/x", "scheme \"http\" is not supported"),
            ("npipe:////./pipe/x", "scheme \"npipe\""),
            ("grpc+unix:///s?streaming_id=x", "scheme \"grpc+unix\""),
            ("://x", "scheme \"\""),
            ("file://", "is not an absolute path"),
            ("file:///", "names no file"),
            ("file:///a/..", "names no file"),
            ("file:///a%00b", "has a NUL byte"),
            ("file:///%ff", "is no UTF-8"),
            ("file:///l?max-size=big", "max-size: \"big\" is no size"),
            ("file:///l?max-size=1", "less than 4KiB"),
            ("file:///l?max-files=0", "max-files: \"0\" is not between 1 and"),
            ("file:///l?format=text", "format: \"text\" is not raw, cri or json-file"),
            ("file:///l?max-file=3", "the nearest known key is \"max-files\""),
            ("binary://log", "is not an absolute path"),
            ("journald:///run/j", "has a path"),
            ("journald://?tags=x", "the nearest known key is \"tag\""),
            ("ttrpc+unix:///s", "has no streaming_id"),
            ("ttrpc+unix:///s?streaming_id=", "has no streaming_id"),
        ];
        for (uri, part) in cases {
            let why = Target::parse(uri).unwrap_err();
            assert!(why.contains(part), "{uri}: {why}");
        }
    }
}
