//! What a connected socket holds.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);

/// How much of what was sent on a unix socket the other side has not read, in bytes of the kernel's own
/// memory for it; zero is exact.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ (which is TIOCOUTQ) writes one int, for which there is room.
    unsafe { siocoutq(socket.as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}
