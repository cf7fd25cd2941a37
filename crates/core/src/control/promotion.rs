//! A promotion, without I/O: whether the evidence satisfies the policy, what is attested about it, and what
//! each event does to a promotion. Its states and their exits are documented at [`PromotionState`];
//! [`advance`] is the only transition function.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::clock::Wall;
use crate::id::{AllocationId, AppName, DeploymentId, Digest, Environment, Epoch, OperationId};
use crate::record::{Deployment, Evidence, Failure, Promotion, PromotionState};

/// What happens to a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromotionEvent {
    /// An executor took it up.
    Claimed,
    /// The evidence satisfies the policy, or none is asked.
    PolicyMet {
        /// What was verified, as an in-toto statement.
        statement: Option<String>,
        /// Whether the artifact's release command is run next.
        releases: bool,
    },
    /// The release command ended well.
    Released,
    /// The owner has moved.
    Moved {
        epoch: Epoch,
        /// To an artifact that this allocation runs; to one that has no process.
        allocation: Option<AllocationId>,
    },
    /// An allocation of the new epoch answers.
    Proved,
    /// It cannot become healthy; what served before serves.
    WentBack(Failure),
    /// It is refused, or another promotion was first.
    Refused(Failure),
}

/// An event that the state has no exit for: our own bug, or an executor that lost its claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("promotion {id} is {} and takes no {event}", state.name())]
pub struct IllegalTransition {
    id: OperationId,
    state: PromotionState,
    event: &'static str,
}

/// The promotion after `event`.
///
/// # Errors
/// [`IllegalTransition`] when the state has no such exit.
pub fn advance(
    promotion: &Promotion,
    event: PromotionEvent,
    now: Wall,
) -> Result<Promotion, IllegalTransition> {
    use PromotionState as S;
    let mut next = promotion.clone();
    next.changed = now;
    match (promotion.state, event) {
        (s, PromotionEvent::Claimed) if s.in_progress() => {
            next.attempt += 1;
            next.state = match s {
                S::Requested => S::PolicyCheck,
                // Another executor began it. It may have done all of it, some of it or nothing.
                S::Releasing => S::ReleaseLost,
                s => s,
            };
        }
        (S::PolicyCheck, PromotionEvent::PolicyMet { statement, releases }) => {
            next.state = if releases { S::Releasing } else { S::RouteCas };
            next.statement = statement;
        }
        (S::Releasing, PromotionEvent::Released) => next.state = S::RouteCas,
        (S::RouteCas, PromotionEvent::Moved { epoch, allocation }) => {
            next.state = S::EdgePropagating;
            next.epoch = Some(epoch);
            next.allocation = allocation;
        }
        (S::EdgePropagating, PromotionEvent::Proved) => next.state = S::Healthy,
        (S::RouteCas | S::EdgePropagating, PromotionEvent::WentBack(failure)) => {
            next.state = S::RolledBack;
            next.failure = Some(failure);
        }
        (s, PromotionEvent::Refused(failure)) if s.in_progress() && s != S::Requested => {
            next.state = S::Failed;
            next.failure = Some(failure);
        }
        (state, event) => {
            let event = match event {
                PromotionEvent::Claimed => "claim",
                PromotionEvent::PolicyMet { .. } => "verdict",
                PromotionEvent::Released => "release",
                PromotionEvent::Moved { .. } => "move",
                PromotionEvent::Proved => "proof",
                PromotionEvent::WentBack(_) => "way back",
                PromotionEvent::Refused(_) => "refusal",
            };
            return Err(IllegalTransition { id: promotion.id.clone(), state, event });
        }
    }
    Ok(next)
}

/// Type of the predicate of [`statement`].
pub const PREDICATE: &str = "https://vango-edge.dev/attestations/promotion/v1";

/// What must be true of a preview before it is promoted: `promotion` of the operator's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Requests the preview must have answered.
    pub min_requests: u64,
    /// Errors among them at most, from 0 to 1.
    pub max_error_rate: f64,
    /// Named checks that must have passed.
    pub checks: Vec<String>,
}

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

/// The deployment of the artifact of `source` that `environment` has already. `source` itself, if it is one: of two
/// with one artifact, only the one that served is known to have been released.
pub fn own<'d>(
    deployments: &'d [Deployment],
    environment: &Environment,
    source: &Deployment,
) -> Option<&'d Deployment> {
    deployments
        .iter()
        .filter(|d| d.environment == *environment && d.digest == source.digest)
        .max_by_key(|d| d.id == source.id)
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
    pub app: &'s AppName,
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
mod tests;
