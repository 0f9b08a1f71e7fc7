//! The clients of a simulation: whatever MQTT clients do, from a seed, and the history of what they saw.
//!
//! [`Workload`] holds all clients. It has no clock and no network: whoever owns it says what time it is ([`Workload::on_time`]),
//! gives it the connections it wishes for ([`Wish`]), says when there may be something to read or room to write
//! ([`Workload::on_stream`]), and what befalls the nodes ([`Workload::on_fault`]). Everything is recorded in the form of
//! [`kentongan_history`]: what is sent when its first byte is written, what is received when it is read.
//!
//! A Client Identifier is an [`Identity`](identity::Identity): it has a character ([`plan`]), the client's part of the session,
//! and two clients, which take it from each other now and then. What they do of their own is in [`acts`], what they answer
//! in [`packets`], how all come to rest at the end in [`drain`].

mod acts;
mod connection;
mod drain;
mod identity;
mod packets;
mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use kentongan_history::{Action, ClosedBy, History, MessageId, SECOND, Settings, Symbol, What};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::connection::{Connection, Link, Phase};
use self::drain::Drain;
use self::identity::Identity;
use self::plan::{Character, Kind};
use crate::connection::MemoryStream;

pub use self::plan::WorkloadPlan;
pub(super) use self::plan::{QUIET_TOPICS, TOPICS, WHISPERED_TOPICS};

const MILLISECOND: u64 = 1_000_000;

/// Clients of one Client Identifier.
const CLIENTS_EACH: usize = 2;

/// What a client does in a rush beside what it does anyway.
const RUSH_ACTS_MAX: usize = 16;

/// How long the oldest byte may be under way between a client and its node, while no fault is on, for the histories to be
/// judged by [`Workload::settings`]: what slow readers leave unread is under way too.
const TRANSIT_SECONDS_MAX: u64 = 2;

/// What clients do, and what becomes of it: none is missing from a few seeds.
pub(super) const OPERATIONS: [&str; 49] = [
    "-> CONNECT",
    "<- CONNACK",
    "-> SUBSCRIBE",
    "<- SUBACK",
    "-> UNSUBSCRIBE",
    "<- UNSUBACK",
    "-> PUBLISH",
    "<- PUBACK",
    "<- PUBREC",
    "-> PUBREL",
    "<- PUBCOMP",
    "<- PUBLISH",
    "-> PUBACK",
    "-> PUBREC",
    "<- PUBREL",
    "-> PUBCOMP",
    "<- PINGRESP",
    "-> DISCONNECT",
    "<- DISCONNECT",
    "session begun",
    "session resumed",
    "resent in the same session",
    "taken over",
    "published on a replaced connection",
    "acknowledged late",
    "fell silent",
    "vanished",
    "left",
    "left with the will",
    "message with expiry published",
    "retained message published",
    "retained message deleted",
    "retained will",
    "will of QoS 0",
    "will of QoS 1",
    "will of QoS 2",
    "will with delay",
    "subscribed as one of a group",
    "subscribed without own messages",
    "subscribed for retained messages if new",
    "subscribed for no retained messages",
    "subscription taken back at once",
    "subscribed with a Subscription Identifier",
    "received with a Subscription Identifier",
    "published by a Topic Alias",
    "received by a Topic Alias",
    "large message published",
    "message published",
    "left with another Session Expiry Interval",
];

/// What clients want of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A connection to a node, answered by [`Workload::opened`].
    Open {
        /// Who wants it.
        client: usize,
        /// Which node.
        node: usize,
    },
    /// A client is gone without a word. It has let go of its stream already; what is under way is lost, and its node may
    /// or may not be told.
    Reset {
        /// Who.
        client: usize,
    },
}

/// What befalls the nodes, as the history tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault<'a> {
    /// A node's process ended without notice.
    NodeCrashed {
        /// Which.
        node: usize,
    },
    /// It runs again.
    NodeRecovered {
        /// Which.
        node: usize,
    },
    /// Anything else begins.
    Began {
        /// Tells it from the others.
        fault: u32,
        /// For the reader.
        kind: &'a str,
    },
    /// That is over.
    Healed {
        /// Which.
        fault: u32,
    },
    /// Messages above QoS 0 fell to a bound, and were counted.
    Dropped {
        /// The metric's reason.
        reason: &'a str,
        /// How many.
        count: u64,
        /// The Client Identifier of the session that lost them.
        client: &'a str,
    },
}

/// What is done in a rush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hurry {
    /// Whatever clients do.
    Anything,
    /// Nothing that anybody wanted before.
    Whisper,
}

impl Hurry {
    /// What few want.
    fn quiet_topics(self) -> &'static [&'static str] {
        match self {
            Self::Anything => &QUIET_TOPICS,
            Self::Whisper => &WHISPERED_TOPICS,
        }
    }
}

