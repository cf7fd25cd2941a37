//! Validated names and numbers. Every id that crosses a trust boundary is parsed
//! here once, into a type with private fields that cannot be wrong afterwards.
//!
//! Invariant: each type's `Display` is what its `FromStr` accepts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderValue;
use serde::{Deserialize, Serialize};

use crate::clock::Entropy;

/// Why a name was refused. `Display` is safe to show to the client that sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?}: {expected}")]
pub struct IdError {
    what: &'static str,
    given: String,
    expected: &'static str,
}

impl IdError {
    fn new(what: &'static str, given: &str, expected: &'static str) -> Self {
        // A hostile name must not make a log line or an answer of any length.
        let given = given.chars().take(80).collect();
        Self { what, given, expected }
    }
}

/// A DNS label (RFC 1035 §2.3.1, RFC 1123 §2.1): 1 to 63 of `a-z 0-9 -`, no `-` at either end.
fn is_dns_label(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && b[0] != b'-'
        && b[b.len() - 1] != b'-'
}

/// What serde and `{:?}` need of a type whose text form is its `FromStr` and `Display`.
macro_rules! written_as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
            /// Whether `s` is one.
            pub fn is(s: &str) -> bool {
                let valid: fn(&str) -> bool = $valid;
                valid(s)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                if Self::is(s) { Ok(Self(s.into())) } else { Err(IdError::new($what, s, $expected)) }
            }
        }

        written_as_text!($name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// An app's name: one DNS label.
    AppName, "app name", "expected a DNS label: 1 to 63 of a-z, 0-9 and -, with no - at either end", is_dns_label
);
text_id!(
    /// The name of one environment of an app: `production`, or a preview's name. One DNS label.
    EnvName, "environment name", "expected a DNS label: 1 to 63 of a-z, 0-9 and -, with no - at either end", is_dns_label
);
text_id!(
    /// A lower-case host name or IP literal, without port (RFC 9110 §7.2, RFC 3986 §3.2.2).
    /// At most 253 bytes.
    Host, "host", "expected a lower-case host name or an IP address, without a port",
    |s| {
        let literal = s.strip_prefix('[').and_then(|r| r.strip_suffix(']'));
        match literal {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !s.is_empty()
                    && s.len() <= 253
                    && s.split('.').all(|l| {
                        (1..=63).contains(&l.len())
                            && l.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
                    })
            }
        }
    }
);

fn is_tagged(s: &str, tag: &str) -> bool {
    s.strip_prefix(tag)
        .is_some_and(|r| r.len() == 16 && r.bytes().all(|c| matches!(c, b'a'..=b'z' | b'2'..=b'7')))
}

text_id!(
    /// One running (or once running) allocation: `al-` and 80 random bits in base32.
    AllocationId, "allocation id", "expected al- and 16 of a-z, 2-7", |s| is_tagged(s, "al-")
);
text_id!(
    /// One operation (wake, sleep, deploy): `op-` and 80 random bits in base32. Public: it is
    /// shown to clients.
    OperationId, "operation id", "expected op- and 16 of a-z, 2-7", |s| is_tagged(s, "op-")
);
text_id!(
    /// One deployment: `dp-` and 80 random bits in base32.
    DeploymentId, "deployment id", "expected dp- and 16 of a-z, 2-7", |s| is_tagged(s, "dp-")
);

fn tagged(tag: &str, entropy: &dyn Entropy) -> Arc<str> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let (a, b) = (entropy.next_u64(), entropy.next_u64());
    let bits = (u128::from(a) << 64) | u128::from(b);
    let mut s = String::with_capacity(tag.len() + 16);
    s.push_str(tag);
    for i in 0..16 {
        s.push(char::from(ALPHABET[(bits >> (i * 5)) as usize & 31]));
    }
    s.into()
}

impl AllocationId {
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(tagged("al-", entropy))
    }
}
impl OperationId {
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(tagged("op-", entropy))
    }
}
impl DeploymentId {
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(tagged("dp-", entropy))
    }
}

/// One environment of one app, written `app/environment`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Environment {
    app: AppName,
    name: EnvName,
}

impl Environment {
    /// The environment `name` of `app`.
    pub fn new(app: AppName, name: EnvName) -> Self {
        Self { app, name }
    }
    /// The app's production environment.
    pub fn production(app: AppName) -> Self {
        Self { app, name: EnvName("production".into()) }
    }
    /// Whether it is its app's production; any other is a preview.
    pub fn is_production(&self) -> bool {
        self.name.as_str() == "production"
    }
    pub fn app(&self) -> &AppName {
        &self.app
    }
    /// The environment's name within its app.
    pub fn name(&self) -> &EnvName {
        &self.name
    }
}

