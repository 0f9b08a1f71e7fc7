//! What the HTTP API counts, which no arbiter does.

use super::counters::{Kind, LabelInfo};
use super::{Family, Label};

/// The family's name.
const NAME: &str = "kentongan_api_requests_total";

pub(super) const FAMILIES: &[Family] = &[Family {
    name: NAME,
    kind: Kind::Counter,
    doc: &["Requests to the HTTP API."],
    label: Some(LabelInfo { name: ApiOutcome::NAME, values: ApiOutcome::VALUES, meanings: ApiOutcome::MEANINGS }),
}];

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiOutcome {
    /// It was answered with what it asked for.
    Answered,
    /// It was refused, for what it asked or for the role of its token.
    Refused,
    /// Its token was missing or wrong.
    Unauthorized,
    /// Not now.
    Unavailable,
}

impl Label for ApiOutcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [&'static str] = &["answered", "refused", "unauthorized", "unavailable"];
    const MEANINGS: &'static [&'static str] = &[
        "It was answered with what it asked for.",
        "It was refused, for what it asked or for the role of its token.",
        "Its token was missing or wrong.",
        "The node could not answer then.",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// A counter for each outcome. Cheap to clone.
#[derive(Clone)]
pub struct ApiMetrics([metrics::Counter; ApiOutcome::VALUES.len()]);

impl std::fmt::Debug for ApiMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiMetrics")
    }
}

impl ApiMetrics {
    /// With the recorder that is current.
    pub(super) fn register() -> Self {
        Self(std::array::from_fn(|index| {
            let counter = metrics::counter!(NAME, ApiOutcome::NAME => ApiOutcome::VALUES[index]);
            counter.increment(0);
            counter
        }))
    }

    /// One more request came to this end.
    pub fn count(&self, outcome: ApiOutcome) {
        self.0[outcome.index()].increment(1);
    }
}
