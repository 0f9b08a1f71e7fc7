//! Two arbiters of one node in one thread, with clients that come and go, from one seed.
//!
//! All sessions are transient and nothing is retained, so no group is needed. `KENTONGAN_SEED` and `KENTONGAN_SEEDS` say
//! which seeds are run.

mod acknowledging;
mod changing;
mod claims;
mod from_nodes;
mod leases;
mod pressure;
mod resyncs;
mod retained;
mod rights;
mod subscribing;
mod unfinished;
mod watched;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use kentongan_cluster::PipelineHandle;
use kentongan_cluster::lane::Incoming;
use kentongan_cluster::lease::LeaseCell;
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::{
    Ack, Connect, ConnectProperties, Delivery, Disconnect, DisconnectProperties, Packet, PacketId, ProtocolVersion,
    Publish, PublishProperties, QoS, ReasonCode, RetainHandling, Subscribe, SubscriptionOptions, Unsubscribe, Will,
    WillProperties,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::auth::{Authority, Granted, GrantedRules, Mechanism, MechanismStep, RenewedRights};
use crate::clock::{Clock, ManualClock};
use crate::config::{AclSubscribe, AuthConfig, ListenerConfig, Settings, SharedStrategy};
use crate::message::{Message, MessageIdentity};
use crate::metrics::Metrics;
use crate::moving::Place;
use crate::peers::plain::PlainMessage;
use crate::peers::wire::{Forwarded, Messages};
use crate::peers::{NoPeers, PeerFull, Peers};
use crate::random::Random;
use crate::replicated::command::{self, Command, SessionCommand};
use crate::replicated::effect::{PageAnswer, QueueAtGroup};
use crate::replicated::{
    Opened, RetainedCursor, RetainedPage, Slots, Submitter, SubscribeOutcome, SubscribedPersistent,
};
use crate::router::batch::{Addressee, Batch};
use crate::router::client::Phase;
use crate::router::cluster::{ASKED_MAX, ClusterView, Leader, Leaders, SUBACKS_A_TURN_MAX};
use crate::router::connect::LET_IN_A_SECOND_MAX;
use crate::router::ended::EndCause;
use crate::router::node_lanes::{Nodes, PeerProcess};
use crate::router::{Changed, Event};
use crate::subscription::{InterestKind, NodeInterest, ShareMember, ShareTarget, Target};

/// Things done in one run, before everything is let come to rest.
const STEPS: u32 = 3_000;

/// Clients at a time.
const CLIENTS_MAX: usize = 10;

/// Small enough to be full now and then.
const STREAM_BYTES_MAX: usize = 256;

/// Unacknowledged messages of one client.
const UNACKNOWLEDGED_MAX: usize = 8;

const TOPICS: [&str; 5] = ["t/a", "t/b", "t/a/c", "u", "u/a"];
const FILTERS: [&str; 9] = ["t/a", "u", "t/+", "t/#", "+/a", "#", "$share/g/t/+", "$share/g/#", "$share/h/t/a"];
const ANY_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// A message by who published it and which of its messages it is.
type MessageName = (usize, u64);

struct Client {
    version: ProtocolVersion,
    stream: MemoryStream,
    to_write: VecDeque<u8>,
    unparsed: Vec<u8>,
    connected: bool,
    /// It has said all that it will say.
    leaving: bool,
    /// The stream came to its end.
    over: bool,
    next_id: u16,
    unacknowledged: BTreeMap<PacketId, MessageName>,
    /// Messages of QoS 2 that it got and whose PUBREL has not come.
    begun: BTreeSet<PacketId>,
    published: u64,
}

impl Client {
    fn new(stream: MemoryStream, version: ProtocolVersion) -> Self {
        Self {
            version,
            stream,
            to_write: VecDeque::new(),
            unparsed: Vec::new(),
            connected: false,
            leaving: false,
            over: false,
            next_id: 0,
            unacknowledged: BTreeMap::new(),
            begun: BTreeSet::new(),
            published: 0,
        }
    }

    fn send(&mut self, packet: &Packet) {
        let mut bytes = Vec::new();
        codec::encode(packet, self.version, &mut bytes).expect("a packet that can be expressed");
        self.to_write.extend(bytes);
    }

    fn packet_id(&mut self) -> PacketId {
        self.next_id = self.next_id % 1000 + 1;
        PacketId::new(self.next_id).expect("not zero")
    }

    /// Writes up to `bytes_max` of what it has to say. `true`: some of it went.
    fn write(&mut self, bytes_max: usize) -> bool {
        let (next, _) = self.to_write.as_slices();
        match self.stream.try_write(&next[..next.len().min(bytes_max)]) {
            Ok(count) => {
                self.to_write.drain(..count);
                count > 0
            }
            Err(_) => false,
        }
    }
}

struct World {
    random: SmallRng,
    machine: Arc<ManualClock>,
    elapsed_ms: u64,
    shared: Arc<Shared>,
    metrics: Metrics,
    listener: Arc<ListenerContext>,
    arbiters: [SteppedArbiter; 2],
    clients: Vec<Client>,
    /// All that clients read, in the order in which they did.
    transcript: Vec<u8>,
    /// Messages with a QoS whose publisher was told that they are safe.
    accepted: BTreeSet<MessageName>,
    /// What the first client, which subscribes to everything, got, with the QoS of its publication.
    witnessed: Vec<(MessageName, QoS)>,
    qos_of: BTreeMap<MessageName, QoS>,
}

fn name_of(payload: &[u8]) -> Option<MessageName> {
    let (client, number) = std::str::from_utf8(payload).ok()?.split_once('-')?;
    Some((client.parse().ok()?, number.parse().ok()?))
}

/// Of a transient session without a will.
fn connect(version: ProtocolVersion, client_id: String, keep_alive: u16) -> Connect {
    Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive,
        client_id,
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut settings = Settings::default();
        let strategies = [SharedStrategy::Random, SharedStrategy::RoundRobin, SharedStrategy::LeastInflight];
        settings.shared.strategy = *strategies.choose(&mut random).expect("there are some");
        settings.session.topic_alias_out_maximum = 3;
        let settings = Arc::new(settings);
        let machine = Arc::new(ManualClock::new(1_000_000));
        let clock = Clock::manual(Arc::clone(&machine));
        let slots = Slots::new(settings.storage.groups.get());
        let submitter = Submitter::new(PipelineHandle::ended(), slots, clock.clone());
        let mut shared = Shared::new(Arc::clone(&settings), 2, submitter, Authority::default(), 1, None, clock);
        shared.random = Random::seeded(seed);
        let shared = Arc::new(shared);
        let metrics = Metrics::isolated();
        let arbiters = [0, 1].map(|id| SteppedArbiter::new(id, Arc::clone(&shared), metrics.arbiter()));
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
        Self {
            random,
            machine,
            elapsed_ms: 0,
            shared,
            metrics,
            listener,
            arbiters,
            clients: Vec::new(),
            transcript: Vec::new(),
            accepted: BTreeSet::new(),
            witnessed: Vec::new(),
            qos_of: BTreeMap::new(),
        }
    }

    /// A client of an arbiter, which has read its CONNECT.
    fn open(&mut self, arbiter: usize, connect: Connect) -> Client {
        let (here, there) = MemoryStream::pair(4096);
        while self.shared.try_open_connection(&self.listener, usize::MAX) != Some(arbiter as u16) {}
        self.arbiters[arbiter].add_connection(there, Arc::clone(&self.listener), None);
        let mut client = Client::new(here, connect.version);
        client.send(&Packet::Connect(Box::new(connect)));
        client.write(usize::MAX);
        self.arbiters[arbiter].run();
        client
    }

    fn qos(&mut self) -> QoS {
        *ANY_QOS.choose(&mut self.random).expect("there are some")
    }

    fn connect(&mut self, keep_alive: u16) {
        let arbiter = self.shared.try_open_connection(&self.listener, usize::MAX).expect("there is no bound");
        let (here, there) = MemoryStream::pair(STREAM_BYTES_MAX);
        self.arbiters[usize::from(arbiter)].add_connection(there, Arc::clone(&self.listener), None);
        let number = self.clients.len();
        let version = if self.random.random() { ProtocolVersion::V5 } else { ProtocolVersion::V3_1_1 };
        let mut client = Client::new(here, version);
        let assigned = self.random.random_bool(0.3);
        let will = self.random.random_bool(0.5).then(|| Will {
            topic: "t/will".to_owned(),
            payload: Bytes::from(format!("will of {number}")),
            qos: self.qos(),
            retain: false,
            properties: WillProperties::default(),
        });
        let properties = ConnectProperties {
            topic_alias_maximum: (version.is_v5() && self.random.random()).then_some(2),
            ..ConnectProperties::default()
        };
        let client_id = if assigned { String::new() } else { format!("client-{number}") };
        let connect = Connect { will, properties, ..connect(version, client_id, keep_alive) };
        client.send(&Packet::Connect(Box::new(connect)));
        self.clients.push(client);
    }

    /// Somebody does something, or the other way round.
    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..35 => {
                let (arbiter, choice) = (self.random.random_range(0..2), self.random.random_range(0..8));
                self.arbiters[arbiter].step(choice);
            }
            35..55 => {
                let (at, bytes_max) =
                    (self.random.random_range(0..self.clients.len()), self.random.random_range(1..64));
                self.clients[at].write(bytes_max);
            }
            55..75 => {
                let at = self.random.random_range(0..self.clients.len());
                let bytes_max = self.random.random_range(1..200);
                self.read(at, bytes_max);
            }
            75..97 => self.act(),
            _ => {
                let by_ms = self.random.random_range(1..400);
                self.pass(by_ms);
            }
        }
    }

    fn pass(&mut self, by_ms: u64) {
        let seconds = self.elapsed_ms / 1000;
        self.elapsed_ms += by_ms;
        self.machine.advance(Duration::from_millis(by_ms));
        for _ in seconds..self.elapsed_ms / 1000 {
            self.arbiters.iter_mut().for_each(SteppedArbiter::on_second);
        }
    }

    fn act(&mut self) {
        let living: Vec<usize> = (0..self.clients.len()).filter(|&at| !self.clients[at].leaving).collect();
        let kind = self.random.random_range(0..100);
        if living.len() < CLIENTS_MAX && kind < 10 {
            let keep_alive = if self.random.random_bool(0.1) { 2 } else { 0 };
            return self.connect(keep_alive);
        }
        let at = *living.choose(&mut self.random).expect("the witness stays");
        if !self.clients[at].connected {
            return;
        }
        match kind {
            10..75 => self.publish(at),
            75..85 => self.subscribe(at, None),
            85..91 if at > 0 => {
                let filter = (*FILTERS.choose(&mut self.random).expect("there are some")).to_owned();
                let packet_id = self.clients[at].packet_id();
                let packet = Unsubscribe { packet_id, filters: vec![filter], user_properties: vec![] };
                self.clients[at].send(&Packet::Unsubscribe(packet));
            }
            91..95 => self.clients[at].send(&Packet::PingReq),
            95.. if at > 0 => self.leave(at),
            _ => {}
        }
    }

    /// Of one or several filters, in one SUBSCRIBE.
    fn subscribe(&mut self, at: usize, only: Option<(&str, QoS)>) {
        let filters = match only {
            Some((filter, qos)) => vec![(filter.to_owned(), SubscriptionOptions::new(qos))],
            // The witness gets nothing twice, and nothing that is taken from it.
            None if at == 0 => return,
            None => (0..self.random.random_range(1..5))
                .map(|_| {
                    let filter = (*FILTERS.choose(&mut self.random).expect("there are some")).to_owned();
                    (filter, SubscriptionOptions::new(self.qos()))
                })
                .collect(),
        };
        let packet_id = self.clients[at].packet_id();
        let packet = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        self.clients[at].send(&Packet::Subscribe(packet));
    }

    fn publish(&mut self, at: usize) {
        let qos = self.qos();
        let topic = (*TOPICS.choose(&mut self.random).expect("there are some")).to_owned();
        let client = &mut self.clients[at];
        if client.unacknowledged.len() >= UNACKNOWLEDGED_MAX {
            return;
        }
        client.published += 1;
        let name = (at, client.published);
        let delivery = match qos {
            QoS::AtMostOnce => Delivery::AtMostOnce,
            QoS::AtLeastOnce => Delivery::AtLeastOnce(client.packet_id()),
            QoS::ExactlyOnce => Delivery::ExactlyOnce(client.packet_id()),
        };
        if let Some(id) = delivery.packet_id() {
            client.unacknowledged.insert(id, name);
        }
        self.qos_of.insert(name, qos);
        let payload = Bytes::from(format!("{}-{}", name.0, name.1));
        let properties = PublishProperties::default();
        client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    }

    fn leave(&mut self, at: usize) {
        let how = self.random.random_range(0..3);
        let client = &mut self.clients[at];
        client.leaving = true;
        match how {
            0 => client.send(&Packet::Disconnect(Disconnect {
                reason_code: ReasonCode::Success,
                properties: DisconnectProperties::default(),
            })),
            1 => client.stream.shut_down_write(),
            _ => client.stream.reset(),
        }
    }

    /// A client reads. `true`: there was something.
    fn read(&mut self, at: usize, bytes_max: usize) -> bool {
        let mut buffer = vec![0; bytes_max];
        let client = &mut self.clients[at];
        match client.stream.try_read(&mut buffer) {
            Ok(0) => client.over = true,
            Ok(count) => {
                self.transcript.extend_from_slice(&(at as u32).to_be_bytes());
                self.transcript.extend_from_slice(&buffer[..count]);
                client.unparsed.extend_from_slice(&buffer[..count]);
                self.parse(at);
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => client.over = true,
        }
        false
    }

    fn parse(&mut self, at: usize) {
        let limits = Limits::default();
        loop {
            let client = &mut self.clients[at];
            let unparsed = std::mem::take(&mut client.unparsed);
            let status = codec::split_frame(&unparsed, Sender::Server, &limits).expect("the broker keeps the protocol");
            let FrameStatus::Complete(frame) = status else {
                client.unparsed = unparsed;
                return;
            };
            let packet = codec::decode(&frame, None, client.version, Sender::Server, &limits);
            client.unparsed = unparsed[frame.len()..].to_vec();
            self.on_packet(at, packet.expect("the broker keeps the protocol"));
        }
    }

    fn on_packet(&mut self, at: usize, packet: Packet) {
        let client = &mut self.clients[at];
        match packet {
            Packet::ConnAck(connack) => {
                assert_eq!((connack.reason_code, connack.session_present), (ReasonCode::Success, false));
                client.connected = true;
            }
            Packet::Publish(publish) => {
                assert!(!publish.dup, "nothing is sent again on a living connection");
                match publish.delivery {
                    Delivery::AtMostOnce => {}
                    Delivery::AtLeastOnce(id) => client.send(&Packet::PubAck(Ack::success(id))),
                    Delivery::ExactlyOnce(id) => {
                        assert!(client.begun.insert(id), "a Packet Identifier in use");
                        client.send(&Packet::PubRec(Ack::success(id)));
                    }
                }
                if let Some(name) = name_of(&publish.payload).filter(|_| at == 0) {
                    self.witnessed.push((name, self.qos_of[&name]));
                }
            }
            Packet::PubAck(ack) => {
                let name = client.unacknowledged.remove(&ack.packet_id).expect("a message that was published");
                self.accepted.insert(name);
            }
            Packet::PubRec(ack) => {
                self.accepted.insert(client.unacknowledged[&ack.packet_id]);
                client.send(&Packet::PubRel(Ack::success(ack.packet_id)));
            }
            Packet::PubComp(ack) => drop(client.unacknowledged.remove(&ack.packet_id)),
            Packet::PubRel(ack) => {
                assert!(client.begun.remove(&ack.packet_id), "a Packet Identifier that is not in use");
                client.send(&Packet::PubComp(Ack::success(ack.packet_id)));
            }
            Packet::Disconnect(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {}
            other => panic!("a client got {other:?}"),
        }
    }

    /// Until nobody has anything to say or to do any more.
    fn come_to_rest(&mut self) {
        loop {
            let mut moved = false;
            for arbiter in &mut self.arbiters {
                moved |= arbiter.waiting() > 0;
                arbiter.run();
            }
            for at in 0..self.clients.len() {
                moved |= self.clients[at].write(usize::MAX);
                moved |= self.read(at, 1024);
            }
            if !moved {
                return;
            }
        }
    }

    fn run(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.connect(0);
        world.come_to_rest();
        world.subscribe(0, Some(("#", QoS::ExactlyOnce)));
        world.come_to_rest();
        for _ in 0..STEPS {
            world.step();
        }
        world.come_to_rest();
        world
    }

    /// P1, P2, P3 and P5, as far as one who is always there can tell.
    fn check(&self) {
        for (at, client) in self.clients.iter().enumerate().filter(|(_, client)| !client.leaving && !client.over) {
            assert!(client.connected && client.unacknowledged.is_empty() && client.begun.is_empty(), "client {at}");
        }
        let mut seen = BTreeSet::new();
        let mut last = BTreeMap::new();
        for &((publisher, number), qos) in &self.witnessed {
            assert!(seen.insert((publisher, number)), "message {number} of {publisher} came twice");
            let before = last.insert((publisher, qos), number);
            assert!(before.is_none_or(|before| before < number), "message {number} of {publisher} is out of order");
        }
        let missing: Vec<_> = self.accepted.difference(&seen).collect();
        assert!(missing.is_empty(), "accepted and not delivered: {missing:?}");
        let open = self.clients.iter().filter(|client| !client.over).count();
        let here = self.arbiters.iter().map(|arbiter| arbiter.state().connections()).sum::<usize>();
        assert_eq!(here, open, "connections that are over are removed");
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("KENTONGAN_SEED").unwrap_or(1);
    first..first + number("KENTONGAN_SEEDS").unwrap_or(usual)
}

#[test]
fn whoever_stays_gets_every_accepted_message_once_and_in_order() {
    let (mut publications, mut silent) = (0, 0);
    for seed in seeds(30) {
        println!("KENTONGAN_SEED={seed}");
        let world = World::run(seed);
        world.check();
        publications += world.accepted.len();
        // Whom the arbiter closed without being asked: time passes for it, and for it alone.
        silent += world.clients.iter().filter(|client| client.over && !client.leaving).count();
    }
    assert!(publications > 1_000, "only {publications} messages were accepted");
    assert!(silent > 0, "nobody's keep-alive ran out");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in seeds(5) {
        println!("KENTONGAN_SEED={seed}");
        assert_eq!(World::run(seed).transcript, World::run(seed).transcript);
    }
    assert_ne!(World::run(1).transcript, World::run(2).transcript);
}

/// How the connection of a client ends for it whose Keep Alive runs out while nobody reads what it says: whether the broker says
/// DISCONNECT, and then the end of the stream or an error.
fn end_of_a_silent_client(version: ProtocolVersion, will: bool) -> (bool, std::io::Result<usize>) {
    let mut world = World::new(1);
    let arbiter = world.shared.try_open_connection(&world.listener, usize::MAX).expect("there is no bound");
    let (here, there) = MemoryStream::pair(4096);
    world.arbiters[usize::from(arbiter)].add_connection(there, Arc::clone(&world.listener), None);
    let mut client = Client::new(here, version);
    let will = will.then(|| Will {
        topic: "t/will".to_owned(),
        payload: Bytes::new(),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    });
    client.send(&Packet::Connect(Box::new(Connect { will, ..connect(version, "c".to_owned(), 2) })));
    client.write(usize::MAX);
    world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    let mut buffer = [0; 256];
    assert!(client.stream.try_read(&mut buffer).expect("CONNACK") > 0);

    let properties = DisconnectProperties::default();
    client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    client.write(usize::MAX);
    world.pass(10_000);
    world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    match client.stream.try_read(&mut buffer) {
        Ok(count) if count > 0 => (true, client.stream.try_read(&mut buffer)),
        end => (false, end),
    }
}

/// P9, [MQTT-3.14.4-3]: the end of the stream tells a client that its DISCONNECT counts. Where it does not, and the client cannot be
/// told, the connection breaks (found by simulation, seed 344).
#[test]
fn a_connection_that_ends_over_an_unread_disconnect_does_not_end_as_if_that_counted() {
    let end = |version, will| {
        let (told, end) = end_of_a_silent_client(version, will);
        (told, end.map_err(|error| error.kind()))
    };
    assert_eq!(end(ProtocolVersion::V3_1_1, true), (false, Err(std::io::ErrorKind::ConnectionReset)));
    assert_eq!(end(ProtocolVersion::V3_1_1, false), (false, Ok(0)), "without a will nothing hangs on it");
    assert_eq!(end(ProtocolVersion::V5, true), (true, Ok(0)));
}

/// Whoever has so much before it that a turn never ends it takes what it gets, and is not to blame for the turns of others.
#[test]
fn a_connection_that_waits_for_its_turn_is_not_stalled() {
    const TURN_BYTES: usize = 64 * 1024;
    const SECONDS: usize = 100;
    let mut world = World::new(1);
    let arbiter =
        usize::from(world.shared.try_open_connection(&world.listener, usize::MAX).expect("there is no bound"));
    let (here, there) = MemoryStream::pair(2 * TURN_BYTES);
    let key = world.arbiters[arbiter].add_connection(there, Arc::clone(&world.listener), None);
    let mut client = Client::new(here, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "much".to_owned(), 0))));
    client.write(usize::MAX);
    world.arbiters[arbiter].run();
    let mut buffer = vec![0; 2 * TURN_BYTES];
    let mut read = || {
        std::iter::from_fn(|| client.stream.try_read(&mut buffer).ok()).take_while(|&count| count > 0).sum::<usize>()
    };
    assert!(read() > 0, "CONNACK");

    let state = &mut world.arbiters[arbiter].state;
    let waiting = &mut state.client(key).expect("it is there").out;
    waiting.append_shared(Bytes::from(vec![0; (SECONDS + 10) * TURN_BYTES]));
    state.mark_dirty(key);
    world.arbiters[arbiter].run();
    assert!(state_of(&mut world, arbiter, key).blocked, "more than the stream takes");
    assert_eq!(read(), 2 * TURN_BYTES);
    // The connection hears that there is room.
    assert!(world.arbiters[arbiter].step(0));
    for _ in 0..SECONDS {
        assert!(world.arbiters[arbiter].step(0), "the flush");
        assert_eq!(read(), TURN_BYTES);
        assert!(!state_of(&mut world, arbiter, key).blocked);
        world.pass(1000);
    }
    world.arbiters[arbiter].run();
    assert!(state_of(&mut world, arbiter, key).blocked, "nobody reads any more");
    world.pass(59_000);
    assert!(!state_of(&mut world, arbiter, key).out.is_empty());
    world.pass(2_000);
    assert!(state_of(&mut world, arbiter, key).out.is_empty(), "given up");
}

