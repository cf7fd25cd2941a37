//! `env`: what an operator sets in an environment's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Read as _};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::admin::{EnvChanged, EnvRequest, EnvRow};
use crate::id::Environment;

use super::client::Client;
use super::{release, show};

/// Bytes of variables that are read at most; more than the edge takes.
const MOST: u64 = 1024 * 1024;

/// What is done with variables.
#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// Set variables, all of them or none, and wait until what serves has them
    ///
    /// Names are letters, digits and _; a value has at most 32 KiB, all of an environment 256 KiB. Values in
    /// arguments can be seen by every user of this machine: without any, lines NAME=VALUE are read, but for empty
    /// ones and those that begin with #. Before an app's first deployment they are stored for its first start.
    ///
    /// Examples:
    ///   vango-edge env set studylab LOG=debug REGION=eu
    ///   vango-edge env set studylab/pr-7 < preview.env
    #[command(verbatim_doc_comment)]
    Set {
        /// app or app/environment
        environment: Environment,
        /// NAME=VALUE, any number of them
        pairs: Vec<String>,
    },
    /// Unset variables, and wait until what serves has them no longer
    ///
    /// What the contract says of a name counts again. One that is not set changes nothing.
    ///
    /// Example:
    ///   vango-edge env unset studylab LOG REGION
    #[command(verbatim_doc_comment)]
    Unset {
        /// app or app/environment
        environment: Environment,
        /// Names, any number of them
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// The names of the variables that are set
    ///
    /// With --values as lines NAME=VALUE, as `env set` reads them; that they were shown is in the audit.
    ///
    /// Example:
    ///   vango-edge env list studylab
    #[command(verbatim_doc_comment)]
    List {
        /// app or app/environment
        environment: Environment,
        /// With their values
        #[arg(long)]
        values: bool,
    },
}

/// Lists, sets or unsets variables.
///
/// # Errors
/// What was wrong with them, or why what serves goes on without them.
pub fn run(client: &Client, command: EnvCommand, json: bool) -> Result<()> {
    match command {
        EnvCommand::List { environment, values } => list(client, &environment, values, json),
        EnvCommand::Set { environment, pairs } => {
            let set = if pairs.is_empty() { from_stdin()? } else { pairs_of(&pairs)? };
            change(client, &environment, EnvRequest { set, ..EnvRequest::default() }, json)
        }
        EnvCommand::Unset { environment, names } => {
            let unset: BTreeSet<String> = names.into_iter().collect();
            change(client, &environment, EnvRequest { unset, ..EnvRequest::default() }, json)
        }
    }
}

fn list(client: &Client, environment: &Environment, values: bool, json: bool) -> Result<()> {
    let path = format!("/v1/environments/{environment}/env");
    if values {
        let all: BTreeMap<String, String> = client.get(&format!("{path}/values"))?;
        return show::either(json, &all, |all| {
            all.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
        });
    }
    let rows: Vec<EnvRow> = client.get(&path)?;
    show::either(json, &rows[..], |rows| rows.iter().map(|r| format!("{}\n", r.name)).collect())
}

fn change(
    client: &Client,
    environment: &Environment,
    request: EnvRequest,
    json: bool,
) -> Result<()> {
    let path = format!("/v1/environments/{environment}/env");
    let changed: EnvChanged = client.patch(&path, &request)?;
    if let Some(promotion) = changed.promotion {
        return release::finish(client, promotion, json);
    }
    show::either(json, &changed, |changed| match changed.effect.as_str() {
        "stored" => format!("{environment}: its first start gets them\n"),
        _ => format!("{environment}: that is so already: nothing was changed\n"),
    })
}

/// No error shows a value.
fn pairs_of(words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (n, word) in words.iter().enumerate() {
        let Some((name, value)) = word.split_once('=') else {
            bail!("number {}: expected NAME=VALUE", n + 1);
        };
        if out.insert(name.to_owned(), value.to_owned()).is_some() {
            bail!("{name} is there twice");
        }
    }
    Ok(out)
}

/// Lines NAME=VALUE; empty ones and those that begin with # are left out. A value is all that stands behind the
/// first =, quotes included.
fn from_stdin() -> Result<BTreeMap<String, String>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        bail!("expected NAME=VALUE, or lines of that form to read: vango-edge env set APP < FILE");
    }
    let mut text = String::new();
    stdin.lock().take(MOST).read_to_string(&mut text).context("what is to be set")?;
    lines(&text)
}

fn lines(text: &str) -> Result<BTreeMap<String, String>> {
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    pairs_of(&lines.map(str::to_owned).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_they_are_and_no_error_shows_a_value() {
        let read = lines("# a comment\nA=1\n\nB=x=\"y\" \n").unwrap();
        let expected = [("A", "1"), ("B", "x=\"y\" ")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(read, BTreeMap::from(expected));
        for bad in ["geheim", "A=geheim\nA=geheim"] {
            let said = lines(bad).unwrap_err().to_string();
            assert!(!said.contains("geheim"), "{said}");
        }
    }
}
