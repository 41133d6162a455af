//! What was left behind and what is in use; pure. What containerd lists is never touched, nor what it
//! cannot be asked about because it is mute.

use std::path::{Path, PathBuf};

use super::Level::Warn;
use super::Topic::Leftovers;
use super::mend::{Act, Leaked, Mend};
use super::{Finding, mend};
use crate::cli::Flags;
use crate::ids::Pid;

/// Lets containerd look at all bundles.
const RESTART: &str =
    "systemctl restart containerd   # it cleans up, and containers with a shim run on";

/// What containerd says of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Knows {
    /// None runs with this state directory.
    Nobody,
    /// It has such a task or sandbox.
    Listed,
    /// It has none.
    Unlisted,
    /// It does not tell.
    Mute,
}

impl Knows {
    /// Whether something is nobody's, and in which words that is known.
    fn proof(&self) -> Result<&'static str, &'static str> {
        match self {
            Self::Nobody => Ok("no containerd runs there"),
            Self::Unlisted => Ok("containerd does not know it"),
            Self::Listed => Err("containerd lists it: left alone"),
            Self::Mute => Err("containerd does not tell whether it knows it: left alone"),
        }
    }
}

/// A directory where bundles are, in whatever state it is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) namespace: String,
    pub(super) id: String,
    /// berth's, by the files in it.
    pub(super) ours: bool,
    /// It was made a moment ago, perhaps for a shim that is about to be.
    pub(super) young: bool,
    /// A shim, of whatever kind, lives that it is for; one that hangs does.
    pub(super) alive: bool,
    /// The first process of its container, if that runs.
    pub(super) runs: Option<Pid>,
    /// What is mounted below, in this order.
    pub(super) mounts: Vec<PathBuf>,
    pub(super) knows: Knows,
    /// containerd's socket.
    pub(super) address: PathBuf,
}

/// A bundle, or what is left of one.
pub(super) fn place(place: &Place) -> Option<Finding> {
    if place.alive || place.young || !place.ours && place.mounts.is_empty() {
        return None;
    }
    let name = format!("{}/{}", place.namespace, place.id);
    let mounts = match place.mounts.len() {
        0 => String::new(),
        1 => ", with its mount".into(),
        count => format!(", with {count} mounts"),
    };
    let what = match (place.ours, place.runs) {
        (true, Some(pid)) => {
            format!("orphaned container {name}: its program runs on (pid {pid}){mounts}")
        }
        (true, None) => format!("bundle of a dead shim: {name}{mounts}"),
        (false, _) if place.mounts.len() == 1 => format!("stale mount of {name}"),
        (false, _) => format!("{} stale mounts of {name}", place.mounts.len()),
    };
    let finding = Finding::new(Leftovers, Warn, what);
    let finding = match (place.ours, place.mounts.first()) {
        (false, Some(mount)) => finding.at(mount.display()),
        _ => finding.at(place.dir.display()),
    };
    Some(match place.knows.proof() {
        Err(why) if place.ours => finding.why(format!("its shim is dead; {why}")).command(RESTART),
        Err(_) => return None, // another shim's business
        Ok(why) if place.ours => {
            let flags = Flags {
                namespace: place.namespace.clone(),
                id: place.id.clone(),
                address: place.address.display().to_string(),
                bundle: Some(place.dir.clone()),
                ..Flags::default()
            };
            finding
                .why(format!("its shim is dead, and {why}"))
                .mend(Mend::of(Act::Delete(Box::new(flags))))
        }
        Ok(why) => finding
            .why(format!("there is no shim for it, and {why}"))
            .mend(Mend::of(Act::Unmount(place.dir.clone()))),
    })
}

/// A living shim of berth's.
#[derive(Clone, Debug)]
pub(super) struct Shim {
    pub(super) flags: Flags,
    pub(super) leaked: Leaked,
    /// A bundle is there that it is for.
    pub(super) has_bundle: bool,
    /// It is older than any Create takes.
    pub(super) settled: bool,
    /// Of any of its containers.
    pub(super) knows: Knows,
}

/// A shim that nobody can reach, or does.
pub(super) fn shim(shim: &Shim) -> Option<Finding> {
    let (name, pid) = (format!("{}/{}", shim.flags.namespace, shim.flags.id), shim.leaked.pid);
    let finding =
        |what: String| Finding::new(Leftovers, Warn, what).at(shim.leaked.bundle.display());
    if shim.has_bundle {
        return (shim.knows == Knows::Unlisted && shim.settled).then(|| {
            finding(format!("shim of {name} that containerd does not know (pid {pid})"))
                .why("its bundle is there: containerd finds it when it starts")
                .command(RESTART)
        });
    }
    let leaked = finding(format!("leaked shim of {name} (pid {pid})"));
    Some(match shim.knows.proof() {
        Ok(why) => leaked
            .why(format!("its bundle is gone, and {why}; -fix ends it with its containers"))
            .mend(Mend::of(Act::End(Box::new(shim.leaked.clone())))),
        Err(why) => leaked.why(format!("its bundle is gone; {why}")).command(match shim.knows {
            Knows::Listed => by_containerd(&shim.flags, &shim.leaked.bundle),
            _ => RESTART.into(),
        }),
    })
}

/// Lets containerd end what it lists. The shim runs its runtime in the bundle.
fn by_containerd(flags: &Flags, bundle: &Path) -> String {
    let (address, bundle) = (mend::quoted(Path::new(&flags.address)), mend::quoted(bundle));
    let (namespace, id) = (mend::word(&flags.namespace), mend::word(&flags.id));
    format!(
        "mkdir -p {bundle} && ctr --address {address} --namespace {namespace} task delete --force {id}"
    )
}

