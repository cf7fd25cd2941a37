//! An ordinary form and a sleeping app: what the contract has wait, which methods have which rules, and how long
//! an app may be silent.

use serde_json::{Value, json};

use crate::support::{Answer, Artifact, Connection, Edge, Gate, eventually};

const FORM: &str = "application/x-www-form-urlencoded";

/// Saving takes no key, and waits for its app.
fn held(artifact: Artifact) -> Artifact {
    artifact.replace("idempotency = \"app\"", "idempotency = \"none\"\ncold = \"hold\"")
}

/// One more route, before all others.
pub fn route(artifact: Artifact, lines: &str) -> Artifact {
    let first = "[[route]]\npath = \"/vango/live\"";
    artifact.replace(first, &format!("[[route]]\n{lines}\n{first}"))
}

fn hold_form(edge: &Edge, held: u64) -> Connection {
    let headers = [("Content-Type", FORM), ("Content-Length", "8")];
    edge.hold("POST", "/actions/save", &headers, held)
}

#[test]
fn a_form_waits_for_its_app_with_its_body_unread_and_is_sent_once() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&held(Artifact::behind(&gate)));
    let url = "http://studylab.localhost/actions/save";
    let explained = edge.json(&["explain", "POST", url]);
    assert_eq!(explained["outcome"], "woken", "{explained}");
    assert_eq!(explained["steps"][1]["detail"], "unsafe, sent once: cold = \"hold\"");
    let headers = [("Content-Type", FORM), ("Content-Length", "8"), ("Expect", "100-continue")];
    let mut form = edge.hold("POST", "/actions/save", &headers, 1);
    gate.open();
    assert_eq!(form.answer().unwrap().status, 100, "only now it is asked for its body");
    form.send("text=tea");
    let answer = form.answer().unwrap();
    assert_eq!((answer.status, &answer.json()["text"]), (200, &json!("tea")), "{}", answer.text());
    assert_eq!(edge.executions("/actions/save"), 1);
    let trace = edge.trace(answer.request_id());
    assert_eq!((&trace["outcome"], &trace["risk"]), (&json!("woken"), &json!("high risk")));
    assert_eq!(trace["decision"], "Wait with the body unread; send it once, and never again.");
}

#[test]
fn a_form_that_is_not_held_is_told_which_line_would_hold_it() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let line = "cold = \"hold\" under the [[route]] /* or under [defaults] in vango-edge.toml";
    let refused = edge.ask("POST", "/debug/echo", &[("Content-Type", FORM)], "a=b");
    let json = refused.retryable("app-cold");
    assert!(json["detail"].as_str().unwrap().contains(line), "{json}");
    let step =
        edge.trace(refused.request_id())["steps"].as_array().unwrap().last().unwrap().clone();
    assert!(step["detail"].as_str().unwrap().contains(line), "{step}");
    edge.until_hot();
    edge.assert_sleeps_without_a_trace();
    let html = [("Content-Type", FORM), ("Accept", "text/html"), ("Sec-Fetch-Mode", "navigate")];
    let page = edge.ask("POST", "/debug/echo", &html, "a=b");
    assert_eq!(page.status, 503);
    // The person who sent it can do nothing about a contract.
    assert!(!page.text().contains("[[route]]"), "{}", page.text());
    edge.until_hot();
    edge.assert_sleeps_without_a_trace();
    let said = edge.said(&["explain", "POST", "http://studylab.localhost/debug/echo"]);
    assert!(said.contains(line), "{said}");

    // The line, where it says.
    let [one, two] = [("/*", "[[route]]\npath = \"/*\"\n"), ("[defaults]", "")];
    for (place, table) in [one, two] {
        let lines = if table.is_empty() { "[defaults]\ncold = \"hold\"\n" } else { "" };
        let artifact = Artifact::new().replace("[app]\n", &format!("{lines}[app]\n"));
        let page = "[[route]]\npath = \"/*\"\nclass = \"page\"\n";
        let artifact = match table.is_empty() {
            true => artifact,
            false => artifact.replace(page, &format!("{page}cold = \"hold\"\n")),
        };
        edge.deploy(&artifact);
        edge.until_hot();
        edge.assert_sleeps_without_a_trace();
        let answer = edge.ask("POST", "/debug/echo", &[("Content-Type", FORM)], "a=b");
        assert_eq!((answer.status, &answer.json()["body_start"]), (200, &json!("a=b")), "{place}");
    }
}