fn state_of(world: &mut World, arbiter: usize, key: ConnectionKey) -> &mut crate::router::client::Client {
    world.arbiters[arbiter].state.client(key).expect("it is there")
}

/// P5, P7: a client comes back on another arbiter before the turn has ended in which it went.
#[test]
fn what_a_connection_sent_is_under_way_to_other_arbiters_before_its_client_may_come_back() {
    let mut world = World::new(1);
    let open = |world: &mut World, arbiter: usize, client_id: &str| {
        world.open(arbiter, connect(ProtocolVersion::V5, client_id.to_owned(), 0))
    };
    let publish = |client: &mut Client, payload: &'static str| {
        let (topic, payload) = ("t".to_owned(), Bytes::from(payload));
        let properties = PublishProperties::default();
        let delivery = Delivery::AtMostOnce;
        client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    };
    let mut subscriber = open(&mut world, 1, "subscriber");
    let filters = vec![("t".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))];
    let packet_id = subscriber.packet_id();
    let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    subscriber.send(&Packet::Subscribe(subscribe));
    subscriber.write(usize::MAX);
    world.arbiters[1].run();

    let mut publisher = open(&mut world, 0, "publisher");
    publish(&mut publisher, "before");
    let properties = DisconnectProperties::default();
    publisher.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    publisher.write(usize::MAX);
    assert!(world.arbiters[0].step(0), "the connection's task, and not yet the flush");
    let mut again = open(&mut world, 1, "publisher");
    publish(&mut again, "after");
    again.write(usize::MAX);
    world.arbiters[1].run();
    world.arbiters.iter_mut().rev().for_each(SteppedArbiter::run);
    world.arbiters[1].run();

    let mut got = vec![0; 1024];
    let count = subscriber.stream.try_read(&mut got).expect("there is something");
    let at = |payload: &[u8]| got[..count].windows(payload.len()).position(|window| window == payload);
    let (before, after) = (at(b"before").expect("the first"), at(b"after").expect("the second"));
    assert!(before < after);
}

