//! The command line, as Go's `flag` package reads it: one or two dashes, `-flag value` or
//! `-flag=value`, a switch never takes the next argument. Pure; nothing is opened here.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::{Error, Result};

/// What `-help` prints.
pub(crate) const HELP: &str = "\
usage: containerd-shim-berth-v1 [flags] [start | delete | config … | ps | logs ID | metrics …]

containerd runs this program itself; a runtime named `io.containerd.berth.v1` is enough:
  ctr run --runtime io.containerd.berth.v1 IMAGE ID

commands
  start     find or start the shim of the bundle in the working directory, print its address
  delete    clean up after a shim that died
  config show [-origin] [-config FILE] [-annotation KEY=VALUE]
            print the configuration that a container would get, and where each value is from
  config check FILE
            name every fault of a configuration file and its drop-ins
  ps [-json]
            the pods of this host that berth runs, with their shims and containers
  logs ID   what the shim of a pod or container logged last
  metrics -listen ADDRESS:PORT | -textfile FILE
            the metrics of all shims, for Prometheus to scrape or in a file
flags
  -namespace NS, -id ID, -address ADDR, -publish-binary PATH, -bundle DIR, -debug
            what containerd passes; other flags are ignored
  -info     print what berth and its OCI runtime can do (protobuf, for containerd)
  -version  print the version
  -help     print this
environment
  BERTH_CONF_FILE  the configuration file, in place of /etc/berth/config.toml
  BERTH_RUN_DIR    the directory of the management sockets, in place of /run/berth
  BERTH_LOG_LEVEL  off, error, warn, info, debug or trace; wins over -debug
  SCHED_CORE       not empty: the shim and its containers share a core scheduling cookie
";

/// The command that berth itself runs for a pod without a pause container; no user's business.
pub(crate) const HOLDER: &str = "hold-sandbox";

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
    /// `-h`, `-help`
    Help,
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
/// the next argument as its value unless that one is a flag or a command.
///
/// # Errors
/// [`Error::Invalid`] for an unknown command, a flag without its value, a switch that is neither
/// true nor false, and text that is not UTF-8 where it must be.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut args = args.into_iter().peekable();
    let mut flags = Flags::default();
    let (mut info, mut version, mut help) = (false, false, false);
    let mut command = None;
    while let Some(arg) = args.next() {
        let Some((name, value)) = split(&arg) else {
            command = Some(arg);
            break;
        };
        let mut take = || match value {
            Some(value) => Ok(value.to_owned()),
            None => args.next().ok_or_else(|| invalid(format!("flag needs an argument: -{name}"))),
        };
        match name {
            "" => {
                command = args.next(); // `--` ends the flags
                break;
            }
            "namespace" => flags.namespace = text(name, take()?)?,
            "id" => flags.id = text(name, take()?)?,
            "address" => flags.address = text(name, take()?)?,
            "publish-binary" => flags.publish_binary = take()?,
            "bundle" => flags.bundle = Some(take()?.into()),
            "debug" => flags.debug = switch(name, value)?,
            "info" => info = switch(name, value)?,
            "v" | "version" => version = switch(name, value)?,
            "h" | "help" => help = switch(name, value)?,
            // For other shims: they listen where they are told.
            "socket" | "debug-socket" => drop(take()?),
            _ if value.is_some() => {}
            _ => drop(args.next_if(|next| split(next).is_none() && !is_command(next))),
        }
    }
    match command.as_deref().map(OsStr::as_bytes) {
        _ if help => Ok(Command::Help),
        _ if version => Ok(Command::Version),
        _ if info => Ok(Command::Info),
        None => Ok(Command::Daemon(flags)),
        Some(b"start") => Ok(Command::Start(flags)),
        Some(b"delete") => Ok(Command::Delete(flags)),
        Some(b"config") => config(args),
        Some(b"ps") => ps(args),
        Some(b"logs") => logs(args),
        Some(b"metrics") => metrics(args),
        Some(name) if name == HOLDER.as_bytes() => Ok(Command::Holder),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Err(invalid(format!("unknown command {other:?}; see -help")))
        }
    }
}

/// Reads the arguments that follow `config`. People type them: what is not known is an error.
fn config(mut args: impl Iterator<Item = OsString>) -> Result<Command> {
    let usage = || invalid("config show [flags] or config check FILE; see -help".into());
    match args.next().as_deref().map(OsStr::as_bytes) {
        Some(b"check") => match (args.next(), args.next()) {
            (Some(file), None) => Ok(Command::ConfigCheck(file.into())),
            _ => Err(usage()),
        },
        Some(b"show") => {
            let mut query = ConfigQuery::default();
            while let Some(arg) = args.next() {
                let (name, value) = split(&arg).ok_or_else(usage)?;
                let mut take = || match value {
                    Some(value) => Ok(value.to_owned()),
                    None => args.next().ok_or_else(usage),
                };
                match name {
                    "origin" => query.origin = switch(name, value)?,
                    "config" => query.config = Some(take()?.into()),
                    "annotation" => {
                        let pair = text(name, take()?)?;
                        let (key, value) = pair.split_once('=').ok_or_else(usage)?;
                        query.annotations.push((key.into(), value.into()));
                    }
                    _ => return Err(invalid(format!("unknown flag -{name} of config show"))),
                }
            }
            Ok(Command::ConfigShow(query))
        }
        _ => Err(usage()),
    }
}

