//! Follows the frames of one direction of a WebSocket (RFC 6455 §5.2) without touching a byte: where
//! a frame ends, whether it carried the app's own traffic, and whether it said goodbye. Pure.
//!
//! What is not WebSocket is followed no further: it passes as it is and counts as traffic.
//!
//! Vango pings in messages of its own, so that every open tab would be traffic every 30 s: of its
//! binary messages (`type:u8 flags:u8 length:u16be payload`, protocol 2.0) those of type 3, control, do
//! not count.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Longest frame head: two bytes, eight of length, four of mask.
pub const HEAD_BYTES: usize = 14;

/// What a run of bytes carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Some of a frame that is the app's own traffic: neither ping, pong or close, nor what the app's
    /// protocol has for the same.
    pub data: bool,
}

/// Whose messages are in the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// None that the edge knows.
    #[default]
    Unknown,
    /// Vango's.
    Vango,
}

/// The type of Vango's control messages.
const VANGO_CONTROL: u8 = 3;

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Payload {
        left: u64,
        data: bool,
    },
    /// The next byte, under this byte of the mask, is the type of a Vango message.
    Vango {
        left: u64,
        mask: u8,
    },
    NotFrames,
}

/// Where in its frames a direction is.
#[derive(Debug)]
pub struct Frames {
    state: State,
    head: [u8; HEAD_BYTES],
    have: u8,
    closing: bool,
    protocol: Protocol,
}

impl Default for Frames {
    fn default() -> Self {
        Self::of(Protocol::Unknown)
    }
}

/// Bytes of a frame's head, by its first two.
fn head_bytes(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 == 0 { 0 } else { 4 }
}

impl Frames {
    /// At the first byte after the 101.
    pub fn of(protocol: Protocol) -> Self {
        Self { state: State::Head, head: [0; HEAD_BYTES], have: 0, closing: false, protocol }
    }

    /// Follows `bytes`, in the order they pass.
    pub fn follow(&mut self, mut bytes: &[u8]) -> Carried {
        let mut carried = Carried::default();
        while !bytes.is_empty() {
            match &mut self.state {
                State::NotFrames => {
                    carried.data = true;
                    return carried;
                }
                State::Vango { left, mask } => {
                    let data = bytes[0] ^ *mask != VANGO_CONTROL;
                    self.state = State::Payload { left: *left, data };
                }
                State::Payload { left, data } => {
                    carried.data |= *data;
                    let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= here as u64;
                    bytes = &bytes[here..];
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Head => {
                    self.head[usize::from(self.have)] = bytes[0];
                    self.have += 1;
                    bytes = &bytes[1..];
                    carried.data |= self.head_grew();
                }
            }
        }
        carried
    }

    /// `true` when a whole head of a frame with the app's own traffic is there.
    fn head_grew(&mut self) -> bool {
        let have = usize::from(self.have);
        if have < 2 || have < head_bytes(self.head[1]) {
            return false;
        }
        self.have = 0;
        match FrameHeader::parse(&mut Cursor::new(&self.head[..have])) {
            Ok(Some((header, length))) => {
                let control = matches!(header.opcode, OpCode::Control(_));
                self.closing |= header.opcode == OpCode::Control(Control::Close);
                // A compressed one does not show what it is.
                let shows = header.opcode == OpCode::Data(Data::Binary) && !header.rsv1;
                if self.protocol == Protocol::Vango && shows && length > 0 {
                    let mask = header.mask.map_or(0, |mask| mask[0]);
                    self.state = State::Vango { left: length, mask };
                    return false;
                }
                if length > 0 {
                    self.state = State::Payload { left: length, data: !control };
                }
                !control
            }
            Ok(None) | Err(_) => {
                self.state = State::NotFrames;
                true
            }
        }
    }

    /// Whether a frame may be put in here.
    pub fn between_frames(&self) -> bool {
        matches!(self.state, State::Head) && self.have == 0
    }

    /// Whether a close frame has passed, or begun to.
    pub fn closing(&self) -> bool {
        self.closing
    }
}

/// An unmasked close frame, as a server sends it. `reason` has at most 123 bytes.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(123)];
    let mut frame = vec![0x88, 2 + reason.len() as u8];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        let mask = if masked { 0x80 } else { 0 };
        match payload {
            0..=125 => out.push(mask | payload as u8),
            126..=0xffff => {
                out.push(mask | 126);
                out.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&[1, 2, 3, 4][..if masked { 4 } else { 0 }]);
        out.resize(out.len() + payload, 0x55);
        out
    }

