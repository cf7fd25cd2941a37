//! HTTP/2: what clients that take nothing may have held for them, and uploads over a long way.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use crate::http2::peer::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, Peer, SETTINGS, fields, frame,
};
use crate::support::{Edge, PATIENCE, eventually, memory_of};
use crate::tls::{client_config, edge_with, runtime};

/// An app that answers each request with 64 MiB, and counts those whose head it has read. It says how long
/// a body it was sent where there is one.
fn app() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&count);
            std::thread::spawn(move || serve(stream, &count));
        }
    });
    (address, asked)
}

fn serve(mut stream: TcpStream, asked: &AtomicUsize) -> Option<()> {
    let mut read = Vec::new();
    let mut chunk = [0; 64 * 1024];
    let end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        read.extend_from_slice(&chunk[..n]);
    };
    asked.fetch_add(1, Ordering::AcqRel);
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    if let Some(length) = head.split("content-length: ").nth(1) {
        let length: usize = length.lines().next()?.parse().ok()?;
        let mut left = length - (read.len() - end);
        while left > 0 {
            left -= stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
        return Some(());
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n").ok()?;
    for _ in 0..1024 {
        stream.write_all(&chunk).ok()?;
    }
    Some(())
}

/// An edge with TLS before that app.
fn edge(limits: &str) -> (Edge, TempDir, Arc<AtomicUsize>) {
    let (mut edge, dir) = edge_with(&format!("[limits.client]\n{limits}\n"));
    let (address, asked) = app();
    assert!(edge.stop().success());
    let app = format!(
        "app = \"big\"\nhosts = [\"one.test\"]\nupstreams = [\"{address}\"]\n[health]\ncheck = \"none\"\n"
    );
    fs::write(edge.apps().join("big.toml"), app).unwrap();
    edge.start_again();
    (edge, dir, asked)
}

/// A connection whose client never takes a byte of an answer, with so many requests on it.
fn stalled(edge: &Edge, dir: &TempDir, streams: u32) -> Peer {
    let mut peer = Peer::silent(edge, &client_config(dir, "one", &[b"h2"]));
    // SETTINGS_INITIAL_WINDOW_SIZE is 4.
    peer.send([PREFACE, &frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0])].concat());
    let get =
        [(":method", "GET"), (":scheme", "https"), (":authority", "one.test"), (":path", "/")];
    for n in 0..streams {
        assert!(peer.send(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, fields(&get))));
    }
    peer
}

fn cut(edge: &Edge) -> u64 {
    edge.metric("vango_edge_cutoffs_total{limit=\"write-time\"}")
}

#[test]
fn a_stream_whose_client_takes_nothing_holds_little_and_not_for_long() {
    let (edge, dir, asked) = edge("write_timeout = \"6s\"");
    let before = memory_of(edge.pid());
    let peers: Vec<_> = (0..4).map(|_| stalled(&edge, &dir, 100)).collect();
    eventually("the app has all of them", || asked.load(Ordering::Acquire) == 400);
    let mut most = 0;
    eventually("each is reset", || {
        most = most.max(memory_of(edge.pid()).saturating_sub(before));
        cut(&edge) == 400
    });
    println!("{} KiB a stream", most / 400 / 1024);
    // 64 KiB, and what a request takes anyway.
    assert!(most < 400 * 128 * 1024, "{most} bytes more");
    drop(peers);
    eventually("the app is free of them", || edge.ps().iter().all(|a| a["in_flight"] == 0));
}

#[test]
fn all_that_wait_for_their_clients_have_one_bound() {
    // 16 streams' worth; none would be cut by its own time.
    let (edge, dir, asked) = edge("write_timeout = \"10m\"\nh2_memory = \"1MiB\"");
    let peer = stalled(&edge, &dir, 100);
    eventually("the app has all of them", || asked.load(Ordering::Acquire) == 100);
    eventually("what is too much is reset", || cut(&edge) >= 84);
    assert_eq!(edge.ask("GET", "/", &[("Host", "nobody.test")], "").status, 404);
    drop(peer);
}

/// Passes bytes on `late`, both ways, as a long way does.
fn far_from(edge: SocketAddr, late: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let near = listener.accept().unwrap().0;
        let far = TcpStream::connect(edge).unwrap();
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            to.set_nodelay(true).unwrap();
            let (put, take) = mpsc::channel::<Vec<u8>>();
            std::thread::spawn(move || {
                let mut chunk = vec![0; 256 * 1024];
                while let Ok(n @ 1..) = from.read(&mut chunk) {
                    let piece = chunk[..n].to_vec();
                    let put = put.clone();
                    // Each on its own, so that what comes meanwhile is on its way too.
                    let _ = put.send(piece);
                }
            });
            std::thread::spawn(move || {
                while let Ok(first) = take.recv() {
                    // What has come by then is late by no more than this.
                    std::thread::sleep(late);
                    let rest: Vec<u8> = take.try_iter().flatten().collect();
                    if to.write_all(&[first, rest].concat()).is_err() {
                        return;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

/// Uploads over 100 ms there and back; the largest window that its stream was given.
fn upload(edge: &Edge, dir: &TempDir) -> usize {
    const BYTES: usize = 8 << 20;
    let to = far_from(edge.tls.unwrap(), Duration::from_millis(50));
    runtime().block_on(async {
        let connector = tokio_rustls::TlsConnector::from(client_config(dir, "one", &[b"h2"]));
        let socket = tokio::net::TcpStream::connect(to).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("studylab.localhost").unwrap();
        let stream = connector.connect(name, socket).await.unwrap();
        let mut client = h2::client::Builder::new();
        let (send, connection) =
            client.max_send_buffer_size(BYTES).handshake::<_, bytes::Bytes>(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("https://one.test/")
            .header("content-length", BYTES)
            .body(())
            .unwrap();
        let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
        let (mut left, mut most) = (BYTES, 0);
        while left > 0 {
            body.reserve_capacity(left);
            let given = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
            most = most.max(given);
            let piece = given.min(left);
            left -= piece;
            body.send_data(vec![0; piece].into(), left == 0).unwrap();
        }
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        most
    })
}

#[test]
fn an_uploads_window_follows_what_is_taken_within_a_budget() {
    let (edge, dir, _) = edge("");
    let most = upload(&edge, &dir);
    println!("a window of {} KiB at most", most / 1024);
    assert!(most >= 256 * 1024, "{most}");
    // Without any budget left each has what it begins with, and goes on with that.
    edge.reconfigure(
        "[limits.client]\n",
        "[limits.client]\nh2_window = \"1MiB\"\nh2_memory = \"1MiB\"\n",
    );
    let mut edge = edge;
    assert!(edge.stop().success());
    edge.start_again();
    assert!(upload(&edge, &dir) <= 1 << 20);
}
