//! Static files: from the artifact, without the app, whatever happens to it.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{Answer, Artifact, Edge, eventually};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Asserts that the answer's bytes are what its entity tag says, and returns the tag.
#[track_caller]
fn checked(answer: &Answer) -> String {
    assert_eq!(answer.status, 200);
    let etag = answer.header("etag").expect("an entity tag").to_owned();
    assert_eq!(etag, format!("\"{}\"", hex(&answer.body)));
    assert_eq!(answer.header("set-cookie"), None);
    etag
}

#[test]
fn ten_thousand_requests_wake_nothing() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let paths = ["/assets/app.css", "/assets/app.js", "/assets/mark.0de621e9.svg"];
    std::thread::scope(|scope| {
        for n in 0..4 {
            let edge = &edge;
            scope.spawn(move || {
                for round in 0..5 {
                    // A connection is closed after 1000 requests.
                    let mut connection = edge.connect();
                    for i in 0..500 {
                        let encoding = ["br", "gzip", "zstd", "identity"][(n + i) % 4];
                        let path = paths[(i + round) % 3];
                        connection.send_head("GET", path, &[("Accept-Encoding", encoding)]);
                        let answer = connection.answer().unwrap();
                        checked(&answer);
                    }
                }
            });
        }
    });
    assert_eq!(edge.processes(), [] as [u32; 0]);
    assert_eq!((edge.ps(), edge.ops()), (vec![], vec![]), "no allocation, no operation");
    let served = "vango_edge_requests_total{class=\"asset\",environment=\"studylab/production\",\
                  outcome=\"asset\"}";
    eventually("all are counted", || edge.metric(served) == 10_000);
}

#[test]
fn encodings_conditions_and_ranges_over_the_wire() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    edge.deploy(&artifact);
    let file = fs::read(artifact.path().join("public/app.css")).unwrap();
    let get = |headers: &[(&str, &str)]| edge.ask("GET", "/assets/app.css", headers, "");
    let plain = get(&[]);
    assert_eq!(plain.body, file);
    let etag = checked(&plain);
    let mut tags = vec![etag.clone()];
    for coding in ["br", "zstd", "gzip"] {
        let encoded = get(&[("Accept-Encoding", coding)]);
        tags.push(checked(&encoded));
        assert_eq!(encoded.header("content-encoding"), Some(coding));
        assert_eq!(encoded.header("vary"), Some("accept-encoding"));
        assert!(encoded.body.len() < file.len() / 2);
    }
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 4, "each encoding has its own tag");
    let same = get(&[("If-None-Match", &etag)]);
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(&*etag)));
    // Put together from ranges, each under the condition that nothing changed.
    let mut parts = Vec::new();
    for at in (0..file.len()).step_by(1000) {
        let range = format!("bytes={at}-{}", at + 999);
        let part = get(&[("Range", &range), ("If-Range", &etag)]);
        assert_eq!(part.status, 206);
        parts.extend(part.body);
    }
    assert_eq!(parts, file);
    let several = get(&[("Range", "bytes=0-9,-10")]);
    assert_eq!(several.status, 206);
    let last = String::from_utf8_lossy(&file[file.len() - 10..]).into_owned();
    assert!(several.text().contains(&last) && several.text().contains("content-range: bytes 0-9/"));
    assert_eq!(get(&[("Range", "bytes=999999-")]).status, 416);
    edge.ask("GET", "/assets/app.deadbeef.css", &[], "").problem(404, "asset-not-found");
    assert_eq!(edge.processes(), [] as [u32; 0]);
}

#[test]
fn they_are_answered_while_the_app_cannot_start() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().env("STUDYLAB_FAIL_START", "1"));
    edge.get("/dashboard").retryable("wake-failed");
    checked(&edge.get("/assets/app.css"));
    let trace = edge.trace(edge.get("/assets/mark.0de621e9.svg").request_id());
    assert_eq!((&trace["class"], &trace["outcome"]), (&"asset".into(), &"asset".into()));
    assert_eq!(trace["steps"][1]["actor"], "Object store/CDN");
}

