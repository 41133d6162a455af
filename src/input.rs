//! What containerd writes to our stdin: a small message, then end of file.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};

/// Longest message we take; containerd's own shims read as much.
const LIMIT: usize = 10 << 20;
/// For the whole message: a pipe that nobody closes must not hold up `start` for ever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads stdin to its end; a terminal counts as empty.
///
/// # Errors
/// [`Error::Deadline`] after 10 s without end of file, [`Error::Invalid`] above 10 MiB.
pub(crate) fn read() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    // One owned copy reads without std's buffer and lock.
    let file = stdin.as_fd().try_clone_to_owned().map_err(Error::sys("read stdin"))?;
    read_all(file.into(), LIMIT, TIMEOUT)
}

fn read_all(mut file: std::fs::File, limit: usize, timeout: Duration) -> Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut input = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) => {
                let what = "reading the bootstrap message from stdin".into();
                return Err(Error::Deadline { what, limit: timeout });
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Error::sys("wait for stdin")(errno.into())),
        }
        match file.read(&mut chunk) {
            Ok(0) => return Ok(input),
            Ok(count) if input.len() + count > limit => {
                return Err(Error::Invalid(format!("stdin has more than {limit} bytes")));
            }
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => return Err(Error::sys("read stdin")(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pipe(content: &[u8]) -> (File, File) {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        writer.write_all(content).unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn input_ends_at_end_of_file_at_the_limit_or_at_the_deadline() {
        let (reader, writer) = pipe(b"abc");
        drop(writer);
        assert_eq!(read_all(reader, 3, TIMEOUT).unwrap(), b"abc");

        let (reader, _writer) = pipe(b"abcd");
        assert!(matches!(read_all(reader, 3, TIMEOUT), Err(Error::Invalid(_))));

        let (reader, _writer) = pipe(b"abc");
        let short = Duration::from_millis(20);
        assert!(matches!(read_all(reader, 3, short), Err(Error::Deadline { .. })));

        let null = File::open("/dev/null").unwrap();
        assert_eq!(read_all(null, 3, TIMEOUT).unwrap(), b"");
    }
}
