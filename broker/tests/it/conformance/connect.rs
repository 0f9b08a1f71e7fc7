//! CONNECT and CONNACK.

use std::time::{Duration, Instant};

use kentongan_proto::mqtt::*;
use rustix::process::Signal;

use super::BOTH;
use crate::support::*;

fn raw(broker: &Broker, bytes: &[u8]) -> Client {
    let mut client = Client::raw(broker, ProtocolVersion::V3_1_1);
    client.send_bytes(bytes);
    client
}

/// Conformance: [MQTT5-3.1.0-1], [MQTT311-3.1.0-1], [MQTT5-3.14.0-1]
///
/// Abuse: [not-connect]
#[test]
fn anything_but_connect_first_is_hung_up_on_without_a_word() {
    let broker = Broker::start();
    for packet in [&[0xC0, 0][..], &[0x30, 3, 0, 1, b'a'], &[0xE0, 0], b"GET / HTTP/1.1\r\n\r\n", &[0xF0, 0]] {
        raw(&broker, packet).expect_closed();
    }
}

/// Conformance: [MQTT5-3.1.2-1], [MQTT311-3.1.2-1], [MQTT5-3.1.2-2], [MQTT311-3.1.2-2]
#[test]
fn an_unknown_protocol_is_answered_in_its_own_shape_and_closed() {
    let broker = Broker::start();
    let mut client = raw(&broker, b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00");
    client.version = ProtocolVersion::V5;
    assert_eq!(client.expect_connack().reason_code, ReasonCode::UnsupportedProtocolVersion);
    client.expect_closed();
    let mut client = raw(&broker, b"\x10\x0c\x00\x04MQTT\x03\x02\x00\x00\x00\x00");
    assert_eq!(client.expect_connack().reason_code, ReasonCode::UnsupportedProtocolVersion);
    client.expect_closed();
    let mut client = raw(&broker, b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00");
    drop(client.expect_connack());
    client.expect_closed();
}

/// Conformance: [MQTT5-3.1.2-3], [MQTT311-3.1.2-3], [MQTT5-3.1.2-11], [MQTT311-3.1.2-11], [MQTT5-3.1.2-12],
/// [MQTT311-3.1.2-14], [MQTT5-3.1.2-13], [MQTT311-3.1.2-13], [MQTT311-3.1.2-15], [MQTT311-3.1.2-22],
/// [MQTT5-3.1.4-1], [MQTT311-3.1.4-1]
#[test]
fn contradictory_connect_flags_are_hung_up_on() {
    let broker = Broker::start();
    // Reserved; will QoS and will retain without a will; will QoS 3; password without user name (3.1.1).
    for flags in [0x03, 0x0A, 0x12, 0x22, 0x1E] {
        for level in [4, 5] {
            raw(&broker, &connect_bytes(level, flags, &[b"\0\0"])).expect_closed();
        }
    }
    raw(&broker, b"\x10\x0f\x00\x04MQTT\x04\x42\x00\x00\x00\x00\x00\x01p").expect_closed();
}

/// Conformance: [MQTT5-3.1.2-9], [MQTT311-3.1.2-9], [MQTT5-3.1.2-17], [MQTT311-3.1.2-19], [MQTT5-3.1.2-19],
/// [MQTT311-3.1.2-21], [MQTT5-3.1.2-16], [MQTT311-3.1.2-18], [MQTT5-3.1.2-18], [MQTT311-3.1.2-20]
#[test]
fn the_payload_of_connect_is_what_its_flags_say_no_less_and_no_more() {
    let broker = Broker::start();
    for level in [4, 5] {
        // A will, a user name, a password promised and not there; then one that nobody promised.
        for flags in [0x06, 0x82, 0xC2] {
            raw(&broker, &connect_bytes(level, flags, &[b"\0\x01a"])).expect_closed();
        }
        for unannounced in [&b"\0\x01u"[..], b"\0"] {
            raw(&broker, &connect_bytes(level, 0x02, &[b"\0\x01a", unannounced])).expect_closed();
        }
    }
    // Will Properties are a part of it in MQTT 5: the same bytes without their length.
    raw(&broker, &connect_bytes(5, 0x06, &[b"\0\x01a", b"\0\x01t", b"\0\x01p"])).expect_closed();
}

/// CONNECT by hand: `fields` are the payload, each with its length.
fn connect_bytes(level: u8, flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    let body = [&b"\0\x04MQTT"[..], &[level, flags, 0, 0], properties, &fields.concat()].concat();
    [&[0x10, body.len() as u8], &body[..]].concat()
}

/// Conformance: [MQTT5-3.1.3-1], [MQTT311-3.1.3-1], [MQTT5-3.1.3-3], [MQTT311-3.1.3-3]
#[test]
fn the_fields_of_connect_are_taken_in_their_order() {
    let broker = Broker::start();
    let mut watcher = Client::v311(&broker, "w");
    watcher.subscribe("#", QoS::AtMostOnce);
    for version in BOTH {
        let mut asked = connect(version, "id");
        asked.user_name = Some("user".to_owned());
        asked.password = Some("password".into());
        asked.will = Some(will("topic", "payload"));
        let (client, _) = Client::open(&broker, asked);
        drop(client);
        let message = watcher.expect_publish();
        assert_eq!((message.topic.as_str(), &message.payload[..]), ("topic", &b"payload"[..]));
    }
}

fn will(topic: &str, payload: &str) -> Will {
    Will {
        topic: topic.to_owned(),
        payload: bytes::Bytes::copy_from_slice(payload.as_bytes()),
        qos: QoS::AtMostOnce,
        retain: false,
        properties: WillProperties::default(),
    }
}

/// Conformance: [MQTT5-3.1.3-4], [MQTT311-3.1.3-4], [MQTT5-3.1.3-11], [MQTT311-3.1.3-10], [MQTT5-3.1.3-12],
/// [MQTT311-3.1.3-11]
#[test]
fn the_strings_of_connect_are_utf_8() {
    let broker = Broker::start();
    for level in [4, 5] {
        let will_properties: &[u8] = if level == 5 { &[0] } else { &[] };
        raw(&broker, &connect_bytes(level, 0x02, &[b"\0\x01\xFF"])).expect_closed();
        raw(&broker, &connect_bytes(level, 0x06, &[b"\0\x01a", will_properties, b"\0\x01\xFF", b"\0\0"]))
            .expect_closed();
        raw(&broker, &connect_bytes(level, 0x82, &[b"\0\x01a", b"\0\x01\xFF"])).expect_closed();
    }
}

/// Conformance: [MQTT5-3.1.4-5], [MQTT311-3.1.4-4], [MQTT5-3.2.0-1], [MQTT311-3.2.0-1], [MQTT5-3.2.0-2],
/// [MQTT5-3.2.2-1], [MQTT5-3.2.2-8]
#[test]
fn connack_is_the_first_packet_and_the_only_connack() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::raw(&broker, version);
        client.send(&Packet::Connect(Box::new(connect(version, "a"))));
        client.send(&Packet::PingReq);
        let connack = client.expect_connack();
        assert_eq!((connack.reason_code, connack.session_present), (ReasonCode::Success, false));
        assert_eq!(client.receive(), Packet::PingResp);
        client.expect_nothing();
    }
}

