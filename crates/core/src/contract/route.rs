//! Routes: which paths, and what may be done with a request for them.

use std::fmt;
use std::time::Duration;

use http::Method;

use super::spelling::LoosePattern;

/// An exact path, or a prefix that ends in `/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    /// Without the `*`.
    text: String,
    prefix: bool,
    loose: LoosePattern,
}

impl PathPattern {
    /// `/a` matches `/a`; `/a/*` matches `/a/` and everything below it, not `/a` itself, as an
    /// nginx `location /a/` does; `/*` matches everything.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!("expected a path such as \"/a\" or \"/a/*\", found {text:?}: {why}"))
        };
        if !text.starts_with('/') {
            return bad("it does not begin with /");
        }
        let (path, prefix) = match text.strip_suffix('*') {
            Some(path) if path.ends_with('/') => (path, true),
            Some(_) => return bad("a * stands alone after the last /"),
            None => (text, false),
        };
        if path.contains('*') {
            return bad("a * stands only at the end");
        }
        if !path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'\\')) {
            return bad("it has a character that a path cannot have");
        }
        if path.split('/').any(|s| s == "." || s == "..") {
            return bad("requests are matched after . and .. are resolved");
        }
        let loose = if prefix { LoosePattern::below(path) } else { LoosePattern::exact(path) };
        Ok(Self { text: path.to_owned(), prefix, loose })
    }

    /// What its other spellings are looked for by.
    pub(super) fn loose(&self) -> &LoosePattern {
        &self.loose
    }

    /// Whether it is one path, and `sent` is that, byte by byte.
    pub(super) fn is_exactly(&self, sent: &str) -> bool {
        !self.prefix && self.text == sent
    }

    /// Whether a normalised path matches. Allocates nothing.
    pub fn matches(&self, path: &str) -> bool {
        if self.prefix { path.starts_with(&self.text) } else { path == self.text }
    }

    /// Whether it matches every path.
    pub fn is_all(&self) -> bool {
        self.prefix && self.text == "/"
    }

    /// Whether every path that it matches begins with `prefix`.
    pub(super) fn is_below(&self, prefix: &str) -> bool {
        self.text.starts_with(prefix)
    }

    /// Whether every path that `other` matches is matched by this one.
    pub fn covers(&self, other: &Self) -> bool {
        if self.prefix { other.text.starts_with(&self.text) } else { self == other }
    }
}

/// The path of an app's runtime service, by which the edge asks for a session. No other request gets
/// there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimePath {
    text: String,
    /// Bytes of its path before the session's id.
    before: usize,
    /// The id is in the query.
    whole: bool,
    loose: LoosePattern,
}

impl RuntimePath {
    const ID: &str = "{id}";

    /// `{id}` in it is where the session's id belongs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!(
                "expected a path such as \"/internal/sessions/{{id}}\", found {text:?}: {why}"
            ))
        };
        let Some(id) = text.find(Self::ID) else {
            return bad("it has no {id} where the session's id belongs");
        };
        if !text.starts_with('/') {
            return bad("it does not begin with /");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'\\')) {
            return bad("it has a character that a path cannot have");
        }
        let path = text.find('?').unwrap_or(text.len());
        let (before, whole) = (id.min(path), path < id);
        let fixed = &text[..before];
        if fixed.bytes().all(|b| b == b'/') {
            return bad("nothing is before {id}, and every request would be one for a session");
        }
        let loose = if whole { LoosePattern::exact(fixed) } else { LoosePattern::begins(fixed) };
        Ok(Self { text: text.to_owned(), before, whole, loose })
    }

    /// Path and query for a session.
    pub fn of(&self, id: &str) -> String {
        self.text.replace(Self::ID, id)
    }

    /// Whether a normalised path is one of its.
    pub(super) fn takes(&self, path: &str) -> bool {
        let fixed = &self.text[..self.before];
        if self.whole { path == fixed } else { path.starts_with(fixed) }
    }

    /// What its other spellings are looked for by.
    pub(super) fn loose(&self) -> &LoosePattern {
        &self.loose
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

/// `[[route]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub path: PathPattern,
    /// The methods that it takes, HEAD with GET; none: all. What comes by another goes on to the next route.
    pub methods: Option<Vec<Method>>,
    /// What may be done with them.
    pub class: RouteClass,
    /// Largest body, in bytes.
    pub max_body: Option<u64>,
    /// Whether its requests wake the app and keep it awake.
    pub wakes: bool,
    /// What is answered instead of 503 while nothing is ready and the request does not wake it.
    pub asleep_status: Option<u16>,
    /// What becomes of an unsafe request without a key while nothing is ready.
    pub cold: Cold,
    /// Methods that are safe here, besides those that are safe everywhere.
    pub safe_methods: Vec<Method>,
    /// How long the app may be silent; none: as long as the node says.
    pub timeout: Option<Duration>,
}

