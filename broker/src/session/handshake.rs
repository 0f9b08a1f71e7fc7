//! A CONNECT against our limits: what the session will be, or why there will be none.

use std::num::NonZeroU16;
use std::sync::Arc;

use kentongan_proto::mqtt::{ConnAckProperties, Connect, ProtocolVersion, ReasonCode};

/// Session Expiry Interval that means never.
pub const NEVER_EXPIRES: u32 = u32::MAX;

/// What we allow a client of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Unacknowledged messages from a client.
    pub receive_maximum: NonZeroU16,
    /// Unacknowledged messages to a client, if it allows as many.
    pub inflight_messages_max: NonZeroU16,
    /// Aliases a client may set.
    pub topic_alias_maximum: u16,
    /// Aliases we set towards a client, if it allows as many.
    pub topic_alias_out_maximum: u16,
    /// Largest packet from a client.
    pub packet_bytes_max: u32,
    /// Seconds; a longer keep-alive (or none, if this is set) is replaced. `None`: as the client likes.
    pub keep_alive_seconds_max: Option<NonZeroU16>,
    /// Seconds; a shorter keep-alive is replaced.
    pub keep_alive_seconds_min: u16,
    /// Seconds; a longer Session Expiry Interval is cut.
    pub session_expiry_seconds_max: u32,
    /// Seconds for sessions of 3.x with Clean Session 0, which have no interval of their own.
    pub session_expiry_seconds_v3: u32,
    /// Characters of a Client Identifier in MQTT 3.1.
    pub client_id_characters_max_v3_1: usize,
    /// Bytes of a Client Identifier.
    pub client_id_bytes_max: usize,
    /// Given to clients that ask for Response Information.
    pub response_information: Option<String>,
    /// Versions a listener speaks.
    pub versions: Vec<ProtocolVersion>,
}

/// Why a CONNECT, or a PUBLISH, is refused, and what the client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For CONNACK, PUBACK or PUBREC.
    pub reason: ReasonCode,
    /// For the log and, in MQTT 5, the Reason String.
    pub text: &'static str,
}

/// What a CONNECT and our policy agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Given or assigned.
    pub client_id: Arc<str>,
    /// The client gave none [MQTT-3.1.3-6].
    pub assigned: bool,
    /// Seconds, 0 is off: the client's, or ours if we told it so.
    pub keep_alive_seconds: u16,
    /// 0: the session ends with the connection.
    pub session_expiry_seconds: u32,
    /// In-flight window towards the client [MQTT-3.3.4-9].
    pub window: u16,
    /// Aliases towards the client.
    pub topic_aliases_out: u16,
    /// Whether Reason Strings and User Properties may be on any packet [MQTT-3.1.2-29].
    pub problem_information: bool,
    /// For CONNACK, MQTT 5 only.
    pub properties: ConnAckProperties,
}

/// Holds a CONNECT against `policy`. `random` makes an assigned Client Identifier unique.
///
/// # Errors
/// Which refusal the client is owed.
pub fn negotiate(connect: &Connect, policy: &Policy, random: u128) -> Result<Negotiated, Refusal> {
    if !policy.versions.contains(&connect.version) {
        return Err(refusal(ReasonCode::UnsupportedProtocolVersion, "this listener does not speak that version"));
    }
    let assigned = connect.client_id.is_empty();
    let client_id = client_id(connect, policy, random)?;
    let keep_alive_seconds = keep_alive(connect, policy);
    let session_expiry_seconds = session_expiry(connect, policy);
    let properties = if connect.version.is_v5() {
        ConnAckProperties {
            session_expiry_interval: (connect.properties.session_expiry_interval.unwrap_or(0)
                != session_expiry_seconds)
                .then_some(session_expiry_seconds),
            receive_maximum: Some(policy.receive_maximum),
            maximum_packet_size: Some(policy.packet_bytes_max),
            assigned_client_identifier: assigned.then(|| client_id.to_string()),
            topic_alias_maximum: (policy.topic_alias_maximum > 0).then_some(policy.topic_alias_maximum),
            server_keep_alive: (keep_alive_seconds != connect.keep_alive).then_some(keep_alive_seconds),
            response_information: policy
                .response_information
                .clone()
                .filter(|_| connect.properties.request_response_information == Some(true)),
            ..ConnAckProperties::default()
        }
    } else {
        ConnAckProperties::default()
    };
    Ok(Negotiated {
        client_id,
        assigned,
        keep_alive_seconds,
        session_expiry_seconds,
        window: window(connect, policy),
        topic_aliases_out: connect.properties.topic_alias_maximum.unwrap_or(0).min(policy.topic_alias_out_maximum),
        problem_information: connect.properties.request_problem_information.unwrap_or(true),
        properties,
    })
}

