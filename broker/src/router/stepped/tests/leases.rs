//! What clients hear of a node that has no lease: it may have stood still for long, and they may be connected elsewhere by now.

use kentongan_cluster::Incarnation;
use kentongan_cluster::lease::{Holder, HolderOutput, LEASE_NS};
use kentongan_proto::mqtt::codec::AckKind;

use super::acknowledging::Subscriber;
use super::*;

/// The lease of the only node here, by a clock that is moved by hand.
struct Lease {
    machine: Arc<ManualClock>,
    clock: Clock,
    holder: Holder,
}

impl Lease {
    /// It has one from now on.
    fn of(shared: &Shared, machine: Arc<ManualClock>) -> Self {
        let cell = Arc::clone(&shared.cluster.as_ref().expect("one of several").lease);
        let holder = Holder::new(Incarnation(1), cell);
        let mut lease = Self { clock: Clock::manual(Arc::clone(&machine)), machine, holder };
        lease.holder.on_interest_complete(lease.clock.boottime_ns(), &mut Vec::new());
        lease.renew();
        assert!(shared.may_acknowledge());
        lease
    }

    fn renew(&mut self) {
        let (now_ns, mut outputs) = (self.clock.boottime_ns(), Vec::new());
        self.holder.tick(now_ns, &mut outputs);
        let [HolderOutput::Renew { sequence, .. }, ..] = outputs[..] else { panic!("{outputs:?}") };
        self.holder.on_granted(now_ns, sequence, &mut outputs);
    }

    /// The process stands still, and nobody in it notices.
    fn stand_still(&self) {
        self.machine.advance(Duration::from_nanos(2 * LEASE_NS));
    }
}

fn subscriber_with_lease(window: u16) -> (Subscriber, Lease) {
    let machine = Arc::new(ManualClock::new(0));
    let mut subscriber = Subscriber::at(&machine, 0, QoS::ExactlyOnce, window);
    assert!(matches!(packets(&mut subscriber.client)[..], [Packet::ConnAck(_)]));
    let lease = Lease::of(&subscriber.arbiter.state.shared, machine);
    (subscriber, lease)
}

fn acknowledge(connection: ConnectionKey, kind: AckKind, id: u16) -> Event {
    let packet_id = PacketId::new(id).expect("not zero");
    Event::Acknowledge { connection, epoch: 1, kind, packet_id, reason: ReasonCode::Success }
}

/// Everything that a group may have said of a session before the process stood still, and that is taken from the inbox only now.
fn hears_from_its_group(subscriber: &mut Subscriber) {
    let inbox = &subscriber.arbiter.state.shared.inboxes[0];
    inbox.push(acknowledge(subscriber.connection, AckKind::PubRel, 1), 0);
    inbox.push(acknowledge(subscriber.connection, AckKind::PubComp, 9), 0);
    subscriber.deliver(2, QoS::AtLeastOnce);
}

fn is_told_to_go(heard: &[Packet]) -> bool {
    matches!(heard, [Packet::Disconnect(disconnect)] if disconnect.reason_code == ReasonCode::UseAnotherServer)
}

/// P7: its session is with another connection elsewhere, which is sent all that by whoever leads the group now.
#[test]
fn what_a_group_said_reaches_nobody_whose_session_may_be_elsewhere() {
    let (mut subscriber, lease) = subscriber_with_lease(100);
    subscriber.deliver(1, QoS::ExactlyOnce);
    assert!(matches!(packets(&mut subscriber.client)[..], [Packet::Publish(_)]));
    subscriber.acknowledges(Packet::PubRec, 1);
    lease.stand_still();
    hears_from_its_group(&mut subscriber);
    assert_eq!(packets(&mut subscriber.client), []);
    subscriber.arbiter.on_second();
    tell(&mut subscriber.arbiter, Event::LeaseLapsed);
    assert_eq!(packets(&mut subscriber.client), []);
    tell(&mut subscriber.arbiter, Event::Unregistered);
    let heard = packets(&mut subscriber.client);
    assert!(is_told_to_go(&heard), "{heard:?}");
    assert_eq!(subscriber.client.stream.try_read(&mut [0; 16]).ok(), Some(0), "the end of the stream");
}

