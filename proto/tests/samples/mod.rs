//! Packets to begin with.

use bytes::Bytes;
use kentongan_proto::mqtt::codec::Sender;
use kentongan_proto::mqtt::*;

/// All of them.
pub const VERSIONS: [ProtocolVersion; 3] = [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5];

fn users() -> UserProperties {
    vec![("name".to_owned(), "value".to_owned()), ("name".to_owned(), String::new())]
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

/// Packets of every type, with everything that their version allows.
pub fn packets(version: ProtocolVersion) -> Vec<(Sender, Packet)> {
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
                session_present: version != ProtocolVersion::V3_1,
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
