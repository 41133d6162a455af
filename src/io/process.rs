//! The streams of one process, from before the OCI runtime runs until Delete.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, pipe2};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::fifo::{self, Direction};
use super::holders::{Undrained, others};
use super::relay::{End, Mode, Relay, poll_now};
use super::{StdioSpec, Stream};
use crate::error::{Error, Result};
use crate::sys;

/// The descriptors 0, 1 and 2 of the runtime's command, blocking. Drop them once it runs: a
/// stream ends when its last writer is gone.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The relays of a process's streams. Dropping it ends them, as [`ProcessIo::close`] does.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    tasks: Vec<Task>,
    outputs: Vec<Rc<Output>>,
    /// An output has moved to its end.
    moved: Rc<Notify>,
    close_stdin: Rc<Notify>,
    /// The process has ended: a terminal that is closed then stays so.
    ended: Rc<Notify>,
    /// The terminal's master, as long as its output lives.
    console: Weak<OwnedFd>,
}

impl ProcessIo {
    /// Opens the streams of a process without a terminal. Its pipes belong to `uid` and `gid`, so
    /// that it can open `/dev/stdout` again under a user namespace.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`StdioSpec::check`]; [`Error::Io`] names the FIFO.
    pub(crate) fn open(spec: &StdioSpec, uid: u32, gid: u32) -> Result<(Self, ChildStdio)> {
        spec.check()?;
        let owner = (uid, gid);
        let mut input = None;
        let stdin = match spec.path(Stream::Stdin)? {
            Some(path) => {
                let source = Source::open(path)?;
                let (theirs, ours) = pipe(owner, Direction::In)?;
                let sink = End::sink(ours).map_err(Error::sys("watch a pipe"))?;
                input = Some(source.into_relay(sink, Mode::Splice));
                theirs
            }
            None => null(Direction::In)?,
        };
        let mut outputs = Vec::new();
        let mut output = |stream| match spec.path(stream)? {
            Some(path) => {
                let (theirs, ours) = pipe(owner, Direction::Out)?;
                outputs.push(OutputRelay::open(stream, ours, path, Mode::Splice)?);
                Ok(theirs)
            }
            None => null(Direction::Out),
        };
        let (stdout, stderr) = (output(Stream::Stdout)?, output(Stream::Stderr)?);
        Ok((Self::run(input, outputs, Weak::new()), ChildStdio { stdin, stdout, stderr }))
    }

    /// Takes over the `master` of a terminal that the runtime made. Its output is taken even if
    /// nobody wants it, or the process would stop.
    ///
    /// # Errors
    /// As [`ProcessIo::open`].
    pub(crate) fn terminal(master: OwnedFd, spec: &StdioSpec) -> Result<Self> {
        spec.check()?;
        set_nonblocking(&master).map_err(Error::sys("make a terminal non-blocking"))?;
        let mut input = None;
        if let Some(path) = spec.path(Stream::Stdin)? {
            let source = Source::open(path)?;
            // epoll knows a descriptor once only, and both directions wait for themselves.
            let sink = master.try_clone().and_then(End::sink);
            let sink = sink.map_err(Error::sys("watch a terminal"))?;
            input = Some(source.into_relay(sink, Mode::Copy));
        }
        let path = spec.path(Stream::Stdout)?.unwrap_or(Path::new("/dev/null"));
        let output = OutputRelay::open(Stream::Stdout, master, path, Mode::Copy)?;
        let console = output.relay.source.watch();
        Ok(Self::run(input, vec![output], console))
    }

    fn run(input: Option<Input>, outputs: Vec<OutputRelay>, console: Weak<OwnedFd>) -> Self {
        let moved = Rc::new(Notify::new());
        let close_stdin = Rc::new(Notify::new());
        let mut io = Self {
            tasks: Vec::new(),
            outputs: outputs.iter().map(|output| Rc::clone(&output.output)).collect(),
            moved,
            close_stdin,
            ended: Rc::new(Notify::new()),
            console,
        };
        let terminal = io.console.strong_count() > 0;
        for output in outputs {
            let reopens = terminal.then(|| Rc::clone(&io.ended));
            io.tasks.push(Task::spawn(output.run(Rc::clone(&io.moved), reopens)));
        }
        if let Some(input) = input {
            // A terminal has one output, and input is of no use after that.
            let (close, moved) = (Rc::clone(&io.close_stdin), Rc::clone(&io.moved));
            let outputs = io.outputs.clone();
            io.tasks.push(Task::spawn(async move {
                tokio::select! {
                    () = input.run(close) => {}
                    () = all_moved(&outputs, &moved), if terminal => {}
                }
            }));
        }
        io
    }

