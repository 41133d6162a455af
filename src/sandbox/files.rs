//! The files that a pod's containers have in common: `/etc/hostname`, `/etc/hosts`,
//! `/etc/resolv.conf` and `/dev/shm`.
//!
//! For a sandbox that is a container containerd makes them; to one of a shim's it leaves them, and
//! mounts none of its own into the containers. They are in the sandbox's bundle, and not where
//! containerd would have them: it clears that away when it restarts.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::bundle::SharedMount;
use crate::error::{Error, Result};
use crate::sandbox::pod::{Pod, Share};
use crate::sys::mount;

/// Size of `/dev/shm`: 64 MiB, as containerd's sandbox has it.
const SHM: &str = "mode=1777,size=67108864";

/// The directory with a pod's files, in the sandbox's bundle.
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Those of the sandbox in `bundle`, which may not be there (any more).
    pub(super) fn of(bundle: &Path) -> Self {
        Self { dir: bundle.join("pod") }
    }

    /// Writes the files and mounts `/dev/shm`.
    ///
    /// # Errors
    /// [`Error::Io`]; what was made until then is for [`Self::remove`].
    pub(super) fn make(&self, pod: &Pod) -> Result<()> {
        self.remove()?; // what an earlier Start could not take away
        let own = Permissions::from_mode(0o755);
        fs::create_dir(&self.dir)
            .and_then(|()| fs::set_permissions(&self.dir, own))
            .map_err(Error::io("make", &self.dir))?;
        let name = match pod.hostname.as_str() {
            "" => host_name()?,
            name => name.to_owned(),
        };
        self.write(pod, "hostname", format!("{name}\n").as_bytes())?;
        self.write(pod, "hosts", &read("/etc/hosts")?)?;
        match &pod.dns {
            Some(dns) => self.write(pod, "resolv.conf", dns.text().as_bytes())?,
            None => self.write(pod, "resolv.conf", &read("/etc/resolv.conf")?)?,
        }
        if pod.ipc == Share::Host {
            return Ok(());
        }
        let shm = self.shm();
        fs::create_dir(&shm).map_err(Error::io("make", &shm))?;
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount::mount("shm", &shm, "tmpfs", flags, SHM).map_err(Error::io("mount", &shm))
    }

    /// Writes one file that belongs to the pod's root.
    fn write(&self, pod: &Pod, name: &str, text: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        // Whatever umask containerd has: every user of a container reads them.
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
            .map_err(Error::io("write", &path))?;
        let Some(maps) = &pod.user else { return Ok(()) };
        let (uid, gid) = maps.root();
        chown(&path, uid, gid).map_err(Error::io("give away", &path))
    }

    fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// What the pod's containers have mounted unless they bring something else for the place.
    pub(super) fn mounts(&self, pod: &Pod) -> Vec<SharedMount> {
        let file = |place: &str, name: &str| SharedMount {
            destination: place.into(),
            source: self.dir.join(name),
            follows_root: true,
        };
        let mut mounts = vec![
            file("/etc/hostname", "hostname"),
            file("/etc/hosts", "hosts"),
            file("/etc/resolv.conf", "resolv.conf"),
        ];
        if pod.ipc != Share::Host {
            mounts.push(SharedMount { follows_root: false, ..file("/dev/shm", "shm") });
        }
        mounts
    }

    /// Unmounts and removes everything; what is not there is no error. Containers that live on
    /// keep what they have mounted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn remove(&self) -> Result<()> {
        let shm = self.shm();
        match mount::detach(&shm) {
            // No mount, or no directory.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
            done => done.map_err(Error::io("unmount", &shm))?,
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(Error::io("remove", &self.dir)),
        }
    }
}

/// Removes the files of the sandbox in `bundle`, for `delete` after a killed daemon.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn remove_files(bundle: &Path) -> Result<()> {
    Files::of(bundle).remove()
}

/// A file of the host that not every host has.
fn read(path: &str) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => text.map_err(Error::io("read", path)),
    }
}

/// The host's own name.
///
/// # Errors
/// [`Error::Sys`].
pub(super) fn host_name() -> Result<String> {
    let name =
        nix::unistd::gethostname().map_err(|errno| Error::sys("read the host name")(errno.into()));
    Ok(name?.to_string_lossy().into_owned())
}
