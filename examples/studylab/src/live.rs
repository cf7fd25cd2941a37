//! `GET /vango/live`: one counter a session, shared by the session's tabs, over a WebSocket with
//! JSON text messages.
//!
//! The state is in this process's memory, and each change of it in the durable store before a client
//! is told. When the edge says `hydrate`, a session that is not here is read from there; otherwise it
//! is fresh, and the first message says which. Like a Vango app, it pings in messages of its own and
//! drops a socket from which no message came for two pings; WebSocket pings do not count.
//!
//! | from the page | to the page |
//! |---|---|
//! | | `{"type":"hello","session","count","resumed","state" = "memory", "hydrated" or "fresh","store","schema","allocation","environment","epoch","verdict","reason","edge"}` |
//! | `{"type":"inc"}` or `inc` | `{"type":"count","session","count"}`, also after another tab's |
//! | `{"type":"ping"}` or `ping` | `{"type":"pong"}` |
//! | `{"type":"pong"}` or `pong` | `{"type":"ping"}` comes from here, every 30 s |
//! | anything else | `{"type":"error","detail"}` |

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, timeout};

use crate::actions::problem;
use crate::app::App;
use crate::identity;
use crate::sessions::Stored;

/// The app's session cookie, named in its contract too.
pub const COOKIE: &str = "vango_session";
const MAX_SESSIONS: usize = 20_000;
/// How long a session without a socket is kept; Vango's default resume window.
const RESUME_WINDOW: Duration = Duration::from_secs(5 * 60);
const MAX_MESSAGE: usize = 64 << 10;
const SEND_WITHIN: Duration = Duration::from_secs(10);
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// What the edge says about a reconnect, under the names it may use.
const VERDICT: [&str; 3] = ["vango-edge-resume", "vango-edge-resume-verdict", "vango-edge-verdict"];
const REASON: [&str; 2] = ["vango-edge-resume-reason", "vango-edge-reason"];

#[derive(Deserialize)]
pub struct Asked {
    sid: Option<String>,
}

/// Takes a live connection.
pub async fn connect(
    State(app): State<Arc<App>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !same_origin(&headers) {
        return problem(StatusCode::FORBIDDEN, "Origin is another host");
    }
    let id = cookie(&headers)
        .map(Cow::Borrowed)
        .or(asked.sid.as_deref().filter(|sid| is_session(sid)).map(Cow::Borrowed))
        .unwrap_or_else(|| Cow::Owned(new_session()))
        .into_owned();
    app.store.count_live(&id);
    // Only what the edge has proved is read; the counter of a session that is here is newer.
    let promised = identity::header(&headers, &VERDICT) == Some("hydrate");
    let stored = match promised && !app.sessions.knows(&id) {
        true => match app.durable.read(&id).await {
            Ok(stored) => stored,
            Err(e) => {
                eprintln!("studylab: a session starts fresh: {e}");
                None
            }
        },
        false => None,
    };
    let Some((counter, state)) = app.sessions.join(&id, stored.map(|s| s.count)) else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too many sessions");
    };
    let hello = hello(&app, &headers, &id, state);
    let seat = Seat { app: Arc::clone(&app), id };
    upgrade
        .max_message_size(MAX_MESSAGE)
        .on_upgrade(move |socket| converse(socket, seat, counter, hello))
}

/// The session id in the request's cookie, if there is one and it is well formed.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE && is_session(value)).then_some(value))
}

/// A session id that cannot be guessed: 128 bits of the kernel's, as 32 hex digits.
pub fn new_session() -> String {
    let mut bits = [0u8; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bits));
    // A guessable session is worse than none.
    read.expect("the kernel's random bytes can be read");
    bits.iter().fold(String::with_capacity(32), |mut id, byte| {
        use std::fmt::Write;
        let _ = write!(id, "{byte:02x}");
        id
    })
}

fn is_session(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A browser's page of another host may not speak for this one (RFC 6455 §10.2).
fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match text(header::ORIGIN) {
        None => true,
        Some(origin) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text(header::HOST)
        }
    }
}

fn hello(app: &App, headers: &HeaderMap, id: &str, state: Joined) -> Value {
    let edge: BTreeMap<&str, &str> = identity::edge_headers(headers).collect();
    json!({
        "type": "hello",
        "session": id,
        "resumed": state != Joined::Fresh,
        "state": state.name(),
        "store": app.durable.name(),
        "schema": app.schema,
        "allocation": app.identity.allocation(),
        "environment": app.identity.environment,
        "epoch": app.identity.epoch,
        "verdict": identity::header(headers, &VERDICT),
        "reason": identity::header(headers, &REASON),
        "edge": edge,
    })
}

