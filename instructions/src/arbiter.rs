//! One PUBLISH end to end inside an arbiter: from the bytes on the publisher's socket to those on its subscribers'.
//!
//! The arbiter is the real one, on this thread, without actors: what its tasks would do when tokio wakes them is called
//! here. The sockets are pairs of local ones, on which what was written can be read at once, so that turns come in the same
//! way every time; what the kernel does is not counted.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Waker};
use std::time::Duration;

use kentongan::auth::Authority;
use kentongan::config::{ListenerConfig, Settings};
use kentongan::connection::{RawSocket, Transport};
use kentongan::connection_key::ConnectionKey;
use kentongan::descriptors::Descriptors;
use kentongan::groups;
use kentongan::listener::ListenerContext;
use kentongan::metrics::Metrics;
use kentongan::router::ArbiterState;
use kentongan_proto::mqtt::ProtocolVersion::V3_1_1;
use kentongan_proto::mqtt::codec::{self, AckKind, Limits, Sender};
use kentongan_proto::mqtt::{
    Connect, ConnectProperties, Delivery, Packet, PacketId, QoS, ReasonCode, Subscribe, SubscriptionOptions,
};

use crate::codec::{encoded, frame, publish};
use crate::{Counter, Row};

const SUBSCRIBERS: usize = 10;
const TURNS: u64 = 200;

/// Turns before those that count: buffers have their size then, and the cache knows the topic.
const FIRST_TURNS: u64 = 20;

pub const ROWS: &[Row] = &[
    Row { name: "PUBLISH to 10 subscribers, QoS 0", run: |counter| publish_qos0(counter, 1) },
    Row { name: "PUBLISH to 10 subscribers, QoS 0, 20 a turn", run: |counter| publish_qos0(counter, 20) },
    Row { name: "PUBLISH to 10 subscribers, QoS 1", run: |counter| publish_qos1(counter, 1) },
    Row { name: "PUBLISH to 10 subscribers, QoS 1, 20 a turn", run: |counter| publish_qos1(counter, 20) },
];

/// The client's end of a connection.
struct Client {
    socket: UnixStream,
    key: ConnectionKey,
}

impl Client {
    fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the arbiter has the other end");
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).expect("the arbiter has answered");
        bytes
    }
}

/// This thread as an arbiter, the only one of a broker.
struct Broker {
    runtime: tokio::runtime::Runtime,
    listener: Arc<ListenerContext>,
    groups: groups::Running,
    _directory: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let settings = Arc::new(Settings { data_dir: directory.path().join("data"), ..Settings::default() });
        let metrics = Metrics::isolated();
        let (shared, groups) = groups::start(
            &settings,
            Authority::default(),
            1,
            &Descriptors::default(),
            &metrics,
            &AtomicBool::new(false),
        )
        .expect("an empty data directory");
        ArbiterState::install(0, shared, metrics.arbiter());
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        Self { runtime, listener, groups, _directory: directory }
    }

    fn stop(self) {
        self.groups.stop();
    }

    /// What tokio does between two turns: it learns which sockets are ready.
    fn look_at_sockets(&self) {
        self.runtime.block_on(tokio::task::yield_now());
    }

    /// Lets the arbiter read what `client` writes, and returns the beginning of what it answers.
    fn ask<const N: usize>(&self, client: &mut Client, packet: &Packet) -> [u8; N] {
        client.write(&encoded(packet, V3_1_1));
        self.look_at_sockets();
        turn([client.key]);
        client.read()
    }

    fn connect(&self, number: usize) -> Client {
        let (socket, other_end) = UnixStream::pair().expect("a pair of sockets");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        other_end.set_nonblocking(true).expect("a socket");
        let _runtime = self.runtime.enter();
        // The transport asks for nothing that only TCP has.
        let stream = tokio::net::TcpStream::from_std(OwnedFd::from(other_end).into()).expect("a socket");
        let listener = Arc::clone(&self.listener);
        let key = ArbiterState::with(|arbiter| {
            arbiter.add_connection(Transport::Socket(RawSocket::Tcp(stream)), listener, None)
        });
        let mut client = Client { socket, key: key.expect("this thread is an arbiter") };
        let connect = Connect {
            version: V3_1_1,
            bridge: false,
            clean_start: true,
            keep_alive: 0,
            client_id: format!("client-{number}"),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        };
        assert_eq!(self.ask(&mut client, &Packet::Connect(Box::new(connect))), [0x20, 2, 0, 0]);
        client
    }

    fn subscriber(&self, number: usize, qos: QoS) -> Client {
        let mut client = self.connect(number);
        let topic = publish(Delivery::AtMostOnce).topic;
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            filters: vec![(topic, SubscriptionOptions::new(qos))],
            subscription_identifier: None,
            user_properties: vec![],
        };
        assert_eq!(self.ask(&mut client, &Packet::Subscribe(subscribe)), [0x90, 3, 0, 1, qos as u8]);
        client
    }
}

