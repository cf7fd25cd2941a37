//! What an operator sets in the environment of an environment's processes, beside its artifact.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Wall;
use crate::id::OperationId;

use super::Record;

/// Names and values. Values may be secrets: their debug form has names only.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Values(pub BTreeMap<String, String>);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Values that belong to an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValuesOf {
    pub operation: OperationId,
    pub values: Values,
}

/// An environment's variables. They change with its owner's epoch, in the transaction that moves it: what does
/// not start with the new ones leaves the old ones in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Variables {
    /// What a start is given.
    pub set: Values,
    /// What takes its place once this operation moves the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ValuesOf>,
    /// What this operation replaced; kept until it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ValuesOf>,
    pub changed: Wall,
}
impl Record for Variables {
    const KIND: &'static str = "variables";
}

/// How far the operation is that changes variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The owner moves.
    Moved,
    /// The owner goes back, or never moved.
    WentBack,
    /// It is over, and what is in force stays.
    Over,
}

impl Variables {
    /// What a start for `operation` is given.
    pub fn for_start(&self, operation: &OperationId) -> &BTreeMap<String, String> {
        match &self.next {
            Some(next) if next.operation == *operation => &next.values.0,
            _ => &self.set.0,
        }
    }

    /// As they are to be once `values` are in force by `operation`.
    #[must_use]
    pub fn changing(self, operation: OperationId, values: BTreeMap<String, String>) -> Self {
        // What an earlier operation left here is over.
        let next = Some(ValuesOf { operation, values: Values(values) });
        Self { next, before: None, ..self }
    }

    /// After a turn of `operation`.
    #[must_use]
    pub fn after(mut self, operation: &OperationId, turn: Turn, now: Wall) -> Self {
        let next = self.next.take_if(|of| of.operation == *operation);
        let before = self.before.take_if(|of| of.operation == *operation);
        match (turn, next, before) {
            (Turn::Moved, Some(next), _) => {
                let values = std::mem::replace(&mut self.set, next.values);
                self.before = Some(ValuesOf { operation: next.operation, values });
            }
            (Turn::WentBack, _, Some(before)) => self.set = before.values,
            _ => {}
        }
        self.changed = now;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("A".to_owned(), value.to_owned())])
    }
    fn operation(c: char) -> OperationId {
        format!("op-{}", c.to_string().repeat(16)).parse().unwrap()
    }

    #[test]
    fn they_change_with_the_owner_and_go_back_with_it() {
        let (this, other) = (operation('a'), operation('b'));
        let old = Variables { set: Values(values("1")), ..Variables::default() };
        let asked = old.clone().changing(this.clone(), values("2"));
        assert_eq!(asked.for_start(&this), &values("2"), "what proves them");
        assert_eq!(asked.for_start(&other), &values("1"), "what serves until then");

        let moved = asked.clone().after(&this, Turn::Moved, Wall(2));
        assert_eq!(moved.for_start(&other), &values("2"));
        let back = moved.clone().after(&this, Turn::WentBack, Wall(3));
        assert_eq!(back, Variables { changed: Wall(3), ..old.clone() });
        let over = moved.after(&this, Turn::Over, Wall(3));
        assert_eq!((over.set, over.next, over.before), (Values(values("2")), None, None));

        let never = asked.clone().after(&this, Turn::WentBack, Wall(2));
        assert_eq!(never, Variables { changed: Wall(2), ..old });
        let of_another = asked.clone().after(&other, Turn::Moved, asked.changed);
        assert_eq!(of_another, asked);
    }

    #[test]
    fn values_are_not_shown() {
        let all = Variables { set: Values(values("geheim")), ..Variables::default() };
        let all = all.changing(operation('a'), values("geheim"));
        let shown = format!("{all:?}");
        assert!(shown.contains("\"A\"") && !shown.contains("geheim"), "{shown}");
    }
}
