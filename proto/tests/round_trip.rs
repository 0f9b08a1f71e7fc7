//! Any packet that can be expressed comes back as it was, whatever its fields; filters match as a plain reference does.

mod judge;

use bytes::Bytes;
use judge::{decode, encode, judge};
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, PacketType, Sender};
use kentongan_proto::mqtt::*;
use kentongan_proto::topic::TopicFilter;
use proptest::option::of;
use proptest::prelude::*;
use proptest::{collection::vec, sample::select};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-zA-Z0-9 ]{0,12}",
        // Two, three and four bytes a character, and the mark that must not be stripped.
        vec(select(vec!['é', '中', '\u{2A6D4}', '\u{FEFF}', '\u{1}', '/']), 0..6).prop_map(String::from_iter),
        (0..4_000_usize).prop_map(|length| "x".repeat(length)),
    ]
}

fn topic() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/$ é]{1,20}", "[a-z]{1,3}(/[a-z]{0,3}){0,5}"]
}

fn data() -> impl Strategy<Value = Bytes> {
    prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 65_535..=65_535)].prop_map(Bytes::from)
}

fn users() -> impl Strategy<Value = UserProperties> {
    vec((text(), text()), 0..4)
}

fn id() -> impl Strategy<Value = PacketId> {
    any::<PacketId>()
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn reason(of: PacketType) -> impl Strategy<Value = ReasonCode> {
    select((0..=255).filter_map(ReasonCode::from_byte).filter(|code| code.belongs_to(of)).collect::<Vec<_>>())
}

prop_compose! {
    fn publish_properties(sender: Sender)(
        payload_format_indicator in of(0..=1_u8),
        message_expiry_interval in of(any::<u32>()),
        topic_alias in of(any::<u16>()),
        response_topic in of(topic()),
        correlation_data in of(data()),
        user_properties in users(),
        identifiers in vec(1..=268_435_455_u32, 0..3),
        content_type in of(text()),
    ) -> PublishProperties {
        PublishProperties {
            payload_format_indicator,
            message_expiry_interval,
            topic_alias,
            response_topic,
            correlation_data,
            user_properties,
            // Only a server may send them.
            subscription_identifiers: if sender == Sender::Server { identifiers } else { vec![] },
            content_type,
        }
    }
}

prop_compose! {
    fn publish(v5: bool, sender: Sender)(
        dup in any::<bool>(),
        qos in qos(),
        id in id(),
        retain in any::<bool>(),
        topic in topic(),
        properties in publish_properties(sender),
        payload in data(),
    ) -> Packet {
        let delivery = match qos {
            QoS::AtMostOnce => Delivery::AtMostOnce,
            QoS::AtLeastOnce => Delivery::AtLeastOnce(id),
            QoS::ExactlyOnce => Delivery::ExactlyOnce(id),
        };
        let properties = if v5 { properties } else { PublishProperties::default() };
        Packet::Publish(Publish { dup: dup && qos != QoS::AtMostOnce, delivery, retain, topic, properties, payload })
    }
}

prop_compose! {
    fn will(v5: bool)(
        topic in topic(),
        payload in data(),
        qos in qos(),
        retain in any::<bool>(),
        will_delay_interval in of(any::<u32>()),
        properties in publish_properties(Sender::Client),
    ) -> Will {
        let properties = WillProperties {
            will_delay_interval,
            payload_format_indicator: properties.payload_format_indicator,
            message_expiry_interval: properties.message_expiry_interval,
            content_type: properties.content_type,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            user_properties: properties.user_properties,
        };
        Will { topic, payload, qos, retain, properties: if v5 { properties } else { WillProperties::default() } }
    }
}

prop_compose! {
    fn connect(version: ProtocolVersion)(
        (bridge, clean_start, keep_alive) in any::<(bool, bool, u16)>(),
        client_id in text(),
        will in of(will(version.is_v5())),
        user_name in of(text()),
        password in of(data()),
        (session_expiry_interval, receive_maximum, topic_alias_maximum) in any::<(Option<u32>, Option<PacketId>, Option<u16>)>(),
        maximum_packet_size in of(1..=u32::MAX),
        (request_response_information, request_problem_information) in any::<(Option<bool>, Option<bool>)>(),
        user_properties in users(),
        authentication in of((text(), of(data()))),
    ) -> Packet {
        let v5 = version.is_v5();
        let (authentication_method, authentication_data) =
            authentication.map_or((None, None), |(method, data)| (Some(method), data));
        let properties = ConnectProperties {
            session_expiry_interval,
            receive_maximum,
            maximum_packet_size,
            topic_alias_maximum,
            request_response_information,
            request_problem_information,
            user_properties,
            authentication_method,
            authentication_data,
        };
        Packet::Connect(Box::new(Connect {
            version,
            bridge: bridge && !v5,
            clean_start,
            keep_alive,
            client_id,
            will,
            password: password.filter(|_| v5 || user_name.is_some()),
            user_name,
            properties: if v5 { properties } else { ConnectProperties::default() },
        }))
    }
}

prop_compose! {
    fn connack(version: ProtocolVersion)(
        session_present in any::<bool>(),
        reason_code in reason(PacketType::ConnAck),
        (session_expiry_interval, receive_maximum, topic_alias_maximum, server_keep_alive)
            in any::<(Option<u32>, Option<PacketId>, Option<u16>, Option<u16>)>(),
        maximum_qos in of(0..=1_u8),
        maximum_packet_size in of(1..=u32::MAX),
        flags in any::<[Option<bool>; 4]>(),
        texts in proptest::array::uniform5(of(text())),
        authentication_data in of(data()),
        user_properties in users(),
    ) -> Packet {
        let [assigned_client_identifier, reason_string, response_information, server_reference, authentication_method]
            = texts;
        let properties = ConnAckProperties {
            session_expiry_interval,
            receive_maximum,
            maximum_qos,
            retain_available: flags[0],
            maximum_packet_size,
            assigned_client_identifier,
            topic_alias_maximum,
            reason_string,
            user_properties,
            wildcard_subscription_available: flags[1],
            subscription_identifiers_available: flags[2],
            shared_subscription_available: flags[3],
            server_keep_alive,
            response_information,
            server_reference,
            authentication_data: authentication_data.filter(|_| authentication_method.is_some()),
            authentication_method,
        };
        let session_present = session_present && version != ProtocolVersion::V3_1;
        if version.is_v5() {
            return Packet::ConnAck(Box::new(ConnAck { session_present, reason_code, properties }));
        }
        // Of the codes of 3.1.1, those that say the same in MQTT 5.
        let reason_code = match codec::v3_connack_code(reason_code) {
            Some(3) | None => ReasonCode::ServerUnavailable,
            Some(5) => ReasonCode::NotAuthorized,
            Some(_) => reason_code,
        };
        Packet::ConnAck(Box::new(ConnAck { session_present, reason_code, properties: ConnAckProperties::default() }))
    }
}

prop_compose! {
    fn ack(v5: bool, of_type: PacketType)(
        packet_id in id(),
        reason_code in reason(of_type),
        reason_string in of(text()),
        user_properties in users(),
    ) -> Packet {
        let ack = if v5 {
            Ack { packet_id, reason_code, properties: AckProperties { reason_string, user_properties } }
        } else {
            Ack::success(packet_id)
        };
        match of_type {
            PacketType::PubAck => Packet::PubAck(ack),
            PacketType::PubRec => Packet::PubRec(ack),
            PacketType::PubRel => Packet::PubRel(ack),
            _ => Packet::PubComp(ack),
        }
    }
}

prop_compose! {
    fn subscribe(v5: bool)(
        packet_id in id(),
        filters in vec((text(), qos(), any::<(bool, bool)>(), 0..3_u8), 1..4),
        subscription_identifier in of(1..=268_435_455_u32),
        user_properties in users(),
    ) -> Packet {
        let handling = [RetainHandling::Always, RetainHandling::IfNew, RetainHandling::Never];
        let options = |qos, no_local, retain_as_published, at: u8| SubscriptionOptions {
            qos,
            no_local,
            retain_as_published,
            retain_handling: handling[usize::from(at)],
        };
        let filters = filters.into_iter().map(|(filter, qos, (no_local, as_published), at)| {
            (filter, if v5 { options(qos, no_local, as_published, at) } else { SubscriptionOptions::new(qos) })
        });
        Packet::Subscribe(Subscribe {
            packet_id,
            filters: filters.collect(),
            subscription_identifier: subscription_identifier.filter(|_| v5),
            user_properties: if v5 { user_properties } else { vec![] },
        })
    }
}

prop_compose! {
    fn unsubscribe(v5: bool)(packet_id in id(), filters in vec(text(), 1..4), user_properties in users()) -> Packet {
        let user_properties = if v5 { user_properties } else { vec![] };
        Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties })
    }
}