/// One of several nodes, whose leaders nobody knows.
fn one_of_several(clock: Clock, peers: Arc<dyn Peers>) -> ClusterView {
    ClusterView {
        node: 1,
        lease: Arc::new(LeaseCell::endless()),
        peers,
        leaders: Leaders::default(),
        nodes: Nodes::default(),
        incoming: Mutex::new(Incoming::new(&BTreeMap::new())),
        patient_answers: Mutex::default(),
        clock,
        serving: std::sync::atomic::AtomicBool::new(true),
        leases: Mutex::default(),
        removed: std::sync::atomic::AtomicBool::new(false),
        elsewhere: crate::moving::Elsewhere::default(),
    }
}

/// An arbiter of one of several nodes, and a client whose claim was granted.
fn client_of_several_nodes() -> (SteppedArbiter, Client, ConnectionKey) {
    let (mut arbiter, client, connection) = claimant_of_several_nodes();
    grant(&mut arbiter, connection);
    (arbiter, client, connection)
}

/// The same before the claim is granted.
fn claimant_of_several_nodes() -> (SteppedArbiter, Client, ConnectionKey) {
    claimant_by(Settings::default())
}

fn claimant_by(settings: Settings) -> (SteppedArbiter, Client, ConnectionKey) {
    claimant(settings, Authority::default(), connect(ProtocolVersion::V5, "c".to_owned(), 0))
}

