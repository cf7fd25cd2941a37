//! Where a session comes back to, and what its app is told.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{Answer, Artifact, Edge, eventually};

use super::{Socket, edge_cookie, open};

fn told(hello: &serde_json::Value) -> (&str, &str, &str, u64) {
    let text = |key: &str| hello[key].as_str().unwrap();
    (text("verdict"), text("reason"), text("state"), hello["count"].as_u64().unwrap())
}

#[test]
fn a_counter_is_kept_where_it_is_and_read_from_the_store_elsewhere() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let live = "/vango/live?sid=s-1";
    let (mut socket, hello) = Socket::greeted(&edge, live, &[]);
    assert_eq!(told(&hello), ("fresh", "not-recorded", "fresh", 0));
    let cookie = socket.cookie.clone().expect("a cookie with the 101");
    assert!(cookie.starts_with("vango_edge="), "{cookie}");
    let first = hello["allocation"].clone();
    assert_eq!((socket.add(), socket.add()), (1, 2));
    assert_eq!((&edge.ps()[0]["sockets"], &edge.ps()[0]["in_flight"]), (&json!(1), &json!(0)));
    drop(socket);
    eventually("its leg to the app is closed", || edge.ps()[0]["sockets"] == 0);

    // The original: by the cookie, without a new one.
    let (mut socket, hello) = Socket::greeted(&edge, live, &[("Cookie", &cookie)]);
    assert_eq!(told(&hello), ("resume", "original-allocation", "memory", 2));
    assert_eq!((&hello["allocation"], &socket.cookie), (&first, &None));
    assert_eq!(socket.add(), 3);

    // It drains: the socket ends so that the client comes back, and another one hydrates.
    edge.json(&["sleep", "studylab"]);
    assert_eq!(socket.closed(), Some(1012));
    let (mut socket, hello) = Socket::greeted(&edge, live, &[("Cookie", &cookie)]);
    assert_eq!(told(&hello), ("hydrate", "store-and-schema", "hydrated", 3));
    assert_ne!(hello["allocation"], first);
    assert!(socket.cookie.is_some(), "it is placed again: a new cookie");
    assert_eq!(socket.add(), 4);

    // It is killed: no clean close either.
    let pid = edge.ps()[0]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(socket.closed(), Some(1012));
    let (_socket, hello) = Socket::back(&edge, live, &[]);
    assert_eq!(told(&hello), ("hydrate", "store-and-schema", "hydrated", 4), "by the record alone");
    let steps = edge.list(&["traces", "-n", "1"]).pop().unwrap();
    assert_eq!((&steps["status"], &steps["class"]), (&json!(101), &json!("live")));
}

#[test]
fn what_is_not_promised_or_not_stored_starts_fresh_and_says_so() {
    let edge = Edge::start();
    let stays =
        Artifact::new().replace("resume = \"cross-allocation\"", "resume = \"same-allocation\"");
    edge.deploy(&stays);
    let (mut socket, _) = Socket::greeted(&edge, "/vango/live?sid=s-1", &[]);
    socket.add();
    edge.json(&["sleep", "studylab"]);
    assert_eq!(socket.closed(), Some(1012));
    let (_, hello) = Socket::greeted(&edge, "/vango/live?sid=s-1", &[]);
    assert_eq!(told(&hello), ("fresh", "not-promised", "fresh", 0));

    let edge = edge.start_beside();
    edge.deploy(&Artifact::new());
    let (socket, _) = Socket::greeted(&edge, "/vango/live?sid=s-2", &[]);
    // Nothing was added, so that nothing was stored.
    edge.json(&["sleep", "studylab"]);
    assert_eq!(socket.closed(), Some(1012));
    let (_, hello) = Socket::greeted(&edge, "/vango/live?sid=s-2", &[]);
    assert_eq!(told(&hello), ("fresh", "not-in-store", "fresh", 0));
}

#[test]
fn a_page_and_its_socket_are_one_browsers_and_forgeries_are_ignored() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let page = edge.get("/dashboard");
    let (cookie, set) = edge_cookie(&page).expect("a cookie with the page");
    for attribute in ["; Path=/", "; HttpOnly", "; SameSite=Lax"] {
        assert!(set.contains(attribute), "{set}");
    }
    let again = edge.ask("GET", "/dashboard", &[("Cookie", cookie)], "");
    assert_eq!(edge_cookie(&again), None, "it has one");
    for (method, path) in [("GET", "/nothing-here"), ("POST", "/webhooks/stripe")] {
        assert_eq!(edge_cookie(&edge.ask(method, path, &[], "")), None, "{path}");
    }
    // Its first socket goes where the page is, and its session is new.
    let headers = [("Cookie", cookie)];
    let (mut socket, hello) = Socket::greeted(&edge, "/vango/live?sid=s-1", &headers);
    assert_eq!(told(&hello), ("fresh", "not-recorded", "fresh", 0));
    let of_session = socket.cookie.clone().expect("a cookie that names the session");
    assert_eq!(socket.add(), 1);
    drop(socket);
    let headers = [("Cookie", of_session.as_str())];
    let (socket, hello) = Socket::greeted(&edge, "/vango/live?sid=s-1", &headers);
    assert_eq!(told(&hello), ("resume", "original-allocation", "memory", 1));
    assert_eq!(socket.cookie, None);
    drop(socket);
    // Another tab's session is not the one that the cookie names.
    let (_, hello) = Socket::greeted(&edge, "/vango/live?sid=s-2", &headers);
    assert_eq!(told(&hello), ("fresh", "not-recorded", "fresh", 0));
    let page = edge.ask("GET", "/dashboard", &[headers[0]], "");
    assert_eq!(edge_cookie(&page), None, "a page leaves it as it is");
    let mut forged = cookie.to_owned();
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'B' } else { 'A' });
    for forged in [forged.as_str(), "vango_edge=", "vango_edge=AAAA", "__Host-vango_edge=x"] {
        let headers = [
            ("Cookie", forged),
            ("Vango-Edge-Resume", "resume"),
            ("Vango-Edge-Resume-Reason", "because I say so"),
        ];
        let (_, hello) = Socket::greeted(&edge, "/vango/live", &headers);
        assert_eq!((&hello["verdict"], &hello["reason"]), (&json!("fresh"), &json!("no-session")));
        let page = edge.ask("GET", "/dashboard", &[("Cookie", forged)], "");
        assert!(page.status == 200 && edge_cookie(&page).is_some(), "ignored, not an error");
    }
    // What the edge asks the app for, no client may ask.
    assert_eq!(edge.get("/internal/sessions/s-1").status, 404);
    assert_eq!(edge.get("/internal/%73essions/s-1").status, 404);
}

