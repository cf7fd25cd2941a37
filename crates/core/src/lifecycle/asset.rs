//! A static file is answered from the artifact, without the app. Whether a request is for one is
//! decided **before** its route's class counts, and only by the index of the owner's artifact: a path
//! that is not in it goes by its route. So no asset wakes anything, waits for anything, carries a
//! cookie or counts as activity.
//!
//! A deployment that was replaced gives only its fingerprinted files: such a name identifies the content that
//! a page of that time asks for. A plain name is the owner's; one that a deploy took out goes by its route,
//! since it does not say which version was meant.
//!
//! A name under the owner's prefix that looks fingerprinted and is in no index is a page's request for
//! a file that is gone: 404, never an app's HTML, never a wake. (Where the prefix is `/` it could be anything: there
//! it has to be one that the contract calls immutable as well.)

//! A directory is answered by its `index` where the contract has one. What is no file is answered by `fallback`, where
//! the contract has that and no route of its own for the path. In an app without a process nothing else answers: what
//! is no file is 404, with the contract's own page if it has one.

pub mod plan;

pub use plan::{Body, Plan, Source};

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::assets::{Asset, Folder, looks_fingerprinted};
use crate::clock::Mono;
use crate::contract::{Assets, HeaderRule};
use crate::id::Digest;
use crate::snapshot::{EnvView, Shelf};

use super::facts::Facts;
use super::reply::{Problem, Reply};
use super::trace::{Outcome, StepKind, Trace};

/// What is under a path.
#[derive(Debug, Clone)]
enum Found {
    /// This, in the artifact with this digest, with the fields that its contract adds.
    Asset(Arc<Asset>, Digest, Fields),
    /// A directory, whose own file this is, was asked for without the slash at its end.
    Directory(Arc<Asset>, Digest),
    /// A file that no artifact has, or none has any more; and what the contract answers for that.
    Gone(Option<(Arc<Asset>, Fields)>),
    /// Of an app without a process, by a method that asks for no file.
    Method,
    /// Of an app without a process: whether a script of another origin may ask for a file, of which its contract
    /// says these fields.
    Preflight(Fields),
    /// The artifact's index cannot be read.
    Unreadable(Digest),
}

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
            Found::Directory(asset, artifact) => {
                trace.push(now, StepKind::FindAsset { asset: Some(asset), artifact });
                Action::Serve(plan::moved(format!("{}/", facts.path), facts.query.as_deref()))
            }
            Found::Method => {
                let artifact = view.owner.digest;
                trace.push(now, StepKind::FindAsset { asset: None, artifact });
                Action::Serve(plan::method_not_allowed())
            }
            Found::Preflight(fields) => {
                let artifact = view.owner.digest;
                trace.push(now, StepKind::FindAsset { asset: None, artifact });
                Action::Serve(plan::preflight(fields))
            }
            Found::Gone(Some((asset, fields))) => {
                let head = facts.method == Method::HEAD;
                let plan = plan::not_found(&asset, headers, head, private, fields);
                let artifact = view.owner.digest;
                trace.push(now, StepKind::FindAsset { asset: Some(asset), artifact });
                Action::Serve(plan)
            }
            Found::Gone(None) => {
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

    pub fn facts(&self) -> &Facts {
        &self.facts
    }
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

    /// The file's bytes could not be read any more after its answer had begun.
    pub fn cut_off(&mut self) {
        self.trace.outcome = Outcome::CutOff;
    }

    /// Whether this end counts as an error for its preview's promotion, where files are all that there is to be
    /// judged by; `None` where it does not count at all.
    pub fn evidence(&self, status: Option<u16>) -> Option<bool> {
        let counts = self.view.contract.is_static
            && matches!(self.facts.method, Method::GET | Method::HEAD)
            && self.trace.outcome != Outcome::ClientLeft;
        let failed = || status.is_none_or(|s| s >= 500) || self.trace.outcome == Outcome::CutOff;
        counts.then(failed)
    }

    /// The client left before the answer was complete.
    pub fn client_left(&mut self) {
        self.trace.outcome = Outcome::ClientLeft;
    }
}

