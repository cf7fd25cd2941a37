//! The encodings of static files, made at deploy, and checked at the edge by decoding them.
//!
//! The same bytes give the same encodings on any machine: the encoders are pinned, run on one thread
//! each, and use no floating-point function of the platform's. They are part of the artifact's digest.

use std::io::Read;

use miniz_oxide::inflate::stream::{InflateState, inflate};

use crate::assets::Coding;

/// Files below this many bytes are sent as they are: an encoding's own frame would eat the gain.
const WORTH_IT: usize = 256;
/// Files above this many bytes are sent as they are.
const MOST: usize = 64 << 20;
/// Up to here Brotli's best, thirty times as slow, is not worth its time: what is gained is a tenth of what fits into
/// one packet anyway. Many small files are most of what a bundler writes.
const ONE_PACKET: usize = 4 << 10;
/// Up to here Brotli takes its best and slowest.
const BEST: usize = 2 << 20;
/// As much of a file that comes encoded is decoded, to see what it is.
const BEGINNING: usize = 64 << 10;

/// Every coding that is tried.
pub const CODINGS: [Coding; 3] = [Coding::Br, Coding::Gzip, Coding::Zstd];

/// Whether a file of `size` bytes and this type is encoded.
pub fn is_worth_it(size: u64, media_type: &str) -> bool {
    (WORTH_IT as u64..=MOST as u64).contains(&size) && !is_packed(media_type)
}

/// Those encodings of `bytes` by `codings` that make them at least a twentieth smaller.
pub fn encode(bytes: &[u8], codings: impl IntoIterator<Item = Coding>) -> Vec<(Coding, Vec<u8>)> {
    let all = codings.into_iter().map(|coding| (coding, one(coding, bytes)));
    all.filter(|(_, made)| helps(made.len() as u64, bytes.len() as u64)).collect()
}

/// Whether an encoding of `encoded` bytes is kept beside `plain` ones.
fn helps(encoded: u64, plain: u64) -> bool {
    encoded > 0 && encoded <= plain - plain / 20
}

/// One encoding, whether it helps or not.
pub fn one(coding: Coding, bytes: &[u8]) -> Vec<u8> {
    match coding {
        Coding::Br => brotli(bytes),
        Coding::Gzip => gzip(bytes),
        // Level 19 has a window of 8 MiB, which every client must take (RFC 9659). What fails is empty, and
        // helps nobody.
        Coding::Zstd => zstd::bulk::compress(bytes, 19).unwrap_or_default(),
    }
}

/// Whether files of this type are compressed already.
fn is_packed(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or_default().trim();
    let image = kind.starts_with("image/")
        && !matches!(
            kind,
            "image/svg+xml" | "image/bmp" | "image/x-icon" | "image/vnd.microsoft.icon"
        );
    image
        || kind.starts_with("video/")
        || kind.starts_with("audio/")
        || matches!(
            kind,
            "font/woff" | "font/woff2" | "application/zip" | "application/gzip" | "application/pdf"
        )
}

fn brotli(bytes: &[u8]) -> Vec<u8> {
    let params = brotli::enc::BrotliEncoderParams {
        quality: match bytes.len() {
            n if n <= ONE_PACKET => 5,
            n if n <= BEST => 11,
            _ => 9,
        },
        size_hint: bytes.len(),
        ..Default::default()
    };
    let mut out = Vec::new();
    // Memory to memory: neither side can fail. An empty result is dropped by `encode`'s caller, which
    // decodes what it stores.
    let _ = brotli::BrotliCompress(&mut &bytes[..], &mut out, &params);
    out
}

/// RFC 1952: no name, no time, unknown system.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GZIP_HEAD.to_vec();
    out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 9));
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// What `encoded` decodes to, if that has exactly `size` bytes. Never more memory than that.
pub fn decode(coding: Coding, encoded: &[u8], size: usize) -> Option<Vec<u8>> {
    let decoded = match coding {
        // One byte more, so that a longer one is not taken for it.
        Coding::Br | Coding::Zstd => first(coding, encoded, size + 1)?,
        Coding::Gzip => {
            let body = after_gzip_head(encoded)?;
            let (deflated, tail) = body.split_at_checked(body.len().checked_sub(8)?)?;
            let decoded =
                miniz_oxide::inflate::decompress_to_vec_with_limit(deflated, size).ok()?;
            let expected =
                [crc32fast::hash(&decoded).to_le_bytes(), (decoded.len() as u32).to_le_bytes()];
            (tail == expected.concat()).then_some(decoded)?
        }
    };
    (decoded.len() == size).then_some(decoded)
}

