//! Carries steps out, and compares what comes of them with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_shim_protos::api::Status;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;

use super::draw::{Call, Script, Step};
use super::expect::{At, Model, Process};
use super::story::{Life, Time};
use super::waits::Wait;
use crate::support::streaming::Wire;
use crate::support::{Code, Host, SOON, Shim, Task, patient};

/// A client that knows what to expect, of the containers that it has to itself.
pub struct Player<'h> {
    pub(super) shim: &'h Shim<'h>,
    pub(super) task: Task,
    pub(super) fake: Option<PathBuf>,
    pub model: Model,
    /// Every process, in the order in which they were made.
    pub lives: Vec<Life>,
    /// What the events should be but for those of ends, by container; the second of each may be missing.
    pub lines: BTreeMap<&'static str, Vec<(String, bool)>>,
    /// Exec processes whose last Start has failed; a Wait is refused until the next one.
    pub(super) failed: BTreeSet<usize>,
    /// With what those may have ended of which no call has told.
    pub unseen: BTreeMap<usize, Vec<u32>>,
    pub(super) waits: Vec<Wait>,
    pub(super) wire: Wire,
    pub(super) next: u32,
    pub(super) heard: BTreeMap<u32, Vec<u8>>,
    pub trace: Vec<String>,
}

/// The ids that have bundles.
pub const OURS: [&str; 4] = ["pod", "a", "b", "c"];

pub(super) fn time(at: &MessageField<Timestamp>) -> Time {
    at.as_ref().map_or((0, 0), |at| (at.seconds, at.nanos))
}

