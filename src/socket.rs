//! The socket of a sandbox's shim: its address, which of several `start`s gets to bind it, and
//! who may talk to us.
//!
//! A living shim unlinks its socket before it closes it. So a socket that refuses connections
//! belongs to a dead one and may be unlinked, under a lock on the directory, by whoever finds it.
//!
//! One that takes connections need not belong to a living one: the kernel closes a killed
//! process's descriptors one by one, often the listener last, so that containerd may see its
//! connection end while new ones are still taken. Only an answer tells.

mod own;

pub(crate) use self::own::Own;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{geteuid, unlink};
use sha2::{Digest, Sha256};
use ttrpc::Code;

use crate::error::{Error, Result};
use crate::ids::hex;
use crate::rpc::blocking::Client;
use crate::{rootless, sys};

/// Where sockets go below containerd's state directory.
const DIR: &str = "s";

/// Longest path of a socket, as containerd's shims have it: 107 bytes and a NUL fit into the
/// kernel's `sockaddr_un`.
pub(crate) const MAX_PATH: usize = 106;
/// For finding out what to do with a socket that is there already, questions included.
const TIMEOUT: Duration = Duration::from_secs(2);
/// For the answer of a shim, in `delete`; one that gives none in that time is left alone.
const ANSWER: Duration = Duration::from_secs(1);
/// For the directory's lock, in `delete`; who comes next replaces a dead socket anyway.
const REMOVE: Duration = Duration::from_millis(200);
/// Between two looks at a directory's lock or at a socket that is just going away.
const PAUSE: Duration = Duration::from_millis(2);

/// Where sockets go unless containerd says otherwise: `/run/containerd/s`, as containerd's own shims
/// have it, so that `ctr shim` finds ours; a rootless containerd may have another place.
pub(crate) fn default_dir() -> PathBuf {
    rootless::state_dir(rootless::detected()).join(DIR)
}

/// The path of the socket for `group` (a pod's sandbox, or a container on its own):
/// `DIR/sha256(grpc address/namespace/group)`. Clients compute it too.
///
/// # Errors
/// [`Error::Invalid`] if `dir` is so long that no socket can be bound there.
pub(crate) fn path(dir: &Path, grpc: &str, namespace: &str, group: &str) -> Result<PathBuf> {
    let name = Sha256::digest(join(&[grpc, namespace, group]));
    let name = hex(&name);
    let path = dir.join(name);
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let max = MAX_PATH - (length - dir.as_os_str().len());
        let dir = dir.display();
        return Err(Error::Invalid(format!("socket directory {dir} is longer than {max} bytes")));
    }
    Ok(path)
}

/// The address of a socket, as it is printed.
pub(crate) fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Go's `filepath.Join`: the parts that are not empty, cleaned of `.`, `..` and double slashes
/// by the text alone.
fn join(parts: &[&str]) -> String {
    let filled: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    let joined = filled.join("/");
    let root = if joined.starts_with('/') { "/" } else { "" };
    let mut clean: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." if clean.last().is_some_and(|last| *last != "..") => drop(clean.pop()),
            ".." if !root.is_empty() => {}
            part => clean.push(part),
        }
    }
    match (root, clean.join("/")) {
        ("", clean) if clean.is_empty() && !joined.is_empty() => ".".into(),
        (root, clean) => format!("{root}{clean}"),
    }
}

/// What became of a socket.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is ours: nobody had it, or a dead shim.
    Bound(Bound),
    /// A living shim has it and speaks this version (2 or 3) of the task API.
    Alive(i32),
}

/// A listening socket that no daemon has taken over yet; unlinked when dropped.
#[must_use = "dropping it unlinks the socket"]
#[derive(Debug)]
pub(crate) struct Bound {
    listener: OwnedFd,
    path: Option<PathBuf>,
}

impl Bound {
    /// Becomes the listener, whose owner has to unlink the socket.
    pub(crate) fn into_listener(self) -> io::Result<UnixListener> {
        let listener = UnixListener::from(self.listener.try_clone()?);
        self.keep();
        Ok(listener)
    }

    /// Leaves the socket to the daemon.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Bound {
    /// Unlinks before `listener` is closed: until then nobody takes the socket for dead, so it is
    /// ours that goes. A `start` that waits for our answer sees the end and tries again.
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove(&path);
        }
    }
}

/// Unlinks a socket; call it before the listener is closed. It is fine if the socket is gone.
pub(crate) fn remove(path: &Path) {
    if let Err(errno) = unlink(path) {
        if errno != Errno::ENOENT {
            log::warn!("cannot remove {}: {errno}", path.display());
        }
    }
}

