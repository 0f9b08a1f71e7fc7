//! Two arbiters of one node in one thread, with clients that come and go, from one seed.
//!
//! All sessions are transient and nothing is retained, so no group is needed. `KENTONGAN_SEED` and `KENTONGAN_SEEDS` say
//! which seeds are run.

mod changing;
mod resyncs;
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
use crate::replicated::{
    Opened, RetainedCursor, RetainedPage, Slots, Submitter, SubscribeOutcome, SubscribedPersistent,
};
use crate::router::batch::{Addressee, Batch};
use crate::router::client::Phase;
use crate::router::cluster::{ASKED_MAX, ClusterView, Leader, Leaders, SUBACKS_A_TURN_MAX};
use crate::router::connect::{EndCause, LET_IN_A_SECOND_MAX};
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

/// A publisher that has more to say than it may: once its bucket is empty it goes on with what comes in, part by part.
#[test]
fn a_publisher_under_a_rate_is_read_in_small_parts() {
    let mut settings = Settings::default();
    settings.session.publish_rate_max = 100;
    let settings = Arc::new(settings);
    let machine = Arc::new(ManualClock::new(1_000_000));
    let clock = Clock::manual(Arc::clone(&machine));
    let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
    let shared = Shared::new(Arc::clone(&settings), 1, submitter, Authority::default(), 1, None, clock);
    let shared = Arc::new(shared);
    let mut arbiter = SteppedArbiter::new(0, Arc::clone(&shared), Metrics::isolated().arbiter());
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
    assert_eq!(shared.try_open_connection(&listener, 1), Some(0));
    let (here, there) = MemoryStream::pair(1 << 20);
    arbiter.add_connection(there, listener, None);
    let mut client = Client::new(here, ProtocolVersion::V3_1_1);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V3_1_1, "c".to_owned(), 0))));
    for _ in 0..300 {
        let delivery = Delivery::AtLeastOnce(client.packet_id());
        let properties = PublishProperties::default();
        let (topic, payload) = (String::from("t"), Bytes::new());
        client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    }
    while client.write(usize::MAX) {}
    let mut pubacks = || {
        arbiter.run();
        let mut read = [0; 4096];
        let puback = |bytes: &&[u8]| bytes[0] == 0x40;
        let count = client.stream.try_read(&mut read).map_or(0, |count| read[..count].chunks(4).filter(puback).count());
        machine.advance(super::super::pace::RESUME_INTERVAL);
        arbiter.resume_paced();
        count
    };
    assert_eq!(pubacks(), 100, "what the bucket held");
    for part in 0..20 {
        assert_eq!(pubacks(), 5, "part {part}");
    }
}

/// A connection with these subscriptions ends: what other nodes are to hear of it.
fn interest_that_ends(filters: &[String]) -> Vec<(Box<str>, InterestKind, bool)> {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let filters = filters.iter().map(|filter| (filter.clone(), SubscriptionOptions::new(QoS::AtMostOnce)));
    let packet_id = client.packet_id();
    let filters = filters.collect();
    let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    client.send(&Packet::Subscribe(subscribe));
    client.write(usize::MAX);
    arbiter.run();
    drop(client);
    // The connection's task, and not yet the flush, which hands the changes on.
    assert!(arbiter.step(0));
    arbiter.state.interest.filters.clone()
}

#[test]
fn the_interest_that_ends_with_a_connection_is_told_in_the_order_of_the_filters() {
    let filters: Vec<_> = (10..50).map(|number| format!("t/{number}")).collect();
    let expected: Vec<_> =
        filters.iter().map(|filter| (Box::from(filter.as_str()), InterestKind::Any, false)).collect();
    assert_eq!(interest_that_ends(&filters), expected);
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

/// P10: what waits for a leader is written once, but its expiry runs.
#[test]
fn a_batch_says_the_time_at_which_it_is_sent_each_time() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    shared.index.subscribe("t", Target::Group(0));
    let properties = PublishProperties { message_expiry_interval: Some(5), ..PublishProperties::default() };
    let delivery = Delivery::AtLeastOnce(client.packet_id());
    let (topic, payload) = ("t".to_owned(), Bytes::new());
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client.write(usize::MAX);
    arbiter.run();
    let mut left_at = |clock_ms| {
        arbiter.state.lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
        let batches = std::iter::from_fn(|| arbiter.state.lanes.next_batch(0, clock_ms));
        let mut left = Vec::new();
        for (_, batch) in batches {
            let Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) = command::decode(batch) else {
                panic!("a batch of a lane")
            };
            let expiries = batch.messages.iter().filter_map(|message| message.message.as_ref()?.expiry_left_ms);
            left.extend(expiries.map(|left| left.saturating_sub(batch.clock_ms)));
        }
        left
    };
    let began_ms = shared.now_ms();
    assert_eq!(left_at(began_ms + 1_000), [4_000]);
    assert_eq!(left_at(began_ms + 3_000), [2_000], "sent again");
}

/// P7, P9: a leader that heard twice of a claim may grant it twice. The second time must not end what stands.
#[test]
fn a_claim_that_is_granted_twice_is_not_given_up() {
    let (mut arbiter, _client, connection) = client_of_several_nodes();
    let said = said_to_group(&mut arbiter);
    assert!(said > 0, "CONNECT at least");
    grant(&mut arbiter, connection);
    assert_eq!(said_to_group(&mut arbiter), said, "nothing more");
}

/// What clients did, as the lane to the only group has it for its leader.
fn commands_to_group(arbiter: &mut SteppedArbiter) -> Vec<SessionCommand> {
    arbiter.state.flush_lanes();
    arbiter.state.lanes.set_leader(0, Some(Leader { node: 2, term: 1, round: 0 }));
    let batches = std::iter::from_fn(|| arbiter.state.lanes.next_batch(0, 0));
    let lane = |(_, batch)| match command::decode(batch) {
        Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) => batch.messages,
        other => panic!("a batch of a lane: {other:?}"),
    };
    batches.flat_map(lane).filter_map(|message| message.command).collect()
}

/// [MQTT-3.1.2-8]: a client that hears nothing, as its connection went before its claim was granted, was never accepted. Its will is
/// published by nobody, and its session is what it was.
#[test]
fn a_claim_that_is_granted_to_nobody_is_given_back_as_if_it_had_not_been() {
    let (mut arbiter, _client, connection) = claimant_of_several_nodes();
    arbiter.state.end(connection, EndCause::ConnectTimeout, None);
    grant(&mut arbiter, connection);
    let said = commands_to_group(&mut arbiter);
    let [SessionCommand::Connect(_), SessionCommand::Disconnect(end)] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(end.never_began && !end.publish_will, "{end:?}");

    // The grant was lost, and the next claim waits for this one.
    let (mut arbiter, _client, connection) = claimant_of_several_nodes();
    arbiter.state.end(connection, EndCause::ConnectTimeout, None);
    arbiter.state.on_close(connection, 0, &Arc::from("c"), 1);
    let said = commands_to_group(&mut arbiter);
    let [SessionCommand::Connect(_), SessionCommand::Released(end)] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(end.never_began && !end.publish_will, "{end:?}");
}

