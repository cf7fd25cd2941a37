//! A browser, which resolves `*.localhost` to this machine by itself (RFC 6761 §6.3).

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::support::{Artifact, Edge, eventually_some};
use crate::tls::edge_with;

/// A browser process and those it starts, ended with the test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        // Only while it is not waited for is its group's id surely its own.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// What the page's DOM is once it is loaded; `screenshot` instead writes a picture of it.
fn chromium(url: &str, screenshot: Option<&Path>) -> String {
    let profile = tempfile::tempdir().unwrap();
    let out = profile.path().join("dom.html");
    let shot = screenshot.map(|to| format!("--screenshot={}", to.display()));
    let spawned = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--ignore-certificate-errors"])
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .arg(shot.unwrap_or_else(|| "--dump-dom".into()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut browser = Browser(spawned.expect("chromium is on PATH: `scripts/test` installs it"));
    let ended = eventually_some("the browser ends", || browser.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    fs::read_to_string(out).unwrap()
}

#[test]
fn a_browser_shows_the_page_of_a_sleeping_app_and_of_a_hot_one() {
    let edge = Edge::start();
    let digest = edge.deploy(&Artifact::new())["digest"].as_str().unwrap().to_owned();
    let url = format!("http://studylab.localhost:{}/dashboard", edge.listen.port());
    let asleep = chromium(&url, None);
    let ops = edge.ops();
    assert_eq!(ops.len(), 1);
    let allocation = ops[0]["allocation"].as_str().unwrap();
    let hot = chromium(&url, None);
    for dom in [&asleep, &hot] {
        assert!(dom.contains(&format!("<h1>{allocation}</h1>")), "{dom}");
        assert!(dom.contains("<dt>Epoch</dt><dd>1</dd>"), "{dom}");
        let shown = &digest.trim_start_matches("sha256:")[..12];
        assert!(dom.contains(shown), "the artifact: {dom}");
    }
    assert_eq!((edge.ops().len(), edge.executions("/dashboard")), (1, 2));
    let picture = tempfile::tempdir().unwrap();
    let shot = picture.path().join("page.png");
    chromium(&url, Some(&shot));
    assert!(fs::metadata(&shot).unwrap().len() > 10_000, "a picture of a page");
    let traces = edge.list(&["traces", "--class", "page"]);
    let of_page = traces.iter().filter(|t| t["path"] == "/dashboard");
    let outcomes: Vec<_> = of_page.map(|t| t["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["hot", "hot", "woken"]);
}

#[test]
fn a_browser_is_shown_a_page_when_the_edge_answers_itself() {
    let edge = Edge::start();
    let url = format!("http://nobody.localhost:{}/", edge.listen.port());
    let dom = chromium(&url, None);
    assert!(dom.contains("<h1>No app answers for this host and path</h1>"), "{dom}");
    assert!(dom.contains("404 · not forwarded"), "{dom}");
}

/// RFC 8441 is not there, and browsers do not need it: where the setting is not announced, they open a
/// connection of HTTP/1.1 for a socket.
#[test]
fn a_page_over_http2_opens_its_socket_over_http1() {
    let (edge, _dir) = edge_with("");
    let artifact = Artifact::new();
    // What it waits for keeps the page from being over before its socket is open.
    let page = r#"<!doctype html><title>x</title><p id="by"></p><script>
        document.getElementById("by").textContent = performance.getEntriesByType("navigation")[0].nextHopProtocol;
        const socket = new WebSocket(`wss://${location.host}/vango/live`);
        socket.onopen = socket.onclose = (e) => (document.title = e.type);
        </script><img src="/debug/slow?ms=2000">"#;
    fs::write(artifact.path().join("public/socket.html"), page).unwrap();
    edge.deploy(&artifact);
    let url = format!("https://studylab.localhost:{}/assets/socket.html", edge.tls.unwrap().port());
    let dom = chromium(&url, None);
    assert!(dom.contains("<p id=\"by\">h2</p>") && dom.contains("<title>open</title>"), "{dom}");
    let sockets = edge.list(&["traces", "--class", "live"]);
    assert!(sockets.iter().any(|t| t["status"] == 101), "{sockets:?}");
}
