//! A process works on the ledger over RocksDB, several clients to a key, and is killed; the next one
//! goes on with the same keys. All that was asked and answered, over all these lives, must have an
//! order in which it is true ([`super::history`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vango_edge::clock::{Clock, Entropy, SeededEntropy, SystemClock};
use vango_edge::ledger::{Audit, AuditLimits, Ledger, LedgerLimits, Sending, Taken};
use vango_edge::lifecycle::idempotency::{
    AttemptOutcome, Claim, ExistingRecord, Holder, Resolution,
};
use vango_edge::record::ledger::AttemptState;
use vango_edge::store::{Options, RocksStore, StateStore};

use super::history::{Answer, Ask, Client, Seen, State};
use crate::{claim, process};

const KEYS: usize = 12;
const CLIENTS: usize = 4;
/// Things that a client does in one life, if it is not killed before.
const TURNS: usize = 40;
/// What another process of the same test is told to do.
const SEED: &str = "VANGO_EDGE_TEST_HISTORY_SEED";

/// `VANGO_EDGE_TEST_SEED` replays the moments of kills and what clients do; how their work interleaves
/// is the machine's. `VANGO_EDGE_TEST_LIVES` makes it longer.
#[tokio::test]
async fn what_was_recorded_over_kills_is_linearizable() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |s| s.parse().unwrap());
    let (seed, lives) = (setting("VANGO_EDGE_TEST_SEED", 1), setting("VANGO_EDGE_TEST_LIVES", 5));
    println!("seed {seed}, {lives} lives");
    let entropy = SeededEntropy::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut keys = vec![Seen::default(); KEYS];
    for life in 0..lives {
        let mut child = process::start_with(
            "ledger::kill::child_works",
            dir.path(),
            &[(SEED, &(seed * 1_000_000 + life).to_string())],
        );
        let kill_after = 50 + entropy.next_u64() % 2500;
        let mut lines = 0;
        while let Some(line) = child.next_line() {
            note(&mut keys, &line);
            lines += 1;
            if lines == kill_after {
                // What it wrote before it died is still read from the pipe.
                child.kill();
            }
        }
        child.kill();
        for key in &mut keys {
            key.crashed();
        }
    }
    let (ledger, _) = open(dir.path(), u64::MAX >> 32);
    ledger.recover().await.unwrap();
    for (n, key) in keys.iter_mut().enumerate() {
        key.asked(1, Ask::Look);
        let seen = ledger.get(&claim(&format!("k{n}"), "b", "").at).await.unwrap();
        key.answered(
            1,
            match seen.map(|s| s.record) {
                Some(r) => Answer::Found(state(r.state.name()), r.attempt),
                None => Answer::Found(State::Gone, 0),
            },
        );
    }
    let operations: usize = keys.iter().map(Seen::len).sum();
    for (n, key) in keys.iter().enumerate() {
        assert!(key.is_linearizable(), "key {n}: {key:#?}");
    }
    let (winners, unanswered) = assert_mutations_are_refused(&keys);
    println!(
        "{operations} operations on {KEYS} keys over {lives} kills: {winners} won, {unanswered} \
         without an answer; linearizable"
    );
    assert!(winners > 0 && unanswered > 0, "it was about nothing");
}

/// The same histories, with one answer changed to what must not happen.
fn assert_mutations_are_refused(keys: &[Seen]) -> (usize, usize) {
    let (mut winners, mut unanswered, mut refused) = (0, 0, 0);
    for key in keys {
        let mut changed = key.clone();
        let answers: Vec<_> = changed.answers_mut().map(|step| step.answer).collect();
        unanswered += answers.iter().filter(|a| **a == Answer::Never).count();
        let won = answers.iter().find(|a| matches!(a, Answer::Held(n) if *n > 0)).copied();
        winners += answers.iter().filter(|a| matches!(a, Answer::Held(n) if *n > 0)).count();
        // A second winner of the same attempt.
        let loser = changed.answers_mut().find(|step| {
            matches!(step.ask, Ask::Reserve | Ask::Forward)
                && matches!(step.answer, Answer::Busy | Answer::Found(..))
        });
        if let (Some(won), Some(loser)) = (won, loser) {
            (loser.ask, loser.answer) = (Ask::Forward, won);
            assert!(!changed.is_linearizable(), "two winners are taken: {changed:#?}");
            refused += 1;
        }
        // What was sent is forgotten.
        if won.is_some() {
            let mut forgotten = key.clone();
            forgotten.asked(1, Ask::Look);
            forgotten.answered(1, Answer::Found(State::Gone, 0));
            assert!(!forgotten.is_linearizable(), "a lost record is taken: {forgotten:#?}");
            refused += 1;
        }
    }
    assert!(refused > 0, "nothing to change");
    (winners, unanswered)
}