/// Whether the shim of a socket lives. One that is just ending does not, nor does one that was
/// killed, whose listener may outlast its connections by a moment; one that hangs does.
pub(crate) fn is_alive(path: &Path, id: &str) -> bool {
    let deadline = Instant::now() + ANSWER;
    loop {
        match connect_now(path) {
            Ok(stream) => {
                if !matches!(ask(stream, path, id, deadline), Ok(None)) {
                    return true;
                }
            }
            Err(Errno::EAGAIN) => {} // a full queue of connections
            Err(_) => return false,
        }
        if pause(path, deadline).is_err() {
            return true;
        }
    }
}

/// Whether nobody listens on a socket that is there. Nobody is asked anything.
pub(crate) fn is_dead(path: &Path) -> bool {
    matches!(connect_now(path), Err(Errno::ECONNREFUSED))
}

/// Unlinks a dead shim's socket, but not one that a new shim has bound there meanwhile.
pub(crate) fn remove_dead(path: &Path) {
    let lock = lock_existing(path, Instant::now() + REMOVE);
    if is_dead(path) && lock.is_ok() {
        remove(path);
    }
}

/// Binds the socket at `path` (mode 0600, its directory 0700), or finds out that a living shim
/// listens there. Takes 2 s at most; of several callers one gets [`Claim::Bound`].
///
/// # Errors
/// [`Error::Deadline`] if somebody listens and does not answer: its containers are running, so it
/// is not replaced. [`Error::Invalid`] if it belongs to another user. [`Error::Io`].
pub(crate) fn claim(path: &Path, id: &str) -> Result<Claim> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match bind_or_connect(path, deadline)? {
            Found::Free(bound) => return Ok(Claim::Bound(bound)),
            Found::Listening(stream) => {
                if let Some(version) = ask(stream, path, id, deadline)? {
                    return Ok(Claim::Alive(version));
                }
            }
            Found::Busy => {}
        }
        pause(path, deadline)?;
    }
}

/// Binds a socket (mode 0600, its directory 0700) in the place of a dead one, for other purposes than
/// [`claim`]: nobody who listens there is asked anything. It waits for nothing.
///
/// # Errors
/// [`Error::Exists`] if somebody listens there; [`Error::Deadline`] if another process is about to bind or
/// remove a socket in that directory; [`Error::Io`].
pub(crate) fn bind_now(path: &Path) -> Result<Bound> {
    match bind_or_connect(path, Instant::now())? {
        Found::Free(bound) => Ok(bound),
        Found::Listening(_) | Found::Busy => {
            Err(Error::Exists { what: "a listener on", id: path.display().to_string() })
        }
    }
}

/// What is at a socket's path.
enum Found {
    /// Nothing, and now our own socket.
    Free(Bound),
    /// Somebody who took our connection, or will.
    Listening(UnixStream),
    /// Somebody with a full queue of connections.
    Busy,
}

fn bind_or_connect(path: &Path, deadline: Instant) -> Result<Found> {
    let _lock = lock(path, deadline)?;
    loop {
        match bind_new(path) {
            Ok(bound) => return Ok(Found::Free(bound)),
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(Error::io("bind", path)(errno.into())),
        }
        match connect_now(path) {
            Ok(stream) => return Ok(Found::Listening(stream)),
            Err(Errno::EAGAIN) => return Ok(Found::Busy),
            // It went in between. A link to nothing stays, and keeps the name taken: for ever.
            Err(Errno::ENOENT) if !path.is_symlink() => {}
            Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPROTOTYPE) => match unlink(path) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Error::io("replace dead socket", path)(errno.into())),
            },
            Err(errno) => return Err(Error::io("connect to", path)(errno.into())),
        }
    }
}

