//! The perfect broker: one state, changed at once, that no crash of a node can harm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::random::Random;
use crate::event::{Delivery, MessageId, Nanoseconds, Subscription};
use crate::matching;
use crate::settings::SECOND;

/// QoS 1 and 2 messages in flight to a session.
pub(super) const IN_FLIGHT_MAX: usize = 6;

/// A client, a connection, a session: numbers from 0.
pub(super) type ClientNumber = usize;
pub(super) type ConnectionNumber = usize;

/// A message on its way through the broker.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) id: MessageId,
    pub(super) topic: &'static str,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) empty: bool,
    pub(super) expiry: Option<u32>,
    /// When its publisher sent it.
    pub(super) sent_at: Nanoseconds,
    /// When the broker took it.
    pub(super) taken_at: Nanoseconds,
}

#[derive(Debug, Clone)]
pub(super) struct Will {
    pub(super) message: Message,
    pub(super) delay: u32,
}

#[derive(Debug, Clone)]
pub(super) enum ToServer {
    Connect {
        client: ClientNumber,
        clean_start: bool,
        expiry: u32,
        will: Option<Will>,
    },
    Subscribe {
        packet_id: u16,
        sent_at: Nanoseconds,
        filters: Vec<Subscription<&'static str>>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<&'static str>,
    },
    Publish {
        packet_id: u16,
        message: Message,
    },
    PubRel {
        packet_id: u16,
    },
    PubAck {
        packet_id: u16,
    },
    PubRec {
        packet_id: u16,
    },
    PubComp {
        packet_id: u16,
    },
    Disconnect {
        reason: u8,
        expiry: Option<u32>,
    },
    /// The end of the stream.
    End,
}

#[derive(Debug, Clone)]
pub(super) enum ToClient {
    ConnAck { session_present: bool },
    SubAck { packet_id: u16, session: u32, reasons: Vec<u8>, filters: Vec<&'static str> },
    UnsubAck { packet_id: u16, reasons: Vec<u8> },
    PubAck { packet_id: u16, reason: u8 },
    PubRec { packet_id: u16, reason: u8 },
    PubComp { packet_id: u16 },
    Publish { delivery: Delivery<&'static str>, origin: Origin },
    PubRel { packet_id: u16 },
    Disconnect { reason: u8 },
    End,
}

/// Why a copy of a message exists.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) session: u32,
    pub(super) copy: u32,
    pub(super) share: Option<&'static str>,
    pub(super) read_since: Option<Nanoseconds>,
    pub(super) first_read: bool,
    /// Filters at QoS above 0 that were acknowledged before the message was sent.
    pub(super) owed_by: Vec<&'static str>,
}

pub(super) enum Effect {
    Send(ConnectionNumber, ToClient),
    /// The server has closed the connection.
    Close(ConnectionNumber),
    At(Nanoseconds, Timer),
    /// A message of QoS above 0 did not fit a queue; a shared one is nobody's.
    Dropped(Option<ClientNumber>),
}

#[derive(Debug, Clone)]
pub(super) enum Timer {
    SessionExpires { client: ClientNumber, session: u32 },
    WillIsDue { client: ClientNumber, session: u32, message: MessageId },
}

#[derive(Debug, Clone)]
struct Copy {
    message: Rc<Message>,
    qos: u8,
    retain: bool,
    origin: Origin,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    copy: Copy,
    released: bool,
}

#[derive(Debug)]
struct Session {
    number: u32,
    connection: Option<ConnectionNumber>,
    expiry: u32,
    ended_at: Nanoseconds,
    subscriptions: BTreeMap<&'static str, Subscription<&'static str>>,
    /// Filters whose SUBACK the client has read, and when.
    acknowledged: BTreeMap<&'static str, Nanoseconds>,
    /// Filters that a SUBSCRIBE has read retained messages for.
    read: Vec<&'static str>,
    in_flight: VecDeque<InFlight>,
    queue: VecDeque<Copy>,
    next_packet_id: u16,
    received: BTreeSet<u16>,
    will: Option<Will>,
    delayed_will: Option<Will>,
}

#[derive(Debug)]
pub(super) struct Broker {
    sessions: BTreeMap<ClientNumber, Session>,
    client_of: BTreeMap<ConnectionNumber, ClientNumber>,
    retained: BTreeMap<&'static str, Rc<Message>>,
    queue_max: usize,
    next_session: u32,
    next_copy: u32,
    random: Random,
}

impl Broker {
    pub(super) fn new(queue_max: usize, random: Random) -> Self {
        Self {
            sessions: BTreeMap::new(),
            client_of: BTreeMap::new(),
            retained: BTreeMap::new(),
            queue_max,
            next_session: 0,
            next_copy: 0,
            random,
        }
    }

