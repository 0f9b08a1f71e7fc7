//! All that is known of the members, and of the groups, as tables and for programs.

use std::collections::BTreeMap;

use kentongan_cluster::{GroupId, NodeId};
use serde_json::{Value, json};

use super::act::Left;
use super::ask::{Survey, Surveyed};
use super::show::{self, id, plain, table_of};
use crate::peers::status::{GroupStatus, MemberStatus, NodeStatus, Standing};

const MEMBER_COLUMNS: [&str; 12] = [
    "NODE",
    "STATE",
    "ZONE",
    "LEASE",
    "CONNECTIONS",
    "LEADS",
    "VOTES",
    "FOLLOWS",
    "BACKLOG",
    "CLIENTS AT",
    "VERSION",
    "ID",
];

const GROUP_COLUMNS: [&str; 10] =
    ["GROUP", "LEADER", "CHOSEN", "TERM", "VOTERS", "LEARNERS", "COMMITTED", "NOT COMMITTED", "BEHIND", "BACKLOG"];

/// What a member does, in a word or two.
pub(super) fn state(member: &MemberStatus, answer: Option<&NodeStatus>) -> &'static str {
    let Some(status) = answer else {
        return if member.incarnation == 0 { "dead" } else { "no answer" };
    };
    let standing = Standing::try_from(status.standing).unwrap_or(Standing::Unregistered);
    match standing {
        Standing::Serving if member.leaves => "leaving",
        Standing::Serving if member.stops => "stopping",
        Standing::Serving if member.drains && Left::of(status).is_nothing() => "drained",
        Standing::Serving if member.drains => "draining",
        standing => standing.name(),
    }
}

/// How many groups a node leads, votes in and follows.
fn seats(node: u64, status: &NodeStatus) -> (usize, usize, usize) {
    let count = |is: &dyn Fn(&GroupStatus) -> bool| status.groups.iter().filter(|group| is(group)).count();
    (
        count(&|group| group.leads),
        count(&|group| group.voters.contains(&node)),
        count(&|group| group.learners.contains(&node)),
    )
}

/// What a node's lanes hold without an answer, for groups and for the clients of other nodes.
fn backlog(status: &NodeStatus) -> u64 {
    let routes = status.routes.iter().map(|route| route.backlog);
    routes.chain(status.links.iter().map(|link| link.backlog)).sum()
}

/// As the newest directory of those that answered has it: the one that was asked first may be behind.
pub(super) fn known_best<'a>(survey: &'a Survey, member: &'a MemberStatus) -> &'a MemberStatus {
    let said = survey.answers().flat_map(|(_, status)| &status.members).filter(|known| known.node == member.node);
    let own = survey.answers().find(|(node, _)| node.member.node == member.node);
    let own = own.and_then(|(_, status)| status.members.iter().find(|known| known.node == member.node));
    own.or_else(|| said.max_by_key(|known| known.incarnation)).unwrap_or(member)
}

/// One line a member.
pub(super) fn members_table(survey: &Survey) -> String {
    let rows: Vec<Vec<String>> = survey.nodes.iter().map(|node| member_row(survey, node)).collect();
    table_of(&MEMBER_COLUMNS, &rows)
}

fn member_row(survey: &Survey, node: &Surveyed) -> Vec<String> {
    let (answer, member) = (node.answer.as_ref().ok(), known_best(survey, &node.member));
    let zone = if member.zone.is_empty() { "none".to_owned() } else { plain(&member.zone) };
    let mut row = vec![plain(&member.name), state(member, answer).to_owned(), zone];
    match answer {
        None => row.extend(["", "", "", "", "", ""].map(String::from)),
        Some(status) => {
            let standing = Standing::try_from(status.standing).unwrap_or(Standing::Unregistered);
            let (leads, votes, follows) = seats(member.node, status);
            row.push(show::lease(standing, status.lease_ms_left));
            let numbers = [status.connections, leads as u64, votes as u64, follows as u64, backlog(status)];
            row.extend(numbers.map(|number| number.to_string()));
        }
    }
    let advertised = if member.is_advertised { " (advertised)" } else { "" };
    row.push(plain(&member.client_address) + advertised);
    row.push(answer.map_or_else(String::new, |status| plain(&status.version)));
    row.push(NodeId(member.node).to_string());
    row
}

/// The same for programs.
pub(super) fn members_json(survey: &Survey) -> String {
    let member = |node: &Surveyed| {
        let (answer, member) = (node.answer.as_ref().ok(), known_best(survey, &node.member));
        let seats = answer.map(|status| seats(member.node, status));
        json!({
            "name": member.name,
            "node": id(member.node),
            "state": state(member, answer),
            "zone": Some(&member.zone).filter(|zone| !zone.is_empty()),
            "incarnation": member.incarnation,
            "leaves": member.leaves,
            "drains": member.drains,
            "stops": member.stops,
            "peer_address": member.peer_address,
            "client_address": member.client_address,
            "advertised": member.is_advertised,
            "lease_ms_left": answer.and_then(|status| status.lease_ms_left),
            "connections": answer.map(|status| status.connections),
            "leads": seats.map(|(leads, _, _)| leads),
            "votes": seats.map(|(_, votes, _)| votes),
            "follows": seats.map(|(_, _, follows)| follows),
            "backlog": answer.map(backlog),
            "version": answer.map(|status| &status.version),
            "error": node.answer.as_ref().err(),
        })
    };
    let members: Vec<Value> = survey.nodes.iter().map(member).collect();
    format!("{:#}\n", json!({ "members": members }))
}

