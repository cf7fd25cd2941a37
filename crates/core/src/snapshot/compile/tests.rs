//! What is kept of records, and which of them a view stands on.

use super::*;
use crate::record::WakePhases;

fn environment() -> Environment {
    "studylab/pr-7".parse().unwrap()
}

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn deployment_id(n: u8) -> DeploymentId {
    format!("dp-{}", char::from(b'a' + n).to_string().repeat(16)).parse().unwrap()
}

/// The deployment of artifact `n`, whose app drains for so many seconds and takes so many requests at once.
fn deployment(n: u8, drain: u8) -> Deployment {
    Deployment {
        id: deployment_id(n),
        environment: environment(),
        digest: digest(n),
        contract: format!(
            "[app]\nname = \"studylab\"\n[process]\ncommand = [\"./studylab\"]\n\
             ready = {{ path = \"/readyz\" }}\ndrain_timeout = \"{drain}s\"\n\
             [scale]\nconcurrency = {drain}\n[[route]]\npath = \"/*\"\nclass = \"page\"\n"
        ),
        created: Wall(0),
        files: 1,
        bytes: 1,
        assets: None,
        replaced: None,
        promoted_from: None,
        schema: None,
    }
}

fn owner(n: u8) -> RouteOwner {
    RouteOwner {
        host: "pr-7.studylab.localhost".parse().unwrap(),
        path: "/".into(),
        environment: environment(),
        deployment: deployment_id(n),
        digest: digest(n),
        epoch: Epoch(n.into()),
    }
}

fn allocation(n: u8) -> Allocation {
    Allocation {
        id: format!("al-{}", char::from(b'a' + n).to_string().repeat(16)).parse().unwrap(),
        environment: environment(),
        generation: Generation(n.into()),
        epoch: Epoch(n.into()),
        digest: digest(n),
        state: AllocationState::Ready,
        address: Some("127.0.0.1:4000".parse().unwrap()),
        process: None,
        operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        created: Wall(0),
        ready: Some(Wall(0)),
    }
}

fn operation() -> Operation {
    Operation {
        id: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
        environment: environment(),
        deployment: deployment_id(1),
        digest: digest(1),
        epoch: Epoch(1),
        state: WakeState::Hot,
        attempt: 1,
        allocation: None,
        requested: Wall(0),
        changed: Wall(0),
        phases: WakePhases::default(),
        failure: None,
        failures: 0,
        backoff_ms: 0,
        typical_ms: 0,
    }
}

/// Applies the change, and compiles what it touches over `before`.
fn after(records: &mut Records, before: &Snapshot, key: &str, value: Option<&[u8]>) -> Snapshot {
    let mut touched = BTreeSet::new();
    records.apply(Change { key, value }, Mono(1), &mut touched).unwrap();
    compile(before, records, &touched, before.revision + 1)
}

#[test]
fn an_environment_without_records_is_forgotten_whichever_goes_last() {
    let all = [
        (key::owner(&owner(1).host, "/"), owner(1).encode()),
        (key::deployment(&environment(), &deployment_id(1)), deployment(1, 1).encode()),
        (key::allocation(&environment(), &allocation(1).id), allocation(1).encode()),
        (key::operation(&environment()), operation().encode()),
    ];
    for last in 0..all.len() {
        let (mut records, mut snapshot) = (Records::default(), Snapshot::default());
        for (key, value) in &all {
            snapshot = after(&mut records, &snapshot, key, Some(value));
        }
        assert!(snapshot.environment(&environment()).is_some());
        for at in 1..=all.len() {
            assert_eq!(records.environments().count(), 1);
            let (key, _) = &all[(last + at) % all.len()];
            snapshot = after(&mut records, &snapshot, key, None);
        }
        assert!(snapshot.environment(&environment()).is_none());
        assert_eq!(records.environments().count(), 0, "{} went last", all[last].0);
        // What was never there leaves nothing either.
        after(&mut records, &snapshot, &all[last].0, None);
        assert_eq!(records.environments().count(), 0);
    }
}

#[test]
fn an_allocation_keeps_its_artifacts_contract_when_another_owns_the_routes() {
    let (mut records, mut snapshot) = (Records::default(), Snapshot::default());
    for (n, drain) in [(1, 30), (2, 5)] {
        let at = key::deployment(&environment(), &deployment_id(n));
        snapshot = after(&mut records, &snapshot, &at, Some(&deployment(n, drain).encode()));
        let at = key::allocation(&environment(), &allocation(n).id);
        snapshot = after(&mut records, &snapshot, &at, Some(&allocation(n).encode()));
        let at = key::owner(&owner(n).host, "/");
        snapshot = after(&mut records, &snapshot, &at, Some(&owner(n).encode()));
    }
    let drains = |snapshot: &Snapshot, n| {
        let view = snapshot.environment(&environment()).unwrap();
        let id = allocation(n).id;
        let own = view.contract_of(&id).process.drain_timeout.as_secs();
        (own, view.allocation(&id).unwrap().concurrency)
    };
    assert_eq!((drains(&snapshot, 1), drains(&snapshot, 2)), ((30, 30), (5, 5)));
    // Where its deployment is not kept, the owner's is all there is.
    let at = key::deployment(&environment(), &deployment_id(1));
    let snapshot = after(&mut records, &snapshot, &at, None);
    assert_eq!((drains(&snapshot, 1), drains(&snapshot, 2)), ((5, 5), (5, 5)));
}
