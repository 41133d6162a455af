//! What a cgroup used and what it may use, as the messages containerd's clients know.

mod text;
mod v1;
mod v2;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use containerd_shim_protos::{cgroups, cgroups_v2};
use nix::fcntl::AT_FDCWD;
use protobuf::Message;

use crate::cgroup::Cgroup;
use crate::cgroup::file::{self, Reader};
use crate::error::{Error, Result};

/// Where the kernel lists the sizes of huge pages that this host has.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Where the kernel has a link for each block device, named by its numbers.
const BLOCK_DEVICES: &str = "/sys/dev/block";

/// A cgroup's metrics: v1's message on a v1 or hybrid host, v2's on a v2 host. Controllers that
/// the cgroup does not have are left out.
#[derive(Debug)]
pub(crate) enum Stats {
    V1(Box<cgroups::metrics::Metrics>),
    V2(Box<cgroups_v2::metrics::Metrics>),
}

impl Stats {
    /// The name of the message, as an `Any` carries it for containerd.
    pub(crate) fn type_url(&self) -> &'static str {
        match self {
            Self::V1(_) => "io.containerd.cgroups.v1.Metrics",
            Self::V2(_) => "io.containerd.cgroups.v2.Metrics",
        }
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`], which takes more block devices than a host has.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::V1(metrics) => metrics.write_to_bytes(),
            Self::V2(metrics) => metrics.write_to_bytes(),
        };
        let size = || match self {
            Self::V1(metrics) => metrics.compute_size(),
            Self::V2(metrics) => metrics.compute_size(),
        };
        bytes.map_err(|_| Error::TooLarge(usize::try_from(size()).unwrap_or(usize::MAX)))
    }
}

/// Reads the metrics of a cgroup: three system calls a file, 15 to 40 files, each read in one go.
///
/// A file that is missing or says what nobody expects leaves its fields at 0.
///
/// # Errors
/// [`Error::NotFound`] once the cgroup is gone; [`Error::Io`] if a file cannot be read.
pub(crate) fn stats(cgroup: &Cgroup) -> Result<Stats> {
    let found = match &cgroup.v2 {
        Some(dir) if cgroup.v1.is_empty() => {
            v2::read(dir, host()).map_err(Error::io("read the metrics of", dir))?
        }
        _ => {
            v1::read(&cgroup.v1, host()).map_err(Error::io("read the metrics of", cgroup.name()))?
        }
    };
    let id = || cgroup.name().display().to_string();
    found.ok_or_else(|| Error::NotFound { what: "cgroup", id: id() })
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    text::fuzz(text);
}

/// What metrics need to know of the host beside the cgroup.
struct Host {
    /// The sizes of huge pages in the form that control files have in their names (`2MB`), sorted.
    huge_pages: Vec<String>,
    /// Where block devices have a link by their numbers.
    block_devices: PathBuf,
}

impl Host {
    fn read(huge_pages: &Path, block_devices: &Path) -> Self {
        let entries = fs::read_dir(huge_pages).into_iter().flatten().flatten();
        let size = |entry: fs::DirEntry| text::huge_page_size(entry.file_name().to_str()?);
        let mut huge_pages: Vec<String> = entries.filter_map(size).collect();
        huge_pages.sort_unstable();
        Self { huge_pages, block_devices: block_devices.to_owned() }
    }

    /// The path of a block device's node; empty for one that is gone.
    fn device(&self, (major, minor): (u64, u64)) -> String {
        let link = fs::read_link(self.block_devices.join(format!("{major}:{minor}")));
        let name = link.as_deref().ok().and_then(Path::file_name).and_then(OsStr::to_str);
        // In sysfs a slash in a name, as in `cciss/c0d0`, is an exclamation mark.
        name.map(|name| format!("/dev/{}", name.replace('!', "/"))).unwrap_or_default()
    }
}

/// This host. A kernel has the sizes of huge pages that it booted with: they are listed once.
fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host::read(Path::new(HUGE_PAGES), Path::new(BLOCK_DEVICES)))
}

/// A directory of control files and the buffer to read them into.
struct Files<'a> {
    place: Place<'a>,
    /// What `max` becomes in the message.
    unlimited: u64,
    /// Whether any file was there.
    found: bool,
    reader: &'a mut Reader,
}

/// How control files are reached.
enum Place<'a> {
    /// From an open directory: for many files this saves the kernel more work than it costs.
    Open(OwnedFd),
    /// By their paths.
    Named(&'a Path),
}

impl<'a> Files<'a> {
    /// Opens the directory, for many files; `None` if it is gone.
    fn open(dir: &Path, unlimited: u64, reader: &'a mut Reader) -> io::Result<Option<Self>> {
        let dir = file::directory(dir)?;
        Ok(dir.map(|dir| Self { place: Place::Open(dir), unlimited, found: false, reader }))
    }

    /// Takes the directory by its name, for a few files.
    fn named(dir: &'a Path, unlimited: u64, reader: &'a mut Reader) -> Self {
        Self { place: Place::Named(dir), unlimited, found: false, reader }
    }

    /// The number or limit in a file, 0 if it is not there.
    fn number(&mut self, name: &str) -> io::Result<u64> {
        Ok(self.optional_number(name)?.unwrap_or_default())
    }

    /// The number or limit in a file, or `None` if it is not there.
    fn optional_number(&mut self, name: &str) -> io::Result<Option<u64>> {
        let unlimited = self.unlimited;
        let text = self.optional(name)?;
        Ok(text.map(|text| text::limit(text, unlimited).unwrap_or_default()))
    }

    /// A file's text, or nothing if it is not there.
    fn text(&mut self, name: &str) -> io::Result<&str> {
        Ok(self.optional(name)?.unwrap_or_default())
    }

    /// A file's text, or `None` if it is not there.
    fn optional(&mut self, name: &str) -> io::Result<Option<&str>> {
        let text = match &self.place {
            Place::Open(dir) => self.reader.control(dir.as_fd(), Path::new(name)),
            Place::Named(dir) => self.reader.control(AT_FDCWD, &dir.join(name)),
        }?;
        self.found |= text.is_some();
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
