//! Reading frames from an asynchronous stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use ttrpc::proto::MessageHeader;

use crate::error::{Error, Result};
use crate::rpc::{HEADER, header};

/// Room that a message gets at once: containerd's largest pieces of a stream, and their frame.
const LIKELY: usize = 33 << 10;

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
