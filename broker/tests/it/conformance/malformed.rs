//! Bytes that no client may send, and what becomes of their connection.

use kentongan_proto::mqtt::*;

use crate::support::*;

/// MQTT 5: DISCONNECT with the reason and the end; 3.1.1: the end. And the broker goes on serving others.
fn refused(broker: &Broker, bytes: &[u8], reason: ReasonCode) {
    let mut client = Client::v5(broker, "five");
    client.send_bytes(bytes);
    client.expect_disconnect(reason);
}

fn refused_by_both(broker: &Broker, bytes_v5: &[u8], bytes_v311: &[u8], reason: ReasonCode) {
    refused(broker, bytes_v5, reason);
    closed_v311(broker, bytes_v311);
}

fn closed_v311(broker: &Broker, bytes: &[u8]) {
    let mut client = Client::v311(broker, "three");
    client.send_bytes(bytes);
    client.expect_closed();
}

use ReasonCode::{MalformedPacket, ProtocolError, TopicNameInvalid};

/// Conformance: [MQTT5-1.5.4-1], [MQTT311-1.5.3-1], [MQTT5-3.3.2-1], [MQTT311-3.3.2-1]
///
/// Abuse: [malformed]
#[test]
fn a_topic_name_that_is_not_utf_8_ends_the_connection() {
    let broker = Broker::start();
    // 0xED 0xA0 0x80 is the surrogate U+D800; 0xC0 0x80 an overlong NUL.
    for text in [&[0xFF, b'a', b'a'][..], &[0xED, 0xA0, 0x80], &[0xC0, 0x80, b'a']] {
        let v5 = [&[0x30, 6, 0, 3], text, &[0]].concat();
        let v311 = [&[0x30, 5, 0, 3], text].concat();
        refused_by_both(&broker, &v5, &v311, MalformedPacket);
    }
}

/// Conformance: [MQTT5-1.5.4-2], [MQTT311-1.5.3-2], [MQTT5-4.7.3-2], [MQTT311-4.7.3-2]
///
/// Abuse: [malformed]
#[test]
fn a_nul_in_a_string_ends_the_connection() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x30, 5, 0, 2, b'a', 0, 0], &[0x30, 4, 0, 2, b'a', 0], MalformedPacket);
    refused_by_both(
        &broker,
        &[0x82, 8, 0, 1, 0, 0, 2, b'a', 0, 0],
        &[0x82, 7, 0, 1, 0, 2, b'a', 0, 0],
        MalformedPacket,
    );
}

/// Conformance: [MQTT5-1.5.5-1]
///
/// Abuse: [malformed]
#[test]
fn a_variable_byte_integer_with_more_bytes_than_needed_is_refused() {
    let broker = Broker::start();
    refused(&broker, &[0xC0, 0x80, 0x00], MalformedPacket);
    refused(&broker, &[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], MalformedPacket);
    refused(&broker, &[0x30, 6, 0, 1, b'a', 0x80, 0x00, b'x'], MalformedPacket);
}

/// Conformance: [MQTT5-1.5.7-1]
#[test]
fn both_halves_of_a_user_property_are_checked() {
    let broker = Broker::start();
    refused(&broker, &[0x30, 11, 0, 1, b'a', 7, 0x26, 0, 1, 0xFF, 0, 1, b'v'], MalformedPacket);
    refused(&broker, &[0x30, 11, 0, 1, b'a', 7, 0x26, 0, 1, b'n', 0, 1, 0xFF], MalformedPacket);
}

/// Conformance: [MQTT5-2.1.3-1], [MQTT311-2.2.2-1], [MQTT311-2.2.2-2], [MQTT5-3.6.1-1], [MQTT311-3.6.1-1],
/// [MQTT5-3.8.1-1], [MQTT311-3.8.1-1], [MQTT5-3.10.1-1], [MQTT311-3.10.1-1], [MQTT5-3.14.1-1], [MQTT311-3.14.1-1],
/// [MQTT5-3.15.1-1]
///
/// Abuse: [malformed]
#[test]
fn reserved_flags_of_the_fixed_header_end_the_connection() {
    let broker = Broker::start();
    for first_byte in [0x41, 0x51, 0x60, 0x63, 0x6A, 0x71, 0x80, 0x83, 0xA0, 0xA3, 0xC1, 0xE1] {
        refused_by_both(&broker, &[first_byte, 2, 0, 1], &[first_byte, 2, 0, 1], MalformedPacket);
    }
    refused(&broker, &[0xF1, 0], MalformedPacket);
}

/// Conformance: [MQTT5-3.3.1-4], [MQTT311-3.3.1-4]
///
/// Abuse: [malformed]
#[test]
fn qos_3_ends_the_connection() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x36, 6, 0, 1, b'a', 0, 1, 0], &[0x36, 5, 0, 1, b'a', 0, 1], MalformedPacket);
}

