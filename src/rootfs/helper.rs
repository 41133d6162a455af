//! FUSE file systems: programs that mount them, and leave behind the process that serves them.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::options::{Options, without_private};
use super::{Mount, fuse_overlay};
use crate::error::Result;

/// Where mount helpers are, also if the caller's PATH has no such directory.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/sbin", "/usr/sbin", "/usr/local/sbin", "/usr/bin"];

/// A program that mounts a FUSE file system, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Helper {
    program: &'static str,
    package: &'static str,
    /// The arguments around the place to mount on.
    around: [Vec<OsString>; 2],
}

impl Helper {
    /// The helper that `mount` asks for with a type `fuse.NAME` or `fuse3.NAME`: mount.fuse(8) with
    /// the FUSE file system NAME. `None` where the kernel mounts by itself.
    ///
    /// # Errors
    /// As [`without_private`].
    pub(super) fn of(mount: &Mount) -> Result<Option<Self>> {
        let (program, file_system) = match mount.kind.split_once('.') {
            Some(("fuse", name)) => ("mount.fuse", name),
            Some(("fuse3", name)) => ("mount.fuse3", name),
            _ => return Ok(None),
        };
        let mut options = Vec::new();
        for option in without_private(&mount.options)? {
            options.extend(["-o".into(), option.into()]);
        }
        options.extend(["-t".into(), file_system.into()]);
        let around = [vec![mount.source.clone().into()], options];
        Ok(Some(Self { program, package: "fuse3", around }))
    }

    /// fuse-overlayfs(1), to mount an overlay in place of the kernel.
    ///
    /// # Errors
    /// As [`fuse_overlay::words`].
    pub(super) fn overlay(options: &Options) -> Result<Self, String> {
        let around = [vec!["-o".into(), fuse_overlay::words(options)?.into()], Vec::new()];
        Ok(Self { program: "fuse-overlayfs", package: "fuse-overlayfs", around })
    }

    /// What to do if it is missing.
    pub(super) fn advice(&self) -> String {
        format!("install {} (package {})", self.program, self.package)
    }

    /// The helper's path, or `None` if it is not installed.
    pub(super) fn program(&self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
            .map(|directory| directory.join(self.program))
            .find(|file| is_program(file))
    }

    /// The helper's arguments.
    pub(super) fn arguments(&self, target: &Path) -> Vec<OsString> {
        let [before, after] = &self.around;
        before.iter().cloned().chain([target.into()]).chain(after.iter().cloned()).collect()
    }
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_names_the_helper_and_its_file_system() {
        let expected = ["src", "/r", "-o", "lowerdir=/a:/b", "-o", "ro", "-t", "x.y"];
        let cases = [
            ("fuse.x.y", Some("mount.fuse")),
            ("fuse3.x.y", Some("mount.fuse3")),
            ("fuse", None),
            ("fuseblk.x", None),
            ("overlay", None),
        ];
        for (kind, program) in cases {
            let options = ["lowerdir=/a:/b", "X-containerd.x=y", "ro"].map(str::to_owned).to_vec();
            let (kind, source) = (kind.to_owned(), "src".to_owned());
            let mount = Mount { kind, source, options, ..Mount::default() };
            let helper = Helper::of(&mount).unwrap();
            assert_eq!(helper.as_ref().map(|helper| helper.program), program, "{mount:?}");
            if let Some(helper) = helper {
                assert_eq!(helper.arguments(Path::new("/r")), expected, "{mount:?}");
            }
        }
    }
}
