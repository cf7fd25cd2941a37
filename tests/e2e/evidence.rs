//! What is known of a deployment, over kills and stops: never more than happened, and what was shown or
//! judged once is never lost.

use std::fs;
use std::time::Duration;

use crate::support::{Artifact, Edge, pass};

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
