//! The daemon's side of a holder: what it shall make, and its birth.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::ids::{ContainerId, Pid};
use crate::reaper::{Child, Reaper};
use crate::sandbox::files::host_name;
use crate::sandbox::holder::{GO, Network, PID, Plan, READY, UserNamespace};
use crate::sandbox::pod::{Pod, Share};
use crate::sys::holder::spawn_holder;
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};
use crate::sys::user_namespace::user_namespace;

/// How long a holder may take to be ready.
const BIRTH: Duration = Duration::from_secs(10);

/// A holder that is ready.
pub(super) struct Held {
    /// Whose exit is to come.
    pub(super) child: Child,
    pub(super) pidfd: OwnedFd,
    /// The holder ends when this is closed.
    pub(super) lifeline: UnixStream,
}

/// A plan, and what has to stay open until the holder has carried it out.
pub(super) struct Prepared {
    plan: Plan,
    _user: Option<OwnedFd>,
}

/// What a client wants that says nothing about the pod, or not all: where it names no network
/// namespace and did not ask for one, the pod has the host's.
pub(super) fn complete(pod: Option<Pod>, network: &str) -> Pod {
    match pod {
        Some(pod) => pod,
        None if network.is_empty() => Pod { network: Share::Host, ..Pod::default() },
        None => Pod::default(),
    }
}

/// The plan for `pod` with the network namespace at the path `network`, if that is not empty.
///
/// # Errors
/// [`Error::Sys`] if the user namespace cannot be made.
pub(super) fn plan(pod: &Pod, network: &str) -> Result<Prepared> {
    let network = match (pod.network, network) {
        (Share::Host, _) => Network::Host,
        (_, "") => Network::New,
        (_, path) => Network::Path(PathBuf::from(path)),
    };
    let mut made = None;
    let user = match (&pod.user, &network) {
        (None, _) => UserNamespace::Host,
        (Some(_), Network::Path(_)) => UserNamespace::OfNetwork,
        (Some(maps), _) => {
            let (uids, gids) = maps.lines();
            let user = user_namespace(&uids, &gids).map_err(Error::sys("make a user namespace"))?;
            // The holder opens it here.
            let path = format!("/proc/{}/fd/{}", std::process::id(), user.as_raw_fd());
            made = Some(user);
            UserNamespace::Path(path.into())
        }
    };
    let hostname = match (pod.own_hostname(), pod.hostname.as_str()) {
        (false, _) => None,
        (true, "") => Some(host_name()?),
        (true, name) => Some(name.to_owned()),
    };
    let plan = Plan {
        user,
        ipc: pod.ipc != Share::Host,
        hostname,
        pid: pod.pid == Share::Pod,
        sysctls: pod.sysctls()?,
        defaults: defaults(pod, network != Network::Host),
        network,
    };
    Ok(Prepared { plan, _user: made })
}

/// What containerd 2.x sets in its own sandboxes unless its configuration, which a shim does not
/// see, says otherwise: low ports and ping for everybody (`enable_unprivileged_ports`, `_icmp`).
fn defaults(pod: &Pod, own_network: bool) -> Vec<(String, String)> {
    if !own_network {
        return Vec::new();
    }
    let mut defaults = vec![("net/ipv4/ip_unprivileged_port_start".to_owned(), "0".to_owned())];
    if pod.user.is_none() {
        defaults.push(("net/ipv4/ping_group_range".to_owned(), "0 2147483647".to_owned()));
    }
    defaults
}