/// [`lock_existing`] of a directory that is made if it is not there, or goes meanwhile.
fn lock(path: &Path, deadline: Instant) -> Result<Flock<File>> {
    let dir = directory(path);
    loop {
        if !dir.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(Error::io("make the socket directory", dir))?;
        }
        match lock_existing(path, deadline) {
            Ok(lock) if is_at(&lock, dir) => return Ok(lock),
            Ok(_) => {} // it was the last one's, who has removed it: see `remove_empty`
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether `dir` is still the directory that is open.
fn is_at(open: &File, dir: &Path) -> bool {
    let same = |open: &Metadata, now: &Metadata| (open.dev(), open.ino()) == (now.dev(), now.ino());
    matches!((open.metadata(), dir.metadata()), (Ok(open), Ok(now)) if same(&open, &now))
}

/// Removes the directory of the socket at `path` if nothing is in it. Whoever is about to bind one there
/// waits for its lock or has it, and makes it again.
pub(crate) fn remove_directory(path: &Path) {
    if let Ok(lock) = lock_existing(path, Instant::now() + REMOVE) {
        remove_empty(path, &lock);
    }
}

fn remove_empty(path: &Path, lock: &Flock<File>) {
    let dir = directory(path);
    if is_at(lock, dir) {
        // With something in it, it is another's still.
        let _ = fs::remove_dir(dir);
    }
}

/// Serialises all who bind or unlink in a directory. It is held for a few system calls only, never
/// while somebody is asked.
fn lock_existing(path: &Path, deadline: Instant) -> Result<Flock<File>> {
    let dir = directory(path);
    let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir);
    let mut file = open.map_err(Error::io("open the socket directory", dir))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EAGAIN | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(Error::io("lock", dir)(errno.into())),
        };
        pause(path, deadline)?;
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn pause(path: &Path, deadline: Instant) -> Result<()> {
    if Instant::now() >= deadline {
        return Err(unanswered(path));
    }
    thread::sleep(PAUSE);
    Ok(())
}

fn unanswered(path: &Path) -> Error {
    let what = format!("asking the shim that listens on {}", path.display());
    Error::Deadline { what, limit: TIMEOUT }
}

fn bind_new(path: &Path) -> nix::Result<Bound> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The file that bind makes takes its mode from the socket, so there is no moment at which
    // another user could connect.
    fchmod(&fd, Mode::from_bits_truncate(0o600))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let bound = Bound { listener: fd, path: Some(path.to_owned()) };
    listen(&bound, Backlog::MAXCONN)?;
    Ok(bound)
}

/// Connects without waiting for room in the listener's queue (`EAGAIN`).
pub(crate) fn connect_now(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Asks a shim for its pid, to learn which task API it has; an error is an answer too. `None` if
/// it is just ending, so that the socket is about to be free.
fn ask(stream: UnixStream, path: &Path, id: &str, deadline: Instant) -> Result<Option<i32>> {
    let failed = || Error::io("connect to", path);
    let owner = peer_uid(stream.as_fd()).map_err(failed())?;
    if owner != geteuid().as_raw() {
        let path = path.display();
        return Err(Error::Invalid(format!("{path} belongs to a process of user {owner}")));
    }
    stream.set_nonblocking(false).map_err(failed())?;
    let mut client = Client::new(stream);
    let request = ConnectRequest { id: id.into(), ..ConnectRequest::default() };
    for version in [3, 2] {
        let service = format!("containerd.task.v{version}.Task");
        let left = deadline.saturating_duration_since(Instant::now());
        match client.call::<ConnectResponse>((&service, "Connect"), &request, left) {
            Err(Error::Remote { code: Code::UNIMPLEMENTED, .. }) => {}
            Err(Error::Remote { code: Code::UNAVAILABLE, .. } | Error::Sys { .. }) => {
                return Ok(None);
            }
            Err(Error::Deadline { .. }) => return Err(unanswered(path)),
            Ok(_) | Err(_) => return Ok(Some(version)),
        }
    }
    Ok(Some(3)) // it has no tasks, but it is no older than the bootstrap protocol
}

/// The user at the other end of a connection: who connected, or who listened.
pub(crate) fn peer_uid(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt(&fd, PeerCredentials)?.uid())
}

