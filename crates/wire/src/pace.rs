//! What keeps one connection from taking a thread, and from keeping what it does not need.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Bytes that a connection writes before the others have their turn, however fast its client takes
/// them: a request beside a few hundred large answers waits for so much of each, not for megabytes.
pub const A_TURN: usize = 64 * 1024;

/// A timer that exists once it is needed.
#[derive(Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready once `left` is over; until then the task is woken for it.
    pub fn poll(&mut self, left: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if left.is_zero() {
            return Poll::Ready(());
        }
        let at = Instant::now() + left;
        let timer = match &mut self.0 {
            Some(timer) => {
                timer.as_mut().reset(at);
                timer
            }
            none => none.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        timer.as_mut().poll(cx)
    }
}
