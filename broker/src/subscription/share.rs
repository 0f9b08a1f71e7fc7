//! Shared subscriptions: of all members, one gets the message.
//!
//! A member on this node is known by its connection. Those on another node are known by their number only, and whoever picks
//! that node leaves it to it to pick one of them. Members here come before those: what a strategy spreads is spread among
//! them, as long as there are any. A member that a strategy has stuck to, or that a hash leads to, is not left for that.

use crate::config::SharedStrategy;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::interest::{NodeInterest, ShareSessions};

/// Members compared to find the least loaded: enough to tell, without a walk over thousands for each message.
pub const LEAST_IN_FLIGHT_COMPARED_MAX: usize = 64;

/// How one member is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PickStrategy {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The same until it goes.
    Sticky,
    /// The same for the same publisher; a member that comes or goes moves only its own part. Walks over all members.
    HashClient,
    /// The same for the same topic; like [`Self::HashClient`].
    HashTopic,
    /// The one with the fewest messages unacknowledged, of up to 64 compared; see [`ShareGroup::began`] and
    /// [`ShareGroup::set_sessions_in_flight`].
    LeastInflight,
}

impl PickStrategy {
    /// What [`ShareGroup::pick`] is to know of the publisher.
    #[must_use]
    pub fn publisher_hash(self, publisher: &str) -> u64 {
        if self == Self::HashClient { name_hash(publisher) } else { 0 }
    }

    /// What it is to know of the topic, whose hash in this process is `topic_hash`.
    #[must_use]
    pub fn topic_hash(self, topic: &str, topic_hash: u64) -> u64 {
        if matches!(self, Self::HashTopic | Self::Random) { name_hash(topic) } else { topic_hash }
    }
}

impl From<SharedStrategy> for PickStrategy {
    fn from(setting: SharedStrategy) -> Self {
        match setting {
            SharedStrategy::RoundRobin => Self::RoundRobin,
            SharedStrategy::Random => Self::Random,
            SharedStrategy::Sticky => Self::Sticky,
            SharedStrategy::HashClient => Self::HashClient,
            SharedStrategy::HashTopic => Self::HashTopic,
            SharedStrategy::LeastInflight => Self::LeastInflight,
        }
    }
}

/// Who gets the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShareTarget {
    /// A connection of this process.
    Connection {
        /// Its arbiter.
        arbiter: u16,
        /// Its key.
        connection: u64,
    },
    /// A Raft group, which picks among its persistent sessions. Weighs as many members as have joined by it.
    Session {
        /// The group.
        group: u16,
    },
    /// Another node, which picks among its connections. Weighs as many members as it says it has.
    Node {
        /// Its number.
        node: NodeNumber,
    },
}

/// Who did not take a message, and so does not get it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassedOver {
    /// Nobody: it is picked for the first time.
    #[default]
    Nobody,
    /// A connection, which is gone.
    Connection(u64),
    /// A node, which had no member any more. It may have one by now, so it is picked if there is nobody else.
    Node(NodeNumber),
    /// Several nodes, one after another. What a strategy makes of members that are told of and gone may lead from one such node to
    /// another and back, so what they give back goes from node to node in turn.
    Nodes {
        /// Who gave it back now; likewise.
        last: NodeNumber,
        /// How often it was given back.
        times: u32,
    },
}

impl PassedOver {
    /// A node gave it back, as nodes have so many `times`, this one included.
    #[must_use]
    pub fn given_back(node: NodeNumber, times: u32) -> Self {
        if times > 1 { Self::Nodes { last: node, times } } else { Self::Node(node) }
    }
}

/// One member, as it joins. For each persistent session of a group, [`ShareTarget::Session`] joins once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareMember {
    /// Where it is.
    pub target: ShareTarget,
    /// By which the hashing strategies tell members apart, so that one that reconnects gets the same part again.
    pub client_id_hash: u64,
    /// The identity of this node, by which the hashing strategies know its connections together; 0 where there is no other.
    pub node: u64,
    /// It is picked for QoS 0 only: what has a QoS goes to it by its group.
    pub qos0_only: bool,
}

/// What is told of the members that a node, or a group, has of a shared subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Node(IndexedNode, NodeInterest),
    Group(u16, ShareSessions),
}

/// The number by which this process knows one start of another node. Never given twice, so it must not be a small one: where a node
/// fails to stay up, it is started again every few minutes, and others may run for years.
pub type NodeNumber = u32;