/// Conformance: [MQTT5-3.1.3-5], [MQTT311-3.1.3-5]
#[test]
fn client_identifiers_of_23_letters_and_digits_are_accepted() {
    let broker = Broker::start();
    for version in [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5] {
        for client_id in ["0", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"] {
            Client::accepted(&broker, connect(version, client_id)).disconnect();
        }
    }
}

/// Conformance: [MQTT5-3.1.3-6], [MQTT5-3.1.3-7], [MQTT5-3.2.2-16], [MQTT311-3.1.3-6]
#[test]
fn an_empty_client_identifier_is_replaced_by_a_unique_one() {
    let broker = Broker::start();
    let (_one, first) = Client::open(&broker, connect(ProtocolVersion::V5, ""));
    let (_two, second) = Client::open(&broker, connect(ProtocolVersion::V5, ""));
    let id = first.properties.assigned_client_identifier.expect("assigned");
    assert_ne!(Some(&id), second.properties.assigned_client_identifier.as_ref());
    let mut resumed = connect(ProtocolVersion::V5, &id);
    resumed.clean_start = false;
    drop(Client::accepted(&broker, resumed));
    Client::v311(&broker, "").expect_nothing();
}

/// Conformance: [MQTT311-3.1.3-7], [MQTT311-3.1.3-8], [MQTT311-3.1.3-9], [MQTT311-3.2.2-4], [MQTT311-3.2.2-5],
/// [MQTT311-3.1.4-5]
#[test]
fn an_empty_client_identifier_without_clean_session_is_refused_in_3_1_1() {
    let broker = Broker::start();
    let mut watcher = Client::v311(&broker, "w");
    watcher.subscribe("#", QoS::AtMostOnce);
    let mut asked = connect(ProtocolVersion::V3_1_1, "");
    asked.clean_start = false;
    let mut client = Client::raw(&broker, ProtocolVersion::V3_1_1);
    client.send(&Packet::Connect(Box::new(asked)));
    client.publish("refused", "x", QOS0);
    let connack = client.expect_connack();
    assert_eq!((connack.reason_code, connack.session_present), (ReasonCode::ClientIdentifierNotValid, false));
    client.expect_closed();
    watcher.expect_nothing();
}

