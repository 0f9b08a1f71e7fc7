//! PUBLISH from a client: acknowledgements, retained messages, wills, properties.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kentongan_proto::mqtt::*;

use super::BOTH;
use crate::support::*;

/// Conformance: [MQTT5-3.3.4-1], [MQTT311-3.3.4-1], [MQTT5-2.2.1-2], [MQTT311-2.3.1-5], [MQTT5-2.2.1-5],
/// [MQTT311-2.3.1-6], [MQTT5-4.3.2-4], [MQTT5-4.3.3-8], [MQTT5-4.3.3-11], [MQTT311-4.3.2-2], [MQTT311-4.3.3-2]
#[test]
fn each_qos_is_answered_as_it_demands_with_the_same_identifier() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        client.publish("t", "0", QOS0);
        client.expect_nothing();
        client.publish_acknowledged("t", "1", qos1(7));
        client.publish_acknowledged("t", "2", qos2(65_535));
        client.expect_nothing();
    }
}

/// Conformance: [MQTT5-4.3.2-5], [MQTT5-4.3.3-12], [MQTT5-3.3.1-3], [MQTT311-3.3.1-3]
#[test]
fn an_acknowledged_identifier_is_a_new_message_whatever_dup_says() {
    let broker = Broker::start();
    for version in BOTH {
        let mut watcher = Client::v5(&broker, "w");
        watcher.subscribe("t", QoS::ExactlyOnce);
        let mut client = Client::accepted(&broker, connect(version, "a"));
        for delivery in [qos1(3), qos2(3)] {
            for round in 0..2 {
                let mut message = publish("t", "x", delivery);
                message.dup = round == 1;
                client.send(&Packet::Publish(message));
                client.complete(delivery);
                assert!(!watcher.take_publish().dup, "ours is no re-delivery");
            }
        }
        watcher.expect_nothing();
    }
}

/// Conformance: [MQTT5-4.3.3-10]
#[test]
fn a_repeated_qos_2_publish_is_answered_and_not_delivered_again() {
    let broker = Broker::start();
    for version in BOTH {
        let mut watcher = Client::v5(&broker, "w");
        watcher.subscribe("t", QoS::AtMostOnce);
        let mut client = Client::accepted(&broker, connect(version, "a"));
        for round in 0..3 {
            let mut message = publish("t", "once", qos2(9));
            message.dup = round > 0;
            client.send(&Packet::Publish(message));
            assert!(matches!(client.receive(), Packet::PubRec(ack) if ack.packet_id == id(9)));
        }
        watcher.expect_publish();
        watcher.expect_nothing();
        client.send(&Packet::PubRel(Ack::success(id(9))));
        assert!(matches!(client.receive(), Packet::PubComp(ack) if ack.packet_id == id(9)));
    }
}

/// Answered, it would free an identifier of which PUBREC is still to come: the next message under it would be taken for this one.
#[test]
fn a_pubrel_before_its_pubrec_ends_the_connection() {
    let broker = Broker::start();
    let mut keeper = connect(ProtocolVersion::V5, "keeper");
    keeper.properties.session_expiry_interval = Some(100);
    let mut keeper = Client::accepted(&broker, keeper);
    keeper.subscribe("t", QoS::AtLeastOnce);
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        client.send_at_once(&[Packet::Publish(publish("t", "x", qos2(7))), Packet::PubRel(Ack::success(id(7)))]);
        match version {
            ProtocolVersion::V5 => client.expect_disconnect(ReasonCode::ProtocolError),
            _ => client.expect_closed(),
        }
    }
}

/// Conformance: [MQTT5-4.3.3-9]
#[test]
fn a_refused_qos_2_publish_leaves_its_identifier_free() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("t", QoS::AtMostOnce);
    let mut client = Client::v5(&broker, "a");
    client.publish("$SYS/mine", "x", qos2(4));
    assert!(matches!(client.receive(), Packet::PubRec(ack) if ack.reason_code == ReasonCode::NotAuthorized));
    client.publish_acknowledged("t", "new", qos2(4));
    assert_eq!(watcher.expect_publish().payload, "new");
}

