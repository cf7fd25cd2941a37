//! Browsers, providers and balancers as they are: methods, preflights, tokens, deliveries, assets.

use std::fs;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use vango_edge::clock::{Clock, SystemClock};

use crate::promotion::{deploy_preview, host};
use crate::support::{Answer, Artifact, Edge, eventually, eventually_some};
use crate::webhook::secrets;

/// Where the sample app tells what it got, by any method.
const ECHO: &str = "/debug/echo";
const SECRET: &str = "whsec_a";
const ORIGIN: &str = "https://app.example";

/// The sample app with `keys` for the route of [`ECHO`].
fn echoing(keys: &str) -> Artifact {
    let first = "[[route]]\npath = \"/vango/live\"";
    Artifact::new().replace(first, &format!("[[route]]\npath = {ECHO:?}\n{keys}\n{first}"))
}

fn webhook_of(provider: &str) -> Artifact {
    let keys = format!("class = \"webhook\"\nsecret = \"STRIPE_WEBHOOK_SECRET\"\n{provider}");
    echoing(&keys)
}

fn hex_hmac(parts: &[&[u8]]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    parts.iter().for_each(|p| mac.update(p));
    mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

fn seconds() -> String {
    (SystemClock::new().wall().0 / 1000).to_string()
}

/// `Stripe-Signature` of now.
fn stripe(body: &str) -> String {
    let at = seconds();
    let signature = hex_hmac(&[at.as_bytes(), b".", body.as_bytes()]);
    format!("t={at},v1={signature}")
}

const PREFLIGHT: [(&str, &str); 2] =
    [("Origin", ORIGIN), ("Access-Control-Request-Method", "POST")];

/// A field that the app got.
fn got<'a>(seen: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let fields = seen["headers"].as_array().unwrap();
    fields.iter().find(|f| f[0] == name).map(|f| f[1].as_str().unwrap())
}

#[test]
fn safe_methods_reach_the_app_on_every_class_and_are_held_when_it_is_cold() {
    for keys in [
        "class = \"action\"\nidempotency = \"none\"",
        "class = \"action\"\nidempotency = \"app\"",
        "class = \"action\"\nidempotency = \"edge\"\nprincipal = \"cookie:id\"",
        "class = \"action\"\nidempotency = \"edge\"\nprincipal = \"cookie:id\"\nfingerprint = \"head\"",
        "class = \"webhook\"\nsecret = \"STRIPE_WEBHOOK_SECRET\"\nprovider = \"stripe\"",
        "class = \"live\"",
    ] {
        let edge = Edge::start();
        secrets(&edge, &[SECRET]);
        edge.deploy(&echoing(keys));
        let cold = edge.ask("OPTIONS", ECHO, &PREFLIGHT, "");
        assert_eq!((cold.status, &cold.json()["method"]), (200, &"OPTIONS".into()), "{keys}");
        assert_eq!(edge.trace(cold.request_id())["outcome"], "woken", "{keys}");
        for method in ["GET", "HEAD", "PROPFIND", "QUERY"] {
            let hot = edge.ask(method, ECHO, &[("Stripe-Signature", &stripe(""))], "");
            assert_eq!(hot.status, 200, "{method} {keys}");
        }
        // With an answer's own length, and a body of its own.
        let asked = edge.ask("QUERY", ECHO, &[], "select");
        assert_eq!(asked.json()["body_start"], "select", "{keys}");
        let rows = edge.list(&["audit"]);
        assert!(rows.is_empty(), "none of them is an unsafe request: {rows:?}");
        if keys.contains("webhook") {
            let asks = [("X-HTTP-Method-Override", "POST")];
            edge.ask("GET", ECHO, &asks, "").problem(403, "webhook-signature-invalid");
            edge.ask("POST", ECHO, &[], "{}").problem(403, "webhook-signature-invalid");
            for method in ["DELETE", "PUT"] {
                let signed = [("Stripe-Signature", stripe("{}"))];
                let signed = signed.each_ref().map(|(n, v)| (*n, v.as_str()));
                edge.ask(method, ECHO, &signed, "{}").problem(403, "webhook-signature-invalid");
            }
            let refused = "vango_edge_webhooks_refused_total{reason=\"method\"}";
            // The GET that may be read as a POST, and the two.
            eventually("each is counted", || edge.metric(refused) == 3);
        }
    }
}

