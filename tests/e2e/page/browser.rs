//! The page in a browser, with and without script.

use std::fs;

use serde_json::json;

use crate::live::browser::Browser;
use crate::support::{Artifact, Edge, Gate, eventually, eventually_some};

fn url(edge: &Edge, path: &str) -> String {
    format!("http://studylab.localhost:{}{path}", edge.listen.port())
}

fn heading(browser: &mut Browser) -> String {
    let found = browser.evaluate("document.querySelector('h1')?.textContent ?? ''");
    found.as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn until_heading(browser: &mut Browser, wanted: &str) {
    eventually_some(&format!("the page says {wanted:?}"), || {
        (heading(browser) == wanted).then_some(())
    });
}

/// The line of what is going on, as it is seen.
fn line(browser: &mut Browser) -> String {
    let script = "document.querySelector('[role=status]')?.innerText ?? ''";
    browser.evaluate(script).as_str().unwrap_or_default().to_owned()
}

fn button_is_there(browser: &mut Browser) -> bool {
    browser.evaluate("(b => !!b && b.offsetHeight > 0)(document.querySelector('[data-again]'))")
        == json!(true)
}

/// A form is sent from a page of no site.
fn send_form(browser: &mut Browser, to: &str) {
    browser.evaluate(&format!(
        "document.body.innerHTML = '<form method=post action=\"{to}\"><input name=text value=once></form>'; \
         document.forms[0].submit()"
    ));
}

/// One whose start takes longer than a request waits.
fn slow(gate: &Gate) -> Artifact {
    Artifact::behind(gate).set("wake", "budget", "\"300ms\"")
}

fn app_of(edge: &Edge) -> String {
    edge.until_hot()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_page_goes_on_by_itself_when_its_app_is_up() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&slow(&gate));
    let mut browser = Browser::open_with(&url(&edge, "/dashboard?a=1#b"), &[]);
    until_heading(&mut browser, "This app is starting");
    eventually("it has asked", || edge.metric("vango_edge_state_requests_total") > 0);
    assert_eq!(line(&mut browser), "Starting…");
    browser.shot("page-starting");
    gate.open();
    let allocation = app_of(&edge);
    until_heading(&mut browser, &allocation);
    assert_eq!(browser.evaluate("location.search + location.hash"), "?a=1#b");
    assert_eq!(edge.ops().len(), 1, "one wake");
    let asked = edge.list(&["traces"]);
    let of_app = |t: &&serde_json::Value| t["outcome"] != "asset" && t["path"] != "/dashboard";
    let other: Vec<_> =
        asked.iter().filter(of_app).map(|t| t["path"].as_str().unwrap().to_owned()).collect();
    // The edge's page has an icon of its own; what comes after it is of the app's page.
    assert!(other.iter().all(|p| p == "/vango/live" || p == "/debug/executions"), "{other:?}");
}

#[test]
fn a_form_is_sent_again_by_its_person_and_arrives_once() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&slow(&gate).replace("idempotency = \"app\"", "idempotency = \"none\""));
    let mut browser = Browser::open_with("about:blank", &[]);
    send_form(&mut browser, &url(&edge, "/actions/save"));
    until_heading(&mut browser, "What you sent was not delivered");
    eventually("it has asked", || edge.metric("vango_edge_state_requests_total") > 1);
    assert!(line(&mut browser).starts_with("It is starting."), "{}", line(&mut browser));
    assert!(!button_is_there(&mut browser), "there is nothing to send it to yet");
    browser.shot("form-starting");
    gate.open();
    app_of(&edge);
    eventually("it is offered", || button_is_there(&mut browser));
    assert_eq!(line(&mut browser), "It is up. You can send it again now.");
    assert_eq!(edge.executions("/actions/save"), 0, "and nothing is sent by itself");
    browser.shot("form-ready");
    // Two clicks of a nervous person are one.
    browser.evaluate("(b => { b.click(); b.click() })(document.querySelector('[data-again]'))");
    eventually("it arrived", || {
        let text = browser.evaluate("document.body.innerText");
        text.as_str().is_some_and(|t| t.contains("\"once\""))
    });
    assert_eq!(edge.executions("/actions/save"), 1);
}

