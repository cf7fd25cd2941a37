//! A client that writes HTTP/2 frames byte for byte, wrong ones included, and sees frames come back.
//! It shares nothing with the implementation that it tests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::{Edge, PATIENCE};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A string literal without Huffman coding (RFC 7541 §5.2).
fn literal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match text.len() {
        short @ 0..127 => out.push(short as u8),
        long => {
            out.push(127);
            let mut left = long - 127;
            while left >= 128 {
                out.push((left % 128) as u8 | 128);
                left /= 128;
            }
            out.push(left as u8);
        }
    }
    out.extend(text);
    out
}

/// Fields as literals that are not indexed (RFC 7541 §6.2.2).
pub fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let one = |(name, value): &(&str, &str)| {
        [vec![0], literal(name.as_bytes()), literal(value.as_bytes())].concat()
    };
    all.iter().flat_map(one).collect()
}

/// The fields of a request that is served, with `more` after them.
pub fn request(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let all = [
        (":method", method),
        (":scheme", "https"),
        (":authority", "studylab.localhost"),
        (":path", "/debug/echo"),
    ];
    [fields(&all), fields(more)].concat()
}

/// A whole GET.
pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, request("GET", &[]))
}

/// A POST whose body is to come.
pub fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, request("POST", &[]))
}

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a response's head, where it is one that HPACK has an index for.
    pub fn status(&self) -> Option<u16> {
        // What comes first may be a change of the table's size (RFC 7541 §6.3).
        let first = self.payload.iter().find(|b| **b & 0xe0 != 0x20)?;
        let known = [200, 204, 206, 304, 400, 404, 500];
        known.get(usize::from(first.checked_sub(0x88)?)).copied()
    }
}

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The stream was reset with this code.
    Stream(u32),
    /// The connection was ended with this code.
    Connection(u32),
    /// The connection was closed without a word.
    Closed,
    /// The request was answered with this status; 0 for one that HPACK has no index for.
    Answered(u16),
}

/// The connection.
pub struct Peer {
    tls: StreamOwned<ClientConnection, TcpStream>,
    read: Vec<u8>,
}

impl Peer {
    /// A connection by ALPN h2 on which nothing was said yet.
    pub fn silent(edge: &Edge, config: &Arc<ClientConfig>) -> Self {
        let socket = TcpStream::connect(edge.tls.unwrap()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from("studylab.localhost").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self { tls: StreamOwned::new(connection, socket), read: Vec::new() }
    }

    /// A connection on which both sides have said and acknowledged their settings.
    pub fn open(edge: &Edge, config: &Arc<ClientConfig>) -> Self {
        let mut peer = Self::silent(edge, config);
        peer.send([PREFACE, &frame(SETTINGS, 0, 0, [])].concat());
        let (mut theirs, mut ours) = (false, false);
        while !(theirs && ours) {
            let frame = peer.next().expect("settings");
            match (frame.kind, frame.flags) {
                (SETTINGS, ACK) => ours = true,
                (SETTINGS, _) => theirs = true,
                _ => {}
            }
        }
        peer.send(frame(SETTINGS, ACK, 0, []));
        peer
    }

    /// Sends; one that is closed meanwhile takes nothing more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.tls.write_all(bytes.as_ref()).and_then(|()| self.tls.flush()).is_ok()
    }

    /// The next frame; `None` once the connection is closed.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.read.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if self.read.len() >= 9 + length {
                    let payload = self.read.drain(..9 + length).skip(9).collect();
                    return Some(Frame { kind, flags, stream, payload });
                }
            }
            let mut chunk = [0; 16 * 1024];
            match self.tls.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.read.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("nothing came within {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }

    /// What becomes of `stream`. A connection that is ended in order, with code 0, is not an error.
    pub fn end_of(&mut self, stream: u32) -> End {
        let mut status = None;
        while let Some(frame) = self.next() {
            match frame.kind {
                GOAWAY if frame.code() != 0 => return End::Connection(frame.code()),
                RST_STREAM if frame.stream == stream => {
                    // An answer before the body was read ends with NO_ERROR (RFC 9113 §8.1).
                    return match (frame.code(), status) {
                        (0, Some(status)) => End::Answered(status),
                        (code, _) => End::Stream(code),
                    };
                }
                HEADERS if frame.stream == stream && status.is_none() => {
                    status = Some(frame.status().unwrap_or(0));
                }
                _ => {}
            }
            let last = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
            if frame.stream == stream && last {
                return End::Answered(status.unwrap_or(0));
            }
        }
        End::Closed
    }
}