    /// The process has ended. Until then a terminal that it has closed may be opened again; from
    /// now on its output is at its end as soon as nobody has it open.
    pub(crate) fn process_ended(&self) {
        self.ended.notify_one();
    }

    /// Waits until every byte that was written to the outputs is in their FIFOs, where a reader
    /// gets it whatever berth does: all writers are gone.
    ///
    /// # Errors
    /// At the deadline, why not; the search for the writers takes up to 100 ms more.
    pub(crate) async fn drained(&self, deadline: Instant) -> Result<(), Undrained> {
        self.process_ended(); // or it never ran
        if timeout_at(deadline, all_moved(&self.outputs, &self.moved)).await.is_ok() {
            return Ok(());
        }
        // A process that waits for the reader of one output holds the other one too.
        let undrained = || self.outputs.iter().filter(|output| !output.moved.get());
        if let Some(output) = undrained().find(|output| output.is_full()) {
            return Err(output.unread().await);
        }
        match undrained().next() {
            Some(output) => Err(output.held().await),
            None => Ok(()),
        }
    }

    /// Ends all relays and closes their descriptors, at once; what nobody has read is lost.
    pub(crate) fn close(&self) {
        self.tasks.iter().for_each(Task::stop);
        self.outputs.iter().for_each(|output| output.moved.set(true));
        self.moved.notify_waiters();
    }

    /// CloseIO: the process's input ends as soon as the last client closes its end of the FIFO and
    /// the process has read the rest. Until now berth held the FIFO open for clients to come.
    /// A terminal's process is not told.
    pub(crate) fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Sets the terminal's size in characters. Nothing happens without one, or after its end.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(master) = self.console.upgrade() else { return Ok(()) };
        match sys::tty::set_window_size(master.as_fd(), width, height) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
            resized => resized.map_err(Error::sys("resize the terminal")),
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        self.close();
    }
}

async fn all_moved(outputs: &[Rc<Output>], moved: &Notify) {
    loop {
        let changed = moved.notified(); // before the look, so that no change is missed
        if outputs.iter().all(|output| output.moved.get()) {
            return;
        }
        changed.await;
    }
}

/// The file that input comes from.
struct Source {
    end: End,
    fifo: bool,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let opened = fifo::open(path, Direction::In).map_err(Error::io("open stdin", path))?;
        let end = End::source(opened.fd).map_err(Error::io("watch", path))?;
        Ok(Self { end, fifo: opened.fifo })
    }

    fn into_relay(self, sink: End, mode: Mode) -> Input {
        Input { relay: Relay::new(self.end, sink, mode), fifo: self.fifo }
    }
}

/// stdin on its way to the process.
struct Input {
    relay: Relay,
    fifo: bool,
}

impl Input {
    async fn run(mut self, close: Rc<Notify>) {
        let ended = tokio::select! {
            biased;
            ended = self.relay.run() => ended,
            () = close.notified() => self.finish().await,
        };
        // A process that ends or closes its input while more is coming is nothing unusual.
        if let Err(error) = ended {
            log::debug!("stdin ended: {error}");
        }
    }

    /// Goes on until the other writers are gone too.
    async fn finish(&mut self) -> io::Result<()> {
        if self.fifo {
            let reader = fifo::half(&self.relay.source, Direction::In)?;
            self.relay.source.replace(reader)?;
        }
        self.relay.run().await
    }
}

/// What the outside knows of an output. The descriptors are its relay's and close with it.
#[derive(Debug)]
struct Output {
    stream: Stream,
    source: Weak<OwnedFd>,
    sink: Weak<OwnedFd>,
    /// The source is at its end and the sink has it all.
    moved: Cell<bool>,
}

impl Output {
    fn is_full(&self) -> bool {
        let Some(sink) = self.sink.upgrade() else { return false };
        let mut ends = [PollFd::new(sink.as_fd(), PollFlags::POLLOUT)];
        poll_now(&mut ends).is_ok() && ends[0].any() == Some(false)
    }

    async fn unread(&self) -> Undrained {
        Undrained::Unread { stream: self.stream.name(), readers: others(&self.sink).await }
    }

