//! The model: what a shim's containers are, and what each step may come to.

use std::collections::BTreeMap;

use super::draw::{Call, Script, Step};
use super::player::OURS;
use crate::support::Code;

const DONE: Code = Code::OK;
const STATE: Code = Code::FAILED_PRECONDITION;
const INVALID: Code = Code::INVALID_ARGUMENT;
const MISSING: Code = Code::NOT_FOUND;
const RUNTIME: Code = Code::UNKNOWN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Created,
    Running,
    Paused,
    Stopped,
}

/// A process as the calls have made it.
#[derive(Clone, Debug)]
pub struct Process {
    pub at: At,
    pub script: Script,
    /// The statuses with which it ends or has ended, whether or not the shim knows; empty while nothing
    /// has happened to it.
    pub ends: Vec<u32>,
    /// The place of its life among those that the player has seen.
    pub life: usize,
}

#[derive(Clone, Debug)]
pub struct Container {
    pub init: Process,
    pub execs: BTreeMap<&'static str, Process>,
}

/// What the shim should have.
pub struct Model {
    /// Its runtime makes containers, and not only processes: they have PID namespaces and cgroups.
    pub is_real: bool,
    /// The id of the pod's sandbox, if it is a pod; containers need it.
    pub sandbox: Option<&'static str>,
    /// The sandbox is somebody else's, and there.
    pub is_guest: bool,
    pub containers: BTreeMap<&'static str, Container>,
}

/// As containerd's identifiers have it, for those that are drawn.
fn is_name(id: &str) -> bool {
    !id.contains(['/', ' ', '.'])
}

impl Container {
    pub fn process(&self, exec: &str) -> Option<&Process> {
        if exec.is_empty() { Some(&self.init) } else { self.execs.get(exec) }
    }

    pub fn process_mut(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec) }
    }

    /// Something may have ended of which the shim has not been heard.
    pub fn is_ending(&self, exec: &str) -> bool {
        let ending = |process: &Process| process.at != At::Stopped && !process.ends.is_empty();
        ending(&self.init) || self.process(exec).is_some_and(ending)
    }

    /// The statuses with which a process may end.
    pub fn statuses(&self, exec: &str) -> Vec<u32> {
        let mut all = self.process(exec).map(|process| process.ends.clone()).unwrap_or_default();
        if !exec.is_empty() && !self.init.ends.is_empty() {
            all.push(137);
        }
        all
    }
}

impl Model {
    /// The codes that a step may be answered with, [`Code::OK`] for success.
    pub fn allows(&self, step: &Step) -> Vec<Code> {
        let Step { call, id, exec } = *step;
        match call {
            Call::Connect | Call::Shutdown | Call::Settle => return vec![DONE],
            Call::Create(_, unlucky) => return vec![self.creates(id, unlucky)],
            Call::Exec(_) if !is_name(exec) => return vec![INVALID],
            _ if !is_name(id) => return vec![INVALID],
            _ => {}
        }
        let Some(container) = self.containers.get(id) else { return vec![MISSING] };
        let named = !matches!(
            call,
            Call::Pause | Call::Resume | Call::Pids | Call::Update(_) | Call::Stats | Call::Exec(_)
        );
        if named && !is_name(exec) {
            return vec![INVALID];
        }
        if named && container.process(exec).is_none() {
            return vec![MISSING];
        }
        let mut codes = self.of(container, step);
        if container.is_ending(exec) {
            codes.extend(after_an_end(call));
        }
        codes
    }

    fn creates(&self, id: &str, unlucky: bool) -> Code {
        let is_there = |id: &str| self.containers.contains_key(id);
        match self.sandbox {
            _ if !OURS.contains(&id) => INVALID, // it is no name, or has no bundle
            _ if is_there(id) => Code::ALREADY_EXISTS,
            Some(sandbox) if id != sandbox && !self.is_guest && !is_there(sandbox) => STATE,
            _ if unlucky && !self.is_real => RUNTIME,
            _ => DONE,
        }
    }

    /// The answer while everything is as the calls have made it.
    fn of(&self, container: &Container, step: &Step) -> Vec<Code> {
        let Step { call, id, exec } = *step;
        let (init, process) = (&container.init, container.process(exec));
        let is = |at: At| process.is_some_and(|process| process.at == at);
        let takes_execs = matches!(init.at, At::Created | At::Running);
        let when = |right: bool, otherwise: Code| if right { DONE } else { otherwise };
        let code = match call {
            Call::Start(_) if !is(At::Created) => STATE,
            Call::Start(_) if !exec.is_empty() && !takes_execs => STATE,
            Call::Start(unlucky) => when(!unlucky || self.is_real, RUNTIME),
            Call::Exec(_) if !takes_execs => STATE,
            Call::Exec(_) if exec == id => INVALID,
            Call::Exec(_) => when(!container.execs.contains_key(exec), Code::ALREADY_EXISTS),
            Call::Kill(..) if is(At::Stopped) => MISSING,
            Call::Kill(..) if !exec.is_empty() && is(At::Created) => STATE,
            Call::Kill(signal, _) => when(signal != 99, INVALID),
            Call::Pause => when(init.at == At::Running, STATE),
            Call::Resume => when(init.at == At::Paused, STATE),
            Call::Delete if is(At::Created) => DONE,
            Call::Delete => when(is(At::Stopped), STATE),
            Call::Update("[]") => INVALID,
            Call::Update(_) => when(init.at != At::Stopped, STATE),
            Call::Stats => when(self.is_real, MISSING), // it has a cgroup, or not
            _ => DONE,
        };
        vec![code]
    }
}

/// What a call may also come to while a process ends.
fn after_an_end(call: Call) -> &'static [Code] {
    match call {
        Call::Start(_) | Call::Exec(_) | Call::Pause | Call::Resume => &[STATE, RUNTIME, MISSING],
        Call::Update(_) => &[STATE, RUNTIME],
        Call::Kill(..) => &[MISSING],
        Call::Delete => &[DONE],
        _ => &[],
    }
}