/// Conformance: [MQTT5-3.1.4-2], [MQTT5-3.1.4-6], [MQTT5-3.2.2-6], [MQTT5-3.2.2-7], [MQTT5-3.1.3-8]
#[test]
fn a_refused_connect_closes_and_nothing_behind_it_counts() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__CLIENT_ID_BYTES_MAX", "5")]);
    let mut watcher = Client::v5(&broker, "w");
    watcher.subscribe("#", QoS::AtMostOnce);
    let mut client = Client::raw(&broker, ProtocolVersion::V5);
    client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "too long"))));
    client.publish("refused", "x", QOS0);
    let connack = client.expect_connack();
    assert_eq!((connack.reason_code, connack.session_present), (ReasonCode::ClientIdentifierNotValid, false));
    client.expect_closed();
    watcher.expect_nothing();
}

/// Conformance: [MQTT311-3.2.2-6]
///
/// Abuse: [anonymous]
#[test]
fn a_listener_that_lets_nobody_in_says_so() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_ALLOW_ANONYMOUS", "false")]);
    for version in BOTH {
        let (mut client, connack) = Client::open(&broker, connect(version, "a"));
        assert_eq!(connack.reason_code, ReasonCode::NotAuthorized);
        client.expect_closed();
    }
}

/// Conformance: [MQTT5-3.2.2-19]
#[test]
fn a_reason_string_is_left_out_where_it_would_not_fit() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__CLIENT_ID_BYTES_MAX", "5")]);
    let mut asked = connect(ProtocolVersion::V5, "too long");
    assert!(Client::open(&broker, asked.clone()).1.properties.reason_string.is_some());
    asked.properties.maximum_packet_size = Some(20);
    assert_eq!(Client::open(&broker, asked).1.properties.reason_string, None);
}

fn persistent(version: ProtocolVersion, clean_start: bool) -> Connect {
    let mut asked = connect(version, "s");
    asked.clean_start = clean_start;
    asked.properties.session_expiry_interval = version.is_v5().then_some(100);
    asked
}