/// A line of the child's: `ask KEY CLIENT WHAT…` or `answer KEY CLIENT WHAT…`.
fn note(keys: &mut [Seen], line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<u32>().unwrap();
    let (key, by) = (&mut keys[number(1) as usize], number(2) as Client);
    match words[0] {
        "ask" => key.asked(
            by,
            match words[3] {
                "reserve" => Ask::Reserve,
                "forward" => Ask::Forward,
                "send" => Ask::Send,
                "complete" => Ask::Complete,
                "let-go" => Ask::LetGo,
                "look" => Ask::Look,
                "resolve" => Ask::Resolve { attempt: number(4), carried_out: words[5] == "true" },
                other => panic!("{other}"),
            },
        ),
        "answer" => key.answered(
            by,
            match words[3] {
                "held" => Answer::Held(number(4)),
                "busy" => Answer::Busy,
                "done" => Answer::Done(words[4] == "true"),
                "found" => Answer::Found(state(words[4]), number(5)),
                other => panic!("{other}"),
            },
        ),
        other => panic!("{other}"),
    }
}

fn state(name: &str) -> State {
    match name {
        "gone" => State::Gone,
        "reserved" => State::Reserved,
        "forwarded" => State::Forwarded,
        "completed" => State::Completed,
        "completed_unreplayable" => State::Unreplayable,
        "unknown" => State::Unknown,
        "released" => State::Released,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of another test, which starts it: cargo test --workspace --test ledger what_was_recorded_over_kills_is_linearizable"]
async fn child_works() {
    let Some(dir) = process::dir() else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let (ledger, audit) = open(&dir, seed);
    ledger.recover().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for key in 0..KEYS {
        for client in 1..=CLIENTS {
            let (ledger, audit) = (Arc::clone(&ledger), Arc::clone(&audit));
            let entropy = SeededEntropy::new(seed + (key * 100 + client) as u64);
            let at = claim(&format!("k{key}"), "b", "").at;
            let one = One { ledger, audit, entropy, key, client, at };
            tasks.spawn(async move { one.work(seed).await });
        }
    }
    tasks.join_all().await;
}

fn open(dir: &Path, run: u64) -> (Arc<Ledger>, Arc<Audit>) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let options = Options { watch_revisions: 1, watch_bytes: 0 };
    let store: Arc<dyn StateStore> =
        Arc::new(RocksStore::open(dir, Arc::clone(&clock), options).unwrap());
    let holder = Holder { node: "node-1".into(), run: run.to_string() };
    let limits = LedgerLimits { max_records: 1000, max_response: 65_536 };
    let runtime = tokio::runtime::Handle::current();
    let kept = AuditLimits { max_rows: 1000, max_age: Duration::from_secs(3600) };
    let audit = Audit::new(Arc::clone(&store), Arc::clone(&clock), kept, run << 32);
    (Ledger::new(store, clock, holder, limits, runtime), audit)
}

/// One client of one key. What it asks and what it is answered is said as it happens.
struct One {
    ledger: Arc<Ledger>,
    audit: Arc<Audit>,
    entropy: SeededEntropy,
    key: usize,
    client: Client,
    at: String,
}

impl One {
    fn asks(&self, what: &str) {
        process::say(&format!("ask {} {} {what}", self.key, self.client));
    }

    fn answered(&self, what: &str) {
        process::say(&format!("answer {} {} {what}", self.key, self.client));
    }

    fn one_in(&self, n: u64) -> bool {
        self.entropy.next_u64().is_multiple_of(n)
    }

    async fn work(&self, seed: u64) {
        // The attempt that this client last heard of.
        let mut heard = 1;
        for turn in 0..TURNS {
            let claim =
                claim(&format!("k{}", self.key), "b", &format!("{seed}-{}-{turn}", self.client));
            match self.entropy.next_u64() % 8 {
                0 => {
                    self.asks("look");
                    let seen = self.ledger.get(&self.at).await.unwrap();
                    match seen {
                        Some(seen) => self.met(&seen, &mut heard),
                        None => self.answered("found gone 0"),
                    }
                }
                1 | 2 => self.resolve(heard).await,
                3 | 4 => self.reserve(&claim, &mut heard).await,
                _ => {
                    self.asks("forward");
                    match self.ledger.forward(None, &claim, true, None).await.unwrap() {
                        Taken::Held(sending) => self.end(sending, &claim, &mut heard).await,
                        Taken::Found(seen) => self.met(&seen, &mut heard),
                    }
                }
            }
        }
    }

    fn met(&self, seen: &ExistingRecord, heard: &mut u32) {
        *heard = seen.record.attempt;
        match seen.alive {
            true => self.answered("busy"),
            false => {
                let (name, attempt) = (seen.record.state.name(), seen.record.attempt);
                self.answered(&format!("found {name} {attempt}"));
            }
        }
    }

    async fn resolve(&self, attempt: u32) {
        // Seldom carried out: that ends the key.
        let carried_out = self.one_in(40);
        self.asks(&format!("resolve {attempt} {carried_out}"));
        let said = match carried_out {
            true => Resolution::CarriedOut,
            false => Resolution::NotCarriedOut,
        };
        let taken = self.ledger.resolve(&self.audit, &self.at, attempt, said, "operator").await;
        self.answered(&format!("done {}", taken.unwrap().is_some()));
    }

    async fn reserve(&self, claim: &Claim, heard: &mut u32) {
        self.asks("reserve");
        let reservation = match self.ledger.reserve(claim, true).await.unwrap() {
            Taken::Found(seen) => return self.met(&seen, heard),
            Taken::Held(reservation) => reservation,
        };
        self.answered("held 0");
        if self.one_in(2) {
            self.asks("let-go");
            drop(reservation);
            self.until_let_go(claim).await;
            return;
        }
        self.asks("send");
        match self.ledger.forward(Some(reservation), claim, true, None).await.unwrap() {
            Taken::Held(sending) => self.end(sending, claim, heard).await,
            Taken::Found(seen) => panic!("its own reservation was taken: {seen:?}"),
        }
    }

    async fn end(&self, sending: Sending, claim: &Claim, heard: &mut u32) {
        *heard = sending.attempt();
        self.answered(&format!("held {heard}"));
        // Seldom: that ends the key.
        if self.one_in(40) {
            self.asks("complete");
            sending.ended(AttemptOutcome::Whole { status: 200 }, None).await;
            self.answered("done true");
        } else {
            self.asks("let-go");
            drop(sending);
            self.until_let_go(claim).await;
        }
    }

    /// What is dropped is written without the client that dropped it; this one waits until it is free, or
    /// another's.
    async fn until_let_go(&self, claim: &Claim) {
        loop {
            let met = self.ledger.get(&self.at).await.unwrap();
            let open = met.filter(|met| met.record.state.open());
            let ended = match open {
                Some(met) => met.record.claim != claim.request,
                None => !self.ledger.works_on(&self.at),
            };
            if ended {
                return self.answered("done true");
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Every name that the child may say is one that the parent reads.
#[test]
fn states_have_the_ledgers_names() {
    use AttemptState as S;
    for of in [S::Reserved, S::Forwarded, S::Completed, S::CompletedUnreplayable, S::Unknown] {
        state(of.name());
    }
    state(S::Released.name());
}
