//! What an operator gives the page.

use std::fs;

use crate::live::browser::Browser;
use crate::support::{Answer, Artifact, Edge, Gate, eventually};

const HTML: [(&str, &str); 1] = [("Accept", "text/html,*/*;q=0.8")];

fn page(edge: &Edge) -> Answer {
    edge.ask("GET", "/dashboard", &HTML, "")
}

fn starting() -> (Edge, Gate) {
    let (edge, gate) = (Edge::start(), Gate::closed());
    edge.deploy(&Artifact::behind(&gate).set("wake", "budget", "\"100ms\""));
    (edge, gate)
}

fn app_says(edge: &Edge, pages: &str) {
    let file = edge.apps().join("studylab.toml");
    let text = fs::read_to_string(&file).unwrap();
    let own = text.split("\n[pages]").next().unwrap();
    fs::write(file, format!("{own}\n[pages]\n{pages}")).unwrap();
}

const TEMPLATE: &str = "<!doctype html><html lang=\"de\" data-problem=\"{{problem}}\"><head>{{head}}\
    <title>Einen Moment</title><style>body{background:rgb(1,2,3)}</style></head><body>\
    <h1>Gleich geht es weiter</h1>{{follow}}<small>{{request}}</small></body></html>";

#[test]
fn a_node_and_an_app_give_it_a_face_and_a_reload_changes_it() {
    let (edge, _gate) = starting();
    assert!(page(&edge).text().contains("<h1>This app is starting</h1>"));
    let config = fs::read_to_string(edge.config()).unwrap();
    let node = "[pages]\nname = \"Acme\"\ncontact = \"https://help.acme.example\"\n";
    fs::write(edge.config(), format!("{config}\n{node}")).unwrap();
    edge.hang_up();
    eventually("the reload counts", || page(&edge).text().contains("<h1>Acme is starting</h1>"));
    let unowned = edge.ask("GET", "/", &[HTML[0], ("Host", "other.localhost")], "");
    assert!(unowned.text().contains("<div class=\"brand\">Acme</div>"), "{}", unowned.text());

    let logo = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1 1\"/>";
    fs::write(edge.apps().join("logo.svg"), logo).unwrap();
    app_says(&edge, "name = \"Study <Lab>\"\nlogo = \"logo.svg\"\ncolor = \"#8a1c7c\"\n");
    edge.json(&["reload"]);
    let own = page(&edge);
    for part in ["Study &lt;Lab&gt; is starting", "data:image/svg+xml;base64,", "--accent:#8a1c7c"]
    {
        assert!(own.text().contains(part), "{part}");
    }
    assert!(
        own.text().contains("href=\"https://help.acme.example\""),
        "what it does not say is the node's"
    );
    // A file that changed is another configuration.
    fs::write(edge.apps().join("logo.svg"), logo.replace("0 0 1 1", "0 0 2 2")).unwrap();
    let changed = edge.json(&["reload"]);
    assert!(changed.to_string().contains("apps.studylab"), "{changed}");
    assert_ne!(page(&edge).text(), own.text());
}

#[test]
fn what_is_wrong_with_it_is_said_by_check_and_a_reload_changes_nothing() {
    let (edge, _gate) = starting();
    fs::write(edge.apps().join("broken.html"), "<html>{{head}}\n{{folow}}").unwrap();
    fs::write(edge.apps().join("logo.txt"), "a logo").unwrap();
    app_says(
        &edge,
        "nam = \"A\"\nlogo = \"logo.txt\"\ncolor = \"red\"\ncontact = \"javascript:alert(1)\"\n\
         template = \"broken.html\"\n",
    );
    let said = edge.refused(&["check", "-c", edge.config().to_str().unwrap()]);
    for part in [
        "pages.nam",
        "did you mean `name`",
        "pages.logo",
        "it is no SVG",
        "pages.color",
        "#2456d6",
        "pages.contact",
        "pages.template",
        "line 2: there is no {{folow}}",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    edge.refused(&["reload"]);
    assert!(page(&edge).text().contains("<h1>This app is starting</h1>"));
}

#[test]
fn a_template_of_the_operator_s_own_follows_the_app_too() {
    let (edge, gate) = starting();
    let script_less =
        TEMPLATE.replace("</body>", "<img src=x onerror=\"document.title='ran'\"></body>");
    fs::write(edge.apps().join("page.html"), script_less).unwrap();
    app_says(&edge, "template = \"page.html\"\n");
    edge.json(&["reload"]);
    let url = format!("http://studylab.localhost:{}/dashboard", edge.listen.port());
    let mut browser = Browser::open_with(&url, &[]);
    let heading = |b: &mut Browser| b.evaluate("document.querySelector('h1')?.textContent");
    eventually("it is shown", || heading(&mut browser) == "Gleich geht es weiter");
    let color = browser.evaluate("getComputedStyle(document.body).backgroundColor");
    assert_eq!(color, "rgb(1, 2, 3)", "its own style counts");
    eventually("it follows", || edge.metric("vango_edge_state_requests_total") > 0);
    assert_eq!(browser.evaluate("document.title"), "Einen Moment", "no script of its own ran");
    assert_eq!(browser.evaluate("document.documentElement.dataset.problem"), "wake-timeout");
    gate.open();
    let allocation = edge.until_hot()["id"].clone();
    eventually("it goes on", || heading(&mut browser) == allocation);
}
