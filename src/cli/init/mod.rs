//! `init`: looks at a folder with somebody's app and writes the contract that deploys it, and the operator's
//! file beside the edge's configuration. It runs nothing, and writes over nothing.

mod folder;
mod found;
mod node;
mod others;
mod python;
#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::artifact::{CONTRACT, Given, app_name};
use crate::contract;
use crate::document::quoted;
use crate::id::AppName;

use super::show;
use folder::Folder;
use found::Found;

/// Where clients connect if nothing else is said.
const PORT: u16 = 8080;
/// Where the configuration is looked for if none is named.
const CONFIG: &str = "conf/edge.toml";

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    app: String,
    /// What the folder was taken for.
    found: Option<String>,
    /// Files that were written, and those that were there already.
    wrote: Vec<String>,
    kept: Vec<String>,
    notes: Vec<String>,
    /// Commands that come next.
    next: Vec<String>,
}

/// Writes what `dir` lacks to be deployed. `config` is the edge's, which is made where it is named and not there.
///
/// # Errors
/// Nothing in `dir` says how it is started, or a file could not be written.
pub fn init(dir: &Path, config: Option<&Path>, name: Option<&AppName>, json: bool) -> Result<()> {
    if !dir.is_dir() {
        bail!("{}: there is no such directory", dir.display());
    }
    if let Some(config) = config {
        outside(dir, config)?;
    }
    let mut report = Report::default();
    let (app, found, is_site) = contract_of(dir, name, &mut report)?;
    report.app = app.to_string();
    let secrets = found.as_ref().map_or(&[][..], |found| &found.secrets);
    let port = operators(config, &app, secrets, &mut report)?;
    let before = found.map(|found| found.before).unwrap_or_default();
    next(dir, config, (&app, port, is_site), &before, &mut report);
    show::either(json, &report, words)
}

/// Looks at `dir`; what it is, if something says so.
fn look(dir: &Path) -> Option<Found> {
    let folder = Folder(dir.to_owned());
    let found = others::procfile(&folder)
        // What a framework in Python or Node is says more than a Dockerfile.
        .or_else(|| node::look(&folder).filter(|_| !folder.has("manage.py")))
        .or_else(|| python::look(&folder))
        .or_else(|| others::look(&folder))?;
    let path = std::env::var("PATH").unwrap_or_default();
    Some(match others::elsewhere(&found, &path) {
        Some(place) => {
            let program = found.command.first().cloned().unwrap_or_default();
            let note = format!(
                "{program} is in {}, which is not on the PATH that apps get: `env` adds it, for this machine",
                place.display()
            );
            found.env("PATH", &format!("{}:${{PATH}}", place.display())).note(note)
        }
        None => found,
    })
}

/// The app, what the folder was taken for, and whether it is a site without a process.
fn contract_of(
    dir: &Path,
    name: Option<&AppName>,
    report: &mut Report,
) -> Result<(AppName, Option<Found>, bool)> {
    let file = dir.join(CONTRACT);
    if file.exists() {
        report.kept.push(file.display().to_string());
        let given = Given::of(dir)?;
        let contract = given.parse(dir).map_err(|errors| {
            let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", all.join("\n"))
        })?;
        return Ok((contract.app, None, contract.is_static));
    }
    let Some(found) = look(dir) else {
        bail!(
            "{}: nothing in it says how it is started: no package.json with a start, no app in Python, Go, Rust, \
             Ruby or PHP, no Procfile, no CMD of a Dockerfile, no index.html. Write {CONTRACT} with [app] name \
             and [process] command; docs/deploying.md has how",
            dir.display()
        );
    };
    let app = match name {
        Some(name) => name.clone(),
        None => app_name(dir)?,
    };
    let text = found.contract(&app);
    if let Err(errors) = contract::parse(&file, &text) {
        let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
        bail!(
            "the contract that would be written is wrong, a defect of this command:\n{}",
            all.join("\n")
        );
    }
    write_new(&file, &text, report)?;
    report.found = Some(found.what.clone());
    report.notes.extend(found.notes.clone());
    if let Some(why) = &found.writes {
        report.notes.push(format!(
            "it may write beside its code ({why}); that is lost each time it stops (writable = \"scratch\"): what is to \
             stay belongs below $HOME"
        ));
    }
    let is_site = found.is_site();
    Ok((app, Some(found), is_site))
}

/// An edge's files in the folder would go into the artifact, its state too.
fn outside(dir: &Path, config: &Path) -> Result<()> {
    let parent = config.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The nearest that is there already.
    let there = parent.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    if there.canonicalize()?.starts_with(dir.canonicalize()?) {
        bail!(
            "{} is inside {}, and would go into the artifact with the edge's state: name a place outside of it",
            config.display(),
            dir.display()
        );
    }
    Ok(())
}

