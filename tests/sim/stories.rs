//! Single runs that once broke a promise, each as short as it can be told. Nothing fails in them but what they say.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use vango_edge::control::Candidate;
use vango_edge::id::AllocationId;
use vango_edge::record::{Allocation, AllocationState, Promotion, PromotionState, Record, key};
use vango_edge::runner::ExitStatus;
use vango_edge::store::Txn;

use crate::edge::Edge;
use crate::events::{deploy, preview, production};
use crate::run::end_leases;
use crate::story::{remember_panics, take_panic};
use crate::world::Sim;

/// Tells `story` on an edge that has nothing deployed.
fn tell<F: Future<Output = ()>>(story: impl FnOnce(Arc<Sim>, Arc<Edge>) -> F) {
    tell_with(1, story);
}

fn tell_with<F: Future<Output = ()>>(seed: u64, story: impl FnOnce(Arc<Sim>, Arc<Edge>) -> F) {
    remember_panics();
    let _ = take_panic();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let sim = Sim::new(seed, false);
        sim.calm_down();
        tokio::spawn(end_leases(Arc::clone(&sim)));
        let edge = Edge::start(&sim).await;
        story(Arc::clone(&sim), Arc::clone(&edge)).await;
        sleep(Duration::from_secs(40)).await;
        sim.check_the_end(&edge);
        sim.check_nothing_is_left();
    });
    // Also one in a task.
    if let Some(why) = take_panic() {
        panic!("{why}");
    }
}

async fn promote(edge: &Edge, wanted: Candidate) -> Promotion {
    let promotions = edge.control().promotions.clone();
    let begun = promotions.promote(production().app(), &wanted).await.unwrap();
    let limit = Duration::from_secs(30);
    promotions.wait(&begun, limit).await.unwrap().unwrap()
}

/// A rollback went to the first deployment of its artifact, also where that was one whose release command had
/// failed and another had served (seed 143 of the day that found it).
#[test]
fn a_rollback_goes_to_the_deployment_that_served() {
    // Which of two is first follows from their ids, which are random.
    tell(|sim, edge| async move {
        for _ in 0..4 {
            sim.machine.commands.next_ends(ExitStatus::Code(1));
            assert!(!deploy(sim.clone(), edge.clone(), production(), 1).await);
        }
        sim.machine.commands.next_ends(ExitStatus::Code(0));
        assert!(deploy(sim.clone(), edge.clone(), production(), 1).await);
        for _ in 0..4 {
            sim.machine.commands.next_ends(ExitStatus::Code(1));
            assert!(!deploy(sim.clone(), edge.clone(), production(), 3).await);
        }
        assert!(deploy(sim.clone(), edge.clone(), production(), 0).await);
        let back = promote(&edge, Candidate::Previous).await;
        assert_eq!(back.state, PromotionState::Healthy, "{:?}", back.failure);
        assert_eq!(back.source, back.deployment);
    });
}

/// A deployment that had served, and was replaced before its client looked again, was said to have done nothing.
#[test]
fn a_deployment_that_was_replaced_at_once_is_told_that_it_moved() {
    tell(|sim, edge| async move {
        assert!(deploy(sim.clone(), edge.clone(), production(), 0).await);
        let served = || {
            let truth = sim.truth();
            let healthy = |p: &&Promotion| p.state == PromotionState::Healthy;
            truth.moves.promotions().filter(healthy).count()
        };
        // Between two looks it is only where the store is quick.
        let mut between = 0;
        for _ in 0..10 {
            let before = served();
            let told = tokio::spawn(deploy(sim.clone(), edge.clone(), production(), 2));
            while served() == before {
                sleep(Duration::from_millis(1)).await;
            }
            let control = edge.control();
            let app = production().app().clone();
            let back = control.promotions.promote(&app, &Candidate::Previous).await.unwrap();
            let in_time = told.is_finished();
            assert!(told.await.unwrap());
            let limit = Duration::from_secs(30);
            let back = control.promotions.wait(&back, limit).await.unwrap().unwrap();
            assert_eq!(back.state, PromotionState::Healthy, "{:?}", back.failure);
            between += usize::from(!in_time);
        }
        assert!(between > 0, "it was looked at each time before it was replaced");
    });
}

