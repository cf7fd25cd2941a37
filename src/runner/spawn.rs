//! Makes what a process needs, and the process.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{setsid, write};
use tokio::net::UnixDatagram;

use crate::contract::{ExpandError, Ready};
use crate::id::{AllocationId, Environment, Generation};
use crate::record::Process;

use super::cgroup::{Cgroup, Cgroups};
use super::expanded::{PATH, Variables, expanded};
use super::group::MARK;
use super::scratch::Scratch;
use super::{Program, StartError, log};

/// Files that a process may have open (getrlimit(2)), unless the edge itself may have fewer.
const OPEN_FILES: u64 = 65_536;

/// Where a process listens: a port that the kernel chose and that it gives to no program that asks for any
/// port, for as long as this lives: a socket is bound to it, and does not listen. An app that sets
/// `SO_REUSEADDR`, as servers do, can bind it and listen (ip(7), socket(7)). Another that names this very
/// port could as well, which is why readiness asks who listens.
///
/// One that was adopted listens already, and nothing is reserved for it.
#[derive(Debug)]
pub struct Port {
    pub address: SocketAddr,
    /// Bound, and kept for as long as the process runs.
    pub(super) _reserved: Option<OwnedFd>,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        let bound: SockaddrIn = getsockname(fd.as_raw_fd())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port()));
        Ok(Self { address, _reserved: Some(fd) })
    }
}

/// What each process needs besides its program; made before it.
pub struct Place {
    /// Whose mark everything in it carries.
    pub id: AllocationId,
    /// A directory of its own: pipe, notification socket, temporary files.
    pub dir: PathBuf,
    /// The environment's own directory, which stays.
    pub home: PathBuf,
    pub cgroup: Option<Cgroup>,
    /// Whether a view to write to may be an overlay.
    pub overlay: bool,
}

/// What one that takes requests needs besides.
pub struct Listening {
    pub port: Port,
    pub notify: Option<UnixDatagram>,
}

/// Where a process reads from and prints to.
pub struct Streams {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

impl Streams {
    /// It reads nothing, and prints to its standard output and standard error.
    pub fn printing_to([stdout, stderr]: [File; 2]) -> Self {
        Self { stdin: Stdio::null(), stdout: stdout.into(), stderr: stderr.into() }
    }
}

/// A directory that only the edge's user may enter.
fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Where an environment's process finds its files after each start.
pub fn home_of(run_dir: &Path, environment: &Environment) -> PathBuf {
    run_dir.join("home").join(environment.app().as_str()).join(environment.name().as_str())
}

impl Place {
    pub fn make(
        run_dir: &Path,
        cgroups: Option<&Cgroups>,
        id: &AllocationId,
        environment: &Environment,
        overlay: bool,
    ) -> Result<Self, StartError> {
        let (id, dir) = (id.clone(), dir_of(run_dir, id));
        let home = home_of(run_dir, environment);
        private_dir(&dir.join("tmp")).map_err(|e| in_dir(&dir, "making it", e))?;
        private_dir(&home).map_err(|e| StartError::system(home.display().to_string(), e))?;
        let cgroup = cgroups
            .map(|c| c.make(&id))
            .transpose()
            .map_err(|e| StartError::system("making a control group", e))?;
        Ok(Self { id, dir, home, cgroup, overlay })
    }

    /// A port of its own, and where it may say that it is ready.
    pub fn listening(&self, ready: &Ready) -> Result<Listening, StartError> {
        let port = Port::reserve().map_err(|e| StartError::system("reserving a port", e))?;
        let socket = self.notify_socket();
        let notify = match UnixDatagram::bind(&socket) {
            Ok(socket) => Some(socket),
            // The path may be too long for a socket's (unix(7)): a reason to fail only if the app
            // has no other way to say that it is ready.
            Err(e) if *ready == Ready::Notify => {
                return Err(StartError::system(
                    format!(
                        "{}: a notification socket (choose a shorter state.dir)",
                        socket.display()
                    ),
                    e,
                ));
            }
            Err(_) => None,
        };
        Ok(Listening { port, notify })
    }

    fn notify_socket(&self) -> PathBuf {
        self.dir.join("notify")
    }

    /// The pipes of what it prints: the ends to read, and those for the process.
    pub fn output(&self) -> Result<(log::Ends, [File; 2]), StartError> {
        let made = log::make_pipes(&self.dir);
        made.map_err(|e| in_dir(&self.dir, "its output's pipes", e))
    }

    /// The command of a process of `program` here, an allocation's own or another, with its root at `root`. `own`
    /// is what only this kind of process is given.
    fn command(
        &self,
        program: &Program,
        root: &Path,
        own: Variables,
        streams: Streams,
    ) -> io::Result<Command> {
        let text = |name: &str, value: &dyn ToString| (name.into(), value.to_string().into());
        let defaults = Variables::from([
            text("PATH", &PATH),
            text("LANG", &"C.UTF-8"),
            ("HOME".into(), self.home.clone().into()),
            ("TMPDIR".into(), self.dir.join("tmp").into()),
        ]);
        // These the contract cannot change.
        let mut fixed = Variables::from([
            text(MARK, &self.id),
            text("VANGO_EDGE_ENVIRONMENT", &program.environment),
            text("VANGO_EDGE_EPOCH", &program.epoch),
            text("VANGO_EDGE_DIGEST", &program.digest),
        ]);
        fixed.extend(own);
        let invalid = |e: ExpandError| io::Error::new(io::ErrorKind::InvalidInput, e);
        let expanded = expanded(program, root, &defaults, &fixed).map_err(invalid)?;
        let mut command = Command::new(expanded.program);
        command
            .args(expanded.arguments)
            .current_dir(root)
            .env_clear()
            .envs(expanded.env)
            .stdin(streams.stdin)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        Ok(command)
    }

