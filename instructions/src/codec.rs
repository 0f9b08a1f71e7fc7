//! Packets, read and written as the broker does it: PUBLISH and acknowledgements in place, others whole.

use std::hint::black_box;

use bytes::Bytes;
use kentongan_proto::mqtt::ProtocolVersion::{V3_1_1, V5};
use kentongan_proto::mqtt::codec::{self, AckKind, Frame, FrameStatus, Limits, PublishHead, Sender};
use kentongan_proto::mqtt::{
    Delivery, Packet, PacketId, ProtocolVersion, Publish, PublishProperties, QoS, ReasonCode, Subscribe,
    SubscriptionOptions,
};

use crate::{Counter, Row};

const OPERATIONS: u64 = 1000;
const QOS_0: Delivery = Delivery::AtMostOnce;
const QOS_1: Delivery = Delivery::AtLeastOnce(PacketId::MIN);

pub const ROWS: &[Row] = &[
    Row { name: "decode PUBLISH, QoS 0, 3.1.1", run: |counter| decode_publish(counter, &publish(QOS_0), V3_1_1) },
    Row { name: "decode PUBLISH, QoS 1, 3.1.1", run: |counter| decode_publish(counter, &publish(QOS_1), V3_1_1) },
    Row {
        name: "decode PUBLISH, QoS 0, 5, three properties",
        run: |counter| decode_publish(counter, &rich_publish(QOS_0), V5),
    },
    Row {
        name: "decode PUBLISH, QoS 1, 5, three properties",
        run: |counter| decode_publish(counter, &rich_publish(QOS_1), V5),
    },
    Row { name: "decode PUBACK, 3.1.1", run: decode_puback },
    Row { name: "decode SUBSCRIBE, three filters, 5", run: decode_subscribe },
    Row { name: "encode PUBLISH, QoS 1, 3.1.1", run: |counter| encode_publish(counter, &publish(QOS_1), V3_1_1) },
    Row {
        name: "encode PUBLISH, QoS 1, 5, three properties",
        run: |counter| encode_publish(counter, &rich_publish(QOS_1), V5),
    },
    Row { name: "encode PUBACK, 3.1.1", run: encode_puback },
];

/// 64 bytes of payload, no properties.
pub fn publish(delivery: Delivery) -> Publish {
    Publish {
        dup: false,
        delivery,
        retain: false,
        topic: "plant/7/line/3/temperature".to_owned(),
        properties: PublishProperties::default(),
        payload: Bytes::from_static(&[b'x'; 64]),
    }
}

fn rich_publish(delivery: Delivery) -> Publish {
    let properties = PublishProperties {
        message_expiry_interval: Some(60),
        response_topic: Some("answers/17".to_owned()),
        user_properties: vec![("trace".to_owned(), "4bf92f3577b34da6".to_owned())],
        ..PublishProperties::default()
    };
    Publish { properties, ..publish(delivery) }
}

/// The bytes of a packet.
pub fn encoded(packet: &Packet, version: ProtocolVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, version, &mut bytes).expect("a packet that can be expressed");
    bytes
}

/// The packet that `bytes` begin with.
pub fn frame(bytes: &[u8], sender: Sender) -> Frame<'_> {
    match codec::split_frame(bytes, sender, &Limits::default()) {
        Ok(FrameStatus::Complete(frame)) => frame,
        other => panic!("no whole packet: {other:?}"),
    }
}

fn decode_publish(counter: &mut Counter, publish: &Publish, version: ProtocolVersion) {
    let bytes = encoded(&Packet::Publish(publish.clone()), version);
    let limits = Limits::default();
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            let frame = frame(black_box(&bytes), Sender::Client);
            let publish = codec::decode_publish(&frame, version, Sender::Client, &limits);
            assert!(black_box(publish).is_ok());
        }
    });
}

fn decode_puback(counter: &mut Counter) {
    let mut bytes = Vec::new();
    codec::encode_ack(AckKind::PubAck, PacketId::MIN, ReasonCode::Success, V3_1_1, &mut bytes);
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            let frame = frame(black_box(&bytes), Sender::Client);
            assert!(black_box(codec::decode_ack(&frame, V3_1_1)).is_ok());
        }
    });
}

fn decode_subscribe(counter: &mut Counter) {
    let filters = ["plant/7/+/3/#", "plant/7/line/3/command", "$share/workers/jobs/+"];
    let filters = filters.map(|filter| (filter.to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce)));
    let subscribe = Subscribe {
        packet_id: PacketId::MIN,
        filters: filters.to_vec(),
        subscription_identifier: None,
        user_properties: vec![],
    };
    let bytes = encoded(&Packet::Subscribe(subscribe), V5);
    let limits = Limits::default();
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            let frame = frame(black_box(&bytes), Sender::Client);
            assert!(black_box(codec::decode(&frame, None, V5, Sender::Client, &limits)).is_ok());
        }
    });
}

fn encode_publish(counter: &mut Counter, publish: &Publish, version: ProtocolVersion) {
    let mut out = Vec::with_capacity(1024);
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            let publish = black_box(publish);
            let head = PublishHead {
                dup: publish.dup,
                delivery: publish.delivery,
                retain: publish.retain,
                topic: &publish.topic,
                topic_alias: None,
                message_expiry_interval: publish.properties.message_expiry_interval,
                properties: Some(&publish.properties),
                subscription_identifiers: &[],
                payload_len: publish.payload.len(),
            };
            out.clear();
            black_box(codec::encode_publish_head(&head, version, &mut out));
            out.extend_from_slice(&publish.payload);
            black_box(&out);
        }
    });
}

fn encode_puback(counter: &mut Counter) {
    let mut out = Vec::with_capacity(64);
    counter.count(OPERATIONS, || {
        for _ in 0..OPERATIONS {
            out.clear();
            codec::encode_ack(AckKind::PubAck, black_box(PacketId::MIN), ReasonCode::Success, V3_1_1, &mut out);
            black_box(&out);
        }
    });
}
