//! SUBSCRIBE, UNSUBSCRIBE, and which topics a filter matches.

use kentongan_proto::mqtt::*;

use super::BOTH;
use crate::support::*;

fn subscribe(filters: &[(&str, QoS)], number: u16) -> Packet {
    Packet::Subscribe(Subscribe {
        packet_id: id(number),
        filters: filters.iter().map(|&(filter, qos)| (filter.to_owned(), SubscriptionOptions::new(qos))).collect(),
        subscription_identifier: None,
        user_properties: Vec::new(),
    })
}

/// Conformance: [MQTT5-3.8.4-1], [MQTT5-3.8.4-2], [MQTT5-3.8.4-5], [MQTT5-3.8.4-6], [MQTT5-3.8.4-7], [MQTT5-3.9.3-1],
/// [MQTT5-3.9.3-2], [MQTT5-2.2.1-6], [MQTT311-2.3.1-7], [MQTT311-3.8.4-1], [MQTT311-3.8.4-2], [MQTT311-3.8.4-4],
/// [MQTT311-3.8.4-5], [MQTT311-3.9.3-1], [MQTT311-3.9.3-2], [MQTT5-4.7.1-1], [MQTT5-4.7.1-2], [MQTT311-4.7.1-2],
/// [MQTT311-4.7.1-3]
#[test]
fn suback_has_one_code_for_each_filter_in_their_order() {
    let broker = Broker::start();
    let filters = [
        ("a", QoS::ExactlyOnce),
        ("b#", QoS::AtMostOnce),
        ("c/+", QoS::AtLeastOnce),
        ("#/d", QoS::AtMostOnce),
        ("e+", QoS::AtMostOnce),
        ("+/f/#", QoS::AtMostOnce),
    ];
    for version in BOTH {
        for persistent in [false, true] {
            let mut asked = connect(version, "a");
            asked.clean_start = !persistent;
            asked.properties.session_expiry_interval = (version.is_v5() && persistent).then_some(100);
            let mut client = Client::accepted(&broker, asked);
            client.send(&subscribe(&filters, 77));
            let Packet::SubAck(suback) = client.receive() else {
                panic!("SUBACK expected");
            };
            let failure = if version.is_v5() { ReasonCode::TopicFilterInvalid } else { ReasonCode::UnspecifiedError };
            let granted =
                [ReasonCode::GrantedQos2, failure, ReasonCode::GrantedQos1, failure, failure, ReasonCode::Success];
            assert_eq!((suback.packet_id, suback.reason_codes), (id(77), granted.to_vec()));
            client.disconnect();
        }
    }
}

/// Conformance: [MQTT5-3.10.4-1], [MQTT5-3.10.4-2], [MQTT5-3.10.4-4], [MQTT5-3.10.4-5], [MQTT5-3.10.4-6],
/// [MQTT5-3.11.3-1], [MQTT5-3.11.3-2], [MQTT311-3.10.4-1], [MQTT311-3.10.4-2], [MQTT311-3.10.4-4],
/// [MQTT311-3.10.4-5], [MQTT311-3.10.4-6]
#[test]
fn unsubscribe_deletes_what_is_the_same_to_the_letter_and_is_always_answered() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        client.send(&subscribe(&[("t/+", QoS::AtMostOnce), ("t/a", QoS::AtMostOnce), ("u", QoS::AtMostOnce)], 1));
        client.receive();
        client.send(&Packet::Unsubscribe(Unsubscribe {
            packet_id: id(78),
            filters: ["t/#", "t/+", "T/a", "u"].map(str::to_owned).to_vec(),
            user_properties: Vec::new(),
        }));
        let Packet::UnsubAck(unsuback) = client.receive() else {
            panic!("UNSUBACK expected");
        };
        assert_eq!(unsuback.packet_id, id(78));
        if version.is_v5() {
            let (none, done) = (ReasonCode::NoSubscriptionExisted, ReasonCode::Success);
            assert_eq!(unsuback.reason_codes, [none, done, none, done]);
        }
        let mut publisher = Client::v5(&broker, "p");
        for topic in ["t/b", "u", "t/a"] {
            publisher.publish_acknowledged(topic, topic, qos1(1));
        }
        assert_eq!(client.expect_publish().topic, "t/a");
        client.expect_nothing();
    }
}

/// Conformance: [MQTT5-3.10.4-3], [MQTT311-3.10.4-3]
#[test]
fn what_was_begun_is_finished_after_unsubscribe() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        client.subscribe("t", QoS::ExactlyOnce);
        Client::v5(&broker, "p").publish_acknowledged("t", "x", qos2(1));
        let begun = client.expect_publish().delivery.packet_id().expect("QoS 2");
        client.unsubscribe("t");
        client.send(&Packet::PubRec(Ack::success(begun)));
        assert!(matches!(client.receive(), Packet::PubRel(ack) if ack.packet_id == begun));
    }
}

