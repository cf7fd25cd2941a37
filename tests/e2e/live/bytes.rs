//! What passes: byte for byte what a direct connection carries, whatever it is.
//!
//! The list below is what a client may send, well or badly; the echo sends all of it back, so that it
//! passes the other way too, where every masked frame is a wrong one. The conformance suite Autobahn
//! says the same of whole conversations, with `scripts/autobahn`: it needs Python 2.7 and is not run
//! here.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::support::Edge;

use super::{echo, raw};

/// A frame as it stands on the wire.
fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut out = vec![first];
    match payload.len() {
        n @ 0..=125 => out.push(mask | n as u8),
        n @ 126..=0xffff => {
            out.push(mask | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(mask | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    if masked {
        out.extend([0x11, 0x22, 0x33, 0x44]);
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ [0x11, 0x22, 0x33, 0x44][i % 4]));
    } else {
        out.extend(payload);
    }
    out
}

/// Name and bytes of what clients send, well or badly.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let mega = vec![0xa5; 1 << 20];
    let fragments = [
        frame(0x01, true, b"one "),
        frame(0x89, true, b"in between"),
        frame(0x00, true, b"two "),
        frame(0x80, true, b"three"),
    ];
    let close = |code: u16| frame(0x88, true, &[&code.to_be_bytes()[..], b"reason"].concat());
    vec![
        ("text", frame(0x81, true, "grüße".as_bytes())),
        ("empty text", frame(0x81, true, b"")),
        ("empty binary", frame(0x82, true, b"")),
        ("fragmented with a ping in between", fragments.concat()),
        (
            "empty fragments",
            [frame(0x02, true, b""), frame(0x00, true, b""), frame(0x80, true, b"")].concat(),
        ),
        ("125, 126 and 127", [125, 126, 127].map(|n| frame(0x82, true, &vec![7; n])).concat()),
        ("65535 and 65536", [65_535, 65_536].map(|n| frame(0x82, true, &vec![7; n])).concat()),
        ("1 MiB", frame(0x82, true, &mega)),
        (
            "1 MiB in frames of 1000",
            mega.chunks(1000).map(|c| frame(0x82, true, c)).collect::<Vec<_>>().concat(),
        ),
        (
            "a flood of pings",
            (0..5000).flat_map(|n: u32| frame(0x89, true, &n.to_be_bytes())).collect(),
        ),
        ("unasked pongs", frame(0x8a, true, b"unasked").repeat(100)),
        ("close 1000, and data after it", [close(1000), frame(0x81, true, b"late")].concat()),
        (
            "close codes",
            [1001, 1002, 1011, 1012, 3000, 4999, 1005, 999, 65_535].map(close).concat(),
        ),
        ("an empty close", frame(0x88, true, b"")),
        ("a close of one byte", frame(0x88, true, b"x")),
        ("unmasked", frame(0x81, false, b"a client must mask")),
        ("a ping over 125 bytes", frame(0x89, true, &[7; 200])),
        ("a fragmented ping", frame(0x09, true, b"x")),
        (
            "compressed, as negotiated end to end",
            frame(0xc1, true, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]),
        ),
        ("every reserved bit and opcode", (0..=255u8).flat_map(|b| frame(b, true, b"r")).collect()),
        ("invalid UTF-8", frame(0x81, true, &[0xff, 0xfe])),
        ("a length of 2⁶³", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 9]),
        ("a length in more bytes than needed", vec![0x82, 0xfe, 0, 5, 1, 2, 3, 4, 9, 9, 9, 9, 9]),
        ("a frame cut short", frame(0x82, true, &[7; 100])[..50].to_vec()),
        ("no frames at all", b"GET / HTTP/1.1\r\nHost: smuggled\r\n\r\n".to_vec()),
        ("zeroes", vec![0; 4096]),
    ]
}

/// Sends in pieces of `cut` bytes and returns all that comes back until this side's end is heard.
fn exchange(mut socket: TcpStream, bytes: &[u8], cut: usize) -> Vec<u8> {
    let mut writer = socket.try_clone().unwrap();
    let sent = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        for piece in sent.chunks(cut) {
            writer.write_all(piece).unwrap();
        }
    });
    let mut back = vec![0; bytes.len()];
    socket.read_exact(&mut back).unwrap();
    writing.join().unwrap();
    let _ = socket.shutdown(Shutdown::Both);
    back
}

#[test]
fn every_frame_passes_as_it_is_and_as_a_direct_connection_carries_it() {
    let edge = Edge::start();
    edge.deploy(&echo("session = [\"query:sid\"]"));
    drop(raw(edge.listen, "/vango/live", ""));
    let direct: SocketAddr = edge.until_hot()["address"].as_str().unwrap().parse().unwrap();
    for (name, bytes) in corpus() {
        for cut in [bytes.len(), 1021] {
            let through = exchange(raw(edge.listen, "/vango/live", ""), &bytes, cut);
            let straight = exchange(raw(direct, "/vango/live", ""), &bytes, cut);
            assert!(through == bytes && straight == bytes, "{name}, in pieces of {cut}");
        }
    }
}

#[test]
fn a_byte_at_a_time_is_no_other_thing() {
    let edge = Edge::start();
    edge.deploy(&echo("session = [\"query:sid\"]"));
    let bytes =
        [frame(0x81, true, b"slowly"), frame(0x89, true, b"p"), frame(0x88, true, b"")].concat();
    assert_eq!(exchange(raw(edge.listen, "/vango/live", ""), &bytes, 1), bytes);
}