/// What a clean end costs the group is part of what is said to it next: nobody waits for it.
#[test]
fn the_end_of_a_session_that_leaves_nothing_waits_for_company() {
    let (mut arbiter, mut client, connection) = client_of_several_nodes();
    client.stream.try_read(&mut [0; 256]).expect("CONNACK");
    let before = flushed_to_group(&mut arbiter);
    let properties = DisconnectProperties::default();
    client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(
        client.stream.try_read(&mut [0; 256]).expect("the end of the stream"),
        0,
        "though no group has heard of it"
    );
    assert_eq!(flushed_to_group(&mut arbiter), before, "nothing yet");

    // Another node has the Client Identifier's next claim.
    arbiter.state.on_close(connection, 0, &Arc::from("c"), 1);
    arbiter.run();
    assert!(flushed_to_group(&mut arbiter) > before, "the group asks, and is told at once");
}

/// In a storm one connection ends after the other: none of them sends away what the one before it left.
#[test]
fn the_ends_of_several_sessions_that_leave_nothing_go_with_the_next_claim() {
    let (mut arbiter, first, _) = client_of_several_nodes();
    let (second, connection) = another_claimant(&mut arbiter, "d");
    arbiter.state.shared.inboxes[0].push(Opened::transient(connection, Arc::from("d")).into(), 0);
    arbiter.run();
    let before = flushed_to_group(&mut arbiter);
    for mut client in [first, second] {
        let properties = DisconnectProperties::default();
        client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
        client.write(usize::MAX);
        arbiter.run();
        assert_eq!(flushed_to_group(&mut arbiter), before, "nothing yet");
    }
    another_claimant(&mut arbiter, "e");
    let said = commands_to_group(&mut arbiter);
    let [.., SessionCommand::Disconnect(_), SessionCommand::Disconnect(_), SessionCommand::Connect(_)] = &said[..]
    else {
        panic!("{said:?}");
    };
}

/// P12: nobody asks.
#[test]
fn the_end_of_a_session_that_leaves_nothing_is_said_within_a_second() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let properties = DisconnectProperties::default();
    client.send(&Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties }));
    client.write(usize::MAX);
    arbiter.run();
    let before = flushed_to_group(&mut arbiter);
    arbiter.on_second();
    assert!(flushed_to_group(&mut arbiter) > before);
}

/// P2, P4: of a SUBSCRIBE that it had not heard of a new leader is told again, behind a later one that it had. That one stands
/// (found by simulation, seed 6735).
#[test]
fn the_answer_to_an_earlier_subscribe_undoes_no_later_one() {
    let (mut arbiter, mut client, connection) = claimant_of_several_nodes();
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    arbiter.state.shared.inboxes[0].push(opened.into(), 0);
    arbiter.run();
    let asked = [QoS::AtMostOnce, QoS::AtLeastOnce].map(|qos| {
        let packet_id = client.packet_id();
        let filters = vec![("t".to_owned(), SubscriptionOptions::new(qos))];
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        client.send(&Packet::Subscribe(subscribe));
        (packet_id, SubscriptionOptions::new(qos))
    });
    client.write(usize::MAX);
    arbiter.run();
    let served = arbiter.state.served(connection).expect("it is served");
    let tickets: Vec<_> = served.unanswered.iter().map(|&(ticket, _)| ticket).collect();
    for ((packet_id, options), &ticket) in asked.into_iter().zip(&tickets).rev() {
        let (filter, reason) = ("t".to_owned(), ReasonCode::Success);
        let outcomes = vec![SubscribeOutcome { filter, reason, options, identifier: None, read: None }];
        let subscribed = SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes };
        arbiter.state.shared.inboxes[0].push(Event::Subscribed(subscribed), 0);
        arbiter.run();
    }
    let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
    let standing = session.and_then(|session| session.subscriptions.get("t")).expect("a subscription");
    assert_eq!(standing.options.qos, QoS::AtLeastOnce);
    let served = arbiter.state.served(connection).expect("it is served");
    assert!(served.unanswered.is_empty(), "both are answered");
}

/// While some node does not answer, what waits for it ends with its connection, and a client that says SUBSCRIBE again and again
/// is not read.
#[test]
fn subscribes_that_not_every_node_has_heard_of_are_so_many_for_a_connection_and_go_with_it() {
    const SUBSCRIBES: usize = 1000;
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    for _ in 0..SUBSCRIBES {
        let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
        client.send(&subscribe);
    }
    let mut subacks = 0;
    let mut work = |arbiter: &mut SteppedArbiter, client: &mut Client| {
        for _ in 0..50 {
            client.write(usize::MAX);
            arbiter.run();
            subacks += packets(client).iter().filter(|packet| matches!(packet, Packet::SubAck(_))).count();
        }
        subacks
    };
    let mut answered = 0;
    while answered < SUBSCRIBES {
        assert_eq!(work(&mut arbiter, &mut client), answered, "no node has heard of more");
        let waiting = arbiter.state.barriers.len();
        assert_eq!(waiting, ASKED_MAX.min(SUBSCRIBES - answered), "the rest is not read");
        let (&ticket, _) = arbiter.state.barriers.last_key_value().expect("some wait");
        arbiter.state.shared.inboxes[0].push(Event::Barrier { ticket }, 0);
        answered += waiting;
        arbiter.run();
        assert!(arbiter.state.barriers.len() <= ASKED_MAX);
    }
    assert_eq!(work(&mut arbiter, &mut client), SUBSCRIBES);

    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
    client.send(&subscribe);
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(arbiter.state.barriers.len(), 1);
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.barriers.len(), 0, "nobody waits for it");
}

/// A node that is back lets go of all who waited for it: others have their turn between them.
#[test]
fn subacks_that_waited_for_a_node_leave_by_turns() {
    let (mut arbiter, _client, key) = client_of_several_nodes();
    let waiting = SUBACKS_A_TURN_MAX as u64 * 3;
    arbiter.state.barriers = (1..=waiting).map(|ticket| (ticket, key)).collect();
    arbiter.state.on_barrier(waiting - 10);
    assert_eq!(arbiter.state.barriers.len(), SUBACKS_A_TURN_MAX * 2);
    arbiter.run();
    assert!(arbiter.state.barriers.into_keys().eq(waiting - 9..=waiting), "no more than are due");
}

/// [MQTT-3.10.4-2] lets what was under way come: a message that waited for the retained ones of a subscription does not wait for
/// ever when that is gone, and nothing that comes later by another one gets past it.
#[test]
fn what_waited_behind_retained_messages_comes_when_their_subscription_ends() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let (packet_id, filters) = (client.packet_id(), vec![("t".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))]);
    let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    client.send(&Packet::Subscribe(subscribe));
    let (topic, payload, properties) = ("t".to_owned(), Bytes::from("live"), PublishProperties::default());
    let delivery = Delivery::AtMostOnce;
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client.write(usize::MAX);
    arbiter.run();
    let came = |client: &mut Client| read_all(client).windows(4).any(|window| window == b"live");
    assert!(!came(&mut client), "no group has said what is retained");

    let (packet_id, filters) = (client.packet_id(), vec!["t".to_owned()]);
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    client.write(usize::MAX);
    arbiter.run();
    assert!(came(&mut client));
}

