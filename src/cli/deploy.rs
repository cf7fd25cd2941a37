//! `deploy`: pack, upload what the edge lacks, make the deployment.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::admin::types::{DeployRequest, PromotionRow};
use crate::artifact::{self, BATCH_BLOBS, BATCH_BYTES, Blob, Given, Phase, SMALL};
use crate::contract::Contract;
use crate::control::{Deployed, Effect};
use crate::id::{Digest, EnvName, Environment, Epoch};

use super::client::Client;
use super::{release, show};

/// How often a move that goes on is asked about.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Deploys `dir`.
///
/// # Errors
/// What was wrong with the directory, the upload or the deployment; nothing is half done.
pub fn deploy(
    client: &Client,
    dir: &Path,
    preview: Option<&EnvName>,
    promote: bool,
    json: bool,
) -> Result<Deployed> {
    let progress = Progress::new(json);
    let contract = contract_of(dir, &progress)?;
    let assets = &contract.assets[..];
    let known = |digests: &[Digest]| client.encodings(digests);
    let packed = artifact::pack(dir, assets, known, &mut |p| {
        let what = match p.phase {
            Phase::Layer => "packing",
            Phase::Assets => "encoding static files",
        };
        progress.bar(what, p.files, p.files_total, "files");
    })?;
    for what in packed.noticed.in_words() {
        progress.note(&what);
    }
    upload(client, &packed.blobs, &progress)?;
    progress.say("verifying");
    let is_static = contract.is_static;
    let environment = match preview {
        None => Environment::production(contract.app),
        Some(name) => Environment::new(contract.app, name.clone()),
    };
    let request = DeployRequest {
        digest: packed.digest.to_string(),
        preview: preview.map(ToString::to_string),
    };
    let deployed = make(client, &request, &environment, &progress)?;
    drop(progress);
    let deployed = moved(client, deployed)?;
    if json {
        show::json(&deployed)?;
        return Ok(deployed);
    }
    let hosts: Vec<_> = deployed.hosts.iter().map(ToString::to_string).collect();
    let (hosts, epoch) = (hosts.join(", "), deployed.epoch.map_or(0, |e| e.0));
    let what = match deployed.effect {
        Effect::Owns | Effect::Moved if is_static => {
            format!("serves {hosts} under epoch {epoch}: static files, without a process")
        }
        Effect::Owns => format!("owns {hosts} under epoch {epoch}; it sleeps until asked for"),
        Effect::Moved | Effect::Moving => format!(
            "serves {hosts} under epoch {epoch}: a process of it was ready first, and what served \
             before drains"
        ),
        Effect::Unchanged => {
            format!("serves this very artifact already, under epoch {epoch}: nothing was changed")
        }
        Effect::Stored if promote => "goes on with what it runs until this is promoted".to_owned(),
        Effect::Stored => {
            let dir = dir.display().to_string();
            let next =
                deployed.next.iter().map(|line| format!("\n  {}", line.replace("DIR", &dir)));
            format!(
                "goes on with what it runs: `promotion` in the app's file says what this needs \
                 first. Next:{}",
                next.collect::<String>()
            )
        }
    };
    show::text(&format!(
        "{} {} {}\n{}, {}\n{} {what}\n",
        deployed.environment,
        deployed.deployment,
        deployed.digest,
        show::count(packed.files, "file"),
        show::count(packed.bytes, "byte"),
        deployed.environment,
    ))?;
    Ok(deployed)
}

/// Uploads those of `blobs` that the edge lacks: small ones many at a time, since a request for each would take
/// longer than its bytes.
fn upload(client: &Client, blobs: &[Blob], progress: &Progress) -> Result<()> {
    progress.say("asking what is there");
    let digests: Vec<_> = blobs.iter().map(|b| b.digest).collect();
    let missing: HashSet<_> = client.missing(&digests)?.into_iter().collect();
    let missing: Vec<_> = blobs.iter().filter(|b| missing.contains(&b.digest)).collect();
    let total = missing.iter().map(|b| b.size).sum();
    let (small, large): (Vec<_>, Vec<_>) = missing.into_iter().partition(|b| b.size <= SMALL);
    let mut done = 0;
    for blob in large {
        let mut uploaded = |n| progress.bar("uploading", done + n, total, "bytes");
        client.put_blob(blob, &mut uploaded)?;
        done += blob.size;
    }
    for some in batches(&small) {
        progress.bar("uploading", done, total, "bytes");
        client.put_batch(artifact::batch(some.iter().copied())?)?;
        done += some.iter().map(|b| b.size).sum::<u64>();
    }
    progress.bar("uploading", done, total, "bytes");
    Ok(())
}