/// Conformance: [MQTT5-4.3.3-13]
#[test]
fn a_qos_2_exchange_is_completed_although_the_message_expired() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    let mut message = publish("t", "x", qos2(4));
    message.properties.message_expiry_interval = Some(0);
    client.send(&Packet::Publish(message));
    client.complete(qos2(4));
}

/// Conformance: [MQTT311-3.3.5-2]
#[test]
fn an_unauthorised_publish_is_acknowledged_in_3_1_1_and_not_delivered() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("$SYS/mine", QoS::AtMostOnce);
    let mut client = Client::v311(&broker, "a");
    client.publish_acknowledged("$SYS/mine", "x", qos1(1));
    watcher.expect_nothing();
}

/// Conformance: [MQTT311-4.6.0-2], [MQTT311-4.6.0-3]
#[test]
fn acknowledgements_come_in_the_order_of_the_messages() {
    let broker = Broker::start();
    let mut keeper = connect(ProtocolVersion::V5, "keeper");
    keeper.properties.session_expiry_interval = Some(100);
    let mut keeper = Client::accepted(&broker, keeper);
    keeper.subscribe("durable/#", QoS::AtLeastOnce);
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        for number in 1..=50 {
            // Some wait for the disk, some for nothing.
            let topic = if number % 3 == 0 { format!("durable/{number}") } else { "nobody".to_owned() };
            client.publish(&topic, "x", qos1(number));
        }
        let answered: Vec<u16> = (1..=50)
            .map(|_| match client.receive() {
                Packet::PubAck(ack) => ack.packet_id.get(),
                other => panic!("PUBACK expected, got {other:?}"),
            })
            .collect();
        assert_eq!(answered, (1..=50).collect::<Vec<_>>());
    }
}

/// Conformance: [MQTT5-3.3.4-7], [MQTT5-4.9.0-1]
///
/// Abuse: [receive-maximum]
#[test]
fn more_unacknowledged_messages_than_the_receive_maximum_end_the_connection() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__RECEIVE_MAXIMUM", "3")]);
    let (mut client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "a"));
    assert_eq!(connack.properties.receive_maximum.map(std::num::NonZeroU16::get), Some(3));
    for number in 1..=4 {
        client.publish("t", "x", qos2(number));
    }
    for _ in 0..3 {
        assert!(matches!(client.receive(), Packet::PubRec(_)));
    }
    client.expect_disconnect(ReasonCode::ReceiveMaximumExceeded);
}

/// A client that is back may publish before it sends its PUBRELs. Each message is routed once all the same.
///
/// Conformance: [MQTT5-4.9.0-1]
#[test]
fn a_client_that_is_back_has_its_whole_quota_before_it_completes_what_it_sent() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__RECEIVE_MAXIMUM", "2")]);
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("t", QoS::AtMostOnce);
    let mut asked = connect(ProtocolVersion::V5, "a");
    asked.properties.session_expiry_interval = Some(60);
    let mut client = Client::accepted(&broker, asked.clone());
    for number in 1..=2 {
        client.publish("t", &number.to_string(), qos2(number));
        assert!(matches!(client.receive(), Packet::PubRec(ack) if ack.packet_id.get() == number));
    }
    drop(client);
    asked.clean_start = false;
    let (mut client, connack) = Client::open(&broker, asked);
    assert!(connack.session_present);
    for number in 3..=4 {
        client.publish("t", &number.to_string(), qos2(number));
        assert!(matches!(client.receive(), Packet::PubRec(ack) if ack.packet_id.get() == number));
    }
    let ids = [1, 2, 3, 4].map(|number| qos2(number).packet_id().expect("QoS 2"));
    for packet_id in ids {
        client.send(&Packet::PubRel(Ack::success(packet_id)));
        assert_eq!(client.receive(), Packet::PubComp(Ack::success(packet_id)));
    }
    for number in 1..=4 {
        assert_eq!(&watcher.expect_publish().payload[..], number.to_string().as_bytes());
    }
    watcher.expect_nothing();
}