prop_compose! {
    fn suback(v5: bool, of_type: PacketType)(
        packet_id in id(),
        codes in vec(reason(of_type), 1..5),
        reason_string in of(text()),
        user_properties in users(),
    ) -> Packet {
        let properties = if v5 { AckProperties { reason_string, user_properties } } else { AckProperties::default() };
        let failure = |code: ReasonCode| if code.is_error() { ReasonCode::UnspecifiedError } else { code };
        let reason_codes = match of_type {
            _ if v5 => codes,
            PacketType::SubAck => codes.into_iter().map(failure).collect(),
            _ => vec![],
        };
        let answer = SubAck { packet_id, reason_codes, properties };
        if of_type == PacketType::SubAck { Packet::SubAck(answer) } else { Packet::UnsubAck(answer) }
    }
}

prop_compose! {
    fn disconnect(v5: bool, sender: Sender)(
        reason_code in reason(PacketType::Disconnect),
        session_expiry_interval in of(any::<u32>()),
        reason_string in of(text()),
        server_reference in of(text()),
        user_properties in users(),
    ) -> Packet {
        if !v5 {
            let properties = DisconnectProperties::default();
            return Packet::Disconnect(Disconnect { reason_code: ReasonCode::Success, properties });
        }
        let from_client = sender == Sender::Client;
        let properties = DisconnectProperties {
            session_expiry_interval: session_expiry_interval.filter(|_| from_client),
            reason_string,
            user_properties,
            server_reference: server_reference.filter(|_| !from_client),
        };
        Packet::Disconnect(Disconnect { reason_code, properties })
    }
}

