//! What is not accepted: by which rule, what the publisher hears, and that nobody gets it.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;

use crate::support::*;

const REFUSED: &str = "kentongan_publishes_refused_total";

fn will(topic: &str, payload: &'static [u8]) -> Will {
    Will {
        topic: topic.to_owned(),
        payload: payload.into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: WillProperties::default(),
    }
}

/// A clean session that ends with its connection, or one that outlives it.
fn client(version: ProtocolVersion, client_id: &str, persistent: bool) -> Connect {
    let mut asked = connect(version, client_id);
    asked.clean_start = !persistent || version.is_v5();
    asked.properties.session_expiry_interval = (persistent && version.is_v5()).then_some(100);
    asked
}

/// The PUBACK or PUBREC of a PUBLISH, whose exchange is completed.
fn answer(client: &mut Client, message: Publish) -> Ack {
    client.send(&Packet::Publish(message.clone()));
    let ack = match (client.receive(), message.delivery) {
        (Packet::PubAck(ack), Delivery::AtLeastOnce(_)) | (Packet::PubRec(ack), Delivery::ExactlyOnce(_)) => ack,
        (other, _) => panic!("an acknowledgement expected, got {other:?}"),
    };
    assert_eq!(Some(ack.packet_id), message.delivery.packet_id());
    if let (Delivery::ExactlyOnce(id), false) = (message.delivery, ack.reason_code.is_error()) {
        client.send(&Packet::PubRel(Ack::success(id)));
        assert_eq!(client.receive(), Packet::PubComp(Ack::success(id)));
    }
    ack
}

/// `$SYS` is the broker's own, whichever way a message would take to it.
///
/// Abuse: [sys-topic]
#[test]
fn nobody_speaks_for_the_broker_directly_delayed_or_by_will() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SYS__INTERVAL_SECONDS", "0")]);
    let mut watcher = Client::v5(&broker, "watcher");
    watcher.subscribe("$SYS/#", QoS::AtLeastOnce);
    watcher.subscribe("$delayed/#", QoS::AtLeastOnce);
    let topics = ["$SYS/broker/version", "$SYS", "$delayed/0/$SYS/broker/version", "$delayed/1/$SYS"];
    for persistent in [false, true] {
        let mut liar = Client::accepted(&broker, client(ProtocolVersion::V5, "liar", persistent));
        for topic in topics {
            for delivery in [qos1(1), qos2(2)] {
                let ack = answer(&mut liar, publish(topic, "forged", delivery));
                assert_eq!(ack.reason_code, ReasonCode::NotAuthorized, "{topic}");
            }
            liar.publish(topic, "forged", QOS0);
        }
        liar.expect_nothing();
        for topic in topics {
            for version in [ProtocolVersion::V5, ProtocolVersion::V3_1_1] {
                let asked = Connect { will: Some(will(topic, b"forged")), ..client(version, "dying", persistent) };
                let (mut dying, connack) = Client::open(&broker, asked);
                assert_eq!(connack.reason_code, ReasonCode::NotAuthorized, "{topic}");
                dying.expect_closed();
            }
        }
    }
    broker.wait_for_metric(REFUSED, |count| count == 24.0);
    broker.wait_for_metric("kentongan_connects_refused_total", |count| count == 16.0);
    watcher.expect_nothing();
}