/// Conformance: [MQTT5-3.3.2-3], [MQTT311-3.3.2-3], [MQTT5-4.7.2-1], [MQTT311-4.7.2-1], [MQTT5-4.7.3-4],
/// [MQTT311-4.7.3-4]
///
/// Abuse: [sys-topic]
#[test]
fn a_message_reaches_exactly_the_filters_that_match_its_topic() {
    let broker = Broker::start();
    let cases: [(&str, &[&str]); 8] = [
        ("sport/#", &["sport", "sport/", "sport/a", "sport/a/b"]),
        ("sport/+", &["sport/a", "sport/"]),
        ("+/+", &["sport/a", "/a", "sport/"]),
        ("#", &["sport", "sport/a", "sport/a/b", "sport/", "/a", "Sport", "\u{e9}", "e\u{301}"]),
        ("Sport", &["Sport"]),
        ("\u{e9}", &["\u{e9}"]),
        ("$x/#", &["$x/y"]),
        ("$x/+", &["$x/y"]),
    ];
    let topics = ["sport", "sport/a", "sport/a/b", "sport/", "/a", "Sport", "\u{e9}", "e\u{301}", "$x/y"];
    for (filter, expected) in cases {
        let mut client = Client::v311(&broker, "a");
        client.subscribe(filter, QoS::AtMostOnce);
        let mut publisher = Client::v5(&broker, "p");
        for topic in topics {
            publisher.publish_acknowledged(topic, topic, qos1(1));
        }
        let mut got: Vec<_> = (0..expected.len()).map(|_| client.expect_publish().topic).collect();
        client.expect_nothing();
        let mut wanted = expected.to_vec();
        got.sort();
        wanted.sort_unstable();
        assert_eq!(got, wanted, "{filter}");
    }
}

/// Conformance: [MQTT5-4.7.3-3], [MQTT311-4.7.3-3]
#[test]
fn a_topic_of_65535_bytes_goes_through() {
    let broker = Broker::start();
    let topic = "a".repeat(65_535);
    let mut client = Client::v5(&broker, "a");
    client.subscribe(&topic, QoS::AtMostOnce);
    client.publish(&topic, "x", QOS0);
    assert_eq!(client.expect_publish().topic, topic);
}

/// Conformance: [MQTT5-3.8.4-8], [MQTT311-3.8.4-6], [MQTT5-4.3.1-1], [MQTT311-4.3.1-1], [MQTT5-4.3.2-2],
/// [MQTT5-4.3.3-2], [MQTT5-2.2.1-4], [MQTT311-2.3.1-4], [MQTT5-4.3.2-1], [MQTT5-4.3.3-1], [MQTT311-4.3.2-1]
#[test]
fn the_delivered_qos_is_the_lower_of_published_and_granted() {
    let broker = Broker::start();
    for version in BOTH {
        for granted in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for persistent in [false, true] {
                let mut asked = connect(version, "a");
                asked.clean_start = !persistent;
                asked.properties.session_expiry_interval = (version.is_v5() && persistent).then_some(100);
                let mut client = Client::accepted(&broker, asked);
                client.subscribe("t", granted);
                let mut publisher = Client::v5(&broker, "p");
                let mut used = Vec::new();
                for delivery in [QOS0, qos1(1), qos2(2)] {
                    publisher.publish_acknowledged("t", "x", delivery);
                    let got = client.expect_publish();
                    assert_eq!((got.delivery.qos(), got.dup), (granted.min(delivery.qos()), false));
                    used.extend(got.delivery.packet_id());
                }
                let mut distinct = used.clone();
                distinct.dedup();
                assert_eq!(used, distinct, "unacknowledged, so each has an identifier of its own");
                client.unsubscribe("t");
            }
        }
    }
}

/// Conformance: [MQTT5-3.3.4-2], [MQTT5-3.3.4-3], [MQTT5-3.3.4-4], [MQTT311-3.3.5-1]
#[test]
fn overlapping_subscriptions_give_one_copy_at_the_highest_qos_with_all_identifiers() {
    let broker = Broker::start();
    for persistent in [false, true] {
        let mut asked = connect(ProtocolVersion::V5, "a");
        asked.properties.session_expiry_interval = persistent.then_some(100);
        let mut client = Client::accepted(&broker, asked);
        for (filter, qos, identifier) in
            [("t/#", QoS::AtMostOnce, Some(1)), ("t/+", QoS::ExactlyOnce, Some(2)), ("t/a", QoS::AtLeastOnce, None)]
        {
            client.subscribe_with(filter, SubscriptionOptions::new(qos), identifier);
        }
        Client::v5(&broker, "p").publish_acknowledged("t/a", "x", qos2(1));
        let got = client.expect_publish();
        assert_eq!(got.delivery.qos(), QoS::ExactlyOnce);
        let mut identifiers = got.properties.subscription_identifiers;
        identifiers.sort_unstable();
        assert_eq!(identifiers, [1, 2]);
        client.expect_nothing();
    }
}

