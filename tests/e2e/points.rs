//! `kill -9` at each named point of a promotion and of a collection (`vango_edge::crash`): what was made
//! durable is gone on from, what was not never happened, and there is one owner whose artifact serves.
//!
//! `VANGO_EDGE_KILLS` says how many promotions are killed, `VANGO_EDGE_SEED` in which order and what runs
//! meanwhile; `scripts/bench/promotions` asks for fifty.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vango_edge::clock::{Entropy, SeededEntropy};

use crate::support::{Artifact, Edge, eventually, eventually_some};

use super::promotion::{asked, deploy_preview, promote, route, visit};

/// What the promotion that is killed would have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To its end.
    Healthy,
    /// The preview got no request, and the policy wants evidence.
    Refused,
    /// The artifact does not start any more.
    CannotStart,
    /// Killed with the owner moved and the client not told; then what runs dies, and the artifact does not start
    /// any more. Killed again on the way back.
    GoesBack,
}

/// Every state, before and after it is durable, and the moment between the start of the next allocation
/// and the owner's move.
const POINTS: &[(Way, &str)] = &[
    (Way::Healthy, "before requested"),
    (Way::Healthy, "after requested"),
    (Way::Healthy, "before policy_check"),
    (Way::Healthy, "after policy_check"),
    (Way::Healthy, "before route_cas"),
    (Way::Healthy, "after route_cas"),
    (Way::Healthy, "after started"),
    (Way::Healthy, "before edge_propagating"),
    (Way::Healthy, "after edge_propagating"),
    (Way::Healthy, "before healthy"),
    (Way::Healthy, "after healthy"),
    (Way::Refused, "before failed"),
    (Way::Refused, "after failed"),
    (Way::CannotStart, "before rolled_back"),
    (Way::CannotStart, "after rolled_back"),
    (Way::GoesBack, "before rolled_back"),
    (Way::GoesBack, "after rolled_back"),
];

/// `rounds` points: all of them in an order of the seed's, then all of them again.
fn points(entropy: &SeededEntropy, rounds: usize) -> Vec<(Way, &'static str)> {
    let mut out = Vec::new();
    while out.len() < rounds {
        let mut all = POINTS.to_vec();
        while !all.is_empty() && out.len() < rounds {
            let at = usize::try_from(entropy.next_u64() % all.len() as u64).unwrap();
            out.push(all.swap_remove(at));
        }
    }
    out
}

#[test]
fn a_promotion_killed_at_each_state_ends_with_one_owner_that_serves() {
    let rounds = usize::try_from(asked("VANGO_EDGE_KILLS", POINTS.len() as u64)).unwrap();
    let seed = asked("VANGO_EDGE_SEED", 1);
    let entropy = SeededEntropy::new(seed);
    let mut edge = Edge::start();
    let broken = edge.config().with_file_name("broken");
    edge.deploy(&version("0", &broken));
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for (round, (way, point)) in points(&entropy, rounds).into_iter().enumerate() {
        let what = format!("seed {seed}, round {round}, {way:?} {point}");
        let preview = format!("pr-{round}");
        let next = deploy_preview(&edge, &version(&preview, &broken), &preview);
        if way != Way::Refused {
            visit(&edge, &preview, 1);
        }
        // Production is up, or asleep.
        match entropy.next_u64() % 2 {
            0 => assert_eq!(edge.get("/dashboard").status, 200, "{what}"),
            _ => _ = edge.json(&["sleep", "studylab"]),
        }
        edge.json(&["sleep", &format!("studylab/{preview}")]);
        let before = route(&edge);
        let ended = killed(&mut edge, way, point, &next, &broken);
        let after = route(&edge);
        let _ = fs::remove_file(&broken);

        let state = ended["state"].as_str().unwrap();
        assert_eq!(state, expected(way, point), "{what}: {ended}");
        let epochs = after["epoch"].as_u64().unwrap() - before["epoch"].as_u64().unwrap();
        let (owner, moves) = match (state, way) {
            ("healthy", _) => (&next["digest"], 1),
            // There and back: an epoch never comes again.
            (_, Way::GoesBack) => (&before["digest"], 2),
            _ => (&before["digest"], 0),
        };
        assert_eq!((&after["digest"], epochs), (owner, moves), "{what}: {ended}");
        // After a start that failed, the next is tried when its back-off is over.
        let page = eventually_some("a page", || {
            let page = edge.get("/debug/echo");
            assert!(matches!(page.status, 200 | 503), "{what}: {}", page.text());
            (page.status == 200).then_some(page)
        });
        let served = page.json()["headers"].to_string();
        assert!(served.contains(owner.as_str().unwrap()), "{what}: {served}");
        eventually("one allocation of production is left, and no process without a record", || {
            let of_production = |a: &&Value| a["environment"] == "studylab/production";
            let ps = edge.ps();
            ps.iter().filter(of_production).count() == 1 && edge.processes().len() == ps.len()
        });
        edge.json(&["remove", &format!("studylab/{preview}")]);
        *found.entry(format!("{way:?} {point}: {state}")).or_default() += 1;
    }
    for (way, times) in &found {
        println!("{times} x {way}");
    }
    assert_eq!(found.values().sum::<u32>() as usize, rounds);
    assert!(rounds < POINTS.len() || found.len() == POINTS.len(), "every point was met");
}

