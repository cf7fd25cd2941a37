//! An order that an operator asks for, and what is issued but not worth having.

use super::pebble::{Pebble, over_tls};
use super::{HOST, app, echo, edge_with, has_none, row, served};
use crate::support::{Edge, eventually};

/// The exit code, what is said to programs and people, and the error.
fn renew(edge: &Edge, more: &[&str]) -> (i32, String, String) {
    let ended = edge.command(&[&["certificates", "renew"], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.code().unwrap(), text(&ended.stdout), text(&ended.stderr))
}

#[test]
fn an_operator_orders_now_and_is_told_what_came_of_it() {
    let mut pebble = Pebble::prepared("");
    pebble.start();
    let client = pebble.client();
    let file = app("shop", &format!("\"nowhere.acme.test\", \"{HOST}\""), "");
    let edge = edge_with(&pebble, &pebble.table("tls-alpn-01", ""), &[("shop", &file)]);
    let first = served(&edge, &client, HOST);
    let shown = || over_tls(edge.tls.unwrap(), &client, HOST, &echo(HOST)).unwrap().0;
    // It is good for years: that costs no order of the authority's.
    let (code, _, error) = renew(&edge, &[HOST]);
    assert!(code == 1 && error.contains("is good, and is renewed from"), "{code} {error}");
    assert_eq!(shown(), first);
    let (code, said, error) = renew(&edge, &[HOST, "--force"]);
    assert!(code == 0 && said.contains(": issued, good until "), "{said}{error}");
    let second = shown();
    assert_ne!(second, first);
    // One that fails says why, and that is an error of the command's.
    eventually("why it has none", || {
        let (code, said, _) = renew(&edge, &["nowhere.acme.test"]);
        code == 1 && said.contains("nowhere.acme.test: failed: ") && said.contains("next try")
    });
    for name in ["other.acme.test", "studylab.localhost"] {
        let (code, _, error) = renew(&edge, &[name]);
        assert!(code == 1 && error.contains("no certificate is ordered for"), "{error}");
    }
    assert_eq!(shown(), second);
    let audit = edge.list(&["audit"]);
    let of_host = |r: &&serde_json::Value| {
        r["decision"] == "certificate" && r["why"].as_str().unwrap().contains(HOST)
    };
    let rows: Vec<_> = audit.iter().filter(of_host).collect();
    assert_eq!(rows.len(), 1, "{audit:?}");
    assert!(rows[0]["why"].as_str().unwrap().contains("although it is not due"));
}

#[test]
fn where_an_order_has_just_failed_none_follows_at_once() {
    let pebble = Pebble::prepared("");
    let table =
        pebble.table("tls-alpn-01", "").replace("\"1s\", max = \"2s\"", "\"1h\", max = \"2h\"");
    let file = app("shop", &format!("{HOST:?}"), "");
    let edge = edge_with(&pebble, &table, &[("shop", &file)]);
    eventually("it failed: no authority is there", || row(&edge, HOST)["order"] == "failed");
    let (code, _, error) = renew(&edge, &[HOST, "--force"]);
    assert!(code == 1 && error.contains("has just failed"), "{error}");
    assert_eq!(edge.metric("vango_edge_acme_orders_total{outcome=\"failed\"}"), 1);
}

#[test]
fn what_is_good_for_no_time_is_not_taken() {
    let mut pebble = Pebble::prepared(", \"certificateValidityPeriod\": 1");
    pebble.start();
    let client = pebble.client();
    let file = app("shop", &format!("{HOST:?}"), "");
    let edge = edge_with(&pebble, &pebble.table("tls-alpn-01", ""), &[("shop", &file)]);
    eventually("it is said", || {
        row(&edge, HOST)["error"].as_str().is_some_and(|e| e.contains("good for no time"))
    });
    assert!(row(&edge, HOST)["expires"].is_null());
    has_none(&edge, &client, HOST);
    assert_eq!(edge.metric("vango_edge_acme_orders_total{outcome=\"issued\"}"), 0);
}