/// The beginning of what `encoded` decodes to, up to [`BEGINNING`] bytes and a whole character; `None`
/// where it is not so encoded, or in a way that a browser does not take.
pub fn beginning(coding: Coding, encoded: &[u8]) -> Option<Vec<u8>> {
    if encoded.is_empty() {
        return None;
    }
    let mut out = match coding {
        Coding::Br | Coding::Zstd => first(coding, encoded, BEGINNING)?,
        Coding::Gzip => {
            let deflated = after_gzip_head(encoded)?;
            let mut out = vec![0; BEGINNING];
            let mut state = InflateState::new(miniz_oxide::DataFormat::Raw);
            let result = inflate(&mut state, deflated, &mut out, miniz_oxide::MZFlush::None);
            out.truncate(result.status.ok().map(|_| result.bytes_written)?);
            out
        }
    };
    if let Err(e) = std::str::from_utf8(&out)
        && e.error_len().is_none()
    {
        out.truncate(e.valid_up_to());
    }
    Some(out)
}

/// The first bytes of what a Brotli or Zstandard stream decodes to, at most `most` of them.
fn first(coding: Coding, encoded: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    if coding == Coding::Br {
        brotli::Decompressor::new(encoded, 4096).take(most as u64).read_to_end(&mut out).ok()?;
    } else {
        let mut decoder = zstd::Decoder::with_buffer(encoded).ok()?;
        decoder.window_log_max(23).ok()?;
        decoder.take(most as u64).read_to_end(&mut out).ok()?;
    }
    Some(out)
}

/// What follows the head that any program writes (RFC 1952 §2.3), with a name and the like.
fn after_gzip_head(encoded: &[u8]) -> Option<&[u8]> {
    let (head, mut rest) = encoded.split_at_checked(10)?;
    if !head.starts_with(&[0x1f, 0x8b, 8]) {
        return None;
    }
    let flags = head[3];
    if flags & 4 != 0 {
        let (length, more) = rest.split_first_chunk::<2>()?;
        rest = more.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [8, 16] {
        if flags & text != 0 {
            let end = rest.iter().position(|b| *b == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & 2 != 0 { rest.get(2..) } else { Some(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_kept_and_decodes_to_the_same() {
        let text = "body { color: rebeccapurple } ".repeat(100);
        assert!(is_worth_it(text.len() as u64, "text/css; charset=utf-8"));
        let made = encode(text.as_bytes(), CODINGS);
        assert_eq!(made.len(), 3);
        for (coding, encoded) in &made {
            assert!(encoded.len() < text.len() / 4, "{coding:?}");
            assert_eq!(decode(*coding, encoded, text.len()).unwrap(), text.as_bytes());
            assert!(decode(*coding, encoded, text.len() - 1).is_none(), "one byte too many");
            assert!(decode(*coding, &encoded[..encoded.len() - 1], text.len()).is_none());
        }
        assert_eq!(made, encode(text.as_bytes(), CODINGS), "the same again");
        assert!(!is_worth_it(text.len() as u64, "image/png") && !is_worth_it(5, "text/css"));
    }

    #[test]
    fn what_comes_encoded_is_known_by_its_bytes() {
        let text = "grün ".repeat(30_000);
        for (coding, encoded) in encode(text.as_bytes(), CODINGS) {
            let start = beginning(coding, &encoded).unwrap();
            assert!(start.len() > BEGINNING - 4 && text.as_bytes().starts_with(&start));
            assert!(std::str::from_utf8(&start).is_ok(), "{coding:?}: no half character");
            for other in [&b"a.b{}"[..], b""] {
                assert_eq!(beginning(coding, other), None, "{coding:?}");
            }
        }
        // As `gzip` writes it, with the file's name.
        let made = gzip(b"body{}");
        let mut named = made[..10].to_vec();
        named[3] = 8;
        named.extend(b"a.css\0");
        named.extend(&made[10..]);
        assert_eq!(beginning(Coding::Gzip, &named).unwrap(), b"body{}");
    }

    #[test]
    fn what_does_not_help_is_left_out() {
        // SplitMix64 output does not compress.
        let mut state = 1u64;
        let noise: Vec<u8> = (0..1000)
            .flat_map(|_| {
                state =
                    state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                (state ^ (state >> 29)).to_le_bytes()
            })
            .collect();
        assert!(encode(&noise, CODINGS).is_empty());
    }

    /// Digests of what the pinned encoders make of fixed bytes: a change here changes every
    /// artifact's identity, and needs another `assets::ENCODER`.
    #[test]
    fn the_encoders_write_what_they_wrote() {
        let made = |lines: usize| {
            let text = (0..lines).map(|i| format!("line {i} of a file\n")).collect::<String>();
            let made = encode(text.as_bytes(), CODINGS).into_iter();
            let short = |(_, b): (Coding, Vec<u8>)| crate::artifact::layout::digest_of(&b).short();
            made.map(short).collect::<Vec<_>>()
        };
        assert_eq!(crate::assets::ENCODER, 2);
        assert_eq!(made(500), ["0c6be5de901b", "632c21d91a21", "aa4a56471f31"]);
        assert_eq!(made(100), ["5d87ab7f2351", "0903a5cce25f", "e8c024acbf35"]);
    }
}
