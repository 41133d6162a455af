//! What the daemon does, as spans of OpenTelemetry: the sandbox's life, each request, each command of a runtime,
//! each mount. They go to a collector if the configuration or the environment names one.
//!
//! Which configuration counts is known with the pod's first container. Until then a span is kept, after that it
//! is sent, or a request costs one look at a cell. What a request does is below its span without being told so:
//! the span is a [value of the task](tokio::task_local) that answers it.

mod context;
mod export;
mod otlp;
#[cfg(test)]
#[allow(dead_code, missing_docs, unreachable_pub, reason = "it is the integration tests' too")]
#[path = "../../tests/support/otlp.rs"]
mod proto;
mod settings;
#[cfg(test)]
mod tests;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout};

#[cfg(any(test, fuzzing))]
pub(crate) use self::context::fuzz;
use self::context::{Context, SpanId, TraceId};
use self::export::Queue;
use self::otlp::Ended;
pub(crate) use self::otlp::{Kind, Value};
use self::settings::{Rule, Settings};
use crate::config::Tracing;
use crate::error::{Error, Result};

/// How long the shim's end waits for the collector.
const END: Duration = Duration::from_secs(1);

/// Makes spans; cheap to clone, all clones are one.
#[derive(Clone)]
pub(crate) struct Tracer(Rc<Inner>);

struct Inner {
    began: (SystemTime, Instant),
    phase: Cell<Phase>,
    ids: Ids,
    /// The span of the sandbox; the first request decides whose trace it is in.
    root: OnceCell<Root>,
    queue: Rc<Queue>,
    exporter: RefCell<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The configuration is not known yet.
    Undecided,
    Off,
    On(Rule),
}

struct Root {
    context: Context,
    parent: Option<Context>,
    attributes: RefCell<Vec<(&'static str, Value)>>,
}

/// Numbers of traces and spans: a counter, hashed under keys that the kernel made up for this process.
#[derive(Default)]
struct Ids {
    keys: RandomState,
    count: Cell<u64>,
}

impl Ids {
    /// Never zero.
    fn next(&self) -> u64 {
        self.count.set(self.count.get() + 1);
        self.keys.hash_one(self.count.get()).max(1)
    }

    fn span(&self) -> SpanId {
        self.next().to_be_bytes()
    }

    fn trace(&self) -> TraceId {
        (u128::from(self.next()) << 64 | u128::from(self.next())).to_be_bytes()
    }

    /// A UUID of version 4.
    fn uuid(&self) -> String {
        let [high, low] = [self.next(), self.next()];
        let (first, second, third) = (high >> 32, high >> 16 & 0xffff, high & 0xfff | 0x4000);
        let (fourth, fifth) = (low >> 48 & 0x3fff | 0x8000, low & 0xffff_ffff_ffff);
        format!("{first:08x}-{second:04x}-{third:04x}-{fourth:04x}-{fifth:012x}")
    }
}

/// The span below which the running task works.
#[derive(Clone)]
struct Current {
    tracer: Tracer,
    context: Context,
    is_early: bool,
}

tokio::task_local! {
    static CURRENT: Current;
}

impl Default for Tracer {
    fn default() -> Self {
        Self(Rc::new(Inner {
            began: (SystemTime::now(), Instant::now()),
            phase: Cell::new(Phase::Undecided),
            ids: Ids::default(),
            root: OnceCell::new(),
            queue: Rc::default(),
            exporter: RefCell::default(),
        }))
    }
}

impl Tracer {
    /// Begins to send spans of `sandbox`, or forgets them, as `config` and the environment say. The first time
    /// counts.
    pub(crate) fn decide(&self, config: &Tracing, namespace: &str, sandbox: &str) {
        if self.0.phase.get() != Phase::Undecided {
            return;
        }
        let settings = settings::settings(config, |name| std::env::var(name).ok());
        match settings.unwrap_or_else(|why| {
            log::warn!("no spans are sent: {why}");
            None
        }) {
            None => {
                self.0.phase.set(Phase::Off);
                self.0.queue.clear();
            }
            Some(settings) => self.begin(settings, namespace, sandbox),
        }
    }

