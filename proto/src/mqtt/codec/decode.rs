//! Bytes to packets.

use bytes::Bytes;

use super::primitives::Reader;
use super::properties;
use super::{DecodeError, Frame, FrameStatus, Limits, PacketType, Sender};
use crate::mqtt::{
    Ack, AckProperties, Auth, AuthProperties, ConnAck, ConnAckProperties, Connect, ConnectProperties, Delivery,
    Disconnect, DisconnectProperties, Packet, PacketId, PropertiesRef, ProtocolVersion, Publish, PublishRef, QoS,
    ReasonCode, RetainHandling, SubAck, Subscribe, SubscriptionOptions, Unsubscribe, Will, WillProperties,
};

/// Looks for a whole packet at the beginning of `buffer`.
///
/// # Errors
/// Type, flags, Remaining Length or size rule the packet out, whether or not all of it is there.
#[inline]
pub fn split_frame<'a>(buffer: &'a [u8], sender: Sender, limits: &Limits) -> Result<FrameStatus<'a>, DecodeError> {
    let Some(&first_byte) = buffer.first() else {
        return Ok(FrameStatus::Incomplete { needed: 0 });
    };
    let packet_type = check_first_byte(first_byte, sender, limits.dup_on_requests)?;
    let mut length = 0_u64;
    let mut position = 1;
    loop {
        let Some(&byte) = buffer.get(position) else {
            return Ok(FrameStatus::Incomplete { needed: 0 });
        };
        length |= u64::from(byte & 0x7F) << (7 * (position - 1));
        position += 1;
        if byte & 0x80 == 0 {
            if byte == 0 && position > 2 {
                return Err(DecodeError::VariableByteInteger);
            }
            break;
        }
        if position > 4 {
            return Err(DecodeError::VariableByteInteger);
        }
    }
    let whole = position as u64 + length;
    if whole > u64::from(limits.packet_bytes_max) {
        return Err(DecodeError::PacketTooLarge { bytes: whole, maximum: limits.packet_bytes_max });
    }
    match buffer.get(position..whole as usize) {
        Some(body) => Ok(FrameStatus::Complete(Frame { first_byte, body, packet_type, header_len: position })),
        None => Ok(FrameStatus::Incomplete { needed: whole as usize }),
    }
}

fn check_first_byte(first_byte: u8, sender: Sender, dup_on_requests: bool) -> Result<PacketType, DecodeError> {
    let (number, flags) = (first_byte >> 4, first_byte & 0x0F);
    let packet_type = PacketType::of(first_byte).ok_or(DecodeError::PacketType { packet_type: number })?;
    let expected = match packet_type {
        PacketType::Publish => {
            return if flags & 0b0110 == 0b0110 { Err(DecodeError::InvalidQos) } else { Ok(packet_type) };
        }
        PacketType::PubRel | PacketType::Subscribe | PacketType::Unsubscribe if dup_on_requests => {
            0b0010 | flags & 0b1000
        }
        PacketType::PubRel | PacketType::Subscribe | PacketType::Unsubscribe => 0b0010,
        _ => 0,
    };
    let from_here = match packet_type {
        PacketType::Connect | PacketType::Subscribe | PacketType::Unsubscribe | PacketType::PingReq => {
            sender == Sender::Client
        }
        PacketType::ConnAck | PacketType::SubAck | PacketType::UnsubAck | PacketType::PingResp => {
            sender == Sender::Server
        }
        _ => true,
    };
    if !from_here {
        return Err(DecodeError::PacketType { packet_type: number });
    }
    if flags != expected {
        return Err(DecodeError::Flags { packet_type: number, flags });
    }
    Ok(packet_type)
}

fn packet_id(reader: &mut Reader<'_>) -> Result<PacketId, DecodeError> {
    PacketId::new(reader.u16()?).ok_or(DecodeError::PacketIdentifierZero)
}

