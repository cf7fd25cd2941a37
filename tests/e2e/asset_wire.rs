//! Static files over the wire: what RFC 9110 says of conditions, ranges and encodings, RFC 9530 of
//! digests, and no RFC of paths that try to get out. Each table is the RFC's, case by case; the bytes are
//! compared with the file's.
//!
//! The public suite for HTTP caches (`http-cache-tests`) says nothing of an origin: it has an origin of
//! its own and judges what stands before it. `scripts/cache-tests` runs it with the edge there, which is no
//! cache of apps' responses and so must not be seen at all.

use std::fs;
use std::io::Read;

use base64::Engine as _;
use sha2::{Digest, Sha256};

use crate::support::{Answer, Artifact, Edge};

const CSS: &str = "/assets/app.css";
/// Never served, and known by it: stands in files beside the public ones.
const SECRET: &str = "not-for-anybody-5b1d";

/// Headers of a request.
type Sent = &'static [(&'static str, &'static str)];

/// An edge with the sample's files, whose app cannot start: whatever is no static file is 503.
struct Files {
    edge: Edge,
    css: Vec<u8>,
    etag: String,
}

impl Files {
    fn deployed() -> Self {
        let edge = Edge::start();
        let artifact = Artifact::new().env("SECRET_IN_THE_CONTRACT", SECRET);
        let artifact = artifact.set("process", "command", "[\"false\"]");
        fs::write(artifact.path().join("private.txt"), SECRET).unwrap();
        fs::create_dir(artifact.path().join("public/.git")).unwrap();
        fs::write(artifact.path().join("public/.git/config"), SECRET).unwrap();
        fs::write(artifact.path().join("public/.env"), SECRET).unwrap();
        fs::write(artifact.path().join("public/empty.txt"), "").unwrap();
        let css = fs::read(artifact.path().join("public/app.css")).unwrap();
        edge.deploy(&artifact);
        let etag = edge.get(CSS).header("etag").unwrap().to_owned();
        Self { edge, css, etag }
    }

    /// `$` in a value stands for the file's entity tag.
    fn ask(&self, method: &str, headers: &[(&str, &str)]) -> Answer {
        let with: Vec<_> = headers.iter().map(|(n, v)| (*n, v.replace('$', &self.etag))).collect();
        let with: Vec<_> = with.iter().map(|(n, v)| (*n, v.as_str())).collect();
        self.edge.ask(method, CSS, &with, "")
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(bytes));
    format!("sha-256=:{hash}:")
}

const PAST: &str = "Tue, 15 Nov 1994 08:12:31 GMT";
const FUTURE: &str = "Tue, 15 Nov 2033 08:12:31 GMT";

/// RFC 9110 §13, in the order of §13.2.2. There is no Last-Modified, so that no date ever decides.
#[test]
fn every_condition_for_get_and_head() {
    let files = Files::deployed();
    let table: &[(Sent, u16)] = &[
        (&[], 200),
        // §13.1.1: strong comparison; a list; any.
        (&[("If-Match", "$")], 200),
        (&[("If-Match", "\"other\", $")], 200),
        (&[("If-Match", "\"a,b\" ,\t$ ")], 200),
        (&[("If-Match", "\"other\""), ("If-Match", "$")], 200),
        (&[("If-Match", "*")], 200),
        (&[("If-Match", "\"other\"")], 412),
        (&[("If-Match", "W/$")], 412),
        (&[("If-Match", "")], 412),
        // §13.1.2: weak comparison; a list; any.
        (&[("If-None-Match", "$")], 304),
        (&[("If-None-Match", "W/$")], 304),
        (&[("If-None-Match", "\"other\", W/\"more\", $")], 304),
        (&[("If-None-Match", "\"a,b\",$")], 304),
        (&[("If-None-Match", "\"other\""), ("If-None-Match", "$")], 304),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", "\"other\"")], 200),
        (&[("If-None-Match", "unquoted")], 200),
        (&[("If-None-Match", "")], 200),
        // §13.1.3, §13.1.4: dates are ignored, and never come before a tag.
        (&[("If-Modified-Since", FUTURE)], 200),
        (&[("If-Modified-Since", "no date")], 200),
        (&[("If-Unmodified-Since", PAST)], 200),
        (&[("If-None-Match", "\"other\""), ("If-Modified-Since", FUTURE)], 200),
        (&[("If-None-Match", "$"), ("If-Modified-Since", PAST)], 304),
        (&[("If-Match", "$"), ("If-Unmodified-Since", PAST)], 200),
        // §13.2.2: If-Match first, then If-None-Match, then the range.
        (&[("If-Match", "\"other\""), ("If-None-Match", "$")], 412),
        (&[("If-Match", "$"), ("If-None-Match", "$")], 304),
        (&[("If-None-Match", "$"), ("Range", "bytes=0-0")], 304),
        (&[("If-Match", "\"other\""), ("Range", "bytes=0-0")], 412),
        (&[("If-None-Match", "$"), ("Range", "bytes=999999-")], 304),
    ];
    for (headers, status) in table {
        let got = files.ask("GET", headers);
        assert_eq!(got.status, *status, "{headers:?}");
        let head = files.ask("HEAD", headers);
        let head_status = if *status == 206 { 200 } else { *status };
        assert_eq!((head.status, head.body.len()), (head_status, 0), "HEAD {headers:?}");
        match status {
            304 => {
                assert_eq!(got.header("etag"), Some(&*files.etag), "{headers:?}");
                assert_eq!(got.header("cache-control"), Some("no-cache"));
                assert_eq!(got.header("vary"), Some("accept-encoding"));
                assert_eq!((got.body.len(), got.header("content-length")), (0, None));
            }
            412 => assert_eq!((got.body.len(), got.header("content-length")), (0, Some("0"))),
            _ => {
                assert_eq!(got.body, files.css, "{headers:?}");
                assert_eq!(head.header("content-length"), got.header("content-length"));
                assert_eq!(head.header("repr-digest"), Some(&*digest(&files.css)));
            }
        }
    }
    assert!(files.edge.processes().is_empty());
}

