//! The life of an accepted socket: pinned to its allocation until a side ends it, the edge is told
//! to, or nothing passes for too long.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::clock::{Clock, Mono};
use crate::lifecycle::affinity::SessionName;
use crate::snapshot::{Live, Pin};
use crate::sockets::frames::Protocol;
use crate::sockets::pump::{Ended, Parted, Paused, Pump};
use crate::sockets::{Cause, Order, Seat};
use crate::store::record::SessionRoute;

use super::LiveParts;
use super::client::Client;
use super::rest::Resting;

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
    pub environment: Arc<Live>,
    /// Whose messages it carries.
    pub protocol: Protocol,
    /// Whether what it carries keeps the app awake; otherwise the open socket does.
    pub touches: bool,
    /// Whether its client keeps the app awake at all.
    pub wakes: bool,
    /// Whether a message of its client wakes the app that fell asleep under it.
    pub rouses: bool,
    /// Ended without a close frame of the edge's own.
    pub cut: bool,
    /// Where its session is, for the record.
    pub route: SessionRoute,
    /// Longest silence.
    pub idle: Duration,
}

/// Takes the connection over and sends `head`. `None` when the client is gone.
pub(super) async fn greet(stream: Option<Stream>, head: &[u8]) -> Option<Client> {
    let mut client = Client::take_over(stream?).await.ok()?;
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
        parts: Arc<LiveParts>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let Self { app, from_app, from_client, seat, pin, environment, protocol, route, .. } = self;
        let (wakes, rouses, cut, idle) = (self.wakes, self.rouses, self.cut, self.idle);
        let touches = self.touches;
        let mut pump = Pump::new(client, app, from_client, from_app, protocol);
        async move {
            let clock = &*parts.gate.clock;
            let touched = touches.then_some(&environment);
            let cause = loop {
                match pumped(&mut pump, &seat, clock, touched, idle).await {
                    Either::Ended(cause) => break cause,
                    Either::Named(name) => {
                        seat.rename(name);
                        let routes = &parts.gate.sessions.routes;
                        routes.note(seat.environment(), name, route.clone());
                    }
                }
            };
            let rests = cut && matches!(cause, Cause::Asleep | Cause::Replaced);
            // Boxed: each socket would have room for its end in its future, as much again as for its life.
            let parted = Box::pin(finish(pump, cause, cut, rests, &seat)).await;
            parts.telemetry.metrics.socket_ended(cause);
            if wakes {
                environment.touch(clock.now());
            }
            let Some(Parted { client, frames, may_add }) = parted else {
                drop((pin, seat));
                return;
            };
            if rests && may_add {
                let asleep = cause == Cause::Asleep;
                let next = parts.sockets.rest(seat.environment(), asleep);
                drop((pin, seat, environment));
                let resting = Resting { client, frames, seat: next, asleep, wakes: rouses, idle };
                tokio::spawn(resting.run(parts));
                return;
            }
            // The app's leg is closed, and the client has been told: a newer socket that waits for that goes on.
            drop((pin, seat));
            tokio::spawn(client.linger());
        }
    }
}

/// Why a socket is not carried for now.
enum Either {
    Ended(Cause),
    /// The app has told the tab its session.
    Named(SessionName),
}

async fn pumped<A>(
    pump: &mut Pump<Client, A>,
    seat: &Seat,
    clock: &dyn Clock,
    touched: Option<&Arc<Live>>,
    idle: Duration,
) -> Either
where
    A: AsyncRead + AsyncWrite + Unpin,
{
    let last = AtomicU64::new(clock.now().0);
    let passed = |data: bool| {
        let now = clock.now();
        last.store(now.0, Ordering::Relaxed);
        if let Some(environment) = touched.filter(|_| data) {
            environment.touch(now);
        }
    };
    let mut heard: Option<Order> = None;
    loop {
        let now = clock.now();
        let silent_until = Mono(last.load(Ordering::Relaxed)) + idle;
        if let Some(Order::EndAt(at)) = heard
            && at <= now
        {
            return Either::Ended(Cause::Drained);
        }
        if silent_until <= now {
            return Either::Ended(Cause::Idle);
        }
        let next = match heard {
            Some(Order::EndAt(at)) => at.min(silent_until),
            _ => silent_until,
        };
        tokio::select! {
            paused = pump.run(passed) => return match paused {
                Paused::Named(session) => Either::Named(session.name()),
                Paused::Ended(Ended::Client) => Either::Ended(Cause::Client),
                Paused::Ended(Ended::App) if pump.app_said_goodbye() => Either::Ended(Cause::App),
                Paused::Ended(Ended::App) => Either::Ended(Cause::AppLost),
            },
            order = seat.told(heard) => match order {
                Order::Replaced => return Either::Ended(Cause::Replaced),
                Order::Asleep => return Either::Ended(Cause::Asleep),
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
    parted.client.say_goodbye(close.filter(|_| parted.may_add && !cut)).await;
    Some(parted)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

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
