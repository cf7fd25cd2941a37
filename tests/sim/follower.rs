//! The task that follows the store, made so that it can go on in the middle of another one's decision: as
//! another thread's would. What reads the clock or draws a number at the gate is such a middle; there the
//! gate holds no lock.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use vango_edge::clock::{Clock, Entropy, Mono, Wall};

use crate::world::Sim;

type Following = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
pub struct Follower {
    following: Mutex<Option<Following>>,
    waker: Mutex<Option<Waker>>,
    hurry: AtomicBool,
}

impl Follower {
    /// Runs `following` for as long as this is polled.
    pub async fn run(&self, following: Following) {
        *self.following.lock().unwrap() = Some(following);
        std::future::poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            self.poll(cx)
        })
        .await;
    }

    /// What is on its way to it counts as there.
    pub fn is_in_a_hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Not in the middle of itself.
        let Ok(mut following) = self.following.try_lock() else { return Poll::Pending };
        let Some(future) = following.as_mut() else { return Poll::Ready(()) };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            *following = None;
        }
        polled
    }

    /// Publishes now whatever is committed.
    fn interrupt(&self) {
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            self.hurry.store(true, Ordering::Relaxed);
            let _ = self.poll(&mut Context::from_waker(&waker));
            self.hurry.store(false, Ordering::Relaxed);
        }
    }
}

/// The gate's clock and randomness: where it looks at one, something else may come in between.
pub struct Between(pub Arc<Sim>);

impl Between {
    fn between(&self) {
        let sim = &self.0;
        if !sim.dice.one_in(4) {
            return;
        }
        let before = sim.snapshots.load().revision();
        sim.follower.interrupt();
        if sim.snapshots.load().revision() != before {
            sim.happened("a snapshot was replaced in the middle of a decision");
        }
    }
}

impl Clock for Between {
    fn now(&self) -> Mono {
        self.between();
        self.0.clock.now()
    }
    fn wall(&self) -> Wall {
        self.0.clock.wall()
    }
}

impl Entropy for Between {
    fn next_u64(&self) -> u64 {
        self.between();
        self.0.entropy.next_u64()
    }
}