/// P5: a subscription that is taken anew, and wants nothing retained this time, holds nothing back any more: what waits for
/// another one comes once that has ended, before what is published then.
#[test]
fn who_wants_nothing_retained_any_more_holds_nothing_back() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut say = |client: &mut Client, packet: &Packet| {
        client.send(packet);
        client.write(usize::MAX);
        arbiter.run();
        let received = packets(client).into_iter();
        let payloads = received.filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish.payload),
            _ => None,
        });
        payloads.collect::<Vec<_>>()
    };
    let publish = |payload: &'static str| {
        let (topic, payload, properties) = ("t".to_owned(), Bytes::from(payload), PublishProperties::default());
        Packet::Publish(Publish {
            dup: false,
            delivery: Delivery::AtMostOnce,
            retain: false,
            topic,
            properties,
            payload,
        })
    };
    let all = subscribe_to(&mut client, &["t", "+", "x/#"], QoS::AtMostOnce);
    say(&mut client, &all);
    let options =
        SubscriptionOptions { retain_handling: RetainHandling::Never, ..SubscriptionOptions::new(QoS::AtMostOnce) };
    let (packet_id, filters) = (client.packet_id(), vec![("t".to_owned(), options)]);
    let anew = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
    say(&mut client, &Packet::Subscribe(anew));
    assert_eq!(say(&mut client, &publish("older")).len(), 0, "no group has said what is retained for +");

    let (packet_id, filters) = (client.packet_id(), vec!["+".to_owned()]);
    let mut received =
        say(&mut client, &Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    received.extend(say(&mut client, &publish("newer")));
    assert_eq!(received, ["older", "newer"]);
}

/// P5: the read of one subscription is over, and what it held back waits for that of another. Subscribed to anew without retained
/// messages, the first one lets nothing past that (found by simulation, seed 13885).
#[test]
fn what_waits_behind_retained_messages_is_not_overtaken_when_its_subscription_is_renewed() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let connection = world.arbiters[0].state.keys()[0];
    let subscribe = |world: &mut World, client: &mut Client, filter: &str, retain_handling| {
        let options = SubscriptionOptions { retain_handling, ..SubscriptionOptions::new(QoS::AtMostOnce) };
        let (packet_id, filters) = (client.packet_id(), vec![(filter.to_owned(), options)]);
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        let heard = say(world, client, &Packet::Subscribe(subscribe));
        assert!(matches!(heard[..], [Packet::SubAck(_)]), "{heard:?}");
        // Of the read, if one began.
        world.arbiters[0].state.message_number
    };
    let publish = |world: &mut World, client: &mut Client, payload| {
        let publish = publish_to(client, "t", payload);
        assert!(matches!(say(world, client, &publish)[..], [Packet::PubAck(_)]), "{payload} waits");
    };
    let end_read = |world: &mut World, client: &mut Client, filter, number| -> Vec<Bytes> {
        let group = world.shared.submitter.slots().group_of(filter);
        let asked = RetainedCursor { group, after: None };
        let page = RetainedPage { connection, number, asked, messages: vec![], next: None };
        world.shared.inboxes[0].push(Event::RetainedPage(page), 0);
        world.arbiters[0].run();
        let payload = |packet| match packet {
            Packet::Publish(publish) => publish.payload,
            other => panic!("{other:?}"),
        };
        packets(client).into_iter().map(payload).collect()
    };
    let first = subscribe(&mut world, &mut client, "t", RetainHandling::Always);
    let other = subscribe(&mut world, &mut client, "u", RetainHandling::Always);
    publish(&mut world, &mut client, "older");
    assert_eq!(end_read(&mut world, &mut client, "t", first), [""; 0], "that of the other goes on");
    subscribe(&mut world, &mut client, "t", RetainHandling::IfNew);
    publish(&mut world, &mut client, "newer");
    assert_eq!(end_read(&mut world, &mut client, "u", other), ["older", "newer"]);
}

/// P6: a SUBSCRIBE begins to hold live messages back for one filter, and ends the only read that is under way by another (found by
/// simulation, seed 8137).
#[test]
fn what_a_filter_holds_back_is_not_let_go_by_another_one_of_the_same_packet() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let mut subscribe = |filters: &[(&str, RetainHandling)]| {
        let options =
            |retain_handling| SubscriptionOptions { retain_handling, ..SubscriptionOptions::new(QoS::AtMostOnce) };
        let filters = filters.iter().map(|&(filter, handling)| (filter.to_owned(), options(handling))).collect();
        let packet_id = client.packet_id();
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        let heard = say(&mut world, &mut client, &Packet::Subscribe(subscribe));
        assert!(matches!(heard[..], [Packet::SubAck(_)]), "{heard:?}");
    };
    subscribe(&[("u", RetainHandling::Always)]);
    subscribe(&[("t", RetainHandling::Always), ("u", RetainHandling::Never)]);
    let live = publish_to(&mut client, "t", "live");
    let heard = say(&mut world, &mut client, &live);
    assert!(matches!(heard[..], [Packet::PubAck(_)]), "no group has said what is retained: {heard:?}");
}

/// P10 [MQTT-3.3.2-5]: what expires while retained messages are read does not come behind them (found by simulation, seed 4031).
#[test]
fn what_expires_behind_retained_messages_is_dropped() {
    let mut world = World::new(1);
    world.shared.retained_possible.store(true, Ordering::Relaxed);
    let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    for (qos, delivery) in
        [(QoS::AtMostOnce, Delivery::AtMostOnce), (QoS::AtLeastOnce, Delivery::AtLeastOnce(client.packet_id()))]
    {
        let subscribe = subscribe_to(&mut client, &["t"], qos);
        assert_eq!(say(&mut world, &mut client, &subscribe).len(), 1, "SUBACK");
        for (payload, seconds) in [("gone", Some(1)), ("kept", Some(60)), ("for ever", None)] {
            let properties = PublishProperties { message_expiry_interval: seconds, ..PublishProperties::default() };
            let (topic, payload) = ("t".to_owned(), Bytes::from(payload));
            let publish = Publish { dup: false, delivery, retain: false, topic, properties, payload };
            say(&mut world, &mut client, &Packet::Publish(publish));
        }
        world.pass(2_000);
        let packet_id = client.packet_id();
        let filters = vec!["t".to_owned()];
        let unsubscribe = Unsubscribe { packet_id, filters, user_properties: vec![] };
        let heard = say(&mut world, &mut client, &Packet::Unsubscribe(unsubscribe));
        let payload = |packet| match packet {
            Packet::Publish(publish) => Some(publish.payload),
            _ => None,
        };
        assert_eq!(heard.into_iter().filter_map(payload).collect::<Vec<_>>(), ["kept", "for ever"]);
        let dropped = &world.arbiters[0].state.counters.messages_dropped;
        assert_eq!(dropped.unflushed(crate::metrics::DropReason::Expired), 1);
    }
}