/// Conformance: [MQTT5-3.1.2-4], [MQTT5-3.1.2-5], [MQTT5-3.1.2-6], [MQTT5-3.1.2-23], [MQTT5-3.1.3-2], [MQTT5-3.1.4-4],
/// [MQTT5-3.2.2-2], [MQTT5-3.2.2-3], [MQTT311-3.1.2-4], [MQTT311-3.1.2-5], [MQTT311-3.1.2-6], [MQTT311-3.1.3-2],
/// [MQTT311-3.1.4-3], [MQTT311-3.2.2-1], [MQTT311-3.2.2-2], [MQTT311-3.2.2-3], [MQTT5-4.1.0-1], [MQTT311-4.1.0-1],
/// [MQTT311-4.1.0-2], [MQTT5-4.5.0-1], [MQTT311-4.5.0-1]
#[test]
fn a_session_is_kept_resumed_and_dropped_as_its_connect_says() {
    let broker = Broker::start();
    for version in BOTH {
        let (mut client, connack) = Client::open(&broker, persistent(version, false));
        assert!(!connack.session_present, "there was none");
        client.subscribe("kept", QoS::AtLeastOnce);
        client.disconnect();
        Client::v5(&broker, "p").publish_acknowledged("kept", "waited", qos1(1));
        let (mut client, connack) = Client::open(&broker, persistent(version, false));
        assert!(connack.session_present);
        assert_eq!(client.take_publish().payload, "waited");
        client.disconnect();
        let (mut client, connack) = Client::open(&broker, persistent(version, true));
        assert!(!connack.session_present, "dropped by Clean Start");
        Client::v5(&broker, "p").publish_acknowledged("kept", "gone", qos1(1));
        client.expect_nothing();
        client.disconnect();
        let mut clean = connect(version, "s");
        clean.clean_start = true;
        drop(Client::accepted(&broker, clean));
        wait_for("the broker noticed", || {
            let (client, connack) = Client::open(&broker, persistent(version, false));
            client.disconnect();
            !connack.session_present
        });
        drop(Client::accepted(&broker, connect(version, "s")));
    }
}

/// Conformance: [MQTT5-4.1.0-2]
#[test]
fn a_session_ends_when_its_expiry_interval_has_passed() {
    let broker = Broker::start();
    let mut asked = persistent(ProtocolVersion::V5, true);
    asked.properties.session_expiry_interval = Some(3);
    Client::accepted(&broker, asked.clone()).disconnect();
    asked.clean_start = false;
    assert!(Client::open(&broker, asked.clone()).1.session_present, "not before");
    let deadline = Instant::now() + Duration::from_secs(25);
    // Each try makes it live on; nothing ends early, and so up to a second late.
    loop {
        std::thread::sleep(Duration::from_millis(4500));
        let (_, connack) = Client::open(&broker, asked.clone());
        if !connack.session_present {
            break;
        }
        assert!(Instant::now() < deadline, "it outlives its expiry");
    }
}

/// Conformance: [MQTT5-3.1.4-3], [MQTT311-3.1.4-2]
#[test]
fn a_newer_connection_with_the_same_identifier_ends_the_older_one() {
    let broker = Broker::start();
    let mut old = Client::v5(&broker, "same");
    let mut new = Client::v5(&broker, "same");
    old.expect_disconnect(ReasonCode::SessionTakenOver);
    let mut newest = Client::v311(&broker, "same");
    new.expect_disconnect(ReasonCode::SessionTakenOver);
    newest.expect_nothing();
}

/// Conformance: [MQTT5-3.1.2-22], [MQTT311-3.1.2-24], [MQTT5-3.2.2-22]
#[test]
fn silence_for_one_and_a_half_keep_alives_ends_the_connection() {
    let broker = Broker::start();
    // In every part of a second, whole ones of which the broker counts.
    let silent: Vec<_> = (0..8)
        .map(|number| {
            let mut asked = connect(BOTH[number % 2], &format!("silent-{number}"));
            // One and a half of it is no whole number.
            asked.keep_alive = 1;
            let began = Instant::now();
            let (client, connack) = Client::open(&broker, asked);
            assert_eq!(connack.properties.server_keep_alive, None);
            std::thread::sleep(Duration::from_millis(125));
            (client, began)
        })
        .collect();
    for (mut client, began) in silent {
        if client.version.is_v5() {
            client.expect_disconnect(ReasonCode::KeepAliveTimeout);
        } else {
            client.expect_closed();
        }
        assert!(began.elapsed() >= Duration::from_millis(1500), "ended after {:?}", began.elapsed());
    }
}

