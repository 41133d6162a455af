//! What mends a finding: a command for people, and for `-fix` the same where it is surely safe. Each deed
//! makes sure once more that it is still about what was found.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest, WaitResponse,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::well_known_types::empty::Empty;

use super::{Deed, Finding, leftovers, look};
use crate::cli::Flags;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::info;
use crate::rpc::blocking::Client;
use crate::socket;
use crate::sys::pidfd::{pidfd_open, pidfd_send_signal};
use crate::sys::{child, mount};

/// How long one deed may take in all.
const DEED: Duration = Duration::from_secs(30);
/// How long `delete` and a runtime may take: containerd gives the former 5 s.
const COMMAND: Duration = Duration::from_secs(10);
/// How long a shim may take for one request, and to end.
const REQUEST: Duration = Duration::from_secs(5);

/// What to do about a finding.
#[derive(Clone, Debug)]
pub(super) struct Mend {
    /// For a shell.
    pub(super) command: String,
    /// The same, done by `-fix`; `None` where only a person can know.
    pub(super) act: Option<Act>,
}

/// Something that is surely safe to do.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Unlink a socket that nobody listens on.
    RemoveSocket(PathBuf),
    /// Clean up after a dead shim, as containerd does: `delete`, then the bundle.
    Delete(Box<Flags>),
    /// Unmount what is below a bundle that nobody has.
    Unmount(PathBuf),
    /// Remove what a runtime has of a container without bundle and shim.
    Forget { program: PathBuf, root: PathBuf, id: String },
    /// End a shim that nobody can reach, with its containers.
    End(Box<Leaked>),
}

/// A living shim without a bundle.
#[derive(Clone, Debug)]
pub(super) struct Leaked {
    pub(super) pid: Pid,
    /// [`child::start_time`], which tells whether the pid is still its.
    pub(super) started: Option<u64>,
    pub(super) bundle: PathBuf,
    pub(super) socket: PathBuf,
    /// Its containers.
    pub(super) ids: Vec<String>,
}

impl Mend {
    pub(super) fn of(act: Act) -> Self {
        Self { command: act.command(), act: Some(act) }
    }
}

/// Does what a finding asks for, if it is safe, in bounded time.
pub(super) fn carry_out(finding: &Finding) -> Option<Deed> {
    let mend = finding.mend.as_ref()?;
    let act = mend.act.clone()?;
    let done = look::begin(move || act.run().map_err(|error| error.to_string())).end(DEED);
    let late = || Err(format!("it did not end within {} s", DEED.as_secs()));
    Some(Deed {
        what: finding.name(),
        command: mend.command.clone(),
        error: done.unwrap_or_else(late).err(),
    })
}

impl Act {
    fn command(&self) -> String {
        match self {
            Self::RemoveSocket(path) => format!("rm {}", quoted(path)),
            Self::Unmount(rootfs) => format!("umount --recursive {}", quoted(rootfs)),
            Self::Delete(flags) => {
                let bundle = flags.bundle.as_deref().unwrap_or(Path::new("."));
                let [namespace, id, address] =
                    [&flags.namespace, &flags.id, &flags.address].map(|text| word(text));
                let bundle = quoted(bundle);
                // No `rm -r`: something may be mounted below still.
                format!(
                    "containerd-shim-berth-v1 -namespace {namespace} -id {id} -address {address} -bundle {bundle} \
                     delete >/dev/null && find {bundle} -maxdepth 1 ! -type d -delete && rmdir {bundle}/* {bundle}"
                )
            }
            Self::Forget { program, root, id } => {
                format!("{} --root {} delete --force {}", quoted(program), quoted(root), word(id))
            }
            Self::End(_) => "containerd-shim-berth-v1 doctor -fix".into(),
        }
    }

    fn run(&self) -> Result<()> {
        match self {
            Self::RemoveSocket(path) => {
                socket::remove_dead(path);
                gone(path)
            }
            Self::Delete(flags) => delete(flags),
            Self::Unmount(rootfs) => unmount(rootfs),
            Self::Forget { program, root, id } => {
                let mut command = Command::new(program);
                command.arg("--root").arg(root).args(["delete", "--force", id]).current_dir("/");
                run(&mut command)?;
                gone(&root.join(id))
            }
            Self::End(leaked) => leaked.end(),
        }
    }
}

/// A path for a shell.
pub(super) fn quoted(path: &Path) -> String {
    word(&path.display().to_string())
}

/// One word for a shell.
pub(super) fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-@:+,=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn gone(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Error::Invalid(format!("{} is still there", path.display())))
}

fn run(command: &mut Command) -> Result<()> {
    let program = PathBuf::from(command.get_program());
    info::output(command, COMMAND).map(drop).map_err(Error::io("run", program))
}

