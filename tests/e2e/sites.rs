//! Static files from several directories, pages that an app's scripts make, and sites without a process.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Answer, Artifact, Edge};

const FOR_EVER: &str = "public, max-age=31536000, immutable";
const HTML: &str = "text/html; charset=utf-8";

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let at = dir.join(name);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, bytes).unwrap();
}

/// A folder with nothing to start in it, and the contract of one.
fn site(more: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let contract = format!("[app]\nname = \"studylab\"\n[assets]\ndir = \".\"\n{more}");
    put(dir.path(), "vango-edge.toml", contract);
    put(dir.path(), "index.html", "<h1>home</h1>");
    put(dir.path(), "docs/index.html", "<h1>docs</h1>");
    put(dir.path(), "docs/a b/index.html", "<h1>deep</h1>");
    put(dir.path(), "404.html", "<h1>not here</h1>".repeat(40));
    put(dir.path(), "app.0123abcd.js", "app()");
    put(dir.path(), ".env", "SECRET=1");
    dir
}

fn deploy(edge: &Edge, dir: &TempDir) -> Value {
    edge.json(&["deploy", dir.path().to_str().unwrap()])
}

#[track_caller]
fn page(answer: &Answer, status: u16, text: &str) {
    let found = (answer.status, answer.header("content-type"), answer.text());
    assert_eq!(found, (status, Some(HTML), text));
}

#[test]
fn a_folder_of_files_is_a_site_without_a_process() {
    let mut edge = Edge::start();
    let not_here = "<h1>not here</h1>".repeat(40);
    let dir = site("not_found = \"404.html\"\nimmutable = [\"*.0123abcd.js\"]\n");
    assert_eq!(deploy(&edge, &dir)["effect"], "owns");
    let said = edge.said(&["deploy", dir.path().to_str().unwrap()]);
    assert!(said.contains("nothing was changed"), "{said}");
    for _ in 0..2 {
        page(&edge.get("/"), 200, "<h1>home</h1>");
        page(&edge.get("/index.html"), 200, "<h1>home</h1>");
        page(&edge.get("/docs/"), 200, "<h1>docs</h1>");
        page(&edge.get("/docs/a%20b/"), 200, "<h1>deep</h1>");
        assert_eq!(edge.get("/app.0123abcd.js").header("cache-control"), Some(FOR_EVER));
        for (path, to) in [
            ("/docs", "/docs/"),
            ("/docs?a=1&b=2", "/docs/?a=1&b=2"),
            ("/docs/a%20b", "/docs/a%20b/"),
            ("/x/../docs", "/docs/"),
        ] {
            let moved = edge.get(path);
            assert_eq!((moved.status, moved.header("location")), (301, Some(to)), "{path}");
            assert_eq!(moved.header("cache-control"), Some("no-cache"), "{path}");
        }
        for path in [
            "/none",
            "/none.js",
            "/docs/none/",
            "/404",
            "/.env",
            "/vango-edge.toml",
            "/app.deadbeef.js",
            "/docs%2findex.html",
            "//docs",
        ] {
            page(&edge.get(path), 404, &not_here);
        }
        let range = [("Range", "bytes=0-3"), ("If-None-Match", "*"), ("Accept-Encoding", "gzip")];
        let gone = edge.ask("GET", "/none", &range, "");
        assert_eq!((gone.status, gone.header("content-encoding")), (404, Some("gzip")));
        assert_eq!((gone.header("etag"), gone.header("cache-control")), (None, Some("no-cache")));
        let head = edge.ask("HEAD", "/none", &[], "");
        assert_eq!((head.status, head.header("content-length")), (404, Some("680")));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
            let refused = edge.ask(method, "/", &[], "a=1");
            assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
        }
        let socket = [("Upgrade", "websocket"), ("Connection", "Upgrade")];
        assert_eq!(edge.ask("GET", "/live", &socket, "").status, 404);
        assert!(edge.stop().success());
        edge.start_again();
    }
    assert_eq!(edge.list(&["routes"])[0]["state"], "static");
    let standing = edge.get(crate::page::ADDRESS).json();
    assert_eq!((&standing["state"], &standing["retry_after"]), (&"ready".into(), &0.into()));
    assert!(edge.refused(&["wake", "studylab"]).contains("no process"));
    edge.json(&["sleep", "studylab"]);
    assert_eq!((edge.ps(), edge.ops(), edge.processes()), (vec![], vec![], vec![]));
    let trace = edge.trace(edge.get("/docs/").request_id());
    assert_eq!((&trace["class"], &trace["outcome"]), (&"asset".into(), &"asset".into()));
}

