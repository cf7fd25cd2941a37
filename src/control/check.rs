//! What a deployment of a directory, and its first start, would meet; found without an edge.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifact::{self, ArtifactError, CONTRACT};
use crate::config::{self, App, Config, Diagnostic, SecretSource};
use crate::contract::{self, Contract, RouteClass, SessionStore};
use crate::document::{Errors, Table};
use crate::id::Environment;
use crate::runner::PATH;

use super::deploy::{DeployError, app_of, schema_of};
use super::plan;

/// Everything that is wrong with the artifact directory `dir`, under the operator's configuration where
/// that could be read. Secrets in the environment are not looked at: the edge has another one.
///
/// # Errors
/// [`ArtifactError`] where `dir` cannot be read at all.
pub fn check(dir: &Path, config: Option<&Config>) -> Result<Vec<Diagnostic>, ArtifactError> {
    let file = dir.join(CONTRACT);
    let text = std::fs::read_to_string(&file);
    let read = text.as_ref().map(|text| contract::parse(&file, text));
    let contract = read.as_ref().ok().and_then(|c| c.as_ref().ok());
    let assets = contract.and_then(|c| c.assets.as_ref()).map(|a| a.dir.as_str());
    let refused = artifact::check(dir, assets)?;
    let mut all: Vec<_> = refused.into_iter().map(|(path, why)| about(path, why)).collect();
    match (&text, read) {
        (Ok(_), Ok(Err(errors))) => all.extend(errors),
        (Ok(text), Ok(Ok(contract))) => {
            let errors = Errors::new(&file, text);
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
    Ok(all)
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
    if let Some(assets) = &contract.assets {
        let at = top.table("assets");
        if !dir.join(&assets.dir).is_dir() {
            at.error("dir", format!("the artifact has no directory {}", assets.dir));
        }
        if let Some(manifest) = assets.manifest.as_ref().filter(|m| !dir.join(m).is_file()) {
            at.error("manifest", format!("the artifact has no file {manifest}"));
        }
    }
    if let Err(DeployError::Schema { file, why }) = schema_of(contract, dir) {
        top.table("state").error("schema_file", format!("{file}: {why}"));
    }
}

/// As the runner finds it.
fn program_of(contract: &Contract, dir: &Path, program: &str) -> Result<(), String> {
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
            .map_err(|why| format!("{why}: it is looked for in the artifact"));
    }
    let path = contract.process.env.get("PATH").map_or(PATH, String::as_str);
    if path.split(':').any(|place| runs(&Path::new(place).join(program)).is_ok()) {
        return Ok(());
    }
    let mut why = format!("is not on the PATH that an app gets, on this machine at least: {path}");
    if dir.join(program).is_file() {
        why.push_str(&format!("; the artifact's own is ./{program}"));
    }
    Err(why)
}

fn against_the_operator(top: &Table<'_>, contract: &Contract, config: &Config) {
    let app = match app_of(config, &contract.app) {
        Ok(app) => app,
        Err(why) => return top.error("app", why.to_string()),
    };
    let environment = Environment::production(contract.app.clone());
    let enclosing = config::reload::enclosing(&config.server);
    if let Some(why) = plan::budget_error(&environment, contract.wake.budget, enclosing) {
        top.table("wake").error("budget", why);
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
