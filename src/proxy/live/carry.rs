//! The life of an accepted socket: pinned to its allocation until a side ends it, the edge is told
//! to, or nothing passes for too long. Then its client may rest without its app ([`Resting`]).

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::clock::{Clock, Mono};
use crate::lifecycle::affinity::SessionName;
use crate::proxy::gate::Gate;
use crate::record::SessionRoute;
use crate::snapshot::{EnvCounters, Pin};
use crate::sockets::frames::{self, Frames, Protocol};
use crate::sockets::pump::{Ended, Parted, Paused, Pump};
use crate::sockets::{Cause, Order, Seat};
use crate::wire::Guarded;

/// How long the client may take to accept the 101.
const ACCEPT_WITHIN: Duration = Duration::from_secs(10);
/// How long the client may take to accept what its app had sent when it ended.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Close codes of the edge's own (RFC 6455 §7.4.1; 1012 is registered with IANA).
mod code {
    /// A newer socket is here: do not come back for this one.
    pub const REPLACED: (u16, &str) = (1000, "a newer socket of this session is open");
    /// Going away.
    pub const IDLE: (u16, &str) = (1001, "nothing passed for too long");
    /// Try again later; by who proposed it, "upon user action" (IANA's registry, and the HyBi list's
    /// message 10748 that it refers to).
    pub const ASLEEP: (u16, &str) = (1013, "asleep");
    /// Service restart: come back.
    pub const RESTART: (u16, &str) = (1012, "reconnect");
}

/// An accepted socket.
pub struct Accepted<A> {
    /// The leg to the app.
    pub app: A,
    /// What the app sent right behind its 101.
    pub from_app: Vec<u8>,
    /// What the client had sent already.
    pub from_client: Vec<u8>,
    /// Its place among the open ones.
    pub seat: Seat,
    /// Its count at the allocation.
    pub pin: Pin,
    /// The environment's counters.
    pub counters: Arc<EnvCounters>,
    /// The protocol of its messages.
    pub protocol: Protocol,
    /// Whether what it carries keeps the app awake; otherwise the open socket does.
    pub touches: bool,
    /// Whether its client keeps the app awake at all.
    pub keeps_awake: bool,
    /// Whether a message of its client wakes the app that fell asleep under it.
    pub may_wake: bool,
    /// Ended without a close frame of the edge's own.
    pub cut: bool,
    /// Where its session is, for the record.
    pub route: SessionRoute,
    /// Longest silence.
    pub idle: Duration,
}

/// Takes the connection over and sends `head`. `None` when the client is gone.
pub(super) async fn greet(stream: Option<Stream>, head: &[u8]) -> Option<Client> {
    let mut client = client_of(stream?).ok()?;
    let greeting = async {
        client.write_all(head).await?;
        client.flush().await
    };
    tokio::time::timeout(ACCEPT_WITHIN, greeting).await.ok()?.ok()?;
    Some(client)
}

impl<A> Accepted<A>
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Carries until it ends.
    ///
    /// Not an `async fn`: its future would have room for each argument twice.
    pub(super) fn carry(
        self,
        client: Client,
        gate: Arc<Gate>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let Self { app, from_app, from_client, seat, pin, counters, protocol, route, .. } = self;
        let (keeps_awake, may_wake, cut, idle) =
            (self.keeps_awake, self.may_wake, self.cut, self.idle);
        let touches = self.touches;
        let mut pump = Pump::new(client, app, from_client, from_app, protocol);
        async move {
            let clock = &*gate.clock;
            let touched = touches.then_some(&counters);
            let cause = loop {
                match pumped(&mut pump, &seat, clock, touched, idle).await {
                    Stop::Ended(cause) => break cause,
                    Stop::Named(name) => {
                        seat.rename(name);
                        let routes = &gate.sessions.routes;
                        routes.note(seat.environment(), name, route.clone());
                    }
                }
            };
            let rests = cut && matches!(cause, Cause::Asleep | Cause::Replaced);
            // Boxed: each socket would have room for its end in its future, as much again as for its life.
            let parted = Box::pin(finish(pump, cause, cut, rests, &seat)).await;
            gate.telemetry.metrics.socket_ended(cause);
            if keeps_awake {
                counters.touch(clock.now());
            }
            let Some(Parted { client, frames, may_add }) = parted else {
                // Its allocation first: who waits for the seat may look at the allocation next.
                return drop((pin, seat));
            };
            if rests && may_add {
                let asleep = cause == Cause::Asleep;
                let next = gate.sockets.rest(seat.environment(), asleep);
                drop((pin, seat, counters));
                let resting = Resting { client, frames, seat: next, asleep, may_wake, idle };
                tokio::spawn(resting.run(gate));
                return;
            }
            // The app's leg is closed, and the client has been told: a newer socket that waits for that
            // goes on.
            drop((pin, seat));
            tokio::spawn(linger(client));
        }
    }
}

