//! Where a request comes from, whether its client's connection is encrypted, and which host it asked
//! for: what the connection itself says, or what a proxy that the operator trusts says of it.
//!
//! Every proxy adds its word on the right: the right-most address that is no trusted proxy's is the
//! client, and what stands left of it is the client's own, which may say anything. `Forwarded`
//! (RFC 7239) and `X-Forwarded-*` count alike. A proxy passes on the one that it does not set, so
//! where both are there and disagree, neither is believed and the proxy's own word remains.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::fields::unquoted;

/// Where a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client's address, an IPv4 one never as `::ffff:…`.
    pub address: IpAddr,
    /// The same for the app, as `X-Forwarded-For`.
    pub forwarded_for: HeaderValue,
    /// Whether the client's own connection is encrypted.
    pub secure: bool,
    /// The host that the client asked for, where a trusted proxy says so.
    pub host: Option<HeaderValue>,
    /// A trusted proxy says so, and not the connection itself.
    pub by_proxy: bool,
}

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

impl Origin {
    /// What a connection says of itself.
    pub fn new(address: IpAddr, secure: bool) -> Self {
        let address = address.to_canonical();
        let forwarded_for = HeaderValue::try_from(address.to_string());
        Self {
            address,
            // An address is a header value.
            forwarded_for: forwarded_for.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            secure,
            host: None,
            by_proxy: false,
        }
    }

    /// Of a request with `headers` that came on the connection of a trusted proxy; `trusted` are all
    /// of them. `None` when it says nothing.
    pub fn forwarded(&self, headers: &HeaderMap, trusted: &[IpNet]) -> Option<Self> {
        let x = said_by_x(headers, self.address, trusted);
        let forwarded = said_by_forwarded(headers, self.address, trusted);
        if x.is_none() && forwarded.is_none() {
            return None;
        }
        let (x, forwarded) = (x.unwrap_or_default(), forwarded.unwrap_or_default());
        let address = agreed(x.address, forwarded.address).unwrap_or(self.address);
        let secure = agreed(x.secure, forwarded.secure).unwrap_or(self.secure);
        let host = agreed(x.host, forwarded.host);
        Some(Self { host, by_proxy: true, ..Self::new(address, secure) })
    }
}

/// What both say alike, or the one that is there.
fn agreed<T: PartialEq>(x: Option<T>, forwarded: Option<T>) -> Option<T> {
    match (x, forwarded) {
        (Some(x), Some(forwarded)) => (x == forwarded).then_some(x),
        (x, forwarded) => x.or(forwarded),
    }
}

/// Whether `address` is in one of `networks`.
pub fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|n| n.contains(&address))
}

#[derive(Debug, Default, PartialEq)]
struct Said {
    address: Option<IpAddr>,
    secure: Option<bool>,
    host: Option<HeaderValue>,
}

/// Where in a list of hops the client is, and its address: the right-most that is no trusted proxy's.
/// A hop without an address (`unknown`, `_hidden`: RFC 7239 §6) ends the search, and the proxy that
/// wrote it stands for the client.
fn client<'a>(
    hops: impl DoubleEndedIterator<Item = (usize, Option<&'a str>)>,
    from: IpAddr,
    trusted: &[IpNet],
) -> Option<(usize, IpAddr)> {
    let mut found = None;
    let mut nearest = from;
    for (at, hop) in hops.rev() {
        let address = hop.and_then(address);
        nearest = address.unwrap_or(nearest);
        found = Some((at, nearest));
        if !address.is_some_and(|a| is_in(trusted, a)) {
            break;
        }
    }
    found
}

/// `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:4711`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|a| a.ip()));
    address.ok().map(|a: IpAddr| a.to_canonical())
}

fn is_https(proto: &str) -> Option<bool> {
    let is = |names: [&str; 2]| names.iter().any(|n| proto.eq_ignore_ascii_case(n));
    if is(["https", "wss"]) { Some(true) } else { is(["http", "ws"]).then_some(false) }
}