/// An edge whose previews are behind [`TOKEN`], with a preview that echoes, asleep.
fn behind_a_token(artifact: &Artifact) -> Edge {
    let edge = Edge::start();
    fs::write(edge.apps().join("token"), TOKEN).unwrap();
    fs::write(edge.apps().join("hook"), SECRET).unwrap();
    let app = fs::read_to_string(edge.apps().join("studylab.toml")).unwrap();
    let secrets = "preview_secrets = { STRIPE_WEBHOOK_SECRET = { file = \"hook\" } }";
    let app = app.replace("preview_secrets = {}", secrets);
    let access = format!("{app}\npreview_access = {{ token = {{ file = \"token\" }} }}\n");
    fs::write(edge.apps().join("studylab.toml"), access).unwrap();
    edge.json(&["reload"]);
    deploy_preview(&edge, artifact, "pr-7");
    edge
}

const TOKEN: &str = "a-token-that-is-long-enough-for-previews";

#[test]
fn a_preflight_of_a_preview_behind_a_token_passes() {
    let edge = behind_a_token(&echoing("class = \"action\"\nidempotency = \"app\""));
    let host = host("pr-7");
    let ask = |method: &str, more: &[(&str, &str)]| {
        edge.ask(method, ECHO, &[&[("Host", host.as_str())], more].concat(), "")
    };
    for not in [&[][..], &PREFLIGHT[..1], &PREFLIGHT[1..]] {
        ask("OPTIONS", not).problem(401, "preview-access");
    }
    ask("GET", &PREFLIGHT).problem(401, "preview-access");
    assert_eq!(edge.processes(), [] as [u32; 0], "nothing of these wakes it");
    let answer = ask("OPTIONS", &PREFLIGHT);
    assert_eq!((answer.status, &answer.json()["method"]), (200, &"OPTIONS".into()));
    ask("POST", &PREFLIGHT).problem(401, "preview-access");
}

#[test]
fn a_delivery_with_the_token_in_its_address_passes_and_only_a_navigation_is_sent_on() {
    let edge = behind_a_token(&webhook_of("provider = \"stripe\""));
    let host = host("pr-7");
    let target = |rest: &str| format!("{ECHO}?{rest}");
    let ask = |method: &str, target: &str, more: &[(&str, &str)], body: &str| {
        edge.ask(method, target, &[&[("Host", host.as_str())], more].concat(), body)
    };
    for (given, seen) in [
        (format!("a=%31&vango_preview={TOKEN}&b"), "a=%31&b".into()),
        (format!("vango_preview={TOKEN}"), serde_json::Value::Null),
    ] {
        // Each is an event of its own.
        let body = format!("{{\"id\":\"evt_{}\"}}", given.len());
        let signed = stripe(&body);
        let signed = [("Stripe-Signature", signed.as_str())];
        ask("POST", &target("vango_preview=x"), &signed, &body).problem(401, "preview-access");
        let answer = ask("POST", &target(&given), &signed, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["query"], seen, "{given}");
        assert_eq!(got(&answer.json(), "vango-edge-webhook-verdict"), Some("verified"));
    }
    // On the way of a page too: the app never sees the token.
    let page = ask("GET", &target(&format!("vango_preview={TOKEN}&a=1")), &[], "");
    assert_eq!((page.status, &page.json()["query"]), (200, &"a=1".into()), "{}", page.text());
    let html = [("Accept", "text/html,*/*;q=0.8"), ("Sec-Fetch-Mode", "navigate")];
    let welcome = ask("GET", &target(&format!("vango_preview={TOKEN}&a=1")), &html, "");
    assert_eq!((welcome.status, welcome.header("location")), (303, Some("/debug/echo?a=1")));
    assert!(!edge.log().contains(TOKEN));
}

