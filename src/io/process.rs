//! The streams of one process, from before the OCI runtime runs until Delete.

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::driver::{self, Feed};
use super::end::End;
use super::fifo::{self, Direction};
use super::handed::Handed;
use super::holders::Undrained;
use super::input::Source;
use super::look;
use super::output::{Output, OutputRelay, Sink, Taker, open};
use super::outside::OutsideFile;
use super::pipe::{null, pipe, set_nonblocking};
use super::relay::Mode;
use super::streaming;
use super::task::{Flag, Task, Work};
use super::uri::{FileTarget, Format, Target};
use super::{Context, StdioSpec, Stream};
use crate::error::{Error, Result};
use crate::sys;

/// How long a reader may take that closes a FIFO to open it again.
const RETURN: Duration = Duration::from_millis(100);
/// Between two looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long the readers of streams may delay the news that a process has ended: they may be away, since
/// containerd may be restarting, or slow.
const TAKEN: Duration = Duration::from_secs(120);

/// The descriptors 0, 1 and 2 of the runtime's command, blocking. Drop them once it runs: a
/// stream ends when its last writer is gone.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What moves the bytes of a process's streams. Dropping it ends that, as [`ProcessIo::close`] does.
#[derive(Debug, Default)]
pub(crate) struct ProcessIo {
    tasks: Vec<Task>,
    outputs: Vec<Rc<Output>>,
    /// The FIFOs that the process has itself.
    handed: Vec<(Stream, Weak<OwnedFd>)>,
    /// An output has moved to its end.
    moved: Rc<Notify>,
    close_stdin: Flag,
    /// The process has ended: a terminal that is closed then stays so.
    ended: Flag,
    /// The terminal's master, as long as its output lives.
    console: Weak<OwnedFd>,
}

impl ProcessIo {
    /// Opens the streams of a process without a terminal.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`StdioSpec::check`]; [`Error::Io`] names the FIFO; why a driver cannot
    /// begin.
    pub(crate) async fn open(
        spec: &StdioSpec,
        context: &Context<'_>,
    ) -> Result<(Self, ChildStdio)> {
        spec.check()?;
        let mut io = Self::default();
        let stdin = match io.source(spec, context).await? {
            Some(source) => {
                let (theirs, ours) = pipe(context.owner, Direction::In)?;
                let sink = End::sink(ours).map_err(Error::sys("watch a pipe"))?;
                let input = source.into_input(sink, Mode::Splice);
                io.spawn(Box::pin(input.run(io.close_stdin.clone())));
                theirs
            }
            None => null(Direction::In)?,
        };
        let [stdout, stderr] = io.open_outputs(spec, context).await?;
        Ok((io, ChildStdio { stdin, stdout, stderr }))
    }

    /// What CRIU has to be told of the FIFOs that the process has itself: they are none of the
    /// container's files.
    ///
    /// # Errors
    /// [`Error::Sys`].
    pub(crate) fn outside(&self) -> Result<Vec<OutsideFile>> {
        let files =
            self.handed.iter().filter_map(|(stream, file)| Some((*stream, file.upgrade()?)));
        let named = files.map(|(stream, file)| OutsideFile::of(stream, &file));
        named.collect::<std::io::Result<_>>().map_err(Error::sys("look at a FIFO"))
    }

    async fn open_outputs(
        &mut self,
        spec: &StdioSpec,
        context: &Context<'_>,
    ) -> Result<[OwnedFd; 2]> {
        let stdout = as_driven(spec.target(Stream::Stdout)?, context).await?;
        let stderr = as_driven(spec.target(Stream::Stderr)?, context).await?;
        match (&stdout, stdout == stderr) {
            // One pipe for both, so that the bytes stand in the file as they were written.
            (Target::File(FileTarget { format: Format::Raw, .. }), true) => {
                let (theirs, feed) = self.feed(Stream::Stdout, context)?;
                self.drive(&stdout, vec![feed], context).await?;
                let twin = theirs.try_clone().map_err(Error::sys("copy a pipe"))?;
                Ok([theirs, twin])
            }
            (Target::File(_) | Target::Logger(_) | Target::Journal(_), true) => {
                let (out, out_feed) = self.feed(Stream::Stdout, context)?;
                let (err, err_feed) = self.feed(Stream::Stderr, context)?;
                self.drive(&stdout, vec![out_feed, err_feed], context).await?;
                Ok([out, err])
            }
            _ => {
                let out = self.open_output(Stream::Stdout, stdout, context).await?;
                Ok([out, self.open_output(Stream::Stderr, stderr, context).await?])
            }
        }
    }

