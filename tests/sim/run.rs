//! One run: a random part, then calm until every request has ended, and a last request to each host.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::client::{HOSTS, Request, Wanted};
use crate::edge::Edge;
use crate::events::{self, Events};
use crate::story::{Story, panicked, remember_panics, take_panic};
use crate::world::{CONTRACTS, Sim};

/// How often everything is looked at besides when something happened.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// From the last arrival until every request has ended: the longest budget, the longest exchange, and what
/// a ledger and a body may take.
const ALL_END_WITHIN: Duration = Duration::from_secs(40);

/// Past the longest pause after failures, and the longest lease.
const ALL_PAUSES: Duration = Duration::from_secs(12);

/// Runs `seed`.
///
/// # Errors
/// Which promise broke.
pub fn run(seed: u64, verbose: bool) -> Result<Story, String> {
    remember_panics();
    let _ = take_panic();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap();
    let caught = std::panic::catch_unwind(|| runtime.block_on(play(seed, verbose)));
    drop(runtime);
    match (take_panic(), caught) {
        (None, Ok(story)) => Ok(story),
        (why, _) => Err(format!("seed {seed}: {}", why.unwrap_or_default())),
    }
}

async fn play(seed: u64, verbose: bool) -> Story {
    let sim = Sim::new(seed, verbose);
    tokio::spawn(end_leases(Arc::clone(&sim)));
    let edge = Edge::start(&sim).await;
    let first =
        |environment, n| events::deploy(Arc::clone(&sim), Arc::clone(&edge), environment, n);
    while !first(events::production(), 0).await {}
    let (others, previews) = (sim.dice.below(CONTRACTS.len()), sim.dice.below(CONTRACTS.len()));
    while !first(events::other(), others).await {}
    while !first(events::preview(), previews).await {}
    let looking = tokio::spawn(look(Arc::clone(&sim), Arc::clone(&edge)));

    let stops = seed.is_multiple_of(8);
    let mut happening = tokio::spawn(happen(Arc::clone(&sim), Arc::clone(&edge), stops));
    let clients = arrive(&sim, &edge, &mut happening).await;
    sim.calm_down();
    all_end(&sim, clients).await;
    if sim.is_stopping() {
        sim.happened("the edge stopped in the middle");
        let _ = edge.inheritance.leave(false).await;
    } else {
        sleep(ALL_PAUSES).await;
        let last = one_each(&sim, &edge).await;
        sleep(Duration::from_secs(15)).await;
        for n in last {
            sim.check_healed(n);
        }
        sim.happened("a last request to each host was served");
    }
    sleep(ALL_PAUSES).await;
    if !panicked() {
        sim.check_the_end(&edge);
        if !sim.is_stopping() {
            sim.check_nothing_is_left();
        }
    }
    looking.abort();
    sim.close()
}

/// Leases end on time although nobody calls.
pub async fn end_leases(sim: Arc<Sim>) {
    loop {
        sleep(Duration::from_millis(500)).await;
        let _ = sim.engine.poke().await;
    }
}

async fn look(sim: Arc<Sim>, edge: Arc<Edge>) {
    while !panicked() {
        sim.check(&edge);
        let under_way = sim.rows().values().any(|r| r.open);
        sleep(if under_way { LOOK_EVERY } else { LOOK_EVERY * 20 }).await;
    }
}

/// Makes things happen for a while.
async fn happen(sim: Arc<Sim>, edge: Arc<Edge>, stops: bool) {
    let mut all = Events::new(&sim, &edge);
    let events = 12 + sim.dice.below(20);
    for n in 0..events {
        sleep(sim.dice.ms(&[20, 300, 1_500, 5_000])).await;
        if panicked() {
            return;
        }
        if stops && n > events / 2 {
            sim.stop();
            edge.queues.shut_down();
            return;
        }
        all.next().await;
    }
}

/// Clients come until nothing more is going to happen.
async fn arrive(
    sim: &Arc<Sim>,
    edge: &Arc<Edge>,
    happening: &mut JoinHandle<()>,
) -> Vec<JoinHandle<()>> {
    let mut clients = Vec::new();
    while !happening.is_finished() && !panicked() {
        sleep(sim.dice.ms(&[2, 50, 400, 2_500])).await;
        // Often many at once.
        let many = if sim.dice.one_in(5) { 1 + sim.dice.below(9) } else { 1 };
        let first = Wanted::any(sim);
        let host = first.host;
        clients.push(tokio::spawn(Request::new(sim, edge, &first).run(first)));
        for _ in 1..many {
            let wanted = Wanted { host, ..Wanted::any(sim) };
            clients.push(tokio::spawn(Request::new(sim, edge, &wanted).run(wanted)));
        }
        sim.check(edge);
    }
    clients
}

async fn all_end(sim: &Sim, clients: Vec<JoinHandle<()>>) {
    let all = async {
        for client in clients {
            let _ = client.await;
        }
    };
    if tokio::time::timeout(ALL_END_WITHIN, all).await.is_err() && !panicked() {
        let open: Vec<_> = sim.rows().iter().filter(|(_, r)| r.open).map(|(n, _)| *n).collect();
        sim.broken(format!("{open:?} do not end"));
    }
}

/// A request to each host that has an owner.
async fn one_each(sim: &Arc<Sim>, edge: &Arc<Edge>) -> Vec<u64> {
    let mut last = Vec::new();
    for host in HOSTS {
        if sim.snapshots.load().host(host).is_none() {
            continue;
        }
        let wanted = Wanted::page(host);
        let request = Request::new(sim, edge, &wanted);
        last.push(request.number());
        tokio::spawn(request.run(wanted));
    }
    last
}
