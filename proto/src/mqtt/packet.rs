//! The packets of all versions as one model; what a version lacks is simply empty there.

use std::fmt;
use std::num::NonZeroU16;

use bytes::Bytes;

use super::{
    AckProperties, AuthProperties, ConnAckProperties, ConnectProperties, DisconnectProperties, PublishProperties,
    ReasonCode, UserProperties, WillProperties,
};

/// The protocol version of a connection, fixed by its CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// MQTT 3.1 (`MQIsdp`, level 3).
    V3_1,
    /// MQTT 3.1.1 (`MQTT`, level 4).
    V3_1_1,
    /// MQTT 5.0 (`MQTT`, level 5).
    V5,
}

impl ProtocolVersion {
    /// Whether packets carry properties and reason codes.
    #[inline]
    #[must_use]
    pub fn is_v5(self) -> bool {
        self == Self::V5
    }
}

/// Quality of Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    /// QoS 0.
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of its two bits on the wire; `None` for the reserved value 3.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// A Packet Identifier; zero is not one.
pub type PacketId = NonZeroU16;

/// One MQTT Control Packet, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Client to server: opens a session.
    Connect(Box<Connect>),
    /// Server to client: the answer to CONNECT.
    ConnAck(Box<ConnAck>),
    /// An Application Message.
    Publish(Publish),
    /// QoS 1 acknowledgement.
    PubAck(Ack),
    /// QoS 2, first answer.
    PubRec(Ack),
    /// QoS 2, release.
    PubRel(Ack),
    /// QoS 2, last answer.
    PubComp(Ack),
    /// Asks for subscriptions.
    Subscribe(Subscribe),
    /// The answer to SUBSCRIBE.
    SubAck(SubAck),
    /// Ends subscriptions.
    Unsubscribe(Unsubscribe),
    /// The answer to UNSUBSCRIBE.
    UnsubAck(SubAck),
    /// Keep-alive question.
    PingReq,
    /// Keep-alive answer.
    PingResp,
    /// The last packet of a connection.
    Disconnect(Disconnect),
    /// Enhanced authentication (MQTT 5).
    Auth(Auth),
}

/// CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// Version of the rest of the connection.
    pub version: ProtocolVersion,
    /// The high bit (0x80) of the protocol level was set: the peer is a bridge (3.1 and 3.1.1).
    pub bridge: bool,
    /// Clean Start (5) or Clean Session (3.x).
    pub clean_start: bool,
    /// Seconds; 0 turns it off.
    pub keep_alive: u16,
    /// May be empty.
    pub client_id: String,
    /// Published when the connection ends abnormally.
    pub will: Option<Will>,
    /// User Name.
    pub user_name: Option<String>,
    /// Password.
    pub password: Option<Bytes>,
    /// Empty in 3.x.
    pub properties: ConnectProperties,
}

/// Without the password, which must not come into a log by way of a packet.
impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, bridge, clean_start, keep_alive, client_id, will, user_name, password, properties } = self;
        f.debug_struct("Connect")
            .field("version", version)
            .field("bridge", bridge)
            .field("clean_start", clean_start)
            .field("keep_alive", keep_alive)
            .field("client_id", client_id)
            .field("will", will)
            .field("user_name", user_name)
            .field("password", &password.as_ref().map(|_| format_args!("<redacted>")))
            .field("properties", properties)
            .finish()
    }
}

/// The Will Message of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic Name, already checked to be one.
    pub topic: String,
    /// The payload.
    pub payload: Bytes,
    /// Will QoS.
    pub qos: QoS,
    /// Will Retain.
    pub retain: bool,
    /// Empty in 3.x.
    pub properties: WillProperties,
}

/// CONNACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Session Present.
    pub session_present: bool,
    /// For 3.x the encoder maps it to a return code.
    pub reason_code: ReasonCode,
    /// Empty in 3.x.
    pub properties: ConnAckProperties,
}

/// The QoS of a PUBLISH together with the Packet Identifier it then must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// QoS 0, no identifier.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce(PacketId),
    /// QoS 2.
    ExactlyOnce(PacketId),
}

impl Delivery {
    /// The QoS alone.
    #[inline]
    #[must_use]
    pub fn qos(self) -> QoS {
        match self {
            Self::AtMostOnce => QoS::AtMostOnce,
            Self::AtLeastOnce(_) => QoS::AtLeastOnce,
            Self::ExactlyOnce(_) => QoS::ExactlyOnce,
        }
    }