fn claimant(settings: Settings, authority: Authority, connect: Connect) -> (SteppedArbiter, Client, ConnectionKey) {
    claimant_among(Arc::new(NoPeers), settings, authority, connect)
}

fn claimant_among(
    peers: Arc<dyn Peers>,
    settings: Settings,
    authority: Authority,
    connect: Connect,
) -> (SteppedArbiter, Client, ConnectionKey) {
    claimant_at(&Arc::new(ManualClock::new(0)), peers, settings, authority, connect)
}

fn claimant_at(
    machine: &Arc<ManualClock>,
    peers: Arc<dyn Peers>,
    settings: Settings,
    authority: Authority,
    connect: Connect,
) -> (SteppedArbiter, Client, ConnectionKey) {
    let settings = Arc::new(settings);
    let clock = Clock::manual(Arc::clone(machine));
    let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
    let cluster = Some(one_of_several(clock.clone(), peers));
    let shared = Shared::new(Arc::clone(&settings), 1, submitter, authority, 1, cluster, clock);
    let shared = Arc::new(shared);
    let mut arbiter = SteppedArbiter::new(0, Arc::clone(&shared), Metrics::isolated().arbiter());
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
    assert_eq!(shared.try_open_connection(&listener, 1), Some(0));
    let (here, there) = MemoryStream::pair(4096);
    let connection = arbiter.add_connection(there, listener, None);
    let mut client = Client::new(here, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(connect)));
    client.write(usize::MAX);
    arbiter.run();
    (arbiter, client, connection)
}

