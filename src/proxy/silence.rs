//! How long an app may be silent. A client that still sends has an app that waits for it: an upload that takes
//! longer than an app may be silent is not cut, nor is a call on which both sides talk.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use crate::lifecycle::trace::UpstreamFailure;

/// The silence of one app while one request is answered.
pub struct Silence {
    within: Duration,
    moved: Arc<Notify>,
}

impl Silence {
    /// It lasts `within` at most.
    pub fn new(within: Duration) -> Self {
        Self { within, moved: Arc::default() }
    }

    /// `body`, the request's: each piece of it that the connection takes lets the time begin anew, and so does
    /// its end.
    pub fn broken_by<B>(&self, body: B) -> Moving<B> {
        Moving { body, moved: Arc::clone(&self.moved) }
    }

    /// What `heard` comes to.
    ///
    /// # Errors
    /// [`UpstreamFailure::Silent`] when it did not come in time. Nothing of it may be used again then.
    pub async fn until<T>(&self, heard: impl Future<Output = T>) -> Result<T, UpstreamFailure> {
        let mut heard = pin!(heard);
        loop {
            tokio::select! {
                biased;
                heard = &mut heard => return Ok(heard),
                () = self.moved.notified() => {}
                () = tokio::time::sleep(self.within) => return Err(UpstreamFailure::Silent),
            }
        }
    }
}

/// See [`Silence::broken_by`].
pub struct Moving<B> {
    body: B,
    moved: Arc<Notify>,
}

impl<B: Body + Unpin> Body for Moving<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let taken = Pin::new(&mut self.body).poll_frame(cx);
        if taken.is_ready() {
            self.moved.notify_one();
        }
        taken
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