/// A socket that nobody listens on.
pub(super) fn socket(path: &Path, what: &str) -> Finding {
    Finding::new(Leftovers, Warn, format!("stale {what}"))
        .at(path.display())
        .why("it refuses connections: nobody listens on it")
        .mend(Mend::of(Act::RemoveSocket(path.to_owned())))
}

/// What a runtime keeps of a container.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) program: Option<PathBuf>,
    /// The runtime's root, of one namespace.
    pub(super) root: PathBuf,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    /// A bundle is there.
    pub(super) has_bundle: bool,
    /// A shim is the parent of its first process.
    pub(super) supervised: bool,
    /// Its first process, if that runs.
    pub(super) runs: Option<Pid>,
    pub(super) knows: Knows,
}

/// A container that only its runtime remembers.
pub(super) fn state(state: &State) -> Option<Finding> {
    if state.has_bundle || state.supervised {
        return None;
    }
    let what = match state.runs {
        Some(pid) => {
            format!("orphaned container {} without shim and bundle (pid {pid} runs on)", state.id)
        }
        None => format!("runtime's state of a container that is gone: {}", state.id),
    };
    let finding = Finding::new(Leftovers, Warn, what).at(state.root.join(&state.id).display());
    let gone = format!("its bundle {} is gone", state.bundle.display());
    Some(match (state.knows.proof(), &state.program) {
        (Ok(why), Some(program)) => {
            let (program, root, id) = (program.clone(), state.root.clone(), state.id.clone());
            finding.why(format!("{gone}, and {why}")).mend(Mend::of(Act::Forget {
                program,
                root,
                id,
            }))
        }
        (Ok(why), None) => finding
            .why(format!("{gone}, and {why}; its runtime is not on PATH"))
            .command(format!("rm -r {}", mend::quoted(&state.root.join(&state.id)))),
        (Err(why), _) => finding.why(format!("{gone}; {why}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Knows; 4] = [Knows::Nobody, Knows::Listed, Knows::Unlisted, Knows::Mute];

    fn a_place() -> Place {
        Place {
            dir: "/s/t/n/c".into(),
            namespace: "n".into(),
            id: "c".into(),
            ours: true,
            young: false,
            alive: false,
            runs: None,
            mounts: Vec::new(),
            knows: Knows::Unlisted,
            address: "/a".into(),
        }
    }

    fn safe(finding: Option<Finding>) -> Option<bool> {
        finding.map(|it| it.mend.is_some_and(|mend| mend.act.is_some()))
    }

    #[test]
    fn what_containerd_lists_or_cannot_tell_of_is_left_alone() {
        let expected = [true, false, true, false];
        for (knows, expected) in ALL.into_iter().zip(expected) {
            let bundle = Place { knows: knows.clone(), ..a_place() };
            assert_eq!(safe(place(&bundle)), Some(expected), "bundle: {knows:?}");
            let mounted = Place { ours: false, mounts: vec!["/s/t/n/c/rootfs".into()], ..bundle };
            assert_eq!(safe(place(&mounted)), expected.then_some(true), "mount: {knows:?}");
            let pid = Pid::new(7).unwrap();
            let state = State {
                program: Some("/bin/runc".into()),
                root: "/r/n".into(),
                id: "c".into(),
                bundle: "/s/t/n/c".into(),
                has_bundle: false,
                supervised: false,
                runs: Some(pid),
                knows: knows.clone(),
            };
            assert_eq!(safe(super::state(&state)), Some(expected), "state: {knows:?}");
            let leaked = Leaked {
                pid,
                started: None,
                bundle: "/b".into(),
                socket: "/s".into(),
                ids: vec!["c".into()],
            };
            let (flags, has_bundle, settled) = (Flags::default(), false, true);
            let shim = Shim { flags, leaked, has_bundle, settled, knows: knows.clone() };
            assert_eq!(safe(super::shim(&shim)), Some(expected), "shim: {knows:?}");
            let with_bundle = Shim { has_bundle: true, ..shim };
            let unknown = (knows == Knows::Unlisted).then_some(false);
            assert_eq!(safe(super::shim(&with_bundle)), unknown, "shim with bundle: {knows:?}");
            assert_eq!(
                safe(super::shim(&Shim { settled: false, ..with_bundle })),
                None,
                "{knows:?}"
            );
        }
    }

    #[test]
    fn only_what_is_proved_stale_is_left_behind() {
        let mounts = vec![PathBuf::from("/s/t/n/c/rootfs"), "/s/t/n/c/rootfs/a".into()];
        let cases = [
            ("dead", a_place(), Some("bundle of a dead shim: n/c")),
            (
                "runs",
                Place { runs: Pid::new(9), ..a_place() },
                Some("orphaned container n/c: its program runs on (pid 9)"),
            ),
            ("mounted", Place { mounts: mounts.clone(), ..a_place() }, Some("n/c, with 2 mounts")),
            ("alive", Place { alive: true, ..a_place() }, None),
            ("young", Place { young: true, ..a_place() }, None),
            ("another shim's", Place { ours: false, ..a_place() }, None),
            (
                "mounts alone",
                Place { ours: false, mounts, ..a_place() },
                Some("2 stale mounts of n/c"),
            ),
        ];
        for (name, case, expected) in cases {
            let found = place(&case).map(|it| it.what);
            assert_eq!(found.is_some(), expected.is_some(), "{name}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{name}");
        }
    }
}
