//! The one definition of the command line: commands, their flags and what follows them, variables, files,
//! exit status. What is parsed, `-help`, the man page and the completions of shells all come from here.
//!
//! An own table, for the programs that are usually taken (clap with `clap_mangen` and `clap_complete`) do
//! not read flags as containerd passes them: a word behind one dash is a heap of short flags to them, and
//! an unknown flag ends the program. They would also be half as large again as all that is here. The
//! table is constants: to `start`, `delete` and the daemon it costs a few comparisons, and no memory.
//!
//! Text is ASCII; what is to be typed as it stands is in backquotes.

use super::word::{Caller, Example, Flag, Kind, Named, Need, Value, Word};

/// What each command does; the parser has an arm for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Start,
    Delete,
    ConfigShow,
    ConfigCheck,
    Ps,
    Logs,
    Metrics,
    Doctor,
    Man,
    Completions,
    Complete,
    Holder,
}

const FILE: Value = Value { shown: "FILE", kind: Kind::File };

/// The name of the program.
pub(crate) const PROGRAM: &str = "containerd-shim-berth-v1";

/// What the program is, for people who meet it.
pub(super) const SUMMARY: &str = "containerd shim, small and never stuck";
pub(super) const ABOUT: &[&str] = &[
    "The process between containerd and an OCI runtime such as runc or crun. containerd runs it itself, with \
     the commands `start` and `delete`; a runtime of the name `io.containerd.berth.v1` is enough:",
    "The other commands are for administrators. They ask the shims of this host, each at its management \
     socket, and need root's rights for that.",
    "Flags begin with one dash or two, and take their value as the next argument or after `=`.",
];
/// How a client asks for berth; stands behind the first paragraph of [`ABOUT`].
pub(super) const FIRST_USE: &str = "ctr run --runtime io.containerd.berth.v1 IMAGE ID";

/// Those that containerd passes before the command, and those of the program itself.
pub(super) const FLAGS: &[Flag] = &[
    Flag::with("namespace", Value { shown: "NS", kind: Kind::Text }, "the namespace of containerd"),
    Flag::with("id", Value { shown: "ID", kind: Kind::Text }, "the container's id"),
    Flag::with("address", Value { shown: "ADDR", kind: Kind::File }, "the socket of containerd"),
    Flag::with(
        "publish-binary",
        Value { shown: "PATH", kind: Kind::File },
        "the program of containerd, which publishes events",
    ),
    Flag::with(
        "bundle",
        Value { shown: "DIR", kind: Kind::Directory },
        "the container's bundle; else it is the working directory",
    ),
    Flag::switch("debug", "log more"),
    Flag::with("socket", Value { shown: "PATH", kind: Kind::File }, "for other shims; ignored"),
    Flag::with(
        "debug-socket",
        Value { shown: "PATH", kind: Kind::File },
        "for other shims; ignored",
    ),
    Flag::switch("info", "print what berth and its OCI runtime can do (protobuf, for containerd)"),
    Flag::switch("version", "print the version").or("v"),
    Flag::switch("help", "print help; behind a command, all about that").or("h"),
];

/// The flag that every administrators' command has too.
pub(super) const HELP: &str = "help";

