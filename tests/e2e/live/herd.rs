//! Many sockets at once, on an allocation that dies.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Artifact, Edge};

use super::Socket;

const SOCKETS: usize = 300;

#[test]
fn a_herd_comes_back_to_one_new_allocation_while_pages_are_served() {
    let edge = Edge::start_alone("");
    edge.deploy(&Artifact::new());
    let mut sockets: Vec<_> = (0..SOCKETS)
        .map(|n| {
            let path = format!("/vango/live?sid=s-{n}");
            let (mut socket, _) = Socket::greeted(&edge, &path, &[]);
            assert_eq!(socket.add(), 1);
            (path, socket)
        })
        .collect();
    let pid = edge.ps()[0]["pid"].as_i64().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pages = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Acquire) {
                let clock = vango_edge::clock::SystemClock::new();
                let began = vango_edge::clock::Clock::now(&clock);
                // One may be in the app when it is killed (502), and right after that the app backs
                // off (503): both are said at once, and are no wait.
                assert!(matches!(edge.get("/dashboard").status, 200 | 502 | 503));
                slowest = slowest.max(vango_edge::clock::Clock::now(&clock).since(began));
            }
            slowest
        });
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let clients: Vec<_> = sockets
            .drain(..)
            .map(|(path, socket)| {
                let edge = &edge;
                scope.spawn(move || {
                    assert_eq!(socket.closed(), Some(1012));
                    let (mut socket, hello) = Socket::back(edge, &path, &[]);
                    assert_eq!(hello["verdict"], "hydrate", "{hello}");
                    assert_eq!(socket.add(), 2);
                    (socket, hello["allocation"].as_str().unwrap().to_owned())
                })
            })
            .collect();
        let back: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        over.store(true, Ordering::Release);
        let allocations: HashSet<_> = back.iter().map(|(_, a)| a).collect();
        assert_eq!(allocations.len(), 1);
        let slowest = pages.join().unwrap();
        assert!(slowest < Duration::from_secs(5), "a page waited {slowest:?}");
    });
    assert_eq!(edge.metric("vango_edge_wakes_total{state=\"hot\"}"), 2, "one wake for all");
}