/// The sessions of this process.
#[derive(Default)]
pub struct Sessions {
    known: Mutex<HashMap<String, Session>>,
    sockets: watch::Sender<usize>,
}

struct Session {
    count: watch::Sender<u64>,
    last_used: Instant,
}

impl Session {
    fn is_over(&self) -> bool {
        self.count.receiver_count() == 0 && self.last_used.elapsed() >= RESUME_WINDOW
    }
}

/// Where a session's counter came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    /// It was in this process's memory.
    Memory,
    /// From the durable store.
    Hydrated,
    /// It begins at zero.
    Fresh,
}

impl Joined {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Hydrated => "hydrated",
            Self::Fresh => "fresh",
        }
    }
}

/// A session's counter, as one of its sockets holds it.
struct Counter {
    add: watch::Sender<u64>,
    seen: watch::Receiver<u64>,
}

impl Sessions {
    fn knows(&self, id: &str) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).is_some_and(|session| !session.is_over())
    }

    /// The session's counter, which begins at `stored` if the session is not here, and where it
    /// came from. `None`: no room.
    fn join(&self, id: &str, stored: Option<u64>) -> Option<(Counter, Joined)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(id).is_some_and(Session::is_over) {
            known.remove(id);
        }
        if known.len() >= MAX_SESSIONS && !known.contains_key(id) {
            known.retain(|_, session| !session.is_over());
            if known.len() >= MAX_SESSIONS {
                return None;
            }
        }
        let joined = match (known.contains_key(id), stored) {
            (true, _) => Joined::Memory,
            (false, Some(_)) => Joined::Hydrated,
            (false, None) => Joined::Fresh,
        };
        let begin = stored.unwrap_or_default();
        let session = known.entry(id.to_owned()).or_insert_with(|| Session {
            count: watch::Sender::new(begin),
            last_used: Instant::now(),
        });
        session.last_used = Instant::now();
        let counter = Counter { add: session.count.clone(), seen: session.count.subscribe() };
        Some((counter, joined))
    }

    fn left(&self, id: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = known.get_mut(id) {
            session.last_used = Instant::now();
        }
    }

    /// Returns once there is no live socket.
    pub async fn all_gone(&self) {
        // Only an error when the sender is gone, and `self` holds it.
        let _ = self.sockets.subscribe().wait_for(|sockets| *sockets == 0).await;
    }
}

/// A connect that has been counted, but whose socket may never come.
struct Seat {
    app: Arc<App>,
    id: String,
}

/// A live socket, counted until it is dropped.
struct Seated(Seat);

impl Seated {
    fn new(seat: Seat) -> Self {
        seat.app.sessions.sockets.send_modify(|sockets| *sockets += 1);
        Self(seat)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let sessions = &self.0.app.sessions;
        sessions.left(&self.0.id);
        sessions.sockets.send_modify(|sockets| *sockets -= 1);
    }
}

async fn converse(mut socket: WebSocket, seat: Seat, mut counter: Counter, mut hello: Value) {
    let seat = Seated::new(seat);
    let (app, id) = (&seat.0.app, seat.0.id.as_str());
    let mut shown = *counter.seen.borrow_and_update();
    hello["count"] = shown.into();
    if !say(&mut socket, &hello).await {
        return;
    }
    let period = app.switches.ping;
    let mut ping = interval_at(Instant::now() + period, period);
    let mut heard = Instant::now();
    let mut stop = app.stop.clone();
    loop {
        let answer = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Text(text))) => {
                    heard = Instant::now();
                    match answer_to(&text) {
                        Reply::Increment => {
                            counter.add.send_modify(|count| {
                                *count += 1;
                                shown = *count;
                            });
                            keep(app, id, shown).await;
                            count_message(id, shown)
                        }
                        Reply::Say(value) => value,
                        Reply::Nothing => continue,
                    }
                }
                Some(Ok(Message::Binary(_))) => error_message(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            Ok(()) = counter.seen.changed() => {
                let count = *counter.seen.borrow_and_update();
                if count <= shown {
                    continue;
                }
                shown = count;
                count_message(id, count)
            }
            _ = ping.tick() => {
                if heard.elapsed() >= period * 2 {
                    return close(&mut socket, 1008, "silent").await;
                }
                json!({ "type": "ping" })
            }
            () = stop.asked() => {
                return close(&mut socket, app.switches.close_code, "restarting").await;
            }
        };
        if !say(&mut socket, &answer).await {
            return;
        }
    }
}

