//! What was said in the log, and what was not.

use super::page::Page;
use super::{Family, Kind};
use crate::log_lines;

pub(super) const FAMILIES: &[Family] = &[Family {
    name: "kentongan_log_lines_dropped_total",
    kind: Kind::Counter,
    doc: &[
        "Lines that were left out of the log of events, because standard error was not read as fast, or not at all.",
    ],
    label: None,
}];

/// Appends the family.
pub(super) fn render(text: &mut String) {
    Page(text).one(&FAMILIES[0], log_lines::dropped() as f64);
}
