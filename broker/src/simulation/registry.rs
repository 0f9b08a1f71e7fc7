//! What the nodes hold once everything came to rest: each connection is registered once, what is routed is wanted, every
//! group is led, and nothing is left that nobody waits for (P12).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kentongan_cluster::GroupId;
use kentongan_cluster::group::Role;
use kentongan_proto::mqtt::QoS;
use kentongan_proto::topic::ParsedFilter;

use super::host::{Host, Process};
use super::workload;
use crate::connection_key::ConnectionKey;
use crate::replicated::state::GroupState;
use crate::replicated::state::inspect::HeldSession;
use crate::router::inspect::HeldClient;
use crate::router::node_lanes::PeerProcess;
use crate::subscription::{
    IndexedNode, InterestKind, Matched, NodeInterest, NodeNumber, ShareMember, ShareSessions, ShareTarget,
    SubscriptionIndex, Target, topic_hash,
};

/// What the cluster says of itself.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Who is registered, each as often as there is an entry.
    pub(super) owners: Vec<String>,
    /// All filters that are routed anywhere.
    pub(super) routes: BTreeSet<String>,
    /// Groups without a leader.
    pub(super) leaderless: Vec<u16>,
    /// What contradicts itself.
    pub(super) wrong: Vec<String>,
}

/// A client that a node serves.
struct Served {
    node: u64,
    incarnation: u64,
    client: HeldClient,
}

/// What the groups want of one filter, or of one shared subscription.
struct GroupWants {
    group: u16,
    filter: Arc<str>,
    sessions: u32,
    online: u32,
}

impl Registry {
    /// Looks at all nodes, each of which runs.
    pub(super) fn read(hosts: &[Host]) -> Self {
        let mut registry = Self::default();
        let processes: Vec<&Process> = hosts.iter().filter_map(|host| host.process.as_ref()).collect();
        let led = registry.read_leaders(&processes);
        let served: Vec<Served> = processes.iter().flat_map(|process| served_by(process)).collect();
        registry.read_owners(&processes, &led, &served);
        let wants = wants(&led);
        registry.routes.extend(wants.iter().map(|wants| wants.filter.to_string()));
        let of_clients = served.iter().flat_map(|served| &served.client.subscriptions);
        registry.routes.extend(of_clients.map(|(filter, _)| filter.to_string()));
        for process in &processes {
            registry.read_node(process, &served, &wants);
        }
        registry
    }

    /// Each group as its leader has it.
    fn read_leaders<'a>(&mut self, processes: &[&'a Process]) -> Vec<(u16, &'a GroupState)> {
        let groups: BTreeSet<GroupId> = processes.iter().flat_map(|process| process.pipeline.node().groups()).collect();
        let mut led = Vec::new();
        for group in groups {
            let leads = |process: &&&'a Process| {
                let status = process.pipeline.node().status(group);
                status.is_some_and(|status| matches!(status.role, Role::Leader { .. }))
            };
            match processes.iter().find(leads) {
                None => self.leaderless.push(group.0),
                Some(_) if group == GroupId::DIRECTORY => {}
                Some(process) => {
                    let machine = process.pipeline.machine().machine();
                    if !machine.leads(group.0) {
                        self.wrong.push(format!("group {group} is led by a node whose machine does not know"));
                    }
                    led.extend(machine.groups.get(&group.0).map(|state| (group.0, state)));
                }
            }
        }
        led
    }

    /// Every client that is connected is registered once, by the epoch that its group says.
    fn read_owners(&mut self, processes: &[&Process], led: &[(u16, &GroupState)], served: &[Served]) {
        let sessions: Vec<HeldSession> = led.iter().flat_map(|(_, state)| state.held_sessions()).collect();
        if let [process] = processes
            && process.shared.cluster.is_none()
        {
            return self.read_own_registry(process, &sessions, served);
        }
        let mut owned = BTreeMap::new();
        for session in &sessions {
            let Some(owner) = session.owner else {
                continue;
            };
            self.owners.push(session.client_id.to_string());
            owned.insert((owner.node, owner.incarnation, owner.connection), session);
        }
        for Served { node, incarnation, client } in served {
            let (name, epoch) = (&client.client_id, client.epoch);
            match owned.remove(&(*node, *incarnation, client.connection.raw())) {
                Some(session) if session.client_id == *name && Some(session.epoch) == epoch => {
                    if session.transient == client.persistent {
                        self.wrong.push(format!("{name} and its group differ in whether its session stays"));
                    }
                }
                other => self.wrong.push(format!("{name} is connected to node {node} by epoch {epoch:?}: {other:?}")),
            }
        }
        self.wrong.extend(owned.into_iter().map(|((node, incarnation, connection), session)| {
            let connection = ConnectionKey::from_raw(connection);
            format!("{session:?} is owned by {connection:?} of incarnation {incarnation} of node {node}: there is none")
        }));
    }

    /// A node that is alone registers its clients itself.
    fn read_own_registry(&mut self, process: &Process, sessions: &[HeldSession], served: &[Served]) {
        let registry = &process.shared.registry;
        let mut names: BTreeSet<&Arc<str>> = sessions.iter().map(|session| &session.client_id).collect();
        names.extend(served.iter().map(|served| &served.client.client_id));
        for &name in &names {
            let claim = registry.get(name).unwrap_or_default();
            let connected = served.iter().find(|served| served.client.client_id == *name);
            let connection = connected.map(|served| served.client.connection);
            let persistent = sessions.iter().any(|session| session.client_id == *name);
            if claim.owner != connection || claim.persistent != persistent {
                self.wrong
                    .push(format!("{name} has {connection:?}, a session that stays: {persistent}; and {claim:?}"));
            }
            self.owners.extend(claim.owner.map(|_| name.to_string()));
        }
        if registry.len() != names.len() {
            self.wrong.push(format!("{} Client Identifiers are registered, and there are {names:?}", registry.len()));
        }
    }

    /// What one node routes, and what it still holds.
    fn read_node(&mut self, process: &Process, served: &[Served], wants: &[GroupWants]) {
        let shared = &process.shared;
        let node = shared.cluster.as_ref().map_or(0, |cluster| cluster.node);
        let quiet = workload::QUIET_TOPICS.into_iter().chain(workload::WHISPERED_TOPICS);
        let topics: Vec<_> = workload::TOPICS.into_iter().chain(quiet).collect();
        let mut left = process.pipeline.machine().machine().leftovers();
        for arbiter in &process.arbiters {
            left.extend(arbiter.state().leftovers(&topics));
        }
        if shared.cluster.is_some() && !shared.registry.is_empty() {
            left.push(format!("{} Client Identifiers in the table of a node that is alone", shared.registry.len()));
        }
        let expected = expected_index(process, served, wants);
        let differs = |topic: &&&str| routes_of(&shared.index, topic) != routes_of(&expected, topic);
        if let Some(topic) = topics.iter().find(differs) {
            let (found, wanted) = (routes_of(&shared.index, topic), routes_of(&expected, topic));
            left.push(format!("{topic} is routed to {found:?}, and wanted by {wanted:?}"));
        }
        let sizes = |index: &SubscriptionIndex| (index.subscriptions(), index.filters());
        if sizes(&shared.index) != sizes(&expected) {
            let (found, wanted) = (&shared.index, &expected);
            left.push(format!("the index is {found:?}, and should be {wanted:?}"));
        }
        self.wrong.extend(left.into_iter().map(|what| format!("node {node}: {what}")));
    }
}

