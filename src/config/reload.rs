//! What a configuration file that was read again changes, decided without touching anything.
//!
//! Some keys are built into the running process: its sockets, its threads, its state directory.
//! They keep their value until a restart, and the reload says so by key; all others take effect.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Config, RunnerConfig, Server};

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
    let mut restart = Vec::new();
    let mut effective = file;
    keep(&mut restart, "server.listen", &running.server.listen, &mut effective.server.listen);
    keep(&mut restart, "server.threads", &running.server.threads, &mut effective.server.threads);
    keep(&mut restart, "admin.listen", &running.admin.listen, &mut effective.admin.listen);
    keep(&mut restart, "access_log", &running.access_log, &mut effective.access_log);
    keep(&mut restart, "telemetry", &running.telemetry, &mut effective.telemetry);
    keep(&mut restart, "state.dir", &running.state, &mut effective.state);
    let lasts = &mut effective.affinity.lasts;
    keep(&mut restart, "affinity.lasts", &running.affinity.lasts, lasts);
    let memory = &mut effective.assets.memory;
    keep(&mut restart, "assets.memory", &running.assets.memory, memory);
    keep(&mut restart, "ledger", &running.ledger, &mut effective.ledger);
    keep(&mut restart, "audit", &running.audit, &mut effective.audit);
    keep_tls(&mut restart, running, &mut effective);
    keep_runner(&mut restart, running.runner, &mut effective.runner);
    Reload { changed: changed(running, &effective), effective, restart }
}

/// Keeps `running`'s value, and names the key if the file's is another one.
fn keep<T: PartialEq + Clone>(
    restart: &mut Vec<String>,
    key: &'static str,
    running: &T,
    file: &mut T,
) {
    if running != file {
        restart.push(key.to_owned());
        file.clone_from(running);
    }
}

/// The sockets stay; certificates are read again.
fn keep_tls(restart: &mut Vec<String>, running: &Config, file: &mut Config) {
    let listens = |c: &Config| c.server.tls.iter().map(|l| l.listen).collect::<Vec<_>>();
    if listens(running) != listens(file) {
        restart.push("server.tls.listen".to_owned());
        file.server.tls.clone_from(&running.server.tls);
    }
    let (old, new) = (&running.limits.client, &mut file.limits.client);
    keep(restart, "limits.client.h2_streams", &old.h2_streams, &mut new.h2_streams);
    keep(restart, "limits.client.h2_window", &old.h2_window, &mut new.h2_window);
    keep(restart, "limits.client.h2_memory", &old.h2_memory, &mut new.h2_memory);
}

fn keep_runner(restart: &mut Vec<String>, running: RunnerConfig, file: &mut RunnerConfig) {
    let starts = &mut file.parallel_starts;
    keep(restart, "runner.parallel_starts", &running.parallel_starts, starts);
    keep(restart, "runner.max_processes", &running.max_processes, &mut file.max_processes);
    keep(restart, "runner.log_bytes", &running.log_bytes, &mut file.log_bytes);
    keep(restart, "runner.backoff", &running.backoff, &mut file.backoff);
}

fn changed(running: &Config, next: &Config) -> Vec<String> {
    let (old, new) = (&running.limits, &next.limits);
    let keys = [
        ("server.grace", running.server.grace != next.server.grace),
        ("affinity.keys", running.affinity.keys != next.affinity.keys),
        ("server.unready_for", running.server.unready_for != next.server.unready_for),
        ("runner.frozen_memory", running.runner.frozen_memory != next.runner.frozen_memory),
        ("runner.on_exit", running.runner.on_exit != next.runner.on_exit),
        ("limits.max_held", old.max_held != new.max_held),
        ("limits.max_held_bytes", old.max_held_bytes != new.max_held_bytes),
        ("limits.connect_timeout", old.connect_timeout != new.connect_timeout),
        ("limits.response_timeout", old.response_timeout != new.response_timeout),
        ("limits.keepalive_requests", old.keepalive_requests != new.keepalive_requests),
        ("limits.idle_keepalive", old.idle_keepalive != new.idle_keepalive),
        ("limits.sockets", old.sockets != new.sockets),
        ("limits.socket_idle", old.socket_idle != new.socket_idle),
        ("limits.max_buffered_bytes", old.max_buffered_bytes != new.max_buffered_bytes),
        ("limits.body_timeout", old.body_timeout != new.body_timeout),
        ("server.tls", running.server.tls != next.server.tls),
        ("server.redirect_http", running.server.redirect_http != next.server.redirect_http),
        (
            "server.proxy_protocol_from",
            running.server.proxy_protocol_from != next.server.proxy_protocol_from,
        ),
        ("server.trusted_proxies", running.server.trusted_proxies != next.server.trusted_proxies),
        ("server.hsts", running.server.hsts != next.server.hsts),
        ("limits.client", old.client != new.client),
        ("admin.tokens", running.admin.tokens != next.admin.tokens),
        ("admin.hosts", running.admin.hosts != next.admin.hosts),
        ("log.level", running.log != next.log),
        ("trace.ring", running.trace != next.trace),
        ("assets.retention", running.assets.retention != next.assets.retention),
        (
            "assets.keep_deployments",
            running.assets.keep_deployments != next.assets.keep_deployments,
        ),
    ];
    let mut out: Vec<String> =
        keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).to_owned()).collect();
    let names: BTreeSet<_> = running.apps.keys().chain(next.apps.keys()).collect();
    for name in names {
        if running.apps.get(name) != next.apps.get(name) {
            out.push(format!("apps.{name}"));
        }
    }
    out
}

/// The time that encloses a hold, with its key: what ends a request while it is held, whatever its
/// app's wake budget says. Every other timeout begins once the request is forwarded, or stands
/// still while it is held.
pub fn enclosing(server: &Server) -> (&'static str, Duration) {
    ("server.grace", server.grace)
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
