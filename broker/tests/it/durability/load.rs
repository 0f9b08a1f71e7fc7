//! Clients that keep going while their broker is killed, and note what they said and saw.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use kentongan_workload::{Link, Session};

use super::history::{Published, Received, Tick};
use crate::support::{id, publish};

/// How long a client waits for a packet before it looks at what it should do.
const GLANCE: Duration = Duration::from_millis(20);

/// Unacknowledged messages a publisher has at most.
const WINDOW: usize = 8;

/// What the clients of a run share with the one who kills.
#[derive(Default)]
pub struct Stage {
    /// Where the broker is, on which nodes; empty while it is down.
    pub addresses: Mutex<Vec<SocketAddr>>,
    clock: AtomicU64,
    /// How many messages each publisher may have published.
    pub allowed: AtomicU64,
    /// Acknowledgements that all publishers got.
    pub acknowledged: AtomicU64,
    /// Whether the subscriber should be connected.
    pub online: AtomicBool,
    /// Publishers end once all they may publish is acknowledged; the subscriber ends at once.
    pub publishers_end: AtomicBool,
    pub subscriber_ends: AtomicBool,
    /// Messages that the subscriber was handed.
    pub received: AtomicU64,
    pub sessions_lost: Mutex<Vec<String>>,
}

impl Stage {
    pub fn tick(&self) -> Tick {
        self.clock.fetch_add(1, SeqCst)
    }

    /// Connects to the node of that place once the broker is there; `None` if it went again.
    fn connect(
        &self,
        version: ProtocolVersion,
        client_id: &str,
        session: Session,
        place: usize,
    ) -> Option<(Link, bool)> {
        let address = {
            let addresses = self.addresses.lock().expect("no poison");
            addresses.get(place % addresses.len().max(1)).copied()
        };
        let connected = address.map(|address| Link::open(address, version, client_id, session));
        if let Some(Ok(connected)) = connected {
            return Some(connected);
        }
        // Nothing to wait on: a broker that starts says so to the one who started it.
        std::thread::sleep(GLANCE);
        None
    }
}

/// The payload that names a message.
fn payload(publisher: usize, sequence: u64) -> String {
    format!("{publisher} {sequence}")
}

/// The message that a payload names.
pub fn named(payload: &[u8]) -> (usize, u64) {
    let text = std::str::from_utf8(payload).expect("our own payload");
    let (publisher, sequence) = text.split_once(' ').expect("our own payload");
    (publisher.parse().expect("our own payload"), sequence.parse().expect("our own payload"))
}

/// A publisher with one topic and one QoS.
pub struct Publisher {
    pub number: usize,
    pub qos: QoS,
    pub session: Session,
    pub retained: bool,
    pub version: ProtocolVersion,
    pub stage: Arc<Stage>,
}

/// A message whose exchange has not ended.
struct Flight {
    packet_id: PacketId,
    /// Index into the record.
    index: usize,
    /// QoS 2: PUBREC came, PUBREL went.
    released: bool,
}

impl Publisher {
    /// Publishes until told to end; returns what it noted.
    pub fn run(self) -> Vec<Published> {
        let mut record = Vec::new();
        let mut flights = VecDeque::new();
        let mut connected_before = false;
        // Each begins on a node of its own, and after a break tries the next one.
        let mut place = self.number;
        while !self.done(&record, &flights) {
            let client_id = format!("publisher-{}", self.number);
            place += 1;
            let Some((mut link, present)) = self.stage.connect(self.version, &client_id, self.session, place) else {
                continue;
            };
            if self.session == Session::Transient {
                flights.clear(); // Given up: they may have arrived or not.
            } else if connected_before && !present {
                self.stage.sessions_lost.lock().expect("no poison").push(client_id);
            }
            connected_before = true;
            // An error is the break that all this is about.
            drop(self.serve(&mut link, &mut record, &mut flights));
        }
        record
    }

    fn done(&self, record: &[Published], flights: &VecDeque<Flight>) -> bool {
        self.stage.publishers_end.load(SeqCst) && flights.is_empty() && record.len() as u64 >= self.allowed()
    }

