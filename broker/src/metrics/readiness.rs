//! Whether clients should be sent here, condition by condition.

use super::counters::LabelInfo;
use super::groups::is;
use super::page::Page;
use super::{Family, Kind};

pub(super) const FAMILIES: &[Family] = &[Family {
    name: "kentongan_ready",
    kind: Kind::Gauge,
    doc: &["1 if a condition of `/readyz` holds, else 0. All must hold for the node to be ready."],
    label: Some(LabelInfo {
        name: "condition",
        values: &[],
        meanings: &[
            "`serving`, `arbiters`, `disk`, and in a cluster `lease`, `new clients`, `leaders` and `caught up`.",
        ],
    }),
}];

/// Appends the family.
pub fn render_readiness(text: &mut String, conditions: impl IntoIterator<Item = (&'static str, bool)>) {
    Page(text).each(&FAMILIES[0], conditions.into_iter().map(|(name, holds)| (name, is(holds))));
}
