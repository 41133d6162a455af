//! What there is of shims, bundles, mounts, sockets and runtimes' state; [`judge`] says which of it was
//! left behind. Nothing here follows a path into a root file system, which may hang.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::containerd::Daemon;
use super::judge::{self, Knows, Place, Shim, State};
use super::kept::Kept;
use super::known::Known;
use super::mend::Leaked;
use super::processes::{Process, SHIM, processes};
use super::{Finding, Level, Topic, look};
use crate::bundle::Bundle;
use crate::cli::{DoctorQuery, PROGRAM};
use crate::container::Pod;
use crate::ids::Pid;
use crate::node::{Answer, ask_all, with_loop};
use crate::runtime::table::look_up;
use crate::sys::{child, mount};
use crate::{rootless, socket, start};

/// Where bundles are below containerd's state directory: those of containers, and of sandboxes that are none.
const TASKS: &str = "io.containerd.runtime.v2.task";
const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";
/// What is younger may be about to be used.
const YOUNG: Duration = Duration::from_secs(10);
/// What is older is not about to be made known to containerd.
const SETTLED: Duration = Duration::from_secs(60);
/// Shims that are asked at a time.
const AT_ONCE: usize = 64;

/// Which containerds it is about: all, or the one with a state directory.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) only: Option<PathBuf>,
    pub(super) address: Option<PathBuf>,
}

impl Scope {
    pub(super) fn new(query: &DoctorQuery) -> Self {
        let real = |dir: &PathBuf| {
            let own = dir.clone();
            look::bounded(move || own.canonicalize())
                .and_then(Result::ok)
                .unwrap_or_else(|| dir.clone())
        };
        Self { only: query.state.as_ref().map(real), address: query.address.clone() }
    }

    pub(super) fn includes(&self, state: &Path) -> bool {
        self.only.as_deref().is_none_or(|only| only == state)
    }

    /// The one state directory, or the usual.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.only.clone().unwrap_or_else(|| rootless::state_dir(rootless::detected()))
    }

    /// Where the shims' own sockets are.
    pub(super) fn socket_dirs(&self) -> Vec<PathBuf> {
        vec![self.only.as_ref().map_or_else(socket::default_dir, |dir| dir.join("s"))]
    }
}

/// All that was left behind.
pub(super) fn look(scope: &Scope, daemons: &[Daemon]) -> Vec<Finding> {
    let processes = processes(scope.only.as_deref());
    let known = Known::new(daemons, scope.state_dir());
    let mut all = Inventory { scope, processes, known, named: BTreeSet::new() };
    let mut findings = all.shims_and_bundles();
    findings.extend(all.states());
    findings.extend(management());
    findings.extend(all.sockets());
    if findings.is_empty() {
        findings.push(Finding::new(Topic::Leftovers, Level::Ok, "nothing"));
    }
    findings
}

/// How long ago a file or directory was changed.
fn age(path: &Path) -> Duration {
    let changed = path.symlink_metadata().and_then(|found| found.modified());
    changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
}

struct Inventory<'a> {
    scope: &'a Scope,
    processes: Vec<Process>,
    known: Known<'a>,
    /// Sockets that bundles name.
    named: BTreeSet<PathBuf>,
}

/// What the files of a bundle tell.
struct Told {
    dir: PathBuf,
    ours: bool,
    socket: Option<PathBuf>,
    runs: Option<Pid>,
}