/// What waits behind retained messages is bounded in bytes as the queue is: what finds no room is dropped, and counted.
///
/// Abuse: [queue-full]
#[test]
fn what_waits_behind_retained_messages_is_bounded_in_bytes() {
    const MESSAGES: usize = 20;
    const PAYLOAD_BYTES: usize = 1000;
    let mut settings = Settings::default();
    settings.session.queue_bytes_max = 10 * PAYLOAD_BYTES as u64;
    let (mut arbiter, mut client, connection) = claimant_by(settings);
    grant(&mut arbiter, connection);
    arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtMostOnce);
    client.send(&subscribe);
    let publish = Publish {
        dup: false,
        delivery: Delivery::AtMostOnce,
        retain: false,
        topic: "t".to_owned(),
        properties: PublishProperties::default(),
        payload: vec![0; PAYLOAD_BYTES].into(),
    };
    (0..MESSAGES).for_each(|_| client.send(&Packet::Publish(publish.clone())));
    let mut received = Vec::new();
    let mut work = |arbiter: &mut SteppedArbiter, client: &mut Client| {
        for _ in 0..100 {
            client.write(usize::MAX);
            arbiter.run();
            received.extend(packets(client));
        }
        received.iter().filter(|packet| matches!(packet, Packet::Publish(_))).count()
    };
    assert_eq!(work(&mut arbiter, &mut client), 0, "no group has said what is retained");
    let held_bytes = |arbiter: &mut SteppedArbiter| {
        let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
        session.map(|session| session.reads.held_bytes()).expect("it is there")
    };
    let held = held_bytes(&mut arbiter);
    assert!((8 * PAYLOAD_BYTES..=10 * PAYLOAD_BYTES).contains(&held), "{held}");
    let (packet_id, filters) = (client.packet_id(), vec!["t".to_owned()]);
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    let received = work(&mut arbiter, &mut client);
    assert!((8..10).contains(&received), "{received}");
    assert_eq!(held_bytes(&mut arbiter), 0);
}

/// P6: what only begins like the broker's own topics is kept by a group, and read there.
#[test]
fn retained_messages_of_what_begins_like_sys_are_asked_for() {
    for (filter, is_asked) in [("$SYSTEM/x", true), ("$SYS/x", false), ("$SYS", false)] {
        let mut world = World::new(1);
        world.shared.retained_possible.store(true, Ordering::Relaxed);
        let mut client = world.open(0, connect(ProtocolVersion::V5, "c".to_owned(), 0));
        let subscribe = subscribe_to(&mut client, &[filter], QoS::AtMostOnce);
        assert_eq!(say(&mut world, &mut client, &subscribe).len(), 2, "CONNACK and SUBACK");
        let mut sessions = world.arbiters[0].state.clients.iter().filter_map(|(_, client)| client.session.as_ref());
        assert_eq!(sessions.next().map(|session| session.reads.is_under_way()), Some(is_asked), "{filter}");
    }
}

/// A session has no more subscriptions than it may, whether it asks for them in one packet or in several at once.
#[test]
fn subscriptions_are_bounded_in_one_packet_and_in_several_at_once() {
    let mut settings = Settings::default();
    settings.session.subscriptions_max = 2;
    let (mut arbiter, mut client, connection) = claimant_by(settings.clone());
    grant(&mut arbiter, connection);
    let filters = |arbiter: &mut SteppedArbiter| {
        let session = arbiter.state.client(connection).and_then(|client| client.session.as_ref());
        let filters = session.into_iter().flat_map(|session| session.subscriptions.keys());
        filters.map(|filter| filter.to_string()).collect::<BTreeSet<_>>()
    };
    let subscribe = subscribe_to(&mut client, &["a", "a", "b", "c", "d"], QoS::AtMostOnce);
    client.send(&subscribe);
    client.write(usize::MAX);
    arbiter.run();
    assert_eq!(filters(&mut arbiter), BTreeSet::from(["a".to_owned(), "b".to_owned()]));

    // The group of a persistent session has not answered yet.
    let (mut arbiter, mut client, connection) = claimant_by(settings);
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    arbiter.state.shared.inboxes[0].push(opened.into(), 0);
    arbiter.run();
    let mut ask = |arbiter: &mut SteppedArbiter, filter: &str| {
        let subscribe = subscribe_to(&mut client, &[filter], QoS::AtLeastOnce);
        client.send(&subscribe);
        client.write(usize::MAX);
        arbiter.run();
        let served = arbiter.state.served(connection).expect("it is served");
        let Some((ticket, SessionCommand::Subscribe(asked))) = served.unanswered.back() else {
            panic!("it was asked for");
        };
        (*ticket, asked.clone())
    };
    let mut is_refused = |arbiter: &mut SteppedArbiter, filter: &str| {
        let (ticket, asked) = ask(arbiter, filter);
        (asked.filters[0].refused == Some(ReasonCode::QuotaExceeded as u32), ticket)
    };
    let (_, first) = is_refused(&mut arbiter, "a");
    let refused = ["b", "a", "c"].map(|filter| is_refused(&mut arbiter, filter).0);
    assert_eq!(refused, [false, false, true]);
    // The group grants one of them and refuses the other: there is room for one more.
    let outcome = |filter: &str, reason| SubscribeOutcome {
        filter: filter.to_owned(),
        reason,
        options: SubscriptionOptions::new(QoS::AtLeastOnce),
        identifier: None,
        read: None,
    };
    let outcomes = vec![outcome("a", ReasonCode::GrantedQos1), outcome("b", ReasonCode::UnspecifiedError)];
    let subscribed = SubscribedPersistent { connection, epoch: 1, packet_id: PacketId::MIN, ticket: first, outcomes };
    arbiter.state.shared.inboxes[0].push(Event::Subscribed(subscribed), 0);
    arbiter.run();
    assert_eq!(["c", "d"].map(|filter| is_refused(&mut arbiter, filter).0), [false, true]);
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

fn publish_to(client: &mut Client, topic: &str, payload: &'static str) -> Packet {
    let delivery = Delivery::AtLeastOnce(client.packet_id());
    let (topic, payload, properties) = (topic.to_owned(), Bytes::from(payload), PublishProperties::default());
    Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload })
}

fn is_puback(packet: &Packet) -> bool {
    matches!(packet, Packet::PubAck(_))
}

