//! Shared subscriptions: of all members, one gets the message.

use crate::config::SharedStrategy;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

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
}

/// One member, as it joins. For each persistent session of a group, [`ShareTarget::Session`] joins once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareMember {
    /// Where it is.
    pub target: ShareTarget,
    /// By which the hashing strategies tell members apart, so that one that reconnects gets the same part again.
    pub client_id_hash: u64,
    /// It is picked for QoS 0 only: what has a QoS goes to it by its group.
    pub qos0_only: bool,
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
    positions: HashMap<u64, u32, RandomState>,
    /// Few: at most as many as there are groups.
    sessions: Vec<Sessions>,
}

impl Members {
    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.sessions.is_empty()
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

    /// Connections and persistent sessions that have joined.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|members| {
            let sessions: u32 = members.sessions.iter().map(|sessions| sessions.members).sum();
            members.connections.len() + sessions as usize
        })
    }

    /// Whether everyone left. Such a group is in the index no more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.with(Members::is_empty)
    }

    /// The member that gets a message.
    ///
    /// `publisher` stands for the publishing client in [`PickStrategy::HashClient`], `topic_hash` for the topic in
    /// [`PickStrategy::HashTopic`] and [`PickStrategy::Random`]. `excluded` is a connection that did not take the message.
    /// `online_only`: it is of QoS 0, so persistent sessions do not get it by their group. Otherwise groups are passed
    /// over that have nobody online, as long as there is somebody else.
    #[must_use]
    pub fn pick(
        &self,
        strategy: PickStrategy,
        publisher: u64,
        topic_hash: u64,
        excluded: Option<u64>,
        online_only: bool,
    ) -> Option<ShareTarget> {
        self.with(|members| {
            let candidates = Candidates::of(members, excluded, online_only);
            if candidates.weight == 0 {
                return None;
            }
            match strategy {
                PickStrategy::RoundRobin => candidates.at(self.next()),
                PickStrategy::Random => candidates.at(mix(self.next(), topic_hash)),
                PickStrategy::Sticky => self.pick_stuck(&candidates),
                PickStrategy::HashClient => candidates.closest_to(publisher),
                PickStrategy::HashTopic => candidates.closest_to(topic_hash),
                PickStrategy::LeastInflight => candidates.least_in_flight(self.next()),
            }
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
        }
    }

    fn pick_stuck(&self, candidates: &Candidates<'_>) -> Option<ShareTarget> {
        let stuck = self.stuck.load(Ordering::Relaxed);
        if let Some(target) = candidates.find(stuck) {
            return Some(target);
        }
        let target = candidates.at(self.next())?;
        self.stuck.store(key_of(&target), Ordering::Relaxed);
        Some(target)
    }

    fn next(&self) -> u64 {
        self.cursor.fetch_add(1, Ordering::Relaxed)
    }

    fn with<R>(&self, look: impl FnOnce(&Members) -> R) -> R {
        look(&self.members.read().unwrap_or_else(PoisonError::into_inner))
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
    }
}

const SESSION_KEY: u64 = 0xFFFF_FFFF_FFFF_0000;

/// Those who may be picked for one message, each as often as it weighs.
struct Candidates<'a> {
    members: &'a Members,
    connections: &'a [Connection],
    /// Where the excluded one stands.
    excluded: Option<usize>,
    /// What the sessions of a group weigh: all of them, those online, or nothing.
    sessions: fn(&Sessions) -> u32,
    weight: u64,
}

impl<'a> Candidates<'a> {
    fn of(members: &'a Members, excluded: Option<u64>, online_only: bool) -> Self {
        let count = if online_only { members.connections.len() } else { members.any_qos };
        let connections = &members.connections[..count];
        let excluded = excluded
            .and_then(|connection| members.positions.get(&connection))
            .map(|&position| position as usize)
            .filter(|&position| position < count);
        let direct = (count - usize::from(excluded.is_some())) as u64;
        let sum = |weight: fn(&Sessions) -> u32| -> u64 {
            members.sessions.iter().map(|sessions| u64::from(weight(sessions))).sum()
        };
        let mut sessions: fn(&Sessions) -> u32 = |_| 0;
        if !online_only {
            sessions = Sessions::online;
            if direct + sum(sessions) == 0 {
                sessions = |sessions| sessions.members;
            }
        }
        Self { members, connections, excluded, sessions, weight: direct + sum(sessions) }
    }

    /// The one at `ticket`, counted round and round.
    fn at(&self, ticket: u64) -> Option<ShareTarget> {
        let mut ticket = ticket % self.weight;
        let direct = (self.connections.len() - usize::from(self.excluded.is_some())) as u64;
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
        None
    }

    fn find(&self, key: u64) -> Option<ShareTarget> {
        if key >= SESSION_KEY {
            let group = key as u16;
            let is_it = |sessions: &&Sessions| sessions.group == group && (self.sessions)(sessions) > 0;
            self.members.sessions.iter().find(is_it)?;
            return Some(ShareTarget::Session { group });
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

    /// Rendezvous hashing: the highest draw wins, and each member draws by its own hash and the key's. A group draws
    /// once for all its sessions, as high as the best of so many would be.
    fn closest_to(&self, key: u64) -> Option<ShareTarget> {
        let direct = self
            .direct()
            .map(|connection| (mix(connection.client_id_hash, key), connection.target()))
            .max_by_key(|&(draw, _)| draw)
            .map(|(draw, target)| (unit(draw), target));
        let sessions = self.members.sessions.iter().filter_map(|sessions| {
            let weight = (self.sessions)(sessions);
            let target = ShareTarget::Session { group: sessions.group };
            let draw = unit(mix(key_of(&target), key)).powf(f64::from(weight).recip());
            (weight > 0).then_some((draw, target))
        });
        let best = direct.into_iter().chain(sessions).max_by(|(a, _), (b, _)| a.total_cmp(b));
        best.map(|(_, target)| target)
    }

    /// The least loaded; of several, the one whose turn it is. A group is as loaded as the least of its sessions.
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
