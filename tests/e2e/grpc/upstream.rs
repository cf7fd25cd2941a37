//! HTTP/2 to an app, by servers that do exactly what a test wants: what goes again, what does not, how many
//! requests share a connection, and what the app is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::json;

use crate::http2::peer::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use crate::support::{Edge, eventually};

const HOST: (&str, &str) = ("Host", "legacy.localhost");
const NO_ERROR: u32 = 0;
const REFUSED: u32 = 7;

/// What a server does with a request's head.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    /// RST_STREAM with REFUSED_STREAM.
    Refuse,
    /// The same once all of its body is there.
    RefuseLate,
    /// GOAWAY whose last stream is as many before this one, and the connection's end.
    Leave(u32),
    /// The connection's end, without a word.
    Close,
    /// Answers once as many requests wait.
    Together,
    /// 103 before the answer.
    Hint,
}

/// A server that speaks HTTP/2 in frames. What is not its subject it does not do: windows are large enough.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// `acts` are for the requests in the order in which they come; the last goes on.
    fn start(streams: u32, acts: impl Into<Vec<Act>>) -> Self {
        let (acts, listener) = (acts.into(), TcpListener::bind("127.0.0.1:0").unwrap());
        let this = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&this.connections), Arc::clone(&this.requests));
        let together = Arc::new(Barrier::new(TOGETHER));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::AcqRel);
                let (acts, requests, together) = (acts.clone(), requests.clone(), together.clone());
                std::thread::spawn(move || {
                    // The edge may end it at any time.
                    let _ = serve(stream.unwrap(), streams, &acts, &requests, &together);
                });
            }
        });
        this
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    /// An edge in front of it, with more in its file and in the edge's.
    fn edge(&self, app: &str, config: &str) -> Edge {
        edge(self.address, app, config)
    }
}

const TOGETHER: usize = 8;

fn edge(address: SocketAddr, app: &str, config: &str) -> Edge {
    let mut edge = Edge::start_with(config);
    assert!(edge.stop().success());
    let file = format!(
        "app = \"legacy\"\nhosts = [\"legacy.localhost\"]\nupstreams = [\"{address}\"]\n\
         protocol = \"h2c\"\n{app}\n"
    );
    std::fs::write(edge.apps().join("legacy.toml"), file).unwrap();
    edge.start_again();
    edge
}

fn edge_with_server(address: SocketAddr, server: &str) -> Edge {
    let mut edge = edge(address, UNCHECKED, "");
    assert!(edge.stop().success());
    edge.reconfigure("[server]\n", &format!("[server]\n{server}\n"));
    edge.start_again();
    edge
}

/// Without checks each request is one of a test's.
const UNCHECKED: &str = "[health]\ncheck = \"none\"";

fn serve(
    mut tcp: TcpStream,
    streams: u32,
    acts: &[Act],
    requests: &AtomicUsize,
    together: &Arc<Barrier>,
) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    tcp.read_exact(&mut preface)?;
    assert_eq!(preface, PREFACE, "by prior knowledge");
    // SETTINGS_MAX_CONCURRENT_STREAMS, and SETTINGS_INITIAL_WINDOW_SIZE.
    let settings = [&[0, 3][..], &streams.to_be_bytes(), &[0, 4], &(1u32 << 20).to_be_bytes()];
    tcp.write_all(&frame(SETTINGS, 0, 0, settings.concat()))?;
    tcp.write_all(&frame(WINDOW_UPDATE, 0, 0, (1u32 << 20).to_be_bytes()))?;
    let (open, mut late) = (Arc::new(AtomicUsize::new(0)), 0);
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        tcp.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        match (head[3], head[4]) {
            (SETTINGS, 0) => tcp.write_all(&frame(SETTINGS, ACK, 0, []))?,
            (PING, 0) => tcp.write_all(&frame(PING, ACK, 0, payload))?,
            (DATA, END_STREAM) if stream == late => {
                tcp.write_all(&frame(RST_STREAM, 0, stream, REFUSED.to_be_bytes()))?;
            }
            _ => {}
        }
        if head[3] != HEADERS {
            continue;
        }
        let n = requests.fetch_add(1, Ordering::AcqRel);
        let answer =
            [frame(HEADERS, END_HEADERS, stream, [0x88]), frame(DATA, END_STREAM, stream, b"ok")];
        match acts[n.min(acts.len() - 1)] {
            Act::Answer => tcp.write_all(&answer.concat())?,
            Act::RefuseLate => late = stream,
            Act::Refuse => {
                tcp.write_all(&frame(RST_STREAM, 0, stream, REFUSED.to_be_bytes()))?;
            }
            Act::Leave(before) => {
                let last = (stream - before).to_be_bytes();
                let told = [last, NO_ERROR.to_be_bytes()].concat();
                tcp.write_all(&frame(GOAWAY, 0, 0, told))?;
                return tcp.shutdown(std::net::Shutdown::Both);
            }
            Act::Close => return tcp.shutdown(std::net::Shutdown::Both),
            Act::Hint => {
                // Without a table: `:status: 103`, `link: </a.css>`.
                let hint = b"\x08\x03103\x00\x04link\x08</a.css>";
                tcp.write_all(&frame(HEADERS, END_HEADERS, stream, hint))?;
                tcp.write_all(&answer.concat())?;
            }
            Act::Together => {
                let now = open.fetch_add(1, Ordering::AcqRel) + 1;
                assert!(now <= streams as usize, "{now} streams, of {streams} allowed");
                let (mut tcp, open, together) = (tcp.try_clone()?, open.clone(), together.clone());
                std::thread::spawn(move || {
                    together.wait();
                    open.fetch_sub(1, Ordering::AcqRel);
                    tcp.write_all(&answer.concat())
                });
            }
        }
    }
}

