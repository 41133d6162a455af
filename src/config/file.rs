//! Opens configuration files that nobody but their owner can have written.
//!
//! A file is opened once, without effect (`O_PATH`); what the descriptor refers to is checked, and
//! that is read. Nothing that is moved or replaced meanwhile makes a difference.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs,
};
use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::sys::place::open_place;

/// The longest file, in bytes.
pub(super) const LIMIT: u64 = 1 << 20;

/// Who owns, as a user namespace sees it, what belongs to users that are not in it; user_namespaces(7).
const NOBODY: u32 = 65534;

/// Permission bits that nobody but the owner may have.
const OTHERS: Mode = Mode::S_IWOTH;
const GROUP_AND_OTHERS: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);

/// Who chose a file, and how much it must therefore be trusted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// An administrator named it.
    Host,
    /// Whoever writes annotations chose it.
    Preset,
}

impl Trust {
    fn forbidden(self) -> Mode {
        match self {
            Self::Host => OTHERS,
            Self::Preset => GROUP_AND_OTHERS,
        }
    }
}

/// Reads the file that an administrator named.
///
/// # Errors
/// [`Error::Io`] if it is missing or cannot be read; [`Error::Denied`] unless it is a regular file of
/// at most [`LIMIT`] bytes that belongs to root or to berth's own user, and others cannot write it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::io("read the configuration", path)(errno.into()))?;
    read_checked(&place, path, Trust::Host)
}

/// A directory whose files can be trusted as far as it can itself.
pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    trust: Trust,
}

impl Directory {
    /// Opens a directory; `None` if it is missing.
    ///
    /// # Errors
    /// As [`read`].
    pub(super) fn open(path: &Path, trust: Trust) -> Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let fd = match open(path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(|errno| Error::io("open", path)(errno.into()))?,
        };
        check(&fd, path, SFlag::S_IFDIR, trust)?;
        Ok(Some(Self { path: path.to_owned(), fd, trust }))
    }

    /// The directory of drop-ins `name` within this one; `None` if it is missing.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn directory(&self, name: &Path) -> Result<Option<Self>> {
        let path = self.path.join(name);
        let fd = match self.find(name) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(|errno| self.refusal(name, errno))?,
        };
        check(&fd, &path, SFlag::S_IFDIR, self.trust)?;
        Ok(Some(Self { path, fd, trust: self.trust }))
    }

    /// Reads the file `name` in this directory or below. Neither `..` nor a link leads out of it.
    ///
    /// # Errors
    /// [`Error::Denied`] with the reason, also if it is missing: nothing else can be allowed.
    pub(super) fn read(&self, name: &Path) -> Result<Vec<u8>> {
        let place = self.find(name).map_err(|errno| self.refusal(name, errno))?;
        self.check_between(name)?;
        read_checked(&place, &self.path.join(name), self.trust)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the `*.toml` files, in their order; hidden ones do not count.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn list(&self) -> Result<Vec<PathBuf>> {
        let listed = openat(
            self.fd.as_fd(),
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .and_then(nix::dir::Dir::from_fd);
        let wrap = |errno: Errno| Error::io("list", &self.path)(errno.into());
        let mut names = Vec::new();
        for entry in listed.map_err(wrap)?.iter() {
            let entry = entry.map_err(wrap)?;
            let name = entry.file_name().to_bytes();
            if name.ends_with(b".toml") && !name.starts_with(b".") {
                names.push(PathBuf::from(OsStr::from_bytes(name)));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens what `name` refers to, as far as whoever chose it may have it.
    fn find(&self, name: &Path) -> nix::Result<OwnedFd> {
        if self.trust == Trust::Host {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            return openat(&self.fd, name, flags, Mode::empty());
        }
        if name.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(Errno::EXDEV);
        }
        open_place(&self.fd, name, ResolveFlag::RESOLVE_BENEATH)
    }

    /// Checks the directories between this one and `name`: who can write one of them can replace
    /// what is in it.
    fn check_between(&self, name: &Path) -> Result<()> {
        for dir in name.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            let place = self.find(dir).map_err(|errno| self.refusal(name, errno))?;
            check(&place, &self.path.join(dir), SFlag::S_IFDIR, self.trust)?;
        }
        Ok(())
    }

    fn refusal(&self, name: &Path, errno: Errno) -> Error {
        let dir = self.path.display();
        let why = match errno {
            Errno::ENOENT => format!("it does not exist in {dir}"),
            Errno::EXDEV | Errno::ELOOP => format!("it leads out of {dir}"),
            Errno::ENOSYS => "Linux 5.6 is needed to look it up safely".into(),
            other => other.desc().to_owned(),
        };
        Error::Denied(format!("{:?}: {why}", name.display().to_string()))
    }
}

/// Reads what `place`, an `O_PATH` descriptor, refers to.
fn read_checked(place: &OwnedFd, path: &Path, trust: Trust) -> Result<Vec<u8>> {
    let found = check(place, path, SFlag::S_IFREG, trust)?;
    if u64::try_from(found.st_size).unwrap_or(0) > LIMIT {
        return Err(too_long(path));
    }
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
        let mut text = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(Error::io("read the configuration", path))?;
    // It may have grown.
    if text.len() as u64 > LIMIT { Err(too_long(path)) } else { Ok(text) }
}

fn too_long(path: &Path) -> Error {
    denied(path, &format!("it is longer than {LIMIT} bytes"))
}

fn check(place: &OwnedFd, path: &Path, kind: SFlag, trust: Trust) -> Result<FileStat> {
    let wrap = |errno: Errno| Error::io("look at", path)(errno.into());
    let found = fstat(place).map_err(wrap)?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != kind {
        let what = if kind == SFlag::S_IFDIR { "directory" } else { "regular file" };
        return Err(denied(path, &format!("it is not a {what}")));
    }
    // What such a file holds is not what somebody wrote into it.
    let system = fstatfs(place).map_err(wrap)?.filesystem_type();
    let kernels = [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    if kernels.contains(&system) {
        return Err(denied(path, "it is the kernel's, in a file system such as /proc"));
    }
    let owner = found.st_uid;
    if owner == NOBODY {
        let why = "it belongs to nobody that this user namespace knows, not to its root";
        return Err(denied(path, why));
    }
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(denied(path, &format!("it belongs to uid {owner}, not to root: chown it")));
    }
    let mode = Mode::from_bits_truncate(found.st_mode);
    if mode.intersects(trust.forbidden()) {
        let who = if trust == Trust::Host { "others" } else { "its group or others" };
        let why = format!("{who} can write it (mode {:o}): chmod go-w it", mode.bits());
        return Err(denied(path, &why));
    }
    Ok(found)
}

fn denied(path: &Path, why: &str) -> Error {
    Error::Denied(format!("{}: {why}", path.display()))
}