/// A Topic Name for a PUBLISH or a will: no wildcards [MQTT-3.3.2-2], no more levels than that.
fn topic_name<'a>(reader: &mut Reader<'a>, levels_max: u32) -> Result<&'a str, DecodeError> {
    let bytes = reader.binary()?;
    let mut levels = 1;
    let mut ascii = true;
    for &byte in bytes {
        match byte {
            0 => return Err(DecodeError::NulInString),
            b'+' | b'#' => return Err(DecodeError::TopicName("a topic name with a wildcard")),
            b'/' => levels += 1_u32,
            _ => ascii &= byte < 0x80,
        }
    }
    if levels > levels_max {
        return Err(DecodeError::TopicName("a topic name with too many levels"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8)?;
    debug_assert!(!ascii || text.is_ascii());
    Ok(text)
}

/// Decodes a PUBLISH in place: everything is checked, nothing copied or allocated.
///
/// # Errors
/// What is wrong with it.
#[inline]
pub fn decode_publish<'a>(
    frame: &Frame<'a>,
    version: ProtocolVersion,
    sender: Sender,
    limits: &Limits,
) -> Result<PublishRef<'a>, DecodeError> {
    let mut reader = Reader::new(frame.body);
    let qos = QoS::from_bits(frame.first_byte >> 1 & 0b11).ok_or(DecodeError::InvalidQos)?;
    let dup = frame.first_byte & 0b1000 != 0;
    let topic = topic_name(&mut reader, u32::from(limits.topic_levels_max))?;
    let delivery = match qos {
        // [MQTT-3.3.1-2]
        QoS::AtMostOnce if dup => return Err(DecodeError::Malformed("DUP on a QoS 0 PUBLISH")),
        QoS::AtMostOnce => Delivery::AtMostOnce,
        QoS::AtLeastOnce => Delivery::AtLeastOnce(packet_id(&mut reader)?),
        QoS::ExactlyOnce => Delivery::ExactlyOnce(packet_id(&mut reader)?),
    };
    let properties = if version.is_v5() {
        properties::check_publish(&mut reader, sender == Sender::Client, limits)?
    } else {
        PropertiesRef::default()
    };
    if topic.is_empty() && (!version.is_v5() || properties.topic_alias().is_none()) {
        // [MQTT-4.7.3-1]
        return Err(DecodeError::Protocol("an empty topic name without a topic alias"));
    }
    Ok(PublishRef { dup, delivery, retain: frame.first_byte & 1 != 0, topic, properties, payload: reader.rest() })
}

/// Decodes PUBACK, PUBREC, PUBREL or PUBCOMP; properties are checked and left out.
///
/// # Errors
/// What is wrong with it.
#[inline]
pub fn decode_ack(frame: &Frame<'_>, version: ProtocolVersion) -> Result<(PacketId, ReasonCode), DecodeError> {
    if let [high, low] = *frame.body {
        let id = PacketId::new(u16::from_be_bytes([high, low])).ok_or(DecodeError::PacketIdentifierZero)?;
        return Ok((id, ReasonCode::Success));
    }
    let ack = acknowledgement(frame, version, &Limits::default())?;
    Ok((ack.packet_id, ack.reason_code))
}

/// Decodes a whole packet. Of `source`, the `Bytes` that holds the frame, payloads become slices; without it they are
/// copied. For CONNECT the version stands inside and `version` is ignored.
///
/// # Errors
/// What is wrong with it.
pub fn decode(
    frame: &Frame<'_>,
    source: Option<&Bytes>,
    version: ProtocolVersion,
    sender: Sender,
    limits: &Limits,
) -> Result<Packet, DecodeError> {
    let mut reader = Reader::new(frame.body);
    let v5 = version.is_v5();
    match frame.packet_type {
        PacketType::Connect => Ok(Packet::Connect(Box::new(connect(&mut reader, limits)?))),
        PacketType::ConnAck => connack(&mut reader, version, limits),
        PacketType::Publish => {
            let publish = decode_publish(frame, version, sender, limits)?;
            Ok(Packet::Publish(owned(&publish, source)))
        }
        PacketType::PubAck => acknowledgement(frame, version, limits).map(Packet::PubAck),
        PacketType::PubRec => acknowledgement(frame, version, limits).map(Packet::PubRec),
        PacketType::PubRel => acknowledgement(frame, version, limits).map(Packet::PubRel),
        PacketType::PubComp => acknowledgement(frame, version, limits).map(Packet::PubComp),
        PacketType::Subscribe => subscribe(&mut reader, v5, limits).map(Packet::Subscribe),
        PacketType::SubAck => suback(&mut reader, v5, limits).map(Packet::SubAck),
        PacketType::Unsubscribe => unsubscribe(&mut reader, v5, limits).map(Packet::Unsubscribe),
        PacketType::UnsubAck => unsuback(&mut reader, v5, limits).map(Packet::UnsubAck),
        PacketType::PingReq => end(reader).map(|()| Packet::PingReq),
        PacketType::PingResp => end(reader).map(|()| Packet::PingResp),
        PacketType::Disconnect => disconnect(&mut reader, v5, sender, limits).map(Packet::Disconnect),
        PacketType::Auth if v5 => auth(&mut reader, limits).map(Packet::Auth),
        PacketType::Auth => Err(DecodeError::PacketType { packet_type: 15 }),
    }
}