/// Another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedNode {
    /// By which this process knows this start of it.
    pub number: NodeNumber,
    /// By which everybody knows it, whenever it was started.
    pub identity: u64,
}

impl Told {
    pub(super) fn members(self) -> u32 {
        match self {
            Self::Node(_, interest) => interest.any.saturating_add(interest.qos0_only),
            Self::Group(_, sessions) => sessions.members,
        }
    }
}

#[derive(Debug)]
struct Connection {
    arbiter: u16,
    connection: u64,
    client_id_hash: u64,
    in_flight: AtomicU32,
}

impl Connection {
    fn target(&self) -> ShareTarget {
        ShareTarget::Connection { arbiter: self.arbiter, connection: self.connection }
    }
}

#[derive(Debug)]
struct Sessions {
    group: u16,
    members: u32,
    /// `None`: nobody said; all count as if they were.
    online: Option<u32>,
    /// Messages that the least loaded of them has unacknowledged, as the group said last.
    least: AtomicU32,
    /// Messages handed to the group since then.
    handed: AtomicU32,
}

/// The members of another node.
#[derive(Debug)]
struct OfNode {
    node: IndexedNode,
    interest: NodeInterest,
    /// Messages handed to it that are not settled there.
    handed: AtomicU32,
}

impl OfNode {
    fn told(&self) -> Told {
        Told::Node(self.node, self.interest)
    }

    fn target(&self) -> ShareTarget {
        ShareTarget::Node { node: self.node.number }
    }
}

impl Sessions {
    fn online(&self) -> u32 {
        self.online.unwrap_or(self.members)
    }

    /// What the least loaded of `weight` sessions has, if the group hands each message to that one.
    fn load(&self, weight: u32) -> u32 {
        self.least.load(Ordering::Relaxed).saturating_add(self.handed.load(Ordering::Relaxed) / weight)
    }
}

#[derive(Debug, Default)]
struct Members {
    /// Those for any QoS, then those for QoS 0 only, so that a pick needs no search for one that may be picked.
    connections: Vec<Connection>,
    /// How many of them are for any QoS.
    any_qos: usize,
    /// The identity of this node, once there are connections.
    here: u64,
    positions: HashMap<u64, u32, RandomState>,
    /// Few: at most as many as there are groups.
    sessions: Vec<Sessions>,
    /// Few.
    nodes: Vec<OfNode>,
}

impl Members {
    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.sessions.is_empty() && self.nodes.is_empty()
    }

    /// `false`: it had joined before, and now has new options.
    fn join_connection(&mut self, connection: Connection, qos0_only: bool) -> bool {
        let replaced = self.leave_connection(connection.connection);
        let last = self.connections.len();
        self.positions.insert(connection.connection, last as u32);
        self.connections.push(connection);
        if !qos0_only {
            self.swap(self.any_qos, last);
            self.any_qos += 1;
        }
        !replaced
    }

    fn leave_connection(&mut self, connection: u64) -> bool {
        let Some(&position) = self.positions.get(&connection) else {
            return false;
        };
        let mut position = position as usize;
        if position < self.any_qos {
            self.any_qos -= 1;
            self.swap(position, self.any_qos);
            position = self.any_qos;
        }
        self.swap(position, self.connections.len() - 1);
        self.connections.pop();
        self.positions.remove(&connection);
        true
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.connections.swap(a, b);
        for at in [a, b] {
            self.positions.insert(self.connections[at].connection, at as u32);
        }
    }

    fn sessions_mut(&mut self, group: u16) -> Option<&mut Sessions> {
        self.sessions.iter_mut().find(|sessions| sessions.group == group)
    }

    fn len(&self) -> usize {
        let sessions: u32 = self.sessions.iter().map(|sessions| sessions.members).sum();
        let of_nodes = self.nodes.iter().map(|of_node| of_node.told().members() as usize);
        self.connections.len() + sessions as usize + of_nodes.sum::<usize>()
    }

    fn weigh_sessions(&mut self, group: u16, told: ShareSessions) {
        match self.sessions_mut(group) {
            Some(sessions) => {
                sessions.members = told.members;
                sessions.online = Some(told.online);
            }
            None => self.sessions.push(Sessions {
                group,
                members: told.members,
                online: Some(told.online),
                least: AtomicU32::new(0),
                handed: AtomicU32::new(0),
            }),
        }
    }

    fn weigh_node(&mut self, node: IndexedNode, told: NodeInterest) {
        match self.nodes.iter_mut().find(|of_node| of_node.node == node) {
            Some(of_node) => of_node.interest = told,
            None => self.nodes.push(OfNode { node, interest: told, handed: AtomicU32::new(0) }),
        }
    }
}