/// A group by what all that answered say of it.
struct Group<'a> {
    number: u32,
    term: u64,
    /// By its own word, or else as others have heard.
    leader: Option<u64>,
    /// As the leader has it, or else whoever answered.
    voters: &'a [u64],
    learners: &'a [u64],
    committed: u64,
    /// Entries that the leader has and that are not committed, if it answered.
    waiting: Option<u64>,
    /// Who is behind: node, and how many entries of that it has not committed, and not applied.
    behind: Vec<(u64, u64, u64)>,
    /// What the lanes of all nodes hold for it.
    backlog: u64,
    chosen: Option<u64>,
}

fn groups<'a>(survey: &'a Survey) -> Vec<Group<'a>> {
    let mut backlogs: BTreeMap<u32, u64> = BTreeMap::new();
    let mut chosen = BTreeMap::new();
    for (_, status) in survey.answers() {
        status.routes.iter().for_each(|route| *backlogs.entry(route.group).or_default() += route.backlog);
        chosen.extend(status.chosen.iter().map(|chosen| (chosen.group, chosen.node)));
    }
    let group = |(number, seen): (u32, Vec<(u64, &'a GroupStatus)>)| {
        let term = seen.iter().map(|(_, status)| status.term).max().unwrap_or(0);
        let committed = seen.iter().map(|(_, status)| status.committed).max().unwrap_or(0);
        let newest = || seen.iter().filter(|(_, status)| status.term == term);
        let leading = newest().find(|(_, status)| status.leads);
        let heard_of = || newest().find(|(_, status)| status.leader != 0).map(|(_, status)| status.leader);
        let told = leading.or_else(|| newest().next()).map(|(_, status)| *status);
        let behind = seen.iter().filter(|(_, status)| survey.is_behind(status, committed));
        Group {
            number,
            term,
            leader: leading.map(|(node, _)| *node).or_else(heard_of),
            voters: told.map_or(&[], |status| &status.voters),
            learners: told.map_or(&[], |status| &status.learners),
            committed,
            waiting: leading.map(|(_, status)| status.last.saturating_sub(committed)),
            behind: behind
                .map(|(node, status)| {
                    (*node, committed.saturating_sub(status.committed), committed.saturating_sub(status.applied))
                })
                .collect(),
            backlog: backlogs.get(&number).copied().unwrap_or(0),
            chosen: chosen.get(&number).copied(),
        }
    };
    survey.groups().into_iter().map(group).collect()
}

/// One line a group.
pub(super) fn groups_table(survey: &Survey) -> String {
    let names = |nodes: &[u64]| match nodes {
        [] => "none".to_owned(),
        nodes => {
            let mut names: Vec<_> = nodes.iter().map(|&node| survey.name_of(node)).collect();
            names.sort_unstable();
            names.join(", ")
        }
    };
    let row = |group: Group<'_>| {
        let is_directory = group.number == u32::from(GroupId::DIRECTORY.0);
        let behind = |&(node, commits, applies): &(u64, u64, u64)| {
            format!("{} (commits {commits}, applies {applies})", survey.name_of(node))
        };
        let behind: Vec<String> = group.behind.iter().map(behind).collect();
        vec![
            if is_directory { "directory".to_owned() } else { group.number.to_string() },
            group.leader.map_or_else(|| "none known".to_owned(), |node| survey.name_of(node)),
            group.chosen.map_or_else(|| "no".to_owned(), |node| survey.name_of(node)),
            group.term.to_string(),
            names(group.voters),
            names(group.learners),
            group.committed.to_string(),
            group.waiting.map_or_else(|| "unknown".to_owned(), |waiting| waiting.to_string()),
            if behind.is_empty() { "none".to_owned() } else { behind.join(", ") },
            // Nobody's lanes lead to the directory.
            if is_directory { String::new() } else { group.backlog.to_string() },
        ]
    };
    table_of(&GROUP_COLUMNS, &groups(survey).into_iter().map(row).collect::<Vec<_>>())
}

/// The same for programs.
pub(super) fn groups_json(survey: &Survey) -> String {
    let ids = |nodes: &[u64]| nodes.iter().copied().map(id).collect::<Vec<_>>();
    let group = |group: Group<'_>| {
        let behind = |&(node, commits, applies): &(u64, u64, u64)| json!({ "node": id(node), "name": survey.name_of(node), "commits": commits, "applies": applies });
        json!({
            "group": group.number,
            "directory": group.number == u32::from(GroupId::DIRECTORY.0),
            "leader": group.leader.map(id),
            "leader_name": group.leader.map(|node| survey.name_of(node)),
            "chosen": group.chosen.map(id),
            "term": group.term,
            "voters": ids(group.voters),
            "learners": ids(group.learners),
            "committed": group.committed,
            "not_committed": group.waiting,
            "behind": group.behind.iter().map(behind).collect::<Vec<_>>(),
            "backlog": group.backlog,
        })
    };
    let groups: Vec<Value> = groups(survey).into_iter().map(group).collect();
    format!("{:#}\n", json!({ "groups": groups }))
}