/// Looks `facts` up in the owner's artifact, then in those before it, newest first.
fn find(view: &EnvView, facts: &Facts) -> Option<Found> {
    let is_static = view.contract.is_static;
    if !matches!(facts.method, Method::GET | Method::HEAD) {
        return is_static.then(|| preflight(view, facts).unwrap_or(Found::Method));
    }
    let mut gone = false;
    for shelf in &view.assets {
        let owners = shelf.artifact == view.owner.digest;
        let Some(name) = name_in(shelf, facts) else { continue };
        let Some(folder) = shelf.folder() else {
            // Only the owner's own decides: an older artifact's damage hides what it had, no more.
            if owners {
                return Some(Found::Unreadable(shelf.artifact));
            }
            continue;
        };
        if let Some(asset) = folder.get(&name).filter(|a| owners || a.fingerprinted) {
            let fields = fields(&shelf.assets.headers, &name);
            return Some(Found::Asset(Arc::clone(asset), shelf.artifact, fields));
        }
        if !owners {
            continue;
        }
        if let Some(index) = &shelf.assets.index
            && let Some(found) = directory(shelf, folder, &name, index)
        {
            return Some(found);
        }
        let is_ours = || shelf.assets.prefix != "/" || shelf.assets.is_immutable(&name);
        gone = gone || (looks_fingerprinted(&name) && is_ours());
    }
    let owners = || view.assets.iter().filter(|s| s.artifact == view.owner.digest);
    // The file of the longest prefix that has one.
    let file = |of: fn(&Assets) -> Option<&String>| {
        owners().filter(|shelf| facts.path.starts_with(&*shelf.assets.prefix)).find_map(|shelf| {
            let name = of(&shelf.assets)?;
            let asset = shelf.folder()?.get(name)?;
            Some((Arc::clone(asset), fields(&shelf.assets.headers, name)))
        })
    };
    if !gone
        && is_page(facts)
        && let Some((asset, fields)) = file(|a| a.fallback.as_ref())
        && (is_static || !has_route(view, facts))
    {
        return Some(Found::Asset(asset, view.owner.digest, fields));
    }
    (gone || is_static).then(|| Found::Gone(file(|a| a.not_found.as_ref())))
}

/// The answer to a preflight, where the contract's fields for the name say which origins may read it. Whether a
/// file has the name does not count: a preview is asked without its token, and is not to tell its files' names.
fn preflight(view: &EnvView, facts: &Facts) -> Option<Found> {
    if !facts.is_preflight() {
        return None;
    }
    let mut owners = view.assets.iter().filter(|s| s.artifact == view.owner.digest);
    let shelf = owners.find(|s| facts.path.starts_with(&*s.assets.prefix))?;
    let mut name = name_in(shelf, facts)?;
    if let Some(index) =
        shelf.assets.index.as_ref().filter(|_| name.is_empty() || name.ends_with('/'))
    {
        name = format!("{name}{index}").into();
    }
    let fields = fields(&shelf.assets.headers, &name);
    let shared = fields.iter().any(|(field, _)| *field == header::ACCESS_CONTROL_ALLOW_ORIGIN);
    shared.then_some(Found::Preflight(fields))
}

/// What is asked for of `shelf`, if it can be anything of it.
fn name_in<'a>(shelf: &Shelf, facts: &'a Facts) -> Option<Cow<'a, str>> {
    decode(facts.path.strip_prefix(&*shelf.assets.prefix)?)
}

/// The file `index` of the directory `name`.
fn directory(shelf: &Shelf, folder: &Folder, name: &str, index: &str) -> Option<Found> {
    let artifact = shelf.artifact;
    if name.is_empty() || name.ends_with('/') {
        let name = format!("{name}{index}");
        let fields = || fields(&shelf.assets.headers, &name);
        return folder.get(&name).map(|a| Found::Asset(Arc::clone(a), artifact, fields()));
    }
    // A page's own relative links begin at its directory.
    folder.get(&format!("{name}/{index}")).map(|a| Found::Directory(Arc::clone(a), artifact))
}

/// Whether a page may be meant: no socket, and no file, which would have a dot in its name.
fn is_page(facts: &Facts) -> bool {
    !facts.websocket && !facts.path.rsplit('/').next().is_some_and(|last| last.contains('.'))
}

/// Whether the contract has a route for the path besides the one for all that others do not take.
fn has_route(view: &EnvView, facts: &Facts) -> bool {
    view.contract.route(&facts.asked()).map_or(true, |taken| !taken.route.path.is_all())
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

/// A path as a file's name. `%2F`, a broken escape and what is not UTF-8 name no file.
fn decode(path: &str) -> Option<Cow<'_, str>> {
    // The decoder takes a broken escape as it stands, and makes a slash of `%2F`.
    let names_one = |escape: &str| {
        let digits = escape.as_bytes().get(..2);
        digits
            .is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit) && !d.eq_ignore_ascii_case(b"2f"))
    };
    let whole = path.split('%').skip(1).all(names_one);
    whole.then(|| percent_decode_str(path).decode_utf8().ok())?
}

#[cfg(test)]
mod sample {
    use super::*;
    use crate::assets::{AssetIndex, Coding, Encoded, Entry};

    /// 100 bytes plain, 40 as br, 45 as zstd, 50 as gzip.
    pub fn asset() -> Asset {
        let encoded = |coding, n, size| Encoded {
            coding,
            digest: Digest::from_bytes([n; 32]),
            size,
            given: false,
        };
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
        Asset::clone(index.unwrap().assets().next().unwrap())
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
