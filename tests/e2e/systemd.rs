//! The service manager's part: sockets that outlive the edge, and what the edge tells.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{Connection, PATIENCE, binary, eventually, write_config};

/// What systemd does for a service with a socket: holds it, and hands it over at each start.
pub struct Manager {
    dir: TempDir,
    socket: TcpListener,
    told: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("\"{}\"", socket.local_addr().unwrap());
        Self::with(socket, &listen)
    }

    /// One that holds `socket`, for an edge that is to listen on `listen`.
    pub fn with(socket: TcpListener, listen: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ve-").tempdir_in("/tmp").unwrap();
        // Its children have it too.
        fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let told = UnixDatagram::bind(dir.path().join("told")).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = write_config(dir.path(), "");
        let text = std::fs::read_to_string(&config).unwrap();
        let listen = format!("listen = [{listen}]");
        std::fs::write(config, text.replacen("listen = [\"127.0.0.1:0\"]", &listen, 1)).unwrap();
        Self { dir, socket, told }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn start(&self) -> Child {
        self.command().spawn().unwrap()
    }

    /// One that ends with the test.
    pub fn run(&self) -> Ended {
        Ended(self.start())
    }

    pub fn command(&self) -> Command {
        let script = format!(
            "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" run -c \"$1\"",
            self.socket.as_raw_fd()
        );
        // Not sh: Debian's takes one digit for a descriptor, and other tests may have nine open.
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .arg(binary())
            .arg(self.dir.path().join("edge.toml"))
            .env("NOTIFY_SOCKET", self.dir.path().join("told"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// The next thing that it was told.
    pub fn told(&self) -> String {
        let mut bytes = [0; 512];
        let n = self.told.recv(&mut bytes).expect("it is told in time");
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Ends the process with the test, however that ends.
pub struct Ended(Child);
impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_manager_is_told_and_a_restart_refuses_no_connection() {
    let manager = Manager::new();
    let mut edge = Ended(manager.start());
    assert_eq!(manager.told(), "READY=1\n");
    signal(&edge.0, Signal::SIGHUP);
    let told = manager.told();
    assert!(told.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told}");
    assert_eq!(manager.told(), "READY=1\n");

    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // A connection of its own for each, which a restart may not refuse. The host
                    // has no owner: 404 is the edge's answer, and an answer is what counts.
                    let stream = TcpStream::connect(manager.address()).expect("not refused");
                    let asked = [("Host", "nobody.test"), ("Connection", "close")];
                    let answer = Connection::over(stream).ask("GET", "/", &asked);
                    if answer.is_some_and(|a| a.status == 404) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let stopping = StopOnDrop(&stop);
        for _ in 0..3 {
            let before = answered.load(Ordering::Relaxed);
            eventually("requests are answered", || answered.load(Ordering::Relaxed) > before + 20);
            signal(&edge.0, Signal::SIGTERM);
            assert_eq!(manager.told(), "STOPPING=1\n");
            assert!(edge.0.wait().unwrap().success());
            edge = Ended(manager.start());
            assert_eq!(manager.told(), "READY=1\n");
        }
        drop(stopping);
    });
    println!("{} requests answered over three restarts", answered.into_inner());
}

/// Ends the load whatever happens to the test's own part.
struct StopOnDrop<'a>(&'a AtomicBool);
impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_units_are_valid() {
    // Debian's systemd has it; where it is not, nothing starts the units either.
    if Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("systemd-analyze is not there: the units are not checked");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for unit in ["vango-edge.service", "vango-edge.socket"] {
        let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(unit);
        let text = std::fs::read_to_string(conf).unwrap();
        // It looks whether the program is there.
        let text = text.replace("/usr/local/bin/vango-edge", binary().to_str().unwrap());
        units.push(dir.path().join(unit));
        std::fs::write(units.last().unwrap(), text).unwrap();
    }
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let of_ours = |line: &&str| line.contains("vango-edge") && !line.contains("notify-reload");
    assert_eq!(said.lines().find(of_ours), None);
    assert!(output.status.success(), "{said}");
}
