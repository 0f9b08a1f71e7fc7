//! Settings that clients meet, each seen from a socket.

use kentongan_proto::mqtt::*;

use crate::support::*;

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// What a listener says to a CONNECT: (settings, CONNECT, what CONNACK must tell).
#[test]
fn a_listener_bounds_what_its_clients_ask_for() {
    type Told = (Option<u16>, Option<u32>);
    let table: &[(&str, u16, u32, Told)] = &[
        ("", 60, 3600, (None, None)),
        ("keep_alive_seconds_max = 30", 60, 0, (Some(30), None)),
        ("keep_alive_seconds_max = 30", 0, 0, (Some(30), None)),
        ("keep_alive_seconds_max = 30", 20, 0, (None, None)),
        ("keep_alive_seconds_min = 30", 5, 0, (Some(30), None)),
        ("keep_alive_seconds_min = 30", 40, 0, (None, None)),
        ("session_expiry_seconds_max = 60", 60, 3600, (None, Some(60))),
        ("session_expiry_seconds_max = 60", 60, 59, (None, None)),
        ("session_expiry_seconds_max = 0", 60, 3600, (None, Some(0))),
        ("session_expiry_seconds_max = 60\n[session]\nsession_expiry_seconds_max = 7", 60, 3600, (None, Some(7))),
    ];
    for &(settings, keep_alive, expiry, told) in table {
        let broker = Broker::with_settings(&format!("{LISTENER}{settings}\n"));
        let mut asked = connect(ProtocolVersion::V5, "a");
        asked.keep_alive = keep_alive;
        asked.properties.session_expiry_interval = Some(expiry);
        let (_client, connack) = Client::open(&broker, asked);
        let found = (connack.properties.server_keep_alive, connack.properties.session_expiry_interval);
        assert_eq!(found, told, "{settings:?}, asked for {keep_alive} and {expiry}");
    }
}

/// A version that a listener does not speak is refused in a way that its clients understand.
#[test]
fn a_listener_speaks_the_versions_it_is_told_to() {
    let all = [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5];
    for (names, spoken) in [("\"5\"", &all[2..]), ("\"3.1\", \"3.1.1\"", &all[..2]), ("\"3.1.1\"", &all[1..2])] {
        let broker = Broker::with_settings(&format!("{LISTENER}protocol_versions = [{names}]\n"));
        for version in all {
            let (_client, connack) = Client::open(&broker, connect(version, "a"));
            let expected =
                if spoken.contains(&version) { ReasonCode::Success } else { ReasonCode::UnsupportedProtocolVersion };
            assert_eq!(connack.reason_code, expected, "{version:?} where {names} are spoken");
        }
        let refused = "kentongan_connects_refused_total{reason=\"protocol_version\"}";
        broker.wait_for_metric(refused, |refused| refused == (3 - spoken.len()) as f64);
    }
}

/// Publishes a retained message to each of `r/0`, `r/1`, … and says which of them a new subscriber gets.
fn retained_of(broker: &Broker, payloads: &[&str], owed: usize) -> Vec<String> {
    let mut publisher = Client::v5(broker, "publisher");
    for (number, payload) in payloads.iter().enumerate() {
        let delivery = qos1(number as u16 + 1);
        publisher
            .send(&Packet::Publish(Publish { retain: true, ..publish(&format!("r/{number}"), payload, delivery) }));
        publisher.complete(delivery);
    }
    let mut reader = Client::v5(broker, "reader");
    reader.subscribe("r/+", QoS::AtMostOnce);
    // The answer to PINGREQ may overtake what is read for the subscription: wait for silence.
    let mut topics = Vec::new();
    while let Some(packet) = reader.receive_within(if topics.len() < owed { DEADLINE } else { QUIET * 2 }) {
        match packet {
            Packet::Publish(publish) => topics.push(publish.topic),
            other => panic!("unexpected {other:?}"),
        }
    }
    topics.sort();
    topics
}

/// Whatever the publisher is answered, a bound on retained messages is kept. One group, so that the bounds are exact.
#[test]
fn bounds_on_retained_messages_are_kept() {
    let large = "x".repeat(2000);
    let three = ["one", large.as_str(), "three"];
    for (settings, kept) in [
        ("", &["r/0", "r/1", "r/2"][..]),
        ("messages_max = 2", &["r/0", "r/1"]),
        ("bytes_max = 1500", &["r/0", "r/2"]),
        ("payload_bytes_max = 1000", &["r/0", "r/2"]),
    ] {
        let broker = Broker::with_settings(&format!("{LISTENER}[storage]\ngroups = 1\n[retained]\n{settings}\n"));
        assert_eq!(retained_of(&broker, &three, kept.len()), kept, "{settings:?}");
        broker.wait_for_metric("kentongan_retained_messages", |count| count == kept.len() as f64);
    }
}

/// Also without a Message Expiry Interval.
#[test]
fn a_retained_message_is_forgotten_at_its_age() {
    let broker = Broker::with_settings(&format!("{LISTENER}[retained]\nage_seconds_max = 3\n"));
    assert_eq!(retained_of(&broker, &["one", "two"], 2), ["r/0", "r/1"]);
    wait_for("both forgotten", || retained_of(&broker, &[], 0).is_empty());
    broker.wait_for_metric("kentongan_retained_messages", |count| count == 0.0);
}

