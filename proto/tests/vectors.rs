//! Packets made by hand from the text of the specifications, both ways.

use bytes::Bytes;
use kentongan_proto::mqtt::codec::{self, DecodeError, EncodeError, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::*;

const LIMITS: Limits = Limits {
    packet_bytes_max: 268_435_460,
    user_properties_max: 10,
    filters_max: 10,
    topic_levels_max: 10,
    dup_on_requests: false,
};

fn decode(bytes: &[u8], version: ProtocolVersion, sender: Sender) -> Packet {
    match codec::split_frame(bytes, sender, &LIMITS) {
        Ok(FrameStatus::Complete(frame)) => {
            assert_eq!(frame.len(), bytes.len());
            codec::decode(&frame, None, version, sender, &LIMITS).expect("a packet")
        }
        other => panic!("{other:?}"),
    }
}

fn both_ways(bytes: &[u8], version: ProtocolVersion, sender: Sender, packet: &Packet) {
    assert_eq!(&decode(bytes, version, sender), packet);
    let mut encoded = Vec::new();
    codec::encode(packet, version, &mut encoded).expect("encoded");
    assert_eq!(encoded, bytes);
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

fn publish(topic: &str, delivery: Delivery, payload: Bytes) -> Publish {
    Publish {
        dup: false,
        delivery,
        retain: false,
        topic: topic.to_owned(),
        properties: PublishProperties::default(),
        payload,
    }
}

/// Table 2.4 of 3.1.1, table 1-1 of 5: the ends of each length of a Variable Byte Integer.
#[test]
fn remaining_length_at_the_ends_of_each_length() {
    for (length, digits) in [
        (4_usize, &[0x04_u8][..]),
        (127, &[0x7F]),
        (128, &[0x80, 0x01]),
        (16_383, &[0xFF, 0x7F]),
        (16_384, &[0x80, 0x80, 0x01]),
        (2_097_151, &[0xFF, 0xFF, 0x7F]),
        (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
        (268_435_455, &[0xFF, 0xFF, 0xFF, 0x7F]),
    ] {
        let packet = Packet::Publish(publish("a", Delivery::AtMostOnce, Bytes::from(vec![b'x'; length - 3])));
        let mut bytes = Vec::new();
        codec::encode(&packet, ProtocolVersion::V3_1_1, &mut bytes).expect("encoded");
        assert_eq!(&bytes[1..=digits.len()], digits);
        assert_eq!(bytes.len(), 1 + digits.len() + length);
        let head = codec::split_frame(&bytes[..=digits.len()], Sender::Client, &LIMITS);
        assert_eq!(head, Ok(FrameStatus::Incomplete { needed: bytes.len() }));
    }
    let too_long = codec::split_frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], Sender::Client, &LIMITS);
    assert_eq!(too_long, Err(DecodeError::VariableByteInteger));
    let longer_than_needed = codec::split_frame(&[0x30, 0x81, 0x00], Sender::Client, &LIMITS);
    assert_eq!(longer_than_needed, Err(DecodeError::VariableByteInteger));
}

/// Figure 1-2 of 5 (1.1 of 3.1.1): the string "A𪛔".
#[test]
fn the_string_of_the_specification() {
    let bytes = [0x30, 0x07, 0x00, 0x05, 0x41, 0xF0, 0xAA, 0x9B, 0x94];
    let packet = Packet::Publish(publish("A\u{2A6D4}", Delivery::AtMostOnce, Bytes::new()));
    both_ways(&bytes, ProtocolVersion::V3_1_1, Sender::Client, &packet);
}

/// Figure 3-6 of 5: the variable header of CONNECT, flags 0xCE, Keep Alive 10, Session Expiry Interval 10.
#[test]
fn the_connect_of_the_specification() {
    let bytes = [
        &[0x10, 0x22][..],
        &[0x00, 0x04, b'M', b'Q', b'T', b'T', 0x05, 0xCE, 0x00, 0x0A, 0x05, 0x11, 0x00, 0x00, 0x00, 0x0A],
        &[0x00, 0x01, b'c', 0x00, 0x00, 0x03, b'w', b'/', b't', 0x00, 0x02, b'b', b'y'],
        &[0x00, 0x01, b'u', 0x00, 0x00],
    ]
    .concat();
    let packet = Packet::Connect(Box::new(Connect {
        version: ProtocolVersion::V5,
        bridge: false,
        clean_start: true,
        keep_alive: 10,
        client_id: "c".to_owned(),
        will: Some(Will {
            topic: "w/t".to_owned(),
            payload: Bytes::from_static(b"by"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: WillProperties::default(),
        }),
        user_name: Some("u".to_owned()),
        password: Some(Bytes::new()),
        properties: ConnectProperties { session_expiry_interval: Some(10), ..ConnectProperties::default() },
    }));
    both_ways(&bytes, ProtocolVersion::V5, Sender::Client, &packet);
}

/// Figure 3-9 of 3.1.1: PUBLISH to a/b with Packet Identifier 10.
#[test]
fn the_publish_of_the_specification() {
    let bytes = [0x32, 0x07, 0x00, 0x03, b'a', b'/', b'b', 0x00, 0x0A];
    let packet = Packet::Publish(publish("a/b", Delivery::AtLeastOnce(id(10)), Bytes::new()));
    both_ways(&bytes, ProtocolVersion::V3_1_1, Sender::Client, &packet);
}

/// Figures 3-20 to 3-23 of 5: SUBSCRIBE to a/b at QoS 1 and c/d at QoS 2.
#[test]
fn the_subscribe_of_the_specification() {
    let bytes = [0x82, 0x0F, 0x00, 0x0A, 0x00, 0x00, 0x03, b'a', b'/', b'b', 0x01, 0x00, 0x03, b'c', b'/', b'd', 0x02];
    let packet = Packet::Subscribe(Subscribe {
        packet_id: id(10),
        filters: vec![
            ("a/b".to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce)),
            ("c/d".to_owned(), SubscriptionOptions::new(QoS::ExactlyOnce)),
        ],
        subscription_identifier: None,
        user_properties: Vec::new(),
    });
    both_ways(&bytes, ProtocolVersion::V5, Sender::Client, &packet);
}

/// The shortest forms: acknowledgements of two bytes, DISCONNECT of none.
#[test]
fn success_is_left_out_where_it_may_be() {
    for version in [ProtocolVersion::V3_1_1, ProtocolVersion::V5] {
        both_ways(&[0x40, 2, 0, 7], version, Sender::Client, &Packet::PubAck(Ack::success(id(7))));
        both_ways(&[0x62, 2, 0, 7], version, Sender::Client, &Packet::PubRel(Ack::success(id(7))));
        let disconnect = Disconnect { reason_code: ReasonCode::Success, properties: DisconnectProperties::default() };
        both_ways(&[0xE0, 0], version, Sender::Client, &Packet::Disconnect(disconnect));
    }
    let refused = Packet::PubAck(Ack::with_reason(id(7), ReasonCode::NotAuthorized));
    both_ways(&[0x40, 3, 0, 7, 0x87], ProtocolVersion::V5, Sender::Server, &refused);
}

/// A 3.x client is told of every failure in its own codes.
#[test]
fn connack_has_the_codes_of_its_version() {
    let answers = [(ProtocolVersion::V3_1_1, &[0x20, 2, 0, 5][..]), (ProtocolVersion::V5, &[0x20, 3, 0, 0x87, 0][..])];
    for (version, bytes) in answers {
        let connack = ConnAck {
            session_present: false,
            reason_code: ReasonCode::NotAuthorized,
            properties: ConnAckProperties::default(),
        };
        both_ways(bytes, version, Sender::Server, &Packet::ConnAck(Box::new(connack)));
    }
}

/// A field that its two bytes of length cannot express is refused, and leaves nothing half written.
#[test]
fn a_field_of_64_kib_cannot_be_written() {
    let long = "x".repeat(65_536);
    let in_a_text = PublishProperties { content_type: Some(long.clone()), ..PublishProperties::default() };
    let in_a_user_property =
        PublishProperties { user_properties: vec![("name".to_owned(), long)], ..PublishProperties::default() };
    let mut out = vec![1, 2, 3];
    for properties in [in_a_text, in_a_user_property] {
        let message = Publish { properties, ..publish("t", Delivery::AtMostOnce, Bytes::new()) };
        let outcome = codec::encode(&Packet::Publish(message), ProtocolVersion::V5, &mut out);
        assert_eq!(outcome, Err(EncodeError::FieldTooLong { bytes: 65_536 }));
    }
    assert_eq!(out, [1, 2, 3]);
}

/// MQTT 3.1, sections 3.6, 3.8 and 3.10: what is sent again carries DUP. Later versions reserve the bit.
#[test]
fn only_mqtt_3_1_sends_requests_again_with_dup() {
    let old = Limits { dup_on_requests: true, ..LIMITS };
    let complete = |limits, first_byte| {
        let bytes = [first_byte, 2, 0, 1];
        let frame = codec::split_frame(&bytes, Sender::Client, limits);
        matches!(frame, Ok(FrameStatus::Complete(frame)) if frame.first_byte == first_byte)
    };
    for first_byte in [0x6A, 0x8A, 0xAA] {
        assert!(complete(&old, first_byte));
        assert!(complete(&old, first_byte & !0x08), "the first time");
        assert!(!complete(&LIMITS, first_byte));
        for flags in [0x0, 0x1, 0x3, 0x8, 0xB, 0xE] {
            assert!(!complete(&old, first_byte & 0xF0 | flags), "{flags:#x} on {first_byte:#x}");
        }
    }
    assert!(!complete(&old, 0x48), "PUBACK is never sent again by itself");
}

/// MQTT 3.1, section 3.2: the byte before the return code is not used.
#[test]
fn session_present_is_unknown_to_mqtt_3_1() {
    let packet = |session_present| {
        let properties = ConnAckProperties::default();
        Packet::ConnAck(Box::new(ConnAck { session_present, reason_code: ReasonCode::Success, properties }))
    };
    let mut encoded = Vec::new();
    codec::encode(&packet(true), ProtocolVersion::V3_1, &mut encoded).expect("encoded");
    assert_eq!(encoded, [0x20, 2, 0, 0]);
    assert_eq!(decode(&[0x20, 2, 0xFF, 0], ProtocolVersion::V3_1, Sender::Server), packet(false));
    both_ways(&[0x20, 2, 1, 0], ProtocolVersion::V3_1_1, Sender::Server, &packet(true));
}

/// MQTT 3.1, section 3.1: what later versions forbid, and it does not. The reserved bit of the flags says nothing, Will QoS and Will Retain
/// are disregarded without a Will, and the Remaining Length takes precedence over the flags of User Name and Password.
#[test]
fn a_connect_of_mqtt_3_1_may_have_flags_that_mean_nothing() {
    let bytes = |name: &[u8], level: u8, flags: u8, rest: &[u8]| {
        let body = [&[0, name.len() as u8], name, &[level, flags, 0, 0], b"\0\x01c", rest].concat();
        [&[0x10, body.len() as u8], &body[..]].concat()
    };
    let outcome = |bytes: &[u8]| match codec::split_frame(bytes, Sender::Client, &LIMITS) {
        Ok(FrameStatus::Complete(frame)) => codec::decode(&frame, None, ProtocolVersion::V3_1, Sender::Client, &LIMITS),
        other => panic!("{other:?}"),
    };
    let will = Will {
        topic: "t".to_owned(),
        payload: Bytes::from_static(b"w"),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    };
    for (flags, rest, will, user_name, password) in [
        (0x01, &b""[..], None, None, None),
        (0x18, b"", None, None, None),
        (0x20, b"", None, None, None),
        (0x39, b"", None, None, None),
        (0x80, b"", None, None, None),
        (0xC0, b"", None, None, None),
        (0xC0, b"\0\x01u", None, Some("u"), None),
        (0xC0, b"\0\x01u\0\x01p", None, Some("u"), Some("p")),
        (0xC5, b"\0\x01t\0\x01w", Some(will.clone()), None, None),
    ] {
        let packet = Packet::Connect(Box::new(Connect {
            version: ProtocolVersion::V3_1,
            bridge: false,
            clean_start: false,
            keep_alive: 0,
            client_id: "c".to_owned(),
            will,
            user_name: user_name.map(str::to_owned),
            password: password.map(|password: &str| Bytes::copy_from_slice(password.as_bytes())),
            properties: ConnectProperties::default(),
        }));
        assert_eq!(outcome(&bytes(b"MQIsdp", 3, flags, rest)), Ok(packet), "{flags:#x}");
        if password.is_none() {
            assert!(outcome(&bytes(b"MQTT", 4, flags, rest)).is_err(), "{flags:#x}");
        }
    }
    // What is half there is not missing, a Will has a QoS that there is, and of a password without a user name 3.1 says that it is not valid.
    for (flags, rest) in
        [(0x80, &b"\0"[..]), (0xC0, b"\0\x01u\0\x02p"), (0x1C, b"\0\x01t\0\x01w"), (0x40, b""), (0x80, b"\0\x01ux")]
    {
        assert!(outcome(&bytes(b"MQIsdp", 3, flags, rest)).is_err(), "{flags:#x}");
    }
}

/// What a session looks at first is found wherever it stands, and nothing else is taken for it.
#[test]
fn single_properties_are_read_in_place() {
    let all = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(7),
        topic_alias: Some(9),
        response_topic: Some("r".to_owned()),
        correlation_data: Some(Bytes::from_static(&[0x23, 0, 1])),
        user_properties: vec![("\u{1}\u{23}".to_owned(), String::new())],
        subscription_identifiers: vec![],
        content_type: Some("c".to_owned()),
    };
    for properties in [PublishProperties { topic_alias: None, ..all.clone() }, all] {
        let message = Publish { properties: properties.clone(), ..publish("t", Delivery::AtMostOnce, Bytes::new()) };
        let mut bytes = Vec::new();
        codec::encode(&Packet::Publish(message), ProtocolVersion::V5, &mut bytes).expect("encoded");
        let Ok(FrameStatus::Complete(frame)) = codec::split_frame(&bytes, Sender::Client, &LIMITS) else {
            panic!("a whole packet");
        };
        let publish = codec::decode_publish(&frame, ProtocolVersion::V5, Sender::Client, &LIMITS).expect("a packet");
        assert_eq!(publish.properties.topic_alias(), properties.topic_alias);
        assert_eq!(publish.properties.message_expiry_interval(), Some(7));
        assert_eq!(publish.properties.payload_format_indicator(), Some(1));
        assert_eq!(publish.properties.to_owned(), properties);
    }
}
