//! The answers for people, and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use kentongan_cluster::{GroupId, NodeId};
use serde_json::{Value, json};

use super::ask::{Survey, Surveyed};
use super::list;
use crate::peers::status::{GroupStatus, NodeStatus, Standing};

const NODE_COLUMNS: [&str; 11] = [
    "NODE",
    "ID",
    "STANDING",
    "LEASE",
    "CONNECTIONS",
    "LEADS",
    "FOLLOWS",
    "LINKS",
    "PEERS AT",
    "CLIENTS AT",
    "INCARNATION",
];

const GROUP_COLUMNS: [&str; 7] = ["GROUP", "LEADER", "TERM", "COMMITTED", "NOT COMMITTED", "KEPT BY", "BEHIND"];

/// Nodes, links that are not up, and groups.
pub(super) fn table(survey: &Survey) -> String {
    let mut text = String::new();
    let clusters: BTreeSet<&str> = survey.answers().map(|(_, status)| status.cluster.as_str()).collect();
    for cluster in clusters {
        let _ = match cluster {
            "" => writeln!(text, "not in a cluster yet"),
            cluster => writeln!(text, "cluster {}", plain(cluster)),
        };
    }
    push_feature_level(&mut text, survey);
    push_lost_majorities(&mut text, survey);
    push_full_disks(&mut text, survey);
    text.push('\n');
    let rows: Vec<Vec<String>> = survey.nodes.iter().map(|node| node_row(survey, node)).collect();
    push_table(&mut text, &NODE_COLUMNS, &rows);
    push_silent(&mut text, survey);
    push_broken_links(&mut text, survey);
    let groups = survey.groups();
    if !groups.is_empty() {
        text.push('\n');
        let rows: Vec<Vec<String>> = groups.iter().map(|(group, seen)| group_row(survey, *group, seen)).collect();
        push_table(&mut text, &GROUP_COLUMNS, &rows);
    }
    text
}

impl Survey {
    /// Those that answered.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&Surveyed, &NodeStatus)> {
        self.nodes.iter().filter_map(|node| Some((node, node.answer.as_ref().ok()?)))
    }

    pub(super) fn name_of(&self, node: u64) -> String {
        let known = self.nodes.iter().find(|known| known.member.node == node);
        known.map_or_else(|| NodeId(node).to_string(), |known| plain(&known.member.name))
    }

    /// Those of them that did not answer, in their order.
    fn silent_of(&self, nodes: &[u64]) -> Vec<u64> {
        let answers = |node: &u64| self.answers().any(|(known, _)| known.member.node == *node);
        nodes.iter().copied().filter(|node| !answers(node)).collect()
    }

    /// Each group, with what each node says of it that keeps it. Nodes that keep none of it know that there is such a group.
    pub(super) fn groups(&self) -> BTreeMap<u32, Vec<(u64, &GroupStatus)>> {
        let mut groups: BTreeMap<u32, Vec<(u64, &GroupStatus)>> = BTreeMap::new();
        for (node, status) in self.answers() {
            for group in &status.groups {
                groups.entry(group.group).or_default().push((node.member.node, group));
            }
            for route in &status.routes {
                groups.entry(route.group).or_default();
            }
        }
        groups
    }

    /// The most that anybody knows to be committed of each group that somebody keeps.
    pub(super) fn committed(&self) -> BTreeMap<u32, u64> {
        let seen = self.groups().into_iter();
        seen.filter_map(|(group, seen)| Some((group, seen.iter().map(|(_, status)| status.committed).max()?))).collect()
    }

    /// Whether a node that says this of a group has not all that is due of it: what was committed when the nodes were asked
    /// before, or else what is now.
    pub(super) fn is_behind(&self, status: &GroupStatus, committed: u64) -> bool {
        let due = self.due.as_ref().and_then(|due| due.get(&status.group)).map_or(committed, |&due| due.min(committed));
        status.applied < due || status.committed < due
    }

    pub(super) fn has_anybody_behind(&self) -> bool {
        let committed = self.committed();
        let committed = |status: &GroupStatus| committed.get(&status.group).copied().unwrap_or(0);
        let mut groups = self.answers().flat_map(|(_, status)| &status.groups);
        groups.any(|status| self.is_behind(status, committed(status)))
    }
}

/// What the cluster uses, and who keeps it from using more.
fn push_feature_level(text: &mut String, survey: &Survey) {
    let used = survey.answers().map(|(_, status)| status.feature_level).max().unwrap_or(0);
    if used == 0 {
        return;
    }
    let members = survey.answers().flat_map(|(_, status)| &status.members);
    let known: BTreeMap<_, _> =
        members.map(|member| (member.node, (member.name.as_str(), member.feature_level_max))).collect();
    let most = known.values().map(|&(_, max)| max).max().unwrap_or(used);
    let _ = write!(text, "feature level {used}");
    if most > used {
        let behind = known.values().filter(|&&(_, max)| max < most).map(|&(name, _)| plain(name));
        let behind = behind.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "; {most} once all know it, which these did not when they registered last: {behind}");
    }
    text.push('\n');
}