prop_compose! {
    fn auth()(
        reason_code in reason(PacketType::Auth),
        method in text(),
        authentication_data in of(data()),
        reason_string in of(text()),
        user_properties in users(),
    ) -> Packet {
        let authentication_method = Some(method);
        let properties = AuthProperties { authentication_method, authentication_data, reason_string, user_properties };
        Packet::Auth(Auth { reason_code, properties })
    }
}

fn packet() -> impl Strategy<Value = (ProtocolVersion, Sender, Packet)> {
    let versions = select(vec![ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5]);
    (versions, select(vec![Sender::Client, Sender::Server]), 0..13).prop_flat_map(|(version, sender, kind)| {
        let v5 = version.is_v5();
        use PacketType::{PubAck, PubComp, PubRec, PubRel, SubAck, UnsubAck};
        let (sender, packet) = match (kind, sender) {
            (0, _) => (Sender::Client, connect(version).boxed()),
            (1, _) => (Sender::Server, connack(version).boxed()),
            (2, _) => (Sender::Client, subscribe(v5).boxed()),
            (3, _) => (Sender::Server, suback(v5, SubAck).boxed()),
            (4, _) => (Sender::Client, unsubscribe(v5).boxed()),
            (5, _) => (Sender::Server, suback(v5, UnsubAck).boxed()),
            (6, sender) => (sender, ack(v5, PubAck).boxed()),
            (7, sender) => (sender, ack(v5, PubRec).boxed()),
            (8, sender) => (sender, ack(v5, PubRel).boxed()),
            (9, sender) => (sender, ack(v5, PubComp).boxed()),
            (10, sender) => (sender, disconnect(v5, sender).boxed()),
            (11, sender) if v5 => (sender, auth().boxed()),
            (_, sender) => (sender, publish(v5, sender).boxed()),
        };
        packet.prop_map(move |packet| (version, sender, packet))
    })
}

/// Section 4.7 read literally: what is left of a topic against what is left of a filter.
fn matches_by_the_text(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) => true,
        ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => matches_by_the_text(filter, topic),
        ([level, filter @ ..], [name, topic @ ..]) => level == name && matches_by_the_text(filter, topic),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_is_read_back((version, sender, packet) in packet()) {
        let bytes = encode(&packet, version);
        prop_assert_eq!(bytes.len(), codec::encoded_len(&packet, version));
        let limits = Limits { packet_bytes_max: u32::MAX, ..Limits::default() };
        prop_assert_eq!(decode(&bytes, version, sender), Some(packet));
        prop_assert_eq!(judge(&bytes, version, sender), 1);
        for cut in [0, 1, 2, bytes.len() / 2, bytes.len() - 1] {
            let status = codec::split_frame(&bytes[..cut.min(bytes.len() - 1)], sender, &limits);
            let incomplete =
                matches!(status, Ok(FrameStatus::Incomplete { needed }) if needed == 0 || needed == bytes.len());
            prop_assert!(incomplete, "{:?}", status);
        }
    }

    #[test]
    fn a_filter_matches_as_the_text_of_the_specification_says(
        filter in vec(select(vec!["a", "b", "", "+", "#", "$c"]), 1..6),
        topic in vec(select(vec!["a", "b", "", "$c"]), 1..6),
    ) {
        let hash = filter.iter().position(|level| *level == "#");
        let parsed = TopicFilter::parse(&filter.join("/"));
        let is_empty = filter == [""];
        prop_assert_eq!(parsed.is_ok(), !is_empty && hash.is_none_or(|at| at + 1 == filter.len()));
        if let (Ok(parsed), true) = (parsed, topic != [""]) {
            let hidden = topic[0].starts_with('$') && ["+", "#"].contains(&filter[0]);
            let expected = !hidden && matches_by_the_text(&filter, &topic);
            prop_assert_eq!(parsed.matches(&topic.join("/")), expected, "{:?} {:?}", filter, topic);
        }
    }
}