/// It was missed for a moment, and nothing is lost.
#[test]
fn what_a_group_said_is_written_once_the_lease_is_back() {
    let back: [fn(&mut Subscriber); 2] = [
        |subscriber| tell(&mut subscriber.arbiter, Event::LeaseBack),
        |subscriber| {
            // Nobody noticed that it was gone.
            subscriber.arbiter.on_second();
            subscriber.arbiter.run();
        },
    ];
    for back in back {
        let (mut subscriber, mut lease) = subscriber_with_lease(100);
        lease.stand_still();
        hears_from_its_group(&mut subscriber);
        assert_eq!(packets(&mut subscriber.client), []);
        lease.renew();
        back(&mut subscriber);
        let heard = packets(&mut subscriber.client);
        let [Packet::PubRel(_), Packet::PubComp(_), Packet::Publish(_)] = &heard[..] else { panic!("{heard:?}") };
        assert!(subscriber.arbiter.state.unwritten.is_empty());
    }
}

/// The process may stand still between the two: what was decided on under a lease is written behind it.
#[test]
fn what_was_decided_on_under_a_lease_is_not_written_without_one() {
    let (mut arbiter, mut client, connection) = claimant_of_several_nodes();
    let machine = Arc::new(ManualClock::new(0));
    let shared = Arc::clone(&arbiter.state.shared);
    // The clock of that claimant stands still for ever.
    let mut lease = Lease::of(&shared, machine);
    shared.inboxes[0].push(Opened::transient(connection, Arc::from("c")).into(), 0);
    while arbiter.state.client(connection).is_some_and(|client| client.out.is_empty()) {
        assert!(arbiter.step(0));
    }
    lease.holder.on_dead(Incarnation(1), &mut Vec::new());
    arbiter.run();
    assert_eq!(packets(&mut client), [], "CONNACK");
    tell(&mut arbiter, Event::Unregistered);
    let end = client.stream.try_read(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "no DISCONNECT before CONNACK");
}

/// Whatever follows would be read as the rest of it.
#[test]
fn who_has_a_part_of_a_packet_hears_nothing_more() {
    let (mut subscriber, lease) = subscriber_with_lease(2_000);
    (1..1_000).for_each(|id| subscriber.deliver(id, QoS::AtLeastOnce));
    assert!(subscriber.arbiter.state.client(subscriber.connection).is_some_and(|client| client.blocked));
    lease.stand_still();
    let heard = std::iter::from_fn(|| Some(read_all(&mut subscriber.client)).filter(|bytes| !bytes.is_empty()));
    assert_eq!(heard.map(|bytes| bytes.len()).sum::<usize>(), 4096, "as much as the stream takes");
    tell(&mut subscriber.arbiter, Event::Unregistered);
    let end = subscriber.client.stream.try_read(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

/// P7: a transient session is over once its client is connected elsewhere. QoS 0 goes on, and so does the connection.
#[test]
fn without_a_lease_a_client_gets_what_promises_nothing() {
    let machine = Arc::new(ManualClock::new(0));
    let asked = connect(ProtocolVersion::V5, "c".to_owned(), 0);
    let (mut arbiter, mut client, connection) =
        claimant_at(&machine, Arc::new(NoPeers), Settings::default(), Authority::default(), asked);
    grant(&mut arbiter, connection);
    let subscribe = subscribe_to(&mut client, &["t"], QoS::AtLeastOnce);
    client.send(&subscribe);
    client.write(usize::MAX);
    arbiter.run();
    all_hear(&mut arbiter);
    assert!(matches!(packets(&mut client)[..], [Packet::ConnAck(_), Packet::SubAck(_)]));
    let mut lease = Lease::of(&arbiter.state.shared, machine);
    lease.stand_still();
    let route = |arbiter: &mut SteppedArbiter, qos| {
        tell(arbiter, Event::Route { message: message_to("t", qos), weight: 0 });
    };
    route(&mut arbiter, QoS::AtMostOnce);
    client.send(&Packet::PingReq);
    client.write(usize::MAX);
    arbiter.run();
    let heard = packets(&mut client);
    assert!(matches!(heard[..], [Packet::Publish(_), Packet::PingResp]), "{heard:?}");
    route(&mut arbiter, QoS::AtLeastOnce);
    assert_eq!(packets(&mut client), []);
    lease.renew();
    tell(&mut arbiter, Event::LeaseBack);
    assert!(matches!(packets(&mut client)[..], [Packet::Publish(_)]));
}
