//! Who a request's client is: behind a listener for both families, behind proxies that end TLS, and
//! behind those that are not trusted.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use crate::promotion::{deploy_preview, host};
use crate::support::{Answer, Artifact, Connection, Edge, UPGRADE, eventually};
use crate::tls::{client_config, edge_with};

/// An app that answers each request with the head that it got.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    let whole = |read: &[u8]| {
        let end = read.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let length =
            head.split("content-length: ").nth(1).map_or("0", |l| l.lines().next().unwrap());
        (read.len() >= end + 4 + length.parse::<usize>().unwrap()).then_some(head)
    };
    let head = loop {
        match stream.read(&mut chunk) {
            Ok(n) if n > 0 => read.extend_from_slice(&chunk[..n]),
            _ => return,
        }
        if let Some(head) = whole(&read) {
            break head;
        }
    };
    let length = head.len();
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
    let _ = stream.shutdown(std::net::Shutdown::Write);
    while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
}

/// Values of `name` in a head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines()
        .filter_map(|l| l.split_once(": "))
        .filter(|(n, _)| *n == name)
        .map(|(_, v)| v)
        .collect()
}

/// Asks a path of the echoing app.
fn ask(edge: &Edge, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let body = if method == "POST" { "abc" } else { "" };
    edge.ask(method, path, &[&[("Host", "echo.localhost")], headers].concat(), body)
}

/// An edge with an app that echoes what it got on routes of every class, and `keys` of `[server]`.
fn edge_before_echo(keys: &str) -> Edge {
    let route = |path: &str, more: &str| format!("[[route]]\npath = \"{path}\"\n{more}\n");
    let edge = |print: &str| {
        format!(
            "class = \"action\"\nidempotency = \"edge\"\nprincipal = \"header:x-user\"\nfingerprint = \"{print}\""
        )
    };
    let app = format!(
        "app = \"echo\"\nhosts = [\"echo.localhost\", \"www.echo.test\"]\nupstreams = [\"{}\"]\n{}{}{}{}{}",
        echo(),
        route("/none", "class = \"action\"\nidempotency = \"none\""),
        route("/app", "class = \"action\"\nidempotency = \"app\""),
        route("/body", &edge("body")),
        route("/head", &edge("head")),
        route("/live", "class = \"live\""),
    );
    let edge = Edge::start_with_app("echo", &app);
    if !keys.is_empty() {
        edge.reconfigure("[server]\n", &format!("[server]\n{keys}\n"));
        edge.json(&["reload"]);
    }
    edge
}

const ROUTES: [(&str, &str); 6] = [
    ("GET", "/page"),
    ("POST", "/none"),
    ("POST", "/app"),
    ("POST", "/body"),
    ("POST", "/head"),
    ("GET", "/live"),
];

#[test]
fn a_trusted_proxys_word_reaches_the_app_on_every_class_and_anybody_elses_does_not() {
    let edge = edge_before_echo("");
    let said = [
        ("X-Forwarded-For", "203.0.113.9, 192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.echo.test"),
        ("Forwarded", "for=192.0.2.7;proto=https"),
        ("X-Real-Ip", "203.0.113.9"),
    ];
    let seen = |edge: &Edge, n: usize| {
        ROUTES.map(|(method, path)| {
            let key = format!("{n}{path}");
            let mut headers = vec![("Idempotency-Key", key.as_str()), ("X-User", "u")];
            headers.extend(said);
            if path == "/live" {
                headers.extend(UPGRADE);
                headers.retain(|(name, _)| *name != "Idempotency-Key");
            }
            let mut connection = edge.connect();
            let length = [("Host", "echo.localhost"), ("Content-Length", "3")];
            let host = if method == "POST" { &length[..] } else { &length[..1] };
            connection.send_head(method, path, &[host, &headers].concat());
            if method == "POST" {
                connection.send("abc");
            }
            let answer = connection.answer().expect("an answer");
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let head = answer.text().to_owned();
            assert_eq!(values(&head, "forwarded"), [""; 0], "{path}");
            assert_eq!(values(&head, "x-real-ip"), [""; 0], "{path}");
            let all = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
            (path, all.map(|name| values(&head, name).join("|")))
        })
    };
    let own = ["127.0.0.1", "http", "echo.localhost"].map(str::to_owned);
    assert_eq!(seen(&edge, 1), ROUTES.map(|(_, path)| (path, own.clone())));
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n");
    let said = edge.json(&["reload"]);
    assert_eq!(said["last_attempt"]["changed"][0], "server.trusted_proxies");
    let told = ["192.0.2.7", "https", "www.echo.test"].map(str::to_owned);
    assert_eq!(seen(&edge, 2), ROUTES.map(|(_, path)| (path, told.clone())));
    // The trace tells whose request it was.
    let page = ask(&edge, "GET", "/page", &[("X-Forwarded-For", "192.0.2.7")]);
    assert_eq!(edge.trace(page.request_id())["client"], "192.0.2.7");
    // Another network's word does not count.
    edge.reconfigure("127.0.0.0/8", "10.0.0.0/8");
    edge.json(&["reload"]);
    let head = ask(&edge, "GET", "/page", &[("X-Forwarded-For", "192.0.2.7")]);
    assert_eq!(values(head.text(), "x-forwarded-for"), ["127.0.0.1"]);
}