/// Starts a holder and lets it carry out the plan; `settle` moves it to its cgroup and notes it
/// down while it waits. On failure it is gone, or goes without being waited for.
///
/// # Errors
/// [`Error::Sys`] with the holder's own words; [`Error::Deadline`].
pub(super) async fn spawn(
    id: &ContainerId,
    prepared: &Prepared,
    reaper: &Reaper,
    deadline: Option<Instant>,
    settle: impl FnOnce(Pid) -> Result<()>,
) -> Result<Held> {
    let began = Instant::now();
    let latest = began + BIRTH;
    let until = deadline.map_or(latest, |deadline| deadline.min(latest));
    let plan = serde_json::to_string(&prepared.plan)
        .map_err(|error| Error::Sys { action: "encode the plan", source: error.into() })?;
    let watch = reaper.watch();
    let (ours, theirs) = StdStream::pair().map_err(Error::sys("make a socket"))?;
    ours.set_nonblocking(true).map_err(Error::sys("make a socket"))?;
    let args = [OsStr::new(crate::cli::HOLDER), OsStr::new(id.as_str())];
    let first = spawn_holder(OsStr::new("containerd-shim-berth-v1"), &args, theirs.into())
        .map_err(Error::sys("start the sandbox's holder"))?;
    let birth =
        Birth { processes: vec![pidfd_open(first).map_err(Error::sys("bind the holder"))?] };
    let mut lifeline = UnixStream::from_std(ours).map_err(Error::sys("make a socket"))?;
    let limit = until.saturating_duration_since(began);
    let late = |_| Error::Deadline { what: "the sandbox's holder".into(), limit };
    let (mut birth, child) = timeout_at(until, async {
        let mut birth = birth;
        send(&mut lifeline, &plan).await?;
        let answer = receive(&mut lifeline).await?;
        let pid = answer.strip_prefix(PID).and_then(|pid| Pid::new(pid.parse().ok()?));
        let (child, pidfd) = watch.claim(pid.ok_or_else(|| failed(&answer))?, reaper.reaped())?;
        birth.processes.extend(pidfd);
        settle(child.pid)?;
        send(&mut lifeline, GO).await?;
        match receive(&mut lifeline).await?.as_str() {
            READY => Ok((birth, child)),
            answer => Err(failed(answer)),
        }
    })
    .await
    .map_err(late)??;
    let pidfd = birth.processes.pop().ok_or_else(|| failed("it has ended"))?;
    birth.processes.clear();
    Ok(Held { child, pidfd, lifeline })
}

/// Processes that are killed when this is dropped.
struct Birth {
    processes: Vec<OwnedFd>,
}

impl Drop for Birth {
    fn drop(&mut self) {
        for process in &self.processes {
            let _ = pidfd_send_signal(process.as_fd(), libc::SIGKILL); // it may have ended
        }
    }
}

fn failed(answer: &str) -> Error {
    let answer = if answer.is_empty() { "it has ended" } else { answer };
    Error::Sys { action: "make the sandbox", source: io::Error::other(answer.to_owned()) }
}

async fn send(socket: &mut UnixStream, line: &str) -> Result<()> {
    let line = format!("{line}\n");
    socket.write_all(line.as_bytes()).await.map_err(Error::sys("talk to the sandbox's holder"))
}

/// One line, without its end; the holder says one at a time.
async fn receive(socket: &mut UnixStream) -> Result<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(socket);
    reader.read_line(&mut line).await.map_err(Error::sys("listen to the sandbox's holder"))?;
    line.truncate(line.trim_end().len());
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::pod::{Maps, Range};

    #[test]
    fn the_plan_follows_from_what_is_shared_with_whom() {
        let pod = Pod { hostname: "h".into(), ..Pod::default() };
        let host = Share::Host;
        let path = || Network::Path("/n".into());
        let everything = Plan {
            network: path(),
            ipc: true,
            hostname: Some("h".into()),
            pid: true,
            ..Plan::default()
        };
        let range = vec![Range { inside: 0, outside: 1000, length: 10 }];
        let user = Some(Maps { uids: range.clone(), gids: range });
        let of_network = UserNamespace::OfNetwork;
        let cases = [
            ("all shared", pod.clone(), "/n", everything.clone()),
            ("own processes", Pod { pid: Share::Container, ..pod.clone() }, "/n", {
                Plan { pid: false, ..everything.clone() }
            }),
            ("the host's processes", Pod { pid: host, ..pod.clone() }, "/n", {
                Plan { pid: false, ..everything.clone() }
            }),
            ("the host's IPC", Pod { ipc: host, ..pod.clone() }, "/n", {
                Plan { ipc: false, ..everything.clone() }
            }),
            ("the host's network", Pod { network: host, ..pod.clone() }, "", {
                Plan { network: Network::Host, hostname: None, ..everything.clone() }
            }),
            ("a network of its own", pod.clone(), "", {
                Plan { network: Network::New, ..everything.clone() }
            }),
            ("a user namespace", Pod { user: user.clone(), ..pod.clone() }, "/n", {
                Plan { user: of_network, ..everything }
            }),
        ];
        for (name, pod, network, expected) in cases {
            let defaults = plan(&pod, network).unwrap().plan.defaults.len();
            let count = match (&pod.user, pod.network) {
                (_, Share::Host) => 0,
                (Some(_), _) => 1,
                (None, _) => 2,
            };
            assert_eq!(defaults, count, "{name}");
            let found = Plan { defaults: Vec::new(), ..plan(&pod, network).unwrap().plan };
            assert_eq!(found, expected, "{name}");
        }
        let made = plan(&Pod { user, network: host, ..pod }, "").unwrap();
        assert!(matches!(made.plan.user, UserNamespace::Path(_)));
    }
}
