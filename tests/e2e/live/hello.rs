//! Sockets whose session is in a Vango client's first message.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Edge, eventually};

use super::{UPGRADE, echo, raw};

/// With close frames; how such sockets end without is in `wire::tabs`.
const HELLO: &str = "session = [\"vango-hello\"]\nsocket_end = \"close\"";

/// A masked binary message with a ClientHello of protocol 2.0.
fn hello(sid: &str) -> Vec<u8> {
    let mut body = vec![2, 0, 4];
    body.extend(b"csrf");
    body.push(sid.len() as u8);
    body.extend(sid.as_bytes());
    body.extend([0, 0, 0, 9, 5, 0, 3, 32, 0, 60]);
    let mut message = vec![0, 0, 0, body.len() as u8];
    message.extend(body);
    assert!(message.len() < 126);
    let mut frame = vec![0x82, 0x80 | message.len() as u8, 1, 2, 3, 4];
    frame.extend(message.iter().enumerate().map(|(i, b)| b ^ [1, 2, 3, 4][i % 4]));
    frame
}

/// The text frame by which the echo says what it saw.
fn saw(socket: &mut TcpStream) -> Value {
    let mut head = [0; 4];
    socket.read_exact(&mut head).unwrap();
    assert_eq!(head[..2], [0x81, 0x7e]);
    let mut text = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    socket.read_exact(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn back(socket: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

fn told(seen: &Value) -> (&Value, &Value) {
    (&seen["vango-edge-resume"], &seen["vango-edge-resume-reason"])
}

#[test]
fn the_session_in_the_hello_decides_and_the_app_gets_every_byte_of_it() {
    let edge = Edge::start();
    edge.deploy(&echo(HELLO));
    let sid = "0123456789abcdef0123456789abcdef";
    let bytes = hello(sid);
    let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: a\r\n";
    let mut tab = raw(edge.listen, "/vango/live?say", extension);
    assert_eq!(edge.ps(), [] as [Value; 0], "nothing is woken before the hello");
    // In pieces, and more right behind it.
    for piece in bytes.chunks(7) {
        tab.write_all(piece).unwrap();
    }
    tab.write_all(b"\x82\x80\0\0\0\0").unwrap();
    let seen = saw(&mut tab);
    assert_eq!(told(&seen), (&json!("fresh"), &json!("not-recorded")));
    assert_eq!(seen["sec-websocket-extensions"], Value::Null, "there was no negotiation");
    assert_eq!(seen["sec-websocket-protocol"], Value::Null);
    assert_eq!(back(&mut tab, bytes.len()), bytes);
    assert_eq!(back(&mut tab, 6), b"\x82\x80\0\0\0\0");

    // The same tab again: the older socket goes first, and it is the original allocation.
    let mut again = raw(edge.listen, "/vango/live?say", "");
    again.write_all(&bytes).unwrap();
    assert_eq!(told(&saw(&mut again)), (&json!("resume"), &json!("original-allocation")));
    assert_eq!(back(&mut tab, 4), [0x88, 40, 0x03, 0xe8], "1000, and why");
    // Another tab of the same browser is another session.
    let mut other = raw(edge.listen, "/vango/live?say", "");
    other.write_all(&hello("fedcba9876543210fedcba9876543210")).unwrap();
    assert_eq!(told(&saw(&mut other)), (&json!("fresh"), &json!("not-recorded")));
    eventually("the older one is not counted", || edge.ps()[0]["sockets"] == 2);
}

#[test]
fn what_is_no_hello_goes_to_any_ready_allocation_untouched() {
    let edge = Edge::start();
    edge.deploy(&echo(HELLO));
    let mut long = vec![0x82, 0xfe, 0xff, 0xff, 1, 2, 3, 4];
    long.resize(8 + 0xffff, 7);
    for bytes in [hello("not a session id"), hello(""), b"\x81\x85abcdhello".to_vec(), long] {
        let mut socket = raw(edge.listen, "/vango/live?say", "");
        let sent = bytes.clone();
        let mut writer = socket.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        assert_eq!(told(&saw(&mut socket)), (&json!("fresh"), &json!("no-session")));
        assert_eq!(back(&mut socket, bytes.len()), bytes);
        writing.join().unwrap();
    }
}

#[test]
fn a_foreign_page_and_half_a_handshake_are_refused_before_anything_wakes() {
    let edge = Edge::start();
    edge.deploy(&echo(HELLO));
    let ask = |more: &str| {
        let mut connection = edge.connect();
        connection
            .send(format!("GET /vango/live HTTP/1.1\r\nHost: studylab.localhost\r\n{more}\r\n"));
        connection.answer().unwrap()
    };
    let foreign = ask(&format!("{UPGRADE}Origin: http://evil.example\r\n"));
    assert_eq!(foreign.status, 403);
    assert!(foreign.text().contains("origin-refused"), "{}", foreign.text());
    let half = ask("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n");
    assert_eq!(half.status, 400);
    assert!(half.text().contains("upgrade-invalid"), "{}", half.text());
    // Accepted, and gone before its hello.
    drop(raw(edge.listen, "/vango/live", "Origin: http://studylab.localhost\r\n"));
    eventually("it is in the traces", || {
        edge.list(&["traces"]).iter().any(|t| t["outcome"] == "client-left" && t["status"] == 101)
    });
    assert_eq!(edge.ops(), [] as [Value; 0]);
}

#[test]
fn a_vango_tabs_own_pings_do_not_keep_its_app_awake() {
    let edge = Edge::start();
    let contract = echo(HELLO).set("sleep", "after", "\"1s\"");
    edge.deploy(&contract.set("sleep", "live", "\"traffic\""));
    let mut tab = raw(edge.listen, "/vango/live", "");
    let hello = hello("0123456789abcdef0123456789abcdef");
    tab.write_all(&hello).unwrap();
    assert_eq!(back(&mut tab, hello.len()), hello);
    // Control, under a mask of zeroes; the echo sends it back.
    let ping = [0x82, 0x86, 0, 0, 0, 0, 3, 0, 0, 2, 1, 1];
    let mut pings = 0;
    let end = loop {
        tab.write_all(&ping).unwrap();
        let head = back(&mut tab, 2);
        if head[0] != 0x82 {
            break head;
        }
        assert_eq!(back(&mut tab, 10), ping[2..]);
        pings += 1;
    };
    assert!(pings > 1);
    assert_eq!((end, back(&mut tab, 2)), (vec![0x88, 8], 1013u16.to_be_bytes().to_vec()));
}
