//! `GET /dashboard`: which allocation answered, what is saved, and the live counter. One page
//! without anything from elsewhere; the template is `dashboard.html`, its script is `app.js`.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

use crate::app::{App, NO_STORE};
use crate::database::{Note, Summary};
use crate::identity::{self, short_digest};
use crate::live;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";
const NONE: &str = "—";

/// The template, cut at its `{{names}}`: text, name, text, name, …, text.
static TEMPLATE: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    include_str!("dashboard.html").split("{{").flat_map(|part| part.splitn(2, "}}")).collect()
});

/// Shows the dashboard. A browser without a session gets one.
pub async fn show(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.store.count_render();
    let mine = app.renders.fetch_add(1, Ordering::Relaxed) + 1;
    let summary = app.store.summary().await;
    let page = Page { app: &app, headers: &headers, summary: &summary, mine };
    let security = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ];
    let mut answer = ([NO_STORE], security, Html(page.render())).into_response();
    if live::cookie(&headers).is_none() {
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age=86400",
            live::COOKIE,
            live::new_session()
        );
        let value = HeaderValue::from_str(&cookie);
        answer.headers_mut().insert(header::SET_COOKIE, value.expect("a session id is hex"));
    }
    answer
}

struct Page<'p> {
    app: &'p App,
    headers: &'p HeaderMap,
    summary: &'p Summary,
    /// Renders by this process, this one included.
    mine: u64,
}

impl Page<'_> {
    fn render(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        for (n, part) in TEMPLATE.iter().enumerate() {
            if n % 2 == 0 {
                out.push_str(part);
            } else {
                self.value(part, &mut out);
            }
        }
        out
    }

    fn value(&self, name: &str, out: &mut String) {
        let (app, id) = (self.app, &self.app.identity);
        let here = |name| identity::header(self.headers, &[name]);
        match name {
            "css" => out.push_str(&app.assets.url("app.css")),
            "js" => out.push_str(&app.assets.url("app.js")),
            "icon" => out.push_str(&app.assets.url("favicon.svg")),
            "mark" => out.push_str(&app.assets.url("mark.svg")),
            "allocation" => escape(id.allocation(), out),
            "environment" => escape(id.environment.as_deref().unwrap_or("no edge"), out),
            "epoch" => self.epoch(out),
            "digest" => {
                let digest = id.digest.as_deref().or(here("vango-edge-artifact"));
                let digest = digest.unwrap_or(NONE);
                out.push_str("<span title=\"");
                escape(digest, out);
                out.push_str("\">");
                escape(short_digest(digest), out);
                out.push_str("</span>");
            }
            "generation" => escape(id.generation.as_deref().unwrap_or(NONE), out),
            "request" => escape(here("x-request-id").unwrap_or(NONE), out),
            "age" => out.push_str(&age(app.began.elapsed())),
            "ready" => out.push_str(&app.ready.get().map_or(NONE.to_owned(), |after| age(*after))),
            "mine" => grouped(self.mine, out),
            "renders" => {
                let stored = u64::try_from(self.summary.renders).unwrap_or_default();
                grouped((stored + app.store.pending_renders()).max(self.mine), out);
            }
            "starts" => grouped(self.summary.starts.unsigned_abs(), out),
            "notes-total" => grouped(self.summary.notes.unsigned_abs(), out),
            "notes" => self.summary.latest.iter().for_each(|note| list(note, out)),
            "edge-headers" => self.edge_headers(out),
            unknown => debug_assert!(false, "dashboard.html: {unknown}"),
        }
    }

    /// The epoch this process was started under, and this request's if it is another.
    fn epoch(&self, out: &mut String) {
        let started = self.app.identity.epoch.as_deref();
        let asked = identity::header(self.headers, &["vango-edge-epoch"]);
        escape(asked.or(started).unwrap_or(NONE), out);
        if let (Some(started), Some(asked)) = (started, asked)
            && started != asked
        {
            out.push_str(" <small>started under ");
            escape(started, out);
            out.push_str("</small>");
        }
    }

    fn edge_headers(&self, out: &mut String) {
        let forwarded =
            ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
                .into_iter()
                .filter_map(|name| Some((name, identity::header(self.headers, &[name])?)));
        let mut none = true;
        for (name, value) in identity::edge_headers(self.headers).chain(forwarded) {
            none = false;
            out.push_str("<tr><th scope=\"row\">");
            escape(name, out);
            out.push_str("</th><td>");
            escape(value, out);
            out.push_str("</td></tr>");
        }
        if none {
            out.push_str("<tr><td>Nothing: this request did not come through an edge.</td></tr>");
        }
    }
}

fn list(note: &Note, out: &mut String) {
    let _ = write!(out, "<li data-id=\"{}\"><p>", note.id);
    escape(&note.text, out);
    let _ = write!(out, "</p><small>#{} · <time>{} UTC</time> · ", note.id, note.saved_at);
    escape(&note.allocation, out);
    out.push_str("</small></li>");
}

/// Text as HTML, in element content and in quoted attributes.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64, out: &mut String) {
    let digits = n.to_string();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
}

/// A duration for people, in its two largest units.
fn age(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_names_what_is_known() {
        let known = include_str!("dashboard.rs");
        for name in TEMPLATE.iter().skip(1).step_by(2) {
            assert!(known.contains(&format!("\"{name}\" =>")), "{name}");
        }
        assert_eq!(TEMPLATE.len() % 2, 1);
    }

    #[test]
    fn text_cannot_become_markup() {
        let mut out = String::new();
        escape("<b a='1' b=\"2\">&", &mut out);
        assert_eq!(out, "&lt;b a=&#39;1&#39; b=&quot;2&quot;&gt;&amp;");
    }

    #[test]
    fn numbers_and_ages_are_readable() {
        let mut out = String::new();
        for n in [0, 999, 1000, 1_234_567] {
            grouped(n, &mut out);
            out.push(' ');
        }
        assert_eq!(out, "0 999 1,000 1,234,567 ");
        let ages = [250, 12_340, 192_000, 7_500_000, 180_000_000].map(Duration::from_millis);
        assert_eq!(ages.map(age), ["250 ms", "12.3 s", "3 min 12 s", "2 h 5 min", "2 d 2 h"]);
    }
}
