//! Create: from a bundle to a container whose init process waits for Start. Each step has a guard;
//! success moves them all into the [`Container`].

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::bundle::{self, Bundle, Spec};
use crate::cgroup::Cgroup;
use crate::config::{self, CONFIG_ANNOTATION, Config, Environment, RUNTIME_ANNOTATION, Request};
use crate::container::checkpoint::Image;
use crate::container::container::Streams;
use crate::container::handover::Handover;
use crate::container::oom::Oom;
use crate::container::pod::Admission;
use crate::container::undo::undo;
use crate::container::{Container, Containers, Process, Progress, Slot};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::ids::{ContainerId, Pid};
use crate::io::{self, ConsoleSocket, ProcessIo, StdioSpec, TerminalIo};
use crate::reaper::Child;
use crate::rootfs::{self, FuseOverlay, Mount, RootfsMount};
use crate::runtime::table::{self, Resolved};
use crate::runtime::{self, Call, Runtime};
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;
use crate::sys::child::start_time;
use crate::wire::options::RuntimeOptions;

/// How long the runtime's terminal may take after the runtime said that the container is made.
const CONSOLE: Duration = Duration::from_secs(5);

/// What Create is asked for.
pub(crate) struct Creation {
    /// Whose it will be.
    pub(crate) id: ContainerId,
    /// The bundle's directory.
    pub(crate) bundle: String,
    /// Mounted in order on the bundle's `rootfs`; empty if the caller has done it.
    pub(crate) rootfs: Vec<Mount>,
    /// The init process's streams.
    pub(crate) stdio: StdioSpec,
    /// Directory of a checkpoint to restore; empty for a new container.
    pub(crate) checkpoint: String,
    /// The options that containerd passed on.
    pub(crate) options: RuntimeOptions,
}

/// Frees a reserved id unless the container got there.
struct Reservation<'a> {
    containers: &'a Containers,
    id: ContainerId,
    /// Something of the container stays, for `delete`: the pod is not empty.
    keep: bool,
    progress: Rc<Progress>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let mut map = self.containers.map.borrow_mut();
        if matches!(map.get(&self.id), Some(Slot::Reserved(..))) {
            map.remove(&self.id);
        }
        if map.is_empty() {
            // The first container of the pod is still to come, and decides.
            self.containers.config.replace(None);
        }
        drop(map);
        self.containers.note_change();
        self.containers.close_if_asked();
    }
}

/// Removes berth's files from the bundle unless the container was made, or the daemon ends before
/// all that was made is undone: then `delete` goes by them.
struct Record<'a> {
    containers: &'a Containers,
    bundle: &'a Bundle,
    state: bundle::State,
    keep: bool,
    undone: bool,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let is_needed = !self.undone && self.containers.closing.get();
        if !self.keep && !is_needed {
            self.bundle.remove_state();
        }
    }
}

/// What the runtime made.
pub(super) struct Made {
    pub(super) child: Child,
    cgroup: Option<Cgroup>,
}

impl Made {
    /// Binds a process that the runtime made, and its streams, to `init`; notes for `delete` what it is.
    pub(super) fn bind(
        init: &Process,
        (child, pidfd): (Child, Option<OwnedFd>),
        io: ProcessIo,
        bundle: &Bundle,
        state: &mut bundle::State,
    ) -> Result<Self> {
        let pid = child.pid;
        let mut cgroup = None;
        // One that was reaped already has no cgroup, and its pid may be a stranger's by now.
        if pidfd.is_some() {
            cgroup = Cgroup::of(pid).unwrap_or_else(|error| {
                log::warn!("no cgroup for the processes of {:?}: {error}", init.name);
                None
            });
            state.init = start_time(pid).map(|ticks| (pid.get(), ticks));
        }
        state.cgroup.clone_from(&cgroup);
        bundle.save(state)?;
        init.bind(pid, io);
        Ok(Self { child, cgroup })
    }
}

