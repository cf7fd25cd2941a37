//! A Redis of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vango_edge::clock::{Clock, SystemClock};
use vango_edge::session::{DurableStore, RedisStore};
use vango_edge::snapshot::EnvView;

use super::suite::{Backend, Secret, view};

/// Where the directory of the TLS tests' certificates is named.
pub const CERTIFICATES: &str = "VANGO_EDGE_TEST_CERTIFICATES";
const PASSWORD: &str = "passwort-im-klartext";

/// Starts within this time, or never.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Redis {
    dir: TempDir,
    arguments: Vec<String>,
    url: String,
    password: Option<&'static str>,
    child: Option<Child>,
    silent: bool,
}

/// `cert.pem`, `key.pem` and `ca.pem` for localhost.
pub fn certificates() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/dev-cert"))
        .arg(dir.path())
        .arg("localhost")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir
}

/// The kernel's choice; no other program is given it again so soon.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Reached by its socket file only.
pub fn on_a_socket_file() -> Redis {
    start(|socket| format!("redis+unix://{}", socket.display()), None, Vec::new())
}

/// Over TCP.
pub fn with_a_password() -> Redis {
    let port = free_port();
    let more = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--requirepass", PASSWORD];
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{port}/0");
    start(|_| url, Some(PASSWORD), more.map(String::from).to_vec())
}

/// Over TLS, with the certificates that the environment names.
pub fn over_tls() -> Redis {
    let port = free_port();
    let dir = PathBuf::from(std::env::var_os(CERTIFICATES).expect("redis_over_tls_too runs this"));
    let file = |name: &str| dir.join(name).display().to_string();
    let (cert, key, ca) = (file("cert.pem"), file("key.pem"), file("ca.pem"));
    let more = [
        ["--tls-port", &port.to_string()],
        ["--tls-cert-file", &cert],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &ca],
        ["--tls-auth-clients", "no"],
    ];
    start(
        |_| format!("rediss://localhost:{port}"),
        None,
        more.concat().into_iter().map(String::from).collect(),
    )
}

fn start(
    url: impl FnOnce(&Path) -> String,
    password: Option<&'static str>,
    more: Vec<String>,
) -> Redis {
    let dir = tempfile::tempdir().unwrap();
    let url = url(&dir.path().join("s"));
    let mut redis = Redis { dir, arguments: more, url, password, child: None, silent: false };
    redis.come_back();
    redis
}

impl Redis {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// One command over the socket file; the first line that comes back, when one does.
    fn say(&self, command: &[&str]) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let encode = |words: &[&str]| {
            let words: String = words.iter().map(|w| format!("${}\r\n{w}\r\n", w.len())).collect();
            format!("*{}\r\n{words}", words.matches('$').count())
        };
        if let Some(password) = self.password {
            stream.write_all(encode(&["AUTH", password]).as_bytes()).ok()?;
            let mut ok = [0; 5];
            stream.read_exact(&mut ok).ok()?;
        }
        stream.write_all(encode(command).as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        }
    }
}

impl Backend for Redis {
    fn adapter(&self) -> Box<dyn DurableStore> {
        Box::new(RedisStore::new(Arc::new(Secret(self.url.clone()))))
    }
    fn view(&self) -> Arc<EnvView> {
        let store = "{ kind = \"redis\", secret = \"STORE_URL\", key = \"vango:session:{id}\" }";
        view(store, "127.0.0.1:1")
    }
    fn keep(&self, id: &str) {
        let said = self.say(&["SET", &format!("vango:session:{id}"), "x"]);
        assert_eq!(said.as_deref(), Some("+OK"));
    }
    fn leave(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    fn fall_silent(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.silent = true;
    }
    fn come_back(&mut self) {
        if std::mem::take(&mut self.silent) {
            return self.signal(Signal::SIGCONT);
        }
        let port =
            if self.arguments.iter().any(|a| a == "--port") { &[][..] } else { &["--port", "0"] };
        let child = Command::new("redis-server")
            .args(port)
            .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            // A herd of questions opens one; the rest is for these tests and for what is closing.
            .args(["--maxclients", "8"])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server is on PATH: `scripts/test` installs it"));
        let clock = SystemClock::new();
        let deadline = clock.now() + PATIENCE;
        while self.say(&["PING"]).as_deref() != Some("+PONG") || !self.listens() {
            assert!(clock.now() < deadline, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    fn secret(&self) -> String {
        self.password.map_or_else(|| self.url.clone(), String::from)
    }
}

impl Redis {
    /// Whether the port of its URL, if it has one, takes connections.
    fn listens(&self) -> bool {
        let port = self
            .url
            .split(':')
            .next_back()
            .and_then(|p| p.trim_end_matches("/0").parse::<u16>().ok());
        port.is_none_or(|port| TcpStream::connect(("127.0.0.1", port)).is_ok())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::SIGCONT);
            self.leave();
        }
    }
}

mod tests {
    use vango_edge::lifecycle::affinity::{FoundIn, SessionId};
    use vango_edge::session::{Question, StoreFailure};

    use super::*;

    #[tokio::test]
    async fn a_wrong_password_or_url_is_said_without_being_said() {
        let (redis, id) = (with_a_password(), SessionId::new("s-1", FoundIn::Query).unwrap());
        let view = redis.view();
        let ask = Question { view: &view, target: &view.ready[0], id: &id };
        for (url, configured) in [
            (redis.url.replace(PASSWORD, "falsches-passwort"), false),
            (redis.url.replace(&format!(":{PASSWORD}@"), ""), false),
            (format!("http://:{PASSWORD}@127.0.0.1"), true),
            (format!("no url with {PASSWORD}"), true),
            // What is not checked is not TLS.
            (format!("rediss://:{PASSWORD}@localhost:1/#insecure"), true),
        ] {
            let store = RedisStore::new(Arc::new(Secret(url.clone())));
            let failure = store.has(&ask).await.unwrap_err();
            let said = format!("{failure} {failure:?}");
            assert_eq!(matches!(failure, StoreFailure::Configured(_)), configured, "{url}: {said}");
            assert!(!said.contains("passwort") && !said.contains("127.0.0.1"), "{said}");
        }
    }
}