/// Why a socket is not carried for now.
enum Stop {
    Ended(Cause),
    /// The app has told the tab its session.
    Named(SessionName),
}

async fn pumped<A>(
    pump: &mut Pump<Client, A>,
    seat: &Seat,
    clock: &dyn Clock,
    touched: Option<&Arc<EnvCounters>>,
    idle: Duration,
) -> Stop
where
    A: AsyncRead + AsyncWrite + Unpin,
{
    let last = AtomicU64::new(clock.now().0);
    let passed = |data: bool| {
        let now = clock.now();
        last.store(now.0, Ordering::Relaxed);
        if let Some(counters) = touched.filter(|_| data) {
            counters.touch(now);
        }
    };
    let mut heard: Option<Order> = None;
    loop {
        let now = clock.now();
        let silent_until = Mono(last.load(Ordering::Relaxed)) + idle;
        if let Some(Order::EndAt(at)) = heard
            && at <= now
        {
            return Stop::Ended(Cause::Drained);
        }
        if silent_until <= now {
            return Stop::Ended(Cause::Idle);
        }
        let next = match heard {
            Some(Order::EndAt(at)) => at.min(silent_until),
            _ => silent_until,
        };
        tokio::select! {
            paused = pump.run(passed) => return match paused {
                Paused::Named(session) => Stop::Named(session.name()),
                Paused::Ended(Ended::Client) => Stop::Ended(Cause::Client),
                Paused::Ended(Ended::App) if pump.app_said_goodbye() => Stop::Ended(Cause::App),
                Paused::Ended(Ended::App) => Stop::Ended(Cause::AppLost),
            },
            order = seat.told(heard) => match order {
                Order::Replaced => return Stop::Ended(Cause::Replaced),
                Order::Asleep => return Stop::Ended(Cause::Asleep),
                order @ Order::EndAt(_) => heard = Some(order),
            },
            () = tokio::time::sleep(next.since(now)) => {}
        }
    }
}

/// Ends both legs: the app's at once, the client's with what the client is to make of it. The client's
/// stays as it is if it `rests` and its next frame may be the edge's own.
async fn finish<A>(
    pump: Pump<Client, A>,
    cause: Cause,
    cut: bool,
    rests: bool,
    seat: &Seat,
) -> Option<Parted<Client>>
where
    A: AsyncRead + AsyncWrite + Unpin,
{
    if cause == Cause::Client {
        return None;
    }
    let flushed = tokio::time::timeout(FLUSH_WITHIN, pump.into_client()).await;
    let Ok(Ok(mut parted)) = flushed else { return None };
    if rests && parted.may_add {
        return Some(parted);
    }
    let close = match cause {
        Cause::Client | Cause::App => None,
        Cause::Idle => Some(code::IDLE),
        Cause::Replaced => Some(code::REPLACED),
        Cause::Drained => Some(code::RESTART),
        Cause::Asleep => Some(code::ASLEEP),
        Cause::AppLost => {
            // One of many: not all of them at the same moment.
            tokio::time::sleep(seat.apart()).await;
            Some(code::RESTART)
        }
    };
    // Inside a frame nothing may be said: the connection just ends, which is no clean close either.
    say_goodbye(&mut parted.client, close.filter(|_| parted.may_add && !cut)).await;
    Some(parted)
}

/// How long a client may take to close its side after the edge has said goodbye.
const LINGER: Duration = Duration::from_secs(1);

/// A client's leg: plain TCP without Pingora's 64 KiB of buffer, or TLS as Pingora has it.
pub(super) type Client = Either<TcpStream, Stream>;

/// Takes the connection over. A client that sent anything after the head of its upgrade, before
/// it was accepted, breaks RFC 6455 §4.1, and is refused: those bytes are how requests are
/// smuggled past a proxy.
///
/// # Errors
/// When the client is gone or was too early.
fn client_of(mut stream: Stream) -> io::Result<Client> {
    if let Some(early) = stream.read(&mut [0; 1]).now_or_never() {
        return early.and(Err(io::ErrorKind::InvalidData.into()));
    }
    let plain = stream.as_any().downcast_ref::<Guarded>().and_then(Guarded::plain);
    let Some(plain) = plain else { return Ok(Either::Right(stream)) };
    // SAFETY: `plain` owns the descriptor and outlives the borrow, which ends on this line.
    let copy = unsafe { BorrowedFd::borrow_raw(plain.as_raw_fd()) }.try_clone_to_owned()?;
    drop(stream);
    let copy = std::net::TcpStream::from(copy);
    copy.set_nonblocking(true)?;
    Ok(Either::Left(TcpStream::from_std(copy)?))
}

/// Says goodbye with `close`, if a frame may be put in here, and that nothing more comes.
pub(super) async fn say_goodbye(client: &mut Client, close: Option<(u16, &str)>) {
    let goodbye = async {
        if let Some((code, reason)) = close {
            client.write_all(&frames::close_frame(code, reason)).await?;
        }
        client.flush().await?;
        client.shutdown().await
    };
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}