    fn allowed(&self) -> u64 {
        self.stage.allowed.load(SeqCst)
    }

    fn topic(&self) -> String {
        format!("{}/{}", if self.retained { "kept" } else { "live" }, self.number)
    }

    /// One connection's life: first what is left from the last one, in its order [MQTT-4.6.0-1].
    fn serve(&self, link: &mut Link, record: &mut Vec<Published>, flights: &mut VecDeque<Flight>) -> io::Result<()> {
        for flight in flights.iter().filter(|flight| !flight.released) {
            record[flight.index].sent_again = true;
            link.send(&self.packet(record[flight.index].sequence, flight.packet_id, true))?;
        }
        for flight in flights.iter().filter(|flight| flight.released) {
            link.send(&Packet::PubRel(Ack::success(flight.packet_id)))?;
        }
        while !self.done(record, flights) {
            while flights.len() < WINDOW && (record.len() as u64) < self.allowed() {
                self.publish_next(link, record, flights)?;
            }
            if let Some(packet) = link.receive_within(GLANCE)? {
                self.on_packet(link, packet, record, flights)?;
            }
        }
        link.send(&Packet::Disconnect(Disconnect {
            reason_code: ReasonCode::Success,
            properties: DisconnectProperties::default(),
        }))
    }

    fn publish_next(
        &self,
        link: &mut Link,
        record: &mut Vec<Published>,
        flights: &mut VecDeque<Flight>,
    ) -> io::Result<()> {
        let index = record.len();
        let sequence = index as u64 + 1;
        // In a window of eight, identifiers modulo a thousand are free again.
        let packet_id = id((index % 1000) as u16 + 1);
        record.push(Published {
            publisher: self.number,
            sequence,
            qos: self.qos,
            retained: self.retained,
            sent_again: false,
            sent_at: self.stage.tick(),
            acknowledged_at: None,
        });
        flights.push_back(Flight { packet_id, index, released: false });
        link.send(&self.packet(sequence, packet_id, false))
    }

    fn packet(&self, sequence: u64, packet_id: PacketId, dup: bool) -> Packet {
        let delivery = match self.qos {
            QoS::AtMostOnce => Delivery::AtMostOnce,
            QoS::AtLeastOnce => Delivery::AtLeastOnce(packet_id),
            QoS::ExactlyOnce => Delivery::ExactlyOnce(packet_id),
        };
        let message = publish(&self.topic(), &payload(self.number, sequence), delivery);
        Packet::Publish(Publish { dup, retain: self.retained, ..message })
    }

    fn on_packet(
        &self,
        link: &mut Link,
        packet: Packet,
        record: &mut [Published],
        flights: &mut VecDeque<Flight>,
    ) -> io::Result<()> {
        let position = |ack: &Ack| flights.iter().position(|flight| flight.packet_id == ack.packet_id);
        match &packet {
            Packet::PubAck(ack) | Packet::PubRec(ack) => {
                let Some(position) = position(ack) else {
                    return Ok(());
                };
                let flight = &mut flights[position];
                if ack.reason_code.is_error() {
                    flights.remove(position); // Refused: it promises nothing.
                    return Ok(());
                }
                if !flight.released {
                    record[flight.index].acknowledged_at = Some(self.stage.tick());
                    self.stage.acknowledged.fetch_add(1, SeqCst);
                }
                if matches!(packet, Packet::PubRec(_)) {
                    flight.released = true;
                    return link.send(&Packet::PubRel(Ack::success(ack.packet_id)));
                }
                flights.remove(position);
            }
            Packet::PubComp(ack) => {
                if let Some(position) = position(ack) {
                    flights.remove(position);
                }
            }
            Packet::Disconnect(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            _ => {}
        }
        Ok(())
    }
}

/// The subscriber with a session, which is sometimes away.
pub struct Subscriber {
    pub version: ProtocolVersion,
    pub stage: Arc<Stage>,
}

/// What the subscriber's session keeps across connections.
#[derive(Default)]
struct Inbound {
    /// QoS 2: handed on, and not released.
    handed_on: HashSet<PacketId>,
    received: Vec<Received>,
}

impl Subscriber {
    pub const CLIENT_ID: &str = "subscriber";