/// The operator's file of the app, and the edge's where `config` names one that is not there. The port where
/// clients connect.
fn operators(
    config: Option<&Path>,
    app: &AppName,
    secrets: &[String],
    report: &mut Report,
) -> Result<u16> {
    let file = config.unwrap_or(Path::new(CONFIG));
    if !file.exists() {
        if config.is_none() {
            return Ok(PORT);
        }
        make_parent(file)?;
        write_new(file, EDGE, report)?;
    }
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let read: toml::Table =
        text.parse().with_context(|| format!("{}: it is not TOML", file.display()))?;
    let apps = read.get("apps").and_then(|apps| apps.get("dir")).and_then(toml::Value::as_str);
    let listen = read.get("server").and_then(|server| server.get("listen")?.get(0)?.as_str());
    let port = listen.and_then(|at| at.rsplit_once(':')?.1.parse().ok()).unwrap_or(PORT);
    let beside = file.parent().unwrap_or(Path::new(""));
    let at = beside.join(apps.unwrap_or("apps")).join(format!("{app}.toml"));
    if at.exists() {
        report.kept.push(at.display().to_string());
        return Ok(port);
    }
    make_parent(&at)?;
    write_new(&at, &operators_file(app, secrets), report)?;
    Ok(port)
}

/// The smallest that runs.
const EDGE: &str = "\
# The edge on this machine, made by `vango-edge init`. Every key, with its default: conf/edge.toml of vango-edge.

[server]
# Where clients connect.
listen = [\"127.0.0.1:8080\"]

[admin]
# Where `vango-edge deploy` and the other commands connect, and the console in a browser.
listen = \"127.0.0.1:9901\"

[state]
# Beside this file.
dir = \"state\"

[apps]
# One file an app.
dir = \"apps\"
";

fn operators_file(app: &AppName, secrets: &[String]) -> String {
    let mut out = format!(
        "# The operator's side of {app}, made by `vango-edge init`. Every key: conf/apps/studylab.toml of vango-edge.\n\
         app = {}\n\
         # Where it answers: names without a port. Browsers and curl take *.localhost to this machine.\n\
         hosts = [\"{app}.localhost\"]\n",
        quoted(app.as_str())
    );
    if !secrets.is_empty() {
        out.push_str("# Each is a variable of the edge's own environment; or { file = \"/run/secrets/…\" }.\n");
        let all: Vec<_> =
            secrets.iter().map(|n| format!("{n} = {{ env = {} }}", quoted(n))).collect();
        out.push_str(&format!("secrets = {{ {} }}\n", all.join(", ")));
    }
    out
}

fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())
}

/// Writes a file that is not there.
fn write_new(file: &Path, text: &str, report: &mut Report) -> Result<()> {
    let named = || file.display().to_string();
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    if made.as_ref().is_err_and(|e| e.kind() == ErrorKind::AlreadyExists) {
        report.kept.push(named());
        return Ok(());
    }
    made.and_then(|mut out| out.write_all(text.as_bytes())).with_context(named)?;
    report.wrote.push(named());
    Ok(())
}

fn next(
    dir: &Path,
    config: Option<&Path>,
    (app, port, is_site): (&AppName, u16, bool),
    before: &[String],
    report: &mut Report,
) {
    let at = shown(dir);
    for command in before {
        report.next.push(match dir == Path::new(".") {
            true => command.clone(),
            false => format!("(cd {at} && {command})"),
        });
    }
    let default = Path::new(CONFIG);
    let Some(file) = config.or(default.exists().then_some(default)) else {
        report.notes.push(format!(
            "there is no {CONFIG} here: where an edge runs already, its apps folder needs {app}.toml with \
             `app = \"{app}\"` and `hosts = [\"{app}.localhost\"]`; `vango-edge init {at} -c PLACE/edge.toml` makes \
             both files, or only that one"
        ));
        report.next.push(format!("vango-edge check {at}"));
        report.next.push(format!("vango-edge deploy {at}"));
        return;
    };
    let file = shown(file);
    report.next.push(format!("vango-edge check -c {file} {at}"));
    report.next.push(format!("vango-edge run -c {file}    # in a terminal of its own; or `vango-edge reload` where it runs"));
    report.next.push(format!("vango-edge deploy {at}"));
    let wakes = if is_site { "" } else { "    # the first request wakes it" };
    report.next.push(format!("curl -i http://{app}.localhost:{port}/{wakes}"));
}

/// As a shell takes it.
fn shown(path: &Path) -> String {
    let text = PathBuf::from(path).display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./~".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn words(report: &Report) -> String {
    let mut out = String::new();
    if let Some(found) = &report.found {
        out.push_str(&format!("{}: {found}\n", report.app));
    }
    for file in &report.wrote {
        out.push_str(&format!("wrote {file}\n"));
    }
    for file in &report.kept {
        out.push_str(&format!("{file} is there already, and stays as it is\n"));
    }
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    out.push_str("\nNext:\n");
    for command in &report.next {
        out.push_str(&format!("  {command}\n"));
    }
    out
}