impl Route {
    /// A page of every path and method, as the end of each contract is.
    pub fn rest(path: PathPattern) -> Self {
        Self {
            path,
            methods: None,
            class: RouteClass::Page,
            max_body: None,
            wakes: true,
            asleep_status: None,
            cold: Cold::Refuse,
            safe_methods: Vec::new(),
            timeout: None,
        }
    }

    /// Whether it takes requests by `method`, in any case: Django and Flask carry `post` out as POST, and what is
    /// guarded must be guarded there too.
    pub fn takes(&self, method: &Method) -> bool {
        let is = |m: &Method| m.as_str().eq_ignore_ascii_case(method.as_str());
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(is))
    }

    /// What of a contract has unsafe requests of this route wait, for the developer.
    pub fn hint_to_hold(&self) -> String {
        let everywhere = if self.path.is_all() { " or under [defaults]" } else { "" };
        format!(
            "cold = \"hold\" under the [[route]] {self}{everywhere} in vango-edge.toml has such requests wait \
             for the app"
        )
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(methods) = &self.methods {
            let names: Vec<_> = methods.iter().map(Method::as_str).collect();
            write!(f, "{} ", names.join("|"))?;
        }
        self.path.fmt(f)
    }
}

/// What becomes of an unsafe request without a key while nothing is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cold {
    /// It is refused, and the app is woken.
    #[default]
    Refuse,
    /// It waits with its body unread, within the budget, and is sent once.
    Hold,
}

/// What may be done with a route's requests.
#[derive(Debug, Clone, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum RouteClass {
    /// Safe methods are held; unsafe ones follow the action rules without idempotency.
    Page,
    /// Mutations.
    Action(Action),
    /// A provider's deliveries.
    Webhook(Webhook),
    /// Live sockets.
    Live(Live),
}

impl RouteClass {
    /// Whether something is asked of its requests that change something, such as a key or a signature.
    pub fn is_guarded(&self) -> bool {
        matches!(self, Self::Action(_) | Self::Webhook(_))
    }

    /// What it allows to a request; `safe` by its method.
    pub fn posture(&self, safe: bool) -> Posture {
        match self {
            _ if safe => Posture::Safe,
            Self::Webhook(_) => Posture::Webhook,
            Self::Action(action) => match action.idempotency {
                Idempotency::None => Posture::Unsafe,
                Idempotency::App => Posture::AppIdempotent,
                Idempotency::Edge => Posture::EdgeIdempotent,
            },
            Self::Page | Self::Live(_) => Posture::Unsafe,
        }
    }

    /// Its name in contracts, metrics and traces.
    pub fn name(&self) -> &'static str {
        self.into()
    }
}

/// What a method and a route's class allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// Safe by its method (RFC 9110 §9.2.1), whatever the route's class: it may wake, wait, and be
    /// sent again where nothing was sent.
    Safe,
    /// Unsafe, and the contract gives it no idempotency: it is forwarded once when hot, and never
    /// held for a cold app.
    Unsafe,
    /// Unsafe, and the app deduplicates by key: it may wait for a wake, with its body unread.
    AppIdempotent,
    /// Unsafe, and the edge is to keep the record of its key.
    EdgeIdempotent,
    /// Unsafe, on a webhook's route: a provider's delivery, whose signature comes first.
    Webhook,
}

impl Posture {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Unsafe => "unsafe, no idempotency",
            Self::AppIdempotent => "unsafe, idempotent by the app",
            Self::EdgeIdempotent => "unsafe, idempotent by the edge",
            Self::Webhook => "webhook",
        }
    }
}

/// An action's idempotency contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Who keeps the record of keys.
    pub idempotency: Idempotency,
    /// Where a key is.
    pub key: KeySource,
    /// Whose key it is.
    pub principal: Option<Source>,
    /// What makes two requests with one key the same.
    pub fingerprint: Fingerprint,
    /// How long records are kept.
    pub retention: Duration,
}

/// Where a request's key is, besides the header `Idempotency-Key`, which counts everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KeySource {
    /// Nowhere else.
    #[default]
    Usual,
    /// In another header, lower case.
    Header(String),
    /// In a query parameter.
    Query(String),
    /// In a field of its form, which is read before anything is decided.
    Field(String),
}

/// Who keeps the record of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// Neither the app nor the edge.
    None,
    App,
    Edge,
}

/// A stable name of a request's sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A cookie's value.
    Cookie(String),
    /// A header's value.
    Header(String),
}

/// What makes two requests with one key the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fingerprint {
    /// Method, target, content type and encoding, and body.
    Body,
    /// The same without the body.
    Head,
}