    /// Subscribes, which must succeed, before any publisher begins.
    pub fn subscribe(&self) {
        let connected = self.stage.connect(self.version, Self::CLIENT_ID, Session::Persistent, 0);
        let (mut link, _) = connected.expect("a broker that was just started");
        link.subscribe("live/#", QoS::ExactlyOnce).expect("a subscription");
    }

    /// Receives until told to end; returns what it noted.
    pub fn run(self) -> Vec<Received> {
        let mut inbound = Inbound::default();
        let mut connection = 0;
        let mut place = 0;
        while !self.stage.subscriber_ends.load(SeqCst) {
            if !self.stage.online.load(SeqCst) {
                std::thread::sleep(GLANCE);
                continue;
            }
            let connected = self.stage.connect(self.version, Self::CLIENT_ID, Session::Persistent, place);
            place += 1;
            let Some((mut link, present)) = connected else {
                continue;
            };
            if !present {
                self.stage.sessions_lost.lock().expect("no poison").push(Self::CLIENT_ID.to_owned());
            }
            connection += 1;
            // An error is the break that all this is about.
            drop(self.serve(&mut link, connection, &mut inbound));
        }
        inbound.received
    }

    /// One connection's life. Going offline is a break: the broker must find out.
    fn serve(&self, link: &mut Link, connection: usize, inbound: &mut Inbound) -> io::Result<()> {
        while self.stage.online.load(SeqCst) && !self.stage.subscriber_ends.load(SeqCst) {
            match link.receive_within(GLANCE)? {
                Some(Packet::Publish(message)) => self.on_publish(link, connection, &message, inbound)?,
                Some(Packet::PubRel(ack)) => {
                    inbound.handed_on.remove(&ack.packet_id);
                    link.send(&Packet::PubComp(Ack::success(ack.packet_id)))?;
                }
                Some(Packet::Disconnect(_)) => return Err(io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn on_publish(
        &self,
        link: &mut Link,
        connection: usize,
        message: &Publish,
        inbound: &mut Inbound,
    ) -> io::Result<()> {
        let (publisher, sequence) = named(&message.payload);
        let mut note = || {
            inbound.received.push(Received { publisher, sequence, dup: message.dup, connection });
            self.stage.received.fetch_add(1, SeqCst);
        };
        match message.delivery {
            Delivery::AtMostOnce => panic!("QoS 0, though all was published and granted above it"),
            Delivery::AtLeastOnce(id) => {
                note();
                link.send(&Packet::PubAck(Ack::success(id)))
            }
            Delivery::ExactlyOnce(id) => {
                if inbound.handed_on.insert(id) {
                    note();
                }
                link.send(&Packet::PubRec(Ack::success(id)))
            }
        }
    }
}

/// What is retained on the topics under `kept/`, read by a client of its own: wanted are all `publishers`,
/// and what is not there in time is not there.
pub fn read_retained(address: SocketAddr, publishers: usize, wait: Duration) -> io::Result<Vec<(usize, u64)>> {
    let (mut link, _) = Link::open(address, ProtocolVersion::V5, "reader", Session::Transient)?;
    link.send(&Packet::Subscribe(Subscribe {
        packet_id: id(1),
        // At QoS 0, so that what is published meanwhile does not fill a window that nobody empties.
        filters: vec![("kept/#".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))],
        subscription_identifier: None,
        user_properties: Vec::new(),
    }))?;
    let mut found = Vec::new();
    let deadline = Instant::now() + wait;
    while found.len() < publishers {
        match link.receive_within(deadline.saturating_duration_since(Instant::now()))? {
            // Without RETAIN it is a message that a publisher sends just now.
            Some(Packet::Publish(message)) if message.retain => found.push(named(&message.payload)),
            Some(_) => {}
            None => break,
        }
    }
    Ok(found)
}
