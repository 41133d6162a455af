//! Reading frames from an asynchronous stream.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use ttrpc::proto::MessageHeader;

use crate::error::{Error, Result};
use crate::rpc::{HEADER, header};

/// Room that a message gets at once: containerd's largest pieces of a stream, and their frame.
const LIKELY: usize = 33 << 10;

/// As [`read`], but once a frame has begun, all of it comes within `limit`.
///
/// # Errors
/// As [`read`], and `TimedOut`.
pub(crate) async fn read_within(
    reader: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> io::Result<(MessageHeader, Result<Vec<u8>>)> {
    let mut bytes = [0; HEADER];
    let begun = reader.read(&mut bytes).await?;
    if begun == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rest = async {
        reader.read_exact(&mut bytes[begun..]).await?;
        read_message(reader, bytes).await
    };
    timeout(limit, rest).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Reads the next frame: its header, and its message or why there is none. The message's buffer
/// grows as bytes arrive: a length alone does not make the daemon take 4 MiB.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream, also in the middle of a frame. A message that is too
/// large is skipped and an [`Error::TooLarge`] in place of it; the stream is still good.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<(MessageHeader, Result<Vec<u8>>)> {
    let mut bytes = [0; HEADER];
    reader.read_exact(&mut bytes).await?;
    read_message(reader, bytes).await
}

async fn read_message(
    reader: &mut (impl AsyncRead + Unpin),
    bytes: [u8; HEADER],
) -> io::Result<(MessageHeader, Result<Vec<u8>>)> {
    let (header, checked) = header(bytes);
    let length = u64::from(header.length);
    let mut body = reader.take(length);
    let mut message = Vec::with_capacity(LIKELY.min(header.length as usize));
    let (read, result): (u64, Result<Vec<u8>, Error>) = match checked {
        Ok(_) => (body.read_to_end(&mut message).await? as u64, Ok(message)),
        Err(error) => (tokio::io::copy(&mut body, &mut tokio::io::sink()).await?, Err(error)),
    };
    if read == length { Ok((header, result)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