/// One more claimant at the same arbiter.
fn another_claimant(arbiter: &mut SteppedArbiter, client_id: &str) -> (Client, ConnectionKey) {
    let shared = Arc::clone(&arbiter.state.shared);
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &shared.settings, address));
    assert_eq!(shared.try_open_connection(&listener, usize::MAX), Some(0));
    let (here, there) = MemoryStream::pair(4096);
    let connection = arbiter.add_connection(there, listener, None);
    let mut client = Client::new(here, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, client_id.to_owned(), 0))));
    client.write(usize::MAX);
    arbiter.run();
    (client, connection)
}

/// The group grants the claim of a connection.
fn grant(arbiter: &mut SteppedArbiter, connection: ConnectionKey) {
    arbiter.state.shared.inboxes[0].push(Opened::transient(connection, Arc::from("c")).into(), 0);
    arbiter.run();
}

/// Every node has heard of what clients subscribed to.
fn all_hear(arbiter: &mut SteppedArbiter) {
    tell(arbiter, Event::Barrier { ticket: u64::MAX });
}

/// Bytes of all that the lane to the only group has for its leader.
fn said_to_group(arbiter: &mut SteppedArbiter) -> usize {
    arbiter.state.flush_lanes();
    flushed_to_group(arbiter)
}

/// The same without what still gathers.
fn flushed_to_group(arbiter: &mut SteppedArbiter) -> usize {
    arbiter.state.lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
    std::iter::from_fn(|| arbiter.state.lanes.next_batch(0, 0)).map(|(_, batch)| batch.len()).sum()
}

