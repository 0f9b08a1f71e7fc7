//! Packets to bytes.

use super::primitives::{put_binary, put_u16, put_variable, variable_len};
use super::properties;
use super::{AckKind, EncodeError, PacketType, PublishHead, block_len};
use crate::mqtt::property::longest_user_property;
use crate::mqtt::{
    Ack, AckProperties, Auth, AuthProperties, ConnAck, Connect, Delivery, Disconnect, DisconnectProperties, Packet,
    PacketId, ProtocolVersion, Publish, ReasonCode, SubAck, Subscribe, Unsubscribe,
};

const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// Appends a packet to `out`.
///
/// # Errors
/// It cannot be expressed; `out` is then as it was.
pub fn encode(packet: &Packet, version: ProtocolVersion, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check_fields(packet)?;
    if let Packet::Publish(publish) = packet {
        return encode_publish(publish, version, out);
    }
    let (first_byte, body) = body(packet, version);
    if body.len() > REMAINING_LENGTH_MAX {
        return Err(EncodeError::PacketTooLarge { bytes: body.len() });
    }
    out.push(first_byte);
    put_variable(out, body.len());
    out.extend_from_slice(&body);
    Ok(())
}

/// Bytes that [`encode`] would append.
#[must_use]
pub fn encoded_len(packet: &Packet, version: ProtocolVersion) -> usize {
    if let Packet::Publish(publish) = packet {
        return publish_len(&head(publish), version);
    }
    let length = body(packet, version).1.len();
    1 + variable_len(length) + length
}

fn check_fields(packet: &Packet) -> Result<(), EncodeError> {
    let bytes = match packet {
        Packet::Connect(connect) => {
            let will = connect
                .will
                .as_ref()
                .map_or(0, |will| will.payload.len().max(will.topic.len()).max(will.properties.longest_field()));
            let user_name = connect.user_name.as_ref().map_or(0, String::len);
            let password = connect.password.as_ref().map_or(0, |password| password.len());
            connect.client_id.len().max(user_name).max(password).max(will).max(connect.properties.longest_field())
        }
        Packet::ConnAck(connack) => connack.properties.longest_field(),
        Packet::Publish(publish) => publish.topic.len().max(publish.properties.longest_field()),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            ack.properties.longest_field()
        }
        Packet::Subscribe(subscribe) => {
            let filter = subscribe.filters.iter().map(|(filter, _)| filter.len()).max().unwrap_or(0);
            filter.max(longest_user_property(&subscribe.user_properties))
        }
        Packet::SubAck(suback) | Packet::UnsubAck(suback) => suback.properties.longest_field(),
        Packet::Unsubscribe(unsubscribe) => {
            let filter = unsubscribe.filters.iter().map(String::len).max().unwrap_or(0);
            filter.max(longest_user_property(&unsubscribe.user_properties))
        }
        Packet::PingReq | Packet::PingResp => 0,
        Packet::Disconnect(disconnect) => disconnect.properties.longest_field(),
        Packet::Auth(auth) => auth.properties.longest_field(),
    };
    if bytes > usize::from(u16::MAX) { Err(EncodeError::FieldTooLong { bytes }) } else { Ok(()) }
}

fn head(publish: &Publish) -> PublishHead<'_> {
    PublishHead {
        dup: publish.dup,
        delivery: publish.delivery,
        retain: publish.retain,
        topic: &publish.topic,
        topic_alias: publish.properties.topic_alias,
        message_expiry_interval: publish.properties.message_expiry_interval,
        properties: Some(&publish.properties),
        subscription_identifiers: &publish.properties.subscription_identifiers,
        payload_len: publish.payload.len(),
    }
}

fn encode_publish(publish: &Publish, version: ProtocolVersion, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let head = head(publish);
    let bytes = remaining_len(&head, version);
    if bytes > REMAINING_LENGTH_MAX {
        return Err(EncodeError::PacketTooLarge { bytes });
    }
    encode_publish_head(&head, version, out);
    out.extend_from_slice(&publish.payload);
    Ok(())
}

fn remaining_len(head: &PublishHead<'_>, version: ProtocolVersion) -> usize {
    let id = if matches!(head.delivery, Delivery::AtMostOnce) { 0 } else { 2 };
    let block = if version.is_v5() { properties::publish_block_len(head) } else { 0 };
    2 + head.topic.len() + id + block_len(version, block) + head.payload_len
}

