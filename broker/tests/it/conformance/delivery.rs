//! PUBLISH to a client: windows, limits, order, resumption.

use std::num::NonZeroU16;

use kentongan_proto::mqtt::*;

use super::BOTH;
use crate::support::*;

fn persistent(version: ProtocolVersion, clean_start: bool) -> Connect {
    let mut asked = connect(version, "s");
    asked.clean_start = clean_start;
    asked.properties.session_expiry_interval = version.is_v5().then_some(100);
    asked
}

/// Conformance: [MQTT5-3.3.4-9], [MQTT5-3.3.4-10], [MQTT5-4.9.0-2], [MQTT5-4.9.0-3]
#[test]
fn no_more_than_the_clients_receive_maximum_is_in_flight_and_nothing_else_waits_for_it() {
    let broker = Broker::start();
    for expiry in [None, Some(100)] {
        let mut asked = connect(ProtocolVersion::V5, "s");
        asked.properties.receive_maximum = NonZeroU16::new(2);
        asked.properties.session_expiry_interval = expiry;
        let mut client = Client::accepted(&broker, asked);
        client.subscribe("t", QoS::AtLeastOnce);
        let mut publisher = Client::v5(&broker, "p");
        for number in 1..=5 {
            publisher.publish_acknowledged("t", &format!("{number}"), qos1(number));
        }
        let first = client.expect_publish();
        let second = client.expect_publish();
        client.expect_nothing();
        publisher.publish("t", "qos 0", QOS0);
        assert_eq!(client.expect_publish().payload, "qos 0", "it needs no quota");
        assert_eq!(client.subscribe("u", QoS::AtMostOnce), ReasonCode::Success);
        client.send(&Packet::PubAck(Ack::success(second.delivery.packet_id().expect("QoS 1"))));
        assert_eq!(client.expect_publish().payload, "3");
        client.expect_nothing();
        client.send(&Packet::PubAck(Ack::success(first.delivery.packet_id().expect("QoS 1"))));
        assert_eq!(client.expect_publish().payload, "4");
    }
}

/// Conformance: [MQTT5-3.1.2-24], [MQTT5-3.1.2-25]
#[test]
fn a_message_too_large_for_the_client_is_as_good_as_delivered() {
    let broker = Broker::start();
    for expiry in [None, Some(100)] {
        let mut asked = connect(ProtocolVersion::V5, "s");
        asked.properties.maximum_packet_size = Some(100);
        asked.properties.receive_maximum = NonZeroU16::new(1);
        asked.properties.session_expiry_interval = expiry;
        let mut client = Client::accepted(&broker, asked);
        client.subscribe("t", QoS::ExactlyOnce);
        let mut publisher = Client::v5(&broker, "p");
        for delivery in [QOS0, qos1(1), qos2(2)] {
            publisher.publish_acknowledged("t", &"x".repeat(200), delivery);
            publisher.publish_acknowledged("t", "fits", delivery);
            assert_eq!(client.take_publish().payload, "fits");
        }
        client.expect_nothing();
    }
}

