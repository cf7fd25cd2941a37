//! Answers arrive whole and true, whatever the app or the client does in the middle.

mod ends;
mod fields;
mod interim;
mod streams;
mod trailers;
mod whole;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Edge, PATIENCE, eventually_some};
use crate::tls::edge_with;

/// An app of raw bytes: it reads the head of one request of each connection, and what it says is the
/// test's.
struct App {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl App {
    fn start(answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (answer, seen) = (Arc::new(answer), Arc::clone(&heads));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let head = read_head(&mut stream);
                    // A look at the port sends none.
                    if !head.is_empty() {
                        seen.lock().unwrap().push(head.clone());
                        answer(&mut stream, &head);
                    }
                });
            }
        });
        Self { address, heads }
    }

    /// One that says the same to all.
    fn says(bytes: &'static [u8]) -> Self {
        Self::start(move |app, _| {
            let _ = app.write_all(bytes);
        })
    }

    /// Heads that came.
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// It has the host of the sample app, on routes of every class.
    fn file(&self) -> String {
        let address = self.address;
        format!(
            "app = \"wire\"\nhosts = [\"studylab.localhost\"]\nupstreams = [\"{address}\"]\n\
             [[route]]\npath = \"/live\"\nclass = \"live\"\n\
             [[route]]\npath = \"/app/*\"\nclass = \"action\"\nidempotency = \"app\"\n\
             max_body = \"1MiB\"\n\
             [[route]]\npath = \"/head/*\"\nclass = \"action\"\nidempotency = \"edge\"\n\
             fingerprint = \"head\"\nprincipal = \"cookie:who\"\nmax_body = \"64MiB\"\n\
             [[route]]\npath = \"/body/*\"\nclass = \"action\"\nidempotency = \"edge\"\n\
             principal = \"cookie:who\"\nmax_body = \"1MiB\"\n\
             [[route]]\npath = \"/*\"\nclass = \"page\"\nmax_body = \"1MiB\"\n"
        )
    }

    fn edge(&self) -> Edge {
        self.edge_with("")
    }

    fn edge_with(&self, config: &str) -> Edge {
        self.put_behind(Edge::start_with(config))
    }

    fn edge_with_tls(&self, config: &str) -> (Edge, TempDir) {
        let (edge, dir) = edge_with(config);
        (self.put_behind(edge), dir)
    }

    fn put_behind(&self, mut edge: Edge) -> Edge {
        assert!(edge.stop().success());
        fs::remove_file(edge.apps().join("studylab.toml")).unwrap();
        fs::write(edge.apps().join("wire.toml"), self.file()).unwrap();
        edge.start_again();
        edge
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads until the other side ends the connection, orderly or not.
fn rest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut all, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A head, with what a keyed action needs.
fn head(line: &str, more: &str) -> String {
    format!(
        "{line}\r\nHost: studylab.localhost\r\nIdempotency-Key: \"{}\"\r\nCookie: who=ada\r\n{more}\r\n",
        line.replace(['/', ' ', '.'], "-")
    )
}

/// Sends these bytes on a connection of their own, and says all that came until its end.
fn told(edge: &Edge, bytes: &str) -> String {
    let mut client = TcpStream::connect(edge.listen).unwrap();
    client.write_all(bytes.as_bytes()).unwrap();
    rest(&mut client)
}

/// The same for a client that has said all it will say.
fn told_half_closed(edge: &Edge, bytes: &str) -> String {
    let mut client = TcpStream::connect(edge.listen).unwrap();
    client.write_all(bytes.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rest(&mut client)
}

/// The last trace of this path.
fn trace(edge: &Edge, path: &str) -> Value {
    eventually_some("its trace", || {
        edge.list(&["traces", "--steps"]).into_iter().find(|t| t["path"] == path)
    })
}