/// Gives the client a moment to close its side. What it still sends is read and dropped: an
/// unread byte would turn the close into a reset, and the client might never see the frame.
pub(super) async fn linger(mut client: Client) {
    // Not an array: a socket that waits or rests would have room for it in its future.
    let mut rest = vec![0; 1024];
    let closed = async { while client.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
    let _ = tokio::time::timeout(LINGER, closed).await;
}

/// A ping without a payload (RFC 6455 §5.5.2); every client answers it, browsers by themselves.
const PING: [u8; 2] = [0x89, 0];
/// The answer to a client's close frame.
const GOODBYE: (u16, &str) = (1000, "");
/// How long the client may take to accept a ping.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// A client's leg without its app's: what becomes of a tab whose app falls asleep, or whose session has a
/// newer socket, on a route that ends its sockets without a close frame.
///
/// Cut at such a moment, the tab would come back after a second: it would wake the app that has just
/// fallen asleep, or take the session back from the newer tab, each from the other, for ever. Ended by a
/// close frame, it would never come back. So its socket stays open and costs the app nothing. A message
/// of its user wakes the app and cuts the socket, upon which the tab comes back after its first pause;
/// that message is lost, as any is that meets a lost connection. When the app is up again for another
/// reason, the socket is cut as well.
pub(super) struct Resting {
    pub(super) client: Client,
    /// Where it is in its frames.
    pub(super) frames: Frames,
    /// Its place among the open sockets.
    pub(super) seat: Seat,
    /// Its app sleeps; otherwise its tab has a newer socket.
    pub(super) asleep: bool,
    /// Whether its user's message wakes the app.
    pub(super) may_wake: bool,
    /// Longest silence, after which it is pinged, and after another one gone.
    pub(super) idle: Duration,
}

/// What ended the rest.
enum Roused {
    /// The client is gone.
    Gone,
    /// The client said goodbye.
    Goodbye,
    /// The client sent what is the app's own traffic.
    Used,
    /// The edge was told to end it.
    Told,
}

impl Resting {
    /// Keeps the client until something rouses it, and ends it.
    pub(super) async fn run(mut self, gate: Arc<Gate>) {
        match self.roused(&gate).await {
            Roused::Gone => return,
            Roused::Goodbye => say_goodbye(&mut self.client, Some(GOODBYE)).await,
            Roused::Used => {
                if self.may_wake {
                    // Before the client is cut: the app starts while it makes its pause.
                    gate.wakes.wake_detached(self.seat.environment());
                }
                say_goodbye(&mut self.client, None).await;
            }
            Roused::Told => say_goodbye(&mut self.client, None).await,
        }
        let Self { client, seat, .. } = self;
        drop(seat);
        linger(client).await;
    }

    async fn roused(&mut self, gate: &Gate) -> Roused {
        let _counted = gate.telemetry.metrics.rests();
        let clock = &gate.clock;
        if self.asleep && self.is_up(gate) {
            // It was published before this one had its seat.
            gate.sockets.awake(self.seat.environment());
        }
        let mut heard: Option<Order> = None;
        let mut silent_until = clock.now() + self.idle;
        let mut pinged = false;
        loop {
            let now = clock.now();
            let mut until = silent_until;
            if let Some(Order::EndAt(at)) = heard {
                if at <= now {
                    return Roused::Told;
                }
                until = until.min(at);
            }
            if silent_until <= now {
                if pinged || !self.ping().await {
                    return Roused::Gone;
                }
                pinged = true;
                silent_until = now + self.idle;
                continue;
            }
            let mut space = [0; 512];
            tokio::select! {
                read = self.client.read(&mut space) => match read {
                    Ok(n) if n > 0 => {
                        let data = self.frames.follow(&space[..n]).data;
                        if self.frames.closing() {
                            return Roused::Goodbye;
                        }
                        if data {
                            return Roused::Used;
                        }
                        (silent_until, pinged) = (clock.now() + self.idle, false);
                    }
                    _ => return Roused::Gone,
                },
                order = self.seat.told(heard) => match order {
                    order @ Order::EndAt(_) => heard = Some(order),
                    Order::Replaced | Order::Asleep => return Roused::Told,
                },
                () = tokio::time::sleep(until.since(now)) => {}
            }
        }
    }

    fn is_up(&self, gate: &Gate) -> bool {
        let snapshot = gate.snapshots.load();
        snapshot.environment(self.seat.environment()).is_some_and(|v| !v.ready.is_empty())
    }

    async fn ping(&mut self) -> bool {
        let ping = async {
            self.client.write_all(&PING).await?;
            self.client.flush().await
        };
        matches!(tokio::time::timeout(PING_WITHIN, ping).await, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Ten thousand open tabs have ten thousand of these.
    #[test]
    fn the_future_of_an_open_socket_has_room_for_nothing_else() {
        let size = size(Accepted::<TcpStream>::carry);
        assert!(size <= 1280, "{size} bytes");
    }
}
