//! A process by descriptor (pidfd_open(2), Linux 5.3): signals reach it and no other that gets its
//! id later, and its end is an event.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct PidFd(AsyncFd<OwnedFd>);

impl PidFd {
    /// The process that has this id now. Must be called on a runtime.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two integers; returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` is an open descriptor for as long as the `AsyncFd` owns it, and
        // nothing replaces it.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Sends a signal; `Ok(false)` when the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let fd = self.0.as_raw_fd();
        // SAFETY: an open descriptor, a signal number, no siginfo, no flags.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(true),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
                e => Err(e),
            },
        }
    }

    /// Until the process has ended (it may be a zombie still).
    pub async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// The same, for a time; whether it ended.
    pub async fn ended_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok_and(|r| r.is_ok())
    }
}
