//! What the environment asks of this process, parsed once at its start.
//!
//! `PORT` and `STUDYLAB_DB` are for everybody; the other switches make the app slow, late or
//! broken on purpose, for tests of whatever starts and stops it.

use std::path::PathBuf;
use std::time::Duration;

/// The switches, each from the environment variable it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switches {
    /// `PORT`: where to listen on 127.0.0.1; 0 lets the kernel choose. Default 3000.
    pub port: u16,
    /// `STUDYLAB_DB`: the product database. Default `$HOME/studylab.db`, without a home
    /// `./studylab.db`: an artifact's root is read-only.
    pub db: PathBuf,
    /// `STUDYLAB_SESSION_STORE`: a Redis that keeps live sessions, as `redis://127.0.0.1:6379` or
    /// `redis+unix:///socket`. Default: the product database.
    pub session_store: Option<String>,
    /// `STUDYLAB_DEBUG=1`: serve `/debug/echo`, `/debug/slow`, `/debug/bytes`, `/debug/exit` and
    /// `/debug/executions`, and obey the header `Studylab-Fault`.
    pub debug: bool,
    /// `STUDYLAB_START_DELAY`: wait this long before opening the port.
    pub start_delay: Option<Duration>,
    /// `STUDYLAB_READY_DELAY`: open the port, but answer 503 to everything for this long.
    pub ready_delay: Option<Duration>,
    /// `STUDYLAB_FAIL_START=1`: say why and exit 3.
    pub fail_start: bool,
    /// `STUDYLAB_FAIL_FILE`: exit 3 as long as this file exists.
    pub fail_file: Option<PathBuf>,
    /// `STUDYLAB_HANG_START=1`: never open the port.
    pub hang_start: bool,
    /// `STUDYLAB_EXIT_AFTER_READY`: exit 1 this long after readiness.
    pub exit_after_ready: Option<Duration>,
    /// `STUDYLAB_NOTIFY=1`: send `READY=1` to `NOTIFY_SOCKET` (sd_notify(3)).
    pub notify: Option<String>,
    /// `STUDYLAB_IGNORE_TERM=1`: SIGTERM does nothing.
    pub ignore_term: bool,
    /// `STUDYLAB_SETSID=1`: leave a child in a session of its own, alive until it is killed.
    pub setsid: bool,
    /// `STUDYLAB_RECONCILE`: time between two questions to the edge for attempts whose outcome it does
    /// not know. Default 10 s.
    pub reconcile: Duration,
    /// `STUDYLAB_PING`: time between the live socket's own pings; a socket that is silent for
    /// twice as long is dropped. Default 30 s, as in Vango.
    pub ping: Duration,
    /// `STUDYLAB_CLOSE_CODE`: how live sockets are closed on SIGTERM. Default 1012 (service
    /// restart); a Vango app sends 1000, after which its tabs do not come back.
    pub close_code: u16,
}

impl Switches {
    /// Reads the switches through `var`. Says everything that is wrong, not only the first.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut env = Reader { var, wrong: Vec::new() };
        let home = env.text("HOME").map(|home| PathBuf::from(home).join("studylab.db"));
        let switches = Self {
            port: env.number("PORT", 3000),
            db: env.text("STUDYLAB_DB").map(PathBuf::from).or(home).unwrap_or("studylab.db".into()),
            session_store: env.text("STUDYLAB_SESSION_STORE"),
            debug: env.flag("STUDYLAB_DEBUG"),
            start_delay: env.duration("STUDYLAB_START_DELAY"),
            ready_delay: env.duration("STUDYLAB_READY_DELAY"),
            fail_start: env.flag("STUDYLAB_FAIL_START"),
            fail_file: env.text("STUDYLAB_FAIL_FILE").map(PathBuf::from),
            hang_start: env.flag("STUDYLAB_HANG_START"),
            exit_after_ready: env.duration("STUDYLAB_EXIT_AFTER_READY"),
            notify: env.notify_socket(),
            ignore_term: env.flag("STUDYLAB_IGNORE_TERM"),
            setsid: env.flag("STUDYLAB_SETSID"),
            reconcile: env.duration("STUDYLAB_RECONCILE").unwrap_or(Duration::from_secs(10)),
            ping: env.duration("STUDYLAB_PING").unwrap_or(Duration::from_secs(30)),
            close_code: env.close_code(),
        };
        if env.wrong.is_empty() { Ok(switches) } else { Err(env.wrong) }
    }
}

struct Reader<F> {
    var: F,
    wrong: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// An empty variable counts as unset.
    fn text(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.text(name).as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => {
                self.wrong.push(format!("{name}={other}: expected 1 or 0"));
                false
            }
        }
    }

    fn number(&mut self, name: &str, default: u16) -> u16 {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.wrong.push(format!("{name}={text}: expected a number from 0 to 65535"));
            default
        })
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        let parsed = parse_duration(&text);
        if parsed.is_none() {
            self.wrong
                .push(format!("{name}={text}: expected a time up to an hour, as 500ms or 2s"));
        }
        parsed
    }

    fn notify_socket(&mut self) -> Option<String> {
        if !self.flag("STUDYLAB_NOTIFY") {
            return None;
        }
        let socket = self.text("NOTIFY_SOCKET");
        if socket.is_none() {
            self.wrong.push("STUDYLAB_NOTIFY=1 needs NOTIFY_SOCKET".into());
        }
        socket
    }

    /// What an endpoint may send (RFC 6455 §7.4.2): 1000 to 1014 without the reserved ones, or
    /// 3000 to 4999.
    fn close_code(&mut self) -> u16 {
        let code = self.number("STUDYLAB_CLOSE_CODE", 1012);
        if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            self.wrong.push(format!("STUDYLAB_CLOSE_CODE={code}: not a close code"));
        }
        code
    }
}

/// `250ms`, `2s` or `1m`; more than zero and at most an hour.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        _ => return None,
    };
    (1..=3_600_000).contains(&millis).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Switches, Vec<String>> {
        Switches::from_env(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2s"), Some(Duration::from_secs(2)));
        assert_eq!(parse_duration("60m"), Some(Duration::from_secs(3600)));
        for wrong in ["", "5", "ms", "0s", "-1s", "1.5s", "61m", "1h", "99999999999999999999s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_database_follows_the_home() {
        let home = read(&[("HOME", "/h")]).map(|s| s.db);
        assert_eq!(home, Ok("/h/studylab.db".into()));
        assert_eq!(read(&[]).map(|s| s.db), Ok("studylab.db".into()));
        let named = read(&[("HOME", "/h"), ("STUDYLAB_DB", "/d/x.db")]).map(|s| s.db);
        assert_eq!(named, Ok("/d/x.db".into()));
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let wrong = read(&[
            ("PORT", "99999"),
            ("STUDYLAB_DEBUG", "yes"),
            ("STUDYLAB_START_DELAY", "soon"),
            ("STUDYLAB_NOTIFY", "1"),
            ("STUDYLAB_CLOSE_CODE", "1006"),
        ]);
        assert_eq!(wrong.unwrap_err().len(), 5);
    }
}
