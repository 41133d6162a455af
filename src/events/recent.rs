//! The last events, for people: the journal forgets those that containerd has taken.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::SystemTime;

use super::Event;
use crate::ids::{ContainerId, ExecId, Pid};

/// How many events are remembered.
const MOST: usize = 64;

/// What is remembered of an event.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    /// When it was queued.
    pub(crate) at: SystemTime,
    /// What happened.
    pub(crate) what: &'static str,
    /// The container.
    pub(crate) id: Rc<str>,
    /// The exec process, if it is about one.
    pub(crate) exec: Option<Rc<str>>,
    /// The process, where the event has one.
    pub(crate) pid: Option<Pid>,
    /// Its exit status, where the event has one.
    pub(crate) status: Option<u32>,
}

/// The last [`MOST`] events. Few names are in them, each of which is kept once.
#[derive(Debug, Default)]
pub(super) struct Ring(VecDeque<Recent>);

impl Ring {
    /// Remembers an event in the place of the oldest.
    pub(super) fn push(&mut self, event: &Event, at: SystemTime) {
        let (what, id, exec, pid, status) = parts(event);
        let id = self.name(id.as_str(), |old| Some(&old.id));
        let exec = exec.map(|exec| self.name(exec.as_str(), |old| old.exec.as_ref()));
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Recent { at, what, id, exec, pid, status });
    }

    fn name(&self, name: &str, of: impl Fn(&Recent) -> Option<&Rc<str>>) -> Rc<str> {
        let known = self.0.iter().rev().filter_map(of).find(|known| ***known == *name);
        known.map_or_else(|| name.into(), Rc::clone)
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Recent> {
        self.0.iter().cloned().collect()
    }
}

type Parts<'a> = (&'static str, &'a ContainerId, Option<&'a ExecId>, Option<Pid>, Option<u32>);

fn parts(event: &Event) -> Parts<'_> {
    match event {
        Event::Created { id, pid, .. } => ("create", id, None, *pid, None),
        Event::Started { id, pid } => ("start", id, None, Some(*pid), None),
        Event::Exited { id, exec_id, pid, exit } => {
            ("exit", id, exec_id.as_ref(), Some(*pid), Some(exit.status))
        }
        Event::Deleted { id, ended } => {
            let (pid, exit) = ended.unzip();
            ("delete", id, None, pid, exit.map(|exit| exit.status))
        }
        Event::ExecAdded { id, exec_id } => ("exec-added", id, Some(exec_id), None, None),
        Event::ExecStarted { id, exec_id, pid } => {
            ("exec-started", id, Some(exec_id), Some(*pid), None)
        }
        Event::Oom { id } => ("oom", id, None, None, None),
        Event::Paused { id } => ("paused", id, None, None, None),
        Event::Resumed { id } => ("resumed", id, None, None, None),
        Event::Checkpointed { id, .. } => ("checkpointed", id, None, None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_remembered_and_names_kept_once() {
        let mut ring = Ring::default();
        let id = ContainerId::new("c").unwrap();
        for number in 0..MOST + 10 {
            let exec_id = ExecId::new(&format!("e{}", number / 3)).unwrap();
            ring.push(&Event::ExecAdded { id: id.clone(), exec_id }, SystemTime::now());
        }
        let all = ring.all();
        assert_eq!(all.len(), MOST);
        assert_eq!(all[0].exec.as_deref(), Some("e3"));
        assert!(all.iter().all(|one| Rc::ptr_eq(&one.id, &all[0].id)));
        let execs = |at: usize| all[at].exec.as_ref().unwrap();
        assert!(Rc::ptr_eq(execs(3), execs(4)) && execs(4) != execs(5));
    }
}