/// What containerd does about a bundle whose shim is dead.
fn delete(flags: &Flags) -> Result<()> {
    let Some(bundle) = &flags.bundle else { return Ok(()) };
    if leftovers::may_be_alive(bundle) {
        return Err(Error::Invalid("somebody listens on its socket now".into()));
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    command.arg("-bundle").arg(bundle).arg("delete").current_dir(bundle);
    run(&mut command)?;
    remove_bundle(bundle)
}

/// Removes a bundle in which nothing is mounted; never what is in a directory that is not empty.
fn remove_bundle(bundle: &Path) -> Result<()> {
    let mounted = mount::mounted_below(bundle).map_err(Error::sys("read the table of mounts"))?;
    if let Some(place) = mounted.first() {
        return Err(Error::Invalid(format!("something is still mounted on {}", place.display())));
    }
    for entry in fs::read_dir(bundle).map_err(Error::io("read", bundle))?.flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    fs::remove_dir(bundle).map_err(Error::io("remove", bundle))
}

/// Takes off all that is mounted at and below `rootfs`, the latest first; what is in use stays.
fn unmount(rootfs: &Path) -> Result<()> {
    let places = mount::mounted_below(rootfs).map_err(Error::sys("read the table of mounts"))?;
    for place in places.iter().rev() {
        mount::unmount(place).map_err(Error::io("unmount", place))?;
    }
    Ok(())
}

impl Leaked {
    /// Kills its containers and lets it delete them, which needs a directory in the place of the bundle;
    /// then it is told to end, and killed if it does not.
    fn end(&self) -> Result<()> {
        let process = pidfd_open(self.pid).map_err(Error::sys("find the shim"))?;
        if child::start_time(self.pid) != self.started {
            return Ok(()); // the number is another's now
        }
        if self.bundle.exists() {
            return Err(Error::Invalid(format!("{} is there again", self.bundle.display())));
        }
        fs::create_dir_all(&self.bundle).map_err(Error::io("make", &self.bundle))?;
        let asked = self.ask();
        let deadline = Instant::now() + REQUEST;
        if !ended(process.as_fd(), deadline) {
            // Its containers have been killed, or it does not answer.
            pidfd_send_signal(process.as_fd(), libc::SIGKILL)
                .map_err(Error::sys("kill the shim"))?;
            ended(process.as_fd(), Instant::now() + REQUEST);
            socket::remove_dead(&self.socket);
        }
        remove_bundle(&self.bundle)?;
        asked
    }

    fn ask(&self) -> Result<()> {
        let connect = || {
            let stream =
                UnixStream::connect(&self.socket).map_err(Error::io("connect to", &self.socket));
            stream.map(Client::new)
        };
        let call = |method| ("containerd.task.v3.Task", method);
        let mut failure = Ok(());
        for id in &self.ids {
            let id = || id.clone();
            let kill = KillRequest { id: id(), signal: 9, all: true, ..KillRequest::default() };
            let _: Result<Empty> = connect()?.call(call("Kill"), &kill, REQUEST); // it may have ended
            let wait = WaitRequest { id: id(), ..WaitRequest::default() };
            let _: Result<WaitResponse> = connect()?.call(call("Wait"), &wait, REQUEST);
            let delete = DeleteRequest { id: id(), ..DeleteRequest::default() };
            match connect()?.call::<DeleteResponse>(call("Delete"), &delete, COMMAND) {
                Ok(_) | Err(Error::Remote { code: ttrpc::Code::NOT_FOUND, .. }) => {}
                Err(error) => failure = Err(error),
            }
        }
        let shutdown = ShutdownRequest { now: true, ..ShutdownRequest::default() };
        let _: Result<Empty> = connect()?.call(call("Shutdown"), &shutdown, REQUEST); // it may hang up first
        failure
    }
}

fn ended(process: std::os::fd::BorrowedFd<'_>, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    matches!(poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_given_to_a_shell() {
        let cases = [
            ("/run/a-b_c.sock", "/run/a-b_c.sock"),
            ("/a b", "'/a b'"),
            ("/it's", "'/it'\\''s'"),
            ("", "''"),
        ];
        for (path, expected) in cases {
            assert_eq!(quoted(Path::new(path)), expected);
        }
        let flags = Flags {
            namespace: "n;m".into(),
            id: "i".into(),
            address: "/a b".into(),
            bundle: Some("/b".into()),
            ..Flags::default()
        };
        let expected = "containerd-shim-berth-v1 -namespace 'n;m' -id i -address '/a b' -bundle /b delete >/dev/null \
                        && find /b -maxdepth 1 ! -type d -delete && rmdir /b/* /b";
        assert_eq!(Mend::of(Act::Delete(Box::new(flags))).command, expected);
    }

    #[test]
    fn a_bundle_with_something_in_a_directory_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
        remove_bundle(&bundle).unwrap_err();
        assert!(bundle.join("rootfs/etc").exists());
        fs::remove_dir(bundle.join("rootfs/etc")).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        remove_bundle(&bundle).unwrap();
        assert!(!bundle.exists());
    }
}
