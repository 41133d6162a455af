//! Pause and Resume, and what a paused container cannot do.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::container::Container;
use crate::container::process::turn;
use crate::container::state::{Change, State};
use crate::error::{Error, Result};
use crate::events::Event;

/// How long Pause lets the Start of an exec process end that is under way: frozen in the middle of
/// it, it would not end before Resume.
const STARTS: Duration = Duration::from_secs(2);
/// How long the runtime may take to undo a Pause that failed.
const UNDO: Duration = Duration::from_secs(2);

impl Container {
    /// Freezes the container; `/tasks/paused` follows. State says "pausing" meanwhile.
    ///
    /// # Errors
    /// [`Error::State`] unless it runs; as the runtime says, and then it runs on, also if the
    /// runtime had got as far as to freeze it.
    pub(crate) async fn pause(&self, deadline: Option<Instant>) -> Result<()> {
        let _turn = turn(&self.adjusting, self.id.as_str(), deadline).await?;
        self.init.check(Change::Pause, "pause")?;
        self.init.apply(Change::Pause);
        // From here on none begins.
        let _ = timeout(STARTS, self.starting.subscribe().wait_for(|count| *count == 0)).await;
        if let Err(error) = self.runtime.pause(&self.call(deadline)).await {
            return Err(self.undo_pause(error).await);
        }
        if self.killed.get() {
            self.let_die(); // the signal came before the runtime was done
        }
        if self.init.is_dead() {
            self.thaw(); // what it left could not end, and the runtime takes it for paused
            self.init.apply(Change::PauseFailed);
            return Err(self.ended("pause"));
        }
        self.frozen.set(self.is_frozen());
        self.init.apply(Change::Paused);
        self.shared.events.queue(Event::Paused { id: self.id.clone() });
        Ok(())
    }

    /// Lets a container run on whose runtime has failed to pause it, or did not end in time. If that
    /// fails, too, it is paused, so that Resume can be tried.
    async fn undo_pause(&self, error: Error) -> Error {
        if matches!(error, Error::Deadline { .. }) || self.is_frozen() {
            let until = Instant::now() + UNDO;
            let resumed = timeout_at(until, self.runtime.resume(&self.call(Some(until)))).await;
            // It says so of a container that it has not paused, too.
            log::debug!("resume {:?} after a failed pause: {resumed:?}", self.id.as_str());
            self.thaw();
        }
        let frozen = self.is_frozen();
        self.frozen.set(frozen);
        if frozen {
            log::warn!("container {:?} stays paused though its Pause failed", self.id.as_str());
        }
        self.init.apply(if frozen { Change::Paused } else { Change::PauseFailed });
        error
    }

    /// Lets a paused container run on; `/tasks/resumed` follows.
    ///
    /// # Errors
    /// [`Error::State`] unless it is paused; as the runtime says, unless the container runs all the
    /// same: then the runtime was too slow, or somebody else has resumed it.
    pub(crate) async fn resume(&self, deadline: Option<Instant>) -> Result<()> {
        let _turn = turn(&self.adjusting, self.id.as_str(), deadline).await?;
        self.init.check(Change::Resume, "resume")?;
        if let Err(error) = self.runtime.resume(&self.call(deadline)).await {
            if !self.frozen.get() || self.is_frozen() {
                return Err(error);
            }
            log::warn!("container {:?} runs again, but {error}", self.id.as_str());
        }
        // A signal that had waited may have ended it at once; nothing may follow the news of that.
        if self.init.state().exit().is_none() {
            self.init.apply(Change::Resume);
            self.shared.events.queue(Event::Resumed { id: self.id.clone() });
        }
        Ok(())
    }

    /// Refuses exec where nothing can run: a paused container would let the runtime hang, also one
    /// that somebody else has frozen, and an ended one has nowhere to run in.
    pub(super) fn takes_execs(&self) -> Result<()> {
        let state = match self.init.state() {
            State::Created | State::Running if self.init.is_dead() => "ending",
            State::Created | State::Running if self.is_frozen() => "frozen",
            State::Created | State::Running => return Ok(()),
            state => state.name(),
        };
        Err(Error::State { id: self.id.to_string(), change: "exec in", state })
    }

    /// Whether the kernel keeps the container's processes from running, as far as one can know.
    pub(super) fn is_frozen(&self) -> bool {
        self.cgroup.get().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
    }

    /// Lets go on what a Pause keeps from running, as far as that can be.
    pub(super) fn thaw(&self) {
        if let Some(Err(error)) = self.cgroup.get().map(crate::cgroup::Cgroup::thaw) {
            log::warn!("cannot thaw {:?}: {error}", self.id.as_str());
        }
    }

    /// Lets a killed container die: v1's freezer holds even SIGKILL back. runc thaws by itself, crun
    /// 1.8 only where it kills all.
    pub(super) fn let_die(&self) {
        if let Some(Err(error)) = self.cgroup.get().map(crate::cgroup::Cgroup::thaw_killed) {
            log::warn!("cannot thaw {:?}, which was killed: {error}", self.id.as_str());
        }
    }
}
