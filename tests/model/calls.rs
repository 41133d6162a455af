//! The calls, and what else a step can be: how each is made, and what its answer has to say.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_shim_protos::api::Status;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::draw::{Call, Script, Step};
use super::expect::{At, Container, Model, Process};
use super::player::{OURS, Player, time};
use super::story::Life;
use crate::support::{Answer, SOON, Spec, patient, poll};

impl Player<'_> {
    /// Makes the call; `None` for what is none, or makes no sense now.
    pub(super) fn make(&mut self, step: &Step) -> Option<Answer<()>> {
        let Step { call, id, exec } = *step;
        let task = self.task.clone();
        let process = self.model.containers.get(id).and_then(|container| container.process(exec));
        let answer = match call {
            Call::Create(script, unlucky) => return Some(self.create(id, script, unlucky)),
            Call::Start(unlucky) => {
                self.curse(id, unlucky);
                let started = task.start(id, exec);
                self.curse(id, false);
                self.started(id, exec, started.as_ref().ok().copied());
                started.map(drop)
            }
            Call::Exec(script) => {
                let text = self.script(script);
                task.exec(&self.shim.exec_request(id, exec, &text))
            }
            Call::Kill(signal, all) => {
                if signal == 15 && exec.is_empty() {
                    self.wait_for_traps(process);
                }
                if all { task.kill_all(id, signal) } else { task.kill(id, exec, signal) }
            }
            Call::Pause => task.pause(id),
            Call::Resume => task.resume(id),
            Call::State => return Some(self.state(id, exec)),
            Call::Wait => return self.wait(step),
            Call::Pids => return Some(self.pids(id)),
            Call::CloseIo => task.close_stdin(id, exec),
            Call::Resize => task.resize(id, exec, 80, 25),
            Call::Delete => return Some(self.delete(id, exec)),
            Call::Update(text) => task.update(id, &serde_json::from_str::<Value>(text).unwrap()),
            Call::Stats => task.stats(id).map(drop),
            Call::Connect => return Some(self.connect(id)),
            Call::Shutdown if self.model.containers.is_empty() && !self.model.is_guest => {
                return None;
            }
            Call::Shutdown => task.shutdown(id),
            Call::Dies(signal) => return self.dies(step, signal),
            Call::Settle => return self.settle(step),
        };
        Some(answer)
    }

    pub(super) fn script(&self, script: Script) -> String {
        match script {
            Script::Idle if self.fake.is_some() => "exec sleep 1000".into(),
            Script::Idle => "trap 'exit 143' TERM; sleep 1000 & wait".into(),
            Script::Ends(status, false) => format!("exit {status}"),
            Script::Ends(status, true) => format!("sleep 0.03; exit {status}"),
        }
    }

    /// Has the runtime fail, or not.
    pub(super) fn curse(&self, id: &str, unlucky: bool) {
        let Some(fake) = &self.fake else { return };
        if OURS.contains(&id) {
            let file = PathBuf::from(format!("{}.d/{id}.fails", fake.display()));
            let done = if unlucky { std::fs::write(file, "") } else { std::fs::remove_file(file) };
            assert!(done.is_ok() || !unlucky, "{done:?}");
        }
    }

    pub(super) fn create(&mut self, id: &'static str, script: Script, unlucky: bool) -> Answer<()> {
        self.curse(id, unlucky);
        let mut request = self.shim.request(id);
        // Else its bundle stays as it is, or there is none.
        if OURS.contains(&id) && !self.model.containers.contains_key(id) {
            let text = self.script(script);
            self.shim.host().prepare(id, self.model.spec(id, &text));
        }
        if let Some(fake) = &self.fake {
            let name = fake.to_str().unwrap().to_owned();
            request.options = Some(self.shim.options(|options| options.binary_name = name)).into();
            request.rootfs.clear();
        }
        let created = self.task.create(&request);
        self.curse(id, false);
        let pid = created?;
        let life = self.born(id.to_owned(), pid);
        let init = Process { at: At::Created, script, ends: Vec::new(), life };
        self.model.containers.insert(id, Container { init, execs: BTreeMap::new() });
        Ok(())
    }

    /// Until a shell that is an init process has its trap, SIGTERM passes it by.
    pub(super) fn wait_for_traps(&self, process: Option<&Process>) {
        let Some(process) = process.filter(|process| process.script == Script::Idle) else {
            return;
        };
        if self.fake.is_some() || process.at == At::Stopped || !process.ends.is_empty() {
            return;
        }
        let dir = PathBuf::from(format!("/proc/{}", self.lives[process.life].pid));
        poll(patient(SOON), || {
            // What the runtime is before it becomes the shell has traps of its own.
            let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
            let status = std::fs::read_to_string(dir.join("status")).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
            let caught = u64::from_str_radix(caught?, 16).unwrap();
            (line.starts_with(b"/bin/sh") && caught & 1 << 14 != 0).then_some(())
        });
    }

    pub(super) fn state(&mut self, id: &'static str, exec: &'static str) -> Answer<()> {
        let said = self.task.state(id, exec)?;
        let Some(container) = self.model.containers.get(id) else { return Ok(()) };
        let Some(process) = container.process(exec) else { return Ok(()) };
        let (at, life) = (process.at, process.life);
        let found = match said.status.unwrap() {
            Status::CREATED => At::Created,
            Status::RUNNING => At::Running,
            Status::PAUSED => At::Paused,
            Status::STOPPED => At::Stopped,
            other => panic!("{other:?}"),
        };
        let ended = found == At::Stopped && container.is_ending(exec);
        assert!(found == at || ended, "{id}/{exec} is {found:?}, not {at:?}\n{}", self.tail());
        let pid = self.lives[life].pid;
        assert_eq!(said.pid, pid, "the pid of {id}/{exec}\n{}", self.tail());
        if found == At::Stopped {
            self.ended(id, exec, (said.exit_status, time(&said.exited_at)));
        }
        Ok(())
    }

    pub(super) fn pids(&mut self, id: &'static str) -> Answer<()> {
        let pids = self.task.pids(id)?;
        let container = &self.model.containers[id];
        let all = container.execs.iter().map(|(exec, process)| (*exec, process));
        for (exec, process) in all.chain([("", &container.init)]) {
            let lives = process.at != At::Stopped && !container.is_ending(exec);
            if lives && self.lives[process.life].pid > 0 {
                let pid = self.lives[process.life].pid;
                let name = Some(exec.to_owned()).filter(|exec| !exec.is_empty());
                assert!(pids.contains(&(pid, name)), "{id}/{exec}: {pids:?}\n{}", self.tail());
            }
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, id: &'static str) -> Answer<()> {
        let about = self.task.ask(id)?;
        let pid = self.process(id, "").map_or(0, |init| self.lives[init.life].pid);
        assert_eq!(about.task_pid, pid, "{}", self.tail());
        Ok(())
    }

    pub(super) fn delete(&mut self, id: &'static str, exec: &'static str) -> Answer<()> {
        let deleted = self.task.delete(id, exec)?;
        let container = self.model.containers.get_mut(id).unwrap();
        let process = container.process_mut(exec).unwrap();
        let (life, at) = (process.life, process.at);
        assert_eq!(deleted.pid, self.lives[life].pid, "{}", self.tail());
        if exec.is_empty() && at == At::Created {
            self.model.containers.get_mut(id).unwrap().init.ends.push(137);
        }
        let (status, at) = (deleted.exit_status, time(&deleted.exited_at));
        if self.lives[life].pid > 0 {
            self.exited(id, exec, (status, at));
        } else {
            self.fail_waits(life);
        }
        if !exec.is_empty() {
            self.model.containers.get_mut(id).unwrap().execs.remove(exec);
            return Ok(());
        }
        let gone = self.model.containers.remove(id).unwrap();
        for exec in gone.execs.keys() {
            let life = gone.execs[exec].life;
            match self.lives[life] {
                Life { started: false, .. } => self.fail_waits(life),
                Life { exit: None, .. } => {
                    let mut statuses = gone.statuses(exec);
                    statuses.push(137);
                    self.unseen.insert(life, statuses);
                }
                _ => {}
            }
        }
        self.line(id, format!("delete {id}"), false);
        Ok(())
    }

    /// Sends a signal that no call asked for, if that has an outcome which can be told.
    pub(super) fn dies(&mut self, step: &Step, signal: i32) -> Option<Answer<()>> {
        let container = self.model.containers.get(step.id)?;
        let process = container.process(step.exec)?;
        let pid = self.lives[process.life].pid;
        let frozen = self.model.is_real && container.init.at == At::Paused;
        let ends = process.at == At::Stopped || container.is_ending(step.exec);
        if pid == 0 || frozen || ends || process.script != Script::Idle {
            return None;
        }
        let target = Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(target, Signal::try_from(signal).unwrap()).unwrap();
        Some(Ok(()))
    }

    /// Waits until the shim knows of an end that is to come.
    pub(super) fn settle(&mut self, step: &Step) -> Option<Answer<()>> {
        let container = self.model.containers.get(step.id)?;
        let process = container.process(step.exec)?;
        if container.statuses(step.exec).is_empty() || process.at == At::Stopped {
            return None;
        }
        if self.lives[process.life].pid == 0 {
            return None;
        }
        if container.init.at == At::Paused && self.model.is_real {
            let resume = Step { call: Call::Resume, ..*step };
            self.play(&resume);
        }
        let (id, exec) = (step.id, step.exec);
        let stopped = || {
            let said = self.task.state(id, exec).unwrap();
            (said.status.unwrap() == Status::STOPPED).then_some(())
        };
        poll(patient(SOON), stopped).unwrap_or_else(|| panic!("{step:?}: no end\n{}", self.tail()));
        Some(self.state(id, exec))
    }
}

impl Model {
    pub(super) fn spec(&self, id: &str, script: &str) -> Spec {
        let spec = Spec::sh(script);
        let kind = |kind: &str| serde_json::json!(kind);
        match self.sandbox {
            None => spec,
            Some(sandbox) => {
                let name = if id == sandbox { "sandbox" } else { "container" };
                spec.set("/annotations/io.kubernetes.cri.container-type", kind(name))
                    .of_pod(sandbox)
            }
        }
    }
}