/// RFC 9110 §14.2 and §14.4: what comes back is what was asked for, of this very representation.
#[test]
fn every_range() {
    let files = Files::deployed();
    let size = files.css.len();
    let whole = (0, size);
    let table: &[(Sent, Option<(usize, usize)>)] = &[
        (&[("Range", "bytes=0-0")], Some((0, 1))),
        (&[("Range", "bytes=0-499")], Some((0, 500))),
        (&[("Range", "bytes=500-")], Some((500, size))),
        (&[("Range", "bytes=-500")], Some((size - 500, size))),
        (&[("Range", "bytes=-999999")], Some(whole)),
        (&[("Range", "bytes=100-999999")], Some((100, size))),
        (&[("Range", "BYTES=1-2")], Some((1, 3))),
        // One of a list can be satisfied: the other is left out.
        (&[("Range", "bytes=999999-,5-6")], Some((5, 7))),
        // §13.1.5: only the strong tag of what is there; a date never is.
        (&[("Range", "bytes=0-1"), ("If-Range", "$")], Some((0, 2))),
        (&[("Range", "bytes=0-1"), ("If-Range", "W/$")], None),
        (&[("Range", "bytes=0-1"), ("If-Range", "\"other\"")], None),
        (&[("Range", "bytes=0-1"), ("If-Range", PAST)], None),
        (&[("Range", "bytes=0-1"), ("If-Range", FUTURE)], None),
        (&[("Range", "bytes=999999-"), ("If-Range", "\"other\"")], None),
        // Not a range, or one that would cost more than the whole: the whole.
        (&[("Range", "bytes=5-2")], None),
        (&[("Range", "bytes=a-b")], None),
        (&[("Range", "bytes=-")], None),
        (&[("Range", "bytes=")], None),
        (&[("Range", "lines=0-1")], None),
        (&[("Range", "bytes 0-1")], None),
        (&[("Range", "bytes=0-,0-")], None),
        (&[("Range", "bytes=0-1"), ("Range", "bytes=2-3")], None),
        (
            &[(
                "Range",
                "bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,10-10,11-11,12-12,13-13,14-14,15-15,16-16",
            )],
            None,
        ),
    ];
    for (headers, part) in table {
        let got = files.ask("GET", headers);
        let (status, (from, to)) = part.map_or((200, whole), |part| (206, part));
        assert_eq!((got.status, &got.body[..]), (status, &files.css[from..to]), "{headers:?}");
        let range = part.map(|_| format!("bytes {from}-{}/{size}", to - 1));
        assert_eq!(got.header("content-range"), range.as_deref(), "{headers:?}");
        assert_eq!(got.header("etag"), Some(&*files.etag));
        assert_eq!(got.header("accept-ranges"), Some("bytes"));
        // Of the whole, whatever part of it is sent (RFC 9530 §3).
        assert_eq!(got.header("repr-digest"), Some(&*digest(&files.css)), "{headers:?}");
        // §14.2: defined for GET only.
        let head = files.ask("HEAD", headers);
        assert_eq!((head.status, head.header("content-range")), (200, None), "HEAD {headers:?}");
    }
    for range in ["bytes=999999-", "bytes=-0", "bytes=999999-,9999999-"] {
        let got = files.ask("GET", &[("Range", range)]);
        assert_eq!((got.status, got.body.len()), (416, 0), "{range}");
        assert_eq!(got.header("content-range"), Some(&*format!("bytes */{size}")), "{range}");
    }
    let empty = files.edge.ask("GET", "/assets/empty.txt", &[("Range", "bytes=0-")], "");
    assert_eq!((empty.status, empty.header("content-range")), (416, Some("bytes */0")));
}

