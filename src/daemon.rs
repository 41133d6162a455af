//! The daemon's life: sub-reaper, signals, server; at the end events, answers, socket.

mod idle;

use std::env;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use log::LevelFilter;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::read;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::cli::Flags;
use crate::container::{Containers, Need};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::ids::Namespace;
use crate::manage::Management;
use crate::ready::Ready;
use crate::reaper::Reaper;
use crate::rpc::server::{InFlight, serve};
use crate::service::Services;
use crate::socket::Own;
use crate::sys::child::raise_file_limit;
use crate::{socket, start, sys};

/// How long events may take to reach containerd once the last container is gone.
const DELIVER: Duration = Duration::from_secs(5);
/// The same once all have their answers and nobody waits for the daemon's end; it has no containers.
const DELIVER_LATER: Duration = Duration::from_secs(60);
/// How long requests that are being answered may take at the end; the answer to Shutdown is one.
const ANSWER: Duration = Duration::from_secs(2);
/// How long after the first container a shim is left alone, most often for as long as the container lives.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the daemon waits at the end for its peers to hang up, which they do at once when the last
/// answer was the one to a shutdown.
const HANG_UP: Duration = Duration::from_millis(500);

/// Serves the tasks of one pod until containerd shuts the daemon down or SIGTERM comes.
///
/// # Errors
/// When it cannot begin; once it serves, it ends orderly.
pub(crate) fn run(flags: Flags) -> Result<()> {
    let (listener, path) = socket::inherited()?;
    sys::process::forget_tunables();
    let level = if flags.debug { LevelFilter::Debug } else { LevelFilter::Info };
    crate::log::init("log".into(), &flags.id, crate::log::level(level));
    // Whatever containerd's is: of files that are made with a usual mode, and inherited by runtimes.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| Error::sys("become a sub-reaper")(errno.into()))?;
    let signals = block_signals()?;
    // `start` runs us as /proc/self/exe, which would be our name in ps and top.
    let _ = nix::sys::prctl::set_name(c"containerd-shim"); // cosmetic
    let namespace = Namespace::new(&flags.namespace)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::sys("make the event loop"))?;
    LocalSet::new().block_on(&runtime, life(&flags, namespace, listener, path, signals))?;
    // Without dropping what is held: containers that run on after SIGTERM keep their mounts.
    std::process::exit(0)
}

async fn life(
    flags: &Flags,
    namespace: Namespace,
    listener: StdListener,
    path: PathBuf,
    signals: SignalFd,
) -> Result<()> {
    let events = Events::new(namespace.clone());
    // A process with all its streams takes seven descriptors, and the usual limit is 1024.
    let files = raise_file_limit()
        .inspect_err(|error| log::warn!("cannot raise the limit of open files: {error}"));
    let reaper = Reaper::new(files.ok());
    let tracer = reaper.tracer().clone();
    let group = start::group(Path::new("config.json"))?.unwrap_or_else(|| flags.id.clone());
    let containers =
        Rc::new(Containers::new(namespace, group, path.clone(), reaper.clone(), events.clone()));
    spawn_local(events.clone().deliver(events_address(flags)));
    spawn_local(handle_signals(signals, reaper, containers.clone()));

    listener.set_nonblocking(true).map_err(Error::io("prepare", &path))?;
    let listener = UnixListener::from_std(listener).map_err(Error::io("serve", &path))?;
    let in_flight = Rc::new(InFlight::default());
    let streams = containers.streams.clone();
    let services = Rc::new(Services::new(containers.clone()));
    let server = spawn_local(serve(listener, services, in_flight.clone()));
    let socket = Rc::new(Own::new(path.clone()));
    let watch = idle::Watch {
        containers: containers.clone(),
        events: events.clone(),
        in_flight: in_flight.clone(),
        socket: socket.clone(),
    };
    spawn_local(watch.run());
    let management = Management::new(containers.clone(), in_flight.clone());
    spawn_local(management.clone().run());
    spawn_local(settle(containers.clone()));
    log::info!("berth {} serves {}", env!("CARGO_PKG_VERSION"), path.display());

    containers.closed().await;
    // First the sockets' names, so that a `start` that comes now makes a daemon of its own.
    socket.remove();
    management.remove();
    let delivered = timeout(DELIVER, events.delivered()).await.is_ok();
    if timeout(ANSWER, in_flight.idle()).await.is_err() {
        log::warn!("requests are left without an answer");
    }
    streams.close();
    let _ = timeout(HANG_UP, in_flight.hung_up()).await; // others may stay
    server.abort();
    if !delivered && containers.need() == Need::Nothing {
        log::warn!("{} events wait for containerd", events.waiting());
        let _ = timeout(DELIVER_LATER, events.delivered()).await;
    }
    tracer.finish().await;
    if events.waiting() > 0 {
        log::error!("{} events were not taken by containerd", events.waiting());
    }
    log::info!("berth ends");
    Ok(())
}

/// Lets go, once, of the program's pages that starting took: most of all that a shim has, and hardly any of
/// them is needed while its container runs.
async fn settle(containers: Rc<Containers>) {
    containers.begun().await;
    sleep(SETTLE).await;
    let _ = sys::text::let_go().inspect_err(|error| log::debug!("cannot let go of text: {error}"));
}

/// containerd's ttrpc socket, where the events go.
fn events_address(flags: &Flags) -> PathBuf {
    let address = env::var("TTRPC_ADDRESS").unwrap_or_default();
    let address = if address.is_empty() { format!("{}.ttrpc", flags.address) } else { address };
    PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address))
}

/// The signals that the daemon reads as a file instead of being interrupted.
fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        set.add(signal);
    }
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
        .map_err(|errno| Error::sys("take signals")(errno.into()))
}

/// The number of the next signal. nix reads from a descriptor of its own only, and the event loop has this one.
fn read_signal(signals: &OwnedFd) -> Option<i32> {
    let mut record = [0; size_of::<libc::signalfd_siginfo>()];
    let count = read(signals, &mut record).ok()?;
    let number = record.first_chunk().filter(|_| count == record.len())?;
    u32::from_ne_bytes(*number).try_into().ok()
}

async fn handle_signals(signals: SignalFd, reaper: Reaper, containers: Rc<Containers>) {
    let signals = match Ready::register(Rc::new(signals.into()), Interest::READABLE) {
        Ok(signals) => signals,
        Err(error) => {
            log::error!("cannot wait for signals: {error}");
            return containers.close();
        }
    };
    // Children that ended before the descriptor was watched are announced by its first readiness.
    while let Ok(mut ready) = signals.readable().await {
        while let Some(signal) = read_signal(signals.get_ref()) {
            match Signal::try_from(signal) {
                Ok(Signal::SIGCHLD) => reaper.reap(),
                Ok(Signal::SIGUSR1) => {
                    for line in containers.describe() {
                        log::info!("{line}");
                    }
                }
                Ok(signal) => {
                    log::info!("{signal}: ending");
                    containers.close();
                }
                Err(_) => {}
            }
        }
        ready.clear_ready();
    }
    // Nobody would hear of an exit any more; `delete` takes over.
    log::error!("cannot wait for signals: ending");
    containers.close();
}
