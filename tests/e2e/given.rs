//! Static files as builds leave them: encodings beside the files, hashed names with and without a list of them,
//! types and fields that browsers insist on.

use std::fs;
use std::path::Path;

use crate::support::{Answer, Artifact, Edge};

const FOR_EVER: &str = "public, max-age=31536000, immutable";

/// As `gzip` writes it, with the file's name in it.
fn gzip(name: &str, text: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255];
    out.extend(name.bytes().chain([0]));
    out.extend(miniz_oxide::deflate::compress_to_vec(text, 6));
    out.extend(crc32fast::hash(text).to_le_bytes());
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out
}

fn brotli(text: &[u8]) -> Vec<u8> {
    let params = brotli::enc::BrotliEncoderParams { quality: 4, ..Default::default() };
    let mut out = Vec::new();
    brotli::BrotliCompress(&mut &text[..], &mut out, &params).unwrap();
    out
}

fn unbrotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    brotli::BrotliDecompress(&mut &bytes[..], &mut out).unwrap();
    out
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let at = dir.join(name);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, bytes).unwrap();
}

fn as_sent(edge: &Edge, path: &str, accept: &str, coding: Option<&str>) -> Answer {
    let answer = edge.ask("GET", path, &[("Accept-Encoding", accept)], "");
    assert_eq!(answer.status, 200, "{path}");
    assert_eq!(answer.header("content-encoding"), coding, "{path} for {accept}");
    answer
}

#[test]
fn encodings_beside_a_file_are_sent_for_it_if_they_are_its_own() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    let public = artifact.path().join("public");
    let script = "export const given = () => document.title;\n".repeat(40);
    let (br, gz) = (brotli(script.as_bytes()), gzip("given.js", script.as_bytes()));
    put(&public, "given.js", &script);
    put(&public, "given.js.br", &br);
    put(&public, "given.js.gz", &gz);
    // Too short to be encoded here.
    put(&public, "short.txt", "a".repeat(100));
    put(&public, "short.txt.gz", gzip("short.txt", "a".repeat(100).as_bytes()));
    // What an older build left, a liar, and one that is larger than the file.
    let now = "export const now = 1;\n".repeat(40);
    put(&public, "now.js", &now);
    put(&public, "now.js.br", brotli(b"export const then = 1;\n"));
    put(&public, "now.js.gz", "not gzip");
    put(&public, "tiny.txt", "tiny");
    put(&public, "tiny.txt.gz", gzip("tiny.txt", b"tiny"));
    edge.deploy(&artifact);
    for _ in 0..2 {
        assert_eq!(as_sent(&edge, "/assets/given.js", "br", Some("br")).body, br);
        let answer = as_sent(&edge, "/assets/given.js", "gzip", Some("gzip"));
        assert_eq!(answer.body, gz);
        assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        // The one that is not there is made.
        as_sent(&edge, "/assets/given.js", "zstd", Some("zstd"));
        assert_eq!(as_sent(&edge, "/assets/given.js", "identity", None).text(), script);
        assert_eq!(as_sent(&edge, "/assets/given.js.gz", "identity", Some("gzip")).body, gz);
        as_sent(&edge, "/assets/short.txt", "gzip", Some("gzip"));
        let answer = as_sent(&edge, "/assets/now.js", "br", Some("br"));
        assert_eq!(unbrotli(&answer.body), now.as_bytes(), "not what an older build left");
        as_sent(&edge, "/assets/now.js", "gzip", Some("gzip"));
        as_sent(&edge, "/assets/tiny.txt", "gzip", None);
        // The next one, of which the edge knows all encodings but those that were given.
        put(&public, "other.txt", "other");
        edge.deploy(&artifact);
    }
    // Without them beside it, all are made; what the edge has of the same content was given, and is not taken.
    for name in ["given.js.br", "given.js.gz"] {
        fs::remove_file(public.join(name)).unwrap();
    }
    let digest = edge.deploy(&artifact)["digest"].clone();
    let made = as_sent(&edge, "/assets/given.js", "br", Some("br")).body;
    assert!(made != br && unbrotli(&made) == script.as_bytes());
    assert_eq!(edge.start_beside().deploy(&artifact)["digest"], digest, "the same anywhere");
    assert!(edge.ps().len() <= 1);
}

