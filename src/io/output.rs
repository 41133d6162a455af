//! stdout and stderr on their way out.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::backlog::Keep;
use super::end::{End, poll_now};
use super::fifo::{self, Direction, Opened, Rest};
use super::holders::{Undrained, Who, others};
use super::look;
use super::relay::{Mode, Relay};
use super::task::Flag;
use super::{Context, Stream};
use crate::error::{Error, Result};
use crate::sys;

/// How long a reader that is there may take nothing before the news that the process has ended.
const IDLE: Duration = Duration::from_secs(10);
/// How long the reader of a FIFO may take nothing, after the end of its process.
const PAUSE: Duration = Duration::from_millis(100);
/// How long it may take to take the rest.
const LAST: Duration = Duration::from_secs(1);
/// Between two looks: nothing tells that a FIFO is empty.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the outside knows of an output. The descriptors belong to whoever moves the bytes, and close
/// with it.
#[derive(Debug)]
pub(super) struct Output {
    stream: Stream,
    source: Weak<OwnedFd>,
    taker: Taker,
    moved: Cell<bool>,
    changed: Rc<Notify>,
    dropped: Rc<Cell<u64>>,
    restarts: Cell<u32>,
    taking: RefCell<Option<Rc<Taking>>>,
    rest: Rest,
}

/// A reader that has to be waited for when the process has ended, since it is told of the end by other
/// ways and hears no more of the output then.
#[derive(Debug, Default)]
pub(super) struct Taking {
    /// It has everything.
    pub(super) done: Flag,
    /// Changes as long as it takes something.
    pub(super) progress: Cell<u64>,
    /// It is not there.
    pub(super) is_away: Cell<bool>,
}

/// Who has the bytes next.
#[derive(Debug)]
pub(super) enum Taker {
    /// Whoever reads what berth writes here.
    Sink(Weak<OwnedFd>),
    /// A driver, as a message names it.
    Driver(RefCell<String>),
}

impl Output {
    /// An output that is read from `source`; `changed` is told when it has moved to its end.
    pub(super) fn new(
        stream: Stream,
        source: Weak<OwnedFd>,
        taker: Taker,
        changed: Rc<Notify>,
    ) -> Rc<Self> {
        Rc::new(Self {
            stream,
            source,
            taker,
            moved: Cell::default(),
            changed,
            dropped: Rc::default(),
            restarts: Cell::default(),
            taking: RefCell::default(),
            rest: Rest::default(),
        })
    }

    /// Its reader has to be waited for.
    pub(super) fn wait_for(&self, taking: &Rc<Taking>) {
        self.taking.replace(Some(taking.clone()));
    }

    /// Resolves when the reader of a stream has everything, or has taken nothing for [`IDLE`] although it
    /// is there; when that of a FIFO has, or has taken nothing for [`PAUSE`], or [`LAST`] is over.
    pub(super) async fn taken(&self) {
        let Some(taking) = self.taking.borrow().clone() else {
            return self.taken_from_fifo().await;
        };
        loop {
            let state = || (taking.progress.get(), taking.is_away.get());
            let before = state();
            let ended = timeout(IDLE, taking.done.wait()).await.is_ok();
            if ended || (state() == before && !taking.is_away.get()) {
                return;
            }
        }
    }