fn refusal(reason: ReasonCode, text: &'static str) -> Refusal {
    Refusal { reason, text }
}

fn client_id(connect: &Connect, policy: &Policy, random: u128) -> Result<Arc<str>, Refusal> {
    let invalid = |text| Err(refusal(ReasonCode::ClientIdentifierNotValid, text));
    let id = connect.client_id.as_str();
    if id.is_empty() {
        return match connect.version {
            // MQTT 3.1 demands 1 to 23 characters.
            ProtocolVersion::V3_1 => invalid("MQTT 3.1 needs a client identifier"),
            // [MQTT-3.1.3-8] of 3.1.1.
            ProtocolVersion::V3_1_1 if !connect.clean_start => {
                invalid("an empty client identifier needs clean session 1")
            }
            _ => Ok(Arc::from(format!("auto-{random:032x}"))),
        };
    }
    if connect.version == ProtocolVersion::V3_1 && id.chars().count() > policy.client_id_characters_max_v3_1 {
        return invalid("MQTT 3.1 allows client identifiers of 23 characters");
    }
    if id.len() > policy.client_id_bytes_max {
        return invalid("the client identifier is longer than allowed here");
    }
    Ok(Arc::from(id))
}

fn keep_alive(connect: &Connect, policy: &Policy) -> u16 {
    let longest = policy.keep_alive_seconds_max.map_or(0, NonZeroU16::get);
    match connect.keep_alive {
        // Only MQTT 5 can be told to send more often [MQTT-3.2.2-21]; another is held to what it asked for.
        0 => {
            if connect.version.is_v5() {
                longest
            } else {
                0
            }
        }
        asked if connect.version.is_v5() && longest != 0 && asked > longest => longest,
        asked => asked.max(policy.keep_alive_seconds_min),
    }
}

fn session_expiry(connect: &Connect, policy: &Policy) -> u32 {
    let asked = match connect.version {
        ProtocolVersion::V5 => connect.properties.session_expiry_interval.unwrap_or(0),
        // Clean Session 1: the session ends with the connection [MQTT-3.1.2-6 of 3.1.1].
        _ if connect.clean_start => 0,
        _ => policy.session_expiry_seconds_v3,
    };
    asked.min(policy.session_expiry_seconds_max)
}

