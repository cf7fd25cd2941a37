//! The order of a thread's work. Tokio runs tasks in the order in which they became ready, so a wave
//! of new connections, of large answers or of bodies that drip would have a hot request wait behind
//! all of it. Here such work gives way: between two looks at the sockets it runs for [`A_PASS`], and
//! what is left waits for the next pass. What is urgent waits for one pass at most.
//!
//! Nothing starves: what gives way has at least a fifth of the time ([`A_SHARE`]), and in each pass
//! what is new and what is large have turns alternately, each in the order in which it came. When
//! nothing urgent is there, passes follow each other at once, at the price of one look at the sockets
//! each. What is urgent pays for one atomic load.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tokio::sync::Notify;

use crate::clock::{Clock, Mono};

/// How long what gives way runs between two looks at the sockets, for each thread; a turn that has
/// begun is finished. One or two turns of the usual length.
const A_PASS: Duration = Duration::from_micros(25);

/// Of the time since the last pass began, it has at least one part in so many.
const A_SHARE: u32 = 4;

/// Whether a connection's work is urgent. It is while a request of usual size is answered on a
/// connection that was answered before.
#[derive(Debug, Default)]
pub struct Urgency(AtomicU8);

impl Urgency {
    /// A request was answered on its connection.
    const PROVED: u8 = 1;
    /// More of the request is awaited.
    const AWAITED: u8 = 2;
    /// The request was held, or its answer is large.
    const TIME: u8 = 4;
    /// It accepts connections.
    const ACCEPTS: u8 = 8;

    /// Of one who accepts connections: a queue of its own, however many of them wait.
    pub fn of_acceptor() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(Self::ACCEPTS)))
    }

    /// Of a stream that begins on an HTTP/2 connection.
    pub fn of_stream(connection: &Self) -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(connection.0.load(Ordering::Relaxed) & Self::PROVED)))
    }

    /// Whether the connection's work goes first.
    pub fn is_urgent(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::PROVED
    }

    /// A request was answered, and nothing of another one has come.
    pub fn answered(&self) {
        self.0.store(Self::PROVED, Ordering::Relaxed);
    }

    /// Whether more of the request is awaited.
    pub fn awaits(&self, awaits: bool) {
        if awaits {
            self.0.fetch_or(Self::AWAITED, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!Self::AWAITED, Ordering::Relaxed);
        }
    }

    /// The request has to wait for its app, or its answer is large: until the next one there is time.
    pub fn has_time(&self) {
        self.0.fetch_or(Self::TIME, Ordering::Relaxed);
    }

    /// Which of [`State::queues`] it waits in.
    fn queue(&self) -> usize {
        match self.0.load(Ordering::Relaxed) {
            Self::ACCEPTS => 2,
            state if state & (Self::AWAITED | Self::TIME) != 0 => 1,
            _ => 0,
        }
    }
}

/// The turns of what gives way on one runtime. Clones share them.
#[derive(Clone)]
pub struct Turns(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    threads: u32,
    state: Mutex<State>,
    begin: Notify,
}

#[derive(Default)]
struct State {
    /// What is left of the pass.
    left: Duration,
    pacer: Pacer,
    /// When it began, or a task took a turn after all had slept.
    began: Mono,
    /// What is new, what is large or slow, and who accepts. One ticket for each task that waits.
    queues: [VecDeque<Arc<Ticket>>; 3],
    /// The queue that was served last.
    last: usize,
}

#[derive(Default, PartialEq)]
enum Pacer {
    #[default]
    Unborn,
    Asleep,
    Awake,
}

/// A task's place in the queue.
#[derive(Default)]
struct Ticket {
    state: AtomicU8,
    waker: AtomicWaker,
}

const QUEUED: u8 = 1;
const GRANTED: u8 = 2;

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("waiting", &self.0.lock().waiting()).finish_non_exhaustive()
    }
}

impl Turns {
    /// For a runtime of `threads` threads, on which it is used.
    pub fn new(threads: usize, clock: Arc<dyn Clock>) -> Self {
        let threads = u32::try_from(threads.max(1)).unwrap_or(u32::MAX);
        let state = State { left: A_PASS.saturating_mul(threads), ..State::default() };
        Self(Arc::new(Inner { clock, threads, state: Mutex::new(state), begin: Notify::new() }))
    }

