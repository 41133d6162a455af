//! One mount, made with system calls. They block, so all of this runs off the event loop.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::Mount;
use super::options::{Options, Overlay, OwnerMap, Passage};
use crate::sys::loop_device::{Access, Caching, LoopDevice};
use crate::sys::mount::{self as sys, Depth};
use crate::sys::user_namespace::user_namespace;

/// Mounts `mount` with its parsed `options` on its target below `rootfs`.
///
/// # Errors
/// The system call's; something may be mounted then, which the caller has to undo.
pub(super) fn mount(mount: &Mount, options: &Options, rootfs: &Path) -> io::Result<()> {
    let place = Place::find(rootfs, &mount.target)?;
    if options.flags.contains(MsFlags::MS_REMOUNT) {
        let data = options.data.join(",");
        sys::mount(&mount.source, &place.path, &mount.kind, options.flags, &data)?;
    } else if options.flags.contains(MsFlags::MS_BIND) {
        bind(mount, options, rootfs, &place)?;
    } else if mount.kind == "overlay" {
        overlay(options, rootfs, &place)?;
    } else {
        file_system(mount, options, &place)?;
        if let Some(owners) = &options.owners {
            let place = Place::find(rootfs, &mount.target)?;
            let tree = mapped_copy(&place.path, Depth::Mount, owners)?;
            sys::detach_at(&place.path)?;
            drop(place);
            sys::attach(tree.as_fd(), &Place::find(rootfs, &mount.target)?.path)?;
        }
    }
    if !options.propagation.is_empty() {
        sys::change(&Place::find(rootfs, &mount.target)?.path, options.propagation)?;
    }
    Ok(())
}

/// Where to mount. It names a place, not a path, so that nothing can be slipped in between.
struct Place {
    path: PathBuf,
    /// What `path` refers to, if the place is below the rootfs.
    fd: Option<OwnedFd>,
}

impl Place {
    /// The directory or file `target` of the root file system as it is mounted so far. Neither a
    /// symbolic link nor a `..` in it leads out of there.
    fn find(rootfs: &Path, target: &str) -> io::Result<Self> {
        if target.trim_matches('/').is_empty() {
            return Ok(Self { path: rootfs.to_owned(), fd: None });
        }
        let fd = sys::open_inside(rootfs, target)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(Self { path, fd: Some(fd) })
    }
}

/// The path by which other processes know `target`, for a mount helper.
pub(super) fn path_inside(rootfs: &Path, target: &str) -> io::Result<PathBuf> {
    let place = Place::find(rootfs, target)?;
    if place.fd.is_some() { fs::read_link(&place.path) } else { Ok(place.path) }
}

/// A bind mount. The kernel takes its other flags in a second call only.
fn bind(mount: &Mount, options: &Options, rootfs: &Path, place: &Place) -> io::Result<()> {
    let all = options.flags.contains(MsFlags::MS_REC);
    let kinds = MsFlags::MS_BIND | MsFlags::MS_REC;
    if let Some(owners) = &options.owners {
        let depth = if all { Depth::Tree } else { Depth::Mount };
        let tree = mapped_copy(Path::new(&mount.source), depth, owners)?;
        sys::attach(tree.as_fd(), &place.path)?;
    } else {
        sys::mount(&mount.source, &place.path, "bind", options.flags & kinds, "")?;
    }
    let flags = options.flags - kinds;
    if all && options.propagation.is_empty() {
        // Else unmounting what lies below would propagate and unmount it at the source too.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        sys::change(&Place::find(rootfs, &mount.target)?.path, private)?;
    }
    if flags.is_empty() {
        return Ok(());
    }
    let path = &Place::find(rootfs, &mount.target)?.path;
    let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    match sys::change(path, flags) {
        // In a user namespace the flags that the source has must stay.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            sys::change(path, flags | locked_flags(path)?)
        }
        result => result,
    }
}

/// The flags of the mount at `path` that a user namespace may not take from it.
fn locked_flags(path: &Path) -> io::Result<MsFlags> {
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let present = statvfs(path)?.flags();
    Ok(pairs.iter().filter(|(of, _)| present.contains(*of)).map(|(_, flag)| *flag).collect())
}

