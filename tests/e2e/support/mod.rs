//! What the tests stand on: an edge process, artifacts of the sample app, an HTTP client that hides
//! nothing, clients over TLS and in Python, and the one function that waits.

mod artifact;
mod edge;
mod gate;
mod http;
mod program;
mod secure;

pub use artifact::Artifact;
pub use edge::{Edge, binary, descriptors_of, memory_of, write_config};
pub use gate::Gate;
pub use http::{Answer, Connection, UPGRADE};
pub use program::{Program, python};
pub use secure::{over_tls, trusting};

use std::time::Duration;

use vango_edge::clock::{Clock, SystemClock};

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(what, || condition().then_some(()));
}

/// Asks until there is an answer, and returns it.
#[track_caller]
pub fn eventually_some<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    let Some(found) = within(PATIENCE, ask) else { panic!("not within {PATIENCE:?}: {what}") };
    found
}

/// Lets a short time pass to the microsecond, so that a seed says when something is killed.
pub fn spin(time: Duration) {
    let clock = SystemClock::new();
    let until = clock.now() + time;
    while clock.now() < until {
        std::hint::spin_loop();
    }
}

/// Lets time pass that a test is about, such as an app's idle time: never to wait for something.
pub fn pass(time: Duration) {
    within(time, || None::<()>);
}

/// Asks until there is an answer or the time is over. The only place in these tests that sleeps.
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let clock = SystemClock::new();
    let deadline = clock.now() + limit;
    loop {
        let found = ask();
        if found.is_some() || clock.now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