#[test]
fn kill_9_of_the_edge_while_a_form_waits_sends_nothing() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&held(Artifact::behind(&gate)));
    let mut forms = [hold_form(&edge, 1), hold_form(&edge, 2)];
    for form in &mut forms {
        form.send("text=tea");
    }
    edge.kill();
    for form in &mut forms {
        assert!(
            form.answer().is_none(),
            "its client sees that the connection ended, and no answer"
        );
    }
    gate.open();
    edge.start_again();
    let answer = edge.ask("POST", "/actions/save", &[("Content-Type", FORM)], "text=milk");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(edge.executions("/actions/save"), 1, "the last one's alone");
}

#[test]
fn a_form_whose_client_leaves_is_not_sent_and_one_whose_app_dies_over_it_is_not_sent_again() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    let artifact = held(Artifact::behind(&gate)).set("scale", "concurrency", "1");
    edge.deploy(&artifact.set("wake", "max_held", "3"));
    let mut leaves = hold_form(&edge, 1);
    leaves.send("text=tea");
    let reset = hold_form(&edge, 2);
    let fault = [("Content-Type", FORM), ("Content-Length", "8"), ("Studylab-Fault", "exit-after")];
    let mut dies = edge.hold("POST", "/actions/save", &fault, 3);
    dies.send("text=tea");
    // As many wait as may.
    let full = edge.ask("POST", "/actions/save", &[("Content-Type", FORM)], "text=tea");
    full.retryable("hold-queue-full");
    drop(leaves);
    reset.reset();
    edge.until_held(1);
    gate.open();
    let answer = dies.answer().expect("an honest answer");
    assert_eq!((answer.status, answer.header("retry-after")), (502, None), "{}", answer.text());
    assert_eq!(answer.json()["forwarded"], "forwarded, outcome unknown");
    eventually("it is served again", || edge.get("/dashboard").status == 200);
    assert_eq!(edge.executions("/actions/save"), 1);
    let left = edge.list(&["traces", "-n", "1000"]);
    assert_eq!(left.iter().filter(|t| t["outcome"] == "client-left").count(), 2);
}

#[test]
fn forms_that_wait_for_a_place_are_each_sent_once() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&held(Artifact::behind(&gate)).set("scale", "concurrency", "1"));
    let mut forms: Vec<_> = (1..=12).map(|n| hold_form(&edge, n)).collect();
    for form in &mut forms {
        form.send("text=tea");
    }
    gate.open();
    for form in &mut forms {
        assert_eq!(form.answer().unwrap().status, 200);
    }
    assert_eq!(edge.executions("/actions/save"), 12);
    assert_eq!(edge.ops().len(), 1, "one wake for all");
}

#[test]
fn a_form_whose_app_does_not_start_is_told_so_and_sent_nowhere() {
    let edge = Edge::start();
    let broken = held(Artifact::new()).set("process", "command", "[\"sh\", \"-c\", \"exit 3\"]");
    edge.deploy(&broken);
    let answer = edge.ask("POST", "/actions/save", &[("Content-Type", FORM)], "text=tea");
    answer.retryable("wake-failed");
    let late = held(Artifact::new()).set("process", "command", "[\"sleep\", \"60\"]").set(
        "wake",
        "budget",
        "\"300ms\"",
    );
    let other = edge.start_beside();
    other.deploy(&late);
    let answer = other.ask("POST", "/actions/save", &[("Content-Type", FORM)], "text=tea");
    answer.retryable("wake-timeout");
}

fn form(edge: &Edge, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    edge.ask(method, path, &[&[("Content-Type", FORM)], headers].concat(), body)
}