/// A detached copy of the mounts at `path`, in which the container's users own the files.
fn mapped_copy(path: &Path, depth: Depth, owners: &OwnerMap) -> io::Result<OwnedFd> {
    let namespace = user_namespace(&owners.uid, &owners.gid)?;
    let tree = sys::copy_mount(path, depth)?;
    sys::map_owners(tree.as_fd(), depth, namespace.as_fd(), 0)?;
    Ok(tree)
}

/// An overlay. Its lower layers are what is mapped to other owners: the upper one, which the
/// snapshotter makes for this container, belongs to the right ones already.
fn overlay(options: &Options, rootfs: &Path, place: &Place) -> io::Result<()> {
    let overlay = Overlay::parse(&options.data);
    let make = |data: &str| sys::mount("overlay", &place.path, "overlay", options.flags, data);
    match overlay.passage(sys::page_size()) {
        Passage::Whole(data) if options.owners.is_none() => make(&data),
        Passage::Relative { directory, data } if options.owners.is_none() => {
            sys::in_directory(&directory, || make(&data))
        }
        _ => {
            let namespace = match &options.owners {
                Some(owners) => Some(user_namespace(&owners.uid, &owners.gid)?),
                None => None,
            };
            let tree = staged(options.flags, &overlay, namespace.as_ref(), rootfs)?;
            sys::attach(tree.as_fd(), &place.path)
        }
    }
}

/// A detached overlay, made in a mount namespace of its own: there every layer is mounted under a
/// number, mapped to the owners of `namespace`. The overlay keeps them when the namespace goes.
fn staged(
    flags: MsFlags,
    overlay: &Overlay<'_>,
    namespace: Option<&OwnedFd>,
    rootfs: &Path,
) -> io::Result<OwnedFd> {
    sys::in_private_namespace(|| {
        // Any directory would do; this one has to be there.
        sys::mount("tmpfs", rootfs, "tmpfs", MsFlags::empty(), "mode=0700")?;
        std::env::set_current_dir(rootfs)?;
        for (index, layer) in overlay.layers().enumerate() {
            let name = PathBuf::from(index.to_string());
            fs::create_dir(&name)?;
            let tree = sys::copy_mount(&layer, Depth::Mount)?;
            if let Some(namespace) = namespace {
                let attributes = libc::MOUNT_ATTR_RDONLY;
                sys::map_owners(tree.as_fd(), Depth::Mount, namespace.as_fd(), attributes)?;
            }
            sys::attach(tree.as_fd(), &name)?;
        }
        let merged = Path::new("merged");
        fs::create_dir(merged)?;
        sys::mount("overlay", merged, "overlay", flags, &overlay.staged())?;
        sys::copy_mount(merged, Depth::Mount)
    })
}

/// Anything with a driver of its own: on a block device, an image file, or nothing.
fn file_system(mount: &Mount, options: &Options, place: &Place) -> io::Result<()> {
    // erofs cannot be written, but the kernel wants to hear so if its device is read-only.
    let is_erofs = mount.kind == "erofs";
    let always = if is_erofs { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let flags = options.flags | always;
    let make = |source: &str, data: &[String]| {
        sys::mount(source, &place.path, &mount.kind, flags, &data.join(","))
    };
    let Some(caching) = options.looped.or(is_erofs.then_some(Caching::Cached)) else {
        return make(&mount.source, &options.data);
    };
    if is_erofs && caching == Caching::Cached {
        // Since Linux 6.12 erofs reads image files without a loop device.
        match make(&mount.source, &options.data) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {}
            result => return result,
        }
    }
    let read_only = flags.contains(MsFlags::MS_RDONLY);
    let access = if read_only { Access::Read } else { Access::Write };
    // Each device lives on through the mount; what a failure leaves unused the kernel frees.
    let device = LoopDevice::attach(Path::new(&mount.source), access, caching)?;
    let (mut data, mut blobs) = (Vec::new(), Vec::new());
    for word in &options.data {
        match word.strip_prefix("device=").filter(|_| is_erofs) {
            Some(blob) => {
                let blob = LoopDevice::attach(Path::new(blob), access, caching)?;
                data.push(format!("device={}", blob.path().display()));
                blobs.push(blob);
            }
            None => data.push(word.clone()),
        }
    }
    make(&device.path().to_string_lossy(), &data)
}
