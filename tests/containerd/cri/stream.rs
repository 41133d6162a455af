//! The streams of `Exec`, `Attach` and `PortForward`: Kubernetes' channels in a websocket.
//!
//! The server of the CRI plugins knows SPDY and, of the websocket protocols, `v4.channel.k8s.io`: a
//! message is the number of its channel and data. The end of one channel cannot be told apart from
//! that of the connection; only `v5`, which it does not know, could.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::command;

/// Channels of `Exec` and `Attach`.
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
/// How the program ended, as a Kubernetes `Status` in JSON.
pub(crate) const ERROR: u8 = 3;
/// `{"Width": 80, "Height": 24}`
pub(crate) const RESIZE: u8 = 4;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// A connection.
pub(crate) struct Stream {
    server: BufReader<TcpStream>,
    /// What arrived so far, by channel.
    received: [Vec<u8>; 5],
}

impl Stream {
    /// Connects to what the CRI plugin answered.
    #[track_caller]
    pub(crate) fn open(url: &str) -> Self {
        let address = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url}"));
        let (host, path) = address.split_once('/').unwrap();
        let socket = TcpStream::connect(host).unwrap();
        socket.set_read_timeout(Some(command::wait_limit())).unwrap();
        let mut server = BufReader::new(socket);
        let request = format!(
            "GET /{path} HTTP/1.1\r\n\
             Host: {host}\r\n\
             Connection: Upgrade\r\n\
             Upgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        server.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(server.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("v4.channel.k8s.io"), "{head}");
        Self { server, received: Default::default() }
    }

    /// Sends `data` on `channel`.
    #[track_caller]
    pub(crate) fn send(&mut self, channel: u8, data: &[u8]) {
        self.send_frame(BINARY, &[&[channel], data].concat());
    }

    #[track_caller]
    fn send_frame(&mut self, kind: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | kind];
        match u16::try_from(payload.len()).unwrap() {
            length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]); // the mask, which changes nothing
        frame.extend(payload);
        self.server.get_mut().write_all(&frame).unwrap();
    }

    /// Waits for `text` on `channel`; takes it and what came before it away.
    #[track_caller]
    pub(crate) fn expect(&mut self, channel: u8, text: &str) -> String {
        loop {
            let received = String::from_utf8_lossy(&self.received[usize::from(channel)]);
            if let Some(at) = received.find(text) {
                let until = received[..at + text.len()].to_owned();
                self.received[usize::from(channel)].drain(..until.len());
                return until;
            }
            let so_far = received.into_owned();
            assert!(self.receive(), "{text:?} does not come, only {so_far:?}");
        }
    }

    /// Everything on `channel` until the server ends the connection.
    #[track_caller]
    pub(crate) fn rest(&mut self, channel: u8) -> String {
        while self.receive() {}
        String::from_utf8_lossy(&self.received[usize::from(channel)]).into_owned()
    }

    /// Reads a frame; `false` at the end.
    #[track_caller]
    fn receive(&mut self) -> bool {
        let Some([first, second]) = self.read() else { return false };
        let length = match second & 0x7f {
            126 => self.read().map_or(0, |bytes| u64::from(u16::from_be_bytes(bytes))),
            127 => self.read().map_or(0, u64::from_be_bytes),
            length => u64::from(length),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.server.read_exact(&mut payload).unwrap();
        match first & 0x0f {
            TEXT | BINARY => {
                if let Some((channel, data)) = payload.split_first() {
                    self.received[usize::from(*channel)].extend(data);
                }
            }
            PING => self.send_frame(PING + 1, &payload),
            CLOSE => return false,
            other => panic!("a frame of kind {other}"),
        }
        true
    }

    fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.server.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => panic!("{error}"),
        }
    }
}
