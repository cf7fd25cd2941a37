//! A client's body on its way to an app that may answer before it has all of it: passed on piece by piece,
//! before the answer and beside it, within the same bounds.

use pingora::prelude::{Error, ErrorType};
use pingora_proxy::Session;
use tokio::sync::mpsc;

use crate::lifecycle::admit::Journey;
use crate::lifecycle::reply::Reply;
use crate::telemetry::Cut;

use super::client::{Client, ExpectedBody, Phase};
use super::exchange::Fed;
use super::gate::Gate;
use super::response::{Meanwhile, Nothing};
use super::{body, response};

/// One that is not over. Dropped, it is cut off: the app sees no end of it.
pub struct Upload {
    feed: mpsc::Sender<Fed>,
    bytes: u64,
    /// Over HTTP/2: without it a body that drips has no bound, and keeps its place in the app.
    _expected: Option<ExpectedBody>,
}

/// What a step of it came to.
pub enum Step {
    /// A piece went on.
    Passed,
    /// Nothing more goes on: it is over, or the app takes no more of it.
    Over,
    /// It broke off; with what its client is told, if it is there.
    BrokeOff(Option<Reply>),
}

impl Upload {
    /// Begins to pass the body of `session` on to `feed`.
    pub fn new(session: &mut Session, feed: mpsc::Sender<Fed>) -> Self {
        let comes = session.is_http2() && !session.as_downstream_mut().is_body_done();
        let expected = Client::of(session).filter(|_| comes).map(Client::expect_body);
        Self { feed, bytes: 0, _expected: expected }
    }

    /// Passes the next piece on, once the app has room for it. Cancel safe.
    pub async fn step(
        &mut self,
        session: &mut Session,
        journey: &mut Journey,
        gate: &Gate,
    ) -> Step {
        match self.feed.reserve().await {
            Ok(room) => drop(room),
            Err(_) => return Step::Over,
        }
        match session.as_downstream_mut().read_request_body().await {
            Ok(Some(piece)) => {
                self.bytes += piece.len() as u64;
                if let Some(refused) = journey.body_grew(self.bytes, gate.clock.now()) {
                    return Step::BrokeOff(Some(refused));
                }
                // There is room: nothing else sends.
                match self.feed.try_send(Fed::Piece(piece)) {
                    Ok(()) => Step::Passed,
                    Err(_) => Step::Over,
                }
            }
            Ok(None) => {
                let _ = self.feed.try_send(Fed::End);
                if let Some(client) = Client::of(session) {
                    client.enter(Phase::Answer);
                }
                Step::Over
            }
            Err(e) => {
                let now = gate.clock.now();
                let slow = || Client::of(session).and_then(|c| c.why_cut()) == Some(Cut::BodyRate);
                Step::BrokeOff(if body::is_malformed(&e) {
                    Some(journey.body_malformed(now))
                } else if slow() {
                    Some(journey.body_stalled(now))
                } else {
                    None
                })
            }
        }
    }
}

/// A step of `upload`, which is gone once it is over; none while there is none.
pub async fn step(
    upload: &mut Option<Upload>,
    session: &mut Session,
    journey: &mut Journey,
    gate: &Gate,
) -> Step {
    let Some(going) = upload else { return std::future::pending().await };
    let step = going.step(session, journey, gate).await;
    if !matches!(step, Step::Passed) {
        *upload = None;
    }
    step
}

/// What is left of an upload when its answer begins, which goes on beside it.
pub struct Beside<'a> {
    /// The upload, until it is over.
    pub upload: Option<Upload>,
    /// Whose it is.
    pub journey: &'a mut Journey,
    /// What it is passed with.
    pub gate: &'a Gate,
    /// Why the edge cut it off, which no client can be told any more.
    pub refused: Option<Reply>,
}

impl Meanwhile for Beside<'_> {
    /// An answer that is always there would keep the upload from ever going on.
    const FIRST: bool = true;

    async fn over(&mut self, session: &mut Session) -> Box<Error> {
        while self.upload.is_some() {
            match step(&mut self.upload, session, self.journey, self.gate).await {
                Step::Passed | Step::Over => {}
                Step::BrokeOff(None) => return response::gone(),
                Step::BrokeOff(refused) => {
                    self.refused = refused;
                    let why = "the body broke off while it was answered";
                    return Error::explain(ErrorType::ReadError, why);
                }
            }
        }
        Nothing.over(session).await
    }
}
