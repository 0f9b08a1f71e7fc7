//! What arbiters and groups say to each other.

use std::num::NonZeroU32;
use std::sync::Arc;

use kentongan_proto::mqtt::{Connect, PacketId, QoS, ReasonCode, SubscriptionOptions, Will};

use super::command::{self, MessageRecord, Owner, UserProperty, WillRecord};
use crate::auth::Identified;
use crate::connection_key::ConnectionKey;
use crate::message::{self, Message};
use crate::session::handshake::Negotiated;
use crate::session::outbound::QueueCaps;
use crate::subscription::InterestKind;

/// Where the state of a persistent session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentSession {
    /// The group that its Client Identifier hashes to.
    pub group: u16,
    /// Of this connection's claim; commands of older epochs are ignored.
    pub epoch: u64,
}

/// A CONNECT that must ask who else has its Client Identifier.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who asks.
    pub connection: ConnectionKey,
    /// For what.
    pub client_id: Arc<str>,
    /// Who the client is.
    pub identity: Arc<str>,
    /// Whether its login brought rules, by which its will was judged.
    pub has_granted_rules: bool,
    /// Drop what is stored.
    pub clean_start: bool,
    /// 0: a transient session.
    pub session_expiry_seconds: u32,
    /// Kept with a persistent session.
    pub will: Option<Will>,
    /// In-flight window towards the client.
    pub window: u16,
    /// What the listener allows to wait.
    pub caps: QueueCaps,
}

impl ClaimRequest {
    /// The claim of a CONNECT.
    #[must_use]
    pub fn new(
        connection: ConnectionKey,
        connect: &Connect,
        negotiated: &Negotiated,
        identified: &Identified,
        caps: QueueCaps,
    ) -> Self {
        Self {
            connection,
            client_id: Arc::clone(&negotiated.client_id),
            identity: Arc::clone(&identified.identity),
            has_granted_rules: identified.granted.as_ref().is_some_and(|granted| granted.has_rules()),
            clean_start: connect.clean_start,
            session_expiry_seconds: negotiated.session_expiry_seconds,
            will: connect.will.clone(),
            window: negotiated.window,
            caps,
        }
    }

    /// As the group will read it; the proposer has seen to it that nobody else is connected.
    #[must_use]
    pub fn command(&self, owner: Owner) -> command::Connect {
        command::Connect {
            owner: Some(owner),
            client_id: self.client_id.to_string(),
            identity: self.identity.to_string(),
            clean_start: self.clean_start,
            session_expiry_seconds: self.session_expiry_seconds,
            will: self.will.as_ref().map(|will| will_record(will, &self.client_id, self.has_granted_rules)),
            window_max: u32::from(self.window),
            queue_messages_max: self.caps.messages_max.map(|bound| bound as u64),
            queue_bytes_max: self.caps.bytes_max.map(|bound| bound as u64),
            ..command::Connect::default()
        }
    }
}

fn will_record(will: &Will, client_id: &str, is_granted: bool) -> WillRecord {
    let properties = &will.properties;
    let delayed = message::delayed(&will.topic);
    let user = |(name, value): &(String, String)| UserProperty { name: name.clone(), value: value.clone() };
    WillRecord {
        message: Some(MessageRecord {
            topic: delayed.map_or(will.topic.as_str(), |(_, topic)| topic).to_owned(),
            payload: will.payload.clone(),
            qos: will.qos as u32,
            retain: will.retain,
            publisher: client_id.to_owned(),
            expiry_left_ms: properties.message_expiry_interval.map(message::lifetime_ms),
            payload_format_indicator: properties.payload_format_indicator.map(u32::from),
            content_type: properties.content_type.clone(),
            response_topic: properties.response_topic.clone(),
            correlation_data: properties.correlation_data.clone(),
            user_properties: properties.user_properties.iter().map(user).collect(),
            ..MessageRecord::default()
        }),
        delay_seconds: properties.will_delay_interval.unwrap_or(0),
        publish_delay_ms: delayed.map(|(seconds, _)| seconds.saturating_mul(1000)),
        is_granted,
    }
}