/// Conformance: [MQTT5-3.1.2-24]
#[test]
fn whoever_does_not_take_what_must_be_answered_is_ended_and_not_left_to_wait() {
    let broker = Broker::start();
    let asked = |largest| {
        let mut asked = connect(ProtocolVersion::V5, "c");
        asked.properties.maximum_packet_size = Some(largest);
        asked
    };
    let (_, connack) = Client::open(&broker, asked(1000));
    let length = codec::encoded_len(&Packet::ConnAck(Box::new(connack)), ProtocolVersion::V5);
    let length = u32::try_from(length).expect("a short packet");
    for largest in 1..length {
        let mut client = Client::raw(&broker, ProtocolVersion::V5);
        client.send(&Packet::Connect(Box::new(asked(largest))));
        client.expect_closed();
    }
    let mut refused = asked(4);
    refused.properties.authentication_method = Some("none such".to_owned());
    let mut client = Client::raw(&broker, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(refused)));
    client.expect_closed();
    // Each is counted.
    broker.wait_for_metric("kentongan_connects_refused_total", |count| count == f64::from(length));

    // Five bytes, and one for each filter.
    let filters: Vec<String> = (5..=length).map(|number| format!("t/{number}")).collect();
    let options = SubscriptionOptions::new(QoS::AtMostOnce);
    let subscribe = |filters: &[String]| {
        let filters = filters.iter().map(|filter| (filter.clone(), options)).collect();
        Packet::Subscribe(Subscribe {
            packet_id: id(7),
            filters,
            subscription_identifier: None,
            user_properties: Vec::new(),
        })
    };
    let unsubscribe =
        Packet::Unsubscribe(Unsubscribe { packet_id: id(7), filters: filters.clone(), user_properties: Vec::new() });
    for (too_large, expiry) in [(subscribe(&filters), None), (unsubscribe, None), (subscribe(&filters), Some(100))] {
        let mut asked = asked(length);
        asked.properties.session_expiry_interval = expiry;
        let mut client = Client::accepted(&broker, asked);
        client.send(&subscribe(&filters[1..]));
        assert!(matches!(client.receive(), Packet::SubAck(_)), "it fits");
        client.send(&too_large);
        client.expect_disconnect(ReasonCode::PacketTooLarge);
    }
}

/// Conformance: [MQTT5-3.1.2-24]
#[test]
fn a_connect_whose_answer_is_too_large_leaves_the_client_of_that_name_and_its_session_alone() {
    let broker = Broker::start();
    let mut publisher = Client::v5(&broker, "p");
    publisher.subscribe("will", QoS::AtMostOnce);
    for expiry in [None, Some(100)] {
        let asked = |clean_start| {
            let mut asked = connect(ProtocolVersion::V5, "s");
            asked.clean_start = clean_start;
            asked.properties.session_expiry_interval = expiry;
            asked
        };
        let refused = |clean_start| {
            let mut asked = asked(clean_start);
            asked.properties.maximum_packet_size = Some(5);
            let mut client = Client::raw(&broker, ProtocolVersion::V5);
            client.send(&Packet::Connect(Box::new(asked)));
            client.expect_closed();
        };
        let (topic, payload, properties) = ("will".to_owned(), "gone".into(), WillProperties::default());
        let will = Will { topic, payload, qos: QoS::AtMostOnce, retain: false, properties };
        let mut client = Client::accepted(&broker, Connect { will: Some(will), ..asked(true) });
        client.subscribe("t", QoS::AtLeastOnce);
        for clean_start in [true, false] {
            refused(clean_start);
            client.expect_nothing();
        }
        publisher.publish_acknowledged("t", "to who was there first", qos1(1));
        assert_eq!(client.take_publish().payload, "to who was there first");
        publisher.expect_nothing();
        client.disconnect();
        if expiry.is_none() {
            continue;
        }
        publisher.publish_acknowledged("t", "queued", qos1(2));
        [true, false].into_iter().for_each(refused);
        let (mut client, connack) = Client::open(&broker, asked(false));
        assert!(connack.session_present);
        let publish = client.expect_publish();
        assert_eq!(publish.payload, "queued");
        assert!(!publish.dup, "it was never sent before");
    }
}

