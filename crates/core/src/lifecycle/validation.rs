//! What an authority is answered that looks whether a host is ours (HTTP-01, RFC 8555 §8.3): only for tokens that
//! an order of this fleet has in hand, and only on the host that it is for. Every other request for such a path is
//! the app's.

use std::collections::HashMap;

use http::Method;

use super::facts::Facts;

/// Below it are the tokens (RFC 8615).
const BELOW: &str = "/.well-known/acme-challenge/";

/// Answers by token; swapped whole.
#[derive(Debug, Clone, Default)]
pub struct Validations(HashMap<String, (String, String)>);

impl Validations {
    /// Of tokens, each with its host and what is answered.
    pub fn new(all: impl IntoIterator<Item = (String, (String, String))>) -> Self {
        Self(all.into_iter().collect())
    }

    /// What the request is answered, if it is an authority's.
    pub fn answer(&self, facts: &Facts) -> Option<&str> {
        if self.0.is_empty() || !(facts.method == Method::GET || facts.method == Method::HEAD) {
            return None;
        }
        let (host, answer) = self.0.get(facts.path.strip_prefix(BELOW)?)?;
        (*host == facts.host).then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Mono, SeededEntropy};
    use crate::id::RequestId;

    #[test]
    fn only_a_known_token_on_its_own_host_is_answered() {
        let one = ("t0ken".to_owned(), ("a.test".to_owned(), "t0ken.thumb".to_owned()));
        let known = Validations::new([one]);
        let answer = |method: &str, host: &str, target: &str| {
            let request = http::Request::builder().method(method).header("host", host).body(());
            let (parts, ()) = request.unwrap().into_parts();
            let id = RequestId::random(&SeededEntropy::new(1));
            let facts = Facts::parse(&parts, target.as_bytes(), id, Mono(0)).unwrap();
            known.answer(&facts).map(str::to_owned)
        };
        let path = "/.well-known/acme-challenge/t0ken";
        for method in ["GET", "HEAD"] {
            assert_eq!(answer(method, "a.test:80", path).as_deref(), Some("t0ken.thumb"));
        }
        for (method, host, target) in [
            ("POST", "a.test", path),
            ("GET", "b.test", path),
            ("GET", "a.test", "/.well-known/acme-challenge/other"),
            ("GET", "a.test", "/.well-known/acme-challenge/"),
            ("GET", "a.test", "/t0ken"),
            ("GET", "a.test", "/.well-known/acme-challenge/t0ken/x"),
        ] {
            assert_eq!(answer(method, host, target), None, "{method} {host} {target}");
        }
    }
}
