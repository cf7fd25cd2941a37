//! The sample app's page in a browser, which reconnects by its own code.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::support::{Artifact, Connection, Edge, PATIENCE, eventually, eventually_some};

use super::{redeploy, version};

/// A browser without a window, driven over the DevTools protocol.
pub struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
    page: WebSocket<TcpStream>,
    asked: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

impl Browser {
    fn open(url: &str) -> Self {
        Self::open_with(url, &[])
    }

    /// With more on its command line.
    pub fn open_with(url: &str, more: &[&str]) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0"])
            .arg("--window-size=1000,1400")
            .args(more)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("chromium is on PATH: `scripts/test` installs it");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port: u16 = lines
            .find_map(|l| {
                l.unwrap()
                    .strip_prefix("DevTools listening on ws://127.0.0.1:")
                    .map(|r| r.split('/').next().unwrap().parse().unwrap())
            })
            .expect("where it listens");
        // What else it says is not of interest, but must be read.
        std::thread::spawn(move || lines.for_each(drop));
        let mut devtools = Connection::open(([127, 0, 0, 1], port).into());
        let target = format!("/json/new?{url}");
        devtools.send_head("PUT", &target, &[("Host", "localhost"), ("Connection", "close")]);
        let tab = devtools.answer().unwrap().json();
        let address = tab["webSocketDebuggerUrl"].as_str().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (page, _) = tungstenite::client::client(address, stream).unwrap();
        Self { child, _profile: profile, page, asked: 0 }
    }

    /// The result of a command of the protocol.
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let question = json!({ "id": self.asked, "method": method, "params": params });
        self.page.send(Message::text(question.to_string())).unwrap();
        loop {
            if let Message::Text(text) = self.page.read().unwrap() {
                let answer: Value = serde_json::from_str(&text).unwrap();
                if answer["id"] == self.asked {
                    return answer["result"].clone();
                }
            }
        }
    }

    /// What a script comes to.
    pub fn evaluate(&mut self, script: &str) -> Value {
        self.ask("Runtime.evaluate", json!({ "expression": script }))["result"]["value"].clone()
    }

    fn text(&mut self, id: &str) -> String {
        let script = format!("document.getElementById('{id}')?.textContent ?? ''");
        self.evaluate(&script).as_str().unwrap_or_default().to_owned()
    }

    /// What the page looks like. For people, in `$VANGO_EDGE_SCREENSHOTS`, as base64.
    pub fn shot(&mut self, name: &str) {
        let shot = self.ask("Page.captureScreenshot", json!({ "format": "png" }));
        let shot = shot["data"].as_str().unwrap();
        if let Some(to) = std::env::var_os("VANGO_EDGE_SCREENSHOTS") {
            let file = std::path::Path::new(&to).join(format!("{name}.png.base64"));
            std::fs::write(file, shot).unwrap();
        }
        assert!(shot.len() > 10_000, "a page with something on it");
    }

    #[track_caller]
    pub fn until(&mut self, id: &str, wanted: &str) {
        eventually_some(&format!("#{id} says {wanted:?}"), || {
            (self.text(id) == wanted).then_some(())
        });
    }
}

#[test]
fn a_page_counts_on_where_it_was_after_a_drain_and_after_a_kill() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let url = format!("http://studylab.localhost:{}/dashboard", edge.listen.port());
    let mut browser = Browser::open(&url);
    browser.until("live", "connected");
    for count in ["1", "2"] {
        browser.evaluate("document.getElementById('inc').click()");
        browser.until("count", count);
    }
    assert_eq!(browser.text("live-reconnects"), "0");
    let first = browser.text("live-allocation");

    edge.json(&["sleep", "studylab"]);
    browser.until("live-reconnects", "1");
    browser.until("live", "connected");
    browser.until("live-verdict", "hydrate: store-and-schema");
    browser.until("count", "2");
    let second = browser.text("live-allocation");
    assert_ne!(first, second);
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", "3");

    let pid = edge.ps()[0]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    browser.until("live-reconnects", "2");
    browser.until("live-verdict", "hydrate: store-and-schema");
    browser.until("count", "3");
    assert!(browser.text("live-status").contains("read from the session store"));
    browser.shot("killed");
}

#[test]
fn a_page_goes_on_over_a_lost_socket_and_redeploys_as_far_as_its_state_can() {
    let edge = Edge::start();
    edge.deploy(&version(Some('a'), &[]));
    let url = format!("http://studylab.localhost:{}/dashboard", edge.listen.port());
    let mut browser = Browser::open(&url);
    browser.until("live", "connected");
    browser.until("live-verdict", "fresh: not-recorded");
    for count in ["1", "2"] {
        browser.evaluate("document.getElementById('inc').click()");
        browser.until("count", count);
    }
    // The socket is lost, the allocation is not.
    browser.evaluate("socket.close()");
    browser.until("live-reconnects", "1");
    browser.until("live-verdict", "resume: original-allocation");
    browser.until("count", "2");
    browser.until("live-status", "Your session was still here.");
    browser.shot("resume");

    redeploy(&edge, &version(Some('b'), &['a']), "reads-it");
    browser.until("live-reconnects", "2");
    browser.until("live-verdict", "hydrate: store-and-schema");
    browser.until("count", "2");
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", "3");
    browser.shot("hydrate");

    redeploy(&edge, &version(Some('c'), &['a']), "does-not");
    browser.until("live-reconnects", "3");
    browser.until("live-verdict", "fresh: schema-not-accepted");
    browser.until("count", "0");
    browser.until("live-status", "Your session is gone; this is a fresh one.");
    browser.shot("fresh");

    redeploy(&edge, &version(None, &['a', 'b', 'c']), "says-nothing");
    browser.until("live-reconnects", "4");
    browser.until("live-verdict", "fresh: schema-unknown");
    browser.until("count", "0");
}

#[test]
fn a_tab_that_nobody_looks_at_lets_its_app_sleep_and_a_click_wakes_it() {
    let edge = Edge::start();
    let traffic = Artifact::new().set("sleep", "live", "\"traffic\"");
    edge.deploy(&traffic.set("sleep", "after", "\"2s\""));
    let url = format!("http://studylab.localhost:{}/dashboard", edge.listen.port());
    let mut browser = Browser::open(&url);
    browser.until("live", "connected");
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", "1");
    browser.until("live", "asleep");
    eventually("it sleeps", || edge.ps().is_empty());
    // Longer than any pause after which a page would come back by itself the first time.
    assert!(edge.connect().is_silent(Duration::from_secs(3)));
    assert_eq!((edge.ps().len(), edge.ops().len()), (0, 1), "the tab has not woken it");
    browser.shot("asleep");
    browser.evaluate("document.getElementById('inc').click()");
    browser.until("count", "2");
    browser.until("live-verdict", "hydrate: store-and-schema");
}