/// Conformance: [MQTT5-3.3.4-5]
#[test]
fn with_one_copy_each_every_copy_has_its_own_identifier() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__OVERLAPPING", "one-each")]);
    let mut client = Client::v5(&broker, "a");
    for (filter, identifier) in [("t/#", Some(1)), ("t/+", Some(2)), ("t/a", None)] {
        client.subscribe_with(filter, SubscriptionOptions::new(QoS::AtMostOnce), identifier);
    }
    client.publish("t/a", "x", QOS0);
    let mut identifiers: Vec<_> = (0..3).map(|_| client.expect_publish().properties.subscription_identifiers).collect();
    identifiers.sort();
    assert_eq!(identifiers, [vec![], vec![1], vec![2]]);
    client.expect_nothing();
}

/// Conformance: [MQTT5-3.8.3-3]
#[test]
fn no_local_keeps_a_clients_own_messages_away_from_it_and_only_those() {
    let broker = Broker::start();
    for persistent in [false, true] {
        let mut asked = connect(ProtocolVersion::V5, "a");
        asked.properties.session_expiry_interval = persistent.then_some(100);
        let mut client = Client::accepted(&broker, asked);
        let options = SubscriptionOptions { no_local: true, ..SubscriptionOptions::new(QoS::AtLeastOnce) };
        client.subscribe_with("t", options, None);
        client.publish_acknowledged("t", "own", qos1(1));
        client.publish("t", "own", QOS0);
        Client::v5(&broker, "b").publish_acknowledged("t", "other", qos1(1));
        assert_eq!(client.take_publish().payload, "other");
        client.expect_nothing();
    }
}

fn retain(broker: &Broker, topic: &str, payload: &str) {
    let mut message = publish(topic, payload, qos1(1));
    message.retain = true;
    let mut client = Client::v5(broker, "retainer");
    client.send(&Packet::Publish(message));
    client.complete(qos1(1));
}

/// Conformance: [MQTT5-3.3.1-9], [MQTT5-3.3.1-10], [MQTT5-3.3.1-11], [MQTT5-3.8.4-3], [MQTT5-3.8.4-4],
/// [MQTT311-3.8.4-3]
#[test]
fn retain_handling_decides_whether_retained_messages_are_sent() {
    let broker = Broker::start();
    retain(&broker, "r", "kept");
    for persistent in [false, true] {
        for (handling, first, again) in
            [(RetainHandling::Always, 1, 1), (RetainHandling::IfNew, 1, 0), (RetainHandling::Never, 0, 0)]
        {
            let mut asked = connect(ProtocolVersion::V5, "a");
            asked.properties.session_expiry_interval = persistent.then_some(100);
            let mut client = Client::accepted(&broker, asked);
            let options =
                SubscriptionOptions { retain_handling: handling, ..SubscriptionOptions::new(QoS::AtLeastOnce) };
            for expected in [first, again] {
                client.subscribe_with("r", options, None);
                for _ in 0..expected {
                    assert_eq!(client.take_publish().payload, "kept");
                }
                client.expect_nothing();
            }
            let mut publisher = Client::v5(&broker, "p");
            publisher.publish_acknowledged("r", "live", qos1(1));
            assert_eq!(client.take_publish().payload, "live", "one subscription, also after it was replaced");
            client.expect_nothing();
        }
    }
}

/// Conformance: [MQTT5-3.3.1-12], [MQTT5-3.3.1-13], [MQTT311-3.3.1-9]
#[test]
fn retain_goes_on_as_published_only_where_that_is_asked_for() {
    let broker = Broker::start();
    for as_published in [false, true] {
        for persistent in [false, true] {
            let mut asked = connect(ProtocolVersion::V5, "a");
            asked.properties.session_expiry_interval = persistent.then_some(100);
            let mut client = Client::accepted(&broker, asked);
            let options = SubscriptionOptions {
                retain_as_published: as_published,
                retain_handling: RetainHandling::Never,
                ..SubscriptionOptions::new(QoS::AtLeastOnce)
            };
            client.subscribe_with("r", options, None);
            retain(&broker, "r", "x");
            assert_eq!(client.take_publish().retain, as_published);
            Client::v5(&broker, "p").publish_acknowledged("r", "y", qos1(1));
            assert!(!client.take_publish().retain);
        }
    }
    let mut old = Client::v311(&broker, "old");
    old.subscribe("live", QoS::AtMostOnce);
    retain(&broker, "live", "x");
    assert!(!old.expect_publish().retain);
}