/// Reads the arguments that follow `ps`.
fn ps(args: impl Iterator<Item = OsString>) -> Result<Command> {
    let mut format = PsFormat::Table;
    for arg in args {
        match split(&arg) {
            Some(("json", value)) if switch("json", value)? => format = PsFormat::Json,
            Some(("json", _)) => format = PsFormat::Table,
            _ => return Err(invalid("ps [-json]; see -help".into())),
        }
    }
    Ok(Command::Ps(format))
}

/// Reads the arguments that follow `logs`.
fn logs(mut args: impl Iterator<Item = OsString>) -> Result<Command> {
    match (args.next(), args.next()) {
        (Some(id), None) if !id.is_empty() && split(&id).is_none() => {
            Ok(Command::Logs(id.to_string_lossy().into_owned()))
        }
        _ => Err(invalid("logs ID; see -help".into())),
    }
}

/// Reads the arguments that follow `metrics`.
fn metrics(mut args: impl Iterator<Item = OsString>) -> Result<Command> {
    let usage =
        || invalid("metrics -listen ADDRESS:PORT or metrics -textfile FILE; see -help".into());
    let first = args.next().ok_or_else(usage)?;
    let (name, value) = split(&first).ok_or_else(usage)?;
    let value = value.map(OsStr::to_owned).or_else(|| args.next()).ok_or_else(usage)?;
    if args.next().is_some() {
        return Err(usage());
    }
    let target = match name {
        "listen" => {
            let value = text(name, value)?;
            let wrong = |error| invalid(format!("flag -listen {value:?} is no IP:PORT: {error}"));
            MetricsTarget::Listen(value.parse().map_err(wrong)?)
        }
        "textfile" => MetricsTarget::File(value.into()),
        _ => return Err(usage()),
    };
    Ok(Command::Metrics(target))
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

fn is_command(arg: &OsStr) -> bool {
    matches!(arg.as_bytes(), b"start" | b"delete" | b"config" | b"ps" | b"logs" | b"metrics")
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
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn flags() -> Flags {
        Flags { namespace: "ns".into(), id: "x".into(), ..Flags::default() }
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let debug = Flags { debug: true, ..flags() };
        let full = Flags {
            address: "/run/c.sock".into(),
            publish_binary: "/bin/containerd".into(),
            bundle: Some("/b".into()),
            ..debug.clone()
        };
        let cases = [
            (
                "containerd's order",
                "-namespace ns -address /run/c.sock -publish-binary /bin/containerd -id x \
                 -bundle /b -debug delete",
                Command::Delete(full),
            ),
            ("one dash", "-namespace ns -id x start", Command::Start(flags())),
            ("two dashes", "--namespace ns --id x start", Command::Start(flags())),
            ("equals", "--namespace=ns -id=x start", Command::Start(flags())),
            ("switch", "-namespace ns -id x -debug start", Command::Start(debug)),
            (
                "switch off",
                "-debug -debug=false -namespace ns -id x start",
                Command::Start(flags()),
            ),
            ("daemon", "-namespace ns -id x", Command::Daemon(flags())),
            ("unknown switch", "-new -namespace ns -id x start", Command::Start(flags())),
            ("unknown with value", "-new 1 -namespace ns -id x start", Command::Start(flags())),
            ("unknown with =", "--new=a=b -namespace ns -id x start", Command::Start(flags())),
            ("unknown before command", "-namespace ns -id x -new start", Command::Start(flags())),
            ("other shims' flags", "-socket /s -namespace ns -id x", Command::Daemon(flags())),
            ("last one wins", "-id y -namespace ns -id x start", Command::Start(flags())),
            ("words after the command", "-namespace ns -id x start -id y", Command::Start(flags())),
            ("end of flags", "-namespace ns -id x -- start", Command::Start(flags())),
            ("holder", "hold-sandbox pod", Command::Holder),
            ("info", "-info", Command::Info),
            ("v", "-v", Command::Version),
            ("version", "--version", Command::Version),
            ("help", "-help", Command::Help),
            ("h", "-h start", Command::Help),
            ("ps", "ps", Command::Ps(PsFormat::Table)),
            ("ps as JSON", "ps --json", Command::Ps(PsFormat::Json)),
            ("logs", "logs pod", Command::Logs("pod".into())),
            (
                "metrics over HTTP",
                "metrics --listen 127.0.0.1:9090",
                Command::Metrics(MetricsTarget::Listen(([127, 0, 0, 1], 9090).into())),
            ),
            (
                "metrics in a file",
                "metrics -textfile=/f",
                Command::Metrics(MetricsTarget::File("/f".into())),
            ),
            ("empty value", "-address= -namespace ns -id x start", Command::Start(flags())),
        ];
        for (name, line, expected) in cases {
            assert_eq!(parse_words(line).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_refused_by_name() {
        let cases = [
            ("unknown command", "-id x stop", "\"stop\""),
            ("missing value", "-namespace ns -id", "-id"),
            ("not a switch", "-debug=maybe start", "\"maybe\""),
            ("single dash", "- start", "\"-\""),
            ("ps of something", "ps pod", "ps [-json]"),
            ("logs of nothing", "logs", "logs ID"),
            ("logs of two", "logs a b", "logs ID"),
            ("logs of a flag", "logs -f", "logs ID"),
            ("metrics for nobody", "metrics", "metrics -listen"),
            ("metrics twice", "metrics -textfile a -listen b", "metrics -listen"),
            ("metrics nowhere", "metrics -listen localhost", "\"localhost\""),
        ];
        for (name, line, expected) in cases {
            let error = parse_words(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
