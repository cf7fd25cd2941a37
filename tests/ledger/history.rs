//! What one key's record may do, as one object that does one thing at a time, for a checker that is not
//! ours: `todc-utils`' search for an order in which everything that was answered is true.
//!
//! An operation without an answer (the process was killed) may have happened or not. So the object's
//! state is the set of states it may be in, and an answer that none of them gives refuses the history.
//!
//! "Another is at work" is said before that other one's record is on disk, and says nothing of what will
//! be there. It is no part of the order: [`Seen`] looks itself whether another client was at work.

use std::collections::{BTreeMap, BTreeSet};

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// Who asks; each asks one thing at a time.
pub type Client = usize;

/// Where the record is. The ledger's own names, and `Gone` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Gone,
    Reserved,
    Forwarded,
    Completed,
    Unreplayable,
    Unknown,
    Released,
}

/// What is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Take it without sending.
    Reserve,
    /// Take it for sending.
    Forward,
    /// Send what this client has reserved.
    Send,
    /// The app answered this client's request.
    Complete,
    /// This client let go of what it has.
    LetGo,
    /// An operator says what became of an attempt.
    Resolve { attempt: u32, carried_out: bool },
    /// Look.
    Look,
    /// The process is dead and its store is open again.
    Crash,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is the client's: this attempt's, or 0 for a reservation.
    Held(u32),
    /// Another client has it and is at work.
    Busy,
    /// No client has it, and this is where it is.
    Found(State, u32),
    /// Done; or, of a resolution, whether it was taken.
    Done(bool),
    /// None came.
    Never,
}

/// One thing that was asked, and what came.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub by: Client,
    pub ask: Ask,
    pub answer: Answer,
}

/// A state that the record may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct World {
    state: State,
    attempt: u32,
    holder: Option<Client>,
}

impl World {
    const NEW: Self = Self { state: State::Gone, attempt: 0, holder: None };

    fn is(self, state: State, holder: Option<Client>) -> Self {
        Self { state, holder, ..self }
    }

    fn let_go(self) -> Self {
        match self.state {
            State::Reserved if self.attempt == 0 => self.is(State::Gone, None),
            State::Reserved => self.is(State::Released, None),
            State::Forwarded => self.is(State::Unknown, None),
            _ => self,
        }
    }

    /// The answer that this state gives, and the state after it.
    fn does(self, by: Client, ask: Ask) -> (Answer, Self) {
        let free = matches!(self.state, State::Gone | State::Released);
        let mine = self.holder == Some(by);
        let here = match self.holder {
            Some(_) => Answer::Busy,
            None => Answer::Found(self.state, self.attempt),
        };
        let sent = Self { attempt: self.attempt + 1, ..self.is(State::Forwarded, Some(by)) };
        match ask {
            Ask::Reserve if free => (Answer::Held(0), self.is(State::Reserved, Some(by))),
            Ask::Forward if free => (Answer::Held(sent.attempt), sent),
            Ask::Send if mine && self.state == State::Reserved => {
                (Answer::Held(sent.attempt), sent)
            }
            Ask::Complete if mine && self.state == State::Forwarded => {
                (Answer::Done(true), self.is(State::Completed, None))
            }
            Ask::LetGo if mine => (Answer::Done(true), self.let_go()),
            Ask::Resolve { attempt, carried_out }
                if self.state == State::Unknown && self.attempt == attempt =>
            {
                let next = if carried_out { State::Unreplayable } else { State::Released };
                (Answer::Done(true), self.is(next, None))
            }
            Ask::Crash => (Answer::Done(true), self.let_go()),
            Ask::Reserve | Ask::Forward | Ask::Look => (here, self),
            Ask::Send | Ask::Complete | Ask::LetGo | Ask::Resolve { .. } => {
                (Answer::Done(false), self)
            }
        }
    }
}

/// The object, for the checker.
pub struct Record;

impl Specification for Record {
    type State = BTreeSet<World>;
    type Operation = Step;

    fn init() -> Self::State {
        BTreeSet::from([World::NEW])
    }

    fn apply(step: &Step, worlds: &Self::State) -> (bool, Self::State) {
        let mut next = BTreeSet::new();
        for world in worlds {
            let (answer, after) = world.does(step.by, step.ask);
            if step.answer == Answer::Busy {
                next.insert(*world);
            } else if step.answer == Answer::Never {
                next.extend([*world, after]);
            } else if answer == step.answer {
                next.insert(after);
            }
        }
        (!next.is_empty(), next)
    }
}

/// What happened to one key, in the order in which it was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    actions: Vec<(Client, Action<Step>)>,
    /// What is asked and not answered, and whether another client was at work meanwhile.
    open: BTreeMap<Client, (Ask, bool)>,
    /// Those who are taking the record, or have it.
    at_work: BTreeSet<Client>,
    /// A client was told that another is at work, and none was.
    wrongly_busy: bool,
}

