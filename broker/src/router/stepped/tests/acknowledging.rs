//! What subscribers acknowledge, for the group of their session: when it is said.

use super::*;
use crate::replicated::state::CLOCK_LAG_MS_MAX;
use crate::replicated::{DeliverPersistent, LaneAnswer};

/// A client with a persistent session, and messages of its group on their way to it.
pub(super) struct Subscriber {
    pub(super) arbiter: SteppedArbiter,
    pub(super) client: Client,
    /// Of its claim, which is the first thing in the lane.
    pub(super) connection: ConnectionKey,
}

impl Subscriber {
    /// With so many messages in its window, of as many as `window`.
    fn with(messages: u16, qos: QoS, window: u16) -> Self {
        Self::at(&Arc::new(ManualClock::new(0)), messages, qos, window)
    }

    pub(super) fn at(machine: &Arc<ManualClock>, messages: u16, qos: QoS, window: u16) -> Self {
        let mut asked = connect(ProtocolVersion::V5, "c".to_owned(), 0);
        asked.properties.receive_maximum = PacketId::new(window);
        let (mut arbiter, client, connection) =
            claimant_at(machine, Arc::new(NoPeers), Settings::default(), Authority::default(), asked);
        let opened = Opened { epoch: 1, group: Some(0), ..Opened::transient(connection, Arc::from("c")) };
        arbiter.state.shared.inboxes[0].push(opened.into(), 0);
        arbiter.run();
        let mut this = Self { arbiter, client, connection };
        (1..=messages).for_each(|id| this.deliver(id, qos));
        assert!(matches!(this.unanswered()[..], [SessionCommand::Connect(_)]));
        this
    }

    pub(super) fn deliver(&mut self, id: u16, qos: QoS) {
        self.deliver_until(id, qos, false, None);
    }

    fn deliver_until(&mut self, id: u16, qos: QoS, dup: bool, expires_at_ms: Option<u64>) {
        let message = Message {
            identity: MessageIdentity { lane: 7, number: u64::from(id) },
            topic: Arc::from("t"),
            payload: Bytes::from_static(b"x"),
            qos,
            retain: false,
            publisher: Arc::from("p"),
            properties: None,
            expires_at_ms: None,
        };
        let delivery = DeliverPersistent {
            connection: self.connection,
            epoch: 1,
            packet_id: PacketId::new(id).expect("not zero"),
            qos,
            dup,
            retain: false,
            subscription_identifiers: Vec::new(),
            message: Arc::new(message),
            expires_at_ms,
            shared: Some(false),
        };
        self.event(Event::Deliver(vec![delivery]));
    }

    fn event(&mut self, event: Event) {
        self.arbiter.state.shared.inboxes[0].push(event, 0);
        self.arbiter.run();
    }

    /// The group has dealt with everything in the lane up to `number`.
    fn answered(&mut self, number: u64) {
        self.event(Event::LaneAnswered(LaneAnswer { group: 0, number, refused: vec![] }));
    }

    pub(super) fn acknowledges(&mut self, packet: fn(Ack) -> Packet, id: u16) {
        self.client.send(&packet(Ack::success(PacketId::new(id).expect("not zero"))));
        self.client.write(usize::MAX);
        self.arbiter.run();
    }

    /// What the group was told and has not answered, without what still gathers.
    fn unanswered(&mut self) -> Vec<SessionCommand> {
        flushed_commands(&mut self.arbiter)
    }
}

/// The more of it goes together, the less there is to replicate; and nobody waits for it.
#[test]
fn what_is_acknowledged_goes_once_what_was_said_before_is_answered() {
    let mut subscriber = Subscriber::with(3, QoS::AtLeastOnce, 100);
    subscriber.acknowledges(Packet::PubAck, 1);
    subscriber.acknowledges(Packet::PubAck, 2);
    assert_eq!(subscriber.unanswered().len(), 1, "the claim is not answered");
    subscriber.answered(1);
    assert!(matches!(subscriber.unanswered()[..], [SessionCommand::Acknowledge(_), SessionCommand::Acknowledge(_)]));
    subscriber.acknowledges(Packet::PubAck, 3);
    assert_eq!(subscriber.unanswered().len(), 2, "these are not answered");
    subscriber.answered(2);
    assert_eq!(subscriber.unanswered().len(), 2, "nor all of them yet, which were one batch");
    subscriber.answered(3);
    assert!(matches!(subscriber.unanswered()[..], [SessionCommand::Acknowledge(_)]));
}

