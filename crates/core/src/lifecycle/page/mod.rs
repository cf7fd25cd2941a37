//! The page that a person's browser shows for an answer of the edge's own: what happened, in plain words,
//! and what to do. Where the condition passes, it follows the app at [`super::standing::PATH`]. A page that
//! was only asked for goes on by itself then. A form that was sent, and of which nothing reached the app,
//! is sent again by its person and never by the page; of one whose outcome is not known, sending it again
//! is not offered.
//!
//! Without script a page comes again by `Refresh`, a form says to reload. Nothing is loaded from elsewhere, and
//! nothing of the app's: a picture that is asked of a sleeping app would wake it. The
//! `Content-Security-Policy` lets this page's own script run, and no other. Its operator may give it a
//! name, a logo, a colour and a contact, or a whole template ([`Brand`]).

mod brand;
mod words;

pub use brand::{Brand, Branding, Color, Contact, Logo, MOST_LOGO, MOST_TEMPLATE, Template};

use std::fmt::Write as _;

use crate::id::RequestId;

use super::facts::ErrorForm;
use super::reply::{Forwarded, Problem, Reply};
use super::standing;

/// What the page does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Goes on when its app is up, and wakes it where it fell asleep again.
    Go,
    /// Goes on when its app is up.
    Wait,
    /// Offers its person to send the form again.
    Ask,
    /// Nothing.
    Still,
}

impl Mode {
    fn of(reply: &Reply, form: ErrorForm) -> Self {
        if reply.forwarded != Forwarded::No {
            return Self::Still;
        }
        let sent = form == ErrorForm::FormPage;
        match reply.problem {
            // Whatever its method looks like: it is unsafe.
            Problem::AppCold => Self::Ask,
            Problem::LedgerUnavailable if sent => Self::Ask,
            Problem::Asleep if !sent => Self::Wait,
            Problem::WakeTimeout
            | Problem::WakeFailed
            | Problem::HoldQueueFull
            | Problem::NodeFull
            | Problem::Saturated
            | Problem::NotForwarded
            | Problem::ShuttingDown
            | Problem::Asleep => {
                if sent {
                    Self::Ask
                } else {
                    Self::Go
                }
            }
            _ => Self::Still,
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Go => Some("go"),
            Self::Wait => Some("wait"),
            Self::Ask => Some("ask"),
            Self::Still => None,
        }
    }
}

/// The page of `reply` to the request with the id `request`.
pub(super) fn page(reply: &Reply, form: ErrorForm, request: RequestId, brand: &Brand) -> String {
    let mode = Mode::of(reply, form);
    let words = words::words(reply, mode, brand.name());
    let values = Values { reply, form, mode, words, request, brand };
    match brand.template() {
        Some(template) => template.filled(&values),
        None => values.built_in(),
    }
}

/// The header fields that go with it.
pub fn fields(form: ErrorForm, brand: &Brand) -> [(&'static str, String); 3] {
    let policy = brand.policy();
    // What is sent again by a click is not to be clicked on inside of another site's page.
    let framed = if form == ErrorForm::FormPage { "; frame-ancestors 'self'" } else { "" };
    [
        ("content-security-policy", format!("{policy}{framed}")),
        ("referrer-policy", "no-referrer".into()),
        ("x-content-type-options", "nosniff".into()),
    ]
}

/// What a page is made of.
struct Values<'a> {
    reply: &'a Reply,
    form: ErrorForm,
    mode: Mode,
    words: words::Words,
    request: RequestId,
    brand: &'a Brand,
}