/// A claim was granted.
#[derive(Debug, Clone)]
pub struct Opened {
    /// To whom.
    pub connection: ConnectionKey,
    /// For what.
    pub client_id: Arc<str>,
    /// Of the claim; goes with everything that changes the session.
    pub epoch: u64,
    /// The group that keeps the session; `None`: it is transient.
    pub group: Option<u16>,
    /// A stored session is resumed.
    pub session_present: bool,
    /// The subscriptions of a resumed session.
    pub subscriptions: Vec<SubscribeOutcome>,
    /// QoS 2 Packet Identifiers whose PUBREL is still to come.
    pub received: Vec<PacketId>,
}

impl Opened {
    /// A transient session, which has nothing to resume.
    #[must_use]
    pub fn transient(connection: ConnectionKey, client_id: Arc<str>) -> Self {
        Self {
            connection,
            client_id,
            epoch: 0,
            group: None,
            session_present: false,
            subscriptions: Vec::new(),
            received: Vec::new(),
        }
    }
}

/// A message in the window of a persistent session, to be sent.
#[derive(Debug, Clone)]
pub struct DeliverPersistent {
    /// To whom.
    pub connection: ConnectionKey,
    /// Of which claim.
    pub epoch: u64,
    /// Given by the group.
    pub packet_id: PacketId,
    /// 1 or 2.
    pub qos: QoS,
    /// A re-delivery.
    pub dup: bool,
    /// RETAIN as it goes to this client.
    pub retain: bool,
    /// Of the subscriptions it came by.
    pub subscription_identifiers: Vec<u32>,
    /// The message.
    pub message: Arc<Message>,
    /// Its expiry on the process clock; that in the message is on the group's.
    pub expires_at_ms: Option<u64>,
    /// It came by a shared subscription. `None`: a leader of an earlier version did not say.
    pub shared: Option<bool>,
}

/// A group answered a lane.
#[derive(Debug, Clone)]
pub struct LaneAnswer {
    /// Which.
    pub group: u16,
    /// All numbers up to this one.
    pub number: u64,
    /// Those of them that were not accepted.
    pub refused: Vec<(u64, ReasonCode)>,
}

/// Subscriptions of a persistent session were committed.
#[derive(Debug, Clone)]
pub struct SubscribedPersistent {
    /// Whose.
    pub connection: ConnectionKey,
    /// Of which claim.
    pub epoch: u64,
    /// Of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// Of its command.
    pub ticket: u64,
    /// In the order of its filters.
    pub outcomes: Vec<SubscribeOutcome>,
}

/// What became of one filter.
#[derive(Debug, Clone)]
pub struct SubscribeOutcome {
    /// As subscribed, with `$share/NAME/` if it is shared.
    pub filter: String,
    /// For SUBACK.
    pub reason: ReasonCode,
    /// As granted.
    pub options: SubscriptionOptions,
    /// Subscription Identifier.
    pub identifier: Option<NonZeroU32>,
    /// Retained messages are to be read under this number; the group waits for the last page.
    pub read: Option<u64>,
}

/// The end of subscriptions of a persistent session was committed.
#[derive(Debug, Clone)]
pub struct UnsubscribedPersistent {
    /// Whose.
    pub connection: ConnectionKey,
    /// Of which claim.
    pub epoch: u64,
    /// Of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// Of its command.
    pub ticket: u64,
    /// In the order of its filters.
    pub outcomes: Vec<(String, ReasonCode)>,
}

/// Where a retained read goes on in a group: behind the last topic looked at there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetainedCursor {
    /// Which group is asked.
    pub group: u16,
    /// Topics up to this one were looked at.
    pub after: Option<String>,
}

/// A part of the retained messages that a filter matches.
#[derive(Debug, Clone)]
pub struct RetainedPage {
    /// Who asked.
    pub connection: ConnectionKey,
    /// Its number for the read.
    pub number: u64,
    /// What was asked for.
    pub asked: RetainedCursor,
    /// Their expiry is on the process clock.
    pub messages: Vec<Arc<Message>>,
    /// `None`: the group has no more.
    pub next: Option<RetainedCursor>,
}

/// What the clients of an arbiter want more and less than they did.
#[derive(Debug, Default)]
pub struct InterestChanges {
    /// In their order: a filter, what is wanted of it, and whether one more or one less wants that.
    pub filters: Vec<(Box<str>, InterestKind, bool)>,
    /// The arbiter, and its last ticket for which it is to be told when every node has heard of this.
    pub barrier: Option<(u16, u64)>,
}