    async fn taken_from_fifo(&self) {
        let began = Instant::now();
        let (mut before, mut at) = (0, began);
        loop {
            let untaken = self.untaken();
            if untaken != before {
                (before, at) = (untaken, Instant::now());
            }
            if untaken == 0 || at.elapsed() >= PAUSE || began.elapsed() >= LAST {
                return;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Bytes on their way to a reader that is there, as far as they are in pipes.
    fn untaken(&self) -> usize {
        let Taker::Sink(sink) = &self.taker else { return 0 };
        if let Some(bytes) = fifo::awaited(&self.rest) {
            return bytes;
        }
        let unread = |pipe: &Weak<OwnedFd>| {
            let pipe = pipe.upgrade();
            pipe.map_or(0, |pipe| sys::pipe::unread(pipe.as_fd()).unwrap_or_default())
        };
        unread(&self.source) + unread(sink)
    }

    /// Its name.
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// The source is at its end and whoever comes next has it all.
    pub(super) fn finish(&self) {
        self.moved.set(true);
        self.changed.notify_waiters();
    }

    /// Whether [`Output::finish`] was called.
    pub(super) fn is_finished(&self) -> bool {
        self.moved.get()
    }

    /// Its FIFO, once it is finished and until a reader has taken all that is in it.
    pub(super) fn rest(&self) -> &Rest {
        &self.rest
    }

    /// Bytes that were dropped because nobody took them.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// How often its driver was started again; of outputs that share one, the first counts.
    pub(super) fn restarts(&self) -> u32 {
        self.restarts.get()
    }

    /// Its driver was started again.
    pub(super) fn count_restart(&self) {
        self.restarts.set(self.restarts.get().saturating_add(1));
    }

    /// What is kept of it while nobody takes it.
    pub(super) fn keep(&self, context: &Context<'_>) -> Keep {
        Keep {
            policy: context.policy,
            bundle: context.bundle.to_owned(),
            name: format!("{} of {:?}", self.stream.name(), context.id),
            dropped: self.dropped.clone(),
            meters: context.reaper.meters().clone(),
        }
    }

    /// How messages name the driver from now on.
    pub(super) fn name_taker(&self, name: String) {
        if let Taker::Driver(taker) = &self.taker {
            taker.replace(name);
        }
    }

    /// Whether the bytes are not taken, as opposed to more of them being able to come.
    pub(super) fn is_stuck(&self) -> bool {
        match &self.taker {
            Taker::Sink(sink) => sink.upgrade().is_some_and(|sink| {
                let mut ends = [PollFd::new(sink.as_fd(), PollFlags::POLLOUT)];
                poll_now(&mut ends).is_ok() && ends[0].any() == Some(false)
            }),
            Taker::Driver(_) => self.source.upgrade().is_some_and(|source| {
                let mut ends = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
                let polled = poll_now(&mut ends);
                let hung_up = |events: PollFlags| events.contains(PollFlags::POLLHUP);
                polled.is_ok() && ends[0].revents().is_some_and(hung_up)
            }),
        }
    }

    /// Why it has not moved to its end.
    pub(super) async fn undrained(&self) -> Undrained {
        let stream = self.stream.name();
        if !self.is_stuck() {
            // A logger has it open to read it.
            let is_driven = matches!(self.taker, Taker::Driver(_));
            let who = if is_driven { Who::Writers } else { Who::All };
            return Undrained::Held { stream, holders: others(&self.source, who).await };
        }
        let is_away = self.taking.borrow().as_ref().is_some_and(|taking| taking.is_away.get());
        match &self.taker {
            _ if is_away => Undrained::Unread { stream, readers: Vec::new() },
            Taker::Sink(sink) => {
                Undrained::Unread { stream, readers: others(sink, Who::All).await }
            }
            Taker::Driver(name) => Undrained::Stuck { stream, taker: name.borrow().clone() },
        }
    }
}

/// What an output is relayed to.
pub(super) struct Sink {
    pub(super) end: End,
    pub(super) fifo: bool,
}

/// Opens the file of an output. Closing it again would be an end of file to a reader that waits.
///
/// # Errors
/// [`Error::Io`] names the stream and the path; [`Error::Deadline`].
pub(super) async fn open(stream: Stream, path: &Path, deadline: Option<Instant>) -> Result<Opened> {
    let action = if stream == Stream::Stdout { "open stdout" } else { "open stderr" };
    look::at(path, action, deadline, |path| fifo::open(path, Direction::Out)).await
}

impl Sink {
    /// A FIFO, or a device.
    ///
    /// # Errors
    /// [`Error::Sys`] if the event loop cannot wait for it.
    pub(super) fn new(opened: Opened) -> Result<Self> {
        let end = End::sink(opened.fd).map_err(Error::sys("watch the file of an output"))?;
        Ok(Self { end, fifo: opened.fifo })
    }
}

/// stdout or stderr on its way to its FIFO.
pub(super) struct OutputRelay {
    relay: Relay,
    fifo: bool,
    output: Rc<Output>,
}

impl OutputRelay {
    /// # Errors
    /// [`Error::Sys`] if the event loop cannot wait for `source`.
    pub(super) fn new(
        stream: Stream,
        source: OwnedFd,
        sink: Sink,
        mode: Mode,
        changed: &Rc<Notify>,
        context: &Context<'_>,
    ) -> Result<Self> {
        let source = End::source(source).map_err(Error::sys("watch a process's output"))?;
        let taker = Taker::Sink(sink.end.watch());
        let output = Output::new(stream, source.watch(), taker, changed.clone());
        let mut relay = Relay::new(source, sink.end, mode);
        if sink.fifo {
            relay = relay.keeping(output.keep(context));
        }
        Ok(Self { relay, fifo: sink.fifo, output })
    }

    /// What the outside may know of it.
    pub(super) fn output(&self) -> Rc<Output> {
        self.output.clone()
    }

    /// The descriptor that it reads, as long as it does.
    pub(super) fn source(&self) -> Weak<OwnedFd> {
        self.relay.source.watch()
    }

    /// Relays until the end; `ended` says of a terminal when its process has ended.
    pub(super) async fn run(mut self, ended: Option<Flag>) {
        let stream = self.output.stream.name();
        if let Err(error) = self.relay_all(ended).await {
            log::warn!("cannot relay {stream}: {error}");
        }
        let Relay { source, sink, .. } = self.relay;
        drop(source);
        self.output.finish();
        if self.fifo {
            if let Err(error) = fifo::leave(sink, &self.output.rest).await {
                log::warn!("cannot wait for a reader of {stream}: {error}");
            }
        }
    }

    /// Relays until the source is at its end: a pipe's is final, a terminal's when `ended` says
    /// that its process has ended. Closing the master earlier would send SIGHUP to a process that
    /// has only let go of its terminal for a while, as inits and daemons do.
    async fn relay_all(&mut self, ended: Option<Flag>) -> io::Result<()> {
        self.relay.run().await?;
        let Some(ended) = ended else { return Ok(()) };
        loop {
            tokio::select! {
                biased;
                () = ended.wait() => return self.relay.run().await,
                opened = self.relay.source.reopened() => opened?,
            }
            self.relay.run().await?;
        }
    }
}
