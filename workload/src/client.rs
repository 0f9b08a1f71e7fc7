//! A client that does at random what clients do, and notes everything that it says and hears.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_history::{Action, Answer, ClosedBy, MessageId, Symbol};
use kentongan_proto::mqtt::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::habits::{Keeps, Kind};
use crate::link::Link;
use crate::stage::{Act, Stage};

/// How long a client waits for a packet before it looks at what it should do.
const GLANCE: Duration = Duration::from_millis(10);

/// How long it waits for CONNACK, and for the end after DISCONNECT.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long it waits for an acknowledgement before it tries another node.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(3);

/// Unacknowledged messages it has at most.
const WINDOW: usize = 8;

/// How much of what it could not do in time a client does later, all at once.
const BACKLOG: Duration = Duration::from_millis(500);

/// Of its messages so many have QoS 1 or 2.
const ACKNOWLEDGED_SHARE: f64 = 17.0 / 24.0;

/// A message whose exchange has not ended.
#[derive(Debug)]
struct Flight {
    packet_id: PacketId,
    message: MessageId,
    topic: Arc<str>,
    retain: bool,
    empty: bool,
    expiry: Option<u32>,
    exactly_once: bool,
    /// QoS 2: PUBREC came, PUBREL went.
    released: bool,
}

/// A connection, and what is noted with everything on it.
struct Connection {
    link: Link,
    number: u32,
    node: u16,
}

/// A client of a run.
#[derive(Debug)]
pub struct Client {
    stage: Arc<Stage>,
    name: Symbol,
    number: usize,
    client_id: String,
    kind: Kind,
    /// Session Expiry Interval in seconds.
    expiry: u32,
    random: SmallRng,
    connections: u32,
    node: usize,
    next_packet_id: u16,
    flights: VecDeque<Flight>,
    flights_since: Instant,
    /// SUBSCRIBEs and UNSUBSCRIBEs without an answer on this connection.
    unanswered: usize,
    /// Whether it was connected with a session that lives on.
    returns: bool,
    /// What the stage was told last.
    reported: usize,
    /// When it does something next.
    due: Instant,
}

/// How a connection ended for the client.
enum End {
    /// It ended: by whom.
    Closed(ClosedBy),
    /// It sent DISCONNECT and waits for the end.
    Left,
    /// It goes on with another connection.
    Replaced,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed(ClosedBy::Server),
            _ => Self::Closed(ClosedBy::Network),
        }
    }
}

impl Client {
    /// The client with this number; what it does follows from the seed, when it does so from the nodes too.
    #[must_use]
    pub fn new(stage: Arc<Stage>, number: usize, seed: u64) -> Self {
        let client_id = format!("client-{number}");
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
        let kind = Kind::of(number);
        let expiry = match (kind.session, kind.version) {
            (Keeps::Nothing, _) => 0,
            (Keeps::Briefly, _) => random.random_range(2..5),
            // The absence of Clean Session.
            (Keeps::Everything, ProtocolVersion::V3_1_1) => u32::MAX,
            (Keeps::Everything, _) => 3600,
        };
        Self {
            name: stage.recorder.symbol(&client_id),
            stage,
            number,
            client_id,
            kind,
            expiry,
            random,
            connections: 0,
            node: number,
            next_packet_id: 0,
            flights: VecDeque::new(),
            flights_since: Instant::now(),
            unanswered: 0,
            returns: false,
            reported: 0,
            due: Instant::now(),
        }
    }

