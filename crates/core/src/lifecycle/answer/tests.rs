//! What each answer says of what became of its request, and what no page of theirs does by itself.

use std::time::Duration;

use super::*;
use crate::clock::SeededEntropy;
use crate::lifecycle::reply::Problem;

#[test]
fn an_answer_says_what_became_of_the_request() {
    let id = RequestId::random(&SeededEntropy::new(1));
    let reply = Reply::refused(Problem::WakeFailed, 503, "exit <3>")
        .retry_after(Duration::from_millis(1200))
        .operation(Some("op-aaaaaaaaaaaaaaaa".parse().unwrap()));
    let (kind, body) = reply.body(ErrorForm::Problem, id, Brand::plain());
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(kind, "application/problem+json");
    assert_eq!(json["type"], "https://vango-edge.dev/problems/wake-failed");
    assert_eq!(json["forwarded"], "not forwarded");
    assert_eq!(json["operation"], "op-aaaaaaaaaaaaaaaa");
    assert_eq!(json["retry_after"], 2);
    let headers = reply.headers("edge");
    assert!(headers.contains(&("cache-control", "no-store".into())));
    assert!(headers.contains(&("proxy-status", "edge; error=destination_unavailable".into())));
}

#[test]
fn names_are_unique() {
    let names: std::collections::BTreeSet<_> = Problem::ALL.iter().map(|p| p.name()).collect();
    assert_eq!(names.len(), Problem::ALL.len());
}
