//! What an operator gives the page: a name, a logo, a colour, a contact, or a template of its own. Everything is
//! checked where the configuration is read, so that no page can be made wrong by it later.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{Values, escape};

/// Bytes of a logo, at most: it is in every page.
pub const MOST_LOGO: usize = 64 * 1024;
/// Bytes of a template, at most.
pub const MOST_TEMPLATE: usize = 128 * 1024;
/// Characters of a name, at most.
const MOST_NAME: usize = 80;

/// What an operator says of its pages; of an app, what is not said is the node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branding {
    pub name: Option<String>,
    pub logo: Option<Logo>,
    pub color: Option<Color>,
    pub contact: Option<Contact>,
    pub template: Option<Template>,
}

impl Branding {
    /// What is wrong with a name.
    ///
    /// # Errors
    /// That it is empty, too long, or of characters that nobody sees.
    pub fn check_name(name: &str) -> Result<(), String> {
        let length = name.chars().count();
        if name.trim().is_empty() || length > MOST_NAME || name.chars().any(char::is_control) {
            return Err(format!("expected 1 to {MOST_NAME} characters, found {name:?}"));
        }
        Ok(())
    }

    /// This, and for what it does not say `node`'s.
    pub fn over(&self, node: &Self) -> Self {
        Self {
            name: self.name.clone().or_else(|| node.name.clone()),
            logo: self.logo.clone().or_else(|| node.logo.clone()),
            color: self.color.or(node.color),
            contact: self.contact.clone().or_else(|| node.contact.clone()),
            template: self.template.clone().or_else(|| node.template.clone()),
        }
    }
}

/// A picture, as a `data:` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logo(String);

impl Logo {
    /// The picture `bytes`, of the kind that they begin like.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MOST_LOGO {
            return Err(format!(
                "it has {} bytes; at most {MOST_LOGO}, since it is in every page",
                bytes.len()
            ));
        }
        let kind = match bytes {
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [0xff, 0xd8, 0xff, ..] => "image/jpeg",
            [b'G', b'I', b'F', b'8', ..] => "image/gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            // In an <img> its scripts do not run and nothing is loaded (SVG 2 §2.2.1, "secure animated").
            _ if is_svg(bytes) => "image/svg+xml",
            _ => return Err("it is no SVG, PNG, JPEG, WebP or GIF".into()),
        };
        Ok(Self(format!("data:{kind};base64,{}", STANDARD.encode(bytes))))
    }
}

fn is_svg(bytes: &[u8]) -> bool {
    let begin = &bytes[..bytes.len().min(2048)];
    std::str::from_utf8(bytes).is_ok() && begin.windows(4).any(|w| w == b"<svg")
}

/// `#rrggbb`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Color(u8, u8, u8);

impl FromStr for Color {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a colour such as \"#2456d6\", found {text:?}");
        let mut rgb = [0; 3];
        let digits = text.strip_prefix('#').ok_or_else(wrong)?;
        hex::decode_to_slice(digits, &mut rgb).map_err(|_| wrong())?;
        Ok(Self(rgb[0], rgb[1], rgb[2]))
    }
}

impl Color {
    fn css(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }

    /// Relative luminance (WCAG 2.2).
    pub(super) fn luminance(self) -> f64 {
        let part = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(self.0) + 0.7152 * part(self.1) + 0.0722 * part(self.2)
    }

    /// What is written on it: white where that has the contrast that WCAG asks of text, else black.
    pub(super) fn on(self) -> &'static str {
        if 1.05 / (self.luminance() + 0.05) >= 4.5 { "#fff" } else { "#000" }
    }

    /// As light as can be seen on a dark page: three to one (WCAG 2.2 §1.4.11).
    pub(super) fn on_dark(self) -> Self {
        const DARK: f64 = 0.0108;
        let mut color = self;
        // Each turn is an eighth of the way to white.
        for _ in 0..24 {
            if (color.luminance() + 0.05) / (DARK + 0.05) >= 3.0 {
                break;
            }
            let lighter = |c: u8| c + (255 - c).div_ceil(8);
            color = Self(lighter(color.0), lighter(color.1), lighter(color.2));
        }
        color
    }
}

/// Where a person may turn to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    address: String,
    shown: String,
}

impl FromStr for Contact {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.bytes().all(|b| b.is_ascii_graphic()) && text.len() <= 200;
        let mail = |a: &str| a.split_once('@').is_some_and(|(n, h)| !n.is_empty() && !h.is_empty());
        let (address, shown) = match text.split_once(':') {
            Some(("https" | "http", rest)) if rest.len() > 2 && rest.starts_with("//") => {
                (text.to_owned(), rest[2..].trim_end_matches('/').to_owned())
            }
            Some(("mailto", to)) if mail(to) => (text.to_owned(), to.to_owned()),
            Some(("tel", number)) if !number.is_empty() => (text.to_owned(), number.to_owned()),
            None if mail(text) => (format!("mailto:{text}"), text.to_owned()),
            _ => (String::new(), String::new()),
        };
        if !plain || address.is_empty() {
            return Err(format!(
                "expected a mail address or an address that begins with https:, http:, mailto: or tel:, \
                 found {text:?}"
            ));
        }
        Ok(Self { address, shown })
    }
}

impl Contact {
    pub(super) fn address(&self) -> &str {
        &self.address
    }
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

/// A page of the operator's own, with places for what the edge says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    Follow,
    Heading,
    Text,
    More,
    Problem,
    Status,
    Forwarded,
    Request,
    Operation,
    RetryAfter,
    Name,
}