/// Conformance: [MQTT5-3.3.1-2], [MQTT311-3.3.1-2]
#[test]
fn dup_on_qos_0_ends_the_connection() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x38, 4, 0, 1, b'a', 0], &[0x38, 3, 0, 1, b'a'], MalformedPacket);
}

/// Conformance: [MQTT5-2.2.1-3], [MQTT311-2.3.1-1]
///
/// Abuse: [malformed]
#[test]
fn packet_identifier_0_ends_the_connection() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x32, 6, 0, 1, b'a', 0, 0, 0], &[0x32, 5, 0, 1, b'a', 0, 0], ProtocolError);
    refused_by_both(&broker, &[0x82, 7, 0, 0, 0, 0, 1, b'a', 0], &[0x82, 6, 0, 0, 0, 1, b'a', 0], ProtocolError);
    refused_by_both(&broker, &[0xA2, 6, 0, 0, 0, 0, 1, b'a'], &[0xA2, 5, 0, 0, 0, 1, b'a'], ProtocolError);
}

/// Conformance: [MQTT5-3.3.2-2], [MQTT311-3.3.2-2], [MQTT5-4.7.0-1], [MQTT311-4.7.1-1]
///
/// Abuse: [topic-name]
#[test]
fn a_wildcard_in_a_topic_name_ends_the_connection() {
    let broker = Broker::start();
    for wildcard in [b'#', b'+'] {
        refused_by_both(&broker, &[0x30, 4, 0, 1, wildcard, 0], &[0x30, 3, 0, 1, wildcard], TopicNameInvalid);
    }
}

/// Conformance: [MQTT5-4.7.3-1], [MQTT311-4.7.3-1]
///
/// Abuse: [topic-name]
#[test]
fn an_empty_topic_name_ends_the_connection_and_an_empty_filter_is_refused() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x30, 3, 0, 0, 0], &[0x30, 2, 0, 0], ProtocolError);
    let mut client = Client::v5(&broker, "a");
    assert_eq!(client.subscribe("", QoS::AtMostOnce), ReasonCode::TopicFilterInvalid);
}

/// Conformance: [MQTT5-3.3.2-8], [MQTT5-3.3.2-9], [MQTT5-3.2.2-17]
///
/// Abuse: [topic-name]
#[test]
fn a_topic_alias_out_of_range_is_refused_with_its_reason() {
    let broker = Broker::start();
    for alias in [0, 65, u16::MAX] {
        let [high, low] = alias.to_be_bytes();
        refused(&broker, &[0x30, 7, 0, 1, b'a', 3, 0x23, high, low], ReasonCode::TopicAliasInvalid);
    }
}

/// Conformance: [MQTT5-3.2.2-18]
///
/// Abuse: [topic-name]
#[test]
fn without_a_topic_alias_maximum_every_alias_is_refused() {
    let broker = Broker::with_environment(&[], &[("KENTONGAN_SESSION__TOPIC_ALIAS_MAXIMUM", "0")]);
    let (mut client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "a"));
    assert_eq!(connack.properties.topic_alias_maximum, None);
    client.send_bytes(&[0x30, 7, 0, 1, b'a', 3, 0x23, 0, 1]);
    client.expect_disconnect(ReasonCode::TopicAliasInvalid);
}

/// Conformance: [MQTT5-3.3.2-14], [MQTT5-3.3.2-13], [MQTT5-3.3.2-19]
#[test]
fn properties_of_a_publish_that_are_no_topic_name_or_no_string_are_refused() {
    let broker = Broker::start();
    refused(&broker, &[0x30, 8, 0, 1, b'a', 4, 0x08, 0, 1, b'#'], ProtocolError);
    refused(&broker, &[0x30, 8, 0, 1, b'a', 4, 0x08, 0, 1, 0xFF], MalformedPacket);
    refused(&broker, &[0x30, 8, 0, 1, b'a', 4, 0x03, 0, 1, 0xFF], MalformedPacket);
}

/// Conformance: [MQTT5-3.3.4-6]
#[test]
fn a_client_may_not_send_subscription_identifiers() {
    let broker = Broker::start();
    refused(&broker, &[0x30, 6, 0, 1, b'a', 2, 0x0B, 1], ProtocolError);
}

/// Conformance: [MQTT5-3.8.3-2], [MQTT311-3.8.3-3], [MQTT5-3.10.3-2], [MQTT311-3.10.3-2]
#[test]
fn subscribe_and_unsubscribe_need_a_filter() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x82, 3, 0, 1, 0], &[0x82, 2, 0, 1], ProtocolError);
    refused_by_both(&broker, &[0xA2, 3, 0, 1, 0], &[0xA2, 2, 0, 1], ProtocolError);
}