fn said_by_x(headers: &HeaderMap, from: IpAddr, trusted: &[IpNet]) -> Option<Said> {
    let list = |name: &HeaderName| -> Vec<&str> {
        let values = headers.get_all(name).iter();
        values.flat_map(|v| v.to_str().unwrap_or("").split(',')).map(str::trim).collect()
    };
    let (hops, protos, hosts) = (list(&FOR), list(&PROTO), list(&HOST));
    if hops.is_empty() && protos.is_empty() && hosts.is_empty() {
        return None;
    }
    let found = client(hops.iter().map(|h| Some(*h)).enumerate(), from, trusted);
    // A list as long as the hops' has a word for each of them; any other has the last proxy's last.
    let of = |list: &[&str]| {
        let at = found.filter(|_| list.len() == hops.len()).map(|(at, _)| at);
        at.or(list.len().checked_sub(1)).map(|at| list[at].to_owned())
    };
    Some(Said {
        address: found.map(|(_, address)| address),
        secure: of(&protos).and_then(|p| is_https(&p)),
        host: of(&hosts).and_then(|h| HeaderValue::try_from(h).ok()),
    })
}

fn said_by_forwarded(headers: &HeaderMap, from: IpAddr, trusted: &[IpNet]) -> Option<Said> {
    let mut elements = Vec::new();
    for line in headers.get_all(header::FORWARDED) {
        // One that cannot be read says nothing, as does all that stands left of it.
        match line.to_str().ok().and_then(parse_forwarded) {
            Some(more) => elements.extend(more),
            None => elements = vec![Element::default()],
        }
    }
    let hops = elements.iter().map(|e| e.node.as_deref()).enumerate();
    let (at, address) = client(hops, from, trusted)?;
    let element = &elements[at];
    Some(Said {
        address: element.node.is_some().then_some(address),
        secure: element.proto.as_deref().and_then(is_https),
        host: element.host.as_deref().and_then(|h| HeaderValue::from_str(h).ok()),
    })
}

/// One hop of `Forwarded` (RFC 7239 §4).
#[derive(Debug, Default, PartialEq)]
struct Element {
    node: Option<String>,
    proto: Option<String>,
    host: Option<String>,
}

/// The elements of one line; `None` when it is not written as RFC 7239 §4 has it.
fn parse_forwarded(line: &str) -> Option<Vec<Element>> {
    let mut elements = vec![Element::default()];
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (value, rest) = after.split_at(after.find([';', ',']).unwrap_or(after.len()));
                (value.trim_end().to_owned(), rest)
            }
        };
        let element = elements.last_mut()?;
        let slot = match name.trim().to_ascii_lowercase().as_str() {
            "for" => Some(&mut element.node),
            "proto" => Some(&mut element.proto),
            "host" => Some(&mut element.host),
            _ => None,
        };
        // Each at most once in an element (§4).
        if slot.is_some_and(|slot| slot.replace(value).is_some()) {
            return None;
        }
        rest = rest.trim_start();
        if let Some(next) = rest.strip_prefix(',') {
            elements.push(Element::default());
            rest = next.trim_start();
        } else if !rest.is_empty() {
            rest = rest.strip_prefix(';')?.trim_start();
        }
    }
    Some(elements)
}

