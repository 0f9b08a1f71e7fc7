//! Property blocks of MQTT 5 (section 2.2.2), a decoder and an encoder for each packet that has them.

use std::num::NonZeroU16;

use bytes::Bytes;

use super::primitives::{Reader, put_binary, put_u16, put_u32, put_variable, variable_len};
use super::{DecodeError, Limits, PublishHead};
use crate::mqtt::{
    AckProperties, AuthProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, PropertiesRef,
    PublishProperties, UserProperties, WillProperties,
};
use crate::topic;

mod id {
    pub const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// Sets a property that may stand only once (a second one is a Protocol Error).
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), DecodeError> {
    if slot.replace(value).is_some() { Err(DecodeError::DuplicateProperty) } else { Ok(()) }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::PropertyValue("a property that is 0 or 1 was neither")),
    }
}

fn text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    Ok(reader.string()?.to_owned())
}

fn bytes(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    Ok(Bytes::copy_from_slice(reader.binary()?))
}

fn response_topic(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let name = reader.string()?;
    // [MQTT-3.3.2-14]
    topic::check_topic_name(name).map_err(|_| DecodeError::PropertyValue("the response topic is no topic name"))?;
    Ok(name.to_owned())
}

fn user(reader: &mut Reader<'_>, list: &mut UserProperties, limits: &Limits) -> Result<(), DecodeError> {
    if list.len() >= usize::from(limits.user_properties_max) {
        return Err(DecodeError::TooManyUserProperties { maximum: limits.user_properties_max });
    }
    let name = text(reader)?;
    list.push((name, text(reader)?));
    Ok(())
}

fn receive_maximum(reader: &mut Reader<'_>) -> Result<NonZeroU16, DecodeError> {
    NonZeroU16::new(reader.u16()?).ok_or(DecodeError::PropertyValue("receive maximum 0"))
}

fn maximum_packet_size(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match reader.u32()? {
        0 => Err(DecodeError::PropertyValue("maximum packet size 0")),
        size => Ok(size),
    }
}

fn payload_format(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    flag(reader).map(u8::from)
}

fn subscription_identifier(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match reader.variable()? {
        0 => Err(DecodeError::PropertyValue("subscription identifier 0")),
        identifier => Ok(identifier),
    }
}

/// The block that starts here, without its length.
pub(super) fn block<'a>(reader: &mut Reader<'a>) -> Result<Reader<'a>, DecodeError> {
    let length = reader.variable()?;
    Ok(Reader::new(reader.take(length as usize)?))
}