/// Conformance: [MQTT5-4.8.2-1], [MQTT5-4.8.2-2]
///
/// Abuse: [shared-malformed]
#[test]
fn malformed_shared_subscriptions_are_refused() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    for filter in ["$share/", "$share/g", "$share/g/", "$share//t", "$share/+/t", "$share/g#/t"] {
        assert_eq!(client.subscribe(filter, QoS::AtMostOnce), ReasonCode::TopicFilterInvalid, "{filter}");
    }
    assert_eq!(client.subscribe("$share/g/t", QoS::AtMostOnce), ReasonCode::Success);
}

/// The names of all that a message is for go through logs, and to other nodes.
///
/// Abuse: [shared-malformed]
#[test]
fn a_share_name_of_more_than_256_bytes_is_refused_and_the_other_filters_stand() {
    let broker = Broker::start();
    let [longest, too_long] = [256, 257].map(|bytes| format!("$share/{}/t", "n".repeat(bytes)));
    let filters = [(longest.as_str(), QoS::AtLeastOnce), (too_long.as_str(), QoS::AtLeastOnce), ("u", QoS::AtMostOnce)];
    for (mut client, refused) in [
        (Client::v5(&broker, "a"), ReasonCode::TopicFilterInvalid),
        (Client::v311(&broker, "b"), ReasonCode::UnspecifiedError),
    ] {
        client.send(&subscribe(&filters, 7));
        let Packet::SubAck(suback) = client.receive() else {
            panic!("a SUBACK");
        };
        assert_eq!(suback.reason_codes, [ReasonCode::GrantedQos1, refused, ReasonCode::Success]);
    }
    let share = "n".repeat(200) + "\u{e9}".repeat(29).as_str();
    let mut client = Client::v5(&broker, "c");
    assert_eq!(
        client.subscribe(&format!("$share/{share}/t"), QoS::AtMostOnce),
        ReasonCode::TopicFilterInvalid,
        "bytes"
    );
}

/// Conformance: [MQTT5-4.8.2-3]
#[test]
fn a_shared_delivery_has_the_qos_that_its_member_was_granted() {
    let broker = Broker::start();
    for granted in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut client = Client::v5(&broker, "a");
        client.subscribe("$share/g/t", granted);
        Client::v5(&broker, "p").publish_acknowledged("t", "x", qos2(1));
        assert_eq!(client.take_publish().delivery.qos(), granted);
    }
}

/// Conformance: [MQTT5-4.8.2-4], [MQTT5-4.8.2-5]
#[test]
fn a_qos_2_exchange_with_a_member_is_completed_with_that_member_or_not_at_all() {
    let broker = Broker::start();
    let mut asked = connect(ProtocolVersion::V5, "first");
    asked.properties.session_expiry_interval = Some(100);
    let mut first = Client::accepted(&broker, asked.clone());
    first.subscribe("$share/g/t", QoS::ExactlyOnce);
    Client::v5(&broker, "p").publish_acknowledged("t", "x", qos2(1));
    let begun = first.expect_publish();
    let mut second = Client::v5(&broker, "second");
    second.subscribe("$share/g/t", QoS::ExactlyOnce);
    drop(first);
    second.expect_nothing();
    asked.clean_start = false;
    let mut first = Client::accepted(&broker, asked.clone());
    let again = first.take_publish();
    assert_eq!((again.dup, again.delivery), (true, begun.delivery));

    first.unsubscribe("$share/g/t");
    first.disconnect();
    let mut third = Client::v5(&broker, "third");
    third.subscribe("$share/h/u", QoS::ExactlyOnce);
    Client::v5(&broker, "p").publish_acknowledged("u", "y", qos2(1));
    third.expect_publish();
    second.subscribe("$share/h/u", QoS::ExactlyOnce);
    drop(third);
    second.expect_nothing();
}

/// Conformance: [MQTT5-4.8.2-6]
#[test]
fn a_message_that_a_member_refuses_goes_to_nobody_else() {
    let broker = Broker::start();
    let mut first = Client::v5(&broker, "first");
    first.subscribe("$share/g/t", QoS::ExactlyOnce);
    let mut publisher = Client::v5(&broker, "p");
    publisher.publish_acknowledged("t", "x", qos1(1));
    publisher.publish_acknowledged("t", "y", qos2(2));
    let one = first.expect_publish().delivery.packet_id().expect("QoS 1");
    let two = first.expect_publish().delivery.packet_id().expect("QoS 2");
    let mut second = Client::v5(&broker, "second");
    second.subscribe("$share/g/t", QoS::ExactlyOnce);
    first.send(&Packet::PubAck(Ack::with_reason(one, ReasonCode::UnspecifiedError)));
    first.send(&Packet::PubRec(Ack::with_reason(two, ReasonCode::UnspecifiedError)));
    first.expect_nothing();
    drop(first);
    second.expect_nothing();
}
