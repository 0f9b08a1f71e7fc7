//! A client that does at random what clients do, and notes everything that it says and hears.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_history::{Action, Answer, ClosedBy, MessageId, Symbol};
use kentongan_proto::mqtt::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::recorder::Recorder;
use crate::durability::link::Link;
use crate::support::{id, publish};

/// How long a client waits for a packet before it does something.
const GLANCE: Duration = Duration::from_millis(10);

/// How long it waits for CONNACK, and for the end after DISCONNECT.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long it waits for an acknowledgement before it tries another node.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(3);

/// Unacknowledged messages it has at most.
const WINDOW: usize = 8;

const TOPICS: [&str; 3] = ["t/1", "t/2", "t/3"];
const RETAINED_TOPICS: [&str; 2] = ["r/1", "r/2"];
const FILTERS: [&str; 7] = ["t/1", "t/2", "t/#", "t/+", "#", "w/#", "$share/s/t/#"];
const RETAINED_FILTERS: [&str; 3] = ["r/1", "r/2", "r/#"];

/// What the clients of a run share with the one who kills.
pub struct Stage {
    pub recorder: Recorder,
    pub addresses: Vec<SocketAddr>,
    /// Whether each node is stopped, or was and may not know yet that others went on without it.
    pub stopped: [AtomicBool; 3],
    pub act: AtomicU8,
    /// Packets that came to anybody, and what somebody waits for.
    pub packets: AtomicU64,
    pub unsettled: AtomicUsize,
    /// The nodes' processes, and whether nobody needs to look at them any more.
    pub pids: [AtomicU32; 3],
    pub is_over: AtomicBool,
}

/// What clients do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Act {
    /// Whatever comes to their mind.
    Play,
    /// They finish what they began, and receive what they are owed.
    Settle,
    /// They go.
    End,
}

impl Stage {
    pub fn act(&self) -> Act {
        match self.act.load(SeqCst) {
            0 => Act::Play,
            1 => Act::Settle,
            _ => Act::End,
        }
    }

    pub fn set_act(&self, act: Act) {
        self.act.store(act as u8, SeqCst);
    }
}

/// A message whose exchange has not ended.
struct Flight {
    packet_id: PacketId,
    message: MessageId,
    topic: &'static str,
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

pub struct Actor {
    stage: Arc<Stage>,
    name: Symbol,
    number: usize,
    client_id: String,
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

impl Actor {
    pub fn new(stage: Arc<Stage>, number: usize, seed: u64) -> Self {
        let client_id = format!("client-{number}");
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
        // Most have a session that stays; some have one that may run out.
        let expiry = match number % 4 {
            0 => 0,
            3 => random.random_range(2..5),
            _ => 3600,
        };
        Self {
            name: stage.recorder.symbol(&client_id),
            stage,
            number,
            client_id,
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
        }
    }

    /// Comes and goes until the run ends.
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
            false => self.random.random_range(0..3),
        };
        let node = self.node % self.stage.addresses.len();
        let link = Link::dial(self.stage.addresses[node], ProtocolVersion::V5).ok()?;
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
        let clean_start = self.random.random_ratio(1, 20) && !settles;
        let will = (self.random.random_ratio(1, 2) && !settles).then(|| kentongan_history::Will {
            topic: self.stage.recorder.symbol(&format!("w/{}", self.client_id)),
            qos: self.random.random_range(1..3),
            retain: false,
            delay: self.random.random_range(0..2),
            message: self.stage.recorder.message(),
        });
        let properties = |delay| WillProperties { will_delay_interval: Some(delay), ..WillProperties::default() };
        let connect = Connect {
            clean_start,
            will: will.as_ref().map(|will| Will {
                qos: if will.qos == 1 { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
                retain: false,
                topic: format!("w/{}", self.client_id),
                payload: Bytes::from(will.message.0.to_string()),
                properties: properties(will.delay),
            }),
            properties: ConnectProperties {
                session_expiry_interval: Some(self.expiry),
                ..ConnectProperties::default()
            },
            ..crate::support::connect(ProtocolVersion::V5, &self.client_id)
        };
        let noted = kentongan_history::Connect { clean_start, session_expiry: self.expiry, will };
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
        self.returns = self.expiry > 0;
        if is_new {
            for _ in 0..2 {
                self.subscribe(connection)?;
            }
        }
        Ok(true)
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
            if let Some(packet) = connection.link.receive_within(GLANCE)? {
                self.on_packet(connection, packet)?;
            } else {
                match self.stage.act() {
                    Act::Play => self.play(connection)?,
                    Act::Settle => {}
                    Act::End => return Ok(()),
                }
            }
            if self.flights.is_empty() {
                self.flights_since = Instant::now();
            } else if self.flights_since.elapsed() > ACKNOWLEDGED_WITHIN {
                return Err(End::Closed(ClosedBy::Client));
            }
        }
    }

