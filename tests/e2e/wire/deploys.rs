//! Artifacts as package managers leave them, apps that write beside themselves, and the second deployment.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::promotion::{asked, deploy_preview, host, route, version, visit};
use crate::support::{Artifact, Edge, Gate, eventually, memory_of};

/// As `npm install` leaves it: the program is started through a link of `.bin`.
#[test]
fn links_inside_an_artifact_are_kept_and_those_that_lead_out_are_said_at_once() {
    let edge = Edge::start();
    let artifact = Artifact::new().set("process", "command", "[\"./node_modules/.bin/lab\"]");
    let at = artifact.write().to_owned();
    fs::create_dir_all(at.join("node_modules/.bin")).unwrap();
    fs::create_dir_all(at.join("node_modules/.pnpm/lab@1.0.0")).unwrap();
    fs::rename(at.join("studylab"), at.join("node_modules/.pnpm/lab@1.0.0/cli")).unwrap();
    symlink(".pnpm/lab@1.0.0", at.join("node_modules/lab")).unwrap();
    symlink("../lab/cli", at.join("node_modules/.bin/lab")).unwrap();
    edge.deploy(&artifact);
    assert_eq!(edge.get("/dashboard").status, 200);

    for (name, target) in [("python", "/usr/bin/python3"), ("up", "../outside"), ("me", "me")] {
        symlink(target, at.join("node_modules/.bin").join(name)).unwrap();
    }
    symlink("../../../../outside", at.join("node_modules/.bin/out")).unwrap();
    let by_deploy = edge.refused(&["deploy", at.to_str().unwrap()]);
    let config = edge.config();
    let check = ["check", "-c", config.to_str().unwrap(), "--artifact", at.to_str().unwrap()];
    let by_check = edge.refused(&check);
    for (name, words) in [
        ("python", "symbolic link to /usr/bin/python3, which is absolute"),
        ("me", "circle"),
        ("out", "out of the artifact"),
    ] {
        let path = format!("node_modules/.bin/{name}: ");
        for all in [&by_deploy, &by_check] {
            let line = all.lines().find(|l| l.contains(&path));
            assert!(line.is_some_and(|l| l.contains(words)), "{name}: {words} in\n{all}");
        }
    }
    assert!(
        by_deploy.contains("3 things") && by_check.contains("3 errors"),
        "{by_deploy}{by_check}"
    );
    assert!(by_deploy.contains("python3 -m venv --copies"), "what to do: {by_deploy}");
    assert_eq!(edge.list(&["deployments"]).len(), 1);
}

/// Path and inode of every file of a tree.
fn files(root: &Path) -> Vec<(PathBuf, u64)> {
    let (mut all, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let (path, meta) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
            assert_eq!(meta.mode() & 0o222, 0, "{path:?} is writable");
            match meta.is_dir() {
                true => todo.push(path),
                false => all.push((path, meta.ino())),
            }
        }
    }
    all.sort();
    all
}

#[test]
fn what_an_app_writes_beside_itself_is_said_and_costs_the_next_wake_nothing() {
    let edge = Edge::start();
    // As Python does for each module; a user other than root has to take the right first.
    let writes = "chmod u+w . public; mkdir -p public/__pycache__; echo 12345 > public/__pycache__/m.pyc; \
                  echo 1234567 > notes.txt; exec ./studylab";
    let command = format!("[\"sh\", \"-c\", {writes:?}]");
    let artifact = Artifact::new().set("process", "command", &command);
    let digest = edge.deploy(&artifact)["digest"].as_str().unwrap().to_owned();
    let tree = edge.state().join("trees").join(digest.strip_prefix("sha256:").unwrap());
    let before = files(&tree.join("root"));
    for wakes in 1..=3 {
        assert_eq!(edge.get("/dashboard").status, 200);
        assert!(tree.join("root/public/__pycache__/m.pyc").exists());
        edge.assert_sleeps_without_a_trace();
        let log = edge.log();
        let said: Vec<_> = log.lines().filter(|l| l.contains("beside itself")).collect();
        assert_eq!(said.len(), wakes - 1, "{log}");
        for line in said {
            for words in ["2 files (14 bytes)", "removed", "notes.txt, public/__pycache__", "$HOME"]
            {
                assert!(line.contains(words), "{words} in {line}");
            }
        }
        assert_eq!(log.matches("unpacking").count(), 1, "{log}");
    }
    // Found at the next start, whatever it is for: here, the same deployment again.
    edge.deploy(&artifact);
    assert_eq!(files(&tree.join("root")), before, "the very same files");
    let trees = fs::read_dir(edge.state().join("trees")).unwrap().count();
    assert_eq!(trees, 1, "no second tree beside it");

    // What was changed is found as well, and only that is written again.
    let page = tree.join("root/public/app.css");
    fs::remove_file(&page).unwrap();
    fs::write(&page, "something else").unwrap();
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(fs::read(&page).unwrap(), fs::read(artifact.path().join("public/app.css")).unwrap());
    assert!(edge.log().contains("public/app.css"), "{}", edge.log());
}

