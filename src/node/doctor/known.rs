//! What the containerds know of an id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::containerd::Daemon;
use super::grpc::{self, Failure, Ids};
use super::judge::Knows;

/// What the containerds know, each asked once for each namespace.
pub(super) struct Known<'a> {
    daemons: &'a [Daemon],
    /// The state directory of the one whose process is hidden.
    usual: PathBuf,
    answers: BTreeMap<(PathBuf, String), Result<Ids, Failure>>,
}

impl<'a> Known<'a> {
    pub(super) fn new(daemons: &'a [Daemon], usual: PathBuf) -> Self {
        Self { daemons, usual, answers: BTreeMap::new() }
    }

    pub(super) fn daemons(&self) -> &'a [Daemon] {
        self.daemons
    }

    /// What the containerds with this state directory, or all, say of these ids. What another lists is listed,
    /// too: its configuration may have been changed since it was started.
    pub(super) fn of(
        &mut self,
        state: Option<&Path>,
        namespace: &str,
        ids: &[String],
        sandbox: bool,
    ) -> Knows {
        let mut knows = Knows::Nobody;
        let is_own = |one: &Daemon| state.is_none_or(|state| one.state == state);
        let mut asked: Vec<_> = self.daemons.iter().map(|one| (one.clone(), is_own(one))).collect();
        if !asked.iter().any(|(_, own)| *own) {
            // Its process may be hidden from us, as in a container: its socket tells.
            asked.push((Daemon::hidden(state.unwrap_or(&self.usual)), true));
        }
        for (Daemon { address, pid, .. }, own) in asked {
            let key = (address.clone(), namespace.to_owned());
            match self.answers.entry(key).or_insert_with(|| grpc::ids(&address, namespace)) {
                Ok(known) => {
                    let sandboxes = known.sandboxes.as_ref();
                    let listed = |id: &String| {
                        known.tasks.contains(id) || sandboxes.is_some_and(|all| all.contains(id))
                    };
                    if ids.iter().any(listed) {
                        return Knows::Listed;
                    }
                    match knows {
                        _ if !own => {}
                        _ if sandbox && sandboxes.is_none() => knows = Knows::Mute,
                        Knows::Nobody => knows = Knows::Unlisted,
                        _ => {}
                    }
                }
                // With a process it is about to listen, or just ending.
                Err(Failure::Nobody) if pid.is_none() => {}
                Err(_) if own => knows = Knows::Mute,
                Err(_) => {}
            }
        }
        knows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;

    #[test]
    fn what_any_lists_is_listed_and_its_own_has_to_answer() {
        let answer = |tasks: &[&str], sandboxes: Option<&[&str]>| {
            let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
            Ok(Ids { tasks: set(tasks), sandboxes: sandboxes.map(set) })
        };
        let mute = || Err(Failure::Mute("m".into()));
        let gone = || Err(Failure::Nobody);
        // What the containerd of /own, if any runs, and that of /other say; of the task, of the sandbox.
        let cases = [
            ("nobody runs", None, gone(), Knows::Nobody, Knows::Nobody),
            ("listed", Some(answer(&["c"], None)), gone(), Knows::Listed, Knows::Listed),
            ("a sandbox", Some(answer(&[], Some(&["c"]))), gone(), Knows::Listed, Knows::Listed),
            ("not", Some(answer(&["d"], Some(&[]))), gone(), Knows::Unlisted, Knows::Unlisted),
            ("no sandboxes", Some(answer(&[], None)), mute(), Knows::Unlisted, Knows::Mute),
            ("mute", Some(mute()), answer(&[], None), Knows::Mute, Knows::Mute),
            ("starts", Some(gone()), answer(&[], None), Knows::Mute, Knows::Mute),
            (
                "listed by another",
                Some(answer(&[], None)),
                answer(&["c"], None),
                Knows::Listed,
                Knows::Listed,
            ),
            ("listed by another alone", None, answer(&["c"], None), Knows::Listed, Knows::Listed),
            ("another is mute", None, mute(), Knows::Nobody, Knows::Nobody),
        ];
        for (name, own, other, task, sandbox) in cases {
            let daemon = |dir: &str| Daemon { pid: Pid::new(1), ..Daemon::hidden(Path::new(dir)) };
            let mut daemons = vec![daemon("/other")];
            daemons.extend(own.is_some().then(|| daemon("/own")));
            let mut known = Known::new(&daemons, "/usual".into());
            for (dir, said) in [("/own", own.unwrap_or_else(gone)), ("/other", other)] {
                let address = daemon(dir).address;
                known.answers.insert((address, "n".into()), said);
            }
            let mut of = |sandbox| known.of(Some(Path::new("/own")), "n", &["c".into()], sandbox);
            assert_eq!((of(false), of(true)), (task, sandbox), "{name}");
        }
    }
}