    /// Comes and goes until the run ends.
    ///
    /// # Panics
    /// A node sends what no client asked for, or what is no MQTT.
    pub fn run(mut self) {
        let mut held: Option<Connection> = None;
        loop {
            // It is not connected.
            self.report(self.flights.len() + 1);
            let Some(mut connection) = held.take().or_else(|| self.connect()) else {
                if self.stage.act() == Act::End {
                    return self.report(0);
                }
                std::thread::sleep(GLANCE);
                continue;
            };
            match self.serve(&mut connection) {
                Ok(()) | Err(End::Closed(ClosedBy::Client)) => self.closed(&connection, ClosedBy::Client),
                Err(End::Closed(by)) => self.closed(&connection, by),
                Err(End::Left) => self.watch_end(&mut connection),
                Err(End::Replaced) => match self.connect() {
                    Some(newer) => {
                        self.finish_replaced(&mut connection);
                        held = Some(newer);
                    }
                    None => self.closed(&connection, ClosedBy::Client),
                },
            }
            if self.stage.act() == Act::End {
                if let Some(last) = held {
                    self.closed(&last, ClosedBy::Client);
                }
                return self.report(0);
            }
        }
    }

    /// So many things must still happen before it has all it is owed.
    fn report(&mut self, unsettled: usize) {
        self.stage.unsettled.fetch_add(unsettled, SeqCst);
        self.stage.unsettled.fetch_sub(self.reported, SeqCst);
        self.reported = unsettled;
    }

    fn note(&self, connection: &Connection, action: Action) {
        self.note_at(self.stage.recorder.now(), connection, action);
    }

    fn note_at(&self, at: u64, connection: &Connection, action: Action) {
        self.stage.recorder.note_client(at, self.name, connection.number, connection.node, action);
    }

    fn closed(&self, connection: &Connection, by: ClosedBy) {
        self.note(connection, Action::ConnectionClosed { by });
    }

    /// Sends what was noted before: part of it may arrive whatever happens.
    fn send(&self, connection: &mut Connection, packet: &Packet, action: Action) -> Result<(), End> {
        self.note(connection, action);
        Ok(connection.link.send(packet)?)
    }

    // Coming.

    /// A connection to the next node, accepted; what is not is over.
    fn connect(&mut self) -> Option<Connection> {
        self.node = match self.random.random_ratio(1, 2) {
            true => self.node + 1,
            false => self.random.random_range(0..self.stage.seats.len()),
        };
        let mut node = self.node % self.stage.seats.len();
        while self.stage.is_left(node as u16) || !self.stage.is_there(node) {
            node = (node + 1) % self.stage.seats.len();
        }
        let link = Link::dial(self.stage.seats[node].address, self.kind.version).ok()?;
        self.connections += 1;
        let mut connection = Connection { link, number: self.connections, node: node as u16 };
        match self.ask(&mut connection) {
            Ok(true) => Some(connection),
            Ok(false) => {
                self.closed(&connection, ClosedBy::Client);
                std::thread::sleep(GLANCE);
                None
            }
            Err(End::Closed(by)) => {
                self.closed(&connection, by);
                None
            }
            Err(_) => unreachable!("it has no connection to leave"),
        }
    }

    /// CONNECT and CONNACK: whether it was accepted.
    fn ask(&mut self, connection: &mut Connection) -> Result<bool, End> {
        let settles = self.stage.act() != Act::Play;
        let is_v5 = self.kind.version.is_v5();
        let clean_start = (self.random.random_ratio(1, 20) && !settles) || (!is_v5 && self.expiry == 0);
        // A Clean Session ends with its connection.
        let kept = if clean_start && !is_v5 { 0 } else { self.expiry };
        let will = (self.random.random_ratio(1, 2) && !settles).then(|| kentongan_history::Will {
            topic: self.stage.recorder.symbol(&format!("w/{}", self.client_id)),
            qos: self.random.random_range(1..3),
            retain: false,
            delay: if is_v5 { self.random.random_range(0..2) } else { 0 },
            message: self.stage.recorder.message(),
        });
        let connect = self.connect_packet(clean_start, will.as_ref());
        let noted = kentongan_history::Connect { clean_start, session_expiry: kept, will };
        self.send(connection, &Packet::Connect(Box::new(connect)), Action::ConnectSent(Box::new(noted)))?;
        let Some(Packet::ConnAck(connack)) = connection.link.receive_within(PATIENCE)? else {
            return Err(End::Closed(ClosedBy::Client));
        };
        let (reason, session_present) = (connack.reason_code as u8, connack.session_present);
        let session_expiry = connack.properties.session_expiry_interval;
        self.note(connection, Action::ConnAck { reason, session_present, session_expiry });
        self.unanswered = 0;
        if reason >= 0x80 {
            return Ok(false);
        }
        if !session_present {
            // Given up: they may have arrived or not.
            self.flights.clear();
        }
        self.send_again(connection)?;
        let is_new = !self.returns || !session_present;
        self.returns = kept > 0;
        if is_new {
            for _ in 0..2 {
                self.subscribe(connection)?;
            }
        }
        Ok(true)
    }

