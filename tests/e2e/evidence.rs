//! What is known of a deployment, over kills and stops: never more than happened, and what was shown or
//! judged once is never lost.

use std::fs;
use std::time::Duration;

use crate::support::{Artifact, Edge, eventually, pass};

use super::promotion::{deploy_preview, host, visit};

/// Requests and errors, as the edge has them now.
fn counted(edge: &Edge) -> (u64, u64) {
    let row = edge.json(&["evidence", "studylab", "pr-7"]);
    (row["requests"].as_u64().unwrap(), row["errors"].as_u64().unwrap())
}

#[test]
fn a_kill_loses_the_last_seconds_at_most_and_an_orderly_stop_nothing() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    deploy_preview(&edge, &Artifact::new().env("VERSION", "2"), "pr-7");
    visit(&edge, "pr-7", 3);
    assert_eq!(counted(&edge), (3, 0));
    visit(&edge, "pr-7", 2);
    edge.kill();
    edge.start_again();
    let (after_kill, _) = counted(&edge);
    assert!((3..=5).contains(&after_kill), "what was shown is there still: {after_kill}");
    visit(&edge, "pr-7", 4);
    assert!(edge.stop().success());
    edge.start_again();
    assert_eq!(counted(&edge), (after_kill + 4, 0));
    // Nothing is needed to be shown first for a promotion to see it.
    visit(&edge, "pr-7", 1);
    assert_eq!(edge.json(&["promote", "studylab", "pr-7"])["state"], "healthy");
    edge.kill();
    edge.start_again();
    assert_eq!(counted(&edge), (after_kill + 5, 0), "what was judged is kept");
}

#[test]
fn errors_outlive_a_kill_after_a_moment() {
    let mut edge = Edge::start();
    let broken = edge.config().with_file_name("broken");
    let artifact = Artifact::new().env("STUDYLAB_FAIL_FILE", broken.to_str().unwrap());
    deploy_preview(&edge, &artifact, "pr-7");
    visit(&edge, "pr-7", 1);
    edge.json(&["sleep", "studylab/pr-7"]);
    fs::write(&broken, "").unwrap();
    edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "").retryable("wake-failed");
    // Half a second is what is promised.
    pass(Duration::from_millis(1500));
    edge.kill();
    edge.start_again();
    assert_eq!(counted(&edge), (2, 1));
}

/// An app that says how a call ended, in its head or behind its body.
const CALLS: &str = r#"
    my $kind = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nConnection: close\r\n";
    if ($line =~ m{ /head-(\d+) }) {
        print $client $kind . "grpc-status: $1\r\nContent-Length: 0\r\n\r\n";
    } elsif ($line =~ m{ /trailers-(\d+) }) {
        print $client $kind . "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: $1\r\n\r\n";
    } else {
        print $client $ok;
    }
"#;

#[test]
fn a_call_that_the_app_fails_at_is_an_error_whatever_its_http_status() {
    let edge = Edge::start();
    deploy_preview(&edge, &Artifact::perl(CALLS), "pr-7");
    let host = host("pr-7");
    assert_eq!(edge.ask("GET", "/", &[("Host", &host)], "").status, 200);
    let mut known = (1, 0);
    let grpc = ("Content-Type", "application/grpc");
    for (path, more, failed) in [
        ("/head-13", Some(grpc), true),
        ("/head-5", Some(grpc), false),
        ("/head-12", Some(grpc), false),
        ("/trailers-14", Some(grpc), true),
        ("/trailers-0", Some(grpc), false),
        // No call: its status is what HTTP says.
        ("/head-13", None, false),
    ] {
        let fields: Vec<_> = [("Host", &*host)].into_iter().chain(more).collect();
        assert_eq!(edge.ask("POST", path, &fields, "").status, 200, "{path}");
        known = (known.0 + 1, known.1 + u64::from(failed));
        eventually("it is counted", || counted(&edge).0 == known.0);
        assert_eq!(counted(&edge), known, "{path}");
    }
}