fn served_by(process: &Process) -> impl Iterator<Item = Served> {
    let node = process.shared.cluster.as_ref().map_or(0, |cluster| cluster.node);
    let incarnation = process.shared.incarnation();
    let clients = process.arbiters.iter().flat_map(|arbiter| arbiter.state().held_clients());
    clients.map(move |client| Served { node, incarnation, client })
}

fn wants(led: &[(u16, &GroupState)]) -> Vec<GroupWants> {
    let mut wants = Vec::new();
    for &(group, state) in led {
        state.for_each_interest(|filter, sessions, online| {
            wants.push(GroupWants { group, filter: Arc::clone(filter), sessions, online });
        });
    }
    wants
}

/// The table as a node would have it that heard of everything once.
fn expected_index(process: &Process, served: &[Served], wants: &[GroupWants]) -> SubscriptionIndex {
    let index = SubscriptionIndex::new();
    let cluster = process.shared.cluster.as_ref();
    let here = cluster.map_or(0, |cluster| cluster.node);
    let mut elsewhere: BTreeMap<(NodeNumber, &str), (IndexedNode, NodeInterest)> = BTreeMap::new();
    for Served { node, incarnation, client } in served {
        for (filter, own) in &client.subscriptions {
            let of_group = client.persistent && own.options.qos != QoS::AtMostOnce;
            if *node == here {
                enter_here(&index, filter, client.connection, of_group);
            } else if let Some(cluster) = cluster {
                let indexed = cluster.nodes.indexed(PeerProcess { node: *node, incarnation: *incarnation });
                let kind = if of_group { InterestKind::Qos0Only } else { InterestKind::Any };
                let told = elsewhere.entry((indexed.number, filter)).or_insert((indexed, NodeInterest::default()));
                told.1.change(kind, true);
            }
        }
    }
    for ((_, filter), (indexed, interest)) in elsewhere {
        index.set_node(filter, indexed, 0, interest.to_value());
    }
    for GroupWants { group, filter, sessions, online } in wants {
        let share = shared_parts(filter);
        match (cluster, share) {
            (Some(_), None) => index.set_group(filter, *group, 0, *sessions),
            (Some(_), Some(_)) => {
                let value = ShareSessions { members: *sessions, online: *online }.to_value();
                index.set_group(filter, *group, 0, value);
            }
            (None, None) => (0..*sessions).for_each(|_| index.subscribe(filter, Target::Group(*group))),
            (None, Some((name, filter))) => {
                let target = ShareTarget::Session { group: *group };
                let member = ShareMember { target, client_id_hash: u64::from(*group), node: 0, qos0_only: false };
                (0..*sessions).for_each(|_| index.join_share(name, filter, member));
            }
        }
    }
    index
}

fn enter_here(index: &SubscriptionIndex, filter: &str, connection: ConnectionKey, of_group: bool) {
    match shared_parts(filter) {
        None => index.subscribe(filter, Target::Arbiter(connection.arbiter())),
        Some((name, filter)) => {
            let target = ShareTarget::Connection { arbiter: connection.arbiter(), connection: connection.raw() };
            index.join_share(name, filter, ShareMember { target, client_id_hash: 0, node: 0, qos0_only: of_group });
        }
    }
}

fn shared_parts(filter: &str) -> Option<(&str, &str)> {
    match ParsedFilter::parse(filter) {
        Ok(ParsedFilter::Shared(_)) => filter.strip_prefix("$share/")?.split_once('/'),
        _ => None,
    }
}

/// Whom a topic goes to, in words that can be compared.
fn routes_of(index: &SubscriptionIndex, topic: &str) -> String {
    let mut matched = Matched::default();
    index.matches(topic, topic_hash(topic), &mut matched);
    let Matched { arbiters, groups, nodes, shares, .. } = &matched;
    let mut shares: Vec<_> = shares.iter().map(|share| (share.subscription_name(), share.len())).collect();
    shares.sort_unstable();
    format!("{arbiters:?}, groups {groups:?}, {nodes:?}, {shares:?}")
}