#[test]
fn what_a_trusted_proxy_says_is_read_from_the_right() {
    let edge = edge_before_echo("trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]");
    let of = |headers: &[(&str, &str)]| {
        let head = ask(&edge, "GET", "/page", headers);
        let value = |name: &str| values(head.text(), name).join("|");
        (value("x-forwarded-for"), value("x-forwarded-proto"), value("x-forwarded-host"))
    };
    let is = |f: &str, p: &str, h: &str| (f.to_owned(), p.to_owned(), h.to_owned());
    let host = "echo.localhost";
    for (sent, seen) in [
        (
            &[("X-Forwarded-For", "203.0.113.1, 192.0.2.7, 10.0.0.2")][..],
            is("192.0.2.7", "http", host),
        ),
        (&[("X-Forwarded-For", "::ffff:192.0.2.7")], is("192.0.2.7", "http", host)),
        (
            &[("Forwarded", "for=\"[2001:db8::7]:80\";proto=https")],
            is("2001:db8::7", "https", host),
        ),
        (&[("Forwarded", "for=_hidden;proto=https")], is("127.0.0.1", "https", host)),
        (
            &[("Forwarded", "for=192.0.2.7;host=www.echo.test")],
            is("192.0.2.7", "http", "www.echo.test"),
        ),
        // A client's own word that the proxy passed on.
        (
            &[("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=203.0.113.1")],
            is("127.0.0.1", "http", host),
        ),
        (&[("X-Forwarded-Host", "evil.example")], is("127.0.0.1", "http", host)),
        (&[("X-Forwarded-For", "nonsense")], is("127.0.0.1", "http", host)),
        (&[], is("127.0.0.1", "http", host)),
    ] {
        assert_eq!(of(sent), seen, "{sent:?}");
    }
}

