//! How an app is started: names in its command, directories before PATH, and where it listens instead.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{Artifact, Edge, eventually};

/// Answers each request with its arguments and some of its environment.
const SERVER: &str = r#"#!/usr/bin/perl
use IO::Socket::INET;
my ($at, @rest) = @ARGV;
my $l = IO::Socket::INET->new(LocalAddr => $at, Listen => 8, ReuseAddr => 1) or die "$at: $!";
while (my $c = $l->accept) {
    while (my $f = <$c>) { last if $f =~ /^\r?\n$/ }
    my $b = join('|', @rest, map { "$_=$ENV{$_}" } qw(HOST DB PATH)) . "\n";
    print $c "HTTP/1.1 200 OK\r\nContent-Length: " . length($b) . "\r\nConnection: close\r\n\r\n$b";
    close $c;
}
"#;

fn server(command: &str) -> Artifact {
    let artifact = Artifact::new().set("process", "command", command);
    let dir = artifact.path().join("tools/bin");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("serve"), SERVER).unwrap();
    fs::set_permissions(dir.join("serve"), fs::Permissions::from_mode(0o755)).unwrap();
    artifact.set("process", "path", "[\"tools/bin\"]").set("process", "ready", "{ tcp = true }")
}

#[test]
fn a_command_names_its_port_and_finds_a_program_of_its_artifact_without_a_shell() {
    let edge = Edge::start();
    let app = fs::read_to_string(edge.apps().join("studylab.toml")).unwrap();
    let app = app.replace("secrets = {", "secrets = { PASSWORD = { file = \"password\" },");
    fs::write(edge.apps().join("password"), "a$PORT$$b\n").unwrap();
    fs::write(edge.apps().join("studylab.toml"), app).unwrap();
    edge.said(&["reload"]);
    let artifact =
        server(r#"["serve", "127.0.0.1:$PORT", "$LEVEL of ${HOME}", "$$5 a*b 'c'", ""]"#)
            .set("process", "secrets", "[\"PASSWORD\"]")
            .env("LEVEL", "low")
            .env("DB", "pg://app:${PASSWORD}@db:$$1");
    edge.deploy(&artifact);
    let answer = edge.get("/dashboard");
    assert_eq!(answer.status, 200, "{}", edge.log());
    let text = answer.text().to_owned();
    let home = edge.state().canonicalize().unwrap();
    let start = format!("low of {}/", home.display());
    assert!(text.starts_with(&start), "{text}");
    assert!(
        text.contains("|$5 a*b 'c'||HOST=127.0.0.1|DB=pg://app:a$PORT$$b@db:$1|PATH="),
        "{text}"
    );
    let path = text.rsplit_once("|PATH=").unwrap().1;
    let (own, rest) = path.split_once(':').unwrap();
    assert!(own.starts_with(home.to_str().unwrap()) && own.ends_with("/tools/bin"), "{path}");
    assert!(rest.trim_end().ends_with(":/usr/bin:/sbin:/bin"), "{path}");
}

#[test]
fn a_name_without_a_value_is_refused_before_anything_starts() {
    let edge = Edge::start();
    for (command, words) in [
        (r#"["serve", "$PROT"]"#, "$PROT has no value here; did you mean $PORT?"),
        (r#"["serve", "$SOMETHING_ELSE"]"#, "$SOMETHING_ELSE has no value here; known here: PORT,"),
        (r#"["serve", "5$"]"#, "a `$` stands before a name"),
        (r#"["serve", "${PORT:-80}"]"#, "a `$` stands before a name"),
        (r#"["serve", "--key=$STRIPE_WEBHOOK_SECRET"]"#, "$STRIPE_WEBHOOK_SECRET holds a secret"),
        (r#"["serve", "$URL"]"#, "$URL holds a secret"),
    ] {
        let artifact = server(command)
            .set("process", "secrets", "[\"STRIPE_WEBHOOK_SECRET\"]")
            .env("URL", "x://${STRIPE_WEBHOOK_SECRET}@y");
        let said = edge.refused(&["deploy", artifact.write().to_str().unwrap()]);
        assert!(said.contains("process.command: ") && said.contains(words), "{said}");
    }
    let artifact = server("[\"serve\"]").env("URL", "${LEVEL}");
    let said = edge.refused(&["deploy", artifact.write().to_str().unwrap()]);
    assert!(said.contains("process.env.URL: $LEVEL has no value here"), "{said}");
}

#[test]
fn where_an_app_listens_instead_of_its_port_is_said_in_its_failure_the_log_and_to_the_client() {
    for (at, listens) in [
        // The kernel's to choose, as a fixed one of an app's own would be.
        ("127.0.0.1:0", "127.0.0.1:"),
        ("0.0.0.0:0", "0.0.0.0:"),
        ("[::1]:$PORT", "[::1]:"),
    ] {
        let edge = Edge::start();
        let python = "import os, socket, sys, time\n\
                      at, port = sys.argv[1].rsplit(':', 1)\n\
                      six = at.startswith('[')\n\
                      s = socket.socket(socket.AF_INET6 if six else socket.AF_INET)\n\
                      s.bind((at.strip('[]'), int(port)))\n\
                      s.listen()\n\
                      time.sleep(600)\n";
        let artifact = Artifact::new()
            .set("process", "command", &format!("[\"python3\", \"app.py\", {at:?}]"))
            .set("process", "ready", "{ tcp = true }")
            .set("wake", "start_timeout", "\"1s\"");
        fs::write(artifact.path().join("app.py"), python).unwrap();
        edge.deploy(&artifact);
        let told = edge.get("/dashboard").retryable("wake-failed")["detail"].to_string();
        let words = "the app listens on another address than 127.0.0.1:$PORT";
        assert!(told.contains(words), "{told}");
        let op = edge.ops().remove(0);
        assert_eq!(op["state"], json!("failed"));
        let detail = op["failure"]["detail"].as_str().unwrap();
        let words = format!("it was not ready within 1s: it listens on {listens}");
        assert!(detail.starts_with(&words) && detail.contains(", not on 127.0.0.1:"), "{detail}");
        assert!(detail.contains(" ($PORT)"), "{detail}");
        assert!(edge.log().contains(detail), "{}", edge.log());
        eventually("it is told of before its time is over", || {
            edge.log().contains(&format!("not ready yet: it listens on {listens}"))
        });
    }
}

#[test]
fn a_procfile_says_what_a_contract_does_not_and_what_git_ignores_stays_behind() {
    let edge = Edge::start();
    fs::remove_file(edge.apps().join("studylab.toml")).unwrap();
    let app = "app = \"shop\"\nhosts = [\"studylab.localhost\"]\n";
    fs::write(edge.apps().join("shop.toml"), app).unwrap();
    edge.said(&["reload"]);
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("Shop");
    fs::create_dir_all(dir.join("tmp")).unwrap();
    fs::write(dir.join("serve"), SERVER).unwrap();
    fs::write(dir.join(".env"), "KEY=secret\n").unwrap();
    fs::write(dir.join("tmp/old"), "").unwrap();
    let line = "# how it runs\nweb: perl serve 127.0.0.1:$PORT \"$(ls -A | tr '\\n' ' ')\"\nworker: true\n";
    fs::write(dir.join("Procfile"), line).unwrap();
    let path = dir.to_str().unwrap();
    let output = edge.command(&["deploy", path]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("taken: the app's name from its directory: shop\n"), "{said}");
    assert!(
        said.contains("taken: the command from the line `web` of the Procfile: perl"),
        "{said}"
    );
    assert!(said.contains("warning: .env goes into the artifact"), "{said}");
    let answer = edge.get("/dashboard");
    assert_eq!(answer.status, 200, "{}", edge.log());
    let text = answer.text().to_owned();
    assert!(text.starts_with(".env Procfile serve tmp vango-edge.toml |"), "{text}");

    fs::write(dir.join(".gitignore"), ".env\n/tmp\nserve\n").unwrap();
    let contract = "[app]\nname = \"shop\"\n[process]\nenv = { SCRIPT = \"serve\" }\n";
    fs::write(dir.join("vango-edge.toml"), contract).unwrap();
    let output = edge.command(&["deploy", path]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("note: left out by .gitignore: .env, tmp/; a .vango-edgeignore"),
        "{said}"
    );
    assert!(!said.contains("warning"), "{said}");
    let text = edge.get("/dashboard").text().to_owned();
    assert!(text.starts_with(".gitignore Procfile serve vango-edge.toml |"), "{text}");
    let checked = edge.command(&["check", "-c", edge.config().to_str().unwrap(), path]);
    assert!(checked.status.success());
    let noted = String::from_utf8_lossy(&checked.stderr);
    assert!(noted.contains("left out by .gitignore: .env, tmp/"), "{noted}");
}

#[test]
fn what_an_app_writes_beside_its_code_is_its_own_and_gone_when_it_ends() {
    let edge = Edge::start_with("[runner]\nscratch_bytes = \"1MiB\"\n");
    let program = r#"
        if ($line =~ m{GET /write/(\d+) }) {
            open(my $f, '>>', 'data/notes') or die $!; print $f 'x' x $1; close $f;
            unlink 'app.txt';
        }
        my $b = -s 'data/notes'; $b = 0 unless defined $b; $b .= -e 'app.txt' ? ' with' : ' without';
        print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($b) . "\r\nConnection: close\r\n\r\n$b";
    "#;
    let artifact = Artifact::perl(program).set("process", "writable", "\"scratch\"");
    fs::create_dir(artifact.path().join("data")).unwrap();
    fs::write(artifact.path().join("app.txt"), "").unwrap();
    fs::write(artifact.path().join("data/keep"), "").unwrap();
    edge.deploy(&artifact.set("process", "ready", "{ tcp = true }"));
    let text = |path: &str| edge.get(path).text().to_owned();
    assert_eq!(text("/dashboard"), "0 with", "{}", edge.log());
    assert_eq!((text("/write/5"), text("/write/2")), ("5 without".into(), "7 without".into()));
    assert!(edge.log().contains("it is gone when the process ends"), "{}", edge.log());
    edge.assert_sleeps_without_a_trace();
    let allocations = edge.state().join("run/allocations");
    let left = fs::read_dir(&allocations).map(Iterator::count);
    assert_eq!(left.unwrap_or(0), 0, "nothing of it is left in {}", allocations.display());
    assert_eq!(text("/dashboard"), "0 with", "the next start has the artifact");
    assert!(!edge.log().contains("beside itself"), "the tree was not touched: {}", edge.log());
    let first = edge.until_hot()["id"].clone();
    assert_eq!(text("/write/2000000"), "2000000 without");
    eventually("one that wrote too much is ended", || edge.ps().iter().all(|a| a["id"] != first));
    assert!(edge.log().contains("more than runner.scratch_bytes"), "{}", edge.log());
    // It may have ended too soon after its start for a new one at once.
    eventually("the next one has the artifact again", || text("/dashboard") == "0 with");
}

#[test]
fn the_command_line_says_what_is_missing() {
    let mut edge = Edge::start();
    assert!(edge.stop().success());
    let token = edge.config().with_file_name("operate.token");
    fs::write(&token, "an-operators-own-token").unwrap();
    let tokens = format!("[admin]\ntokens = [{{ role = \"operate\", file = {token:?} }}]\n");
    edge.reconfigure("[admin]\n", &tokens);
    edge.start_again();
    let artifact = Artifact::new();
    let path = artifact.write().to_str().unwrap();
    let said = edge.refused(&["deploy", path]);
    assert!(
        said.contains("asks for a token, and none was given") && said.contains("--token-file"),
        "{said}"
    );

    let edge = Edge::start();
    let at = edge.admin.to_string();
    assert!(edge.said(&["--admin", &at, "routes"]).starts_with("HOST"), "without a scheme");
    let nowhere = tempfile::tempdir().unwrap();
    let check = |dir: &str| {
        let mut command = std::process::Command::new(crate::support::binary());
        let output = command.args(["check", dir]).current_dir(nowhere.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = check(path);
    assert!(code == Some(0) && said.contains("note: there is no conf/edge.toml here"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().canonicalize().unwrap().join("bin");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("gunicorn"), format!("#!{}/python\n", own.display())).unwrap();
    fs::set_permissions(own.join("gunicorn"), fs::Permissions::from_mode(0o755)).unwrap();
    let contract = "[app]\nname = \"a\"\n[process]\ncommand = [\"gunicorn\"]\npath = [\"bin\"]\n";
    fs::write(dir.path().join("vango-edge.toml"), contract).unwrap();
    let (code, said) = check(dir.path().to_str().unwrap());
    assert!(code == Some(1) && said.contains("\"python\", \"-m\", \"gunicorn\""), "{said}");
    let (code, said) = check(nowhere.path().to_str().unwrap());
    assert!(
        code == Some(1) && said.contains("vango-edge init") && said.ends_with("1 error\n"),
        "{said}"
    );
}
