//! A client on the event loop: one call at a time on a kept connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::rpc::{self, stream};

/// Answers are a status or an empty message.
const READ_BUFFER: usize = 256;

/// A connection that is made when it is first needed and dropped when anything goes wrong.
pub(crate) struct Client {
    path: PathBuf,
    connection: Option<Connection>,
}

struct Connection {
    stream: BufReader<UnixStream>,
    next_id: u32,
}

impl Client {
    /// A client of the server on the unix socket at `path`; connects later.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, connection: None }
    }

    /// Calls one method with an encoded message and returns the encoded answer; gives up after `limit`.
    ///
    /// # Errors
    /// [`Error::Remote`] with the server's status: it took the call and said no. Any other: nobody
    /// knows whether it took the call; the connection is gone.
    pub(crate) async fn call(
        &mut self,
        method: (&str, &str),
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Vec<u8>> {
        // Taken out for the time of the call: one that fails or is dropped loses the connection.
        let connection = self.connection.take();
        let exchange = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => Connection::open(&self.path).await?,
            };
            let id = connection.take_id();
            let frame = rpc::request(id, method, payload, limit, metadata)?;
            let answer = connection.exchange(id, &frame, &self.path).await?;
            Ok((connection, answer))
        };
        let late = |_| Error::Deadline { what: format!("call of {}", method.1), limit };
        let (connection, answer) = timeout(limit, exchange).await.map_err(late)??;
        self.connection = Some(connection);
        rpc::result(&answer)
    }
}

impl Connection {
    async fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).await.map_err(Error::io("connect to", path))?;
        // Clients use odd stream ids.
        Ok(Self { stream: BufReader::with_capacity(READ_BUFFER, stream), next_id: 1 })
    }

    fn take_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(2);
        id
    }

    async fn exchange(&mut self, id: u32, frame: &[u8], path: &Path) -> Result<Vec<u8>> {
        self.stream.get_mut().write_all(frame).await.map_err(Error::io("write to", path))?;
        loop {
            let read = stream::read(&mut self.stream).await;
            let (header, message) = read.map_err(Error::io("read from", path))?;
            if header.stream_id == id {
                return message;
            }
            // An answer to a call that nobody waits for any more.
        }
    }
}
