//! The Raft groups that this node keeps, read from the pipeline when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use kentongan_cluster::pipeline::{GroupCounts, GroupFigures};
use kentongan_cluster::{GroupId, Stats};

use super::counters::LabelInfo;
use super::page::{Counted, Page, ReadIfKnown};
use super::{Family, Kind};

/// Gauges by group, and how each is read; `None`: this node does not know.
const GAUGES: &[ReadIfKnown<GroupFigures>] = &[
    (gauge("kentongan_raft_term", &["The latest term that this node saw."]), |group| Some(group.term as f64)),
    (gauge("kentongan_raft_leader", &["1 if this node leads the group, else 0."]), |group| Some(is(group.leads))),
    (
        gauge("kentongan_raft_has_leader", &["1 if this node knows of a leader, or is one and ready; else 0."]),
        |group| Some(is(group.has_leader)),
    ),
    (gauge("kentongan_raft_last_index", &["Where the log ends."]), |group| Some(group.last as f64)),
    (gauge("kentongan_raft_commit_index", &["Up to where this node knows the log to be committed."]), |group| {
        Some(group.committed as f64)
    }),
    (gauge("kentongan_raft_applied_index", &["Up to where this node has applied the log."]), |group| {
        Some(group.applied as f64)
    }),
    (gauge("kentongan_raft_voters", &["Nodes that vote in the group."]), |group| Some(group.voters as f64)),
    (
        gauge("kentongan_raft_voters_heard", &["Those of them of whom the leader heard of late; only leaders say it."]),
        |group| group.voters_heard.map(|count| count as f64),
    ),
    (
        gauge(
            "kentongan_raft_replication_lag_entries",
            &["Entries that the voter which is furthest behind does not have; only leaders say it."],
        ),
        |group| group.behind.map(|entries| entries as f64),
    ),
];

/// Counters by group, and where each is.
const COUNTERS: &[Counted<GroupCounts>] = &[
    (counter("kentongan_raft_elections_won_total", &["Times that this node became the leader."]), |counts| {
        &counts.elections_won
    }),
    (
        counter("kentongan_raft_leader_changes_total", &["Times that this node saw another leader than before."]),
        |counts| &counts.leader_changes,
    ),
    (
        counter(
            "kentongan_raft_snapshots_installed_total",
            &["Snapshots of other nodes that the group went on from here."],
        ),
        |counts| &counts.snapshots,
    ),
];

const SNAPSHOTS_FAILED: Family = Family {
    name: "kentongan_raft_snapshots_failed_total",
    kind: Kind::Counter,
    doc: &["Snapshots that were wanted and not got, or came too late to be of use, of all groups."],
    label: None,
};

const COMMANDS_TOO_LONG: Family = Family {
    name: "kentongan_raft_commands_too_long_total",
    kind: Kind::Counter,
    doc: &[
        "Commands that were not proposed, of all groups, because no message to another node can hold them: a mistake of the broker.",
    ],
    label: None,
};

const GROUP: LabelInfo = LabelInfo {
    name: "group",
    values: &[],
    meanings: &["The number of a group that this node keeps; `directory` is the one that keeps the members."],
};

const fn gauge(name: &'static str, doc: &'static [&'static str]) -> Family {
    Family { name, kind: Kind::Gauge, doc, label: Some(GROUP) }
}

const fn counter(name: &'static str, doc: &'static [&'static str]) -> Family {
    Family { name, kind: Kind::Counter, doc, label: Some(GROUP) }
}

/// What [`render`] writes.
pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    let gauges = GAUGES.iter().map(|(family, _)| family);
    gauges.chain(COUNTERS.iter().map(|(family, _)| family)).chain([&SNAPSHOTS_FAILED, &COMMANDS_TOO_LONG])
}

/// Appends the families.
pub(super) fn render(text: &mut String, stats: &Stats) {
    let mut page = Page(text);
    let groups = stats.groups();
    for (family, read) in GAUGES {
        page.each(family, groups.iter().filter_map(|group| Some((label(group.group), read(group)?))));
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    for (family, counter) in COUNTERS {
        let counted = |group: &GroupFigures| Some((label(group.group), count(counter(stats.counts(group.group)?))));
        page.each(family, groups.iter().filter_map(counted));
    }
    page.one(&SNAPSHOTS_FAILED, count(&stats.snapshots_failed));
    page.one(&COMMANDS_TOO_LONG, count(&stats.commands_too_long));
}

/// A group as the value of a label.
pub(super) fn label(group: GroupId) -> String {
    if group == GroupId::DIRECTORY { String::from("directory") } else { group.to_string() }
}

pub(super) fn is(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