/// What clients said while the process was stopped, as when its virtual machine is moved, is read before anybody is ended for silence.
#[test]
fn nobody_is_ended_for_what_he_said_while_the_broker_was_stopped() {
    let broker = Broker::start();
    let mut clients: Vec<_> = (0..50)
        .map(|number| {
            Client::open(&broker, Connect { keep_alive: 1, ..connect(BOTH[number % 2], &format!("{number}")) }).0
        })
        .collect();
    broker.signal(Signal::STOP);
    for client in &mut clients {
        client.send(&Packet::PingReq);
    }
    // For longer than any of them may be silent.
    std::thread::sleep(Duration::from_secs(5));
    broker.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.receive(), Packet::PingResp);
    }
}

/// Conformance: [MQTT5-3.1.2-28]
#[test]
fn response_information_is_given_only_to_those_who_ask() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__RESPONSE_INFORMATION", "answers/")]);
    let mut asked = connect(ProtocolVersion::V5, "a");
    assert_eq!(Client::open(&broker, asked.clone()).1.properties.response_information, None);
    asked.properties.request_response_information = Some(true);
    let given = Client::open(&broker, asked).1.properties.response_information;
    assert_eq!(given.as_deref(), Some("answers/"));
}

/// Conformance: [MQTT5-3.1.2-29], [MQTT5-3.14.2-3]
#[test]
fn a_reason_string_goes_only_to_clients_that_want_problem_information_and_have_room() {
    let broker = Broker::start();
    for (wanted, room, expected) in [(true, None, true), (false, None, false), (true, Some(20), false)] {
        let mut asked = connect(ProtocolVersion::V5, "a");
        asked.properties.request_problem_information = Some(wanted);
        asked.properties.maximum_packet_size = room;
        let mut client = Client::accepted(&broker, asked);
        // Packet identifier 0, which it is told in more than 20 bytes.
        client.send_bytes(&[0x32, 6, 0, 1, b'a', 0, 0, 0]);
        let Packet::Disconnect(disconnect) = client.receive() else {
            panic!("DISCONNECT expected");
        };
        assert_eq!(disconnect.properties.reason_string.is_some(), expected);
    }
}

/// Conformance: [MQTT5-4.12.0-1], [MQTT5-4.12.0-4], [MQTT5-3.1.2-30]
#[test]
fn an_unknown_authentication_method_is_refused() {
    let broker = Broker::start();
    let mut asked = connect(ProtocolVersion::V5, "a");
    asked.properties.authentication_method = Some("GUESS".to_owned());
    let (mut client, connack) = Client::open(&broker, asked);
    assert_eq!(connack.reason_code, ReasonCode::BadAuthenticationMethod);
    client.expect_closed();
}

/// Conformance: [MQTT5-4.12.0-6]
#[test]
fn without_an_authentication_method_none_is_answered() {
    let broker = Broker::start();
    let (mut client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "a"));
    assert_eq!((connack.properties.authentication_method, connack.properties.authentication_data), (None, None));
    client.expect_nothing();
}

/// Conformance: [MQTT5-3.12.4-1], [MQTT311-3.12.4-1]
#[test]
fn pingreq_is_answered() {
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Client::accepted(&broker, connect(version, "a"));
        client.send(&Packet::PingReq);
        assert_eq!(client.receive(), Packet::PingResp);
    }
}

/// Conformance: [MQTT5-3.14.2-2]
#[test]
fn a_session_that_was_to_end_cannot_be_prolonged_by_disconnect() {
    let broker = Broker::start();
    let mut client = Client::v5(&broker, "a");
    client.send(&Packet::Disconnect(Disconnect {
        reason_code: ReasonCode::Success,
        properties: DisconnectProperties { session_expiry_interval: Some(5), ..DisconnectProperties::default() },
    }));
    let Packet::Disconnect(answer) = client.receive() else {
        panic!("DISCONNECT expected");
    };
    assert_eq!(answer.reason_code, ReasonCode::ProtocolError);
    assert_eq!(answer.properties.session_expiry_interval, None);
}