    /// Whether the broker holds that connection for a session's own.
    fn session(&mut self, connection: ConnectionNumber) -> Option<(ClientNumber, &mut Session)> {
        let client = *self.client_of.get(&connection)?;
        let session = self.sessions.get_mut(&client)?;
        (session.connection == Some(connection)).then_some((client, session))
    }

    pub(super) fn connected(&self, client: ClientNumber) -> Option<u32> {
        self.sessions.get(&client).filter(|session| session.connection.is_some()).map(|session| session.number)
    }

    pub(super) fn subscribes(&self, client: ClientNumber, filter: &str) -> bool {
        self.sessions.get(&client).is_some_and(|session| session.subscriptions.contains_key(filter))
    }

    /// The client has read a SUBACK: what it publishes from now on is owed.
    pub(super) fn subscription_known(
        &mut self,
        client: ClientNumber,
        number: u32,
        filter: &'static str,
        now: Nanoseconds,
    ) {
        if let Some(session) = self.sessions.get_mut(&client).filter(|session| session.number == number) {
            session.acknowledged.entry(filter).or_insert(now);
        }
    }

    pub(super) fn receive(
        &mut self,
        now: Nanoseconds,
        connection: ConnectionNumber,
        packet: ToServer,
        effects: &mut Vec<Effect>,
    ) {
        if let ToServer::Connect { client, clean_start, expiry, will } = packet {
            self.connect(now, connection, client, clean_start, expiry, will, effects);
            return;
        }
        let Some((client, session)) = self.session(connection) else { return };
        match packet {
            ToServer::Connect { .. } => {}
            ToServer::Subscribe { packet_id, sent_at, filters } => {
                self.subscribe(now, connection, packet_id, sent_at, filters, effects);
            }
            ToServer::Unsubscribe { packet_id, filters } => {
                let mut reasons = Vec::new();
                for filter in filters {
                    session.acknowledged.remove(filter);
                    reasons.push(if session.subscriptions.remove(filter).is_some() { 0 } else { 0x11 });
                }
                effects.push(Effect::Send(connection, ToClient::UnsubAck { packet_id, reasons }));
            }
            ToServer::Publish { packet_id, message } => self.publish(now, connection, packet_id, message, effects),
            ToServer::PubRel { packet_id } => {
                session.received.remove(&packet_id);
                effects.push(Effect::Send(connection, ToClient::PubComp { packet_id }));
            }
            ToServer::PubRec { packet_id } => {
                if let Some(in_flight) = session.in_flight.iter_mut().find(|one| one.packet_id == packet_id) {
                    in_flight.released = true;
                }
                effects.push(Effect::Send(connection, ToClient::PubRel { packet_id }));
            }
            ToServer::PubAck { packet_id } | ToServer::PubComp { packet_id } => {
                session.in_flight.retain(|one| one.packet_id != packet_id);
                self.fill_window(now, client, effects);
            }
            ToServer::Disconnect { reason, expiry } => {
                session.expiry = expiry.unwrap_or(session.expiry);
                if reason == 0 {
                    session.will = None;
                }
                effects.push(Effect::Close(connection));
                self.end(now, connection, effects);
            }
            ToServer::End => self.end(now, connection, effects),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one CONNECT")]
    fn connect(
        &mut self,
        now: Nanoseconds,
        connection: ConnectionNumber,
        client: ClientNumber,
        clean_start: bool,
        expiry: u32,
        will: Option<Will>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(old) = self.sessions.get(&client).and_then(|session| session.connection) {
            effects.push(Effect::Send(old, ToClient::Disconnect { reason: 0x8e }));
            effects.push(Effect::Close(old));
            self.end(now, old, effects);
        }
        if clean_start {
            self.discard(now, client, effects);
        }
        self.client_of.insert(connection, client);
        let session_present = self.sessions.contains_key(&client);
        let next_session = &mut self.next_session;
        let session = self.sessions.entry(client).or_insert_with(|| {
            *next_session += 1;
            Session::new(*next_session)
        });
        session.connection = Some(connection);
        session.expiry = expiry;
        session.will = will;
        // [MQTT-3.1.3-9]: a session that is resumed in time sends no delayed will.
        session.delayed_will = None;
        effects.push(Effect::Send(connection, ToClient::ConnAck { session_present }));
        for in_flight in &session.in_flight {
            let packet_id = in_flight.packet_id;
            let packet = match in_flight.released {
                true => ToClient::PubRel { packet_id },
                false => in_flight.copy.packet(packet_id, true, now),
            };
            effects.push(Effect::Send(connection, packet));
        }
        self.fill_window(now, client, effects);
    }

    /// The connection has ended, and not by a DISCONNECT that took the will along.
    pub(super) fn end(&mut self, now: Nanoseconds, connection: ConnectionNumber, effects: &mut Vec<Effect>) {
        let Some((client, session)) = self.session(connection) else { return };
        session.connection = None;
        session.ended_at = now;
        let number = session.number;
        let expiry = session.expiry;
        let will = session.will.take();
        if let Some(will) = will {
            if will.delay.min(expiry) == 0 {
                self.route(now, client, will.message, effects);
            } else {
                let due = now + u64::from(will.delay.min(expiry)) * SECOND;
                let message = will.message.id;
                effects.push(Effect::At(due, Timer::WillIsDue { client, session: number, message }));
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.delayed_will = Some(will);
                }
            }
        }
        match expiry {
            0 => self.discard(now, client, effects),
            u32::MAX => {}
            _ => {
                let at = now + u64::from(expiry) * SECOND;
                effects.push(Effect::At(at, Timer::SessionExpires { client, session: number }));
            }
        }
    }

    pub(super) fn timer(&mut self, now: Nanoseconds, timer: Timer, effects: &mut Vec<Effect>) {
        match timer {
            Timer::SessionExpires { client, session } => {
                let expired = self.sessions.get(&client).is_some_and(|held| {
                    held.number == session
                        && held.connection.is_none()
                        && held.expiry != u32::MAX
                        && held.ended_at + u64::from(held.expiry) * SECOND <= now
                });
                if expired {
                    self.discard(now, client, effects);
                }
            }
            Timer::WillIsDue { client, session, message } => {
                let held = self.sessions.get_mut(&client).filter(|held| held.number == session);
                let due = |will: &mut Will| will.message.id == message;
                if let Some(will) = held.and_then(|held| held.delayed_will.take_if(due)) {
                    self.route(now, client, will.message, effects);
                }
            }
        }
    }

    /// The session ends: its delayed will is due, and its share of groups goes to other members.
    fn discard(&mut self, now: Nanoseconds, client: ClientNumber, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.remove(&client) else { return };
        if let Some(will) = session.delayed_will {
            self.route(now, client, will.message, effects);
        }
        // What was begun at QoS 2 goes to nobody else [MQTT-4.8.2-5].
        let begun = session.in_flight.into_iter().filter(|one| one.copy.qos == 1).map(|one| one.copy);
        for copy in begun.chain(session.queue) {
            if let Some(share) = copy.origin.share {
                self.route_shared(now, share, &copy.message, effects);
            }
        }
    }

    fn subscribe(
        &mut self,
        now: Nanoseconds,
        connection: ConnectionNumber,
        packet_id: u16,
        sent_at: Nanoseconds,
        filters: Vec<Subscription<&'static str>>,
        effects: &mut Vec<Effect>,
    ) {
        let refuse = self.random.percent(3);
        let retained: Vec<Rc<Message>> = self.retained.values().cloned().collect();
        let Some((client, session)) = self.session(connection) else { return };
        let mut reasons = Vec::new();
        let mut reads = Vec::new();
        for subscription in &filters {
            let filter = subscription.filter;
            let is_new = !session.subscriptions.contains_key(filter);
            if refuse && is_new {
                reasons.push(0x87);
                continue;
            }
            reasons.push(subscription.qos);
            let shared = matching::split_share(filter).is_some();
            let before = session.subscriptions.insert(filter, subscription.clone());
            if before.is_some_and(|before| before.no_local != subscription.no_local || before.qos < subscription.qos) {
                session.acknowledged.remove(filter);
            }
            if shared || subscription.retain_handling == 2 || (subscription.retain_handling == 1 && !is_new) {
                continue;
            }
            for message in retained.iter().filter(|message| matching::matches(filter, message.topic)) {
                let first_read = !session.read.iter().any(|filter| matching::matches(filter, message.topic));
                reads.push((subscription.qos, Rc::clone(message), first_read));
            }
            session.read.push(filter);
        }
        let number = session.number;
        let filters = filters.iter().map(|subscription| subscription.filter).collect();
        effects.push(Effect::Send(connection, ToClient::SubAck { packet_id, session: number, reasons, filters }));
        for (qos, message, first_read) in reads {
            if message.is_expired(now) {
                continue;
            }
            let qos = qos.min(message.qos);
            let mut origin = self.origin(number, None);
            (origin.read_since, origin.first_read) = (Some(sent_at), first_read);
            self.hand(now, client, Copy { message, qos, retain: true, origin }, effects);
        }
    }

    fn publish(
        &mut self,
        now: Nanoseconds,
        connection: ConnectionNumber,
        packet_id: u16,
        mut message: Message,
        effects: &mut Vec<Effect>,
    ) {
        let refused = message.qos > 0 && self.random.percent(3);
        let Some((client, session)) = self.session(connection) else { return };
        let again = message.qos == 2 && session.received.contains(&packet_id);
        let reason = if refused && !again { 0x97 } else { 0 };
        if message.qos == 2 && reason == 0 {
            session.received.insert(packet_id);
        }
        let qos = message.qos;
        message.taken_at = now;
        if reason == 0 && !again {
            self.route(now, client, message, effects);
        }
        match qos {
            0 => {}
            1 => effects.push(Effect::Send(connection, ToClient::PubAck { packet_id, reason })),
            _ => effects.push(Effect::Send(connection, ToClient::PubRec { packet_id, reason })),
        }
    }

    fn origin(&mut self, session: u32, share: Option<&'static str>) -> Origin {
        self.next_copy += 1;
        Origin { session, copy: self.next_copy, share, read_since: None, first_read: false, owed_by: Vec::new() }
    }

    fn route(&mut self, now: Nanoseconds, publisher: ClientNumber, message: Message, effects: &mut Vec<Effect>) {
        let message = Rc::new(message);
        if message.retain {
            if message.empty {
                self.retained.remove(message.topic);
            } else {
                self.retained.insert(message.topic, Rc::clone(&message));
            }
        }
        let mut shares = BTreeSet::new();
        let clients: Vec<ClientNumber> = self.sessions.keys().copied().collect();
        for client in clients {
            let Some(session) = self.sessions.get(&client) else { continue };
            let mut wanted: Option<(u8, bool)> = None;
            let mut owed_by = Vec::new();
            for (&filter, subscription) in &session.subscriptions {
                if let Some((_, plain)) = matching::split_share(filter) {
                    if matching::matches(plain, message.topic) {
                        shares.insert(filter);
                    }
                    continue;
                }
                if !matching::matches(filter, message.topic) || (subscription.no_local && client == publisher) {
                    continue;
                }
                let known = session.acknowledged.get(filter).is_some_and(|&at| at < message.sent_at);
                if known && subscription.qos > 0 {
                    owed_by.push(filter);
                }
                wanted = wanted.max(Some((subscription.qos, subscription.retain_as_published)));
            }
            let number = session.number;
            if let Some((qos, as_published)) = wanted {
                let mut origin = self.origin(number, None);
                origin.owed_by = owed_by;
                let retain = message.retain && as_published;
                let qos = qos.min(message.qos);
                self.hand(now, client, Copy { message: Rc::clone(&message), qos, retain, origin }, effects);
            }
        }
        for share in shares {
            self.route_shared(now, share, &message, effects);
        }
    }

    /// Picks a member: one that is connected if there is one.
    fn route_shared(
        &mut self,
        now: Nanoseconds,
        share: &'static str,
        message: &Rc<Message>,
        effects: &mut Vec<Effect>,
    ) {
        let members = |connected: bool| -> Vec<(ClientNumber, u32, u8)> {
            let of = |(client, session): (&ClientNumber, &Session)| {
                let qos = session.subscriptions.get(share)?.qos;
                (session.connection.is_some() || !connected).then_some((*client, session.number, qos))
            };
            self.sessions.iter().filter_map(of).collect()
        };
        let mut candidates = members(true);
        if candidates.is_empty() {
            candidates = members(false);
        }
        if candidates.is_empty() {
            return;
        }
        let (client, number, qos) = self.random.pick(&candidates);
        let origin = self.origin(number, Some(share));
        let copy = Copy { message: Rc::clone(message), qos: qos.min(message.qos), retain: false, origin };
        self.hand(now, client, copy, effects);
    }

    fn hand(&mut self, now: Nanoseconds, client: ClientNumber, copy: Copy, effects: &mut Vec<Effect>) {
        let queue_max = self.queue_max;
        let Some(session) = self.sessions.get_mut(&client) else { return };
        if copy.message.is_expired(now) {
            return;
        }
        if copy.qos == 0 {
            if let Some(connection) = session.connection {
                effects.push(Effect::Send(connection, copy.packet(0, false, now)));
            }
        } else if session.queue.len() >= queue_max {
            effects.push(Effect::Dropped(copy.origin.share.is_none().then_some(client)));
        } else {
            session.queue.push_back(copy);
            self.fill_window(now, client, effects);
        }
    }

    fn fill_window(&mut self, now: Nanoseconds, client: ClientNumber, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        let Some(connection) = session.connection else { return };
        while session.in_flight.len() < IN_FLIGHT_MAX {
            let Some(copy) = session.queue.pop_front() else { return };
            if copy.message.is_expired(now) {
                continue;
            }
            let packet_id = session.free_packet_id();
            effects.push(Effect::Send(connection, copy.packet(packet_id, false, now)));
            session.in_flight.push_back(InFlight { packet_id, copy, released: false });
        }
    }
}

impl Session {
    fn new(number: u32) -> Self {
        Self {
            number,
            connection: None,
            expiry: 0,
            ended_at: 0,
            subscriptions: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            read: Vec::new(),
            in_flight: VecDeque::new(),
            queue: VecDeque::new(),
            next_packet_id: 0,
            received: BTreeSet::new(),
            will: None,
            delayed_will: None,
        }
    }

    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.next_packet_id = self.next_packet_id % 20 + 1;
            let id = self.next_packet_id;
            if self.in_flight.iter().all(|one| one.packet_id != id) {
                return id;
            }
        }
    }
}

impl Message {
    fn is_expired(&self, now: Nanoseconds) -> bool {
        self.expiry.is_some_and(|expiry| self.taken_at + u64::from(expiry) * SECOND <= now)
    }
}

impl Copy {
    fn packet(&self, packet_id: u16, dup: bool, now: Nanoseconds) -> ToClient {
        let message = &self.message;
        let waited = ((now - message.taken_at) / SECOND) as u32;
        let delivery = Delivery {
            packet_id,
            dup,
            qos: self.qos,
            retain: self.retain,
            topic: message.topic,
            message: (!message.empty).then_some(message.id),
            expiry: message.expiry.map(|expiry| expiry.saturating_sub(waited)),
            identifiers: Box::default(),
        };
        ToClient::Publish { delivery, origin: self.origin.clone() }
    }
}
