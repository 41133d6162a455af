//! The server: frames in, one local task a request, frames out. Frames of streams go to what takes them
//! ([`duplex`](crate::rpc::duplex)).
//!
//! The `ttrpc` crate's own server answers an unknown method with `InvalidArgument` or `NotFound`,
//! where containerd falls back from v3 to v2 on `Unimplemented` only; it knows no peer check and
//! needs `Send`. The protocol is small: [ttrpc protocol].
//!
//! [ttrpc protocol]: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md

use std::cell::Cell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use protobuf::Message;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::Instant;
use ttrpc::proto::{
    FLAG_REMOTE_OPEN, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MessageHeader, Request,
};

use crate::error::{Error, Result};
use crate::log::Seldom;
use crate::rpc::duplex::{End, Inbound, Outbound, Streams};
use crate::rpc::peers::{Peer, Peers};
use crate::rpc::writer::Writer;
use crate::rpc::{self, stream};
use crate::socket::peer_uid;

/// A peer that does not take its answer for this long is cut off, so that it cannot hold memory. To a
/// containerd that is stopped for a while, and whose socket is full of answers, that is a dead shim.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after a failed accept (no descriptors left, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Before that is said again.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// The same of connections that are refused, each by a peer that may come again at once.
const REFUSALS: Duration = Duration::from_secs(1);
/// How long a frame may take that has begun. A peer that never said anything may be one that only
/// takes room; another may be a containerd that is stopped for as long as a debugger or a frozen cgroup
/// likes, and that kills its containers if it finds the connection ended.
const FIRST_FRAME: Duration = Duration::from_secs(10);
const FRAME: Duration = Duration::from_secs(3600);
/// Frames of one peer that are taken before others have their turn: fewer than the tasks that the event loop
/// runs in a turn, so that those of the frames have all begun.
const TURN: u64 = 32;
/// Enough for most requests; larger ones are read straight into their own buffer.
const READ_BUFFER: usize = 1024;

/// What answers the requests.
pub(crate) trait Handler: 'static {
    /// Answers one request: the encoded response message, or the error that becomes its status.
    ///
    /// It runs to its end also when the caller goes away or its time has passed, unless it
    /// [only waits](Self::only_waits): a change that has begun is finished or undone. `deadline` is the
    /// caller's own, where it set one.
    fn call(
        self: Rc<Self>,
        request: Request,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<Vec<u8>>>;

    /// Whether the request changes nothing and may take as long as a container lives: it ends with its
    /// caller's connection. Else each containerd that is killed would leave some of them, with its socket.
    fn only_waits(&self, request: &Request) -> bool;

    /// Opens a stream in both directions: says what takes its messages and has `out` for the answers.
    ///
    /// # Errors
    /// [`Error::Unimplemented`] for a method that is no stream; else why not.
    fn open(self: Rc<Self>, request: &Request, out: Outbound) -> Result<Rc<dyn Inbound>>;
}

/// Counts requests that are being answered and connections, so that the daemon ends after the last
/// answer has been read.
#[derive(Default)]
pub(crate) struct InFlight {
    count: Cell<usize>,
    connections: Cell<usize>,
    begun: Cell<u64>,
    none: Notify,
}

impl InFlight {
    fn begin(self: &Rc<Self>) -> Answering {
        self.count.set(self.count.get() + 1);
        self.begun.set(self.begun.get() + 1);
        Answering(self.clone())
    }

    fn connect(self: &Rc<Self>) -> Connected {
        self.connections.set(self.connections.get() + 1);
        Connected(self.clone())
    }

    /// How many requests there have been.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// How many requests are being answered.
    pub(crate) fn answering(&self) -> usize {
        self.count.get()
    }

    /// Whether a request is being answered.
    pub(crate) fn is_answering(&self) -> bool {
        self.count.get() > 0
    }

    /// Whether anybody is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.connections.get() > 0
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
    let peers = Rc::new(Peers::default());
    let [no_room, refused] = [Seldom::every(SAY_AGAIN), Seldom::every(REFUSALS)];
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                no_room.warn(format_args!(
                    "cannot accept connections, silent ones are hung up: {error}"
                ));
                tokio::task::yield_now().await; // who has been accepted just now, and has sent something, speaks
                if peers.dismiss() {
                    tokio::task::yield_now().await; // it goes now
                } else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        match peer_uid(stream.as_fd()) {
            Ok(uid) if uid == own => {
                let (handler, in_flight) = (handler.clone(), in_flight.clone());
                if !peers.admit(|peer| connection(stream, peer, handler, in_flight)) {
                    refused.warn(format_args!("refused a connection: there are too many"));
                }
            }
            Ok(uid) => refused
                .warn(format_args!("refused a connection of uid {uid}: only uid {own} may call")),
            Err(error) => {
                refused.warn(format_args!("refused a connection of unknown uid: {error}"));
            }
        }
    }
}

