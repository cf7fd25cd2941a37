//! Environments as a whole: who owns each, what runs, and what its contract says of sleep and wake.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;

use crate::clock::Mono;
use crate::lifecycle::trace::Outcome;
use crate::record::WakeState;
use crate::snapshot::{EnvView, MAX_CLASSES};

use super::Admin;
use super::api::{allocation_rows, state_of};
use super::page::{Asked, Page, PageQuery, Rows};
use super::types::EnvironmentRow;

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Requests by outcome, all classes together.
fn served(view: &EnvView) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for outcome in Outcome::all() {
        let n = (0..MAX_CLASSES).map(|class| view.counters.counted(class, outcome.index())).sum();
        if n > 0 {
            out.insert(outcome.name().to_owned(), n);
        }
    }
    out
}

fn row(view: &EnvView, now: Mono) -> EnvironmentRow {
    let mut hosts: Vec<_> = view.hosts.iter().map(ToString::to_string).collect();
    hosts.sort();
    let operation = view.operation.as_ref();
    let failed = operation.filter(|o| o.state == WakeState::Failed);
    let contract = &view.contract;
    EnvironmentRow {
        environment: view.environment.to_string(),
        hosts,
        epoch: view.owner.epoch.0,
        deployment: view.owner.deployment.to_string(),
        digest: view.owner.digest.to_string(),
        state: state_of(view),
        held: view.counters.waiting(),
        idle_ms: view.counters.idle(now).map(ms),
        sleep_after_ms: contract.sleep.after.map(ms),
        drain_timeout_ms: ms(contract.process.drain_timeout),
        wake_budget_ms: ms(contract.wake.budget),
        typical_wake_ms: operation.map(|o| o.typical_ms).filter(|ms| *ms > 0),
        served: served(view),
        allocations: allocation_rows(view).collect(),
        operation: operation.map(|o| o.id.to_string()),
        failure: failed.and_then(|o| o.failure.clone()),
    }
}

/// Environments, who owns each and what runs, by name.
#[utoipa::path(get, path = "/v1/environments", tag = "views", params(PageQuery),
    responses((status = 200, description = "A page of environments", body = Vec<EnvironmentRow>)))]
pub async fn environments(State(admin): State<Admin>, asked: Asked) -> Rows<EnvironmentRow> {
    let snapshot = admin.node.snapshots.load();
    let now = admin.node.clock.now();
    let mut views: Vec<_> = snapshot.environments().collect();
    views.sort_by(|a, b| a.environment.cmp(&b.environment));
    let page = Page::cut(views, |v| v.environment.to_string(), &asked)?;
    Ok(page.map(|v| row(v, now)))
}
