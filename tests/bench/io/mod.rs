//! The part `io`: what it costs to carry a process's output to the reader of its FIFO.

mod pattern;
mod reader;
pub(crate) mod writer;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::args::Args;
use crate::contest::{self, Load, Row, Sample, Subject};
use crate::support::{Host, Shim, Spec, mkfifo};
use crate::table::Figure;
use crate::usage::{Spent, Usage};
use pattern::Pattern;
use reader::Reader;

/// The first word of the process whose output is carried.
pub(crate) const WRITE: &str = "write";

/// Where a container has this program.
const WRITER: &str = "/dev/writer";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A warm-up writes this part of what counts.
const WARM_UP: u64 = 16;

/// berth with every stream through its relay, and with the FIFO in the hands of the init process.
const RELAY: &str = "[io]\nhandover = false\n";
const HANDOVER: &str = "[io]\nhandover = true\n";

pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "MB/s", key: "mb_per_s", digits: 0 },
    Figure { name: "shim CPU s per GiB", key: "cpu_s_per_gib", digits: 3 },
    Figure { name: "shim CPU s per million writes", key: "cpu_s_per_million_writes", digits: 3 },
    Figure { name: "wake-ups per MiB", key: "wake_ups_per_mib", digits: 2 },
];

/// Whose output it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Init,
    Exec,
}

/// What is written: `count` times `size` bytes, each with one write(2).
#[derive(Clone, Copy, Debug)]
struct Stream {
    name: &'static str,
    size: u64,
    count: u64,
    terminal: bool,
    /// Whether what a write costs says more than what a byte costs.
    small: bool,
}

const STREAMS: &[Stream] = &[
    Stream { name: "1 MiB writes", size: MIB, count: 1024, terminal: false, small: false },
    Stream { name: "64-byte writes", size: 64, count: 1_000_000, terminal: false, small: true },
    Stream {
        name: "lines of 100 bytes",
        size: 100,
        count: 256 * MIB / 100,
        terminal: false,
        small: true,
    },
    Stream { name: "terminal", size: 100, count: 64 * MIB / 100, terminal: true, small: true },
];

/// Every stream of an init process, then of an exec process.
pub(crate) fn rows(runtime: &str, _: &Args) -> Vec<Row> {
    let all = STREAMS.iter().flat_map(|&stream| [(stream, Process::Init), (stream, Process::Exec)]);
    let row = |(stream, process): (Stream, Process)| {
        let word = if process == Process::Init { "init" } else { "exec" };
        let runtime = runtime.to_owned();
        let turn = move |subject: &Subject, load| turn(subject, &runtime, stream, process, load);
        Row { name: format!("{}, {word}", stream.name), turn: Box::new(turn) }
    };
    all.map(row).collect()
}

/// The stock shim first, then those of the command line, then berth in its two ways.
pub(crate) fn subjects(args: &Args) -> Vec<Subject> {
    let mut subjects = contest::others(args);
    subjects.push(contest::berth("berth, relay", Some(RELAY)));
    subjects.push(contest::berth("berth, handover", Some(HANDOVER)));
    subjects
}

/// One container, one stream; `None` where berth keeps the FIFO to itself whatever it is told.
fn turn(
    subject: &Subject,
    runtime: &str,
    mut stream: Stream,
    process: Process,
    load: Load,
) -> Option<Sample> {
    if subject.config == Some(HANDOVER) && (process == Process::Exec || stream.terminal) {
        return None;
    }
    if load == Load::WarmUp {
        stream.count /= WARM_UP;
    }
    let host = subject.host(runtime);
    let shim = host.start("c", spec(stream, process));
    let (took, spent) = carry(&host, &shim, stream, process);
    shim.stop();
    host.delete("c");
    host.forgive_sockets();
    Some(sample(stream, took, &spent))
}

/// Creates and starts the process, reads its output, and deletes everything; how long the bytes
/// took from the first to the last one, and what the shim needed from Start until all was read.
fn carry(host: &Host, shim: &Shim<'_>, stream: Stream, process: Process) -> (Duration, Spent) {
    let exec = if process == Process::Exec { "e" } else { "" };
    let fifos = Fifos::new(host, stream.terminal);
    let expected = Pattern::new(stream.terminal);
    let total = expected.length(stream.size * stream.count);
    let reader = Reader::open(&fifos.stdout, expected, total);
    if process == Process::Init {
        let mut request = shim.request("c");
        (request.stdin, request.stdout, request.stderr) = fifos.paths();
        request.terminal = stream.terminal;
        shim.create(&request).unwrap();
    } else {
        shim.run("c");
        let mut request = shim.exec_process("c", exec, writer_process(stream));
        (request.stdin, request.stdout, request.stderr) = fifos.paths();
        request.terminal = stream.terminal;
        shim.exec(&request).unwrap();
    }
    let before = Usage::of(shim.pid());
    shim.start("c", exec).unwrap();
    let took = reader.complete();
    assert_eq!(shim.wait("c", exec).unwrap().exit_status, 0, "the writer failed");
    let spent = Usage::of(shim.pid()).since(&before);
    assert_eq!(shim.reap("c", exec), 0);
    reader.finish();
    if process == Process::Exec {
        shim.remove("c");
    }
    (took, spent)
}

/// The FIFOs of a process, as clients make them: standard error, or the input of a terminal, beside
/// the output that counts.
struct Fifos {
    stdout: String,
    other: String,
    terminal: bool,
    /// The client's end of the other one, on which nothing comes.
    _held: File,
}

impl Fifos {
    fn new(host: &Host, terminal: bool) -> Self {
        let stdout = mkfifo(&host.dir().join("out"));
        let other = mkfifo(&host.dir().join("other"));
        let mut open = OpenOptions::new();
        open.read(true).write(terminal).custom_flags(libc::O_NONBLOCK);
        let _held = open.open(&other).unwrap();
        Self { stdout, other, terminal, _held }
    }

    /// Standard input, output and error, empty where there is none.
    fn paths(&self) -> (String, String, String) {
        let (out, other) = (self.stdout.clone(), self.other.clone());
        if self.terminal { (other, out, String::new()) } else { (String::new(), out, other) }
    }
}

fn spec(stream: Stream, process: Process) -> Spec {
    let program = std::env::current_exe().unwrap();
    let mut spec = Spec::idle();
    if process == Process::Init {
        spec = spec.set("/process", writer_process(stream));
    }
    let mount = json!({"destination": WRITER, "type": "bind", "source": program, "options": ["bind", "ro"]});
    spec.0["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

fn writer_process(stream: Stream) -> Value {
    json!({
        "args": [WRITER, WRITE, stream.size.to_string(), stream.count.to_string()],
        "terminal": stream.terminal,
        "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn sample(stream: Stream, took: Duration, spent: &Spent) -> Sample {
    let bytes = (stream.size * stream.count) as f64;
    let cpu = spent.cpu.as_secs_f64();
    vec![
        Some(bytes / took.as_secs_f64() / 1e6),
        Some(cpu / bytes * GIB as f64),
        Some(cpu / stream.count as f64 * 1e6).filter(|_| stream.small),
        Some(spent.wake_ups as f64 / bytes * MIB as f64),
    ]
}
