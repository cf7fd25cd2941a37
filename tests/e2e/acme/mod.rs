//! Certificates by ACME, ordered from Debian's Pebble: proved over plain HTTP and by TLS, renewed, gone on with after
//! `kill -9`, and never a reason for another host to fail.

mod fleet;
mod now;
mod pebble;

use std::fs;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, ClientConfig};
use serde_json::Value;

use crate::support::{Artifact, Edge, eventually, eventually_some};
use crate::tls::{certificate, client_config};
use pebble::{Pebble, over_tls};

const HOST: &str = "shop.acme.test";

fn app(name: &str, hosts: &str, more: &str) -> String {
    format!("app = {name:?}\nhosts = [{hosts}]\n{more}")
}

/// An edge whose `[acme]` names `pebble`, with these apps by name.
fn edge_with(pebble: &Pebble, table: &str, apps: &[(&str, &str)]) -> Edge {
    let mut edge = Edge::start();
    assert!(edge.stop().success());
    for (name, file) in apps {
        fs::write(edge.apps().join(format!("{name}.toml")), file).unwrap();
    }
    edge.reconfigure("[apps]\n", &format!("{table}[apps]\n"));
    edge.start_again();
    pebble.looks_at(&edge);
    edge
}

/// An app that is asked where this edge's sample app is not: by its host.
fn studylab(edge: &Edge, hosts: &str) {
    let file = edge.apps().join("studylab.toml");
    let text = fs::read_to_string(&file).unwrap();
    let from = "hosts = [\"studylab.localhost\"]";
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replace(from, &format!("hosts = [\"studylab.localhost\", {hosts}]")))
        .unwrap();
}

fn echo(host: &str) -> String {
    format!("GET /debug/echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn row(edge: &Edge, name: &str) -> Value {
    let rows = edge.list(&["certificates"]);
    rows.into_iter().find(|r| r["name"] == name).unwrap_or_default()
}

/// The certificate that `name` has, once it has one that `client` believes.
fn served(edge: &Edge, client: &Arc<ClientConfig>, name: &str) -> CertificateDer<'static> {
    let to = edge.tls.unwrap();
    eventually_some(&format!("a certificate for {name}"), || {
        over_tls(to, client, name, &echo(name)).ok().map(|(shown, _)| shown)
    })
}

/// The client is told that there is no certificate for `name`.
#[track_caller]
fn has_none(edge: &Edge, client: &Arc<ClientConfig>, name: &str) {
    let refused = over_tls(edge.tls.unwrap(), client, name, &echo(name)).unwrap_err();
    let why = refused.get_ref().and_then(|e| e.downcast_ref());
    let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
    assert_eq!(why, Some(&alert), "{name}: {refused}");
}

