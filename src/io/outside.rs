//! Files that a process has and its container's mounts do not: how CRIU is told of them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use serde::{Deserialize, Serialize};

use super::process::ChildStdio;
use super::{StdioSpec, Stream};

/// A FIFO of containerd's that a process has as one of its standard streams. CRIU, which saves files by
/// their paths inside, takes it for [external] under its key, and at a restore [inherits] the
/// descriptor that comes with the key: a pipe that has the FIFO's mode, which it compares.
///
/// [external]: https://criu.org/External_files
/// [inherits]: https://criu.org/Inheriting_FDs_on_restore
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutsideFile {
    /// 1 or 2.
    fd: i32,
    /// The mount, by the number that the kernel has for it.
    mount: u32,
    inode: u64,
    /// Its type and permissions.
    mode: u32,
}

impl OutsideFile {
    pub(super) fn of(stream: Stream, file: &OwnedFd) -> io::Result<Self> {
        let found = fstat(file)?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = mount(&info).ok_or(io::ErrorKind::Unsupported)?;
        let fd = if stream == Stream::Stderr { 2 } else { 1 };
        Ok(Self { fd, mount, inode: found.st_ino, mode: found.st_mode })
    }

    /// The line of configuration for the checkpoint.
    pub(crate) fn external(&self) -> String {
        format!("external {}\n", self.key())
    }

    /// The line of configuration for the restore; none for what berth never writes.
    pub(crate) fn inherit(&self) -> String {
        match self.fd {
            1 | 2 => format!("inherit-fd fd[{}]:{}\n", self.fd, self.key()),
            _ => String::new(),
        }
    }

    fn key(&self) -> String {
        format!("file[{:x}:{:x}]", self.mount, self.inode)
    }

    /// Lets berth read, and drop, what would go nowhere: `/dev/null` itself cannot take the FIFO's place.
    pub(crate) fn claim(&self, spec: &mut StdioSpec) {
        let uri = if self.fd == 2 { &mut spec.stderr } else { &mut spec.stdout };
        if uri.is_empty() {
            *uri = "/dev/null".into();
        }
    }

    /// Gives the pipe that takes the FIFO's place its permissions.
    pub(crate) fn dress(&self, streams: &ChildStdio) -> io::Result<()> {
        let pipe = if self.fd == 2 { &streams.stderr } else { &streams.stdout };
        let is_fifo = |mode: u32| mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits();
        if is_fifo(self.mode) && is_fifo(fstat(pipe)?.st_mode) {
            fchmod(pipe.as_fd(), Mode::from_bits_truncate(self.mode))?;
        }
        Ok(())
    }
}

/// The mount's number in what /proc says of a descriptor.
fn mount(info: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_as_criu_names_it() {
        let file = OutsideFile { fd: 2, mount: 27, inode: 0x1_0099_0052, mode: 0o010_700 };
        assert_eq!(file.external(), "external file[1b:100990052]\n");
        assert_eq!(file.inherit(), "inherit-fd fd[2]:file[1b:100990052]\n");
        assert_eq!(OutsideFile { fd: 0, ..file }.inherit(), "");
        let info = "pos:\t0\nflags:\t0100001\nmnt_id:\t27\nino:\t990052\n";
        assert_eq!(mount(info), Some(27));
    }
}
