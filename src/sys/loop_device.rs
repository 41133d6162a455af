//! Loop devices: a file as a block device, see loop(4).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// How often another process may take the free device before us, 10 ms apart.
const ATTEMPTS: u32 = 100;

/// What may be done through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading only; the file is opened read-only too.
    Read,
    /// Reading and writing.
    Write,
}

/// Whether the device's reads and writes go through the page cache of the file's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// They do.
    Cached,
    /// They do not, where that file system can do so.
    Direct,
}

/// A file behind a loop device. The kernel frees the device when its last user is gone: this
/// value or, later, the mount.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Puts `file` behind a free device.
    pub(crate) fn attach(file: &Path, access: Access, caching: Caching) -> io::Result<Self> {
        let mut open = OpenOptions::new();
        open.read(true).write(access == Access::Write);
        let file = open.open(file)?;
        for _ in 0..ATTEMPTS {
            let path = PathBuf::from(format!("/dev/loop{}", free_device()?));
            let device = open.open(&path)?;
            match configure(&device, &file, access, caching) {
                // Somebody else was faster.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Self { path, _device: device }),
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// The block device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The number of a device that nobody uses, made if there is none.
fn free_device() -> io::Result<libc::c_int> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    command(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0)
}

fn configure(device: &File, file: &File, access: Access, caching: Caching) -> io::Result<()> {
    // SAFETY: the struct is integers and arrays of them, for which zero is valid: "not set".
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    if access == Access::Read {
        config.info.flags |= LO_FLAGS_READ_ONLY;
    }
    if caching == Caching::Direct {
        config.info.flags |= LO_FLAGS_DIRECT_IO;
    }
    // SAFETY: the kernel reads a loop_config from the pointer, which is one.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    match check(done) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            configure_in_steps(device.as_raw_fd(), file.as_raw_fd(), &config.info)
        }
        result => result.map(drop),
    }
}

/// For kernels before Linux 5.8, which do not know LOOP_CONFIGURE.
fn configure_in_steps(device: RawFd, file: RawFd, info: &LoopInfo) -> io::Result<()> {
    command(device, LOOP_SET_FD, file)?;
    // SAFETY: the kernel reads a loop_info64 from the pointer, which is one.
    let done = unsafe { libc::ioctl(device, LOOP_SET_STATUS64, std::ptr::from_ref(info)) };
    let done = check(done).and_then(|_| match info.flags & LO_FLAGS_DIRECT_IO {
        0 => Ok(0),
        _ => command(device, LOOP_SET_DIRECT_IO, 1),
    });
    if done.is_err() {
        let _ = command(device, LOOP_CLR_FD, 0); // the first failure is the one to report
    }
    done.map(drop)
}

/// An ioctl with an integer argument.
fn command(fd: RawFd, request: libc::Ioctl, argument: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: the requests above that come here take an integer, which the kernel checks.
    check(unsafe { libc::ioctl(fd, request, libc::c_long::from(argument)) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

// The kernel knows the structs by their size.
const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
