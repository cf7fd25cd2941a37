//! What this process asks of the operating system: open files, a notification, a stray child.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The argument that makes a process of this binary the stray child of another.
pub const STRAY: &str = "stray";

/// Raises the limit of open files as far as this user may: one connection is one file, and the
/// usual soft limit of 1,024 is less than one burst.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(err) = raised {
        eprintln!("studylab: the limit of open files stays as it was: {err}");
    }
}

/// Tells the process that listens on `socket` that the app is ready: a path, or `@name` for an abstract
/// socket (sd_notify(3)).
pub fn notify_ready(socket: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

/// Starts a child that leaves this process's session and group, as a badly behaved app would.
/// The app does not wait for it; what stops the app has to find it.
pub fn spawn_stray() -> io::Result<()> {
    let child = Command::new(std::env::current_exe()?)
        .arg(STRAY)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eprintln!("studylab: stray process {}", child.id());
    Ok(())
}

/// The stray child: a session of its own, then nothing until it is killed.
pub fn stay_until_killed() -> ! {
    // Fails only for a group's leader, and that is as far away as a new session would be.
    let _ = nix::unistd::setsid();
    loop {
        std::thread::park();
    }
}