/// Conformance: [MQTT5-3.8.3-1], [MQTT311-3.8.3-1], [MQTT5-3.10.3-1], [MQTT311-3.10.3-1]
#[test]
fn filters_are_utf_8() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0x82, 7, 0, 1, 0, 0, 1, 0xFF, 0], &[0x82, 6, 0, 1, 0, 1, 0xFF, 0], MalformedPacket);
    refused_by_both(&broker, &[0xA2, 6, 0, 1, 0, 0, 1, 0xFF], &[0xA2, 5, 0, 1, 0, 1, 0xFF], MalformedPacket);
}

/// Conformance: [MQTT5-3.8.3-5], [MQTT311-3.8.3-4]
#[test]
fn reserved_bits_of_subscription_options_end_the_connection() {
    let broker = Broker::start();
    for (options, reason) in [(0x40, MalformedPacket), (0x80, MalformedPacket), (0x03, ProtocolError)] {
        refused(&broker, &[0x82, 7, 0, 1, 0, 0, 1, b'a', options], reason);
    }
    for options in [0x04, 0x10, 0x03, 0x80] {
        closed_v311(&broker, &[0x82, 6, 0, 1, 0, 1, b'a', options]);
    }
}

#[test]
fn pingreq_has_no_body() {
    let broker = Broker::start();
    refused_by_both(&broker, &[0xC0, 1, 0], &[0xC0, 1, 0], MalformedPacket);
    refused_by_both(&broker, &[0xC0, 3, 0xC0, 0, 0], &[0xC0, 2, 0xC0, 0], MalformedPacket);
}

/// Conformance: [MQTT5-3.8.3-4]
///
/// Abuse: [shared-malformed]
#[test]
fn no_local_on_a_shared_subscription_is_a_protocol_error() {
    let broker = Broker::start();
    refused(&broker, b"\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04", ProtocolError);
}

/// Conformance: [MQTT5-3.4.2-1], [MQTT5-3.5.2-1], [MQTT5-3.6.2-1], [MQTT5-3.7.2-1], [MQTT5-3.14.2-1], [MQTT5-3.15.2-1]
#[test]
fn a_reason_code_that_a_packet_cannot_carry_is_refused() {
    let broker = Broker::start();
    for first_byte in [0x40, 0x50, 0x62, 0x70] {
        refused(&broker, &[first_byte, 3, 0, 1, 0x01], ProtocolError);
    }
    refused(&broker, &[0xE0, 1, 0x01], ProtocolError);
    refused(&broker, &[0xF0, 1, 0x01], ProtocolError);
}

/// Conformance: [MQTT5-4.13.1-1], [MQTT5-4.13.2-1], [MQTT311-4.8.0-1], [MQTT5-3.14.4-1], [MQTT5-3.14.4-2]
///
/// Abuse: [server-packet]
#[test]
fn packets_that_only_servers_send_end_the_connection() {
    let broker = Broker::start();
    for packet in [&[0x20, 2, 0, 0][..], &[0x90, 3, 0, 1, 0], &[0xB0, 2, 0, 1], &[0xD0, 0], &[0x00, 0]] {
        refused_by_both(&broker, packet, packet, ProtocolError);
    }
}

/// Conformance: [MQTT5-3.2.2-15]
///
/// Abuse: [packet-too-large]
#[test]
fn a_packet_over_the_announced_maximum_is_refused_by_its_header() {
    let broker = Broker::start();
    let (mut client, connack) = Client::open(&broker, connect(ProtocolVersion::V5, "a"));
    assert_eq!(connack.properties.maximum_packet_size, Some(1024 * 1024));
    // 2 MiB are promised; not a byte of them has to come.
    client.send_bytes(&[0x30, 0x80, 0x80, 0x80, 0x01]);
    client.expect_disconnect(ReasonCode::PacketTooLarge);
}

/// Conformance: [MQTT5-3.1.0-2], [MQTT311-3.1.0-2]
///
/// Abuse: [not-connect]
#[test]
fn a_second_connect_ends_the_connection() {
    let broker = Broker::start();
    let v5 = [&[0x10, 13, 0, 4][..], b"MQTT", &[5, 2, 0, 0, 0, 0, 0]].concat();
    let v311 = [&[0x10, 12, 0, 4][..], b"MQTT", &[4, 2, 0, 0, 0, 0]].concat();
    refused_by_both(&broker, &v5, &v311, ProtocolError);
}

/// Conformance: [MQTT5-4.12.0-7]
#[test]
fn auth_without_an_authentication_method_is_a_protocol_error() {
    let broker = Broker::start();
    refused(&broker, &[0xF0, 6, 0x18, 4, 0x15, 0, 1, b'm'], ProtocolError);
}
