//! HTTP/1.1 over a raw socket: a test sees what was sent, and decides what is left unsent.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;

/// The fields that ask for a WebSocket (RFC 6455 §4.1).
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// One client connection.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// A request and its answer; `None` when the connection ends without one, from whichever side.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head += "Host: studylab.localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        self.answer()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// A request line and headers, with `Host: studylab.localhost` unless there is another.
    pub fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head += "Host: studylab.localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.send(format!("{head}\r\n"));
    }

    /// The next answer, or `None` when the connection ends without one. A 100 is an answer.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.answer_to_head()?;
        match answer.header("content-length") {
            _ if answer.status < 200 => {}
            Some(length) => {
                let length: usize = length.parse().unwrap();
                while self.read.len() < length {
                    assert!(self.fill(PATIENCE), "ended within a body");
                }
                answer.body = self.read.drain(..length).collect();
            }
            None => answer.body = self.rest(),
        }
        Some(answer)
    }

    /// The same for an answer that has no body whatever it says: to HEAD.
    pub fn answer_to_head(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.fill(PATIENCE) {
                assert!(self.read.is_empty(), "ended within a head: {:?}", self.read);
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
        Some(Answer::of_head(&head))
    }

    /// Whether nothing comes any more, and the other side has ended it.
    pub fn ends_here(&mut self) -> bool {
        self.read.is_empty() && !self.fill(PATIENCE)
    }

    /// All that comes until the other side ends it.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill(PATIENCE) {}
        std::mem::take(&mut self.read)
    }

    /// Reads until these bytes have come somewhere in what follows.
    #[track_caller]
    pub fn read_until(&mut self, wanted: impl AsRef<[u8]>) {
        let wanted = wanted.as_ref();
        loop {
            if let Some(at) = self.read.windows(wanted.len()).position(|w| w == wanted) {
                self.read.drain(..at + wanted.len());
                return;
            }
            assert!(self.fill(PATIENCE), "ended after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Whether nothing at all comes for so long. Not a wait for something: the test has made sure
    /// already that whatever could come would have.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        // Two answers may have come at once.
        if !self.read.is_empty() {
            return false;
        }
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0];
        match self.stream.peek(&mut byte) {
            Ok(_) => false,
            Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Ends the connection with a reset instead of an orderly end.
    pub fn reset(self) {
        use nix::sys::socket::{setsockopt, sockopt::Linger};
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, Linger, &at_once).unwrap();
    }

    /// Reads some more; `false` at the end, orderly or not.
    fn fill(&mut self, limit: Duration) -> bool {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.read.extend_from_slice(&chunk[..n]);
                true
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => false,
            Err(e) => panic!("no answer: {e}"),
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn of_head(head: &str) -> Self {
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).unwrap().parse().unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Self { status, headers: headers.collect(), body: Vec::new() }
    }

    /// The value of a header that is there at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let first = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        first
    }

    pub fn request_id(&self) -> &str {
        self.header("x-request-id").expect("every answer has an X-Request-Id")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Asserts that this is the edge's own answer: `problem`, as problem details, with everything
    /// that each of them has. Returns the details.
    #[track_caller]
    pub fn problem(&self, status: u16, problem: &str) -> Value {
        let shown = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{shown}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{shown}");
        assert_eq!(self.header("cache-control"), Some("no-store"));
        let proxy_status = self.header("proxy-status").expect("Proxy-Status");
        assert!(proxy_status.starts_with("vango-edge; error="), "{proxy_status}");
        let json = self.json();
        assert_eq!(json["type"], format!("https://vango-edge.dev/problems/{problem}"), "{shown}");
        assert_eq!(json["status"], status);
        assert_eq!(json["forwarded"], "not forwarded");
        assert_eq!(json["request"], self.request_id());
        json
    }

    /// The same for one that may be tried again: with `Retry-After`, in the header and the details.
    #[track_caller]
    pub fn retryable(&self, problem: &str) -> Value {
        let json = self.problem(503, problem);
        let after: u64 = self.header("retry-after").expect("Retry-After").parse().unwrap();
        assert!(after >= 1);
        assert_eq!(json["retry_after"], after);
        json
    }

    /// The operation that the edge's own answer names, in its header and in its details.
    #[track_caller]
    pub fn operation(&self) -> String {
        let id = self.header("vango-edge-operation").expect("Vango-Edge-Operation");
        assert_eq!(self.json()["operation"], id);
        id.to_owned()
    }
}
