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

/// An integer in the last seven bits of a first byte, and those after it (RFC 7541 §5.1).
pub fn integer(n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![n as u8];
    }
    let mut out = vec![127];
    let mut left = n - 127;
    while left >= 128 {
        out.push((left % 128) as u8 | 128);
        left /= 128;
    }
    out.push(left as u8);
    out
}

/// A string literal without Huffman coding (RFC 7541 §5.2).
pub fn literal(text: impl AsRef<[u8]>) -> Vec<u8> {
    [&integer(text.as_ref().len()), text.as_ref()].concat()
}

/// A head without a body, in as many frames as it takes.
pub fn head(stream: u32, block: &[u8]) -> Vec<u8> {
    let pieces: Vec<_> = block.chunks(16 * 1024).collect();
    let one = |(n, piece): (usize, &&[u8])| {
        let last = if n + 1 == pieces.len() { END_HEADERS } else { 0 };
        let (kind, flags) = if n == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
        frame(kind, flags | last, stream, piece)
    };
    pieces.iter().enumerate().flat_map(one).collect()
}

/// Fields as literals that are not indexed (RFC 7541 §6.2.2).
pub fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let one = |(name, value): &(&str, &str)| [vec![0], literal(name), literal(value)].concat();
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

/// Three digits in the Huffman code (RFC 7541 appendix B): to 2 they have five bits, above them six.
fn digits(code: &[u8]) -> Option<u16> {
    let bits = code.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
    let (mut left, mut number) = (8 * code.len(), 0);
    for _ in 0..3 {
        let next = |n: usize| bits >> left.checked_sub(n).unwrap_or(31) & ((1 << n) - 1);
        let (digit, length) = match next(5) {
            short @ 0..=2 => (short, 5),
            _ => (next(6).checked_sub(0x16)?, 6),
        };
        number = 10 * number + digit as u16;
        left = left.checked_sub(length)?;
    }
    Some(number)
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

    /// The same; answers' heads refer to nothing that came before them.
    pub fn without_table(edge: &Edge, config: &Arc<ClientConfig>) -> Self {
        let mut peer = Self::open(edge, config);
        peer.send(frame(SETTINGS, 0, 0, [0, 1, 0, 0, 0, 0]));
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

    /// The answer to the request of `stream`: its status, and its body. On a connection of
    /// [`Peer::without_table`].
    pub fn answer_of(&mut self, stream: u32) -> (u16, String) {
        let (mut status, mut body) = (None, Vec::new());
        loop {
            let frame = self.next().expect("an answer");
            assert_ne!(frame.kind, GOAWAY, "code {}", frame.code());
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                HEADERS if status.is_none() => {
                    // Both are in the static table, or its name is and its value follows.
                    let start = frame.payload.iter().position(|b| *b & 0xe0 != 0x20);
                    let literal = match &frame.payload[start.unwrap_or(0)..] {
                        [8, 0x83, code @ ..] => code.get(..3).and_then(digits),
                        [8, 0x82, code @ ..] => code.get(..2).and_then(digits),
                        _ => None,
                    };
                    status = frame.status().or(literal);
                    assert!(status.is_some(), "{:x?}", frame.payload);
                }
                DATA => body.extend(&frame.payload),
                RST_STREAM => panic!("reset, code {}", frame.code()),
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return (status.unwrap(), String::from_utf8(body).unwrap());
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
