//! Live sockets through the real binary: where they come back to, what their app is told, and how
//! they end.

pub mod browser;
mod bytes;
mod ends;
mod hello;
mod herd;
mod languages;
mod moves;
mod redis;
mod resume;
mod secure;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::promotion::{deploy_preview, visit};
use crate::support::{Answer, Artifact, Edge, PATIENCE, eventually_some};

/// An open socket, as a client sees it.
pub struct Socket<S = TcpStream> {
    socket: WebSocket<S>,
    /// The cookie that came with it, ready to be sent back.
    pub cookie: Option<String>,
    /// The same with its attributes.
    pub set_cookie: Option<String>,
}

/// Opens a socket at `address`; an answer that is no 101 is its status.
pub fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Socket, u16> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    open_over(stream, &format!("ws://studylab.localhost{path}"), headers)
}

/// The same over a connection that is there.
pub fn open_over<S: Read + Write + std::fmt::Debug + 'static>(
    stream: S,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<Socket<S>, u16> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        let name: tungstenite::http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    match tungstenite::client::client(request, stream) {
        Ok((socket, answer)) => {
            let set_cookie = answer.headers().get("set-cookie").map(|c| c.to_str().unwrap());
            let set_cookie = set_cookie.map(str::to_owned);
            let cookie = set_cookie.as_deref().and_then(|c| c.split(';').next()).map(str::to_owned);
            Ok(Socket { socket, cookie, set_cookie })
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            Err(answer.status().as_u16())
        }
        Err(e) => panic!("{e}"),
    }
}

impl Socket {
    /// At the sample app's live route, with its first message.
    #[track_caller]
    pub fn greeted(edge: &Edge, path: &str, headers: &[(&str, &str)]) -> (Self, Value) {
        let mut socket = open(edge.listen, path, headers).expect("a 101");
        let hello = socket.json();
        assert_eq!(hello["type"], "hello", "{hello}");
        (socket, hello)
    }

    /// The same for one that comes back as a browser does: when it is told to come later, it does.
    pub fn back(edge: &Edge, path: &str, headers: &[(&str, &str)]) -> (Self, Value) {
        let mut socket = eventually_some("a 101", || match open(edge.listen, path, headers) {
            Ok(socket) => Some(socket),
            Err(status) => {
                // 502: it was asked just as the app was killed.
                assert!(matches!(status, 502 | 503), "{status}");
                None
            }
        });
        let hello = socket.json();
        assert_eq!(hello["type"], "hello", "{hello}");
        (socket, hello)
    }
}

impl Socket {
    /// The code that it is closed with in that time; `None` when it stays open.
    pub fn ends_within(&mut self, time: Duration) -> Option<u16> {
        self.socket.get_ref().set_read_timeout(Some(time)).unwrap();
        match self.socket.read() {
            Ok(Message::Close(frame)) => frame.map(|f| f.code.into()),
            Err(tungstenite::Error::Io(e))
                if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                None
            }
            other => panic!("{other:?}"),
        }
    }
}

impl<S: Read + Write> Socket<S> {
    /// The next message, which is JSON.
    #[track_caller]
    pub fn json(&mut self) -> Value {
        match self.socket.read().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected JSON, got {other:?}"),
        }
    }

    /// One more; the new count.
    #[track_caller]
    pub fn add(&mut self) -> u64 {
        self.socket.send(Message::text("inc")).unwrap();
        self.json()["count"].as_u64().unwrap()
    }

    pub fn send(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    pub fn read(&mut self) -> Message {
        self.socket.read().unwrap()
    }

    /// Reads to the end: the code of the close frame, or `None` for an end without one.
    pub fn closed(mut self) -> Option<u16> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => {
                    return frame.map(|CloseFrame { code, .. }| code.into());
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(e))
                    if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    panic!("it was not closed within {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }
}

/// The edge's own cookie in an answer, ready to be sent back, and with its attributes.
pub fn edge_cookie(answer: &Answer) -> Option<(&str, &str)> {
    let set = answer.headers.iter().filter(|(n, _)| n == "set-cookie").map(|(_, v)| v.as_str());
    let mut ours = set.filter(|c| c.starts_with("vango_edge="));
    let first = ours.next()?;
    assert_eq!(ours.next(), None);
    Some((first.split(';').next().unwrap(), first))
}

/// An app that sends every byte back, on a live route of its own.
pub fn echo(session: &str) -> Artifact {
    let artifact = Artifact::new()
        .set("process", "command", "[\"python3\", \"echo.py\"]")
        .set("process", "ready", "{ tcp = true }")
        .replace("session = [\"cookie:vango_session\", \"query:sid\"]", session);
    std::fs::write(artifact.path().join("echo.py"), include_str!("echo.py")).unwrap();
    artifact
}

/// A version of the sample app that writes its sessions under `schema` and reads `accepts` too, and
/// whose sockets end a second after another version has taken over.
pub fn version(schema: Option<char>, accepts: &[char]) -> Artifact {
    let hash = |c: &char| format!("sha256:{}", c.to_string().repeat(64));
    let accepts: Vec<_> = accepts.iter().map(hash).collect();
    let accepts: Vec<_> = accepts.iter().map(String::as_str).collect();
    let schema = schema.as_ref().map(hash);
    let artifact = Artifact::new().set("process", "drain_timeout", "\"1s\"");
    artifact.schema(schema.as_deref(), &accepts)
}

/// Gives production to `artifact` as an operator does: a preview, a page of it, a promotion.
pub fn redeploy(edge: &Edge, artifact: &Artifact, preview: &str) {
    deploy_preview(edge, artifact, preview);
    visit(edge, preview, 1);
    let promoted = edge.json(&["promote", "studylab", preview]);
    assert_eq!(promoted["state"], "healthy", "{promoted}");
}

/// The head of an upgrade, by hand.
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A socket whose bytes are the test's own, after its 101.
pub fn raw(address: SocketAddr, path: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: studylab.localhost\r\n{UPGRADE}{more}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream
}