#[test]
fn what_is_acknowledged_goes_at_once_where_nothing_waits_for_an_answer() {
    let mut subscriber = Subscriber::with(1, QoS::AtLeastOnce, 100);
    subscriber.answered(1);
    subscriber.acknowledges(Packet::PubAck, 1);
    assert!(matches!(subscriber.unanswered()[..], [SessionCommand::Acknowledge(_)]));
}

#[test]
fn what_is_acknowledged_goes_with_what_somebody_waits_for_and_ahead_of_it() {
    let mut subscriber = Subscriber::with(1, QoS::AtLeastOnce, 100);
    subscriber.acknowledges(Packet::PubAck, 1);
    another_claimant(&mut subscriber.arbiter, "d");
    let said = subscriber.unanswered();
    let [SessionCommand::Connect(_), SessionCommand::Acknowledge(_), SessionCommand::Connect(_)] = &said[..] else {
        panic!("{said:?}");
    };
}

/// It would be sent nothing more until then.
#[test]
fn who_has_little_room_does_not_wait_for_what_was_said_before() {
    let mut subscriber = Subscriber::with(3, QoS::AtLeastOnce, 9);
    subscriber.acknowledges(Packet::PubAck, 1);
    subscriber.acknowledges(Packet::PubAck, 2);
    assert_eq!(subscriber.unanswered().len(), 1, "less than a quarter of its window waits");
    subscriber.acknowledges(Packet::PubAck, 3);
    assert_eq!(subscriber.unanswered().len(), 4, "the claim and all three");
}

/// The client waits for PUBREL.
#[test]
fn a_pubrec_does_not_wait_for_what_was_said_before() {
    let mut subscriber = Subscriber::with(1, QoS::ExactlyOnce, 100);
    subscriber.acknowledges(Packet::PubRec, 1);
    assert!(matches!(subscriber.unanswered()[..], [SessionCommand::Connect(_), SessionCommand::Acknowledge(_)]));
}

/// P12: a group may answer nothing for long.
#[test]
fn what_is_acknowledged_is_said_within_a_second() {
    let mut subscriber = Subscriber::with(1, QoS::AtLeastOnce, 100);
    subscriber.acknowledges(Packet::PubAck, 1);
    assert_eq!(subscriber.unanswered().len(), 1);
    subscriber.arbiter.on_second();
    assert_eq!(subscriber.unanswered().len(), 2);
}

/// Its group's leader sends what a slow client has room for, and that may be too late. The group is told that it need not
/// keep it. What was begun on an earlier connection is ended.
///
/// Conformance: [MQTT5-3.3.2-5]
#[test]
fn what_expired_before_it_was_sent_to_a_slow_client_is_not_sent() {
    let machine = Arc::new(ManualClock::new(0));
    let mut subscriber = Subscriber::at(&machine, 0, QoS::AtLeastOnce, 100);
    subscriber.answered(1);
    assert!(matches!(packets(&mut subscriber.client)[..], [Packet::ConnAck(_)]));
    machine.advance(Duration::from_secs(10));
    subscriber.arbiter.state.read_clock();
    let now_ms = subscriber.arbiter.state.now_ms;
    subscriber.deliver_until(1, QoS::AtLeastOnce, false, Some(now_ms - CLOCK_LAG_MS_MAX));
    assert_eq!(packets(&mut subscriber.client), []);
    let said = subscriber.unanswered();
    let [SessionCommand::Acknowledge(acknowledge)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(acknowledge.items.iter().map(|item| (item.kind, item.packet_id)).collect::<Vec<_>>(), [(4, 1)]);
    subscriber.deliver_until(2, QoS::AtLeastOnce, true, Some(now_ms));
    subscriber.deliver_until(3, QoS::AtLeastOnce, false, Some(now_ms + 60_000));
    // The clock of its group may have lagged.
    subscriber.deliver_until(4, QoS::AtLeastOnce, false, Some(now_ms - CLOCK_LAG_MS_MAX + 1));
    assert_eq!(packets(&mut subscriber.client).len(), 3);
}
