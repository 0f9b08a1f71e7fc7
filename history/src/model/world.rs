//! Clients, their connections and the network between them and the broker, on simulated time.

use std::collections::BTreeMap;

use super::broker::{Broker, ClientNumber, ConnectionNumber, Effect, Message, Timer, ToClient, ToServer, Will};
use super::random::Random;
use super::{DeliveryFact, Recording};
use crate::event::{
    Action, Answer, ClosedBy, Connect, Delivery, MessageId, Nanoseconds, Publish, Subscribe, Subscription, What,
};
use crate::history::History;
use crate::settings::SECOND;

const MILLISECOND: Nanoseconds = 1_000_000;
const TOPICS: [&str; 4] = ["plant/1/temp", "plant/2/temp", "plant/1/level", "$SYS/note"];
const FILTERS: [&str; 11] = [
    "plant/1/temp",
    "plant/2/temp",
    "plant/1/level",
    "$SYS/note",
    "plant/+/temp",
    "plant/1/#",
    "#",
    "$SYS/#",
    "$share/a/plant/1/temp",
    "$share/b/plant/#",
    "$share/a/#",
];
const NAMES: [&str; 10] = ["ani", "budi", "citra", "dewi", "eko", "fajar", "gita", "hadi", "indah", "joko"];
const NODES: u16 = 3;
const PUBLISHES_IN_FLIGHT_MAX: usize = 5;

enum Happening {
    ToServer(ConnectionNumber, ToServer),
    ToClient(ConnectionNumber, ToClient),
    Acts(ClientNumber),
    Connects(ClientNumber),
    PublishesOnOld(ConnectionNumber),
    Acknowledges(ConnectionNumber, u16, u8),
    Breaks(ConnectionNumber),
    ServerNotices(ConnectionNumber),
    Timer(Timer),
    Crashes(u16),
    Recovers(u16),
    Slows,
    Heals,
}

struct Connection {
    client: ClientNumber,
    number: u32,
    node: u16,
    /// The client still has its end; the server still reads and writes its own.
    client_open: bool,
    server_open: bool,
    accepted: bool,
    /// DISCONNECT was sent: nothing may follow it.
    leaving: bool,
    /// When the last packet of each direction arrives: they keep their order.
    to_server_at: Nanoseconds,
    to_client_at: Nanoseconds,
}

struct Unacknowledged {
    packet_id: u16,
    message: Message,
    released: bool,
}

struct Client {
    expiry: u32,
    clean_percent: u64,
    /// Stays away when the run ends.
    leaves: bool,
    current: Option<ConnectionNumber>,
    connections: u32,
    next_packet_id: u16,
    unacknowledged: Vec<Unacknowledged>,
    /// SUBSCRIBE and UNSUBSCRIBE by filter.
    touched: BTreeMap<&'static str, u32>,
    /// Some CONNECT was not answered.
    doubtful: bool,
}

pub(super) struct World {
    now: Nanoseconds,
    queue: BTreeMap<(Nanoseconds, u64), Happening>,
    sequence: u64,
    random: Random,
    history: History,
    events_wanted: usize,
    pace: u64,
    slow: bool,
    stopping: bool,
    broker: Broker,
    clients: Vec<Client>,
    connections: Vec<Connection>,
    nodes_down: Vec<u16>,
    next_message: u64,
    facts: Vec<(DeliveryFact, ClientNumber, Vec<&'static str>)>,
}

impl World {
    pub(super) fn new(seed: u64, events_wanted: usize) -> Self {
        let mut random = Random::new(seed);
        let queue_max = if random.percent(20) { 3 } else { 10_000 };
        let broker = Broker::new(queue_max, Random::new(random.number()));
        let count = 4 + random.below(NAMES.len() as u64 - 3) as usize;
        let clients = (0..count).map(|_| Client::new(&mut random)).collect();
        let pace = random.pick(&[1, 1, 5, 40]);
        let mut world = Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            random,
            history: History::new(),
            events_wanted,
            pace,
            slow: false,
            stopping: false,
            broker,
            clients,
            connections: Vec::new(),
            nodes_down: Vec::new(),
            next_message: 0,
            facts: Vec::new(),
        };
        for client in 0..count {
            let wait = world.random.below(100 * MILLISECOND);
            world.after(wait, Happening::Connects(client));
        }
        let span = 40 * MILLISECOND * world.pace * events_wanted as u64 / count as u64 / 4;
        for _ in 0..world.random.below(3) {
            let (at, node) = (world.random.below(span), 1 + world.random.below(NODES.into()) as u16);
            world.after(at, Happening::Crashes(node));
        }
        if world.random.percent(20) {
            let at = world.random.below(span);
            world.after(at, Happening::Slows);
        }
        world
    }

