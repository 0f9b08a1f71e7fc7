//! The properties of MQTT 5, a struct for each packet that has them. All empty in 3.x.

use std::num::NonZeroU16;

use bytes::Bytes;

/// User Properties in the order they came, names may repeat.
pub type UserProperties = Vec<(String, String)>;

/// Of CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectProperties {
    /// Seconds; absent means 0, `u32::MAX` means never.
    pub session_expiry_interval: Option<u32>,
    /// Absent means 65,535.
    pub receive_maximum: Option<NonZeroU16>,
    /// Bytes, not 0; absent means no limit.
    pub maximum_packet_size: Option<u32>,
    /// Absent means 0: send the client no aliases.
    pub topic_alias_maximum: Option<u16>,
    /// Absent means false.
    pub request_response_information: Option<bool>,
    /// Absent means true.
    pub request_problem_information: Option<bool>,
    /// In their order.
    pub user_properties: UserProperties,
    /// Enhanced authentication is wanted.
    pub authentication_method: Option<String>,
    /// Only with a method.
    pub authentication_data: Option<Bytes>,
}

/// Of the Will Message in CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WillProperties {
    /// Seconds; absent means 0.
    pub will_delay_interval: Option<u32>,
    /// 1: the payload is UTF-8.
    pub payload_format_indicator: Option<u8>,
    /// Seconds.
    pub message_expiry_interval: Option<u32>,
    /// Content Type.
    pub content_type: Option<String>,
    /// A Topic Name.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// In their order.
    pub user_properties: UserProperties,
}

/// Of CONNACK.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnAckProperties {
    /// Seconds, if the server chose another than asked.
    pub session_expiry_interval: Option<u32>,
    /// Absent means 65,535.
    pub receive_maximum: Option<NonZeroU16>,
    /// 0 or 1; absent means 2.
    pub maximum_qos: Option<u8>,
    /// Absent means true.
    pub retain_available: Option<bool>,
    /// Bytes.
    pub maximum_packet_size: Option<u32>,
    /// When the client gave none.
    pub assigned_client_identifier: Option<String>,
    /// Absent means 0.
    pub topic_alias_maximum: Option<u16>,
    /// For people.
    pub reason_string: Option<String>,
    /// In their order.
    pub user_properties: UserProperties,
    /// Absent means true.
    pub wildcard_subscription_available: Option<bool>,
    /// Absent means true.
    pub subscription_identifiers_available: Option<bool>,
    /// Absent means true.
    pub shared_subscription_available: Option<bool>,
    /// Seconds; the client must use it.
    pub server_keep_alive: Option<u16>,
    /// Basis of response topics.
    pub response_information: Option<String>,
    /// Another server to use.
    pub server_reference: Option<String>,
    /// As in CONNECT.
    pub authentication_method: Option<String>,
    /// Authentication Data.
    pub authentication_data: Option<Bytes>,
}

/// Of PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishProperties {
    /// 1: the payload is UTF-8.
    pub payload_format_indicator: Option<u8>,
    /// Seconds left.
    pub message_expiry_interval: Option<u32>,
    /// 0 is refused by the session with 0x94, not here.
    pub topic_alias: Option<u16>,
    /// A Topic Name.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// In their order.
    pub user_properties: UserProperties,
    /// Server to client only; each 1..=268435455.
    pub subscription_identifiers: Vec<u32>,
    /// Content Type.
    pub content_type: Option<String>,
}

/// Of PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AckProperties {
    /// For people.
    pub reason_string: Option<String>,
    /// In their order.
    pub user_properties: UserProperties,
}

/// Of DISCONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DisconnectProperties {
    /// Client to server only.
    pub session_expiry_interval: Option<u32>,
    /// For people.
    pub reason_string: Option<String>,
    /// In their order.
    pub user_properties: UserProperties,
    /// Server to client only.
    pub server_reference: Option<String>,
}

/// Of AUTH.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuthProperties {
    /// Always there, save in a bare success.
    pub authentication_method: Option<String>,
    /// Authentication Data.
    pub authentication_data: Option<Bytes>,
    /// For people.
    pub reason_string: Option<String>,
    /// In their order.
    pub user_properties: UserProperties,
}

/// The longest of some fields that carry their length in two bytes.
fn longest<'a>(
    texts: impl IntoIterator<Item = &'a Option<String>>,
    data: &Option<Bytes>,
    users: &UserProperties,
) -> usize {
    let texts = texts.into_iter().map(|text| text.as_ref().map_or(0, String::len));
    let users = users.iter().map(|(name, value)| name.len().max(value.len()));
    texts.chain(users).max().unwrap_or(0).max(data.as_ref().map_or(0, Bytes::len))
}

/// Bytes of the longest text among `users`.
pub(crate) fn longest_user_property(users: &UserProperties) -> usize {
    longest([], &None, users)
}

impl ConnectProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.authentication_method], &self.authentication_data, &self.user_properties)
    }
}

impl WillProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.content_type, &self.response_topic], &self.correlation_data, &self.user_properties)
    }
}

impl ConnAckProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest(
            [
                &self.assigned_client_identifier,
                &self.reason_string,
                &self.response_information,
                &self.server_reference,
                &self.authentication_method,
            ],
            &self.authentication_data,
            &self.user_properties,
        )
    }
}

impl PublishProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.content_type, &self.response_topic], &self.correlation_data, &self.user_properties)
    }
}

impl AckProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.reason_string], &None, &self.user_properties)
    }
}

impl DisconnectProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.reason_string, &self.server_reference], &None, &self.user_properties)
    }
}

impl AuthProperties {
    /// Bytes of the longest field.
    pub(crate) fn longest_field(&self) -> usize {
        longest([&self.authentication_method, &self.reason_string], &self.authentication_data, &self.user_properties)
    }
}
