//! An app that is nothing but a listener: it keeps what it was sent byte for byte, and answers the same to
//! each request that it can read to its end, 400 to anything else, as servers do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The listener, and what came to it.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    /// As it was framed.
    pub body: String,
}

impl Seen {
    /// The values under `name`, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|l| l.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The body without its framing.
    pub fn content(&self) -> String {
        match self.has("transfer-encoding") {
            true => unchunked(&self.body).expect("a whole body").0,
            false => self.body.clone(),
        }
    }
}

/// What a chunked body holds, and how many bytes it takes with its trailers; `None` while it is not
/// whole.
fn unchunked(text: &str) -> Option<(String, usize)> {
    let (mut content, mut at) = (String::new(), 0);
    loop {
        let (size, _) = text[at..].split_once("\r\n")?;
        at += size.len() + 2;
        let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).ok()?;
        if size == 0 {
            break;
        }
        content += text.get(at..at + size)?;
        text.get(at + size..at + size + 2)?;
        at += size + 2;
    }
    loop {
        let (line, _) = text[at..].split_once("\r\n")?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((content, at));
        }
    }
}

impl Recorder {
    /// One that answers 200.
    pub fn start() -> Self {
        Self::says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// One that answers this.
    pub fn says(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), all) = (stream, Arc::clone(&all)) else { return };
                std::thread::spawn(move || serve(stream, &all, answer));
            }
        });
        Self { address, seen }
    }

    /// What came since it was last asked.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// The one request that came since it was last asked.
    #[track_caller]
    pub fn one(&self) -> Seen {
        let mut all = self.take();
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }
}

fn serve(mut stream: TcpStream, all: &Mutex<Vec<Seen>>, answer: &[u8]) {
    let mut read = String::new();
    let fill = |read: &mut String, stream: &mut TcpStream| {
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => read.push_str(&String::from_utf8_lossy(&chunk[..n])),
            _ => return false,
        }
        true
    };
    loop {
        while !read.contains("\r\n\r\n") {
            if !fill(&mut read, &mut stream) {
                return;
            }
        }
        let (head, rest) = read.split_once("\r\n\r\n").unwrap();
        let (head, mut rest) = (head.to_owned(), rest.to_owned());
        let mut seen = Seen { head, body: String::new() };
        if !seen.head.starts_with(|c: char| c.is_ascii_uppercase()) {
            all.lock().unwrap().push(seen);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let chunked = seen.has("transfer-encoding");
        let length: usize = seen.all("content-length").first().map_or(0, |l| l.parse().unwrap());
        let whole = |rest: &str| match chunked {
            true => unchunked(rest).map(|(_, n)| n),
            false => (rest.len() >= length).then_some(length),
        };
        let end = loop {
            if let Some(end) = whole(&rest) {
                break end;
            }
            if !fill(&mut rest, &mut stream) {
                return;
            }
        };
        read = rest.split_off(end);
        seen.body = rest;
        all.lock().unwrap().push(seen);
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}
