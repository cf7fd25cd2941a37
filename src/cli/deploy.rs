//! `deploy`: pack, upload what the edge lacks, make the deployment.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::admin::types::DeployRequest;
use crate::artifact::{self, AssetSource, Phase};
use crate::contract::{self, Assets};
use crate::control::Deployed;
use crate::id::EnvName;

use super::client::Client;
use super::show;

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
    json: bool,
) -> Result<Deployed> {
    let scratch = Scratch::new()?;
    let progress = Progress::new(json);
    let assets = assets(dir)?;
    let source = assets.as_ref().map(|a| AssetSource {
        dir: &a.dir,
        prefix: &a.prefix,
        manifest: a.manifest.as_deref(),
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
    let request = DeployRequest {
        digest: packed.digest.to_string(),
        preview: preview.map(ToString::to_string),
    };
    let deployed: Deployed = client.post("/v1/deployments", &request)?;
    drop(progress);
    if json {
        show::json(&deployed)?;
        return Ok(deployed);
    }
    let what = match deployed.epoch {
        Some(epoch) => {
            let hosts: Vec<_> = deployed.hosts.iter().map(ToString::to_string).collect();
            format!("owns {} under epoch {epoch}; it sleeps until asked for", hosts.join(", "))
        }
        None => format!(
            "is stored; another deployment owns the app's hosts and goes on serving, until \
             `vango-edge promote {} {}`",
            deployed.environment.app(),
            deployed.digest
        ),
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

/// What the contract says of static files. A contract that is missing is for [`artifact::pack`] to say.
fn assets(dir: &Path) -> Result<Option<Assets>> {
    let file = dir.join(artifact::CONTRACT);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
    contract::parse(&file, &text).map(|c| c.assets).map_err(|errors| {
        let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the contract has {} errors\n{}", all.len(), all.join("\n"))
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
