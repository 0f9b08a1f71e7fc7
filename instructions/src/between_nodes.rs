//! One QoS 0 PUBLISH whose subscriber is connected to another node: at the publisher's, from the bytes on its stream to a
//! batch for the link; at the subscriber's, from that batch to the bytes on the subscriber's stream.
//!
//! Each node is one arbiter that is driven by plain calls, and whose link keeps what it is given. What the link itself costs is
//! not counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kentongan::auth::Authority;
use kentongan::clock::{Clock, ManualClock};
use kentongan::config::{ListenerConfig, Settings};
use kentongan::connection::MemoryStream;
use kentongan::groups::incoming;
use kentongan::listener::ListenerContext;
use kentongan::metrics::Metrics;
use kentongan::moving::Elsewhere;
use kentongan::peers::wire::{Forwarded, Messages, MessagesAnswer};
use kentongan::peers::{PeerFull, Peers};
use kentongan::replicated::{Opened, Slots, Submitter};
use kentongan::router::cluster::{ClusterView, Leaders};
use kentongan::router::node_lanes::{Nodes, PeerProcess};
use kentongan::router::{Shared, SteppedArbiter};
use kentongan::subscription::NodeInterest;
use kentongan_cluster::PipelineHandle;
use kentongan_cluster::lane::Incoming;
use kentongan_cluster::lease::LeaseCell;
use kentongan_cluster::transport::PeerAddress;
use kentongan_proto::mqtt::ProtocolVersion::V3_1_1;
use kentongan_proto::mqtt::{
    Connect, ConnectProperties, Delivery, Packet, PacketId, QoS, Subscribe, SubscriptionOptions,
};

use crate::codec::{encoded, publish};
use crate::{Counter, Row};

const PUBLISHES_A_TURN: u64 = 20;
const TURNS: u64 = 200;

/// Turns before those that count: buffers have their size then, and the caches know the topic.
const FIRST_TURNS: u64 = 20;

const STREAM_BYTES_MAX: usize = 64 * 1024;

const PUBLISHERS: PeerProcess = PeerProcess { node: 1, incarnation: 11 };
const SUBSCRIBERS: PeerProcess = PeerProcess { node: 2, incarnation: 12 };

pub const ROWS: &[Row] = &[
    Row { name: "PUBLISH to another node, QoS 0, 20 a turn", run: |counter| publish_qos0(counter, PUBLISHERS) },
    Row { name: "from another node to a client, QoS 0, 20 a turn", run: |counter| publish_qos0(counter, SUBSCRIBERS) },
];

/// Keeps what is said to other nodes.
#[derive(Debug, Default)]
struct KeptPeers(Mutex<Vec<Forwarded>>);

impl KeptPeers {
    fn take(&self) -> Vec<Forwarded> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Peers for KeptPeers {
    fn forward(&self, _: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(forwarded);
        Ok(())
    }

    fn control(&self, _: u64, _: Bytes) {}

    fn members(&self, _: Vec<PeerAddress>) {}
}

/// One of several nodes, without groups.
struct Node {
    shared: Arc<Shared>,
    arbiter: SteppedArbiter,
    peers: Arc<KeptPeers>,
    listener: Arc<ListenerContext>,
    clock: Arc<ManualClock>,
}

impl Node {
    fn start(process: PeerProcess) -> Self {
        let settings = Arc::new(Settings::default());
        let machine = Arc::new(ManualClock::new(0));
        let clock = Clock::manual(Arc::clone(&machine));
        let peers = Arc::new(KeptPeers::default());
        let cluster = ClusterView {
            node: process.node,
            lease: Arc::new(LeaseCell::endless()),
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            leaders: Leaders::default(),
            leases: Mutex::default(),
            nodes: Nodes::default(),
            incoming: Mutex::new(Incoming::new(&BTreeMap::new())),
            patient_answers: Mutex::default(),
            clock: clock.clone(),
            serving: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            elsewhere: Elsewhere::default(),
        };
        let submitter = Submitter::new(PipelineHandle::ended(), Slots::new(1), clock.clone());
        let authority = Authority::default();
        let shared =
            Shared::new(Arc::clone(&settings), 1, submitter, authority, process.incarnation, Some(cluster), clock);
        let shared = Arc::new(shared);
        let arbiter = SteppedArbiter::new(0, Arc::clone(&shared), Metrics::isolated().arbiter());
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
        Self { shared, arbiter, peers, listener, clock: machine }
    }

