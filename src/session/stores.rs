//! Asks an app's durable session store whether a session is there: one short question, under a
//! deadline, through a circuit for each environment. What cannot be answered is
//! [`StoreAnswer::Unavailable`], and the session starts fresh.
//!
//! A herd of sockets is no reason for that: at most [`AT_ONCE`] questions are open to a store at a time, the
//! others wait in order for as long as their sockets may, and a question's time begins when it is sent.
//! A store that is too slow for so many is asked fewer at a time, at last one ([`SHARES`]). A question that
//! timed out beside others is asked again; only one that timed out alone counts as a failed store. Time in
//! which the edge itself did not run is not counted against the store ([`patience`]).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::contract::SessionStore;
use crate::id::Environment;
use crate::lifecycle::affinity::SessionId;
use crate::lifecycle::resume::StoreAnswer;
use crate::snapshot::{AllocationView, EnvView};

use super::circuit::Circuit;

/// How long a store has for its answer, connecting included, from when it is asked.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// Questions that one environment's store is asked at a time.
pub const AT_ONCE: u32 = 32;
/// Permits of [`AT_ONCE`] that one question takes: with 1, 32 questions are open at a time; with 4, 8; with
/// 32, one. A timeout beside other questions moves one step to fewer at a time, and [`AT_ONCE`] answers in a
/// row move one step back.
const SHARES: [u32; 3] = [1, 4, AT_ONCE];

/// Reads an operator's secret now.
pub trait StoreSecrets: Send + Sync {
    /// The value of the secret `name` of `environment`.
    ///
    /// # Errors
    /// What is missing, by name, never by value.
    fn read(&self, environment: &Environment, name: &str) -> Result<String, String>;
}

/// Whether a session is stored.
pub struct Question<'a> {
    /// The environment whose session it is, with the contract that says where it is stored.
    pub view: &'a EnvView,
    /// The allocation that will take it; a runtime service over HTTP is asked there.
    pub target: &'a AllocationView,
    pub id: &'a SessionId,
}

/// Why a store gave no answer. For the operator; nothing of the URL or the session is in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// A secret is missing or is no URL.
    #[error("{0}")]
    Configured(String),
    /// It could not be reached, or said something else than yes or no.
    #[error("{0}")]
    Away(String),
}

/// A kind of store.
#[async_trait]
pub trait DurableStore: Send + Sync {
    /// Whether the session is there. May be dropped at any time.
    ///
    /// # Errors
    /// [`StoreFailure`]; the next call begins anew.
    async fn has(&self, question: &Question<'_>) -> Result<bool, StoreFailure>;
}

/// Every kind of store, behind circuits.
pub struct Stores {
    redis: Box<dyn DurableStore>,
    http: Box<dyn DurableStore>,
    clock: Arc<dyn Clock>,
    /// Of environments whose store failed last; as many as there are environments.
    circuits: Mutex<HashMap<Environment, Circuit>>,
    /// Of environments whose store is being asked.
    open: Mutex<HashMap<Environment, Arc<OpenQuestions>>>,
}

impl Stores {
    /// Stores of these adapters.
    pub fn new(
        redis: Box<dyn DurableStore>,
        http: Box<dyn DurableStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { redis, http, clock, circuits: Mutex::default(), open: Mutex::default() }
    }

    /// Asks as soon as few enough questions are open, which it waits for until `within` is over; the answer
    /// has [`DEADLINE`].
    pub async fn ask(&self, question: &Question<'_>, within: Duration) -> StoreAnswer {
        let store = match question.view.contract.state.as_ref().and_then(|s| s.store.as_ref()) {
            Some(SessionStore::Redis { .. }) => &self.redis,
            Some(SessionStore::Http { .. }) => &self.http,
            None => return StoreAnswer::NotAsked,
        };
        let environment = &question.view.environment;
        let open = self.open(environment);
        let until = Instant::now() + within;
        loop {
            let Some(share) = open.take(until).await else { return StoreAnswer::Unavailable };
            let now = self.clock.now();
            if !self.circuit(environment, |c| c.admit(now)) {
                return StoreAnswer::Unavailable;
            }
            let mut admitted = Admitted { stores: self, environment, reported: false };
            let answer = patience(DEADLINE, store.has(question)).await;
            let failure = match answer {
                Ok(Ok(there)) => {
                    admitted.reported = true;
                    self.circuit(environment, Circuit::answered);
                    open.answered();
                    return if there { StoreAnswer::Present } else { StoreAnswer::Absent };
                }
                Ok(Err(failure)) => failure.to_string(),
                Err(OutOfPatience) if share.alone() => format!("no answer within {DEADLINE:?}"),
                Err(OutOfPatience) => {
                    open.too_many(share.size);
                    continue;
                }
            };
            admitted.reported = true;
            let now = self.clock.now();
            self.circuit(environment, |c| c.failed(now));
            log::warn!("{environment}: session store: {failure}");
            return StoreAnswer::Unavailable;
        }
    }

