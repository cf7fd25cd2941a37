//! The route contract: what an app's developer declares in the artifact's `vango-edge.toml`.
//! Immutable with the artifact's digest, so that a preview validates the contract too.
//!
//! Every key is documented with its default in `docs/vango-edge.toml`.

mod beside;
mod expand;
mod headers;
mod methods;
mod parse;
pub mod procfile;
mod route;
mod routes;
mod spelling;

pub use beside::{CronEntry, Missed, RunWorker, Schedule, Task, Worker};
pub use expand::{ExpandError, expand, expand_command, is_shell, literal, names_of_web};
pub use headers::{HeaderRule, NamePattern, Readers, errors};
pub use methods::is_safe;
pub use parse::{parse, parse_or};
pub use route::{
    Action, Cold, Duplicate, Encoding, EventId, Fingerprint, GenericHmac, Handshake, Idempotency,
    KeySource, Live, PathPattern, Posture, Provider, Resume, Route, RouteClass, RuntimePath,
    SessionSource, SocketEnd, Source, Webhook, WhenCold,
};
pub use routes::routes;
pub use spelling::{Loose, LoosePattern};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::id::{AppName, Digest, Environment};

/// What is below this on an app's host is the edge's own (`lifecycle::standing`).
pub const RESERVED: &str = "/.well-known/vango-edge/";

/// A whole contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Contract {
    /// The app it belongs to.
    pub app: AppName,
    /// How it is started.
    pub process: Process,
    /// What is run before it takes an environment over.
    pub release: Option<Release>,
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
    /// What a schedule starts.
    pub cron: Vec<CronEntry>,
    /// Its static files, by directory.
    pub assets: Vec<Arc<Assets>>,
    /// Whose scripts may read the edge's own answers.
    pub readers: Readers,
    /// Nothing is started for it: its static files are all there is.
    pub is_static: bool,
}

impl Contract {
    /// The contract of an app that this edge does not run: only its routes and bounds say anything.
    /// Nothing of it is started, stopped or put to sleep.
    pub fn external(
        app: AppName,
        protocol: Protocol,
        routes: Vec<Route>,
        concurrency: u32,
        upstreams: u32,
    ) -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        Self {
            app,
            process: Process { protocol, ..Process::none() },
            release: None,
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
            cron: Vec::new(),
            assets: Vec::new(),
            readers: Readers::default(),
            is_static: false,
        }
    }

    /// The first route that takes a request. Where a guard could be walked around, other readings of its
    /// path and method are looked at: of an action or a webhook unless its method is safe everywhere, of the
    /// app's sessions always.
    ///
    /// # Errors
    /// [`Unrouted`]
    pub fn route(&self, asked: &Asked<'_>) -> Result<Taken<'_>, Unrouted> {
        let Asked { path, sent, method, overridden } = *asked;
        let sessions = self.state.as_ref().and_then(|s| match &s.store {
            Some(SessionStore::Http { path }) => Some(path),
            _ => None,
        });
        if sessions.is_some_and(|s| s.takes(path)) {
            return Err(Unrouted::NoRoute);
        }
        if overridden && self.differs_by_method(path) {
            return Err(Unrouted::Method);
        }
        let mut all = self.routes.iter().enumerate();
        let found = all.find(|(_, r)| r.path.matches(path) && r.takes(method));
        let safe = !overridden && is_safe(method);
        // What the contract spells out is what it says.
        let spelled_out = found.is_some_and(|(_, r)| r.path.is_exactly(sent));
        let routes = (!safe && !spelled_out).then_some(self.routes.as_slice());
        if routes.is_some() || sessions.is_some() {
            let index = found.map(|(index, _)| index);
            let of_routes = routes.into_iter().flatten().enumerate();
            // An app that reads another method may read any.
            let of_routes = of_routes
                .filter(|(_, r)| r.takes(method) || (overridden && r.class.is_guarded()))
                .map(|(i, r)| (r.path.loose(), r.class.is_guarded() && index != Some(i)));
            let of_sessions = sessions.into_iter().map(|s| (s.loose(), true));
            if Loose::of(sent).meets(of_sessions.chain(of_routes)) {
                return Err(Unrouted::Spelling);
            }
        }
        let (index, route) = found.ok_or(Unrouted::NoRoute)?;
        let safe = safe || (!overridden && route.safe_methods.contains(method));
        Ok(Taken { index, route, safe })
    }

    /// Whether it depends on a request's method which rules it goes by, and some of them ask something of
    /// it: which, is not known of one that says two methods.
    fn differs_by_method(&self, path: &str) -> bool {
        let (mut named, mut guarded) = (false, false);
        for route in self.routes.iter().filter(|r| r.path.matches(path)) {
            guarded |= route.class.is_guarded();
            if route.methods.is_none() {
                break;
            }
            named = true;
        }
        named && guarded
    }

    /// The first live route, whose session sources count for the app's pages too.
    pub fn live(&self) -> Option<&Live> {
        self.routes.iter().find_map(|r| match &r.class {
            RouteClass::Live(live) => Some(live),
            _ => None,
        })
    }
}

/// What of a request says which route it takes.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its path, normalised.
    pub path: &'a str,
    /// The same as it was sent.
    pub sent: &'a str,
    pub method: &'a Method,
    /// A field asks the app to read another method than this one.
    pub overridden: bool,
}

