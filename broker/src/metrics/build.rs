//! Which program this is.

use super::counters::LabelInfo;
use super::page::Page;
use super::{Family, Kind};

pub(super) const FAMILIES: &[Family] = &[Family {
    name: "kentongan_build_info",
    kind: Kind::Gauge,
    doc: &["1."],
    label: Some(LabelInfo { name: "version", values: &[], meanings: &["The version of the program."] }),
}];

/// Appends the family.
pub(super) fn render(text: &mut String) {
    Page(text).each(&FAMILIES[0], [(env!("CARGO_PKG_VERSION"), 1.0)]);
}