impl FromStr for Environment {
    type Err = IdError;
    /// `app/environment`; `app` alone means its production.
    fn from_str(s: &str) -> Result<Self, IdError> {
        match s.split_once('/') {
            Some((app, name)) => Ok(Self { app: app.parse()?, name: name.parse()? }),
            None => Ok(Self::production(s.parse()?)),
        }
    }
}
impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.name)
    }
}
written_as_text!(Environment);

/// A SHA-256 content digest, written `sha256:` and 64 lower-case hex digits
/// (OCI image spec, descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// A digest from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// 64 lower-case hex digits, without `sha256:`.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new("digest", s, "expected sha256: and 64 lower-case hex digits");
        let hex = s.strip_prefix("sha256:").ok_or_else(wrong)?;
        let mut out = [0u8; 32];
        hex::decode_to_slice(hex, &mut out).map_err(|_| wrong())?;
        // One content has one name: it is read back as it is written.
        if hex.bytes().any(|c| c.is_ascii_uppercase()) { Err(wrong()) } else { Ok(Self(out)) }
    }
}
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}
written_as_text!(Digest);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The next one; saturates instead of wrapping, so that it never goes back.
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(
    /// Version of a route owner. Starts at 1 and only grows; lives in the owner's record, not in the
    /// store's revision, since revisions may go back after a restore.
    Epoch
);
number_id!(
    /// How often an environment has been started; each allocation has its own. Only grows.
    Generation
);

/// A request's public id: 128 random bits, 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(u128);

impl RequestId {
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self((u128::from(entropy.next_u64()) << 64) | u128::from(entropy.next_u64()))
    }

    /// The trace that begins with this request (W3C Trace Context: not 0).
    pub fn as_u128(self) -> u128 {
        self.0.max(1)
    }

    /// The request's own span, in any trace: its second half, not 0.
    pub fn span(self) -> u64 {
        (self.0 as u64).max(1)
    }
    /// Its digits.
    pub fn hex(self) -> [u8; 32] {
        let mut out = [b'0'; 32];
        // Fails for another length only.
        let _ = hex::encode_to_slice(self.0.to_be_bytes(), &mut out);
        out
    }
    /// The same, for a header.
    pub fn header_value(self) -> HeaderValue {
        // Hex digits are a header value.
        HeaderValue::from_bytes(&self.hex()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hex digits are text.
        f.write_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededEntropy;

    #[test]
    fn display_parses_back() {
        let e = SeededEntropy::new(7);
        let al = AllocationId::random(&e);
        assert_eq!(al.to_string().parse::<AllocationId>().as_ref(), Ok(&al));
        let d = Digest::from_bytes([0xab; 32]);
        assert_eq!(d.to_string().parse::<Digest>(), Ok(d));
        let env: Environment = "studylab/pr-7".parse().unwrap();
        assert_eq!(env.to_string(), "studylab/pr-7");
        assert_eq!("studylab".parse::<Environment>().unwrap().to_string(), "studylab/production");
    }

    #[test]
    fn hex_is_what_the_formatter_writes() {
        for n in [0, 1, 0xab, u128::MAX, 1 << 127, 0x0123_4567_89ab_cdef] {
            assert_eq!(RequestId(n).to_string(), format!("{n:032x}"));
        }
        let id = RequestId::random(&SeededEntropy::new(3));
        assert_eq!(id.to_string(), format!("{:032x}", id.0));
        assert_eq!(id.header_value(), id.to_string());
    }

    #[test]
    fn hostile_names_are_refused() {
        for s in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(s.parse::<AppName>().is_err(), "{s:?}");
        }
        for s in ["", "A.example", "a..b", "a:80", "[::1", "[zz]", "a/b", "a\0b"] {
            assert!(s.parse::<Host>().is_err(), "{s:?}");
        }
        for s in ["studylab.localhost", "127.0.0.1", "[::1]", "a_b.example"] {
            assert!(s.parse::<Host>().is_ok(), "{s:?}");
        }
        let upper = format!("sha256:{}", "AB".repeat(32));
        for s in ["sha256:", "sha512:00", upper.as_str(), "ab"] {
            assert!(s.parse::<Digest>().is_err(), "{s:?}");
        }
    }
}