/// Conformance: [MQTT5-3.3.2-12], [MQTT5-3.3.2-7]
#[test]
fn every_announced_topic_alias_is_accepted_and_dies_with_its_connection() {
    let broker = Broker::start();
    let mut watcher = Client::v311(&broker, "w");
    watcher.subscribe("alias/#", QoS::AtMostOnce);
    let (mut client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "a"));
    let maximum = connack.properties.topic_alias_maximum.expect("announced");
    for alias in 1..=maximum {
        let mut message = publish(&format!("alias/{alias}"), "set", QOS0);
        message.properties.topic_alias = Some(alias);
        client.send(&Packet::Publish(message));
        assert_eq!(watcher.expect_publish().topic, format!("alias/{alias}"));
    }
    for alias in (1..=maximum).rev() {
        let mut message = publish("", "used", QOS0);
        message.properties.topic_alias = Some(alias);
        client.send(&Packet::Publish(message));
        assert_eq!(watcher.expect_publish().topic, format!("alias/{alias}"));
    }
    let mut other = Client::v5(&broker, "b");
    let mut message = publish("", "unknown", QOS0);
    message.properties.topic_alias = Some(1);
    other.send(&Packet::Publish(message));
    other.expect_disconnect(ReasonCode::ProtocolError);
}

/// Conformance: [MQTT5-3.3.2-4], [MQTT5-3.3.2-15], [MQTT5-3.3.2-16], [MQTT5-3.3.2-17], [MQTT5-3.3.2-18],
/// [MQTT5-3.3.2-20], [MQTT5-1.5.4-3], [MQTT311-1.5.3-3], [MQTT5-2.2.2-1]
#[test]
fn properties_are_forwarded_unaltered_and_in_order() {
    let broker = Broker::start();
    let mut keeper = connect(ProtocolVersion::V5, "keeper");
    keeper.properties.session_expiry_interval = Some(100);
    let mut readers = [Client::v5(&broker, "w"), Client::accepted(&broker, keeper)];
    for reader in &mut readers {
        reader.subscribe("#", QoS::AtLeastOnce);
    }
    let mut client = Client::v5(&broker, "a");
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        response_topic: Some("\u{FEFF}answers".to_owned()),
        correlation_data: Some(Bytes::from_static(&[0, 255])),
        content_type: Some("t/t".to_owned()),
        user_properties: [("b", "1"), ("a", "2"), ("b", "3"), ("", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..PublishProperties::default()
    };
    let message = Publish { properties: properties.clone(), ..publish("\u{FEFF}t", "x", qos1(1)) };
    client.send(&Packet::Publish(message));
    client.complete(qos1(1));
    for reader in &mut readers {
        let got = reader.take_publish();
        assert_eq!((got.topic.as_str(), got.properties), ("\u{FEFF}t", properties.clone()));
    }
    let mut bare = publish("t", "x", qos1(2));
    bare.properties = PublishProperties::default();
    client.send(&Packet::Publish(bare));
    for reader in &mut readers {
        assert_eq!(reader.take_publish().properties, PublishProperties::default());
    }
}

/// Conformance: [MQTT5-3.3.2-6], [MQTT5-3.3.2-5]
#[test]
fn the_expiry_interval_shrinks_while_the_message_waits_and_an_expired_one_is_dropped() {
    let broker = Broker::start();
    let mut asked = connect(ProtocolVersion::V5, "s");
    asked.properties.session_expiry_interval = Some(100);
    let mut subscriber = Client::accepted(&broker, asked.clone());
    subscriber.subscribe("t", QoS::AtLeastOnce);
    subscriber.disconnect();
    let mut client = Client::v5(&broker, "a");
    for (payload, seconds) in [("short", 1), ("long", 100)] {
        let mut message = publish("t", payload, qos1(seconds));
        message.properties.message_expiry_interval = Some(u32::from(seconds));
        client.send(&Packet::Publish(message));
        client.complete(qos1(seconds));
    }
    std::thread::sleep(Duration::from_millis(2100));
    asked.clean_start = false;
    let mut subscriber = Client::accepted(&broker, asked);
    let got = subscriber.take_publish();
    assert_eq!(got.payload, "long", "the short one expired");
    let left = got.properties.message_expiry_interval.expect("forwarded");
    assert!((90..=98).contains(&left), "{left}");
    subscriber.expect_nothing();
}

/// Nobody says anything to the group that keeps it meanwhile.
///
/// Conformance: [MQTT5-3.3.2-6], [MQTT5-3.3.2-5]
#[test]
fn the_expiry_interval_of_a_retained_message_shrinks_and_an_expired_one_is_not_found() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    let mut message = publish("t", "v", qos1(1));
    message.retain = true;
    message.properties.message_expiry_interval = Some(3);
    client.send(&Packet::Publish(message));
    client.complete(qos1(1));
    let began = Instant::now();
    let mut told = Vec::new();
    let mut reader = Client::v5(&broker, "reader");
    loop {
        assert!(began.elapsed() < DEADLINE, "{told:?}");
        reader.subscribe("t", QoS::AtMostOnce);
        let Some(Packet::Publish(found)) = reader.receive_within(Duration::from_millis(500)) else {
            break;
        };
        told.push(found.properties.message_expiry_interval.expect("forwarded"));
    }
    assert!(began.elapsed() >= Duration::from_secs(3), "it expired early: {told:?}");
    assert!(told.is_sorted_by(|before, after| before >= after) && told.last() <= Some(&1), "{told:?}");
}

