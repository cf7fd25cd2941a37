//! The headers that mark a preview's answers.

use http::HeaderValue;
use pingora::http::ResponseHeader;

use crate::snapshot::EnvView;

/// Marks an answer of a preview; leaves production's alone.
///
/// # Errors
/// Pingora's; ours are header values always.
pub fn mark(head: &mut ResponseHeader, view: &EnvView, noindex: bool) -> pingora::Result<()> {
    if view.environment.is_production() {
        return Ok(());
    }
    head.insert_header("vango-edge-artifact", view.owner.digest.to_string())?;
    if noindex {
        head.insert_header("x-robots-tag", HeaderValue::from_static("noindex"))?;
    }
    Ok(())
}
