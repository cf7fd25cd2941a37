//! Which previews are over their age: nothing was deployed to them, nothing asked for them and nothing
//! was open in them for as long as their app's `preview_age`.

use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::id::DeploymentId;
use crate::snapshot::EnvView;

/// This process has to have seen nothing of a preview for so long (or its age, if that is shorter) before
/// it is removed, whatever the wall clock says: one that jumps forward, and a node that was off for weeks,
/// remove nothing at once.
const SURE: Duration = Duration::from_secs(3600);
/// Uses are written down so often at most, or ten times in an age, if that is shorter.
const WRITE_EVERY: Duration = Duration::from_secs(3600);

/// What of a preview says that it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    deployment: DeploymentId,
    served: u64,
    open: bool,
}

impl Mark {
    /// As `view` shows it now.
    pub fn of(view: &EnvView) -> Self {
        let all = || view.ready.iter().chain(&view.others);
        let open =
            view.live.waiting() > 0 || all().any(|a| a.load.in_flight() + a.load.sockets() > 0);
        Self { deployment: view.owner.deployment.clone(), served: view.live.served(), open }
    }
}

/// What this process has seen of a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    mark: Mark,
    /// Nothing came since.
    quiet_since: Mono,
    /// The last use that was seen, and is not written down.
    used: Option<Wall>,
    /// When a use was last written down.
    written: Option<Mono>,
}

impl Seen {
    /// After another look. The first look says nothing of what was before.
    pub fn after(before: Option<Self>, mark: Mark, now: Mono, wall: Wall) -> Self {
        let Some(before) = before else {
            return Self { mark, quiet_since: now, used: None, written: None };
        };
        if mark == before.mark && !mark.open {
            return before;
        }
        Self { mark, quiet_since: now, used: Some(wall), written: before.written }
    }

    /// The use that is to be written down now; it counts as written from here on.
    pub fn to_write(&mut self, age: Duration, now: Mono) -> Option<Wall> {
        let every = WRITE_EVERY.min(age / 10);
        self.used?;
        if self.written.is_some_and(|at| now.since(at) < every) {
            return None;
        }
        self.written = Some(now);
        self.used.take()
    }

    /// It could not be written down: the next look tries again.
    pub fn not_written(&mut self, used: Wall) {
        self.written = None;
        self.used = self.used.or(Some(used));
    }

    /// Whether it has been quiet for long enough here to look at what is on record.
    pub fn is_quiet(&self, age: Duration, now: Mono) -> bool {
        self.used.is_none() && now.since(self.quiet_since) >= age.min(SURE)
    }
}

/// Whether a preview that is quiet is over `age`: made, and used as far as is on record, so long ago.
pub fn is_over_age(created: Wall, used: Option<Wall>, age: Duration, now: Wall) -> bool {
    now.since(used.map_or(created, |u| u.max(created))) >= age
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(14 * 24 * 3600);
    const MINUTE: u64 = 60 * 1_000_000_000;

    fn mark(served: u64, open: bool) -> Mark {
        Mark { deployment: "dp-aaaaaaaaaaaaaaaa".parse().unwrap(), served, open }
    }
    fn at(minute: u64) -> (Mono, Wall) {
        (Mono(minute * MINUTE), Wall(minute * 60_000))
    }
    fn look(before: Option<Seen>, mark: Mark, minute: u64) -> Seen {
        let (now, wall) = at(minute);
        Seen::after(before, mark, now, wall)
    }

    #[test]
    fn what_is_used_is_never_quiet_and_its_use_is_written_once_an_hour() {
        let mut seen = look(None, mark(0, false), 1);
        assert_eq!(seen.to_write(AGE, at(1).0), None, "that it is there is no use");
        let mut written = Vec::new();
        for minute in 2..200 {
            seen = look(Some(seen), mark(minute, false), minute);
            written.extend(seen.to_write(AGE, at(minute).0));
            assert!(!seen.is_quiet(AGE, at(minute).0));
        }
        assert_eq!(written, [at(2).1, at(62).1, at(122).1, at(182).1]);
        // The last use is written too before it counts as quiet.
        let end = 199 + 59;
        for minute in 200..=end {
            seen = look(Some(seen), mark(199, false), minute);
            written.extend(seen.to_write(AGE, at(minute).0));
        }
        assert_eq!(written[4..], [at(199).1]);
        assert!(!seen.is_quiet(AGE, at(end).0));
        assert!(seen.is_quiet(AGE, at(end + 1).0));
        // Something open is use, however quiet.
        seen = look(Some(seen), mark(199, true), end + 1);
        seen = look(Some(seen), mark(199, true), end + 61);
        assert!(!seen.is_quiet(AGE, at(end + 61).0));
    }

    #[test]
    fn a_use_that_could_not_be_written_is_written_later() {
        let mut seen = look(None, mark(0, false), 1);
        seen = look(Some(seen), mark(1, false), 2);
        let used = seen.to_write(AGE, at(2).0).unwrap();
        seen.not_written(used);
        assert_eq!(seen.to_write(AGE, at(3).0), Some(used));
        assert_eq!(seen.to_write(AGE, at(4).0), None);
    }

    #[test]
    fn age_counts_from_the_last_deploy_or_use_and_a_clock_that_goes_back_removes_nothing() {
        let day = |d: u64| Wall(d * 24 * 3_600_000);
        for (created, used, now, over) in [
            (1, None, 14, false),
            (1, None, 15, true),
            (1, Some(9), 22, false),
            (1, Some(9), 23, true),
            (9, Some(1), 22, false),
            (9, Some(1), 23, true),
            (20, None, 1, false),
        ] {
            let found = is_over_age(day(created), used.map(day), AGE, day(now));
            assert_eq!(found, over, "{created} {used:?} {now}");
        }
    }

    #[test]
    fn a_process_that_has_just_begun_removes_nothing() {
        let seen = look(None, mark(0, false), 1);
        assert!(!seen.is_quiet(AGE, at(60).0));
        assert!(seen.is_quiet(AGE, at(61).0));
        assert!(seen.is_quiet(Duration::from_secs(60), at(2).0), "an age below an hour is enough");
    }
}
