//! What the admin API sends and takes, as JSON. The CLI reads the same types.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::lifecycle::trace::StepText;
use crate::record::{Failure, WakePhases};

/// A routed host.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteRow {
    /// The host.
    pub host: String,
    /// `app/environment`.
    pub environment: String,
    /// The owner's epoch.
    pub epoch: u64,
    /// The owner's deployment; `-` for an app that this edge does not run.
    pub deployment: String,
    /// The owner's artifact; `-` for an app that this edge does not run.
    pub digest: String,
    /// `hot`, `asleep`, `frozen`, or the state of the wake that is going on; `static` without a process; `up`
    /// or `down` for an app that this edge does not run.
    pub state: String,
}

/// An allocation in the registry.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AllocationRow {
    /// Its id.
    pub id: String,
    /// `web` for an allocation, or the name of a worker; a worker has no generation and no address.
    pub process: String,
    /// The environment that it belongs to.
    pub environment: String,
    /// Which start.
    pub generation: u64,
    /// Under which epoch.
    pub epoch: u64,
    /// What it runs.
    pub digest: String,
    /// Where it is in its life; `up` or `down` for an upstream.
    pub state: String,
    /// Where it listens.
    pub address: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Requests in flight.
    pub in_flight: u32,
    /// Live sockets open.
    pub sockets: u32,
    /// Requests placed on it since this edge saw it first.
    pub total: u64,
}

/// A wake operation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationRow {
    /// Public id.
    pub id: String,
    /// wake, promote, rollback or redeploy.
    pub kind: String,
    /// What it woke.
    pub environment: String,
    /// Where it is.
    pub state: String,
    /// Its executor's attempt.
    pub attempt: u32,
    /// When it was asked for.
    pub requested: String,
    /// How long its phases took.
    pub phases: WakePhases,
    /// The allocation.
    pub allocation: Option<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Failures in a row.
    pub failures: u32,
}

/// A deployment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeploymentRow {
    /// Its id.
    pub id: String,
    /// For which environment.
    pub environment: String,
    /// Its artifact.
    pub digest: String,
    /// When it was made.
    pub created: String,
    /// It owns the environment's hosts.
    pub current: bool,
    /// Files in the artifact.
    pub files: u64,
    /// Bytes in those files.
    pub bytes: u64,
}

/// A request's trace.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TraceRow {
    /// The request's id.
    pub request: String,
    /// When it ended.
    pub at: String,
    /// Its client's address.
    pub client: Option<String>,
    /// Its method.
    pub method: String,
    /// Its host.
    pub host: String,
    /// Its path, without query.
    pub path: String,
    /// Its route's class.
    pub class: String,
    /// The environment that it was for, if one owns its host and path.
    pub environment: Option<String>,
    /// How it ended.
    pub outcome: String,
    /// What was at stake.
    pub risk: String,
    /// The decision, in words.
    pub decision: String,
    /// The status sent.
    pub status: Option<u16>,
    /// The operation it waited for.
    pub operation: Option<String>,
    /// Microseconds from its head to its end.
    pub total_us: u64,
    /// Microseconds it was held.
    pub held_us: u64,
    /// Its steps.
    pub steps: Vec<StepText>,
    /// Steps that were not kept.
    pub dropped_steps: u32,
}

/// What a stream of traces sends at a time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TraceBatch {
    /// New traces, oldest first.
    pub rows: Vec<TraceRow>,
    /// Traces that the filter wants and that were left out, so that a busy edge does not drown who
    /// looks; and those that the ring lost before they were looked at.
    pub left_out: usize,
}

/// An environment: who owns it and what runs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentRow {
    /// `app/environment`.
    pub environment: String,
    /// Its hosts.
    pub hosts: Vec<String>,
    /// The owner's epoch.
    pub epoch: u64,
    /// The owner's deployment.
    pub deployment: String,
    /// The owner's artifact.
    pub digest: String,
    /// `hot`, `asleep`, `failed`, or the state of the wake that is going on.
    pub state: String,
    /// Requests held for it.
    pub held: usize,
    /// Milliseconds since a request came or ended; absent when none has since the edge started.
    pub idle_ms: Option<u64>,
    /// Milliseconds of idleness after which it is put to sleep; absent when never.
    pub sleep_after_ms: Option<u64>,
    /// Milliseconds that requests in flight may take when it is put to sleep.
    pub drain_timeout_ms: u64,
    /// Milliseconds that a request waits for a wake at most.
    pub wake_budget_ms: u64,
    /// Milliseconds that a wake of this artifact takes, where one was seen.
    pub typical_wake_ms: Option<u64>,
    /// Requests by outcome since the edge started.
    pub served: std::collections::BTreeMap<String, u64>,
    /// Its allocations.
    pub allocations: Vec<AllocationRow>,
    /// Its last wake.
    pub operation: Option<String>,
    /// Why its last wake failed, if it did.
    pub failure: Option<Failure>,
}

