//! An allocation's process, which takes requests: its port and how it is found to be ready. What is true of any
//! process that the edge starts is its [`Group`]'s.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::OwnedSemaphorePermit;

use crate::clock::Mono;
use crate::contract::Ready;
use crate::id::Environment;

use super::group::Group;
use super::log::Tail;
use super::spawn::Port;
use super::{StartError, proc, readiness};

/// After so long an app that listens elsewhere is told of, and after half of its time at the latest.
const SAYS_WHERE: Duration = Duration::from_secs(5);

/// The process and what belongs to it.
pub struct Running {
    pub environment: Environment,
    pub group: Group,
    pub port: Port,
    pub ready: Ready,
    pub host: String,
    /// Whether readiness requests say that they came over HTTPS.
    pub https: bool,
    pub start_timeout: Duration,
    pub deadline: Mono,
    pub notify: Option<UnixDatagram>,
    pub tail: Arc<Tail>,
    pub _slot: OwnedSemaphorePermit,
}

impl Running {
    /// Until it is ready and its port is its own, at most for `left`; once it has `ended`, that says why not.
    pub async fn until_proved<E: From<StartError>>(
        self: &Arc<Self>,
        left: Duration,
        ended: impl Future<Output = E>,
    ) -> Result<(), E> {
        let last = Mutex::new("none was made".to_owned());
        tokio::select! {
            why = ended => return Err(why),
            () = self.until_ready(&last) => {}
            () = self.tell_where_else(left) => {}
            () = tokio::time::sleep(left) => {
                let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
                let limit = self.start_timeout;
                let instead = self.listens_instead().await;
                return Err(match instead {
                    Some(instead) => StartError::Elsewhere { limit, instead }.into(),
                    None => StartError::NotReady { limit, last }.into(),
                });
            }
        }
        Ok(self.check_port().await?)
    }

    /// Says in the log, before the time of its start is over, that it listens where no request comes. Never
    /// ends: an app may open another port first, and its own later.
    async fn tell_where_else(self: &Arc<Self>, left: Duration) {
        tokio::time::sleep(SAYS_WHERE.min(left / 2)).await;
        if let Some(instead) = self.listens_instead().await {
            ::log::warn!(
                "{}: {}: not ready yet: it {instead}",
                self.environment,
                self.group.allocation
            );
        }
        std::future::pending().await
    }

    /// Where it listens, if it does and its port takes no connection.
    async fn listens_instead(self: &Arc<Self>) -> Option<String> {
        if readiness::tcp(self.port.address).await.is_ok() {
            return None;
        }
        let this = Arc::clone(self);
        let found = tokio::task::spawn_blocking(move || this.listens_on()).await.ok()?.ok()?;
        if found.is_empty() {
            return None;
        }
        let mut on: Vec<String> = found.iter().take(3).map(ToString::to_string).collect();
        if found.len() > on.len() {
            on.push(format!("{} more", found.len() - on.len()));
        }
        Some(format!("listens on {}, not on {} ($PORT)", on.join(", "), self.port.address))
    }

    /// The addresses on which the process or what it started listens. Blocks for reading `/proc`.
    fn listens_on(&self) -> std::io::Result<BTreeSet<SocketAddr>> {
        let mut own = self.group.pids();
        own.push(self.group.process.pid);
        let held = |inode| own.iter().any(|pid| proc::holds_socket(*pid, &HashSet::from([inode])));
        let all = proc::listening()?.into_iter();
        Ok(all.filter(|(_, inode)| held(*inode)).map(|(at, _)| at).collect())
    }

    /// Checks until it is ready. What each check found goes to `last`, for the error of a caller that gives
    /// up.
    async fn until_ready(&self, last: &Mutex<String>) {
        let mut checks = 0;
        loop {
            let address = self.port.address;
            let found = match &self.ready {
                Ready::Http { path, protocol } => {
                    readiness::http(address, *protocol, &self.host, self.https, path).await
                }
                Ready::Tcp => readiness::tcp(address).await,
                Ready::Notify if checks == 0 => Err("it has not sent READY=1".to_owned()),
                Ready::Notify => Ok(()),
            };
            match found {
                Ok(()) => return,
                Err(why) => *last.lock().unwrap_or_else(PoisonError::into_inner) = why,
            }
            match &self.ready {
                Ready::Notify => self.notified().await,
                _ => tokio::select! {
                    () = tokio::time::sleep(readiness::pause(checks)) => {}
                    // An app that says so is asked at once.
                    () = self.notified() => {}
                },
            }
            checks += 1;
        }
    }

    /// Until the process sends `READY=1` (sd_notify(3)); never without a socket.
    async fn notified(&self) {
        let Some(socket) = &self.notify else { return std::future::pending().await };
        let mut message = [0u8; 4096];
        loop {
            match socket.recv(&mut message).await {
                Ok(n) if message[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") => {
                    return;
                }
                Ok(_) => {}
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// No other process may listen where its requests go.
    async fn check_port(self: &Arc<Self>) -> Result<(), StartError> {
        let (this, port) = (Arc::clone(self), self.port.address.port());
        let held = tokio::task::spawn_blocking(move || this.holds_port()).await;
        match held.map_err(std::io::Error::other).and_then(|held| held) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StartError::PortTaken { port }),
            Err(e) => Err(StartError::system("asking who holds its port", e)),
        }
    }

    /// Whether the port is held by the process or by something it started.
    pub fn holds_port(&self) -> std::io::Result<bool> {
        let inodes = proc::listeners(self.port.address.port())?;
        Ok(proc::holds_socket(self.group.process.pid, &inodes)
            || self.group.pids().into_iter().any(|pid| proc::holds_socket(pid, &inodes)))
    }
}