/// Whom an address stands for, where clients are counted: one IPv6 customer has at least a /64 (RFC 6177).
pub fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn told(headers: &[(&'static str, &str)]) -> Origin {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8:f::/48".parse().unwrap()];
        let connection = Origin::new(PROXY.parse().unwrap(), false);
        connection.forwarded(&map, &trusted).unwrap_or(connection)
    }
    fn of(headers: &[(&'static str, &str)]) -> (String, bool) {
        let origin = told(headers);
        assert_eq!(origin.forwarded_for, origin.address.to_string());
        (origin.address.to_string(), origin.secure)
    }

    #[test]
    fn an_ipv4_client_has_one_address() {
        let origin = Origin::new("::ffff:192.0.2.7".parse().unwrap(), true);
        assert_eq!(origin.address, "192.0.2.7".parse::<IpAddr>().unwrap());
        assert_eq!(origin.forwarded_for, "192.0.2.7");
    }

    #[test]
    fn the_right_most_that_is_no_proxy_is_the_client() {
        for (list, client) in [
            ("192.0.2.7", "192.0.2.7"),
            ("203.0.113.1, 192.0.2.7", "192.0.2.7"),
            ("203.0.113.1, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
            ("192.0.2.7:4711 , 10.1.2.3", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("192.0.2.7, ::ffff:10.1.1.1", "192.0.2.7"),
            ("192.0.2.7, [2001:db8:f::1]:80", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            // Only proxies: the first of them asked for itself.
            ("10.9.9.9, 10.1.1.1", "10.9.9.9"),
            // What cannot be read is not looked behind.
            ("192.0.2.7, unknown", PROXY),
            ("192.0.2.7, ", PROXY),
            ("192.0.2.7, nonsense, 10.1.1.1", "10.1.1.1"),
            ("1.2.3.4.5", PROXY),
        ] {
            assert_eq!(of(&[("x-forwarded-for", list)]), (client.into(), false), "{list}");
        }
        let lines = [("x-forwarded-for", "203.0.113.1"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(of(&lines).0, "192.0.2.7");
        assert_eq!(of(&[]), (PROXY.into(), false));
    }

    #[test]
    fn the_protocol_is_the_clients_own() {
        let of = |hops, proto| of(&[("x-forwarded-for", hops), ("x-forwarded-proto", proto)]).1;
        assert!(of("192.0.2.7", "https") && of("192.0.2.7", "WSS"));
        assert!(!of("192.0.2.7", "http") && !of("192.0.2.7", "ftp"));
        assert!(of("192.0.2.7, 10.1.1.1", "https"));
        assert!(of("192.0.2.7, 10.1.1.1", "https, http"));
        assert!(!of("203.0.113.1, 192.0.2.7, 10.1.1.1", "https, http, https"));
        // The client wrote the first, its proxy the last.
        assert!(!of("192.0.2.7", "https, http"));
        assert!(told(&[("x-forwarded-proto", "https")]).secure);
        assert_eq!(told(&[("x-forwarded-host", "a.example")]).host.unwrap(), "a.example");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (line, client, secure) in [
            ("for=192.0.2.7;proto=https;by=203.0.113.43", "192.0.2.7", true),
            ("For=\"[2001:db8:cafe::17]:4711\"; Proto=HTTPS", "2001:db8:cafe::17", true),
            ("for=\"192.0.2.7:80\"", "192.0.2.7", false),
            ("for=203.0.113.1, for=192.0.2.7;proto=https, for=10.1.1.1", "192.0.2.7", true),
            ("for=203.0.113.1;proto=https, for=192.0.2.7", "192.0.2.7", false),
            ("for=192.0.2.7 , for=\"_h,i;d\\\"den\";proto=https", PROXY, true),
            ("for=192.0.2.7, for=unknown", PROXY, false),
            ("for=192.0.2.7, proto=https", PROXY, true),
            ("proto=https", PROXY, true),
            // Not written so: nothing is believed.
            ("for=192.0.2.7;proto=https, nonsense", PROXY, false),
            ("for=\"192.0.2.7", PROXY, false),
            ("for=192.0.2.7;for=192.0.2.8", PROXY, false),
            ("for=\"192.0.2.7\"x;proto=https", PROXY, false),
        ] {
            assert_eq!(of(&[("forwarded", line)]), (client.into(), secure), "{line}");
        }
        let host = told(&[("forwarded", "host=\"a.example:8443\";for=192.0.2.7")]).host;
        assert_eq!(host.unwrap(), "a.example:8443");
    }

    #[test]
    fn what_two_fields_say_otherwise_is_not_believed() {
        let both = |x, forwarded| of(&[("x-forwarded-for", x), ("forwarded", forwarded)]).0;
        assert_eq!(both("192.0.2.7", "for=192.0.2.7"), "192.0.2.7");
        assert_eq!(both("192.0.2.7", "for=192.0.2.8"), PROXY);
        assert_eq!(both("192.0.2.7", "proto=https"), "192.0.2.7");
        let protos = [("x-forwarded-proto", "https"), ("forwarded", "for=192.0.2.7;proto=http")];
        assert_eq!(of(&protos), ("192.0.2.7".into(), false));
    }
}
