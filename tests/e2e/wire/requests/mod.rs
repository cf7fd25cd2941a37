//! What the app gets of a request: one length, one end, one cookie line, no field that is not its own.
//! The app is a [`Recorder`] behind one route of each class.

mod bodies;
mod fields;
mod prints;
mod upgrades;

use std::sync::Arc;

use hmac::{Hmac, Mac};
use rustls::ClientConfig;
use sha2::Sha256;
use tempfile::TempDir;
use vango_edge::clock::{Clock, SystemClock};

use super::recorder::{Recorder, Seen};
use crate::http2::peer::*;
use crate::support::{Answer, Edge};
use crate::tls::{client_config, edge_with};

const ROUTES: &str = r#"
app = "studylab"
hosts = ["studylab.localhost"]
[[route]]
path = "/live"
class = "live"
session = ["query:sid"]
[[route]]
path = "/none"
class = "action"
idempotency = "none"
[[route]]
path = "/app"
class = "action"
idempotency = "app"
[[route]]
path = "/body"
class = "action"
idempotency = "edge"
principal = "cookie:who"
[[route]]
path = "/head"
class = "action"
idempotency = "edge"
fingerprint = "head"
principal = "cookie:who"
max_body = "1KiB"
[[route]]
path = "/hook"
class = "webhook"
provider = "stripe"
secret = "HOOK"
duplicate = "forward"
"#;

/// A path of each class of route. A request to each is one that its contract takes.
pub const WAYS: [&str; 6] = ["/page", "/none", "/app", "/body", "/head", "/hook"];

/// The edge, the app behind it, and how a client trusts it.
pub struct Wire {
    pub edge: Edge,
    pub app: Recorder,
    pub dir: TempDir,
    config: Arc<ClientConfig>,
    keys: std::cell::Cell<u32>,
}

impl Wire {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With more in the node's file.
    fn start_with(more: &str) -> Self {
        Self::before(Recorder::start(), more)
    }

    /// Before this app.
    pub fn before(app: Recorder, more: &str) -> Self {
        let (mut edge, dir) = edge_with(more);
        assert!(edge.stop().success());
        let secret = dir.path().join("hook");
        std::fs::write(&secret, "whsec").unwrap();
        let operators = format!(
            "upstreams = [\"{}\"]\nsecrets = {{ HOOK = {{ file = {:?} }} }}\n",
            app.address,
            secret.display().to_string()
        );
        let routes = ROUTES.replacen("[[route]]", &format!("{operators}[[route]]"), 1);
        std::fs::write(edge.apps().join("studylab.toml"), routes).unwrap();
        edge.start_again();
        let config = client_config(&dir, "one", &[b"h2"]);
        let wire = Self { edge, app, dir, config, keys: std::cell::Cell::new(0) };
        assert_eq!(wire.edge.get("/page").status, 200);
        wire.app.take();
        wire
    }

    /// What a request to `way` needs besides, for this body. The key is a new one.
    pub fn needs(&self, way: &str, body: &str) -> Vec<(&'static str, String)> {
        let n = self.keys.get() + 1;
        self.keys.set(n);
        let key = ("idempotency-key", format!("k{n}"));
        match way {
            "/app" => vec![key],
            "/body" | "/head" => vec![key, ("cookie", "who=ada".into())],
            "/hook" => {
                let at = SystemClock::new().wall().0 / 1000;
                let mut mac = Hmac::<Sha256>::new_from_slice(b"whsec").unwrap();
                mac.update(format!("{at}.{body}").as_bytes());
                let hex = mac.finalize().into_bytes();
                let hex = hex.iter().map(|b| format!("{b:02x}")).collect::<String>();
                vec![("stripe-signature", format!("t={at},v1={hex}"))]
            }
            _ => vec![],
        }
    }

    /// POSTs `body` to `way` over HTTP/1.1, with `more` fields as they stand here, a length among
    /// them. `None` when the connection ends without an answer.
    pub fn post(&self, way: &str, more: &str, body: &str) -> Option<Answer> {
        let mut connection = self.edge.connect();
        let needs = self.needs(
            way,
            body.split("\r\n").nth(1).filter(|_| more.contains("chunked")).unwrap_or(body),
        );
        let needs: String = needs.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        connection.send(format!(
            "POST {way} HTTP/1.1\r\nHost: studylab.localhost\r\n{needs}{more}\r\n{body}"
        ));
        connection.answer()
    }

    /// The same, for one that reaches the app: what came there.
    #[track_caller]
    fn posted(&self, way: &str, more: &str, body: &str) -> Seen {
        let answer = self.post(way, more, body).unwrap_or_else(|| panic!("{way} {more}"));
        assert_eq!(answer.status, 200, "{way} {more}: {}", String::from_utf8_lossy(&answer.body));
        self.app.one()
    }

    /// A connection over HTTP/2.
    fn peer(&self) -> Peer {
        Peer::open(&self.edge, &self.config)
    }

    /// The fields of a request to `way` over HTTP/2.
    fn fields(&self, method: &str, way: &str, body: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let head = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "studylab.localhost"),
            (":path", way),
        ];
        let needs = self.needs(way, body);
        let needs: Vec<_> = needs.iter().map(|(n, v)| (*n, v.as_str())).collect();
        [fields(&head), fields(&needs), fields(more)].concat()
    }
}
