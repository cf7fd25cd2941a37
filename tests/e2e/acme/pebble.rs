//! Pebble, Let's Encrypt's own small authority for tests, as Debian packages it: a real ACME server that looks at
//! hosts over real connections. Its names are answered by a resolver here, and its looks come by way of relays
//! that this test holds, so that an edge may be killed and started again on other ports.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use crate::support::{Edge, eventually, eventually_some, trusting};
use crate::tls::certificate;

/// Where connections go now.
type Target = Arc<Mutex<Option<SocketAddr>>>;

/// A resolver, Pebble's ways to the edge, and Pebble once it is started.
pub struct Pebble {
    dir: TempDir,
    child: Option<Child>,
    more: &'static str,
    port: u16,
    management: u16,
    dns: SocketAddr,
    http: (u16, Target),
    tls: (u16, Target),
}

impl Pebble {
    /// Not started yet: an authority that is away is nothing special. `more` is added to its configuration.
    pub fn prepared(more: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificate(dir.path(), "own", &["localhost"]);
        Self {
            dir,
            child: None,
            more,
            port: free_port(),
            management: free_port(),
            dns: resolver(),
            http: relay(),
            tls: relay(),
        }
    }

    /// The edge's `[acme]` for it.
    pub fn table(&self, challenge: &str, more: &str) -> String {
        format!(
            "[[server.tls]]\nlisten = \"127.0.0.1:0\"\n[acme]\ndirectory = \"https://localhost:{}/dir\"\n\
             terms_agreed = true\nchallenge = \"{challenge}\"\nca_file = \"{}\"\n\
             retry = {{ first = \"1s\", max = \"2s\" }}\n{more}\n",
            self.port,
            self.dir.path().join("own/ca.pem").display(),
        )
    }

    /// Has its looks come to this edge from now on.
    pub fn looks_at(&self, edge: &Edge) {
        *self.http.1.lock().unwrap() = Some(edge.listen);
        *self.tls.1.lock().unwrap() = edge.tls;
    }

    /// Has looks by TLS come here.
    pub fn looks_by_tls_at(&self, address: SocketAddr) {
        *self.tls.1.lock().unwrap() = Some(address);
    }

    pub fn start(&mut self) {
        let own = self.dir.path().join("own");
        let config = format!(
            "{{ \"pebble\": {{ \"listenAddress\": \"127.0.0.1:{}\", \"managementListenAddress\": \
             \"127.0.0.1:{}\", \"certificate\": {:?}, \"privateKey\": {:?}, \"httpPort\": {}, \
             \"tlsPort\": {}, \"ocspResponderURL\": \"\" {} }} }}",
            self.port,
            self.management,
            own.join("cert.pem"),
            own.join("key.pem"),
            self.http.0,
            self.tls.0,
            self.more,
        );
        let file = self.dir.path().join("pebble.json");
        fs::write(&file, config).unwrap();
        let log = File::options().append(true).create(true).open(self.log_file()).unwrap();
        let child = Command::new("pebble")
            .arg("-config")
            .arg(file)
            .args(["-dnsserver", &self.dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Each order has its host looked at.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("pebble: scripts/test installs it");
        self.child = Some(child);
        let port = self.port;
        eventually("Pebble listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The greatest N that its log counts of `things`.
    pub fn count(&self, things: &str) -> usize {
        let log = self.log();
        let counts = log.lines().filter_map(|l| {
            let (_, rest) = l.split_once("There are now ")?;
            let (n, what) = rest.split_once(' ')?;
            what.starts_with(things).then(|| n.parse::<usize>().ok())?
        });
        counts.max().unwrap_or(0)
    }

    /// A client that trusts what it issues.
    pub fn client(&self) -> Arc<ClientConfig> {
        let root = self.dir.path().join("root.pem");
        let url = format!("https://localhost:{}/roots/0", self.management);
        let ca = self.dir.path().join("own/ca.pem");
        let got = eventually_some("Pebble's root", || {
            let mut curl = Command::new("curl");
            curl.args(["-fsS", "--cacert"]).arg(&ca).arg(&url);
            curl.output().ok().filter(|o| o.status.success())
        });
        fs::write(&root, got.stdout).unwrap();
        trusting(&root, &[b"http/1.1"])
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- Pebble's log\n{}---", self.log());
        }
    }
}

/// Pebble says of no port which one the kernel gave it. Given to no other test of this process.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// Passes each connection on to where its target is then.
fn relay() -> (u16, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Target::default();
    let to = Arc::clone(&target);
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let Some(to) = *to.lock().unwrap() else { continue };
            let Ok(to) = TcpStream::connect(to) else { continue };
            for (mut a, mut b) in [
                (from.try_clone().unwrap(), to.try_clone().unwrap()),
                (to.try_clone().unwrap(), from.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut a, &mut b);
                    let _ = b.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (port, target)
}

/// A resolver (RFC 1035) for which every name is this machine, but those that begin with "nowhere".
fn resolver() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut asked = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut asked) {
            if let Some(answer) = answer(&asked[..n]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    address
}

fn answer(asked: &[u8]) -> Option<Vec<u8>> {
    const A: u16 = 1;
    let name = asked.get(12..)?;
    let end = name.iter().position(|b| *b == 0)? + 1;
    let question = name.get(..end + 4)?;
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    let nowhere = name[1..].starts_with(b"nowhere");
    let found = kind == A && !nowhere;
    let mut out = asked[..2].to_vec();
    out.extend([0x81, if nowhere { 0x83 } else { 0x80 }, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    out.extend(question);
    if found {
        // The name of the question, A, IN, 60 s, four bytes.
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(out)
}

/// What a client that asks for `name` is shown, and what it reads; or why there was no handshake.
pub fn over_tls(
    to: SocketAddr,
    client: &Arc<ClientConfig>,
    name: &str,
    request: &str,
) -> std::io::Result<(CertificateDer<'static>, String)> {
    crate::support::over_tls(to, client, name, b"", request)
}