    /// The view of the program's tree that it may write to, where it gets one.
    fn scratch(&self, program: &Program) -> io::Result<Option<Scratch>> {
        if !program.scratch {
            return Ok(None);
        }
        let scratch = Scratch::make(&self.dir, &program.root, self.overlay)?;
        ::log::info!(
            "{}: {} may write beside its code, into {}: it is gone when the process ends",
            program.environment,
            self.id,
            if scratch.mount.is_some() { "an overlay" } else { "a copy" }
        );
        Ok(Some(scratch))
    }

    /// Starts a process: an allocation's own, or another. Blocks for the fork and the exec.
    pub fn spawn(
        &self,
        program: &Program,
        own: Variables,
        streams: Streams,
    ) -> Result<Child, StartError> {
        let spawn = || {
            let scratch = self.scratch(program)?;
            let root = scratch.as_ref().map_or(&*program.root, |scratch| &*scratch.root);
            let mut command = self.command(program, root, own, streams)?;
            let mount = scratch.and_then(|scratch| scratch.mount);
            let procs = self.cgroup.as_ref().map(Cgroup::procs).transpose()?;
            // SAFETY: between fork and exec only async-signal-safe calls (signal-safety(7)) and
            // plain system calls are made, and nothing is allocated.
            unsafe {
                command.pre_exec(move || {
                    // A session of its own, and with it a process group. A group in the edge's session would
                    // be told by the kernel that it is orphaned when the edge dies (SIGHUP, setpgid(2)) if it
                    // stands still then: an app that is frozen by SIGSTOP would not outlive `kill -9` of the
                    // edge.
                    setsid()?;
                    if let Some(procs) = &procs {
                        // "0" is the process itself.
                        write(procs, b"0")?;
                    }
                    if let Some(mount) = &mount {
                        mount.enter()?;
                    }
                    Ok(restrict()?)
                });
            }
            command.spawn()
        };
        spawn().map_err(|source| {
            let program = program.command.first().cloned().unwrap_or_default();
            StartError::Spawn { program, source }
        })
    }
}

impl Listening {
    /// What only a process that takes requests has in its environment.
    pub fn own(&self, place: &Place, generation: Generation) -> Variables {
        let mut own = Variables::from([
            ("PORT".into(), self.port.address.port().to_string().into()),
            ("HOST".into(), self.port.address.ip().to_string().into()),
            ("VANGO_EDGE_GENERATION".into(), generation.to_string().into()),
        ]);
        if self.notify.is_some() {
            own.insert("NOTIFY_SOCKET".into(), place.notify_socket().into());
        }
        own
    }
}

fn in_dir(dir: &Path, what: &str, e: io::Error) -> StartError {
    StartError::system(format!("{}: {what}", dir.display()), e)
}

/// Bounds what the process and its children may do. Called between fork and exec.
fn restrict() -> nix::Result<()> {
    for (resource, wanted) in [(Resource::RLIMIT_NOFILE, OPEN_FILES), (Resource::RLIMIT_CORE, 0)] {
        let (_, hard) = getrlimit(resource)?;
        let most = wanted.min(hard);
        setrlimit(resource, most, most)?;
    }
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    set_no_new_privs()?;
    // Everything here is opened close-on-exec; this is for what a library forgets. Kernels before 5.11 do
    // not know it.
    // SAFETY: a plain system call with integers.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    Ok(())
}

/// An allocation's own directory.
pub fn dir_of(run_dir: &Path, allocation: &AllocationId) -> PathBuf {
    run_dir.join("allocations").join(allocation.as_str())
}

/// The allocations that have a directory.
pub fn dirs(run_dir: &Path) -> Vec<AllocationId> {
    let Ok(entries) = fs::read_dir(run_dir.join("allocations")) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Removes an allocation's directory; the environment's stays.
pub fn remove_dir(run_dir: &Path, allocation: &AllocationId) {
    let dir = dir_of(run_dir, allocation);
    match crate::files::remove(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            ::log::warn!("{}: {e}", dir.display());
        }
        _ => {}
    }
}

/// Name of the file that says which process a directory is of, where no record does.
const PROCESS: &str = "process";

/// Writes down which process has this directory.
pub fn record(run_dir: &Path, id: &AllocationId, process: &Process) -> io::Result<()> {
    let text = serde_json::to_vec(process).map_err(io::Error::other)?;
    fs::write(dir_of(run_dir, id).join(PROCESS), text)
}

/// What an earlier process of the edge wrote down so.
pub fn recorded(run_dir: &Path, id: &AllocationId) -> Option<Process> {
    let text = fs::read(dir_of(run_dir, id).join(PROCESS)).ok()?;
    serde_json::from_slice(&text).ok()
}
