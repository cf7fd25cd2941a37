//! Makes what a process needs, and the process.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;

use crate::id::{AllocationId, Environment};

use super::cgroup::{Cgroup, Cgroups};
use super::{ReadyCheck, StartError, StartSpec, log};

/// Where an app's programs are looked for, unless its contract sets another.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// In the environment of everything an allocation starts; also how a leftover is found.
pub const MARK: &str = "VANGO_EDGE_ALLOCATION";

/// The mark of one allocation, as it stands in an environment.
pub fn mark(allocation: &AllocationId) -> String {
    format!("{MARK}={allocation}")
}

/// A port that the kernel chose and that it gives to no program that asks for any port, for as long as
/// this lives: a socket is bound to it, and does not listen. An app that sets `SO_REUSEADDR`, as
/// servers do, can bind it and listen (ip(7), socket(7)). Another that names this very port could as
/// well, which is why readiness asks who listens.
#[derive(Debug)]
pub struct ReservedPort {
    _socket: OwnedFd,
    pub address: SocketAddr,
}

impl ReservedPort {
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        let bound: SockaddrIn = getsockname(fd.as_raw_fd())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port()));
        Ok(Self { _socket: fd, address })
    }
}

/// Where a process listens.
#[derive(Debug)]
pub enum Port {
    /// Kept for it until it listens, and for as long as it runs.
    Reserved(ReservedPort),
    /// Held by the process alone: it was adopted, and listens already.
    Held(SocketAddr),
}

impl Port {
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Reserved(port) => port.address,
            Self::Held(address) => *address,
        }
    }
}

/// What one process needs besides its program; made before it.
pub struct Place {
    /// A directory of its own: pipe, notification socket, temporary files.
    pub dir: PathBuf,
    /// The environment's own directory, which stays.
    pub home: PathBuf,
    pub port: ReservedPort,
    pub cgroup: Option<Cgroup>,
    pub notify: Option<UnixDatagram>,
    pub output: pipe::Receiver,
    pub stdio: File,
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
        spec: &StartSpec,
    ) -> Result<Self, StartError> {
        let dir = dir_of(run_dir, &spec.allocation);
        let home = home_of(run_dir, &spec.environment);
        let in_dir = |what: &str, e| StartError::system(format!("{}: {what}", dir.display()), e);
        private_dir(&dir.join("tmp")).map_err(|e| in_dir("making it", e))?;
        private_dir(&home).map_err(|e| StartError::system(home.display().to_string(), e))?;
        let port = ReservedPort::new().map_err(|e| StartError::system("reserving a port", e))?;
        let socket = dir.join("notify");
        let notify = match UnixDatagram::bind(&socket) {
            Ok(socket) => Some(socket),
            // The path may be too long for a socket's (unix(7)): a reason to fail only if the app
            // has no other way to say that it is ready.
            Err(e) if spec.ready == ReadyCheck::Notify => {
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
        let (output, stdio) =
            log::make_pipe(&dir.join(log::PIPE)).map_err(|e| in_dir("its output's pipe", e))?;
        let cgroup = cgroups
            .map(|c| c.make(&spec.allocation))
            .transpose()
            .map_err(|e| StartError::system("making a control group", e))?;
        Ok(Self { dir, home, port, cgroup, notify, output, stdio })
    }

    fn command(&self, spec: &StartSpec) -> io::Result<Command> {
        let (program, arguments) = spec
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let mut command = if program.contains('/') {
            Command::new(spec.root.join(program))
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .current_dir(&spec.root)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.home)
            .env("TMPDIR", self.dir.join("tmp"))
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            // After the contract's own: these it cannot change.
            .env("PORT", self.port.address.port().to_string())
            .env(MARK, spec.allocation.as_str())
            .env("VANGO_EDGE_ENVIRONMENT", spec.environment.to_string())
            .env("VANGO_EDGE_EPOCH", spec.epoch.to_string())
            .env("VANGO_EDGE_GENERATION", spec.generation.to_string())
            .env("VANGO_EDGE_DIGEST", spec.digest.to_string())
            .stdin(Stdio::null())
            .stdout(self.stdio.try_clone()?)
            .stderr(self.stdio.try_clone()?);
        if self.notify.is_some() {
            command.env("NOTIFY_SOCKET", self.dir.join("notify"));
        }
        Ok(command)
    }

    /// Starts the process. Blocks for the fork and the exec.
    pub fn spawn(&self, spec: &StartSpec) -> Result<Child, StartError> {
        let spawn = || {
            let mut command = self.command(spec)?;
            let procs = self.cgroup.as_ref().map(Cgroup::procs).transpose()?;
            let limits = spec.limits;
            // SAFETY: between fork and exec only async-signal-safe calls (signal-safety(7)) and
            // plain system calls are made, and nothing is allocated.
            unsafe {
                command.pre_exec(move || {
                    lead_session()?;
                    if let Some(procs) = &procs {
                        join_group(procs)?;
                    }
                    restrict(limits.open_files, limits.core_bytes)
                });
            }
            command.spawn()
        };
        spawn().map_err(|source| {
            let program = spec.command.first().cloned().unwrap_or_default();
            StartError::Spawn { program, source }
        })
    }
}

/// Leads a session of its own, and with it a process group. A group in the edge's session would be told
/// by the kernel that it is orphaned when the edge dies (SIGHUP, setpgid(2)) if it stands still then:
/// an app that is frozen by SIGSTOP would not outlive `kill -9` of the edge.
fn lead_session() -> io::Result<()> {
    // SAFETY: async-signal-safe (signal-safety(7)), and takes nothing.
    if unsafe { libc::setsid() } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes "0", the process itself, into an open `cgroup.procs`.
fn join_group(procs: &File) -> io::Result<()> {
    // SAFETY: an open descriptor and one byte that lives for the program's life.
    let n = unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) };
    if n == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn limit(resource: libc::__rlimit_resource_t, wanted: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut limit))?;
        let value = wanted.min(limit.rlim_max);
        limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        check(libc::setrlimit(resource, &raw const limit))
    }
}

fn restrict(open_files: u64, core_bytes: u64) -> io::Result<()> {
    limit(libc::RLIMIT_NOFILE, open_files)?;
    limit(libc::RLIMIT_CORE, core_bytes)?;
    // SAFETY: plain system calls with integers.
    unsafe {
        libc::umask(0o077);
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // Everything here is opened close-on-exec; this is for what a library forgets. Kernels
        // before 5.11 do not know it.
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
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            ::log::warn!("{}: {e}", dir.display());
        }
        _ => {}
    }
}
