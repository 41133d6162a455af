//! FUSE file systems, which mount.fuse(8) starts and mounts.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Mount;
use super::options::without_private;
use crate::error::Result;

/// Where mount helpers are, also if the caller's PATH has no such directory.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/sbin", "/usr/sbin", "/usr/local/sbin", "/usr/bin"];

/// A type `fuse.NAME` or `fuse3.NAME`: the helper mounts the FUSE file system NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Helper {
    program: &'static str,
    file_system: String,
    options: Vec<String>,
}

impl Helper {
    /// The helper that `mount` asks for, or `None` where the kernel mounts by itself.
    ///
    /// # Errors
    /// As [`without_private`].
    pub(super) fn of(mount: &Mount) -> Result<Option<Self>> {
        let (program, file_system) = match mount.kind.split_once('.') {
            Some(("fuse", name)) => ("mount.fuse", name.to_owned()),
            Some(("fuse3", name)) => ("mount.fuse3", name.to_owned()),
            _ => return Ok(None),
        };
        let options = without_private(&mount.options)?.into_iter().map(str::to_owned).collect();
        Ok(Some(Self { program, file_system, options }))
    }

    /// The helper's name.
    pub(super) fn name(&self) -> &'static str {
        self.program
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
    pub(super) fn arguments(&self, source: &str, target: &Path) -> Vec<OsString> {
        let mut arguments = vec![OsString::from(source), target.into()];
        for option in &self.options {
            arguments.extend(["-o".into(), option.into()]);
        }
        arguments.extend(["-t".into(), OsString::from(&self.file_system)]);
        arguments
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
            let mount = Mount { kind: kind.into(), options, ..Mount::default() };
            let helper = Helper::of(&mount).unwrap();
            assert_eq!(helper.as_ref().map(Helper::name), program, "{kind}");
            if let Some(helper) = helper {
                assert_eq!(helper.arguments("src", Path::new("/r")), expected, "{kind}");
            }
        }
    }
}
