//! The values that a step was taken on, by name: what programs read where people read a sentence.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{EventVerdict, HoldEnd, KeyVerdict, StepKind};

impl StepKind {
    /// The values, without those that are not known: an explanation has no status and no operation.
    pub(super) fn named_values(&self) -> Map<String, Value> {
        let values = match self {
            Self::Unreadable(why) => json!({ "why": why.to_string() }),
            Self::NoOwner(host) => json!({ "host": host }),
            Self::LoadOwner(v) => json!({
                "environment": v.environment.to_string(),
                "epoch": v.owner.epoch.0,
                "artifact": (!v.external).then(|| v.owner.digest.to_string()),
                "ready": v.ready.len(),
            }),
            Self::Classify(posture, v, route) => {
                let route = v.contract.routes.get(*route);
                json!({
                    "posture": posture.name(),
                    "route": route.map(ToString::to_string),
                    "class": route.map(|r| r.class.name()),
                })
            }
            Self::CheckKey(verdict) => json!({
                "verdict": verdict.name(),
                "attempt": match verdict { KeyVerdict::Forwarded(n) => Some(n), _ => None },
            }),
            Self::VerifySignature(verdict) => json!({ "verdict": verdict }),
            Self::CheckEvent(verdict) => json!({
                "verdict": verdict.name(),
                "attempt": match verdict { EventVerdict::Forwarded(n) => Some(n), _ => None },
            }),
            Self::Evidence { operation, what } => json!({
                "operation": operation.as_ref().map(ToString::to_string),
                "decision": what,
            }),
            Self::ProcessOnce { status } | Self::Run { status } => json!({ "status": status }),
            Self::RunPreview { view, status } => json!({
                "status": status,
                "artifact": view.owner.digest.to_string(),
            }),
            Self::Wake { operation, created, safe } => json!({
                "operation": operation.as_ref().map(ToString::to_string),
                "created": operation.as_ref().map(|_| created),
                "safe": safe,
            }),
            Self::Start { view, state, phases } => json!({
                "artifact": view.owner.digest.to_string(),
                "state": state.map(|s| s.name()),
                "artifact_us": phases.artifact_us,
                "spawn_us": phases.spawn_us,
                "ready_us": phases.ready_us,
                "thaw_us": phases.thaw_us,
            }),
            Self::Hold { held, end, state } => json!({
                "held_us": end.map(|_| us(*held)),
                "end": end.map(HoldEnd::name),
                "state": state.map(|s| s.name()),
                "bound": match end { Some(HoldEnd::QueueFull(b)) => Some(b.name()), _ => None },
            }),
            Self::FindSession(found) => json!({
                "allocation": found.prior.as_ref().map(|p| p.allocation.to_string()),
                "known_by": found.prior.as_ref().map(|p| p.known_by.name()),
                "browser_on": found.browser_on.as_ref().map(ToString::to_string),
                "has_id": found.has_id,
            }),
            Self::CheckStore(step) => {
                let (verdict, why) = super::text::store_values(*step);
                json!({ "verdict": verdict, "why": (!why.is_empty()).then_some(why) })
            }
            Self::Hydrate { verdict, schemas } => json!({
                "verdict": verdict.map(|v| v.name()),
                "why": verdict.map(|v| v.reason()),
                "written": schemas.0.map(|d| d.to_string()),
                "target": schemas.1.map(|d| d.to_string()),
            }),
            Self::Pin(a) | Self::Select(a, _) | Self::ConnectFailed(a) | Self::Unprocessed(a) => {
                json!({
                    "allocation": a.id.to_string(),
                    "generation": a.generation.0,
                    "address": a.address.map(|a| a.to_string()),
                })
            }
            Self::AttachEvidence { view, error } => json!({
                "deployment": view.owner.deployment.to_string(),
                "error": error,
            }),
            Self::PromoteLater(view) => json!({ "artifact": view.owner.digest.to_string() }),
            Self::UpstreamFailed(failure) | Self::BrokeOff(failure) => {
                json!({ "failure": failure.name() })
            }
            Self::NoMutation(epoch) => json!({ "epoch": epoch.0 }),
            Self::FindAsset { asset, artifact } => json!({
                "asset": asset.as_ref().map(|a| a.identity.digest.to_string()),
                "immutable": asset.as_ref().map(|a| a.fingerprinted),
                "artifact": artifact.to_string(),
            }),
            Self::ServeAsset { status, source } => json!({
                "status": status,
                "bytes": source.map(|s| s.digest.to_string()),
                "coding": source.and_then(|s| s.coding).map(|c| c.name()),
            }),
            Self::CheckAccess(v, found) => {
                json!({ "environment": v.environment.to_string(), "verdict": found })
            }
            Self::Answer(problem, status, hint) => {
                json!({ "problem": problem.name(), "status": status, "hint": hint })
            }
            Self::TellStanding(told) => {
                json!({ "state": told.state.name(), "retry_after": told.retry_after })
            }
            Self::AttachRetry | Self::NoAllocation | Self::LostItsWay => Value::Null,
        };
        match values {
            Value::Object(values) => values.into_iter().filter(|(_, v)| !v.is_null()).collect(),
            _ => Map::new(),
        }
    }
}

fn us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