/// The runtime that makes processes alone, in `host`'s directory.
pub fn fake(host: &Host) -> PathBuf {
    let path = host.dir().join("fake");
    std::fs::write(&path, include_str!("runtime.sh")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(host.dir().join("fake.d")).unwrap();
    path
}

impl<'h> Player<'h> {
    pub fn new(shim: &'h Shim<'h>, fake: Option<PathBuf>, model: Model) -> Self {
        let wire = Wire::connect(shim.address());
        wire.0.set_read_timeout(Some(patient(SOON))).unwrap();
        Self {
            shim,
            task: shim.reconnect(),
            fake,
            model,
            lives: Vec::new(),
            lines: BTreeMap::new(),
            waits: Vec::new(),
            wire,
            next: 1,
            heard: BTreeMap::new(),
            unseen: BTreeMap::new(),
            failed: BTreeSet::new(),
            trace: Vec::new(),
        }
    }

    /// Carries out one step, and panics with the last ones if it comes to what it must not.
    pub fn play(&mut self, step: &Step) {
        let step = &self.sensible(step);
        let allowed = self.model.allows(step);
        let Some(answer) = self.make(step) else { return };
        let code = answer.as_ref().map_or_else(|refusal| refusal.code, |()| Code::OK);
        let words = answer.map_or_else(|refusal| refusal.message, |()| String::new());
        self.trace.push(format!("{step:?} -> {code:?} {words}"));
        if step.call == Call::Pause && words.ends_with("unable to freeze") {
            return; // runc gives up where a loaded kernel takes its time, and the container runs on
        }
        assert!(allowed.contains(&code), "not one of {allowed:?}:\n{}", self.tail());
        match step.call {
            _ if code == Code::OK => self.follow(step),
            // It came too late for init alone.
            Call::Kill(signal, true) if code == Code::NOT_FOUND => self.hurt_execs(step.id, signal),
            _ => {}
        }
    }

    /// The step, or one in its place that has an outcome which can be told beforehand.
    pub(super) fn sensible(&self, step: &Step) -> Step {
        let mut step = *step;
        let Call::Kill(signal, all) = step.call else { return step };
        let Some(container) = self.model.containers.get(step.id) else { return step };
        let all = all && step.exec.is_empty();
        step.call = Call::Kill(signal, all);
        // What runc's own init makes of a signal is nobody's promise.
        if self.model.is_real
            && signal == 15
            && step.exec.is_empty()
            && container.init.at != At::Running
        {
            step.call = Call::Kill(9, all);
        }
        step
    }

    pub(super) fn born(&mut self, name: String, pid: u32) -> usize {
        self.lives.push(Life { name, pid, ..Life::default() });
        self.lives.len() - 1
    }

    pub(super) fn started(&mut self, id: &str, exec: &str, pid: Option<u32>) {
        let Some(process) = self.process(id, exec) else { return };
        let (life, at) = (process.life, process.at);
        match pid {
            Some(pid) => {
                self.lives[life].pid = pid;
                self.lives[life].started = true;
                self.failed.remove(&life);
            }
            None if !exec.is_empty() && at == At::Created => {
                self.failed.insert(life);
                self.fail_waits(life);
            }
            None => {}
        }
    }

    pub(super) fn process(&self, id: &str, exec: &str) -> Option<&Process> {
        self.model.containers.get(id)?.process(exec)
    }

    pub(super) fn process_mut(&mut self, id: &str, exec: &str) -> Option<&mut Process> {
        self.model.containers.get_mut(id)?.process_mut(exec)
    }

    /// The shim says that a process has ended; with init all of its container have.
    pub(super) fn ended(&mut self, id: &'static str, exec: &'static str, exit: (u32, Time)) {
        self.exited(id, exec, exit);
        self.process_mut(id, exec).unwrap().at = At::Stopped;
        let execs = self.model.containers[id].execs.iter();
        let running = execs.filter(|(_, process)| process.at == At::Running && exec.is_empty());
        let running: Vec<_> = running.map(|(exec, _)| *exec).collect();
        for exec in running {
            let said = self.task.state(id, exec).unwrap();
            let status = said.status.unwrap();
            assert_eq!(status, Status::STOPPED, "{id}/{exec} after init\n{}", self.tail());
            self.exited(id, exec, (said.exit_status, time(&said.exited_at)));
            self.process_mut(id, exec).unwrap().at = At::Stopped;
        }
    }

    /// A call has told how a process ended, and it is what may be, and what was told before.
    pub(super) fn exited(&mut self, id: &str, exec: &str, exit: (u32, Time)) {
        let container = &self.model.containers[id];
        let (statuses, life) = (container.statuses(exec), container.process(exec).unwrap().life);
        let before = self.lives[life].exit.unwrap_or(exit);
        let right = statuses.contains(&exit.0) && exit.1.0 > 0 && before == exit;
        assert!(right, "{id}/{exec}: {exit:?}, {before:?}, {statuses:?}\n{}", self.tail());
        self.lives[life].exit = Some(exit);
    }

    pub(super) fn line(&mut self, id: &'static str, line: String, may_be_missing: bool) {
        self.lines.entry(id).or_default().push((line, may_be_missing));
    }

    /// What a step that was done has changed.
    pub(super) fn follow(&mut self, step: &Step) {
        let Step { call, id, exec } = *step;
        let name = if exec.is_empty() { id.to_owned() } else { format!("{id}/{exec}") };
        match call {
            Call::Create(..) => self.line(id, format!("create {id}"), false),
            Call::Start(_) => {
                let process = self.process_mut(id, exec).unwrap();
                process.at = At::Running;
                if let Script::Ends(status, _) = process.script {
                    process.ends.push(status);
                }
                let topic = if exec.is_empty() { "start" } else { "exec-started" };
                self.line(id, format!("{topic} {name}"), false);
            }
            Call::Exec(script) => {
                let life = self.born(name.clone(), 0);
                let process = Process { at: At::Created, script, ends: Vec::new(), life };
                self.model.containers.get_mut(id).unwrap().execs.insert(exec, process);
                self.line(id, format!("exec-added {name}"), false);
            }
            Call::Kill(signal, all) => {
                self.hurt(id, exec, signal);
                if all {
                    self.hurt_execs(id, signal);
                }
            }
            Call::Dies(signal) => self.hurt(id, exec, signal),
            Call::Pause | Call::Resume => {
                let ending = self.model.containers[id].is_ending("");
                let pauses = call == Call::Pause;
                self.process_mut(id, "").unwrap().at =
                    if pauses { At::Paused } else { At::Running };
                let topic = if pauses { "paused" } else { "resumed" };
                self.line(id, format!("{topic} {id}"), ending && !pauses);
            }
            _ => {}
        }
    }

    /// A signal has reached all exec processes.
    pub(super) fn hurt_execs(&mut self, id: &str, signal: i32) {
        let execs = self.model.containers.get(id).map(|container| &container.execs);
        let execs: Vec<_> = execs.into_iter().flatten().map(|(exec, _)| *exec).collect();
        execs.into_iter().for_each(|exec| self.hurt(id, exec, signal));
    }

    /// A signal has reached a process.
    pub(super) fn hurt(&mut self, id: &str, exec: &str, signal: i32) {
        let is_real = self.model.is_real;
        let Some(process) = self.process_mut(id, exec) else { return };
        if !exec.is_empty() && process.at != At::Running {
            return; // it is only described
        }
        let shields = is_real && exec.is_empty() && process.script != Script::Idle;
        match signal {
            9 => process.ends.push(137),
            // An init process takes none for which it has no trap.
            15 if !shields => process.ends.push(143),
            _ => {}
        }
    }

    /// Ends all there is, and hears what the Waits have to say.
    pub fn finish(&mut self) {
        let mut ids: Vec<_> = self.model.containers.keys().copied().collect();
        ids.sort_by_key(|id| Some(*id) == self.model.sandbox);
        for id in ids {
            let step = |call| Step { call, id, exec: "" };
            if self.model.containers[id].init.at == At::Paused {
                self.play(&step(Call::Resume));
            }
            if self.model.containers[id].init.at != At::Created {
                self.play(&step(Call::Kill(9, true)));
                self.play(&step(Call::Settle));
                let execs: Vec<_> = self.model.containers[id].execs.keys().copied().collect();
                for exec in execs {
                    self.play(&Step { call: Call::State, id, exec });
                    self.play(&Step { call: Call::Delete, id, exec });
                }
            }
            self.play(&step(Call::Delete));
        }
        for wait in std::mem::take(&mut self.waits) {
            self.compare(&wait);
        }
    }

    /// The last steps, for a person.
    pub fn tail(&self) -> String {
        let from = self.trace.len().saturating_sub(25);
        self.trace[from..].join("\n")
    }
}
