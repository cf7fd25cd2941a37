//! Leases and the keys that go with them.

use std::time::Duration;

use super::{Harness, brief, next};
use vango_edge_store::{LEASE_TTL_MAX, LEASE_TTL_MIN, LeaseId, StoreError, Txn};

const TTL: Duration = Duration::from_secs(5);

/// All keys go in one revision, once the time is over and not before; the others stay.
pub async fn a_lease_ends_with_its_keys(h: Harness) {
    let lease = h.store.lease_grant(TTL).await.expect("grant");
    let longer = h.store.lease_grant(TTL * 4).await.expect("grant");
    assert_ne!(lease, longer);
    let txn = Txn::new().put_leased("b", "v", lease).put_leased("a", "v", lease).put("c", "v");
    h.store.txn(txn).await.expect("put");
    let last = h.store.txn(Txn::new().put_leased("longer", "v", longer)).await.expect("put");
    assert_eq!(h.store.get("a").await.expect("get").expect("there").lease, Some(lease));
    let mut watch = h.store.watch("", last + 1).await.expect("watch");
    (h.advance)(TTL / 2).await;
    assert!(h.store.get("a").await.expect("get").is_some(), "half of its time is left");
    (h.advance)(TTL).await;
    let events = next(&mut watch).await;
    assert_eq!(brief(&events), ["-a", "-b"]);
    assert_eq!(h.store.revision().await, Ok(events[0].revision));
    assert_eq!(h.store.get("a").await, Ok(None));
    assert!(h.store.get("c").await.expect("get").is_some());
    (h.advance)(TTL * 4).await;
    assert_eq!(brief(&next(&mut watch).await), ["-longer"]);
}

/// Each keep-alive gives the full time again.
pub async fn a_lease_kept_alive_stays(h: Harness) {
    let lease = h.store.lease_grant(TTL).await.expect("grant");
    h.store.txn(Txn::new().put_leased("k", "v", lease)).await.expect("put");
    for _ in 0..4 {
        (h.advance)(TTL * 3 / 5).await;
        h.store.lease_keep_alive(lease).await.expect("in time");
    }
    assert!(h.store.get("k").await.expect("get").is_some());
    let mut watch = h.store.watch("k", 0).await.expect("watch");
    (h.advance)(TTL + TTL).await;
    assert_eq!(brief(&next(&mut watch).await), ["-k"]);
    assert_eq!(h.store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
}

/// Revoking deletes at once, in one revision; without keys it takes none.
pub async fn a_revoked_lease_takes_its_keys(h: Harness) {
    let lease = h.store.lease_grant(TTL).await.expect("grant");
    let txn = Txn::new().put_leased("a", "v", lease).put_leased("b", "v", lease);
    let at = h.store.txn(txn).await.expect("put");
    let mut watch = h.store.watch("", at + 1).await.expect("watch");
    h.store.lease_revoke(lease).await.expect("revoke");
    assert_eq!(h.store.get("a").await, Ok(None));
    let events = next(&mut watch).await;
    assert_eq!(brief(&events), ["-a", "-b"]);
    assert_eq!(events[0].revision, at + 1);
    assert_eq!(h.store.lease_revoke(lease).await, Err(StoreError::LeaseGone(lease)));

    let bare = h.store.lease_grant(TTL).await.expect("grant");
    assert_ne!(bare, lease, "an id is given out once");
    h.store.lease_revoke(bare).await.expect("revoke");
    assert_eq!(h.store.revision().await, Ok(at + 1));
}

/// A lease that ended holds no key, and a transaction that names it applies nothing.
pub async fn a_lease_that_ended_is_refused(h: Harness) {
    let ended = h.store.lease_grant(TTL).await.expect("grant");
    (h.advance)(TTL + TTL).await;
    let never = LeaseId(ended.0 + 1_000_000);
    let before = h.store.revision().await.expect("revision");
    for lease in [ended, never] {
        let txn = Txn::new().put("first", "v").put_leased("k", "v", lease);
        assert_eq!(h.store.txn(txn).await, Err(StoreError::LeaseGone(lease)));
        assert_eq!(h.store.lease_keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
        assert_eq!(h.store.lease_revoke(lease).await, Err(StoreError::LeaseGone(lease)));
    }
    assert_eq!(h.store.get("first").await, Ok(None));
    assert_eq!(h.store.revision().await, Ok(before));
}

/// The last put decides which lease a key has, if any; a deleted key has none.
pub async fn a_put_takes_its_key_off_a_lease(h: Harness) {
    let first = h.store.lease_grant(TTL).await.expect("grant");
    let second = h.store.lease_grant(TTL).await.expect("grant");
    let mut txn = Txn::new();
    for key in ["freed", "moved", "deleted", "stays"] {
        txn = txn.put_leased(key, "v", first);
    }
    h.store.txn(txn).await.expect("put");
    let txn = Txn::new().put("freed", "v").put_leased("moved", "v", second).delete("deleted");
    h.store.txn(txn).await.expect("put");
    h.store.txn(Txn::new().put("deleted", "again")).await.expect("put");
    let mut watch = h.store.watch("", 0).await.expect("watch");
    h.store.lease_revoke(first).await.expect("revoke");
    assert_eq!(brief(&next(&mut watch).await), ["-stays"]);
    h.store.lease_revoke(second).await.expect("revoke");
    assert_eq!(brief(&next(&mut watch).await), ["-moved"]);
    let left = h.store.list("", None, 10).await.expect("list");
    let left: Vec<_> = left.entries.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(left, ["deleted", "freed"]);
}

/// Times to live have bounds, and fractions of a second are rounded up.
pub async fn leases_have_bounds(h: Harness) {
    for ttl in [Duration::ZERO, LEASE_TTL_MIN / 2, LEASE_TTL_MAX + Duration::from_secs(1)] {
        let answer = h.store.lease_grant(ttl).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{ttl:?}: {answer:?}");
    }
    h.store.lease_grant(LEASE_TTL_MAX).await.expect("longest");
    let lease = h.store.lease_grant(Duration::from_millis(1_500)).await.expect("grant");
    (h.advance)(Duration::from_millis(1_600)).await;
    h.store.lease_keep_alive(lease).await.expect("it is 2 s");
}