/// Conformance: [MQTT5-3.1.2-26], [MQTT5-3.1.2-27], [MQTT5-3.3.2-11]
#[test]
fn topic_aliases_towards_the_client_stay_within_its_maximum() {
    let broker = Broker::start();
    for maximum in [None, Some(0), Some(1)] {
        let mut asked = connect(ProtocolVersion::V5, "s");
        asked.properties.topic_alias_maximum = maximum;
        let mut client = Client::accepted(&broker, asked);
        client.subscribe("t/+", QoS::AtMostOnce);
        let mut publisher = Client::v5(&broker, "p");
        let mut seen = Vec::new();
        for topic in ["t/a", "t/b", "t/a", "t/b"] {
            publisher.publish(topic, topic, QOS0);
            let got = client.expect_publish();
            seen.push((got.topic, got.properties.topic_alias));
        }
        let plain = |topic: &str| (topic.to_owned(), None);
        let expected = match maximum {
            Some(1) => vec![("t/a".to_owned(), Some(1)), plain("t/b"), (String::new(), Some(1)), plain("t/b")],
            _ => ["t/a", "t/b", "t/a", "t/b"].map(plain).to_vec(),
        };
        assert_eq!(seen, expected);
    }
}

/// Conformance: [MQTT5-3.1.2-24], [MQTT5-3.1.2-25]
#[test]
fn a_topic_alias_makes_no_packet_larger_than_the_client_takes() {
    const PAYLOAD_BYTES: usize = 100;
    let broker = Broker::start();
    let mut publisher = Client::v5(&broker, "p");
    let length = |message: &Publish| codec::encoded_len(&Packet::Publish(message.clone()), ProtocolVersion::V5);
    for delivery in [QOS0, qos1(1)] {
        for expiry in [None, Some(100)] {
            for room in 0..=5 {
                let topics = ["t/of/some/length", "t"];
                let whole = |topic: &str| "x".repeat(PAYLOAD_BYTES - topic.len());
                let plain = length(&publish("t", &whole("t"), delivery));
                let mut asked = connect(ProtocolVersion::V5, "s");
                asked.clean_start = true;
                asked.properties.maximum_packet_size = Some((plain + room) as u32);
                asked.properties.topic_alias_maximum = Some(5);
                asked.properties.session_expiry_interval = expiry;
                let mut client = Client::accepted(&broker, asked);
                client.subscribe("t/#", QoS::AtLeastOnce);
                let mut known = [const { String::new() }; 5];
                // An alias that is known may be longer than its topic, and one that is not makes a packet longer.
                for is_set in [false, true] {
                    for topic in topics {
                        let payloads = [whole(topic), whole(topic), "x".repeat(PAYLOAD_BYTES / 2)];
                        for payload in &payloads[..if is_set { 2 } else { 3 }] {
                            publisher.publish_acknowledged(topic, payload, delivery);
                            let got = client.take_publish();
                            assert!(length(&got) <= plain + room, "{room} {got:?}");
                            assert_eq!(got.payload, *payload);
                            let alias = got.properties.topic_alias.map(|alias| usize::from(alias) - 1);
                            if let (Some(alias), false) = (alias, got.topic.is_empty()) {
                                known[alias].clone_from(&got.topic);
                            }
                            let meant =
                                if got.topic.is_empty() { &known[alias.expect("an alias")] } else { &got.topic };
                            assert_eq!(meant, topic);
                        }
                    }
                }
                assert_eq!(known[..2].concat().len(), topics.concat().len(), "both were set in the end");
                client.expect_nothing();
                client.disconnect();
            }
        }
    }
}

