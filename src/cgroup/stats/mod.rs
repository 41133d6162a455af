//! What a cgroup used and what it may use, as the messages containerd's clients know.

mod text;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use containerd_shim_protos::{cgroups, cgroups_v2};
use protobuf::Message;

use crate::cgroup::Cgroup;
use crate::cgroup::file::{self, Reader};
use crate::error::{Error, Result};

/// Where the kernel lists the sizes of huge pages that this host has.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

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
        let (bytes, size) = match self {
            Self::V1(metrics) => (metrics.write_to_bytes(), metrics.compute_size()),
            Self::V2(metrics) => (metrics.write_to_bytes(), metrics.compute_size()),
        };
        bytes.map_err(|_| Error::TooLarge(usize::try_from(size).unwrap_or(usize::MAX)))
    }
}

/// Reads the metrics of a cgroup: three system calls a file, 15 to 40 files.
///
/// A file that is missing or says what nobody expects leaves its fields at 0.
///
/// # Errors
/// [`Error::NotFound`] once the cgroup is gone; [`Error::Io`] if a file cannot be read.
pub(crate) fn stats(cgroup: &Cgroup) -> Result<Stats> {
    let found = match &cgroup.v2 {
        Some(dir) if cgroup.v1.is_empty() => {
            v2::read(dir, Path::new(HUGE_PAGES)).map_err(Error::io("read the metrics of", dir))?
        }
        _ => v1::read(&cgroup.v1, Path::new(HUGE_PAGES))
            .map_err(Error::io("read the metrics of", cgroup.name()))?,
    };
    let id = || cgroup.name().display().to_string();
    found.ok_or_else(|| Error::NotFound { what: "cgroup", id: id() })
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    text::fuzz(text);
}

/// The sizes of huge pages in the form that control files have in their names (`2MB`), sorted.
fn huge_page_sizes(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut sizes: Vec<String> =
        names.filter_map(|name| text::huge_page_size(name.to_str()?)).collect();
    sizes.sort_unstable();
    sizes
}

/// A directory of control files and the buffer to read them into.
struct Files<'a> {
    dir: OwnedFd,
    /// What `max` becomes in the message.
    unlimited: u64,
    reader: &'a mut Reader,
}

impl<'a> Files<'a> {
    /// `None` if the directory is gone.
    fn open(dir: &Path, unlimited: u64, reader: &'a mut Reader) -> io::Result<Option<Self>> {
        let dir = file::directory(dir)?;
        Ok(dir.map(|dir| Self { dir, unlimited, reader }))
    }

    /// The number or limit in a file, 0 if it is not there.
    fn number(&mut self, name: &str) -> io::Result<u64> {
        let unlimited = self.unlimited;
        Ok(text::limit(self.text(name)?, unlimited).unwrap_or_default())
    }

    /// A file's text, or nothing if it is not there.
    fn text(&mut self, name: &str) -> io::Result<&str> {
        Ok(self.optional(name)?.unwrap_or_default())
    }

    /// A file's text, or `None` if it is not there.
    fn optional(&mut self, name: &str) -> io::Result<Option<&str>> {
        self.reader.control(self.dir.as_fd(), name)
    }
}
