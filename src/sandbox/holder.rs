//! A pod's holder: the process that stands in as the sandbox, because namespaces live as long as
//! a process has them, and clients of containerd name them by such a process.
//!
//! It is this program, run again. It makes the namespaces, sets them up, shuts itself in a root
//! directory without a file, gives up all rights and sleeps until the daemon ends or ends it. Where
//! the pod shares a PID namespace it is init there, and the kernel reaps for it.
//!
//! ```text
//! daemon   spawn -> plan ................. pid (of one more process) -> claim, cgroup -> "go"
//! holder          -> user, network, IPC, UTS, mounts -> host name, sysctls -> fork if PID is shared
//!                                                  -> "go" -> empty root, no rights -> "ready"
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{
    Gid, Uid, chdir, chroot, pivot_root, setgroups, sethostname, setresgid, setresuid,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::holder::{
    Fork, drop_capabilities, empty_capability_bounds, fork_init, ignore_children, owner_of, sleep,
};

/// Who the holder is in the end: nobody in particular, as images of pause containers have it.
const NOBODY: u32 = 65_535;
/// How unlikely the kernel is to choose the holder for lack of memory: as containerd's sandbox.
const OOM_SCORE: &str = "-998";

/// The line with which the holder names its process.
pub(super) const PID: &str = "pid ";
/// The line with which the daemon lets it go on: its cgroup is there.
pub(super) const GO: &str = "go";
/// The last line.
pub(super) const READY: &str = "ready";

/// What a holder is to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) user: UserNamespace,
    pub(super) network: Network,
    pub(super) ipc: bool,
    /// With this host name, if the pod has one of its own.
    pub(super) hostname: Option<String>,
    pub(super) pid: bool,
    /// Kernel parameters that the pod asked for: path below `/proc/sys`, value.
    pub(super) sysctls: Vec<(String, String)>,
    /// Those that are as well if the kernel has them.
    pub(super) defaults: Vec<(String, String)>,
}

/// The pod's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UserNamespace {
    /// The host's.
    #[default]
    Host,
    /// The one that the pod's network belongs to: containerd made both.
    OfNetwork,
    /// The one at this path.
    Path(PathBuf),
}

/// The pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Network {
    /// The host's.
    #[default]
    Host,
    /// A new one, in which nothing is set up.
    New,
    /// The one at this path.
    Path(PathBuf),
}

/// The life of the process; it returns only to end.
///
/// # Errors
/// What did not work, which the daemon was told already.
pub(crate) fn run() -> Result<()> {
    let daemon = io::stdin().as_fd().try_clone_to_owned();
    let daemon = UnixStream::from(daemon.map_err(Error::sys("take the socket"))?);
    let mut lines = BufReader::new(&daemon);
    let line = next(&mut lines)?;
    let plan: Plan = serde_json::from_str(&line)
        .map_err(|error| Error::Invalid(format!("the plan is none: {error}")))?;
    let outcome = hold(&plan, &daemon, &mut lines);
    if let Err(error) = &outcome {
        say(&daemon, &error.to_string().replace('\n', " "))?;
    }
    outcome
}

fn hold(plan: &Plan, daemon: &UnixStream, lines: &mut impl BufRead) -> Result<()> {
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE); // a host may forbid it
    enter(plan)?;
    set_up(plan)?;
    if plan.pid {
        match fork_init().map_err(Error::sys("make a PID namespace"))? {
            Fork::Parent(pid) => return say(daemon, &format!("{PID}{pid}")),
            Fork::Init => {}
        }
    } else {
        say(daemon, &format!("{PID}{}", std::process::id()))?;
    }
    if next(lines)? != GO {
        return Ok(()); // the daemon went away
    }
    ignore_children().map_err(Error::sys("ignore children"))?;
    shut_in().map_err(|errno| Error::sys("make an empty root directory")(errno.into()))?;
    give_up_rights()?;
    // The daemon says nothing more: what comes is the end.
    Err(Error::sys("shut itself in")(sleep(daemon.as_fd(), format!("{READY}\n").as_bytes())))
}

