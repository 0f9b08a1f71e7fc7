//! An event as JSON. The names of its fields are those that users of EMQX know, where there are such.

use kentongan_proto::mqtt::{ProtocolVersion, SubscriptionOptions};
use serde::Serialize;

use crate::config::ClientEventKind;
use crate::connection::Origin;
use crate::metrics::{CloseReason, Label as _};

/// Whom something happened to.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// Client Identifier.
    pub client_id: &'a str,
    /// Who it was let in as; empty if as nobody in particular. Not the user name that it gave: that may be a token.
    pub identity: &'a str,
    /// Where it comes from.
    pub origin: &'a Origin,
    /// The address of the listener that it came by.
    pub listener: &'a str,
    /// Of MQTT.
    pub version: ProtocolVersion,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// It was let in.
    Connected {
        /// Keep Alive that counts.
        keep_alive_seconds: u16,
        /// Clean Start, or Clean Session.
        clean_start: bool,
        /// As CONNACK said.
        session_present: bool,
        /// Session Expiry Interval that counts.
        session_expiry_seconds: u32,
    },
    /// Its connection ended.
    Disconnected {
        /// Why.
        reason: CloseReason,
    },
    /// A subscription stands.
    Subscribed {
        /// To this Topic Filter, `$share/NAME/` included.
        filter: &'a str,
        /// By these terms.
        options: SubscriptionOptions,
    },
    /// A subscription is gone.
    Unsubscribed {
        /// To this Topic Filter.
        filter: &'a str,
    },
}

/// Something that happened to a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientEvent<'a> {
    /// To whom.
    pub who: Who<'a>,
    /// What.
    pub what: What<'a>,
    /// When, in milliseconds since 1970.
    pub wall_ms: u64,
}

#[derive(Serialize)]
struct Described<'a> {
    event: String,
    ts: u64,
    node: &'a str,
    clientid: &'a str,
    username: Option<&'a str>,
    ipaddress: Option<String>,
    listener: &'a str,
    proto_ver: u8,
    #[serde(flatten)]
    what: DescribedWhat<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum DescribedWhat<'a> {
    Connected { keepalive: u16, clean_start: bool, session_present: bool, expiry_interval: u32 },
    Disconnected { reason: &'static str },
    Subscribed { topic: &'a str, qos: u8, nl: u8, rap: u8, rh: u8 },
    Unsubscribed { topic: &'a str },
}

impl ClientEvent<'_> {
    /// Which kind of event it is.
    #[must_use]
    pub fn kind(&self) -> ClientEventKind {
        match self.what {
            What::Connected { .. } => ClientEventKind::Connected,
            What::Disconnected { .. } => ClientEventKind::Disconnected,
            What::Subscribed { .. } => ClientEventKind::Subscribed,
            What::Unsubscribed { .. } => ClientEventKind::Unsubscribed,
        }
    }

    /// It, as one that happened on this node.
    #[must_use]
    pub fn json(&self, node: &str) -> String {
        let Who { client_id, identity, origin, listener, version } = self.who;
        let described = Described {
            event: format!("client.{}", self.kind()),
            ts: self.wall_ms,
            node,
            clientid: client_id,
            username: (!identity.is_empty()).then_some(identity),
            ipaddress: origin.address.map(|address| address.ip().to_canonical().to_string()),
            listener,
            proto_ver: match version {
                ProtocolVersion::V3_1 => 3,
                ProtocolVersion::V3_1_1 => 4,
                ProtocolVersion::V5 => 5,
            },
            what: self.described(),
        };
        // It has no map with keys that are no text, which is all that could fail.
        serde_json::to_string(&described).unwrap_or_default()
    }

    fn described(&self) -> DescribedWhat<'_> {
        match self.what {
            What::Connected { keep_alive_seconds, clean_start, session_present, session_expiry_seconds } => {
                DescribedWhat::Connected {
                    keepalive: keep_alive_seconds,
                    clean_start,
                    session_present,
                    expiry_interval: session_expiry_seconds,
                }
            }
            What::Disconnected { reason } => {
                DescribedWhat::Disconnected { reason: CloseReason::VALUES[reason.index()] }
            }
            What::Subscribed { filter, options } => DescribedWhat::Subscribed {
                topic: filter,
                qos: options.qos as u8,
                nl: options.no_local.into(),
                rap: options.retain_as_published.into(),
                rh: options.retain_handling as u8,
            },
            What::Unsubscribed { filter } => DescribedWhat::Unsubscribed { topic: filter },
        }
    }
}

#[cfg(test)]
mod tests {
    use kentongan_proto::mqtt::QoS;

    use super::*;

    fn json(what: What<'_>) -> serde_json::Value {
        let origin = Origin { address: Some("[::ffff:192.0.2.7]:4711".parse().unwrap()), certified: None };
        let who = Who {
            client_id: "lamp\"7",
            identity: "ana",
            origin: &origin,
            listener: "0.0.0.0:1883",
            version: ProtocolVersion::V5,
        };
        serde_json::from_str(&ClientEvent { who, what, wall_ms: 1_700_000_000_123 }.json("n1")).unwrap()
    }

    #[test]
    fn every_event_says_who_and_what() {
        let connected = What::Connected {
            keep_alive_seconds: 60,
            clean_start: true,
            session_present: false,
            session_expiry_seconds: 0,
        };
        let common = |event: &str| {
            serde_json::json!({
                "event": event, "ts": 1_700_000_000_123_u64, "node": "n1", "clientid": "lamp\"7", "username": "ana",
                "ipaddress": "192.0.2.7", "listener": "0.0.0.0:1883", "proto_ver": 5,
            })
        };
        let with = |event: &str, more: serde_json::Value| {
            let mut whole = common(event);
            whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            whole
        };
        assert_eq!(
            json(connected),
            with(
                "client.connected",
                serde_json::json!({"keepalive": 60, "clean_start": true, "session_present": false, "expiry_interval": 0})
            )
        );
        assert_eq!(
            json(What::Disconnected { reason: CloseReason::KeepAliveTimeout }),
            with("client.disconnected", serde_json::json!({"reason": "keep_alive_timeout"}))
        );
        let options = SubscriptionOptions::new(QoS::AtLeastOnce);
        assert_eq!(
            json(What::Subscribed { filter: "a/#", options }),
            with("client.subscribed", serde_json::json!({"topic": "a/#", "qos": 1, "nl": 0, "rap": 0, "rh": 0}))
        );
        assert_eq!(
            json(What::Unsubscribed { filter: "a/#" }),
            with("client.unsubscribed", serde_json::json!({"topic": "a/#"}))
        );
    }
}
