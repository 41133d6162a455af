//! What a daemon tells of itself: HTTP on a unix socket beside its own, for root alone.
//!
//! It is there soon after the first container, and costs a descriptor and one waiting task until a client
//! comes. Answers are made on the event loop out of what is in memory anyway, and of /proc; no request waits
//! for anything that a client asks here.

mod exposition;
pub(crate) mod http;
mod pages;
mod place;
mod places;
mod process;

pub(crate) use self::exposition::{PROMETHEUS, escaped};
pub(crate) use self::place::{APART, DIGITS, SUFFIX, of as place, remove_dead};
pub(crate) use self::places::Places;
pub(crate) use self::process::Figures;

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::net::UnixListener;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::config;
use crate::container::Containers;
use crate::error::{Error, Result};
use crate::rpc::server::InFlight;
use crate::socket::{self, Own};

/// Connections at a time. Another one waits until one of them has ended, which then takes half a second at
/// most ([`Places`]).
const MOST: usize = 8;
/// How long after the first container the socket comes: who starts containers is not delayed by it, and a
/// shim whose container ends at once never has one.
const SETTLE: Duration = Duration::from_millis(250);
/// Pause after a failed accept (no descriptors left, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the socket's directory may be found locked by another process, and how long between.
const TRIES: u32 = 50;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The management server of one daemon.
pub(crate) struct Management {
    containers: Rc<Containers>,
    in_flight: Rc<InFlight>,
    /// When the daemon began.
    began: Instant,
    began_at: SystemTime,
    socket: RefCell<Option<Own>>,
    /// The daemon ends: a socket that is not there yet will not come.
    ends: Cell<bool>,
}

impl Management {
    /// A server that does not listen yet.
    pub(crate) fn new(containers: Rc<Containers>, in_flight: Rc<InFlight>) -> Rc<Self> {
        Rc::new(Self {
            containers,
            in_flight,
            began: Instant::now(),
            began_at: SystemTime::now(),
            socket: RefCell::default(),
            ends: Cell::default(),
        })
    }

    /// Serves from soon after the first container on, for ever, if the configuration lets it. Nothing depends on it:
    /// when it fails it says so.
    pub(crate) async fn run(self: Rc<Self>) {
        self.containers.begun().await;
        sleep(SETTLE).await;
        if !self.is_enabled() {
            return log::debug!("the management interface is switched off");
        }
        match self.bind().await {
            Ok(Some(listener)) => self.serve(listener).await,
            Ok(None) => {}
            Err(error) => log::warn!("no management interface: {error}"),
        }
    }

    /// Removes the socket. Call it with the daemon's own one: the next daemon of the pod may come at once.
    pub(crate) fn remove(&self) {
        self.ends.set(true);
        if let Some(socket) = self.socket.take() {
            // The last of a namespace takes the directory with it.
            if place::is_in_namespace(socket.path()) {
                socket.remove_with_directory();
            } else {
                socket.remove();
            }
        }
    }

    /// What the pod's configuration says, or the machine's if the pod has no container yet.
    fn is_enabled(&self) -> bool {
        match self.containers.effective_config() {
            Some(config) => config.management,
            None => config::machine().map_or(true, |config| config.management),
        }
    }

    /// `None` if the daemon ends.
    async fn bind(&self) -> Result<Option<UnixListener>> {
        let (namespace, group) = (self.containers.namespace.as_str(), &self.containers.group);
        let path = place(&self.containers.socket, namespace, group);
        let mut tries = 1;
        let bound = loop {
            if self.ends.get() {
                return Ok(None);
            }
            match socket::bind_now(&path) {
                Err(Error::Deadline { .. }) if tries < TRIES => tries += 1,
                result => break result?,
            }
            sleep(TRY_AGAIN).await;
        };
        self.socket.replace(Some(Own::new(path.clone())));
        let listener = bound.into_listener().and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = listener.map_err(Error::io("serve", &path));
        listener.inspect_err(|_| self.remove()).map(Some)
    }

    async fn serve(self: Rc<Self>, listener: UnixListener) {
        let own = nix::unistd::geteuid().as_raw();
        let places = Places::new(MOST);
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::debug!("cannot accept a management client: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match socket::peer_uid(stream.as_fd()) {
                Ok(uid) if uid == own || uid == 0 => {
                    let (this, place) = (self.clone(), places.take().await);
                    spawn_local(async move {
                        let answer = async |request| pages::answer(&this, &request);
                        http::converse(stream, &place, answer).await;
                    });
                }
                Ok(uid) => log::warn!("refused a management client of uid {uid}"),
                Err(error) => log::warn!("refused a management client of unknown uid: {error}"),
            }
        }
    }
}
