//! Policies, statements, and every state of a promotion against every event.

use super::*;
use crate::record::{NamedCheck, OwnerSeen, PromotionKind};

fn sample() -> Promotion {
    Promotion {
        id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: "studylab".parse().unwrap(),
        kind: PromotionKind::Promote,
        source_environment: "studylab/pr-7".parse().unwrap(),
        source: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
        deployment: "dp-bbbbbbbbbbbbbbbb".parse().unwrap(),
        digest: Digest::from_bytes([7; 32]),
        from: None,
        state: PromotionState::Requested,
        attempt: 0,
        requested: Wall(1),
        changed: Wall(1),
        allocation: None,
        epoch: None,
        failure: None,
        statement: None,
    }
}

fn failure() -> Failure {
    Failure { safe: "x".into(), detail: "x".into(), artifact: false }
}
fn events() -> Vec<PromotionEvent> {
    let allocation = Some("al-aaaaaaaaaaaaaaaa".parse().unwrap());
    vec![
        PromotionEvent::Claimed,
        PromotionEvent::PolicyMet { statement: None, releases: false },
        PromotionEvent::Moved { epoch: Epoch(2), allocation },
        PromotionEvent::Proved,
        PromotionEvent::WentBack(failure()),
        PromotionEvent::Refused(failure()),
        PromotionEvent::PolicyMet { statement: None, releases: true },
        PromotionEvent::Released,
    ]
}

#[test]
fn a_promotion_goes_through_its_states() {
    let mut p = sample();
    let states = ["policy_check", "route_cas", "edge_propagating", "healthy"];
    for (event, state) in events().into_iter().zip(states) {
        p = advance(&p, event, Wall(2)).unwrap();
        assert_eq!(p.state.name(), state);
    }
    assert_eq!((p.attempt, p.epoch), (1, Some(Epoch(2))));
}

/// Every state against every event: exactly the documented exits.
#[test]
fn there_are_no_other_ways() {
    use PromotionState as S;
    let all = [
        (S::Requested, vec![S::PolicyCheck]),
        (S::PolicyCheck, vec![S::PolicyCheck, S::RouteCas, S::Failed, S::Releasing]),
        (S::Releasing, vec![S::ReleaseLost, S::Failed, S::RouteCas]),
        (S::ReleaseLost, vec![S::ReleaseLost, S::Failed]),
        (S::RouteCas, vec![S::RouteCas, S::EdgePropagating, S::RolledBack, S::Failed]),
        (S::EdgePropagating, vec![S::EdgePropagating, S::Healthy, S::RolledBack, S::Failed]),
        (S::Healthy, vec![]),
        (S::RolledBack, vec![]),
        (S::Failed, vec![]),
    ];
    for (state, exits) in all {
        let p = Promotion { state, ..sample() };
        let found: Vec<_> = events()
            .into_iter()
            .filter_map(|e| advance(&p, e, Wall(2)).ok().map(|p| p.state))
            .collect();
        assert_eq!(found, exits, "{state:?}");
    }
}

#[test]
fn a_release_command_is_begun_once_at_most() {
    let begin = PromotionEvent::PolicyMet { statement: None, releases: true };
    let p = Promotion { state: PromotionState::PolicyCheck, attempt: 1, ..sample() };
    let begun = advance(&p, begin, Wall(2)).unwrap();
    assert_eq!(begun.state, PromotionState::Releasing);
    let done = advance(&begun, PromotionEvent::Released, Wall(3)).unwrap();
    assert_eq!(done.state, PromotionState::RouteCas);
    // The next executor knows nothing of what it did.
    let mut lost = begun;
    for attempt in 2..4 {
        lost = advance(&lost, PromotionEvent::Claimed, Wall(3)).unwrap();
        assert_eq!((lost.state, lost.attempt), (PromotionState::ReleaseLost, attempt));
        assert!(advance(&lost, PromotionEvent::Released, Wall(4)).is_err());
    }
    let failed = advance(&lost, PromotionEvent::Refused(failure()), Wall(4)).unwrap();
    assert_eq!(failed.state, PromotionState::Failed);
    let releases = [
        (PromotionKind::Promote, true),
        (PromotionKind::Redeploy, true),
        (PromotionKind::Rollback, false),
        (PromotionKind::Configure, false),
    ];
    assert!(releases.into_iter().all(|(kind, releases)| kind.releases() == releases));
}

#[test]
fn a_lost_executor_leaves_the_state_for_the_next() {
    let p = Promotion { state: PromotionState::RouteCas, attempt: 1, ..sample() };
    let p = advance(&p, PromotionEvent::Claimed, Wall(2)).unwrap();
    assert_eq!((p.state, p.attempt), (PromotionState::RouteCas, 2));
}