fn end(reader: Reader<'_>) -> Result<(), DecodeError> {
    if reader.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
}

fn owned(publish: &PublishRef<'_>, source: Option<&Bytes>) -> Publish {
    Publish {
        dup: publish.dup,
        delivery: publish.delivery,
        retain: publish.retain,
        topic: publish.topic.to_owned(),
        properties: publish.properties.to_owned(),
        payload: source
            .map_or_else(|| Bytes::copy_from_slice(publish.payload), |source| source.slice_ref(publish.payload)),
    }
}

fn connect(reader: &mut Reader<'_>, limits: &Limits) -> Result<Connect, DecodeError> {
    let (version, bridge) = protocol(reader)?;
    let flags = ConnectFlags::check(reader.u8()?, version)?;
    let keep_alive = reader.u16()?;
    let properties = if version.is_v5() { properties::connect(reader, limits)? } else { ConnectProperties::default() };
    let client_id = reader.string()?.to_owned();
    let will = if flags.will { Some(will(reader, version, &flags, limits)?) } else { None };
    // In MQTT 3.1 what the flags announce may be missing at the end: the Remaining Length counts.
    let may_be_missing = version == ProtocolVersion::V3_1;
    let follows = |flag: bool, reader: &Reader<'_>| flag && !(may_be_missing && reader.is_empty());
    let user_name = if follows(flags.user_name, reader) { Some(reader.string()?.to_owned()) } else { None };
    let password = if follows(flags.password, reader) { Some(Bytes::copy_from_slice(reader.binary()?)) } else { None };
    end(*reader)?;
    Ok(Connect {
        version,
        bridge,
        clean_start: flags.clean_start,
        keep_alive,
        client_id,
        will,
        user_name,
        password,
        properties,
    })
}

/// Protocol Name and Level [MQTT-3.1.2-1, MQTT-3.1.2-2]; bridges of mosquitto set the level's high bit.
fn protocol(reader: &mut Reader<'_>) -> Result<(ProtocolVersion, bool), DecodeError> {
    let name = reader.binary()?;
    let level = reader.u8()?;
    match (name, level) {
        (b"MQTT", 5) => Ok((ProtocolVersion::V5, false)),
        (b"MQTT", 4) => Ok((ProtocolVersion::V3_1_1, false)),
        (b"MQTT", 0x84) => Ok((ProtocolVersion::V3_1_1, true)),
        (b"MQIsdp", 3) => Ok((ProtocolVersion::V3_1, false)),
        (b"MQIsdp", 0x83) => Ok((ProtocolVersion::V3_1, true)),
        _ => Err(DecodeError::UnsupportedProtocolVersion {
            name: String::from_utf8_lossy(&name[..name.len().min(16)]).into_owned(),
            level,
        }),
    }
}

struct ConnectFlags {
    clean_start: bool,
    will: bool,
    will_qos: QoS,
    will_retain: bool,
    user_name: bool,
    password: bool,
}

impl ConnectFlags {
    fn check(byte: u8, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let is_old = version == ProtocolVersion::V3_1;
        if byte & 1 != 0 && !is_old {
            return Err(DecodeError::Malformed("the reserved flag of CONNECT is set")); // [MQTT-3.1.2-3]
        }
        let will = byte & 0x04 != 0;
        // MQTT 3.1 disregards what is said of a will that there is not.
        let byte = if is_old && !will { byte & !0x38 } else { byte };
        let flags = Self {
            clean_start: byte & 0x02 != 0,
            will,
            // [MQTT-3.1.2-12]
            will_qos: QoS::from_bits(byte >> 3 & 0b11).ok_or(DecodeError::Malformed("will QoS 3"))?,
            will_retain: byte & 0x20 != 0,
            password: byte & 0x40 != 0,
            user_name: byte & 0x80 != 0,
        };
        if !flags.will && (flags.will_qos != QoS::AtMostOnce || flags.will_retain) {
            // [MQTT-3.1.2-11], [MQTT-3.1.2-13]
            return Err(DecodeError::Malformed("will QoS or will retain without a will"));
        }
        if !version.is_v5() && flags.password && !flags.user_name {
            // [MQTT-3.1.2-22] of 3.1.1; 3.1 calls it not valid either.
            return Err(DecodeError::Malformed("a password without a user name"));
        }
        Ok(flags)
    }
}

