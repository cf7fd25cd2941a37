//! `static-1k`: answers every request on `127.0.0.1:$PORT` with the same 1 KiB, one thread for
//! each connection. It reads heads only: for GETs from a proxy, not from strangers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let body = "x".repeat(1024);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for stream in listener.incoming() {
        let (stream, answer) = (stream?, answer.clone());
        // A connection that breaks is the proxy's to notice.
        std::thread::spawn(move || serve(stream, answer.as_bytes()));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(4096);
    let mut chunk = [0; 4096];
    loop {
        let n = stream.read(&mut chunk)?;
        if n == 0 || head.len() > 65_536 {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..n]);
        while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            head.drain(..end + 4);
            stream.write_all(answer)?;
        }
    }
}