pub(super) fn connect(reader: &mut Reader<'_>, limits: &Limits) -> Result<ConnectProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = ConnectProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::SESSION_EXPIRY_INTERVAL => once(&mut properties.session_expiry_interval, block.u32()?)?,
            id::RECEIVE_MAXIMUM => once(&mut properties.receive_maximum, receive_maximum(&mut block)?)?,
            id::MAXIMUM_PACKET_SIZE => once(&mut properties.maximum_packet_size, maximum_packet_size(&mut block)?)?,
            id::TOPIC_ALIAS_MAXIMUM => once(&mut properties.topic_alias_maximum, block.u16()?)?,
            id::REQUEST_RESPONSE_INFORMATION => {
                once(&mut properties.request_response_information, flag(&mut block)?)?;
            }
            id::REQUEST_PROBLEM_INFORMATION => once(&mut properties.request_problem_information, flag(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            id::AUTHENTICATION_METHOD => once(&mut properties.authentication_method, text(&mut block)?)?,
            id::AUTHENTICATION_DATA => once(&mut properties.authentication_data, bytes(&mut block)?)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
        return Err(DecodeError::PropertyValue("authentication data without a method"));
    }
    Ok(properties)
}

pub(super) fn will(reader: &mut Reader<'_>, limits: &Limits) -> Result<WillProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = WillProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::WILL_DELAY_INTERVAL => once(&mut properties.will_delay_interval, block.u32()?)?,
            id::PAYLOAD_FORMAT_INDICATOR => {
                once(&mut properties.payload_format_indicator, payload_format(&mut block)?)?;
            }
            id::MESSAGE_EXPIRY_INTERVAL => once(&mut properties.message_expiry_interval, block.u32()?)?,
            id::CONTENT_TYPE => once(&mut properties.content_type, text(&mut block)?)?,
            id::RESPONSE_TOPIC => once(&mut properties.response_topic, response_topic(&mut block)?)?,
            id::CORRELATION_DATA => once(&mut properties.correlation_data, bytes(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(properties)
}

pub(super) fn connack(reader: &mut Reader<'_>, limits: &Limits) -> Result<ConnAckProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = ConnAckProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::SESSION_EXPIRY_INTERVAL => once(&mut properties.session_expiry_interval, block.u32()?)?,
            id::RECEIVE_MAXIMUM => once(&mut properties.receive_maximum, receive_maximum(&mut block)?)?,
            id::MAXIMUM_QOS => once(&mut properties.maximum_qos, u8::from(flag(&mut block)?))?,
            id::RETAIN_AVAILABLE => once(&mut properties.retain_available, flag(&mut block)?)?,
            id::MAXIMUM_PACKET_SIZE => once(&mut properties.maximum_packet_size, maximum_packet_size(&mut block)?)?,
            id::ASSIGNED_CLIENT_IDENTIFIER => once(&mut properties.assigned_client_identifier, text(&mut block)?)?,
            id::TOPIC_ALIAS_MAXIMUM => once(&mut properties.topic_alias_maximum, block.u16()?)?,
            id::REASON_STRING => once(&mut properties.reason_string, text(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            id::WILDCARD_SUBSCRIPTION_AVAILABLE => {
                once(&mut properties.wildcard_subscription_available, flag(&mut block)?)?;
            }
            id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE => {
                once(&mut properties.subscription_identifiers_available, flag(&mut block)?)?;
            }
            id::SHARED_SUBSCRIPTION_AVAILABLE => {
                once(&mut properties.shared_subscription_available, flag(&mut block)?)?;
            }
            id::SERVER_KEEP_ALIVE => once(&mut properties.server_keep_alive, block.u16()?)?,
            id::RESPONSE_INFORMATION => once(&mut properties.response_information, text(&mut block)?)?,
            id::SERVER_REFERENCE => once(&mut properties.server_reference, text(&mut block)?)?,
            id::AUTHENTICATION_METHOD => once(&mut properties.authentication_method, text(&mut block)?)?,
            id::AUTHENTICATION_DATA => once(&mut properties.authentication_data, bytes(&mut block)?)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(properties)
}

fn publish_block(mut block: Reader<'_>, limits: &Limits) -> Result<PublishProperties, DecodeError> {
    let mut properties = PublishProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::PAYLOAD_FORMAT_INDICATOR => {
                once(&mut properties.payload_format_indicator, payload_format(&mut block)?)?;
            }
            id::MESSAGE_EXPIRY_INTERVAL => once(&mut properties.message_expiry_interval, block.u32()?)?,
            id::TOPIC_ALIAS => once(&mut properties.topic_alias, block.u16()?)?,
            id::RESPONSE_TOPIC => once(&mut properties.response_topic, response_topic(&mut block)?)?,
            id::CORRELATION_DATA => once(&mut properties.correlation_data, bytes(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            id::SUBSCRIPTION_IDENTIFIER => {
                properties.subscription_identifiers.push(subscription_identifier(&mut block)?);
            }
            id::CONTENT_TYPE => once(&mut properties.content_type, text(&mut block)?)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(properties)
}

/// Walks the block of a PUBLISH once, allocating nothing.
pub(super) fn check_publish<'a>(
    reader: &mut Reader<'a>,
    from_client: bool,
    limits: &Limits,
) -> Result<PropertiesRef<'a>, DecodeError> {
    let whole = block(reader)?;
    let mut block = whole;
    let mut seen = 0_u64;
    let mut users = 0;
    while !block.is_empty() {
        let identifier = block.u8()?;
        match identifier {
            id::PAYLOAD_FORMAT_INDICATOR => drop(payload_format(&mut block)?),
            id::MESSAGE_EXPIRY_INTERVAL => drop(block.u32()?),
            id::TOPIC_ALIAS => drop(block.u16()?),
            id::RESPONSE_TOPIC => topic::check_topic_name(block.string()?)
                .map_err(|_| DecodeError::PropertyValue("the response topic is no topic name"))?,
            id::CORRELATION_DATA => drop(block.binary()?),
            id::CONTENT_TYPE => drop(block.string()?),
            id::USER_PROPERTY => {
                block.string()?;
                block.string()?;
                users += 1;
                if users > limits.user_properties_max {
                    return Err(DecodeError::TooManyUserProperties { maximum: limits.user_properties_max });
                }
                continue;
            }
            // [MQTT-3.3.4-6]
            id::SUBSCRIPTION_IDENTIFIER if from_client => {
                return Err(DecodeError::PropertyValue("a client's PUBLISH with a subscription identifier"));
            }
            id::SUBSCRIPTION_IDENTIFIER => {
                subscription_identifier(&mut block)?;
                continue;
            }
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
        if seen & (1 << identifier) != 0 {
            return Err(DecodeError::DuplicateProperty);
        }
        seen |= 1 << identifier;
    }
    Ok(PropertiesRef(whole.rest()))
}

impl PropertiesRef<'_> {
    /// Whether the packet has no properties.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the value of a property stands; nothing is copied.
    #[inline]
    fn value(&self, wanted: u8) -> Option<Reader<'_>> {
        let mut rest = Reader::new(self.0);
        while !rest.is_empty() {
            let found = rest.u8().ok()?;
            if found == wanted {
                return Some(rest);
            }
            match found {
                id::PAYLOAD_FORMAT_INDICATOR => drop(rest.take(1).ok()?),
                id::TOPIC_ALIAS => drop(rest.take(2).ok()?),
                id::MESSAGE_EXPIRY_INTERVAL => drop(rest.take(4).ok()?),
                id::SUBSCRIPTION_IDENTIFIER => drop(rest.variable().ok()?),
                id::USER_PROPERTY => {
                    rest.binary().ok()?;
                    rest.binary().ok()?;
                }
                _ => drop(rest.binary().ok()?),
            }
        }
        None
    }

    /// All of them, copied.
    #[must_use]
    pub fn to_owned(&self) -> PublishProperties {
        let limits = Limits { user_properties_max: u16::MAX, ..Limits::default() };
        publish_block(Reader::new(self.0), &limits).unwrap_or_default()
    }

    /// Topic Alias.
    #[inline]
    #[must_use]
    pub fn topic_alias(&self) -> Option<u16> {
        self.value(id::TOPIC_ALIAS)?.u16().ok()
    }

    /// Message Expiry Interval, seconds.
    #[must_use]
    pub fn message_expiry_interval(&self) -> Option<u32> {
        self.value(id::MESSAGE_EXPIRY_INTERVAL)?.u32().ok()
    }

    /// Payload Format Indicator.
    #[must_use]
    pub fn payload_format_indicator(&self) -> Option<u8> {
        self.value(id::PAYLOAD_FORMAT_INDICATOR)?.u8().ok()
    }
}

pub(super) fn ack(reader: &mut Reader<'_>, limits: &Limits) -> Result<AckProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = AckProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::REASON_STRING => once(&mut properties.reason_string, text(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(properties)
}

pub(super) fn subscribe(
    reader: &mut Reader<'_>,
    limits: &Limits,
) -> Result<(Option<u32>, UserProperties), DecodeError> {
    let mut block = block(reader)?;
    let mut identifier = None;
    let mut users = Vec::new();
    while !block.is_empty() {
        match block.u8()? {
            id::SUBSCRIPTION_IDENTIFIER => once(&mut identifier, subscription_identifier(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut users, limits)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok((identifier, users))
}

pub(super) fn unsubscribe(reader: &mut Reader<'_>, limits: &Limits) -> Result<UserProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut users = Vec::new();
    while !block.is_empty() {
        match block.u8()? {
            id::USER_PROPERTY => user(&mut block, &mut users, limits)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(users)
}

pub(super) fn disconnect(
    reader: &mut Reader<'_>,
    from_client: bool,
    limits: &Limits,
) -> Result<DisconnectProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = DisconnectProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::SESSION_EXPIRY_INTERVAL if from_client => {
                once(&mut properties.session_expiry_interval, block.u32()?)?;
            }
            // [MQTT-3.14.2-2]
            id::SESSION_EXPIRY_INTERVAL => {
                return Err(DecodeError::PropertyValue("a server's DISCONNECT with a session expiry interval"));
            }
            id::REASON_STRING => once(&mut properties.reason_string, text(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            id::SERVER_REFERENCE => once(&mut properties.server_reference, text(&mut block)?)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    Ok(properties)
}

pub(super) fn auth(reader: &mut Reader<'_>, limits: &Limits) -> Result<AuthProperties, DecodeError> {
    let mut block = block(reader)?;
    let mut properties = AuthProperties::default();
    while !block.is_empty() {
        match block.u8()? {
            id::AUTHENTICATION_METHOD => once(&mut properties.authentication_method, text(&mut block)?)?,
            id::AUTHENTICATION_DATA => once(&mut properties.authentication_data, bytes(&mut block)?)?,
            id::REASON_STRING => once(&mut properties.reason_string, text(&mut block)?)?,
            id::USER_PROPERTY => user(&mut block, &mut properties.user_properties, limits)?,
            other => return Err(DecodeError::UnknownProperty { identifier: other }),
        }
    }
    if properties.authentication_method.is_none() {
        return Err(DecodeError::PropertyValue("AUTH without an authentication method"));
    }
    Ok(properties)
}

/// Encoders: each appends one property if it is set.
mod put {
    use super::{put_binary, put_u16, put_u32, put_variable};

    pub fn byte(out: &mut Vec<u8>, id: u8, value: Option<u8>) {
        if let Some(value) = value {
            out.extend_from_slice(&[id, value]);
        }
    }

    pub fn flag(out: &mut Vec<u8>, id: u8, value: Option<bool>) {
        byte(out, id, value.map(u8::from));
    }

    pub fn two(out: &mut Vec<u8>, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            out.push(id);
            put_u16(out, value);
        }
    }

    pub fn four(out: &mut Vec<u8>, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            out.push(id);
            put_u32(out, value);
        }
    }

    pub fn variable(out: &mut Vec<u8>, id: u8, value: u32) {
        out.push(id);
        put_variable(out, value as usize);
    }

    pub fn bytes(out: &mut Vec<u8>, id: u8, value: Option<&[u8]>) {
        if let Some(value) = value {
            out.push(id);
            put_binary(out, value);
        }
    }

    pub fn text(out: &mut Vec<u8>, id: u8, value: Option<&String>) {
        bytes(out, id, value.map(String::as_bytes));
    }

    pub fn users(out: &mut Vec<u8>, list: &[(String, String)]) {
        for (name, value) in list {
            out.push(super::id::USER_PROPERTY);
            put_binary(out, name.as_bytes());
            put_binary(out, value.as_bytes());
        }
    }
}

/// Writes the length of a block and then the block that `fill` appends.
fn put_block(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    fill(out);
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(4);
    put_variable(&mut prefix, length);
    out.splice(start..=start, prefix);
}

pub(super) fn put_connect(out: &mut Vec<u8>, properties: &ConnectProperties) {
    put_block(out, |out| {
        put::four(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
        put::two(out, id::RECEIVE_MAXIMUM, properties.receive_maximum.map(NonZeroU16::get));
        put::four(out, id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
        put::two(out, id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
        put::flag(out, id::REQUEST_RESPONSE_INFORMATION, properties.request_response_information);
        put::flag(out, id::REQUEST_PROBLEM_INFORMATION, properties.request_problem_information);
        put::users(out, &properties.user_properties);
        put::text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
        put::bytes(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_deref());
    });
}

pub(super) fn put_will(out: &mut Vec<u8>, properties: &WillProperties) {
    put_block(out, |out| {
        put::four(out, id::WILL_DELAY_INTERVAL, properties.will_delay_interval);
        put::byte(out, id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator);
        put::four(out, id::MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval);
        put::text(out, id::CONTENT_TYPE, properties.content_type.as_ref());
        put::text(out, id::RESPONSE_TOPIC, properties.response_topic.as_ref());
        put::bytes(out, id::CORRELATION_DATA, properties.correlation_data.as_deref());
        put::users(out, &properties.user_properties);
    });
}

pub(super) fn put_connack(out: &mut Vec<u8>, properties: &ConnAckProperties) {
    put_block(out, |out| {
        put::four(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
        put::two(out, id::RECEIVE_MAXIMUM, properties.receive_maximum.map(NonZeroU16::get));
        put::byte(out, id::MAXIMUM_QOS, properties.maximum_qos);
        put::flag(out, id::RETAIN_AVAILABLE, properties.retain_available);
        put::four(out, id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
        put::text(out, id::ASSIGNED_CLIENT_IDENTIFIER, properties.assigned_client_identifier.as_ref());
        put::two(out, id::TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum);
        put::text(out, id::REASON_STRING, properties.reason_string.as_ref());
        put::users(out, &properties.user_properties);
        put::flag(out, id::WILDCARD_SUBSCRIPTION_AVAILABLE, properties.wildcard_subscription_available);
        put::flag(out, id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE, properties.subscription_identifiers_available);
        put::flag(out, id::SHARED_SUBSCRIPTION_AVAILABLE, properties.shared_subscription_available);
        put::two(out, id::SERVER_KEEP_ALIVE, properties.server_keep_alive);
        put::text(out, id::RESPONSE_INFORMATION, properties.response_information.as_ref());
        put::text(out, id::SERVER_REFERENCE, properties.server_reference.as_ref());
        put::text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
        put::bytes(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_deref());
    });
}

/// The block of a PUBLISH as `head` has it.
pub(super) fn put_publish(out: &mut Vec<u8>, head: &PublishHead<'_>) {
    put::four(out, id::MESSAGE_EXPIRY_INTERVAL, head.message_expiry_interval);
    put::two(out, id::TOPIC_ALIAS, head.topic_alias);
    if let Some(properties) = head.properties {
        put::byte(out, id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator);
        put::text(out, id::CONTENT_TYPE, properties.content_type.as_ref());
        put::text(out, id::RESPONSE_TOPIC, properties.response_topic.as_ref());
        put::bytes(out, id::CORRELATION_DATA, properties.correlation_data.as_deref());
        put::users(out, &properties.user_properties);
    }
    for &identifier in head.subscription_identifiers {
        put::variable(out, id::SUBSCRIPTION_IDENTIFIER, identifier);
    }
}

/// Bytes that [`put_publish`] appends.
pub(super) fn publish_block_len(head: &PublishHead<'_>) -> usize {
    let text = |value: &Option<String>| value.as_ref().map_or(0, |text| 3 + text.len());
    let forwarded = head.properties.map_or(0, |properties| {
        let users: usize = properties.user_properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
        properties.payload_format_indicator.map_or(0, |_| 2)
            + text(&properties.content_type)
            + text(&properties.response_topic)
            + properties.correlation_data.as_ref().map_or(0, |data| 3 + data.len())
            + users
    });
    let identifiers: usize =
        head.subscription_identifiers.iter().map(|&identifier| 1 + variable_len(identifier as usize)).sum();
    head.message_expiry_interval.map_or(0, |_| 5) + head.topic_alias.map_or(0, |_| 3) + forwarded + identifiers
}

pub(super) fn put_ack(out: &mut Vec<u8>, properties: &AckProperties) {
    put_block(out, |out| {
        put::text(out, id::REASON_STRING, properties.reason_string.as_ref());
        put::users(out, &properties.user_properties);
    });
}

pub(super) fn put_subscribe(out: &mut Vec<u8>, identifier: Option<u32>, users: &[(String, String)]) {
    put_block(out, |out| {
        if let Some(identifier) = identifier {
            put::variable(out, id::SUBSCRIPTION_IDENTIFIER, identifier);
        }
        put::users(out, users);
    });
}

pub(super) fn put_disconnect(out: &mut Vec<u8>, properties: &DisconnectProperties) {
    put_block(out, |out| {
        put::four(out, id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
        put::text(out, id::REASON_STRING, properties.reason_string.as_ref());
        put::users(out, &properties.user_properties);
        put::text(out, id::SERVER_REFERENCE, properties.server_reference.as_ref());
    });
}

pub(super) fn put_auth(out: &mut Vec<u8>, properties: &AuthProperties) {
    put_block(out, |out| {
        put::text(out, id::AUTHENTICATION_METHOD, properties.authentication_method.as_ref());
        put::bytes(out, id::AUTHENTICATION_DATA, properties.authentication_data.as_deref());
        put::text(out, id::REASON_STRING, properties.reason_string.as_ref());
        put::users(out, &properties.user_properties);
    });
}