const PLACES: [(&str, Place); 12] = [
    ("head", Place::Head),
    ("follow", Place::Follow),
    ("heading", Place::Heading),
    ("text", Place::Text),
    ("more", Place::More),
    ("problem", Place::Problem),
    ("status", Place::Status),
    ("forwarded", Place::Forwarded),
    ("request", Place::Request),
    ("operation", Place::Operation),
    ("retry_after", Place::RetryAfter),
    ("name", Place::Name),
];

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MOST_TEMPLATE {
            return Err(format!("it has {} bytes; at most {MOST_TEMPLATE}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| format!("it is not UTF-8: {e}"))?;
        let line = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() + 1;
        let lower = text.to_ascii_lowercase();
        if let Some(at) = lower.find("<script") {
            return Err(format!(
                "line {}: no script of a template runs: the page's Content-Security-Policy allows the \
                 edge's own only",
                line(&text[at..])
            ));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let at = line(&rest[before.len()..]);
            let Some((name, next)) = after.split_once("}}") else {
                return Err(format!("line {at}: {{{{ has no }}}}"));
            };
            let name = name.trim();
            let Some((_, place)) = PLACES.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = PLACES.iter().map(|(known, _)| *known).collect();
                let known = known.join(", ");
                return Err(format!("line {at}: there is no {{{{{name}}}}}, only {known}"));
            };
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Place(*place));
            rest = next;
        }
        parts.push(Part::Text(rest.to_owned()));
        for (name, place) in [("head", Place::Head), ("follow", Place::Follow)] {
            match parts.iter().filter(|p| **p == Part::Place(place)).count() {
                1 => {}
                n => {
                    let why = "without it the page does not follow its app";
                    return Err(format!("{{{{{name}}}}} stands there {n} times, not once: {why}"));
                }
            }
        }
        Ok(Self(parts))
    }

    pub(super) fn filled(&self, values: &Values<'_>) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Place(place) => out.push_str(&place.value(values)),
            }
        }
        out
    }
}

impl Place {
    /// Escaped for text and for quoted attributes; `head` and `follow` are HTML of the edge's own.
    fn value(self, values: &Values<'_>) -> String {
        let reply = values.reply;
        match self {
            Self::Head => values.head(),
            Self::Follow => values.follow(),
            Self::Heading => escape(&values.words.heading),
            Self::Text => escape(&values.words.text),
            Self::More => escape(values.words.more.as_deref().unwrap_or_default()),
            Self::Problem => reply.problem.name().into(),
            Self::Status => reply.status.to_string(),
            Self::Forwarded => reply.forwarded.text().into(),
            Self::Request => values.request.to_string(),
            Self::Operation => {
                reply.operation.as_ref().map(ToString::to_string).unwrap_or_default()
            }
            Self::RetryAfter => reply.retry_after.map(|s| s.to_string()).unwrap_or_default(),
            Self::Name => escape(values.brand.name().unwrap_or_default()),
        }
    }
}

/// What pages are made with.
#[derive(Debug)]
pub struct Brand {
    branding: Branding,
    style: String,
    policy: String,
}

/// Without what only its readers need: margins, line breaks of the style, comments of the script.
fn compact(text: &str, between: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//"));
    lines.collect::<Vec<_>>().join(between)
}

static SCRIPT: LazyLock<String> = LazyLock::new(|| compact(include_str!("page.js"), "\n"));

/// The script of every page.
pub(super) fn script() -> &'static str {
    &SCRIPT
}

static PLAIN: LazyLock<Brand> = LazyLock::new(|| Brand::new(Branding::default()));

/// The source expression of what is `inline` (CSP 3 §2.3.1).
fn source(inline: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inline)))
}

impl Brand {
    /// Of pages for which no operator has said anything.
    pub fn plain() -> &'static Self {
        &PLAIN
    }

    /// Makes what is the same for all pages.
    pub fn new(branding: Branding) -> Self {
        let mut style = compact(include_str!("page.css"), "");
        if let Some(color) = branding.color {
            let dark = color.on_dark();
            let _ = write!(
                style,
                ":root{{--accent:{};--on:{}}}@media(prefers-color-scheme:dark){{:root{{--accent:{};--on:{}}}}}",
                color.css(),
                color.on(),
                dark.css(),
                dark.on(),
            );
        }
        let looks = match branding.template {
            // A template brings its own style, and may use files of the app's.
            Some(_) => "style-src 'self' https: 'unsafe-inline'; img-src 'self' https: data:; \
                        font-src 'self' https: data:"
                .to_owned(),
            None => format!("style-src {}; img-src data:", source(&style)),
        };
        // With form-action 'none', Chromium does not reload the answer to a form: "Send it again" does nothing.
        let policy = format!(
            "default-src 'none'; {looks}; script-src {}; connect-src 'self'; base-uri 'none'; form-action \
             'self'",
            source(script())
        );
        Self { branding, style, policy }
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.branding.name.as_deref()
    }
    pub(super) fn logo(&self) -> Option<&str> {
        self.branding.logo.as_ref().map(|l| l.0.as_str())
    }
    pub(super) fn contact(&self) -> Option<&Contact> {
        self.branding.contact.as_ref()
    }
    pub(super) fn template(&self) -> Option<&Template> {
        self.branding.template.as_ref()
    }
    pub(super) fn style(&self) -> &str {
        &self.style
    }
    pub(super) fn policy(&self) -> &str {
        &self.policy
    }
}