    fn open(&self, environment: &Environment) -> Arc<OpenQuestions> {
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get(environment) {
            return Arc::clone(open);
        }
        // Stores that are not being asked now: the map stays as small as what is going on.
        all.retain(|_, open| Arc::strong_count(open) > 1);
        let open = Arc::new(OpenQuestions::new());
        all.insert(environment.clone(), Arc::clone(&open));
        open
    }

    fn circuit<T>(&self, environment: &Environment, f: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        let circuit = circuits.entry(environment.clone()).or_default();
        let out = f(circuit);
        if circuit.is_fresh() {
            circuits.remove(environment);
        }
        out
    }
}

/// How many questions may be open to one store.
struct OpenQuestions {
    places: Semaphore,
    /// Which of [`SHARES`] counts now.
    share: AtomicU32,
    /// Answers in a row since it last changed.
    answers: AtomicU32,
}

/// The part of [`AT_ONCE`] that an open question takes; given back when dropped.
struct Share<'a> {
    open: &'a OpenQuestions,
    size: u32,
    began_alone: bool,
    _places: SemaphorePermit<'a>,
}

impl OpenQuestions {
    fn new() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE as usize),
            share: AtomicU32::new(0),
            answers: AtomicU32::new(0),
        }
    }

    fn share(&self) -> u32 {
        SHARES[self.share.load(Ordering::Relaxed) as usize]
    }

    /// The next share that is free, none when there is none before `until`.
    async fn take(&self, until: Instant) -> Option<Share<'_>> {
        loop {
            let share = self.share();
            let places = timeout_at(until, self.places.acquire_many(share)).await.ok()?.ok()?;
            // The share may have grown while this one waited: then it waits again, for as much as others
            // take now.
            if share >= self.share() {
                let mut taken =
                    Share { open: self, size: share, began_alone: false, _places: places };
                taken.began_alone = taken.no_other_is_open();
                return Some(taken);
            }
        }
    }

    fn answered(&self) {
        if self.answers.fetch_add(1, Ordering::Relaxed) + 1 >= AT_ONCE {
            self.answers.store(0, Ordering::Relaxed);
            let less = |share: u32| share.checked_sub(1);
            let _ = self.share.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// A question had no answer in its time while others of `share` were open.
    fn too_many(&self, share: u32) {
        self.answers.store(0, Ordering::Relaxed);
        // All that were open at once run out of time together: one step for all of them.
        let more = |now: u32| {
            let last = SHARES.len() as u32 - 1;
            (SHARES[now as usize] == share && now < last).then_some(now + 1)
        };
        let _ = self.share.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }
}

impl Share<'_> {
    /// Whether no other question was open, neither at the beginning nor now: the store is slow by itself.
    fn alone(&self) -> bool {
        self.began_alone && self.no_other_is_open()
    }

    fn no_other_is_open(&self) -> bool {
        self.open.places.available_permits() + self.size as usize == AT_ONCE as usize
    }
}

/// The other side had its time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfPatience;

