//! What runs beside the process that takes requests: workers (`[[process.worker]]`) and what a schedule starts
//! (`[[cron]]`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use croner::Cron as Pattern;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::clock::Wall;
use crate::document::Table;

use super::expand::env;

/// Workers of an app, and entries of its schedule, at most.
const MOST: usize = 16;

/// Names that the log has for other processes.
const TAKEN: [&str; 5] = ["web", "edge", "exec", "release", "cron"];

/// `[[process.worker]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// As the log and `ps` have it.
    pub name: String,
    pub command: Vec<String>,
    /// Its own environment, over that of `[process]`.
    pub env: BTreeMap<String, String>,
    pub run: RunWorker,
}

/// When a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunWorker {
    /// While the process that takes requests is ready; frozen with it.
    WithWeb,
    /// Whether it sleeps or not.
    Always,
}

/// `[[cron]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronEntry {
    /// As the log and `cron` have it.
    pub name: String,
    pub schedule: Schedule,
    pub task: Task,
    /// Whether previews run it too.
    pub previews: bool,
    pub missed: Missed,
    /// How long one run may take.
    pub timeout: Duration,
}

/// What a schedule starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// A process of its own.
    Command { command: Vec<String>, env: BTreeMap<String, String> },
    /// A request to the app, which wakes for it.
    Request { method: http::Method, path: String },
}

/// What becomes of times at which the edge did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    Skip,
    /// One run for all of them.
    Once,
}

/// A cron expression of five fields, in a time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    pattern: Pattern,
    zone: TimeZone,
    text: String,
    zone_name: String,
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.zone_name) == (&other.text, &other.zone_name)
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.zone_name)
    }
}

impl Schedule {
    /// Reads an expression, and the name of a time zone of IANA's.
    ///
    /// # Errors
    /// What is wrong, with the key that is.
    pub fn parse(text: &str, zone_name: &str) -> Result<Self, (&'static str, String)> {
        let zone = TimeZoneDatabase::bundled().get(zone_name).map_err(|_| {
            let expected =
                "expected a name of IANA's time zones, such as \"Europe/Berlin\" or \"UTC\"";
            ("timezone", format!("{expected}, found {zone_name:?}"))
        })?;
        let parser = CronParser::builder();
        let parser = parser.seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let pattern = parser.parse(text).map_err(|e| {
            let expected =
                "expected five fields (minute, hour, day, month, day of the week) such as \"*/5 * * * *\"";
            ("schedule", format!("{expected}, found {text:?}: {e}"))
        })?;
        let (text, zone_name) = (text.to_owned(), zone_name.to_owned());
        Ok(Self { pattern, zone, text, zone_name })
    }

    /// The next time after `at`; none where there is none any more, or never was (30 February).
    pub fn after(&self, at: Wall) -> Option<Wall> {
        let ms = i64::try_from(at.0).ok()?;
        let from = Timestamp::from_millisecond(ms).ok()?.to_zoned(self.zone.clone());
        let next = self.pattern.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok().map(Wall)
    }
}

/// The `[[process.worker]]` tables of `[process]`.
pub(super) fn workers(process: &Table<'_>) -> Vec<Worker> {
    let runs = [("with-web", RunWorker::WithWeb), ("always", RunWorker::Always)];
    let mut names = BTreeSet::new();
    let all = process.tables("worker").into_iter().filter_map(|t| {
        let name = name(&t, &mut names);
        let command = command(&t);
        let worker = Worker {
            name: name?,
            command,
            env: env(&t),
            run: t.word("run", &runs, RunWorker::WithWeb),
        };
        t.finish();
        Some(worker)
    });
    let all: Vec<_> = all.collect();
    bounded(process, "worker", all.len());
    all
}

/// The `[[cron]]` tables of `top`.
pub(super) fn cron(top: &Table<'_>) -> Vec<CronEntry> {
    let mut names = BTreeSet::new();
    let all = top.tables("cron").into_iter().filter_map(|t| {
        let entry = entry(&t, &mut names);
        t.finish();
        entry
    });
    let all: Vec<_> = all.collect();
    bounded(top, "cron", all.len());
    all
}

