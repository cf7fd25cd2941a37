//! Whether evidence satisfies a policy, what may be promoted, and what is attested about it. Pure.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::config::Promotion as Policy;
use crate::id::{AppName, DeploymentId, Digest};
use crate::store::record::{Deployment, Evidence, Promotion};

/// Type of the predicate of [`statement`].
pub const PREDICATE: &str = "https://vango-edge.dev/attestations/promotion/v1";

/// What the policy misses in `evidence`; empty when it is satisfied. Each is a sentence for people.
pub fn missing(policy: &Policy, evidence: Option<&Evidence>) -> Vec<String> {
    let mut out = Vec::new();
    let (requests, errors) = evidence.map_or((0, 0), |e| (e.requests, e.errors));
    if requests < policy.min_requests {
        out.push(format!(
            "it answered {requests} requests, and {} are asked for",
            policy.min_requests
        ));
    }
    let rate = if requests == 0 { 0.0 } else { errors as f64 / requests as f64 };
    if rate > policy.max_error_rate {
        out.push(format!(
            "{errors} of its {requests} answers were errors ({rate:.4}), and at most {} may be",
            policy.max_error_rate
        ));
    }
    for name in &policy.checks {
        match evidence.and_then(|e| e.checks.get(name)) {
            Some(check) if check.passed => {}
            Some(_) => out.push(format!("its check {name:?} did not pass")),
            None => out.push(format!("its check {name:?} is not recorded")),
        }
    }
    out
}

/// The deployment to roll back to: the last one that owned the routes with another artifact than
/// `current`.
pub fn previous<'d>(
    deployments: &'d [Deployment],
    current: Option<(&DeploymentId, &Digest)>,
) -> Option<&'d Deployment> {
    deployments
        .iter()
        .filter(|d| d.replaced.is_some())
        .filter(|d| current.is_none_or(|(id, digest)| d.id != *id && d.digest != *digest))
        .max_by_key(|d| (d.replaced, d.id.clone()))
}

/// SHA-256 over the policy, so that a statement says by which rules it was made.
pub fn policy_digest(policy: &Policy) -> Digest {
    let text = json!({
        "min_requests": policy.min_requests,
        "max_error_rate": policy.max_error_rate,
        "checks": policy.checks,
    });
    Digest::from_bytes(Sha256::digest(text.to_string()).into())
}

/// Whose word a statement is, and about what.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'s> {
    /// The node that verified.
    pub verifier: &'s str,
    /// The app.
    pub app: &'s AppName,
    /// The artifact.
    pub digest: &'s Digest,
    /// The promotion that it was verified for.
    pub promotion: Option<&'s Promotion>,
}

/// What was verified of an artifact, as an in-toto Statement
/// (<https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>). Not signed: who serves
/// it vouches for it.
pub fn statement(
    subject: &Subject<'_>,
    policy: &Policy,
    evidence: Option<&Evidence>,
    now: Wall,
) -> String {
    let Subject { verifier, app, digest, promotion } = subject;
    let missing = missing(policy, evidence);
    let checks: serde_json::Map<_, _> = evidence
        .iter()
        .flat_map(|e| &e.checks)
        .map(|(name, c)| {
            let check = json!({ "passed": c.passed, "note": c.note, "at": c.at.to_string() });
            (name.clone(), check)
        })
        .collect();
    let mut predicate = json!({
        "verifier": { "id": format!("https://vango-edge.dev/verifier/{verifier}") },
        "timeVerified": now.to_string(),
        "policy": {
            "digest": { "sha256": policy_digest(policy).hex() },
            "minRequests": policy.min_requests,
            "maxErrorRate": policy.max_error_rate,
            "checks": policy.checks,
        },
        "verificationResult": if missing.is_empty() { "PASSED" } else { "FAILED" },
        "reasons": missing,
        "counts": {
            "requests": evidence.map_or(0, |e| e.requests),
            "errors": evidence.map_or(0, |e| e.errors),
        },
        "checks": checks,
        "environment": evidence.map(|e| e.environment.to_string()),
        "deployment": evidence.map(|e| e.deployment.to_string()),
    });
    if let Some(p) = promotion {
        predicate["operation"] = p.id.to_string().into();
        predicate["kind"] = p.kind.name().into();
        predicate["route"] = p.environment.to_string().into();
        let from = p.from.as_ref();
        predicate["fromEpoch"] = from.map(|f| f.epoch.0).into();
        predicate["toEpoch"] = from.map_or(1, |f| f.epoch.next().0).into();
        predicate["previousDigest"] = from.map(|f| f.digest.to_string()).into();
    }
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": app.as_str(), "digest": { "sha256": digest.hex() } }],
        "predicateType": PREDICATE,
        "predicate": predicate,
    });
    statement.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;
    use crate::store::record::{NamedCheck, OwnerSeen};

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

    #[test]
    fn rolling_back_goes_to_the_last_other_artifact() {
        let deployment = |id: char, digest, replaced: Option<u64>| Deployment {
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
        };
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
    fn the_statement_names_the_artifact_and_the_rules() {
        let (p, e) = (policy(1, 0.0, &["smoke"]), evidence(3, 0, &[("smoke", true)]));
        let mut promotion = super::super::machine::sample();
        promotion.from = Some(OwnerSeen {
            deployment: "dp-cccccccccccccccc".parse().unwrap(),
            digest: Digest::from_bytes([1; 32]),
            epoch: Epoch(4),
        });
        let app = "studylab".parse().unwrap();
        let mut about = Subject {
            verifier: "node-1",
            app: &app,
            digest: &e.digest,
            promotion: Some(&promotion),
        };
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
}