/// A client that reads as it goes gets all of them, however much less than that may wait for it.
#[test]
fn more_is_retained_than_may_wait_for_a_client() {
    let broker = Broker::with(&["--set", "session.out_buffer_bytes_max=65536"]);
    let mut client = Client::v5(&broker, "a");
    let payload = "v".repeat(20_000);
    for number in 0..150 {
        retain(&mut client, &format!("t/{number}"), &payload, true);
    }
    assert_eq!(retained(&broker, "t/+", 150).len(), 150);
    // Through a session's group as well, which has nothing of them.
    let mut asked = connect(ProtocolVersion::V5, "kept");
    asked.properties.session_expiry_interval = Some(100);
    let mut reader = Client::accepted(&broker, asked);
    reader.subscribe("t/+", QoS::AtMostOnce);
    let topics: BTreeSet<_> = (0..150).map(|_| reader.take_publish().topic).collect();
    assert_eq!(topics.len(), 150);
}

fn retain(client: &mut Client, topic: &str, payload: &str, retain: bool) {
    let mut message = publish(topic, payload, qos1(1));
    message.retain = retain;
    client.send(&Packet::Publish(message));
    client.complete(qos1(1));
}

/// What a new subscription finds. As many messages as are owed come, and no more; before them there may be a pause.
fn retained(broker: &Broker, filter: &str, owed: usize) -> Vec<String> {
    let mut reader = Client::v311(broker, "reader");
    reader.subscribe(filter, QoS::AtMostOnce);
    let mut payloads = Vec::new();
    reader.send(&Packet::PingReq);
    // Retained messages may come after the answer to PINGREQ.
    while let Some(packet) = reader.receive_within(if payloads.len() < owed { DEADLINE } else { QUIET }) {
        // Without RETAIN it is one that is published just now.
        if let Packet::Publish(message) = packet
            && message.retain
        {
            payloads.push(String::from_utf8_lossy(&message.payload).into_owned());
        }
    }
    payloads
}

/// Conformance: [MQTT5-3.3.1-5], [MQTT5-3.3.1-6], [MQTT5-3.3.1-7], [MQTT5-3.3.1-8], [MQTT311-3.3.1-5],
/// [MQTT311-3.3.1-6], [MQTT311-3.3.1-8], [MQTT311-3.3.1-10], [MQTT311-3.3.1-11], [MQTT311-3.3.1-12]
#[test]
fn the_retained_message_is_the_last_one_with_the_flag_until_an_empty_one() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        let mut live = Client::v311(&broker, "live");
        live.subscribe("r", QoS::AtMostOnce);
        retain(&mut client, "r", "one", true);
        retain(&mut client, "r", "two", true);
        retain(&mut client, "r", "passing", false);
        assert_eq!(retained(&broker, "r", 1), ["two"]);
        retain(&mut client, "r", "", true);
        assert_eq!(retained(&broker, "#", 0), Vec::<String>::new());
        let seen: Vec<_> = (0..4).map(|_| live.expect_publish().payload).collect();
        assert_eq!(seen, ["one", "two", "passing", ""], "the empty one is processed as any other");
    }
}