    fn connect_packet(&self, clean_start: bool, will: Option<&kentongan_history::Will>) -> Connect {
        let is_v5 = self.kind.version.is_v5();
        Connect {
            version: self.kind.version,
            bridge: false,
            clean_start,
            keep_alive: 60,
            client_id: self.client_id.clone(),
            will: will.map(|will| Will {
                qos: if will.qos == 1 { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
                retain: false,
                topic: format!("w/{}", self.client_id),
                payload: Bytes::from(will.message.0.to_string()),
                properties: WillProperties {
                    will_delay_interval: is_v5.then_some(will.delay),
                    ..WillProperties::default()
                },
            }),
            user_name: None,
            password: None,
            properties: ConnectProperties {
                session_expiry_interval: is_v5.then_some(self.expiry),
                ..ConnectProperties::default()
            },
        }
    }

    /// What is left from the connection before, in its order [MQTT-4.4.0-1].
    fn send_again(&mut self, connection: &mut Connection) -> Result<(), End> {
        self.flights_since = Instant::now();
        for flight in &self.flights {
            if flight.released {
                self.release(connection, flight.packet_id)?;
            } else {
                self.send_publish(connection, flight, true)?;
            }
        }
        Ok(())
    }

    // Being there.

    /// One connection's life. `Ok`: the run is over.
    fn serve(&mut self, connection: &mut Connection) -> Result<(), End> {
        loop {
            self.report(self.flights.len() + self.unanswered);
            let wait = GLANCE.min(self.due.saturating_duration_since(Instant::now()));
            if let Some(packet) = connection.link.receive_within(wait)? {
                self.on_packet(connection, packet)?;
            }
            if self.stage.is_left(connection.node) {
                return Err(End::Replaced);
            }
            match self.stage.act() {
                Act::Play if self.due <= Instant::now() => self.play(connection)?,
                Act::Play => {}
                Act::Settle => self.due = Instant::now() + GLANCE,
                Act::End => return Ok(()),
            }
            if self.flights.is_empty() {
                self.flights_since = Instant::now();
            } else if self.flights_since.elapsed() > ACKNOWLEDGED_WITHIN {
                return Err(End::Closed(ClosedBy::Client));
            }
        }
    }

    fn play(&mut self, connection: &mut Connection) -> Result<(), End> {
        let habits = &self.stage.habits;
        let publishes = habits.messages_per_second / ACKNOWLEDGED_SHARE;
        let (subscribes, unsubscribes) = (habits.subscribes_per_second, habits.unsubscribes_per_second);
        let departures = habits.departures_per_second;
        let all = publishes + subscribes + unsubscribes + 3.0 * departures;
        let pause = Duration::from_secs_f64(habits.clients as f64 / all * self.random.random_range(0.5..1.5));
        self.due = (self.due + pause).max(Instant::now().checked_sub(BACKLOG).unwrap_or(self.due));

        let mut drawn = self.random.random_range(0.0..all);
        let mut is = |rate: f64| {
            drawn -= rate;
            drawn < 0.0
        };
        if is(publishes) {
            self.publish(connection)
        } else if is(subscribes) {
            self.subscribe(connection)
        } else if is(unsubscribes) {
            self.unsubscribe(connection)
        } else if is(departures) {
            self.leave(connection)
        } else if is(departures) {
            Err(End::Closed(ClosedBy::Client))
        } else {
            Err(End::Replaced)
        }
    }

    fn leave(&mut self, connection: &mut Connection) -> Result<(), End> {
        let with_will = self.kind.version.is_v5() && self.random.random_ratio(1, 3);
        let (reason, reason_code) =
            if with_will { (4, ReasonCode::DisconnectWithWillMessage) } else { (0, ReasonCode::Success) };
        let packet = Disconnect { reason_code, properties: DisconnectProperties::default() };
        let noted = Action::DisconnectSent { reason, session_expiry: None };
        self.send(connection, &Packet::Disconnect(packet), noted)?;
        Err(End::Left)
    }

    fn packet_id(&mut self) -> PacketId {
        self.next_packet_id = self.next_packet_id % 10_000 + 1;
        id(self.next_packet_id)
    }

    fn publish(&mut self, connection: &mut Connection) -> Result<(), End> {
        if self.flights.len() >= WINDOW {
            return Ok(());
        }
        let retain = self.random.random_ratio(1, 8);
        let topics = &self.stage.habits.topics;
        let topics = if retain { &topics.retained } else { &topics.plain };
        let topic = Arc::clone(topics.choose(&mut self.random).expect("there are topics"));
        let qos = self.random.random_range(if retain { 1..3 } else { 0..3 });
        let expires = self.kind.version.is_v5() && !retain && self.random.random_ratio(1, 10);
        let flight = Flight {
            packet_id: self.packet_id(),
            message: self.stage.recorder.message(),
            topic,
            retain,
            empty: retain && self.random.random_ratio(1, 4),
            expiry: expires.then_some(3),
            exactly_once: qos == 2,
            released: false,
        };
        if qos == 0 {
            let noted = noted_publish(self, &flight, 0, false);
            return self.send(connection, &publish_packet(&flight, Delivery::AtMostOnce, false), noted);
        }
        self.flights.push_back(flight);
        let flight = self.flights.back().expect("pushed above");
        self.send_publish(connection, flight, false)
    }

    fn send_publish(&self, connection: &mut Connection, flight: &Flight, dup: bool) -> Result<(), End> {
        let (qos, delivery) = match flight.exactly_once {
            true => (2, Delivery::ExactlyOnce(flight.packet_id)),
            false => (1, Delivery::AtLeastOnce(flight.packet_id)),
        };
        self.send(connection, &publish_packet(flight, delivery, dup), noted_publish(self, flight, qos, dup))
    }

    fn release(&self, connection: &mut Connection, packet_id: PacketId) -> Result<(), End> {
        self.send(connection, &Packet::PubRel(Ack::success(packet_id)), Action::PubRelSent(answer(packet_id)))
    }

    fn subscribe(&mut self, connection: &mut Connection) -> Result<(), End> {
        let topics = &self.stage.habits.topics;
        let filters = if self.random.random_ratio(1, 3) { &topics.retained_filters } else { &topics.filters };
        let filter = Arc::clone(filters.choose(&mut self.random).expect("there are filters"));
        // One QoS 0 subscription beside another: while the group has an upgrade that the node has not, both give a copy.
        let qos = if self.number % 5 == 4 { 0 } else { self.random.random_range(1..3) };
        let granted = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos)];
        let packet_id = self.packet_id();
        let packet = Subscribe {
            packet_id,
            filters: vec![(filter.to_string(), SubscriptionOptions::new(granted))],
            subscription_identifier: None,
            user_properties: Vec::new(),
        };
        let subscription = kentongan_history::Subscription {
            filter: self.stage.recorder.symbol(&filter),
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        };
        let noted = kentongan_history::Subscribe { packet_id: packet_id.get(), filters: vec![subscription] };
        self.unanswered += 1;
        self.send(connection, &Packet::Subscribe(packet), Action::SubscribeSent(Box::new(noted)))
    }

    fn unsubscribe(&mut self, connection: &mut Connection) -> Result<(), End> {
        let filters = &self.stage.habits.topics.filters;
        let filter = Arc::clone(filters.choose(&mut self.random).expect("there are filters"));
        let packet_id = self.packet_id();
        let packet = Unsubscribe { packet_id, filters: vec![filter.to_string()], user_properties: Vec::new() };
        let filters = Box::new([self.stage.recorder.symbol(&filter)]);
        self.unanswered += 1;
        let noted = Action::UnsubscribeSent { packet_id: packet_id.get(), filters };
        self.send(connection, &Packet::Unsubscribe(packet), noted)
    }

    fn on_packet(&mut self, connection: &mut Connection, packet: Packet) -> Result<(), End> {
        let at = self.stage.recorder.now();
        self.stage.packets.fetch_add(1, SeqCst);
        match packet {
            Packet::Publish(message) => self.on_publish(at, connection, &message),
            Packet::PubAck(ack) => {
                self.note_at(at, connection, Action::PubAckReceived(answered(&ack)));
                self.count_accepted(&ack);
                self.settle(ack.packet_id);
                Ok(())
            }
            Packet::PubRec(ack) => {
                self.note_at(at, connection, Action::PubRecReceived(answered(&ack)));
                if ack.reason_code.is_error() {
                    self.settle(ack.packet_id);
                    return Ok(());
                }
                self.count_accepted(&ack);
                if let Some(flight) = self.flights.iter_mut().find(|flight| flight.packet_id == ack.packet_id) {
                    flight.released = true;
                }
                self.release(connection, ack.packet_id)
            }
            Packet::PubComp(ack) => {
                self.note_at(at, connection, Action::PubCompReceived(answered(&ack)));
                self.settle(ack.packet_id);
                Ok(())
            }
            Packet::PubRel(ack) => {
                self.note_at(at, connection, Action::PubRelReceived(answered(&ack)));
                let noted = Action::PubCompSent(answer(ack.packet_id));
                self.send(connection, &Packet::PubComp(Ack::success(ack.packet_id)), noted)
            }
            Packet::SubAck(suback) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                let reasons = suback.reason_codes.iter().map(|&reason| reason as u8).collect();
                self.note_at(at, connection, Action::SubAck { packet_id: suback.packet_id.get(), reasons });
                Ok(())
            }
            Packet::UnsubAck(unsuback) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                let reasons = unsuback.reason_codes.iter().map(|&reason| reason as u8).collect();
                self.note_at(at, connection, Action::UnsubAck { packet_id: unsuback.packet_id.get(), reasons });
                Ok(())
            }
            Packet::Disconnect(disconnect) => {
                let reason = disconnect.reason_code as u8;
                self.note_at(at, connection, Action::DisconnectReceived { reason });
                Err(End::Closed(ClosedBy::Server))
            }
            other => panic!("no client asked for {other:?}"),
        }
    }

    fn count_accepted(&self, ack: &Ack) {
        let is_ours = self.flights.iter().any(|flight| flight.packet_id == ack.packet_id && !flight.released);
        if is_ours && !ack.reason_code.is_error() {
            self.stage.acknowledged.fetch_add(1, SeqCst);
        }
    }

    fn settle(&mut self, packet_id: PacketId) {
        self.flights.retain(|flight| flight.packet_id != packet_id);
        self.flights_since = Instant::now();
    }

    fn on_publish(&mut self, at: u64, connection: &mut Connection, message: &Publish) -> Result<(), End> {
        self.note_delivery(at, connection, message);
        match message.delivery {
            Delivery::AtMostOnce => Ok(()),
            Delivery::AtLeastOnce(id) => {
                self.send(connection, &Packet::PubAck(Ack::success(id)), Action::PubAckSent(answer(id)))
            }
            Delivery::ExactlyOnce(id) => {
                self.send(connection, &Packet::PubRec(Ack::success(id)), Action::PubRecSent(answer(id)))
            }
        }
    }

    fn note_delivery(&self, at: u64, connection: &Connection, message: &Publish) {
        let (qos, packet_id) = match message.delivery {
            Delivery::AtMostOnce => (0, 0),
            Delivery::AtLeastOnce(id) => (1, id.get()),
            Delivery::ExactlyOnce(id) => (2, id.get()),
        };
        let number = || std::str::from_utf8(&message.payload).ok()?.parse().ok().map(MessageId);
        let delivery = kentongan_history::Delivery {
            packet_id,
            dup: message.dup,
            qos,
            retain: message.retain,
            topic: self.stage.recorder.symbol(&message.topic),
            message: (!message.payload.is_empty()).then(|| number().expect("our own payload")),
            expiry: message.properties.message_expiry_interval,
            identifiers: Box::default(),
        };
        self.note_at(at, connection, Action::Delivered(delivery));
    }

    // Going.

    /// What still comes on a connection where nothing may be said any more.
    fn watch_end(&mut self, connection: &mut Connection) {
        let deadline = Instant::now() + PATIENCE;
        let by = loop {
            match connection.link.receive_within(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(packet)) => self.hear(connection, &packet),
                Ok(None) => break ClosedBy::Client,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break ClosedBy::Server,
                Err(_) => break ClosedBy::Network,
            }
        };
        self.closed(connection, by);
    }

    /// The same of a connection that a newer one replaced, on which something is said all the same.
    fn finish_replaced(&mut self, connection: &mut Connection) {
        // A node that was stopped takes for its own, until it looks at its lease, what then comes from its clients.
        if self.stage.seats[usize::from(connection.node)].stopped.load(SeqCst) {
            return self.watch_end(connection);
        }
        let flight = Flight {
            packet_id: id(20_000),
            message: self.stage.recorder.message(),
            topic: Arc::clone(&self.stage.habits.topics.plain[0]),
            retain: false,
            empty: false,
            expiry: None,
            exactly_once: false,
            released: false,
        };
        // What it meets is the end that is watched for.
        drop(self.send_publish(connection, &flight, false));
        self.watch_end(connection);
    }

    /// Notes what came, and answers nothing.
    fn hear(&self, connection: &Connection, packet: &Packet) {
        let at = self.stage.recorder.now();
        let action = match packet {
            Packet::Publish(message) => return self.note_delivery(at, connection, message),
            Packet::PubAck(ack) => Action::PubAckReceived(answered(ack)),
            Packet::PubRec(ack) => Action::PubRecReceived(answered(ack)),
            Packet::PubRel(ack) => Action::PubRelReceived(answered(ack)),
            Packet::PubComp(ack) => Action::PubCompReceived(answered(ack)),
            Packet::SubAck(suback) => {
                let reasons = suback.reason_codes.iter().map(|&reason| reason as u8).collect();
                Action::SubAck { packet_id: suback.packet_id.get(), reasons }
            }
            Packet::UnsubAck(unsuback) => {
                let reasons = unsuback.reason_codes.iter().map(|&reason| reason as u8).collect();
                Action::UnsubAck { packet_id: unsuback.packet_id.get(), reasons }
            }
            Packet::Disconnect(disconnect) => Action::DisconnectReceived { reason: disconnect.reason_code as u8 },
            other => panic!("no client asked for {other:?}"),
        };
        self.note_at(at, connection, action);
    }
}

fn publish_packet(flight: &Flight, delivery: Delivery, dup: bool) -> Packet {
    let payload = if flight.empty { Bytes::new() } else { flight.message.0.to_string().into() };
    let properties = PublishProperties { message_expiry_interval: flight.expiry, ..PublishProperties::default() };
    let topic = flight.topic.to_string();
    Packet::Publish(Publish { dup, delivery, retain: flight.retain, topic, properties, payload })
}

fn noted_publish(client: &Client, flight: &Flight, qos: u8, dup: bool) -> Action {
    Action::PublishSent(kentongan_history::Publish {
        packet_id: if qos == 0 { 0 } else { flight.packet_id.get() },
        dup,
        qos,
        retain: flight.retain,
        topic: client.stage.recorder.symbol(&flight.topic),
        expiry: flight.expiry,
        message: flight.message,
        empty: flight.empty,
    })
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

fn answer(packet_id: PacketId) -> Answer {
    Answer { packet_id: packet_id.get(), reason: 0 }
}

fn answered(ack: &Ack) -> Answer {
    Answer { packet_id: ack.packet_id.get(), reason: ack.reason_code as u8 }
}