/// Memory is short because of what waits for a subscriber: what it acknowledges is read, and so memory is short no more. Only
/// who publishes waits, and behind what it has said before it goes on by one read at a time.
///
/// Abuse: [queue-full]
#[test]
fn what_makes_queues_shorter_is_read_while_publishers_wait() {
    const MESSAGES: i64 = 20;
    let mut world = World::new(1);
    let slow = connect(ProtocolVersion::V5, "slow".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut slow = world.open(0, Connect { properties, ..slow });
    let mut publisher = world.open(1, connect(ProtocolVersion::V5, "publisher".to_owned(), 0));
    let mut bystander = world.open(0, connect(ProtocolVersion::V5, "bystander".to_owned(), 0));
    for client in [&mut slow, &mut publisher, &mut bystander] {
        assert_eq!(packets(client).len(), 1, "CONNACK");
    }
    let subscribe = subscribe_to(&mut slow, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, &mut slow, &subscribe).len(), 1, "SUBACK");
    for _ in 0..MESSAGES {
        let publish = publish_to(&mut publisher, "t", "x");
        assert!(say(&mut world, &mut publisher, &publish).iter().all(is_puback));
    }
    let queued = |world: &World| {
        let clients = world.arbiters[0].state.clients.iter();
        clients.filter_map(|(_, client)| Some(client.session.as_ref()?.outbound.backlog().queued_messages)).sum::<i64>()
    };
    assert_eq!(queued(&world), MESSAGES - 1);
    let mark = (MESSAGES as u64 - 1) * 1000 * 100 / 115;
    let watch = |world: &World| world.shared.pretend_memory(queued(world) as u64 * 1000, mark);
    watch(&world);
    assert_eq!(world.shared.memory_level(), 2);

    for acknowledged in [1, 0] {
        let publish = publish_to(&mut publisher, "u", "x");
        assert_eq!(say(&mut world, &mut publisher, &publish).len(), acknowledged);
    }
    for _ in 0..2 {
        assert_eq!(say(&mut world, &mut bystander, &Packet::PingReq), [Packet::PingResp]);
    }
    let connections = world.arbiters[0].state.connections();
    drop(bystander);
    world.arbiters[0].run();
    assert_eq!(world.arbiters[0].state.connections(), connections - 1, "the end of a stream is read");

    let mut unacknowledged = packets(&mut slow);
    for _ in 0..MESSAGES {
        let [Packet::Publish(publish)] = &unacknowledged[..] else { panic!("{unacknowledged:?}") };
        let id = publish.delivery.packet_id().expect("QoS 1");
        unacknowledged = say(&mut world, &mut slow, &Packet::PubAck(Ack::success(id)));
        watch(&world);
    }
    assert_eq!((queued(&world), world.shared.memory_level()), (0, 0));
    for _ in 0..3 {
        world.arbiters.iter_mut().for_each(SteppedArbiter::run);
    }
    assert!(matches!(packets(&mut publisher)[..], [Packet::PubAck(_)]), "it goes on");
}

/// While memory is short, some of those who may come for what waits for them are let in, and nobody else.
#[test]
fn owners_of_sessions_come_in_while_memory_is_short() {
    let mut world = World::new(1);
    let mut number = 0;
    let mut comes_in = |world: &mut World, clean_start: bool| {
        number += 1;
        let comes = connect(ProtocolVersion::V5, format!("c{number}"), 0);
        let mut client = world.open(0, Connect { clean_start, ..comes });
        match &packets(&mut client)[..] {
            [Packet::ConnAck(connack)] => connack.reason_code != ReasonCode::ServerBusy,
            other => panic!("{other:?}"),
        }
    };
    for used in [105, 115] {
        world.pass(1000);
        world.shared.pretend_memory(used, 100);
        assert!(!comes_in(&mut world, true));
        let let_in = (0..100).filter(|_| comes_in(&mut world, false)).count();
        assert_eq!(let_in, LET_IN_A_SECOND_MAX as usize, "{used}");
    }
    world.pass(1000);
    world.shared.pretend_memory(125, 100);
    assert!(!comes_in(&mut world, false), "others are closed");
    world.shared.pretend_memory(100, 100);
    assert!(comes_in(&mut world, true));
}

/// Who is not let in for who it is takes nobody's place.
///
/// Abuse: [memory]
#[test]
fn who_may_not_come_in_at_all_keeps_no_owner_of_a_session_out() {
    let mut world = World::new(1);
    let open_to_all = Arc::clone(&world.listener);
    let address = SocketAddr::from(([127, 0, 0, 1], 1883));
    let config = ListenerConfig { allow_anonymous: Some(false), ..ListenerConfig::default() };
    let closed = Arc::new(ListenerContext::new(config, &Settings::default(), address));
    world.pass(1000);
    world.shared.pretend_memory(105, 100);
    let comes = |world: &mut World, listener: &Arc<ListenerContext>, number: u32| {
        world.listener = Arc::clone(listener);
        let comes = connect(ProtocolVersion::V5, format!("c{number}"), 0);
        let mut client = world.open(0, Connect { clean_start: false, ..comes });
        match &packets(&mut client)[..] {
            [Packet::ConnAck(connack)] => connack.reason_code,
            other => panic!("{other:?}"),
        }
    };
    for number in 0..2 * LET_IN_A_SECOND_MAX {
        assert_eq!(comes(&mut world, &closed, number), ReasonCode::NotAuthorized);
    }
    assert_eq!(comes(&mut world, &open_to_all, u32::MAX), ReasonCode::Success);
}

/// A server that hears what it is asked and says nothing, and an authority that asks it about everybody.
fn silent_server() -> (std::net::TcpListener, Authority) {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("bound");
    let authority = authority_by(&format!("[http]\nurl = \"http://{address}/\"\ntimeout_milliseconds = 600000"));
    (server, authority)
}

fn authority_by(text: &str) -> Authority {
    let mut authority = Authority::default();
    authority.open(&toml::from_str(text).expect("settings")).expect("threads");
    authority
}

/// Whoever is gone has no place in a queue, and costs no request.
///
/// Abuse: [http-authentication]
#[test]
fn a_client_that_is_gone_while_somebody_is_asked_about_it_is_noticed() {
    let comes = || {
        let (server, authority) = silent_server();
        let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
        let (arbiter, client, key) = claimant(Settings::default(), authority, connect);
        assert_eq!(arbiter.state.clients[key.index()].phase, Phase::Verifying);
        (server, arbiter, client)
    };
    let (_server, mut arbiter, client) = comes();
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 0, "it closed the connection");

    let (_server, mut arbiter, mut client) = comes();
    let publish = publish_to(&mut client, "t", "x");
    client.send(&publish);
    client.write(usize::MAX);
    arbiter.run();
    client.stream.reset();
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 0, "it broke off");

    // It need not wait for CONNACK, nor for what comes of its message.
    let (_server, mut arbiter, mut client) = comes();
    let publish = publish_to(&mut client, "t", "x");
    client.send(&publish);
    client.write(usize::MAX);
    drop(client);
    arbiter.run();
    assert_eq!(arbiter.state.connections(), 1, "what it said before it went is still to be read");
}

const RIGHTS: &str = "[http]\nrights_url = \"http://127.0.0.1:9/\"\n";

/// A client of one of several nodes whose rights a server says, with a will that they allow.
fn client_with_rights_of_server() -> (SteppedArbiter, Client, ConnectionKey) {
    let will = Will {
        topic: "a/alarm".to_owned(),
        payload: Bytes::from_static(b"x"),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    };
    let connect = Connect { will: Some(will), ..connect(ProtocolVersion::V5, "c".to_owned(), 0) };
    let (mut arbiter, client, key) = claimant(Settings::default(), authority_by(RIGHTS), connect);
    grant(&mut arbiter, key);
    let session = arbiter.state.clients[key.index()].session.as_mut().expect("it is connected");
    session.granted = Some(Granted::by_server(None, None, None));
    arbiter.state.plan_renewal(key);
    (arbiter, client, key)
}

fn renewal_due(arbiter: &SteppedArbiter, key: ConnectionKey) -> u32 {
    let session = arbiter.state.clients[key.index()].session.as_ref().expect("it is connected");
    session.renewal.as_ref().expect("rights are asked for again").next_second()
}

fn tell(arbiter: &mut SteppedArbiter, event: Event) {
    arbiter.state.shared.inboxes[0].push(event, 0);
    arbiter.run();
}

#[test]
fn rights_that_a_server_did_not_say_are_soon_asked_for_again() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    let now = arbiter.state.now_seconds();
    assert!((now + 225..=now + 300).contains(&renewal_due(&arbiter, connection)));
    let rights = RenewedRights::undecided(&arbiter.state.shared.authority);
    tell(&mut arbiter, Event::RightsRenewed { connection, rights });
    assert!(renewal_due(&arbiter, connection) <= now + 300 / 8, "{}", renewal_due(&arbiter, connection));
}

