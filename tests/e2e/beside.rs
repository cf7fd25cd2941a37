//! What runs beside the process that takes requests: workers, and what schedules start.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Artifact, Edge, eventually, eventually_some, within};

/// A worker that says what it is, and what becomes of it.
const TELLS: &str = "echo start $VANGO_EDGE_EPOCH; trap 'sleep 0.3; echo end $VANGO_EDGE_EPOCH; exit 0' TERM; \
                     while :; do sleep 0.02; done";

/// The sample app with one more table in its contract, before its routes.
fn with(tables: &str) -> Artifact {
    Artifact::new().replace("[wake]", &format!("{tables}\n[wake]"))
}

fn worker(script: &str, run: &str) -> Artifact {
    with(&format!(
        "[[process.worker]]\nname = \"mailer\"\ncommand = [\"sh\", \"-c\", {script:?}]\nrun = {run:?}\n"
    ))
}

fn printed(edge: &Edge, process: &str) -> Vec<String> {
    let said =
        edge.said(&["logs", "studylab", "--process", process, "--stream", "stdout", "--json"]);
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    said.lines().map(|l| line(l)["text"].as_str().unwrap().to_owned()).collect()
}

/// The worker as `ps` shows it, once it is in this state.
fn until(edge: &Edge, state: &str) -> Value {
    eventually_some(&format!("the worker is {state}"), || {
        edge.ps().into_iter().find(|row| row["process"] == "mailer" && row["state"] == state)
    })
}

fn pid_of(row: &Value) -> u32 {
    u32::try_from(row["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_worker_runs_while_its_app_is_awake_and_is_told_to_end_with_it() {
    let mut edge = Edge::start();
    edge.deploy(&worker(TELLS, "with-web"));
    assert_eq!((edge.ps(), edge.processes()), (vec![], vec![]), "asleep, nothing of it runs");
    assert_eq!(edge.get("/dashboard").status, 200);
    let running = until(&edge, "running");
    assert_eq!(
        (&running["epoch"], &running["digest"]),
        (&edge.ps()[0]["epoch"], &edge.ps()[0]["digest"])
    );
    let environ = |pid: u32| fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let (own, web) =
        (environ(pid_of(&running)), edge.ps().into_iter().find(|p| p["process"] == "web"));
    let web = environ(pid_of(&web.unwrap()));
    let home = |env: &str| env.split('\0').find(|e| e.starts_with("HOME=")).unwrap().to_owned();
    assert_eq!(home(&own), home(&web));
    assert!(!own.contains("\0PORT="), "it takes no requests");
    edge.json(&["sleep", "studylab"]);
    eventually("it has ended", || edge.ps().is_empty() && edge.processes().is_empty());
    assert_eq!(printed(&edge, "mailer"), ["start 1", "end 1"]);
    assert_eq!(edge.get("/dashboard").status, 200);
    until(&edge, "running");
    assert!(edge.stop().success(), "{}", edge.log());
}

#[test]
fn a_worker_that_ends_is_started_again_with_a_back_off() {
    let edge = Edge::start_with("[runner.backoff]\nfirst = \"200ms\"\nmax = \"1s\"\n");
    edge.deploy(&worker("echo up; sleep 0.1; exit 3", "with-web"));
    assert_eq!(edge.get("/dashboard").status, 200);
    until(&edge, "waiting");
    eventually("it was started again", || printed(&edge, "mailer").len() >= 3);
    assert!(edge.log().contains("the worker mailer ended: exit code 3"), "{}", edge.log());
    assert_eq!(edge.get("/dashboard").status, 200, "the app serves all the same");
    assert_eq!(edge.ops().len(), 1);
}

#[test]
fn one_that_always_runs_is_of_the_owner_and_never_two_at_a_time() {
    let mut edge = Edge::start();
    let artifact = worker(TELLS, "always");
    edge.deploy(&artifact);
    let first = until(&edge, "running");
    assert!(edge.ps().iter().all(|row| row["process"] == "mailer"), "the app itself sleeps");
    let next = edge.deploy(&artifact.env("STUDYLAB_VERSION_OF_TEST", "2"));
    let second = eventually_some("the next owner's", || {
        let ps = edge.ps();
        ps.into_iter().find(|row| {
            row["process"] == "mailer" && row["epoch"] == 2 && row["state"] == "running"
        })
    });
    assert_eq!(second["digest"], next["digest"]);
    assert_ne!(first["digest"], second["digest"]);
    assert_eq!(printed(&edge, "mailer"), ["start 1", "end 1", "start 2"], "one after the other");
    // After kill -9 the next edge ends what was left, and starts one of its own.
    edge.kill();
    assert!(!fs::read_to_string(format!("/proc/{}/stat", pid_of(&second))).unwrap().is_empty());
    edge.start_again();
    let third = until(&edge, "running");
    assert_ne!(pid_of(&third), pid_of(&second));
    let scripts = || {
        edge.processes().into_iter().filter(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with("sh\0") && line.contains("echo start")
        })
    };
    eventually("one is left", || scripts().count() == 1);
    // One that dies is replaced.
    kill(Pid::from_raw(pid_of(&third).try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another runs", || {
        let now = edge
            .ps()
            .into_iter()
            .find(|row| row["process"] == "mailer" && row["state"] == "running");
        now.is_some_and(|row| row["pid"] != third["pid"])
    });
}

#[test]
fn a_worker_stands_still_with_an_app_that_is_frozen() {
    let edge = Edge::start();
    let counts = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";
    edge.deploy(
        &worker(counts, "with-web")
            .set("sleep", "mode", "\"freeze\"")
            .set("sleep", "after", "\"2s\""),
    );
    assert_eq!(edge.get("/dashboard").status, 200);
    let running = until(&edge, "running");
    let frozen = until(&edge, "frozen");
    assert_eq!(running["pid"], frozen["pid"]);
    let count = printed(&edge, "mailer").len();
    // What was in its pipe comes still.
    let more = || (printed(&edge, "mailer").len() > count + 2).then_some(());
    assert!(within(Duration::from_secs(1), more).is_none(), "it prints nothing more");
    assert_eq!(edge.get("/dashboard").status, 200);
    assert_eq!(until(&edge, "running")["pid"], running["pid"]);
    let count = printed(&edge, "mailer").len();
    eventually("it goes on", || printed(&edge, "mailer").len() > count);
}

/// A server that prints what it is asked.
const SERVER: &str = "import http.server, os\n\
class H(http.server.BaseHTTPRequestHandler):\n    \
    def do(self):\n        \
        if self.path != '/readyz': print(self.command, self.path, self.headers.get('Vango-Edge-Cron'), flush=True)\n        \
        self.send_response(500 if 'fail' in self.path else 204); self.end_headers()\n    \
    do_GET = do_POST = do\n    \
    def log_message(self, *a): pass\n\
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";

fn entry<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    rows.iter().find(|row| row["name"] == name).unwrap()
}