/// What of a group's voters do not answer keeps it from committing anything, if they are half of them or more.
fn push_lost_majorities(text: &mut String, survey: &Survey) {
    let lost: Vec<(Vec<u64>, usize)> = survey
        .groups()
        .values()
        .filter_map(|seen| {
            let voters = voters(seen);
            let silent = survey.silent_of(voters);
            let missing = (voters.len() / 2 + 1).saturating_sub(voters.len() - silent.len());
            (missing > 0 && !voters.is_empty()).then_some((silent, missing))
        })
        .collect();
    if lost.is_empty() {
        return;
    }
    let nodes: BTreeSet<u64> = lost.iter().flat_map(|(silent, _)| silent).copied().collect();
    let is_any_enough = lost.iter().all(|(silent, missing)| *missing == 1 && silent.len() == nodes.len());
    let mut names: Vec<String> = nodes.iter().map(|&node| survey.name_of(node)).collect();
    names.sort_unstable();
    let which = names.join(if is_any_enough { " or " } else { ", " });
    let (count, have) = (lost.len(), if lost.len() == 1 { "group has" } else { "groups have" });
    let _ = writeln!(text, "{count} {have} no majority that answers: start {which}");
}

fn push_full_disks(text: &mut String, survey: &Survey) {
    for (node, _) in survey.answers().filter(|(_, status)| status.disk_full) {
        let name = plain(&node.member.name);
        let _ = writeln!(
            text,
            "the disk of {name} is full (storage.free_bytes_reserve): it accepts nothing new that is to be kept"
        );
    }
}

fn node_row(survey: &Survey, node: &Surveyed) -> Vec<String> {
    let member = &node.member;
    let mut row = vec![plain(&member.name), NodeId(member.node).to_string()];
    match &node.answer {
        Err(_) => row.extend(["NO ANSWER", "", "", "", "", ""].map(String::from)),
        Ok(status) => {
            let standing = Standing::try_from(status.standing).unwrap_or(Standing::Unregistered);
            let leads = status.groups.iter().filter(|group| group.leads).count();
            let up = status.links.iter().filter(|link| link.up).count();
            row.extend([
                list::state(list::known_best(survey, member), Some(status)).to_owned(),
                lease(standing, status.lease_ms_left),
                status.connections.to_string(),
                leads.to_string(),
                (status.groups.len() - leads).to_string(),
                format!("{up}/{}", status.links.len()),
            ]);
        }
    }
    row.extend([plain(&member.peer_address), plain(&member.client_address)]);
    let incarnation = node.answer.as_ref().map_or(member.incarnation, |status| status.incarnation);
    row.push(if incarnation == 0 { "none".to_owned() } else { incarnation.to_string() });
    row
}

pub(super) fn lease(standing: Standing, ms_left: Option<u64>) -> String {
    match (standing, ms_left) {
        (Standing::Serving, None) => "no end".to_owned(),
        (_, None) => "none".to_owned(),
        (_, Some(ms)) => format!("{}.{:03} s", ms / 1000, ms % 1000),
    }
}

fn push_silent(text: &mut String, survey: &Survey) {
    let silent: Vec<_> = survey.nodes.iter().filter_map(|node| Some((node, node.answer.as_ref().err()?))).collect();
    if !silent.is_empty() {
        text.push_str("\nNo answer from\n");
    }
    for (node, error) in silent {
        let _ = writeln!(text, "  {}: {}", plain(&node.member.name), plain(error));
    }
}

fn push_broken_links(text: &mut String, survey: &Survey) {
    let mut is_first = true;
    for (node, status) in survey.answers() {
        for link in status.links.iter().filter(|link| !link.up) {
            if std::mem::take(&mut is_first) {
                text.push_str("\nLinks that are not up\n");
            }
            let why = if link.last_error.is_empty() { "not all of them are there yet" } else { &link.last_error };
            let (from, to) = (plain(&node.member.name), survey.name_of(link.peer));
            let _ = writeln!(text, "  {from} with {to}: {}", plain(why));
        }
    }
}

/// Who votes in a group: as its leader has it, or else whoever answered and has the newest term.
fn voters<'a>(seen: &[(u64, &'a GroupStatus)]) -> &'a [u64] {
    let newest = seen.iter().max_by_key(|(_, status)| (status.term, status.leads));
    newest.map_or(&[], |(_, status)| &status.voters)
}

