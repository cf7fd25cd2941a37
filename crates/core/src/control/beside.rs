//! What runs beside allocations, and when: which workers of an environment are to run now, and whether a
//! schedule's time has come.
//!
//! A schedule is settled up to a time, which is on record: no time up to there is run again, whatever the clock
//! does. What is recorded before a run is not run again after a crash in it.

use std::time::Duration;

use crate::clock::Wall;
use crate::contract::{Missed, RunWorker, Schedule, Worker};
use crate::record::AllocationState;
use crate::snapshot::EnvView;

/// What is to become of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing of it runs.
    Nothing,
    /// It runs, under the owner's epoch and from its artifact.
    Running,
    /// It stands still with the allocation that is frozen; one that does not run yet is not started.
    Frozen,
}

/// What is to become of `worker` now. Only allocations of the owner count: one whose epoch is over, and one that
/// a promotion starts ahead, have no worker.
pub fn wanted(view: &EnvView, worker: &Worker) -> Wanted {
    if view.external {
        return Wanted::Nothing;
    }
    if worker.run == RunWorker::Always {
        return Wanted::Running;
    }
    let own = view.ready.iter().chain(&view.others);
    let own = own.filter(|a| view.has_authority(a.epoch, &a.digest));
    let states: Vec<_> = own.map(|a| a.state).collect();
    // One that drains may be taken back at any time.
    let up = |s: &AllocationState| matches!(s, AllocationState::Ready | AllocationState::Draining);
    if states.iter().any(up) {
        Wanted::Running
    } else if states.contains(&AllocationState::Frozen) {
        Wanted::Frozen
    } else {
        Wanted::Nothing
    }
}

/// How late a time may be noticed and still be one that was not missed.
const LATE: Duration = Duration::from_secs(60);

/// A clock that goes back by more than this was wrong before: what was settled by it counts no more (as in
/// Debian's cron(8)).
const WRONG: Duration = Duration::from_secs(3 * 3600);

/// What is to be done about a schedule now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its next time has not come.
    Wait,
    /// It runs, for this time.
    Run(Wall),
    /// Times have passed without a run, this one last, and none is made up for.
    Missed(Wall),
    /// The clock was wrong: it is settled up to now.
    Reset,
}

/// Decides at `now` on a schedule that is settled up to `settled`.
pub fn due(schedule: &Schedule, missed: Missed, settled: Wall, now: Wall) -> Due {
    if settled.since(now) > WRONG {
        return Due::Reset;
    }
    let Some(first) = schedule.after(settled).filter(|first| *first <= now) else {
        return Due::Wait;
    };
    // The last time that has come: at most a look's worth of minutes after the earliest that is not late.
    let late = Wall(now.0.saturating_sub(u64::try_from(LATE.as_millis()).unwrap_or(u64::MAX)));
    let timely = schedule.after(late.max(settled)).filter(|at| *at <= now);
    match (timely, missed) {
        (Some(at), _) => {
            let next = schedule.after(at).filter(|at| *at <= now);
            Due::Run(next.unwrap_or(at))
        }
        (None, Missed::Once) => Due::Run(first),
        (None, Missed::Skip) => Due::Missed(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    /// Looks every second, as the edge does, with the record of what is settled.
    struct Looking {
        clock: ManualClock,
        schedule: Schedule,
        missed: Missed,
        settled: Wall,
        ran: Vec<Wall>,
    }

    impl Looking {
        fn new(schedule: &str, missed: Missed, from: &str) -> Self {
            let clock = ManualClock::new();
            let from: Wall = from.parse().unwrap();
            clock.jump_wall(from);
            let schedule = Schedule::parse(schedule, "UTC").unwrap();
            Self { clock, schedule, missed, settled: from, ran: Vec::new() }
        }

        fn look(&mut self) -> Due {
            let now = self.clock.wall();
            let due = due(&self.schedule, self.missed, self.settled, now);
            match due {
                Due::Wait => return due,
                Due::Run(at) => self.ran.push(at),
                Due::Missed(_) | Due::Reset => {}
            }
            self.settled = now;
            due
        }

        fn pass(&mut self, time: Duration) {
            for _ in 0..time.as_secs() {
                self.clock.advance(Duration::from_secs(1));
                self.look();
            }
        }

        fn jump(&mut self, to: &str) {
            self.clock.jump_wall(to.parse().unwrap());
        }

        fn runs(&self) -> Vec<String> {
            self.ran.iter().map(|at| at.to_string()[11..16].to_owned()).collect()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn each_time_comes_once() {
        let mut looking = Looking::new("*/20 * * * *", Missed::Skip, "2026-11-30T10:00:00Z");
        looking.pass(2 * HOUR);
        assert_eq!(looking.runs(), ["10:20", "10:40", "11:00", "11:20", "11:40", "12:00"]);
        let mut each = Looking::new("* * * * *", Missed::Skip, "2026-11-30T10:00:30Z");
        each.pass(HOUR);
        assert_eq!(each.ran.len(), 60);
    }

    #[test]
    fn a_clock_that_goes_back_runs_no_time_again() {
        let mut looking = Looking::new("*/20 * * * *", Missed::Once, "2026-11-30T10:00:00Z");
        looking.pass(HOUR);
        looking.jump("2026-11-30T10:10:00Z");
        looking.pass(HOUR + HOUR / 2);
        assert_eq!(looking.runs(), ["10:20", "10:40", "11:00", "11:20", "11:40"]);
    }

    #[test]
    fn a_clock_that_was_wrong_by_years_stops_nothing() {
        let mut looking = Looking::new("0 * * * *", Missed::Once, "2031-01-01T00:30:00Z");
        looking.pass(HOUR);
        looking.jump("2026-11-30T10:30:00Z");
        assert_eq!(looking.look(), Due::Reset);
        looking.pass(HOUR);
        assert_eq!(looking.runs(), ["01:00", "11:00"]);
    }

    #[test]
    fn times_that_were_missed_are_made_up_for_once_or_not_at_all() {
        for (missed, ran) in [(Missed::Skip, &["12:00"][..]), (Missed::Once, &["10:05", "12:00"])] {
            let mut looking = Looking::new("*/5 * * * *", missed, "2026-11-30T10:00:00Z");
            // Down for almost two hours, or the clock went forward.
            looking.jump("2026-11-30T11:58:59Z");
            let due = looking.look();
            assert_eq!(matches!(due, Due::Missed(_)), missed == Missed::Skip, "{due:?}");
            assert_eq!(looking.look(), Due::Wait);
            looking.pass(HOUR / 60 * 2);
            assert_eq!(looking.runs(), ran);
        }
    }

    #[test]
    fn a_time_that_came_while_the_edge_was_started_again_is_not_missed() {
        let mut looking = Looking::new("0 * * * *", Missed::Skip, "2026-11-30T10:00:30Z");
        looking.jump("2026-11-30T11:00:40Z");
        assert!(matches!(looking.look(), Due::Run(_)));
        assert_eq!(looking.look(), Due::Wait);
    }
}
