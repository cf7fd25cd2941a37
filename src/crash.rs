//! Named points at which a test has the process killed, as `kill -9` does it.
//!
//! A test that kills after a random time rarely meets the few microseconds between two transactions. At a
//! point it meets them each time: `VANGO_EDGE_TEST_CRASH_AT` names a file, and the point that is written
//! in it ends the process with SIGKILL on the spot; nothing is unwound, flushed or told.
//!
//! Only in builds with debug assertions. A cargo feature would be a second shape of the whole build, and
//! a test run that forgot it would have no points and find nothing; a release has neither the points nor
//! the variable. No crate for it: those keep a registry for the whole process and do not kill.
//!
//! Deliberately absent: pauses, errors and panics at a point.

/// Just before what makes `name` of `what` durable.
pub fn before(what: &str, name: &str) {
    at(what, "before", name);
}

/// Just after `name` of `what` was made durable, and before anything is done about it.
pub fn after(what: &str, name: &str) {
    at(what, "after", name);
}

#[cfg(not(debug_assertions))]
fn at(_: &str, _: &str, _: &str) {}

/// The file has `what when name`, and perhaps how often the point is passed first: `collect after blob 3`.
#[cfg(debug_assertions)]
fn at(what: &str, when: &str, name: &str) {
    let Some(file) = std::env::var_os("VANGO_EDGE_TEST_CRASH_AT") else { return };
    let Ok(wanted) = std::fs::read_to_string(&file) else { return };
    let words: Vec<&str> = wanted.split_whitespace().collect();
    if words.get(..3) != Some(&[what, when, name][..]) {
        return;
    }
    match words.get(3).and_then(|n| n.parse::<u32>().ok()) {
        Some(left) if left > 0 => {
            let _ = std::fs::write(&file, format!("{what} {when} {name} {}", left - 1));
        }
        _ => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
}
