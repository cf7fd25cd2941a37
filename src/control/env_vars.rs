//! What an operator sets in the environment of an environment's processes. A change is a promotion to the very
//! artifact that serves: a process with the new values is made ready under the next epoch, then it serves. What
//! does not start with them leaves the old ones in force. Values go into no log and no error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::contract::is_reserved;
use crate::id::{Environment, OperationId};
use crate::node::{Found, Node, ReadError, as_read};
use crate::record::{Promotion, Record, Values, Variables, key};
use crate::store::Txn;

use super::decisions::Decisions;
use super::promotions::{PromoteError, Promotions};

/// Longest name, longest value, and names and values of one environment together, in bytes.
const NAME: usize = 128;
const VALUE: usize = 32 * 1024;
const ALL: usize = 256 * 1024;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EnvVarsError {
    /// A name or a value cannot be one.
    #[error("{0}")]
    Invalid(String),
    /// A preview's variables go with it, so that it has to be there.
    #[error("there is no preview {0}: `vango-edge deploy DIR --preview NAME` makes one")]
    NoPreview(Environment),
    /// The move could not be asked for.
    #[error(transparent)]
    Promote(#[from] PromoteError),
    /// What is there could not be read or changed.
    #[error("{0}")]
    Read(ReadError),
}

impl From<ReadError> for EnvVarsError {
    fn from(e: ReadError) -> Self {
        if e.is_conflict() { PromoteError::Raced.into() } else { Self::Read(e) }
    }
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvVarsChange {
    /// Everything was so already.
    None,
    /// There is nothing to start yet: the first start gets them.
    Stored,
    /// The environment moves to a process with them.
    Moves(Box<Promotion>),
}

/// Keeps variables, and sees to it that what serves has them.
pub struct EnvVars {
    node: Node,
    promotions: Arc<Promotions>,
    decisions: Arc<Decisions>,
}

impl EnvVars {
    /// Which `promotions` bring into force; each change is on record with what `decisions` have of it.
    pub fn new(node: Node, promotions: Arc<Promotions>, decisions: Arc<Decisions>) -> Arc<Self> {
        Arc::new(Self { node, promotions, decisions })
    }

    /// What is in force.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn list(
        &self,
        environment: &Environment,
    ) -> Result<BTreeMap<String, String>, ReadError> {
        Ok(self.read(environment).await?.map(|f| f.record.set.0).unwrap_or_default())
    }

    async fn read(&self, environment: &Environment) -> Result<Option<Found<Variables>>, ReadError> {
        self.node.read(&key::variables(environment)).await
    }

    /// Sets and unsets variables, all or none, at the command of `by`. Where something serves, the change is in force once the promotion
    /// that is returned is healthy.
    ///
    /// # Errors
    /// [`EnvVarsError`]; nothing was changed then.
    pub async fn change(
        &self,
        environment: &Environment,
        set: &BTreeMap<String, String>,
        unset: &BTreeSet<String>,
        by: &str,
    ) -> Result<EnvVarsChange, EnvVarsError> {
        let changed = self.change_recorded(environment, set, unset, by).await;
        self.decisions.bring().await;
        changed
    }

    async fn change_recorded(
        &self,
        environment: &Environment,
        set: &BTreeMap<String, String>,
        unset: &BTreeSet<String>,
        by: &str,
    ) -> Result<EnvVarsChange, EnvVarsError> {
        let known = self
            .node
            .config
            .load()
            .apps
            .get(environment.app())
            .is_some_and(|a| a.upstreams.is_none());
        if !known {
            return Err(PromoteError::UnknownApp(environment.app().clone()).into());
        }
        let found = self.read(environment).await?;
        let before = found.as_ref().map(|f| f.record.clone()).unwrap_or_default();
        let mut values = before.set.0.clone();
        values.retain(|name, _| !unset.contains(name));
        values.extend(set.clone());
        check(set, unset, &values).map_err(EnvVarsError::Invalid)?;
        if let Some(secret) = self.secret_among(environment, set) {
            let why =
                format!("{secret} is a secret of the app's contract: its value is the operator's");
            return Err(EnvVarsError::Invalid(why));
        }
        if values == before.set.0 {
            return Ok(EnvVarsChange::None);
        }
        let at = key::variables(environment);
        let txn = as_read(Txn::new(), &at, found.as_ref());
        let asked = |operation: &OperationId| {
            let next = before.clone().changing(operation.clone(), values.clone());
            let txn = txn.clone().put(&at, next.encode());
            let why = format!("{} ({operation})", in_words(by, set, unset));
            self.decisions.with(txn, environment, "env", &why)
        };
        if let Some(promotion) = self.promotions.configure(environment, asked).await? {
            return Ok(EnvVarsChange::Moves(Box::new(promotion)));
        }
        if !environment.is_production() {
            return Err(EnvVarsError::NoPreview(environment.clone()));
        }
        let changed = self.node.clock.wall();
        let record = Variables { set: Values(values), changed, ..Variables::default() };
        let why = in_words(by, set, unset);
        let txn = self.decisions.with(txn, environment, "env", &why);
        self.node.commit(txn.put(&at, record.encode()).synced()).await?;
        Ok(EnvVarsChange::Stored)
    }

    /// A name that the contract in force has for a secret, which would count.
    fn secret_among(
        &self,
        environment: &Environment,
        set: &BTreeMap<String, String>,
    ) -> Option<String> {
        let view = self.node.view(environment)?;
        view.contract.process.secrets.iter().find(|name| set.contains_key(*name)).cloned()
    }
}

/// Who set and unset what: names, never values.
fn in_words(by: &str, set: &BTreeMap<String, String>, unset: &BTreeSet<String>) -> String {
    const MOST: usize = 50;
    let mut words = by.to_owned();
    let (set, unset): (Vec<_>, Vec<_>) = (set.keys().collect(), unset.iter().collect());
    for (verb, names) in [("set", set), ("unset", unset)] {
        if !names.is_empty() {
            words.push_str(&format!(" {verb}"));
            names.iter().take(MOST).for_each(|name| words.push_str(&format!(" {name}")));
        }
    }
    words
}

fn check(
    set: &BTreeMap<String, String>,
    unset: &BTreeSet<String>,
    all: &BTreeMap<String, String>,
) -> Result<(), String> {
    if set.is_empty() && unset.is_empty() {
        return Err("expected a variable to set or to unset".into());
    }
    for name in set.keys().chain(unset) {
        let first = name.chars().next();
        let is_name = name.len() <= NAME
            && first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            let name: String = name.chars().take(40).collect();
            return Err(format!(
                "{name:?} is no name of a variable: expected letters, digits and _, no digit first, at most \
                 {NAME}"
            ));
        }
        if is_reserved(name) {
            return Err(format!("{name} is set by the edge itself"));
        }
    }
    if let Some(name) = set.keys().find(|name| unset.contains(*name)) {
        return Err(format!("{name} is to be set and unset at once"));
    }
    for (name, value) in set {
        if value.len() > VALUE {
            let bytes = value.len();
            return Err(format!("the value of {name} has {bytes} bytes, and at most {VALUE} fit"));
        }
        if value.contains('\0') {
            return Err(format!("the value of {name} has a NUL in it"));
        }
    }
    let bytes: usize = all.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ALL {
        return Err(format!("all of them would have {bytes} bytes, and at most {ALL} fit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn names_and_values_have_bounds_and_no_error_shows_a_value() {
        let none = BTreeSet::new();
        let checked = |set: &BTreeMap<_, _>| check(set, &none, set);
        assert_eq!(checked(&one("DATABASE_URL", "a\nb")), Ok(()));
        let long = "x".repeat(VALUE + 1);
        let name = "N".repeat(NAME + 1);
        for (name, value, why) in [
            ("", "geheim", "no name"),
            ("1A", "geheim", "no name"),
            ("A-B", "geheim", "no name"),
            (&*name, "geheim", "no name"),
            ("PORT", "geheim", "by the edge itself"),
            ("NOTIFY_SOCKET", "geheim", "by the edge itself"),
            ("VANGO_EDGE_SELF_TOKEN", "geheim", "by the edge itself"),
            ("A", "geheim\0", "NUL"),
            ("A", &*long, "32769 bytes, and at most 32768"),
        ] {
            let said = checked(&one(name, value)).unwrap_err();
            assert!(said.contains(why) && !said.contains("geheim"), "{said}");
        }
        assert!(checked(&BTreeMap::new()).is_err());
        let unset = BTreeSet::from(["A".to_owned()]);
        assert!(check(&one("A", "1"), &unset, &one("A", "1")).unwrap_err().contains("at once"));
        let many: BTreeMap<_, _> =
            (0..9).map(|n| (format!("A{n}"), "x".repeat(VALUE - 1))).collect();
        assert!(checked(&many).unwrap_err().contains("at most 262144 fit"));
    }
}