impl Containers {
    /// Creates a container; returns the pid of its init process, which waits for Start. One that is to be
    /// restored from a checkpoint has none until then, and the runtime does not know it.
    ///
    /// Order: id, options and streams are checked before anything changes; then state file, rootfs,
    /// streams, the runtime, `/tasks/create`. When a step fails, those before it are undone.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Invalid`], [`Error::Runtime`] with the runtime's own words …
    pub(crate) async fn create(
        self: &Rc<Self>,
        creation: Creation,
        deadline: Option<Instant>,
    ) -> Result<Option<Pid>> {
        let Creation { id, bundle, rootfs, stdio, checkpoint, options } = creation;
        let bundle = Bundle::open(&bundle)?;
        let spec = bundle.spec()?;
        let kind = Kind::of(&spec.annotations)?;
        let mut reservation = self.reserve(&id, &kind)?;
        stdio.check()?;
        let image = Image::asked(&checkpoint, &options, deadline).await?;
        let (config, Resolved { runtime, guest, rootless }, options) = self
            .decide(&spec, options)
            .inspect_err(|error| log::warn!("container of pod {:?}: {error}", self.group))?;
        let handover = Handover::new(&guest, &spec, &kind, &rootfs)?;
        let call = Call::new(&id, &bundle, &self.reaper, deadline);
        if let Some(owner) = runtime.other_owner(&call).await? {
            // Undoing a Create that fails for it would end that one.
            let what =
                format!("a container of {}, with the same runtime root and id,", owner.display());
            return Err(Error::Taken { what, id: id.to_string() });
        }
        let mut record = self.record(&bundle, &runtime)?;
        if !handover.annotations.is_empty() || spec.has_reserved_annotation() {
            bundle.annotate(&handover.annotations)?;
        }
        if let Some(sandbox) = self.held() {
            sandbox.equip(&bundle)?;
        }
        let limit = runtime.deadlines.of("mount");
        let helper = async |program: &Path, args: &[OsString]| {
            runtime::help(&self.reaper, "mount", program, args, bundle.dir(), limit).await
        };
        let fuse = FuseOverlay::of(config.fuse_overlayfs, rootless);
        // mount(2) has no time limit, and what it makes late has to be undone: the place is kept for that.
        reservation.progress.step.set("its root file system is being mounted, which may hang");
        let mounted = rootfs::mount(handover.mounts, &bundle.rootfs(), fuse, helper).await?;
        reservation.progress.step.set("its streams are opened and the runtime is run");

        let init = Rc::new(Process::new(id.to_string(), None, stdio));
        let streams = Streams {
            owner: (options.io_uid, options.io_gid),
            policy: config.io,
            is_confined: spec.is_confined() && !runtime.inner_pids,
        };
        // Once the holder has ended, its pid, by which the spec names namespaces, may be another's.
        let in_pod = || self.admits(&kind).map(drop);
        let made = async {
            in_pod()?;
            let context = streams.context(self, &call, &init.name);
            let made = match &image {
                None => Some(make(&runtime, &call, &init, &context, &mut record).await?),
                Some(_) => None,
            };
            in_pod().map(|()| made)
        };
        let made = match made.await {
            Ok(made) => made,
            Err(error) => {
                let undone = undo(&runtime, &call).await;
                // Dropped it would unmount here, on the event loop, which may take a while.
                let unmounted = mounted.unmount().await.inspect_err(|error| log::warn!("{error}"));
                record.undone = undone && unmounted.is_ok();
                reservation.keep = !record.undone && self.closing.get();
                return Err(error);
            }
        };
        record.keep = true;
        drop(record);
        let pid = made.as_ref().map(|made| made.child.pid);
        let created = Event::Created {
            id: id.clone(),
            bundle: bundle.dir().to_owned(),
            rootfs,
            stdio: init.stdio.clone(),
            checkpoint,
            pid,
        };
        self.admit(made, Parts { id, bundle, init, runtime, streams, spec, kind, mounted, image });
        self.events.queue(created);
        Ok(pid)
    }

    /// What the configuration makes of the annotations in `spec` and of the `options`.
    ///
    /// # Errors
    /// As [`config::load`] and [`table::resolve`]. They are to be logged with the pod's id: who
    /// wrote the annotations may not be who has to know.
    fn decide(
        &self,
        spec: &Spec,
        options: RuntimeOptions,
    ) -> Result<(Rc<Config>, Resolved, RuntimeOptions)> {
        let config = self.config(spec, &options)?;
        let options = options.or(&config.options);
        let resolved = table::resolve(&options, &config, spec, &self.namespace)?;
        Ok((config, resolved, options))
    }

    /// The pod's configuration: that of its first container.
    fn config(&self, spec: &Spec, options: &RuntimeOptions) -> Result<Rc<Config>> {
        let annotation = spec.annotation(CONFIG_ANNOTATION);
        if let Some(config) = &*self.config.borrow() {
            if let Some(wanted) = annotation {
                config.gate.check(CONFIG_ANNOTATION)?;
                log::info!("annotation {CONFIG_ANNOTATION} = {wanted:?}: {} stays", config.origin);
            }
            return Ok(config.clone());
        }
        let environment = Environment::read();
        let request = Request { annotation, options, environment: &environment };
        let (config, seen) = config::load_seen(request, spec.annotation(RUNTIME_ANNOTATION))?;
        log::info!("configuration: {}", config.origin);
        self.trace_as(&config);
        let config = Rc::new(config);
        self.config.replace(Some(config.clone()));
        self.seen.replace(seen);
        Ok(config)
    }