impl Inventory<'_> {
    /// The state directories of containerds: the usual, those that run, and those of shims.
    fn states_of_containerd(&self) -> BTreeSet<PathBuf> {
        if let Some(only) = &self.scope.only {
            return [only.clone()].into();
        }
        let of_shims =
            self.processes.iter().filter_map(|it| it.bundle.ancestors().nth(3).map(Path::to_owned));
        let running = self.known.daemons().iter().map(|daemon| daemon.state.clone());
        [rootless::state_dir(rootless::detected())]
            .into_iter()
            .chain(running)
            .chain(of_shims)
            .collect()
    }

    fn shims_and_bundles(&mut self) -> Vec<Finding> {
        let mounts = mount::mounted_below(Path::new("/")).unwrap_or_default();
        let mut findings = Vec::new();
        let mut bundles: Vec<(PathBuf, bool, Told)> = Vec::new();
        for state in self.states_of_containerd() {
            for (kind, sandbox) in [(TASKS, false), (SANDBOXES, true)] {
                // As the table of mounts and the shims' working directories have it.
                let Ok(top) = state.join(kind).canonicalize() else { continue };
                let told =
                    directories(&top).into_iter().flat_map(|dir| directories(&dir)).map(told);
                bundles.extend(told.map(|told| (state.clone(), sandbox, told)));
            }
        }
        let sockets = bundles.iter().filter_map(|(.., told)| told.socket.clone());
        self.named = sockets.collect();
        findings.extend(self.shims(&bundles));
        let dead = self.dead(&bundles);
        for (state, sandbox, told) in bundles {
            let (namespace, id) = names(&told.dir);
            let own = mounts.iter().filter(|place| place.starts_with(&told.dir)).cloned().collect();
            let alive = self.is_alive(&told, &id, &dead);
            let interesting = !alive && (told.ours || !Vec::is_empty(&own));
            let knows = match interesting {
                true => self.known.of(Some(&state), &namespace, std::slice::from_ref(&id), sandbox),
                false => Knows::Nobody,
            };
            let address = self.known.daemons().iter().find(|daemon| daemon.state == state);
            let address =
                address.map_or_else(|| state.join("containerd.sock"), |one| one.address.clone());
            let young = age(&told.dir) < YOUNG
                && told.runs.is_none()
                && !told.dir.join("berth.json").exists();
            let place = Place {
                namespace,
                id,
                ours: told.ours,
                young,
                alive,
                runs: told.runs,
                mounts: own,
                knows,
                address,
                dir: told.dir,
            };
            findings.extend(judge::place(&place));
        }
        findings
    }

    /// The sockets, of those that bundles of berth's name, whose shim is dead: as `delete` has it, which
    /// takes up to a second for each that hangs.
    fn dead(&self, bundles: &[(PathBuf, bool, Told)]) -> BTreeSet<PathBuf> {
        let ours = bundles
            .iter()
            .filter(|(.., told)| told.ours)
            .filter_map(|(.., told)| told.socket.clone());
        let sockets: Vec<PathBuf> = ours.collect::<BTreeSet<_>>().into_iter().collect();
        let mut dead = BTreeSet::new();
        for some in sockets.chunks(AT_ONCE) {
            let looking = some.iter().cloned().map(|path| {
                let own = path.clone();
                (path, look::begin(move || socket::is_alive(&own, "doctor")))
            });
            for (path, looking) in looking.collect::<Vec<_>>() {
                // It cannot be connected to for other reasons, too: too many open files, …
                if looking.end(look::LIMIT) == Some(false) && is_gone(&path) {
                    dead.insert(path);
                }
            }
        }
        dead
    }

    fn is_alive(&self, told: &Told, id: &str, dead: &BTreeSet<PathBuf>) -> bool {
        let for_it = |it: &&Process| {
            let of_its_socket = it.socket.is_some() && it.socket == told.socket;
            let by_name = it.flags.is_none() && it.words.iter().any(|word| word == id);
            of_its_socket || it.bundle == told.dir || by_name
        };
        if self.processes.iter().any(|it| for_it(&it)) {
            return true;
        }
        match &told.socket {
            Some(path) if told.ours => !dead.contains(path),
            // Nobody is asked anything who is not berth: that it can be connected to is enough.
            Some(path) if path.symlink_metadata().is_ok() => !socket::is_dead(path),
            // A pod's shim works in one bundle and has others: any shim of the namespace may have it.
            _ if told.ours => false,
            _ => {
                let beside = told.dir.parent();
                self.processes.iter().any(|it| it.flags.is_none() && it.bundle.parent() == beside)
            }
        }
    }

    /// Living shims of berth's that nobody reaches.
    fn shims(&mut self, bundles: &[(PathBuf, bool, Told)]) -> Vec<Finding> {
        let pods = pods();
        let mut findings = Vec::new();
        for process in &self.processes {
            let (Some(flags), Some(socket)) = (process.flags.clone(), process.socket.clone())
            else {
                continue;
            };
            let own = bundles.iter().filter(|(.., told)| told.socket.as_ref() == Some(&socket));
            let own: Vec<_> = own.map(|(_, _, told)| names(&told.dir).1).collect();
            let has_bundle = !process.gone || !own.is_empty();
            let started = child::start_time(process.pid);
            let of_pod = pods.get(&process.pid.get()).cloned().unwrap_or_default();
            let ids: BTreeSet<_> =
                [flags.id.clone()].into_iter().chain(own).chain(of_pod).collect();
            let ids: Vec<_> = ids.into_iter().collect();
            let state = process.bundle.ancestors().nth(3);
            let sandbox = process.bundle.components().any(|part| part.as_os_str() == SANDBOXES);
            let knows = self.known.of(state, &flags.namespace, &ids, sandbox);
            let settled = age(&process.bundle) > SETTLED;
            let (pid, bundle) = (process.pid, process.bundle.clone());
            let leaked = Leaked { pid, started, bundle, socket, ids };
            findings.extend(judge::shim(&Shim { flags, leaked, has_bundle, settled, knows }));
        }
        findings
    }

    /// What runtimes keep in the usual root, or in that of the one state directory.
    fn states(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for root in directories(&self.scope.state_dir().join("runc")) {
            let namespace = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for dir in directories(&root) {
                let Some(kept) = Kept::read(&dir) else { continue };
                // Where containerd has bundles; one elsewhere, or that we may not be able to see, is another's.
                let containerds = kept.bundle.file_name() == dir.file_name()
                    && kept.bundle.ancestors().nth(2).is_some_and(Path::is_dir);
                if !containerds || kept.bundle.symlink_metadata().is_ok() {
                    continue;
                }
                let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let knows = self.known.of(None, &namespace, std::slice::from_ref(&id), false);
                let path = env::var_os("PATH").unwrap_or_default();
                let runs =
                    kept.process.filter(|(pid, started)| child::start_time(*pid) == *started);
                let runs = runs.map(|(pid, _)| pid).filter(|pid| child::runs(*pid));
                let supervised = runs.and_then(child::parent_name).is_some_and(|name| name == SHIM);
                let program = look_up(kept.program, &path).ok();
                let (bundle, has_bundle, root) = (kept.bundle, false, root.clone());
                let state =
                    State { program, root, id, bundle, has_bundle, supervised, runs, knows };
                findings.extend(judge::state(&state));
            }
        }
        findings
    }

    /// Dead sockets that no bundle names: what a bundle names is cleaned up with it.
    fn sockets(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for dir in self.scope.socket_dirs() {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            // A file that is none refuses connections, too.
            let sockets =
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
            for path in sockets.map(|entry| entry.path()) {
                if !self.named.contains(&path) && age(&path) > YOUNG && socket::is_dead(&path) {
                    findings.push(judge::socket(&path, "socket of a shim"));
                }
            }
        }
        findings
    }
}