/// What the arbiter's tasks do when these connections have something to read: a turn.
fn turn(keys: impl IntoIterator<Item = ConnectionKey>) {
    let mut cx = Context::from_waker(Waker::noop());
    ArbiterState::with(|arbiter| {
        for key in keys {
            assert!(arbiter.poll_connection(key, &mut cx).is_pending(), "the connection is over");
        }
        assert!(arbiter.poll_flush(&mut cx).is_pending());
    });
}

fn publish_qos0(counter: &mut Counter, publishes_a_turn: u64) {
    let broker = Broker::start();
    let mut publisher = broker.connect(0);
    let mut subscribers: Vec<Client> =
        (1..=SUBSCRIBERS).map(|number| broker.subscriber(number, QoS::AtMostOnce)).collect();
    let bytes = encoded(&Packet::Publish(publish(Delivery::AtMostOnce)), V3_1_1);
    let burst = bytes.repeat(publishes_a_turn as usize);
    let mut received = vec![0; burst.len()];
    for number in 0..FIRST_TURNS + TURNS {
        publisher.write(&burst);
        broker.look_at_sockets();
        counted_turn(counter, number, publishes_a_turn, publisher.key);
        for subscriber in &mut subscribers {
            subscriber.socket.read_exact(&mut received).expect("the PUBLISHes were passed on");
            assert_eq!(received, burst);
        }
    }
    broker.stop();
}

fn publish_qos1(counter: &mut Counter, publishes_a_turn: u64) {
    let broker = Broker::start();
    let mut publisher = broker.connect(0);
    let mut subscribers: Vec<Client> =
        (1..=SUBSCRIBERS).map(|number| broker.subscriber(number, QoS::AtLeastOnce)).collect();
    let ids: Vec<PacketId> = (1..=publishes_a_turn as u16).filter_map(PacketId::new).collect();
    let packet = |id: &PacketId| encoded(&Packet::Publish(publish(Delivery::AtLeastOnce(*id))), V3_1_1);
    let burst: Vec<u8> = ids.iter().flat_map(packet).collect();
    let mut received = vec![0; burst.len()];
    let subscriber_keys: Vec<ConnectionKey> = subscribers.iter().map(|subscriber| subscriber.key).collect();
    for number in 0..FIRST_TURNS + TURNS {
        publisher.write(&burst);
        broker.look_at_sockets();
        counted_turn(counter, number, publishes_a_turn, publisher.key);
        for id in &ids {
            assert_eq!(publisher.read(), acknowledgement(*id));
        }
        for subscriber in &mut subscribers {
            subscriber.socket.read_exact(&mut received).expect("the PUBLISHes were passed on");
            acknowledge(subscriber, &received);
        }
        broker.look_at_sockets();
        turn(subscriber_keys.iter().copied());
    }
    broker.stop();
}

fn counted_turn(counter: &mut Counter, number: u64, publishes: u64, publisher: ConnectionKey) {
    if number < FIRST_TURNS {
        turn([publisher]);
    } else {
        counter.count(publishes, || turn([publisher]));
    }
}

fn acknowledgement(id: PacketId) -> [u8; 4] {
    let mut bytes = Vec::new();
    codec::encode_ack(AckKind::PubAck, id, ReasonCode::Success, V3_1_1, &mut bytes);
    bytes.try_into().expect("a PUBACK of 3.1.1")
}

/// PUBACK for each PUBLISH in `received`.
fn acknowledge(subscriber: &mut Client, mut received: &[u8]) {
    while !received.is_empty() {
        let frame = frame(received, Sender::Server);
        let publish = codec::decode_publish(&frame, V3_1_1, Sender::Server, &Limits::default());
        let id = publish.ok().and_then(|publish| publish.delivery.packet_id()).expect("a PUBLISH of QoS 1");
        subscriber.write(&acknowledgement(id));
        received = &received[frame.len()..];
    }
}
