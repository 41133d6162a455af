//! berth, a containerd shim v2: the process between containerd and an OCI runtime.
//!
//! Whoever knows [Runtime v2] finds each of its steps in the file that bears its name.
//!
//! ```text
//! main.rs       arguments -> run -> exit code
//! cli/          mod.rs: flags and subcommands -> `Command`, as containerd passes them; read.rs: as people
//!               do; words.rs: the definition of all there is, made of word.rs; help.rs, man.rs,
//!               completions.rs: what comes of it; complete.rs: what a word may become; pure
//! start.rs      `start`: bootstrap parameters in, find or spawn the group's daemon, its address out
//! delete.rs     `delete`: clean up after a dead daemon, the whole group, from the bundles alone
//! info.rs       `-info`: name, version and the chosen runtime's OCI features
//! input.rs      what a caller sends on stdin, bounded in size and time
//! daemon.rs     the long life: sub-reaper, signals, server, end; daemon/idle.rs: its end when nobody
//!               needs it; log.rs: records -> `log` FIFO
//! node/         what an administrator asks of all shims of a host: ps.rs, metrics.rs (merge.rs: as one
//!               scrape), mod.rs: `logs`, and how each is asked in bounded time; find.rs: where; ids.rs: of
//!               what, for completion.
//!               doctor/: is this host well? mod.rs: the order of the looks; host.rs, runtimes.rs,
//!               containerd.rs (grpc.rs: asks it): each topic's; leftovers.rs (processes.rs, kept.rs): what
//!               there is of shims and containers, judge.rs: which of it nobody needs, pure; mend.rs: -fix;
//!               show.rs; look.rs: in bounded time
//! service/      the ttrpc services: decode, call, encode
//! manage/       what a daemon tells of itself: mod.rs: HTTP on a unix socket, from the first container on;
//!               place.rs: where that is; http.rs: requests and answers; places.rs: for so many clients;
//!               pages.rs: what there is to ask;
//!               exposition.rs: Prometheus' text; process.rs: what the kernel knows of the shim
//! container/    mod.rs: `Containers` by id; container.rs: `Container` and what can be done with it;
//!               create.rs, exec.rs, exit.rs: its beginnings and ends; undo.rs: what is left of a beginning
//!               that failed; handover.rs: what is left to the runtime; pod.rs: the sandbox beside it;
//!               idle.rs: who needs the daemon; oom.rs: tells of OOM kills; view.rs: what people see of
//!               them; pause.rs: Pause, Resume; checkpoint.rs: Checkpoint, and Start from one; process.rs:
//!               id, pid, stdio, state; state.rs: the lifecycle as one pure table
//! sandbox/      kind.rs: sandbox, pod container or single; sizing.rs: CPUs and memory; pod.rs: how a
//!               pod was asked for; all pure. A sandbox that is no container: held.rs: its life;
//!               spawn.rs, holder.rs: both sides of the process that holds its namespaces; files.rs:
//!               what its containers share
//! runtime/      mod.rs: `Runtime`, one method per OCI command; table.rs: discovery; args.rs: argv,
//!               pure; output.rs, failure.rs: the runtime's own words -> `Error::Runtime`; state.rs: what
//!               it keeps of a container; criu.rs: how it finds CRIU, and what that says
//! rootfs/       mod.rs: mounts and their guard; options.rs: fstab words, pure; kernel.rs, helper.rs:
//!               the two ways to mount; fuse_overlay.rs: what fuse-overlayfs can, pure; unmount.rs
//! io/           mod.rs: stdio URIs, read by uri.rs, pure; process.rs: `ProcessIo`; input.rs, output.rs:
//!               the ways in and out; handed.rs: a FIFO that the process has itself; relay.rs: moves
//!               bytes between two ends (end.rs); backlog.rs, spill.rs: what waits for a reader; fifo.rs
//!               pipe.rs console.rs: what is opened; holders.rs: who keeps a stream open; task.rs,
//!               clock.rs: the event loop's part; driver.rs: what takes output in place of a FIFO:
//!               logger.rs, logger/: programs, kept alive; log_file.rs, rotation.rs: files; journal.rs;
//!               drain.rs: their thread; format.rs: lines and records, pure; streaming/: streams that
//!               clients open here, and berth elsewhere; look.rs: at paths that may hang; outside.rs: what
//!               CRIU is told of a FIFO
//! cgroup/       hierarchy.rs: find, join; mod.rs: `Cgroup`; kill.rs; tree.rs: pids, remove; file.rs:
//!               one read a file; make.rs: new ones; stats/; oom.rs: the count of processes killed for
//!               lack of memory
//! events.rs     `Event`; one ordered journal; delivery to containerd until it is taken;
//!               events/store.rs: what waits, in memory and behind it in a file; events/recent.rs: the last
//!               ones, for people
//! trace/        spans for OpenTelemetry, if they are asked for: mod.rs: whose and below what; context.rs: the
//!               caller's, pure; settings.rs: where to, pure; otlp.rs: as bytes, pure; export.rs: the way
//!               there; off.rs: in the place of all that without the feature `otel`
//! ready.rs      when a descriptor is ready: told by the event loop, or looked for where that has no room
//! reaper.rs     the only wait; spawns the daemon's children; `Watch` keeps exits that precede the pid
//! meters.rs     what the daemon counts of its own work
//! rpc/          ttrpc: mod.rs: frames, pure; server.rs; peers.rs: how many it has; client.rs,
//!               blocking.rs: calls; duplex.rs: streams beside the calls; stream.rs, writer.rs: frames
//!               in and out
//! wire/         protobuf messages <-> our types, pure
//! bundle/       mod.rs: `Bundle`: every file we read or write in one; spec.rs: the config.json fields
//!               we need
//! config/       mod.rs: typed `Config`, checked once; source.rs: which file wins; file.rs: safe to
//!               read? document.rs, body.rs: TOML -> tree with places; section.rs: keys out of it;
//!               entry.rs: one runtime of the table; show.rs: `config show` and `check`; seen.rs: what a
//!               Create saw; choices.rs: what an annotation can be
//! rootless.rs   whether we are in a user namespace, and where files go then
//! socket.rs     address of a group's shim; bind, probe, unlink guard; socket/own.rs: is it still ours?
//! ids.rs        `ContainerId`, `ExecId`, `Namespace`, `Pid`: checked once, where they enter
//! error.rs      `Error` and the ttrpc status each variant maps to
//! fuzz.rs       what reads strangers' bytes, for the fuzzers of tests/fuzz; in tests only
//! sys/          the only `unsafe`: one file per kind of system call; no policy, no logging
//! ```
//!
//! Calls go down: `main > cli > start|delete|info|node|daemon > service|manage > container >
//! sandbox|runtime|rootfs|io|cgroup|events > reaper > meters|trace > rpc|bundle|config|socket|rootless|wire|ids|error >
//! sys`. `container` alone
//! combines its siblings.
//!
//! ```text
//! start   socket: a live shim answers? print its address, done
//!         else bind -> spawn self, socket as fd 3, cwd = bundle -> oom score, shim cgroup -> print
//! daemon  log -> sub-reaper -> signals -> services on fd 3 -> wait -> unlink -> deliver -> end
//! Create  decode -> reserve id -> state file -> rootfs -> streams or console socket
//!         -> reaper.watch() -> runtime.create -> watch.claim(pid) -> Created -> /tasks/create
//! Start   turn -> runtime.start -> Running -> /tasks/start -> end of turn
//!         created from a checkpoint: streams -> watch -> runtime.restore -> claim -> Running, as above
//! Checkpoint turn of Pause, Update -> runtime.checkpoint -> /tasks/checkpointed -> an exit it asked for
//! StartSandbox files -> state file -> cgroup -> a holder makes the namespaces -> watch.claim(pid)
//!         -> its cgroup -> it gives up its rights -> Ready; its exit is the sandbox's
//! exit    SIGCHLD -> reaper -> dead -> turn (2 s at most) -> exec processes ended -> readers of
//!         its streams (not FIFOs) have all -> /tasks/oom if one was due
//!         -> Stopped, every Wait, /tasks/exit
//! Delete  drain streams (10 s) -> runtime.delete -> unmount -> /tasks/delete -> forget
//! ```
//!
//! Four invariants carry the design; each is stated where it is kept, and tested:
//! 1. An event is queued in the turn that made it true, so queue order is the task's order.
//! 2. A `Watch` opens before the runtime runs, so an exit before the pid is known is never lost.
//! 3. Whatever the daemon holds has a guard in Create and a twin in `delete.rs` for a killed daemon.
//! 4. A runtime command has a deadline and delays only its own caller: State, Stats, Wait and Kill
//!    read cells and take no turn, nor does another container of the pod.
//!
//! The daemon is one thread: state is `Rc` and `Cell`, and no borrow of a cell crosses an await.
//! Mounts, log files and files of waiting output, which may block, run on threads of their own.
//!
//! [Runtime v2]: https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

