//! Two nodes over one store: one order for both, and either answers the authority. (The binary's store is a node's
//! own so far; what is here is what it is composed of.)

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::Handle;
use vango_edge::certificates::{OrderWork, Orders, Shown};
use vango_edge::clock::{SystemClock, SystemEntropy};
use vango_edge::config::{self, Running};
use vango_edge::node::Node;
use vango_edge::snapshot::Publisher;
use vango_edge::store::{MemoryStore, Options, StateStore};
use vango_edge::telemetry::{Metrics, Ring, Telemetry};
use vango_edge::wake::Executor;
use vango_edge::wire::{Certificates, Issued, acceptor};

use super::pebble::{Pebble, over_tls};
use crate::support::{eventually, write_config};

const HOSTS: [&str; 3] = ["a.fleet.test", "b.fleet.test", "c.fleet.test"];

/// A node that orders, and that shows on a listener of its own what it has; nothing else of an edge.
async fn node(name: &str, store: &Arc<dyn StateStore>, file: &std::path::Path) -> SocketAddr {
    let node = Node {
        name: name.into(),
        config: Arc::new(Running::from_pointee(config::load(file).unwrap())),
        store: Arc::clone(store),
        snapshots: Publisher::new().reader(),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SystemEntropy),
        runtime: Handle::current(),
    };
    let telemetry = Arc::new(Telemetry { metrics: Metrics::new().unwrap(), ring: Ring::new(0) });
    let issued = Arc::<Issued>::default();
    let shown = Shown::new(node.clone(), Arc::clone(&issued));
    let work = OrderWork::new(node.clone(), Arc::clone(&shown), Arc::clone(&telemetry));
    let orders =
        Orders::new(node.clone(), Arc::clone(&shown), Executor::new(node, work), telemetry);
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move { shown.follow(tell).await });
    told.await.unwrap();
    tokio::spawn(orders.run());
    let acceptor = acceptor(Certificates::new(&[], issued)).unwrap().acceptor;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(socket).await {
                    use tokio::io::AsyncWriteExt as _;
                    let _ = stream.write_all(b"shown").await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

#[test]
fn a_fleet_orders_once_and_any_node_answers_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let mut pebble = Pebble::prepared("");
    let file = write_config(dir.path(), &pebble.table("tls-alpn-01", ""));
    let hosts = HOSTS.map(|h| format!("{h:?}")).join(", ");
    let app = format!("app = \"fleet\"\nhosts = [{hosts}]\n");
    std::fs::write(dir.path().join("apps/fleet.toml"), app).unwrap();
    pebble.start();
    let client = pebble.client();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let both = runtime.block_on(async {
        let clock = Arc::new(SystemClock::new());
        let store: Arc<dyn StateStore> =
            Arc::new(MemoryStore::new(clock, Options::default()).unwrap());
        // Each looks at once, and finds the same three hosts without a certificate.
        let both = tokio::join!(node("a", &store, &file), node("b", &store, &file));
        // Whichever node has an order, the authority comes to the second one.
        pebble.looks_by_tls_at(both.1);
        both
    });
    for (at, name) in [both.0, both.1].into_iter().flat_map(|at| HOSTS.map(|h| (at, h))) {
        let has_it = || over_tls(at, &client, name, "").is_ok();
        eventually(&format!("{name} at {at}"), has_it);
    }
    let shown = |at| HOSTS.map(|name| over_tls(at, &client, name, "").unwrap().0);
    assert_eq!(shown(both.0), shown(both.1));
    // Where its look came before the relay led anywhere an order failed and was made again; never by both.
    let failed = pebble.log().matches("set to invalid").count();
    assert!(pebble.count("orders") <= HOSTS.len() + failed, "{}", pebble.log());
    assert_eq!(pebble.count("accounts"), 1);
}