    async fn open_output(
        &mut self,
        stream: Stream,
        target: Target,
        context: &Context<'_>,
    ) -> Result<OwnedFd> {
        match target {
            Target::Null => null(Direction::Out),
            Target::Path(path) => {
                let opened = open(stream, &path, context.deadline).await?;
                let opened = match Handed::take(stream, opened, context, &self.moved)? {
                    Ok((theirs, handed)) => {
                        self.outputs.push(handed.output());
                        self.handed.push((stream, handed.file()));
                        self.spawn(Box::pin(handed.run(self.ended.clone())));
                        return Ok(theirs);
                    }
                    Err(opened) => opened,
                };
                let (theirs, ours) = pipe(context.owner, Direction::Out)?;
                let sink = Sink::new(opened)?;
                let mode = Mode::Splice;
                let relay = OutputRelay::new(stream, ours, sink, mode, &self.moved, context)?;
                self.outputs.push(relay.output());
                self.spawn(Box::pin(relay.run(None)));
                Ok(theirs)
            }
            driven => {
                let (theirs, feed) = self.feed(stream, context)?;
                self.drive(&driven, vec![feed], context).await?;
                Ok(theirs)
            }
        }
    }

    /// A pipe whose bytes a driver takes: the process's end, and the driver's.
    fn feed(&mut self, stream: Stream, context: &Context<'_>) -> Result<(OwnedFd, Feed)> {
        let (theirs, ours) = pipe(context.owner, Direction::Out)?;
        let ours = Rc::new(ours);
        let taker = Taker::Driver("its driver".to_owned().into());
        let output = Output::new(stream, Rc::downgrade(&ours), taker, self.moved.clone());
        self.outputs.push(output.clone());
        Ok((theirs, Feed { pipe: ours, output }))
    }

    async fn drive(
        &mut self,
        target: &Target,
        feeds: Vec<Feed>,
        context: &Context<'_>,
    ) -> Result<()> {
        let work = driver::start(target, feeds, context).await?;
        self.spawn(work);
        Ok(())
    }

    /// Where input comes from, if it does.
    async fn source(&mut self, spec: &StdioSpec, context: &Context<'_>) -> Result<Option<Source>> {
        match spec.target(Stream::Stdin)? {
            Target::Path(path) => Source::open(&path, context.deadline).await.map(Some),
            Target::Null => Ok(None),
            Target::Streaming(target) => {
                let close = self.close_stdin.clone();
                let (pipe, work) = streaming::start_input(&target, close, context).await?;
                self.spawn(work);
                let end = End::source(pipe).map_err(Error::sys("watch a pipe"))?;
                Ok(Some(Source { end, fifo: false }))
            }
            other => Err(Error::Unimplemented(format!("{other:?}"))),
        }
    }

    fn spawn(&mut self, work: Work) {
        self.tasks.push(Task::spawn(work));
    }

    /// The process has ended. Until then a terminal that it has closed may be opened again; from
    /// now on its output is at its end as soon as nobody has it open.
    pub(crate) fn process_ended(&self) {
        self.ended.set();
    }

    /// Waits until every byte that was written to the outputs is where a reader gets it whatever berth
    /// does: all writers are gone.
    ///
    /// # Errors
    /// At the deadline, why not; the search for the writers takes up to 100 ms more.
    pub(crate) async fn drained(&self, deadline: Instant) -> Result<(), Undrained> {
        self.process_ended(); // or it never ran
        if timeout_at(deadline, all_moved(&self.outputs, &self.moved)).await.is_ok() {
            return Ok(());
        }
        // A process that waits for the reader of one output holds the other one too.
        let undrained = || self.outputs.iter().filter(|output| !output.is_finished());
        let culprit = undrained().find(|output| output.is_stuck()).or_else(|| undrained().next());
        match culprit {
            Some(output) => Err(output.undrained().await),
            None => Ok(()),
        }
    }

    /// Bytes of the outputs that were dropped because nobody took them.
    pub(crate) fn dropped(&self) -> u64 {
        self.outputs.iter().map(|output| output.dropped()).sum()
    }