fn version(name: &str, broken: &Path) -> Artifact {
    Artifact::new().env("VERSION", name).env("STUDYLAB_FAIL_FILE", broken.to_str().unwrap())
}

/// A promotion that was durably asked for ends as if nothing had been killed.
fn expected(way: Way, point: &str) -> &'static str {
    match way {
        _ if point == "before requested" => "never asked for",
        Way::Healthy => "healthy",
        Way::Refused => "failed",
        Way::CannotStart | Way::GoesBack => "rolled_back",
    }
}

/// Promotes, is killed at the point, starts again; the promotion once it is over.
fn killed(edge: &mut Edge, way: Way, point: &str, preview: &Value, broken: &Path) -> Value {
    if way == Way::CannotStart {
        fs::write(broken, "").unwrap();
    }
    let first = if way == Way::GoesBack { "after edge_propagating" } else { point };
    edge.crash_at(&format!("promotion {first}"));
    let mut asking = promote(edge, environment(preview).1);
    edge.crashed();
    assert!(!asking.wait().unwrap().success(), "the client was not told that it is over");
    if way == Way::GoesBack {
        fs::write(broken, "").unwrap();
        for pid in edge.processes() {
            kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        }
        eventually("nothing of it runs", || edge.processes().is_empty());
        edge.crash_at(&format!("promotion {point}"));
        edge.start_again();
        edge.crashed();
    }
    edge.start_again();
    eventually_some("the promotion is over", || {
        let answer = edge.admin("GET", "/v1/environments/studylab/production/promotion");
        let last = if answer.status == 200 { answer.json() } else { Value::Null };
        if point == "before requested" {
            assert_ne!(last["digest"], preview["digest"]);
            return Some(json!({ "state": "never asked for" }));
        }
        assert_eq!(last["digest"], preview["digest"], "what was asked for is on record");
        (last["in_progress"] == false).then_some(last)
    })
}

/// An environment's app and name.
fn environment(deployed: &Value) -> (&str, &str) {
    deployed["environment"].as_str().unwrap().split_once('/').unwrap()
}

const SOON: &str = "[assets]\nretention = \"1ms\"\nkeep_deployments = 1\n";

/// Each step of a collection, and how often it is passed before the kill.
const STEPS: &[(&str, u32)] = &[
    ("after deployments", 0),
    ("after marked", 0),
    ("after blob", 0),
    ("after blob", 2),
    ("before tree", 0),
    ("after tree", 0),
];

#[test]
fn a_collection_killed_at_each_step_takes_nothing_that_is_needed_and_leaves_nothing() {
    let mut edge = Edge::start_with(SOON);
    let whole = edge.config().with_file_name("never");
    edge.deploy(&version("kept", &whole));
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.json(&["collect"]);
    let count = |edge: &Edge, dir: &str| fs::read_dir(edge.state().join(dir)).unwrap().count();
    let blobs = count(&edge, "artifacts/blobs/sha256");
    for (round, (step, times)) in STEPS.iter().enumerate() {
        // Two previews, each with an artifact before; one of each is over, and both have a tree.
        for n in 0..2 {
            let name = format!("pr-{round}-{n}");
            for version_of_it in ["first", "second"] {
                let artifact = version(&format!("{name}-{version_of_it}"), &whole);
                deploy_preview(&edge, &artifact, &name);
                visit(&edge, &name, 1);
            }
            edge.json(&["remove", &format!("studylab/{name}")]);
        }
        eventually("what ran of them has ended, and needs no tree any more", || {
            edge.processes().len() == 1
        });
        edge.crash_at(&format!("collect {step} {times}"));
        let asking = edge.command(&["collect"]);
        assert!(!asking.status.success(), "{step} {times}");
        edge.crashed();
        edge.start_again();
        edge.json(&["sleep", "studylab"]);
        assert_eq!(edge.get("/dashboard").status, 200, "{step} {times}");
        assert_eq!(edge.get("/assets/app.css").status, 200, "{step} {times}");
        edge.json(&["collect"]);
        let again = edge.json(&["collect"]);
        let left = [&again["deployments"], &again["blobs"], &again["trees"]];
        assert_eq!(left, [0, 0, 0], "{step} {times}: what was killed is done by the next");
    }
    // One artifact of each preview is kept: `keep_deployments`. No part of another is.
    let artifacts = 1 + 2 * STEPS.len();
    assert_eq!(edge.list(&["deployments"]).len(), artifacts);
    assert_eq!(count(&edge, "trees"), artifacts);
    // A manifest, a configuration and a layer each; the files in them are the same.
    assert_eq!(count(&edge, "artifacts/blobs/sha256"), blobs + 3 * 2 * STEPS.len());
}