#[test]
fn a_path_has_rules_of_its_own_for_each_method() {
    let edge = Edge::start();
    let keyed =
        "path = \"/debug/echo\"\nmethods = [\"POST\"]\nclass = \"action\"\nidempotency = \"app\"";
    let artifact =
        route(Artifact::new(), "path = \"/debug/echo\"\nmethods = [\"PUT\"]\nmax_body = \"4B\"");
    edge.deploy(&route(artifact, keyed));
    assert_eq!(edge.get("/debug/echo").status, 200, "by a page's rules");
    let post = form(&edge, "POST", "/debug/echo", &[], "a=b");
    post.problem(400, "idempotency-key-missing");
    let keyed = form(&edge, "POST", "/debug/echo", &[("Idempotency-Key", "k")], "a=b");
    assert_eq!((keyed.status, &keyed.json()["method"]), (200, &json!("POST")));
    assert_eq!(edge.trace(keyed.request_id())["steps"][1]["value"], "POST /debug/echo (action)");
    form(&edge, "post", "/debug/echo", &[], "a=b").problem(400, "idempotency-key-missing");
    form(&edge, "PUT", "/debug/echo", &[], "a=bcd").problem(413, "content-too-large");
    // By none of these: the next route that takes the path.
    assert_eq!(form(&edge, "PATCH", "/debug/echo", &[], "a=bcd").status, 200);
    // Spelled otherwise, the app may carry it out as the action; the other methods have nothing to walk around.
    form(&edge, "POST", "/Debug/echo", &[], "a=b").problem(400, "bad-path");
    form(&edge, "POST", "//debug/echo", &[("Idempotency-Key", "k")], "a=b")
        .problem(400, "bad-path");
    assert_eq!(form(&edge, "PATCH", "/Debug/echo", &[], "a=b").status, 404, "the app's own answer");
    for (method, says) in [("GET", "POST"), ("PATCH", "POST"), ("POST", "GET")] {
        let twice = [("X-HTTP-Method-Override", says), ("Idempotency-Key", "k")];
        let answer = form(&edge, method, "/debug/echo", &twice, "");
        answer.problem(400, "malformed-request");
        assert!(answer.json()["detail"].as_str().unwrap().contains("X-HTTP-Method-Override"));
    }
}

#[test]
fn methods_that_only_read_wait_and_need_no_key() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    let reads = "path = \"/debug/*\"\nsafe_methods = [\"POST\"]";
    edge.deploy(&route(Artifact::behind(&gate), reads));
    let mut held: Vec<Connection> = Vec::new();
    for method in ["POST", "PROPFIND", "REPORT", "SEARCH", "QUERY"] {
        let length = [("Content-Length", "3")];
        held.push(edge.hold(method, "/debug/echo", &length, held.len() as u64 + 1));
    }
    for method in ["MKCOL", "MOVE", "PUT", "LOCK"] {
        form(&edge, method, "/debug/echo", &[], "a=b").retryable("app-cold");
    }
    gate.open();
    for mut client in held {
        client.send("a=b");
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, &answer.json()["body_start"]), (200, &json!("a=b")));
    }
    edge.ask("TRACE", "/debug/echo", &[], "").problem(501, "method-refused");
}

#[test]
fn a_route_says_itself_how_long_its_app_may_be_silent() {
    let edge = Edge::start_with("[limits]\nresponse_timeout = \"400ms\"\n");
    let patient = "path = \"/debug/slow\"\ntimeout = \"60s\"";
    let artifact = route(Artifact::new(), patient);
    let principal = "principal = \"cookie:vango_session\"";
    edge.deploy(&artifact.replace(principal, &format!("{principal}\ntimeout = \"60s\"")));
    assert_eq!(edge.get("/debug/slow?ms=1200").status, 200);
    let slow = [
        ("Idempotency-Key", "k"),
        ("Studylab-Fault", "slow:1200ms"),
        ("Cookie", "vango_session=ada"),
    ];
    // Of a request on record as well.
    assert_eq!(form(&edge, "POST", "/actions/submit", &slow, "text=tea").status, 200);
    let other = form(&edge, "POST", "/actions/save", &slow, "text=tea");
    assert_eq!(other.status, 504, "the node's time: {}", other.text());
}