/// What clients did, as the lane to the only group has it for its leader.
fn commands_to_group(arbiter: &mut SteppedArbiter) -> Vec<SessionCommand> {
    arbiter.state.flush_lanes();
    flushed_commands(arbiter)
}

/// The same without what still gathers.
fn flushed_commands(arbiter: &mut SteppedArbiter) -> Vec<SessionCommand> {
    arbiter.state.lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
    let batches = std::iter::from_fn(|| arbiter.state.lanes.next_batch(0, 0));
    let lane = |(_, batch)| match command::decode(batch) {
        Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) => batch.messages,
        other => panic!("a batch of a lane: {other:?}"),
    };
    batches.flat_map(lane).filter_map(|message| message.command).collect()
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Some tables have one key for the whole process.
#[test]
fn the_same_seed_gives_the_same_bytes_in_another_process() {
    const OTHER: &str = "KENTONGAN_STEPPED_IN_OTHER_PROCESS";
    const NAME: &str = "router::stepped::tests::the_same_seed_gives_the_same_bytes_in_another_process";
    let digests: Vec<String> =
        (1..6).map(|seed| format!("{seed}={:016x}", digest(&World::run(seed).transcript))).collect();
    let line = format!("digests: {}", digests.join(" "));
    if std::env::var_os(OTHER).is_some() {
        println!("{line}");
        return;
    }
    let test = std::env::current_exe().expect("this is one");
    let output = std::process::Command::new(test)
        .args(["--exact", NAME, "--nocapture"])
        .env(OTHER, "1")
        .output()
        .expect("it can be started once more");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(&line), "{line}\nbut there:\n{said}");
}

