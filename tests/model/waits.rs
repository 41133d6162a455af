//! Waits, which go on in the background while other steps are made.

use containerd_shim_protos::api::{WaitRequest, WaitResponse};
use protobuf::Message;

use super::draw::Step;
use super::player::{Player, time};
use crate::support::streaming::REQUEST;
use crate::support::{Answer, Code};

/// A Wait that is in the background.
pub(super) struct Wait {
    stream: u32,
    /// `None` for a process that there is not, with what it is answered.
    life: Result<usize, Code>,
    /// It may hear that the process did not start.
    may_fail: bool,
    step: Step,
}

impl Player<'_> {
    /// Asks in the background, and has the shim know of it before anything else is asked.
    pub(super) fn wait(&mut self, step: &Step) -> Option<Answer<()>> {
        let life = self.process(step.id, step.exec).map(|process| process.life);
        let life = life.ok_or_else(|| self.model.allows(step)[0]);
        let (id, exec_id) = (step.id.into(), step.exec.into());
        let request = WaitRequest { id, exec_id, ..Default::default() };
        let mut call = ttrpc::Request::new();
        call.service = "containerd.task.v3.Task".into();
        call.method = "Wait".into();
        call.payload = request.write_to_bytes().unwrap();
        let stream = self.send(&call);
        self.trace.push(format!("{step:?} in the background"));
        let may_fail = life.is_ok_and(|life| self.failed.contains(&life));
        self.waits.push(Wait { stream, life, may_fail, step: *step });
        call.method = "Connect".into();
        call.payload = Vec::new();
        let stream = self.send(&call);
        let answer = self.hear(stream);
        assert!(answer.is_some(), "no answer to Connect behind a Wait\n{}", self.tail());
        None
    }

    pub(super) fn send(&mut self, call: &ttrpc::Request) -> u32 {
        let (stream, message) = (self.next, call.write_to_bytes().unwrap());
        self.next += 2;
        self.wire.frame(stream, REQUEST, 0, &message).unwrap();
        stream
    }

    /// The answer on `stream`; those that come before it are kept.
    pub(super) fn hear(&mut self, stream: u32) -> Option<Vec<u8>> {
        while !self.heard.contains_key(&stream) {
            let (stream, _, _, message) = self.wire.read()?;
            self.heard.insert(stream, message);
        }
        self.heard.remove(&stream)
    }

    /// Whoever waits for a life that does not begin may hear so.
    pub(super) fn fail_waits(&mut self, life: usize) {
        for wait in self.waits.iter_mut().filter(|wait| wait.life == Ok(life)) {
            wait.may_fail = true;
        }
    }

    /// Compares the answer to a Wait with the life that it was for.
    pub(super) fn compare(&mut self, wait: &Wait) {
        let Some(message) = self.hear(wait.stream) else { panic!("no answer: {:?}", wait.step) };
        let response = ttrpc::Response::parse_from_bytes(&message).unwrap();
        let code = response.status.as_ref().map_or(Code::OK, |status| status.code());
        let said = WaitResponse::parse_from_bytes(&response.payload).unwrap();
        let said = (said.exit_status, time(&said.exited_at));
        match wait.life {
            Err(expected) => assert_eq!(code, expected, "{:?}", wait.step),
            Ok(_) if wait.may_fail && code == Code::FAILED_PRECONDITION => {}
            Ok(life) => {
                assert_eq!(code, Code::OK, "{:?} for {:?}", wait.step, self.lives[life]);
                assert_eq!(*self.lives[life].exit.get_or_insert(said), said, "{:?}", wait.step);
            }
        }
    }
}
