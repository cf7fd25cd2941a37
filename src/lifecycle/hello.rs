//! A Vango client's hello: the first binary message after the 101, in which the tab's session id is
//! (Vango protocol 2.0; frame `type:u8 flags:u8 length:u16be payload`, type 0 is the handshake;
//! hello `major:u8 minor:u8 csrf:varstr sid:varstr …`, a varstr is a LEB128 length and bytes).
//!
//! Only looked at, never changed: whatever it is, the app gets the same bytes. Pure.

use super::affinity::{FoundIn, SessionId};

/// Longest first message that is looked at, in bytes: its head, and csrf and sid of any sane length.
pub const HELLO_BYTES: usize = 16 * 1024;

/// How far the first frame of a client has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstFrame {
    /// More bytes belong to it.
    Incomplete,
    /// It is there: the session that it names. `None` for a new tab, and for whatever is no hello.
    Whole(Option<SessionId>),
}

/// Looks at what a client has sent so far.
pub fn first_frame(bytes: &[u8]) -> FirstFrame {
    let nothing = FirstFrame::Whole(None);
    let [first, second, rest @ ..] = bytes else { return FirstFrame::Incomplete };
    // One whole, masked, uncompressed binary message (RFC 6455 §5.2).
    if *first != 0x82 || second & 0x80 == 0 {
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
    if length > HELLO_BYTES - 8 {
        return nothing;
    }
    let Some((mask, payload)) = rest.split_first_chunk::<4>() else {
        return FirstFrame::Incomplete;
    };
    if payload.len() < length {
        return FirstFrame::Incomplete;
    }
    let message: Vec<u8> =
        payload[..length].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
    FirstFrame::Whole(session(&message))
}

fn session(message: &[u8]) -> Option<SessionId> {
    let [0, _flags, high, low, hello @ ..] = message else { return None };
    if hello.len() != usize::from(u16::from_be_bytes([*high, *low])) {
        return None;
    }
    let [_major, _minor, rest @ ..] = hello else { return None };
    let (_csrf, rest) = varstr(rest)?;
    let (sid, _) = varstr(rest)?;
    SessionId::new(std::str::from_utf8(sid).ok()?, FoundIn::Hello)
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