/// A POST without a key: what may be sent once.
fn post(edge: &Edge, body: &str) -> crate::support::Answer {
    edge.ask("POST", "/form", &[HOST], body)
}

#[test]
fn what_the_app_refused_unprocessed_goes_again_whatever_it_asks_for() {
    for act in [Act::Refuse, Act::Leave(1)] {
        let server = Server::start(100, [act, Act::Answer]);
        let edge = server.edge(UNCHECKED, "");
        let answer = post(&edge, "a=1");
        assert!(answer.status == 200 && answer.text().contains("ok"), "{}", answer.text());
        assert_eq!(server.requests(), 2);
        let trace = edge.trace(answer.request_id());
        let steps = trace["steps"].as_array().unwrap();
        assert!(steps.iter().any(|s| s["kind"] == "unprocessed"), "{trace}");
    }
}

#[test]
fn what_may_have_been_processed_is_never_sent_again() {
    // Whether the last word counts the request, or there is none.
    for act in [Act::Leave(0), Act::Close] {
        let server = Server::start(100, [act, Act::Answer]);
        let edge = server.edge(UNCHECKED, "");
        let answer = post(&edge, "a=1");
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert_eq!(answer.json()["forwarded"], "forwarded, outcome unknown");
        assert_eq!(server.requests(), 1);
        // The next request finds another connection.
        assert_eq!(post(&edge, "a=2").status, 200);
    }
}

#[test]
fn a_server_that_speaks_no_http2_is_given_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut tcp = stream.unwrap();
            let _ = tcp.read(&mut [0; 1024]);
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let edge = edge(address, UNCHECKED, "");
    let answer = post(&edge, "a=1");
    assert_eq!((answer.status, &answer.json()["forwarded"]), (503, &json!("not forwarded")));
}

/// Whose keys the edge keeps.
const KEYED: &str = "[health]\ncheck = \"none\"\n[[route]]\npath = \"/form\"\nclass = \"action\"\n\
                     idempotency = \"edge\"\nprincipal = \"header:Who\"\n";

fn keyed(edge: &Edge) -> crate::support::Answer {
    edge.ask("POST", "/form", &[HOST, ("Idempotency-Key", "k"), ("Who", "me")], "a=1")
}

/// A record that says "forwarded" of what no app has read would be unknown for ever.
#[test]
fn a_key_is_free_again_where_nothing_of_its_request_reached_an_app() {
    // The kernel takes its connections, and it reads none.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let speaks_http1 = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [hangs.local_addr().unwrap(), speaks_http1.local_addr().unwrap()];
    std::thread::spawn(move || {
        for stream in speaks_http1.incoming() {
            let mut tcp = stream.unwrap();
            let _ = tcp.read(&mut [0; 1024]);
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    for address in addresses {
        let edge = edge(address, KEYED, "[limits]\nresponse_timeout = \"500ms\"\n");
        for _ in 0..2 {
            let answer = keyed(&edge);
            let said = answer.text();
            assert_eq!(answer.status, 503, "{said}");
            assert_eq!(answer.json()["forwarded"], "not forwarded", "{said}");
        }
    }
}

/// It acknowledges the edge's settings, and says that it takes nothing; then it serves.
#[test]
fn a_key_is_free_again_where_the_app_left_before_its_request_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        let mut left = listener.accept().unwrap().0;
        let mut preface = [0; PREFACE.len()];
        left.read_exact(&mut preface).unwrap();
        let leaves = [
            frame(SETTINGS, 0, 0, []),
            frame(SETTINGS, ACK, 0, []),
            frame(GOAWAY, 0, 0, [0u32.to_be_bytes(), NO_ERROR.to_be_bytes()].concat()),
        ];
        left.write_all(&leaves.concat()).unwrap();
        left.shutdown(std::net::Shutdown::Write).unwrap();
        // What is unread when it is closed would reset what it said.
        let _ = left.read_to_end(&mut Vec::new());
        for stream in listener.incoming() {
            let together = Arc::new(Barrier::new(1));
            let _ = serve(stream.unwrap(), 100, &[Act::Answer], &seen, &together);
        }
    });
    let edge = edge(address, KEYED, "");
    let answer = keyed(&edge);
    let said = answer.text();
    assert_eq!(
        (answer.status, &answer.json()["forwarded"]),
        (503, &json!("not forwarded")),
        "{said}"
    );
    assert_eq!(requests.load(Ordering::Acquire), 0);
    let mut again = keyed(&edge);
    eventually("its record is taken back", || {
        if again.status != 200 {
            again = keyed(&edge);
        }
        again.status == 200
    });
    assert_eq!(requests.load(Ordering::Acquire), 1);
}

