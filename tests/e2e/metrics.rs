//! Metrics as Prometheus reads them: each is documented, and no client can add to their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;

use crate::support::{Artifact, Connection, Edge, eventually};
use crate::tls::edge_with;
use crate::webhook::secrets;

/// Each series, as it is written before its value; not the process's own, whose number is fixed.
fn series(edge: &Edge) -> BTreeSet<String> {
    let answer = edge.admin("GET", "/metrics");
    let own = answer.text().lines().filter(|l| l.starts_with("vango_edge_"));
    own.map(|l| l.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// Each metric and its labels. A histogram's three families are one metric, and `le` is its own.
fn exposed(edge: &Edge) -> BTreeMap<String, BTreeSet<String>> {
    let answer = edge.admin("GET", "/metrics");
    let typed = answer.text().lines().filter_map(|l| l.strip_prefix("# TYPE vango_edge_"));
    let mut out: BTreeMap<String, BTreeSet<String>> = typed
        .map(|l| (format!("vango_edge_{}", l.split(' ').next().unwrap()), BTreeSet::new()))
        .collect();
    for line in series(edge) {
        let (name, labels) = line.split_once('{').unwrap_or((&line, ""));
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        let name = whole.filter(|w| out.contains_key(*w)).unwrap_or(name);
        let of = out.get_mut(name).unwrap_or_else(|| panic!("{name} has a type"));
        let pairs = labels.trim_end_matches('}').split("\",").filter_map(|p| p.split_once('='));
        of.extend(pairs.map(|(label, _)| label.to_owned()).filter(|l| l != "le"));
    }
    out
}

/// The same, as `docs/metrics.md` has it: name, type, labels (and after `=` their values), meaning.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = include_str!("../../docs/metrics.md");
    let quoted = |cell: &str| -> BTreeSet<String> {
        let labels = cell.split('=').next().unwrap_or_default();
        labels.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let rows = page.lines().filter(|l| l.starts_with("| `vango_edge_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert!(cells.len() >= 6 && !cells[4].is_empty(), "what does it mean? {row}");
        (cells[1].trim_matches('`').to_owned(), quoted(cells[3]))
    })
    .collect()
}

/// Makes every metric appear that appears only once something happened.
fn one_of_each(edge: &Edge) {
    secrets(edge, &["whsec_a"]);
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(edge.get("/dashboard").status, 200);
    let key = [("Idempotency-Key", "first"), ("Content-Type", "application/json")];
    assert_eq!(edge.ask("POST", "/actions/save", &key, r#"{"text":"a"}"#).status, 200);
    edge.ask("POST", "/webhooks/stripe", &[("Stripe-Signature", "t=1,v1=00")], "{}");
    assert_eq!(edge.ask("GET", "/", &[("Host", "nobody.localhost")], "").status, 404);
    let refused = || edge.metric("vango_edge_unrouted_requests_total{problem=\"no-route\"}") > 0;
    eventually("what ended is counted", refused);
}

#[test]
fn every_metric_has_its_row_in_the_book_with_its_labels_and_every_row_its_metric() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let app = format!(
        "app = \"legacy\"\nhosts = [\"legacy.localhost\"]\nupstreams = [\"{}\"]\n",
        upstream.local_addr().unwrap()
    );
    let (mut edge, _dir) = edge_with("");
    assert!(edge.stop().success());
    std::fs::write(edge.apps().join("legacy.toml"), app).unwrap();
    edge.start_again();
    one_of_each(&edge);
    let mut documented = documented();
    // Only where an authority has issued one: tests/e2e/acme reads it there.
    let acme = "vango_edge_acme_certificate_expiry_timestamp_seconds";
    assert!(documented.remove(acme).is_some_and(|labels| labels.contains("host")));
    assert_eq!(exposed(&edge), documented);
}

#[test]
fn ten_thousand_hosts_paths_keys_and_methods_add_no_series() {
    let edge = Edge::start();
    one_of_each(&edge);
    let before = series(&edge);
    for hundred in 0..100 {
        let mut client = Connection::open(edge.listen);
        for n in hundred * 100..(hundred + 1) * 100 {
            let host = format!("h{n}.nobody.localhost");
            let (method, path, key) = (format!("M{n}"), format!("/p{n}/x?q={n}"), format!("k{n}"));
            let mut headers = vec![("Idempotency-Key", key.as_str()), ("Content-Length", "0")];
            // Every other one to an app that is there, which answers what it likes.
            if n % 2 == 0 {
                headers.push(("Host", &host));
            }
            let answer = client.ask(&method, &path, &headers);
            assert!(answer.is_some_and(|a| a.status == 404 || a.status == 405), "{method} {path}");
        }
    }
    for n in 0..100 {
        let (key, agent) = (format!("key-{n}"), format!("agent/{n}"));
        let headers = [
            ("Idempotency-Key", key.as_str()),
            ("User-Agent", &agent),
            ("Content-Type", "application/json"),
        ];
        assert_eq!(edge.ask("POST", "/actions/save", &headers, r#"{"text":"a"}"#).status, 200);
    }
    let unrouted = "vango_edge_unrouted_requests_total{problem=\"no-route\"}";
    eventually("all of them are counted", || edge.metric(unrouted) > 5000);
    let after = series(&edge);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [] as [&String; 0]);
}