#[test]
fn djangos_list_and_patterns_say_which_names_change_with_their_content() {
    let edge = Edge::start();
    let artifact = Artifact::new().set("assets", "manifest", "\"public/staticfiles.json\"").set(
        "assets",
        "immutable",
        "[\"_next/static/*\", \"*.chunk.css\"]",
    );
    let public = artifact.path().join("public");
    let django = r#"{"paths": {"admin/css/base.css": "admin/css/base.6dbe1b2c4f0a.css"}, "version": "1.1", "hash": "5a1c0d9e8f7b"}"#;
    put(&public, "staticfiles.json", django);
    put(&public, "admin/css/base.css", "body{}");
    put(&public, "admin/css/base.6dbe1b2c4f0a.css", "body{}");
    // As `next build` leaves them: the build's id says it for the first, nothing in the name does.
    put(&public, "_next/static/Xk2vQ0/_buildManifest.js", "self.__BUILD_MANIFEST={}");
    put(&public, "_next/static/chunks/main-8e0d62a1f1b2c3d4.js", "main()");
    put(&public, "_next/data.json", "{}");
    put(&public, "plain.0123abcd.js", "in no list");
    edge.deploy(&artifact);
    let cached = |name: &str| {
        let answer = edge.get(&format!("/assets/{name}"));
        assert_eq!(answer.status, 200, "{name}");
        answer.header("cache-control").unwrap().to_owned()
    };
    for name in [
        "admin/css/base.6dbe1b2c4f0a.css",
        "_next/static/Xk2vQ0/_buildManifest.js",
        "_next/static/chunks/main-8e0d62a1f1b2c3d4.js",
    ] {
        assert_eq!(cached(name), FOR_EVER, "{name}");
    }
    for name in ["admin/css/base.css", "_next/data.json", "plain.0123abcd.js", "staticfiles.json"] {
        assert_eq!(cached(name), "no-cache", "{name}");
    }
    // The next build: what pages of the last one name is still there, and nothing else of it.
    fs::remove_dir_all(public.join("_next")).unwrap();
    fs::remove_file(public.join("plain.0123abcd.js")).unwrap();
    edge.deploy(&artifact);
    assert_eq!(cached("_next/static/Xk2vQ0/_buildManifest.js"), FOR_EVER);
    assert_eq!(cached("_next/static/chunks/main-8e0d62a1f1b2c3d4.js"), FOR_EVER);
    edge.get("/assets/plain.0123abcd.js").problem(404, "asset-not-found");
    // A list that names what is not there is an old one.
    fs::remove_file(public.join("admin/css/base.6dbe1b2c4f0a.css")).unwrap();
    let said = edge.refused(&["deploy", artifact.write().to_str().unwrap()]);
    assert!(said.contains("base.6dbe1b2c4f0a.css") && said.contains("build again"), "{said}");
    let wrong = Artifact::new().set("assets", "immutable", "[\"/static/*\"]");
    let said = edge.refused(&["deploy", wrong.write().to_str().unwrap()]);
    assert!(said.contains("assets.immutable") && said.contains("below the prefix"), "{said}");
}

/// What browsers refuse to use under another type.
#[test]
fn files_have_the_types_that_browsers_insist_on() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    let public = artifact.path().join("public");
    let table = [
        ("build.wasm", "application/wasm"),
        ("module.mjs", "text/javascript; charset=utf-8"),
        ("app.js.map", "application/json"),
        ("app.webmanifest", "application/manifest+json"),
        ("font.woff2", "font/woff2"),
        ("font.woff", "font/woff"),
        ("photo.avif", "image/avif"),
        ("photo.webp", "image/webp"),
        ("icon.svg", "image/svg+xml"),
        ("page.html", "text/html; charset=utf-8"),
        ("track.vtt", "text/vtt; charset=utf-8"),
        ("noextension", "application/octet-stream"),
    ];
    for (name, _) in table {
        put(&public, name, "grün");
    }
    edge.deploy(&artifact);
    for (name, kind) in table {
        let answer = edge.get(&format!("/assets/{name}"));
        assert_eq!(answer.header("content-type"), Some(kind), "{name}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{name}");
    }
}