    fn play(&mut self, connection: &mut Connection) -> Result<(), End> {
        match self.random.random_range(0..1000) {
            0..500 => self.publish(connection),
            500..520 => self.subscribe(connection),
            520..530 => self.unsubscribe(connection),
            530..535 => {
                let reason = if self.random.random_ratio(1, 3) { 4 } else { 0 };
                let reason_code = if reason == 0 { ReasonCode::Success } else { ReasonCode::DisconnectWithWillMessage };
                let packet = Disconnect { reason_code, properties: DisconnectProperties::default() };
                let noted = Action::DisconnectSent { reason, session_expiry: None };
                self.send(connection, &Packet::Disconnect(packet), noted)?;
                Err(End::Left)
            }
            535..540 => Err(End::Closed(ClosedBy::Client)),
            540..545 => Err(End::Replaced),
            _ => Ok(()),
        }
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
        let topics: &[&'static str] = if retain { &RETAINED_TOPICS } else { &TOPICS };
        let qos = self.random.random_range(if retain { 1..3 } else { 0..3 });
        let flight = Flight {
            packet_id: self.packet_id(),
            message: self.stage.recorder.message(),
            topic: topics.choose(&mut self.random).expect("there are topics"),
            retain,
            empty: retain && self.random.random_ratio(1, 4),
            expiry: (!retain && self.random.random_ratio(1, 10)).then_some(3),
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
        let filters: &[&str] = if self.random.random_ratio(1, 3) { &RETAINED_FILTERS } else { &FILTERS };
        let filter = *filters.choose(&mut self.random).expect("there are filters");
        // One QoS 0 subscription beside another: while the group has an upgrade that the node has not, both give a copy.
        let qos = if self.number % 5 == 4 { 0 } else { self.random.random_range(1..3) };
        let granted = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos)];
        let packet_id = self.packet_id();
        let packet = Subscribe {
            packet_id,
            filters: vec![(filter.to_owned(), SubscriptionOptions::new(granted))],
            subscription_identifier: None,
            user_properties: Vec::new(),
        };
        let subscription = kentongan_history::Subscription {
            filter: self.stage.recorder.symbol(filter),
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
        let filter = *FILTERS.choose(&mut self.random).expect("there are filters");
        let packet_id = self.packet_id();
        let packet = Unsubscribe { packet_id, filters: vec![filter.to_owned()], user_properties: Vec::new() };
        let filters = Box::new([self.stage.recorder.symbol(filter)]);
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
                self.settle(ack.packet_id);
                Ok(())
            }
            Packet::PubRec(ack) => {
                self.note_at(at, connection, Action::PubRecReceived(answered(&ack)));
                if ack.reason_code.is_error() {
                    self.settle(ack.packet_id);
                    return Ok(());
                }
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
        if self.stage.stopped[usize::from(connection.node)].load(SeqCst) {
            return self.watch_end(connection);
        }
        let flight = Flight {
            packet_id: id(20_000),
            message: self.stage.recorder.message(),
            topic: TOPICS[0],
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
    let payload = if flight.empty { String::new() } else { flight.message.0.to_string() };
    let mut message = publish(flight.topic, &payload, delivery);
    message.dup = dup;
    message.retain = flight.retain;
    message.properties.message_expiry_interval = flight.expiry;
    Packet::Publish(message)
}

fn noted_publish(actor: &Actor, flight: &Flight, qos: u8, dup: bool) -> Action {
    Action::PublishSent(kentongan_history::Publish {
        packet_id: if qos == 0 { 0 } else { flight.packet_id.get() },
        dup,
        qos,
        retain: flight.retain,
        topic: actor.stage.recorder.symbol(flight.topic),
        expiry: flight.expiry,
        message: flight.message,
        empty: flight.empty,
    })
}

fn answer(packet_id: PacketId) -> Answer {
    Answer { packet_id: packet_id.get(), reason: 0 }
}

fn answered(ack: &Ack) -> Answer {
    Answer { packet_id: ack.packet_id.get(), reason: ack.reason_code as u8 }
}