impl Values<'_> {
    /// What stands in `<head>` of every page but its title and style: the `Refresh` of a page that goes on without script,
    /// and an icon, so that none is asked of the app.
    fn head(&self) -> String {
        let mut out = String::from(
            "<meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"robots\" content=\"noindex\">",
        );
        let icon = self.brand.logo().unwrap_or("data:,");
        let _ = write!(out, "<link rel=\"icon\" href=\"{icon}\">");
        if let (Mode::Go | Mode::Wait, Some(seconds)) = (self.mode, self.reply.retry_after) {
            let _ = write!(
                out,
                "<noscript><meta http-equiv=\"refresh\" content=\"{seconds}\"></noscript>"
            );
        }
        out
    }

    /// What follows the app, and what a person may do.
    fn follow(&self) -> String {
        let mut out = String::new();
        let problem = self.reply.problem;
        let Some(mode) = self.mode.name() else {
            if let Some(seconds) = self.reply.retry_after {
                let _ = write!(out, "<p class=\"soft\">Try again in {seconds} s.</p>");
            }
            let again = self.reply.status >= 500 && self.form == ErrorForm::Page;
            if again && self.reply.forwarded != Forwarded::Answered {
                out.push_str("<a class=\"again\" href=\"\">Try again</a>");
            }
            return out;
        };
        let after = self.reply.retry_after.unwrap_or(1);
        let _ = write!(
            out,
            "<div class=\"follow\" data-follow=\"{mode}\" data-at=\"{}\" data-after=\"{after}\" \
             data-begin=\"{}\"><div class=\"now\" role=\"status\"><span class=\"dot\" \
             aria-hidden=\"true\"></span><div>",
            standing::PATH,
            words::begin(problem),
        );
        for (when, line) in words::lines(problem, self.mode) {
            // A number that changes each second is not read out.
            let number = format!("<span data-seconds aria-hidden=\"true\">{after}</span>");
            let line = line.replace("{seconds}", &number);
            let _ = write!(out, "<p data-when=\"{when}\" hidden>{line}</p>");
        }
        let without = if self.mode == Mode::Ask {
            format!(
                "Reload this page in about {after} s to send it again: your browser asks before it does."
            )
        } else if self.reply.retry_after.is_some() {
            format!("This page tries again every {after} s.")
        } else {
            "Reload this page to try again.".into()
        };
        let _ = write!(out, "<noscript><p>{without}</p></noscript></div></div>");
        if let Some((when, label)) = words::button(problem, self.mode) {
            let _ = write!(
                out,
                "<button class=\"again\" type=\"button\" data-again data-when=\"{when}\" hidden>{label}\
                 </button>"
            );
        }
        let _ = write!(out, "</div><script>{}</script>", brand::script());
        out
    }

    fn built_in(&self) -> String {
        let mut out = String::with_capacity(12 * 1024);
        let heading = escape(&self.words.heading);
        let _ = write!(
            out,
            "<!doctype html><html lang=\"en\" data-problem=\"{}\"><head>{}<title>{heading}</title>\
             <style>{}</style></head><body>",
            self.reply.problem.name(),
            self.head(),
            self.brand.style(),
        );
        let name = self.brand.name().map(escape);
        match (self.brand.logo(), &name) {
            (Some(logo), name) => {
                let alt = name.as_deref().unwrap_or_default();
                let _ =
                    write!(out, "<div class=\"brand\"><img src=\"{logo}\" alt=\"{alt}\"></div>");
            }
            (None, Some(name)) => {
                let _ = write!(out, "<div class=\"brand\">{name}</div>");
            }
            (None, None) => {}
        }
        let text = escape(&self.words.text);
        let _ = write!(out, "<main><h1>{heading}</h1><p>{text}</p>");
        if let Some(more) = &self.words.more {
            let _ = write!(out, "<p class=\"soft\">{}</p>", escape(more));
        }
        let _ = write!(out, "{}</main><footer>", self.follow());
        if let Some(contact) = self.brand.contact() {
            let (address, shown) = (escape(contact.address()), escape(contact.shown()));
            let _ = write!(out, "<p>Questions? <a href=\"{address}\">{shown}</a></p>");
        }
        let _ = write!(
            out,
            "<p>{} · {}</p><p>request <code>{}</code>",
            self.reply.status,
            self.reply.forwarded.text(),
            self.request
        );
        if let Some(id) = &self.reply.operation {
            let _ = write!(out, "</p><p>operation <code>{id}</code>");
        }
        out.push_str("</p></footer></body></html>\n");
        out
    }
}

pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests;