fn entry(t: &Table<'_>, names: &mut BTreeSet<String>) -> Option<CronEntry> {
    let name = name(t, names);
    let zone = t.text("timezone").unwrap_or_else(|| "UTC".into());
    let schedule = t.required("schedule").and_then(|text| {
        Schedule::parse(&text, &zone).map_err(|(key, why)| t.error(key, why)).ok()
    });
    if let Some(schedule) = &schedule
        && schedule.after(Wall(0)).is_none()
    {
        t.error("schedule", format!("{schedule} never comes"));
    }
    let missed = [("skip", Missed::Skip), ("once", Missed::Once)];
    let minute = Duration::from_secs(60);
    let task = task(t);
    Some(CronEntry {
        name: name?,
        schedule: schedule?,
        task: task?,
        previews: t.boolean("previews").unwrap_or(false),
        missed: t.word("missed", &missed, Missed::Skip),
        timeout: t.duration("timeout", Duration::from_secs(1)..=24 * 60 * minute, 60 * minute),
    })
}

fn task(t: &Table<'_>) -> Option<Task> {
    if t.has("command") == t.has("path") {
        t.error_here("expected either command = [\"./task\"] or path = \"/tasks/daily\"");
        return None;
    }
    if t.has("command") {
        return Some(Task::Command { command: command(t), env: env(t) });
    }
    let path = t.text("path")?;
    let is_path = path.starts_with('/')
        && path.parse::<http::uri::PathAndQuery>().is_ok_and(|p| p.as_str() == path);
    if !is_path {
        t.error("path", format!("expected a path that begins with /, found {path:?}"));
    }
    let methods = [("POST", http::Method::POST), ("GET", http::Method::GET)];
    let wanted = t.text("method").unwrap_or_else(|| "POST".into());
    let method = methods.into_iter().find(|(name, _)| *name == wanted).map(|(_, method)| method);
    if method.is_none() {
        t.error("method", format!("expected \"POST\" or \"GET\", found {wanted:?}"));
    }
    Some(Task::Request { method: method?, path })
}

fn command(t: &Table<'_>) -> Vec<String> {
    let command = t.texts("command");
    if command.first().is_none_or(String::is_empty) {
        t.error("command", "expected a program and its arguments: command = [\"./worker\"]");
    }
    command
}

fn name(t: &Table<'_>, names: &mut BTreeSet<String>) -> Option<String> {
    let name = t.required("name")?;
    let of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(of_a_name) || name.starts_with('-') {
        let expected = "expected up to 32 of a to z, 0 to 9 and -";
        t.error("name", format!("{expected}, found {name:?}"));
    } else if TAKEN.contains(&name.as_str()) {
        t.error(
            "name",
            format!("{name:?} is what the log calls another process; take another name"),
        );
    } else if !names.insert(name.clone()) {
        t.error("name", format!("{name:?} is there twice"));
    }
    Some(name)
}

