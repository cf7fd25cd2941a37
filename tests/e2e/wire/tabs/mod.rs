//! Tabs of real Vango apps come back: their client does so after an end that was not clean, and after no
//! other.

mod browser;
mod ends;
mod rest;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tempfile::TempDir;

use crate::live::raw;
use crate::support::{Artifact, Edge, eventually_some};

/// The live route's path in Vango.
const LIVE: &str = "/_vango/live";

/// An app that speaks as Vango's do, and where its sessions are kept.
pub fn vango() -> (Artifact, TempDir) {
    let sessions = tempfile::tempdir().unwrap();
    let artifact = Artifact::new()
        .env("SESSIONS", sessions.path().to_str().unwrap())
        .set("process", "command", "[\"python3\", \"vango.py\"]")
        .set("process", "ready", "{ tcp = true }")
        .set("state", "store", "{ kind = \"http\", path = \"/internal/sessions/{id}\" }")
        .replace("path = \"/vango/live\"", &format!("path = {LIVE:?}"))
        .replace(
            "session = [\"cookie:vango_session\", \"query:sid\"]",
            "session = [\"vango-hello\"]",
        );
    for (name, text) in [
        ("vango.py", include_str!("vango.py")),
        ("echo.py", include_str!("../../live/echo.py")),
        ("vango.html", include_str!("vango.html")),
    ] {
        std::fs::write(artifact.path().join(name), text).unwrap();
    }
    (artifact, sessions)
}

/// One end of a tab's socket, whose every byte is seen.
pub struct Tab {
    stream: TcpStream,
    /// The session, as the app has named it.
    pub sid: String,
    pub allocation: String,
    pub count: u64,
    /// What the app was told about it.
    pub told: String,
}

/// A masked binary message of Vango's.
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 122);
    let mut frame = vec![0x82, 0x80 | (payload.len() + 4) as u8, 0, 0, 0, 0];
    frame.extend([kind, 0, 0, payload.len() as u8]);
    frame.extend(payload);
    frame
}

impl Tab {
    /// Opens one with the session `sid`; empty for a new one.
    #[track_caller]
    pub fn open(edge: &Edge, sid: &str) -> Self {
        let mut stream = raw(edge.listen, LIVE, "");
        stream.write_all(&Self::hello(sid)).unwrap();
        Self::greeted(stream).expect("the app's hello")
    }

    pub fn hello(sid: &str) -> Vec<u8> {
        let mut hello = vec![2, 0, 4];
        hello.extend(b"csrf");
        hello.push(sid.len() as u8);
        hello.extend(sid.as_bytes());
        hello.extend([0, 0, 0, 0, 5, 0, 3, 32, 0, 60]);
        message(0, &hello)
    }

    /// One that comes back, as often as it is not answered.
    pub fn back(edge: &Edge, sid: &str) -> Self {
        eventually_some("the tab is back", || {
            let mut stream = raw(edge.listen, LIVE, "");
            stream.write_all(&Self::hello(sid)).unwrap();
            Self::greeted(stream)
        })
    }

    /// After its hello.
    pub fn greeted(mut stream: TcpStream) -> Option<Self> {
        let hello = read(&mut stream)?;
        assert_eq!(hello[..5], [0, 0, 0, hello[3], 0], "the app's hello");
        let sid = String::from_utf8(hello[6..6 + usize::from(hello[5])].to_vec()).unwrap();
        let (allocation, told) = (String::new(), String::new());
        let mut tab = Self { stream, sid, allocation, count: 0, told };
        tab.patched();
        Some(tab)
    }

    fn patched(&mut self) {
        let patch = read(&mut self.stream).expect("a patch");
        assert_eq!(patch[0], 2);
        let text = String::from_utf8(patch[4..].to_vec()).unwrap();
        let mut words = text.splitn(3, ' ');
        self.allocation = words.next().unwrap().to_owned();
        self.count = words.next().unwrap().parse().unwrap();
        self.told = words.next().unwrap().to_owned();
    }

    /// What the user's click does.
    pub fn click(&mut self) {
        self.stream.write_all(&message(1, &[1])).unwrap();
    }

    #[track_caller]
    pub fn add(&mut self) -> u64 {
        self.click();
        self.patched();
        self.count
    }

    /// Vango's own ping.
    pub fn ping(&mut self) {
        self.stream.write_all(&message(3, &[1, 0, 0, 0, 0, 0, 0, 0, 0])).unwrap();
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads to the end of the connection: what came before it.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    /// Whether it is open and nothing comes for so long.
    pub fn is_quiet(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let quiet =
            self.stream.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        quiet
    }
}

/// A whole unmasked message; `None` at the end of the connection.
fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    assert_eq!(head[0], 0x82, "a binary message, and no close frame");
    let mut payload = vec![0; usize::from(head[1])];
    stream.read_exact(&mut payload).ok()?;
    Some(payload)
}