#[test]
fn a_stream_that_is_silent_for_longer_than_the_node_says_goes_on_where_its_route_says_so() {
    let edge = Edge::start_with("[limits]\nresponse_timeout = \"300ms\"\n");
    let answer = r#"
        if ($line =~ m{/(events|other)}) {
            push @streams, $client;
            print $client "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
            $client->flush;
            next;
        }
        print $client $ok;"#;
    let artifact = Artifact::perl(&format!("our @streams; {answer}"))
        .set("process", "ready", "{ tcp = true }")
        .set("sleep", "after", "\"never\"");
    edge.deploy(&route(artifact, "path = \"/events\"\ntimeout = \"60s\""));
    let mut stream = edge.connect();
    stream.send_head("GET", "/events", &[]);
    stream.read_until("data: 1\n\n\r\n");
    // Silent for longer than the node's time, as another stream that is cut by it shows.
    for _ in 0..2 {
        let mut cut = edge.connect();
        cut.send_head("GET", "/other", &[]);
        cut.read_until("data: 1\n\n\r\n");
        assert!(!String::from_utf8_lossy(&cut.rest()).contains("data: 2"));
    }
    assert!(stream.is_silent(std::time::Duration::from_millis(1)), "it was not cut");
}

#[test]
fn what_a_node_cannot_keep_is_explained_at_deploy_with_both_numbers() {
    let edge = Edge::start_with("[limits]\nmax_route_timeout = \"90s\"\n");
    let long = route(Artifact::new(), "path = \"/reports/*\"\ntimeout = \"2m\"");
    let long = long.set("wake", "budget", "\"6m\"");
    let why = edge.refused(&["deploy", long.write().to_str().unwrap()]);
    for words in [
        "server.grace is 300s, shorter than the wake budget of studylab/production, 360s",
        "the timeout of the route /reports/* is 120s",
        "limits.max_route_timeout is 90s",
    ] {
        assert!(why.contains(words), "{words} in {why}");
    }
    assert_eq!(edge.list(&["deployments"]), [] as [Value; 0]);
}

/// Submits are keyed, by the edge's record and by a field of their form.
fn by_field(artifact: Artifact) -> Artifact {
    let principal = "principal = \"cookie:vango_session\"";
    artifact.replace(principal, &format!("{principal}\nkey = \"field:_idempotency\""))
}

/// A browser's form: it can set no header.
fn submit(edge: &Edge, path: &str, body: &str) -> Answer {
    form(edge, "POST", path, &[("Cookie", "vango_session=ada")], body)
}

/// The same as a browser sends one with a file in it; its boundary is new each time.
fn multipart(edge: &Edge, path: &str, boundary: &str, fields: &[(&str, &str)]) -> Answer {
    let part = |(name, value): &(&str, &str)| {
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
    };
    let body = fields.iter().map(part).collect::<String>() + &format!("--{boundary}--\r\n");
    let kind = format!("multipart/form-data; boundary={boundary}");
    let headers = [("Content-Type", &*kind), ("Cookie", "vango_session=ada")];
    edge.ask("POST", path, &headers, &body)
}

const ECHO: &str = "path = \"/debug/echo\"\nmethods = [\"POST\"]\nclass = \"action\"";

