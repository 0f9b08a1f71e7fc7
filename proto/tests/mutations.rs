//! Packets that are almost right: nothing they contain may make the codec panic, and whatever it takes it must give back.
//!
//! `KENTONGAN_MUTATIONS` says how many (200,000 if it is not set), `KENTONGAN_SEED` repeats a run.

use bytes::Bytes;
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, PacketType, Sender};
use kentongan_proto::mqtt::*;

const VERSIONS: [ProtocolVersion; 3] = [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5];

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn users() -> UserProperties {
    vec![("name".to_owned(), "value".to_owned()), ("name".to_owned(), String::new())]
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

/// Packets of every type, with everything that their version allows.
fn packets(version: ProtocolVersion) -> Vec<(Sender, Packet)> {
    let v5 = version.is_v5();
    let only_v5 = |users: UserProperties| if v5 { users } else { Vec::new() };
    let ack = |reason_code| Ack {
        packet_id: id(7),
        reason_code: if v5 { reason_code } else { ReasonCode::Success },
        properties: if v5 {
            AckProperties { reason_string: Some("why".to_owned()), user_properties: users() }
        } else {
            AckProperties::default()
        },
    };
    let connect = Connect {
        version,
        bridge: !v5,
        clean_start: true,
        keep_alive: 30,
        client_id: "client".to_owned(),
        will: Some(Will {
            topic: "will/topic".to_owned(),
            payload: Bytes::from_static(b"bye"),
            qos: QoS::ExactlyOnce,
            retain: true,
            properties: WillProperties {
                will_delay_interval: v5.then_some(5),
                response_topic: v5.then(|| "answers".to_owned()),
                user_properties: only_v5(users()),
                ..WillProperties::default()
            },
        }),
        user_name: Some("user".to_owned()),
        password: Some(Bytes::from_static(b"password")),
        properties: if v5 {
            ConnectProperties {
                session_expiry_interval: Some(9),
                receive_maximum: std::num::NonZeroU16::new(4),
                maximum_packet_size: Some(1000),
                authentication_method: Some("method".to_owned()),
                authentication_data: Some(Bytes::from_static(b"data")),
                user_properties: users(),
                ..ConnectProperties::default()
            }
        } else {
            ConnectProperties::default()
        },
    };
    let publish = |delivery| Publish {
        dup: delivery != Delivery::AtMostOnce,
        delivery,
        retain: true,
        topic: "a/b/c".to_owned(),
        properties: if v5 {
            PublishProperties {
                payload_format_indicator: Some(1),
                message_expiry_interval: Some(60),
                topic_alias: Some(3),
                response_topic: Some("r".to_owned()),
                correlation_data: Some(Bytes::from_static(&[1, 2])),
                content_type: Some("t".to_owned()),
                user_properties: users(),
                ..PublishProperties::default()
            }
        } else {
            PublishProperties::default()
        },
        payload: Bytes::from(vec![b'x'; 200]),
    };
    let suback = |reason_codes| SubAck { packet_id: id(5), reason_codes, properties: AckProperties::default() };
    let mut packets = vec![
        (Sender::Client, Packet::Connect(Box::new(connect))),
        (Sender::Client, Packet::Publish(publish(Delivery::AtMostOnce))),
        (Sender::Server, Packet::Publish(publish(Delivery::AtLeastOnce(id(1))))),
        (Sender::Client, Packet::Publish(publish(Delivery::ExactlyOnce(id(65_535))))),
        (Sender::Client, Packet::PubAck(ack(ReasonCode::QuotaExceeded))),
        (Sender::Server, Packet::PubRec(ack(ReasonCode::NoMatchingSubscribers))),
        (Sender::Client, Packet::PubRel(ack(ReasonCode::PacketIdentifierNotFound))),
        (Sender::Server, Packet::PubComp(ack(ReasonCode::Success))),
        (
            Sender::Client,
            Packet::Subscribe(Subscribe {
                packet_id: id(2),
                filters: vec![
                    ("a/+/#".to_owned(), SubscriptionOptions::new(QoS::ExactlyOnce)),
                    ("$share/g/b".to_owned(), SubscriptionOptions::new(QoS::AtMostOnce)),
                ],
                subscription_identifier: v5.then_some(268_435_455),
                user_properties: only_v5(users()),
            }),
        ),
        (Sender::Server, Packet::SubAck(suback(vec![ReasonCode::GrantedQos2, ReasonCode::UnspecifiedError]))),
        (
            Sender::Client,
            Packet::Unsubscribe(Unsubscribe {
                packet_id: id(3),
                filters: vec!["a/+/#".to_owned(), "b".to_owned()],
                user_properties: only_v5(users()),
            }),
        ),
        (Sender::Server, Packet::UnsubAck(suback(if v5 { vec![ReasonCode::NoSubscriptionExisted] } else { vec![] }))),
        (Sender::Client, Packet::PingReq),
        (Sender::Server, Packet::PingResp),
        (
            Sender::Server,
            Packet::ConnAck(Box::new(ConnAck {
                session_present: true,
                reason_code: ReasonCode::Success,
                properties: if v5 {
                    ConnAckProperties {
                        assigned_client_identifier: Some("id".to_owned()),
                        server_keep_alive: Some(10),
                        maximum_qos: Some(1),
                        user_properties: users(),
                        ..ConnAckProperties::default()
                    }
                } else {
                    ConnAckProperties::default()
                },
            })),
        ),
    ];
    let disconnect = Disconnect {
        reason_code: if v5 { ReasonCode::DisconnectWithWillMessage } else { ReasonCode::Success },
        properties: DisconnectProperties {
            session_expiry_interval: v5.then_some(1),
            user_properties: only_v5(users()),
            ..DisconnectProperties::default()
        },
    };
    packets.push((Sender::Client, Packet::Disconnect(disconnect)));
    if v5 {
        let properties = AuthProperties { authentication_method: Some("m".to_owned()), ..AuthProperties::default() };
        packets.push((Sender::Client, Packet::Auth(Auth { reason_code: ReasonCode::ReAuthenticate, properties })));
    }
    packets
}

fn encode(packet: &Packet, version: ProtocolVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(packet, version, &mut bytes).expect("a packet that can be expressed");
    bytes
}

/// The packet in `bytes`, if the codec takes it.
fn decode(bytes: &[u8], version: ProtocolVersion, sender: Sender) -> Option<Packet> {
    let limits = Limits::default();
    let Ok(FrameStatus::Complete(frame)) = codec::split_frame(bytes, sender, &limits) else {
        return None;
    };
    let packet = codec::decode(&frame, None, version, sender, &limits).ok();
    // The ways that allocate nothing must agree.
    match frame.packet_type() {
        PacketType::Publish => {
            assert_eq!(codec::decode_publish(&frame, version, sender, &limits).is_ok(), packet.is_some());
        }
        PacketType::PubAck | PacketType::PubRec | PacketType::PubRel | PacketType::PubComp => {
            assert_eq!(codec::decode_ack(&frame, version).is_ok(), packet.is_some());
        }
        _ => {}
    }
    packet
}

/// What is written is what was meant, byte by byte as it arrives.
#[test]
fn every_packet_survives_encoding_however_it_is_cut() {
    for version in VERSIONS {
        for (sender, packet) in packets(version) {
            let bytes = encode(&packet, version);
            assert_eq!(bytes.len(), codec::encoded_len(&packet, version), "{packet:?}");
            assert_eq!(decode(&bytes, version, sender).as_ref(), Some(&packet));
            for end in 0..bytes.len() {
                let status = codec::split_frame(&bytes[..end], sender, &Limits::default());
                match status {
                    Ok(FrameStatus::Incomplete { needed }) => assert!(needed == 0 || needed == bytes.len()),
                    other => panic!("cut at {end}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn mutated_packets_never_panic_and_what_is_taken_is_given_back() {
    let count = std::env::var("KENTONGAN_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000_u64);
    let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5EED_u64);
    println!("KENTONGAN_SEED={seed}");
    let mut random = Random(seed);
    let valid: Vec<_> = VERSIONS
        .iter()
        .flat_map(|&version| {
            packets(version).into_iter().map(move |(sender, packet)| (version, sender, encode(&packet, version)))
        })
        .collect();
    let (mut taken, mut refused) = (0_u64, 0_u64);
    for _ in 0..count {
        let (version, sender, original) = &valid[random.below(valid.len())];
        let mut bytes = original.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, &valid[random.below(valid.len())].2, &mut random);
        }
        match decode(&bytes, *version, *sender) {
            Some(packet) => {
                taken += 1;
                // CONNECT says itself which version it is.
                let version = if let Packet::Connect(connect) = &packet { connect.version } else { *version };
                let again = encode(&packet, version);
                assert_eq!(decode(&again, version, *sender).as_ref(), Some(&packet), "{bytes:02x?}");
            }
            None => refused += 1,
        }
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > count / 1000 && refused > count / 10, "the mutations are no trial");
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.next() as u8),
        4 => {
            bytes.remove(at);
        }
        5 => {
            let from = random.below(other.len());
            bytes.splice(at..at, other[from..].iter().copied());
        }
        // Remaining Length as it now is, so that the mutation reaches the fields behind it.
        _ => {
            if bytes.len() > 2 && bytes.len() < 130 {
                bytes[1] = (bytes.len() - 2) as u8;
            }
        }
    }
}