fn window(connect: &Connect, policy: &Policy) -> u16 {
    let client = connect.properties.receive_maximum.unwrap_or(NonZeroU16::MAX);
    client.min(policy.inflight_messages_max).get()
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::ConnectProperties;

    use super::*;

    fn policy() -> Policy {
        Policy {
            receive_maximum: NonZeroU16::new(20).expect("not zero"),
            inflight_messages_max: NonZeroU16::new(100).expect("not zero"),
            topic_alias_maximum: 5,
            topic_alias_out_maximum: 5,
            packet_bytes_max: 1000,
            keep_alive_seconds_max: None,
            keep_alive_seconds_min: 0,
            session_expiry_seconds_max: 1000,
            session_expiry_seconds_v3: 500,
            client_id_characters_max_v3_1: 23,
            client_id_bytes_max: 100,
            response_information: Some("answers/".to_owned()),
            versions: vec![ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5],
        }
    }

    fn connect(version: ProtocolVersion, client_id: &str) -> Connect {
        Connect {
            version,
            bridge: false,
            clean_start: true,
            keep_alive: 60,
            client_id: client_id.to_owned(),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        }
    }

    /// [MQTT-3.1.3-6], [MQTT-3.1.3-7], [MQTT-3.2.2-16].
    #[test]
    fn an_empty_client_identifier_is_assigned_one() {
        let agreed = negotiate(&connect(ProtocolVersion::V5, ""), &policy(), 1).expect("accepted");
        assert!(agreed.assigned);
        assert_eq!(agreed.properties.assigned_client_identifier.as_deref(), Some(&*agreed.client_id));
        let other = negotiate(&connect(ProtocolVersion::V5, ""), &policy(), 2).expect("accepted");
        assert_ne!(agreed.client_id, other.client_id);
    }

    /// [MQTT-3.1.3-8] of 3.1.1.
    #[test]
    fn an_empty_client_identifier_with_a_kept_session_is_refused_in_3_1_1() {
        let mut asked = connect(ProtocolVersion::V3_1_1, "");
        asked.clean_start = false;
        let refused = negotiate(&asked, &policy(), 1).expect_err("refused");
        assert_eq!(refused.reason, ReasonCode::ClientIdentifierNotValid);
        asked.clean_start = true;
        assert!(negotiate(&asked, &policy(), 1).is_ok());
    }

    #[test]
    fn mqtt_3_1_allows_23_characters() {
        let at_most = "a".repeat(23);
        assert!(negotiate(&connect(ProtocolVersion::V3_1, &at_most), &policy(), 1).is_ok());
        let too_long = negotiate(&connect(ProtocolVersion::V3_1, &format!("{at_most}a")), &policy(), 1);
        assert_eq!(too_long.expect_err("refused").reason, ReasonCode::ClientIdentifierNotValid);
        assert!(negotiate(&connect(ProtocolVersion::V3_1, ""), &policy(), 1).is_err());
    }

    /// [MQTT-3.2.2-22]: without a Server Keep Alive, the client's own value counts.
    #[test]
    fn server_keep_alive_is_sent_only_when_it_differs() {
        let mut limits = policy();
        let agreed = negotiate(&connect(ProtocolVersion::V5, "a"), &limits, 1).expect("accepted");
        assert_eq!((agreed.keep_alive_seconds, agreed.properties.server_keep_alive), (60, None));
        limits.keep_alive_seconds_max = NonZeroU16::new(30);
        let agreed = negotiate(&connect(ProtocolVersion::V5, "a"), &limits, 1).expect("accepted");
        assert_eq!((agreed.keep_alive_seconds, agreed.properties.server_keep_alive), (30, Some(30)));
    }

    /// There is no Server Keep Alive before MQTT 5: a client that sends as often as it said must not be cut off.
    #[test]
    fn older_clients_are_held_to_the_keep_alive_they_asked_for() {
        let limits = Policy { keep_alive_seconds_max: NonZeroU16::new(30), keep_alive_seconds_min: 10, ..policy() };
        let agreed = |version, keep_alive| {
            let asked = Connect { keep_alive, ..connect(version, "a") };
            negotiate(&asked, &limits, 1).expect("accepted").keep_alive_seconds
        };
        for version in [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1] {
            assert_eq!([0, 60, 20, 5].map(|asked| agreed(version, asked)), [0, 60, 20, 10], "{version:?}");
        }
        assert_eq!([0, 60, 20, 5].map(|asked| agreed(ProtocolVersion::V5, asked)), [30, 30, 20, 10]);
    }

    #[test]
    fn session_expiry_is_the_clients_within_our_limit() {
        let mut asked = connect(ProtocolVersion::V5, "a");
        let agreed = negotiate(&asked, &policy(), 1).expect("accepted");
        assert_eq!(agreed.session_expiry_seconds, 0, "absent means 0");
        asked.properties.session_expiry_interval = Some(NEVER_EXPIRES);
        let agreed = negotiate(&asked, &policy(), 1).expect("accepted");
        assert_eq!((agreed.session_expiry_seconds, agreed.properties.session_expiry_interval), (1000, Some(1000)));
        let mut old = connect(ProtocolVersion::V3_1_1, "a");
        assert_eq!(negotiate(&old, &policy(), 1).expect("accepted").session_expiry_seconds, 0);
        old.clean_start = false;
        assert_eq!(negotiate(&old, &policy(), 1).expect("accepted").session_expiry_seconds, 500);
    }

    /// [MQTT-3.1.2-28]: Response Information only for those who ask.
    #[test]
    fn response_information_is_given_on_request() {
        let mut asked = connect(ProtocolVersion::V5, "a");
        assert_eq!(negotiate(&asked, &policy(), 1).expect("accepted").properties.response_information, None);
        asked.properties.request_response_information = Some(true);
        let agreed = negotiate(&asked, &policy(), 1).expect("accepted");
        assert_eq!(agreed.properties.response_information.as_deref(), Some("answers/"));
    }
}
