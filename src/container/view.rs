//! What people see of the containers: plain data, made when somebody asks.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::cgroup::Limit;
use crate::config::{self, Config, Environment, Request};
use crate::container::{Containers, Process, Slot};
use crate::error::Result;
use crate::ids::Pid;
use crate::log::Timestamp;
use crate::sandbox::Stage;
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;
use crate::wire::options::RuntimeOptions;

/// A pod, or a container on its own.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Pod {
    /// berth's version.
    pub(crate) version: String,
    /// The shim's.
    pub(crate) pid: u32,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The id of the sandbox, or of the container on its own.
    pub(crate) id: String,
    /// Where a sandbox is in its life that is no container.
    pub(crate) sandbox: Option<String>,
    /// Seconds since the shim began.
    pub(crate) uptime: u64,
    /// Its containers.
    pub(crate) containers: Vec<View>,
}

/// A container.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct View {
    /// Its id.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: String,
    /// Its init process.
    pub(crate) pid: Option<i32>,
    /// How it ended.
    pub(crate) exit_status: Option<u32>,
    /// When the runtime had made it.
    pub(crate) created: Option<String>,
    /// When its program began to run.
    pub(crate) started: Option<String>,
    /// When it ended.
    pub(crate) exited: Option<String>,
    /// The OCI runtime's program.
    pub(crate) runtime: String,
    /// Its bundle.
    pub(crate) bundle: String,
    /// Processes killed for lack of memory.
    pub(crate) oom_kills: u64,
    /// Whose limit was hit at the last of them.
    pub(crate) oom_limit: Option<String>,
    /// A request has its turn, perhaps for long.
    pub(crate) busy: bool,
    /// Its exec processes.
    pub(crate) execs: Vec<Exec>,
}

/// An exec process.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Exec {
    /// Its id.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: String,
    /// Its pid.
    pub(crate) pid: Option<i32>,
    /// How it ended.
    pub(crate) exit_status: Option<u32>,
    /// When its program began to run.
    pub(crate) started: Option<String>,
    /// When it ended.
    pub(crate) exited: Option<String>,
}

fn time(at: SystemTime) -> String {
    Timestamp(at).to_string()
}

impl Exec {
    fn of(id: &str, process: &Process) -> Self {
        let [_, started] = process.times();
        let exit = process.state().exit();
        // A short program may have ended before the runtime says that it has begun.
        let started = started.map(|at| exit.map_or(at, |exit| at.min(exit.at)));
        Self {
            id: id.to_owned(),
            state: process.state().name().to_owned(),
            pid: process.pid().map(Pid::get),
            exit_status: exit.map(|exit| exit.status),
            started: started.map(time),
            exited: exit.map(|exit| time(exit.at)),
        }
    }
}

impl View {
    fn of(id: &str, slot: &Slot) -> Self {
        let Slot::Ready(container) = slot else {
            return Self { id: id.to_owned(), state: "creating".into(), ..Self::default() };
        };
        let Exec { id, state, pid, exit_status, started, exited } = Exec::of(id, &container.init);
        let [created, _] = container.init.times();
        let toll = container.oom_toll();
        let execs = container.execs.borrow();
        Self {
            id,
            state,
            pid,
            exit_status,
            created: created.map(time),
            started,
            exited,
            runtime: container.runtime.path.display().to_string(),
            bundle: container.bundle.dir().display().to_string(),
            oom_kills: toll.kills,
            oom_limit: toll.limit.map(|limit| word(limit).to_owned()),
            busy: container.init.turn.try_lock().is_err(),
            execs: execs.iter().map(|(id, exec)| Exec::of(id.as_str(), exec)).collect(),
        }
    }
}

/// Whose limit it was, as a label.
pub(crate) fn word(limit: Limit) -> &'static str {
    match limit {
        Limit::Own => "own",
        Limit::LikelyOwn => "likely own",
        Limit::Around => "around",
    }
}

/// What chose the configuration of the pod.
pub(super) struct Asked {
    annotation: Option<String>,
    options: RuntimeOptions,
}

impl Asked {
    /// `None` if nothing was asked for, and the machine's configuration counts.
    pub(super) fn new(annotation: Option<&str>, options: &RuntimeOptions) -> Option<Self> {
        let RuntimeOptions { config_path, config_body, .. } = options.clone();
        if annotation.is_none() && config_path.is_empty() && config_body.is_empty() {
            return None;
        }
        let options = RuntimeOptions { config_path, config_body, ..RuntimeOptions::default() };
        Some(Self { annotation: annotation.map(str::to_owned), options })
    }
}

impl Containers {
    /// There is a container now, or a sandbox that is none.
    pub(crate) fn note_begin(&self) {
        self.begun.set(true);
        self.begins.notify_one();
    }

    /// Resolves when there has been a container, or a sandbox that is none. For one caller.
    pub(crate) async fn begun(&self) {
        while !self.begun.get() {
            self.begins.notified().await;
        }
    }

    /// The pod for a person; the shim began `uptime` ago.
    pub(crate) fn view(&self, uptime: Duration) -> Pod {
        let stage = |stage| match stage {
            Stage::Created => "created",
            Stage::Ready => "ready",
            Stage::Ended(_) => "ended",
        };
        let map = self.map.borrow();
        Pod {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            namespace: self.namespace.as_str().to_owned(),
            id: self.group.clone(),
            sandbox: self.held().map(|held| stage(held.stage()).to_owned()),
            uptime: uptime.as_secs(),
            containers: map.iter().map(|(id, slot)| View::of(id.as_str(), slot)).collect(),
        }
    }

    /// The configuration that the pod has, unless its first container is still to come.
    pub(crate) fn effective_config(&self) -> Option<std::rc::Rc<Config>> {
        self.config.borrow().clone()
    }

    /// What the files that the pod's configuration is from come to now, as text with origins.
    ///
    /// # Errors
    /// Those that a Create would have.
    pub(crate) fn config_now(&self) -> Result<(Config, String)> {
        let asked = self.asked.borrow();
        let options = asked.as_ref().map(|asked| asked.options.clone()).unwrap_or_default();
        let annotation = asked.as_ref().and_then(|asked| asked.annotation.as_deref());
        let environment = Environment::read();
        config::effective(Request { annotation, options: &options, environment: &environment })
    }

    /// What the pod, or the container on its own, may use; read from the bundle, which may be gone.
    pub(crate) fn sizing(&self) -> Option<Sizing> {
        let (bundle, kind): (Bundle, Kind) = {
            let map = self.map.borrow();
            let ready = map.values().filter_map(Slot::ready);
            let mut outer = ready.filter(|one| !matches!(one.kind, Kind::Container { .. }));
            outer.next().map(|one| (one.bundle.clone(), one.kind.clone()))?
        };
        let spec = bundle.spec().ok()?;
        Some(Sizing::of(&kind, &spec.annotations, spec.limits()))
    }
}
