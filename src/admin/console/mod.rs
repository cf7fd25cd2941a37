//! The console: files in the binary, nothing from elsewhere. It uses the admin API as any other
//! client does and has no way of its own to anything.
//!
//! Plain ES modules, without a build: `scripts/console` checks their types against the OpenAPI
//! document and drives them in a browser.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type and text of each file.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("index.html")),
    ("/console/console.css", CSS, include_str!("console.css")),
    ("/console/mark.svg", SVG, include_str!("mark.svg")),
    ("/console/main.js", JS, include_str!("main.js")),
    ("/console/api.js", JS, include_str!("api.js")),
    ("/console/dom.js", JS, include_str!("dom.js")),
    ("/console/words.js", JS, include_str!("words.js")),
    ("/console/steps.js", JS, include_str!("steps.js")),
    ("/console/feed.js", JS, include_str!("feed.js")),
    ("/console/traces.js", JS, include_str!("traces.js")),
    ("/console/explain.js", JS, include_str!("explain.js")),
    ("/console/apps.js", JS, include_str!("apps.js")),
    ("/console/certificates.js", JS, include_str!("certificates.js")),
    ("/console/logs.js", JS, include_str!("logs.js")),
    ("/console/operations.js", JS, include_str!("operations.js")),
    ("/console/kept.js", JS, include_str!("kept.js")),
    ("/console/releases.js", JS, include_str!("releases.js")),
];

/// Only what this binary serves is loaded, run or talked to; no page frames it (CSP Level 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// On every answer of the console.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // The next version of the edge brings the next version of the console.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// The console's files.
pub fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, &(path, kind, text)| {
        let answer = move || async move {
            let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
            (HEADERS, kind, text).into_response()
        };
        router.route(path, get(answer))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> &'static str {
        FILES.iter().find(|(p, ..)| *p == path).unwrap_or_else(|| panic!("{path}")).2
    }

    #[test]
    fn every_file_that_is_named_is_here_and_nothing_comes_from_elsewhere() {
        for (path, kind, file) in FILES {
            for name in file.split(['"', '\'']).filter(|s| s.starts_with("/console/")) {
                text(name);
            }
            if *kind == JS {
                for name in file.split('"').filter(|s| s.starts_with("./") && s.ends_with(".js")) {
                    text(&format!("/console/{}", &name[2..]));
                }
            }
            let foreign = file.split(['"', '(', '\'']).find(|s| {
                s.starts_with("//") && !s.starts_with("//!") || s.starts_with("https://")
            });
            assert_eq!(foreign, None, "{path}");
        }
    }

    #[test]
    fn the_policy_has_no_exception_and_the_page_needs_none() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*') && !POLICY.contains("data:"));
        let page = text("/");
        for inline in ["<style", " style=", " onclick", "<script>", "javascript:"] {
            assert!(!page.contains(inline), "{inline}");
        }
        for (path, kind, file) in FILES {
            if *kind == JS {
                for danger in
                    ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"]
                {
                    assert!(!file.contains(danger), "{path}: {danger}");
                }
            }
        }
    }
}
