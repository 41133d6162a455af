//! The command line, as Go's `flag` package reads it: one or two dashes, `-flag value` or
//! `-flag=value`, a switch never takes the next argument. Pure; nothing is opened here.

mod complete;
mod completions;
mod help;
mod man;
mod read;
mod word;
mod words;

pub(crate) use self::complete::{Offers, text as complete};
pub(crate) use self::help::text as help;
pub(crate) use self::man::page as man;
pub(crate) use self::word::Kind;
pub(crate) use self::words::PROGRAM;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::{Error, Result};

/// The command that berth itself runs for a pod without a pause container; no user's business.
pub(crate) const HOLDER: &str = "hold-sandbox";

/// The command that the completions of shells run; no user's business either.
pub(crate) const COMPLETE: &str = "complete-words";

/// One run of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Find or start the sandbox's daemon and print its address.
    Start(Flags),
    /// Clean up after a dead daemon.
    Delete(Flags),
    /// The long life; `start` runs it with a listening socket as descriptor 3.
    Daemon(Flags),
    /// [`HOLDER`]: be the process that has a pod's namespaces.
    Holder,
    /// `-info`: name, version and the OCI runtime's features.
    Info,
    /// `-v`, `-version`
    Version,
    /// `-h`, `-help`: all, or of one command.
    Help(Option<&'static str>),
    /// `config show`: the effective configuration.
    ConfigShow(ConfigQuery),
    /// `config check`: the faults of a file.
    ConfigCheck(PathBuf),
    /// `ps`: all pods of the host.
    Ps(PsFormat),
    /// `logs`: of the pod or container with this id.
    Logs(String),
    /// `metrics`: of all shims of the host.
    Metrics(MetricsTarget),
    /// `doctor`: is this host well?
    Doctor(DoctorQuery),
    /// `man`: the manual page.
    Man,
    /// `completions`: this text.
    Completions(&'static str),
    /// [`COMPLETE`]: what the last of these words may become.
    Complete(Vec<OsString>),
}

/// How `ps` tells what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PsFormat {
    /// For a person.
    Table,
    /// `-json`
    Json,
}

/// Where `metrics` go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MetricsTarget {
    /// `-listen`: whoever asks here, over HTTP.
    Listen(SocketAddr),
    /// `-textfile`: a file, which is replaced.
    File(PathBuf),
}

/// Whose configuration `config show` is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigQuery {
    /// `-origin`: where each value came from.
    pub(crate) origin: bool,
    /// `-config`: the file that a client would name in the create options.
    pub(crate) config: Option<PathBuf>,
    /// `-annotation`: those of the container.
    pub(crate) annotations: Vec<(String, String)>,
}

/// What `doctor` is to look at, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoctorQuery {
    /// `-fix`: do what is surely safe.
    pub(crate) fix: bool,
    /// `-json`: for machines.
    pub(crate) json: bool,
    /// `-state`: only what belongs to the containerd with this state directory.
    pub(crate) state: Option<PathBuf>,
    /// `-address`: the socket of that containerd, or of one more.
    pub(crate) address: Option<PathBuf>,
}

/// The flags that containerd passes to every command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `-namespace`: the containerd namespace.
    pub(crate) namespace: String,
    /// `-id`: the container's id.
    pub(crate) id: String,
    /// `-address`: containerd's gRPC socket; part of the shim socket's name.
    pub(crate) address: String,
    /// `-publish-binary`: containerd's own path.
    pub(crate) publish_binary: OsString,
    /// `-bundle`: only with `delete`; otherwise the bundle is the working directory.
    pub(crate) bundle: Option<PathBuf>,
    /// `-debug`
    pub(crate) debug: bool,
}

/// Reads the arguments that follow the program's name.
///
/// Flags end at the first argument without a dash: the command. An unknown flag is skipped, with
/// the next argument as its value unless that one is a flag or a command; the commands of
/// administrators refuse it.
///
/// # Errors
/// [`Error::Invalid`] for an unknown command, a flag without its value, a switch that is neither
/// true nor false, and text that is not UTF-8 where it must be.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut args = args.into_iter().peekable();
    let mut flags = Flags::default();
    let (mut info, mut version, mut help) = (false, false, false);
    let (mut command, mut passed) = (None, None);
    while let Some(arg) = args.next() {
        let Some((name, value)) = split(&arg) else {
            command = Some(arg);
            break;
        };
        if name.is_empty() {
            command = args.next(); // `--` ends the flags
            break;
        }
        let Some(flag) = word::flag(words::FLAGS, name) else {
            if value.is_none() {
                args.next_if(|next| split(next).is_none() && !word::begins(next.as_bytes()));
            }
            passed.get_or_insert(arg);
            continue;
        };
        if flag.value.is_none() {
            let on = switch(name, value)?;
            match flag.name {
                "debug" => flags.debug = on,
                "info" => info = on,
                "version" => version = on,
                _ => help = on,
            }
            continue;
        }
        let missing = || invalid(format!("flag needs an argument: -{name}"));
        let value = value.map(OsStr::to_owned).or_else(|| args.next()).ok_or_else(missing)?;
        match flag.name {
            "namespace" => flags.namespace = text(name, value)?,
            "id" => flags.id = text(name, value)?,
            "address" => flags.address = text(name, value)?,
            "publish-binary" => flags.publish_binary = value,
            "bundle" => flags.bundle = Some(value.into()),
            _ => {} // other shims listen where they are told
        }
    }
    match command {
        _ if help => Ok(Command::Help(None)),
        _ if version => Ok(Command::Version),
        _ if info => Ok(Command::Info),
        None => Ok(Command::Daemon(flags)),
        Some(command) => read::command(&command, args, flags, passed.as_deref()),
    }
}

/// `-name`, `--name`, each with an optional `=value`; `None` for anything else (also a single
/// dash). The name is empty for `--` and for a name that is not UTF-8's business.
fn split(arg: &OsStr) -> Option<(&str, Option<&OsStr>)> {
    let bytes = arg.as_bytes();
    let body = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-"))?;
    if body.is_empty() && bytes.len() == 1 {
        return None;
    }
    let (name, value) = match body.iter().position(|&byte| byte == b'=') {
        Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]))),
        None => (body, None),
    };
    Some((std::str::from_utf8(name).unwrap_or("?"), value))
}

/// The words that Go's `strconv.ParseBool` takes; a switch without a value is true.
fn switch(name: &str, value: Option<&OsStr>) -> Result<bool> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
        Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Err(invalid(format!("flag -{name} is true or false, not {other:?}")))
        }
    }
}

fn text(name: &str, value: OsString) -> Result<String> {
    String::from_utf8(value.into_vec()).map_err(|_| invalid(format!("flag -{name} is not UTF-8")))
}

fn invalid(message: String) -> Error {
    Error::Invalid(message)
}

#[cfg(test)]
mod tests;
