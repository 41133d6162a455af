//! `start`: finds the shim of the bundle's sandbox or starts one, and prints its address. The
//! working directory is the bundle. containerd waits for it: no event loop, few system calls.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::Child;

use log::LevelFilter;
use nix::sys::resource::{Resource, getrlimit};
use serde::Deserialize;

use crate::cgroup::Hierarchies;
use crate::cli::Flags;
use crate::config;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, Namespace, Pid};
use crate::sandbox::kind;
use crate::socket::{self, Bound, Claim};
use crate::wire::bootstrap::{self, Dialect};
use crate::{input, rootless, sys};

/// Our version of the task API; the old one is served beside it.
const TASK_API: i32 = 3;
/// A daemon that may not have so many descriptors could not even take calls, and `delete` would leave
/// half of it there.
const LEAST_FILES: u64 = 64;
/// The file with the shim's address: containerd up to 1.7 finds the shim by it after a restart.
const ADDRESS: &str = "address";
/// What containerd renames into [`ADDRESS`]'s place; it never reads half an address.
const ADDRESS_NEW: &str = ".address";
/// The least attractive victim's neighbour: the highest score there is.
const MAX_OOM_SCORE: i32 = 1000;

/// Finds or starts the daemon, then writes its address to `out`, in the caller's dialect.
///
/// # Errors
/// Nothing is left behind then: no process, no socket, no file.
pub(crate) fn run(flags: &Flags, argv0: &OsStr, out: &mut dyn Write) -> Result<()> {
    let request = Request::new(flags, &input::read()?)?;
    crate::log::init("log".into(), request.id.as_str(), request.level);
    let group = group(Path::new("config.json"))?;
    let group = group.as_deref().unwrap_or(request.id.as_str());
    let namespace = request.namespace.as_str();
    let path = socket::path(&request.socket_dir, &request.grpc_address, namespace, group)?;
    let address = socket::address(&path);
    let (version, daemon) = match socket::claim(&path, request.id.as_str())? {
        Claim::Alive(version) => (version, None),
        Claim::Bound(bound) => (TASK_API, Some(Daemon::start(bound, &request, argv0)?)),
    };
    let file = AddressFile::write(&address)?;
    let answer = bootstrap::encode(request.dialect, version, &address)?;
    out.write_all(&answer).and_then(|()| out.flush()).map_err(Error::sys("answer"))?;
    file.keep();
    if let Some(daemon) = daemon {
        daemon.keep();
    }
    Ok(())
}

/// All that containerd said, wherever it said it.
#[derive(Debug)]
struct Request {
    dialect: Dialect,
    id: ContainerId,
    namespace: Namespace,
    level: LevelFilter,
    socket_dir: PathBuf,
    grpc_address: String,
    /// Empty: the environment has it.
    ttrpc_address: String,
    containerd_binary: std::ffi::OsString,
    shim_cgroup: String,
}

impl Request {
    /// The bootstrap parameters win over the flags, these over the environment.
    fn new(flags: &Flags, input: &[u8]) -> Result<Self> {
        let id = ContainerId::new(&flags.id)?;
        let namespace = Namespace::new(&flags.namespace)?;
        let params = bootstrap::decode(input, &flags.id, &flags.namespace)?;
        let flag_level = if flags.debug { LevelFilter::Debug } else { LevelFilter::Info };
        let grpc_address = [params.grpc_address, flags.address.clone()]
            .into_iter()
            .find(|address| !address.is_empty())
            .or_else(|| env::var("GRPC_ADDRESS").ok())
            .unwrap_or_default();
        Ok(Self {
            dialect: params.dialect,
            id,
            namespace,
            level: crate::log::level(params.level.unwrap_or(flag_level)),
            socket_dir: match params.socket_dir.as_str() {
                "" => socket::default_dir(),
                dir => dir.into(),
            },
            grpc_address,
            ttrpc_address: params.ttrpc_address,
            containerd_binary: match params.containerd_binary.as_str() {
                "" => flags.publish_binary.clone(),
                binary => binary.into(),
            },
            shim_cgroup: match params.options.shim_cgroup.as_str() {
                "" => config::shim_cgroup(&params.options.config_body).unwrap_or_default(),
                path => path.to_owned(),
            },
        })
    }
}

/// The fields of config.json that decide which containers share a shim.
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Names the group, whatever the pod is.
const GROUP: &str = "io.containerd.runc.v2.group";

/// The group that a bundle's container belongs to, from the annotations of its config.json; of
/// several the more special one. A sandbox without a spec has no such file, or an empty one.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] if the file is no OCI configuration.
pub(crate) fn group(config: &Path) -> Result<Option<String>> {
    let text = match fs::read(config) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.map_err(Error::io("read", config))?,
    };
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| Error::Invalid(format!("broken {}: {error}", config.display())))?;
    let annotations = spec.annotations.unwrap_or_default();
    let group = annotations.get(GROUP).map(String::as_str).filter(|group| !group.is_empty());
    Ok(group.or_else(|| kind::sandbox_id(&annotations)).map(str::to_owned))
}

/// A daemon that nobody was told of yet; killed when dropped, and its socket unlinked.
#[must_use = "dropping it kills the daemon"]
struct Daemon {
    child: Option<Child>,
    bound: Option<Bound>,
}