    /// The client's end of a new connection.
    fn connect(&mut self, client_id: &str) -> MemoryStream {
        assert_eq!(self.shared.try_open_connection(&self.listener, 1), Some(0));
        let (client, other_end) = MemoryStream::pair(STREAM_BYTES_MAX);
        let connection = self.arbiter.add_connection(other_end, Arc::clone(&self.listener), None);
        let connect = Connect {
            version: V3_1_1,
            bridge: false,
            clean_start: true,
            keep_alive: 0,
            client_id: client_id.to_owned(),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        };
        write(&client, &encoded(&Packet::Connect(Box::new(connect)), V3_1_1));
        self.arbiter.run();
        // Of the group, which would have to grant it.
        self.shared.inboxes[0].push(Opened::transient(connection, Arc::from(client_id)).into(), 0);
        self.arbiter.run();
        read(&client, &[0x20, 2, 0, 0]);
        client
    }

    fn subscriber(&mut self) -> MemoryStream {
        let client = self.connect("subscriber");
        let topic = publish(Delivery::AtMostOnce).topic;
        let subscribe = Subscribe {
            packet_id: PacketId::MIN,
            filters: vec![(topic.clone(), SubscriptionOptions::new(QoS::AtMostOnce))],
            subscription_identifier: None,
            user_properties: vec![],
        };
        write(&client, &encoded(&Packet::Subscribe(subscribe), V3_1_1));
        self.arbiter.run();
        // SUBACK waits until all nodes have confirmed what the subscriber gets already.
        client
    }

    /// Clients of another node want the topic.
    fn hears_of_subscribers(&self, process: PeerProcess) {
        let cluster = self.shared.cluster.as_ref().expect("one of several");
        let interest = NodeInterest { any: 1, ..NodeInterest::default() };
        let topic = publish(Delivery::AtMostOnce).topic;
        self.shared.index.set_node(&topic, cluster.nodes.indexed(process), 0, interest.to_value());
    }

    /// The only batch that it has for the other node.
    fn take_messages(&self) -> Messages {
        let [Forwarded::Messages(messages)] = &self.peers.take()[..] else {
            panic!("the PUBLISHes of a turn are one batch");
        };
        messages.clone()
    }

    /// What the links bring back: the other node has handed on all that it was sent.
    fn hear_answer(&mut self, messages: &Messages) {
        let answer = MessagesAnswer {
            lane: messages.lane,
            incarnation: messages.incarnation,
            target_incarnation: messages.target_incarnation,
            number: messages.last,
            gap_in_round: None,
        };
        incoming::take(&self.shared, SUBSCRIBERS.node, Forwarded::MessagesAnswer(answer));
        self.arbiter.run();
    }
}

fn write(client: &MemoryStream, bytes: &[u8]) {
    assert_eq!(client.try_write(bytes).expect("the arbiter has the other end"), bytes.len());
}

fn read(client: &MemoryStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    assert_eq!(client.try_read(&mut bytes).expect("the arbiter has answered"), expected.len());
    assert_eq!(bytes, expected);
}

/// Counts what it takes at `counted`.
fn publish_qos0(counter: &mut Counter, counted: PeerProcess) {
    let mut there = Node::start(SUBSCRIBERS);
    let subscriber = there.subscriber();
    let mut here = Node::start(PUBLISHERS);
    let publisher = here.connect("publisher");
    here.hears_of_subscribers(SUBSCRIBERS);
    let bytes = encoded(&Packet::Publish(publish(Delivery::AtMostOnce)), V3_1_1);
    let burst = bytes.repeat(PUBLISHES_A_TURN as usize);
    for number in 0..FIRST_TURNS + TURNS {
        let mut count = |process: PeerProcess, part: &mut dyn FnMut()| {
            if number >= FIRST_TURNS && process == counted {
                counter.count(PUBLISHES_A_TURN, part);
            } else {
                part();
            }
        };
        write(&publisher, &burst);
        count(PUBLISHERS, &mut || here.arbiter.run());
        let messages = here.take_messages();
        let mut brought = Some(Forwarded::Messages(messages.clone()));
        count(SUBSCRIBERS, &mut || {
            brought.take().into_iter().for_each(|brought| incoming::take(&there.shared, PUBLISHERS.node, brought));
            there.arbiter.run();
        });
        read(&subscriber, &burst);
        here.hear_answer(&messages);
        for node in [&here, &there] {
            node.peers.take();
            node.clock.advance(Duration::from_millis(1));
        }
    }
}