    async fn held(&self) -> Undrained {
        Undrained::Held { stream: self.stream.name(), holders: others(&self.source).await }
    }
}

/// stdout or stderr on its way to its FIFO.
struct OutputRelay {
    relay: Relay,
    fifo: bool,
    output: Rc<Output>,
}

impl OutputRelay {
    fn open(stream: Stream, source: OwnedFd, path: &Path, mode: Mode) -> Result<Self> {
        let action = if stream == Stream::Stdout { "open stdout" } else { "open stderr" };
        let opened = fifo::open(path, Direction::Out).map_err(Error::io(action, path))?;
        let source = End::source(source).map_err(Error::sys("watch a process's output"))?;
        let sink = End::sink(opened.fd).map_err(Error::io("watch", path))?;
        let output =
            Output { stream, source: source.watch(), sink: sink.watch(), moved: Cell::new(false) };
        let relay = Relay::new(source, sink, mode);
        Ok(Self { relay, fifo: opened.fifo, output: Rc::new(output) })
    }

    async fn run(mut self, moved: Rc<Notify>, reopens: Option<Rc<Notify>>) {
        let stream = self.output.stream.name();
        if let Err(error) = self.relay_all(reopens).await {
            log::warn!("cannot relay {stream}: {error}");
        }
        let Relay { source, sink, .. } = self.relay;
        drop(source);
        self.output.moved.set(true);
        moved.notify_waiters();
        if self.fifo {
            if let Err(error) = fifo::leave(sink).await {
                log::warn!("cannot wait for a reader of {stream}: {error}");
            }
        }
    }
}

impl OutputRelay {
    /// Relays until the source is at its end: a pipe's is final, a terminal's when `reopens` says
    /// that its process has ended. Closing the master earlier would send SIGHUP to a process that
    /// has only let go of its terminal for a while, as inits and daemons do.
    async fn relay_all(&mut self, reopens: Option<Rc<Notify>>) -> io::Result<()> {
        self.relay.run().await?;
        let Some(ended) = reopens else { return Ok(()) };
        loop {
            tokio::select! {
                biased;
                () = ended.notified() => return self.relay.run().await,
                opened = self.relay.source.reopened() => opened?,
            }
            self.relay.run().await?;
        }
    }
}

/// A pipe for the process: its end, blocking, and ours, not.
fn pipe(owner: (u32, u32), direction: Direction) -> Result<(OwnedFd, OwnedFd)> {
    let failed = Error::sys("make a pipe");
    let (reader, writer) = match pipe2(OFlag::O_CLOEXEC) {
        Ok(ends) => ends,
        Err(errno) => return Err(failed(errno.into())),
    };
    let (theirs, ours) = match direction {
        Direction::In => (reader, writer),
        Direction::Out => (writer, reader),
    };
    let mut set_up = set_nonblocking(&ours);
    if set_up.is_ok() && owner != (geteuid().as_raw(), getegid().as_raw()) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        set_up = fchown(&theirs, Some(uid), Some(gid)).map_err(io::Error::from);
    }
    set_up.map_err(failed)?;
    Ok((theirs, ours))
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn null(direction: Direction) -> Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    match direction {
        Direction::In => options.read(true),
        Direction::Out => options.write(true),
    };
    let file = options.open("/dev/null").map_err(Error::io("open", "/dev/null"))?;
    Ok(file.into())
}

/// A future on the event loop that can be dropped from outside at any moment; the runtime's own
/// abort would do so only at some later turn.
#[derive(Debug)]
struct Task {
    work: Rc<Slot>,
    handle: AbortHandle,
}

struct Slot(RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.borrow().is_some() { "running" } else { "ended" })
    }
}

impl Slot {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.0.borrow_mut();
        if let Some(future) = slot.as_mut() {
            ready!(future.as_mut().poll(context));
        }
        *slot = None;
        Poll::Ready(())
    }
}

impl Task {
    fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        let work = Rc::new(Slot(RefCell::new(Some(Box::pin(future)))));
        let shared = Rc::clone(&work);
        let driver = std::future::poll_fn(move |context| shared.poll(context));
        Self { work, handle: tokio::task::spawn_local(driver).abort_handle() }
    }

    /// Drops the future with all it holds. Not to be called by the future itself.
    fn stop(&self) {
        drop(self.work.0.take());
        self.handle.abort();
    }
}
