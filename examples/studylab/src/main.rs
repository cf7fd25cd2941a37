//! Study Lab: the small product that the edge's tests, demos and documentation run.
//!
//! It is an ordinary server that listens on `127.0.0.1:$PORT`. What makes it useful at an edge is
//! that it keeps an honest record: every page it rendered, every save and webhook it executed and
//! every start is counted in its own database, so that "the app saw this once" can be asked of the
//! app instead of being inferred from the edge.
//!
//! Reading order: `switches` (what the environment asks for), `database` and `store` (the product
//! database), `app` (routes), then one module a route: `dashboard`, `actions`, `live`, `assets`,
//! `debug`; `reconcile` is what the app says to the edge by itself.
//!
//! Deliberately absent: accounts, and signature checks on webhooks (the edge has verified them).

mod actions;
mod app;
mod assets;
mod dashboard;
mod database;
mod debug;
mod identity;
mod live;
mod process;
mod reconcile;
mod sessions;
mod start;
mod store;
mod switches;

use std::process::ExitCode;

use switches::Switches;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(process::STRAY) {
        process::stay_until_killed();
    }
    let switches = match Switches::from_env(|name| std::env::var(name).ok()) {
        Ok(switches) => switches,
        Err(wrong) => {
            for line in wrong {
                eprintln!("studylab: {line}");
            }
            return ExitCode::from(2);
        }
    };
    process::raise_open_files();
    match start::run(switches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("studylab: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