/// Nobody is there to hear of it later: what a PUBLISH would be refused for, CONNECT is.
#[test]
fn a_will_is_held_to_the_rules_of_a_publish() {
    let broker = Broker::with_environment(
        &[],
        &[
            ("KENTONGAN_SESSION__CHECK_PAYLOAD_FORMAT", "true"),
            ("KENTONGAN_DELAYED__SECONDS_MAX", "10"),
            ("KENTONGAN_RETAINED__PAYLOAD_BYTES_MAX", "5"),
            ("KENTONGAN_SESSION__TOPIC_LEVELS_MAX", "3"),
        ],
    );
    let text = |payload| Will {
        properties: WillProperties { payload_format_indicator: Some(1), ..WillProperties::default() },
        ..will("t", payload)
    };
    let retained = |payload| Will { retain: true, ..will("t", payload) };
    let cases = [
        (text(b"\xFF"), ReasonCode::PayloadFormatInvalid),
        (text("é".as_bytes()), ReasonCode::Success),
        (will("$delayed/11/t", b"x"), ReasonCode::QuotaExceeded),
        (will("$delayed/18446744073709551615/t", b"x"), ReasonCode::QuotaExceeded),
        (will("$delayed/10/t", b"x"), ReasonCode::Success),
        (will("$delayed/1/$delayed/1/t", b"x"), ReasonCode::TopicNameInvalid),
        (retained(b"123456"), ReasonCode::QuotaExceeded),
        (retained(b"12345"), ReasonCode::Success),
        (will("t", b"123456"), ReasonCode::Success),
        (will("a/b/c/d", b"x"), ReasonCode::TopicNameInvalid),
        (will("a/b/c", b"x"), ReasonCode::Success),
    ];
    for persistent in [false, true] {
        for (will, reason) in cases.clone() {
            let asked = Connect { will: Some(will), ..client(ProtocolVersion::V5, "c", persistent) };
            let (mut client, connack) = Client::open(&broker, asked);
            assert_eq!(connack.reason_code, reason);
            if reason.is_error() {
                assert!(connack.properties.reason_string.is_some());
                client.expect_closed();
            } else {
                client.disconnect();
            }
        }
    }
    broker.wait_for_metric("kentongan_connects_refused_total", |count| count == 12.0);
    let off = Broker::with_environment(&[], &[("KENTONGAN_DELAYED__ENABLED", "false")]);
    let asked = Connect { will: Some(will("$delayed/1/t", b"x")), ..connect(ProtocolVersion::V5, "c") };
    assert_eq!(Client::open(&off, asked).1.reason_code, ReasonCode::NotAuthorized);
}

/// A will may be delayed like any other message, also that of a session which a group keeps.
#[test]
fn a_will_to_a_delayed_topic_comes_that_much_later() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "watcher");
    watcher.subscribe("late/#", QoS::AtLeastOnce);
    watcher.subscribe("$delayed/#", QoS::AtLeastOnce);
    let began = Instant::now();
    let names = ["late/transient", "late/persistent"];
    for (name, persistent) in names.into_iter().zip([false, true]) {
        let will = will(&format!("$delayed/3/{name}"), b"bye");
        let asked = Connect { will: Some(will), ..client(ProtocolVersion::V5, name, persistent) };
        drop(Client::accepted(&broker, asked));
    }
    let first = watcher.take_publish();
    assert!(began.elapsed() > Duration::from_secs(2), "{} too early", first.topic);
    let mut topics = [first.topic, watcher.take_publish().topic];
    topics.sort();
    assert_eq!(topics, ["late/persistent", "late/transient"]);
    watcher.expect_nothing();
}

/// P2: others may have a message before it turns out that it cannot be retained, so it is not refused, whichever way it
/// came; but one that says itself that it is too large reaches nobody.
#[test]
fn a_message_without_room_among_the_retained_is_delivered_and_counted() {
    let broker = Broker::with_environment(
        &[],
        &[
            ("KENTONGAN_RETAINED__MESSAGES_MAX", "1"),
            ("KENTONGAN_RETAINED__PAYLOAD_BYTES_MAX", "5"),
            ("KENTONGAN_STORAGE__GROUPS", "1"),
        ],
    );
    let retained = |topic: &str, payload, delivery| Publish { retain: true, ..publish(topic, payload, delivery) };
    let mut first = Client::v5(&broker, "first");
    first.subscribe("more/#", QoS::AtLeastOnce);
    let kept = answer(&mut first, retained("kept", "x", qos1(1)));
    assert_eq!(kept.reason_code, ReasonCode::Success);
    for persistent in [false, true] {
        let mut publisher = Client::accepted(&broker, client(ProtocolVersion::V5, "publisher", persistent));
        for delivery in [qos1(1), qos2(2)] {
            let ack = answer(&mut publisher, retained("more/by-publish", "x", delivery));
            assert!(!ack.reason_code.is_error(), "{ack:?}");
            assert_eq!(first.take_publish().payload, "x");
            let ack = answer(&mut publisher, retained("more/too-large", "123456", delivery));
            assert_eq!(ack.reason_code, ReasonCode::QuotaExceeded);
        }
        publisher.publish("more/end", "x", QOS0);
        assert_eq!(first.take_publish().topic, "more/end", "nothing of what was refused");
        let will = Will { retain: true, ..will("more/by-will", b"x") };
        let asked = Connect { will: Some(will), ..client(ProtocolVersion::V5, "dying", persistent) };
        drop(Client::accepted(&broker, asked));
        assert_eq!(first.take_publish().topic, "more/by-will");
    }
    broker.wait_for_metric("kentongan_retained_not_kept_total", |count| count == 6.0);
    broker.wait_for_metric(REFUSED, |count| count == 4.0);
    let mut later = Client::v5(&broker, "later");
    later.subscribe("#", QoS::AtLeastOnce);
    assert_eq!(later.take_publish().topic, "kept");
    later.expect_nothing();
}

