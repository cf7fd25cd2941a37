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
/// Prefix of all evidence.
pub const EVIDENCE: &str = "ev/";

/// When a preview was last used.
pub fn used(environment: &Environment) -> String {
    format!("used/{environment}")
}
/// The environment's promotion.
pub fn promotion(environment: &Environment) -> String {
    format!("pr/{environment}")
}
/// The promotion's executor.
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
/// The environment's operation.
pub fn operation(environment: &Environment) -> String {
    format!("op/{environment}")
}
/// The operation's executor.
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