/// Every command.
pub(super) const WORDS: &[Word] = &[
    Word {
        verb: Verb::Start,
        name: "start",
        caller: Caller::Containerd,
        operand: None,
        flags: &[],
        need: Need::Any,
        summary: "find or start the shim of the bundle in the working directory, print its address",
        about: &[
            "Needs `-namespace` and `-id` before it. Without any command the program is the shim \
                  itself, which `start` runs with the socket where it listens.",
        ],
        examples: &[],
    },
    Word {
        verb: Verb::Delete,
        name: "delete",
        caller: Caller::Containerd,
        operand: None,
        flags: &[],
        need: Need::Any,
        summary: "clean up after a shim that died",
        about: &[
            "Ends what runs of the container, unmounts its root file system, and removes what berth \
                  keeps of it.",
        ],
        examples: &[],
    },
    Word {
        verb: Verb::ConfigShow,
        name: "config show",
        caller: Caller::People,
        operand: None,
        flags: &[
            Flag::switch("origin", "say beside each value which line of which file it is from"),
            Flag::with("config", FILE, "the file that a client names in the create options"),
            Flag::with(
                "annotation",
                Value { shown: "KEY=VALUE", kind: Kind::Annotation },
                "an annotation of the container, which may choose a preset or a runtime",
            )
            .many(),
        ],
        need: Need::Any,
        summary: "print the configuration that a container would get, and where each value is from",
        about: &["What is printed is a whole configuration file."],
        examples: &[Example {
            line: "config show -origin",
            says: "what counts on this host, and why",
        }],
    },
    Word {
        verb: Verb::ConfigCheck,
        name: "config check",
        caller: Caller::People,
        operand: Some(FILE),
        flags: &[],
        need: Need::Any,
        summary: "name every fault of a configuration file and its drop-ins",
        about: &[
            "A fault is a line of its own, with file and line, and the nearest key where one was \
                  mistyped. A file in the directory of presets is checked as a preset.",
        ],
        examples: &[Example {
            line: "config check /etc/berth/config.toml",
            says: "before containers have to live with it",
        }],
    },
    Word {
        verb: Verb::Ps,
        name: "ps",
        caller: Caller::People,
        operand: None,
        flags: &[Flag::switch("json", "for programs")],
        need: Need::Any,
        summary: "the pods of this host that berth runs, with their shims and containers",
        about: &[
            "A shim that does not answer within a second is shown with the reason. States are \
                  coloured on a terminal.",
        ],
        examples: &[Example { line: "ps", says: "what runs here" }],
    },
    Word {
        verb: Verb::Logs,
        name: "logs",
        caller: Caller::People,
        operand: Some(Value { shown: "ID", kind: Kind::Id }),
        flags: &[],
        need: Need::Any,
        summary: "what the shim of a pod or container logged last",
        about: &[
            "The id may be cut short where it still is the only one that begins so. Where two containerds \
                  have the same, it is NAMESPACE/POD@XXXXXXXX, as its socket is called. What the container \
                  itself writes is not here, but where containerd's client has it.",
        ],
        examples: &[Example { line: "logs 0a1b2c", says: "why a container does not start" }],
    },
    Word {
        verb: Verb::Metrics,
        name: "metrics",
        caller: Caller::People,
        operand: None,
        flags: &[
            Flag::with(
                "listen",
                Value { shown: "ADDRESS:PORT", kind: Kind::Text },
                "answer every scrape here, over HTTP, until SIGTERM",
            ),
            Flag::with("textfile", FILE, "write them once, to a file that is replaced in one step"),
        ],
        need: Need::One,
        summary: "the metrics of all shims, for Prometheus to scrape or in a file",
        about: &[
            "A scrape waits a second at most for each shim; one that does not answer has `berth_up 0`.",
        ],
        examples: &[
            Example {
                line: "metrics -listen 127.0.0.1:9190",
                says: "for a Prometheus on this host",
            },
            Example {
                line: "metrics -textfile /var/lib/prometheus/node-exporter/berth.prom",
                says: "for its node exporter",
            },
        ],
    },
    Word {
        verb: Verb::Doctor,
        name: "doctor",
        caller: Caller::People,
        operand: None,
        flags: &[
            Flag::switch("fix", "do what is surely safe of what is to be mended, and look again"),
            Flag::switch("json", "print JSON, for machines"),
            Flag::with(
                "state",
                Value { shown: "DIR", kind: Kind::Directory },
                "only what belongs to the containerd with this state directory",
            ),
            Flag::with(
                "address",
                Value { shown: "ADDRESS", kind: Kind::File },
                "the socket of a containerd whose process cannot be seen",
            ),
        ],
        need: Need::Any,
        summary: "whether this host is well, and what mends it",
        about: &[
            "It says whether the host is fit, which configuration wins, which OCI runtimes and containerds there \
             are, and what was left behind: leaked shims, orphaned containers, stale mounts and sockets; with \
             the command that mends each. Every look is bounded in time.",
            "`-fix` touches nothing that containerd lists, nor what a containerd that does not answer may have. \
             The exit status is 0 if all is well and 1 if not.",
        ],
        examples: &[Example {
            line: "doctor -fix",
            says: "mend what may be mended, and say what is left",
        }],
    },
    Word {
        verb: Verb::Man,
        name: "man",
        caller: Caller::People,
        operand: None,
        flags: &[],
        need: Need::Any,
        summary: "print the manual page",
        about: &["In the macros of man(7), as it is installed."],
        examples: &[Example { line: "man | man -l -", says: "read it where it is not installed" }],
    },
    Word {
        verb: Verb::Completions,
        name: "completions",
        caller: Caller::People,
        operand: Some(Value { shown: "SHELL", kind: Kind::Word(SHELLS) }),
        flags: &[],
        need: Need::Any,
        summary: "print what lets bash, zsh or fish complete the words of this program",
        about: &[
            "The packages install it. It completes commands, flags, files, ids of what runs, presets and \
                  runtimes; the program itself is asked for them.",
        ],
        examples: &[Example {
            line: "completions bash >/etc/bash_completion.d/berth",
            says: "from the next bash on",
        }],
    },
    Word {
        verb: Verb::Complete,
        name: super::COMPLETE,
        caller: Caller::Berth,
        operand: None,
        flags: &[],
        need: Need::Any,
        summary: "say what may stand in the place of the last of these words",
        about: &[],
        examples: &[],
    },
    Word {
        verb: Verb::Holder,
        name: super::HOLDER,
        caller: Caller::Berth,
        operand: None,
        flags: &[],
        need: Need::Any,
        summary: "have a pod's namespaces, and sleep",
        about: &[],
        examples: &[],
    },
];