    /// The Packet Identifier, if the QoS has one.
    #[inline]
    #[must_use]
    pub fn packet_id(self) -> Option<PacketId> {
        match self {
            Self::AtMostOnce => None,
            Self::AtLeastOnce(id) | Self::ExactlyOnce(id) => Some(id),
        }
    }
}

/// PUBLISH, owned. The broker's hot path uses [`PublishRef`] instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// A re-delivery.
    pub dup: bool,
    /// QoS and Packet Identifier.
    pub delivery: Delivery,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic Name; empty only if the properties carry a Topic Alias.
    pub topic: String,
    /// Empty in 3.x.
    pub properties: PublishProperties,
    /// The Application Message.
    pub payload: Bytes,
}

/// PUBLISH as it stands in a read buffer: nothing copied, everything checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishRef<'a> {
    /// A re-delivery.
    pub dup: bool,
    /// QoS and Packet Identifier.
    pub delivery: Delivery,
    /// RETAIN flag.
    pub retain: bool,
    /// Topic Name; empty only if the properties carry a Topic Alias.
    pub topic: &'a str,
    /// The property block without its length, already validated; empty in 3.x.
    pub properties: PropertiesRef<'a>,
    /// The Application Message.
    pub payload: &'a [u8],
}

/// The validated property block of a PUBLISH, still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PropertiesRef<'a>(pub(crate) &'a [u8]);

/// PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Of the PUBLISH it belongs to.
    pub packet_id: PacketId,
    /// Success in 3.x.
    pub reason_code: ReasonCode,
    /// Empty in 3.x.
    pub properties: AckProperties,
}

impl Ack {
    /// An acknowledgement with nothing but its identifier.
    #[must_use]
    pub fn success(packet_id: PacketId) -> Self {
        Self::with_reason(packet_id, ReasonCode::Success)
    }

    /// An acknowledgement with a reason.
    #[must_use]
    pub fn with_reason(packet_id: PacketId, reason_code: ReasonCode) -> Self {
        Self { packet_id, reason_code, properties: AckProperties::default() }
    }
}

/// What MQTT 5 calls Retain Handling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// Send retained messages at every SUBSCRIBE.
    #[default]
    Always = 0,
    /// Only if the subscription is new.
    IfNew = 1,
    /// Never.
    Never = 2,
}

/// The Subscription Options of one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubscriptionOptions {
    /// Maximum QoS.
    pub qos: QoS,
    /// Not to the connection that published.
    pub no_local: bool,
    /// Keep the RETAIN flag as published.
    pub retain_as_published: bool,
    /// Retain Handling.
    pub retain_handling: RetainHandling,
}

impl SubscriptionOptions {
    /// As 3.x has them: nothing but a maximum QoS.
    #[must_use]
    pub fn new(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, retain_handling: RetainHandling::Always }
    }
}

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Repeated in the SUBACK.
    pub packet_id: PacketId,
    /// At least one. The filters are well-formed UTF-8 without NUL, not yet checked to be Topic Filters: a
    /// malformed one is refused in the SUBACK, not by closing the connection.
    pub filters: Vec<(String, SubscriptionOptions)>,
    /// 1..=268435455.
    pub subscription_identifier: Option<u32>,
    /// In their order.
    pub user_properties: UserProperties,
}

/// SUBACK and UNSUBACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Of the request.
    pub packet_id: PacketId,
    /// One for each filter, in their order; a 3.x UNSUBACK carries none on the wire.
    pub reason_codes: Vec<ReasonCode>,
    /// Empty in 3.x.
    pub properties: AckProperties,
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Repeated in the UNSUBACK.
    pub packet_id: PacketId,
    /// At least one.
    pub filters: Vec<String>,
    /// In their order.
    pub user_properties: UserProperties,
}

/// DISCONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// `Success` is Normal disconnection.
    pub reason_code: ReasonCode,
    /// Empty in 3.x.
    pub properties: DisconnectProperties,
}

/// AUTH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Success, Continue authentication or Re-authenticate.
    pub reason_code: ReasonCode,
    /// Method and data.
    pub properties: AuthProperties,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_shows_no_password() {
        let connect = Connect {
            version: ProtocolVersion::V5,
            bridge: false,
            clean_start: true,
            keep_alive: 0,
            client_id: "c".to_owned(),
            will: None,
            user_name: Some("ana".to_owned()),
            password: Some(Bytes::from("tabuh")),
            properties: ConnectProperties::default(),
        };
        let text = format!("{:?}", Packet::Connect(Box::new(connect)));
        assert!(text.contains("ana") && text.contains("Some(<redacted>)") && !text.contains("tabuh"), "{text}");
    }
}
