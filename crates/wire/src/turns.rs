//! The order of a thread's work. Tokio runs tasks in the order in which they became ready, so a wave
//! of new connections, of large answers or of bodies that drip would have a hot request wait behind
//! all of it. Here such work gives way: between two looks at the sockets it runs for [`A_PASS`], and
//! what is left waits for the next pass. What is urgent waits for one pass at most.
//!
//! Nothing starves: what gives way has at least a fifth of the time ([`A_SHARE`]), and in each pass
//! what is new and what is large have turns alternately, each in the order in which it came. When
//! nothing urgent is there, passes follow each other at once, at the price of one look at the sockets
//! each. What is urgent pays for one atomic load.
//!
//! Each thread has a line of its own. A task that another thread takes over keeps its place in the line
//! in which it waits, so that is the only time that two threads want one lock.
//!
//! What it saves and costs, on an Intel(R) Xeon(R) Processor with two virtual cores that others used too
//! (release, one thread unless said; medians of interleaved runs, between hours only ratios compare).
//! `SECONDS_EACH=1.5 scripts/bench/attacks 1 …`, five rounds, p99 of a hot request in ms, quiet and attacked:
//!
//! | | without | one line for all, passes of 25 µs | the same, another hour | this |
//! |---|---|---|---|---|
//! | 500 bodies that drip | 0.59, 4.31 | 0.61, 0.65 | 0.73, 0.68 | 0.69, 0.74 |
//! | connections opened and closed | 0.74, 1.05 | 0.65, 0.67 | 0.72, 0.75 | 0.76, 0.89 |
//! | slow readers | 0.61, 1.10 | 0.86, 0.84 | 0.73, 1.24 | 0.72, 1.50 |
//! | a flood of silent connections | 0.68, 0.92 | 0.64, 0.96 | 0.94, 1.15 | 0.88, 1.21 |
//!
//! So it earns its lines beside bodies that drip. Beside some 5,600 TLS handshakes a second (one recorded ClientHello,
//! sent again; no script here does that), which keep the thread busy,
//! a hot request's median was 1.54 ms without and 0.44 with one line, but its p99 6.6 and 15.8; in the other hour 0.72
//! and 25 with one line, 0.78 and 28 with this.
//!
//! Looks at the sockets for a request on a connection of its own (`perf stat -e syscalls:sys_enter_epoll_wait`,
//! three runs of two seconds): 0.1 without, 2.4 to 2.7 with one line, 1.0 to 1.5 with this. Its CPU (`wrk -c64 -H
//! 'Connection: close'`, fifteen rounds): without 0.89 × that with one line, this 0.96 ×; on two threads 0.85 and
//! 0.93; over TLS, ten rounds, 0.94 and 1.02. Single rounds were 0.55 to 1.7, and in six rounds beside a
//! compiler this was 1.03 ×: that it saves CPU beside one line is likely from the looks and not shown by these.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use vango_edge_core::clock::{Clock, Mono};

/// How long what gives way runs between two looks at the sockets; a turn that has begun is finished. A few
/// turns of the usual length, less than one TLS handshake. Each pass costs a look. Passes of 200 µs took 0.6 to 0.9
/// looks for a request on a connection of its own, and hot requests beside bodies that drip up to 4 ms.
const A_PASS: Duration = Duration::from_micros(100);

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

thread_local! {
    /// Of a thread that serves one runtime.
    static LINE: Arc<Line> = Arc::default();
}

/// What gives way on one thread.
#[derive(Default)]
struct Line(Mutex<State>);

#[derive(Default)]
struct State {
    /// What is left of the pass.
    left: Duration,
    /// A task begins passes, for as long as another one waits.
    paced: bool,
    /// When the pass began, or a task came to wait after none had.
    began: Mono,
    /// What is new, what is large or slow, and who accepts. One ticket for each task that waits.
    queues: [VecDeque<Arc<Ticket>>; 3],
    /// The queue that was served last.
    last: usize,
}

/// A task's place in a line.
struct Ticket {
    line: Arc<Line>,
    granted: AtomicBool,
    waker: AtomicWaker,
}

/// Runs `work`, which gives way unless `urgency` says that it is urgent. For a task of its own.
pub fn run<F: Future>(clock: &Arc<dyn Clock>, urgency: Arc<Urgency>, work: F) -> Turned<F> {
    Turned { work, urgency, clock: Arc::clone(clock), ticket: None }
}

pin_project! {
    /// See [`run`].
    pub struct Turned<F> {
        #[pin]
        work: F,
        urgency: Arc<Urgency>,
        clock: Arc<dyn Clock>,
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
        if let Some(ticket) = &this.ticket
            && !ticket.is_granted(cx)
        {
            return Poll::Pending;
        }
        let began = this.clock.now();
        let line = match this.ticket.take() {
            Some(granted) => Arc::clone(&granted.line),
            None => {
                let line = LINE.with(Arc::clone);
                *this.ticket = line.wait(this.urgency.queue(), this.clock, began, cx);
                if this.ticket.is_some() {
                    return Poll::Pending;
                }
                line
            }
        };
        let outcome = this.work.poll(cx);
        line.ran(this.clock.now().since(began));
        outcome
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves a state that is whole: each change is a few assignments.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the queue; none where there is a turn at once.
    fn wait(
        self: &Arc<Self>,
        queue: usize,
        clock: &Arc<dyn Clock>,
        now: Mono,
        cx: &mut Context<'_>,
    ) -> Option<Arc<Ticket>> {
        let mut state = self.lock();
        if !state.left.is_zero() && state.is_empty() {
            return None;
        }
        if !state.paced {
            (state.paced, state.began) = (true, now);
            tokio::spawn(Arc::clone(self).pace(Arc::clone(clock)));
        }
        let ticket = Ticket {
            line: Arc::clone(self),
            granted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        };
        ticket.waker.register(cx.waker());
        let ticket = Arc::new(ticket);
        state.queues[queue].push_back(Arc::clone(&ticket));
        Some(ticket)
    }

    /// A turn is over; the next one may have what is left of the pass.
    fn ran(&self, took: Duration) {
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

    /// Begins a pass whenever the sockets were looked at and everything that is ready has run, for as long
    /// as a task waits for it.
    async fn pace(self: Arc<Self>, clock: Arc<dyn Clock>) {
        loop {
            // Goes on after the next look at the sockets,
            tokio::task::yield_now().await;
            // and then behind all that is ready.
            behind().await;
            let Some(next) = self.begin_pass(clock.now()) else { return };
            next.grant();
        }
    }

    /// The first one that has a turn in it, who hands on to the next one.
    fn begin_pass(&self, now: Mono) -> Option<Arc<Ticket>> {
        let mut state = self.lock();
        let share = now.since(state.began) / A_SHARE;
        (state.began, state.left) = (now, A_PASS.max(share));
        let next = state.next();
        state.paced = next.is_some();
        next
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// Takes the first one whose task still lives.
    fn next(&mut self) -> Option<Arc<Ticket>> {
        while !self.is_empty() {
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
    fn is_granted(&self, cx: &mut Context<'_>) -> bool {
        // Registered before it is read: a grant in between is seen here or wakes.
        self.waker.register(cx.waker());
        self.granted.load(Ordering::Acquire)
    }

    fn grant(&self) {
        self.granted.store(true, Ordering::Release);
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
mod tests;
