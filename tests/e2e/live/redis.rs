//! Sessions in a real Redis.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::{Artifact, Edge, eventually};

use super::Socket;

/// A Redis of the test's own, on a socket file, that keeps its keys when it is started again.
struct Redis {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Redis {
    fn start() -> Self {
        let mut redis = Self { dir: tempfile::tempdir().unwrap(), child: None };
        redis.start_again();
        redis
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    fn start_again(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", "0", "--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server is on PATH: `scripts/test` installs it"));
        eventually("Redis listens", || {
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_session_is_read_from_redis_and_starts_fresh_while_redis_is_away() {
    let mut redis = Redis::start();
    let edge = Edge::start();
    let secret = redis.dir.path().join("url");
    std::fs::write(&secret, redis.url()).unwrap();
    let app = edge.config().with_file_name("apps").join("studylab.toml");
    let text = std::fs::read_to_string(&app).unwrap();
    let secrets = format!("secrets = {{ SESSION_STORE_URL = {{ file = {secret:?} }},");
    std::fs::write(&app, text.replacen("secrets = {", &secrets, 1)).unwrap();
    assert!(edge.command(&["reload"]).status.success());
    let artifact = Artifact::new().env("STUDYLAB_SESSION_STORE", redis.url()).replace(
        "store = { kind = \"http\", path = \"/internal/sessions/{id}\" }",
        "store = { kind = \"redis\", secret = \"SESSION_STORE_URL\", key = \"vango:session:{id}\" }",
    );
    edge.deploy(&artifact);
    let live = "/vango/live?sid=s-1";
    let moved = |edge: &Edge| {
        edge.json(&["sleep", "studylab"]);
        let (socket, hello) = Socket::greeted(edge, live, &[]);
        (socket, (hello["verdict"].clone(), hello["reason"].clone(), hello["count"].clone()))
    };
    let (mut socket, hello) = Socket::greeted(&edge, live, &[]);
    assert_eq!(hello["store"], "redis");
    assert_eq!((socket.add(), socket.add()), (1, 2));
    drop(socket);
    let (socket, told) = moved(&edge);
    assert_eq!(told, (json!("hydrate"), json!("store-and-schema"), json!(2)));
    drop(socket);

    redis.kill();
    for _ in 0..4 {
        let (_, told) = moved(&edge);
        assert_eq!(told, (json!("fresh"), json!("store-unavailable"), json!(0)));
    }
    // It is back, with what it had: within the circuit's time, sessions hydrate again.
    redis.start_again();
    eventually("the circuit closes", || {
        let (_, told) = moved(&edge);
        told == (json!("hydrate"), json!("store-and-schema"), json!(2))
    });
    let log = edge.log();
    assert!(!log.contains("s-1") && !log.contains("redis+unix"), "no id and no URL: {log}");
}