/// RFC 9110 §14.6: parts in the order that was asked for, overlapping or not, each with its own head.
#[test]
fn several_ranges_are_one_multipart() {
    let files = Files::deployed();
    let size = files.css.len();
    for (range, parts) in [
        ("bytes=0-9,-10", vec![(0, 10), (size - 10, size)]),
        ("bytes=-10,0-9", vec![(size - 10, size), (0, 10)]),
        ("bytes=0-99,50-149", vec![(0, 100), (50, 150)]),
        ("bytes= 1-1 , 3-3,\t5-5", vec![(1, 2), (3, 4), (5, 6)]),
        ("bytes=0-1,999999-,2-3", vec![(0, 2), (2, 4)]),
    ] {
        let got = files.ask("GET", &[("Range", range)]);
        assert_eq!((got.status, got.header("content-range")), (206, None), "{range}");
        let kind = got.header("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let text = String::from_utf8(got.body.clone()).unwrap();
        let mut rest = text.strip_suffix(&format!("\r\n--{boundary}--\r\n")).expect("the end");
        for (from, to) in parts {
            let head = format!(
                "\r\n--{boundary}\r\ncontent-type: text/css; charset=utf-8\r\ncontent-range: bytes \
                 {from}-{}/{size}\r\n\r\n",
                to - 1
            );
            rest = rest.strip_prefix(&head).unwrap_or_else(|| panic!("{range}: {rest:?}"));
            let bytes = std::str::from_utf8(&files.css[from..to]).unwrap();
            rest = rest.strip_prefix(bytes).unwrap_or_else(|| panic!("{range}: {rest:?}"));
        }
        assert_eq!(rest, "", "{range}");
        assert_eq!(got.header("repr-digest"), Some(&*digest(&files.css)));
    }
}

const CODINGS: [&str; 4] = ["br", "zstd", "gzip", "identity"];

fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "br" => _ = brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out).unwrap(),
        "zstd" => out = zstd::decode_all(bytes).unwrap(),
        // RFC 1952: ten bytes of head, eight behind.
        "gzip" => {
            let raw = &bytes[10..bytes.len() - 8];
            out = miniz_oxide::inflate::decompress_to_vec(raw).unwrap();
        }
        _ => out = bytes.to_vec(),
    }
    out
}

/// Each encoding is a representation of its own: tag, digest, length and ranges are of what is sent.
#[test]
fn every_encoding_is_what_it_says() {
    let files = Files::deployed();
    let mut tags = Vec::new();
    for coding in CODINGS {
        let accept = ("Accept-Encoding", coding);
        let got = files.ask("GET", &[accept]);
        assert_eq!(got.header("content-encoding").unwrap_or("identity"), coding);
        assert_eq!(decoded(coding, &got.body), files.css, "{coding}");
        assert_eq!(got.header("repr-digest"), Some(&*digest(&got.body)), "{coding}");
        let etag = got.header("etag").unwrap().to_owned();
        assert_eq!(files.ask("GET", &[accept, ("If-None-Match", &etag)]).status, 304);
        let range = [accept, ("Range", "bytes=10-19"), ("If-Range", &etag)];
        let part = files.ask("GET", &range);
        assert_eq!((part.status, &part.body[..]), (206, &got.body[10..20]), "{coding}");
        assert_eq!(part.header("content-encoding").unwrap_or("identity"), coding);
        assert_eq!(part.header("repr-digest"), got.header("repr-digest"), "of the whole");
        let head = files.ask("HEAD", &[accept]);
        for name in ["etag", "content-encoding", "content-length", "repr-digest", "vary"] {
            assert_eq!(head.header(name), got.header(name), "{coding} {name}");
        }
        tags.push(etag);
    }
    for (i, tag) in tags.iter().enumerate() {
        assert!(!tag.starts_with("W/") && !tags[..i].contains(tag), "{tags:?}");
        // The tag of one encoding is not another's, for a condition as for a range.
        let other = ("Accept-Encoding", CODINGS[(i + 1) % 4]);
        assert_eq!(files.ask("GET", &[other, ("If-None-Match", tag)]).status, 200);
        let range = [other, ("Range", "bytes=0-0"), ("If-Range", tag)];
        assert_eq!(files.ask("GET", &range).status, 200);
    }
}