#[test]
fn who_came_over_https_to_a_proxy_is_not_sent_there_again() {
    let keys = "trusted_proxies = [\"127.0.0.1\"]\nredirect_http = true\nhsts = \"1h\"";
    let edge = edge_before_echo(keys);
    let plain = ask(&edge, "GET", "/page?a=1", &[]);
    let to = plain.header("location");
    assert_eq!((plain.status, to), (308, Some("https://echo.localhost/page?a=1")));
    assert_eq!(plain.header("strict-transport-security"), None);
    let by = [("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "www.echo.test")];
    let to = ask(&edge, "GET", "/page", &by);
    assert_eq!(to.header("location"), Some("https://www.echo.test/page"));
    let secure = ask(&edge, "GET", "/page", &[("X-Forwarded-Proto", "https")]);
    assert_eq!(secure.status, 200);
    assert_eq!(secure.header("strict-transport-security"), Some("max-age=3600"));
    // Nowhere to go where HTTPS is served nowhere.
    edge.reconfigure("trusted_proxies = [\"127.0.0.1\"]\n", "");
    let refused = edge.command(&["reload"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("redirect_http") && why.contains("trusted_proxies"), "{why}");
}

#[test]
fn over_tls_from_a_proxy_that_was_asked_in_the_clear_is_in_the_clear() {
    let (edge, dir) = edge_with("hsts = \"1h\"\n");
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    let config = client_config(&dir, "one", &[b"http/1.1"]);
    let ask = |proto: &str| {
        let stream = TcpStream::connect(edge.tls.unwrap()).unwrap();
        let name = rustls::pki_types::ServerName::try_from("studylab.localhost").unwrap();
        let session = rustls::ClientConnection::new(config.clone(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(session, stream);
        let head = "GET /debug/echo HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: close\r\n";
        stream.write_all(format!("{head}X-Forwarded-Proto: {proto}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap().to_ascii_lowercase()
    };
    let (clear, secure) = (ask("http"), ask("https"));
    assert!(
        clear.contains("\"x-forwarded-proto\",\"http\"") && !clear.contains("strict-transport")
    );
    assert!(
        secure.contains("\"x-forwarded-proto\",\"https\"") && secure.contains("strict-transport")
    );
}

/// A PROXY header, version 2, for `address`, with `PP2_TYPE_SSL` and this in its field of bits.
fn proxied(address: [u8; 4], ssl: u8) -> Vec<u8> {
    let mut head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14".to_vec();
    head.extend(address);
    head.extend([127, 0, 0, 1, 0x12, 0x34, 0, 80]);
    head.extend([0x20, 0, 5, ssl, 0, 0, 0, 0]);
    head
}

#[test]
fn a_proxy_header_tells_whether_its_client_came_over_tls() {
    let edge = edge_before_echo("proxy_protocol_from = [\"127.0.0.1\"]");
    let ask = |before: Vec<u8>, headers: &[(&str, &str)]| {
        let mut connection = edge.connect();
        connection.send(before);
        connection.send_head("GET", "/page", &[&[("Host", "echo.localhost")], headers].concat());
        let answer = connection.answer().unwrap();
        let value = |name: &str| values(answer.text(), name).join("|");
        (value("x-forwarded-for"), value("x-forwarded-proto"))
    };
    let client = |proto: &str| ("192.0.2.7".to_owned(), proto.to_owned());
    assert_eq!(ask(proxied([192, 0, 2, 7], 1), &[]), client("https"));
    assert_eq!(ask(proxied([192, 0, 2, 7], 0), &[]), client("http"));
    // What a client says through it is not the proxy's word.
    assert_eq!(ask(proxied([192, 0, 2, 7], 1), &[("X-Forwarded-Proto", "http")]), client("https"));
    // A balancer between a CDN and the edge: the CDN's word counts, told by the balancer's.
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"192.0.2.7\"]\n");
    edge.json(&["reload"]);
    let by = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "https")];
    let seen = ask(proxied([192, 0, 2, 7], 0), &by);
    assert_eq!(seen, ("198.51.100.1".to_owned(), "https".to_owned()));
}

/// An edge whose preview `pr-7` is behind a token.
fn edge_with_token(keys: &str, token: &str) -> Edge {
    let mut edge = Edge::start();
    assert!(edge.stop().success());
    fs::write(edge.apps().join("token"), token).unwrap();
    let app = edge.apps().join("studylab.toml");
    let text = fs::read_to_string(&app).unwrap();
    let access = format!("{text}\npreview_access = {{ token = {{ file = \"token\" }} }}\n");
    fs::write(app, access).unwrap();
    edge.reconfigure("[server]\n", &format!("[server]\n{keys}\n"));
    edge.start_again();
    deploy_preview(&edge, &Artifact::new(), "pr-7");
    edge
}

const TOKEN: &str = "t0ken-for-preview-7";

#[test]
fn locked_means_not_looked_at_by_any_way_and_locks_nobody_else() {
    let edge = edge_with_token("trusted_proxies = [\"127.0.0.1\"]", TOKEN);
    let host = host("pr-7");
    let ask = |from: &str, target: &str, more: &[(&str, &str)]| {
        let who = [("Host", host.as_str()), ("X-Forwarded-For", from)];
        edge.ask("GET", target, &[&who, more].concat(), "")
    };
    let token = |token| [("Vango-Edge-Preview-Token", token)];
    let query = format!("/dashboard?vango_preview={TOKEN}");
    // As a browser navigates: anything else passes without a cookie.
    let welcome = ask("2001:db8::9:1", &query, &[("Accept", "text/html")]);
    let cookie = welcome.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    // By the header, by the query and by the cookie of a guessed token, each counts.
    let (expires, _) = cookie.split_once('=').unwrap().1.split_once('.').unwrap();
    for n in 0..3 {
        assert_eq!(ask("2001:db8::1", "/dashboard", &token("guess")).status, 401);
        assert_eq!(ask("2001:db8::1", "/dashboard?vango_preview=guess", &[]).status, 401);
        let guess = format!("vango_preview={expires}.{n:064x}");
        assert_eq!(ask("2001:db8::1", "/dashboard", &[("Cookie", &guess)]).status, 401);
    }
    assert_eq!(ask("2001:db8::1", "/dashboard", &token("guess")).status, 401);
    let right: [(&str, Vec<(&str, &str)>); 3] = [
        ("/dashboard", token(TOKEN).to_vec()),
        (&query, vec![]),
        ("/dashboard", vec![("Cookie", &cookie)]),
    ];
    for (target, more) in &right {
        // The same customer, by another address of its /64.
        ask("2001:db8::2", target, more).problem(429, "too-many-attempts");
        let other = ask("2001:db8:0:1::2", target, more);
        assert!(matches!(other.status, 200 | 303), "{target}: {}", other.status);
    }
    // An IPv4 client of a listener for both is itself.
    for _ in 0..10 {
        assert_eq!(ask("::ffff:192.0.2.1", "/dashboard", &token("guess")).status, 401);
    }
    ask("192.0.2.1", "/dashboard", &token(TOKEN)).problem(429, "too-many-attempts");
    assert_eq!(ask("::ffff:192.0.2.2", "/dashboard", &token(TOKEN)).status, 200);
}

#[test]
fn a_short_token_is_refused_before_it_opens_anything() {
    let edge = edge_with_token("", TOKEN);
    fs::write(edge.apps().join("token"), "short").unwrap();
    let config = edge.config();
    let check = edge.command(&["check", "-c", config.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
    assert!(!check.status.success(), "{said}");
    let whole = said.contains("studylab.toml") && said.contains("fewer than 16 characters");
    assert!(whole && said.contains("preview_access") && !said.contains("short\""), "{said}");
    assert!(!edge.command(&["reload"]).status.success());
}

#[test]
fn an_ipv4_client_of_a_listener_for_both_has_its_own_address() {
    let mut edge = Edge::start();
    assert!(edge.stop().success());
    edge.reconfigure("listen = [\"127.0.0.1:0\"]\ngrace", "listen = [\"[::]:0\"]\ngrace");
    edge.start_again();
    edge.deploy(&Artifact::new());
    let seen = |to: &str| {
        let mut connection =
            Connection::open(format!("{to}:{}", edge.listen.port()).parse().unwrap());
        connection.send_head("GET", "/debug/echo", &[("X-Forwarded-For", "203.0.113.9")]);
        let answer = connection.answer().unwrap();
        let echo: Value = answer.json();
        let all = echo["headers"].as_array().unwrap();
        let found = all.iter().find(|h| h[0] == "x-forwarded-for").unwrap()[1].clone();
        (found, edge.trace(answer.request_id())["client"].clone())
    };
    assert_eq!(seen("127.0.0.1"), ("127.0.0.1".into(), "127.0.0.1".into()));
    assert_eq!(seen("[::1]"), ("::1".into(), "::1".into()));
    // A network of IPv4 addresses is one there too.
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n");
    edge.json(&["reload"]);
    assert_eq!(seen("127.0.0.1").0, "203.0.113.9");
    assert_eq!(seen("[::1]").0, "::1");
}

/// As nginx's `limit_conn` behind its `real_ip` module.
#[test]
fn a_client_of_a_trusted_proxy_has_its_share_and_no_other_client_pays_for_it() {
    let edge = Edge::start_with("[limits.client]\nmax_connections_per_address = 2\n");
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/debug/echo").status, 200);
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    let send = |client: &str, path: &str| {
        let mut connection = edge.connect();
        connection.send_head("GET", path, &[("X-Forwarded-For", client)]);
        connection
    };
    let ask = |client: &str| send(client, "/debug/echo").answer().expect("an answer");
    let slow = || send("2001:db8::1", "/debug/slow?ms=2000");
    let mut under_way = [slow(), slow()];
    eventually("both are under way", || edge.ps()[0]["in_flight"] == 2);
    let refused = ask("2001:db8::ffff");
    refused.problem(429, "too-many-requests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let decided = edge.trace(refused.request_id());
    assert_eq!(decided["client"], "2001:db8::ffff", "{decided}");
    assert_eq!(ask("192.0.2.1").status, 200, "another client of the same proxy");
    assert_eq!(ask("127.0.0.1").status, 200, "the proxy itself");
    for connection in &mut under_way {
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    assert_eq!(ask("2001:db8::ffff").status, 200, "its share is free again");
}