/// The members of one shared subscription.
#[derive(Debug)]
pub struct ShareGroup {
    /// `$share/NAME/FILTER`.
    subscription_name: Box<str>,
    /// Where NAME ends.
    name_end: usize,
    members: RwLock<Members>,
    cursor: AtomicU64,
    /// Key of the member that stuck; see [`key_of`].
    stuck: AtomicU64,
}

const PREFIX: &str = "$share/";

impl ShareGroup {
    pub(super) fn new(name: &str, filter: &str) -> Self {
        Self {
            subscription_name: format!("{PREFIX}{name}/{filter}").into_boxed_str(),
            name_end: PREFIX.len() + name.len(),
            members: RwLock::default(),
            cursor: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
        }
    }

    /// NAME of `$share/NAME/FILTER`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.subscription_name[PREFIX.len()..self.name_end]
    }

    /// FILTER of `$share/NAME/FILTER`.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.subscription_name[self.name_end + 1..]
    }

    /// `$share/NAME/FILTER`, as the client wrote it.
    #[must_use]
    pub fn subscription_name(&self) -> &str {
        &self.subscription_name
    }

    /// Connections and persistent sessions that have joined, and what other nodes have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(Members::len)
    }

    /// Whether everyone left. Such a group is in the index no more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.with(Members::is_empty)
    }

    /// The member that gets a message.
    ///
    /// `publisher` stands for the publishing client in [`PickStrategy::HashClient`], `topic_hash` for the topic in
    /// [`PickStrategy::HashTopic`] and [`PickStrategy::Random`]. `online_only`: it is of QoS 0, so persistent sessions do not
    /// get it by their group. Otherwise groups are passed over that have nobody online, as long as there is somebody else.
    #[must_use]
    pub fn pick(
        &self,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        passed_over: PassedOver,
        online_only: bool,
    ) -> Option<ShareTarget> {
        self.pick_living(strategy, publisher, topic_hash, passed_over, online_only, &|_| false)
    }

    /// The same, but never a node of which `is_dead` says that it is.
    #[must_use]
    pub fn pick_living(
        &self,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        passed_over: PassedOver,
        online_only: bool,
        is_dead: &dyn Fn(NodeNumber) -> bool,
    ) -> Option<ShareTarget> {
        let asked = Asked { passed_over, online_only, here: false, is_dead };
        self.with(|members| self.pick_among(members, strategy, publisher, topic_hash, asked))
    }

    /// The member that gets a message which another node has for one of those here: never a node or a group, which might
    /// send it back.
    #[must_use]
    pub fn pick_here(
        &self,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        passed_over: PassedOver,
        online_only: bool,
    ) -> Option<ShareTarget> {
        let asked = Asked { passed_over, online_only, here: true, is_dead: &|_| false };
        self.with(|members| self.pick_among(members, strategy, publisher, topic_hash, asked))
    }

    /// Whether a message with a QoS may go to a group or node that `is_shut`. It picks nobody, so that whose turn it is stays as it is.
    #[must_use]
    pub fn may_pick(
        &self,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        is_shut: &dyn Fn(ShareTarget) -> bool,
    ) -> bool {
        let asked = Asked { passed_over: PassedOver::Nobody, online_only: false, here: false, is_dead: &|_| false };
        self.with(|members| {
            let candidates = Candidates::of(members, asked);
            let certain = match strategy {
                PickStrategy::HashClient => candidates.closest_to(publisher),
                PickStrategy::HashTopic => candidates.closest_to(topic_hash),
                PickStrategy::Sticky => candidates.find(self.stuck.load(Ordering::Relaxed)),
                PickStrategy::RoundRobin | PickStrategy::Random | PickStrategy::LeastInflight => None,
            };
            match certain {
                Some(target) => is_shut(target),
                None => candidates.here_first().elsewhere().any(is_shut),
            }
        })
    }

    fn pick_among(
        &self,
        members: &Members,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        asked: Asked<'_>,
    ) -> Option<ShareTarget> {
        let candidates = Candidates::of(members, asked);
        if candidates.weight == 0 {
            return None;
        }
        if let PassedOver::Nodes { times, .. } = asked.passed_over {
            return candidates.in_turn(times, self.next(), asked.online_only);
        }
        match strategy {
            PickStrategy::RoundRobin => candidates.here_first().at(self.next()),
            PickStrategy::Random => candidates.here_first().at(mix(self.next(), topic_hash)),
            PickStrategy::Sticky => self.pick_stuck(candidates),
            PickStrategy::HashClient => candidates.closest_to(publisher),
            PickStrategy::HashTopic => candidates.closest_to(topic_hash),
            PickStrategy::LeastInflight => candidates.here_first().least_in_flight(self.next()),
        }
    }

    /// Who is asked next, round and round, about a message that the member `connection` of this node may not read. `None`:
    /// all of this node have been asked, or as many as are.
    #[must_use]
    pub fn next_here(&self, connection: u64, asked: u8, online_only: bool) -> Option<u64> {
        self.with(|members| {
            let count = if online_only { members.connections.len() } else { members.any_qos };
            if usize::from(asked) >= count.min(ASKED_MAX) {
                return None;
            }
            let at = *members.positions.get(&connection)? as usize;
            Some(members.connections[(at + 1) % count].connection)
        })
    }

    /// A message was put into the window of a member, or the queue before it. Only [`PickStrategy::LeastInflight`] needs
    /// it.
    pub fn began(&self, connection: u64) {
        self.with_in_flight(connection, |in_flight| {
            in_flight.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// A message that was counted by [`Self::began`] is settled.
    pub fn ended(&self, connection: u64) {
        self.with_in_flight(connection, |in_flight| {
            // A member that left and came back starts at zero.
            let less = |count: u32| count.checked_sub(1);
            let _ = in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        });
    }

    /// A message was handed to another node for a member there.
    pub fn began_at_node(&self, node: NodeNumber) {
        self.with_node(node, |handed| {
            handed.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// It is settled there, or given back.
    pub fn ended_at_node(&self, node: NodeNumber) {
        self.with_node(node, |handed| {
            let less = |count: u32| count.checked_sub(1);
            let _ = handed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        });
    }

    /// How many of a group's sessions that joined are connected now. Until this is called, all count as connected.
    pub fn set_sessions_online(&self, group: u16, online: u32) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(sessions) = members.sessions_mut(group) {
            sessions.online = Some(online.min(sessions.members));
        }
    }

    /// How many messages the least loaded of a group's sessions has unacknowledged.
    pub fn set_sessions_in_flight(&self, group: u16, least: u32) {
        self.with(|members| {
            if let Some(sessions) = members.sessions.iter().find(|sessions| sessions.group == group) {
                sessions.least.store(least, Ordering::Relaxed);
                sessions.handed.store(0, Ordering::Relaxed);
            }
        });
    }

    /// `false`: the connection had joined before, and now has new options.
    pub(super) fn join(&self, member: &ShareMember) -> bool {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        match member.target {
            ShareTarget::Connection { arbiter, connection } => {
                let in_flight = AtomicU32::new(0);
                let client_id_hash = member.client_id_hash;
                let joined = Connection { arbiter, connection, client_id_hash, in_flight };
                members.here = member.node;
                members.join_connection(joined, member.qos0_only)
            }
            ShareTarget::Session { group } => {
                match members.sessions_mut(group) {
                    Some(sessions) => sessions.members += 1,
                    None => members.sessions.push(Sessions {
                        group,
                        members: 1,
                        online: None,
                        least: AtomicU32::new(0),
                        handed: AtomicU32::new(0),
                    }),
                }
                true
            }
            // What a node has is told of all its members together: see `weigh`.
            ShareTarget::Node { .. } => false,
        }
    }

    pub(super) fn leave(&self, target: &ShareTarget) -> bool {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        match *target {
            ShareTarget::Connection { connection, .. } => members.leave_connection(connection),
            ShareTarget::Session { group } => {
                let Some(sessions) = members.sessions_mut(group) else {
                    return false;
                };
                sessions.members -= 1;
                sessions.online = sessions.online.map(|online| online.min(sessions.members));
                members.sessions.retain(|sessions| sessions.members > 0);
                true
            }
            ShareTarget::Node { .. } => false,
        }
    }

    /// Takes what is told for what there is. Returns by how many members that is more.
    pub(super) fn weigh(&self, told: Told) -> isize {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let before = members.len() as isize;
        match told {
            Told::Node(node, interest) => members.weigh_node(node, interest),
            Told::Group(group, sessions) => members.weigh_sessions(group, sessions),
        }
        members.len() as isize - before
    }

    /// The node or group has no members any more. Returns how many it had; `None`: none.
    pub(super) fn forget(&self, told: Told) -> Option<usize> {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let before = members.len();
        match told {
            Told::Node(node, _) => members.nodes.retain(|of_node| of_node.node != node),
            Told::Group(group, _) => members.sessions.retain(|sessions| sessions.group != group),
        }
        let left = before - members.len();
        (left > 0).then_some(left)
    }

    fn pick_stuck(&self, candidates: Candidates<'_>) -> Option<ShareTarget> {
        let stuck = self.stuck.load(Ordering::Relaxed);
        if let Some(target) = candidates.find(stuck) {
            return Some(target);
        }
        let target = candidates.here_first().at(self.next())?;
        self.stuck.store(key_of(&target), Ordering::Relaxed);
        Some(target)
    }

    fn next(&self) -> u64 {
        self.cursor.fetch_add(1, Ordering::Relaxed)
    }

    fn with<R>(&self, look: impl FnOnce(&Members) -> R) -> R {
        look(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_node(&self, node: NodeNumber, act: impl FnOnce(&AtomicU32)) {
        self.with(|members| {
            if let Some(of_node) = members.nodes.iter().find(|of_node| of_node.node.number == node) {
                act(&of_node.handed);
            }
        });
    }

    fn with_in_flight(&self, connection: u64, act: impl FnOnce(&AtomicU32)) {
        self.with(|members| {
            if let Some(&position) = members.positions.get(&connection) {
                act(&members.connections[position as usize].in_flight);
            }
        });
    }
}

/// A target as one number. A connection's key is never so high.
fn key_of(target: &ShareTarget) -> u64 {
    match *target {
        ShareTarget::Connection { connection, .. } => connection,
        ShareTarget::Session { group } => SESSION_KEY | u64::from(group),
        ShareTarget::Node { node } => NODE_KEY | u64::from(node),
    }
}

/// Members that are asked about one message at most: it may go from thread to thread for it.
const ASKED_MAX: usize = 64;

const SESSION_KEY: u64 = 0xFFFF_FFFF_FFFF_0000;
const NODE_KEY: u64 = 0xFFFF_FFFE_0000_0000;

/// What a pick is for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    passed_over: PassedOver,
    online_only: bool,
    /// Only connections of this node.
    here: bool,
    is_dead: &'a dyn Fn(NodeNumber) -> bool,
}

/// Those who may be picked for one message, each as often as it weighs.
#[derive(Clone, Copy)]
struct Candidates<'a> {
    members: &'a Members,
    connections: &'a [Connection],
    /// Where the excluded one stands.
    excluded: Option<usize>,
    /// What the sessions of a group weigh: all of them, those online, or nothing.
    sessions: fn(&Sessions) -> u32,
    /// What the members of a node weigh.
    nodes: fn(&OfNode) -> u32,
    /// The node that weighs nothing all the same.
    passed_over: Option<NodeNumber>,
    /// Neither do those.
    is_dead: &'a dyn Fn(NodeNumber) -> bool,
    weight: u64,
}

impl<'a> Candidates<'a> {
    fn of(members: &'a Members, asked: Asked<'a>) -> Self {
        let count = if asked.online_only { members.connections.len() } else { members.any_qos };
        let connections = &members.connections[..count];
        let excluded = match asked.passed_over {
            PassedOver::Connection(connection) => members.positions.get(&connection),
            _ => None,
        };
        let excluded = excluded.map(|&position| position as usize).filter(|&position| position < count);
        let is_dead = asked.is_dead;
        let (passed_over, weight) = (None, 0);
        let mut candidates =
            Self { members, connections, excluded, sessions: |_| 0, nodes: |_| 0, passed_over, is_dead, weight };
        if !asked.here {
            if let PassedOver::Node(node) | PassedOver::Nodes { last: node, .. } = asked.passed_over {
                candidates.passed_over = Some(node);
            }
            if asked.online_only {
                candidates.nodes = |of_node| of_node.told().members();
            } else {
                candidates.nodes = |of_node| of_node.interest.any;
                candidates.sessions = Sessions::online;
                if candidates.sum() == 0 {
                    candidates.sessions = |sessions| sessions.members;
                }
            }
            if candidates.sum() == 0 {
                candidates.passed_over = None;
            }
        }
        candidates.weight = candidates.sum();
        candidates
    }

    /// Without other nodes, as long as somebody is connected here.
    fn here_first(mut self) -> Self {
        if !self.members.nodes.is_empty() && self.here() > 0 {
            self.nodes = |_| 0;
            self.weight = self.sum();
        }
        self
    }

    /// Groups and other nodes that may be picked.
    fn elsewhere(&self) -> impl Iterator<Item = ShareTarget> {
        let sessions = self.members.sessions.iter().filter(|sessions| (self.sessions)(sessions) > 0);
        let nodes = self.members.nodes.iter().filter(|of_node| self.of_node(of_node) > 0);
        sessions.map(|sessions| ShareTarget::Session { group: sessions.group }).chain(nodes.map(OfNode::target))
    }

    /// Connections that may be picked.
    fn here(&self) -> u64 {
        (self.connections.len() - usize::from(self.excluded.is_some())) as u64
    }

    fn sum(&self) -> u64 {
        let sessions: u64 = self.members.sessions.iter().map(|sessions| u64::from((self.sessions)(sessions))).sum();
        let nodes: u64 = self.members.nodes.iter().map(|of_node| u64::from(self.of_node(of_node))).sum();
        self.here() + sessions + nodes
    }

    fn of_node(&self, of_node: &OfNode) -> u32 {
        let number = of_node.node.number;
        if self.passed_over == Some(number) || (self.is_dead)(number) { 0 } else { (self.nodes)(of_node) }
    }

    /// The one at `ticket`, counted round and round.
    fn at(&self, ticket: u64) -> Option<ShareTarget> {
        let mut ticket = ticket % self.weight;
        let direct = self.here();
        if ticket < direct {
            let ticket = ticket as usize;
            let skip = usize::from(self.excluded.is_some_and(|excluded| excluded <= ticket));
            return Some(self.connections[ticket + skip].target());
        }
        ticket -= direct;
        for sessions in &self.members.sessions {
            let weight = u64::from((self.sessions)(sessions));
            if ticket < weight {
                return Some(ShareTarget::Session { group: sessions.group });
            }
            ticket -= weight;
        }
        for of_node in &self.members.nodes {
            let weight = u64::from(self.of_node(of_node));
            if ticket < weight {
                return Some(of_node.target());
            }
            ticket -= weight;
        }
        None
    }

    /// For what was given back several `times`. Members here take it, and so do sessions that are online. Without them each node
    /// has its turn, however many members are told of, so that one that has some is reached; at last sessions that wait for
    /// their client have.
    fn in_turn(self, times: u32, ticket: u64, online_only: bool) -> Option<ShareTarget> {
        let mut certain = Self { nodes: |_| 0, ..self };
        certain.weight = certain.sum();
        if certain.weight > 0 {
            return certain.at(ticket);
        }
        let targets = || {
            let may_have = |of_node: &&OfNode| !(self.is_dead)(of_node.node.number) && (self.nodes)(of_node) > 0;
            let nodes = self.members.nodes.iter().filter(may_have).map(OfNode::target);
            let sessions = self.members.sessions.iter().filter(|sessions| !online_only && sessions.members > 0);
            nodes.chain(sessions.map(|sessions| ShareTarget::Session { group: sessions.group }))
        };
        let passed_over = self.passed_over.map(|node| ShareTarget::Node { node });
        let count = targets().count();
        let turn = (times as usize).checked_rem(count)?;
        // Whoever is passed over stands in the row all the same: otherwise it would be another row each time, in which one is skipped.
        targets().cycle().skip(turn).take(count).find(|target| Some(*target) != passed_over)
    }

    fn find(&self, key: u64) -> Option<ShareTarget> {
        if key >= SESSION_KEY {
            let group = key as u16;
            let is_it = |sessions: &&Sessions| sessions.group == group && (self.sessions)(sessions) > 0;
            self.members.sessions.iter().find(is_it)?;
            return Some(ShareTarget::Session { group });
        }
        if key >= NODE_KEY {
            let is_it = |of_node: &&OfNode| of_node.node.number == key as NodeNumber && self.of_node(of_node) > 0;
            return self.members.nodes.iter().find(is_it).map(OfNode::target);
        }
        let position = *self.members.positions.get(&key)? as usize;
        let eligible = position < self.connections.len() && self.excluded != Some(position);
        eligible.then(|| self.connections[position].target())
    }

    fn direct(&self) -> impl Iterator<Item = &'a Connection> {
        let excluded = self.excluded;
        let connections = self.connections.iter().enumerate();
        connections.filter(move |&(at, _)| Some(at) != excluded).map(|(_, connection)| connection)
    }

    /// Rendezvous hashing: the highest draw wins. A group draws once for all its sessions, and a node, this one too, for all its
    /// members, as high as the best of so many would be; then the connections of that node draw, each by its own hash and the
    /// key's. So every node leads a key to the same member, though each knows no more of the others than how many they have.
    fn closest_to(&self, key: u64) -> Option<ShareTarget> {
        let here = [(self.here() as u32, self.members.here, None)].into_iter();
        let sessions = self.members.sessions.iter().map(|sessions| {
            let target = ShareTarget::Session { group: sessions.group };
            ((self.sessions)(sessions), key_of(&target), Some(target))
        });
        let nodes = self.members.nodes.iter();
        let nodes = nodes.map(|of_node| (self.of_node(of_node), of_node.node.identity, Some(of_node.target())));
        let draws =
            here.chain(sessions).chain(nodes).filter(|&(weight, ..)| weight > 0).map(|(weight, who, target)| {
                let draw = unit(mix(who, key)).powf(f64::from(weight).recip());
                (draw, target)
            });
        let (_, best) = draws.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        best.or_else(|| {
            let closest = self.direct().max_by_key(|connection| mix(connection.client_id_hash, key));
            closest.map(Connection::target)
        })
    }

    /// The least loaded; of several, the one whose turn it is. A group is as loaded as the least of its sessions, a node as
    /// what it was handed from here makes for each of its members.
    fn least_in_flight(&self, ticket: u64) -> Option<ShareTarget> {
        let turn = self.at(ticket)?;
        let (before, from) = self.connections.split_at(ticket as usize % self.connections.len().max(1));
        let excluded = self.excluded.map(|at| self.connections[at].connection);
        let connection = from
            .iter()
            .chain(before)
            .filter(|connection| Some(connection.connection) != excluded)
            .take(LEAST_IN_FLIGHT_COMPARED_MAX)
            .map(|connection| (connection.in_flight.load(Ordering::Relaxed), connection))
            .min_by_key(|&(load, _)| load);
        let (before, from) = self.members.sessions.split_at(ticket as usize % self.members.sessions.len().max(1));
        let sessions = from
            .iter()
            .chain(before)
            .filter_map(|sessions| match (self.sessions)(sessions) {
                0 => None,
                weight => Some((sessions.load(weight), sessions)),
            })
            .min_by_key(|&(load, _)| load);
        let node = (self.members.nodes.iter())
            .filter_map(|of_node| match self.of_node(of_node) {
                0 => None,
                weight => Some((of_node.handed.load(Ordering::Relaxed) / weight, of_node)),
            })
            .min_by_key(|&(load, _)| load);
        if let Some((load, of_node)) = node {
            // Nobody is connected here.
            let by_turn = matches!(turn, ShareTarget::Node { .. });
            if sessions.is_none_or(|(of_group, _)| load < of_group || (load == of_group && by_turn)) {
                return Some(of_node.target());
            }
        }
        match (connection, sessions) {
            (Some((load, connection)), Some((of_group, _)))
                if load < of_group || (load == of_group && matches!(turn, ShareTarget::Connection { .. })) =>
            {
                Some(connection.target())
            }
            (_, Some((_, sessions))) => {
                sessions.handed.fetch_add(1, Ordering::Relaxed);
                Some(ShareTarget::Session { group: sessions.group })
            }
            (Some((_, connection)), None) => Some(connection.target()),
            (None, None) => None,
        }
    }
}

/// In (0, 1).
fn unit(draw: u64) -> f64 {
    ((draw >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// FNV-1a of a Client Identifier or Topic Name: it must never change, for whoever picks by it must pick the same.
#[must_use]
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// SplitMix64's finaliser over both: the same everywhere, so that a simulation repeats.
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
