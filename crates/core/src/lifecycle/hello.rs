//! Vango's handshake, in which the tab's session id is: the first binary message of each side after the
//! 101 (Vango protocol 2.0; frame `type:u8 flags:u8 length:u16be payload`, type 0 is the handshake;
//! the client's hello `major:u8 minor:u8 csrf:varstr sid:varstr …`, the server's `status:u8 sid:varstr …`;
//! a varstr is a LEB128 length and bytes). A new tab learns its id from the server's, and an old one
//! that the server does not know is given a new id there.
//!
//! Only looked at, never changed: whatever it is, the other side gets the same bytes. Pure.

use super::affinity::{FoundIn, SessionId};

/// Longest first message that is looked at, in bytes: its head, and csrf and sid of any sane length.
pub const HELLO_BYTES: usize = 16 * 1024;
/// Longest first message of a server that is looked at: a status, a sid, and some 20 bytes more.
pub const ANSWER_BYTES: usize = 1024;

/// How far the first frame of a side has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstFrame {
    /// More bytes belong to it.
    Incomplete,
    /// It is there: the session that it names. `None` for a new tab, and for whatever is no hello.
    Whole(Option<SessionId>),
}

/// Looks at what a client has sent so far: the session that it comes with.
pub fn first_frame(bytes: &[u8]) -> FirstFrame {
    look(bytes, true, HELLO_BYTES, |hello| {
        let [_major, _minor, rest @ ..] = hello else { return None };
        let (_csrf, rest) = varstr(rest)?;
        Some(varstr(rest)?.0)
    })
}

/// Looks at what a server has sent so far: the session that its client has from now on.
pub fn answer(bytes: &[u8]) -> FirstFrame {
    look(bytes, false, ANSWER_BYTES, |hello| {
        // Any other status is a refusal.
        let [0, rest @ ..] = hello else { return None };
        Some(varstr(rest)?.0)
    })
}

/// Looks for one whole, uncompressed binary message (RFC 6455 §5.2) of at most `most` bytes that is
/// masked as its side's are, and in it for the id that `sid` finds in the handshake's payload.
fn look(
    bytes: &[u8],
    masked: bool,
    most: usize,
    sid: impl Fn(&[u8]) -> Option<&[u8]>,
) -> FirstFrame {
    let nothing = FirstFrame::Whole(None);
    let [first, second, rest @ ..] = bytes else { return FirstFrame::Incomplete };
    if *first != 0x82 || (second & 0x80 != 0) != masked {
        return nothing;
    }
    let (length, rest) = match second & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((n, rest)) => (usize::from(u16::from_be_bytes(*n)), rest),
            None => return FirstFrame::Incomplete,
        },
        127 => return nothing,
        n => (usize::from(n), rest),
    };
    if length > most - 8 {
        return nothing;
    }
    let (mask, payload) = match (masked, rest.split_first_chunk::<4>()) {
        (false, _) => ([0; 4], rest),
        (true, Some((mask, payload))) => (*mask, payload),
        (true, None) => return FirstFrame::Incomplete,
    };
    if payload.len() < length {
        return FirstFrame::Incomplete;
    }
    let message: Vec<u8> =
        payload[..length].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
    let [0, _flags, high, low, hello @ ..] = &message[..] else { return nothing };
    if hello.len() != usize::from(u16::from_be_bytes([*high, *low])) {
        return nothing;
    }
    let sid = sid(hello).and_then(|sid| std::str::from_utf8(sid).ok());
    FirstFrame::Whole(sid.and_then(|sid| SessionId::new(sid, FoundIn::Hello)))
}