impl Daemon {
    fn start(bound: Bound, request: &Request, argv0: &OsStr) -> Result<Self> {
        may_open_files("start a daemon under so low a limit of open files (RLIMIT_NOFILE)")?;
        if env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
            share_core()?;
        }
        let child = spawn(&bound, request, argv0)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::new);
        let daemon = Self { child: Some(child), bound: Some(bound) };
        if let Some(pid) = pid {
            raise_oom_score(pid);
            if !request.shim_cgroup.is_empty() {
                join_cgroup(&request.shim_cgroup, pid)?;
            }
        }
        Ok(daemon)
    }

    /// Leaves the daemon to itself. It outlives us, and whoever is our sub-reaper reaps it.
    fn keep(mut self) {
        self.child = None;
        if let Some(bound) = self.bound.take() {
            bound.keep();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                log::warn!("cannot kill the daemon {}: {error}", child.id());
            }
        }
    }
}

/// Starts the daemon with containerd's own flags, so that `ps` shows whose it is. What came as a
/// parameter reaches it in the environment, where it would have come from before containerd 2.3.
fn spawn(bound: &Bound, request: &Request, argv0: &OsStr) -> Result<Child> {
    let mut args = [
        "-namespace",
        request.namespace.as_str(),
        "-id",
        request.id.as_str(),
        "-address",
        &request.grpc_address,
        "-publish-binary",
    ]
    .map(OsStr::new)
    .to_vec();
    args.push(&request.containerd_binary);
    if request.level >= LevelFilter::Debug {
        args.push(OsStr::new("-debug"));
    }
    let mut env = vec![
        ("NAMESPACE", request.namespace.as_str()),
        ("GRPC_ADDRESS", &request.grpc_address),
        (crate::log::LEVEL, request.level.as_str()),
    ];
    env.extend(sys::process::tunables());
    if !request.ttrpc_address.is_empty() {
        env.push(("TTRPC_ADDRESS", &request.ttrpc_address));
    }
    sys::process::spawn_daemon(argv0, args, &env, bound.as_fd())
        .map_err(Error::sys("start the daemon"))
}

/// Checks that enough files may be opened for what is to be done: `action` says it.
///
/// # Errors
/// [`Error::Sys`]. Nothing was tried, of which only a part would have been done.
pub(crate) fn may_open_files(action: &'static str) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| Error::sys("read the limit of open files")(errno.into()))?;
    if hard < LEAST_FILES {
        return Err(Error::sys(action)(io::Error::from_raw_os_error(libc::EMFILE)));
    }
    Ok(())
}

/// Core scheduling for the daemon and its containers, asked for with `SCHED_CORE`. Cores with
/// one thread each need none.
fn share_core() -> Result<()> {
    match sys::process::core_scheduling() {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result.map_err(Error::sys("enable core scheduling (SCHED_CORE)")),
    }
}

/// Moves the daemon to the cgroup that the options ask for. A rootless containerd may have nothing to
/// say about cgroups, which is no reason to run no container.
fn join_cgroup(path: &str, pid: Pid) -> Result<()> {
    match Hierarchies::read().and_then(|hierarchies| hierarchies.join(path, pid)) {
        Err(error) if rootless::detected() => {
            log::warn!("the shim stays in containerd's cgroup: {error}");
            Ok(())
        }
        result => result,
    }
}

/// One more than containerd's own score, so that the kernel kills a shim before containerd. A
/// host may forbid it, which is no reason to run no container.
fn raise_oom_score(pid: Pid) {
    let parent = format!("/proc/{}/oom_score_adj", parent_id());
    let own = format!("/proc/{pid}/oom_score_adj");
    let result = fs::read_to_string(parent).and_then(|score| {
        let score: i32 = score.trim().parse().map_err(std::io::Error::other)?;
        fs::write(own, (score + 1).min(MAX_OOM_SCORE).to_string())
    });
    if let Err(error) = result {
        log::warn!("cannot set the shim's OOM score: {error}");
    }
}

/// Where the bundle's address file says that the daemon's socket is.
pub(crate) fn address(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    Some(address.trim_end().strip_prefix("unix://")?.into())
}

/// The bundle's `address` file; removed when dropped.
#[must_use = "dropping it removes the file"]
struct AddressFile {
    kept: bool,
}

impl AddressFile {
    fn write(address: &str) -> Result<Self> {
        let file = Self { kept: false };
        fs::write(ADDRESS_NEW, address)
            .and_then(|()| fs::rename(ADDRESS_NEW, ADDRESS))
            .map_err(Error::io("write", env::current_dir().unwrap_or_default().join(ADDRESS)))?;
        Ok(file)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        if !self.kept {
            // Either may be missing: only one of the two is there at any time.
            let _ = fs::remove_file(ADDRESS_NEW);
            let _ = fs::remove_file(ADDRESS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_comes_from_the_annotations() {
        let both = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod",
                       "io.containerd.runc.v2.group": "group", "other": "x"}}"#;
        let cri = r#"{"ociVersion": "1.3.0", "process": {"args": ["x"]},
                      "annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#;
        let empty = r#"{"annotations": {"io.containerd.runc.v2.group": "",
                        "io.kubernetes.cri.sandbox-id": "pod"}}"#;
        let cases = [
            ("no file", None, Some(None)),
            ("empty file", Some(""), Some(None)),
            ("blank file", Some("\n"), Some(None)),
            ("no annotations", Some("{}"), Some(None)),
            ("null annotations", Some(r#"{"annotations": null}"#), Some(None)),
            ("group first", Some(both), Some(Some("group"))),
            ("sandbox", Some(cri), Some(Some("pod"))),
            ("empty group", Some(empty), Some(Some("pod"))),
            ("cut short", Some(r#"{"annotations": {"#), None),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for (name, text, expected) in cases {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            let found = group(&path).ok();
            assert_eq!(found, expected.map(|group| group.map(str::to_owned)), "{name}");
        }
    }
}
