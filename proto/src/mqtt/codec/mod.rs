//! Bytes to packets and back, for MQTT 3.1, 3.1.1 and 5.
//!
//! A packet is cut out of a buffer first ([`split_frame`]), which refuses type, flags, Remaining Length and size before
//! anything is allocated or waited for. PUBLISH and its acknowledgements have a way of their own that allocates
//! nothing; every other packet is decoded whole by [`decode`]. Decoding never panics, whatever the bytes.

mod decode;
mod encode;
mod error;
mod primitives;
mod properties;

use super::{Delivery, ProtocolVersion, PublishProperties};

pub use decode::{decode, decode_ack, decode_publish, split_frame};
pub use encode::{encode, encode_ack, encode_publish_head, encoded_len, publish_len, v3_connack_code};
pub use error::{DecodeError, EncodeError};

/// Who sent a packet: decides which packet types, flags and properties are legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The packet came from a client.
    Client,
    /// The packet came from a server.
    Server,
}

/// What a receiver accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The whole packet, its fixed header included.
    pub packet_bytes_max: u32,
    /// User Properties of one packet.
    pub user_properties_max: u16,
    /// Filters in one SUBSCRIBE or UNSUBSCRIBE.
    pub filters_max: u16,
    /// Levels of the Topic Name of a PUBLISH.
    pub topic_levels_max: u16,
    /// DUP on PUBREL, SUBSCRIBE and UNSUBSCRIBE, which MQTT 3.1 clients set when they send one again. Later versions
    /// reserve that bit.
    pub dup_on_requests: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes_max: 1024 * 1024,
            user_properties_max: 128,
            filters_max: 1024,
            topic_levels_max: 128,
            dup_on_requests: false,
        }
    }
}

/// The 15 types of MQTT Control Packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the specification's own and say it all")]
pub enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// The type in the high four bits of a packet's first byte; `None` for the reserved 0.
    #[inline]
    #[must_use]
    pub fn of(first_byte: u8) -> Option<Self> {
        Some(match first_byte >> 4 {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }
}

/// One whole packet in a buffer, its fixed header checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Type and flags.
    pub first_byte: u8,
    /// What follows the fixed header.
    pub body: &'a [u8],
    packet_type: PacketType,
    header_len: usize,
}

impl Frame<'_> {
    /// Its type.
    #[inline]
    #[must_use]
    pub fn packet_type(&self) -> PacketType {
        self.packet_type
    }

    /// Bytes of the whole packet. Never zero, so there is no `is_empty`.
    #[inline]
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a packet has at least its fixed header")]
    pub fn len(&self) -> usize {
        self.header_len + self.body.len()
    }
}

/// What stands at the beginning of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameStatus<'a> {
    /// A whole packet.
    Complete(Frame<'a>),
    /// The beginning of one.
    Incomplete {
        /// Bytes of the whole packet if its fixed header is there, else 0.
        needed: usize,
    },
}

/// The acknowledgements of PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the specification's own and say it all")]
pub enum AckKind {
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
}

/// A PUBLISH to be written, all but its payload.
#[derive(Debug, Clone, Copy)]
pub struct PublishHead<'a> {
    /// A re-delivery.
    pub dup: bool,
    /// QoS and Packet Identifier.
    pub delivery: Delivery,
    /// RETAIN flag.
    pub retain: bool,
    /// Empty only beside a Topic Alias.
    pub topic: &'a str,
    /// Topic Alias.
    pub topic_alias: Option<u16>,
    /// Seconds left.
    pub message_expiry_interval: Option<u32>,
    /// What else to forward; its own alias, expiry and Subscription Identifiers are ignored.
    pub properties: Option<&'a PublishProperties>,
    /// Those of the subscriptions it goes by.
    pub subscription_identifiers: &'a [u32],
    /// Bytes that will follow.
    pub payload_len: usize,
}

/// Bytes that a property block takes, its length included; none before MQTT 5.
fn block_len(version: ProtocolVersion, properties: usize) -> usize {
    if version.is_v5() { primitives::variable_len(properties) + properties } else { 0 }
}