#[test]
fn settings_that_are_read_again_reach_the_renewals_of_rights() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    let change = |arbiter: &mut SteppedArbiter, more: &str| {
        let config = toml::from_str(&format!("{RIGHTS}{more}")).expect("settings");
        let authority = &arbiter.state.shared.authority;
        let policy = authority.read(&config).expect("settings");
        authority.change(policy, &config).expect("no more threads");
        tell(arbiter, Event::PolicyChanged(Changed::WhoMayWhat));
    };
    let now = arbiter.state.now_seconds();
    let before = renewal_due(&arbiter, connection);
    change(&mut arbiter, "");
    assert_eq!(renewal_due(&arbiter, connection), before, "they are what they were");
    let from_before = RenewedRights::denied(&arbiter.state.shared.authority);
    change(&mut arbiter, "rights_seconds = 40");
    assert!(renewal_due(&arbiter, connection) <= now + 40);
    change(&mut arbiter, "rights_outdated_seconds_max = 7");
    assert_eq!(renewal_due(&arbiter, connection), now + 7);
    tell(&mut arbiter, Event::RightsRenewed { connection, rights: from_before });
    assert!(arbiter.state.clients[connection.index()].is_connected(), "another server said so, perhaps");
}

/// Plans change, and what was armed by earlier ones does not add up.
#[test]
fn one_deadline_of_a_connection_comes_up_at_a_time() {
    let (mut arbiter, _client, connection) = client_with_rights_of_server();
    for _ in 0..100 {
        let rights = RenewedRights::undecided(&arbiter.state.shared.authority);
        tell(&mut arbiter, Event::RightsRenewed { connection, rights });
        tell(&mut arbiter, Event::PolicyChanged(Changed::WhoMayWhat));
    }
    // Each of them a second sooner than the one before.
    assert!(arbiter.state.wheel.count() <= 15, "{}", arbiter.state.wheel.count());
}

/// P9 is about wills that a client may publish.
///
/// Abuse: [authorize]
#[test]
fn a_will_that_its_client_may_not_publish_any_more_is_not_left_to_the_group() {
    let is_left = |change: &dyn Fn(&mut SteppedArbiter, ConnectionKey)| {
        let (mut arbiter, _client, key) = client_with_rights_of_server();
        change(&mut arbiter, key);
        arbiter.state.end(key, EndCause::ClosedByPeer, None);
        let said = commands_to_group(&mut arbiter);
        match &said[..] {
            [SessionCommand::Connect(_), SessionCommand::Disconnect(end)] => end.publish_will,
            other => panic!("{other:?}"),
        }
    };
    let allow = |acl: serde_json::Value| {
        move |arbiter: &mut SteppedArbiter, key: ConnectionKey| {
            let rules = GrantedRules::parse(&acl).expect("rules");
            let session = arbiter.state.clients[key.index()].session.as_mut().expect("it is connected");
            session.granted = Some(Granted::by_server(Some(rules), None, None));
            let identified = session.identified();
            arbiter.state.apply_rights(key, &identified);
        }
    };
    assert!(is_left(&|_, _| {}));
    assert!(is_left(&allow(serde_json::json!({ "pub": ["a/#"] }))));
    assert!(!is_left(&allow(serde_json::json!({ "pub": ["b/#"], "sub": ["a/#"] }))));
    assert!(
        !is_left(&|arbiter, connection| {
            let rights = RenewedRights::denied(&arbiter.state.shared.authority);
            tell(arbiter, Event::RightsRenewed { connection, rights });
        }),
        "who may not be here says nothing more"
    );
}

/// Whoever is connected is looked at when users and rights are read again, but others have their turns meanwhile.
#[test]
fn new_rules_are_applied_to_some_connections_a_turn() {
    const CLIENTS: usize = 300;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    std::fs::write(&file, "topic readwrite a\n").expect("written");
    let mut world = World::new(1);
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| world.open(0, connect(ProtocolVersion::V5, format!("c{number}"), 0))).collect();
    let config = AuthConfig { acl_file: Some(file), ..AuthConfig::default() };
    let policy = world.shared.authority.read(&config).expect("it can be read");
    world.shared.authority.change(policy, &config).expect("it can be used");
    world.shared.inboxes[0].push(Event::PolicyChanged(Changed::WhoMayWhat), 0);
    let with_rights = |world: &World| {
        let sessions = world.arbiters[0].state.clients.iter().filter_map(|(_, client)| client.session.as_ref());
        sessions.filter(|session| session.rights.is_some()).count()
    };
    let mut turns = 0;
    let mut before = 0;
    while world.arbiters[0].step(0) {
        let now = with_rights(&world);
        assert!(now - before <= CLIENTS / 3, "{} in one turn", now - before);
        turns += usize::from(now > before);
        before = now;
    }
    assert_eq!((with_rights(&world), clients.len()), (CLIENTS, CLIENTS));
    assert!(turns > 3);
}

/// Whoever has most waiting for it is closed where memory is very short, wherever it waits; one that has little is not.
///
/// Abuse: [stalled-subscriber]
#[test]
fn whoever_has_most_waiting_is_closed_first() {
    let mut world = World::new(1);
    let names = ["queued", "unwritten", "bystander", "publisher"];
    let mut clients = names.map(|name| {
        let connect = connect(ProtocolVersion::V5, name.to_owned(), 0);
        let receive_maximum = NonZeroU16::new(1).filter(|_| name == "queued");
        let properties = ConnectProperties { receive_maximum, ..ConnectProperties::default() };
        world.open(0, Connect { properties, ..connect })
    });
    for (at, filter, qos) in [(0, "q", QoS::AtLeastOnce), (1, "u", QoS::AtMostOnce), (2, "b", QoS::AtMostOnce)] {
        let subscribe = subscribe_to(&mut clients[at], &[filter], qos);
        say(&mut world, &mut clients[at], &subscribe);
    }
    let large: &'static str = "x".repeat(2000).leak();
    for (topic, count) in [("q", 100), ("u", 50), ("b", 5)] {
        for _ in 0..count {
            let publish = publish_to(&mut clients[3], topic, large);
            say(&mut world, &mut clients[3], &publish);
        }
    }
    let left = |world: &World| {
        let clients = world.arbiters[0].state.clients.iter().filter(|(_, client)| client.session.is_some());
        clients.map(|(_, client)| client.client_id.to_string()).collect::<Vec<_>>()
    };
    world.shared.memory_bytes_high_water.store(1, Ordering::Relaxed);
    for expected in [&names[1..], &names[2..], &names[2..]] {
        world.pass(1000);
        assert_eq!(left(&world), expected);
    }
}