/// Conformance: [MQTT311-3.3.1-7]
#[test]
fn a_retained_message_of_qos_0_replaces_the_one_before() {
    let broker = Broker::start();
    let mut client = Client::v311(&broker, "a");
    retain(&mut client, "r", "one", true);
    let mut message = publish("r", "zero", QOS0);
    message.retain = true;
    client.send(&Packet::Publish(message));
    wait_for("it is stored", || retained(&broker, "r", 0) == ["zero"]);
}

/// Conformance: [MQTT311-3.1.2-7]
#[test]
fn retained_messages_outlive_the_session_that_published_them() {
    let broker = Broker::start();
    let mut client = Client::v311(&broker, "a");
    retain(&mut client, "r", "kept", true);
    client.disconnect();
    drop(Client::v311(&broker, "a"));
    assert_eq!(retained(&broker, "r", 1), ["kept"]);
}

fn with_will(version: ProtocolVersion, retain: bool, delay: Option<u32>, expiry: u32) -> Connect {
    let mut asked = connect(version, "dying");
    asked.properties.session_expiry_interval = version.is_v5().then_some(expiry);
    asked.will = Some(Will {
        topic: "wills/x".to_owned(),
        payload: Bytes::from_static(b"bye"),
        qos: QoS::AtLeastOnce,
        retain,
        properties: WillProperties {
            will_delay_interval: delay.filter(|_| version.is_v5()),
            user_properties: if version.is_v5() {
                vec![("b".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())]
            } else {
                Vec::new()
            },
            ..WillProperties::default()
        },
    });
    asked
}

/// Conformance: [MQTT5-3.1.2-7], [MQTT5-3.1.2-8], [MQTT5-3.1.2-10], [MQTT5-3.1.2-14], [MQTT5-3.1.3-10],
/// [MQTT5-3.14.4-3], [MQTT311-3.1.2-8], [MQTT311-3.1.2-10], [MQTT311-3.1.2-12], [MQTT311-3.1.2-16], [MQTT311-3.14.4-3]
#[test]
fn a_will_is_published_once_when_the_connection_breaks_and_never_after_disconnect() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("wills/#", QoS::AtLeastOnce);
    for version in BOTH {
        Client::accepted(&broker, with_will(version, false, None, 0)).disconnect();
        drop(Client::accepted(&broker, connect(version, "dying")));
        watcher.expect_nothing();
        drop(Client::accepted(&broker, with_will(version, false, None, 0)));
        let message = watcher.take_publish();
        assert_eq!(message.payload, "bye");
        if version.is_v5() {
            let names: Vec<_> = message.properties.user_properties.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["b", "a"]);
        }
        watcher.expect_nothing();
        assert_eq!(retained(&broker, "wills/#", 0), Vec::<String>::new());
    }
}

/// Conformance: [MQTT5-3.1.2-15], [MQTT311-3.1.2-17]
#[test]
fn a_will_with_retain_is_retained() {
    let broker = Broker::start();
    for version in BOTH {
        drop(Client::accepted(&broker, with_will(version, true, None, 0)));
        wait_for("it is stored", || retained(&broker, "wills/x", 0) == ["bye"]);
        let mut client = Client::v311(&broker, "a");
        retain(&mut client, "wills/x", "", true);
    }
}

/// Conformance: [MQTT5-3.1.3-9]
#[test]
fn a_client_that_is_back_before_the_delay_ran_out_leaves_no_will() {
    let broker = Broker::start();
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("wills/#", QoS::AtLeastOnce);
    let asked = with_will(ProtocolVersion::V5, false, Some(2), 100);
    drop(Client::accepted(&broker, asked));
    let mut back = connect(ProtocolVersion::V5, "dying");
    back.clean_start = false;
    back.properties.session_expiry_interval = Some(100);
    let client = Client::accepted(&broker, back);
    std::thread::sleep(std::time::Duration::from_millis(3500));
    watcher.expect_nothing();
    drop(client);
    drop(Client::accepted(&broker, with_will(ProtocolVersion::V5, false, Some(1), 100)));
    assert_eq!(watcher.take_publish().payload, "bye", "and it comes where nobody is back");
}
