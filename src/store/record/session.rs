//! Where a live session was accepted.

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::{AllocationId, Digest, Generation};

use super::Record;

/// Where a live session's socket was last accepted. Its key carries a hash of the session's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRoute {
    /// On this allocation,
    pub allocation: AllocationId,
    /// which was this start of its environment
    pub generation: Generation,
    /// and ran this artifact,
    pub digest: Digest,
    /// which writes its sessions' state under this schema; `None` where it declares none.
    pub schema: Option<Digest>,
    /// When. Records go by it.
    pub at: Wall,
}
impl Record for SessionRoute {
    const KIND: &'static str = "session-route";
}
