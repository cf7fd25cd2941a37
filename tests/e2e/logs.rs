//! `vango-edge logs`: what apps print, over restarts, failed starts and floods.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::support::{Artifact, Edge, PATIENCE, binary, eventually};

/// An app whose process prints by `script` and then is the sample app.
fn printing(script: &str) -> Artifact {
    let script = format!("{script}; exec ./studylab");
    Artifact::new().set("process", "command", &format!("[\"sh\", \"-c\", {script:?}]"))
}

/// Lines of `logs … --json`.
fn lines(edge: &Edge, arguments: &[&str]) -> Vec<Value> {
    let said = edge.said(&[&["logs"], arguments, &["--json"]].concat());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["text"].as_str().unwrap()).collect()
}

/// `logs -f`, read line by line; ended with the test.
struct Following(Child, mpsc::Receiver<String>);

impl Following {
    fn start(edge: &Edge, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["logs", "-f", "--json"])
            .args(arguments)
            .env("VANGO_EDGE_ADMIN", format!("http://{}", edge.admin))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|l| tell.send(l).is_ok()));
        Self(child, told)
    }

    /// The texts up to the one that contains `last`.
    fn until(&self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let line = self.1.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}: {all:?}"));
            let line: Value = serde_json::from_str(&line).unwrap();
            all.push(line["text"].as_str().unwrap().to_owned());
            if all.last().unwrap().contains(last) {
                return all;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The pipe through which the allocation's process prints; another end of it is as good as its own.
fn pipe(edge: &Edge, id: &str) -> PathBuf {
    edge.state().join("run/allocations").join(id).join("output")
}

fn print(edge: &Edge, id: &str, text: &str) {
    use std::io::Write as _;
    let mut pipe = fs::OpenOptions::new().write(true).open(pipe(edge, id)).unwrap();
    pipe.write_all(text.as_bytes()).unwrap();
}

#[test]
fn each_line_has_its_stream_its_process_and_its_allocation() {
    let edge = Edge::start();
    edge.deploy(&printing("echo to stdout; echo to stderr >&2; printf 'a\\377b\\033[31m\\r\\n'"));
    assert_eq!(edge.get("/dashboard").status, 200);
    let id = edge.until_hot()["id"].as_str().unwrap().to_owned();
    // With what the app itself prints, and the edge's word.
    eventually("all is printed", || texts(&lines(&edge, &["studylab"])).len() == 5);
    let all = lines(&edge, &["studylab"]);
    assert!(all.iter().all(|line| line["allocation"] == id && line["process"] == "web"));
    assert!(all.iter().all(|line| line["environment"] == "studylab/production"));
    let of = |stream: &str| texts(&lines(&edge, &["studylab", "--stream", stream])).join("|");
    assert!(of("stdout").starts_with("to stdout|a\u{fffd}b\u{1b}[31m|{\"listening"));
    assert_eq!(of("stderr"), "to stderr");
    assert!(of("edge").starts_with("started: artifact "), "{}", of("edge"));
    let people = edge.said(&["logs", &id]);
    assert!(people.contains(&format!(" {id} web stderr  to stderr\n")), "{people}");
    assert!(people.contains("\\u001b[31m") && !people.contains('\u{1b}'), "{people}");
    assert_eq!(edge.said(&["logs", "studylab/pr-7"]), "");
    let refused = edge.refused(&["logs", "al-aaaaaaaaaaaaaaaa"]);
    assert!(refused.contains("does not run, and nothing that it printed is kept"), "{refused}");
    let refused = edge.refused(&["logs", "studylab", "--since", "yesterday"]);
    assert!(refused.contains("--since yesterday"), "{refused}");
    assert_eq!(lines(&edge, &["studylab", "-n", "1"]).len(), 1);
    assert_eq!(lines(&edge, &["studylab", "--since", "2999-01-01T00:00:00Z"]).len(), 0);
    assert_eq!(lines(&edge, &["studylab", "--since", "1h"]).len(), 5);
}

#[test]
fn a_failed_start_and_what_ran_before_are_there_after_a_restart_of_the_edge() {
    let mut edge = Edge::start_with("[runner.backoff]\nfirst = \"10m\"\nmax = \"10m\"\n");
    let gate = edge.state().join("broken");
    let script =
        format!("echo began; [ ! -e {} ] || {{ echo broken >&2; exit 7; }}", gate.display());
    edge.deploy(&printing(&script));
    assert_eq!(edge.get("/dashboard").status, 200);
    edge.said(&["sleep", "studylab"]);
    fs::write(&gate, "").unwrap();
    assert_eq!(edge.get("/dashboard").status, 503);
    let why = edge.ops()[0]["failure"]["detail"].as_str().unwrap().to_owned();
    let command = why.split('`').nth(1).unwrap();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(words[..2], ["logs", "studylab/production"]);
    for _ in 0..2 {
        let of_the_failure = lines(&edge, &words[1..]);
        let said = texts(&of_the_failure);
        assert!(said.contains(&"broken") && said.contains(&"began"), "{said:?}");
        assert!(said.contains(&"ended by itself: exit code 7"), "{said:?}");
        assert!(said.iter().any(|s| s.starts_with("did not start: it ended before")), "{said:?}");
        let all = lines(&edge, &["studylab"]);
        let all = texts(&all);
        assert_eq!(all.iter().filter(|s| **s == "began").count(), 2, "{all:?}");
        assert!(all.iter().any(|s| s.starts_with("stopped: ")), "{all:?}");
        edge.kill();
        edge.start_again();
    }
}

#[test]
fn who_follows_sees_each_line_once_over_full_files_and_a_restart_of_the_edge() {
    let config = "[runner]\nlog_bytes = \"64KiB\"\nlog_rate = \"64MiB\"\n";
    let mut edge = Edge::start_with(config);
    // The next process of the edge has to be where this one was, for who follows it.
    let admin = edge.admin;
    edge.reconfigure(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        &format!("[admin]\nlisten = \"{admin}\""),
    );
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    let id = edge.until_hot()["id"].as_str().unwrap().to_owned();
    let following = Following::start(&edge, &["studylab"]);
    following.until("listening");
    // More than three times what is kept, at a pace that can be followed.
    let mut seen = Vec::new();
    for part in 0..20 {
        let long = "x".repeat(80);
        let text: String = (0..100).map(|n| format!("{} {long}\n", part * 100 + n)).collect();
        print(&edge, &id, &text);
        seen.extend(following.until(&format!("{} {long}", part * 100 + 99)));
    }
    let numbers: Vec<String> =
        seen.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert!(numbers.into_iter().eq((0..2000).map(|n: u32| n.to_string())), "once each, in order");
    edge.kill();
    print(&edge, &id, "while no edge read\n");
    edge.start_again();
    assert_eq!(edge.admin, admin);
    let after = following.until("while no edge read");
    assert!(after.iter().all(|line| !line.contains("xxx")), "none is shown twice: {after:?}");
    drop(following);
    // What it took is given back: as many as may be open can be opened again and again.
    for _ in 0..100 {
        Following::start(&edge, &["studylab", "-n", "1"]).until("");
    }
}

#[test]
fn a_flood_is_dropped_in_part_counted_and_stalls_nothing() {
    let config = "[runner]\nlog_bytes = \"256KiB\"\nlog_rate = \"16KiB\"\n";
    let edge = Edge::start_with(config);
    // 20 MB in lines of 100 bytes, and one of a megabyte.
    let flood =
        "yes $(printf '%099d' 7) | head -n 200000; head -c 1000000 /dev/zero | tr '\\0' y; echo";
    edge.deploy(&printing(&format!("{flood}; echo after")));
    assert_eq!(edge.get("/dashboard").status, 200);
    let dropped = "vango_edge_app_log_lines_dropped_total{reason=\"rate\"}";
    let n = edge.metric(dropped);
    assert!((190_000..=200_100).contains(&n), "{n}");
    let all = lines(&edge, &["studylab", "-n", "100000"]);
    let said = texts(&all);
    assert!(
        said.iter().any(|s| s.contains("dropped: more than runner.log_rate")),
        "{:?}",
        said.last()
    );
    assert!(said.iter().all(|s| s.len() <= 16 << 10));
    let dir = edge.state().join("run/log/studylab/production");
    let bytes: u64 = fs::read_dir(dir).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 256 << 10, "{bytes}");
    assert_eq!(edge.get("/dashboard").status, 200);
}

#[test]
fn an_app_that_prints_its_environment_does_not_print_its_credential() {
    let edge = Edge::start();
    edge.deploy(&printing("env; env >&2"));
    assert_eq!(edge.get("/dashboard").status, 200);
    let pid = edge.processes()[0];
    let environ = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let token = environ.split('\0').find_map(|e| e.strip_prefix("VANGO_EDGE_SELF_TOKEN=")).unwrap();
    let secret = token.rsplit('/').next().unwrap();
    let shown = format!("VANGO_EDGE_SELF_TOKEN={}[redacted]", token.strip_suffix(secret).unwrap());
    eventually("both are printed", || {
        texts(&lines(&edge, &["studylab"])).iter().filter(|line| **line == shown).count() == 2
    });
    let mut all = String::new();
    for file in fs::read_dir(edge.state().join("run/log/studylab/production")).unwrap() {
        fs::File::open(file.unwrap().path()).unwrap().read_to_string(&mut all).unwrap();
    }
    assert!(!all.contains(secret) && all.contains("[redacted]"));
}