#[test]
fn the_second_deployment_takes_over_without_a_request_failing() {
    let edge = Edge::start();
    edge.deploy(&version("1"));
    assert_eq!(edge.get("/dashboard").status, 200);
    let old = edge.until_hot()["id"].clone();
    let mut slow = edge.connect();
    slow.send_head("GET", "/debug/slow?ms=1500", &[]);
    eventually("it is in flight", || edge.ps().first().is_some_and(|r| r["in_flight"] == 1));
    let second = version("2");
    let text = edge.said(&["deploy", second.write().to_str().unwrap()]);
    assert!(text.contains("serves studylab.localhost under epoch 2"), "{text}");
    let page = edge.get("/dashboard");
    assert_eq!(edge.trace(page.request_id())["outcome"], "hot", "it was ready before it owned");
    assert_eq!(slow.answer().unwrap().status, 200, "what was in flight ended in the first");
    eventually("the first one has ended", || edge.ps().iter().all(|a| a["id"] != old));

    // The same again says so, and nothing happens.
    let text = edge.said(&["deploy", second.write().to_str().unwrap()]);
    assert!(text.contains("already, under epoch 2: nothing was changed"), "{text}");
    assert_eq!(edge.list(&["deployments"]).len(), 2);

    // What does not become ready changes nothing, whether the app is awake or asleep.
    let broken = version("3").env("STUDYLAB_FAIL_START", "1");
    for asleep in [false, true] {
        if asleep {
            edge.json(&["sleep", "studylab"]);
        }
        let text = edge.refused(&["deploy", broken.write().to_str().unwrap()]);
        for words in ["studylab/production goes on with what it ran", "ended before it was ready"] {
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(route(&edge)["epoch"], 2);
        assert_eq!(edge.get("/dashboard").status, 200);
    }
    // One that sleeps is taken over the same way, and the way back is open.
    edge.json(&["sleep", "studylab"]);
    let third = edge.deploy(&version("4"));
    assert_eq!((&third["effect"], &third["epoch"]), (&json!("moved"), &json!(3)));
    assert_eq!(edge.json(&["rollback", "studylab"])["epoch"], 4);
}

#[test]
fn with_a_promotion_policy_a_deployment_says_which_commands_come_next() {
    let edge = Edge::start();
    let app = edge.apps().join("studylab.toml");
    let policy = "\npromotion = { min_requests = 2, checks = [\"smoke\", \"load\"] }\n";
    fs::write(&app, fs::read_to_string(&app).unwrap() + policy).unwrap();
    edge.json(&["reload"]);
    edge.deploy(&version("1"));
    let second = version("2");
    let dir = second.write().to_str().unwrap().to_owned();
    let text = edge.said(&["deploy", &dir]);
    assert_eq!(route(&edge)["epoch"], 1, "nothing moved");
    // Word for word, with a name for the preview.
    let commands: Vec<Vec<String>> = text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("vango-edge "))
        .map(|l| l.replace("NAME", "pr-7").split(' ').map(str::to_owned).collect())
        .collect();
    assert_eq!(commands.len(), 3, "{text}");
    assert!(
        text.contains("# let it answer 2 requests at NAME.preview.studylab.localhost"),
        "{text}"
    );
    for (n, command) in commands.iter().enumerate() {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_eq!(command[0], ["deploy", "evidence", "promote"][n], "{text}");
        edge.said(&command);
        if n == 0 {
            visit(&edge, "pr-7", 2);
        }
    }
    assert_eq!(route(&edge)["epoch"], 2);
    assert_eq!(edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "").status, 200);
    // What was validated already needs one command.
    edge.json(&["rollback", "studylab"]);
    let again = edge.deploy(&second);
    let promote = format!("vango-edge promote studylab {}", again["digest"].as_str().unwrap());
    assert_eq!((&again["effect"], &again["next"]), (&json!("stored"), &json!([promote])));
}

/// An app that closes its port when it is asked to, and goes on running. It answers after that: a connection
/// that came in between would be reset once its request is sent.
fn deaf() -> Artifact {
    Artifact::perl(
        "my $deaf = $line =~ m{^GET /close }; close $port if $deaf; print $client $ok; \
         if ($deaf) { close $client; sleep 1000; }",
    )
}