/// Conformance: [MQTT5-4.3.2-3], [MQTT5-4.3.3-3], [MQTT5-4.3.3-4], [MQTT5-4.3.3-5], [MQTT5-4.3.3-6],
/// [MQTT5-4.4.0-1], [MQTT5-3.3.1-1], [MQTT311-3.3.1-1], [MQTT311-4.3.3-1], [MQTT311-4.4.0-1], [MQTT311-4.6.0-1],
/// [MQTT311-4.6.0-4], [MQTT5-4.3.3-7]
#[test]
fn what_is_unacknowledged_comes_again_on_resume_in_its_order_and_at_no_other_time() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, persistent(version, version.is_v5()));
        client.subscribe("t", QoS::ExactlyOnce);
        let mut publisher = Client::v5(&broker, "p");
        for (payload, delivery) in [("one", qos1(1)), ("two", qos2(2)), ("three", qos2(3)), ("four", qos2(4))] {
            let mut message = publish("t", payload, delivery);
            message.properties.message_expiry_interval = Some(3);
            publisher.send(&Packet::Publish(message));
            publisher.complete(delivery);
        }
        let ids: Vec<_> =
            (0..4).map(|_| client.expect_publish().delivery.packet_id().expect("an identifier")).collect();
        for acknowledged in [ids[3], ids[2]] {
            client.send(&Packet::PubRec(Ack::success(acknowledged)));
            assert!(matches!(client.receive(), Packet::PubRel(ack) if ack.packet_id == acknowledged));
        }
        // Their time is over, but their delivery began.
        std::thread::sleep(std::time::Duration::from_millis(3500));
        client.expect_nothing();
        drop(client);
        let mut client = Client::accepted(&broker, persistent(version, false));
        for (expected, &packet_id) in ["one", "two"].iter().zip(&ids) {
            let again = client.expect_publish();
            assert_eq!(
                (again.dup, again.delivery.packet_id(), &again.payload[..]),
                (true, Some(packet_id), expected.as_bytes())
            );
        }
        for &released in &ids[2..] {
            assert!(matches!(client.receive(), Packet::PubRel(ack) if ack.packet_id == released));
        }
        client.expect_nothing();
        drop(Client::accepted(&broker, persistent(version, true)));
    }
}

/// Conformance: [MQTT5-4.4.0-2]
#[test]
fn what_the_client_refused_is_not_sent_again() {
    let broker = Broker::start();
    let mut client = Client::accepted(&broker, persistent(ProtocolVersion::V5, true));
    client.subscribe("t", QoS::ExactlyOnce);
    let mut publisher = Client::v5(&broker, "p");
    publisher.publish_acknowledged("t", "one", qos1(1));
    publisher.publish_acknowledged("t", "two", qos2(2));
    let one = client.expect_publish().delivery.packet_id().expect("QoS 1");
    let two = client.expect_publish().delivery.packet_id().expect("QoS 2");
    client.send(&Packet::PubAck(Ack::with_reason(one, ReasonCode::QuotaExceeded)));
    client.send(&Packet::PubRec(Ack::with_reason(two, ReasonCode::QuotaExceeded)));
    client.expect_nothing();
    drop(client);
    Client::accepted(&broker, persistent(ProtocolVersion::V5, false)).expect_nothing();
}

/// Conformance: [MQTT5-4.6.0-5], [MQTT5-4.6.0-6], [MQTT311-4.6.0-5], [MQTT311-4.6.0-6]
#[test]
fn messages_of_a_topic_arrive_in_the_order_of_their_publisher() {
    let broker = Broker::start();
    let mut readers: Vec<_> =
        BOTH.iter().map(|&version| Client::accepted(&broker, connect(version, &format!("{version:?}")))).collect();
    readers.push(Client::accepted(&broker, persistent(ProtocolVersion::V5, true)));
    for reader in &mut readers {
        reader.subscribe("t/#", QoS::ExactlyOnce);
    }
    let mut publisher = Client::v5(&broker, "p");
    for number in 1..=300 {
        publisher.publish("t/x", &format!("{number}"), qos1(number));
    }
    for reader in &mut readers {
        for number in 1..=300 {
            assert_eq!(reader.take_publish().payload, format!("{number}"));
        }
    }
}

/// Conformance: [MQTT311-4.8.0-2]
#[test]
fn a_connection_that_breaks_disturbs_no_other() {
    let broker = Broker::start();
    let mut steady = Client::v311(&broker, "steady");
    steady.subscribe("t", QoS::AtMostOnce);
    for _ in 0..20 {
        let mut broken = Client::v5(&broker, "broken");
        broken.send_bytes(&[0x30, 0xFF]);
        drop(broken);
    }
    steady.publish("t", "x", QOS0);
    assert_eq!(steady.expect_publish().payload, "x");
}
