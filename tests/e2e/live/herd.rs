//! Many sockets at once, on an allocation that dies.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use serde_json::Value;

use crate::support::{Artifact, Connection, Edge, PATIENCE, eventually};

use super::{Socket, open_over};

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
        let ends = Over(&over);
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
        drop(ends);
        let allocations: HashSet<_> = back.iter().map(|(_, a)| a).collect();
        assert_eq!(allocations.len(), 1);
        let slowest = pages.join().unwrap();
        assert!(slowest < Duration::from_secs(5), "a page waited {slowest:?}");
    });
    assert_eq!(edge.metric("vango_edge_wakes_total{state=\"hot\"}"), 2, "one wake for all");
}

/// Says that it is over, also when a client's part failed: the thread that asks for pages would go on for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// An app that this edge does not run, which knows how many asked it for a socket at the same time.
struct Upstream {
    child: Child,
    address: SocketAddr,
}

impl Upstream {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/live/echo.py");
        // The kernel chooses; no other program is given the port again so soon.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut python = Command::new("python3");
        // What accepting costs a small app.
        python.env("PORT", address.port().to_string()).env("ACCEPT_TAKES", "0.002");
        let child = python.arg(script).spawn().unwrap();
        eventually("it listens", || TcpStream::connect(address).is_ok());
        Self { child, address }
    }

    /// What it has seen since this was asked last: `at_once`, `in_100_ms`, `accepted`.
    fn seen(&self) -> Value {
        let mut connection = Connection::open(self.address);
        connection.send_head("GET", "/anew", &[("Connection", "close")]);
        connection.answer().unwrap().json()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

fn socket(edge: &Edge, n: usize) -> Result<Socket, u16> {
    let stream = TcpStream::connect(edge.listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    open_over(stream, &format!("ws://pool.localhost/live?sid=s-{n}"), &[])
}

#[test]
fn the_herd_of_one_of_several_is_spread_over_the_others_a_few_at_a_time() {
    let mut upstreams: Vec<_> = (0..4).map(|_| Upstream::start()).collect();
    let all: Vec<_> = upstreams.iter().map(|u| format!("\"{}\"", u.address)).collect();
    let app = format!(
        "app = \"pool\"\nhosts = [\"pool.localhost\"]\nupstreams = [{}]\n[health]\ncheck = \
         \"http\"\npath = \"/\"\n[[route]]\npath = \"/live\"\nclass = \"live\"\nsession = \
         [\"query:sid\"]\n",
        all.join(", ")
    );
    let edge = Edge::start_with_app("pool", &app);
    let sockets: Vec<_> = (0..SOCKETS).map(|n| (n, socket(&edge, n).expect("a 101"))).collect();
    let accepted = |u: &Upstream| u.seen()["accepted"].as_u64().unwrap();
    let before: Vec<_> = upstreams.iter().map(accepted).collect();
    assert_eq!(before.iter().sum::<u64>(), SOCKETS as u64);
    assert!(before.iter().all(|n| *n > SOCKETS as u64 / 8), "spread to begin with: {before:?}");
    let lost = before[0];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Over(&over);
        let pages = scope.spawn(|| {
            let clock = vango_edge::clock::SystemClock::new();
            let now = || vango_edge::clock::Clock::now(&clock);
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Acquire) {
                let began = now();
                let page = edge.ask("GET", "/", &[("Host", "pool.localhost")], "");
                // One may be in the app when it is killed; everything else is placed again.
                assert!(matches!(page.status, 200 | 502), "{}", page.status);
                slowest = slowest.max(now().since(began));
            }
            slowest
        });
        upstreams[0].kill();
        // Only the sockets that were on it end; each comes back at once, worse than any browser.
        let clients: Vec<_> = sockets
            .into_iter()
            .map(|(n, mut open)| {
                let edge = &edge;
                scope.spawn(move || match open.ends_within(Duration::from_secs(5)) {
                    None => (open, false),
                    Some(code) => {
                        assert_eq!(code, 1012);
                        (socket(edge, n).expect("none is told to come later"), true)
                    }
                })
            })
            .collect();
        let open: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        drop(ends);
        assert_eq!(open.iter().filter(|(_, back)| *back).count() as u64, lost);
        let slowest = pages.join().unwrap();
        assert!(slowest < Duration::from_secs(5), "a page waited {slowest:?}");
        for upstream in &upstreams[1..] {
            let seen = upstream.seen();
            let came = seen["accepted"].as_u64().unwrap();
            assert!(came > lost / 6 && came < lost / 2, "{came} of {lost}: {seen}");
            assert!(seen["at_once"].as_u64().unwrap() <= 32, "the bound of each: {seen}");
            println!("{came} of {lost} came to it: {seen}; the slowest page {slowest:?}");
        }
    });
}