    pub(super) fn run(mut self) -> Recording {
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            self.happen(happening);
            if !self.stopping && self.history.events().len() >= self.events_wanted {
                self.stop();
            }
        }
        // Long enough for all that may come late to have come.
        self.now += 30 * SECOND;
        self.history.push(self.now, What::Quiesced);
        self.finish()
    }

    /// Ends the activity: who stays, returns.
    fn stop(&mut self) {
        self.stopping = true;
        for client in 0..self.clients.len() {
            self.after(5 * SECOND, Happening::Connects(client));
        }
    }

    fn finish(self) -> Recording {
        let settled = |client: ClientNumber| {
            let held = &self.clients[client];
            let open = held.current.is_some_and(|c| self.connections[c].client_open && self.connections[c].accepted);
            self.broker.connected(client).filter(|_| open && !held.doubtful)
        };
        let settled_sessions: Vec<u32> = (0..self.clients.len()).filter_map(settled).collect();
        let facts = self.facts.into_iter().map(|(fact, client, owed_by)| {
            let touched = &self.clients[client].touched;
            let owed = owed_by.iter().any(|filter| touched.get(filter) == Some(&1));
            DeliveryFact { owed, ..fact }
        });
        Recording { deliveries: facts.collect(), history: self.history, settled_sessions }
    }

    // Time.

    fn after(&mut self, wait: Nanoseconds, happening: Happening) {
        self.at(self.now + wait, happening);
    }

    fn at(&mut self, at: Nanoseconds, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }

    fn latency(&mut self) -> Nanoseconds {
        let longest = if self.slow { 400 * MILLISECOND } else { 20 * MILLISECOND };
        50_000 + self.random.below(longest)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ToServer(c, packet) => {
                if self.connections[c].server_open {
                    self.at_broker(|broker, now, effects| broker.receive(now, c, packet, effects));
                }
            }
            Happening::ToClient(c, packet) => {
                if self.connections[c].client_open {
                    self.client_receives(c, packet);
                }
            }
            Happening::Acts(client) => self.act(client),
            Happening::Connects(client) => self.connect_again(client),
            Happening::PublishesOnOld(c) => {
                let connection = &self.connections[c];
                if connection.client_open && connection.accepted && !connection.leaving {
                    self.publish_untracked(c);
                }
            }
            Happening::Acknowledges(c, packet_id, qos) => self.acknowledge(c, packet_id, qos),
            Happening::Breaks(c) => self.break_connection(c),
            Happening::ServerNotices(c) => {
                self.connections[c].server_open = false;
                self.at_broker(|broker, now, effects| broker.end(now, c, effects));
            }
            Happening::Timer(timer) => self.at_broker(|broker, now, effects| broker.timer(now, timer, effects)),
            Happening::Crashes(node) => self.crash(node),
            Happening::Recovers(node) => {
                self.nodes_down.retain(|&down| down != node);
                self.history.push(self.now, What::NodeRecovered { node });
            }
            Happening::Slows => {
                self.slow = true;
                let kind = self.history.symbol("slow network");
                self.history.push(self.now, What::FaultBegan { fault: 1, kind });
                let length = self.random.below(3 * SECOND);
                self.after(length, Happening::Heals);
            }
            Happening::Heals => {
                self.slow = false;
                self.history.push(self.now, What::FaultHealed { fault: 1 });
            }
        }
    }

    fn at_broker(&mut self, does: impl FnOnce(&mut Broker, Nanoseconds, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        does(&mut self.broker, self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(c, packet) => self.send_to_client(c, packet),
                Effect::Close(c) => {
                    self.send_to_client(c, ToClient::End);
                    self.connections[c].server_open = false;
                }
                Effect::At(at, timer) => self.at(at, Happening::Timer(timer)),
                Effect::Dropped(client) => {
                    let reason = self.history.symbol("queue_full");
                    let client = client.map(|client| self.history.symbol(NAMES[client]));
                    self.history.push(self.now, What::Dropped { reason, count: 1, client });
                }
            }
        }
    }

    fn send_to_client(&mut self, c: ConnectionNumber, packet: ToClient) {
        if !self.connections[c].server_open {
            return;
        }
        let at = (self.now + self.latency()).max(self.connections[c].to_client_at);
        self.connections[c].to_client_at = at;
        self.at(at, Happening::ToClient(c, packet));
    }

    fn send_to_server(&mut self, c: ConnectionNumber, packet: ToServer) {
        let at = (self.now + self.latency()).max(self.connections[c].to_server_at);
        self.connections[c].to_server_at = at;
        self.at(at, Happening::ToServer(c, packet));
    }

    fn record(&mut self, c: ConnectionNumber, action: Action<&'static str>) {
        let &Connection { client, number, node, .. } = &self.connections[c];
        let what = What::Client { client: NAMES[client], connection: number, node, action };
        let event = crate::Event { at: self.now, what }.map(&mut |text| self.history.symbol(text));
        self.history.events_mut().push(event);
    }

    // The network's doing.

    /// Both ends lose the connection and all that is on its way; the server learns of it later.
    fn break_connection(&mut self, c: ConnectionNumber) {
        if !self.connections[c].client_open {
            return;
        }
        self.lose_server_end(c);
        self.client_closed(c, ClosedBy::Network);
    }

    fn lose_server_end(&mut self, c: ConnectionNumber) {
        if std::mem::replace(&mut self.connections[c].server_open, false) {
            let notices = self.random.below(2 * SECOND);
            self.after(notices, Happening::ServerNotices(c));
        }
    }

    fn crash(&mut self, node: u16) {
        if self.stopping || !self.nodes_down.is_empty() {
            return;
        }
        self.nodes_down.push(node);
        self.history.push(self.now, What::NodeCrashed { node });
        for c in 0..self.connections.len() {
            if self.connections[c].node == node && self.connections[c].server_open {
                self.send_to_client(c, ToClient::End);
                self.lose_server_end(c);
            }
        }
        let down = 500 * MILLISECOND + self.random.below(4 * SECOND);
        self.after(down, Happening::Recovers(node));
    }

    // The clients' doing.

    fn client_closed(&mut self, c: ConnectionNumber, by: ClosedBy) {
        self.record(c, Action::ConnectionClosed { by });
        self.connections[c].client_open = false;
        let client = self.connections[c].client;
        self.clients[client].doubtful |= !self.connections[c].accepted;
        if self.clients[client].current == Some(c) {
            let wait = (20 * MILLISECOND + self.random.below(300 * MILLISECOND))
                * if self.random.percent(10) { 15 } else { 1 };
            self.after(wait, Happening::Connects(client));
        }
    }

    fn connect_again(&mut self, client: ClientNumber) {
        let open = self.clients[client].current.is_some_and(|c| self.connections[c].client_open);
        let stays_away = self.stopping && self.clients[client].leaves;
        if !open && !stays_away {
            self.connect(client);
        }
    }

    fn connect(&mut self, client: ClientNumber) {
        let node = loop {
            let node = 1 + self.random.below(NODES.into()) as u16;
            if !self.nodes_down.contains(&node) {
                break node;
            }
        };
        let held = &mut self.clients[client];
        held.connections += 1;
        let number = held.connections;
        let expiry = held.expiry;
        let clean_start = !self.stopping && self.random.percent(held.clean_percent);
        let c = self.connections.len();
        held.current = Some(c);
        self.connections.push(Connection {
            client,
            number,
            node,
            client_open: true,
            server_open: true,
            accepted: false,
            leaving: false,
            to_server_at: 0,
            to_client_at: 0,
        });
        let will = self
            .random
            .percent(30)
            .then(|| Will { message: self.new_message(), delay: self.random.pick(&[0, 0, 1, 2]) });
        let will = will.map(|will| Will { message: Message { empty: false, expiry: None, ..will.message }, ..will });
        let told = will.as_ref().map(|will| crate::Will {
            topic: will.message.topic,
            qos: will.message.qos,
            retain: will.message.retain,
            delay: will.delay,
            message: will.message.id,
        });
        let connect = Connect { clean_start, session_expiry: expiry, will: told };
        self.record(c, Action::ConnectSent(Box::new(connect)));
        self.send_to_server(c, ToServer::Connect { client, clean_start, expiry, will });
        if !self.stopping && self.random.percent(5) {
            let wait = self.random.below(30 * MILLISECOND);
            self.after(wait, Happening::Breaks(c));
        }
    }

    fn new_message(&mut self) -> Message {
        self.next_message += 1;
        let retain = self.random.percent(20);
        Message {
            id: MessageId(self.next_message),
            topic: self.random.pick(&TOPICS),
            qos: self.random.below(3) as u8,
            retain,
            empty: retain && self.random.percent(20),
            expiry: self.random.percent(15).then(|| 1 + self.random.below(3) as u32),
            sent_at: self.now,
            taken_at: 0,
        }
    }

    fn act(&mut self, client: ClientNumber) {
        let Some(c) = self.clients[client].current else { return };
        let connection = &self.connections[c];
        if self.stopping || !connection.client_open || !connection.accepted || connection.leaving {
            return;
        }
        match self.random.below(100) {
            0..66 => self.publish(client, c),
            66..84 => self.subscribe(client, c),
            84..90 => self.unsubscribe(client, c),
            90..93 => {
                // The socket closes: what was sent may still arrive, or not.
                if self.random.percent(50) {
                    self.send_to_server(c, ToServer::End);
                } else {
                    self.lose_server_end(c);
                }
                self.client_closed(c, ClosedBy::Client);
            }
            93..95 => self.break_connection(c),
            95..98 => self.disconnect(c),
            _ => {
                self.connect(client);
                let wait = self.random.below(20 * MILLISECOND);
                self.after(wait, Happening::PublishesOnOld(c));
                return;
            }
        }
        self.acts_soon(client);
    }

    fn acts_soon(&mut self, client: ClientNumber) {
        let wait = (MILLISECOND + self.random.below(40 * MILLISECOND)) * self.pace;
        self.after(wait, Happening::Acts(client));
    }

    fn packet_id(&mut self, client: ClientNumber) -> u16 {
        let held = &mut self.clients[client];
        loop {
            held.next_packet_id = held.next_packet_id % 60 + 1;
            if held.unacknowledged.iter().all(|one| one.packet_id != held.next_packet_id) {
                return held.next_packet_id;
            }
        }
    }

    fn publish(&mut self, client: ClientNumber, c: ConnectionNumber) {
        let message = self.new_message();
        if message.qos == 0 {
            self.send_publish(c, 0, false, message);
        } else if self.clients[client].unacknowledged.len() < PUBLISHES_IN_FLIGHT_MAX {
            let packet_id = self.packet_id(client);
            let kept = Unacknowledged { packet_id, message: message.clone(), released: false };
            self.clients[client].unacknowledged.push(kept);
            self.send_publish(c, packet_id, false, message);
        }
    }

    /// A PUBLISH on a connection that is just being replaced, never tried again.
    fn publish_untracked(&mut self, c: ConnectionNumber) {
        let mut message = self.new_message();
        message.qos = message.qos.min(1);
        let packet_id = if message.qos > 0 { self.packet_id(self.connections[c].client) } else { 0 };
        self.send_publish(c, packet_id, false, message);
    }

    fn send_publish(&mut self, c: ConnectionNumber, packet_id: u16, dup: bool, mut message: Message) {
        message.sent_at = self.now;
        let &Message { id, topic, qos, retain, empty, expiry, .. } = &message;
        let publish = Publish { packet_id, dup, qos, retain, topic, expiry, message: id, empty };
        self.record(c, Action::PublishSent(publish));
        self.send_to_server(c, ToServer::Publish { packet_id, message });
    }

    fn subscribe(&mut self, client: ClientNumber, c: ConnectionNumber) {
        let packet_id = self.packet_id(client);
        let mut filters: Vec<Subscription<&'static str>> = Vec::new();
        for _ in 0..1 + self.random.below(2) {
            let filter = self.random.pick(&FILTERS);
            if filters.iter().any(|subscription| subscription.filter == filter) {
                continue;
            }
            *self.clients[client].touched.entry(filter).or_default() += 1;
            filters.push(Subscription {
                filter,
                qos: self.random.below(3) as u8,
                no_local: !filter.starts_with("$share/") && self.random.percent(15),
                retain_as_published: self.random.percent(15),
                retain_handling: self.random.pick(&[0, 0, 0, 1, 2]),
            });
        }
        let subscribe = Subscribe { packet_id, filters: filters.clone() };
        self.record(c, Action::SubscribeSent(Box::new(subscribe)));
        self.send_to_server(c, ToServer::Subscribe { packet_id, sent_at: self.now, filters });
    }

    fn unsubscribe(&mut self, client: ClientNumber, c: ConnectionNumber) {
        let packet_id = self.packet_id(client);
        let mut filter = self.random.pick(&FILTERS);
        for _ in 0..5 {
            if !self.broker.subscribes(client, filter) {
                filter = self.random.pick(&FILTERS);
            }
        }
        *self.clients[client].touched.entry(filter).or_default() += 1;
        self.record(c, Action::UnsubscribeSent { packet_id, filters: Box::new([filter]) });
        self.send_to_server(c, ToServer::Unsubscribe { packet_id, filters: vec![filter] });
    }

    fn disconnect(&mut self, c: ConnectionNumber) {
        self.connections[c].leaving = true;
        let reason = if self.random.percent(30) { 4 } else { 0 };
        let keeps = self.clients[self.connections[c].client].expiry > 0;
        let expiry = (keeps && self.random.percent(10)).then_some(1);
        self.record(c, Action::DisconnectSent { reason, session_expiry: expiry });
        self.send_to_server(c, ToServer::Disconnect { reason, expiry });
        if self.random.percent(50) {
            self.send_to_server(c, ToServer::End);
            self.client_closed(c, ClosedBy::Client);
        } else {
            // It waits for the server to close.
            self.after(SECOND, Happening::Breaks(c));
        }
    }

    fn acknowledge(&mut self, c: ConnectionNumber, packet_id: u16, qos: u8) {
        if !self.connections[c].client_open || self.connections[c].leaving {
            return;
        }
        let answer = Answer { packet_id, reason: 0 };
        if qos == 1 {
            self.record(c, Action::PubAckSent(answer));
            self.send_to_server(c, ToServer::PubAck { packet_id });
        } else {
            self.record(c, Action::PubRecSent(answer));
            self.send_to_server(c, ToServer::PubRec { packet_id });
        }
    }

    fn client_receives(&mut self, c: ConnectionNumber, packet: ToClient) {
        let client = self.connections[c].client;
        match packet {
            ToClient::ConnAck { session_present } => {
                self.record(c, Action::ConnAck { reason: 0, session_present, session_expiry: None });
                self.connections[c].accepted = true;
                self.resume(client, c, session_present);
                self.acts_soon(client);
            }
            ToClient::SubAck { packet_id, session, reasons, filters } => {
                for (filter, _) in filters.into_iter().zip(&reasons).filter(|(_, reason)| **reason < 0x80) {
                    self.broker.subscription_known(client, session, filter, self.now);
                }
                self.record(c, Action::SubAck { packet_id, reasons: reasons.into() });
            }
            ToClient::UnsubAck { packet_id, reasons } => {
                self.record(c, Action::UnsubAck { packet_id, reasons: reasons.into() });
            }
            ToClient::PubAck { packet_id, reason } => {
                self.record(c, Action::PubAckReceived(Answer { packet_id, reason }));
                self.forget(client, c, packet_id);
            }
            ToClient::PubRec { packet_id, reason } => {
                self.record(c, Action::PubRecReceived(Answer { packet_id, reason }));
                if reason >= 0x80 {
                    self.forget(client, c, packet_id);
                } else if self.clients[client].current == Some(c) {
                    self.release(client, c, packet_id);
                }
            }
            ToClient::PubComp { packet_id } => {
                self.record(c, Action::PubCompReceived(Answer { packet_id, reason: 0 }));
                self.forget(client, c, packet_id);
            }
            ToClient::Publish { delivery, origin } => self.receive_publish(client, c, delivery, origin),
            ToClient::PubRel { packet_id } => {
                self.record(c, Action::PubRelReceived(Answer { packet_id, reason: 0 }));
                self.record(c, Action::PubCompSent(Answer { packet_id, reason: 0 }));
                self.send_to_server(c, ToServer::PubComp { packet_id });
            }
            ToClient::Disconnect { reason } => self.record(c, Action::DisconnectReceived { reason }),
            ToClient::End => self.client_closed(c, ClosedBy::Server),
        }
    }

    /// An answer on a connection that was replaced says nothing of what its successor sent.
    fn forget(&mut self, client: ClientNumber, c: ConnectionNumber, packet_id: u16) {
        let held = &mut self.clients[client];
        if held.current == Some(c) {
            held.unacknowledged.retain(|kept| kept.packet_id != packet_id);
        }
    }

    fn release(&mut self, client: ClientNumber, c: ConnectionNumber, packet_id: u16) {
        for kept in self.clients[client].unacknowledged.iter_mut().filter(|kept| kept.packet_id == packet_id) {
            kept.released = true;
        }
        self.record(c, Action::PubRelSent(Answer { packet_id, reason: 0 }));
        self.send_to_server(c, ToServer::PubRel { packet_id });
    }

    /// Goes on with what was not acknowledged: the same handshakes in the same session, else second tries or none.
    fn resume(&mut self, client: ClientNumber, c: ConnectionNumber, session_present: bool) {
        let kept = std::mem::take(&mut self.clients[client].unacknowledged);
        for mut kept in kept {
            if session_present {
                if kept.released {
                    self.record(c, Action::PubRelSent(Answer { packet_id: kept.packet_id, reason: 0 }));
                    self.send_to_server(c, ToServer::PubRel { packet_id: kept.packet_id });
                } else {
                    self.send_publish(c, kept.packet_id, true, kept.message.clone());
                }
                self.clients[client].unacknowledged.push(kept);
            } else if !kept.released && self.random.percent(50) {
                kept.packet_id = self.packet_id(client);
                self.send_publish(c, kept.packet_id, false, kept.message.clone());
                self.clients[client].unacknowledged.push(kept);
            }
        }
    }

    fn receive_publish(
        &mut self,
        client: ClientNumber,
        c: ConnectionNumber,
        delivery: Delivery<&'static str>,
        origin: super::broker::Origin,
    ) {
        let (packet_id, qos) = (delivery.packet_id, delivery.qos);
        let fact = DeliveryFact {
            event: self.history.events().len(),
            session: origin.session,
            message: delivery.message,
            copy: origin.copy,
            shared: origin.share.is_some(),
            read_since: origin.read_since,
            first_read: origin.first_read,
            owed: false,
        };
        self.facts.push((fact, client, origin.owed_by));
        self.record(c, Action::Delivered(delivery));
        if qos > 0 {
            let wait = self.random.below(30 * MILLISECOND) * if self.random.percent(5) { 15 } else { 1 };
            self.after(wait, Happening::Acknowledges(c, packet_id, qos));
        }
    }
}

impl Client {
    fn new(random: &mut Random) -> Self {
        Self {
            expiry: random.pick(&[0, 2, 5, u32::MAX, u32::MAX]),
            clean_percent: random.pick(&[0, 0, 10, 100]),
            leaves: random.percent(20),
            current: None,
            connections: 0,
            next_packet_id: 0,
            unacknowledged: Vec::new(),
            touched: BTreeMap::new(),
            doubtful: false,
        }
    }
}