    fn begin(&self, settings: Settings, namespace: &str, sandbox: &str) {
        let inner = &self.0;
        inner.phase.set(Phase::On(settings.rule));
        let root = self.root(None);
        let about =
            [("containerd.namespace", namespace.into()), ("containerd.sandbox_id", sandbox.into())];
        root.attributes.replace(about.to_vec());
        if !self.records(&root.context) {
            inner.queue.clear();
        }
        let own = [
            ("service.version", Value::from(env!("CARGO_PKG_VERSION"))),
            ("service.instance.id", inner.ids.uuid().as_str().into()),
            ("process.pid", i64::from(std::process::id()).into()),
        ];
        let host = nix::unistd::gethostname().unwrap_or_default();
        let own: Vec<_> = own.into_iter().chain(about).collect();
        let resource = settings.resource(own, &host.to_string_lossy());
        log::info!("spans are sent to {}:{}", settings.endpoint.host, settings.endpoint.port);
        for name in &settings.ignored {
            log::warn!("{name} is ignored: it is not what it must be");
        }
        let exporter = spawn_local(export::run(inner.queue.clone(), settings, resource));
        inner.exporter.replace(Some(exporter));
    }

    /// Whether nobody said yet what to do with spans.
    pub(crate) fn is_undecided(&self) -> bool {
        self.0.phase.get() == Phase::Undecided
    }

    /// A span for a request, below the one that its `metadata` name, or the sandbox's.
    pub(crate) fn request<'a>(
        &self,
        name: impl FnOnce() -> String,
        metadata: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Span {
        if self.0.phase.get() == Phase::Off {
            return Span(None);
        }
        let remote = Context::of(metadata);
        self.root(remote.as_ref());
        let root = self.below_root();
        match remote {
            Some(remote) => {
                let sampled = match self.0.phase.get() {
                    Phase::On(rule) => rule.records(&remote.trace, Some(remote.sampled)),
                    _ => remote.sampled,
                };
                let link = (root.trace != remote.trace).then_some(root);
                self.open(Context { sampled, ..remote }, true, link, name(), Kind::Server)
            }
            None => self.open(root, false, None, name(), Kind::Server),
        }
    }

    /// A span for what is done for a request, or for nobody in particular.
    pub(crate) fn span(&self, kind: Kind, name: impl FnOnce() -> String) -> Span {
        if self.0.phase.get() == Phase::Off {
            return Span(None);
        }
        let current = CURRENT.try_with(|current| current.context.clone());
        let parent = current.unwrap_or_else(|_| self.below_root());
        self.open(parent, false, None, name(), kind)
    }

    fn open(
        &self,
        parent: Context,
        is_remote: bool,
        link: Option<Context>,
        name: String,
        kind: Kind,
    ) -> Span {
        let is_early = CURRENT.try_with(|current| current.is_early).unwrap_or(false);
        Span(Some(Box::new(Open {
            tracer: self.clone(),
            context: Context { span: self.0.ids.span(), ..parent.clone() },
            parent: parent.span,
            is_remote,
            link,
            is_early: is_early || self.is_undecided(),
            name,
            kind,
            began: (SystemTime::now(), Instant::now()),
            attributes: Vec::new(),
            failure: None,
        })))
    }

    /// The sandbox's span, in the trace of `parent` if it is the first one.
    fn root(&self, parent: Option<&Context>) -> &Root {
        self.0.root.get_or_init(|| {
            let span = self.0.ids.span();
            let context = match parent {
                Some(parent) => Context { span, ..parent.clone() },
                None => {
                    Context { trace: self.0.ids.trace(), span, sampled: true, state: "".into() }
                }
            };
            Root { context, parent: parent.cloned(), attributes: RefCell::default() }
        })
    }

    /// The sandbox's span for those below it.
    fn below_root(&self) -> Context {
        let context = &self.root(None).context;
        let sampled = match self.0.phase.get() {
            Phase::Undecided => context.sampled,
            _ => self.records(context),
        };
        Context { sampled, ..context.clone() }
    }