#[test]
fn a_form_can_be_sent_after_its_person_said_no_to_the_browser_s_question() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&slow(&gate).replace("idempotency = \"app\"", "idempotency = \"none\""));
    let mut browser = Browser::open_with("about:blank", &[]);
    send_form(&mut browser, &url(&edge, "/actions/save"));
    until_heading(&mut browser, "What you sent was not delivered");
    gate.open();
    app_of(&edge);
    eventually("it is offered", || button_is_there(&mut browser));
    // Chromium asks by itself only where a person reloads; it asks for a page that wants it, at the same moment.
    browser.ask("Page.enable", json!({}));
    let clicks = "onbeforeunload = e => e.preventDefault(); \
                  setTimeout(() => document.querySelector('[data-again]').click())";
    browser.ask("Runtime.evaluate", json!({ "expression": clicks, "userGesture": true }));
    let no = json!({ "accept": false });
    eventually("the person is asked, and says no", || {
        browser.ask("Page.handleJavaScriptDialog", no.clone()).is_object()
    });
    eventually("it is offered again", || {
        browser.evaluate("document.querySelector('[data-again]').disabled") == json!(false)
    });
    assert_eq!(edge.executions("/actions/save"), 0);
    browser.evaluate("onbeforeunload = null; document.querySelector('[data-again]').click()");
    eventually("it arrived", || {
        let text = browser.evaluate("document.body.innerText");
        text.as_str().is_some_and(|t| t.contains("\"once\""))
    });
    assert_eq!(edge.executions("/actions/save"), 1);
}

#[test]
fn a_failed_start_is_said_and_the_page_goes_on_after_the_back_off() {
    let edge = Edge::start_with("[runner.backoff]\nfirst = \"3s\"\nmax = \"3s\"\n");
    let broken = edge.state().join("broken");
    fs::write(&broken, "").unwrap();
    edge.deploy(&Artifact::new().env("STUDYLAB_FAIL_FILE", broken.to_str().unwrap()));
    let mut browser = Browser::open_with(&url(&edge, "/dashboard"), &[]);
    until_heading(&mut browser, "This app could not be started");
    let said = line(&mut browser);
    assert!(said.starts_with("The next try is in "), "{said}");
    browser.shot("page-failed");
    fs::remove_file(&broken).unwrap();
    let allocation = app_of(&edge);
    until_heading(&mut browser, &allocation);
    assert!(edge.ops().len() <= 4, "no start before its time: {:?}", edge.ops());
}

#[test]
fn a_page_goes_on_over_a_restart_of_the_edge() {
    let (mut edge, gate) = (Edge::start(), Gate::closed());
    edge.reconfigure("listen = [\"127.0.0.1:0\"]", &format!("listen = [\"{}\"]", edge.listen));
    edge.deploy(&slow(&gate));
    let mut browser = Browser::open_with(&url(&edge, "/dashboard"), &[]);
    until_heading(&mut browser, "This app is starting");
    edge.kill();
    eventually("the page says so", || line(&mut browser).starts_with("No connection"));
    gate.open();
    edge.start_again();
    let allocation = app_of(&edge);
    until_heading(&mut browser, &allocation);
}

#[test]
fn without_script_a_page_comes_again_and_a_form_does_not() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&slow(&gate).replace("idempotency = \"app\"", "idempotency = \"none\""));
    let mut form = Browser::open_with("about:blank", &[]);
    send_form(&mut form, &url(&edge, "/actions/save"));
    until_heading(&mut form, "What you sent was not delivered");
    form.ask("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    form.ask("Page.reload", json!({}));
    let mut page = Browser::open_with("about:blank", &[]);
    page.ask("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    page.ask("Page.navigate", json!({ "url": url(&edge, "/dashboard") }));
    until_heading(&mut page, "This app is starting");
    eventually("it says how", || line(&mut page).starts_with("This page tries again every"));
    eventually("it says how", || line(&mut form).starts_with("Reload this page in about"));
    assert!(!button_is_there(&mut form));
    form.shot("form-without-script");
    assert_eq!(edge.metric("vango_edge_state_requests_total"), 0, "no script has run");
    gate.open();
    let allocation = app_of(&edge);
    until_heading(&mut page, &allocation);
    assert_eq!(heading(&mut form), "What you sent was not delivered", "it waits for its person");
    assert_eq!(edge.executions("/actions/save"), 0);
}

#[test]
fn it_fits_a_phone_and_the_dark() {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&slow(&gate).replace("idempotency = \"app\"", "idempotency = \"none\""));
    let mut browser = Browser::open_with("about:blank", &[]);
    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
    browser.ask("Emulation.setDeviceMetricsOverride", phone);
    send_form(&mut browser, &url(&edge, "/actions/save"));
    until_heading(&mut browser, "What you sent was not delivered");
    gate.open();
    eventually("it is offered", || button_is_there(&mut browser));
    let mut looks = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
        let fits = "document.documentElement.scrollWidth <= 390 && innerWidth === 390";
        assert_eq!(browser.evaluate(fits), true, "nothing is wider than the phone");
        let tall = browser.evaluate("document.querySelector('[data-again]').offsetHeight");
        assert!(tall.as_f64().unwrap() >= 44.0, "a thumb hits it: {tall}");
        looks.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
        browser.shot(&format!("phone-{scheme}"));
    }
    assert_ne!(looks[0], looks[1]);
}
