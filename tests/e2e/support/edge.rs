//! An edge process with its directory, and the command line that talks to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Answer, Artifact, Connection, PATIENCE, eventually, eventually_some, within};

/// The program under test: what was built with these tests, or the one that `VANGO_EDGE_TEST_BINARY` names,
/// for figures of a release build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let named = std::env::var_os("VANGO_EDGE_TEST_BINARY");
        named.map_or_else(|| env!("CARGO_BIN_EXE_vango-edge").into(), PathBuf::from)
    })
}

/// The herd takes the machine for itself, so that neither it nor the others are measured wrongly.
static MACHINE: RwLock<()> = RwLock::new(());

/// Held only to be let go.
#[expect(dead_code, reason = "a guard is there to be dropped")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
    /// The test has another edge, which has the turn.
    Another,
}

/// An edge with its directory. Dropping it stops it and asserts that nothing of it is left.
pub struct Edge {
    dir: TempDir,
    state: PathBuf,
    child: Option<Child>,
    /// The command that it is started by, if not by its own.
    through: Vec<String>,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where they connect over TLS, if anywhere.
    pub tls: Option<SocketAddr>,
    /// Its admin API.
    pub admin: SocketAddr,
    _turn: Turn,
}

/// Writes the smallest configuration that does not disturb other edges, with `more` after it.
pub fn write_config(dir: &Path, more: &str) -> PathBuf {
    let apps = dir.join("apps");
    fs::create_dir_all(&apps).unwrap();
    let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/apps/studylab.toml");
    fs::copy(app, apps.join("studylab.toml")).unwrap();
    let config = dir.join("edge.toml");
    let node = "[server]\nlisten = [\"127.0.0.1:0\"]\ngrace = \"300s\"\n\
                [admin]\nlisten = \"127.0.0.1:0\"\n\
                [state]\ndir = \"state\"\n[apps]\ndir = \"apps\"\n";
    fs::write(&config, format!("{node}{more}")).unwrap();
    config
}

impl Edge {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With more in its `edge.toml`.
    pub fn start_with(config: &str) -> Self {
        let turn = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self::start_in_turn(config, Turn::Shared(turn))
    }

    /// Another one beside this, with a directory of its own.
    pub fn start_beside(&self) -> Self {
        Self::start_in_turn("", Turn::Another)
    }

    /// On a machine without control groups, as far as it can see. Where tests may make none, that is
    /// every machine.
    pub fn start_without_control_groups() -> Self {
        let mut edge = Self::start();
        if !edge.log().contains("no control group") {
            assert!(edge.stop().success());
            let hide = "awk '/ - cgroup2 / {print $5}' /proc/self/mountinfo | \
                        while read -r at; do mount -t tmpfs none \"$at\"; done; exec \"$@\"";
            edge.through = ["unshare", "--mount", "sh", "-c", hide, "sh"].map(Into::into).into();
            edge.start_again();
        }
        edge
    }

    /// The machine shows its control groups from the next start on.
    pub fn show_control_groups(&mut self) {
        self.through.clear();
    }

    /// With more in its `[server]`.
    pub fn start_with_server(keys: &str) -> Self {
        let mut edge = Self::start();
        assert!(edge.stop().success());
        if keys.contains("grace") {
            edge.reconfigure("grace = \"300s\"\n", "");
        }
        edge.reconfigure("[server]\n", &format!("[server]\n{keys}\n"));
        edge.start_again();
        edge
    }