fn will(
    reader: &mut Reader<'_>,
    version: ProtocolVersion,
    flags: &ConnectFlags,
    limits: &Limits,
) -> Result<Will, DecodeError> {
    let properties = if version.is_v5() { properties::will(reader, limits)? } else { WillProperties::default() };
    // Of a will that is too deep the client is told in CONNACK, which is whoever answers CONNECT's to say.
    let topic = topic_name(reader, u32::MAX)?;
    if topic.is_empty() {
        return Err(DecodeError::TopicName("an empty will topic"));
    }
    Ok(Will {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(reader.binary()?),
        qos: flags.will_qos,
        retain: flags.will_retain,
        properties,
    })
}

fn reason(byte: u8, packet_type: PacketType) -> Result<ReasonCode, DecodeError> {
    ReasonCode::from_byte(byte)
        .filter(|code| code.belongs_to(packet_type))
        .ok_or(DecodeError::ReasonCode { code: byte })
}

fn connack(reader: &mut Reader<'_>, version: ProtocolVersion, limits: &Limits) -> Result<Packet, DecodeError> {
    let v5 = version.is_v5();
    // MQTT 3.1 does not use the byte.
    let flags = reader.u8()? * u8::from(version != ProtocolVersion::V3_1);
    if flags > 1 {
        return Err(DecodeError::Malformed("reserved flags of CONNACK")); // [MQTT-3.2.2-1]
    }
    let code = reader.u8()?;
    let reason_code = if v5 {
        reason(code, PacketType::ConnAck)?
    } else {
        match code {
            0 => ReasonCode::Success,
            1 => ReasonCode::UnsupportedProtocolVersion,
            2 => ReasonCode::ClientIdentifierNotValid,
            3 => ReasonCode::ServerUnavailable,
            4 => ReasonCode::BadUserNameOrPassword,
            5 => ReasonCode::NotAuthorized,
            code => return Err(DecodeError::ReasonCode { code }),
        }
    };
    let properties = if v5 { properties::connack(reader, limits)? } else { ConnAckProperties::default() };
    end(*reader)?;
    Ok(Packet::ConnAck(Box::new(ConnAck { session_present: flags == 1, reason_code, properties })))
}

fn acknowledgement(frame: &Frame<'_>, version: ProtocolVersion, limits: &Limits) -> Result<Ack, DecodeError> {
    let mut reader = Reader::new(frame.body);
    let packet_id = packet_id(&mut reader)?;
    if reader.is_empty() {
        return Ok(Ack::success(packet_id));
    }
    if !version.is_v5() {
        return Err(DecodeError::TrailingBytes);
    }
    let reason_code = reason(reader.u8()?, frame.packet_type)?;
    let properties = if reader.is_empty() { AckProperties::default() } else { properties::ack(&mut reader, limits)? };
    end(reader)?;
    Ok(Ack { packet_id, reason_code, properties })
}

fn subscribe(reader: &mut Reader<'_>, v5: bool, limits: &Limits) -> Result<Subscribe, DecodeError> {
    let packet_id = packet_id(reader)?;
    let (subscription_identifier, user_properties) =
        if v5 { properties::subscribe(reader, limits)? } else { (None, Vec::new()) };
    let mut filters = Vec::new();
    while !reader.is_empty() {
        check_filter_count(filters.len(), limits)?;
        let filter = reader.string()?;
        let options = options(reader.u8()?, v5)?;
        if options.no_local && filter.starts_with("$share/") {
            // [MQTT-3.8.3-4]
            return Err(DecodeError::Protocol("no local on a shared subscription"));
        }
        filters.push((filter.to_owned(), options));
    }
    if filters.is_empty() {
        return Err(DecodeError::Protocol("SUBSCRIBE without a topic filter")); // [MQTT-3.8.3-2]
    }
    Ok(Subscribe { packet_id, filters, subscription_identifier, user_properties })
}