fn bounded(t: &Table<'_>, key: &'static str, n: usize) {
    if n > MOST {
        t.error(key, format!("expected at most {MOST}, found {n}"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::contract::{Contract, parse};

    fn read(more: &str) -> Result<Contract, String> {
        let text = format!("[app]\nname = \"a\"\n[process]\ncommand = [\"./a\"]\n{more}");
        parse(Path::new("vango-edge.toml"), &text).map_err(|errors| {
            errors.iter().map(|e| format!("{}: {}\n", e.key, e.message)).collect()
        })
    }

    #[test]
    fn a_worker_and_a_schedule_are_read_with_their_defaults() {
        let contract = read(
            "[[process.worker]]\nname = \"mailer\"\ncommand = [\"./mail\", \"-v\"]\nenv = { N = \"2\" }\n\
             [[process.worker]]\nname = \"queue\"\ncommand = [\"./q\"]\nrun = \"always\"\n\
             [[cron]]\nname = \"daily\"\nschedule = \"0 3 * * MON-FRI\"\npath = \"/tasks/daily?n=1\"\n\
             [[cron]]\nname = \"tidy\"\nschedule = \"*/5 * * * *\"\ncommand = [\"./tidy\"]\n\
             timezone = \"Europe/Berlin\"\nmissed = \"once\"\npreviews = true\ntimeout = \"5m\"\n",
        )
        .unwrap();
        let [mailer, queue] = &contract.process.workers[..] else { panic!("{contract:?}") };
        assert_eq!((mailer.run, queue.run), (RunWorker::WithWeb, RunWorker::Always));
        assert_eq!((mailer.command.len(), &*mailer.env["N"]), (2, "2"));
        let [daily, tidy] = &contract.cron[..] else { panic!("{contract:?}") };
        let post = Task::Request { method: http::Method::POST, path: "/tasks/daily?n=1".into() };
        assert_eq!((&daily.task, daily.missed, daily.previews), (&post, Missed::Skip, false));
        assert_eq!(daily.timeout, Duration::from_secs(3600));
        assert_eq!((tidy.missed, tidy.previews), (Missed::Once, true));
        assert_eq!(tidy.schedule.to_string(), "*/5 * * * * (Europe/Berlin)");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        for (more, wanted) in [
            (
                "[[process.worker]]\nname = \"web\"\ncommand = [\"./a\"]\n",
                "name: \"web\" is what the log",
            ),
            (
                "[[process.worker]]\nname = \"A b\"\ncommand = [\"./a\"]\n",
                "name: expected up to 32",
            ),
            ("[[process.worker]]\nname = \"w\"\n", "command: expected a program"),
            (
                "[[process.worker]]\nname = \"w\"\ncommand = [\"a\"]\nenv = { PORT = \"1\" }\n",
                "PORT: the edge sets",
            ),
            (
                "[[process.worker]]\nname = \"w\"\ncommand = [\"a\", \"--at=$PORT\"]\n",
                "process.worker: the worker \"w\": $PORT has no value here: only the process",
            ),
            (
                "[[process.worker]]\nname = \"w\"\ncommand = [\"a\"]\nenv = { AT = \"${HOST}:1\" }\n",
                "the worker \"w\": its env has AT = \"${HOST}:1\": $HOST has no value here",
            ),
            (
                "env = { AT = \"http://$HOST\" }\n[release]\ncommand = [\"a\", \"$AT\"]\n",
                "release.command: the release command: $AT has no value here",
            ),
            (
                "[release]\ncommand = [\"a\", \"$VANGO_EDGE_GENERATION\"]\n",
                "release.command: the release command: $VANGO_EDGE_GENERATION has no value",
            ),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"* * * * *\"\ncommand = [\"a\", \"$PORT\"]\n",
                "cron: the schedule \"c\": $PORT has no value here",
            ),
            ("ready = { path = 1 }\n[release]\ncommand = [\"a\", \"$PORT\"]\n", "$PORT has no"),
            ("[[cron]]\nname = \"c\"\nschedule = \"* * * * *\"\n", "expected either command"),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"* * * *\"\npath = \"/\"\n",
                "schedule: expected five fields",
            ),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"0 * * * * *\"\npath = \"/\"\n",
                "schedule: expected five fields",
            ),
            ("[[cron]]\nname = \"c\"\nschedule = \"0 0 30 2 *\"\npath = \"/\"\n", "never comes"),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"0 0 * * *\"\npath = \"/\"\ntimezone = \"Berlin\"\n",
                "timezone: expected a name of IANA's",
            ),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"0 0 * * *\"\npath = \"tasks\"\n",
                "path: expected a path",
            ),
            (
                "[[cron]]\nname = \"c\"\nschedule = \"0 0 * * *\"\npath = \"/\"\nmethod = \"PUT\"\n",
                "method: expected",
            ),
        ] {
            let said = read(more).err().unwrap_or_default();
            assert!(said.contains(wanted), "{more}\n{said}");
        }
        let twice = "[[process.worker]]\nname = \"w\"\ncommand = [\"./a\"]\n".repeat(2);
        assert!(read(&twice).unwrap_err().contains("\"w\" is there twice"));
    }

    #[test]
    fn times_are_those_of_the_zone_over_a_change_of_its_clocks() {
        let at = |text: &str| text.parse::<Wall>().unwrap();
        let next = |schedule: &str, zone: &str, from: &str| {
            Schedule::parse(schedule, zone).unwrap().after(at(from)).unwrap().to_string()
        };
        let utc = next("30 4 * * *", "UTC", "2026-03-28T12:00:00Z");
        assert_eq!(utc, "2026-03-29T04:30:00.000Z");
        let berlin = |from| next("30 4 * * *", "Europe/Berlin", from);
        assert_eq!(berlin("2026-03-28T00:00:00Z"), "2026-03-28T03:30:00.000Z");
        assert_eq!(berlin("2026-03-28T12:00:00Z"), "2026-03-29T02:30:00.000Z");
        // 02:30 is not there on the day on which clocks go forward, and twice on the day on which they go back.
        let schedule = Schedule::parse("30 2 * * *", "Europe/Berlin").unwrap();
        let between = |from: &str, to: &str| {
            let all = std::iter::successors(schedule.after(at(from)), |last| schedule.after(*last));
            all.take_while(|next| *next < at(to)).count()
        };
        assert!(between("2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z") <= 1);
        assert_eq!(between("2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z"), 1);
        assert_eq!(
            next("0 0 * JAN SUN", "UTC", "2026-11-30T00:00:00Z"),
            "2027-01-03T00:00:00.000Z"
        );
    }
}