/// What is due at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A Client Identifier should have a connection.
    Connect(usize),
    Act(Link),
    /// Once more, beside what it does anyway.
    Hurry(Link, Hurry),
    Acknowledge(Link),
    Ping(Link),
    Read(Link),
    /// It waited long enough for CONNACK, or for the end.
    GiveUp(Link, Phase),
    /// It is silent, and now it is gone.
    Vanish(Link),
    Close(Link),
    Drain,
}

/// What was sent on a connection and waits for an answer, by Packet Identifier: when, and what.
type Exchanges = BTreeMap<u16, (u64, &'static str)>;

/// All clients.
#[derive(Debug)]
pub struct Workload {
    random: SmallRng,
    pace_ns: u64,
    /// Until then nobody does anything of their own.
    hushed_until_ns: u64,
    nodes: usize,
    identities: Vec<Identity>,
    clients: Vec<Connection>,
    due: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    sequence: u64,
    wishes: Vec<Wish>,
    history: History,
    topics: Vec<Symbol>,
    next_message: u64,
    drain: Drain,
    last_packet_ns: u64,
    last_closed_ns: u64,
    complaints: Vec<String>,
    tally: BTreeMap<&'static str, u64>,
}

impl Workload {
    /// The clients of a run with so many nodes, counted from 0. They begin when [`Self::on_time`] is called.
    #[must_use]
    pub fn new(plan: &WorkloadPlan, nodes: usize) -> Self {
        let mut random = SmallRng::seed_from_u64(plan.seed);
        let mut history = History::new();
        let topics = plan::TOPICS.iter().map(|topic| history.symbol(topic)).collect();
        let mut workload = Self {
            pace_ns: plan.pace_ms * MILLISECOND,
            hushed_until_ns: 0,
            nodes,
            identities: Vec::new(),
            clients: Vec::new(),
            due: BinaryHeap::new(),
            sequence: 0,
            wishes: Vec::new(),
            history,
            topics,
            next_message: 0,
            drain: Drain::No,
            last_packet_ns: 0,
            last_closed_ns: 0,
            complaints: Vec::new(),
            tally: BTreeMap::new(),
            random: SmallRng::seed_from_u64(random.random()),
        };
        for number in 0..plan.identifiers {
            let character = Character::draw(Kind::of(number), &mut random);
            workload.add_identity(format!("client-{number}"), character, CLIENTS_EACH);
            let first_ns = workload.random.random_range(0..500) * MILLISECOND;
            workload.at(first_ns, Happening::Connect(number));
        }
        for node in 0..nodes {
            workload.add_identity(format!("reader-{node}"), Character::last_reader(&mut random), 1);
        }
        workload
    }

    fn add_identity(&mut self, name: String, character: Character, clients: usize) {
        let number = self.identities.len();
        let clients = self.clients.len()..self.clients.len() + clients;
        self.clients.extend(clients.clone().map(|client| Connection::new(client, number)));
        let symbol = self.history.symbol(&name);
        self.identities.push(Identity::new(Arc::from(name), symbol, character, clients));
    }

    /// How many clients there are; they are counted from 0.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// When [`Self::on_time`] wants to be called.
    #[must_use]
    pub fn next_at_ns(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    /// Time passed: clients do what is due, and say what they want of the network.
    pub fn on_time(&mut self, now_ns: u64) -> Vec<Wish> {
        while let Some(&Reverse((at_ns, _, happening))) = self.due.peek()
            && at_ns <= now_ns
        {
            self.due.pop();
            self.happen(now_ns, happening);
        }
        std::mem::take(&mut self.wishes)
    }

    fn happen(&mut self, now_ns: u64, happening: Happening) {
        match happening {
            Happening::Connect(identity) => self.connect_if_needed(now_ns, identity),
            Happening::Drain => self.go_on_draining(now_ns),
            Happening::Act(link) if self.is_open(link) && now_ns < self.hushed_until_ns => self.act_later(now_ns, link),
            Happening::Act(link) if self.is_open(link) => self.act(now_ns, link.client),
            Happening::Hurry(link, hurry) if self.is_open(link) => self.hurry(now_ns, link.client, hurry),
            Happening::Acknowledge(link) if self.is_open(link) => self.acknowledge_due(now_ns, link.client),
            Happening::Ping(link) if self.is_open(link) => self.ping(now_ns, link.client),
            Happening::Read(link) if self.is_open(link) => self.on_stream(now_ns, link.client),
            Happening::GiveUp(link, phase) if self.is_open(link) && self.clients[link.client].phase == phase => {
                self.count("given up");
                self.close(now_ns, link.client, ClosedBy::Client);
            }
            Happening::Vanish(link) if self.is_open(link) => self.vanish(now_ns, link.client),
            Happening::Close(link) if self.is_open(link) => self.close(now_ns, link.client, ClosedBy::Client),
            _ => {}
        }
    }

    /// For some time everybody publishes and subscribes much.
    pub fn rush(&mut self, now_ns: u64, lasts_ns: u64, hurry: Hurry) {
        for client in 0..self.clients.len() {
            let link = self.clients[client].link;
            for _ in 0..self.random.random_range(4..RUSH_ACTS_MAX) {
                let wait_ns = self.random.random_range(0..lasts_ns);
                self.at(now_ns + wait_ns, Happening::Hurry(link, hurry));
            }
        }
    }

    /// Who listens at this node and waits for an answer to what it sent before `before_ns`: in words.
    pub fn waits(&self, node: usize, before_ns: u64) -> Vec<String> {
        let mut sent: BTreeMap<(Symbol, u32), Exchanges> = BTreeMap::new();
        for event in self.history.events() {
            let What::Client { client, connection, action, .. } = &event.what else { continue };
            let exchanges = sent.entry((*client, *connection)).or_default();
            match action {
                Action::PublishSent(publish) if publish.qos > 0 => {
                    exchanges.insert(publish.packet_id, (event.at, "PUBLISH"));
                }
                Action::SubscribeSent(subscribe) => {
                    exchanges.insert(subscribe.packet_id, (event.at, "SUBSCRIBE"));
                }
                Action::PubAckReceived(answer) | Action::PubRecReceived(answer) => {
                    exchanges.remove(&answer.packet_id);
                }
                Action::SubAck { packet_id, .. } => {
                    exchanges.remove(packet_id);
                }
                _ => {}
            }
        }
        let listens =
            |client: &&Connection| client.node == node && client.phase == Phase::Connected && !client.is_silent;
        let mut waits = Vec::new();
        for client in self.clients.iter().filter(listens) {
            let identity = &self.identities[client.identity];
            let exchanges = sent.remove(&(identity.symbol, client.link.number)).unwrap_or_default();
            for (at_ns, packet) in exchanges.into_values().filter(|&(at_ns, _)| at_ns < before_ns) {
                waits.push(format!("{} since {:.3} s for the answer to a {packet}", identity.name, at_ns as f64 / 1e9));
            }
        }
        waits
    }

    /// Until then clients do nothing of their own.
    pub fn hush(&mut self, until_ns: u64) {
        self.hushed_until_ns = until_ns;
    }

    /// What a [`Wish::Open`] came to. `None`: refused, the node is down.
    pub fn opened(&mut self, now_ns: u64, client: usize, stream: Option<MemoryStream>) {
        let connection = &mut self.clients[client];
        debug_assert_eq!(connection.phase, Phase::Opening, "nobody asked for it");
        match stream {
            Some(stream) => {
                connection.stream = Some(stream);
                self.connect(now_ns, client);
            }
            None => {
                connection.phase = Phase::Closed;
                let identity = connection.identity;
                self.count("refused by a node that is down");
                self.connect_later(now_ns, identity);
            }
        }
    }

    /// There may be bytes to read, or room to write, or the end.
    pub fn on_stream(&mut self, now_ns: u64, client: usize) {
        self.write(now_ns, client);
        let connection = &mut self.clients[client];
        if connection.reads_again_ns > now_ns {
            return;
        }
        let is_slow = self.identities[connection.identity].character.is_slow && self.drain == Drain::No;
        if is_slow && connection.phase == Phase::Connected {
            let wait_ns = self.random.random_range(50..600) * MILLISECOND;
            connection.reads_again_ns = now_ns + wait_ns;
            let link = connection.link;
            self.at(now_ns + wait_ns, Happening::Read(link));
        }
        let end = self.clients[client].read();
        self.take_packets(now_ns, client);
        self.write(now_ns, client);
        if let Some(by) = end {
            self.close(now_ns, client, by);
        }
    }

    /// Something befalls the nodes.
    pub fn on_fault(&mut self, now_ns: u64, fault: Fault<'_>) {
        let what = match fault {
            Fault::NodeCrashed { node } => What::NodeCrashed { node: node as u16 },
            Fault::NodeRecovered { node } => What::NodeRecovered { node: node as u16 },
            Fault::Began { fault, kind } => What::FaultBegan { fault, kind: self.history.symbol(kind) },
            Fault::Healed { fault } => What::FaultHealed { fault },
            Fault::Dropped { reason, count, client } => {
                let client = Some(self.history.symbol(client));
                What::Dropped { reason: self.history.symbol(reason), count, client }
            }
        };
        self.history.push(now_ns, what);
    }

    /// What the cluster says of itself after it had time to recover: the Client Identifiers that have a connection, each as
    /// often as it is registered; all filters that are routed anywhere; groups without a leader.
    pub fn on_registry<'a>(
        &mut self,
        now_ns: u64,
        owners: impl IntoIterator<Item = &'a str>,
        routes: impl IntoIterator<Item = &'a str>,
        leaderless: Vec<u16>,
    ) {
        let owners = owners.into_iter().map(|owner| self.history.symbol(owner)).collect();
        let routes = routes.into_iter().map(|route| self.history.symbol(route)).collect();
        self.history.push(now_ns, What::Registry { owners, routes, leaderless });
    }

    /// What was recorded so far.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What was recorded.
    #[must_use]
    pub fn into_history(self) -> History {
        self.history
    }

    /// What is wrong and has no place in a history: bytes that are no MQTT, and handshakes that did not end.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// What the history is to be judged by, unless nodes need longer to notice that another is dead.
    #[must_use]
    pub fn settings() -> Settings {
        Settings {
            detection_max: plan::SILENCE_SECONDS_MAX * SECOND,
            transit_max: TRANSIT_SECONDS_MAX * SECOND,
            ..Settings::default()
        }
    }

    /// How often clients did what.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = self.tally.clone();
        for event in self.history.events() {
            if let What::Client { action, .. } = &event.what {
                *counts.entry(name_of(action)).or_default() += 1;
            }
        }
        counts
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn at(&mut self, at_ns: u64, happening: Happening) {
        self.sequence += 1;
        self.due.push(Reverse((at_ns, self.sequence, happening)));
    }

    fn milliseconds(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.random.random_range(range) * MILLISECOND
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn is_open(&self, link: Link) -> bool {
        let connection = &self.clients[link.client];
        connection.link == link && connection.stream.is_some()
    }

    /// Whether nothing newer has the Client Identifier.
    fn is_current(&self, client: usize) -> bool {
        let connection = &self.clients[client];
        self.identities[connection.identity].current == Some(connection.link)
    }

    fn next_message(&mut self) -> MessageId {
        self.next_message += 1;
        MessageId(self.next_message)
    }

    fn record(&mut self, now_ns: u64, client: usize, action: Action) {
        let connection = &self.clients[client];
        let symbol = self.identities[connection.identity].symbol;
        self.history.push_client(now_ns, symbol, connection.link.number, connection.node as u16, action);
    }

    /// Writes what waits and there is room for.
    fn write(&mut self, now_ns: u64, client: usize) {
        let connection = &mut self.clients[client];
        let Some(stream) = &connection.stream else {
            return;
        };
        let symbol = self.identities[connection.identity].symbol;
        let (number, node) = (connection.link.number, connection.node as u16);
        let history = &mut self.history;
        connection.outgoing.write(stream, |action| history.push_client(now_ns, symbol, number, node, action));
    }

    /// The connection is over for the client, whoever ended it.
    fn close(&mut self, now_ns: u64, client: usize, by: ClosedBy) {
        self.record(now_ns, client, Action::ConnectionClosed { by });
        self.last_closed_ns = now_ns;
        let connection = &mut self.clients[client];
        connection.stream = None;
        connection.phase = Phase::Closed;
        let identity = connection.identity;
        if self.is_current(client) {
            self.connect_later(now_ns, identity);
        }
    }

    /// The client and its connection are gone.
    fn vanish(&mut self, now_ns: u64, client: usize) {
        if let Some(stream) = &self.clients[client].stream {
            stream.reset();
        }
        self.count("vanished");
        self.wishes.push(Wish::Reset { client });
        self.close(now_ns, client, ClosedBy::Network);
    }
}

fn name_of(action: &Action) -> &'static str {
    match action {
        Action::ConnectSent(_) => "-> CONNECT",
        Action::ConnAck { .. } => "<- CONNACK",
        Action::SubscribeSent(_) => "-> SUBSCRIBE",
        Action::SubAck { .. } => "<- SUBACK",
        Action::UnsubscribeSent { .. } => "-> UNSUBSCRIBE",
        Action::UnsubAck { .. } => "<- UNSUBACK",
        Action::PublishSent(_) => "-> PUBLISH",
        Action::PubAckReceived(_) => "<- PUBACK",
        Action::PubRecReceived(_) => "<- PUBREC",
        Action::PubRelSent(_) => "-> PUBREL",
        Action::PubCompReceived(_) => "<- PUBCOMP",
        Action::Delivered(_) => "<- PUBLISH",
        Action::PubAckSent(_) => "-> PUBACK",
        Action::PubRecSent(_) => "-> PUBREC",
        Action::PubRelReceived(_) => "<- PUBREL",
        Action::PubCompSent(_) => "-> PUBCOMP",
        Action::PingResp => "<- PINGRESP",
        Action::DisconnectSent { .. } => "-> DISCONNECT",
        Action::DisconnectReceived { .. } => "<- DISCONNECT",
        Action::ConnectionClosed { .. } => "closed",
    }
}

#[cfg(test)]
mod tests;