impl Seen {
    pub fn asked(&mut self, by: Client, ask: Ask) {
        let others = self.at_work.iter().any(|other| *other != by);
        assert_eq!(self.open.insert(by, (ask, others)), None, "{by} asks one thing at a time");
        if matches!(ask, Ask::Reserve | Ask::Forward | Ask::Send) {
            self.at_work.insert(by);
            for (_, (_, others)) in self.open.iter_mut().filter(|(other, _)| **other != by) {
                *others = true;
            }
        }
        self.actions.push((by, Action::Call(Step { by, ask, answer: Answer::Never })));
    }

    pub fn answered(&mut self, by: Client, answer: Answer) {
        let (ask, others) = self.open.remove(&by).expect("asked before");
        self.wrongly_busy |= answer == Answer::Busy && !others;
        // A client that holds nothing asks for nothing but to take it, to look or to resolve.
        if !matches!(answer, Answer::Held(_)) {
            self.at_work.remove(&by);
        }
        self.actions.push((by, Action::Response(Step { by, ask, answer })));
    }

    /// The process is dead: what was not answered never will be.
    pub fn crashed(&mut self) {
        while let Some(by) = self.open.keys().next().copied() {
            self.answered(by, Answer::Never);
        }
        self.at_work.clear();
        self.asked(0, Ask::Crash);
        self.answered(0, Answer::Done(true));
    }

    pub fn len(&self) -> usize {
        self.actions.len() / 2
    }

    /// The answers, in order.
    pub fn answers_mut(&mut self) -> impl Iterator<Item = &mut Step> {
        self.actions.iter_mut().filter_map(|(_, action)| match action {
            Action::Response(step) => Some(step),
            Action::Call(_) => None,
        })
    }

    /// Whether there is an order in which all of it is true.
    pub fn is_linearizable(&self) -> bool {
        assert!(self.open.is_empty(), "ended by an answer or a crash");
        !self.wrongly_busy
            && WGLChecker::<Record>::is_linearizable(History::from_actions(self.actions.clone()))
    }
}

/// `asked` and `answered` in turns.
fn seen(steps: &[(Client, Ask, Answer)]) -> Seen {
    let mut seen = Seen::default();
    for (by, ask, answer) in steps {
        seen.asked(*by, *ask);
        seen.answered(*by, *answer);
    }
    seen
}

#[test]
fn the_checker_takes_what_may_happen_and_refuses_what_may_not() {
    use Answer::{Busy, Done, Found, Held};
    use Ask::{Complete, Forward, LetGo, Look, Reserve, Resolve, Send};
    let resolve = |carried_out| Resolve { attempt: 1, carried_out };
    let fine: &[&[(Client, Ask, Answer)]] = &[
        &[(1, Forward, Held(1)), (2, Forward, Busy), (1, Complete, Done(true))],
        &[(1, Reserve, Held(0)), (1, Send, Held(1)), (1, LetGo, Done(true))],
        &[(1, Reserve, Held(0)), (1, LetGo, Done(true)), (2, Look, Found(State::Gone, 0))],
        &[
            (1, Forward, Held(1)),
            (1, LetGo, Done(true)),
            (2, Forward, Found(State::Unknown, 1)),
            (2, resolve(false), Done(true)),
            (2, Forward, Held(2)),
        ],
    ];
    for steps in fine {
        assert!(seen(steps).is_linearizable(), "{steps:?}");
    }
    let wrong: &[&[(Client, Ask, Answer)]] = &[
        // Two winners.
        &[(1, Forward, Held(1)), (2, Forward, Held(1))],
        &[(1, Forward, Held(1)), (1, LetGo, Done(true)), (2, Forward, Held(2))],
        // A completed record changes.
        &[(1, Forward, Held(1)), (1, Complete, Done(true)), (2, Look, Found(State::Unknown, 1))],
        &[(1, Forward, Held(1)), (1, Complete, Done(true)), (2, Forward, Held(2))],
        // In progress, and no client is at work.
        &[(1, Forward, Held(1)), (1, Complete, Done(true)), (2, Forward, Busy)],
        // Resolved twice.
        &[
            (1, Forward, Held(1)),
            (1, LetGo, Done(true)),
            (2, resolve(true), Done(true)),
            (2, resolve(false), Done(true)),
        ],
    ];
    for steps in wrong {
        assert!(!seen(steps).is_linearizable(), "{steps:?}");
    }
}

#[test]
fn what_was_not_answered_may_have_happened_before_the_crash_and_never_after() {
    let mut cut = Seen::default();
    cut.asked(1, Ask::Forward);
    cut.crashed();
    let after = |ask, answer| {
        let mut all = cut.clone();
        all.asked(2, ask);
        all.answered(2, answer);
        all.is_linearizable()
    };
    assert!(after(Ask::Forward, Answer::Held(1)));
    assert!(after(Ask::Forward, Answer::Found(State::Unknown, 1)));
    assert!(!after(Ask::Forward, Answer::Held(2)));
    assert!(!after(Ask::Forward, Answer::Busy));
    assert!(after(Ask::Look, Answer::Found(State::Gone, 0)));
    assert!(!after(Ask::Look, Answer::Found(State::Forwarded, 1)));
}