/// A webhook's contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub provider: Provider,
    /// Name of the operator's secret.
    pub secret: String,
    /// What happens when the app is asleep.
    pub when_cold: WhenCold,
    /// What happens with a delivery of an event that was accepted before.
    pub duplicate: Duplicate,
    /// The rules of a provider that has no row of its own.
    pub generic: Option<GenericHmac>,
}

/// How a provider signs that has no row of its own: HMAC-SHA256 over the body, or a text around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenericHmac {
    /// The header that has the signature, lower case.
    pub header: String,
    /// What stands before it there.
    pub prefix: String,
    /// How it is written.
    pub encoding: Encoding,
    /// What was signed: a text with `{body}` in it once, and `{timestamp}` where there is one.
    pub signed: String,
    /// The header that has the timestamp, in seconds, lower case.
    pub timestamp: Option<String>,
    /// How far the timestamp may be from now.
    pub tolerance: Duration,
    /// Where the event's id is.
    pub event: EventId,
    /// What tells a handshake from an event.
    pub handshake: Option<Handshake>,
    /// How long the provider waits for an answer.
    pub deadline: Duration,
}

/// A member of the JSON body that only a provider's handshake has: a signed question whether the
/// endpoint is there, whose answer is the app's to give, each time anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Where (RFC 6901).
    pub pointer: String,
    /// The string that stands there.
    pub value: String,
}

/// How a signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// 64 digits.
    Hex,
    /// RFC 4648 §4, padded.
    Base64,
}

/// Where an event's id is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventId {
    /// In a header, lower case.
    Header(String),
    /// In the JSON body, by pointer (RFC 6901).
    Json(String),
    /// Nowhere: equal bodies are one event.
    Body,
}

/// Whose signature rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Provider {
    /// <https://docs.stripe.com/webhooks#verify-manually>
    Stripe,
    /// <https://www.standardwebhooks.com>
    StandardWebhooks,
    /// <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>
    Github,
    /// <https://shopify.dev/docs/apps/build/webhooks/subscribe/https>
    Shopify,
    /// <https://api.slack.com/authentication/verifying-requests-from-slack>
    Slack,
    /// By the contract's own `[route.hmac]`.
    GenericHmac,
}

impl Provider {
    /// Every provider that has rules.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name in contracts.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// What happens with a delivery when the app is asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenCold {
    /// Held within the provider's own deadline.
    Hold,
    /// The app is woken and the provider told to deliver again.
    Defer,
    /// The provider is told to deliver again; nothing is woken.
    Block,
}

/// What happens with a delivery that was accepted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicate {
    /// The edge answers 200 from its record.
    Answer,
    /// The app gets it, with a header that says so.
    Forward,
}

/// A live route's contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Where a session id may be found, besides the edge's own token.
    pub session: Vec<SessionSource>,
    /// Whether a session may move.
    pub resume: Resume,
    /// How a client is told that its socket has ended, where the app said nothing.
    pub end: SocketEnd,
}

/// How the edge ends the client's side of a socket to which the app has sent no close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketEnd {
    /// With a close frame that says why.
    Close,
    /// By the end of the connection alone, which a client sees as a loss (code 1006, not clean).
    Cut,
}

/// Where a session id may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionSource {
    /// A cookie.
    Cookie(String),
    /// A query parameter.
    Query(String),
    /// The first frame of a Vango client.
    VangoHello,
}

/// Whether a session may move to another allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// It may not.
    SameAllocation,
    /// It may, when its store and schema prove that it can.
    CrossAllocation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_they_say() {
        let p = |s: &str| PathPattern::parse(s).unwrap();
        assert!(p("/*").matches("/") && p("/*").matches("/a/b"));
        assert!(p("/a/*").matches("/a/") && p("/a/*").matches("/a/b/c"));
        assert!(!p("/a/*").matches("/a") && !p("/a/*").matches("/ab"));
        assert!(p("/a").matches("/a") && !p("/a").matches("/a/"));
        assert!(p("/*").covers(&p("/a")) && p("/a/*").covers(&p("/a/b/*")));
        assert!(!p("/a").covers(&p("/a/*")) && !p("/a/*").covers(&p("/a")));
        for bad in ["", "a", "/a*", "/*/a", "/a/../b", "/a?b", "/ä"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_runtime_services_path_is_its_own() {
        let path = RuntimePath::parse("/internal/sessions/{id}/state").unwrap();
        assert_eq!(path.of("s-1"), "/internal/sessions/s-1/state");
        assert!(path.takes("/internal/sessions/a") && !path.takes("/internal/sessions"));
        let query = RuntimePath::parse("/sessions?id={id}").unwrap();
        assert!(query.takes("/sessions") && !query.takes("/sessions/a"));
        for bad in ["/sessions", "sessions/{id}", "/{id}", "//{id}", "/a b/{id}", "/?id={id}"] {
            assert!(RuntimePath::parse(bad).is_err(), "{bad}");
        }
    }
}