#[test]
fn a_host_is_proved_by_tls_and_one_that_cannot_be_is_its_own_trouble() {
    let mut pebble = Pebble::prepared("");
    let hosts = format!("\"nowhere.acme.test\", \"{HOST}\"");
    let table = pebble.table("tls-alpn-01", "contact = [\"mailto:operator@acme.test\"]");
    let files = [("off", app("off", "\"off.acme.test\"", "acme = false\n"))];
    let files: Vec<_> = files.iter().map(|(n, f)| (*n, f.as_str())).collect();
    let edge = edge_with(&pebble, &table, &files);
    studylab(&edge, &hosts);
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    // It serves without the authority, which is away: what it has no certificate for is told so.
    assert_eq!(edge.get("/debug/echo").status, 200);
    eventually("the order has failed", || row(&edge, HOST)["order"] == "failed");
    assert_eq!(edge.metric("vango_edge_acme_hosts_without_certificate"), 2);
    pebble.start();
    let client = pebble.client();
    has_none(&edge, &client, "nowhere.acme.test");
    served(&edge, &client, HOST);
    let (_, said) = over_tls(edge.tls.unwrap(), &client, HOST, &echo(HOST)).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let mine = row(&edge, HOST);
    assert_eq!((&mine["source"], &mine["order"]), (&"acme".into(), &"issued".into()), "{mine}");
    assert!(mine["expires"].is_string() && mine["next"].is_string() && mine["error"].is_null());
    // The others: refused with its reason and its next try; not wanted; not looked at by any authority.
    eventually("why the other has none", || {
        let other = row(&edge, "nowhere.acme.test");
        other["error"].as_str().is_some_and(|e| e.contains("nowhere.acme.test"))
            && other["next"].is_string()
            && other["expires"].is_null()
    });
    for (name, source) in [("off.acme.test", "none"), ("studylab.localhost", "none")] {
        assert_eq!(row(&edge, name)["source"], source, "{name}");
        has_none(&edge, &client, name);
    }
    assert!(edge.said(&["certificates"]).contains(HOST));
    assert_eq!(edge.metric("vango_edge_acme_hosts_without_certificate"), 1);
    assert_eq!(edge.metric("vango_edge_acme_orders_total{outcome=\"issued\"}"), 1);
    assert!(edge.metric("vango_edge_acme_orders_total{outcome=\"failed\"}") > 1);
    let until = format!("vango_edge_acme_certificate_expiry_timestamp_seconds{{host=\"{HOST}\"}}");
    assert!(edge.metric(&until) > 1_700_000_000);
    assert_eq!(pebble.count("accounts"), 1);
    // No authority's protocol leads to an app, or to a certificate of another name.
    let mut asks = ClientConfig::clone(&client);
    asks.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    has_none(&edge, &Arc::new(asks), HOST);
    // Nothing of a key is told.
    for text in [edge.log(), edge.said(&["certificates", "--json"]), edge.said(&["traces"])] {
        assert!(!text.contains("PRIVATE") && !text.contains("key_authorization"), "{text}");
    }
}

#[test]
fn a_host_is_proved_over_plain_http_although_that_is_sent_on() {
    let mut pebble = Pebble::prepared("");
    let edge = edge_with(&pebble, &pebble.table("http-01", ""), &[]);
    edge.reconfigure("[server]\n", "[server]\nredirect_http = true\n");
    studylab(&edge, &format!("\"{HOST}\""));
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    pebble.start();
    let client = pebble.client();
    served(&edge, &client, HOST);
    let looked = edge.list(&["traces"]).into_iter().find(|t| t["outcome"] == "validated");
    let looked = looked.expect("the authority's look is in the traces");
    assert!(looked["path"].as_str().unwrap().starts_with("/.well-known/acme-challenge/"));
    assert_eq!((&looked["host"], &looked["status"]), (&HOST.into(), &200.into()));
    // The token is known no more, and a token that never was is the app's: both are sent on, as any page is.
    for path in [looked["path"].as_str().unwrap(), "/.well-known/acme-challenge/never"] {
        let answer = edge.ask("GET", path, &[("Host", HOST)], "");
        assert_eq!(answer.status, 308, "{path}");
    }
    // Over HTTPS it is the app that is asked for what it has below that path.
    let own = "GET /.well-known/acme-challenge/never HTTP/1.1\r\nHost: shop.acme.test\r\nConnection: close\r\n\r\n";
    let (_, said) = over_tls(edge.tls.unwrap(), &client, HOST, own).unwrap();
    assert!(said.to_ascii_lowercase().contains("x-request-id") && said.starts_with("HTTP/1.1 404"));
    assert_eq!(edge.ps().len(), 1, "the app was woken for it");
}