/// A socket goes on when the store is away; the session is then as fresh elsewhere as it would be
/// without one.
async fn keep(app: &App, id: &str, count: u64) {
    let stored = Stored { count, schema: app.schema.clone() };
    if let Err(e) = app.durable.write(id, stored).await {
        eprintln!("studylab: a session's change is kept in memory only: {e}");
    }
}

enum Reply {
    Increment,
    Say(Value),
    Nothing,
}

fn answer_to(text: &str) -> Reply {
    #[derive(Deserialize)]
    struct Said {
        r#type: String,
    }
    let said = serde_json::from_str::<Said>(text);
    match said.as_ref().map_or(text, |said| &said.r#type) {
        "inc" => Reply::Increment,
        "ping" => Reply::Say(json!({ "type": "pong" })),
        "pong" => Reply::Nothing,
        _ => Reply::Say(error_message()),
    }
}

fn error_message() -> Value {
    json!({ "type": "error", "detail": "expected inc, ping or pong" })
}

fn count_message(id: &str, count: u64) -> Value {
    json!({ "type": "count", "session": id, "count": count })
}

async fn say(socket: &mut WebSocket, message: &Value) -> bool {
    let send = socket.send(Message::Text(message.to_string().into()));
    matches!(timeout(SEND_WITHIN, send).await, Ok(Ok(())))
}

/// Says goodbye and waits a moment for the other side's.
async fn close(socket: &mut WebSocket, code: u16, reason: &'static str) {
    let goodbye = async {
        let frame = CloseFrame { code, reason: reason.into() };
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let _ = timeout(CLOSE_WITHIN, goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_resumed_until_it_is_over() {
        let sessions = Sessions::default();
        let (counter, joined) = sessions.join("a", None).unwrap();
        assert_eq!(joined, Joined::Fresh);
        counter.add.send_modify(|count| *count += 2);
        drop(counter);
        let (counter, joined) = sessions.join("a", Some(9)).unwrap();
        assert_eq!((joined, *counter.seen.borrow()), (Joined::Memory, 2));
        let (counter, joined) = sessions.join("b", Some(9)).unwrap();
        assert_eq!((joined, *counter.seen.borrow()), (Joined::Hydrated, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_without_sockets_ends_after_the_window() {
        let sessions = Sessions::default();
        drop(sessions.join("a", None));
        let held = sessions.join("b", None);
        tokio::time::advance(RESUME_WINDOW).await;
        assert_eq!(sessions.join("a", None).map(|(_, joined)| joined), Some(Joined::Fresh));
        assert_eq!(sessions.join("b", None).map(|(_, joined)| joined), Some(Joined::Memory));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_makes_room_for_what_is_over() {
        let sessions = Sessions::default();
        for n in 0..MAX_SESSIONS {
            assert!(sessions.join(&n.to_string(), None).is_some());
        }
        assert!(sessions.join("one-more", None).is_none());
        assert!(sessions.join("0", None).is_some(), "a known one still joins");
        tokio::time::advance(RESUME_WINDOW).await;
        assert!(sessions.join("one-more", None).is_some());
    }

    #[test]
    fn cookies_and_origins() {
        let mut headers = HeaderMap::new();
        assert!(same_origin(&headers));
        headers.insert(header::COOKIE, "a=1; vango_session=s-1; b=2".parse().unwrap());
        assert_eq!(cookie(&headers), Some("s-1"));
        headers.insert(header::COOKIE, "vango_session=a/b; xvango_session=c".parse().unwrap());
        assert_eq!(cookie(&headers), None);
        headers.insert(header::HOST, "lab.test:80".parse().unwrap());
        headers.insert(header::ORIGIN, "http://lab.test:80".parse().unwrap());
        assert!(same_origin(&headers));
        headers.insert(header::ORIGIN, "null".parse().unwrap());
        assert!(!same_origin(&headers));
    }

    #[test]
    fn new_sessions_differ_and_are_well_formed() {
        let (a, b) = (new_session(), new_session());
        assert!(is_session(&a) && a.len() == 32 && a != b);
    }
}