#[test]
fn a_preflight_for_what_the_contract_shares_is_answered_with_its_fields() {
    let edge = Edge::start();
    let dir = site(
        "[[assets.header]]\nfiles = [\"data/*\", \"docs/index.html\"]\nset = { Access-Control-Allow-Origin = \
         \"*\", Access-Control-Allow-Headers = \"x-app\" }\n[[assets.header]]\nfiles = [\"*.js\"]\nset = { \
         X-A = \"1\" }\n",
    );
    put(dir.path(), "data/a.json", "{}");
    deploy(&edge, &dir);
    let asked = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "x-app"),
    ];
    // The last is no file, which is not told before it is asked for.
    for path in ["/data/a.json", "/docs/", "/data/none"] {
        let answer = edge.ask("OPTIONS", path, &asked, "");
        assert_eq!((answer.status, answer.header("content-length")), (204, None), "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        assert_eq!(answer.header("access-control-allow-headers"), Some("x-app"), "{path}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"), "{path}");
    }
    let file = edge.ask("GET", "/data/a.json", &asked[..1], "");
    assert_eq!((file.status, file.header("access-control-allow-origin")), (200, Some("*")));
    // What other origins may not read, and what is no preflight.
    for (path, asked) in [("/index.html", &asked[..]), ("/x.js", &asked), ("/data/a.json", &[])] {
        let answer = edge.ask("OPTIONS", path, asked, "");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[test]
fn init_makes_a_site_of_a_folder_of_files() {
    let edge = Edge::start();
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "public/index.html", "<h1>home</h1>");
    put(dir.path(), "public/404.html", "<h1>not here</h1>");
    put(dir.path(), "README.md", "how it is built");
    let (path, config) = (dir.path().to_str().unwrap(), edge.config());
    let config = config.to_str().unwrap();
    edge.json(&["init", path, "--config", config, "--name", "studylab"]);
    assert_eq!(deploy(&edge, &dir)["effect"], "owns");
    page(&edge.get("/"), 200, "<h1>home</h1>");
    page(&edge.get("/README.md"), 404, "<h1>not here</h1>");
    assert_eq!(edge.list(&["routes"])[0]["state"], "static");
}

#[test]
fn sites_and_apps_follow_each_other_and_go_back() {
    let edge = Edge::start();
    let dir = site("");
    deploy(&edge, &dir);
    edge.get("/none").problem(404, "asset-not-found");
    put(dir.path(), "index.html", "<h1>next</h1>");
    let next = deploy(&edge, &dir);
    assert_eq!((&next["effect"], &next["epoch"]), (&"moved".into(), &2.into()));
    page(&edge.get("/"), 200, "<h1>next</h1>");
    assert_eq!(edge.json(&["rollback", "studylab"])["state"], "healthy");
    page(&edge.get("/"), 200, "<h1>home</h1>");
    // An app takes over from a site, and a site from an app that is awake.
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    put(dir.path(), "index.html", "<h1>third</h1>");
    deploy(&edge, &dir);
    page(&edge.get("/"), 200, "<h1>third</h1>");
    edge.get("/dashboard").problem(404, "asset-not-found");
    crate::support::eventually("the app's process ends", || edge.processes().is_empty());
    assert_eq!(edge.json(&["rollback", "studylab"])["state"], "healthy");
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn what_a_preview_of_a_site_answered_is_evidence() {
    let edge = Edge::start();
    let dir = site("");
    deploy(&edge, &dir);
    put(dir.path(), "index.html", "<h1>next</h1>");
    edge.json(&["deploy", dir.path().to_str().unwrap(), "--preview", "next"]);
    let host = crate::promotion::host("next");
    for path in ["/", "/docs/", "/none"] {
        edge.ask("GET", path, &[("Host", &host)], "");
    }
    edge.ask("POST", "/", &[("Host", &host)], "a=1");
    let counted = || edge.json(&["evidence", "studylab", "next"]);
    crate::support::eventually("all are counted", || counted()["requests"] == 3);
    assert_eq!(counted()["errors"], 0);
    let moved = edge.json(&["promote", "studylab", "next"]);
    assert_eq!((&moved["state"], moved["reason"].is_null()), (&"healthy".into(), true), "{moved}");
    page(&edge.get("/"), 200, "<h1>next</h1>");
}

#[test]
fn what_says_something_of_no_process_is_refused() {
    let edge = Edge::start();
    for (more, key) in [
        ("[wake]\nbudget = \"1s\"\n", "wake"),
        ("[[route]]\npath = \"/a\"\n", "route"),
        ("[scale]\nmin = 1\n", "scale"),
    ] {
        let dir = site(more);
        let said = edge.refused(&["deploy", dir.path().to_str().unwrap()]);
        assert!(said.contains("there is no [process]") && said.contains(key), "{said}");
    }
    for (more, expected) in [
        ("not_found = \"gone.html\"\n", "gone.html"),
        ("fallback = \"gone.html\"\n", "gone.html"),
        ("index = \"a/b.html\"\n", "assets.index"),
        ("fallback = \"../a\"\n", "assets.fallback"),
    ] {
        let dir = site(more);
        let path = dir.path().to_str().unwrap();
        assert!(edge.refused(&["deploy", path]).contains(expected), "{more}");
        let check = edge.command(&["check", "--artifact", path]);
        assert!(!check.status.success(), "{more}");
    }
    let nothing = tempfile::tempdir().unwrap();
    put(nothing.path(), "vango-edge.toml", "[app]\nname = \"studylab\"\n");
    let said = edge.refused(&["deploy", nothing.path().to_str().unwrap()]);
    assert!(said.contains("process.command"), "{said}");
}

/// As `next build` leaves its files, and an app that makes its pages in the browser but has an API.
#[test]
fn several_directories_are_answered_each_under_its_prefix() {
    let edge = Edge::start();
    let rest = "prefix = \"/\"\nindex = \"index.html\"\nfallback = \"index.html\"\n[[assets.header]]\nfiles = \
                [\"sw.js\"]\nset = { Service-Worker-Allowed = \"/\" }\n";
    let artifact = Artifact::new()
        .replace("[assets]\ndir = \"public\"", "[[assets]]\ndir = \".next/static\"")
        .replace("prefix = \"/assets/\"", "prefix = \"/_next/static/\"\nimmutable = [\"*\"]")
        .replace(
            "manifest = \"public/manifest.json\"\n",
            &format!("[[assets]]\ndir = \"public\"\n{rest}"),
        );
    let root = artifact.path();
    put(root, ".next/static/Xk2/_buildManifest.js", "self.__BUILD_MANIFEST={}");
    put(root, ".next/static/chunks/main-8e0d62a1f1b2c3d4.js", "main()");
    put(root, "public/sw.js", "self");
    put(root, "public/index.html", "<h1>app</h1>");
    edge.deploy(&artifact);
    for path in
        ["/_next/static/Xk2/_buildManifest.js", "/_next/static/chunks/main-8e0d62a1f1b2c3d4.js"]
    {
        let answer = edge.get(path);
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (200, Some(FOR_EVER)),
            "{path}"
        );
        assert_eq!(answer.header("service-worker-allowed"), None);
    }
    let worker = edge.get("/sw.js");
    assert_eq!((worker.header("cache-control"), worker.text()), (Some("no-cache"), "self"));
    assert_eq!(worker.header("service-worker-allowed"), Some("/"));
    edge.get("/_next/static/chunks/main-deadbeefdeadbeef.js").problem(404, "asset-not-found");
    // What is no file is the app's page, made by its scripts; nothing wakes for it.
    for path in ["/", "/users/7", "/users/7?tab=1", "/dashboard"] {
        page(&edge.get(path), 200, "<h1>app</h1>");
    }
    assert_eq!(edge.processes(), [] as [u32; 0]);
    // Of the contract's own routes, of files, and of other methods, the app answers.
    assert_eq!(edge.get("/none.css").status, 404);
    assert_ne!(edge.processes(), [] as [u32; 0]);
    assert!(edge.get("/actions/none").text() != "<h1>app</h1>");
    assert!(edge.ask("POST", "/users/7", &[], "a=1").text() != "<h1>app</h1>");
    let twice = Artifact::new().replace("[assets]\n", "[[assets]]\ndir = \"public\"\n[[assets]]\n");
    let said = edge.refused(&["deploy", twice.write().to_str().unwrap()]);
    assert!(said.contains("assets[1].prefix") && said.contains("already"), "{said}");
}

#[test]
fn what_runs_beside_a_process_is_refused_for_a_site_and_a_command_runs_in_its_files() {
    let edge = Edge::start();
    let more = |table: &str| site(&format!("{table}\n"));
    for (table, words) in [
        ("[release]\ncommand = [\"./migrate\"]", "release: there is no [process] that this could"),
        (
            "[[cron]]\nname = \"c\"\nschedule = \"* * * * *\"\ncommand = [\"./c\"]",
            "cron: there is no [process] that this could be about: add one, or take this out",
        ),
        (
            "[[process.worker]]\nname = \"w\"\ncommand = [\"./w\"]",
            "a worker runs beside a process that takes requests, which a site of files has not",
        ),
    ] {
        let dir = more(table);
        let path = dir.path().to_str().unwrap();
        for command in [&["deploy", path][..], &["check", path]] {
            let said = edge.refused(command);
            assert!(said.contains(words), "{said}");
        }
    }
    deploy(&edge, &site(""));
    assert_eq!(
        edge.said(&["exec", "studylab", "-n", "--", "cat", "docs/index.html"]),
        "<h1>docs</h1>"
    );
    let home = edge.said(&[
        "exec",
        "studylab",
        "-n",
        "--",
        "sh",
        "-c",
        "echo kept >\"$HOME/a\"; cat \"$HOME/a\"",
    ]);
    assert_eq!(home, "kept\n");
    let set = edge.json(&["env", "set", "studylab", "A=1"]);
    assert_eq!(set["state"], "healthy", "{set}");
    assert_eq!(edge.said(&["exec", "studylab", "-n", "--", "printenv", "A"]), "1\n");
    page(&edge.get("/"), 200, "<h1>home</h1>");
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]));
    assert_eq!(edge.list(&["cron"]), [] as [Value; 0]);
    // A site that becomes an app has them.
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let pid = edge.ps()[0]["pid"].as_u64().unwrap();
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environ.split('\0').any(|variable| variable == "A=1"), "{environ}");
}