#[test]
fn explain_knows_what_a_reconnect_would_be_told() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let (mut socket, _) = Socket::greeted(&edge, "/vango/live?sid=s-1", &[]);
    let cookie = socket.cookie.clone().unwrap();
    assert_eq!(socket.add(), 1);
    let explain = |sid: &str, headers: &[&str]| {
        let url = format!("http://studylab.localhost/vango/live?sid={sid}");
        let mut arguments = vec!["explain", "GET", &url];
        for header in ["Connection: Upgrade", "Upgrade: websocket"].iter().chain(headers) {
            arguments.extend(["-H", header]);
        }
        let steps = edge.json(&arguments)["steps"].as_array().unwrap().clone();
        let of = |truth: &str| {
            let step = steps.iter().find(|s| s["truth"] == truth).unwrap();
            format!("{} | {}", step["value"].as_str().unwrap(), step["detail"].as_str().unwrap())
        };
        (of("Session routing record"), of("Session store"), of("Vango state schema"))
    };
    let allocation = edge.until_hot()["id"].as_str().unwrap().to_owned();
    // The record is written off the way of the socket.
    let by_record = format!("{allocation} generation 1 (record) | ready");
    eventually("the record is read", || explain("s-1", &[]).0 == by_record);
    assert!(explain("s-1", &[]).2.starts_with("resume | original-allocation"));
    let with_cookie = format!("Cookie: {cookie}");
    let (found, ..) = explain("s-2", &[&with_cookie]);
    assert!(
        found.ends_with(&format!("no record of it; its browser is on {allocation}")),
        "{found}"
    );
    edge.json(&["sleep", "studylab"]);
    assert_eq!(socket.closed(), Some(1012));
    let (_socket, _) = Socket::greeted(&edge, "/vango/live?sid=s-3", &[]);
    let (found, store, verdict) = explain("s-1", &[]);
    assert_eq!(found, format!("{allocation} generation 1 (record) | gone"));
    assert!(store.starts_with("would be asked") && verdict.starts_with("would be decided"));
    assert!(explain("s-4", &[]).2.starts_with("fresh | not-recorded"));
}

#[test]
fn keys_rotate_by_a_reload_and_the_one_before_still_opens() {
    let keys = tempfile::tempdir().unwrap();
    let (new, old) = (keys.path().join("new"), keys.path().join("old"));
    std::fs::write(&new, "ab".repeat(32)).unwrap();
    std::fs::write(&old, "cd".repeat(32)).unwrap();
    let list = |files: &[&std::path::Path]| {
        let files: Vec<_> = files.iter().map(|f| format!("{{ file = {f:?} }}")).collect();
        format!("[affinity]\nkeys = [{}]\n", files.join(", "))
    };
    let edge = Edge::start_with(&list(&[&old]));
    edge.deploy(&Artifact::new());
    let cookie = |answer: &Answer| edge_cookie(answer).map(|(cookie, _)| cookie.to_owned());
    let before = cookie(&edge.get("/dashboard")).unwrap();
    let reload = |keys: &str| {
        let text = std::fs::read_to_string(edge.config()).unwrap();
        let at = text.find("[affinity]").unwrap();
        std::fs::write(edge.config(), format!("{}{keys}", &text[..at])).unwrap();
        assert!(edge.command(&["reload"]).status.success());
    };
    let knows = |cookie: &str| {
        let page = edge.ask("GET", "/dashboard", &[("Cookie", cookie)], "");
        edge_cookie(&page).is_none()
    };
    reload(&list(&[&new, &old]));
    assert!(knows(&before));
    let after = cookie(&edge.get("/dashboard")).unwrap();
    reload(&list(&[&new]));
    assert!(knows(&after) && !knows(&before));
    let refused = open(edge.listen, "/vango/live", &[("Origin", "http://evil.example")]);
    assert_eq!(refused.err(), Some(403), "the app's own rule, passed on");
}