/// The listening socket that `start` gave us as descriptor 3, and its path.
///
/// # Errors
/// [`Error::Invalid`] if there is none: the program was not started by `start`.
pub(crate) fn inherited() -> Result<(UnixListener, PathBuf)> {
    let listener = sys::process::inherited_listener().map(UnixListener::from);
    let path =
        |listener: &UnixListener| Some(listener.local_addr().ok()?.as_pathname()?.to_owned());
    match listener.ok().and_then(|listener| path(&listener).map(|path| (listener, path))) {
        Some(pair) => Ok(pair),
        None => Err(Error::Invalid(
            "no command given, and descriptor 3 is not a listening socket: containerd runs this \
             program (a runtime named io.containerd.berth.v1 is enough); see -help"
                .into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn parts_are_joined_as_go_joins_them() {
        let cases = [
            (["/run/c.sock", "ns", "x"], "/run/c.sock/ns/x"),
            (["unix:///run/c.sock", "ns", "x"], "unix:/run/c.sock/ns/x"),
            (["", "ns", "x"], "ns/x"),
            (["", "", ""], ""),
            (["/a//b/", "./ns", "../x"], "/a/b/x"),
            (["/..", "..", "x"], "/x"),
            (["a", "..", "../x"], "../x"),
            (["a", "..", ""], "."),
            (["/", "", ""], "/"),
        ];
        for (parts, expected) in cases {
            assert_eq!(join(&parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn a_path_is_the_hash_of_address_namespace_and_group() {
        let dir = Path::new("/run/containerd/s");
        let path = path(dir, "/run/containerd/containerd.sock", "default", "x").unwrap();
        // printf /run/containerd/containerd.sock/default/x | sha256sum
        let hash = "5e250b13f984a15f73216d143af1bf3c64171aa56c781ba9d4040c75b2c1eee2";
        assert_eq!(path, dir.join(hash));
        assert_eq!(address(&path), format!("unix:///run/containerd/s/{hash}"));
    }

    #[test]
    fn a_directory_that_is_too_long_is_refused() {
        let fits = PathBuf::from(format!("/{}", "d".repeat(40)));
        assert_eq!(path(&fits, "a", "n", "g").unwrap().as_os_str().len(), MAX_PATH);
        let error = path(&fits.join("d"), "a", "n", "g").unwrap_err().to_string();
        assert!(error.contains("longer than 41 bytes"), "{error}");
    }

    #[test]
    fn a_socket_is_bound_once_and_unlinked_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("s");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let Claim::Bound(first) = claim(&path, "x").unwrap() else { panic!("not bound") };
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        assert!(matches!(bind_new(&path), Err(Errno::EADDRINUSE)));
        drop(first);
        assert!(!path.exists());

        let Claim::Bound(second) = claim(&path, "x").unwrap() else { panic!("not bound") };
        second.keep();
        assert!(path.exists());
        let Claim::Bound(_third) = claim(&path, "x").unwrap() else { panic!("not replaced") };
    }

    #[test]
    fn a_link_is_replaced_where_it_leads_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let living = dir.path().join("living");
        let _listener = UnixListener::bind(&living).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for (target, replaced) in [("nothing", true), ("file", true), ("living", false)] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            assert_eq!(bind_now(&path).is_ok(), replaced, "{target}");
            assert_eq!(path.is_symlink(), !replaced, "{target}");
        }
        assert!(living.exists() && dir.path().join("file").exists());
    }

    #[test]
    fn a_directory_goes_with_its_last_socket_and_comes_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ns");
        let [a, b] = ["a", "b"].map(|name| dir.join(name));
        let first = bind_now(&a).unwrap();
        let second = bind_now(&b).unwrap();
        drop(first);
        remove_directory(&a);
        assert!(b.exists(), "it has another socket");
        second.keep();
        Own::new(b).remove_with_directory();
        assert!(!dir.exists());
        remove_directory(&a);
        // Whoever comes while it is being removed has a socket all the same: eight of them bind and remove,
        // of whom each may be the last.
        thread::scope(|scope| {
            for name in 0..8 {
                let path = dir.join(name.to_string());
                scope.spawn(move || {
                    for _ in 0..50 {
                        let Found::Free(bound) =
                            bind_or_connect(&path, Instant::now() + 10 * TIMEOUT).unwrap()
                        else {
                            panic!("{} is taken", path.display());
                        };
                        assert!(connect_now(&path).is_ok(), "{}", path.display());
                        bound.keep();
                        Own::new(path.clone()).remove_with_directory();
                    }
                });
            }
        });
        // One that was kept waiting for too long has left it.
        remove_directory(&a);
        assert!(!dir.exists());
    }

    #[test]
    fn a_listener_that_never_answers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = claim(&path, "x").unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_listener_that_goes_away_is_no_living_shim() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_alive(&path, "x"));
        let listener = UnixListener::bind(&path).unwrap();
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(listener);
        });
        assert!(!is_alive(&path, "x"));
        ending.join().unwrap();
        let _hanging = UnixListener::bind(dir.path().join("t")).unwrap();
        assert!(is_alive(&dir.path().join("t"), "x"));
    }

    #[test]
    fn only_a_dead_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = bind_new(&path).unwrap();
        remove_dead(&path);
        assert!(path.exists());
        let listener = bound.listener.try_clone().unwrap();
        bound.keep();
        drop(listener);
        remove_dead(&path);
        assert!(!path.exists());
        remove_dead(&path);
    }
}