/// The shells that can complete.
const SHELLS: &[Named] = &[("bash", "4.4 or newer"), ("zsh", "5 or newer"), ("fish", "3 or newer")];

/// What the environment may say.
pub(super) const VARIABLES: &[Named] = &[
    ("BERTH_CONF_FILE", "the configuration file, in place of `/etc/berth/config.toml`"),
    ("BERTH_RUN_DIR", "the directory of the management sockets, in place of `/run/berth`"),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "an OpenTelemetry collector, which gets spans; the table `tracing` of the configuration names the others",
    ),
    ("BERTH_LOG_LEVEL", "`off`, `error`, `warn`, `info`, `debug` or `trace`; wins over `-debug`"),
    ("SCHED_CORE", "not empty: the shim and its containers share a core scheduling cookie"),
    ("NO_COLOR", "not empty: no colours, on a terminal either"),
    ("PATH", "where OCI runtimes and helpers are looked for"),
    ("XDG_RUNTIME_DIR", "in a user namespace, where sockets go if `/run` is the host's"),
    (
        "XDG_CONFIG_HOME",
        "in a user namespace, where `berth/config.toml` is, if not in `$HOME/.config`",
    ),
    ("TTRPC_ADDRESS", "where containerd takes events; it sets this one itself, as GRPC_ADDRESS"),
];

/// What is where.
pub(super) const FILES: &[Named] = &[
    ("/etc/berth/config.toml", "the configuration; its comments say what each key does"),
    ("/etc/berth/config.toml.d/*.toml", "are merged into it, in the order of their names"),
    (
        "/etc/berth/presets/NAME.toml",
        "configurations that the annotation `io.containerd.berth.config_path` may choose",
    ),
    (
        "/run/berth/NAMESPACE/POD.sock",
        "management sockets, HTTP: `ps`, `logs` and `metrics` ask there. A pod of another containerd than \
         that of `/run/containerd/containerd.sock` has `POD@XXXXXXXX.sock`",
    ),
    ("/run/containerd/s/", "the sockets on which shims answer containerd"),
];

/// What the program's exit says.
pub(super) const EXITS: &[Named] = &[
    ("0", "done"),
    (
        "1",
        "`doctor`: not all is well. Otherwise not done: a line on the standard error output, which begins with `berth:`, says what was wrong, \
         where, and what to do",
    ),
];

/// What to read next.
pub(super) const SEE_ALSO: &[(&str, u8)] =
    &[("containerd", 8), ("ctr", 8), ("criu", 8), ("crun", 1), ("fuse-overlayfs", 1), ("runc", 8)];
/// Where the rest is said.
pub(super) const ELSEWHERE: &str = "`/usr/share/doc/berth/README.md` says how to ask for berth in Kubernetes, Docker, \
    nerdctl and BuildKit, and `/etc/berth/config.toml` what can be set.";
/// The day of what is said here; the manual page bears it.
pub(super) const DATE: &str = "2026-11-22";