/// What a client can read now.
fn read_all(client: &mut Client) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let count = client.stream.try_read(&mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

/// The packets that a client can read now.
fn packets(client: &mut Client) -> Vec<Packet> {
    let bytes = read_all(client);
    client.unparsed.extend(bytes);
    let limits = Limits::default();
    let mut packets = Vec::new();
    while let FrameStatus::Complete(frame) =
        codec::split_frame(&client.unparsed, Sender::Server, &limits).expect("the broker keeps the protocol")
    {
        let packet = codec::decode(&frame, None, client.version, Sender::Server, &limits);
        packets.push(packet.expect("the broker keeps the protocol"));
        let length = frame.len();
        client.unparsed.drain(..length);
    }
    packets
}

/// Says it and lets the arbiters do their work; returns what the client hears.
fn say(world: &mut World, client: &mut Client, packet: &Packet) -> Vec<Packet> {
    client.send(packet);
    client.write(usize::MAX);
    for _ in 0..3 {
        world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    }
    packets(client)
}

fn subscribe_to(client: &mut Client, filters: &[&str], qos: QoS) -> Packet {
    let filters = filters.iter().map(|&filter| (filter.to_owned(), SubscriptionOptions::new(qos))).collect();
    let packet_id = client.packet_id();
    Packet::Subscribe(Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] })
}

/// Filters that all match [`IDENTIFIED_TOPIC`].
const IDENTIFIED_FILTERS: usize = 128;
const IDENTIFIED_TOPIC: &str = "a/a/a/a/a/a/a";

/// SUBSCRIBE to each of them, with an identifier of its own.
fn subscribe_with_identifiers(client: &mut Client, qos: QoS) -> Vec<Packet> {
    let levels = |at: usize| (0..7).map(move |level| if at >> level & 1 == 0 { "a" } else { "+" });
    let filters = (0..IDENTIFIED_FILTERS).map(|at| levels(at).collect::<Vec<_>>().join("/"));
    let subscribe = |(filter, identifier): (String, u32)| {
        let Packet::Subscribe(subscribe) = subscribe_to(client, &[&filter], qos) else { unreachable!() };
        Packet::Subscribe(Subscribe { subscription_identifier: Some(identifier), ..subscribe })
    };
    filters.zip(1..).map(subscribe).collect()
}

fn publish_to(client: &mut Client, topic: &str, payload: &'static str) -> Packet {
    let delivery = Delivery::AtLeastOnce(client.packet_id());
    let (topic, payload, properties) = (topic.to_owned(), Bytes::from(payload), PublishProperties::default());
    Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload })
}

fn message_to(topic: &str, qos: QoS) -> Arc<Message> {
    Arc::new(Message {
        identity: MessageIdentity::default(),
        topic: Arc::from(topic),
        payload: Bytes::from_static(b"x"),
        qos,
        retain: false,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    })
}

fn is_puback(packet: &Packet) -> bool {
    matches!(packet, Packet::PubAck(_))
}