/// A time of the schedule comes each minute.
fn with_the_minute(what: &str, is_so: impl Fn() -> bool) {
    let so = within(Duration::from_secs(150), || is_so().then_some(()));
    assert!(so.is_some(), "not within two minutes: {what}");
}

#[test]
fn schedules_run_a_command_and_wake_an_app_for_a_request() {
    let edge = Edge::start();
    let cron = |name: &str, what: &str| {
        format!("[[cron]]\nname = {name:?}\nschedule = \"* * * * *\"\n{what}\n")
    };
    let artifact = with(&[
        cron("tidy", "command = [\"sh\", \"-c\", \"echo tidied $N $VANGO_EDGE_EPOCH; exit 3\"]\nenv = { N = \"7\" }"),
        cron("ping", "path = \"/tasks/ping?a=1\""),
        cron("slow", "command = [\"sleep\", \"100\"]\ntimeout = \"1s\""),
        "[[cron]]\nname = \"yearly\"\nschedule = \"0 0 1 JAN *\"\npath = \"/y\"\n".to_owned(),
    ]
    .concat())
    .set("process", "command", "[\"python3\", \"-u\", \"server.py\"]");
    fs::write(artifact.path().join("server.py"), SERVER).unwrap();
    edge.deploy(&artifact);
    let rows = edge.list(&["cron"]);
    assert!(entry(&rows, "tidy")["next"].is_string() && entry(&rows, "tidy")["last"].is_null());
    assert!(entry(&rows, "yearly")["next"].as_str().unwrap().ends_with("-01-01T00:00:00.000Z"));
    let ran = |name: &str| entry(&edge.list(&["cron"]), name)["last"]["ok"].is_boolean();
    with_the_minute("each ran", || ran("tidy") && ran("ping") && ran("slow"));
    let rows = edge.list(&["cron"]);
    let how = |name: &str| entry(&rows, name)["last"]["how"].as_str().unwrap().to_owned();
    assert_eq!(how("tidy"), "exit code 3");
    assert_eq!(how("ping"), "POST /tasks/ping?a=1: status 204");
    assert!(how("slow").starts_with("ended after 1s, its timeout"), "{}", how("slow"));
    assert!(entry(&rows, "yearly")["last"].is_null());
    assert_eq!(printed(&edge, "tidy"), ["tidied 7 1"]);
    assert_eq!(printed(&edge, "web"), ["POST /tasks/ping?a=1 ping"]);
    let audit = edge.list(&["audit", "studylab"]);
    let of = |decision: &str, name: &str| {
        let whys = audit.iter().filter(|row| row["decision"] == decision);
        whys.filter(|row| row["why"].as_str().unwrap().contains(name)).count()
    };
    assert_eq!(
        (of("cron-failed", "tidy"), of("cron-ran", "ping"), of("cron-failed", "slow")),
        (1, 1, 1)
    );
    // A client cannot say that it is the schedule.
    let answer = edge.ask("GET", "/tasks/ping", &[("Vango-Edge-Cron", "ping")], "");
    assert_eq!(answer.status, 204);
    eventually("it is printed", || {
        printed(&edge, "web").contains(&"GET /tasks/ping None".to_owned())
    });
}

#[test]
fn a_run_that_was_on_record_when_the_edge_was_killed_is_not_run_again() {
    let mut edge = Edge::start();
    let runs = edge.state().join("runs");
    let script = format!("date +%H:%M >>{}", runs.display());
    edge.deploy(&with(&format!(
        "[[cron]]\nname = \"daily\"\nschedule = \"* * * * *\"\nmissed = \"once\"\n\
         command = [\"sh\", \"-c\", {script:?}]\n"
    )));
    edge.crash_at("cron after started");
    let stat = format!("/proc/{}/stat", edge.pid());
    with_the_minute("the edge is killed", || fs::read_to_string(&stat).unwrap().contains(") Z "));
    edge.crashed();
    edge.start_again();
    let last = eventually_some("how it ended is on record", || {
        let row = edge.list(&["cron"]).remove(0);
        row["last"]["how"].is_string().then(|| row["last"].clone())
    });
    assert_eq!(last["how"], "the edge ended while it ran");
    assert!(!runs.exists(), "that time is not run again");
    with_the_minute("the next time is run", || runs.exists());
    let due = edge.list(&["cron"]).remove(0)["last"]["due"].clone();
    assert_ne!(due, last["due"]);
    assert_eq!(fs::read_to_string(runs).unwrap().lines().count(), 1);
}