/// Makes and joins all namespaces but that of processes, which takes a new process.
fn enter(plan: &Plan) -> Result<()> {
    let open = |path: &Path| File::open(path).map_err(Error::io("open namespace", path));
    let network = match &plan.network {
        Network::Path(path) => Some(open(path)?),
        Network::Host | Network::New => None,
    };
    // The user namespace comes first: it shall own those that are new.
    let user = match (&plan.user, &network) {
        (UserNamespace::Host, _) => None,
        (UserNamespace::Path(path), _) => Some(OwnedFd::from(open(path)?)),
        (UserNamespace::OfNetwork, Some(network)) => {
            Some(owner_of(network).map_err(Error::sys("find the network's user namespace"))?)
        }
        (UserNamespace::OfNetwork, None) => {
            return Err(Error::Invalid("no network to take a user namespace from".into()));
        }
    };
    let failed = |action| move |errno: Errno| Error::sys(action)(errno.into());
    if let Some(user) = user {
        setns(user, CloneFlags::CLONE_NEWUSER).map_err(failed("join the user namespace"))?;
        become_user(0).map_err(failed("become root of the user namespace"))?;
    }
    if let Some(network) = network {
        if is_own_network(&network)? {
            let why = "the network namespace is the host's: leave its path empty for that";
            return Err(Error::Invalid(why.into()));
        }
        setns(network, CloneFlags::CLONE_NEWNET).map_err(failed("join the network namespace"))?;
    }
    let mut new = CloneFlags::CLONE_NEWNS;
    new.set(CloneFlags::CLONE_NEWNET, plan.network == Network::New);
    new.set(CloneFlags::CLONE_NEWIPC, plan.ipc);
    new.set(CloneFlags::CLONE_NEWUTS, plan.hostname.is_some());
    unshare(new).map_err(failed("make namespaces"))
}

/// Whether `network` is the namespace that this process is in, whose kernel parameters are not the
/// pod's to set.
fn is_own_network(network: &File) -> Result<bool> {
    let own = fs::metadata("/proc/self/ns/net").map_err(Error::sys("look at the network"))?;
    let other = network.metadata().map_err(Error::sys("look at the network"))?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

/// Sets the host name and the kernel parameters of the namespaces that this process is in.
fn set_up(plan: &Plan) -> Result<()> {
    if let Some(hostname) = &plan.hostname {
        sethostname(hostname).map_err(|errno| Error::sys("set the host name")(errno.into()))?;
    }
    for (path, value) in &plan.defaults {
        let _ = set_sysctl(path, value); // not every kernel has them
    }
    plan.sysctls.iter().try_for_each(|(path, value)| set_sysctl(path, value))
}

fn set_sysctl(path: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(path);
    let file = OpenOptions::new().write(true).open(&path);
    file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(Error::io("set", &path))
}

/// Leaves all files behind: the pod may see this process, and could see through its root directory.
fn shut_in() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // A directory that every host has, and every user can go to.
    mount(Some("none"), "/proc", Some("tmpfs"), sealed, Some("size=4k,nr_inodes=2,mode=555"))?;
    chdir("/proc")?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The host's root is the ramfs that the kernel unpacked, which cannot be exchanged.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(errno) => return Err(errno),
    }
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | sealed;
    mount(NONE, "/", NONE, read_only, NONE)
}

/// Drops what root has, and makes sure of the end with the daemon.
fn give_up_rights() -> Result<()> {
    let failed = |action| move |errno: Errno| Error::sys(action)(errno.into());
    empty_capability_bounds();
    match become_user(NOBODY) {
        // A user namespace that has no such user.
        Err(Errno::EINVAL) => {}
        done => done.map_err(failed("become nobody"))?,
    }
    drop_capabilities().map_err(Error::sys("drop capabilities"))?;
    prctl::set_no_new_privs().map_err(failed("give up new rights"))?;
    // A change of user takes both of these away. Runtimes look for the namespaces in /proc/PID,
    // which a process that is not dumpable does not show to all of them; whoever traces it in
    // return finds that it can make no system call.
    prctl::set_dumpable(true).map_err(failed("show the namespaces"))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("be bound to the daemon"))?;
    let _ = prctl::set_name(c"berth-pod"); // cosmetic
    Ok(())
}

fn become_user(id: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    match setgroups(&[]) {
        // A user namespace that an ordinary user made, where nobody gets rid of groups.
        Err(Errno::EPERM) => {}
        done => done?,
    }
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// The daemon's next line without its end; empty once the daemon is gone.
fn next(lines: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    lines.read_line(&mut line).map_err(Error::sys("listen to the daemon"))?;
    line.truncate(line.trim_end().len());
    Ok(line)
}

fn say(mut daemon: &UnixStream, line: &str) -> Result<()> {
    daemon.write_all(format!("{line}\n").as_bytes()).map_err(Error::sys("tell the daemon"))
}
