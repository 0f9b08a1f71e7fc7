//! What a packet costs to read and to write.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kentongan_proto::mqtt::codec::{self, AckKind, Frame, FrameStatus, Limits, PublishHead, Sender};
use kentongan_proto::mqtt::*;

const ID: PacketId = PacketId::MIN;

fn properties() -> PublishProperties {
    PublishProperties {
        message_expiry_interval: Some(60),
        response_topic: Some("answers/17".to_owned()),
        user_properties: vec![("trace".to_owned(), "4bf92f3577b34da6".to_owned())],
        ..PublishProperties::default()
    }
}

fn publish(qos: QoS, payload: usize, properties: PublishProperties) -> Packet {
    let delivery = if qos == QoS::AtMostOnce { Delivery::AtMostOnce } else { Delivery::AtLeastOnce(ID) };
    Packet::Publish(Publish {
        dup: false,
        delivery,
        retain: false,
        topic: "plant/7/line/3/temperature".to_owned(),
        properties,
        payload: Bytes::from(vec![b'x'; payload]),
    })
}

fn connect(version: ProtocolVersion) -> Packet {
    Packet::Connect(Box::new(Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive: 60,
        client_id: "plant-7-line-3-sensor-0042".to_owned(),
        will: None,
        user_name: Some("plant-7".to_owned()),
        password: Some(Bytes::from_static(b"correct horse")),
        properties: ConnectProperties::default(),
    }))
}

fn subscribe() -> Packet {
    let filters = ["plant/7/+/3/#", "plant/7/line/3/command", "$share/workers/jobs/+"];
    let filters = filters.map(|filter| (filter.to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce)));
    Packet::Subscribe(Subscribe {
        packet_id: ID,
        filters: filters.to_vec(),
        subscription_identifier: None,
        user_properties: vec![],
    })
}

fn split(bytes: &[u8]) -> Frame<'_> {
    match codec::split_frame(bytes, Sender::Client, &Limits::default()) {
        Ok(FrameStatus::Complete(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

/// As a broker does it: PUBLISH and acknowledgements in place, others whole.
fn read(bytes: &[u8], version: ProtocolVersion) {
    let frame = split(black_box(bytes));
    let limits = Limits::default();
    match frame.first_byte >> 4 {
        3 => drop(black_box(codec::decode_publish(&frame, version, Sender::Client, &limits))),
        4 => drop(black_box(codec::decode_ack(&frame, version))),
        _ => drop(black_box(codec::decode(&frame, None, version, Sender::Client, &limits))),
    }
}

fn write(packet: &Packet, version: ProtocolVersion, out: &mut Vec<u8>) {
    out.clear();
    match black_box(packet) {
        Packet::Publish(publish) => {
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
            black_box(codec::encode_publish_head(&head, version, out));
            out.extend_from_slice(&publish.payload);
        }
        Packet::PubAck(ack) => codec::encode_ack(AckKind::PubAck, ack.packet_id, ack.reason_code, version, out),
        packet => drop(codec::encode(packet, version, out)),
    }
    black_box(&out);
}

fn codec_benches(criterion: &mut Criterion) {
    use ProtocolVersion::{V3_1_1, V5};
    use QoS::{AtLeastOnce, AtMostOnce};
    let none = PublishProperties::default;
    let cases = [
        ("publish qos 0 64 B 3.1.1", V3_1_1, publish(AtMostOnce, 64, none())),
        ("publish qos 1 64 B 3.1.1", V3_1_1, publish(AtLeastOnce, 64, none())),
        ("publish qos 0 64 B 5", V5, publish(AtMostOnce, 64, none())),
        ("publish qos 0 64 B 5 properties", V5, publish(AtMostOnce, 64, properties())),
        ("publish qos 0 1 KiB 3.1.1", V3_1_1, publish(AtMostOnce, 1024, none())),
        ("puback 3.1.1", V3_1_1, Packet::PubAck(Ack::success(ID))),
        ("connect 3.1.1", V3_1_1, connect(V3_1_1)),
        ("connect 5", V5, connect(V5)),
        ("subscribe 5", V5, subscribe()),
    ];
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(1)).sample_size(30);
    group.warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1));
    for (name, version, packet) in cases {
        let mut bytes = Vec::new();
        codec::encode(&packet, version, &mut bytes).expect("a packet that can be expressed");
        group.bench_function(format!("read {name}"), |bencher| bencher.iter(|| read(&bytes, version)));
        let mut out = Vec::with_capacity(2048);
        group.bench_function(format!("write {name}"), |bencher| bencher.iter(|| write(&packet, version, &mut out)));
    }
    group.finish();
}

criterion_group!(benches, codec_benches);
criterion_main!(benches);