/// Namespace and id, the last two parts of a bundle's path.
fn names(bundle: &Path) -> (String, String) {
    let mut parts = bundle.iter().rev().map(|part| part.to_string_lossy().into_owned());
    let id = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), id)
}

/// Whether nobody can listen on a socket: nobody does, or it is not there.
fn is_gone(path: &Path) -> bool {
    matches!(socket::connect_now(path), Err(Errno::ECONNREFUSED | Errno::ENOENT))
}

/// Whether somebody may be listening on the socket that a bundle names.
pub(super) fn may_be_alive(bundle: &Path) -> bool {
    told(bundle.to_owned()).socket.is_some_and(|path| !is_gone(&path))
}

/// The directories in `dir`, sorted; links are none, nor hidden ones, which containerd is just removing.
fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let own = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found: Vec<_> = own.map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn told(dir: PathBuf) -> Told {
    let bundle = dir.to_str().and_then(|dir| Bundle::open(dir).ok());
    let state = bundle.as_ref().and_then(Bundle::state);
    let pod = bundle.as_ref().filter(|_| state.is_none()).and_then(Bundle::pod_state);
    let shim = fs::read_to_string(dir.join("shim-binary-path")).unwrap_or_default();
    let ours = state.is_some() || pod.is_some() || shim.trim().ends_with(PROGRAM);
    let saved = state.as_ref().map(|state| (state.socket.clone(), state.init));
    let saved = saved.or_else(|| pod.map(|pod| (pod.socket, pod.holder)));
    let (socket, process) = saved.map_or((None, None), |(socket, process)| (Some(socket), process));
    let runs = process.and_then(|(pid, started)| Some((Pid::new(pid)?, started)));
    let runs = runs
        .filter(|(pid, started)| child::start_time(*pid) == Some(*started) && child::runs(*pid));
    Told {
        socket: socket.or_else(|| start::address(&dir)).or_else(|| bootstrap(&dir)),
        ours,
        runs: runs.map(|(pid, _)| pid),
        dir,
    }
}

/// The socket that containerd 2 has written down in a bundle.
fn bootstrap(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read(bundle.join("bootstrap.json")).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(value.get("address")?.as_str()?.strip_prefix("unix://")?.into())
}

/// The containers of each shim that says, by the shim's pid.
fn pods() -> BTreeMap<i32, Vec<String>> {
    let answers = with_loop(ask_all("/containers")).unwrap_or_default();
    let told = answers.into_iter().filter_map(|Answer { pid, body, .. }| {
        let pod: Pod = serde_json::from_slice(&body.ok()?).ok()?;
        Some((pid?, pod.containers.into_iter().map(|one| one.id).collect()))
    });
    told.collect()
}

/// Management sockets without a shim, and shims that do not answer or hang.
fn management() -> Vec<Finding> {
    let Ok(answers) = with_loop(ask_all("/healthz")) else { return Vec::new() };
    let told = answers.into_iter().filter_map(|Answer { found, pid, body, .. }| {
        let why = body.err()?;
        if socket::is_dead(&found.path) {
            return Some(judge::socket(&found.path, "management socket"));
        }
        let name = format!("{}/{}", found.namespace, found.group);
        let process = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        let what = format!("shim of {name} hangs{process}");
        let finding =
            Finding::new(Topic::Leftovers, Level::Warn, what).at(found.path.display()).why(why);
        Some(match pid {
            Some(pid) => finding
                .command(format!("kill -9 {pid}   # containerd cleans up; its containers end")),
            None => finding,
        })
    });
    told.collect()
}