/// Reads requests until the peer hangs up or breaks the protocol.
async fn connection<H: Handler>(
    stream: UnixStream,
    peer: Peer,
    handler: Rc<H>,
    in_flight: Rc<InFlight>,
) {
    let _connected = in_flight.connect();
    let (read, write) = stream.into_split();
    let mut reader = BufReader::with_capacity(READ_BUFFER, read);
    let writer = Writer::new(write);
    let streams = Streams::new(writer.clone());
    let (mut limit, mut frames) = (FIRST_FRAME, 0_u64);
    let (connected, gone) = watch::channel(());
    let gone = Rc::new(gone);
    loop {
        let Ok((header, message)) = stream::read_within(&mut reader, limit).await.inspect_err(late)
        else {
            break;
        };
        peer.speaks();
        limit = FRAME;
        frames += 1;
        if frames % TURN == 0 {
            tokio::task::yield_now().await; // what was begun for them counts as waiting only then
        }
        writer.has_few_waiting().await;
        if header.type_ == MESSAGE_TYPE_DATA || header.flags & FLAG_REMOTE_OPEN != 0 {
            if let Err(error) = stream_frame(&handler, &streams, header, message) {
                log::debug!("stream {}: {error}", header.stream_id);
                let (writer, streams) = (writer.clone(), streams.clone());
                spawn_local(async move {
                    respond(&writer, header.stream_id, Err(error)).await;
                    streams.hang_up_if_done();
                });
            }
            continue;
        }
        streams.serve_calls();
        let answering = in_flight.begin();
        let (handler, writer, gone) = (handler.clone(), writer.clone(), gone.clone());
        spawn_local(async move {
            let result = match message {
                Ok(message) if header.type_ == MESSAGE_TYPE_REQUEST => {
                    answer(handler, &message, gone).await
                }
                Ok(_) => {
                    let error = format!("unexpected frame of type {}", header.type_);
                    Some(Err(Error::Invalid(error)))
                }
                Err(error) => Some(Err(error)),
            };
            if let Some(result) = result {
                respond(&writer, header.stream_id, result).await;
            }
            drop(answering);
        });
    }
    drop(connected);
    streams.lose();
}

fn late(error: &io::Error) {
    if error.kind() == ErrorKind::TimedOut {
        log::warn!("a peer sent half a frame and then nothing: connection closed");
    }
}

/// Takes one frame of a stream. Nothing of a stream counts as a request that is being answered.
fn stream_frame<H: Handler>(
    handler: &Rc<H>,
    streams: &Rc<Streams>,
    header: MessageHeader,
    message: Result<Vec<u8>>,
) -> Result<()> {
    if header.type_ == MESSAGE_TYPE_DATA {
        return streams.deliver(header, message);
    }
    let request = parse(&message?)?;
    let id = header.stream_id;
    let inbound = streams.open(id, |out| handler.clone().open(&request, out))?;
    if request.payload.is_empty() {
        return Ok(());
    }
    inbound.take(request.payload).inspect_err(|_| streams.forget(id, End::Lost))
}

fn parse(message: &[u8]) -> Result<Request> {
    Request::parse_from_bytes(message)
        .map_err(|error| Error::Invalid(format!("request is not a ttrpc Request: {error}")))
}

/// `None` if nobody is there any more who waits for it.
async fn answer<H: Handler>(
    handler: Rc<H>,
    message: &[u8],
    gone: Rc<watch::Receiver<()>>,
) -> Option<Result<Vec<u8>>> {
    let request = match parse(message) {
        Ok(request) => request,
        Err(error) => return Some(Err(error)),
    };
    let deadline = u64::try_from(request.timeout_nano)
        .ok()
        .filter(|nanos| *nanos > 0)
        .and_then(|nanos| Instant::now().checked_add(Duration::from_nanos(nanos)));
    let name = log::log_enabled!(log::Level::Debug)
        .then(|| format!("{}/{}", request.service, request.method));
    let result = if handler.only_waits(&request) {
        let mut gone = watch::Receiver::clone(&gone);
        tokio::select! {
            result = handler.call(request, deadline) => result,
            _ = gone.changed() => return None,
        }
    } else {
        drop(gone);
        handler.call(request, deadline).await
    };
    if let Some(name) = name {
        match &result {
            Ok(_) => log::debug!("{name}: ok"),
            Err(error) => log::debug!("{name}: {error}"),
        }
    }
    Some(result)
}

async fn respond(writer: &Writer, stream: u32, result: Result<Vec<u8>>) {
    match rpc::response(stream, result) {
        Ok(frame) => writer.write_within(WRITE_TIMEOUT, &frame).await,
        Err(error) => log::error!("an answer cannot be sent: {error}"),
    }
}
