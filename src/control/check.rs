//! What a deployment of a directory, and its first start, would meet; found without an edge.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifact::{self, ArtifactError, CONTRACT, Given};
use crate::config::{self, App, Config, Diagnostic, SecretSource};
use crate::contract::{self, Contract, RouteClass, SessionStore, Task};
use crate::document::{Errors, Table};
use crate::id::Environment;
use crate::runner::PATH;

use super::deployments::{DeployError, app_of, schema_of};

/// Everything that is wrong with the artifact directory `dir`, under the operator's configuration where
/// that could be read; and what else is to be said about it, one a line. Secrets in the environment are not
/// looked at: the edge has another one.
///
/// # Errors
/// [`ArtifactError`] where `dir` cannot be read at all.
pub fn check(
    dir: &Path,
    config: Option<&Config>,
) -> Result<(Vec<Diagnostic>, Vec<String>), ArtifactError> {
    let file = dir.join(CONTRACT);
    let given = Given::of(dir);
    let read = given.as_ref().map(|given| given.parse(dir));
    let contract = read.as_ref().ok().and_then(|c| c.as_ref().ok());
    let (refused, noticed) = artifact::check(dir, contract)?;
    let mut all: Vec<_> = refused.into_iter().map(|(path, why)| about(path, why)).collect();
    match (&given, read) {
        (Ok(_), Ok(Err(errors))) => all.extend(errors),
        (Ok(given), Ok(Ok(contract))) => {
            let errors = Errors::new(&file, given.own());
            let document = errors.parse();
            let top = Table::top(&errors, &document);
            against_the_tree(&top, &contract, dir);
            if let Some(config) = config {
                against_the_operator(&top, &contract, config);
            }
            all.extend(errors.take());
        }
        // It is among what was refused.
        _ => {}
    }
    let taken = given.iter().flat_map(|given| given.taken.iter().map(|t| format!("taken: {t}")));
    Ok((all, taken.chain(noticed.in_words()).collect()))
}

fn about(file: PathBuf, message: String) -> Diagnostic {
    Diagnostic { file, line: 0, column: 0, key: String::new(), message }
}

fn against_the_tree(top: &Table<'_>, contract: &Contract, dir: &Path) {
    if let Some(program) = contract.process.command.first()
        && let Err(why) = program_of(contract, dir, program)
    {
        top.table("process").error("command", format!("{program} {why}"));
    }
    let workers = contract.process.workers.iter().map(|w| ("process", &w.name, &w.command));
    let tasks = contract.cron.iter().filter_map(|entry| match &entry.task {
        Task::Command { command, .. } => Some(("cron", &entry.name, command)),
        Task::Request { .. } => None,
    });
    for (table, name, command) in workers.chain(tasks) {
        if let Some(program) = command.first()
            && let Err(why) = program_of(contract, dir, program)
        {
            top.error(table, format!("command of {name}: {program} {why}"));
        }
    }
    if let Some(program) = contract.release.as_ref().and_then(|r| r.command.first())
        && let Err(why) = program_of(contract, dir, program)
    {
        top.table("release").error("command", format!("{program} {why}"));
    }
    for at in contract.process.path.iter().filter(|at| !dir.join(at).is_dir()) {
        top.table("process").error("path", format!("the artifact has no directory {at}"));
    }
    for (assets, at) in contract.assets.iter().zip(top.one_or_more("assets")) {
        if !dir.join(&assets.dir).is_dir() {
            at.error("dir", format!("the artifact has no directory {}", assets.dir));
        }
        for (key, page) in [("fallback", &assets.fallback), ("not_found", &assets.not_found)] {
            let is_file = |page: &String| dir.join(&assets.dir).join(page).is_file();
            if let Some(page) = page.as_ref().filter(|page| !is_file(page)) {
                at.error(key, format!("there is no file {page} in {}", assets.dir));
            }
        }
        if let Some(manifest) = assets.manifest.as_ref().filter(|m| !dir.join(m).is_file()) {
            at.error("manifest", format!("the artifact has no file {manifest}"));
        }
    }
    if let Err(DeployError::Schema { file, why }) = schema_of(contract, dir) {
        top.table("state").error("schema_file", format!("{file}: {why}"));
    }
}