fn varstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for (i, byte) in bytes.iter().take(3).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return bytes[i + 1..].split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x82];
        if payload.len() < 126 {
            out.push(0x80 | payload.len() as u8);
        } else {
            out.push(0x80 | 126);
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        out.extend_from_slice(&[9, 8, 7, 6]);
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ [9, 8, 7, 6][i % 4]));
        out
    }
    fn hello(csrf: &str, sid: &str) -> Vec<u8> {
        let mut body = vec![2, 0];
        for text in [csrf, sid] {
            let n = text.len();
            if n < 128 {
                body.push(n as u8);
            } else {
                body.extend([0x80 | (n & 0x7f) as u8, (n >> 7) as u8]);
            }
            body.extend_from_slice(text.as_bytes());
        }
        body.extend_from_slice(&[0, 0, 0, 0, 5, 0, 3, 32, 0, 60]);
        let mut message = vec![0, 0];
        message.extend_from_slice(&(body.len() as u16).to_be_bytes());
        message.extend(body);
        masked(&message)
    }

    #[test]
    fn the_session_of_a_hello_is_found_however_it_arrives() {
        let sid = "0123456789abcdef0123456789abcdef";
        for csrf in ["", "token", &"c".repeat(300)] {
            let bytes = hello(csrf, sid);
            for cut in 0..bytes.len() {
                assert_eq!(first_frame(&bytes[..cut]), FirstFrame::Incomplete, "{cut}");
            }
            let FirstFrame::Whole(Some(found)) = first_frame(&bytes) else { panic!("found") };
            assert_eq!((found.expose(), found.found_in), (sid, FoundIn::Hello));
            let mut more = bytes.clone();
            more.extend([0x82, 0x80]);
            assert!(matches!(first_frame(&more), FirstFrame::Whole(Some(_))));
        }
        assert_eq!(first_frame(&hello("c", "")), FirstFrame::Whole(None), "a new tab");
    }

    #[test]
    fn the_session_of_a_servers_hello_is_found_and_that_of_a_refusal_is_not() {
        let hello = |status: u8, sid: &str| {
            let mut body = vec![status, sid.len() as u8];
            body.extend_from_slice(sid.as_bytes());
            body.extend_from_slice(&[0; 14]);
            let mut frame = vec![0x82, body.len() as u8 + 4, 0, 0, 0, body.len() as u8];
            frame.extend(body);
            frame
        };
        let good = hello(0, "0123456789abcdef0123456789abcdef");
        for cut in 0..good.len() {
            assert_eq!(answer(&good[..cut]), FirstFrame::Incomplete, "{cut}");
        }
        let more = [&good[..], b"\x82\x04\x02\0\0\0"].concat();
        let FirstFrame::Whole(Some(found)) = answer(&more) else { panic!("found") };
        assert!(found.is_one_tabs() && found.expose() == "0123456789abcdef0123456789abcdef");
        let masked_one = masked(&good[2..]);
        let long = vec![0x82, 126, 0xff, 0xff];
        let patches = vec![0x82, 5, 2, 0, 0, 1, 0];
        for other in [hello(3, "s-1"), hello(0, ""), masked_one, long, patches, b"\x89\0".to_vec()]
        {
            assert_eq!(answer(&other), FirstFrame::Whole(None), "{other:?}");
        }
    }

    #[test]
    fn whatever_is_no_hello_names_no_session() {
        let good = hello("c", "s-1");
        let mut unmasked = good.clone();
        unmasked[1] &= 0x7f;
        let mut text = good.clone();
        text[0] = 0x81;
        let mut fragment = good.clone();
        fragment[0] = 0x02;
        let mut compressed = good;
        compressed[0] = 0xc2;
        let huge = vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0];
        let long = vec![0x82, 0x80 | 126, 0xff, 0xff];
        let cases = [
            unmasked,
            text,
            fragment,
            compressed,
            huge,
            long,
            masked(&[]),
            masked(&[1, 0, 0, 0]),
            masked(&[0, 0, 0, 9, 2, 0, 1]),
            masked(&[0, 0, 0, 4, 2, 0, 0xff, 0xff]),
            masked(&[0, 0, 0, 5, 2, 0, 0, 2, b'/']),
            vec![0x89, 0x80, 1, 2, 3, 4],
        ];
        for bytes in cases {
            assert_eq!(first_frame(&bytes), FirstFrame::Whole(None), "{bytes:?}");
        }
    }
}