#[test]
fn a_certificate_outlives_a_restart_and_is_not_ordered_again() {
    let mut pebble = Pebble::prepared("");
    pebble.start();
    let client = pebble.client();
    let table = pebble.table("tls-alpn-01", "");
    let file = app("shop", &format!("\"{HOST}\""), "");
    let mut edge = edge_with(&pebble, &table, &[("shop", &file)]);
    let first = served(&edge, &client, HOST);
    pebble.stop();
    for killed in [false, true] {
        if killed {
            edge.kill();
        } else {
            assert!(edge.stop().success());
        }
        edge.start_again();
        // From its first handshake on.
        let (again, _) = over_tls(edge.tls.unwrap(), &client, HOST, &echo(HOST)).unwrap();
        assert_eq!(again, first);
    }
    // The state directory is its owner's alone.
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(edge.state()).unwrap().permissions().mode() & 0o077, 0);
    // Another host, by a reload; the first one stays.
    pebble.start();
    let client = pebble.client();
    pebble.looks_at(&edge);
    let more = app("shop", &format!("\"{HOST}\", \"new.acme.test\""), "");
    fs::write(edge.apps().join("shop.toml"), more).unwrap();
    edge.json(&["reload"]);
    // Pebble has forgotten everything, the account included.
    served(&edge, &client, "new.acme.test");
    assert_eq!(edge.list(&["certificates"]).iter().filter(|r| r["order"] == "issued").count(), 2);
    assert_eq!(edge.metric("vango_edge_acme_orders_total{outcome=\"issued\"}"), 1);
}

/// At each point that is on disk, and before it is: the next process goes on, under the same account.
#[test]
fn an_order_goes_on_after_kill_9() {
    // One after the other before anything is issued, and each for a host of its own.
    let account = ["acme-account after key", "acme-account before id"];
    let points = [
        "order after requested",
        "order before ordered",
        "order after ordered",
        "order before validating",
        "order after validating",
        "order before finalizing",
        "order after finalizing",
        "order before issued",
    ];
    let mut pebble = Pebble::prepared("");
    pebble.start();
    let client = pebble.client();
    let mut edge = edge_with(&pebble, &pebble.table("tls-alpn-01", ""), &[]);
    let killed_at = [&account[..]].into_iter().chain(points.chunks(1)).enumerate();
    for (i, points) in killed_at {
        let host = format!("kill{i}.acme.test");
        let file = app(&format!("kill{i}"), &format!("{host:?}"), "");
        fs::write(edge.apps().join(format!("kill{i}.toml")), file).unwrap();
        for (n, point) in points.iter().enumerate() {
            if n == 0 {
                edge.crash_at(point);
                edge.hang_up();
            }
            edge.crashed();
            if n + 1 < points.len() {
                edge.crash_at(points[n + 1]);
            }
            edge.start_again();
        }
        pebble.looks_at(&edge);
        served(&edge, &client, &host);
        assert_eq!(row(&edge, &host)["order"], "issued", "{points:?}");
    }
    assert_eq!(pebble.count("accounts"), 1);
    // Only what the authority was told before it was on record is told to it again.
    assert_eq!(pebble.count("orders"), 1 + points.len() + 1);
}

#[test]
fn what_a_file_covers_is_not_ordered() {
    let mut pebble = Pebble::prepared("");
    pebble.start();
    let client = pebble.client();
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "file", &["*.acme.test"]);
    let file = dir.path().join("file").display().to_string();
    let files =
        format!("certificates = [{{ cert = \"{file}/cert.pem\", key = \"{file}/key.pem\" }}]\n");
    let table = pebble.table("tls-alpn-01", "").replace("[acme]\n", &format!("{files}[acme]\n"));
    let shop = app("shop", &format!("\"{HOST}\", \"shop.other.test\""), "");
    let edge = edge_with(&pebble, &table, &[("shop", &shop)]);
    served(&edge, &client, "shop.other.test");
    let by_file = row(&edge, HOST);
    assert_eq!((&by_file["source"], &by_file["order"]), (&"file".into(), &Value::Null));
    assert_eq!(row(&edge, "*.acme.test")["source"], "file");
    assert_eq!(pebble.count("orders"), 1);
    // The first file answers for a name that has none, as ever.
    let trusts_the_file = client_config(&dir, "file", &[b"http/1.1"]);
    for name in [HOST, "other.acme.test"] {
        over_tls(edge.tls.unwrap(), &trusts_the_file, name, &echo(name)).unwrap();
    }
    over_tls(edge.tls.unwrap(), &client, HOST, &echo(HOST)).unwrap_err();
}

