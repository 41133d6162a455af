//! The console socket: where an OCI runtime sends the master of the terminal it made.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::ids::hex;
use crate::sys;

/// A listening socket for one runtime command; its file disappears with it.
///
/// A bundle's path is often longer than the 107 bytes of a socket's address, so the file lies in
/// a directory for root's eyes only (`/run/berth-pty-HASH`), one per bundle: what a killed daemon
/// left there is found by [`remove_leftovers`].
#[derive(Debug)]
#[must_use = "dropping it removes the socket"]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Binds a socket for a process of the container in `bundle`.
    ///
    /// # Errors
    /// [`Error::Io`] for the last place tried.
    pub(crate) fn bind(bundle: &Path) -> Result<Self> {
        let mut failure = None;
        for directory in directories(bundle) {
            match Self::bind_in(&directory) {
                Ok(socket) => return Ok(socket),
                Err(error) => {
                    let _others_use_it = std::fs::remove_dir(&directory);
                    failure = Some(Error::io("bind a console socket in", &directory)(error));
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::Invalid("no directory for sockets".to_owned())))
    }

    fn bind_in(directory: &Path) -> io::Result<Self> {
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let found = directory.symlink_metadata()?;
        if !ours(directory) || found.mode() & 0o077 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a private directory"));
        }
        for number in 0_u32.. {
            let path = directory.join(number.to_string());
            match UnixListener::bind(&path) {
                // Another process of the container is being started, or a killed daemon left it.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound.map(|listener| Self { listener, path }),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// What the runtime gets as `--console-socket`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal's master and removes the socket. The runtime may end without ever
    /// connecting: select on that too.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Invalid`] if what came is no terminal.
    pub(crate) async fn receive(self, deadline: Instant) -> Result<OwnedFd> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let late = |_| Error::Deadline {
            what: "the runtime's way to the console socket".to_owned(),
            limit: Duration::from_secs_f64((limit.as_secs_f64() * 10.0).round() / 10.0),
        };
        let master = timeout_at(deadline, self.accept()).await.map_err(late)?;
        let master = master.map_err(Error::io("receive a terminal on", &self.path))?;
        if !master.is_terminal() {
            return Err(Error::Invalid("the runtime sent no terminal".to_owned()));
        }
        Ok(master)
    }

    async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if let Some(master) = receive_fd(&stream).await? {
                return Ok(master);
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
        // Fails as long as another socket is in it, which is as it should be.
        let _others_use_it = self.path.parent().map(std::fs::remove_dir);
    }
}

/// Removes the sockets of a daemon that was killed; for `delete`. Fine if there are none.
pub(crate) fn remove_leftovers(bundle: &Path) -> Result<()> {
    for directory in directories(bundle).into_iter().filter(|directory| ours(directory)) {
        std::fs::remove_dir_all(&directory).map_err(Error::io("remove", &directory))?;
    }
    Ok(())
}

/// Whether `directory` is one, not a link to one, and belongs to this user.
fn ours(directory: &Path) -> bool {
    let uid = nix::unistd::geteuid().as_raw();
    directory.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

/// Where the sockets of a bundle can lie, the best place first. The same for a daemon and for the
/// `delete` after it, as both inherit containerd's environment.
fn directories(bundle: &Path) -> Vec<PathBuf> {
    let hash = Sha256::digest(bundle.as_os_str().as_encoded_bytes());
    let hash = hex(&hash[..8]);
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // Another user's directory, left in the environment by sudo, is not private to us.
    let runtime = runtime.filter(|directory| directory.is_absolute() && ours(directory));
    [runtime, Some("/run".into()), Some(std::env::temp_dir())]
        .into_iter()
        .flatten()
        .map(|directory| directory.join(format!("berth-pty-{hash}")))
        .collect()
}

async fn receive_fd(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || sys::tty::receive_fd(stream.as_fd())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(test)
    }

    fn bundle(name: &str) -> PathBuf {
        format!("/run/{}/{}/{name}", std::process::id(), "long".repeat(60)).into()
    }

    /// What a runtime does: connect, send a name and a descriptor.
    fn send(path: &Path, fd: &OwnedFd) {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let name = [IoSlice::new(b"/dev/ptmx")];
        sendmsg::<()>(stream.as_raw_fd(), &name, &rights, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn a_terminal_is_received_and_the_socket_removed() {
        run(async {
            let pty = nix::pty::openpty(None, None).unwrap();
            let socket = ConsoleSocket::bind(&bundle("terminal")).unwrap();
            let path = socket.path().to_owned();
            assert!(path.as_os_str().len() < 108, "{path:?}");
            let sender = path.clone();
            // A connection without a message is not the end.
            drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
            let thread = std::thread::spawn(move || send(&sender, &pty.master));
            let deadline = Instant::now() + Duration::from_secs(10);
            assert!(socket.receive(deadline).await.unwrap().is_terminal());
            thread.join().unwrap();
            assert!(!path.parent().unwrap().exists());
        });
    }

    #[test]
    fn anything_else_and_nothing_are_errors() {
        run(async {
            let socket = ConsoleSocket::bind(&bundle("null")).unwrap();
            send(socket.path(), &std::fs::File::open("/dev/null").unwrap().into());
            let deadline = Instant::now() + Duration::from_secs(10);
            let text = socket.receive(deadline).await.unwrap_err().to_string();
            assert_eq!(text, "the runtime sent no terminal");
            let socket = ConsoleSocket::bind(&bundle("null")).unwrap();
            let path = socket.path().to_owned();
            let error =
                socket.receive(Instant::now() + Duration::from_millis(5)).await.unwrap_err();
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
            assert!(!path.exists());
        });
    }

    #[test]
    fn sockets_of_a_bundle_share_a_directory() {
        run(async {
            let bundle = bundle("shared");
            let first = ConsoleSocket::bind(&bundle).unwrap();
            let second = ConsoleSocket::bind(&bundle).unwrap();
            assert_ne!(first.path(), second.path());
            let directory = first.path().parent().unwrap().to_owned();
            drop(first);
            assert!(second.path().exists());
            remove_leftovers(&bundle).unwrap();
            remove_leftovers(&bundle).unwrap();
            assert!(!directory.exists());
            drop(second);
        });
    }
}