/// What the newest term says of a group, and how far those who are behind are from the most that anybody knows to be committed.
fn group_row(survey: &Survey, group: u32, seen: &[(u64, &GroupStatus)]) -> Vec<String> {
    let term = seen.iter().map(|(_, status)| status.term).max().unwrap_or(0);
    let committed = seen.iter().map(|(_, status)| status.committed).max().unwrap_or(0);
    let newest = || seen.iter().filter(|(_, status)| status.term == term);
    // Its own word first: the others may not have heard of it.
    let leading = newest().find(|(_, status)| status.leads);
    let heard_of = || newest().find(|(_, status)| status.leader != 0).map(|(_, status)| status.leader);
    let leader = leading.map(|(node, _)| *node).or_else(heard_of);
    let answering = seen.iter().map(|(node, _)| survey.name_of(*node));
    // Last, so that only a row that ends in a name is one of a group that all keep.
    let silent = survey.silent_of(voters(seen)).into_iter().map(|node| format!("{} (no answer)", survey.name_of(node)));
    let kept_by: Vec<String> = answering.chain(silent).collect();
    let waiting = leading.map(|(_, status)| status.last.saturating_sub(committed));
    let behind: Vec<String> = seen
        .iter()
        .filter(|(_, status)| survey.is_behind(status, committed))
        .map(|(node, status)| {
            let (commits, applies) = (committed - status.committed, committed.saturating_sub(status.applied));
            format!("{} (commits {commits}, applies {applies})", survey.name_of(*node))
        })
        .collect();
    vec![
        if group == u32::from(GroupId::DIRECTORY.0) { "directory".to_owned() } else { group.to_string() },
        leader.map_or_else(|| "none known".to_owned(), |leader| survey.name_of(leader)),
        term.to_string(),
        committed.to_string(),
        waiting.map_or_else(|| "unknown".to_owned(), |waiting| waiting.to_string()),
        if kept_by.is_empty() { "none that answers".to_owned() } else { kept_by.join(", ") },
        if behind.is_empty() { "none".to_owned() } else { behind.join(", ") },
    ]
}

/// A table by itself.
pub(in crate::cli) fn table_of(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    push_table(&mut text, columns, rows);
    text
}

/// Columns as wide as what stands in them, two blanks between.
pub(super) fn push_table(text: &mut String, columns: &[&str], rows: &[Vec<String>]) {
    let heading: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let lines = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in lines() {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// What came over the network and must not move the cursor of a terminal.
pub(in crate::cli) fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Everything that was said. Node ids are texts, since a JSON number cannot hold them in every language.
pub(super) fn json(survey: &Survey) -> String {
    let nodes: Vec<Value> = survey.nodes.iter().map(node_json).collect();
    format!("{:#}\n", json!({ "nodes": nodes }))
}

fn node_json(node: &Surveyed) -> Value {
    let member = &node.member;
    let mut value = json!({
        "name": member.name,
        "node": id(member.node),
        "peer_address": member.peer_address,
        "client_address": member.client_address,
    });
    let more = match &node.answer {
        Err(error) => json!({ "error": error }),
        Ok(status) => json!({ "status": status_json(status) }),
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn status_json(status: &NodeStatus) -> Value {
    let members = status.members.iter().map(|member| {
        json!({
            "name": member.name,
            "node": id(member.node),
            "peer_address": member.peer_address,
            "client_address": member.client_address,
            "incarnation": member.incarnation,
            "zone": Some(&member.zone).filter(|zone| !zone.is_empty()),
            "leaves": member.leaves,
            "feature_levels": [member.feature_level_min, member.feature_level_max],
            "drains": member.drains,
            "stops": member.stops,
            "advertised": member.is_advertised,
        })
    });
    let groups = status.groups.iter().map(|group| {
        json!({
            "group": group.group,
            "leads": group.leads,
            "leader": (group.leader != 0).then(|| id(group.leader)),
            "term": group.term,
            "committed": group.committed,
            "applied": group.applied,
            "last": group.last,
            "voters": group.voters.iter().copied().map(id).collect::<Vec<_>>(),
            "learners": group.learners.iter().copied().map(id).collect::<Vec<_>>(),
        })
    });
    let routes = status.routes.iter().map(|route| {
        json!({ "group": route.group, "leader": (route.leader != 0).then(|| id(route.leader)), "term": route.term,
            "backlog": route.backlog })
    });
    let links = status.links.iter().map(|link| {
        let last_error = Some(&link.last_error).filter(|error| !error.is_empty());
        json!({ "peer": id(link.peer), "up": link.up, "last_error": last_error, "backlog": link.backlog })
    });
    let chosen = status.chosen.iter().map(|chosen| json!({ "group": chosen.group, "node": id(chosen.node) }));
    json!({
        "name": status.name,
        "node": id(status.node),
        "version": status.version,
        "cluster": Some(&status.cluster).filter(|cluster| !cluster.is_empty()),
        "incarnation": status.incarnation,
        "feature_level": status.feature_level,
        "feature_levels": [status.feature_level_min, status.feature_level_max],
        "standing": Standing::try_from(status.standing).unwrap_or(Standing::Unregistered).name(),
        "lease_ms_left": status.lease_ms_left,
        "connections": status.connections,
        "disk_full": status.disk_full,
        "members": members.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
        "chosen": chosen.collect::<Vec<_>>(),
    })
}

pub(super) fn id(node: u64) -> String {
    NodeId(node).to_string()
}
