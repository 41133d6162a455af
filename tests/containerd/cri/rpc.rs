//! gRPC with one request and one answer, over a unix socket.

use crate::command;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An answer that is none, in gRPC's words.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) message: String,
}

/// Calls `/SERVICE/METHOD` over a connection of its own.
#[track_caller]
pub(crate) fn call<A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<A, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut frame).unwrap();
    let exchange = exchange(socket, method, frame.freeze());
    let answer = runtime.block_on(async { timeout(command::wait_limit(), exchange).await });
    let answer = answer.unwrap_or_else(|_| panic!("{method} hangs"));
    let mut answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"))?;
    assert!(answer.len() >= 5 && answer.get_u8() == 0, "{method}: {answer:?}");
    let length = answer.get_u32();
    assert_eq!(answer.len(), length as usize, "{method}");
    Ok(A::decode(answer).unwrap())
}

/// Sends one frame; returns the one that comes back.
async fn exchange(
    socket: &Path,
    method: &str,
    frame: Bytes,
) -> Result<Result<Bytes, Status>, h2::Error> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(frame, true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut answer = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        answer.put(part);
    }
    // An answer that is only an error has its status where others have their head.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    connection.abort();
    Ok(status(&trailers).map(|()| answer.freeze()))
}

fn status(trailers: &HeaderMap) -> Result<(), Status> {
    let text = |name| {
        let value = trailers.get(name).map(|value| value.to_str().unwrap_or_default());
        value.unwrap_or_default().to_owned()
    };
    match text("grpc-status").parse() {
        Ok(0_u32) => Ok(()),
        Ok(1..) => Err(Status { message: decode(&text("grpc-message")) }),
        Err(_) => panic!("no gRPC status: {trailers:?}"),
    }
}

/// Undoes the percent encoding of gRPC's error texts.
fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.extend(byte);
        bytes.extend(if byte.is_some() { &part.as_bytes()[2..] } else { part.as_bytes() });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