#[test]
fn an_app_s_hints_pass_before_its_answer() {
    let server = Server::start(100, [Act::Hint]);
    let edge = edge_with_server(server.address, "h2c = true");
    let mut connection = edge.connect();
    connection.send_head("GET", "/page", &[HOST, ("Connection", "close")]);
    let hint = connection.answer().unwrap();
    assert_eq!((hint.status, hint.header("link")), (103, Some("</a.css>")));
    assert_eq!(connection.answer().unwrap().status, 200);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(edge.listen).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("http://legacy.localhost/page").body(()).unwrap();
        let (mut answer, _) = send.ready().await.unwrap().send_request(request, true).unwrap();
        let hint = std::future::poll_fn(|cx| answer.poll_informational(cx)).await;
        assert_eq!(hint.unwrap().unwrap().status(), 103);
        assert_eq!(answer.await.unwrap().status(), 200);
    });
}

#[test]
fn an_app_that_goes_on_refusing_is_asked_a_few_times() {
    let server = Server::start(100, [Act::Refuse]);
    let edge = server.edge(UNCHECKED, "");
    let answer = post(&edge, "a=1");
    assert_eq!((answer.status, &answer.json()["forwarded"]), (503, &json!("not forwarded")));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(server.requests(), 4);
}

#[test]
fn what_is_longer_than_what_the_edge_keeps_of_it_cannot_go_again() {
    let server = Server::start(100, [Act::RefuseLate]);
    let edge = server.edge(UNCHECKED, "");
    let answer = post(&edge, &"x".repeat(200 << 10));
    assert_eq!((answer.status, &answer.json()["forwarded"]), (503, &json!("not forwarded")));
    assert_eq!(server.requests(), 1);
}

#[test]
fn requests_share_connections_as_far_as_the_app_lets_them() {
    for (streams, most) in [(100, TOGETHER - 1), (2, TOGETHER)] {
        let acts = [vec![Act::Answer], vec![Act::Together]].concat();
        let server = Server::start(streams, acts);
        let edge = server.edge(UNCHECKED, "");
        assert_eq!(post(&edge, "first").status, 200);
        std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..TOGETHER).map(|_| scope.spawn(|| post(&edge, "a=1").status)).collect();
            assert!(all.into_iter().all(|one| one.join().unwrap() == 200));
        });
        let connections = server.connections.load(Ordering::Acquire);
        assert!(connections <= most, "{connections} for {TOGETHER} requests, {streams} on each");
        assert!(connections >= TOGETHER / streams as usize, "{connections}");
        assert_eq!(server.requests(), TOGETHER + 1);
    }
}

/// A server of the crate `h2` that answers each request by `answer`.
fn h2_server<F, T>(answer: F) -> SocketAddr
where
    F: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> T
        + Send
        + Copy
        + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond));
                    }
                });
            }
        });
    });
    address
}

/// Reads a body to its end: its bytes, and the trailers.
async fn whole(mut body: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        all.extend_from_slice(&piece);
    }
    (all, body.trailers().await.unwrap())
}