    /// Runs `work`, which gives way unless `urgency` says that it is urgent.
    pub fn run<F: Future>(&self, urgency: Arc<Urgency>, work: F) -> Turned<F> {
        Turned { work, urgency, turns: Arc::clone(&self.0), ticket: None }
    }
}

pin_project! {
    /// See [`Turns::run`].
    pub struct Turned<F> {
        #[pin]
        work: F,
        urgency: Arc<Urgency>,
        turns: Arc<Inner>,
        ticket: Option<Arc<Ticket>>,
    }
}

impl<F: Future> Future for Turned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.urgency.is_urgent() {
            return this.work.poll(cx);
        }
        if !this.turns.may_run(this.ticket, this.urgency.queue(), cx) {
            return Poll::Pending;
        }
        let began = this.turns.clock.now();
        let outcome = this.work.poll(cx);
        this.turns.ran(began);
        outcome
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves a state that is whole: each change is a few assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn, or a place in the queue.
    fn may_run(
        self: &Arc<Self>,
        ticket: &mut Option<Arc<Ticket>>,
        queue: usize,
        cx: &mut Context<'_>,
    ) -> bool {
        if let Some(ticket) = &ticket
            && ticket.state.load(Ordering::Acquire) != 0
        {
            // Registered before the state is read: a grant in between is seen here or wakes.
            ticket.waker.register(cx.waker());
            let granted =
                ticket.state.compare_exchange(GRANTED, 0, Ordering::AcqRel, Ordering::Acquire);
            return granted.is_ok();
        }
        let mut state = self.lock();
        let pacer = std::mem::replace(&mut state.pacer, Pacer::Awake);
        if pacer != Pacer::Awake {
            state.began = self.clock.now();
            self.begin.notify_one();
        }
        if pacer == Pacer::Unborn {
            tokio::spawn(Arc::clone(self).pace());
        }
        if !state.left.is_zero() && state.waiting() == 0 {
            return true;
        }
        let ticket = ticket.get_or_insert_default();
        ticket.waker.register(cx.waker());
        ticket.state.store(QUEUED, Ordering::Release);
        state.queues[queue].push_back(Arc::clone(ticket));
        false
    }

    /// A turn that began then is over; the next one may have what is left of the pass.
    fn ran(&self, began: Mono) {
        let took = self.clock.now().since(began);
        let mut state = self.lock();
        state.left = state.left.saturating_sub(took);
        if state.left.is_zero() {
            return;
        }
        let next = state.next();
        drop(state);
        if let Some(next) = next {
            next.grant();
        }
    }

    /// Once a turn was taken: begins a pass whenever the sockets were looked at and everything that
    /// is ready has run, for as long as a task waits for it.
    async fn pace(self: Arc<Self>) {
        loop {
            self.begin.notified().await;
            loop {
                // Goes on after the next look at the sockets,
                tokio::task::yield_now().await;
                // and then behind all that is ready.
                behind().await;
                if !self.begin_pass() {
                    break;
                }
            }
        }
    }

    fn begin_pass(&self) -> bool {
        let now = self.clock.now();
        let mut state = self.lock();
        let share = now.since(state.began) / A_SHARE;
        (state.began, state.left) = (now, A_PASS.max(share).saturating_mul(self.threads));
        if state.waiting() == 0 {
            state.pacer = Pacer::Asleep;
            return false;
        }
        // One for each thread; each of them hands on to the next one.
        let granted: Vec<_> = (0..self.threads).map_while(|_| state.next()).collect();
        drop(state);
        for ticket in granted {
            ticket.grant();
        }
        true
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// Takes the first one whose task still lives.
    fn next(&mut self) -> Option<Arc<Ticket>> {
        while self.waiting() > 0 {
            self.last = (self.last + 1) % self.queues.len();
            if let Some(ticket) = self.queues[self.last].pop_front()
                && Arc::strong_count(&ticket) > 1
            {
                return Some(ticket);
            }
        }
        None
    }
}

