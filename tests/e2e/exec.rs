//! Commands that run once beside an app: what they get, what their caller sees of them, and how they end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Artifact, Edge, binary, eventually};

fn start(edge: &Edge, arguments: &[&str]) -> Child {
    Command::new(binary())
        .args(["exec", "studylab"])
        .args(arguments)
        .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(edge: &Edge, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = start(edge, arguments);
    // A command may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn audited(edge: &Edge) -> Vec<Value> {
    let rows = edge.list(&["audit", "studylab"]);
    let of_a_command = |r: &Value| r["decision"].as_str().is_some_and(|d| d.starts_with("exec"));
    rows.into_iter().filter(of_a_command).collect()
}

#[test]
fn it_is_the_command_as_far_as_a_shell_can_tell_and_the_app_sleeps_on() {
    let edge = Edge::start();
    let artifact = Artifact::new().env("GREETING", "hello");
    std::fs::write(artifact.path().join("fixtures.txt"), "a fixture\n").unwrap();
    edge.deploy(&artifact);
    let script = "cat - fixtures.txt; echo \"$GREETING port=$PORT\"; touch \"$HOME/made\"; \
                  ls \"$TMPDIR\"; ulimit -n >/dev/null; echo wrong >&2; exit 7";
    let big = vec![b'x'; 3 << 20];
    let done = run(&edge, &["--", "sh", "-c", script], &big);
    assert_eq!(done.status.code(), Some(7), "{}", text(&done.stderr));
    assert_eq!(text(&done.stderr), "wrong\n");
    let (given, said) = done.stdout.split_at(big.len());
    assert!(given == big, "all of its input came back");
    assert_eq!(text(said), "a fixture\nhello port=\n");
    assert!(edge.state().join("run/home/studylab/production/made").is_file());
    assert_eq!(edge.ps(), [] as [Value; 0], "it was not woken");
    assert_eq!(edge.processes(), [] as [u32; 0]);

    let nothing = run(&edge, &["--no-stdin", "--", "cat"], b"not for it");
    assert!(nothing.status.success() && nothing.stdout.is_empty());
    let killed = run(&edge, &["--", "sh", "-c", "kill -9 $$"], b"");
    assert_eq!(killed.status.code(), Some(137));

    eventually("each command and its end are in the audit", || audited(&edge).len() == 6);
    let rows = audited(&edge);
    let why: Vec<_> = rows.iter().map(|r| r["why"].as_str().unwrap()).collect();
    assert!(why.iter().any(|w| w.ends_with("exit code 7: sh -c …")), "{why:?}");
    assert!(why.iter().any(|w| w.ends_with("SIGKILL: sh -c …")), "{why:?}");
    assert!(!format!("{rows:?}").contains("GREETING"), "no script, in which a secret may stand");
}

#[test]
fn what_it_reads_and_prints_passes_at_once_both_ways() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new());
    let mut child = start(&edge, &["--", "cat"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for word in ["one\n", "two\n"] {
        input.write_all(word.as_bytes()).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, word);
    }
    drop(input);
    assert!(child.wait().unwrap().success());

    // One that ends before its input does, as `yes | head` has it.
    let mut child = start(&edge, &["--", "head", "-c", "3"]);
    let mut input = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || while input.write_all(&[b'y'; 4096]).is_ok() {});
    let mut first = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert!(child.wait().unwrap().success());
    feeding.join().unwrap();
}

