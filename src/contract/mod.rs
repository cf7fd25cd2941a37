//! The route contract: what an app's developer declares in the artifact's `vango-edge.toml`.
//! Immutable with the artifact's digest, so that a preview validates the contract too.
//!
//! Every key is documented with its default in `docs/vango-edge.toml`.

mod headers;
mod parse;
mod route;
mod spelling;

pub use headers::{HeaderRule, NamePattern, Readers, errors};
pub use parse::{parse, routes};
pub use route::{
    Action, Duplicate, Encoding, EventId, Fingerprint, GenericHmac, Handshake, Idempotency, Live,
    PathPattern, Provider, Resume, Route, RouteClass, RuntimePath, SessionSource, SocketEnd,
    Source, Webhook, WhenCold,
};
pub use spelling::{Loose, LoosePattern};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{AppName, Digest};

/// A whole contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Contract {
    /// The app it belongs to.
    pub app: AppName,
    /// How it is started.
    pub process: Process,
    /// How long and how many requests wait for it.
    pub wake: Wake,
    /// When it goes to sleep.
    pub sleep: Sleep,
    /// How many copies, and how much each takes.
    pub scale: Scale,
    /// What a live session needs to move.
    pub state: Option<State>,
    /// Routes; the first match wins. Never empty.
    pub routes: Vec<Route>,
    /// Its static files.
    pub assets: Option<Assets>,
    /// Whose scripts may read the edge's own answers.
    pub readers: Readers,
}

impl Contract {
    /// The contract of an app that this edge does not run: only its routes and bounds say anything.
    /// Nothing of it is started, stopped or put to sleep.
    pub fn external(app: AppName, routes: Vec<Route>, concurrency: u32, upstreams: u32) -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        Self {
            app,
            process: Process {
                command: Vec::new(),
                env: BTreeMap::new(),
                secrets: Vec::new(),
                ready: Ready::Tcp,
                stop_timeout: 10 * SECOND,
                drain_timeout: 30 * SECOND,
            },
            wake: Wake {
                budget: 10 * SECOND,
                max_held: 10_000,
                start_timeout: 60 * SECOND,
                ignore_agents: Vec::new(),
            },
            sleep: Sleep {
                after: None,
                mode: SleepMode::Stop,
                freeze_for: SECOND,
                live: LivePolicy::Pins,
            },
            scale: Scale { min: 0, max: upstreams, concurrency },
            state: None,
            routes,
            assets: None,
            readers: Readers::default(),
        }
    }

    /// The first route that matches `path`, normalised, with its index. `sent` is the path as the client
    /// sent it, for which other readings are looked at where a guard could be walked around: of an action
    /// or a webhook unless `safe`, of the app's sessions always.
    ///
    /// # Errors
    /// [`Unrouted`]
    pub fn route(&self, path: &str, sent: &str, safe: bool) -> Result<(usize, &Route), Unrouted> {
        let sessions = self.state.as_ref().and_then(|s| match &s.store {
            Some(SessionStore::Http { path }) => Some(path),
            _ => None,
        });
        if sessions.is_some_and(|s| s.takes(path)) {
            return Err(Unrouted::NoRoute);
        }
        let found = self.routes.iter().enumerate().find(|(_, r)| r.path.matches(path));
        // What the contract spells out is what it says.
        let spelled_out = found.is_some_and(|(_, r)| r.path.is_exactly(sent));
        let routes = (!safe && !spelled_out).then_some(self.routes.as_slice());
        if routes.is_some() || sessions.is_some() {
            let index = found.map(|(index, _)| index);
            let of_routes = routes.into_iter().flatten().enumerate();
            let of_routes =
                of_routes.map(|(i, r)| (r.path.loose(), r.class.is_guarded() && index != Some(i)));
            let of_sessions = sessions.into_iter().map(|s| (s.loose(), true));
            if Loose::of(sent).meets(of_sessions.chain(of_routes)) {
                return Err(Unrouted::Spelling);
            }
        }
        found.ok_or(Unrouted::NoRoute)
    }

    /// The first live route, whose session sources count for the app's pages too.
    pub fn live(&self) -> Option<&Live> {
        self.routes.iter().find_map(|r| match &r.class {
            RouteClass::Live(live) => Some(live),
            _ => None,
        })
    }
}

/// Why a path goes by no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrouted {
    /// None takes it, or it is the one by which the edge asks the app for its sessions.
    NoRoute,
    /// It is spelled so that an app may take it for a path that is guarded and that it is not.
    Spelling,
}

/// `[process]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; the program is resolved in the artifact's root.
    pub command: Vec<String>,
    /// Literal environment.
    pub env: BTreeMap<String, String>,
    /// Names of secrets that the operator provides.
    pub secrets: Vec<String>,
    /// When it takes requests.
    pub ready: Ready,
    /// From SIGTERM to SIGKILL; requests in flight may take as long when it drains.
    pub stop_timeout: Duration,
    /// How long live sockets stay open once another artifact owns its routes.
    pub drain_timeout: Duration,
}

/// How an app says that it takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// GET answers 2xx.
    Http {
        /// The path.
        path: String,
    },
    /// The port accepts.
    Tcp,
    /// `READY=1` on the notify socket (sd_notify(3)).
    Notify,
}

/// `[wake]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wake {
    /// Longest hold of one request.
    pub budget: Duration,
    /// Requests held for the environment on one node.
    pub max_held: usize,
    /// Longest time one start may take before it is ended.
    pub start_timeout: Duration,
    /// Parts of `User-Agent`, lower case: requests of these clients never wake it nor keep it awake.
    pub ignore_agents: Vec<String>,
}

/// `[sleep]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// Idle time; `None` keeps it up.
    pub after: Option<Duration>,
    /// What sleeping is.
    pub mode: SleepMode,
    /// How long a frozen allocation is kept in memory.
    pub freeze_for: Duration,
    /// What open sockets mean.
    pub live: LivePolicy,
}

/// What sleeping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepMode {
    /// The process is stopped.
    Stop,
    /// The process is kept in memory, frozen.
    Freeze,
}

/// What open sockets mean for sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivePolicy {
    /// They keep it awake.
    Pins,
    /// Only their traffic does.
    Traffic,
}

/// `[scale]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Allocations that are always up.
    pub min: u32,
    /// Allocations at most.
    pub max: u32,
    /// Requests in flight in one allocation before the next is preferred or held.
    pub concurrency: u32,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The schema this artifact writes.
    pub schema: Option<Digest>,
    /// A file in the artifact that carries the schema's hash.
    pub schema_file: Option<String>,
    /// Schemas it can read besides its own.
    pub accepts: Vec<Digest>,
    /// Where sessions are kept.
    pub store: Option<SessionStore>,
}

/// Where an app keeps its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionStore {
    /// Redis, at the URL in a secret; `{id}` in the key is the session's.
    Redis {
        /// The secret's name.
        secret: String,
        /// The key.
        key: String,
    },
    /// The app's runtime service.
    Http {
        /// Where it is asked.
        path: RuntimePath,
    },
}

/// `[assets]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// Directory in the artifact.
    pub dir: String,
    /// Path prefix under which its files are asked for; begins and ends with `/`.
    pub prefix: String,
    /// File in the artifact that maps source names to fingerprinted ones.
    pub manifest: Option<String>,
    /// Suffixes that say how a file is encoded: `br`, `gz`, `svgz`, `zst`.
    pub encoded_suffixes: Vec<String>,
    /// Header fields for some of its files; where two set one field, the later counts.
    pub headers: Arc<[HeaderRule]>,
}