fn reason_of(client: &mut Client, message: Publish) -> ReasonCode {
    client.send(&Packet::Publish(message));
    match client.receive() {
        Packet::PubAck(ack) => ack.reason_code,
        other => panic!("PUBACK expected, got {other:?}"),
    }
}

/// Settings, topic, payload, whether it says that it is UTF-8, the answer, what it counts as.
type Refusal = (&'static str, &'static str, &'static [u8], bool, ReasonCode, &'static str);

/// What a PUBLISH is answered under a setting, and what it counts as.
#[test]
fn settings_refuse_publishes_with_their_reason() {
    use ReasonCode::{
        NoMatchingSubscribers, NotAuthorized, PayloadFormatInvalid, QuotaExceeded, Success, TopicNameInvalid,
    };
    let table: &[Refusal] = &[
        ("", "t", b"\xFF", true, NoMatchingSubscribers, ""),
        ("session.check_payload_format = true", "t", b"\xFF", true, PayloadFormatInvalid, "payload_format_invalid"),
        ("session.check_payload_format = true", "t", b"text", true, NoMatchingSubscribers, ""),
        ("session.check_payload_format = true", "t", b"\xFF", false, NoMatchingSubscribers, ""),
        ("", "$delayed/60/t", b"x", false, Success, ""),
        ("", "$delayed/1.5/t", b"x", false, TopicNameInvalid, "topic_name_invalid"),
        ("", "$delayed/1m/t", b"x", false, TopicNameInvalid, "topic_name_invalid"),
        ("", "$delayed/60/", b"x", false, TopicNameInvalid, "topic_name_invalid"),
        ("", "$delayed/60", b"x", false, TopicNameInvalid, "topic_name_invalid"),
        ("", "$delayed/1/$delayed/1/t", b"x", false, TopicNameInvalid, "topic_name_invalid"),
        ("", "$delayedly/1m/t", b"x", false, NoMatchingSubscribers, ""),
        ("delayed.enabled = false", "$delayed/60/t", b"x", false, NotAuthorized, "not_authorized"),
        ("delayed.seconds_max = 59", "$delayed/60/t", b"x", false, QuotaExceeded, "quota_exceeded"),
        ("delayed.seconds_max = 60", "$delayed/60/t", b"x", false, Success, ""),
    ];
    for &(settings, topic, payload, is_utf_8, answer, counted) in table {
        let broker = Broker::with_settings(&format!("{settings}\n{LISTENER}"));
        let mut client = Client::v5(&broker, "a");
        let mut message = Publish { payload: payload.into(), ..publish(topic, "", qos1(1)) };
        message.properties.payload_format_indicator = is_utf_8.then_some(1);
        assert_eq!(reason_of(&mut client, message), answer, "{settings:?} {topic}");
        if !counted.is_empty() {
            let name = format!("kentongan_publishes_refused_total{{reason=\"{counted}\"}}");
            broker.wait_for_metric(&name, |count| count == 1.0);
        }
    }
}

/// One group, so that the bound is exact.
#[test]
fn no_more_messages_wait_for_their_time_than_allowed() {
    let broker = Broker::with_settings(&format!("delayed.messages_max = 2\nstorage.groups = 1\n{LISTENER}"));
    let mut client = Client::v5(&broker, "a");
    for (number, answer) in [(1, ReasonCode::Success), (2, ReasonCode::Success), (3, ReasonCode::QuotaExceeded)] {
        assert_eq!(reason_of(&mut client, publish("$delayed/60/t", "x", qos1(number))), answer);
    }
    broker.wait_for_metric("kentongan_delayed_messages", |count| count == 2.0);
    // Before MQTT 5 an acknowledgement says that it is taken.
    for delivery in [qos1(1), qos2(1)] {
        let mut old = Client::v311(&broker, "old");
        old.publish("$delayed/60/t", "x", delivery);
        old.expect_closed();
    }
}

/// Both families: each address alone, and an unspecified IPv6 one for both.
#[test]
fn clients_come_by_ipv6_and_by_both_families() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("there is no IPv6 here: nothing was tried");
        return;
    }
    let settings = "allow_anonymous = true\n[[listener]]\naddress = \"[::1]:0\"\n[[listener]]\naddress = \"[::]:0\"\n";
    let broker = Broker::with_settings(settings);
    assert!(broker.address.is_ipv6());
    let both = broker.next_listener().port();
    let addresses = [broker.address, ([127, 0, 0, 1], both).into(), (std::net::Ipv6Addr::LOCALHOST, both).into()];
    let mut clients = addresses.map(|address| {
        let mut client = Client::at(address, ProtocolVersion::V5);
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, &address.to_string()))));
        assert_eq!(client.expect_connack().reason_code, ReasonCode::Success, "{address}");
        client
    });
    clients[0].subscribe("t", QoS::AtMostOnce);
    clients[1].publish("t", "from IPv4", QOS0);
    assert_eq!(clients[0].expect_publish().payload, "from IPv4");
}
