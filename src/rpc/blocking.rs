//! A client for one call at a time, for the short-lived commands: `start` asks a living shim with
//! it. Each call has a deadline of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::proto::MESSAGE_TYPE_RESPONSE;

use super::HEADER;
use crate::error::{Error, Result};

/// One connection to a ttrpc server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    last: u32,
}

impl Client {
    /// A client on a connected socket in blocking mode.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, last: 0 }
    }

    /// Calls `method` of `service` and waits for its answer, `timeout` at most.
    ///
    /// # Errors
    /// [`Error::Remote`] with the server's status; [`Error::Deadline`]; [`Error::Sys`] when the
    /// connection broke, of kind [`ErrorKind::UnexpectedEof`] if the server ended. After the
    /// last two the connection is of no further use.
    pub(crate) fn call<A: Message>(
        &mut self,
        (service, method): (&str, &str),
        request: &impl Message,
        timeout: Duration,
    ) -> Result<A> {
        let stream = self.last.wrapping_add(1) | 1;
        self.last = stream;
        let deadline = Instant::now() + timeout;
        let payload = request.write_to_bytes().map_err(super::broken)?;
        let frame = super::request(stream, (service, method), payload, timeout, &[])?;
        let answer =
            self.exchange(&frame, stream, deadline).map_err(|source| match source.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    Error::Deadline { what: format!("{service}/{method}"), limit: timeout }
                }
                _ => Error::Sys { action: "call the shim", source },
            })?;
        let payload = super::result(&answer?)?;
        A::parse_from_bytes(&payload)
            .map_err(|e| Error::Invalid(format!("broken answer of {service}/{method}: {e}")))
    }

    /// Sends a frame and reads until the answer on `stream`; the inner error is the peer's fault.
    fn exchange(
        &mut self,
        frame: &[u8],
        stream: u32,
        deadline: Instant,
    ) -> io::Result<Result<Vec<u8>>> {
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(frame)?;
        loop {
            let mut header = [0; HEADER];
            self.read_exact(&mut header, deadline)?;
            let (header, length) = super::header(header);
            let mut message = match length {
                Ok(length) => vec![0; length],
                Err(error) => return Ok(Err(error)),
            };
            self.read_exact(&mut message, deadline)?;
            if header.stream_id == stream && header.type_ == MESSAGE_TYPE_RESPONSE {
                return Ok(Ok(message));
            }
        }
    }

    /// As `Read::read_exact`, but the deadline counts for all of it, not for each part.
    fn read_exact(&mut self, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buffer.is_empty() {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What is left of the time; the kernel takes zero for no limit, so none left is an error.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use protobuf::well_known_types::empty::Empty;
    use protobuf::well_known_types::wrappers::StringValue;

    use super::*;

    const CALL: (&str, &str) = ("s.S", "M");

    /// A server that answers the first request with `bytes`, in single bytes.
    fn server(bytes: Vec<u8>) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut request = [0; 512];
            let _ = theirs.read(&mut request);
            for byte in bytes {
                theirs.write_all(&[byte]).unwrap();
            }
        });
        ours
    }

    #[test]
    fn a_call_ends_with_the_answer_or_says_why_not() {
        let text = StringValue { value: "yes".into(), ..StringValue::default() };
        let good = super::super::response(1, Ok(text.write_to_bytes().unwrap())).unwrap();
        let other = super::super::response(9, Ok(vec![])).unwrap();
        let refused = super::super::response(1, Err(Error::ShuttingDown)).unwrap();
        let second = Duration::from_secs(5);

        let mut client = Client::new(server([other, good].concat()));
        let answer: StringValue = client.call(CALL, &Empty::new(), second).unwrap();
        assert_eq!(answer.value, "yes");

        let mut client = Client::new(server(refused));
        let error = client.call::<Empty>(CALL, &Empty::new(), second).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::UNAVAILABLE);

        let mut client = Client::new(server(vec![]));
        let error = client.call::<Empty>(CALL, &Empty::new(), second).unwrap_err();
        assert!(
            matches!(&error, Error::Sys { source, .. } if source.kind() == ErrorKind::UnexpectedEof),
            "{error}"
        );

        let (ours, _theirs) = UnixStream::pair().unwrap();
        let short = Duration::from_millis(20);
        let error = Client::new(ours).call::<Empty>(CALL, &Empty::new(), short).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }
}
