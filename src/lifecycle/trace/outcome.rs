//! How a request ended, for metrics, lists and evidence.

use crate::lifecycle::reply::Problem;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet.
    Open,
    /// Answered by the app at once.
    Hot,
    /// Answered by the app after it was woken.
    Woken,
    /// Answered by the app after waiting for a place.
    Held,
    /// Answered from the artifact, without the app.
    Asset,
    /// Sent on to the same address with the cookie that opens the preview.
    Welcomed,
    /// Answered with the stored response of an earlier request with the same key.
    Replayed,
    /// A delivery of an event that was accepted before, answered 200 from its record.
    Duplicate,
    /// Answered by the edge.
    Refused(Problem),
    /// The client left first; what was sent, if anything, is in the steps.
    ClientLeft,
    /// The app's answer began and broke off: the client got a part of it and a cut connection.
    CutOff,
}

impl Outcome {
    /// Every way a request can end, for metrics.
    pub fn all() -> impl Iterator<Item = Self> {
        [
            Self::Open,
            Self::Hot,
            Self::Woken,
            Self::Held,
            Self::ClientLeft,
            Self::Asset,
            Self::Welcomed,
            Self::Replayed,
            Self::Duplicate,
            Self::CutOff,
        ]
        .into_iter()
        .chain(Problem::ALL.into_iter().map(Self::Refused))
    }

    /// Its place in [`Self::all`].
    pub fn index(self) -> usize {
        match self {
            Self::Open => 0,
            Self::Hot => 1,
            Self::Woken => 2,
            Self::Held => 3,
            Self::ClientLeft => 4,
            Self::Asset => 5,
            Self::Welcomed => 6,
            Self::Replayed => 7,
            Self::Duplicate => 8,
            Self::CutOff => 9,
            Self::Refused(p) => 10 + p as usize,
        }
    }

    /// Whether an answer with `status` says something of the artifact that gave it, and if so, whether
    /// that it failed. What the edge refused for other reasons, and a client that left, say nothing.
    pub fn evidence(self, status: Option<u16>) -> Option<bool> {
        let status = status?;
        match self {
            Self::Hot | Self::Woken | Self::Held => Some(status >= 500),
            Self::CutOff => Some(true),
            Self::Refused(
                Problem::WakeFailed
                | Problem::WakeTimeout
                | Problem::UpstreamClosed
                | Problem::UpstreamTimeout
                | Problem::OutcomeUnknown
                | Problem::ArtifactUnavailable,
            ) => Some(true),
            _ => None,
        }
    }

    /// Its name in metrics and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Hot => "hot",
            Self::Woken => "woken",
            Self::Held => "held",
            Self::Asset => "asset",
            Self::Welcomed => "welcomed",
            Self::Replayed => "replayed",
            Self::Duplicate => "duplicate",
            Self::Refused(p) => p.name(),
            Self::ClientLeft => "client-left",
            Self::CutOff => "cut-off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_place() {
        for (i, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), i, "{}", outcome.name());
        }
        assert!(Outcome::all().count() <= crate::snapshot::MAX_OUTCOMES);
    }

    #[test]
    fn an_answer_that_broke_off_is_an_error_whatever_its_status() {
        assert_eq!(Outcome::CutOff.evidence(Some(200)), Some(true));
        assert_eq!(Outcome::Refused(Problem::UpstreamClosed).evidence(Some(502)), Some(true));
        assert_eq!(Outcome::Hot.evidence(Some(200)), Some(false));
        assert_eq!(Outcome::ClientLeft.evidence(Some(200)), None);
    }
}
