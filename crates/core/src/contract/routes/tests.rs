//! What a contract says of its routes, and what is wrong with it.

use std::path::Path;

use crate::contract::{Asked, Contract, Posture, Unrouted, parse};

use super::*;

const HEAD: &str = "[app]\nname = \"a\"\n[process]\ncommand = [\"./a\"]\n";

fn contract(routes: &str) -> Contract {
    parse(Path::new("vango-edge.toml"), &format!("{HEAD}{routes}")).unwrap()
}

/// What is wrong, without the file and the line.
fn errors(routes: &str) -> Vec<String> {
    let found = parse(Path::new("f"), &format!("{HEAD}{routes}")).unwrap_err();
    found.into_iter().map(|d| format!("{}: {}", d.key, d.message)).collect()
}

#[track_caller]
fn one_error(routes: &str, words: &[&str]) {
    let found = errors(routes);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(words.iter().all(|w| found[0].contains(w)), "{found:?}");
}

fn asked<'a>(method: &'a Method, path: &'a str) -> Asked<'a> {
    Asked { path, sent: path, method, overridden: false }
}

/// The route that a request takes, as text, and what it means there.
fn taken(contract: &Contract, asked: &Asked<'_>) -> Result<(String, Posture), Unrouted> {
    contract.route(asked).map(|t| (t.route.to_string(), t.route.class.posture(t.safe)))
}

const FORM: &str = r#"
[[route]]
path = "/form"
methods = ["POST"]
class = "action"
idempotency = "app"
[[route]]
path = "/form"
methods = ["GET", "PUT"]
class = "page"
[[route]]
path = "/*"
class = "page"
"#;

#[test]
fn one_path_has_rules_by_method() {
    let contract = contract(FORM);
    for (method, path, route, posture) in [
        (Method::POST, "/form", "POST /form", Posture::AppIdempotent),
        (Method::GET, "/form", "GET|PUT|HEAD /form", Posture::Safe),
        (Method::HEAD, "/form", "GET|PUT|HEAD /form", Posture::Safe),
        (Method::PUT, "/form", "GET|PUT|HEAD /form", Posture::Unsafe),
        (Method::DELETE, "/form", "/*", Posture::Unsafe),
        (Method::OPTIONS, "/form", "/*", Posture::Safe),
        (Method::POST, "/other", "/*", Posture::Unsafe),
    ] {
        let found = taken(&contract, &asked(&method, path)).unwrap();
        assert_eq!(found, (route.to_owned(), posture), "{method} {path}");
    }
    // Django and Flask fold the case of a method; what is safe is what everyone reads so.
    for (name, route, posture) in [
        ("post", "POST /form", Posture::AppIdempotent),
        ("Get", "GET|PUT|HEAD /form", Posture::Unsafe),
    ] {
        let method = Method::from_bytes(name.as_bytes()).unwrap();
        let found = taken(&contract, &asked(&method, "/form")).unwrap();
        assert_eq!(found, (route.to_owned(), posture), "{name}");
    }
}

/// An app may read `/Form` as `/form`: by the methods that are guarded there.
#[test]
fn another_spelling_is_refused_by_the_methods_that_are_guarded() {
    let contract = contract(FORM);
    let by = |method: Method, path| taken(&contract, &asked(&method, path)).map(|(r, _)| r);
    for path in ["/Form", "//form", "/form;x", "/form.json"] {
        assert_eq!(by(Method::POST, path), Err(Unrouted::Spelling), "{path}");
        assert_eq!(by(Method::PUT, path), Ok("/*".into()), "{path}: a page's like /form itself");
        assert_eq!(by(Method::GET, path), Ok("/*".into()), "{path}");
    }
}

/// Behind a framework that follows the header, the request is by any method.
#[test]
fn a_request_that_says_two_methods_is_refused_where_they_have_different_rules() {
    let contract = contract(FORM);
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
        let twice = |path| taken(&contract, &Asked { overridden: true, ..asked(&method, path) });
        assert_eq!(twice("/form"), Err(Unrouted::Method), "{method}");
        assert_eq!(twice("/Form"), Err(Unrouted::Spelling), "{method}");
        assert_eq!(twice("/other"), Ok(("/*".into(), Posture::Unsafe)), "{method}");
    }
    let pages = "[[route]]\npath = \"/a\"\nmethods = [\"POST\"]\ncold = \"hold\"\n";
    let pages = super::tests::contract(pages);
    let twice = Asked { overridden: true, ..asked(&Method::GET, "/a") };
    assert_eq!(taken(&pages, &twice), Ok(("/*".into(), Posture::Unsafe)), "no key is at stake");
}

#[test]
fn what_is_safe_by_the_contract_is_held_and_asked_for_no_key_but_guards_stay() {
    let contract = contract(
        r#"
        [defaults]
        safe_methods = ["VIEW"]
        [[route]]
        path = "/git/*"
        safe_methods = ["POST"]
        [[route]]
        path = "/pay/*"
        class = "action"
        idempotency = "app"
        "#,
    );
    let view = Method::from_bytes(b"VIEW").unwrap();
    let by = |method: &Method, path| taken(&contract, &asked(method, path)).map(|(_, p)| p);
    assert_eq!(by(&Method::POST, "/git/a/git-upload-pack"), Ok(Posture::Safe));
    assert_eq!(by(&Method::PUT, "/git/a"), Ok(Posture::Unsafe));
    assert_eq!(by(&Method::POST, "/else"), Ok(Posture::Unsafe));
    assert_eq!(by(&view, "/else"), Ok(Posture::Safe));
    assert_eq!(by(&view, "/pay/a"), Ok(Posture::Safe));
    // An app that resolves this otherwise would carry it out as /pay/a, without a key.
    assert_eq!(by(&Method::POST, "/git/..;/pay/a"), Err(Unrouted::Spelling));
    let twice = Asked { overridden: true, ..asked(&Method::POST, "/git/a") };
    assert_eq!(taken(&contract, &twice).map(|(_, p)| p), Ok(Posture::Unsafe));
    let mkcol = Method::from_bytes(b"MKCOL").unwrap();
    assert_eq!(by(&mkcol, "/else"), Ok(Posture::Unsafe), "idempotent, and not safe");
}

