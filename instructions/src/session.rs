//! A session's steps for one message, without the packets.

use std::hint::black_box;

use kentongan::router::client::Held;
use kentongan::session::acknowledgements::{Acknowledgements, Verdict};
use kentongan::session::inbound::{Inbound, PublishStep};
use kentongan::session::outbound::{DropPolicy, Outbound, OutboundLimits};
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{Delivery, PacketId, QoS, ReasonCode};

use crate::{Counter, Row};

const OPERATIONS: u64 = 5_000;

/// Messages in flight before and after each operation.
const IN_FLIGHT: usize = 20;

pub const ROWS: &[Row] = &[
    Row { name: "from PUBLISH to PUBACK, QoS 1", run: inbound_qos1 },
    Row { name: "from PUBLISH to PUBCOMP, QoS 2", run: inbound_qos2 },
    Row { name: "window: send and PUBACK, QoS 1", run: outbound_qos1 },
    Row { name: "window: send, PUBREC and PUBCOMP, QoS 2", run: outbound_qos2 },
];

/// 1, 2, … 1000, 1, …
fn ids() -> impl Iterator<Item = PacketId> {
    (1..=1000).cycle().filter_map(PacketId::new)
}

/// From the acknowledgement that a PUBLISH is owed to the one that may leave.
fn acknowledge(owed: &mut Acknowledgements, kind: AckKind, id: PacketId) -> PacketId {
    let ticket = owed.owe(kind, id);
    owed.settle(ticket, Verdict::from(ReasonCode::Success));
    owed.pop().map_or(PacketId::MAX, |acknowledgement| acknowledgement.packet_id)
}

fn inbound_qos1(counter: &mut Counter) {
    let mut inbound = Inbound::new(IN_FLIGHT as u16, true);
    let mut owed = Acknowledgements::default();
    let mut ids = ids();
    let mut step = || {
        let Some(id) = ids.next() else { return };
        assert_eq!(inbound.on_publish(black_box(Delivery::AtLeastOnce(id))), Ok(PublishStep::Route));
        assert_eq!(acknowledge(&mut owed, AckKind::PubAck, id), id);
        inbound.on_puback_sent();
    };
    step();
    counter.count(OPERATIONS, || (0..OPERATIONS).for_each(|_| step()));
}

fn inbound_qos2(counter: &mut Counter) {
    let mut inbound = Inbound::new(IN_FLIGHT as u16, true);
    let mut owed = Acknowledgements::default();
    let mut ids = ids();
    let mut step = || {
        let Some(id) = ids.next() else { return };
        assert_eq!(inbound.on_publish(black_box(Delivery::ExactlyOnce(id))), Ok(PublishStep::Route));
        assert_eq!(acknowledge(&mut owed, AckKind::PubRec, id), id);
        inbound.on_pubrec_sent(id, ReasonCode::Success);
        assert_eq!(inbound.on_pubrel(id), Ok(ReasonCode::Success));
    };
    step();
    counter.count(OPERATIONS, || (0..OPERATIONS).for_each(|_| step()));
}

fn message() -> Held {
    Held { message: None, retain: false, identifiers: None, share: None, origin: None }
}

/// A window with messages in flight, and the oldest of them.
fn window(qos: QoS) -> (Outbound<Held>, impl Iterator<Item = PacketId>) {
    let mut outbound = Outbound::new(OutboundLimits {
        window_max: 100,
        queue_messages_max: 1000,
        queue_bytes_max: 1_000_000,
        drop_policy: DropPolicy::New,
    });
    for _ in 0..IN_FLIGHT {
        assert!(outbound.send_now(message(), qos).is_some());
    }
    (outbound, (1..=u16::MAX).cycle().filter_map(PacketId::new))
}

fn outbound_qos1(counter: &mut Counter) {
    let (mut outbound, mut oldest) = window(QoS::AtLeastOnce);
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            assert!(black_box(outbound.send_now(message(), QoS::AtLeastOnce)).is_some());
            let Some(id) = oldest.next() else { return };
            assert!(black_box(outbound.on_puback(id)).is_ok());
        }
    });
    assert_eq!(outbound.in_flight(), IN_FLIGHT);
}

fn outbound_qos2(counter: &mut Counter) {
    let (mut outbound, mut oldest) = window(QoS::ExactlyOnce);
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            assert!(black_box(outbound.send_now(message(), QoS::ExactlyOnce)).is_some());
            let Some(id) = oldest.next() else { return };
            assert!(black_box(outbound.on_pubrec(id, false)).is_ok());
            assert!(outbound.on_pubcomp(id).is_ok());
        }
    });
    assert_eq!(outbound.in_flight(), IN_FLIGHT);
}