#[test]
fn an_app_that_runs_without_listening_is_replaced_at_the_first_refused_connection() {
    let edge = Edge::start();
    edge.deploy(&deaf());
    assert_eq!(edge.get("/page").status, 200);
    let first = edge.until_hot();
    assert_eq!(edge.get("/close").status, 200);
    // What finds it waits for the next one; an unsafe request is told as it would be cold, and of two
    // kinds of connection each notices.
    let page = edge.get("/page");
    assert_eq!(page.status, 200, "{}", page.text());
    let second = edge.until_hot();
    assert_ne!(first["id"], second["id"]);
    let log = edge.log();
    let port = first["address"].as_str().unwrap().rsplit_once(':').unwrap().1;
    let said = format!("nothing of it listens on its port {port} any more");
    assert!(
        log.lines().any(|l| l.contains(first["id"].as_str().unwrap()) && l.contains(&said)),
        "{log}"
    );
    eventually("the first one has ended", || edge.processes().len() == 1);
    // An app that goes on so is paced as one that ends right after its start.
    assert_eq!(edge.get("/close").status, 200);
    edge.get("/page").retryable("wake-failed");
    let failure = edge.ops().into_iter().find(|o| o["state"] == "failed" && o["failures"] == 2);
    let why = failure.unwrap()["failure"]["detail"].to_string();
    assert!(why.contains("nothing of it listens"), "{why}");
}

#[test]
fn a_full_node_starts_an_app_when_there_is_a_place_and_holds_it_against_nobody() {
    let edge = Edge::start_with("[runner]\nmax_processes = 1\n");
    edge.deploy(&version("1").set("wake", "budget", "\"1s\""));
    deploy_preview(&edge, &version("2").set("wake", "budget", "\"1s\""), "pr-7");
    assert_eq!(edge.get("/dashboard").status, 200);
    let ask = || edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "");
    for _ in 0..2 {
        ask().retryable("node-full");
    }
    let asleep = edge.json(&["evidence", "studylab", "pr-7"]);
    assert_eq!((&asleep["requests"], &asleep["errors"]), (&json!(0), &json!(0)), "no evidence");
    // One that waits starts the moment that there is a place.
    let mut waiting = edge.hold("GET", "/dashboard", &[("Host", &host("pr-7"))], 1);
    edge.json(&["sleep", "studylab"]);
    assert_eq!(waiting.answer().unwrap().status, 200);
    // And there is no back-off to wait for: one that came too late is not kept from the next place.
    edge.json(&["sleep", "studylab/pr-7"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    ask().retryable("node-full");
    edge.json(&["sleep", "studylab"]);
    assert_eq!(ask().status, 200);
    assert!(edge.ops().iter().all(|o| o["failures"] == 0), "{:?}", edge.ops());
    assert!(edge.log().contains("waits for a place: this node runs 1 processes, its maximum"));
    // A deployment that finds no place for its start changes nothing and says why.
    let text = edge.refused(&["deploy", version("3").write().to_str().unwrap()]);
    assert!(text.contains("runner.max_processes"), "{text}");
    edge.json(&["sleep", "studylab/pr-7"]);
    visit(&edge, "pr-7", 1);
    let evidence = edge.json(&["evidence", "studylab", "pr-7"]);
    assert_eq!(
        (&evidence["errors"], &evidence["satisfied"]),
        (&json!(0), &json!(true)),
        "{evidence}"
    );
}

#[test]
fn an_app_that_once_waited_for_a_place_in_vain_and_is_slow_now_is_not_told_of_a_full_node() {
    let (edge, gate) = (Edge::start_with("[runner]\nmax_processes = 1\n"), Gate::closed());
    edge.deploy(&version("1"));
    deploy_preview(&edge, &Artifact::behind(&gate).set("wake", "budget", "\"1s\""), "pr-7");
    assert_eq!(edge.get("/dashboard").status, 200);
    let ask = || edge.ask("GET", "/dashboard", &[("Host", &host("pr-7"))], "");
    ask().retryable("node-full");
    eventually("its start is given up", || {
        edge.ops().iter().any(|o| o["environment"] == "studylab/pr-7" && o["state"] == "failed")
    });
    edge.json(&["sleep", "studylab"]);
    ask().retryable("wake-timeout");
    gate.open();
    eventually("it is there", || ask().status == 200);
}

/// What is kept of a wake is bounded: the memory of an edge flattens, however often an app wakes. More of them
/// with `VANGO_EDGE_WAKES`.
#[test]
fn any_number_of_wakes_keeps_no_more_memory() {
    let wakes = asked("VANGO_EDGE_WAKES", 120);
    let edge = Edge::start_alone("[trace]\nring = 64\n");
    edge.deploy(&deaf());
    let mut seen = Vec::new();
    for wake in 0..wakes {
        assert_eq!(edge.get("/page").status, 200);
        assert_eq!(edge.admin("POST", "/v1/environments/studylab/production/sleep").status, 200);
        if wake % (wakes / 4) == wakes / 4 - 1 {
            seen.push(memory_of(edge.pid()) >> 10);
        }
    }
    println!("{wakes} wakes: {seen:?} KiB after each quarter");
    // The first quarter fills what is filled once: the runtime's threads and the store's buffers.
    let grown = seen[3].saturating_sub(seen[1]);
    assert!(grown < 8 * 1024 + wakes / 2 * 4, "{grown} KiB in {} wakes: {seen:?}", wakes / 2);
}
