//! The MQTT session, without I/O: what a client may do next, and what it is owed.
//!
//! Nothing here performs I/O, reads a clock or draws a random number. The arbiter calls in with what the codec
//! decoded, and carries out what comes back. One session serves MQTT 3.1, 3.1.1 and 5.
//!
//! - [`handshake`]: a CONNECT against our limits.
//! - [`inbound`]: messages from the client: Receive Maximum, QoS 2 identifiers, Topic Aliases.
//! - [`subscribing`]: what a SUBSCRIBE is granted.
//! - [`acknowledgements`]: PUBACK and PUBREC leave in the order of their PUBLISH.
//! - [`outbound`]: messages to the client: the in-flight window and the queue behind it.

pub mod acknowledgements;
pub mod alias;
pub mod handshake;
pub mod inbound;
pub mod outbound;
pub mod subscribing;

use kentongan_proto::mqtt::ReasonCode;

/// Why a session had to end the connection. Always the client's doing.
///
/// The text is for our log and, in MQTT 5, the Reason String; what counts is [`SessionError::reason_code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// More unacknowledged QoS 1 and 2 messages than the Receive Maximum we announced [MQTT-3.3.4-7].
    #[error("more than {receive_maximum} unacknowledged messages: receive maximum exceeded")]
    ReceiveMaximumExceeded {
        /// What we announced.
        receive_maximum: u16,
    },
    /// A Topic Alias of 0, above our maximum, or never set [MQTT-3.3.2-8, MQTT-3.2.2-17].
    #[error("topic alias {alias} is not valid here (maximum {maximum})")]
    TopicAliasInvalid {
        /// What the client sent.
        alias: u16,
        /// What we announced.
        maximum: u16,
    },
    /// A Topic Alias that stands for nothing yet, with an empty Topic Name.
    #[error("topic alias {alias} was never set on this connection")]
    TopicAliasUnknown {
        /// What the client sent.
        alias: u16,
    },
    /// A packet that has no place at this point of the exchange.
    #[error("{0}")]
    Protocol(&'static str),
}

impl SessionError {
    /// What the client is told in DISCONNECT.
    #[must_use]
    pub fn reason_code(&self) -> ReasonCode {
        match self {
            Self::ReceiveMaximumExceeded { .. } => ReasonCode::ReceiveMaximumExceeded,
            Self::TopicAliasInvalid { .. } => ReasonCode::TopicAliasInvalid,
            Self::TopicAliasUnknown { .. } | Self::Protocol(_) => ReasonCode::ProtocolError,
        }
    }
}
