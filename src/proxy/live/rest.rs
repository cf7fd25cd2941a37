//! A client's leg without its app's: what becomes of a tab whose app falls asleep, or whose session has a
//! newer socket, on a route that ends its sockets without a close frame.
//!
//! Cut at such a moment, the tab would come back after a second: it would wake the app that has just
//! fallen asleep, or take the session back from the newer tab, each from the other, for ever. Ended by a
//! close frame, it would never come back. So its socket stays open and costs the app nothing. A message
//! of its user wakes the app and cuts the socket, upon which the tab comes back after its first pause;
//! that message is lost, as any is that meets a lost connection. When the app is up again for another
//! reason, the socket is cut as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::sockets::frames::Frames;
use crate::sockets::{Order, Seat};

use super::LiveParts;
use super::client::Client;

/// A ping without a payload (RFC 6455 §5.5.2); every client answers it, browsers by themselves.
const PING: [u8; 2] = [0x89, 0];
/// The answer to a client's close frame.
const GOODBYE: (u16, &str) = (1000, "");
/// How long the client may take to accept a ping.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// A client that rests.
pub(super) struct Resting {
    pub(super) client: Client,
    /// Where it is in its frames.
    pub(super) frames: Frames,
    /// Its place among the open sockets.
    pub(super) seat: Seat,
    /// Its app sleeps; otherwise its tab has a newer socket.
    pub(super) asleep: bool,
    /// Whether its user's message wakes the app.
    pub(super) wakes: bool,
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
    pub(super) async fn run(mut self, parts: Arc<LiveParts>) {
        match self.roused(&parts).await {
            Roused::Gone => return,
            Roused::Goodbye => self.client.say_goodbye(Some(GOODBYE)).await,
            Roused::Used => {
                if self.wakes {
                    // Before the client is cut: the app starts while it makes its pause.
                    parts.gate.worker.wake_detached(self.seat.environment());
                }
                self.client.say_goodbye(None).await;
            }
            Roused::Told => self.client.say_goodbye(None).await,
        }
        let Self { client, seat, .. } = self;
        drop(seat);
        client.linger().await;
    }

    async fn roused(&mut self, parts: &LiveParts) -> Roused {
        let _counted = parts.telemetry.metrics.rests();
        let clock = &parts.gate.clock;
        if self.asleep && self.is_up(parts) {
            // It was published before this one had its seat.
            parts.sockets.awake(self.seat.environment());
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

    fn is_up(&self, parts: &LiveParts) -> bool {
        let snapshot = parts.gate.snapshots.load();
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
