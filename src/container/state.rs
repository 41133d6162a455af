//! The lifecycle of a process as one pure table; a deleted process has no state, it is forgotten.

use crate::reaper::Exit;

/// `Created -> Running -> Pausing -> Paused -> Running`, each of them `-> Stopped`. An exec process
/// is `Created` while it is only described, and is never paused by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Pausing,
    Paused,
    Stopped(Exit),
}

/// A step of the lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    /// The runtime is freezing the container.
    Pause,
    /// It has done so.
    Paused,
    /// It could not.
    PauseFailed,
    Resume,
    Exit(Exit),
}

impl State {
    /// The state after `change`, or `None` where the lifecycle has no such step.
    pub(crate) fn after(self, change: Change) -> Option<Self> {
        match (self, change) {
            (Self::Created, Change::Start)
            | (Self::Paused, Change::Resume)
            | (Self::Pausing, Change::PauseFailed) => Some(Self::Running),
            (Self::Running, Change::Pause) => Some(Self::Pausing),
            (Self::Pausing, Change::Paused) => Some(Self::Paused),
            (Self::Stopped(_), Change::Exit(_)) => None,
            (_, Change::Exit(exit)) => Some(Self::Stopped(exit)),
            _ => None,
        }
    }

    /// How the process ended, once it has.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// The state's name for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_changes_follow_the_oci_lifecycle() {
        let exit = Exit::killed();
        let stopped = State::Stopped(exit);
        let cases = [
            ("start", State::Created, Change::Start, Some(State::Running)),
            ("start twice", State::Running, Change::Start, None),
            ("start after the end", stopped, Change::Start, None),
            ("pause", State::Running, Change::Pause, Some(State::Pausing)),
            ("pause takes hold", State::Pausing, Change::Paused, Some(State::Paused)),
            ("pause fails", State::Pausing, Change::PauseFailed, Some(State::Running)),
            ("pause before start", State::Created, Change::Pause, None),
            ("pause twice", State::Paused, Change::Pause, None),
            ("resume", State::Paused, Change::Resume, Some(State::Running)),
            ("resume a running one", State::Running, Change::Resume, None),
            ("killed before start", State::Created, Change::Exit(exit), Some(stopped)),
            ("exit", State::Running, Change::Exit(exit), Some(stopped)),
            ("killed while paused", State::Paused, Change::Exit(exit), Some(stopped)),
            ("killed while pausing", State::Pausing, Change::Exit(exit), Some(stopped)),
            ("pause after the end", stopped, Change::Paused, None),
            ("exit twice", stopped, Change::Exit(exit), None),
        ];
        for (name, state, change, expected) in cases {
            assert_eq!(state.after(change), expected, "{name}");
        }
    }
}