/// Bytes of the whole packet, its payload included.
#[must_use]
pub fn publish_len(head: &PublishHead<'_>, version: ProtocolVersion) -> usize {
    let length = remaining_len(head, version);
    1 + variable_len(length) + length
}

/// Appends everything of a PUBLISH but its payload; returns where in `out` the Packet Identifier stands. The caller has
/// made sure that topic and packet are not too long.
#[inline]
pub fn encode_publish_head(head: &PublishHead<'_>, version: ProtocolVersion, out: &mut Vec<u8>) -> Option<usize> {
    let first_byte = 0x30 | u8::from(head.dup) << 3 | (head.delivery.qos() as u8) << 1 | u8::from(head.retain);
    out.push(first_byte);
    put_variable(out, remaining_len(head, version));
    put_binary(out, head.topic.as_bytes());
    let id_offset = head.delivery.packet_id().map(|id| {
        put_u16(out, id.get());
        out.len() - 2
    });
    if version.is_v5() {
        put_variable(out, properties::publish_block_len(head));
        properties::put_publish(out, head);
    }
    id_offset
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP without properties. Versions before 5 have no reason to carry.
#[inline]
pub fn encode_ack(kind: AckKind, id: PacketId, reason: ReasonCode, version: ProtocolVersion, out: &mut Vec<u8>) {
    let first_byte = (kind as u8) << 4 | if kind == AckKind::PubRel { 0b0010 } else { 0 };
    let [high, low] = id.get().to_be_bytes();
    if reason == ReasonCode::Success || !version.is_v5() {
        out.extend_from_slice(&[first_byte, 2, high, low]);
    } else {
        out.extend_from_slice(&[first_byte, 3, high, low, reason as u8]);
    }
}

/// The CONNACK return code of 3.1 and 3.1.1 for a reason; `None`: the connection can only be closed [MQTT-3.2.2-6 of
/// 3.1.1].
#[must_use]
pub fn v3_connack_code(reason: ReasonCode) -> Option<u8> {
    Some(match reason {
        ReasonCode::Success => 0,
        ReasonCode::UnsupportedProtocolVersion => 1,
        ReasonCode::ClientIdentifierNotValid => 2,
        ReasonCode::ServerUnavailable | ReasonCode::ServerBusy => 3,
        ReasonCode::BadUserNameOrPassword => 4,
        ReasonCode::NotAuthorized | ReasonCode::Banned => 5,
        _ => return None,
    })
}

fn body(packet: &Packet, version: ProtocolVersion) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    let v5 = version.is_v5();
    let kind = match packet {
        Packet::Connect(packet) => {
            connect(&mut out, packet);
            PacketType::Connect
        }
        Packet::ConnAck(packet) => {
            connack(&mut out, packet, version);
            PacketType::ConnAck
        }
        Packet::Publish(_) => unreachable!("PUBLISH has an encoder of its own"),
        Packet::PubAck(packet) => {
            ack(&mut out, packet, v5);
            PacketType::PubAck
        }
        Packet::PubRec(packet) => {
            ack(&mut out, packet, v5);
            PacketType::PubRec
        }
        Packet::PubRel(packet) => {
            ack(&mut out, packet, v5);
            PacketType::PubRel
        }
        Packet::PubComp(packet) => {
            ack(&mut out, packet, v5);
            PacketType::PubComp
        }
        Packet::Subscribe(packet) => {
            subscribe(&mut out, packet, v5);
            PacketType::Subscribe
        }
        Packet::SubAck(packet) => {
            suback(&mut out, packet, v5);
            PacketType::SubAck
        }
        Packet::Unsubscribe(packet) => {
            unsubscribe(&mut out, packet, v5);
            PacketType::Unsubscribe
        }
        Packet::UnsubAck(packet) => {
            unsuback(&mut out, packet, v5);
            PacketType::UnsubAck
        }
        Packet::PingReq => PacketType::PingReq,
        Packet::PingResp => PacketType::PingResp,
        Packet::Disconnect(packet) => {
            disconnect(&mut out, packet, v5);
            PacketType::Disconnect
        }
        Packet::Auth(packet) => {
            auth(&mut out, packet);
            PacketType::Auth
        }
    };
    let flags = match kind {
        PacketType::PubRel | PacketType::Subscribe | PacketType::Unsubscribe => 0b0010,
        _ => 0,
    };
    ((kind as u8) << 4 | flags, out)
}

