//! The root file system of a container: mounted from what containerd's snapshotter hands out,
//! unmounted with the container.
//!
//! The system calls may block, so they run on threads that live as long as they do.

mod fuse_overlay;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod helper;
mod kernel;
mod options;
#[cfg(test)]
mod tests;
mod unmount;

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::fuse_overlay::FuseOverlay;
use self::helper::Helper;
use self::options::{Options, Overlay};
pub(crate) use self::unmount::unmount_all;
use crate::error::{Error, Result};
use crate::rootless::in_user_namespace;
use crate::sys::thread::blocking;
use crate::trace::{self, Kind, Span};

/// One mount, as containerd describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The file system's type, or `bind`.
    pub(crate) kind: String,
    /// The device, image file or directory, or any word where the type needs none.
    pub(crate) source: String,
    /// Where in the root file system; empty for its top.
    pub(crate) target: String,
    /// Words as in fstab(5), each unsplit: one may contain commas.
    pub(crate) options: Vec<String>,
}

/// Begins an option that describes a layer, for runtimes that mount layers in their guests.
const LAYER_OPTION: &str = "io.katacontainers.fs-opt.layer=";

/// Whether the source of a mount is a block device with a file system on it.
pub(crate) fn is_block_device(mount: &Mount) -> bool {
    let block = fs::metadata(&mount.source).is_ok_and(|found| found.file_type().is_block_device());
    block && mount.kind != "bind"
}

/// Whether a mount describes an image that only the runtime's guest can mount.
pub(crate) fn is_nydus(mount: &Mount) -> bool {
    let layered = |option: &String| option.starts_with(LAYER_OPTION);
    matches!(mount.kind.as_str(), "nydus" | "fuse.nydus-overlayfs")
        || mount.options.iter().any(layered)
}

/// A mount and how it is made.
struct Component {
    /// 1 for the first of the root file system's mounts.
    number: usize,
    mount: Mount,
    way: Way,
}

enum Way {
    Kernel(Options),
    Helper(Helper),
    /// An overlay, and fuse-overlayfs's if the kernel refuses.
    Either(Options),
}

/// What became of a mount that the kernel was asked for.
enum Outcome {
    Mounted(RootfsMount),
    /// Nothing was mounted, and somebody else may try.
    Refused(RootfsMount, io::Error),
}

/// Makes `mounts` on `rootfs` in their order, each on its target as the ones before it left it.
/// The directory `rootfs` is made (mode 0711) if it is missing; without mounts nothing happens.
/// Overlays are the kernel's or fuse-overlayfs's to mount, as `fuse` has it.
///
/// `run` executes a mount helper and waits for its exit, not for the end of its output: the FUSE
/// daemon that it leaves behind may hold that. If this future is dropped, what it mounted goes.
///
/// # Errors
/// [`Error::Invalid`] before anything is mounted; [`Error::Mount`], [`Error::Io`] or the error of
/// `run` after all mounts made so far are undone.
pub(crate) async fn mount<R>(
    mounts: &[Mount],
    rootfs: &Path,
    fuse: FuseOverlay,
    run: R,
) -> Result<RootfsMount>
where
    R: AsyncFn(&Path, &[OsString]) -> Result<()>,
{
    let components: Vec<Component> = (1..)
        .zip(mounts)
        .map(|(number, mount)| Component::parse(number, mount, fuse))
        .collect::<Result<_>>()?;
    if components.is_empty() {
        return Ok(RootfsMount { rootfs: None });
    }
    let path = std::path::absolute(rootfs).map_err(Error::io("find", rootfs))?;
    make_directory(&path)?;
    let mut guard = RootfsMount { rootfs: Some(path.clone()) };
    for component in components {
        let mut span = component.span();
        let mounted = Arc::new(component).mount(&path, guard, &run).await;
        span.note(&mounted);
        guard = mounted?;
    }
    Ok(guard)
}

impl Component {
    fn parse(number: usize, mount: &Mount, fuse: FuseOverlay) -> Result<Self> {
        let mount = mount.clone();
        if let Some(helper) = Helper::of(&mount)? {
            return Ok(Self { number, mount, way: Way::Helper(helper) });
        }
        let options = Options::parse(&mount.kind, &mount.options)?;
        let is_overlay = options.make_overlay(&mount.kind);
        let way = match fuse {
            FuseOverlay::Fallback if is_overlay => Way::Either(options),
            FuseOverlay::Always if is_overlay => {
                let helper = Helper::overlay(&options).map_err(|why| {
                    Error::Invalid(format!("cannot mount rootfs component {number}: {why}"))
                })?;
                Way::Helper(helper)
            }
            _ => Way::Kernel(options),
        };
        Ok(Self { number, mount, way })
    }

