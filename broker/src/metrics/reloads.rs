//! How often the settings were read again, which no arbiter does.

use super::counters::{Kind, LabelInfo};
use super::{Family, Label};

/// The family's name.
const NAME: &str = "kentongan_settings_reloads_total";

pub(super) const FAMILIES: &[Family] = &[Family {
    name: NAME,
    kind: Kind::Counter,
    doc: &["Times that the settings were read again (SIGHUP)."],
    label: Some(LabelInfo {
        name: ReloadOutcome::NAME,
        values: ReloadOutcome::VALUES,
        meanings: ReloadOutcome::MEANINGS,
    }),
}];

/// What came of reading the settings again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// They are in force, as far as they can be without a restart.
    Applied,
    /// They were wrong: everything stayed as it was.
    Refused,
}

impl Label for ReloadOutcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [&'static str] = &["applied", "refused"];
    const MEANINGS: &'static [&'static str] = &[
        "They are in force, as far as they can be without a restart.",
        "They were wrong: everything stayed as it was.",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// A counter for each outcome.
#[derive(Clone)]
pub(super) struct Reloads([metrics::Counter; ReloadOutcome::VALUES.len()]);

impl Reloads {
    /// With the recorder that is current.
    pub(super) fn register() -> Self {
        Self(std::array::from_fn(|index| {
            let counter = metrics::counter!(NAME, ReloadOutcome::NAME => ReloadOutcome::VALUES[index]);
            counter.increment(0);
            counter
        }))
    }

    pub(super) fn count(&self, outcome: ReloadOutcome) {
        self.0[outcome.index()].increment(1);
    }
}