fn connect(out: &mut Vec<u8>, connect: &Connect) {
    let (name, level): (&[u8], u8) = match connect.version {
        ProtocolVersion::V3_1 => (b"MQIsdp", 3),
        ProtocolVersion::V3_1_1 => (b"MQTT", 4),
        ProtocolVersion::V5 => (b"MQTT", 5),
    };
    put_binary(out, name);
    out.push(level | u8::from(connect.bridge) << 7);
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.user_name.is_some()) << 7;
    out.push(flags);
    put_u16(out, connect.keep_alive);
    if connect.version.is_v5() {
        properties::put_connect(out, &connect.properties);
    }
    put_binary(out, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
        if connect.version.is_v5() {
            properties::put_will(out, &will.properties);
        }
        put_binary(out, will.topic.as_bytes());
        put_binary(out, &will.payload);
    }
    if let Some(user_name) = &connect.user_name {
        put_binary(out, user_name.as_bytes());
    }
    if let Some(password) = &connect.password {
        put_binary(out, password);
    }
}

fn connack(out: &mut Vec<u8>, connack: &ConnAck, version: ProtocolVersion) {
    // MQTT 3.1 knows no Session Present: the whole byte is reserved.
    out.push(u8::from(connack.session_present && version != ProtocolVersion::V3_1));
    if version.is_v5() {
        out.push(connack.reason_code as u8);
        properties::put_connack(out, &connack.properties);
    } else {
        // Where 3.x has no code, the caller closes instead; "unavailable" is the least wrong.
        out.push(v3_connack_code(connack.reason_code).unwrap_or(3));
    }
}

fn ack(out: &mut Vec<u8>, ack: &Ack, v5: bool) {
    put_u16(out, ack.packet_id.get());
    if !v5 {
        return;
    }
    let bare = ack.properties == AckProperties::default();
    if !(bare && ack.reason_code == ReasonCode::Success) {
        out.push(ack.reason_code as u8);
    }
    if !bare {
        properties::put_ack(out, &ack.properties);
    }
}

fn subscribe(out: &mut Vec<u8>, subscribe: &Subscribe, v5: bool) {
    put_u16(out, subscribe.packet_id.get());
    if v5 {
        properties::put_subscribe(out, subscribe.subscription_identifier, &subscribe.user_properties);
    }
    for (filter, options) in &subscribe.filters {
        put_binary(out, filter.as_bytes());
        let mut byte = options.qos as u8;
        if v5 {
            byte |= u8::from(options.no_local) << 2
                | u8::from(options.retain_as_published) << 3
                | (options.retain_handling as u8) << 4;
        }
        out.push(byte);
    }
}

fn suback(out: &mut Vec<u8>, suback: &SubAck, v5: bool) {
    put_u16(out, suback.packet_id.get());
    if v5 {
        properties::put_ack(out, &suback.properties);
    }
    for &code in &suback.reason_codes {
        // Before MQTT 5 a failure is 0x80 and nothing else [MQTT-3.9.3-2 of 3.1.1].
        out.push(if v5 || !code.is_error() { code as u8 } else { 0x80 });
    }
}

fn unsubscribe(out: &mut Vec<u8>, unsubscribe: &Unsubscribe, v5: bool) {
    put_u16(out, unsubscribe.packet_id.get());
    if v5 {
        properties::put_subscribe(out, None, &unsubscribe.user_properties);
    }
    for filter in &unsubscribe.filters {
        put_binary(out, filter.as_bytes());
    }
}

fn unsuback(out: &mut Vec<u8>, unsuback: &SubAck, v5: bool) {
    put_u16(out, unsuback.packet_id.get());
    if v5 {
        properties::put_ack(out, &unsuback.properties);
        out.extend(unsuback.reason_codes.iter().map(|&code| code as u8));
    }
}

fn disconnect(out: &mut Vec<u8>, disconnect: &Disconnect, v5: bool) {
    let bare = disconnect.properties == DisconnectProperties::default();
    if !v5 || (bare && disconnect.reason_code == ReasonCode::Success) {
        return;
    }
    out.push(disconnect.reason_code as u8);
    if !bare {
        properties::put_disconnect(out, &disconnect.properties);
    }
}

fn auth(out: &mut Vec<u8>, auth: &Auth) {
    if auth.reason_code == ReasonCode::Success && auth.properties == AuthProperties::default() {
        return;
    }
    out.push(auth.reason_code as u8);
    properties::put_auth(out, &auth.properties);
}