use std::error::Error as StdError;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use cli::{Command, Kind, MetricsTarget, Offers};

mod bundle;
mod cgroup;
mod cli;
mod config;
mod container;
mod daemon;
mod delete;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod ids;
mod info;
mod input;
mod io;
mod log;
mod manage;
mod meters;
mod node;
mod ready;
mod reaper;
mod rootfs;
mod rootless;
mod rpc;
mod runtime;
mod sandbox;
mod service;
mod size;
mod socket;
mod start;
#[expect(unsafe_code, reason = "the system calls that no safe wrapper covers; each has its proof")]
mod sys;
#[cfg_attr(not(feature = "otel"), path = "trace/off.rs")]
mod trace;
mod wire;

/// The name under which containerd knows this shim.
pub(crate) const NAME: &str = "io.containerd.berth.v1";

/// Carries out one command line, program name first; the answer goes to `out`, last of all. The exit code
/// tells of success, or for `doctor` whether all is well.
///
/// # Errors
/// What to tell the user, in one sentence. Nothing was written to `out` then.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
) -> Result<ExitCode, Box<dyn StdError>> {
    const DONE: ExitCode = ExitCode::SUCCESS;
    let mut args = args.into_iter();
    // Runtimes that `delete` and `-info` run get nothing of it; a daemon gets none but its socket.
    let shed = || sys::process::shed_inheritance().map_err(error::Error::sys("close descriptors"));
    let program = args.next().unwrap_or_else(|| cli::PROGRAM.into());
    let mut code = DONE;
    let answer = match cli::parse(args)? {
        Command::Start(flags) => return Ok(start::run(&flags, &program, out).map(|()| DONE)?),
        Command::Daemon(flags) => {
            // Once it serves, its stderr is /dev/null: the log is where the reason is seen.
            let ended = daemon::run(flags).inspect_err(|error| ::log::error!("{error}"));
            return Ok(ended.map(|()| DONE)?);
        }
        Command::Holder => return Ok(sandbox::holder::run().map(|()| DONE)?),
        Command::Delete(flags) => shed().and_then(|()| delete::run(&flags))?,
        Command::Info => shed().and_then(|()| info::run())?,
        Command::Version => info::version().into_bytes(),
        Command::Help(topic) => cli::help(topic).into_bytes(),
        Command::Man => cli::man().into_bytes(),
        Command::Completions(script) => script.into(),
        Command::Complete(words) => cli::complete(&words, &look).into_bytes(),
        Command::ConfigShow(query) => config::show(&query)?.into_bytes(),
        Command::ConfigCheck(file) => config::check(&file)?.into_bytes(),
        Command::Ps(format) => node::ps(format)?.into_bytes(),
        Command::Logs(id) => node::logs(&id)?,
        Command::Metrics(MetricsTarget::File(file)) => node::write_metrics(&file)?,
        Command::Metrics(MetricsTarget::Listen(address)) => {
            return Ok(node::serve_metrics(address, out).map(|()| DONE)?);
        }
        Command::Doctor(query) => {
            shed()?;
            let (text, healthy) = node::doctor(&query)?;
            code = if healthy { DONE } else { ExitCode::FAILURE };
            text.into_bytes()
        }
    };
    out.write_all(&answer).and_then(|()| out.flush()).map_err(error::Error::sys("answer"))?;
    Ok(code)
}

/// What a value may be on this host.
fn look(kind: Kind) -> Offers {
    match kind {
        Kind::Id => node::ids(),
        Kind::Annotation => {
            config::choices().into_iter().map(|(word, says)| (word, says.to_owned())).collect()
        }
        Kind::Text | Kind::File | Kind::Directory | Kind::Word(_) => Offers::new(),
    }
}
