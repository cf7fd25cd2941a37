//! What apps were given, and what they make of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::sleep;
use vango_edge::id::AllocationId;
use vango_edge::lifecycle::trace::UpstreamFailure;
use vango_edge::record::ledger::Subject;

use crate::edge::RESPONSE;
use crate::world::Sim;

/// What came of a request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Status(u16),
    Nothing(UpstreamFailure),
}

/// Requests of one key or event that were sent.
#[derive(Default)]
struct Sent {
    times: u32,
    /// At work now.
    open: u32,
    accepted: bool,
}

/// Every app, as far as it can tell copies of one request.
#[derive(Default)]
pub struct App {
    sent: Mutex<BTreeMap<String, Sent>>,
}

impl Sim {
    /// The app is given a request that is on record at `at`, as this attempt.
    pub fn given(&self, subject: Subject, at: &str, attempt: u32) {
        let mut all = self.app.sent.lock().unwrap();
        let sent = all.entry(at.to_owned()).or_default();
        sent.times += 1;
        sent.open += 1;
        let (times, open, accepted) = (sent.times, sent.open, sent.accepted);
        drop(all);
        let wrong = match subject {
            Subject::Action if times > 1 => "a keyed action is sent again",
            Subject::Event if open > 1 => "two deliveries of an event are at work",
            Subject::Event if accepted => "an event that was accepted is sent again",
            _ if attempt != times => "what is sent is another attempt than the record says",
            _ => return,
        };
        self.broken(format!("{wrong}: {at}, attempt {attempt}, sent {times} times"));
    }

    /// What it made of it.
    pub fn made(&self, at: &str, heard: Heard) {
        let mut all = self.app.sent.lock().unwrap();
        let sent = all.get_mut(at).unwrap();
        sent.open -= 1;
        sent.accepted |= matches!(heard, Heard::Status(s) if (200..300).contains(&s));
    }

    /// The app at `id` has a request: it answers, breaks off, or is silent.
    pub async fn exchange(&self, id: &AllocationId) -> Heard {
        let dice = &self.dice;
        let trouble = |one_in| !self.is_calm() && dice.one_in(one_in);
        let (breaks, silent) = (trouble(14), trouble(25));
        let status = if trouble(10) { 500 } else { 200 };
        // Those who are to be served at the end wait for each other.
        let thinks = dice.ms(if self.is_calm() { &[2, 30] } else { &[2, 30, 200, 1_200] });
        let works = async {
            sleep(thinks).await;
            self.machine.runs(id).await;
            if silent {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = self.machine.died(id) => Heard::Nothing(UpstreamFailure::Closed),
            () = works => match breaks {
                true => Heard::Nothing(UpstreamFailure::Closed),
                false => Heard::Status(status),
            },
            () = sleep(RESPONSE) => Heard::Nothing(UpstreamFailure::Silent),
        }
    }

    /// A connection to `id` is made, or not.
    pub async fn connects(&self, id: &AllocationId) -> bool {
        let takes = self.dice.ms(&[1, 1, 4]);
        if !takes.is_zero() {
            sleep(takes).await;
        }
        let refused = !self.is_calm() && self.dice.one_in(12);
        if refused {
            sleep(Duration::from_millis(1)).await;
        }
        !refused && self.machine.accepts(id)
    }
}