    /// Keeps the place for one container, if the pod has it: a shim has one sandbox at most, and
    /// that comes before its containers.
    fn reserve(&self, id: &ContainerId, kind: &Kind) -> Result<Reservation<'_>> {
        self.takes_new()?;
        let admission = self.admits(kind)?;
        if self.held().is_some_and(|sandbox| sandbox.id == *id) {
            return Err(Error::Exists { what: "sandbox", id: id.to_string() });
        }
        let mut map = self.map.borrow_mut();
        match map.get(id) {
            None => {}
            Some(Slot::Ready(_)) => {
                return Err(Error::Exists { what: "container", id: id.to_string() });
            }
            Some(Slot::Reserved(_, progress)) => {
                return Err(Error::Creating { id: id.to_string(), progress: progress.to_string() });
            }
        }
        match kind {
            Kind::Single => {}
            _ if matches!(admission, Admission::Granted) => {}
            Kind::Sandbox => {
                let first = map.iter().find(|(_, slot)| *slot.kind() == Kind::Sandbox);
                if let Some((first, _)) = first {
                    return Err(Error::Exists { what: "the pod's sandbox", id: first.to_string() });
                }
            }
            Kind::Container { sandbox } => {
                let found = map.iter().find(|(id, _)| id.as_str() == sandbox);
                if !found.is_some_and(|(_, slot)| slot.is_ready_sandbox()) {
                    let (id, sandbox) = (id.to_string(), sandbox.clone());
                    return Err(Error::NoSandbox { id, sandbox });
                }
            }
        }
        let progress = Progress::new();
        map.insert(id.clone(), Slot::Reserved(kind.clone(), progress.clone()));
        Ok(Reservation { containers: self, id: id.clone(), keep: false, progress })
    }

    /// Writes what `delete` must know before anything has to be undone.
    fn record<'a>(&'a self, bundle: &'a Bundle, runtime: &Runtime) -> Result<Record<'a>> {
        let state = bundle::State::new(self.group.clone(), self.socket.clone(), runtime.clone());
        let record = Record { containers: self, bundle, state, keep: false, undone: false };
        record.bundle.save(&record.state)?;
        Ok(record)
    }

    /// Puts the container in its place and begins to wait for its end.
    fn admit(self: &Rc<Self>, made: Option<Made>, parts: Parts) {
        let container = Rc::new(Container {
            id: parts.id.clone(),
            _place: self.events.may_use(parts.bundle.dir().to_owned()),
            bundle: parts.bundle,
            init: parts.init,
            shared: self.clone(),
            runtime: parts.runtime,
            streams: parts.streams,
            sizing: Sizing::of(&parts.kind, &parts.spec.annotations, parts.spec.limits()),
            kind: parts.kind,
            own_pid_namespace: parts.spec.has_own_pid_namespace(),
            image: parts.image,
            leaving: Cell::default(),
            cgroup: OnceCell::new(),
            oom: RefCell::default(),
            toll: Rc::default(),
            rootfs: RefCell::new(Some(parts.mounted)),
            adjusting: Mutex::default(),
            frozen: Cell::default(),
            killed: Cell::default(),
            kills: watch::Sender::new(0),
            starting: watch::Sender::new(0),
            execs: RefCell::new(BTreeMap::new()),
        });
        self.map.borrow_mut().insert(parts.id, Slot::Ready(container.clone()));
        self.asked_to_close.set(false);
        self.note_begin();
        if let Some(made) = made {
            container.adopt(made);
        }
    }
}

impl Container {
    /// Begins to wait for the end of what the runtime made, and to watch its memory.
    pub(super) fn adopt(self: Rc<Self>, made: Made) {
        if let Some(cgroup) = made.cgroup {
            let (id, init) = (self.id.clone(), self.init.clone());
            self.oom.replace(Oom::watch(
                &cgroup,
                id,
                init,
                self.shared.events.clone(),
                self.toll.clone(),
                self.shared.reaper.meters().clone(),
            ));
            let _ = self.cgroup.set(cgroup); // a container is made once
        }
        self.watch_init(made.child);
    }
}

/// What [`Containers::admit`] joins to a container.
struct Parts {
    id: ContainerId,
    bundle: Bundle,
    init: Rc<Process>,
    runtime: Runtime,
    streams: Streams,
    spec: Spec,
    kind: Kind,
    mounted: RootfsMount,
    image: Option<Image>,
}

/// Runs the runtime's `create` and binds what it made to `init`.
async fn make(
    runtime: &Runtime,
    call: &Call<'_>,
    init: &Process,
    context: &io::Context<'_>,
    record: &mut Record<'_>,
) -> Result<Made> {
    let pid_file = call.bundle.init_pid_file();
    bundle::clear_pid_file(&pid_file);
    let watch = call.reaper.watch();
    let io = if init.stdio.terminal {
        let io = TerminalIo::open(&init.stdio, context).await?;
        let socket = ConsoleSocket::bind(call.bundle.dir())?;
        runtime.create(call, &pid_file, Some(socket.path()), None).await?;
        io.attach(receive(socket).await?, context)?
    } else {
        let (io, child) = ProcessIo::open(&init.stdio, context).await?;
        let streams = [child.stdin, child.stdout, child.stderr];
        runtime.create(call, &pid_file, None, Some(streams)).await?;
        io
    };
    let claimed = watch.claim(bundle::read_pid(&pid_file)?, call.ended())?;
    Made::bind(init, claimed, io, record.bundle, &mut record.state)
}

/// The terminal that the runtime sent over `socket`.
pub(super) async fn receive(socket: ConsoleSocket) -> Result<OwnedFd> {
    socket.receive(Instant::now() + CONSOLE).await
}