/// GitHub says 25 MB of itself. What is longer is told so, counted and on record.
#[test]
fn a_delivery_may_be_as_long_as_its_provider_says() {
    let edge = Edge::start();
    secrets(&edge, &[SECRET]);
    edge.deploy(&webhook_of("provider = \"github\""));
    let deliver = |length: usize, id: &str| {
        let body = "x".repeat(length);
        let signature = format!("sha256={}", hex_hmac(&[body.as_bytes()]));
        let headers = [("X-Hub-Signature-256", signature.as_str()), ("X-GitHub-Delivery", id)];
        edge.ask("POST", ECHO, &headers, &body)
    };
    for (n, length) in [1_200_000, 20 << 20].into_iter().enumerate() {
        let answer = deliver(length, &format!("d{n}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["body_length"], length);
    }
    let length = ((25 << 20) + 1).to_string();
    let signature = format!("sha256={}", "0".repeat(64));
    let headers = [("X-Hub-Signature-256", &*signature), ("Content-Length", &*length)];
    let mut client = edge.connect();
    client.send_head("POST", ECHO, &headers);
    client.answer().unwrap().problem(413, "content-too-large");
    eventually("it is counted", || {
        edge.metric("vango_edge_webhooks_refused_total{reason=\"unread\"}") == 1
    });
    let row = eventually_some("it is on record", || {
        edge.list(&["audit"]).into_iter().find(|r| r["status"] == 413)
    });
    let why = row["why"].as_str().unwrap();
    assert!(why.contains("lost unless redelivered by hand"), "{why}");
}

#[test]
fn a_handshake_is_the_apps_to_answer_each_time() {
    let edge = Edge::start();
    secrets(&edge, &[SECRET]);
    edge.deploy(&webhook_of("provider = \"slack\""));
    let deliver = |body: &str| -> Answer {
        let at = seconds();
        let signature = format!("v0={}", hex_hmac(&[format!("v0:{at}:{body}").as_bytes()]));
        let headers = [
            ("X-Slack-Signature", signature.as_str()),
            ("X-Slack-Request-Timestamp", at.as_str()),
            ("Content-Type", "application/json"),
        ];
        edge.ask("POST", ECHO, &headers, body)
    };
    let challenge = r#"{"token":"t","challenge":"3eZbrw1aBm2rZgRNFdxV","type":"url_verification"}"#;
    for _ in 0..3 {
        let answer = deliver(challenge);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = answer.json();
        assert_eq!(seen["body_start"], challenge);
        assert_eq!(got(&seen, "vango-edge-webhook-verdict"), Some("handshake"));
        assert_eq!(got(&seen, "vango-edge-webhook-event"), None);
    }
    assert!(edge.list(&["ledger"]).is_empty(), "a handshake is no event");
    let event = r#"{"type":"event_callback","event_id":"Ev1"}"#;
    assert_eq!(got(&deliver(event).json(), "vango-edge-webhook-verdict"), Some("verified"));
    assert_eq!(deliver(event).header("vango-edge-webhook-verdict"), Some("duplicate"));
}

#[test]
fn the_edges_own_answers_may_be_read_by_the_scripts_that_the_contract_names() {
    let edge = Edge::start();
    let artifact = Artifact::new()
        .replace("idempotency = \"app\"", "idempotency = \"none\"")
        .replace("[assets]", &format!("[errors]\ncors_origins = [{ORIGIN:?}]\n[assets]"));
    edge.deploy(&artifact);
    let from = |origin: &str, path: &str| edge.ask("POST", path, &[("Origin", origin)], "a=b");
    let readable = |answer: &Answer| {
        assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        let exposed = answer.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("Retry-After") && exposed.contains("X-Request-Id"));
        assert_eq!(answer.header("vary"), Some("origin"));
    };
    // Cold: what a script has to know is when to come again.
    let cold = from(ORIGIN, "/actions/save");
    cold.retryable("app-cold");
    readable(&cold);
    let refused = from(ORIGIN, "/actions/submit");
    refused.problem(400, "idempotency-key-missing");
    readable(&refused);
    let gone = edge.ask("GET", "/assets/app.deadbeef.js", &[("Origin", ORIGIN)], "");
    gone.problem(404, "asset-not-found");
    readable(&gone);
    for other in ["https://evil.example", "null", "https://app.example.evil.example"] {
        let refused = from(other, "/actions/submit");
        refused.problem(400, "idempotency-key-missing");
        assert_eq!(refused.header("access-control-allow-origin"), None, "{other}");
        assert_eq!(refused.header("vary"), Some("origin"));
    }
    // The app's own answers are the app's.
    edge.until_hot();
    let page = edge.ask("GET", ECHO, &[("Origin", ORIGIN)], "");
    assert_eq!((page.status, page.header("access-control-allow-origin")), (200, None));
    // Another owner, another word.
    let next = Artifact::new().env("LOG", "debug");
    deploy_preview(&edge, &next, "pr-7");
    let host = host("pr-7");
    let refused = edge.ask("POST", "/actions/submit", &[("Origin", ORIGIN), ("Host", &host)], "x");
    assert_eq!((refused.status, refused.header("vary")), (400, None));
}

#[test]
fn so_they_may_for_an_app_that_somebody_else_runs() {
    // No app listens at its address: what answers is the edge.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let file = format!(
        "app = \"legacy\"\nhosts = [\"legacy.localhost\"]\nupstreams = [\"{address}\"]\n\
         health = {{ check = \"none\" }}\nerrors = {{ cors_origins = [\"*\"] }}\n"
    );
    let edge = Edge::start_with_app("legacy", &file);
    let headers = [("Host", "legacy.localhost"), ("Origin", ORIGIN)];
    let answer = edge.ask("GET", "/", &headers, "");
    answer.retryable("not-forwarded");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

/// Deploys `artifact` to production, by way of a preview.
fn replace(edge: &Edge, artifact: &Artifact, preview: &str) {
    deploy_preview(edge, artifact, preview);
    crate::promotion::visit(edge, preview, 1);
    edge.json(&["promote", "studylab", preview]);
}

#[test]
fn a_plain_file_that_a_deploy_took_out_is_served_no_more() {
    let mut edge = Edge::start();
    let first = Artifact::new();
    fs::write(first.path().join("public/price-list.txt"), "secret").unwrap();
    edge.deploy(&first);
    assert_eq!(edge.get("/assets/price-list.txt").text(), "secret");
    let next = Artifact::new().env("LOG", "debug");
    fs::write(next.path().join("public/new.txt"), "new").unwrap();
    replace(&edge, &next, "next");
    let gone = |edge: &Edge, path: &str, rest: &str| {
        // The app's own route answers: its 404, and not the edge's.
        let answer = edge.get(path);
        assert_eq!((answer.status, answer.header("proxy-status")), (404, None), "{rest}");
        let mark = edge.get("/assets/mark.0de621e9.svg");
        assert_eq!(mark.status, 200, "what is fingerprinted outlives its deployment: {rest}");
    };
    gone(&edge, "/assets/price-list.txt", "after a deploy");
    edge.json(&["collect"]);
    gone(&edge, "/assets/price-list.txt", "after collect");
    assert!(edge.stop().success());
    edge.start_again();
    gone(&edge, "/assets/price-list.txt", "after a restart");
    edge.json(&["rollback", "studylab"]);
    assert_eq!(edge.get("/assets/price-list.txt").text(), "secret");
    gone(&edge, "/assets/new.txt", "after a rollback");
}

#[test]
fn a_file_whose_name_says_how_it_is_encoded_is_sent_so() {
    let edge = Edge::start();
    let artifact = Artifact::new();
    let public = artifact.path().join("public");
    let gzip = |text: &[u8]| {
        let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        out.extend(miniz_oxide::deflate::compress_to_vec(text, 6));
        out.extend(crc32fast::hash(text).to_le_bytes());
        out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        out
    };
    let brotli = |text: &[u8]| {
        let mut out = Vec::new();
        brotli::BrotliCompress(&mut &text[..], &mut out, &Default::default()).unwrap();
        out
    };
    let script = "export const a = 'grün'\n".repeat(50);
    for (name, bytes) in [
        ("app.js.gz", gzip(script.as_bytes())),
        ("build.wasm.br", brotli(b"\0asm\x01\0\0\0")),
        ("build.data.br", brotli(b"data")),
        ("mark.svgz", gzip(b"<svg/>")),
        ("backup.tar.gz", gzip(b"tar")),
        ("liar.js.gz", b"not gzip at all".to_vec()),
    ] {
        fs::write(public.join(name), bytes).unwrap();
    }
    edge.deploy(&artifact);
    for (name, kind, coding) in [
        ("app.js.gz", "text/javascript; charset=utf-8", Some("gzip")),
        ("build.wasm.br", "application/wasm", Some("br")),
        ("build.data.br", "application/octet-stream", Some("br")),
        ("mark.svgz", "image/svg+xml", Some("gzip")),
        ("backup.tar.gz", "application/gzip", None),
        ("liar.js.gz", "application/gzip", None),
    ] {
        for accept in ["gzip, br", "identity", "zstd"] {
            let path = format!("/assets/{name}");
            let answer = edge.ask("GET", &path, &[("Accept-Encoding", accept)], "");
            assert_eq!(answer.status, 200, "{name}");
            assert_eq!(answer.header("content-type"), Some(kind), "{name}");
            assert_eq!(answer.header("content-encoding"), coding, "{name} {accept}");
            assert_eq!(answer.body, fs::read(public.join(name)).unwrap(), "{name}");
        }
    }
    assert_eq!(edge.processes(), [] as [u32; 0]);
    // The developer says that the names mean nothing of the kind.
    let plain = artifact.set("assets", "encoded_suffixes", "[\"br\"]");
    let next = deploy_preview(&edge, &plain, "plain");
    assert_eq!(next["environment"], "studylab/plain");
    let host = host("plain");
    let ask = |path: &str| edge.ask("GET", path, &[("Host", &host)], "");
    assert_eq!(ask("/assets/app.js.gz").header("content-encoding"), None);
    assert_eq!(ask("/assets/build.wasm.br").header("content-encoding"), Some("br"));
}

#[test]
fn a_contract_gives_its_files_the_fields_that_browsers_want() {
    let edge = Edge::start();
    let rules = "[[assets.header]]\nfiles = [\"*.js\"]\n\
                 set = { Cross-Origin-Embedder-Policy = \"require-corp\", Service-Worker-Allowed = \"/\" }\n\
                 [[assets.header]]\nfiles = [\"*.svg\"]\nset = { Access-Control-Allow-Origin = \"*\" }\n";
    let artifact = Artifact::new().replace(
        "manifest = \"public/manifest.json\"\n",
        &format!("manifest = \"public/manifest.json\"\n{rules}"),
    );
    edge.deploy(&artifact);
    let script = edge.get("/assets/app.js");
    assert_eq!(script.header("cross-origin-embedder-policy"), Some("require-corp"));
    assert_eq!(script.header("service-worker-allowed"), Some("/"));
    assert_eq!(script.header("access-control-allow-origin"), None);
    let etag = script.header("etag").unwrap();
    let same = edge.ask("GET", "/assets/app.js", &[("If-None-Match", etag)], "");
    assert_eq!((same.status, same.header("service-worker-allowed")), (304, Some("/")));
    let mark = edge.get("/assets/mark.0de621e9.svg");
    assert_eq!(mark.header("access-control-allow-origin"), Some("*"));
    assert_eq!(edge.get("/assets/app.css").header("cross-origin-embedder-policy"), None);
    // What the edge says itself is not for a contract to say.
    for (field, value) in
        [("Cache-Control", "no-store"), ("content-encoding", "br"), ("Vango-Edge-Epoch", "1")]
    {
        let line = format!("set = {{ {field} = {value:?} }}\n");
        let bad = Artifact::new().replace(
            "manifest = \"public/manifest.json\"\n",
            &format!("[[assets.header]]\nfiles = [\"*\"]\n{line}"),
        );
        let check = edge.command(&["check", "--artifact", bad.write().to_str().unwrap()]);
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(!check.status.success() && said.contains("the edge sets this one"), "{said}");
        assert!(said.contains("assets.header[0].set"), "{said}");
    }
}