/// The release command of a preview that was removed and is deployed again was told epoch 1, which had been there.
#[test]
fn a_release_command_is_told_the_epoch_that_its_artifact_serves_under() {
    tell(|sim, edge| async move {
        assert!(deploy(sim.clone(), edge.clone(), preview(), 0).await);
        assert!(deploy(sim.clone(), edge.clone(), preview(), 2).await);
        edge.control().previews.remove(&preview(), "an operator").await.unwrap();
        sim.machine.commands.next_ends(ExitStatus::Code(0));
        assert!(deploy(sim.clone(), edge.clone(), preview(), 1).await);
        let truth = sim.truth();
        let owner = truth.moves.owner(&preview()).map(|o| o.epoch);
        assert_eq!(truth.moves.released_under(), Vec::from_iter(owner));
    });
}

/// What was started ahead of an owner's move, ended before it was ready and could not be taken off the registry at that
/// moment stayed there (seed 663 of the day that found it).
#[test]
fn a_start_that_failed_while_the_store_was_away_leaves_nothing() {
    for seed in 0..20 {
        tell_with(seed, |sim, edge| async move {
            assert!(deploy(sim.clone(), edge.clone(), production(), 0).await);
            let told = tokio::spawn(deploy(sim.clone(), edge.clone(), production(), 2));
            let is = |id: &AllocationId, state| {
                sim.truth().allocation(id).is_some_and(|a| a.state == state)
            };
            // It ends before it is on record that it runs: what follows ends takes it for none of its own.
            while sim.machine.alive().is_empty() && !told.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            let alive = sim.machine.alive();
            if let Some((id, _)) = alive.first().filter(|(id, _)| is(id, AllocationState::Planned))
            {
                sim.machine.end(&sim, id);
                while is(id, AllocationState::Planned) {
                    sleep(Duration::from_millis(1)).await;
                }
                // Past the end of the start, and with some seeds not past what comes of it.
                sim.store_goes_away(Duration::from_millis(8));
            }
            let _ = told.await;
        });
    }
}

/// Its executor is lost as often as it is taken up: the command ran once, and what served serves.
#[test]
fn a_lost_release_command_is_not_run_again() {
    tell(|sim, edge| async move {
        assert!(deploy(sim.clone(), edge.clone(), production(), 0).await);
        let served = sim.truth().moves.owner(&production()).cloned();
        tokio::spawn(deploy(sim.clone(), edge.clone(), production(), 1));
        while sim.machine.commands.running().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..3 {
            edge.control().life.end();
            edge.restart_control(&sim).await;
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_secs(30)).await;
        let truth = sim.truth();
        let failed: Vec<_> = truth.moves.promotions().collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].state, PromotionState::Failed);
        let said = failed[0].failure.as_ref().map(|f| &*f.safe);
        assert_eq!(said, Some("the outcome of its release command is unknown"));
        assert_eq!(truth.moves.owner(&production()).cloned(), served);
    });
}

/// What stopped it lost the store's answer and ended nothing; the next owner's epoch came, and its process ran for
/// ever (seed 2174 of the day that found it).
#[test]
fn what_was_left_stopping_is_ended_once_its_epoch_is_over() {
    tell(|sim, edge| async move {
        assert!(deploy(sim.clone(), edge.clone(), production(), 0).await);
        edge.wakes.wake_detached(&production());
        let ready = || {
            let truth = sim.truth();
            truth.allocations().find(|a| a.state == AllocationState::Ready).cloned()
        };
        while ready().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        let left = ready().unwrap();
        for state in [AllocationState::Draining, AllocationState::Stopping] {
            let record = Allocation { state, ..left.clone() };
            let at = key::allocation(&record.environment, &record.id);
            edge.node.store.txn(Txn::new().put(at, record.encode())).await.unwrap();
        }
        assert!(deploy(sim.clone(), edge.clone(), production(), 2).await);
    });
}

/// Killed before and after each of a deployment's writes in turn: it is there as a whole, or not at all, and the
/// next one goes through.
#[test]
fn a_deployment_that_is_killed_at_any_write_is_whole() {
    // One without a release command takes eight writes, one with one nine.
    for (artifact, write, done) in
        [0, 1].into_iter().flat_map(|a| (1..=9).flat_map(move |w| [(a, w, true), (a, w, false)]))
    {
        tell(|sim, edge| async move {
            assert!(deploy(sim.clone(), edge.clone(), production(), 2).await);
            let life = edge.control().life.clone();
            life.ends_with_write(write, done);
            let killed = tokio::spawn(deploy(sim.clone(), edge.clone(), production(), artifact));
            while !life.is_over() && !killed.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            life.end();
            edge.restart_control(&sim).await;
            sleep(Duration::from_secs(30)).await;
            for n in [0, 3] {
                assert!(deploy(sim.clone(), edge.clone(), production(), n).await);
            }
        });
    }
}
