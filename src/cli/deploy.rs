//! `deploy`: pack, upload what the edge lacks, make the deployment.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::admin::types::{DeployRequest, PromotionRow};
use crate::artifact::{self, AssetSource, Phase};
use crate::contract::{self, Contract};
use crate::control::{Deployed, Effect};
use crate::id::{EnvName, Environment};

use super::client::Client;
use super::show;

/// How often a move that goes on is asked about.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A folder that goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let name = format!("vango-edge-deploy-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        // A folder of an earlier process with this id holds nothing that is needed.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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
    let scratch = Scratch::new()?;
    let progress = Progress::new(json);
    let contract = contract_of(dir)?;
    let assets = contract.as_ref().and_then(|c| c.assets.as_ref());
    let source = assets.map(|a| AssetSource {
        dir: &a.dir,
        prefix: &a.prefix,
        manifest: a.manifest.as_deref(),
        encoded_suffixes: &a.encoded_suffixes,
    });
    let packed = artifact::pack(dir, &scratch.0, source.as_ref(), &mut |p| {
        let what = match p.phase {
            Phase::Layer => "packing",
            Phase::Assets => "encoding static files",
        };
        progress.bar(what, p.files, p.files_total, "files");
    })?;
    let total = packed.blobs.iter().map(|b| b.size).sum();
    let mut done = 0;
    for blob in &packed.blobs {
        let mut uploaded = |n| progress.bar("uploading", done + n, total, "bytes");
        uploaded(0);
        if !client.has_blob(&blob.digest)? {
            client.put_blob(&blob.digest, (&blob.path, blob.size), &mut uploaded)?;
        }
        done += blob.size;
    }
    progress.bar("uploading", done, total, "bytes");
    progress.say("verifying");
    let environment = contract.map(|c| match preview {
        None => Environment::production(c.app),
        Some(name) => Environment::new(c.app, name.clone()),
    });
    let request = DeployRequest {
        digest: packed.digest.to_string(),
        preview: preview.map(ToString::to_string),
    };
    let deployed = make(client, &request, environment.as_ref(), &progress)?;
    drop(progress);
    if json {
        show::json(&deployed)?;
        return Ok(deployed);
    }
    let hosts: Vec<_> = deployed.hosts.iter().map(ToString::to_string).collect();
    let (hosts, epoch) = (hosts.join(", "), deployed.epoch.map_or(0, |e| e.0));
    let what = match deployed.effect {
        Effect::Owns => format!("owns {hosts} under epoch {epoch}; it sleeps until asked for"),
        Effect::Moved => format!(
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
        "{} {} {}\n{} files, {} bytes\n{} {what}\n",
        deployed.environment,
        deployed.deployment,
        deployed.digest,
        packed.files,
        packed.bytes,
        deployed.environment,
    ))?;
    Ok(deployed)
}

/// The contract. One that is missing is for [`artifact::pack`] to say.
fn contract_of(dir: &Path) -> Result<Option<Contract>> {
    let file = dir.join(artifact::CONTRACT);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
    contract::parse(&file, &text).map(Some).map_err(|errors| {
        let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the contract has {} errors\n{}", all.len(), all.join("\n"))
    })
}

/// Asks for the deployment. Where it moves what serves, that takes as long as a start: a terminal sees how
/// far it is.
fn make(
    client: &Client,
    request: &DeployRequest,
    environment: Option<&Environment>,
    progress: &Progress,
) -> Result<Deployed> {
    let Some(environment) = environment.filter(|_| progress.shown) else {
        return client.post("/v1/deployments", request);
    };
    let path = format!("/v1/environments/{environment}/promotion");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.post("/v1/deployments", request));
        while !asking.is_finished() {
            let moving = client.get::<PromotionRow>(&path).ok();
            match moving.filter(|p| p.in_progress && p.digest == request.digest) {
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