impl Ticket {
    fn grant(&self) {
        self.state.store(GRANTED, Ordering::Release);
        self.waker.wake();
    }
}

/// Lets everything run once that is ready on this thread.
pub fn behind() -> impl Future<Output = ()> {
    let mut been = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut been, true) {
            return Poll::Ready(());
        }
        // A task that is woken while it runs comes last.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::clock::ManualClock;

    /// What ran, in its order.
    #[derive(Clone, Default)]
    struct Order(Arc<Mutex<Vec<&'static str>>>);

    impl Order {
        fn add(&self, what: &'static str) {
            self.0.lock().unwrap().push(what);
        }
        fn before(&self, what: &str) -> Vec<&'static str> {
            let all = self.0.lock().unwrap();
            all.iter().take_while(|w| **w != what).copied().collect()
        }
    }

    fn urgent() -> Arc<Urgency> {
        let urgency = Arc::<Urgency>::default();
        urgency.answered();
        urgency
    }

    fn large() -> Arc<Urgency> {
        let urgency = Arc::<Urgency>::default();
        urgency.has_time();
        urgency
    }

    /// On one thread: `first` makes tasks, all of which are ready before one of them runs.
    fn on_one_thread<F: Future<Output = ()> + Send + 'static>(
        first: impl FnOnce(Turns, Arc<ManualClock>) -> F + Send + 'static,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let clock = Arc::new(ManualClock::default());
        let turns = Turns::new(1, Arc::clone(&clock) as _);
        let all = runtime.spawn(async move { first(turns, clock).await });
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await })
            .unwrap()
            .unwrap();
    }

    #[test]
    fn what_is_urgent_is_beside_what_is_new_and_not_behind_it() {
        on_one_thread(|turns, clock| async move {
            let order = Order::default();
            let mut tasks = Vec::new();
            for _ in 0..200 {
                let (order, clock) = (order.clone(), Arc::clone(&clock));
                // Each turn is a pass.
                let work = async move {
                    clock.advance(A_PASS);
                    order.add("new");
                };
                tasks.push(tokio::spawn(turns.run(Arc::default(), work)));
            }
            let hot = order.clone();
            tasks.push(tokio::spawn(turns.run(urgent(), async move {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                hot.add("urgent");
            })));
            for task in tasks {
                task.await.unwrap();
            }
            let before = order.before("urgent").len();
            assert!(before <= 25, "{before} of 200 ran before a request had looked ten times");
            assert_eq!(order.0.lock().unwrap().len(), 201);
        });
    }

    #[test]
    fn what_gives_way_has_its_share_beside_what_is_always_ready() {
        on_one_thread(|turns, clock| async move {
            let (done, polls) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(0)));
            let mut busy = Vec::new();
            for _ in 0..100 {
                let (done, polls, clock) =
                    (Arc::clone(&done), Arc::clone(&polls), Arc::clone(&clock));
                busy.push(tokio::spawn(turns.run(urgent(), async move {
                    while done.load(Ordering::Relaxed) == 0 {
                        polls.fetch_add(1, Ordering::Relaxed);
                        clock.advance(A_PASS);
                        behind().await;
                    }
                })));
            }
            let mut tasks = Vec::new();
            for _ in 0..100 {
                let clock = Arc::clone(&clock);
                let work = async move { clock.advance(A_PASS) };
                tasks.push(tokio::spawn(turns.run(Arc::default(), work)));
            }
            for task in tasks {
                task.await.unwrap();
            }
            done.store(1, Ordering::Relaxed);
            for task in busy {
                task.await.unwrap();
            }
            // One in five is 400; one in each round would be 10,000.
            let polls = polls.load(Ordering::Relaxed);
            assert!(polls <= 1500, "100 turns took {polls} turns of what is always ready");
        });
    }

    #[test]
    fn a_new_connection_is_not_behind_all_large_answers_nor_they_behind_new_connections() {
        on_one_thread(|turns, clock| async move {
            let order = Order::default();
            let mut tasks = Vec::new();
            let classes = [("large", large as fn() -> _), ("new", Arc::default), ("large", large)];
            for (name, urgency) in classes {
                for _ in 0..50 {
                    let (order, clock) = (order.clone(), Arc::clone(&clock));
                    let work = async move {
                        clock.advance(A_PASS);
                        order.add(name);
                    };
                    tasks.push(tokio::spawn(turns.run(urgency(), work)));
                }
            }
            for task in tasks {
                task.await.unwrap();
            }
            let all = order.0.lock().unwrap().clone();
            // The first few ran before the others had come.
            let large = all[10..60].iter().filter(|w| **w == "large").count();
            assert!((20..=30).contains(&large), "{large} of 50: {all:?}");
        });
    }

    #[test]
    fn a_task_that_ended_in_the_queue_keeps_no_other_waiting() {
        on_one_thread(|turns, clock| async move {
            let mut tasks = Vec::new();
            for _ in 0..100 {
                let clock = Arc::clone(&clock);
                let work = async move { clock.advance(A_PASS) };
                tasks.push(tokio::spawn(turns.run(Arc::default(), work)));
            }
            // All have been polled once, and most wait.
            behind().await;
            behind().await;
            let waiting = turns.0.lock().waiting();
            assert!(waiting > 50, "{waiting}");
            for task in tasks.drain(..99) {
                task.abort();
            }
            tasks.remove(0).await.unwrap();
            while turns.0.lock().pacer != Pacer::Asleep {
                tokio::task::yield_now().await;
            }
            assert_eq!(turns.0.lock().waiting(), 0);
        });
    }

    /// Several threads, tasks of every kind that change their urgency from elsewhere, wait, are woken
    /// from elsewhere and end in the queue: each that is left runs to its end, and all is quiet then.
    #[test]
    fn no_wake_is_lost_among_threads() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
        let runtime = runtime.unwrap();
        let turns = Turns::new(4, Arc::new(crate::clock::SystemClock::new()));
        let all = turns.clone();
        let storm = runtime.spawn(async move {
            for round in 0..20_u64 {
                let mut tasks = Vec::new();
                for n in 0..300_u64 {
                    let urgency = [Arc::default(), urgent(), large(), Urgency::of_acceptor()]
                        [(n % 4) as usize]
                        .clone();
                    let from_elsewhere = Arc::clone(&urgency);
                    let (wake, woken) = tokio::sync::oneshot::channel::<()>();
                    let task = tokio::spawn(all.run(urgency, async move {
                        for _ in 0..n % 7 {
                            behind().await;
                        }
                        let _ = woken.await;
                        tokio::task::yield_now().await;
                    }));
                    if (n + round) % 11 == 0 {
                        task.abort();
                    } else {
                        tasks.push(task);
                    }
                    tokio::spawn(async move {
                        if n % 3 == 0 {
                            from_elsewhere.answered();
                        } else if n % 3 == 1 {
                            from_elsewhere.awaits(true);
                        }
                        let _ = wake.send(());
                    });
                }
                for task in tasks {
                    task.await.unwrap();
                }
            }
            while all.0.lock().pacer != Pacer::Asleep {
                tokio::task::yield_now().await;
            }
            assert_eq!(all.0.lock().waiting(), 0);
        });
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(60), storm).await })
            .expect("a task was never woken")
            .unwrap();
    }

    #[test]
    fn a_request_is_urgent_once_one_was_answered_and_while_it_is_small() {
        let urgency = Urgency::default();
        assert!(!urgency.is_urgent(), "nothing was answered");
        urgency.awaits(true);
        urgency.awaits(false);
        assert!(!urgency.is_urgent());
        urgency.answered();
        assert!(urgency.is_urgent());
        urgency.awaits(true);
        assert!(!urgency.is_urgent() && urgency.queue() == 1);
        urgency.awaits(false);
        assert!(urgency.is_urgent() && urgency.queue() == 0);
        urgency.has_time();
        urgency.awaits(false);
        assert!(!urgency.is_urgent() && urgency.queue() == 1);
        urgency.answered();
        assert!(urgency.is_urgent());
    }
}