/// A bound on what waits is found by the group: its answer is told, and counted also where nobody can be told.
#[test]
fn one_delayed_message_too_many_is_refused_with_the_reason_and_counted() {
    let broker =
        Broker::with_environment(&[], &[("KENTONGAN_DELAYED__MESSAGES_MAX", "1"), ("KENTONGAN_STORAGE__GROUPS", "1")]);
    let mut first = Client::v5(&broker, "first");
    assert_eq!(answer(&mut first, publish("$delayed/1000/t", "x", qos1(1))).reason_code, ReasonCode::Success);
    for persistent in [false, true] {
        let mut publisher = Client::accepted(&broker, client(ProtocolVersion::V5, "publisher", persistent));
        for delivery in [qos1(1), qos2(2)] {
            let ack = answer(&mut publisher, publish("$delayed/1000/t", "x", delivery));
            assert_eq!(ack.reason_code, ReasonCode::QuotaExceeded);
            assert!(ack.properties.reason_string.is_some());
        }
        publisher.publish("$delayed/1000/t", "x", QOS0);
        publisher.expect_nothing();
    }
    broker.wait_for_metric(REFUSED, |count| count == 6.0);
    let asked = Connect { will: Some(will("$delayed/1000/t", b"x")), ..client(ProtocolVersion::V5, "dying", true) };
    drop(Client::accepted(&broker, asked));
    broker.wait_for_metric("kentongan_messages_dropped_total", |count| count == 1.0);
}

/// A refusal says why in words, unless the client does not want to hear it or takes no packet of that size.
///
/// Conformance: [MQTT5-3.1.2-29], [MQTT5-3.4.2-2], [MQTT5-3.5.2-2], [MQTT5-3.9.2-1]
#[test]
fn refusals_carry_a_reason_string_where_the_client_takes_one() {
    let broker = Broker::start();
    let filters = ["ok", "not/#/ok"].map(|filter| (filter.to_owned(), SubscriptionOptions::new(QoS::AtLeastOnce)));
    for (problem_information, maximum_packet_size, explained) in
        [(None, None, true), (Some(true), Some(1000), true), (Some(false), None, false), (None, Some(20), false)]
    {
        for persistent in [false, true] {
            let mut asked = client(ProtocolVersion::V5, "c", persistent);
            asked.properties.request_problem_information = problem_information;
            asked.properties.maximum_packet_size = maximum_packet_size;
            let mut client = Client::accepted(&broker, asked);
            for delivery in [qos1(1), qos2(2)] {
                let ack = answer(&mut client, publish("$SYS/x", "x", delivery));
                assert_eq!(ack.reason_code, ReasonCode::NotAuthorized);
                assert_eq!(ack.properties.reason_string.is_some(), explained, "{ack:?}");
            }
            client.send(&Packet::Subscribe(Subscribe {
                packet_id: id(3),
                filters: filters.to_vec(),
                subscription_identifier: None,
                user_properties: Vec::new(),
            }));
            match client.receive() {
                Packet::SubAck(suback) => {
                    assert_eq!(suback.reason_codes, [ReasonCode::GrantedQos1, ReasonCode::TopicFilterInvalid]);
                    assert_eq!(suback.properties.reason_string.is_some(), explained, "{suback:?}");
                }
                other => panic!("SUBACK expected, got {other:?}"),
            }
            let fine = answer(&mut client, publish("nobody", "x", qos1(1)));
            assert_eq!(fine.properties, AckProperties::default(), "nothing to explain");
            client.disconnect();
        }
    }
}