    /// Resolves when the readers have all that a process that has ended wrote, as long as they take it:
    /// containerd [cancels] its streams when it hears of the end, with what is on its way, and before
    /// 1.6.22 and 1.7.3 it [closes] the FIFOs too. It takes at most 1 s with FIFOs, and
    /// [`TAKEN`] with streams, for all outputs together.
    ///
    /// [cancels]: https://github.com/containerd/containerd/blob/v2.1.9/client/task.go#L408
    /// [closes]: https://github.com/containerd/containerd/blob/v1.6.20/task.go#L323
    pub(crate) async fn taken(&self) {
        let mut waits: Vec<_> =
            self.outputs.iter().map(|output| Box::pin(output.taken())).collect();
        let all = poll_fn(|context| {
            waits.retain_mut(|wait| wait.as_mut().poll(context).is_pending());
            if waits.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = timeout(TAKEN, all).await; // whoever comes later takes what it can get
    }

    /// Waits a moment, not past `deadline`, for readers of FIFOs that nobody has open and that still have
    /// bytes: a reader may be about to open one again. Returns what is then to be lost by
    /// [`ProcessIo::close`], by the stream's name.
    pub(crate) async fn abandoned(&self, deadline: Instant) -> Vec<(&'static str, usize)> {
        let until = deadline.min(Instant::now() + RETURN);
        loop {
            let of = |output: &Rc<Output>| (output.stream().name(), fifo::abandoned(output.rest()));
            let left: Vec<_> =
                self.outputs.iter().map(of).filter(|(_, bytes)| *bytes > 0).collect();
            if left.is_empty() || Instant::now() >= until {
                return left;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends all that moves bytes and closes the descriptors, at once; what nobody has read is lost.
    pub(crate) fn close(&self) {
        self.tasks.iter().for_each(Task::stop);
        self.outputs.iter().for_each(|output| output.finish());
    }

    /// How often its loggers had to be started again.
    pub(crate) fn logger_restarts(&self) -> u32 {
        self.outputs.iter().map(|output| output.restarts()).sum()
    }

    /// CloseIO: the process's input ends as soon as the last client closes its end of the FIFO and
    /// the process has read the rest. Until now berth held the FIFO open for clients to come.
    /// A terminal's process is not told.
    pub(crate) fn close_stdin(&self) {
        self.close_stdin.set();
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

/// The streams of a process whose terminal is still to come.
pub(crate) struct TerminalIo {
    io: ProcessIo,
    source: Option<Source>,
    sink: Sink,
}

impl TerminalIo {
    /// Opens what the terminal's bytes come from and go to.
    ///
    /// # Errors
    /// As [`ProcessIo::open`].
    pub(crate) async fn open(spec: &StdioSpec, context: &Context<'_>) -> Result<Self> {
        spec.check()?;
        let mut io = ProcessIo::default();
        let source = io.source(spec, context).await?;
        let sink = match as_driven(spec.target(Stream::Stdout)?, context).await? {
            // It is taken even if nobody wants it, or the process would stop.
            Target::Null => {
                let null = open(Stream::Stdout, Path::new("/dev/null"), context.deadline).await?;
                Sink::new(null)?
            }
            Target::Path(path) => Sink::new(open(Stream::Stdout, &path, context.deadline).await?)?,
            driven => {
                let (ours, feed) = io.feed(Stream::Stdout, context)?;
                io.drive(&driven, vec![feed], context).await?;
                let end = set_nonblocking(&ours).and_then(|()| End::sink(ours));
                Sink { end: end.map_err(Error::sys("watch a pipe"))?, fifo: false }
            }
        };
        Ok(Self { io, source, sink })
    }

    /// Takes over the `master` of a terminal that the runtime made.
    ///
    /// # Errors
    /// [`Error::Sys`] if the event loop cannot wait for it.
    pub(crate) fn attach(self, master: OwnedFd, context: &Context<'_>) -> Result<ProcessIo> {
        let Self { mut io, source, sink } = self;
        set_nonblocking(&master).map_err(Error::sys("make a terminal non-blocking"))?;
        // epoll knows a descriptor once only, and both directions wait for themselves.
        let input = master.try_clone().and_then(End::sink);
        let input = input.map_err(Error::sys("watch a terminal"))?;
        let relay = OutputRelay::new(Stream::Stdout, master, sink, Mode::Copy, &io.moved, context)?;
        io.console = relay.source();
        let outputs = [relay.output()];
        io.outputs.extend(outputs.clone());
        io.spawn(Box::pin(relay.run(Some(io.ended.clone()))));
        if let Some(source) = source {
            let input = source.into_input(input, Mode::Copy);
            let (close, moved) = (io.close_stdin.clone(), io.moved.clone());
            // A terminal has one output, and input is of no use after that.
            io.spawn(Box::pin(async move {
                tokio::select! {
                    () = input.run(close) => {}
                    () = all_moved(&outputs, &moved) => {}
                }
            }));
        }
        Ok(io)
    }
}

/// A regular file may block, on a dead network mount for one: it is no FIFO that the event loop can
/// write.
///
/// # Errors
/// [`Error::Io`] names the path; [`Error::Deadline`].
async fn as_driven(target: Target, context: &Context<'_>) -> Result<Target> {
    let Target::Path(path) = target else { return Ok(target) };
    let is_file = |path: &Path| Ok(path.is_file()); // what is not there is said by who opens it
    let is_file = look::at(&path, "look at", context.deadline, is_file).await?;
    Ok(if is_file { Target::File(FileTarget::raw(path)) } else { Target::Path(path) })
}

async fn all_moved(outputs: &[Rc<Output>], moved: &Notify) {
    while !outputs.iter().all(|output| output.is_finished()) {
        moved.notified().await; // one thread: nothing happens between the look and the wait
    }
}