#[test]
fn it_ends_with_its_client_with_its_time_and_with_the_edge() {
    let mut edge = Edge::start();
    edge.deploy(&Artifact::new());
    // Its client leaves; it prints more than anything takes, and its child has a session of its own.
    let script = "setsid sleep 1000 & while :; do echo much more than anybody reads; done";
    let mut child = start(&edge, &["--", "sh", "-c", script]);
    let mut first = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert!(!edge.processes().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("nothing of it runs", || edge.processes().is_empty());
    eventually("the audit says why", || {
        audited(&edge).iter().any(|r| r["why"].as_str().unwrap().contains("its client left"))
    });

    let late = run(&edge, &["--timeout", "1s", "--", "sleep", "1000"], b"");
    assert_eq!(late.status.code(), Some(124), "{}", text(&late.stderr));
    assert!(text(&late.stderr).contains("--timeout"));
    assert_eq!(edge.processes(), [] as [u32; 0]);

    // The same where its client reads nothing, so that it cannot print on.
    let mut unread = start(&edge, &["--timeout", "1s", "--", "yes"]);
    unread.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    eventually("nothing of it runs", || edge.processes().is_empty());
    unread.kill().unwrap();
    unread.wait().unwrap();

    // `kill -9` of the edge: the next start finds what it left, also where it wrote over its environment.
    let script = "exec perl -e '$0 = \"x\" x 4096; print \"$$\\n\"; $| = 1; $SIG{PIPE} = \"IGNORE\"; sleep 1000'";
    let mut child = start(&edge, &["--", "sh", "-c", script]);
    let mut pid = String::new();
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    printed.read_line(&mut pid).unwrap();
    let runs = || {
        let command = std::fs::read(format!("/proc/{}/cmdline", pid.trim()));
        command.is_ok_and(|words| !words.is_empty())
    };
    assert!(runs(), "{pid}");
    edge.kill();
    assert_eq!(child.wait().unwrap().code(), Some(125), "its exit is not known");
    edge.start_again();
    eventually("nothing of it runs", || !runs());
    assert_eq!(std::fs::read_dir(edge.state().join("run/allocations")).unwrap().count(), 0);

    // The edge stops in order.
    let mut child = start(&edge, &["--", "sleep", "1000"]);
    eventually("it runs", || !edge.processes().is_empty());
    assert!(edge.stop().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(edge.processes(), [] as [u32; 0]);
    edge.start_again();

    // Also one that exits with 0 when it is told to end: it did not do all.
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let mut child = start(&edge, &["--", "sh", "-c", script]);
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    assert!(edge.stop().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    edge.start_again();
}

#[test]
fn what_cannot_run_is_said_with_another_code_than_a_commands() {
    let edge = Edge::start_with("[runner]\nmax_commands = 1\n");
    let none = run(&edge, &["--", "true"], b"");
    assert_eq!(none.status.code(), Some(125));
    assert!(text(&none.stderr).contains("there is no environment studylab/production"));
    edge.deploy(&Artifact::new());
    for (arguments, why) in [
        (&["--", "no-such-program"][..], "no-such-program could not be started"),
        (&["--", "./vango-edge.toml"], "Permission denied"),
        (&["--timeout", "2d", "--", "true"], "expected 1 to 86400 seconds"),
        (&["--timeout", "soon", "--", "true"], "expected a time such as"),
    ] {
        let refused = run(&edge, arguments, b"");
        assert_eq!(refused.status.code(), Some(125), "{arguments:?}");
        assert!(text(&refused.stderr).contains(why), "{}", text(&refused.stderr));
    }
    assert_eq!(run(&edge, &["true"], b"").status.code(), Some(2), "wrong usage");
    let mut first = start(&edge, &["--", "cat"]);
    eventually("it runs", || !edge.processes().is_empty());
    let second = run(&edge, &["--", "true"], b"");
    assert_eq!(second.status.code(), Some(125));
    assert!(text(&second.stderr).contains("runner.max_commands"), "{}", text(&second.stderr));
    drop(first.stdin.take());
    assert!(first.wait().unwrap().success());
    assert!(run(&edge, &["--", "true"], b"").status.success(), "its place is free again");
}

#[test]
fn it_has_no_port_no_credential_and_nothing_that_is_made_of_them() {
    let edge = Edge::start();
    edge.deploy(&Artifact::new().env("BIND", "127.0.0.1:$PORT").env("PRICE", "$$PORT"));
    let script = "echo \"$PRICE [$BIND$PORT$HOST$VANGO_EDGE_SELF_URL$VANGO_EDGE_SELF_TOKEN]\"";
    let done = run(&edge, &["--", "sh", "-c", script], b"");
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("$PORT []\n", ""));
    assert_eq!(edge.get("/dashboard").status, 200);
    let web = u32::try_from(edge.ps()[0]["pid"].as_u64().unwrap()).unwrap();
    let environ = std::fs::read_to_string(format!("/proc/{web}/environ")).unwrap();
    let value = |name: &str| environ.split('\0').find_map(|e| e.strip_prefix(name)).unwrap();
    assert_eq!(value("BIND="), format!("127.0.0.1:{}", value("PORT=")));
    assert!(!value("VANGO_EDGE_SELF_TOKEN=").is_empty());
}

#[test]
fn what_it_writes_beside_the_code_is_bounded_and_gone_as_an_apps_is() {
    let edge = Edge::start_with("[runner]\nscratch_bytes = \"1MiB\"\n");
    let worker = "[[process.worker]]\nname = \"writer\"\nrun = \"always\"\n\
                  command = [\"sh\", \"-c\", \"head -c 2000000 /dev/zero >big; sleep 1000\"]\n[wake]";
    let artifact = Artifact::new().set("process", "writable", "\"scratch\"");
    edge.deploy(&artifact.replace("[wake]", worker));
    let ended = || edge.log().contains("the worker writer ended: SIGTERM");
    eventually("the worker is ended", ended);
    let script = "echo 1 >small; cat small; head -c 2000000 /dev/zero >big; sleep 1000";
    let done = run(&edge, &["--timeout", "60s", "--", "sh", "-c", script], b"");
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(143), "1\n"), "{}", edge.log());
    let said = edge.log().matches("more than runner.scratch_bytes").count();
    assert!(said >= 2, "{}", edge.log());
    let none = run(&edge, &["--", "ls", "small"], b"");
    assert_eq!(none.status.code(), Some(2), "each has a view of its own");
}

#[test]
fn kill_9_of_the_edge_leaves_nothing_of_it_also_without_control_groups() {
    let mut edge = Edge::start_without_control_groups();
    edge.deploy(&Artifact::new());
    // Two at once, each with a child of a session of its own.
    let script = "setsid sleep 1000 & echo up; wait";
    let mut both = [0, 1].map(|_| start(&edge, &["--", "sh", "-c", script]));
    for child in &mut both {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
    }
    eventually("all of it runs", || edge.processes().len() >= 4);
    edge.kill();
    for mut child in both {
        assert_eq!(child.wait().unwrap().code(), Some(125));
    }
    edge.start_again();
    eventually("nothing of it runs", || edge.processes().is_empty());
    assert_eq!(std::fs::read_dir(edge.state().join("run/allocations")).unwrap().count(), 0);
    let over = audited(&edge).iter().filter(|row| row["decision"] == "exec").count();
    assert_eq!(over, 2, "that they began is on record");
}
