//! What the leader of a group does about an applied command. Followers drop effects.
//!
//! Every effect is safe to repeat: after a change of leader the proposers propose again what was not answered, and
//! [`super::state::GroupState::on_leader_start`] lists again what is still open.

use std::sync::Arc;

use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode, SubscriptionOptions};

use super::command::Owner;
use crate::message::Message;

/// The Application Message of an effect: here, or to be read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// In memory.
    Resident(Arc<Message>),
    /// Evicted: its key in the store's table of bodies; [`super::state::decode_body`] reads the value.
    Stored(Vec<u8>),
}

/// A subscription of a session, as the owner must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSubscription {
    /// Topic Filter, with `$share/…/` if shared.
    pub filter: Arc<str>,
    /// Its options.
    pub options: SubscriptionOptions,
    /// Its identifier.
    pub subscription_identifier: Option<u32>,
}

/// The result for one filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeResult {
    /// The subscription asked for.
    pub subscription: SessionSubscription,
    /// Granted QoS, or why not.
    pub reason_code: ReasonCode,
    /// There was none with this filter before.
    pub new: bool,
    /// Retained messages follow: see [`Effect::RetainedRequest`].
    pub send_retained: bool,
}

/// Why messages were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The session's queue is full.
    QueueFull,
    /// Expired before delivery began.
    Expired,
    /// Above the client's Maximum Packet Size [MQTT-3.1.2-25].
    PacketTooLarge,
    /// Effective QoS 0 and the client is away.
    Offline,
    /// Too many live messages while retained ones were read.
    HeldFull,
    /// The session ended with messages in its queue.
    SessionEnded,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The connection owns the session: send CONNACK.
    Opened {
        /// Who asked.
        owner: Owner,
        /// Of the [`super::command::Connect`].
        request: u64,
        /// Client Identifier.
        client_id: Arc<str>,
        /// To name in every command of this connection.
        epoch: u64,
        /// Session Present [MQTT-3.2.2-2].
        session_present: bool,
        /// The group holds subscriptions, queue and QoS 2 identifiers. If false the arbiter does, for as long as the
        /// connection lives.
        hosted: bool,
        /// Of a session that was present.
        subscriptions: Vec<SessionSubscription>,
        /// QoS 2 identifiers received and not released, increasing.
        received: Vec<PacketId>,
    },
    /// The connection does not get the session.
    Refused {
        /// Who asked.
        owner: Owner,
        /// Of the [`super::command::Connect`].
        request: u64,
        /// Client Identifier.
        client_id: Arc<str>,
        /// For CONNACK.
        reason: ReasonCode,
    },
    /// Close this connection, withdraw what it has not sent, get answers for the rest; then propose
    /// [`super::command::Released`].
    Close {
        /// The old connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the old connection.
        epoch: u64,
        /// For DISCONNECT.
        reason: ReasonCode,
    },
    /// A [`super::command::Disconnect`] is committed. Said also if there was nothing left to end.
    Disconnected {
        /// Who asked.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
    },
    /// The subscriptions are committed. SUBACK waits for the barrier.
    Subscribed {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// Of the SUBSCRIBE.
        packet_id: PacketId,
        /// For each filter, in order.
        results: Vec<SubscribeResult>,
    },
    /// Send UNSUBACK.
    Unsubscribed {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// Of the UNSUBSCRIBE.
        packet_id: PacketId,
        /// For each filter, in order.
        results: Vec<(Arc<str>, ReasonCode)>,
    },
    /// What this group wants of a filter that is not shared, from now on.
    Interest {
        /// Topic Filter.
        filter: Arc<str>,
        /// The highest QoS granted to any session here; `None`: nobody wants it any more.
        qos: Option<QoS>,
    },
    /// The members that a shared subscription has in this group, from now on.
    ShareInterest {
        /// `$share/…` and all.
        share: Arc<str>,
        /// Sessions subscribed.
        members: usize,
        /// Of these, connected.
        members_online: usize,
        /// The highest QoS granted; `None` without members.
        qos: Option<QoS>,
    },
    /// Send PUBLISH.
    Deliver {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// `None` with QoS 0.
        packet_id: Option<PacketId>,
        /// Increasing on a connection, over this and [`Effect::SendPubRel`]; 0 with QoS 0. The owner remembers the
        /// last, for [`super::state::GroupState::redeliver`].
        sent: u64,
        /// Effective QoS.
        qos: QoS,
        /// DUP.
        dup: bool,
        /// RETAIN.
        retain: bool,
        /// Of all subscriptions it matched.
        subscription_identifiers: Vec<u32>,
        /// For the Message Expiry Interval.
        expiry_left_ms: Option<u64>,
        /// The message.
        body: Body,
    },
    /// Send PUBREL.
    SendPubRel {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// Of the delivery.
        packet_id: PacketId,
        /// As in [`Effect::Deliver`]; 0 if the identifier was not in use.
        sent: u64,
        /// 0x92 if the identifier was not in use.
        reason: ReasonCode,
    },
    /// A [`super::command::Receive`] is committed: send PUBREC.
    SendPubRec {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// Of the PUBLISH.
        packet_id: PacketId,
        /// Success.
        reason: ReasonCode,
    },
    /// A [`super::command::Release`] is committed: send PUBCOMP.
    SendPubComp {
        /// The connection.
        owner: Owner,
        /// Client Identifier.
        client_id: Arc<str>,
        /// Of the connection.
        epoch: u64,
        /// Of the PUBREL.
        packet_id: PacketId,
        /// 0x92 if the identifier was not held.
        reason: ReasonCode,
    },
    /// The lane is applied up to this number.
    LaneAnswered {
        /// Where the lane begins.
        node: u64,
        /// Of the node.
        incarnation: u64,
        /// The lane.
        lane: u64,
        /// All numbers up to this are settled.
        number: u64,
        /// Save that these were refused, by number.
        refused: Vec<(u64, ReasonCode)>,
    },
    /// The lane's incarnation is fenced or older than one seen: it must stop.
    LaneRefused {
        /// Where the lane begins.
        node: u64,
        /// The refused one.
        incarnation: u64,
        /// The lane.
        lane: u64,
    },
    /// Match and hand on an outbox entry under a lease; when every lane has answered, propose
    /// [`super::command::Routed`].
    Route {
        /// Number in the outbox's lane.
        position: u64,
        /// The message.
        body: Body,
        /// Milliseconds it has left.
        expiry_left_ms: Option<u64>,
        /// To one member of this shared subscription only.
        only_share: Option<Arc<str>>,
        /// A Will Message: authorise it again, as this identity.
        will_of: Option<Arc<str>>,
    },
    /// Once the barrier is passed, read the retained messages that match, from `cursor` on, and propose
    /// [`super::command::RetainedPage`]s.
    RetainedRequest {
        /// Client Identifier.
        client_id: Arc<str>,
        /// Topic Filter.
        filter: Arc<str>,
        /// To repeat in the pages.
        request: u64,
        /// Empty at the beginning.
        cursor: String,
    },
    /// A hosted session ended; publishes no longer reach it.
    SessionEnded {
        /// Client Identifier.
        client_id: Arc<str>,
    },
    /// How far a [`super::command::Fence`] got.
    FenceProgress {
        /// The node.
        node: u64,
        /// The dead incarnation.
        incarnation: u64,
        /// Connections are left: propose it again.
        more: bool,
    },
    /// For the metrics.
    Dropped {
        /// Why.
        reason: DropReason,
        /// How many messages.
        count: u64,
    },
}