    /// The span of its mount.
    fn span(&self) -> Span {
        let mut span = trace::span(Kind::Internal, "mount");
        span.set("berth.mount.type", self.mount.kind.as_str());
        span.set("berth.mount.source", self.mount.source.as_str());
        span.set("berth.mount.target", self.mount.target.as_str());
        span
    }

    /// Mounts it in its way.
    async fn mount<R>(
        self: Arc<Self>,
        rootfs: &Path,
        guard: RootfsMount,
        run: &R,
    ) -> Result<RootfsMount>
    where
        R: AsyncFn(&Path, &[OsString]) -> Result<()>,
    {
        if let Way::Helper(helper) = &self.way {
            return self.mount_with(helper, rootfs, guard, run).await;
        }
        match self.clone().mount_on_thread(rootfs.to_owned(), guard).await? {
            Outcome::Mounted(guard) => Ok(guard),
            Outcome::Refused(guard, error) => self.fall_back(error, rootfs, guard, run).await,
        }
    }

    /// Has the kernel mount it. The guard goes along and comes back: it undoes everything on that
    /// thread if the mount fails for good, or if nobody waits for it any more.
    async fn mount_on_thread(
        self: Arc<Self>,
        rootfs: PathBuf,
        guard: RootfsMount,
    ) -> Result<Outcome> {
        let work = move || {
            let (options, falls_back) = match &self.way {
                Way::Kernel(options) => (options, false),
                Way::Either(options) => (options, true),
                Way::Helper(_) => return Ok(Outcome::Mounted(guard)),
            };
            match kernel::mount(&self.mount, options, &rootfs) {
                Ok(()) => Ok(Outcome::Mounted(guard)),
                // Nothing is mounted: the mount is an overlay's last step, unless its propagation is
                // to be changed, which fuse-overlayfs does not take on.
                Err(error) if falls_back && is_refusal(&error) => {
                    Ok(Outcome::Refused(guard, error))
                }
                Err(error) => {
                    let hint = self.hint(options, &error);
                    Err(self.failure(&rootfs, error, hint))
                }
            }
        };
        blocking("rootfs-mount", work).await.map_err(Error::sys("start a thread"))?
    }

    /// Has fuse-overlayfs mount what the kernel has `refused`.
    async fn fall_back<R>(
        &self,
        refused: io::Error,
        rootfs: &Path,
        guard: RootfsMount,
        run: &R,
    ) -> Result<RootfsMount>
    where
        R: AsyncFn(&Path, &[OsString]) -> Result<()>,
    {
        let number = self.number;
        log::info!("the kernel does not mount rootfs component {number}, an overlay: {refused}");
        let Way::Either(options) = &self.way else { return Ok(guard) };
        let mut hint = self.hint(options, &refused);
        let done = match Helper::overlay(options) {
            Ok(helper) if helper.program().is_none() => Err(helper.advice()),
            Ok(helper) => self.run_helper(&helper, rootfs, run).await.map_err(|e| e.to_string()),
            Err(why) => Err(why),
        };
        match done {
            Ok(()) => {
                log::info!("fuse-overlayfs has mounted rootfs component {number} instead");
                return Ok(guard);
            }
            Err(why) => hint.push_str(&format!("; the fallback failed too: {why}")),
        }
        guard.unmount().await.unwrap_or_else(|error| log::warn!("{error}"));
        Err(self.failure(rootfs, refused, hint))
    }

    /// Has a helper mount it.
    async fn mount_with<R>(
        &self,
        helper: &Helper,
        rootfs: &Path,
        guard: RootfsMount,
        run: &R,
    ) -> Result<RootfsMount>
    where
        R: AsyncFn(&Path, &[OsString]) -> Result<()>,
    {
        if let Err(error) = self.run_helper(helper, rootfs, run).await {
            guard.unmount().await.unwrap_or_else(|error| log::warn!("{error}"));
            return Err(error);
        }
        Ok(guard)
    }

    async fn run_helper<R>(&self, helper: &Helper, rootfs: &Path, run: &R) -> Result<()>
    where
        R: AsyncFn(&Path, &[OsString]) -> Result<()>,
    {
        let target = kernel::path_inside(rootfs, &self.mount.target)
            .map_err(|error| self.failure(rootfs, error, String::new()))?;
        let Some(program) = helper.program() else {
            let source = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(self.failure(rootfs, source, format!("; {}", helper.advice())));
        };
        run(&program, &helper.arguments(&target)).await
    }