#[test]
fn defaults_count_where_a_route_says_nothing() {
    let contract = contract(
        r#"
        [defaults]
        cold = "hold"
        timeout = "5m"
        [[route]]
        path = "/a"
        cold = "refuse"
        timeout = "90s"
        [[route]]
        path = "/b"
        class = "webhook"
        provider = "stripe"
        secret = "S"
        "#,
    );
    let of: Vec<_> =
        contract.routes.iter().map(|r| (r.path.to_string(), r.cold, r.timeout)).collect();
    assert_eq!(
        of,
        [
            ("/a".into(), Cold::Refuse, Some(secs(90))),
            ("/b".into(), Cold::Hold, Some(secs(300))),
            ("/*".into(), Cold::Hold, Some(secs(300))),
        ]
    );
    let bare = super::tests::contract("");
    assert_eq!((bare.routes[0].cold, bare.routes[0].timeout), (Cold::Refuse, None));
}

#[test]
fn what_cannot_be_meant_is_said() {
    let route = |lines: &str| format!("[[route]]\npath = \"/a\"\n{lines}\n");
    let webhook = "class = \"webhook\"\nprovider = \"stripe\"\nsecret = \"S\"\n";
    one_error(&route(&format!("{webhook}cold = \"hold\"")), &["route[0].cold", "when_cold"]);
    one_error(&route(&format!("{webhook}methods = [\"GET\"]")), &["methods", "add \"POST\""]);
    one_error(&route(&format!("{webhook}safe_methods = [\"POST\"]")), &["signature"]);
    let keyed = "class = \"action\"\nidempotency = \"app\"\n";
    one_error(&route(&format!("{keyed}cold = \"refuse\"")), &["cold", "take this out"]);
    assert_eq!(contract(&route(&format!("{keyed}cold = \"hold\""))).routes[0].cold, Cold::Hold);
    one_error(&route("wakes = false\ncold = \"hold\""), &["cold", "take out wakes = false"]);
    one_error(&route("cold = \"wait\""), &["\"refuse\", \"hold\"", "found \"wait\""]);
    one_error(&route("methods = []"), &["methods", "at least one"]);
    one_error(&route("methods = [\"post\"]"), &["\"POST\" is one, \"post\" another"]);
    one_error(&route("methods = [\"TRACE\"]"), &["no app behind this edge gets TRACE"]);
    one_error(&route("methods = [\"A B\"]"), &["expected a method"]);
    one_error(&route("methods = [\"PUT\", \"PUT\"]"), &["PUT is there twice"]);
    one_error(&route("timeout = \"2d\""), &["timeout", "found \"2d\""]);
    one_error("[defaults]\nsafe_methods = [\"MKCOL\"]\n", &["MKCOL changes something"]);
    one_error("[defaults]\nholds = true\n", &["defaults.holds", "unknown key"]);
    let twice = |first: &str, second: &str| format!("{}{}", route(first), route(second));
    one_error(&twice("", "methods = [\"POST\"]"), &["never reached: the route /a above"]);
    one_error(
        &format!(
            "{}{}",
            twice("methods = [\"POST\"]", "methods = [\"GET\"]"),
            route("methods = [\"HEAD\", \"POST\"]")
        ),
        &["route[2].path", "never reached"],
    );
    assert_eq!(contract(&twice("methods = [\"POST\"]", "")).routes.len(), 3);
}

#[test]
fn a_key_is_where_it_can_be_read() {
    let edge = "class = \"action\"\nidempotency = \"edge\"\nprincipal = \"cookie:s\"\n";
    let route = |lines: &str| format!("[[route]]\npath = \"/a\"\n{lines}\n");
    let key = |text: &str| match contract(&route(&format!("{edge}key = \"{text}\""))).routes[0]
        .class
        .clone()
    {
        RouteClass::Action(action) => action.key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key("field:order[key]"), KeySource::Field("order[key]".into()));
    assert_eq!(key("query:once"), KeySource::Query("once".into()));
    assert_eq!(key("header:X-Key"), KeySource::Header("x-key".into()));
    assert_eq!(key("header:Idempotency-Key"), KeySource::Usual);
    for wrong in ["once", "field:", "field:a b", "cookie:a", "header:Vango-Edge-Key", "header:a b"]
    {
        one_error(&route(&format!("{edge}key = \"{wrong}\"")), &["route[0].key", "field:NAME"]);
    }
    let head = format!("{edge}fingerprint = \"head\"\n");
    one_error(&route(&format!("{head}key = \"field:k\"")), &["fingerprint", "the key is in it"]);
    assert_eq!(contract(&route(&format!("{head}key = \"query:k\""))).routes.len(), 2);
    one_error(&route("class = \"action\"\nkey = \"field:k\""), &["counts only with idempotency"]);
}
