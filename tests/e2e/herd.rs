//! Ten thousand at once: one operation, one start, every one answered.

use std::net::SocketAddr;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Artifact, Edge, Gate, eventually, memory_of};

const WANTED: usize = 10_000;
/// Fewer show nothing of a herd.
const LEAST: usize = 1_000;
/// Descriptors besides those of the herd, on either side.
const SPARE: u64 = 1_000;
/// Connections being made at the same time: below what a listening socket queues.
const AT_ONCE: usize = 256;
const CONCURRENCY: u64 = 50;

/// As many as this machine lets a process have open; the edge raises its own limit in the same way.
fn size() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let room = usize::try_from(hard.saturating_sub(SPARE)).unwrap();
    if room < WANTED {
        println!("only {hard} descriptors: a herd of {room} instead of {WANTED}");
    }
    assert!(room >= LEAST, "raise the hard limit of open files (ulimit -Hn) above {hard}");
    room.min(WANTED)
}

/// Connects and sends, all of it before any answer.
async fn arrive(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    let turn = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for _ in 0..n {
        let turn = Arc::clone(&turn);
        tasks.spawn(async move {
            let _turn = turn.acquire_owned().await.unwrap();
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = "GET /dashboard HTTP/1.1\r\nHost: studylab.localhost\r\n\
                           Connection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        });
    }
    tasks.join_all().await
}

/// The statuses of all answers, each read to its end.
async fn answers(streams: Vec<TcpStream>) -> Vec<String> {
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.trim_end().ends_with("</html>") || !text.starts_with("HTTP/1.1 200"));
            text.lines().next().unwrap_or_default().to_owned()
        });
    }
    tasks.join_all().await
}

#[test]
fn ten_thousand_requests_at_once_make_one_operation_and_one_start_and_are_all_answered() {
    let edge = Edge::start_alone("");
    let n = size();
    let gate = Gate::closed();
    let contract = Artifact::behind(&gate).set("scale", "concurrency", &CONCURRENCY.to_string());
    edge.deploy(&contract.set("wake", "max_held", &n.to_string()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();

    let before = memory_of(edge.pid());
    let herd = runtime.block_on(arrive(edge.listen, n));
    edge.until_held(n as u64);
    let peak = memory_of(edge.pid());
    println!("{n} held: {} bytes of memory each", peak.saturating_sub(before) / n as u64);
    let ops = edge.ops();
    assert_eq!((ops.len(), edge.ps().len()), (1, 1), "one wake for all: {ops:?}");

    let answered = runtime.spawn(answers(herd));
    gate.open();
    let mut most = 0;
    eventually("the whole herd is answered", || {
        let in_flight = edge.ps()[0]["in_flight"].as_u64().unwrap();
        most = most.max(in_flight);
        answered.is_finished()
    });
    assert!(most <= CONCURRENCY, "{most} in flight at once: the release is not paced");
    println!("at most {most} of {CONCURRENCY} were seen in flight");
    let statuses = runtime.block_on(answered).unwrap();
    let failed: Vec<_> = statuses.iter().filter(|s| *s != "HTTP/1.1 200 OK").collect();
    assert_eq!((statuses.len(), failed.len()), (n, 0), "{:?}", failed.first());

    assert_eq!(edge.held(), 0);
    assert_eq!(edge.executions("/dashboard"), n as u64, "each was forwarded once");
    assert_eq!(edge.executions("start"), 1);
    let woken = "vango_edge_requests_total{class=\"page\",environment=\"studylab/production\",\
                 outcome=\"woken\"}";
    assert_eq!(edge.metric(woken), n as u64);
    assert_eq!((edge.ops().len(), edge.ps().len()), (1, 1));
    edge.assert_sleeps_without_a_trace();
}

#[test]
fn a_herd_that_leaves_costs_the_app_nothing_and_gives_its_memory_back() {
    let edge = Edge::start_alone("");
    let n = size() / 2;
    let before = memory_of(edge.pid());
    let gate = Gate::closed();
    edge.deploy(&Artifact::behind(&gate));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let herd = runtime.block_on(arrive(edge.listen, n));
    edge.until_held(n as u64);
    let peak = memory_of(edge.pid());
    drop(herd);
    edge.until_held(0);
    // The allocator returns pages some time after they were freed.
    eventually("memory returns", || memory_of(edge.pid()) < before + (peak - before) / 2);
    println!("{n} left: {before} bytes before, {peak} with them, {} after", memory_of(edge.pid()));
    gate.open();
    edge.until_hot();
    assert_eq!((edge.executions("/dashboard"), edge.executions("start")), (0, 1));
}