    /// Other words in its `edge.toml`.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let config = fs::read_to_string(self.config()).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(self.config(), config.replace(from, to)).unwrap();
    }

    /// With its state below `dir`.
    pub fn start_on(dir: &Path) -> Self {
        let mut edge = Self::start();
        assert!(edge.stop().success());
        let state = dir.join("state");
        fs::create_dir(&state).unwrap();
        edge.reconfigure("dir = \"state\"", &format!("dir = {:?}", state.display().to_string()));
        edge.state = state;
        edge.start_again();
        edge
    }

    /// With one more file of an app.
    pub fn start_with_app(name: &str, file: &str) -> Self {
        let mut edge = Self::start();
        assert!(edge.stop().success());
        fs::write(edge.dir.path().join(format!("apps/{name}.toml")), file).unwrap();
        edge.start_again();
        edge
    }

    /// With apps by these names besides, each at its name below `localhost`.
    pub fn start_with_apps(config: &str, names: &[String]) -> Self {
        Self::start_with(config).with_apps(names)
    }

    /// The same with the machine for itself.
    pub fn alone_with_apps(config: &str, names: &[String]) -> Self {
        Self::start_alone(config).with_apps(names)
    }

    fn with_apps(self, names: &[String]) -> Self {
        let mut edge = self;
        assert!(edge.stop().success());
        for name in names {
            let file = edge.dir.path().join(format!("apps/{name}.toml"));
            fs::write(file, format!("app = {name:?}\nhosts = [\"{name}.localhost\"]\n")).unwrap();
        }
        edge.start_again();
        edge
    }

    /// With the machine for itself.
    pub fn start_alone(config: &str) -> Self {
        let turn = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Self::start_in_turn(config, Turn::Alone(turn))
    }

    fn start_in_turn(config: &str, turn: Turn) -> Self {
        // A short path: sockets are below it, whose paths have at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("ve-").tempdir_in("/tmp").unwrap();
        write_config(dir.path(), config);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let state = dir.path().join("state");
        let mut edge = Self {
            dir,
            state,
            child: None,
            through: Vec::new(),
            listen: nowhere,
            tls: None,
            admin: nowhere,
            _turn: turn,
        };
        edge.start_again();
        edge
    }

    /// Starts a process on this directory; there must be none.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().append(true).create(true).open(self.dir.path().join("log"));
        let words = self.through.iter().map(|w| std::ffi::OsStr::new(w.as_str()));
        let mut words = words.chain([binary().as_os_str()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(["run", "-c"])
            .arg(self.config())
            .env("VANGO_EDGE_TEST_CRASH_AT", self.crash_file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        self.child = Some(child);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(out).read_line(&mut line);
            let _ = tell.send(line);
        });
        let line = told.recv_timeout(PATIENCE).expect("the edge prints its addresses in time");
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("no addresses, but {line:?}: {e}\n{}", self.log()));
        self.listen = said["listen"][0].as_str().unwrap().parse().unwrap();
        self.tls = said["tls"][0].as_str().map(|a| a.parse().unwrap());
        self.admin = said["admin"].as_str().unwrap().parse().unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("edge.toml")
    }

    /// Where the apps' files are.
    pub fn apps(&self) -> PathBuf {
        self.dir.path().join("apps")
    }

    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// What it wrote to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// SIGHUP: the configuration is read again.
    pub fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.kill_only();
        self.buried();
    }

    /// The same without waiting for its end, while others use it.
    pub fn kill_only(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// It kills itself at the next passing of a point of `vango_edge::crash`, until it is started again.
    pub fn crash_at(&self, point: &str) {
        fs::write(self.crash_file(), point).unwrap();
    }

    /// The end of one that is to crash: by SIGKILL.
    #[track_caller]
    pub fn crashed(&mut self) {
        let status = self.ended();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}\n{}", self.log());
        fs::remove_file(self.crash_file()).unwrap();
    }

    fn crash_file(&self) -> PathBuf {
        self.dir.path().join("crash-at")
    }

    /// Waits for the end of one that was killed.
    pub fn buried(&mut self) {
        self.child.take().unwrap().wait().unwrap();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Its end, which something else has asked for.
    pub fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let ended = eventually_some("the edge stops", || child.try_wait().unwrap());
        self.child = None;
        ended
    }

    /// Every process that this edge started and that is still there, by the home it was given.
    pub fn processes(&self) -> Vec<u32> {
        let home = format!("HOME={}/", self.state().canonicalize().unwrap().display());
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let env = fs::read(entry.path().join("environ")).ok()?;
            let text = String::from_utf8_lossy(&env);
            let ours = text.split('\0').any(|e| e.starts_with(&home));
            (ours && text.contains("VANGO_EDGE_ALLOCATION=")).then_some(pid)
        })
        .collect()
    }

    /// Runs a command of the command line against this edge.
    pub fn command(&self, arguments: &[&str]) -> Output {
        Command::new(binary())
            .args(arguments)
            .env("VANGO_EDGE_ADMIN", format!("http://{}", self.admin))
            .output()
            .unwrap()
    }

    /// The same for one that must fail: what it wrote to stderr.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        said
    }

    /// The same for one that must succeed: what it printed for people.
    #[track_caller]
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with `--json`; it must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.said(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The same for a list.
    #[track_caller]
    pub fn list(&self, arguments: &[&str]) -> Vec<Value> {
        self.json(arguments).as_array().unwrap().clone()
    }

    /// Deploys; what `deploy --json` said.
    #[track_caller]
    pub fn deploy(&self, artifact: &Artifact) -> Value {
        self.json(&["deploy", artifact.write().to_str().unwrap()])
    }

    pub fn ops(&self) -> Vec<Value> {
        self.list(&["ops"])
    }

    pub fn ps(&self) -> Vec<Value> {
        self.list(&["ps"])
    }

    /// The one allocation that takes requests, once there is one.
    pub fn until_hot(&self) -> Value {
        eventually_some("an allocation is ready", || {
            let ps = self.ps();
            ps.into_iter().find(|a| a["state"] == "ready")
        })
    }

    /// The trace of a request, which is written after its answer.
    pub fn trace(&self, request: &str) -> Value {
        eventually_some("the request's trace", || {
            self.list(&["traces", "--request", request]).pop()
        })
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.listen)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut connection = self.connect();
        let length = body.len().to_string();
        let mut all = vec![("Connection", "close")];
        if !body.is_empty() {
            all.push(("Content-Length", &length));
        }
        all.extend(headers);
        connection.send_head(method, path, &all);
        connection.send(body);
        if method == "HEAD" {
            let answer = connection.answer_to_head().expect("an answer");
            assert!(connection.ends_here(), "an answer to HEAD has no body");
            return answer;
        }
        connection.answer().expect("an answer")
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    /// A request that is sent and waits; returns once the edge holds `held` requests.
    pub fn hold(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        held: u64,
    ) -> Connection {
        let mut connection = self.connect();
        connection.send_head(method, path, headers);
        self.until_held(held);
        connection
    }

    pub fn until_held(&self, n: u64) {
        eventually(&format!("{n} requests are held"), || self.held() == n);
    }

    /// The status of a path of the admin API; 0 when it is not there.
    pub fn admin_status(&self, path: &str) -> u16 {
        let Ok(stream) = std::net::TcpStream::connect(self.admin) else { return 0 };
        let mut connection = Connection::over(stream);
        connection.send_head("GET", path, &[("Host", "localhost"), ("Connection", "close")]);
        connection.answer().map_or(0, |answer| answer.status)
    }

    /// Requests held now, by /metrics.
    pub fn held(&self) -> u64 {
        self.metric("vango_edge_held{unit=\"requests\"}")
    }

    /// A request to the admin API.
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        let mut connection = Connection::open(self.admin);
        connection.send_head(method, path, &[("Host", "localhost"), ("Connection", "close")]);
        connection.answer().unwrap()
    }

    /// A value of /metrics; 0 when it is not there.
    pub fn metric(&self, name: &str) -> u64 {
        let mut connection = Connection::open(self.admin);
        connection.send_head("GET", "/metrics", &[("Host", "localhost"), ("Connection", "close")]);
        let answer = connection.answer().unwrap();
        let line = answer.text().lines().find_map(|l| l.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// How often the app itself says that `route` ran, in all its processes so far.
    pub fn executions(&self, route: &str) -> u64 {
        let answer = self.get(&format!("/debug/executions?route={route}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["totals"][route].as_u64().unwrap_or(0)
    }

    /// Puts the app to sleep and asserts that nothing of it runs.
    pub fn assert_sleeps_without_a_trace(&self) {
        self.json(&["sleep", "studylab"]);
        assert_eq!(self.ps(), [] as [Value; 0]);
        assert_eq!(self.processes(), [] as [u32; 0]);
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM);
            // A panic while dropping would hide the test's own.
            within(Duration::from_secs(30), || child.try_wait().ok().flatten());
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = self.processes();
        for pid in &left {
            let _ = kill(Pid::from_raw((*pid).try_into().unwrap()), Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the edge's log\n{}---", self.log());
        } else {
            assert!(left.is_empty(), "processes {left:?} outlived the edge\n{}", self.log());
        }
    }
}

/// Descriptors that a process has open.
pub fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Bytes of memory that a process has resident.
pub fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