fn check_filter_count(count: usize, limits: &Limits) -> Result<(), DecodeError> {
    if count >= usize::from(limits.filters_max) {
        return Err(DecodeError::TooManyFilters { maximum: limits.filters_max });
    }
    Ok(())
}

fn options(byte: u8, v5: bool) -> Result<SubscriptionOptions, DecodeError> {
    let reserved = if v5 { 0xC0 } else { 0xFC };
    if byte & reserved != 0 {
        // [MQTT-3.8.3-5]
        return Err(DecodeError::Malformed("reserved bits of the subscription options"));
    }
    Ok(SubscriptionOptions {
        qos: QoS::from_bits(byte & 0b11).ok_or(DecodeError::Protocol("a subscription at QoS 3"))?,
        no_local: byte & 0x04 != 0,
        retain_as_published: byte & 0x08 != 0,
        retain_handling: match byte >> 4 & 0b11 {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            2 => RetainHandling::Never,
            _ => return Err(DecodeError::Protocol("retain handling 3")),
        },
    })
}

fn suback(reader: &mut Reader<'_>, v5: bool, limits: &Limits) -> Result<SubAck, DecodeError> {
    let packet_id = packet_id(reader)?;
    let properties = if v5 { properties::ack(reader, limits)? } else { AckProperties::default() };
    let mut reason_codes = Vec::new();
    while !reader.is_empty() {
        let code = reader.u8()?;
        if !v5 && !matches!(code, 0..=2 | 0x80) {
            return Err(DecodeError::ReasonCode { code }); // [MQTT-3.9.3-2] of 3.1.1
        }
        reason_codes.push(reason(code, PacketType::SubAck)?);
    }
    Ok(SubAck { packet_id, reason_codes, properties })
}

fn unsubscribe(reader: &mut Reader<'_>, v5: bool, limits: &Limits) -> Result<Unsubscribe, DecodeError> {
    let packet_id = packet_id(reader)?;
    let user_properties = if v5 { properties::unsubscribe(reader, limits)? } else { Vec::new() };
    let mut filters = Vec::new();
    while !reader.is_empty() {
        check_filter_count(filters.len(), limits)?;
        filters.push(reader.string()?.to_owned());
    }
    if filters.is_empty() {
        return Err(DecodeError::Protocol("UNSUBSCRIBE without a topic filter")); // [MQTT-3.10.3-2]
    }
    Ok(Unsubscribe { packet_id, filters, user_properties })
}

fn unsuback(reader: &mut Reader<'_>, v5: bool, limits: &Limits) -> Result<SubAck, DecodeError> {
    let packet_id = packet_id(reader)?;
    if !v5 {
        end(*reader)?;
        return Ok(SubAck { packet_id, reason_codes: Vec::new(), properties: AckProperties::default() });
    }
    let properties = properties::ack(reader, limits)?;
    let mut reason_codes = Vec::new();
    while !reader.is_empty() {
        reason_codes.push(reason(reader.u8()?, PacketType::UnsubAck)?);
    }
    Ok(SubAck { packet_id, reason_codes, properties })
}

fn disconnect(reader: &mut Reader<'_>, v5: bool, sender: Sender, limits: &Limits) -> Result<Disconnect, DecodeError> {
    if reader.is_empty() {
        return Ok(Disconnect { reason_code: ReasonCode::Success, properties: DisconnectProperties::default() });
    }
    if !v5 {
        return Err(DecodeError::TrailingBytes);
    }
    let reason_code = reason(reader.u8()?, PacketType::Disconnect)?;
    let properties = if reader.is_empty() {
        DisconnectProperties::default()
    } else {
        properties::disconnect(reader, sender == Sender::Client, limits)?
    };
    end(*reader)?;
    Ok(Disconnect { reason_code, properties })
}

fn auth(reader: &mut Reader<'_>, limits: &Limits) -> Result<Auth, DecodeError> {
    if reader.is_empty() {
        return Ok(Auth { reason_code: ReasonCode::Success, properties: AuthProperties::default() });
    }
    let reason_code = reason(reader.u8()?, PacketType::Auth)?;
    let properties = properties::auth(reader, limits)?;
    end(*reader)?;
    Ok(Auth { reason_code, properties })
}