fn policy(min_requests: u64, max_error_rate: f64, checks: &[&str]) -> Policy {
    let checks = checks.iter().map(|c| (*c).to_owned()).collect();
    Policy { min_requests, max_error_rate, checks }
}
fn evidence(requests: u64, errors: u64, checks: &[(&str, bool)]) -> Evidence {
    let check = |passed| NamedCheck { passed, note: String::new(), at: Wall(0) };
    Evidence {
        deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: "studylab/pr-7".parse().unwrap(),
        digest: Digest::from_bytes([7; 32]),
        requests,
        errors,
        batches: Vec::new(),
        checks: checks.iter().map(|(n, p)| ((*n).to_owned(), check(*p))).collect(),
        changed: Wall(0),
    }
}

#[test]
fn a_policy_is_satisfied_by_all_it_asks_for_and_nothing_less() {
    let p = policy(10, 0.1, &["smoke"]);
    for (evidence, expected) in [
        (evidence(10, 1, &[("smoke", true)]), 0),
        (evidence(9, 0, &[("smoke", true)]), 1),
        (evidence(10, 2, &[("smoke", true)]), 1),
        (evidence(10, 0, &[("smoke", false)]), 1),
        (evidence(10, 0, &[("other", true)]), 1),
        (evidence(0, 0, &[]), 2),
    ] {
        assert_eq!(missing(&p, Some(&evidence)).len(), expected, "{evidence:?}");
    }
    assert_eq!(missing(&p, None).len(), 2);
    assert!(missing(&policy(0, 0.0, &[]), None).is_empty());
}

fn deployment(id: char, digest: u8, replaced: Option<u64>) -> Deployment {
    Deployment {
        id: format!("dp-{}", id.to_string().repeat(16)).parse().unwrap(),
        environment: "studylab".parse().unwrap(),
        digest: Digest::from_bytes([digest; 32]),
        contract: String::new(),
        created: Wall(0),
        files: 0,
        bytes: 0,
        assets: None,
        replaced: replaced.map(Wall),
        promoted_from: None,
        schema: None,
    }
}

#[test]
fn rolling_back_goes_to_the_last_other_artifact() {
    let all = [
        deployment('a', 1, Some(5)),
        deployment('b', 2, Some(9)),
        deployment('c', 3, Some(7)),
        deployment('d', 2, None),
        deployment('e', 4, None),
    ];
    let current = Some((&all[3].id, &all[3].digest));
    assert_eq!(previous(&all, current).unwrap().id, all[2].id, "b has the same artifact");
    assert!(previous(&all[3..], current).is_none());
}

#[test]
fn of_two_deployments_of_one_artifact_it_is_the_one_that_was_chosen() {
    let all = [deployment('a', 7, None), deployment('b', 7, Some(5)), deployment('c', 7, None)];
    for source in &all {
        assert_eq!(own(&all, &source.environment, source).unwrap().id, source.id);
    }
    // One of another environment: then any, and none of another artifact.
    let preview = "studylab/pr-1".parse().unwrap();
    let source = Deployment { environment: preview, ..deployment('d', 7, None) };
    assert!(own(&all, &all[0].environment, &source).is_some());
    let other = Deployment { digest: Digest::from_bytes([9; 32]), ..source };
    assert!(own(&all, &all[0].environment, &other).is_none());
}

#[test]
fn the_statement_names_the_artifact_and_the_rules() {
    let (p, e) = (policy(1, 0.0, &["smoke"]), evidence(3, 0, &[("smoke", true)]));
    let mut promotion = sample();
    promotion.from = Some(OwnerSeen {
        deployment: "dp-cccccccccccccccc".parse().unwrap(),
        digest: Digest::from_bytes([1; 32]),
        epoch: Epoch(4),
    });
    let app = "studylab".parse().unwrap();
    let mut about =
        Subject { verifier: "node-1", app: &app, digest: &e.digest, promotion: Some(&promotion) };
    let text = statement(&about, &p, Some(&e), Wall(0));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["subject"][0]["digest"]["sha256"], "07".repeat(32));
    let predicate = &json["predicate"];
    assert_eq!(predicate["verificationResult"], "PASSED");
    assert_eq!(predicate["policy"]["digest"]["sha256"], policy_digest(&p).hex());
    assert_eq!((&predicate["fromEpoch"], &predicate["toEpoch"]), (&4.into(), &5.into()));
    assert_eq!(predicate["previousDigest"], format!("sha256:{}", "01".repeat(32)));
    assert_ne!(policy_digest(&p), policy_digest(&policy(2, 0.0, &["smoke"])));
    about.promotion = None;
    let text = statement(&about, &p, None, Wall(0));
    assert!(text.contains("FAILED"));
}
