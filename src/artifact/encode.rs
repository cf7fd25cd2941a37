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
/// Up to here Brotli takes its best and slowest.
const BEST: usize = 2 << 20;
/// As much of a file that comes encoded is decoded, to see what it is.
const BEGINNING: usize = 64 << 10;

/// Every encoding of `bytes` that makes them at least a twentieth smaller.
pub fn encode(bytes: &[u8], media_type: &str) -> Vec<(Coding, Vec<u8>)> {
    if !(WORTH_IT..=MOST).contains(&bytes.len()) || is_packed(media_type) {
        return Vec::new();
    }
    let mut out = vec![(Coding::Br, brotli(bytes)), (Coding::Gzip, gzip(bytes))];
    // Level 19 has a window of 8 MiB, which every client must take (RFC 9659).
    if let Ok(zstd) = zstd::bulk::compress(bytes, 19) {
        out.push((Coding::Zstd, zstd));
    }
    out.retain(|(_, encoded)| encoded.len() <= bytes.len() - bytes.len() / 20);
    out
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
        quality: if bytes.len() <= BEST { 11 } else { 9 },
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
        Coding::Br => bounded(brotli::Decompressor::new(encoded, 4096), size)?,
        Coding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(encoded).ok()?;
            decoder.window_log_max(23).ok()?;
            bounded(decoder, size)?
        }
        Coding::Gzip => {
            let body = encoded.strip_prefix(&GZIP_HEAD)?;
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
    let mut out = vec![0; BEGINNING];
    let size = match coding {
        Coding::Br => fill(brotli::Decompressor::new(encoded, 4096), &mut out)?,
        Coding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(encoded).ok()?;
            decoder.window_log_max(23).ok()?;
            fill(decoder, &mut out)?
        }
        Coding::Gzip => {
            let deflated = after_gzip_head(encoded)?;
            let mut state = InflateState::new(miniz_oxide::DataFormat::Raw);
            let result = inflate(&mut state, deflated, &mut out, miniz_oxide::MZFlush::None);
            result.status.ok().map(|_| result.bytes_written)?
        }
    };
    out.truncate(size);
    if let Err(e) = std::str::from_utf8(&out)
        && e.error_len().is_none()
    {
        out.truncate(e.valid_up_to());
    }
    Some(out)
}

fn fill(mut decoder: impl Read, out: &mut [u8]) -> Option<usize> {
    let mut have = 0;
    while have < out.len() {
        match decoder.read(&mut out[have..]).ok()? {
            0 => break,
            n => have += n,
        }
    }
    Some(have)
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

fn bounded(decoder: impl Read, size: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(size as u64 + 1).read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_kept_and_decodes_to_the_same() {
        let text = "body { color: rebeccapurple } ".repeat(100);
        let made = encode(text.as_bytes(), "text/css; charset=utf-8");
        assert_eq!(made.len(), 3);
        for (coding, encoded) in &made {
            assert!(encoded.len() < text.len() / 4, "{coding:?}");
            assert_eq!(decode(*coding, encoded, text.len()).unwrap(), text.as_bytes());
            assert!(decode(*coding, encoded, text.len() - 1).is_none(), "one byte too many");
            assert!(decode(*coding, &encoded[..encoded.len() - 1], text.len()).is_none());
        }
        assert_eq!(made, encode(text.as_bytes(), "text/css"), "the same again");
        assert!(encode(text.as_bytes(), "image/png").is_empty());
        assert!(encode(b"short", "text/css").is_empty());
    }

    #[test]
    fn what_comes_encoded_is_known_by_its_bytes() {
        let text = "grün ".repeat(30_000);
        for (coding, encoded) in encode(text.as_bytes(), "text/css") {
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
        assert!(encode(&noise, "application/octet-stream").is_empty());
    }

    /// Digests of what the pinned encoders make of fixed bytes: a change here changes every
    /// artifact's identity.
    #[test]
    fn the_encoders_write_what_they_wrote() {
        let text = (0..500).map(|i| format!("line {i} of a file\n")).collect::<String>();
        let made: Vec<_> = encode(text.as_bytes(), "text/plain")
            .into_iter()
            .map(|(c, b)| (c.name(), crate::artifact::layout::digest_of(&b).short()))
            .collect();
        assert_eq!(
            made,
            [
                ("br", "0c6be5de901b".to_owned()),
                ("gzip", "632c21d91a21".to_owned()),
                ("zstd", "aa4a56471f31".to_owned()),
            ]
        );
    }
}
