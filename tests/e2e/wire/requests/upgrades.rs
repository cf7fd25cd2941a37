//! Only a whole upgrade on a live route is one.

use super::*;

#[test]
fn what_is_no_upgrade_of_a_live_route_is_a_plain_request() {
    let wire = Wire::start();
    let socket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let whole = format!("Connection: Upgrade\r\n{socket}");
    let cases = [
        ("/page", "HTTP/1.1", whole.clone()),
        ("/none", "HTTP/1.1", whole.clone()),
        ("/live", "HTTP/1.1", socket.to_owned()),
        ("/live", "HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned()),
        ("/live", "HTTP/1.0", whole.clone()),
        ("/page", "HTTP/1.1", socket.to_owned()),
        ("/page", "HTTP/1.1", "Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n".to_owned()),
        ("/live", "HTTP/1.1", format!("{whole}Content-Length: 3\r\n")),
    ];
    for (path, version, fields) in cases {
        let mut connection = wire.edge.connect();
        let body = if fields.contains("Content-Length") { "abc" } else { "" };
        connection.send(format!(
            "GET {path} {version}\r\nHost: studylab.localhost\r\n{fields}\r\n{body}"
        ));
        let answer = connection.answer().unwrap();
        assert_eq!(answer.status, 200, "{path} {version} {fields}");
        let seen = wire.app.one();
        assert!(!seen.has("upgrade") && !seen.has("connection"), "{fields}: {}", seen.head);
        assert_eq!(seen.body, body, "{fields}");
        if version == "HTTP/1.1" {
            // It is no tunnel: what follows is a request.
            connection.send("GET /page HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n");
            assert_eq!(connection.answer().unwrap().status, 200, "{path} {fields}");
            assert!(wire.app.one().head.starts_with("GET /page "));
        }
    }
    let posted = wire.posted("/none", &format!("{whole}Content-Length: 3\r\n"), "abc");
    assert_eq!((posted.has("upgrade"), posted.body.as_str()), (false, "abc"));
}

#[test]
fn an_upgrade_of_a_live_route_is_made_anew_for_the_app() {
    let wire = Wire::start();
    let mut connection = wire.edge.connect();
    connection.send(
        "GET /live?sid=1 HTTP/1.1\r\nHost: studylab.localhost\r\nX-Mine: 1\r\n\
         Connection: keep-alive, Upgrade, X-Mine, X-Forwarded-For\r\nUpgrade: WebSocket\r\n\
         Cookie: a=1\r\nCookie: b=2\r\nVango.Edge.Epoch: forged\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(connection.answer().unwrap().status, 200, "the app's answer, which is no 101");
    let seen = wire.app.one();
    assert_eq!((seen.all("connection"), seen.all("upgrade")), (vec!["Upgrade"], vec!["websocket"]));
    assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert!(!seen.has("x-mine") && !seen.head.contains("forged"), "{}", seen.head);
}
