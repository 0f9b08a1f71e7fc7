//! What an arbiter says to a group's leader on another node, and in which order, while the way there is narrow.

use super::*;
use crate::peers::wire::{Propose, Resync};
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