#[test]
fn a_key_in_a_field_of_its_form_is_sent_once_and_the_app_gets_the_form_as_it_was_sent() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    let rules = "idempotency = \"edge\"\nprincipal = \"cookie:vango_session\"\nkey = \"field:_idempotency\"";
    edge.deploy(&route(Artifact::behind(&gate), &format!("{ECHO}\n{rules}")));
    let path = "/debug/echo";
    // Refused for what its head and its body say, before anything wakes.
    submit(&edge, path, "text=tea").problem(400, "idempotency-key-missing");
    submit(&edge, path, "_idempotency=&text=tea").problem(400, "idempotency-key-invalid");
    let two = submit(&edge, path, "_idempotency=a&_idempotency=b");
    let why = two.problem(400, "idempotency-key-invalid");
    assert!(why["detail"].as_str().unwrap().contains("two keys that differ"), "{why}");
    let named = form(&edge, "POST", path, &[], "_idempotency=k1");
    named.problem(400, "principal-missing");
    assert_eq!((edge.ops(), edge.processes()), (vec![], vec![]));

    let body = "_idempotency=k%201&text=tea+%26+milk";
    let length = body.len().to_string();
    let headers =
        [("Content-Type", FORM), ("Content-Length", &*length), ("Cookie", "vango_session=ada")];
    let mut first = edge.connect();
    first.send_head("POST", path, &headers);
    first.send(body);
    edge.until_held(1);
    submit(&edge, path, body).problem(409, "request-in-progress");
    gate.open();
    let first = first.answer().unwrap();
    assert_eq!(first.status, 200, "{}", first.text());
    let seen = first.json();
    assert_eq!((&seen["body_start"], &seen["body_length"]), (&json!(body), &json!(body.len())));
    assert!(!seen["headers"].to_string().contains("\"idempotency-key\""), "{seen}");
    let again = submit(&edge, path, body);
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &first.body));
    submit(&edge, path, "_idempotency=k%201&text=milk").problem(422, "idempotency-key-reused");
    // The same key in the header names the same action; another one there names none.
    let with = |key: &str| {
        let headers = [("Cookie", "vango_session=ada"), ("Idempotency-Key", key)];
        form(&edge, "POST", path, &headers, body)
    };
    assert_eq!(with("\"k 1\"").header("idempotent-replayed"), Some("true"));
    with("k2").problem(400, "idempotency-key-invalid");

    let fields = [("text", "tea"), ("_idempotency", "m1")];
    let first = multipart(&edge, path, "----one", &fields);
    assert_eq!(first.status, 200, "{}", first.text());
    let again = multipart(&edge, path, "----two", &fields);
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &first.body));
    let rows = edge.list(&["ledger", "studylab"]);
    assert_eq!(rows.len(), 2, "{rows:?}");
    let url = "http://studylab.localhost/debug/echo";
    let explained = edge.json(&["explain", "POST", url, "-H", "Cookie: vango_session=ada"]);
    let steps = explained["steps"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["value"] == "would be looked for in the form"), "{explained}");
}

#[test]
fn kill_9_over_a_form_that_was_sent_leaves_its_key_unknown() {
    let mut edge = Edge::start();
    edge.deploy(&by_field(Artifact::new()));
    assert_eq!(edge.get("/dashboard").status, 200);
    // The app asks for the header too: the same key in both.
    let body = "text=tea&_idempotency=k1";
    let length = body.len().to_string();
    let headers = [("Cookie", "vango_session=ada"), ("Idempotency-Key", "k1")];
    let slow =
        [("Studylab-Fault", "slow:60s"), ("Content-Type", FORM), ("Content-Length", &length)];
    let mut client = edge.connect();
    client.send_head("POST", "/actions/submit", &[&headers[..], &slow].concat());
    client.send(body);
    eventually("the app carried it out", || edge.executions("/actions/submit") == 1);
    edge.kill();
    assert!(client.answer().is_none());
    edge.start_again();
    let repeat = form(&edge, "POST", "/actions/submit", &headers, body);
    assert_eq!(repeat.status, 409, "{}", repeat.text());
    assert_eq!(repeat.json()["forwarded"], "forwarded, outcome unknown");
    assert_eq!(edge.executions("/actions/submit"), 1);
}