#[test]
fn a_certificate_is_renewed_before_it_runs_out() {
    let mut pebble = Pebble::prepared(", \"certificateValidityPeriod\": 24");
    pebble.start();
    let client = pebble.client();
    let file = app("shop", &format!("\"{HOST}\""), "");
    let edge = edge_with(&pebble, &pebble.table("tls-alpn-01", ""), &[("shop", &file)]);
    let first = served(&edge, &client, HOST);
    let to = edge.tls.unwrap();
    // Each handshake meanwhile is believed: the first one serves until the second is there.
    eventually("another certificate", || {
        over_tls(to, &client, HOST, &echo(HOST)).expect("a handshake").0 != first
    });
    assert!(edge.metric("vango_edge_acme_orders_total{outcome=\"issued\"}") >= 2);
}

#[test]
fn an_account_may_belong_to_one_elsewhere() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let mut pebble = Pebble::prepared(
        ", \"externalAccountBindingRequired\": true, \"externalAccountMACKeys\": { \"kid-1\": \
         \"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\" }",
    );
    pebble.start();
    let client = pebble.client();
    let file = app("shop", &format!("\"{HOST}\""), "");
    let edge = edge_with(&pebble, &pebble.table("http-01", ""), &[("shop", &file)]);
    eventually("it is refused without", || {
        row(&edge, HOST)["error"].as_str().is_some_and(|e| e.contains("externalAccountRequired"))
    });
    fs::write(edge.apps().join("eab.key"), format!("{key}\n")).unwrap();
    let from = edge.apps().join("eab.key").display().to_string();
    let external =
        format!("external_account = {{ id = \"kid-1\", key = {{ file = {from:?} }} }}\n");
    edge.reconfigure("[apps]\n", "# apps\n[apps]\n");
    edge.reconfigure("terms_agreed = true\n", &format!("terms_agreed = true\n{external}"));
    edge.json(&["reload"]);
    served(&edge, &client, HOST);
    assert!(!edge.log().contains(key));
}

#[test]
fn what_is_wrong_with_acme_is_said() {
    let edge = Edge::start();
    let check = |table: &str| {
        let config = fs::read_to_string(edge.config()).unwrap();
        let file = edge.config().with_file_name("other.toml");
        fs::write(&file, format!("{config}{table}")).unwrap();
        edge.command(&["check", "-c", file.to_str().unwrap()])
    };
    let listener = "[[server.tls]]\nlisten = \"127.0.0.1:0\"\n";
    let good = "[acme]\ndirectory = \"https://ca.test/dir\"\nterms_agreed = true\n";
    for (table, why) in [
        (good.to_owned(), "no [[server.tls]] shows them"),
        (listener.to_owned(), "or an [acme] table"),
        (format!("{listener}{}", good.replace("true", "false")), "expected terms_agreed = true"),
        (
            format!("{listener}{}", good.replace("https", "http")),
            "expected an authority's directory",
        ),
        (format!("{listener}{good}contact = [\"me@a.test\"]\n"), "mailto:operator@app.example"),
        (format!("{listener}{good}challenge = \"dns-01\"\n"), "tls-alpn-01"),
        (format!("{listener}{good}ca_file = \"nothing.pem\"\n"), "nothing.pem"),
        (format!("{listener}{good}retry = {{ first = \"1d\" }}\n"), "expected at most max"),
        (format!("{listener}{good}contacts = []\n"), "contact"),
        (format!("{listener}{good}external_account = {{ id = \"a\" }}\n"), "key = { file"),
    ] {
        let said = check(&table);
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{table}");
        assert!(error.contains(why) && error.contains("other.toml:"), "{table}\n{error}");
    }
    let fine = check(&format!("{listener}{good}"));
    let said = String::from_utf8_lossy(&fine.stderr).into_owned();
    assert!(fine.status.success(), "{said}");
    assert!(said.contains("port 443") && said.contains("studylab.localhost"), "{said}");
}
