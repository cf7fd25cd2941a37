//! What a configuration file that was read again changes, decided without touching anything.
//!
//! Some keys are built into the running process: its sockets, its threads, its state directory.
//! They keep their value until a restart, and the reload says so by key; all others take effect.

use std::time::Duration;

use crate::contract::{self, Contract};
use crate::id::Environment;

use super::keys::{Differences, Keys};
use super::{Config, Limits, Server};

/// What a reload does.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// What is in force afterwards: the file, less what only a restart changes.
    pub effective: Config,
    /// Keys that take effect now, dotted; `apps.NAME` for an app's file.
    pub changed: Vec<String>,
    /// Keys whose new value waits for a restart.
    pub restart: Vec<String>,
}

/// Compares what runs with what the files say now.
pub fn plan(running: &Config, file: Config) -> Reload {
    let (mut effective, mut differences) = (file, Differences::default());
    running.reload(&mut effective, &mut differences);
    Reload { effective, changed: differences.changed, restart: differences.restart }
}

/// The time that encloses a hold, with its key: what ends a request while it is held, whatever its
/// app's wake budget says. Every other timeout begins once the request is forwarded, or stands
/// still while it is held.
pub fn enclosing(server: &Server) -> (&'static str, Duration) {
    ("server.grace", server.grace)
}

/// How long an app may be silent at most where a route says so, with its key.
pub fn longest_silence(limits: &Limits) -> (&'static str, Duration) {
    ("limits.max_route_timeout", limits.max_route_timeout)
}

/// What a contract asks for and a node with this configuration cannot keep.
pub fn beyond(environment: &Environment, contract: &Contract, config: &Config) -> Vec<String> {
    let budget = contract.wake.budget;
    let budget = contract::budget_error(environment, budget, enclosing(&config.server));
    let silence = longest_silence(&config.limits);
    let timeouts = contract::timeout_errors(&contract.routes, silence);
    budget.into_iter().chain(timeouts.into_iter().map(|e| format!("{environment}: {e}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn config(edge: &str, apps: &[(&str, &str)]) -> Config {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("apps")).unwrap();
        for (name, text) in apps {
            std::fs::write(dir.path().join("apps").join(name), text).unwrap();
        }
        let file = dir.path().join("edge.toml");
        std::fs::write(&file, format!("[state]\ndir = \"/s\"\n{edge}")).unwrap();
        load(&file).unwrap()
    }

    #[test]
    fn what_is_built_in_keeps_its_value_and_is_named() {
        let running = config("[server]\nlisten = [\"127.0.0.1:0\"]\nthreads = 1\n", &[]);
        let file = config(
            "[server]\nlisten = [\"127.0.0.1:1\"]\nthreads = 2\ngrace = \"5s\"\n\
             [admin]\nlisten = \"127.0.0.1:2\"\n[runner]\nmax_processes = 3\n\
             [limits]\nmax_held = 7\n",
            &[],
        );
        let reload = plan(&running, file);
        assert_eq!(
            reload.restart,
            ["server.listen", "server.threads", "admin.listen", "runner.max_processes"]
        );
        assert_eq!(reload.changed, ["server.grace", "limits.max_held"]);
        assert_eq!(reload.effective.server.listen, running.server.listen);
        assert_eq!(reload.effective.runner, running.runner);
        assert_eq!(reload.effective.limits.max_held, 7);
        let again = plan(&reload.effective, reload.effective.clone());
        assert_eq!((again.changed.len(), again.restart.len()), (0, 0));
    }

    #[test]
    fn a_table_is_named_for_its_keys_where_they_are_not_named_themselves() {
        let running = config("", &[]);
        let file = config(
            "[affinity]\nlasts = \"2h\"\n[limits.client]\nidle = \"9s\"\nh2_streams = 7\n\
             [ledger]\nmax_records = 5\n[runner.backoff]\nfirst = \"2s\"\n",
            &[],
        );
        let reload = plan(&running, file);
        let waits = ["affinity.lasts", "limits.client.h2_streams", "ledger", "runner.backoff"];
        assert_eq!(reload.restart, waits);
        assert_eq!(reload.changed, ["limits.client"]);
        let (client, old) = (reload.effective.limits.client, running.limits.client);
        assert_eq!((client.connection.idle.as_secs(), client.h2_streams), (9, old.h2_streams));
        assert_eq!(reload.effective.ledger, running.ledger);
    }

    #[test]
    fn apps_that_come_go_and_change_are_named() {
        let app = |hosts: &str| format!("app = \"APP\"\nhosts = [{hosts}]\n");
        let named = |name: &str, hosts: &str| app(hosts).replace("APP", name);
        let running = config(
            "",
            &[
                ("a.toml", &named("a", "\"a.test\"")),
                ("b.toml", &named("b", "\"b.test\"")),
                ("d.toml", &named("d", "\"d.test\"")),
            ],
        );
        let file = config(
            "",
            &[
                ("a.toml", &named("a", "\"a.test\", \"a2.test\"")),
                ("c.toml", &named("c", "\"b.test\"")),
                ("d.toml", &named("d", "\"d.test\"")),
            ],
        );
        let reload = plan(&running, file.clone());
        assert_eq!(reload.changed, ["apps.a", "apps.b", "apps.c"]);
        assert_eq!(reload.effective.apps, file.apps);
    }
}
