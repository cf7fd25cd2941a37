//! Trace 6: an asset is answered from the artifact, without the app. Whether a request is for one is
//! decided **before** its route's class counts, and only by the index of the owner's artifact: a path
//! that is not in it goes by its route. So no asset wakes anything, waits for anything, carries a
//! cookie or counts as activity.
//!
//! A deployment that was replaced gives only its fingerprinted files: the name says which content a page
//! of then asks for. A plain name is the owner's; one that a deploy took out goes by its route, for no page
//! can know which of its contents was meant.
//!
//! A name under the owner's prefix that looks fingerprinted and is in no index is a page's request for
//! a file that is gone: 404, never an app's HTML, never a wake. (Not where the prefix is `/`: there it
//! could be anything.)

mod conditions;
mod negotiate;
mod plan;
mod range;

pub use plan::{Body, Plan, Source};

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::assets::{Asset, looks_fingerprinted};
use crate::clock::Mono;
use crate::contract::HeaderRule;
use crate::id::Digest;
use crate::snapshot::EnvView;

use super::facts::Facts;
use super::reply::{Problem, Reply};
use super::trace::{Outcome, StepKind, Trace};

/// What is under a path.
#[derive(Debug, Clone)]
enum Found {
    /// This, in the artifact with this digest, with the fields that its contract adds.
    Asset(Arc<Asset>, Digest, Fields),
    /// A file that no artifact has any more.
    Gone,
    /// The artifact's index cannot be read.
    Unreadable(Digest),
}

/// Header fields.
type Fields = Vec<(HeaderName, HeaderValue)>;

/// A request for an asset, on its way.
#[derive(Debug)]
pub struct Visit {
    facts: Facts,
    view: Arc<EnvView>,
    /// What is to be done.
    pub action: Action,
    /// What was decided so far.
    pub trace: Trace,
}

/// What the shell is to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Send this, then report with [`Visit::served`].
    Serve(Plan),
    /// Answer this.
    Reply(Reply),
}

impl Visit {
    /// Begins, if `facts` are a request for an asset of `view`; gives them back if not. `private`: the
    /// environment is behind an access token.
    ///
    /// # Errors
    /// The facts, when the request goes by its route.
    pub fn begin(
        facts: Facts,
        view: &Arc<EnvView>,
        headers: &HeaderMap,
        private: bool,
        now: Mono,
    ) -> Result<Self, Box<Facts>> {
        let Some(found) = find(view, &facts) else { return Err(Box::new(facts)) };
        let mut trace = Trace::new(facts.id, facts.received);
        let action = match found {
            Found::Asset(asset, artifact, fields) => {
                let head = facts.method == Method::HEAD;
                let plan = plan::plan(&asset, headers, head, private, fields);
                trace.push(now, StepKind::FindAsset { asset: Some(asset), artifact });
                Action::Serve(plan)
            }
            Found::Gone => {
                let artifact = view.owner.digest;
                trace.push(now, StepKind::FindAsset { asset: None, artifact });
                Action::Reply(Reply::refused(
                    Problem::AssetNotFound,
                    404,
                    "No artifact of this app that is still kept has this file. Load the page again.",
                ))
            }
            Found::Unreadable(artifact) => {
                trace.push(now, StepKind::FindAsset { asset: None, artifact });
                Action::Reply(Reply::artifact_unavailable(
                    "the list of its files is missing or damaged",
                ))
            }
        };
        if let Action::Reply(reply) = &action {
            trace.answered(now, reply);
        }
        Ok(Self { facts, view: Arc::clone(view), action, trace })
    }

    /// What the request is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
    /// Whose it is.
    pub fn view(&self) -> &Arc<EnvView> {
        &self.view
    }

    /// The bytes that were planned cannot be had, or are damaged. Returns the answer to give.
    pub fn unavailable(&mut self, now: Mono) -> Reply {
        let reply = Reply::artifact_unavailable("the file is missing or damaged");
        self.trace.answered(now, &reply);
        reply
    }

    /// The answer is sent.
    pub fn served(&mut self, now: Mono) {
        if let Action::Serve(plan) = &self.action {
            let (status, source) = (plan.status, plan.representation);
            self.trace.push(now, StepKind::ServeAsset { status: Some(status), source });
            self.trace.push(now, StepKind::NoAllocation);
            self.trace.outcome = Outcome::Asset;
        }
    }

    /// The client left before the answer was complete.
    pub fn client_left(&mut self) {
        self.trace.outcome = Outcome::ClientLeft;
    }
}

/// Looks `facts` up in the owner's artifact, then in those before it, newest first.
fn find(view: &EnvView, facts: &Facts) -> Option<Found> {
    if view.assets.is_empty() || !matches!(facts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let mut gone = None;
    for shelf in &view.assets {
        let owners = shelf.artifact == view.owner.digest;
        let Some(below) = facts.path.strip_prefix(shelf.prefix.as_str()) else { continue };
        let Some(name) = decode(below) else { continue };
        let Some(index) = &shelf.index else {
            // Only the owner's own decides: an older artifact's damage hides what it had, no more.
            if owners {
                return Some(Found::Unreadable(shelf.artifact));
            }
            continue;
        };
        if let Some(asset) = index.get(&name).filter(|a| owners || a.fingerprinted) {
            let fields = fields(&shelf.headers, &name);
            return Some(Found::Asset(Arc::clone(asset), shelf.artifact, fields));
        }
        if owners && shelf.prefix != "/" && looks_fingerprinted(&name) {
            gone = Some(Found::Gone);
        }
    }
    gone
}

/// What `rules` add to the answer for the file `name`: of one field, what the last of them says.
fn fields(rules: &[HeaderRule], name: &str) -> Fields {
    let mut out = Fields::new();
    for (field, value) in rules.iter().filter(|r| r.covers(name)).flat_map(|r| &r.set) {
        out.retain(|(known, _)| known != field);
        out.push((field.clone(), value.clone()));
    }
    out
}

/// A path as a file's name. `%2F` and what is not UTF-8 name no file.
fn decode(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        // Facts have whole escapes of two upper-case digits only.
        out.push(match b {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok().filter(|b| *b != b'/')?
            }
            b => b,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod sample {
    use super::*;
    use crate::assets::{AssetIndex, Coding, Encoded, Entry};

    /// 100 bytes plain, 40 as br, 45 as zstd, 50 as gzip.
    pub fn asset() -> Asset {
        let encoded =
            |coding, n, size| Encoded { coding, digest: Digest::from_bytes([n; 32]), size };
        let entry = Entry {
            path: "app.css".into(),
            media_type: "text/css; charset=utf-8".into(),
            fingerprinted: false,
            coding: None,
            digest: Digest::from_bytes([1; 32]),
            size: 100,
            encodings: vec![
                encoded(Coding::Br, 2, 40),
                encoded(Coding::Zstd, 3, 45),
                encoded(Coding::Gzip, 4, 50),
            ],
        };
        let index = AssetIndex::read(&AssetIndex::write("public", "/assets/", vec![entry]));
        Asset::clone(index.unwrap().get("app.css").unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_decoded_once_and_never_into_a_slash() {
        assert_eq!(decode("a%20b.css").as_deref(), Some("a b.css"));
        assert_eq!(decode("%C3%A4.css").as_deref(), Some("ä.css"));
        assert_eq!(decode("a%2520b").as_deref(), Some("a%20b"));
        for none in ["a%2Fb", "%FF", "a%2", "a%"] {
            assert_eq!(decode(none), None, "{none}");
        }
    }
}