/// Waits for `answer` for so long, counted in slices: one in which this process did not get to run, since
/// the machine had other work, counts as one slice however long it took. An answer that came meanwhile
/// is taken before the next slice begins.
pub(super) async fn patience<T>(
    time: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, OutOfPatience> {
    const SLICES: u32 = 10;
    let mut answer = pin!(answer);
    for _ in 0..SLICES {
        if let Ok(answer) = tokio::time::timeout(time / SLICES, &mut answer).await {
            return Ok(answer);
        }
    }
    Err(OutOfPatience)
}

/// A call that was admitted and may be dropped before it ends.
struct Admitted<'a> {
    stores: &'a Stores,
    environment: &'a Environment,
    reported: bool,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.stores.circuit(self.environment, Circuit::abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::{ManualClock, Mono, Wall};
    use crate::id::{Digest, Epoch, Generation};
    use crate::lifecycle::affinity::FoundIn;
    use crate::record::{Allocation, AllocationState, Deployment, Record, RouteOwner, key};
    use crate::snapshot::{Change, Publisher};

    /// Answers as it is scripted, and then never.
    struct Scripted {
        answers: Mutex<Vec<Result<bool, StoreFailure>>>,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl DurableStore for Scripted {
        async fn has(&self, question: &Question<'_>) -> Result<bool, StoreFailure> {
            assert_eq!(question.id.expose(), "s-1");
            self.asked.fetch_add(1, Ordering::SeqCst);
            let next = self.answers.lock().unwrap().pop();
            match next {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    const LONG: Duration = Duration::from_secs(10);

    fn view() -> Arc<EnvView> {
        let environment: Environment = "a".parse().unwrap();
        let digest = Digest::from_bytes([1; 32]);
        let contract = "[app]\nname = \"a\"\n[process]\ncommand = [\"./a\"]\n[state]\nstore = { kind = \
                        \"http\", path = \"/s/{id}\" }\n";
        let deployment = Deployment {
            id: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: environment.clone(),
            digest,
            contract: contract.into(),
            created: Wall(0),
            files: 0,
            bytes: 0,
            assets: None,
            replaced: None,
            promoted_from: None,
            schema: None,
        };
        let owner = RouteOwner {
            host: "a.test".parse().unwrap(),
            path: "/".into(),
            environment: environment.clone(),
            deployment: deployment.id.clone(),
            digest,
            epoch: Epoch(1),
        };
        let allocation = Allocation {
            id: "al-aaaaaaaaaaaaaaaa".parse().unwrap(),
            environment: environment.clone(),
            generation: Generation(1),
            epoch: Epoch(1),
            digest,
            state: AllocationState::Ready,
            address: Some("127.0.0.1:1".parse().unwrap()),
            process: None,
            operation: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
            created: Wall(0),
            ready: Some(Wall(0)),
        };
        let records = [
            (key::deployment(&environment, &deployment.id), deployment.encode()),
            (key::owner(&owner.host, "/"), owner.encode()),
            (key::allocation(&environment, &allocation.id), allocation.encode()),
        ];
        let mut publisher = Publisher::new();
        let changes = records.iter().map(|(key, value)| Change { key, value: Some(value) });
        publisher.publish(changes, 1, Mono(1)).1.unwrap();
        let snapshot = publisher.reader().load().clone();
        Arc::clone(snapshot.environment(&environment).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_costs_its_deadline_three_times_and_is_asked_again_later() {
        let clock = Arc::new(ManualClock::new());
        let asked = Arc::new(AtomicUsize::new(0));
        let script = |answers| {
            Box::new(Scripted { answers: Mutex::new(answers), asked: Arc::clone(&asked) })
        };
        let away = || Err(StoreFailure::Away("it said 500".into()));
        // From the last to the first.
        let http = script(vec![Ok(true), away(), Ok(false), Ok(true)]);
        let stores = Stores::new(script(Vec::new()), http, clock.clone());
        let view = view();
        let id = SessionId::new("s-1", FoundIn::Query).unwrap();
        let ask = Question { view: &view, target: &view.ready[0], id: &id };
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Absent);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        // An answer closes the circuit; silence three times in a row opens it.
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        }
        assert_eq!(began.elapsed(), DEADLINE * 3);
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        assert_eq!((began.elapsed(), asked.load(Ordering::SeqCst)), (DEADLINE * 3, 7), "not asked");
        clock.advance(Duration::from_secs(1));
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Unavailable);
        assert_eq!(asked.load(Ordering::SeqCst), 8, "one finds out");
    }

    /// Answers after 20 ms, and counts how many ask at once.
    struct Slow(Arc<[AtomicUsize; 2]>);

    #[async_trait]
    impl DurableStore for Slow {
        async fn has(&self, _: &Question<'_>) -> Result<bool, StoreFailure> {
            let [now, most] = &*self.0;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(true)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_waits_for_its_turn_and_not_on_the_stores_time() {
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let store = || Box::new(Slow(Arc::clone(&counts)));
        let stores = Stores::new(store(), store(), Arc::new(ManualClock::new()));
        let view = view();
        let id = SessionId::new("s-1", FoundIn::Query).unwrap();
        let ask = Question { view: &view, target: &view.ready[0], id: &id };
        let began = tokio::time::Instant::now();
        let herd = futures_util::future::join_all((0..2000).map(|_| stores.ask(&ask, LONG)));
        assert!(herd.await.iter().all(|a| *a == StoreAnswer::Present));
        // More than twice the store's own time, of which each question took 20 ms.
        assert!(began.elapsed() > DEADLINE * 2);
        assert_eq!(counts[1].load(Ordering::SeqCst), AT_ONCE as usize);
        // One that finds no share in its own time is not asked, and is no failure of the store's.
        let mut late = futures_util::future::join_all(
            (0..=AT_ONCE).map(|_| stores.ask(&ask, Duration::from_millis(10))),
        )
        .await;
        assert_eq!(late.pop(), Some(StoreAnswer::Unavailable));
        assert!(late.iter().all(|a| *a == StoreAnswer::Present));
        assert_eq!(stores.ask(&ask, LONG).await, StoreAnswer::Present);
    }

    /// Answers one after the other, as an app that a busy machine gives little time.
    struct OneByOne(tokio::sync::Mutex<()>, Duration);

    #[async_trait]
    impl DurableStore for OneByOne {
        async fn has(&self, _: &Question<'_>) -> Result<bool, StoreFailure> {
            let _next = self.0.lock().await;
            tokio::time::sleep(self.1).await;
            Ok(true)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_too_slow_for_many_is_asked_fewer_at_a_time_and_loses_no_session() {
        for ms in [20, 100, 400] {
            let store =
                || Box::new(OneByOne(tokio::sync::Mutex::default(), Duration::from_millis(ms)));
            let stores = Stores::new(store(), store(), Arc::new(ManualClock::new()));
            let view = view();
            let id = SessionId::new("s-1", FoundIn::Query).unwrap();
            let ask = Question { view: &view, target: &view.ready[0], id: &id };
            let within = Duration::from_millis(ms) * 300 + LONG;
            let herd = futures_util::future::join_all((0..200).map(|_| stores.ask(&ask, within)));
            let present = herd.await.iter().filter(|a| **a == StoreAnswer::Present).count();
            assert_eq!(present, 200, "at {ms} ms each");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_learns_within_seconds_that_its_store_is_away() {
        let asked = Arc::new(AtomicUsize::new(0));
        let silent = || Box::new(Scripted { answers: Mutex::default(), asked: Arc::clone(&asked) });
        let stores = Stores::new(silent(), silent(), Arc::new(ManualClock::new()));
        let view = view();
        let id = SessionId::new("s-1", FoundIn::Query).unwrap();
        let ask = Question { view: &view, target: &view.ready[0], id: &id };
        let began = Instant::now();
        let herd = futures_util::future::join_all((0..2000).map(|_| stores.ask(&ask, LONG)));
        assert!(herd.await.iter().all(|a| *a == StoreAnswer::Unavailable));
        // All at once, a few at once, and three alone, which open the circuit.
        assert_eq!(began.elapsed(), DEADLINE * 5);
        assert_eq!(asked.load(Ordering::SeqCst), 32 + 8 + 3);
    }

    #[tokio::test]
    async fn time_in_which_the_edge_did_not_run_is_not_the_stores() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let busy = async {
            // This thread is the only one: nothing else runs meanwhile.
            std::thread::sleep(DEADLINE * 2);
            let _ = send.send(());
        };
        let (answer, ()) = tokio::join!(patience(DEADLINE, receive), busy);
        assert_eq!(answer, Ok(Ok(())));
        assert_eq!(
            patience(Duration::from_millis(20), std::future::pending::<()>()).await,
            Err(OutOfPatience)
        );
    }
}