#[test]
fn a_form_that_waits_with_its_key_read_is_let_go_when_its_client_leaves_or_its_wake_fails() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&by_field(Artifact::behind(&gate)));
    let body = "text=tea&_idempotency=k1";
    let length = body.len().to_string();
    let headers =
        [("Content-Type", FORM), ("Content-Length", &*length), ("Cookie", "vango_session=ada")];
    let mut leaves = edge.connect();
    leaves.send_head("POST", "/actions/submit", &headers);
    leaves.send(body);
    edge.until_held(1);
    drop(leaves);
    edge.until_held(0);
    eventually("its key is free", || edge.list(&["ledger", "studylab"]).is_empty());
    gate.open();
    edge.until_hot();
    assert_eq!(edge.executions("/actions/submit"), 0);
    let long = format!("text={}&_idempotency=k1", "a".repeat(1 << 20));
    submit(&edge, "/actions/submit", &long).problem(413, "content-too-large");
}

#[test]
fn a_key_may_stand_in_the_query_or_in_another_header() {
    let edge = Edge::start();
    let keyed = |path: &str, key: &str, app: bool| {
        let by = if app {
            "idempotency = \"app\""
        } else {
            "idempotency = \"edge\"\nprincipal = \"cookie:vango_session\""
        };
        format!(
            "path = \"{path}\"\nmethods = [\"POST\"]\nclass = \"action\"\n{by}\nkey = \"{key}\""
        )
    };
    let artifact = route(Artifact::new(), &keyed("/debug/echo", "query:once", false));
    let artifact = route(artifact, &keyed("/actions/save", "header:X-Request-Key", true));
    edge.deploy(&artifact);
    let first = submit(&edge, "/debug/echo?a=1&once=k%201", "text=tea");
    assert_eq!((first.status, &first.json()["query"]), (200, &json!("a=1&once=k%201")));
    let again = submit(&edge, "/debug/echo?a=1&once=k%201", "text=tea");
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    submit(&edge, "/debug/echo?once=a&once=b", "text=tea").problem(400, "idempotency-key-invalid");
    submit(&edge, "/debug/echo", "text=tea").problem(400, "idempotency-key-missing");
    let save = |headers: &[(&str, &str)]| form(&edge, "POST", "/actions/save", headers, "text=tea");
    let missing = save(&[]).problem(400, "idempotency-key-missing");
    assert!(missing["detail"].as_str().unwrap().contains("a header x-request-key"), "{missing}");
    assert_eq!(save(&[("X-Request-Key", "k")]).status, 200);
    assert_eq!(save(&[("Idempotency-Key", "k")]).status, 200, "the usual one counts everywhere");
    save(&[("X-Request-Key", "k"), ("Idempotency-Key", "l")])
        .problem(400, "idempotency-key-invalid");
}

#[test]
fn an_app_that_keeps_its_own_record_may_have_its_keys_in_the_form() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    let rules = "idempotency = \"app\"\nkey = \"field:_idempotency\"";
    edge.deploy(&route(Artifact::behind(&gate), &format!("{ECHO}\n{rules}")));
    submit(&edge, "/debug/echo", "text=tea").problem(400, "idempotency-key-missing");
    assert_eq!(edge.processes(), [] as [u32; 0]);
    let body = "_idempotency=k1&text=tea";
    let length = body.len().to_string();
    let headers = [("Content-Type", FORM), ("Content-Length", &*length)];
    let mut held = edge.connect();
    held.send_head("POST", "/debug/echo", &headers);
    held.send(body);
    edge.until_held(1);
    gate.open();
    let first = held.answer().unwrap();
    let (seen, attempt) =
        (first.json(), |n: u32| json!(["vango-edge-idempotency-attempt", n.to_string()]));
    assert_eq!((first.status, &seen["body_start"]), (200, &json!(body)));
    assert!(seen["headers"].as_array().unwrap().contains(&attempt(1)), "{seen}");
    // The app's record decides: a repeat is sent to it, and says that it is one.
    let again = submit(&edge, "/debug/echo", body);
    assert!(again.json()["headers"].as_array().unwrap().contains(&attempt(2)), "{}", again.text());
    assert_eq!(edge.list(&["ledger", "studylab"]), [] as [Value; 0]);
}