/// Between the moment in which new rules grant every subscription and that in which a connection hears of them, what comes by one
/// is looked at.
///
/// Abuse: [authorize]
#[test]
fn a_subscription_that_new_rules_grant_brings_no_more_than_may_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    std::fs::write(&file, "topic write b\ntopic readwrite a\n").expect("written");
    let config = |acl_subscribe| AuthConfig { acl_file: Some(file.clone()), acl_subscribe, ..AuthConfig::default() };
    let mut authority = Authority::default();
    authority.open(&config(AclSubscribe::Covered)).expect("it can be read");
    let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let (mut arbiter, mut client, connection) = claimant(Settings::default(), authority, connect);
    grant(&mut arbiter, connection);
    let authority = &arbiter.state.shared.authority;
    let granting = authority.read(&config(AclSubscribe::Filter)).expect("it can be read");
    authority.change(granting, &config(AclSubscribe::Filter)).expect("it can be used");
    let subscribe = subscribe_to(&mut client, &["#"], QoS::AtMostOnce);
    client.send(&subscribe);
    for topic in ["b", "a"] {
        let publish = publish_to(&mut client, topic, "x");
        client.send(&publish);
    }
    client.write(usize::MAX);
    arbiter.run();
    let topics: Vec<_> = packets(&mut client)
        .into_iter()
        .filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish.topic),
            _ => None,
        })
        .collect();
    assert_eq!(topics, ["a"]);
}

/// Says of everybody that it is Eve.
struct IsEve;

impl Mechanism for IsEve {
    fn step(&mut self, _: Option<&[u8]>) -> MechanismStep {
        MechanismStep::Success { identity: Arc::from("eve"), data: None }
    }
}