    /// Whether a span is recorded of which nothing is known but what its caller says, if it has one.
    fn records(&self, context: &Context) -> bool {
        let root = self.root(None);
        let has_caller = root.parent.is_some() || root.context.trace != context.trace;
        match self.0.phase.get() {
            Phase::On(rule) => rule.records(&context.trace, has_caller.then_some(context.sampled)),
            Phase::Undecided => true,
            Phase::Off => false,
        }
    }

    /// How many spans were sent, and how many were lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.0.queue.counts()
    }

    /// Ends the sandbox's span and sends what there is, for a second at most.
    pub(crate) async fn finish(&self) {
        let exporter = self.0.exporter.take();
        let Some(exporter) = exporter else { return };
        let Root { context, parent, attributes } = self.root(None);
        if self.records(context) {
            let (at, clock) = self.0.began;
            self.0.queue.push(otlp::span(&Ended {
                context: &Context { sampled: true, ..context.clone() },
                parent: parent.as_ref().map(|parent| parent.span),
                is_remote: parent.is_some(),
                link: None,
                name: "sandbox",
                kind: Kind::Internal,
                began: at,
                took: clock.elapsed(),
                attributes: &attributes.borrow(),
                failure: None,
            }));
        }
        self.0.queue.close();
        if timeout(END, exporter).await.is_err() {
            log::warn!("spans are lost: the collector does not take the last ones within {END:?}");
        }
    }
}

/// A span below that of the request for which the caller works; none if there is no such.
pub(crate) fn span(kind: Kind, name: &'static str) -> Span {
    let tracer = CURRENT.try_with(|current| current.tracer.clone());
    tracer.map_or(Span(None), |tracer| tracer.span(kind, || name.to_owned()))
}

/// Work that is being done, until this is dropped.
#[must_use = "the span ends when it is dropped"]
pub(crate) struct Span(Option<Box<Open>>);

struct Open {
    tracer: Tracer,
    context: Context,
    parent: SpanId,
    is_remote: bool,
    link: Option<Context>,
    /// It began before it was known whether there are to be spans: its `context` is as the caller has it.
    is_early: bool,
    name: String,
    kind: Kind,
    began: (SystemTime, Instant),
    attributes: Vec<(&'static str, Value)>,
    failure: Option<String>,
}

impl Span {
    /// Whether what is said of it reaches anybody.
    pub(crate) fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.is_wanted())
    }

    /// Does `work` below this span.
    pub(crate) async fn around<F: Future>(&self, work: Pin<&mut F>) -> F::Output {
        match &self.0 {
            None => work.await,
            Some(open) => {
                let (tracer, context) = (open.tracer.clone(), open.context.clone());
                CURRENT.scope(Current { tracer, context, is_early: open.is_early }, work).await
            }
        }
    }

    /// Says something of it.
    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = self.0.as_mut().filter(|open| open.is_wanted()) {
            open.attributes.push((key, value.into()));
        }
    }

    /// It came to nothing.
    pub(crate) fn fail(&mut self, why: impl ToString) {
        if let Some(open) = self.0.as_mut().filter(|open| open.is_wanted()) {
            open.failure = Some(why.to_string());
        }
    }

    /// It came to this.
    pub(crate) fn note<T>(&mut self, result: &Result<T, Error>) {
        if let Err(error) = result {
            self.fail(error);
        }
    }
}

impl Open {
    fn is_wanted(&self) -> bool {
        match self.is_early {
            true => self.tracer.records(&self.context),
            false => self.context.sampled,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let is_full = self.tracer.is_undecided() && self.tracer.0.queue.has_enough();
        if is_full || !self.is_wanted() {
            return;
        }
        self.context.sampled = true;
        let (at, clock) = self.began;
        self.tracer.0.queue.push(otlp::span(&Ended {
            context: &self.context,
            parent: Some(self.parent),
            is_remote: self.is_remote,
            link: self.link.as_ref(),
            name: &self.name,
            kind: self.kind,
            began: at,
            took: clock.elapsed(),
            attributes: &self.attributes,
            failure: self.failure.as_deref(),
        }));
    }
}
