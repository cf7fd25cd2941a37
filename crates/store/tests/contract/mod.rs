//! The contract suite: what every adapter of [`StateStore`] must pass, run for each
//! by `store_contract!`.
//!
//! Nothing here sleeps: time moves by [`Harness::advance`], and every wait has a deadline.

mod leases;
mod records;
mod watches;

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use vango_edge_store::{Event, EventKind, StateStore, Watch};

pub use leases::*;
pub use records::*;
pub use watches::*;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something that is under way.
pub type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An empty store to be tested, and what the suite needs around it.
pub struct Harness {
    pub store: Arc<dyn StateStore>,
    /// Moves the store's clock forward; ready once the store has noticed. An adapter whose clock
    /// cannot be moved waits as long.
    pub advance: Box<dyn Fn(Duration) -> Running<()> + Send + Sync>,
    /// After so many further revisions, one is no longer there for watches. Thousands make a slow
    /// test, less than 32 fail it.
    pub watch_revisions: usize,
    /// Dropped after the store: a directory, a server.
    pub _keep: Box<dyn Any + Send + Sync>,
}

/// Declares one tokio test per case of the suite. `$open` makes a [`Harness`] and is awaited.
macro_rules! store_contract {
    ($open:expr) => {
        store_contract! { @each $open;
            an_entry_tells_its_revisions
            a_deleted_key_starts_anew
            absent_holds_for_absent_keys_only
            exists_holds_for_present_keys_only
            unchanged_holds_for_the_revision_seen
            checks_without_operations_decide
            a_conflict_applies_nothing_and_names_the_key
            all_operations_share_one_revision
            what_changes_nothing_takes_no_revision
            one_of_64_racers_creates
            counters_lose_no_increment
            callers_that_leave_harm_no_other
            pages_hold_every_key_once_in_order
            a_page_stays_within_its_bytes
            prefixes_are_not_folders
            bounds_are_kept
            a_watch_has_no_gaps_under_writers
            a_list_and_a_watch_follow_a_prefix
            a_watch_starts_in_the_past
            a_watch_starts_now_or_later
            a_watch_of_dropped_history_is_refused
            a_watch_that_falls_behind_is_told
            a_lease_ends_with_its_keys
            a_lease_kept_alive_stays
            a_revoked_lease_takes_its_keys
            a_lease_that_ended_is_refused
            a_put_takes_its_key_off_a_lease
            leases_have_bounds
        }
    };
    (@each $open:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::contract::$case($open.await).await;
            }
        )*
    };
}

/// What `wait` becomes, which must be soon.
async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// The next revision of a watch that must go on.
async fn next(watch: &mut Watch) -> Vec<Event> {
    soon("next event", watch.next()).await.expect("the watch goes on")
}

/// `+key` for a put, `-key` for a delete.
fn brief(events: &[Event]) -> Vec<String> {
    let brief = |event: &Event| match event.kind {
        EventKind::Put(_) => format!("+{}", event.key),
        EventKind::Delete => format!("-{}", event.key),
    };
    events.iter().map(brief).collect()
}