/// As the runner finds it. One that a variable names is known at its start only.
fn program_of(contract: &Contract, dir: &Path, program: &str) -> Result<(), String> {
    if program.contains('$') {
        return Ok(());
    }
    let runs = |path: &Path| match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err("is no file"),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Err("is not executable: `chmod +x` it")
        }
        Ok(_) => Ok(()),
        Err(_) => Err("is not there"),
    };
    if program.contains('/') {
        return runs(&dir.join(program))
            .map_err(|why| format!("{why}: it is looked for in the artifact"))
            .and_then(|()| not_tied_to(dir, &dir.join(program)));
    }
    let process = &contract.process;
    let own: Vec<PathBuf> = process.path.iter().map(|at| dir.join(at)).collect();
    let path = process.env.get("PATH").map_or(PATH, String::as_str);
    let path = contract::expand(path, |name| (name == "PATH").then(|| PATH.to_owned()));
    let path = path.unwrap_or_default();
    let mut places = own.iter().map(PathBuf::as_path).chain(path.split(':').map(Path::new));
    if let Some(place) = places.find(|place| runs(&place.join(program)).is_ok()) {
        return not_tied_to(dir, &place.join(program));
    }
    let own: String = process.path.iter().map(|at| format!("{at} of the artifact, ")).collect();
    let mut why =
        format!("is not on the PATH that an app gets, on this machine at least: {own}{path}");
    if dir.join(program).is_file() {
        why.push_str(&format!("; the artifact's own is ./{program}"));
    }
    Err(why)
}

/// What a virtual environment installs begins with the Python of the directory that it was made in: from an artifact
/// it would run with the packages there, if they are there still.
fn not_tied_to(dir: &Path, program: &Path) -> Result<(), String> {
    let mut start = Vec::new();
    let read = std::fs::File::open(program).and_then(|f| f.take(512).read_to_end(&mut start));
    let line = start.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    match line.strip_prefix("#!") {
        Some(by) if read.is_ok() && Path::new(by.trim()).starts_with(&whole) => Err(format!(
            "begins with {}, which is in the directory that it was made in and not in the artifact: start it as \
             \"python\", \"-m\", \"{name}\"",
            by.trim()
        )),
        _ => Ok(()),
    }
}

fn against_the_operator(top: &Table<'_>, contract: &Contract, config: &Config) {
    let app = match app_of(config, &contract.app) {
        Ok(app) => app,
        Err(why) => return top.error("app", why.to_string()),
    };
    let environment = Environment::production(contract.app.clone());
    let enclosing = config::reload::enclosing(&config.server);
    if let Some(why) = contract::budget_error(&environment, contract.wake.budget, enclosing) {
        top.table("wake").error("budget", why);
    }
    let longest = config::reload::longest_silence(&config.limits);
    for why in contract::timeout_errors(&contract.routes, longest) {
        top.error("route", why);
    }
    for name in &contract.process.secrets {
        if let Some(why) = secret_of(app, name) {
            top.table("process").error("secrets", why);
        }
    }
    if let Some(SessionStore::Redis { secret, .. }) =
        contract.state.as_ref().and_then(|s| s.store.as_ref())
        && let Some(why) = secret_of(app, secret)
    {
        top.table("state").error("store", why);
    }
    for route in &contract.routes {
        if let RouteClass::Webhook(webhook) = &route.class
            && let Some(why) = secret_of(app, &webhook.secret)
        {
            top.error("route", format!("{}: {why}", route.path));
        }
    }
}

/// Why production would not get a secret.
fn secret_of(app: &App, name: &str) -> Option<String> {
    let Some(source) = app.secrets.get(name).and_then(|sources| sources.first()) else {
        return Some(format!(
            "the operator has no secret {name}: add it to `secrets` in conf/apps/{}.toml",
            app.name
        ));
    };
    match source {
        SecretSource::Env(_) => None,
        SecretSource::File(_) => {
            config::read_secret(source).err().map(|e| format!("secret {name}: {e}"))
        }
    }
}
