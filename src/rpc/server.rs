//! The server: frames in, one local task a request, frames out.
//!
//! The `ttrpc` crate's own server answers an unknown method with `InvalidArgument` or `NotFound`,
//! where containerd falls back from v3 to v2 on `Unimplemented` only; it knows no peer check and
//! needs `Send`. The protocol is small: [ttrpc protocol].
//!
//! [ttrpc protocol]: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md

use std::cell::Cell;
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use protobuf::Message;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use ttrpc::proto::{MESSAGE_TYPE_REQUEST, Request};

use crate::error::{Error, Result};
use crate::rpc::{self, stream};
use crate::socket::peer_uid;

/// A peer that does not take its answer for this long is cut off, so that it cannot hold memory.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no descriptors left, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Enough for most requests; larger ones are read straight into their own buffer.
const READ_BUFFER: usize = 1024;

/// What answers the requests.
pub(crate) trait Handler: 'static {
    /// Answers one request: the encoded response message, or the error that becomes its status.
    ///
    /// It runs to its end also when the caller goes away or its time has passed: a change that has
    /// begun is finished or undone. `deadline` is the caller's own, where it set one.
    fn call(
        self: Rc<Self>,
        request: Request,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<Vec<u8>>>;
}

/// Counts requests that are being answered and connections, so that the daemon ends after the last
/// answer has been read.
#[derive(Default)]
pub(crate) struct InFlight {
    count: Cell<usize>,
    connections: Cell<usize>,
    none: Notify,
}

impl InFlight {
    fn begin(self: &Rc<Self>) -> Answering {
        self.count.set(self.count.get() + 1);
        Answering(self.clone())
    }

    fn connect(self: &Rc<Self>) -> Connected {
        self.connections.set(self.connections.get() + 1);
        Connected(self.clone())
    }

    /// Resolves when no request is being answered.
    pub(crate) async fn idle(&self) {
        while self.count.get() > 0 {
            self.none.notified().await;
        }
    }

    /// Resolves when all peers have hung up.
    ///
    /// containerd's client does not read an answer for sure where the connection ends right behind it:
    /// it [chooses] between the two, and a closed one is a failure to `ShutdownSandbox`.
    ///
    /// [chooses]: https://github.com/containerd/ttrpc/blob/v1.2.7/client.go#L545
    pub(crate) async fn hung_up(&self) {
        while self.connections.get() > 0 {
            self.none.notified().await;
        }
    }
}

struct Connected(Rc<InFlight>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        if self.0.connections.get() == 0 {
            self.0.none.notify_waiters();
        }
    }
}

struct Answering(Rc<InFlight>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.none.notify_waiters();
        }
    }
}

/// Accepts connections for ever; peers of another uid are refused at once, before a byte is read.
pub(crate) async fn serve<H: Handler>(
    listener: UnixListener,
    handler: Rc<H>,
    in_flight: Rc<InFlight>,
) {
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match peer_uid(stream.as_fd()) {
            Ok(uid) if uid == own => {
                spawn_local(connection(stream, handler.clone(), in_flight.clone()));
            }
            Ok(uid) => log::warn!("refused a connection of uid {uid}: only uid {own} may call"),
            Err(error) => log::warn!("refused a connection of unknown uid: {error}"),
        }
    }
}

/// Reads requests until the peer hangs up or breaks the protocol.
async fn connection<H: Handler>(stream: UnixStream, handler: Rc<H>, in_flight: Rc<InFlight>) {
    let _connected = in_flight.connect();
    let (read, write) = stream.into_split();
    let mut reader = BufReader::with_capacity(READ_BUFFER, read);
    let writer = Rc::new(Mutex::new(write));
    while let Ok((header, message)) = stream::read(&mut reader).await {
        let answering = in_flight.begin();
        let (handler, writer) = (handler.clone(), writer.clone());
        spawn_local(async move {
            let result = match message {
                Ok(message) if header.type_ == MESSAGE_TYPE_REQUEST => {
                    answer(handler, &message).await
                }
                Ok(_) => Err(Error::Invalid(format!("unexpected frame of type {}", header.type_))),
                Err(error) => Err(error),
            };
            match rpc::response(header.stream_id, result) {
                Ok(frame) => send(&writer, &frame).await,
                Err(error) => log::error!("an answer cannot be sent: {error}"),
            }
            drop(answering);
        });
    }
}

async fn answer<H: Handler>(handler: Rc<H>, message: &[u8]) -> Result<Vec<u8>> {
    let request = Request::parse_from_bytes(message)
        .map_err(|error| Error::Invalid(format!("request is not a ttrpc Request: {error}")))?;
    let deadline = u64::try_from(request.timeout_nano)
        .ok()
        .filter(|nanos| *nanos > 0)
        .and_then(|nanos| Instant::now().checked_add(Duration::from_nanos(nanos)));
    let name = log::log_enabled!(log::Level::Debug)
        .then(|| format!("{}/{}", request.service, request.method));
    let result = handler.call(request, deadline).await;
    if let Some(name) = name {
        match &result {
            Ok(_) => log::debug!("{name}: ok"),
            Err(error) => log::debug!("{name}: {error}"),
        }
    }
    result
}

async fn send(writer: &Mutex<OwnedWriteHalf>, frame: &[u8]) {
    let mut writer = writer.lock().await;
    // An error is a peer that hung up: nobody is left to tell.
    if timeout(WRITE_TIMEOUT, writer.write_all(frame)).await.is_err() {
        log::warn!("a peer did not take its answer within {WRITE_TIMEOUT:?}: connection closed");
        let _ = writer.shutdown().await;
    }
}
