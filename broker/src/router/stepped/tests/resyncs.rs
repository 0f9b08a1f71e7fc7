//! What an arbiter says to a group's leader on another node, and in which order, while the way there is narrow.

use std::sync::atomic::AtomicUsize;

use kentongan_cluster::transport::FRAME_BYTES_MAX;
use prost::Message as _;

use super::*;
use crate::peers::links::forward_body;
use crate::peers::wire::{EventKind, GroupEvent, GroupEvents, Propose, Resync, ResyncPart};
use crate::peers::{PIECE_BYTES, WHOLE_BYTES_MAX};
use crate::replicated::LaneAnswer;

/// Takes what is small, and batches of lanes only if there is room for them.
#[derive(Debug, Default)]
struct Narrow {
    has_room: AtomicBool,
    said: Mutex<Vec<Forwarded>>,
}

impl Narrow {
    fn take(&self) -> Vec<Forwarded> {
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

impl Peers for Narrow {
    fn control(&self, _: u64, _: Bytes) {}

    fn forward(&self, _: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
        if matches!(forwarded, Forwarded::Propose(_)) && !self.has_room.load(Ordering::Relaxed) {
            return Err(PeerFull);
        }
        self.said.lock().unwrap().push(forwarded);
        Ok(())
    }

    fn members(&self, _: Vec<kentongan_cluster::transport::PeerAddress>) {}
}

/// An arbiter with a client whose session the only group keeps, which the node 2 leads.
fn owner(peers: &Arc<Narrow>) -> (SteppedArbiter, Client, ConnectionKey) {
    let mut connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    connect.properties.session_expiry_interval = Some(100);
    let peers = Arc::clone(peers) as Arc<dyn Peers>;
    let (mut arbiter, client, connection) = claimant_among(peers, Settings::default(), Authority::default(), connect);
    led(&mut arbiter, 0);
    let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
    tell(&mut arbiter, opened.into());
    (arbiter, client, connection)
}

fn led(arbiter: &mut SteppedArbiter, round: u32) {
    tell(arbiter, Event::Led { group: 0, leader: Some(Leader { node: 2, term: 1, round }) });
}

fn publish_exactly_once(client: &mut Client, packet_id: u16) {
    let delivery = Delivery::ExactlyOnce(PacketId::new(packet_id).expect("not zero"));
    let (topic, payload, properties) = ("t".to_owned(), Bytes::from_static(b"x"), PublishProperties::default());
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client.write(usize::MAX);
}

fn batch(propose: &Propose) -> command::LaneBatch {
    match command::decode(propose.command.clone()) {
        Ok(command::Entry { command: Some(Command::Lane(batch)), .. }) => batch,
        other => panic!("a batch of a lane: {other:?}"),
    }
}

/// The numbers that the group has when it takes what was said, one after the other, and what each resync counts on.
fn applied_and_counted_on(said: &[Forwarded]) -> (u64, Vec<(u64, Resync)>) {
    let (mut applied, mut resyncs) = (0, Vec::new());
    for forwarded in said {
        match forwarded {
            Forwarded::Propose(propose) => {
                let batch = batch(propose);
                assert!(batch.previous <= applied, "over a gap");
                applied = applied.max(batch.messages.last().map_or(0, |last| last.number));
            }
            Forwarded::Resync(resync) => resyncs.push((applied, resync.clone())),
            other => panic!("{other:?}"),
        }
    }
    (applied, resyncs)
}

/// P1, P2: a leader that is told that a PUBLISH waits for PUBREC, and has not heard of it, refuses it; then it comes, and is delivered all the
/// same, and what its client publishes next under that identifier is taken for its repetition.
#[test]
fn what_an_arbiter_has_is_said_behind_what_its_lane_has_though_that_finds_no_room() {
    let peers = Arc::new(Narrow::default());
    let (mut arbiter, mut client, _) = owner(&peers);
    assert_eq!(peers.take(), [], "CONNECT found no room");
    publish_exactly_once(&mut client, 7);
    arbiter.run();
    led(&mut arbiter, 1);
    arbiter.on_second();
    arbiter.run();
    assert_eq!(peers.take(), [], "nor did the message");

    peers.has_room.store(true, Ordering::Relaxed);
    let mut said = Vec::new();
    for _ in 0..3 {
        arbiter.on_second();
        said.extend(peers.take());
        let number = applied_and_counted_on(&said).0;
        tell(&mut arbiter, Event::LaneAnswered(LaneAnswer { group: 0, number, refused: vec![] }));
        said.extend(peers.take());
    }
    let (applied, resyncs) = applied_and_counted_on(&said);
    let [(before, resync)] = &resyncs[..] else {
        panic!("one resync: {resyncs:?}");
    };
    assert_eq!(resync.sessions[0].receiving, [7]);
    assert!(*before == applied && resync.said == applied, "{before} of {applied} came before it");
    assert!(applied >= 2, "CONNECT and PUBLISH");
}

/// The same of a lane of which only the oldest batch is sent, because its group answers nothing.
#[test]
fn what_an_arbiter_has_waits_while_a_silent_group_is_tried() {
    let peers = Arc::new(Narrow { has_room: AtomicBool::new(true), said: Mutex::default() });
    let (mut arbiter, mut client, _) = owner(&peers);
    for packet_id in 7..10 {
        publish_exactly_once(&mut client, packet_id);
        arbiter.run();
    }
    peers.take();
    arbiter.on_second();
    arbiter.state.lanes.hold_resync(0);
    arbiter.on_second();
    arbiter.run();
    let said = peers.take();
    assert!(said.iter().all(|said| matches!(said, Forwarded::Propose(_))), "{said:?}");
    led(&mut arbiter, 1);
    let (applied, resyncs) = applied_and_counted_on(&peers.take());
    assert!(applied >= 4);
    assert!(matches!(&resyncs[..], [(before, resync)] if *before == applied && resync.said == applied), "{resyncs:?}");
}

/// Takes what a frame holds, and so many bytes of that.
#[derive(Debug)]
struct Framed {
    whole_bytes: usize,
    piece_bytes: usize,
    room: AtomicUsize,
    said: Mutex<Vec<Forwarded>>,
}

impl Framed {
    fn new(whole_bytes: usize, piece_bytes: usize) -> Arc<Self> {
        Arc::new(Self { whole_bytes, piece_bytes, room: AtomicUsize::new(usize::MAX), said: Mutex::default() })
    }

    fn take_said(&self) -> Vec<Forwarded> {
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

impl Peers for Framed {
    fn control(&self, _: u64, _: Bytes) {}

    fn forward(&self, _: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
        let bytes = forward_body(forwarded.clone()).len();
        assert!(bytes < FRAME_BYTES_MAX - 64, "{bytes} bytes, which no frame holds");
        let left = self.room.load(Ordering::Relaxed).checked_sub(bytes).ok_or(PeerFull)?;
        self.room.store(left, Ordering::Relaxed);
        self.said.lock().unwrap().push(forwarded);
        Ok(())
    }

    fn whole_bytes(&self) -> usize {
        self.whole_bytes
    }

    fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    fn members(&self, _: Vec<kentongan_cluster::transport::PeerAddress>) {}
}

/// An arbiter with `clients` whose sessions the only group keeps, which the node 2 leads; the last one still waits for its claim.
fn owner_of_many(peers: &Arc<Framed>, clients: usize, name_bytes: usize) -> (SteppedArbiter, Vec<Client>) {
    let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let peers_of_arbiter = Arc::clone(peers) as Arc<dyn Peers>;
    let (mut arbiter, client, mut connection) =
        claimant_among(peers_of_arbiter, Settings::default(), Authority::default(), connect);
    led(&mut arbiter, 0);
    let mut sockets = vec![client];
    loop {
        let number = sockets.len();
        let client_id: Arc<str> = format!("{number:0name_bytes$}").into();
        arbiter.state.clients[connection.index()].client_id = Arc::clone(&client_id);
        if number == clients {
            break;
        }
        tell(&mut arbiter, Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, client_id) }.into());
        let (client, next) = another_claimant(&mut arbiter, &format!("c{number}"));
        sockets.push(client);
        connection = next;
    }
    answer_lane(&mut arbiter);
    peers.take_said();
    (arbiter, sockets)
}

fn answer_lane(arbiter: &mut SteppedArbiter) {
    let number = arbiter.state.lanes.sent_up_to(0).expect("there was room for all of it");
    tell(arbiter, Event::LaneAnswered(LaneAnswer { group: 0, number, refused: vec![] }));
}

fn parts(said: Vec<Forwarded>) -> Vec<ResyncPart> {
    let part = |forwarded| match forwarded {
        Forwarded::ResyncPart(part) => part,
        _ => panic!("not a part"),
    };
    said.into_iter().map(part).collect()
}

/// The connections that parts are about, each in the places of its own.
fn connections(parts: &[ResyncPart]) -> Vec<u64> {
    let connections = parts.iter().flat_map(|part| {
        let resync = part.resync.as_ref().expect("each says something");
        let sessions = resync.sessions.iter().map(|served| served.connection);
        let mut connections: Vec<_> = sessions.chain(resync.claims.iter().map(|claim| claim.connection)).collect();
        let places = part.from..part.below.unwrap_or(u32::MAX);
        assert!(connections.iter().all(|&connection| ConnectionKey::from_raw(connection).is_in(&places)));
        connections.sort_unstable();
        connections
    });
    connections.collect()
}

/// P1, P2: what no frame holds would be dropped each time that it is said, and the sessions of the group would get nothing more.
#[test]
fn what_an_arbiter_has_and_no_frame_holds_goes_in_parts() {
    const CLIENTS: usize = 300;
    let peers = Framed::new(WHOLE_BYTES_MAX, PIECE_BYTES);
    let (mut arbiter, _sockets) = owner_of_many(&peers, CLIENTS, 65_000);
    // As a queue to another node has.
    peers.room.store(16 * 1024 * 1024, Ordering::Relaxed);
    led(&mut arbiter, 1);
    let first = parts(peers.take_said());
    assert!((15..=16).contains(&first.len()), "{} parts", first.len());

    // The queue is empty again, and the leader has asked once more meanwhile.
    peers.room.store(16 * 1024 * 1024, Ordering::Relaxed);
    led(&mut arbiter, 1);
    arbiter.on_second();
    arbiter.run();
    let second = parts(peers.take_said());
    let all = [first, second].concat();
    let known = connections(&all);
    assert!(known.is_sorted() && known.len() == CLIENTS, "{} connections", known.len());
    assert!(all[0].from == 0 && all.windows(2).all(|pair| pair[0].below == Some(pair[1].from)), "without a gap");
    assert_eq!(all.iter().filter(|part| part.below.is_none()).count(), 1);
    assert_eq!(all.last().and_then(|last| last.below), None);
    let resync = |part: &ResyncPart| part.resync.clone().unwrap_or_default();
    assert!(all.iter().map(resync).all(|resync| (resync.group, resync.term, resync.round) == (0, 1, 1)));
    arbiter.on_second();
    assert_eq!(peers.take_said(), [], "all is said");
}

/// What an old version takes goes as it knows it.
#[test]
fn what_an_arbiter_has_goes_as_a_whole_where_a_frame_holds_it() {
    let peers = Framed::new(WHOLE_BYTES_MAX, 100);
    let (mut arbiter, _sockets) = owner_of_many(&peers, 30, 1000);
    led(&mut arbiter, 1);
    let said = peers.take_said();
    let [Forwarded::Resync(resync)] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!((resync.sessions.len(), resync.claims.len()), (29, 1));
}

/// The leader counts on nothing that it was told before it said that something may be lost.
#[test]
fn parts_begin_anew_for_a_leader_that_asks_in_another_round() {
    let peers = Framed::new(1, 1);
    let (mut arbiter, _sockets) = owner_of_many(&peers, 10, 100);
    peers.room.store(800, Ordering::Relaxed);
    led(&mut arbiter, 1);
    let first = parts(peers.take_said());
    assert!((2..10).contains(&first.len()), "{first:?}");
    peers.room.store(usize::MAX, Ordering::Relaxed);
    led(&mut arbiter, 2);
    let second = parts(peers.take_said());
    assert_eq!((second.len(), second[0].from, connections(&second).len()), (10, 0, 10));
    // And once all was said, for one that has it not.
    led(&mut arbiter, 2);
    assert_eq!(parts(peers.take_said()), second);
}

/// P1, P8: a node that was declared dead may be asked to close a connection that it had, before the group has its fence. It knows it no more,
/// and would say that it had never been: the group would take that for the end of a session that began with it. Nor does it say that it
/// has no clients: the leader would believe it, and count on nothing that the node says once it is registered again.
#[test]
fn who_is_not_registered_says_nothing_to_a_group() {
    let peers = Arc::new(Narrow { has_room: AtomicBool::new(true), said: Mutex::default() });
    let (mut arbiter, _client, connection) = owner(&peers);
    tell(&mut arbiter, Event::Unregistered);
    assert_eq!(arbiter.state.lanes.incarnation(), 0);
    peers.take();
    led(&mut arbiter, 1);
    tell(&mut arbiter, Event::Close { connection, group: 0, client_id: Arc::from("c"), epoch: 1 });
    led(&mut arbiter, 2);
    arbiter.on_second();
    arbiter.run();
    assert_eq!(peers.take(), []);
    assert_eq!(
        (arbiter.state.lanes.leader(0), arbiter.state.lanes.sent_up_to(0)),
        (None, Some(0)),
        "nothing waits to be said"
    );

    let leaders = &arbiter.state.shared.cluster.as_ref().expect("several nodes").leaders;
    leaders.learn(&Arc::clone(&arbiter.state.shared), 0, Leader { node: 2, term: 1, round: 2 });
    arbiter.state.shared.set_incarnation(5);
    tell(&mut arbiter, Event::Registered { incarnation: 5 });
    let said = peers.take();
    let resynced =
        |said: &Forwarded| matches!(said, Forwarded::Resync(resync) if (resync.incarnation, resync.round) == (5, 2));
    assert!(said.iter().any(resynced), "now it does: {said:?}");
}

/// P1: the lanes of a registration begin with the same numbers as those of the one before. What was said in the name of the next one before an
/// arbiter knows of that would be the first of it, and the first that clients publish then a repetition.
#[test]
fn nothing_is_said_to_nodes_in_the_name_of_a_registration_to_come() {
    let peers = Arc::new(Narrow { has_room: AtomicBool::new(true), said: Mutex::default() });
    let (mut arbiter, _client, _) = owner(&peers);
    let shared = Arc::clone(&arbiter.state.shared);
    let process = PeerProcess { node: 2, incarnation: 20 };
    let node = shared.cluster.as_ref().expect("several nodes").nodes.indexed(process);
    shared.index.set_node("t", node, 0, NodeInterest { any: 1, ..NodeInterest::default() }.to_value());
    let messages = |peers: &Narrow| {
        let said = peers.take().into_iter();
        let messages = said.filter_map(|said| match said {
            Forwarded::Messages(messages) => Some((messages.incarnation, messages.previous, messages.last)),
            _ => None,
        });
        messages.collect::<Vec<_>>()
    };
    tell(&mut arbiter, Event::Unregistered);
    for qos in ANY_QOS {
        arbiter.state.route_message(&message_to("t", qos));
    }
    arbiter.run();
    shared.set_incarnation(9);
    arbiter.on_second();
    arbiter.run();
    assert_eq!(messages(&peers), []);
    tell(&mut arbiter, Event::Registered { incarnation: 9 });
    assert_eq!(messages(&peers), [], "nothing gathered meanwhile");
    arbiter.state.route_message(&message_to("t", QoS::AtLeastOnce));
    arbiter.run();
    assert_eq!(messages(&peers), [(9, 0, 1)]);
}

/// A version before parts reads something that it does not know, and nothing else.
#[test]
fn a_part_is_no_resync_to_who_does_not_know_of_parts() {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct ForwardBefore {
        #[prost(oneof = "ForwardedBefore", tags = "1, 3")]
        forwarded: Option<ForwardedBefore>,
    }
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    enum ForwardedBefore {
        #[prost(message, tag = "1")]
        Propose(Propose),
        #[prost(message, tag = "3")]
        Resync(Resync),
    }
    let resync = Resync { group: 1, term: 2, arbiters: 1, ..Resync::default() };
    let part = ResyncPart { resync: Some(resync.clone()), from: 0, below: Some(1) };
    let read = |forwarded| ForwardBefore::decode(forward_body(forwarded)).expect("protobuf").forwarded;
    assert_eq!(read(Forwarded::ResyncPart(part)), None);
    assert_eq!(read(Forwarded::Resync(resync.clone())), Some(ForwardedBefore::Resync(resync)));
}

/// P12: the transport drops what no frame holds, however often the group says it. The session is what it was, for a node that has it.
#[test]
fn a_client_whose_subscriptions_no_frame_holds_is_refused_at_once() {
    let (mut arbiter, mut client, connection) = claimant_of_several_nodes();
    assert!(flushed_to_group(&mut arbiter) > 0, "the claim");
    let opened = |filters: usize| {
        let outcome = |number| SubscribeOutcome {
            filter: format!("{number:05}{}", "/long".repeat(400)),
            reason: ReasonCode::Success,
            options: SubscriptionOptions::new(QoS::AtLeastOnce),
            identifier: None,
            read: None,
        };
        let subscriptions = (0..filters).map(outcome).collect();
        Opened { epoch: 1, group: Some(0), subscriptions, ..Opened::transient(connection, Arc::from("c")) }
    };
    let said = |filters| -> Vec<Event> {
        let kinds = EventKind::of(&opened(filters).into(), 0, 0);
        let events = kinds.iter().cloned().map(|kind| GroupEvent { kind: Some(kind) }).collect();
        let events = GroupEvents { group: 3, term: u64::MAX, incarnation: u64::MAX, events };
        let bytes = forward_body(Forwarded::Events(events)).len();
        assert!(bytes < FRAME_BYTES_MAX - 64, "{bytes} bytes");
        kinds.into_iter().map(|kind| kind.into_event(0, 0).expect("it is understood").1).collect()
    };
    assert!(matches!(&said(8000)[..], [Event::Opened(opened)] if opened.subscriptions.len() == 8000));
    for event in said(9000) {
        tell(&mut arbiter, event);
    }
    assert!(
        matches!(&packets(&mut client)[..], [Packet::ConnAck(connack)] if connack.reason_code == ReasonCode::QuotaExceeded)
    );
    assert!(flushed_to_group(&mut arbiter) > 0, "the group hears that the claim never began");
}