    fn failure(&self, rootfs: &Path, source: io::Error, hint: String) -> Error {
        let Mount { kind, source: from, target, .. } = &self.mount;
        let target = match target.trim_matches('/') {
            "" => rootfs.to_owned(),
            below => rootfs.join(below),
        };
        let (kind, from) = (kind.clone(), from.clone());
        Error::Mount { number: self.number, kind, from, target, source, hint }
    }

    /// What the kernel's one number most likely means, and what to do.
    fn hint(&self, options: &Options, error: &io::Error) -> String {
        let kind = &self.mount.kind;
        match error.raw_os_error() {
            Some(libc::ENODEV) if kind.contains('/') => {
                format!("; type {kind} is for containerd's mount manager: is it disabled?")
            }
            Some(libc::ENODEV) => format!("; the kernel has no filesystem type {kind}"),
            Some(libc::ENOTBLK) => "; no block device: the mount needs the `loop` option".into(),
            Some(libc::ENOENT) => match self.missing(options) {
                Some(path) => format!("; {} does not exist", path.display()),
                None => format!("; the rootfs has no {}", self.mount.target),
            },
            Some(libc::EPERM) if in_user_namespace() => {
                "; in a user namespace the kernel mounts filesystems of a few types only".into()
            }
            Some(libc::EPERM) => "; mounting needs CAP_SYS_ADMIN, as root has it".into(),
            Some(libc::EINVAL) if options.owners.is_some() => {
                "; can this filesystem be idmapped? The kernel log (dmesg) may say why not".into()
            }
            Some(libc::EINVAL) => "; the kernel log (dmesg) may say why".into(),
            _ => String::new(),
        }
    }

    /// The first of the files and directories that the mount is made of which is not there.
    fn missing(&self, options: &Options) -> Option<PathBuf> {
        let others = options.data.iter().filter_map(|word| {
            let path = word.strip_prefix("upperdir=").or(word.strip_prefix("workdir="))?;
            Some(PathBuf::from(path))
        });
        let source = Some(PathBuf::from(&self.mount.source)).filter(|path| path.is_absolute());
        let overlay = Overlay::parse(&options.data);
        source.into_iter().chain(overlay.layers()).chain(others).find(|path| !path.exists())
    }
}

/// Whether the kernel will not, rather than cannot: it (or a security module) does not let a user
/// namespace mount it, has no overlay file system (`ENODEV`), does not know an option, or does not
/// take the upper layer's file system (both `EINVAL`).
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EACCES, libc::ENODEV, libc::EINVAL, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
}

/// Makes the mount point as containerd does, for all to pass through and for none to list.
///
/// One that is there must be a directory itself: what is mounted through a link lies outside of the
/// bundle, where nobody unmounts it.
fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
            let no_place = || Error::io("mount on", path)(io::ErrorKind::NotADirectory.into());
            found.is_dir().then_some(()).ok_or_else(no_place)
        }
        result => result.map_err(Error::io("make", path)),
    }
}

/// Unmounts the root file system when dropped, so every `?` after [`mount`] undoes it.
#[derive(Debug)]
#[must_use = "dropping the guard unmounts the rootfs"]
pub(crate) struct RootfsMount {
    /// What is mounted, with everything below; `None` if nothing is.
    rootfs: Option<PathBuf>,
}

impl RootfsMount {
    /// Unmounts, on a thread, and reports failure, for `Delete`.
    ///
    /// # Errors
    /// As [`unmount_all`].
    pub(crate) async fn unmount(mut self) -> Result<()> {
        self.try_unmount().await
    }

    /// The same, and can be done again after a failure.
    ///
    /// # Errors
    /// As [`unmount_all`].
    pub(crate) async fn try_unmount(&mut self) -> Result<()> {
        let Some(rootfs) = self.rootfs.clone() else { return Ok(()) };
        let path = rootfs.clone();
        let mut span = trace::span(Kind::Internal, "unmount");
        match blocking("rootfs-unmount", move || unmount_all(&path)).await {
            Ok(result) => result.inspect_err(|error| span.fail(error))?,
            Err(error) => {
                log::warn!("no thread for it, unmounting at once: {error}");
                unmount::unmount_within(&rootfs, Duration::ZERO)
                    .inspect_err(|error| span.fail(error))?;
            }
        }
        self.rootfs = None;
        Ok(())
    }
}

impl Drop for RootfsMount {
    /// For the error paths: what is in use is detached at once, failures are only logged.
    fn drop(&mut self) {
        let Some(rootfs) = self.rootfs.take() else { return };
        if let Err(error) = unmount::unmount_within(&rootfs, Duration::ZERO) {
            log::warn!("{error}");
        }
    }
}