/// RFC 9110 §12.5.3, every combination: each of br, zstd, gzip, identity and `*` absent, excluded, half
/// wanted or wanted, 1,024 in all, against the RFC's words written down a second time.
#[test]
fn every_encoding_against_every_quality_of_every_other() {
    let files = Files::deployed();
    let size = |coding| files.ask("GET", &[("Accept-Encoding", coding)]).body.len();
    let sizes: Vec<usize> = CODINGS.iter().map(|c| size(*c)).collect();
    let qualities = [None, Some(0), Some(500), Some(1000)];
    let mut connection = files.edge.connect();
    for n in 0..1024usize {
        let chosen: Vec<Option<u16>> = (0..5).map(|i| qualities[n >> (2 * i) & 3]).collect();
        let elements: Vec<String> = CODINGS
            .iter()
            .chain(&["*"])
            .zip(&chosen)
            .filter_map(|(name, q)| q.map(|q| format!("{name};q={}.{:03}", q / 1000, q % 1000)))
            .collect();
        let accept = elements.join(", ");
        // Unlisted, `*` counts; without it an encoding is not acceptable, and the plain file always is.
        let quality = |i: usize| chosen[i].or(chosen[4]).unwrap_or_default();
        let plain_by_default = chosen[3].is_none() && chosen[4].is_none();
        let mut best: Option<usize> = None;
        for i in 0..4 {
            let better = best.is_none_or(|b| (quality(i), sizes[b]) > (quality(b), sizes[i]));
            if quality(i) > 0 && better {
                best = Some(i);
            }
        }
        let expected = best.or(plain_by_default.then_some(3));
        if n % 900 == 899 {
            // A connection is closed after a thousand requests.
            connection = files.edge.connect();
        }
        connection.send_head("GET", CSS, &[("Accept-Encoding", &accept)]);
        let got = connection.answer().unwrap();
        match expected {
            None => assert_eq!((got.status, got.body.len()), (406, 0), "{accept}"),
            Some(i) => {
                let coding = got.header("content-encoding").unwrap_or("identity");
                assert_eq!((got.status, coding), (200, CODINGS[i]), "{accept}");
                assert_eq!(got.body.len(), sizes[i], "{accept}");
            }
        }
        assert_eq!(got.header("vary"), Some("accept-encoding"), "{accept}");
    }
}

/// No spelling of a path gives anything but a public file of that name.
#[test]
fn no_path_gets_out() {
    let files = Files::deployed();
    let ask = |target: &str| {
        let mut connection = files.edge.connect();
        connection.send(format!(
            "GET {target} HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: close\r\n\r\n"
        ));
        connection.answer().expect("an answer")
    };
    for target in
        ["/assets/app.css", "/assets/%61pp.css", "/assets/./app.css", "/x/../assets/app.css"]
    {
        assert_eq!((ask(target).status, ask(target).body), (200, files.css.clone()), "{target}");
    }
    let ups = [
        "..",
        ".%2e",
        "%2e.",
        "%2e%2e",
        "%252e%252e",
        "%c0%ae%c0%ae",
        "..%00",
        "..;",
        "....",
        "%uff0e%uff0e",
    ];
    let slashes = ["/", "%2f", "%5c", "\\", "%252f", "%c0%af", "//"];
    let names = ["private.txt", "vango-edge.toml", "studylab", "public/app.css", "etc/passwd"];
    let mut targets: Vec<String> = Vec::new();
    for up in ups {
        for slash in slashes {
            for name in names {
                for times in [1, 3] {
                    targets.push(format!("/assets/{}{name}", format!("{up}{slash}").repeat(times)));
                }
            }
        }
    }
    let more = [
        "/assets/.env",
        "/assets/%2eenv",
        "/assets/.git/config",
        "/assets/.git%2fconfig",
        "/assets//etc/passwd",
        "/assets/app.css%00.txt",
        "/assets/app.css/../../private.txt",
        "/assets/app.css/..%2f..%2fprivate.txt",
        "/assets/file:///etc/passwd",
        "/assets/~root/.profile",
        "/assets/C:%5cwindows",
        "/../private.txt",
        "//studylab.localhost/private.txt",
        "http://studylab.localhost/assets/../private.txt",
        "/private.txt",
        "/public/app.css",
        "/assets",
        "/assets/",
    ];
    targets.extend(more.map(str::to_owned));
    targets.push(format!("/assets/{}private.txt", "../".repeat(500)));
    targets.push(format!("/assets/{}app.css", "a/../".repeat(1500)));
    let mut found = std::collections::BTreeMap::<u16, u32>::new();
    for target in &targets {
        let got = ask(target);
        let body = String::from_utf8_lossy(&got.body);
        assert!(!body.contains(SECRET) && !body.contains("root:"), "{target}: {body}");
        // It means a public file, or has no meaning, or is the app's, which does not run.
        match got.status {
            200 => assert_eq!(got.body, files.css, "{target}"),
            400 | 404 | 414 | 431 | 503 => {}
            other => panic!("{target}: {other}"),
        }
        *found.entry(got.status).or_default() += 1;
    }
    println!("{} paths: {found:?}", targets.len());
    assert!(found[&400] > 100 && found[&503] > 100, "{found:?}");
}