    #[test]
    fn frames_are_followed_however_they_are_cut() {
        let mut bytes = Vec::new();
        for (opcode, masked, n) in [(1, true, 5), (2, false, 0), (0, true, 300), (2, false, 70_000)]
        {
            bytes.extend(frame(opcode, masked, n));
        }
        for cut in [1, 2, 3, 7, 1000, bytes.len()] {
            let mut frames = Frames::default();
            for part in bytes.chunks(cut) {
                frames.follow(part);
            }
            assert!(frames.between_frames() && !frames.closing(), "{cut}");
        }
        let mut frames = Frames::default();
        frames.follow(&bytes[..bytes.len() - 1]);
        assert!(!frames.between_frames());
    }

    #[test]
    fn control_frames_are_no_traffic_and_a_close_is_seen() {
        let mut frames = Frames::default();
        for opcode in [9, 10] {
            assert_eq!(frames.follow(&frame(opcode, true, 4)), Carried { data: false });
        }
        assert_eq!(frames.follow(&frame(1, true, 0)), Carried { data: true });
        assert!(!frames.closing());
        assert_eq!(frames.follow(&close_frame(1012, "restart")), Carried { data: false });
        assert!(frames.closing() && frames.between_frames());
    }

    #[test]
    fn vangos_control_messages_are_no_traffic_however_they_are_cut() {
        // type, flags, length, payload; from the server, and masked from a client.
        let message = |first: u8, kind: u8, masked: bool| {
            let mask = if masked { [9, 8, 7, 6] } else { [0; 4] };
            let mut out = vec![first, if masked { 0x80 | 6 } else { 6 }];
            out.extend_from_slice(&mask[..if masked { 4 } else { 0 }]);
            out.extend([kind, 0, 0, 2, 1, 1].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
            out
        };
        let carries = |protocol, bytes: &[u8], cut: usize| {
            let mut frames = Frames::of(protocol);
            let data = bytes.chunks(cut).fold(false, |data, part| data | frames.follow(part).data);
            assert!(frames.between_frames());
            data
        };
        for masked in [true, false] {
            for cut in [1, 3, 100] {
                for kind in 0..=5 {
                    let bytes = message(0x82, kind, masked);
                    assert_eq!(carries(Protocol::Vango, &bytes, cut), kind != 3, "{kind}");
                    assert!(carries(Protocol::Unknown, &bytes, cut));
                }
                // Text, compressed, and empty: it is not known to be control.
                assert!(carries(Protocol::Vango, &message(0x81, 3, masked), cut));
                assert!(carries(Protocol::Vango, &message(0xc2, 3, masked), cut));
                let after = [message(0x82, 3, masked), message(0x82, 1, masked)].concat();
                assert!(carries(Protocol::Vango, &after, cut));
            }
        }
        assert!(carries(Protocol::Vango, &[0x82, 0], 1));
    }

    #[test]
    fn what_is_not_frames_is_traffic_and_nothing_is_put_into_it() {
        let mut frames = Frames::default();
        assert!(frames.follow(&[0x83, 0x00, 0x81]).data, "a reserved opcode");
        assert!(!frames.between_frames());
        assert!(frames.follow(b"anything").data);
    }

    #[test]
    fn a_close_frame_is_one() {
        assert_eq!(close_frame(1012, "x"), [0x88, 3, 0x03, 0xf4, b'x']);
        assert_eq!(close_frame(1000, &"r".repeat(200)).len(), 127);
    }
}