/// MQTT 5, section 4.11: it hears where another server is. Whom nobody could tell stays, where only others are to go.
#[test]
fn a_client_that_is_moved_is_told_where_to_and_stays_if_it_must_be_told_and_cannot() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let elsewhere = &shared.cluster.as_ref().expect("one of several").elsewhere;
    let place = |address: Option<&str>| vec![Place { node: 2, address: address.map(str::to_owned) }];
    read_all(&mut client);
    let mut move_all = |only_told| {
        shared.inboxes[0].push(Event::Move { count: 9, only_told }, 0);
        arbiter.run();
        read_all(&mut client)
    };
    elsewhere.set(false, place(None));
    assert_eq!(move_all(true), [0; 0], "nobody said where clients reach the other node");
    elsewhere.set(false, place(Some("two:1883")));
    assert_eq!(move_all(false), disconnect(Some("two:1883")));
    assert_eq!(move_all(false), [0; 0], "it is told once");

    let (mut arbiter, mut client, _) = client_of_several_nodes();
    read_all(&mut client);
    arbiter.state.shared.inboxes[0].push(Event::Move { count: 1, only_told: false }, 0);
    arbiter.run();
    assert_eq!(read_all(&mut client), disconnect(None), "there are others, wherever they are");
}

/// [MQTT-3.1.2-22]: also where that is no whole number of seconds, and wherever in a second it was heard last.
#[test]
fn nobody_is_ended_before_one_and_a_half_times_its_keep_alive() {
    for (keep_alive, heard_at_ms) in [1, 2, 3, 5].into_iter().flat_map(|seconds| [(seconds, 1), (seconds, 990)]) {
        let mut world = World::new(1);
        world.pass(heard_at_ms);
        let mut silent = world.open(0, connect(ProtocolVersion::V5, "silent".to_owned(), keep_alive));
        assert_eq!(packets(&mut silent).len(), 1, "CONNACK");
        let mut silent_ms = 0;
        while packets(&mut silent).is_empty() {
            assert!(silent_ms < u64::from(keep_alive) * 1500 + 3000, "{keep_alive} s are long over");
            world.pass(250);
            world.arbiters[0].run();
            silent_ms += 250;
        }
        assert!(silent_ms >= u64::from(keep_alive) * 1500, "{keep_alive} s, ended after {silent_ms} ms");
    }
}

/// The clock goes on while the machine is suspended, and nobody could say anything.
#[test]
fn nobody_is_ended_for_having_been_silent_while_the_machine_was_suspended() {
    for is_excused in [true, false] {
        let mut world = World::new(1);
        world.pass(1_000);
        let mut silent = world.open(0, connect(ProtocolVersion::V5, "silent".to_owned(), 10));
        assert_eq!(packets(&mut silent).len(), 1, "CONNACK");
        world.machine.advance(Duration::from_secs(8 * 60 * 60));
        if is_excused {
            world.arbiters[0].state.excuse_silence();
        }
        let pass = |world: &mut World| {
            world.pass(1_000);
            world.arbiters[0].run();
        };
        pass(&mut world);
        assert_eq!(packets(&mut silent).is_empty(), is_excused);
        (0..16).for_each(|_| pass(&mut world));
        assert_eq!(packets(&mut silent).is_empty(), !is_excused, "it is silent on");
    }
}

/// What is armed for a connection stays in the wheel when that is gone.
#[test]
fn a_long_keep_alive_is_soon_forgotten_with_its_connection() {
    let mut world = World::new(1);
    let [gone, mut there] =
        ["gone", "there"].map(|name| world.open(0, connect(ProtocolVersion::V5, name.to_owned(), 3000)));
    assert_eq!(packets(&mut there).len(), 1, "CONNACK");
    drop(gone);
    world.arbiters[0].run();
    world.pass(601_000);
    world.arbiters[0].run();
    assert_eq!(world.arbiters[0].state.wheel.count(), 1, "of the one that is there");
    assert_eq!(say(&mut world, &mut there, &Packet::PingReq), [Packet::PingResp]);
    world.pass(4_000_000);
    assert_eq!(world.arbiters[0].state.connections(), 1, "not yet");
    world.pass(1_000_000);
    world.arbiters[0].run();
    assert_eq!(world.arbiters[0].state.connections(), 0);
}

fn disconnect(server_reference: Option<&str>) -> Vec<u8> {
    let properties = DisconnectProperties {
        server_reference: server_reference.map(str::to_owned),
        ..DisconnectProperties::default()
    };
    let packet = Packet::Disconnect(Disconnect { reason_code: ReasonCode::UseAnotherServer, properties });
    let mut bytes = Vec::new();
    codec::encode(&packet, ProtocolVersion::V5, &mut bytes).expect("a packet that can be expressed");
    bytes
}

fn tell(arbiter: &mut SteppedArbiter, event: Event) {
    arbiter.state.shared.inboxes[0].push(event, 0);
    arbiter.run();
}
