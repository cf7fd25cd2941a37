//! When an allocation whose epoch is over is ended, and how long what is open in it may stay.

use std::time::Duration;

use crate::contract::Process;
use crate::id::Epoch;
use crate::snapshot::AllocationView;
use crate::store::record::AllocationState;

/// For sockets that were told to end at the drain limit to have ended.
const GOODBYE: Duration = Duration::from_secs(1);

/// Whether an allocation's epoch is over, so that it is to be ended: it could serve, and never will
/// again. One of a later epoch is being started for an owner that is about to move.
pub fn is_over(allocation: &AllocationView, owner: Epoch) -> bool {
    let could_serve =
        matches!(allocation.state, AllocationState::Ready | AllocationState::Draining);
    could_serve && allocation.epoch < owner
}

/// The next step of an allocation whose epoch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retiring {
    /// Look again shortly.
    Wait,
    /// Seal it if nothing is in flight still, and end it.
    End,
    /// Seal it whatever is in flight, and end it: its time is over.
    Cut,
}

/// Decides on an allocation that has drained for `waited`. Requests in flight and live sockets have the
/// contract's `process.drain_timeout`; it ends when neither keeps it.
pub fn retire(in_flight: u32, sockets: u32, waited: Duration, process: &Process) -> Retiring {
    if in_flight == 0 && sockets == 0 {
        return Retiring::End;
    }
    let requests = in_flight > 0 && waited < process.drain_timeout;
    let live = sockets > 0 && waited < process.drain_timeout + GOODBYE;
    if requests || live { Retiring::Wait } else { Retiring::Cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Contract;

    #[test]
    fn requests_and_sockets_have_the_drain_timeout() {
        let external = Contract::external("studylab".parse().unwrap(), Vec::new(), 1, 1);
        let ms = Duration::from_millis;
        let process =
            Process { stop_timeout: ms(100), drain_timeout: ms(5000), ..external.process };
        for (in_flight, sockets, waited, step) in [
            (0, 0, 0, Retiring::End),
            (1, 0, 100, Retiring::Wait),
            (1, 0, 4999, Retiring::Wait),
            (1, 0, 5000, Retiring::Cut),
            (0, 1, 100, Retiring::Wait),
            (1, 1, 5999, Retiring::Wait),
            (0, 1, 5999, Retiring::Wait),
            (0, 1, 6000, Retiring::Cut),
            (0, 0, 6000, Retiring::End),
        ] {
            let found = retire(in_flight, sockets, ms(waited), &process);
            assert_eq!(found, step, "{in_flight} {sockets} {waited}");
        }
    }
}
