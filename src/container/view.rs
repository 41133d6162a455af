//! What people see of the containers: plain data, made when somebody asks.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cgroup::Limit;
use crate::config::{self, Config};
use crate::container::{Containers, Process, Slot};
use crate::ids::Pid;
use crate::log::Timestamp;
use crate::sandbox::Stage;
use crate::sandbox::kind::Kind;
use crate::sandbox::sizing::Sizing;

/// A pod, or a container on its own. `ps` reads it of older shims and of newer ones: what is missing is
/// empty, what is unknown is passed over. So it is with what is in it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
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
#[serde(default)]
pub(crate) struct View {
    /// Its id.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: String,
    /// Its init process, until that has ended: then the number may be another's.
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
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Exec {
    /// Its id.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: String,
    /// Its pid, until it has ended.
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
            pid: process.pid().filter(|_| exit.is_none()).map(Pid::get),
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

impl Containers {
    /// There is a container now, or a sandbox that is none.
    pub(crate) fn note_begin(&self) {
        self.begun.set(true);
        self.begins.notify_waiters();
    }

    /// Resolves when there has been a container, or a sandbox that is none.
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

    /// The configuration that the pod has as text with origins, as its first container's Create saw it.
    pub(crate) fn seen_config(&self) -> Option<String> {
        self.config.borrow().as_ref().map(|_| self.seen.borrow().text())
    }

    /// Lets spans be sent, or not, as the pod's configuration says.
    pub(super) fn trace_as(&self, config: &Config) {
        self.reaper.tracer().decide(&config.tracing, self.namespace.as_str(), &self.group);
    }

    /// The same by the machine's configuration: of a pod that has a sandbox and no container yet.
    pub(crate) fn decide_tracing(&self) {
        match config::machine() {
            Ok(config) => self.trace_as(&config),
            Err(error) => log::debug!("it is left open whether spans are sent: {error}"),
        }
    }

    /// What the pod, or the container on its own, may use, as its Create was told.
    pub(crate) fn sizing(&self) -> Option<Sizing> {
        if let Some(sandbox) = self.held() {
            return Some(sandbox.pod.limits.into());
        }
        let map = self.map.borrow();
        let mut ready = map.values().filter_map(Slot::ready);
        ready.find(|one| !matches!(one.kind, Kind::Container { .. })).map(|one| one.sizing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shims_of_other_versions_say_is_read() {
        let cases = [
            ("nothing", "{}", ("", 0, 0)),
            ("no execs", r#"{"id":"p","containers":[{"id":"c"}]}"#, ("p", 1, 0)),
            (
                "more than we know",
                r#"{"id":"p","new":{"a":[1]},"containers":[{"id":"c","new":1,"execs":[{"new":2}]}]}"#,
                ("p", 1, 1),
            ),
        ];
        for (name, text, (id, containers, execs)) in cases {
            let pod: Pod = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = pod.containers.iter().map(|one| one.execs.len()).sum::<usize>();
            assert_eq!((&*pod.id, pod.containers.len(), found), (id, containers, execs), "{name}");
        }
    }
}
