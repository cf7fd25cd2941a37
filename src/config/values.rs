//! The values of the operator's secrets, read at the start and with each reload, so that a request
//! that needs one reads no file. Swapped whole; nothing prints them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::id::{AppName, Environment};

use super::secret::{Secret, SecretSource, read_secret};
use super::{App, Config};

type Values = BTreeMap<(AppName, bool, String), Vec<Secret>>;

/// Values by app, whether they are production's, and name.
#[derive(Default)]
pub struct SecretValues(ArcSwap<Values>);

impl std::fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretValues").field("names", &self.0.load().len()).finish()
    }
}

impl SecretValues {
    /// Reads what `config` names. A source that cannot be read is left out and logged, by name.
    pub fn read(config: &Config) -> Arc<Self> {
        let values = Self::default();
        values.read_again(config);
        Arc::new(values)
    }

    /// The same, in place of what was read before.
    pub fn read_again(&self, config: &Config) {
        let mut values = Values::new();
        for app in config.apps.values() {
            for (production, names) in [(true, &app.secrets), (false, &app.preview_secrets)] {
                for (name, sources) in names {
                    let read = read_all(app, name, sources);
                    values.insert((app.name.clone(), production, name.clone()), read);
                }
            }
        }
        self.0.store(Arc::new(values));
    }

    /// Every value under `name` that counts for `environment`, the current one first. Previews never
    /// see production's.
    pub fn of(&self, environment: &Environment, name: &str) -> Vec<Secret> {
        let production = *environment == Environment::production(environment.app().clone());
        let key = (environment.app().clone(), production, name.to_owned());
        self.0.load().get(&key).cloned().unwrap_or_default()
    }
}

fn read_all(app: &App, name: &str, sources: &[SecretSource]) -> Vec<Secret> {
    let read = sources.iter().filter_map(|source| match read_secret(source) {
        Ok(secret) => Some(secret),
        Err(e) => {
            log::warn!("{}: secret {name}: {e}; what it verifies is answered 503", app.name);
            None
        }
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_rotates_and_previews_see_their_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("apps")).unwrap();
        std::fs::write(dir.path().join("edge.toml"), "[state]\ndir = \"s\"\n").unwrap();
        let app = "app = \"a\"\nhosts = [\"a.example\"]\n\
                   secrets = { S = [{ file = \"new\" }, { file = \"old\" }, { file = \"gone\" }] }\n\
                   preview_secrets = { S = { file = \"preview\" } }\n";
        std::fs::write(dir.path().join("apps/a.toml"), app).unwrap();
        for name in ["new", "old", "preview"] {
            std::fs::write(dir.path().join("apps").join(name), format!("{name}-value\n")).unwrap();
        }
        let config = crate::config::load(&dir.path().join("edge.toml")).unwrap();
        let values = SecretValues::read(&config);
        let of = |environment: &str, name: &str| {
            let all = values.of(&environment.parse().unwrap(), name);
            all.iter().map(|s| s.expose().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("a", "S"), ["new-value", "old-value"]);
        assert_eq!(of("a/pr-1", "S"), ["preview-value"]);
        assert!(of("a", "T").is_empty() && of("b", "S").is_empty());
        std::fs::write(dir.path().join("apps/new"), "newer").unwrap();
        assert_eq!(of("a", "S")[0], "new-value");
        values.read_again(&config);
        assert_eq!(of("a", "S")[0], "newer");
        assert!(!format!("{values:?}").contains("newer"));
    }
}