/// A ban on a user closes who is connected: whoever said to be that user when it connected, and whoever is that user and waits
/// for its Client Identifier.
///
/// Abuse: [bans]
#[test]
fn a_ban_on_a_user_is_about_whom_clients_said_to_be_and_about_whom_they_are() {
    let mut world = World::new(1);
    let comes = |world: &mut World, name: &str| {
        let connect = connect(ProtocolVersion::V5, name.to_owned(), 0);
        let mut client = world.open(0, Connect { user_name: Some(name.to_owned()), ..connect });
        assert!(matches!(packets(&mut client)[..], [Packet::ConnAck(_)]));
        client
    };
    let mut eve = comes(&mut world, "eve");
    let mut bob = comes(&mut world, "bob");
    world.shared.bans.set([("user:eve", 0)].into_iter());
    world.pass(1000);
    world.arbiters[0].run();
    assert!(matches!(packets(&mut eve)[..], [Packet::Disconnect(_)]));
    assert_eq!(packets(&mut bob), []);

    let authority = Authority::default().with_mechanism("M", Box::new(|| Box::new(IsEve) as Box<dyn Mechanism>));
    let properties = ConnectProperties { authentication_method: Some("M".to_owned()), ..ConnectProperties::default() };
    let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let (mut arbiter, mut client, _) = claimant(Settings::default(), authority, Connect { properties, ..connect });
    assert_eq!(packets(&mut client), [], "its group has not answered");
    arbiter.state.shared.bans.set([("user:eve", 0)].into_iter());
    arbiter.on_second();
    arbiter.run();
    let packets = packets(&mut client);
    assert!(
        matches!(&packets[..], [Packet::ConnAck(connack)] if connack.reason_code == ReasonCode::Banned),
        "{packets:?}"
    );
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

/// A group without a majority may have none for days. What is claimed meanwhile is not kept for it: clients try again and again.
#[test]
fn no_claim_is_said_to_a_group_that_answers_nothing() {
    const CLIENTS: usize = 40;
    let (mut arbiter, _client, _) = claimant_of_several_nodes();
    let claimants: Vec<_> =
        (0..CLIENTS).map(|number| another_claimant(&mut arbiter, &format!("c{number}")).0).collect();
    arbiter.state.flush_lanes();
    let claimed = arbiter.state.lanes.held();
    assert!(claimed[0] < CLIENTS as u64, "others wait for their turn");
    (0..4).for_each(|_| arbiter.on_second());
    arbiter.run();
    arbiter.state.flush_lanes();
    assert_eq!(arbiter.state.lanes.held(), claimed, "nothing more");
    let (late, _) = another_claimant(&mut arbiter, "late");
    arbiter.state.flush_lanes();
    assert_eq!(arbiter.state.lanes.held(), claimed, "nothing more");
    for mut client in claimants.into_iter().chain([late]) {
        let [Packet::ConnAck(connack)] = &packets(&mut client)[..] else { panic!("one CONNACK") };
        assert_eq!(connack.reason_code, ReasonCode::ServerUnavailable);
    }
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

/// Memory is short for what waits for a client that publishes as well: its acknowledgement stands behind what it publishes.
#[test]
fn an_acknowledgement_behind_a_publish_is_read_in_time() {
    let mut world = World::new(1);
    let both = connect(ProtocolVersion::V5, "both".to_owned(), 0);
    let properties = ConnectProperties { receive_maximum: NonZeroU16::new(1), ..ConnectProperties::default() };
    let mut both = world.open(1, Connect { properties, ..both });
    let mut publisher = world.open(0, connect(ProtocolVersion::V5, "publisher".to_owned(), 0));
    let subscribe = subscribe_to(&mut both, &["t"], QoS::AtLeastOnce);
    assert_eq!(say(&mut world, &mut both, &subscribe).len(), 2, "CONNACK, SUBACK");
    for _ in 0..3 {
        let publish = publish_to(&mut publisher, "t", "x");
        say(&mut world, &mut publisher, &publish);
    }
    let [Packet::Publish(first)] = &packets(&mut both)[..] else { panic!("one message") };
    let id = first.delivery.packet_id().expect("QoS 1");
    world.shared.pretend_memory(115, 100);
    let (publish, another) = (publish_to(&mut both, "u", "x"), publish_to(&mut both, "u", "x"));
    assert_eq!(say(&mut world, &mut both, &publish).len(), 1, "PUBACK");
    let publish = publish_to(&mut publisher, "u", "x");
    assert_eq!(say(&mut world, &mut publisher, &publish).len(), 1, "PUBACK");
    world.machine.advance(Duration::from_secs(1));
    // The other one looks at what memory there really is.
    world.arbiters[1].on_second();
    assert!(say(&mut world, &mut publisher, &publish).is_empty(), "it has nothing to acknowledge");
    both.send(&publish);
    both.send(&another);
    let heard = say(&mut world, &mut both, &Packet::PubAck(Ack::success(id)));
    assert!(matches!(heard[..], [Packet::PubAck(_)]), "one goes on: {heard:?}");
    world.machine.advance(Duration::from_secs(1));
    world.arbiters[1].on_second();
    world.arbiters[1].run();
    let heard = packets(&mut both);
    assert!(matches!(heard[..], [Packet::PubAck(_), Packet::Publish(_)]), "{heard:?}");
    assert_eq!(world.shared.memory_level(), 2);
}

/// Of five nodes two died, and a group had both as voters: it answers nobody, and they are never lost. Whoever has something for
/// them waits; all others go on.
#[test]
fn who_answers_nothing_holds_up_only_those_who_have_something_for_it() {
    let (mut arbiter, mut publisher, _) = client_of_several_nodes();
    let shared = Arc::clone(&arbiter.state.shared);
    let (mut bystander, connection) = another_claimant(&mut arbiter, "d");
    shared.inboxes[0].push(Opened::transient(connection, Arc::from("d")).into(), 0);
    arbiter.run();
    let process = PeerProcess { node: 2, incarnation: 20 };
    let node = shared.cluster.as_ref().expect("one of several").nodes.indexed(process);
    let interest = NodeInterest { any: 1, ..NodeInterest::default() };
    shared.index.set_node("t", node, 0, interest.to_value());
    let say = |arbiter: &mut SteppedArbiter, client: &mut Client, packet: Packet| {
        client.send(&packet);
        client.write(usize::MAX);
        arbiter.run();
        packets(client).len()
    };
    assert_eq!([packets(&mut publisher).len(), packets(&mut bystander).len()], [1, 1], "CONNACK");
    let held = |arbiter: &SteppedArbiter| arbiter.state.lanes.nodes.held().map(|(_, held)| held).sum::<u64>();

    let large = Arc::new(Message {
        identity: MessageIdentity::default(),
        topic: Arc::from("t"),
        payload: Bytes::from(vec![0; 8 * 1024 * 1024]),
        qos: QoS::AtLeastOnce,
        retain: false,
        publisher: Arc::from(""),
        properties: None,
        expires_at_ms: None,
    });
    arbiter.state.route_message(&large);
    arbiter.run();
    assert!(arbiter.state.is_overloaded(), "it may just be slow");
    (0..4).for_each(|_| arbiter.on_second());
    assert!(!arbiter.state.is_overloaded());
    for under_way in [2, 2] {
        let publish = publish_to(&mut publisher, "t", "x");
        assert_eq!(say(&mut arbiter, &mut publisher, publish), 0);
        assert_eq!(held(&arbiter), under_way, "one, and then it waits");
        arbiter.on_second();
    }
    for _ in 0..3 {
        let publish = publish_to(&mut bystander, "u", "x");
        assert_eq!(say(&mut arbiter, &mut bystander, publish), 1, "PUBACK");
    }
    shared.inboxes[0].push(Event::NodeLost { node: node.number }, 0);
    arbiter.run();
    assert_eq!(packets(&mut publisher).len(), 2, "PUBACK of both");
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

/// What the lane of an arbiter of node 2 brings: plain messages, each as topic and payload, above `previous`.
fn bring(arbiter: &SteppedArbiter, previous: u64, messages: &[(&[u8], &str)]) {
    let mut items = bytes::BytesMut::new();
    for (number, &(topic, payload)) in (previous + 1..).zip(messages) {
        let identity = MessageIdentity { lane: 2, number };
        let (payload, qos, retain) = (payload.as_bytes(), QoS::AtMostOnce, false);
        PlainMessage { number, identity, topic, payload, qos, retain, expiry_left_ms: None }.write(&mut items);
    }
    let shared = &arbiter.state.shared;
    let messages = Messages {
        incarnation: 20,
        target_incarnation: shared.incarnation(),
        previous,
        last: previous + messages.len() as u64,
        items: messages.len() as u32,
        payload: items.freeze(),
        ..Messages::default()
    };
    crate::groups::incoming::take(shared, 2, Forwarded::Messages(messages));
}

/// Runs of one topic are looked up once. What is no text was not written by a node that is in order: it reaches nobody, nor does what
/// came behind it.
#[test]
fn what_another_node_brings_is_for_those_who_want_its_topic() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let subscribe = |arbiter: &mut SteppedArbiter, client: &mut Client, filter: &str| {
        let filters = vec![(filter.to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))];
        let packet_id = client.packet_id();
        let subscribe = Subscribe { packet_id, filters, subscription_identifier: None, user_properties: vec![] };
        client.send(&Packet::Subscribe(subscribe));
        client.write(usize::MAX);
        arbiter.run();
    };
    let heard = |arbiter: &mut SteppedArbiter, client: &mut Client| -> Vec<(String, Bytes)> {
        arbiter.run();
        let publish = |packet| match packet {
            Packet::Publish(publish) => Some((publish.topic, publish.payload)),
            _ => None,
        };
        packets(client).into_iter().filter_map(publish).collect()
    };
    subscribe(&mut arbiter, &mut client, "t/a");
    subscribe(&mut arbiter, &mut client, "t/+/c");
    let messages: [(&[u8], &str); 7] =
        [(b"t/a", "1"), (b"t/a", "2"), (b"t/b", "3"), (b"t/a", "4"), (b"t/x/c", "5"), (b"t/y/c", "6"), (b"t/y/c", "7")];
    bring(&arbiter, 0, &messages);
    let expected = [("t/a", "1"), ("t/a", "2"), ("t/a", "4"), ("t/x/c", "5"), ("t/y/c", "6"), ("t/y/c", "7")];
    let expected = expected.map(|(topic, payload)| (topic.to_owned(), Bytes::from(payload)));
    assert_eq!(heard(&mut arbiter, &mut client), expected);
    bring(&arbiter, 0, &messages);
    assert_eq!(heard(&mut arbiter, &mut client), [], "they had come before");

    subscribe(&mut arbiter, &mut client, "t/b");
    bring(&arbiter, 7, &[(b"t/b", "8"), (b"t/\xff", "9"), (b"t/b", "10")]);
    assert_eq!(heard(&mut arbiter, &mut client), [("t/b".to_owned(), Bytes::from("8"))]);
}

/// Who wants the topic of a message is not who wanted that of another one, whatever stands between them.
#[test]
fn in_a_batch_each_message_is_for_those_who_want_its_own_topic() {
    let (mut arbiter, mut client, _) = client_of_several_nodes();
    let filters = vec![("t/a".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))];
    let packet_id = client.packet_id();
    client.send(&Packet::Subscribe(Subscribe {
        packet_id,
        filters,
        subscription_identifier: None,
        user_properties: vec![],
    }));
    client.write(usize::MAX);
    arbiter.run();
    packets(&mut client);
    let shared = Arc::clone(&arbiter.state.shared);
    let target = ShareTarget::Session { group: 0 };
    shared.index.join_share("s", "t/b", ShareMember { target, client_id_hash: 0, node: 0, qos0_only: false });
    let share = shared.index.share("s", "t/b").expect("it has a member");
    let nobody = ConnectionKey::new(0, 1_000, 1);

    let message = |topic: &str, payload: &'static str| {
        Arc::new(Message {
            identity: MessageIdentity::default(),
            topic: Arc::from(topic),
            payload: Bytes::from(payload),
            qos: QoS::AtMostOnce,
            retain: false,
            publisher: Arc::from(""),
            properties: None,
            expires_at_ms: None,
        })
    };
    let mut batch = Batch::default();
    for (topic, payload, is_for_member) in
        [("t/a", "1", false), ("t/b", "2", true), ("t/b", "3", false), ("t/a", "4", true), ("t/a", "5", false)]
    {
        let message = message(topic, payload);
        let mut publication = arbiter.state.publication_of(&message);
        if is_for_member {
            batch.push(&mut publication, Addressee::Member(nobody, Arc::clone(&share), None));
        } else {
            batch.push_to_subscribers(&mut publication);
        }
    }
    let weight = batch.weight_bytes();
    shared.inboxes[0].push(Event::Batch { from: None, batch, weight }, weight);
    arbiter.run();
    let payload = |packet| match packet {
        Packet::Publish(publish) => Some(publish.payload),
        _ => None,
    };
    let heard: Vec<_> = packets(&mut client).into_iter().filter_map(payload).collect();
    assert_eq!(heard, ["1", "5"]);
}
