//! What does not move costs nothing.

use std::fs::File;
use std::thread::{scope, sleep};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use super::flow::Flow;
use super::{INPUT, Kind, Process, host, idle};
use crate::support::{Host, Reader, Shim, eventually};

/// As the ways of others, with a file that is full soon.
const WAYS: [(&str, &str); 3] = [
    ("handed over", ""),
    ("relay", "[io]\nhandover = false\n"),
    ("relay with a file", "[io]\nspill = \"2MiB\"\n"),
];

/// The CPU time of the daemon.
fn cpu(shim: &Shim<'_>) -> Duration {
    clock_getcpuclockid(Pid::from_raw(shim.pid())).unwrap().now().unwrap().into()
}

/// What holds a stream up.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// Nobody reads, and little was written.
    NoReader,
    /// Somebody has the FIFO open and does not read, though more would come.
    FullFifo,
    /// The process has ended; nobody has come for its output.
    EndedUnread,
    /// The process does not read.
    FullInput,
    /// The process is stopped with full pipes on both sides.
    Stopped,
    /// Nobody has the terminal open.
    ClosedTerminal,
    /// Nobody reads what comes from the terminal, and nobody its input.
    FullTerminal,
}

const CAUSES: [Cause; 7] = [
    Cause::NoReader,
    Cause::FullFifo,
    Cause::EndedUnread,
    Cause::FullInput,
    Cause::Stopped,
    Cause::ClosedTerminal,
    Cause::FullTerminal,
];

impl Cause {
    fn script(self) -> &'static str {
        match self {
            Self::NoReader => "echo a line; exec sleep 1000",
            Self::FullFifo | Self::FullTerminal => "exec yes",
            Self::EndedUnread => "echo a line",
            Self::FullInput => "exec sleep 1000",
            Self::Stopped => "exec cat",
            Self::ClosedTerminal => "exec sleep 1000 </dev/null >/dev/null 2>&1",
        }
    }

    fn terminal(self) -> bool {
        matches!(self, Self::ClosedTerminal | Self::FullTerminal)
    }

    /// Whether somebody has the output's FIFO open, and does not read.
    fn has_client(self) -> bool {
        matches!(self, Self::FullFifo | Self::Stopped | Self::FullTerminal)
    }

    /// Whether somebody writes to the input's FIFO.
    fn is_fed(self) -> bool {
        matches!(self, Self::FullInput | Self::Stopped | Self::FullTerminal)
    }
}

#[test]
fn a_stream_that_waits_costs_no_cpu_time() {
    for (way, config) in WAYS {
        scope(|scope| {
            for cause in CAUSES {
                scope.spawn(move || {
                    let host = host(config);
                    costs_nothing(&host, way, cause);
                });
            }
        });
    }
}

fn costs_nothing(host: &Host, way: &str, cause: Cause) {
    let shim = idle(host);
    let streams = host.unread_streams("p", INPUT);
    let both = || File::options().read(true).write(true).open(&streams.stdout).unwrap();
    let held = cause.has_client().then(both);
    let script = cause.script();
    let process = match cause.terminal() {
        true => Process::on_terminal(&shim, Kind::Init, "p", script, &streams),
        false => Process::start(&shim, Kind::Init, "p", script, &streams),
    };
    let signal = |signal| kill(Pid::from_raw(i32::try_from(process.pid).unwrap()), signal).unwrap();
    if matches!(cause, Cause::Stopped) {
        signal(Signal::SIGSTOP);
    }
    let feeder = cause.is_fed().then(|| Flow::lines(100 << 20).feed(&streams.stdin));
    if let Some(feeder) = &feeder {
        feeder.stuck_at();
    }
    // A rush ends, and a backlog fills.
    eventually(&format!("{way}, {cause:?}: little CPU time"), || {
        let before = cpu(&shim);
        sleep(Duration::from_secs(2));
        (cpu(&shim) - before < Duration::from_millis(20)).then_some(())
    });
    if matches!(cause, Cause::Stopped) {
        signal(Signal::SIGCONT);
    }
    drop(shim.kill("p", "", libc::SIGKILL)); // it may have ended
    process.wait();
    drop(held);
    let _reader = Reader::open(&streams.stdout); // or Delete would wait for one
    process.reap();
    if let Some(feeder) = feeder {
        feeder.finish("nobody is left to take it");
    }
    shim.end();
}