/// The route that a request takes.
#[derive(Debug, Clone, Copy)]
pub struct Taken<'c> {
    /// Its place in the contract.
    pub index: usize,
    pub route: &'c Route,
    /// The request asks for no change.
    pub safe: bool,
}

impl Taken<'_> {
    /// What may be done with the request.
    pub fn posture(&self) -> Posture {
        self.route.class.posture(self.safe)
    }
}

/// Why a request goes by no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrouted {
    /// None takes it, or it is the one by which the edge asks the app for its sessions.
    NoRoute,
    /// Its path is spelled so that an app may take it for one that is guarded and that it is not.
    Spelling,
    /// It says two methods, and the path's rules differ by method.
    Method,
}

/// `[process]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments, with names as [`expand`] has them; a program with a `/` is resolved in the
    /// artifact's root.
    pub command: Vec<String>,
    /// What it speaks on its port.
    pub protocol: Protocol,
    /// Directories of the artifact that stand before the others of `PATH`.
    pub path: Vec<String>,
    /// Environment, with names as [`expand`] has them.
    pub env: BTreeMap<String, String>,
    /// Names of secrets that the operator provides.
    pub secrets: Vec<String>,
    /// Whether it may write beside its code, into a view of the artifact that is gone when it ends.
    pub scratch: bool,
    /// When it takes requests.
    pub ready: Ready,
    /// From SIGTERM to SIGKILL; requests in flight may take as long when it drains.
    pub stop_timeout: Duration,
    /// How long live sockets stay open once another artifact owns its routes.
    pub drain_timeout: Duration,
    /// Processes beside it that take no requests.
    pub workers: Vec<Worker>,
}

/// `[release]`: a command that runs once for each deployment or promotion, before the artifact serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Program and arguments, found as those of the process are.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Whether the edge alone sets an environment variable of this name.
pub fn is_reserved(name: &str) -> bool {
    matches!(name, "PORT" | "HOST" | "NOTIFY_SOCKET") || name.starts_with("VANGO_EDGE_")
}

/// What an app speaks on its port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 §3.3). Live sockets are opened over HTTP/1.1 all the
    /// same, which the app then has to speak on the same port.
    H2c,
}

impl Protocol {
    /// As a contract names it, with what it means.
    pub const NAMES: [(&'static str, Self); 2] = [("http1", Self::Http1), ("h2c", Self::H2c)];
}

impl Process {
    /// Where nothing is started.
    pub fn none() -> Self {
        Self {
            command: Vec::new(),
            protocol: Protocol::default(),
            path: Vec::new(),
            env: BTreeMap::new(),
            secrets: Vec::new(),
            scratch: false,
            ready: Ready::Tcp,
            stop_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            workers: Vec::new(),
        }
    }
}

/// How an app says that it takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// GET answers 2xx.
    Http {
        path: String,
        /// What the app speaks.
        protocol: Protocol,
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
    pub mode: SleepMode,
    /// How long a frozen allocation is kept in memory.
    pub freeze_for: Duration,
    /// What open sockets mean.
    pub live: LivePolicy,
}

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
    Redis { secret: String, key: String },
    /// The app's runtime service.
    Http {
        /// Where it is asked.
        path: RuntimePath,
    },
}

/// `[assets]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// Directory in the artifact; `.` is all of it.
    pub dir: String,
    /// Path prefix under which its files are asked for; begins and ends with `/`.
    pub prefix: String,
    /// File in the artifact that maps source names to fingerprinted ones.
    pub manifest: Option<String>,
    /// Names, below the prefix, that change with their content.
    pub immutable: Vec<NamePattern>,
    /// The file of a directory that is answered for the directory itself: `index.html`.
    pub index: Option<String>,
    /// The file that is answered for what is no file, in an app whose pages its scripts make.
    pub fallback: Option<String>,
    /// The file that says, with 404, that there is none.
    pub not_found: Option<String>,
    /// Suffixes that say how a file is encoded: `br`, `gz`, `svgz`, `zst`.
    pub encoded_suffixes: Vec<String>,
    /// Header fields for some of its files; where two set one field, the later counts.
    pub headers: Arc<[HeaderRule]>,
}

impl Assets {
    /// Whether the contract says that the file `name`, below the prefix, changes its name with its content.
    pub fn is_immutable(&self, name: &str) -> bool {
        self.immutable.iter().any(|p| p.matches(name))
    }
}

/// Which routes let their app be silent for longer than a node allows: the key of its bound, and the bound.
pub fn timeout_errors(routes: &[Route], (key, longest): (&'static str, Duration)) -> Vec<String> {
    let beyond = |r: &Route| {
        let timeout = r.timeout.filter(|t| *t > longest)?;
        Some(format!(
            "the timeout of the route {r} is {timeout:?}, longer than this node lets an app be silent: \
             {key} is {longest:?}; lower timeout in the app's vango-edge.toml or raise {key}"
        ))
    };
    routes.iter().filter_map(beyond).collect()
}

/// Why a wake budget cannot be kept under a timeout that encloses the wait; `None` when it can.
pub fn budget_error(
    environment: &Environment,
    budget: Duration,
    (key, enclosing): (&'static str, Duration),
) -> Option<String> {
    (enclosing < budget).then(|| {
        format!(
            "{key} is {enclosing:?}, shorter than the wake budget of {environment}, {budget:?}: when \
             the edge stops, a held request would be cut before its app may be late; raise {key} or \
             lower wake.budget in the app's vango-edge.toml"
        )
    })
}
