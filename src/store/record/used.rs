//! When a preview was last used.

use serde::{Deserialize, Serialize};

use crate::clock::Wall;

use super::Record;

/// When a preview last had a request or an open socket, as far as it was written down. A deploy is on
/// record with its deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// By the wall clock.
    pub at: Wall,
}
impl Record for Used {
    const KIND: &'static str = "used";
}