/// Asks for the steps a request would take.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ExplainRequest {
    /// Its method.
    pub method: String,
    /// An absolute URL.
    pub url: String,
    /// Its headers: name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// The steps a request would take.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What was at stake.
    pub risk: String,
    /// How it would end.
    pub outcome: String,
    /// The decision, in words.
    pub decision: String,
    /// The steps.
    pub steps: Vec<StepText>,
}

/// What is known of a deployment, and whether it may be promoted.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EvidenceRow {
    /// Where it serves.
    pub environment: String,
    /// Which.
    pub deployment: String,
    /// Its artifact.
    pub digest: String,
    /// Requests that it answered.
    pub requests: u64,
    /// Those among them that were answered 5xx, or not at all.
    pub errors: u64,
    /// Named checks.
    pub checks: Vec<CheckRow>,
    /// It satisfies the app's promotion policy.
    pub satisfied: bool,
    /// What the policy misses, in words.
    pub missing: Vec<String>,
}

/// A named check.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckRow {
    /// Its name.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
    /// What was said about it.
    pub note: String,
    /// When it was recorded.
    pub at: String,
}

/// Records named checks.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvidenceRequest {
    /// The checks; the last word on each name counts.
    pub checks: Vec<CheckRequest>,
    /// What is to be said about them.
    #[serde(default)]
    pub note: String,
}

/// A named check to record.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Its name.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
}

/// Asks for a promotion of production: one of the two says of what.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// What this preview runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    /// This artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A promotion.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PromotionRow {
    /// Public id.
    pub id: String,
    /// promote, rollback, redeploy or configure.
    pub kind: String,
    /// Whose routes.
    pub environment: String,
    /// The artifact.
    pub digest: String,
    /// Where the artifact was validated.
    pub source: String,
    /// The artifact that owned the routes before.
    pub previous: Option<String>,
    /// requested, policy_check, releasing, release_lost, route_cas, edge_propagating, healthy, rolled_back or
    /// failed.
    pub state: String,
    /// It goes on.
    pub in_progress: bool,
    /// The epoch under which the owner moved.
    pub epoch: Option<u64>,
    /// Why it failed or was rolled back.
    pub reason: Option<String>,
    /// When it was asked for.
    pub requested: String,
    /// When it last changed.
    pub changed: String,
}

/// Asks for a deployment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeployRequest {
    /// The manifest digest of an uploaded artifact.
    pub digest: String,
    /// The preview it is for; production when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
}

/// What a sleep or wake came to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// In words.
    pub done: String,
    /// The operation, where there is one.
    pub operation: Option<String>,
}

/// An error (RFC 9457).
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// Status.
    pub status: u16,
    /// One line.
    pub title: String,
    /// What was wrong and what to do.
    pub detail: String,
}

/// Blobs of artifacts, by their digests.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobList {
    /// `sha256:HEX` each; at most 10000.
    pub digests: Vec<String>,
}

/// What became of a batch of blobs.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// How many were stored.
    pub stored: u64,
}

/// Files whose encodings are asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncodingsRequest {
    /// Which encoders the answer is to be of; 2 is the number of this version's.
    pub encoder: u32,
    /// The files' digests, `sha256:HEX` each; at most 10000.
    pub digests: Vec<String>,
}

/// Files whose encodings are known.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EncodedFiles {
    /// One for each file and type.
    pub files: Vec<EncodedFile>,
}

/// A file whose encodings are known.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EncodedFile {
    /// The file's.
    pub digest: String,
    /// As which it is sent.
    #[serde(rename = "type")]
    pub media_type: String,
    /// All that make it smaller.
    pub encodings: Vec<Encoding>,
}

/// An encoding of a file.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Encoding {
    /// br, gzip or zstd.
    pub coding: String,
    /// Of the encoded bytes.
    pub digest: String,
    /// Of the encoded bytes.
    pub size: u64,
}