#[test]
fn an_open_page_finds_its_files_after_a_deploy_and_a_restart() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    let next = Artifact::new();
    let public = next.path().join("public");
    fs::remove_file(public.join("mark.0de621e9.svg")).unwrap();
    fs::write(public.join("mark.11223344.svg"), "<svg xmlns='http://www.w3.org/2000/svg'/>")
        .unwrap();
    fs::write(public.join("manifest.json"), r#"{"mark.svg":"mark.11223344.svg"}"#).unwrap();
    fs::write(public.join("app.css"), "/* the next one */").unwrap();
    super::promotion::deploy_preview(&edge, &next, "next");
    super::promotion::visit(&edge, "next", 1);
    edge.json(&["promote", "studylab", "next"]);
    for _ in 0..2 {
        checked(&edge.get("/assets/mark.0de621e9.svg"));
        checked(&edge.get("/assets/mark.11223344.svg"));
        assert_eq!(edge.get("/assets/app.css").text(), "/* the next one */");
        let cache = edge.get("/assets/mark.0de621e9.svg");
        assert_eq!(cache.header("cache-control"), Some("public, max-age=31536000, immutable"));
        assert!(edge.stop().success());
        edge.start_again();
    }
}

#[test]
fn damaged_and_missing_bytes_are_said_and_repaired_by_the_same_deploy() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    edge.deploy(&artifact);
    let blob = |file: &str| {
        let bytes = fs::read(artifact.path().join(file)).unwrap();
        edge.state().join("artifacts/blobs/sha256").join(hex(&bytes))
    };
    fs::write(blob("public/app.css"), "something else").unwrap();
    fs::remove_file(blob("public/app.js")).unwrap();
    edge.get("/assets/app.css").retryable("artifact-unavailable");
    edge.get("/assets/app.js").retryable("artifact-unavailable");
    edge.deploy(&artifact);
    checked(&edge.get("/assets/app.css"));
    checked(&edge.get("/assets/app.js"));
}

/// More than the buffers of a connection hold, so that its end is not read yet when its begin has come.
#[test]
fn a_file_that_is_damaged_while_it_is_sent_is_cut_off_and_said() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    let film: Vec<u8> =
        (0..48 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(artifact.path().join("public/film.webm"), &film).unwrap();
    edge.deploy(&artifact);
    let mut connection = edge.connect();
    connection.send_head("GET", "/assets/film.webm", &[]);
    let head = connection.answer_to_head().unwrap();
    let blob = edge.state().join("artifacts/blobs/sha256").join(hex(&film));
    fs::File::options().write(true).open(blob).unwrap().set_len(1 << 20).unwrap();
    assert!(connection.rest().len() < film.len());
    assert_eq!(edge.trace(head.request_id())["outcome"], "cut-off");
    assert!(edge.log().contains("a static file was cut off"), "{}", edge.log());
}

#[test]
fn what_a_manifest_says_of_one_name_is_one_content() {
    let edge = Edge::start();
    let artifact = Artifact::new().set("assets", "manifest", "\"public/.vite/manifest.json\"");
    let public = artifact.path().join("public");
    fs::create_dir_all(public.join(".vite")).unwrap();
    let vite =
        r#"{"src/main.ts": {"file": "js/main-DiwrgTda.js", "css": ["js/main-B3xkZQ12.css"]}}"#;
    fs::write(public.join(".vite/manifest.json"), vite).unwrap();
    fs::create_dir_all(public.join("js")).unwrap();
    fs::write(public.join("js/main-DiwrgTda.js"), "export {}").unwrap();
    let missing = edge.command(&["deploy", artifact.write().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("main-B3xkZQ12.css"), "{said}");
    fs::write(public.join("js/main-B3xkZQ12.css"), "a{}").unwrap();
    let deployed: Value = edge.deploy(&artifact);
    assert_eq!(deployed["epoch"], 1);
    for path in ["/assets/js/main-DiwrgTda.js", "/assets/js/main-B3xkZQ12.css"] {
        let cache = edge.get(path);
        assert_eq!(cache.header("cache-control"), Some("public, max-age=31536000, immutable"));
    }
    // Vite's own folder is no asset.
    assert_eq!(edge.processes(), [] as [u32; 0]);
    let other = public.parent().unwrap().join("js");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("main-DiwrgTda.js"), "something else").unwrap();
    let artifact = artifact.set("assets", "manifest", "\"vite.json\"");
    fs::copy(public.join(".vite/manifest.json"), artifact.path().join("vite.json")).unwrap();
    let twice = edge.command(&["deploy", artifact.write().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert!(!twice.status.success() && said.contains("different bytes"), "{said}");
}
