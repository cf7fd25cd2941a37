//! The log on stderr. Its level can be changed while the process runs.

use std::sync::OnceLock;

use log::LevelFilter;

/// The variable that takes the place of the configured level, in env_logger's form.
const VARIABLE: &str = "VANGO_EDGE_LOG";

/// Whether the environment decides; told once, when the log is started.
static BY_ENVIRONMENT: OnceLock<bool> = OnceLock::new();

/// Starts the log; once a process.
pub fn start(level: LevelFilter) {
    let by_environment = std::env::var_os(VARIABLE).is_some();
    let logger = env_logger::Builder::new()
        .filter_level(if by_environment { level } else { LevelFilter::Trace })
        // Pingora logs each client that hangs up as an error; the trace has those.
        .filter_module("pingora_proxy", LevelFilter::Off)
        .filter_module("pingora_core", LevelFilter::Error)
        // So it does each HTTP/2 connection that is no such or misbehaves.
        .filter_module("pingora_core::apps", LevelFilter::Off)
        .parse_env(VARIABLE)
        .build();
    let filter = logger.filter();
    if log::set_boxed_logger(Box::new(logger)).is_err() {
        return;
    }
    let _ = BY_ENVIRONMENT.set(by_environment);
    log::set_max_level(if by_environment { filter } else { level });
}

/// Another level from now on, unless the environment decides.
pub fn set_level(level: LevelFilter) {
    if BY_ENVIRONMENT.get() == Some(&false) {
        log::set_max_level(level);
    }
}