/// `blobs` in pieces that are uploaded at once, each far below what the edge takes.
fn batches<'a>(blobs: &'a [&'a Blob]) -> Vec<&'a [&'a Blob]> {
    /// A header and what fills the last block.
    const FRAMING: u64 = 1024;
    let (mut out, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, blob) in blobs.iter().enumerate() {
        let more = blob.size + FRAMING;
        if at - begin == BATCH_BLOBS / 2 || (at > begin && bytes + more > BATCH_BYTES as u64 / 2) {
            out.push(&blobs[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += more;
    }
    if begin < blobs.len() {
        out.push(&blobs[begin..]);
    }
    out
}

/// The contract, and what of it is not from its file: that is said at once.
fn contract_of(dir: &Path, progress: &Progress) -> Result<Contract> {
    let given = Given::of(dir)?;
    for what in &given.taken {
        progress.note(&format!("taken: {what}"));
    }
    given.parse(dir).map_err(|errors| {
        let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the contract has {}\n{}", show::count(all.len(), "error"), all.join("\n"))
    })
}

/// The deployment once the move to it is over, where the edge did not wait for that.
fn moved(client: &Client, deployed: Deployed) -> Result<Deployed> {
    if deployed.effect != Effect::Moving {
        return Ok(deployed);
    }
    let row = client.get(&format!("/v1/environments/{}/promotion", deployed.environment))?;
    let row = release::ended(client, row)?;
    if row.digest != deployed.digest.to_string() {
        bail!("{} moved to {} meanwhile", row.environment, row.digest);
    }
    Ok(Deployed { effect: Effect::Moved, epoch: row.epoch.map(Epoch), ..deployed })
}

/// Asks for the deployment. Where it moves what serves, that takes as long as a start: a terminal sees how
/// far it is.
fn make(
    client: &Client,
    request: &DeployRequest,
    environment: &Environment,
    progress: &Progress,
) -> Result<Deployed> {
    if !progress.shown {
        return client.post("/v1/deployments", request);
    }
    let path = format!("/v1/environments/{environment}/promotion");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.post("/v1/deployments", request));
        while !asking.is_finished() {
            let moving = client.get::<PromotionRow>(&path).ok();
            match moving.filter(|p| p.in_progress && p.digest == request.digest) {
                Some(p) if p.state == "releasing" => progress.say("running its release command"),
                Some(p) if p.state == "edge_propagating" => progress.say("moving the hosts to it"),
                Some(_) => progress.say("starting it beside what serves"),
                None => {}
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        asking.join().unwrap_or_else(|_| bail!("asking for the deployment was interrupted"))
    })
}

/// One line that is written over, on a terminal only; gone when this is dropped, so that an error stands
/// on a line of its own.
struct Progress {
    shown: bool,
    /// What the line says, in so many hundredths: it is written when that changes.
    last: RefCell<(String, u64)>,
}

impl Progress {
    fn new(json: bool) -> Self {
        let shown = !json && std::io::stderr().is_terminal();
        Self { shown, last: RefCell::default() }
    }
    fn say(&self, what: &str) {
        if self.shown {
            eprint!("\r\x1b[K{what}");
            let _ = std::io::stderr().flush();
        }
    }
    /// A line that stays.
    fn note(&self, what: &str) {
        self.say("");
        eprintln!("{}", show::escaped(what));
    }
    fn bar(&self, what: &str, done: u64, total: u64, unit: &str) {
        const WIDTH: u64 = 30;
        let of = |n: u64| done.saturating_mul(n).checked_div(total).unwrap_or(n).min(n);
        let now = (what.to_owned(), of(100));
        if self.last.replace(now.clone()) == now {
            return;
        }
        let filled = of(WIDTH);
        let (full, empty) = (filled as usize, (WIDTH - filled) as usize);
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(empty));
        self.say(&format!("{what} [{bar}] {done} of {total} {unit}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.say("");
    }
}
