//! Why bytes are no packet, and what their sender is told.

use crate::mqtt::ReasonCode;

/// Why bytes are no packet of their sender. Always the sender's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Packet type 0, or one that the other side sends.
    #[error("packet type {packet_type} does not come from this side")]
    PacketType {
        /// The high four bits of the first byte.
        packet_type: u8,
    },
    /// The low four bits of the first byte are not as listed [MQTT-2.1.3-1].
    #[error("reserved flags {flags:#06b} in the fixed header of packet type {packet_type}")]
    Flags {
        /// The high four bits of the first byte.
        packet_type: u8,
        /// The low ones.
        flags: u8,
    },
    /// QoS 3 [MQTT-3.3.1-4].
    #[error("QoS 3")]
    InvalidQos,
    /// Longer than four bytes, or than needed [MQTT-1.5.5-1].
    #[error("a variable byte integer that is too long")]
    VariableByteInteger,
    /// Larger than the receiver accepts.
    #[error("a packet of {bytes} bytes; at most {maximum} are accepted")]
    PacketTooLarge {
        /// Whole packet.
        bytes: u64,
        /// What is accepted.
        maximum: u32,
    },
    /// A field reaches beyond the packet.
    #[error("the packet ends within a field")]
    Truncated,
    /// Bytes are left over.
    #[error("the packet goes on after its last field")]
    TrailingBytes,
    /// [MQTT-1.5.4-1]
    #[error("a string that is not UTF-8")]
    InvalidUtf8,
    /// [MQTT-1.5.4-2]
    #[error("a string with U+0000")]
    NulInString,
    /// Packet Identifier 0 [MQTT-2.2.1-3].
    #[error("packet identifier 0")]
    PacketIdentifierZero,
    /// A flag of CONNECT or a Subscription Option that is reserved, or contradicts another.
    #[error("{0}")]
    Malformed(&'static str),
    /// Well-formed, but not allowed here.
    #[error("{0}")]
    Protocol(&'static str),
    /// The protocol name or level of CONNECT is none that we know.
    #[error("protocol {name:?} level {level} is not supported")]
    UnsupportedProtocolVersion {
        /// Protocol Name, shortened.
        name: String,
        /// Protocol Level.
        level: u8,
    },
    /// A property that this packet does not have.
    #[error("property {identifier:#04x} does not belong to this packet")]
    UnknownProperty {
        /// Its identifier.
        identifier: u8,
    },
    /// A property that may stand only once.
    #[error("a property stands twice")]
    DuplicateProperty,
    /// A value that the property cannot have.
    #[error("{0}")]
    PropertyValue(&'static str),
    /// More User Properties than the receiver accepts.
    #[error("more than {maximum} user properties")]
    TooManyUserProperties {
        /// What is accepted.
        maximum: u16,
    },
    /// More filters than the receiver accepts.
    #[error("more than {maximum} topic filters in one packet")]
    TooManyFilters {
        /// What is accepted.
        maximum: u16,
    },
    /// A Topic Name with wildcards or too many levels [MQTT-3.3.2-2].
    #[error("{0}")]
    TopicName(&'static str),
    /// A Reason Code that this packet cannot carry.
    #[error("reason code {code:#04x} does not belong to this packet")]
    ReasonCode {
        /// As on the wire.
        code: u8,
    },
}

impl DecodeError {
    /// What the sender is told.
    #[must_use]
    pub fn reason_code(&self) -> ReasonCode {
        match self {
            Self::PacketType { .. }
            | Self::PacketIdentifierZero
            | Self::Protocol(_)
            | Self::DuplicateProperty
            | Self::PropertyValue(_)
            | Self::ReasonCode { .. } => ReasonCode::ProtocolError,
            Self::Flags { .. }
            | Self::InvalidQos
            | Self::VariableByteInteger
            | Self::Truncated
            | Self::TrailingBytes
            | Self::InvalidUtf8
            | Self::NulInString
            | Self::Malformed(_)
            | Self::UnknownProperty { .. } => ReasonCode::MalformedPacket,
            Self::PacketTooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::UnsupportedProtocolVersion { .. } => ReasonCode::UnsupportedProtocolVersion,
            Self::TooManyUserProperties { .. } | Self::TooManyFilters { .. } => ReasonCode::QuotaExceeded,
            Self::TopicName(_) => ReasonCode::TopicNameInvalid,
        }
    }
}

/// Why a packet cannot be written. Always our own doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field of more than 65,535 bytes.
    #[error("a field of {bytes} bytes; 65535 are possible")]
    FieldTooLong {
        /// Its length.
        bytes: usize,
    },
    /// More than a Remaining Length can say.
    #[error("a packet of {bytes} bytes; 268435455 are possible")]
    PacketTooLarge {
        /// Remaining Length.
        bytes: usize,
    },
}
