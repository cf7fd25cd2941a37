//! Keys, as FLEET names them.

use crate::clock::Wall;
use crate::id::{AllocationId, AppName, DeploymentId, Environment, Host, OperationId};

/// Prefix of all route owners.
pub const OWNERS: &str = "r/";
/// Prefix of all allocations.
pub const ALLOCATIONS: &str = "a/";
/// Prefix of all current operations.
pub const OPERATIONS: &str = "op/";
/// Prefix of all executors.
pub const EXECUTORS: &str = "own/";
/// Prefix of all deployments.
pub const DEPLOYMENTS: &str = "d/";
/// Hosts that have no owner any more.
pub const RETIRED: &str = "retired";
/// Prefix of all sessions' routes.
pub const SESSIONS: &str = "s/";
/// Prefix of finished operations, oldest first.
pub const HISTORY: &str = "oplog/";
/// Prefix of all current promotions.
pub const PROMOTIONS: &str = "pr/";
/// Prefix of the executors of promotions.
pub const PROMOTERS: &str = "prown/";
/// Prefix of finished promotions, oldest first.
pub const PROMOTED: &str = "prlog/";
/// Prefix of all entries of schedules.
pub const CRON: &str = "cron/";
/// Prefix of all decisions that are not in the audit yet.
pub const DECISIONS: &str = "decided/";
/// Prefix of all evidence.
pub const EVIDENCE: &str = "ev/";
/// Prefix of all that is kept of certificates by ACME.
pub const ACME: &str = "acme/";
/// Prefix of all certificates that an authority issued.
pub const CERTIFICATES: &str = "acme/cert/";
/// Prefix of all hosts' newest orders.
pub const ORDERS: &str = "acme/order/";
/// Prefix of the executors of orders.
pub const ORDERERS: &str = "acme/own/";
/// Prefix of what authorities are to be shown.
pub const CHALLENGES: &str = "acme/chal/";
/// Prefix of orders that are over, oldest first.
pub const ORDERED: &str = "acme/log/";
/// When orders were begun.
pub const ORDER_PACE: &str = "acme/pace";

/// An entry of an environment's schedule.
pub fn cron(environment: &Environment, name: &str) -> String {
    format!("cron/{environment}/{name}")
}

/// A decision that is not in the audit yet; what follows the prefix is its place there.
pub fn decision(at: Wall, number: u64) -> String {
    super::ledger::key::evidence(DECISIONS, at, number)
}

/// When a preview was last used.
pub fn used(environment: &Environment) -> String {
    format!("used/{environment}")
}
/// What an operator set in an environment.
pub fn variables(environment: &Environment) -> String {
    format!("env/{environment}")
}
pub fn promotion(environment: &Environment) -> String {
    format!("pr/{environment}")
}
pub fn promoter(environment: &Environment) -> String {
    format!("prown/{environment}")
}
/// A finished promotion; keys sort by the time it was requested.
pub fn promoted(requested: Wall, id: &OperationId) -> String {
    format!("{}{id}", promoted_from(requested))
}
/// Promotions requested at `at` or later have keys that sort at or after this.
pub fn promoted_from(at: Wall) -> String {
    format!("prlog/{:016x}/", at.0)
}
/// What is known of one deployment.
pub fn evidence(environment: &Environment, id: &DeploymentId) -> String {
    format!("ev/{environment}/{id}")
}
/// All deployments of an environment.
pub fn deployments(environment: &Environment) -> String {
    format!("d/{environment}/")
}
/// All deployments of an app.
pub fn deployments_of(app: &AppName) -> String {
    format!("d/{app}/")
}

/// The account at the authority with this directory; its hash, since an address may be longer than a key.
pub fn acme_account(directory: &str) -> String {
    use sha2::Digest as _;
    format!("acme/account/{}", hex::encode(&sha2::Sha256::digest(directory)[..16]))
}
/// The certificate that an authority issued for `host`.
pub fn certificate(host: &Host) -> String {
    format!("{CERTIFICATES}{host}")
}
/// The newest order of a certificate for `host`.
pub fn order(host: &Host) -> String {
    format!("{ORDERS}{host}")
}
/// What the authority is to be shown about `host`.
pub fn challenge(host: &Host) -> String {
    format!("{CHALLENGES}{host}")
}
/// An order that is over; keys sort by the time it was requested.
pub fn ordered(requested: Wall, id: &OperationId) -> String {
    format!("{}{id}", ordered_from(requested))
}
/// Orders requested at `at` or later have keys that sort at or after this.
pub fn ordered_from(at: Wall) -> String {
    format!("{ORDERED}{:016x}/", at.0)
}

/// Owner of `host` and `path`. Two hash digits first, so that a fleet can page by them.
pub fn owner(host: &Host, path: &str) -> String {
    let hash = host
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("r/{:02x}/{host}{path}", hash as u8)
}
/// One allocation.
pub fn allocation(environment: &Environment, id: &AllocationId) -> String {
    format!("a/{environment}/{id}")
}
/// All allocations of an environment.
pub fn allocations(environment: &Environment) -> String {
    format!("a/{environment}/")
}
pub fn operation(environment: &Environment) -> String {
    format!("op/{environment}")
}
pub fn executor(environment: &Environment) -> String {
    format!("own/{environment}")
}
/// One deployment.
pub fn deployment(environment: &Environment, id: &DeploymentId) -> String {
    format!("d/{environment}/{id}")
}
/// Where one session was; `name` stands for its id, which is in no key.
pub fn session(environment: &Environment, name: &impl std::fmt::Display) -> String {
    format!("s/{environment}/{name}")
}
/// The environment's start counter.
pub fn starts(environment: &Environment) -> String {
    format!("g/{environment}")
}
/// A finished operation; keys sort by the time it was requested.
pub fn history(requested: Wall, id: &OperationId) -> String {
    format!("{}{id}", history_from(requested))
}
/// Operations requested at `at` or later have keys that sort at or after this.
pub fn history_from(at: Wall) -> String {
    format!("oplog/{:016x}/", at.0)
}