async fn echo_fields(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let (body, sent) = whole(body).await;
    let mut seen = format!("{} {}\n", head.method, head.uri);
    for (name, value) in &head.headers {
        seen += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    for (name, value) in &sent.unwrap_or_default() {
        seen += &format!("trailer {name}: {}\n", value.to_str().unwrap());
    }
    let response = Response::builder().header("trailer", "x-sum, set-cookie").body(()).unwrap();
    let mut send = respond.send_response(response, false).unwrap();
    send.send_data(seen.into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", body.len().to_string().parse().unwrap());
    trailers.insert("set-cookie", "a=b".parse().unwrap());
    send.send_trailers(trailers).unwrap();
}

#[test]
fn the_app_is_told_what_http2_has_and_its_trailers_pass() {
    let edge = edge(h2_server(echo_fields), "[health]\ncheck = \"http\"\npath = \"/up\"", "");
    let asked = [
        HOST,
        ("TE", "trailers"),
        ("Connection", "TE, X-Hop, close"),
        ("X-Hop", "1"),
        ("Expect", "100-continue"),
        ("Content-Length", "3"),
    ];
    let mut connection = edge.connect();
    connection.send_head("POST", "/a%2Fb?c=d", &asked);
    assert_eq!(connection.answer().unwrap().status, 100, "it has a place, and its body is wanted");
    connection.send("abc");
    let answer = connection.answer().unwrap();
    let seen = answer.text();
    assert!(seen.contains("POST http://legacy.localhost/a%2Fb?c=d\n"), "{seen}");
    for said in ["te: trailers", "x-forwarded-host: legacy.localhost", "x-forwarded-proto: http"] {
        assert!(seen.contains(said), "{said} in {seen}");
    }
    for gone in ["connection:", "x-hop:", "host: ", "expect:", "transfer-encoding:"] {
        assert!(!seen.contains(&format!("\n{gone}")), "{gone} in {seen}");
    }
    assert_eq!(answer.header("trailer"), Some("x-sum"), "the cookie belongs in the head");
    assert!(seen.contains("\r\n0\r\nx-sum: 3\r\n\r\n") && !seen.contains("a=b"), "{seen}");
    // A client that takes none is told of none.
    let plain = edge.ask("GET", "/", &[HOST], "");
    assert_eq!((plain.status, plain.header("trailer")), (200, None));
    assert!(!plain.text().contains("x-sum"));
}

#[test]
fn a_request_s_trailers_pass_from_http2_to_http2() {
    let edge = edge_with_server(h2_server(echo_fields), "h2c = true");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (seen, trailers) = runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(edge.listen).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("http://legacy.localhost/").body(()).unwrap();
        let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"abc"), false).unwrap();
        let mut trailers = HeaderMap::new();
        for name in ["x-sum", "authorization", "vango-edge-epoch", "x-forwarded-for"] {
            trailers.insert(name, "1".parse().unwrap());
        }
        body.send_trailers(trailers).unwrap();
        whole(answer.await.unwrap().into_body()).await
    });
    let seen = String::from_utf8(seen).unwrap();
    let passed: Vec<_> = seen.lines().filter(|l| l.starts_with("trailer ")).collect();
    assert_eq!(passed, ["trailer x-sum: 1"], "{seen}");
    assert_eq!(trailers.unwrap()["x-sum"], "3");
}

/// Bytes that `/slow` has got. One test asks for it.
static GOT: AtomicUsize = AtomicUsize::new(0);

/// Answers `stall` never, and other paths once all of the body is there.
async fn slow(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    if request.uri().path() == "/stall" {
        return std::future::pending().await;
    }
    let mut body = request.into_body();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        GOT.fetch_add(piece.len(), Ordering::AcqRel);
    }
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    send.send_data(GOT.load(Ordering::Acquire).to_string().into(), true).unwrap();
}

#[test]
fn an_app_is_not_silent_while_it_is_sent_to() {
    let edge = edge(h2_server(slow), UNCHECKED, "[limits]\nresponse_timeout = \"500ms\"\n");
    let mut connection = edge.connect();
    let asked = [HOST, ("Transfer-Encoding", "chunked"), ("Connection", "close")];
    connection.send_head("POST", "/slow", &asked);
    let sent = std::thread::scope(|scope| {
        // What an app is silent about twice tells how long twice that time is.
        let silent = scope.spawn(|| [(); 2].map(|()| edge.ask("POST", "/stall", &[HOST], "abc")));
        let mut sent = 0;
        while !silent.is_finished() {
            connection.send("a\r\n0123456789\r\n");
            sent += 10;
            eventually("the app has it", || GOT.load(Ordering::Acquire) == sent);
        }
        for answer in silent.join().unwrap() {
            let told = (answer.status, &answer.json()["forwarded"]);
            assert_eq!(told, (504, &json!("forwarded, outcome unknown")));
        }
        sent
    });
    connection.send("0\r\n\r\n");
    let answer = connection.answer().unwrap();
    let text = answer.text();
    assert!(answer.status == 200 && text.contains(&sent.to_string()), "{sent}: {text}");
}
