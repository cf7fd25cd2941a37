//! Methods: which are safe by themselves, and the lists of them that a contract has.

use http::Method;

use crate::document::Table;

/// The methods that IANA's HTTP Method Registry has as safe (RFC 9110 §16.1.1; QUERY is RFC 10008), but for
/// TRACE, which the edge passes to no app, and PRI, which is no request (RFC 9113 §11.6).
const SAFE: [&str; 7] = ["GET", "HEAD", "OPTIONS", "PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Those that it has as not safe. Many of them are idempotent, which is something else: MKCOL twice is as MKCOL
/// once, and once it changes something.
const UNSAFE: [&str; 32] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPPATCH",
    "PUT",
    "REBIND",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    // Not registered, and asked for by caches' and notification protocols to change something.
    "BAN",
    "PURGE",
];

/// No app gets these (RFC 9110 §9.3.6, §9.3.8; RFC 9113 §11.6).
const NO_APPS: [&str; 3] = ["CONNECT", "PRI", "TRACE"];

/// Methods of one list, at most: each request is compared with them.
const MOST: usize = 32;

/// Whether a method is safe wherever it is sent: it asks for no change, so that no key, no signature and no
/// guard is asked of it. A browser's preflight, a provider's GET that tries an endpoint, a HEAD are such on
/// every class of route.
pub fn is_safe(method: &Method) -> bool {
    SAFE.contains(&method.as_str())
}

/// The methods under `key` in `t`, without what no list can have; empty when absent.
pub(super) fn list(t: &Table<'_>, key: &'static str) -> Vec<Method> {
    let names = t.texts(key);
    if names.len() > MOST {
        t.error(key, format!("expected at most {MOST}, found {}", names.len()));
    }
    let mut methods = Vec::new();
    for name in &names {
        let method = Method::from_bytes(name.as_bytes()).ok();
        let upper = name.to_ascii_uppercase();
        match method {
            None => t.error(key, format!("expected a method such as \"POST\", found {name:?}")),
            Some(_) if *name != upper && known(&upper) => {
                t.error(key, format!("methods have a case: {upper:?} is one, {name:?} another"));
            }
            Some(_) if NO_APPS.contains(&upper.as_str()) => {
                t.error(key, format!("no app behind this edge gets {name}: take it out"));
            }
            Some(method) if methods.contains(&method) => {
                t.error(key, format!("{name} is there twice"));
            }
            Some(method) => methods.push(method),
        }
    }
    methods
}

fn known(name: &str) -> bool {
    SAFE.contains(&name) || UNSAFE.contains(&name)
}

/// `safe_methods` of `[defaults]`: on every route, those with keys and signatures too.
pub(super) fn safe_everywhere(t: &Table<'_>) -> Vec<Method> {
    let methods = list(t, "safe_methods");
    for method in methods.iter().filter(|m| UNSAFE.contains(&m.as_str())) {
        let message = format!(
            "{method} changes something, and no key or signature would be asked of it anywhere; say it of \
             the route whose {method} only reads"
        );
        t.error("safe_methods", message);
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_safe_is_what_the_registry_says() {
        let is = |name: &str| is_safe(&Method::from_bytes(name.as_bytes()).unwrap());
        for name in SAFE {
            assert!(is(name), "{name}");
        }
        // Idempotent is not safe; and what nobody registered is nothing.
        for name in UNSAFE.into_iter().chain(NO_APPS).chain(["get", "SUBSCRIBE"]) {
            assert!(!is(name), "{name}");
        }
    }
}
