//! What a person is told: a heading, a sentence, and what is going on, for each condition that passes.

use crate::lifecycle::reply::{Problem, Reply};

use super::Mode;

/// What a page says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub heading: String,
    pub text: String,
    /// What else is known, in the edge's own words; safe to show.
    pub more: Option<String>,
}

/// Heading, and what is said of a page and of a form that was sent. `{App}` begins a sentence, `{app}` does
/// not.
struct Said {
    heading: &'static str,
    page: &'static str,
    form: &'static str,
}

/// The heading of a form's page, whatever the reason.
const NOT_DELIVERED: &str = "What you sent was not delivered";

fn said(problem: Problem) -> Option<Said> {
    let (heading, page, form) = match problem {
        Problem::WakeTimeout | Problem::AppCold => (
            "{App} is starting",
            "It was asleep and takes a moment to start. This page opens by itself as soon as it is ready.",
            "{App} was asleep and is starting now. Nothing of what you sent has reached it.",
        ),
        Problem::HoldQueueFull => (
            "Many people are waiting for {app}",
            "There is no room for one more right now. This page tries again by itself.",
            "So many people are waiting for {app} that there was no room for one more. Nothing of what you \
             sent has reached it.",
        ),
        Problem::Saturated => (
            "{App} is busy",
            "It is serving as many people as it can. This page tries again by itself.",
            "{App} is serving as many people as it can. Nothing of what you sent has reached it.",
        ),
        Problem::NodeFull => (
            "There is no room for {app} right now",
            "The server runs as many apps as it can. {App} starts when there is a place, and this page opens \
             by itself.",
            "The server runs as many apps as it can, and {app} has to wait for a place. Nothing of what you \
             sent has reached it.",
        ),
        Problem::WakeFailed => (
            "{App} could not be started",
            "Your connection is fine: the app has a problem. This page goes on by itself.",
            "{App} could not be started. Nothing of what you sent has reached it.",
        ),
        Problem::Asleep => (
            "{App} is asleep",
            "Opening this address does not start it. This page opens by itself once it is up.",
            "{App} is asleep, and this does not start it. Nothing of what you sent has reached it.",
        ),
        Problem::NotForwarded => (
            "{App} cannot be reached",
            "Nothing of your request has reached it. This page tries again by itself.",
            "{App} could not be reached. Nothing of what you sent has reached it.",
        ),
        Problem::ShuttingDown => (
            "Back in a moment",
            "The server is being restarted. This page tries again by itself.",
            "The server is being restarted. Nothing of what you sent has reached {app}.",
        ),
        Problem::LedgerUnavailable => (
            "{App} cannot be reached",
            "Nothing of your request has reached it.",
            "The server cannot keep a record of it just now. Nothing of what you sent has reached {app}.",
        ),
        _ => return None,
    };
    Some(Said { heading, page, form })
}

/// What the page of `reply` says. `name` is what its operator calls the app.
pub(super) fn words(reply: &Reply, mode: Mode, name: Option<&str>) -> Words {
    let named = |text: &str| {
        text.replace("{App}", name.unwrap_or("This app"))
            .replace("{app}", name.unwrap_or("this app"))
    };
    let more = (reply.problem == Problem::WakeFailed).then(|| reply.detail.clone());
    match (said(reply.problem), mode) {
        (Some(said), Mode::Go | Mode::Wait) => {
            Words { heading: named(said.heading), text: named(said.page), more }
        }
        (Some(said), Mode::Ask) => {
            Words { heading: NOT_DELIVERED.into(), text: named(said.form), more }
        }
        // A page that was asked for may be given to the app too, and nothing was to be done.
        (_, _) if reply.problem == Problem::OutcomeUnknown => Words {
            heading: reply.problem.title().into(),
            text: "What you sent was given to the app, and the app gave no answer. Look whether it was done \
                   before you send it again: it could be done twice."
                .into(),
            more: Some(reply.detail.clone()),
        },
        _ => Words { heading: reply.problem.title().into(), text: reply.detail.clone(), more: None },
    }
}

/// What is going on, by the script's state: the states, and the line. `None` where nothing is followed.
pub(super) fn lines(problem: Problem, mode: Mode) -> &'static [(&'static str, &'static str)] {
    match (mode, problem) {
        (Mode::Still, _) => &[],
        (Mode::Go | Mode::Wait, _) => &[
            ("starting", "Starting…"),
            ("busy", "Waiting for a place…"),
            ("failed", "The next try is in {seconds} s."),
            ("asleep", "It is asleep."),
            ("lost", "No connection to the server. Trying again…"),
            ("going", "Opening…"),
            ("over", "It is still not there."),
        ],
        (Mode::Ask, Problem::Asleep) => &[
            ("starting", "It is starting…"),
            ("failed", "It did not start. The next try is in {seconds} s."),
            ("asleep", "It is asleep. Your browser keeps what you sent while this page is open."),
            ("ready", "It is up. You can send it again now."),
            ("lost", "No connection to the server. Trying again…"),
            ("going", "Sending…"),
            ("over", "You can try to send it again."),
        ],
        (Mode::Ask, _) => &[
            (
                "starting",
                "It is starting. Your browser keeps what you sent while this page is open.",
            ),
            ("busy", "One moment. Your browser keeps what you sent while this page is open."),
            ("failed", "It did not start. The next try is in {seconds} s."),
            ("asleep", "It is not running. Sending starts it; you may be asked once more."),
            ("ready", "It is up. You can send it again now."),
            ("lost", "No connection to the server. Trying again…"),
            ("going", "Sending…"),
            ("over", "You can try to send it again."),
        ],
    }
}

/// In which states the button is there.
pub(super) fn button(problem: Problem, mode: Mode) -> Option<(&'static str, &'static str)> {
    match (mode, problem) {
        (Mode::Still, _) => None,
        (Mode::Go | Mode::Wait, _) => Some(("over", "Try again")),
        (Mode::Ask, Problem::Asleep) => Some(("ready over", "Send it again")),
        (Mode::Ask, _) => Some(("ready asleep over", "Send it again")),
    }
}

/// The script's state before it has asked.
pub(super) fn begin(problem: Problem) -> &'static str {
    match problem {
        Problem::WakeFailed => "failed",
        Problem::Asleep => "asleep",
        Problem::WakeTimeout | Problem::AppCold | Problem::NodeFull => "starting",
        _ => "busy",
    }
}
