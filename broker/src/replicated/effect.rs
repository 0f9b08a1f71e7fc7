//! What follows from a command, for the leader to carry out. Safe to repeat.

use std::num::NonZeroU32;
use std::sync::Arc;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode, SubscriptionOptions};

use super::command::Owner;
use crate::message::Message;
use crate::session::outbound::Full;

/// One consequence of an applied command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A claim was granted.
    Opened(OpenedSession),
    /// A claim was refused: the session is another identity's, another claim came after it, its node is dead, or what the client
    /// sent before is not routed in time.
    Refused {
        /// Whose claim.
        owner: Owner,
        /// For CONNACK.
        reason: ReasonCode,
    },
    /// A claim waits for this owner to let go: close the connection, withdraw what was not sent, get answers for the
    /// rest, then propose [`super::command::Released`]. An owner that has no such connection any more proposes it at
    /// once.
    Close {
        /// Who.
        owner: Owner,
        /// Which session.
        client_id: Arc<str>,
        /// Of its claim.
        epoch: u64,
    },
    /// A persistent session came to be, or ended.
    Session {
        /// Its name.
        client_id: Arc<str>,
        /// Whom it belongs to.
        identity: Arc<str>,
        /// Whether it is there now.
        exists: bool,
    },
    /// What a client without a persistent session sent while it had one waits in the outbox, or does so no more.
    Unrouted {
        /// Its Client Identifier.
        client_id: Arc<str>,
        /// Whether it waits.
        exists: bool,
    },
    /// SUBSCRIBE was applied.
    Subscribed {
        /// Whose.
        owner: Owner,
        /// Of which session.
        client_id: Arc<str>,
        /// Of which claim.
        epoch: u64,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Of the command.
        ticket: u64,
        /// In the order of the filters.
        outcomes: Vec<FilterOutcome>,
    },
    /// UNSUBSCRIBE was applied.
    Unsubscribed {
        /// Whose.
        owner: Owner,
        /// Of which session.
        client_id: Arc<str>,
        /// Of which claim.
        epoch: u64,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Of the command.
        ticket: u64,
        /// In the order of the filters.
        outcomes: Vec<(String, ReasonCode)>,
    },
    /// This group begins, or ceases, to want what a filter matches.
    Interest {
        /// The Topic Filter.
        filter: Arc<str>,
        /// Whether one more session wants it.
        wanted: bool,
    },
    /// A session of this group joins or leaves a shared subscription.
    ShareInterest {
        /// `$share/NAME/FILTER`.
        share: Arc<str>,
        /// Whether it joins.
        joined: bool,
    },
    /// How many members of a shared subscription are connected.
    ShareOnline {
        /// `$share/NAME/FILTER`.
        share: Arc<str>,
        /// Of this group's sessions.
        online: u32,
    },
    /// How many messages the least loaded member of a shared subscription has unacknowledged.
    ShareInFlight {
        /// `$share/NAME/FILTER`.
        share: Arc<str>,
        /// Of this group's sessions that may get a message.
        least: u32,
    },
    /// A message of the window is to be sent.
    Deliver(Box<Delivery>),
    /// A connection has a message of the window already: it is not sent, and is under way like one that is.
    HasBeenSent {
        /// To whom.
        owner: Owner,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Of the message.
        weight_bytes: usize,
    },
    /// A client has acknowledged a message, by PUBACK or PUBREC: it is under way no more.
    Settled {
        /// Which one's.
        owner: Owner,
        /// Packet Identifier.
        packet_id: PacketId,
    },
    /// A connection with messages in its window has let go of its session: nothing is under way to it any more.
    LetGo {
        /// Which one.
        owner: Owner,
    },
    /// PUBREC, PUBREL or PUBCOMP may leave.
    Acknowledge {
        /// To whom.
        owner: Owner,
        /// Of which claim.
        epoch: u64,
        /// Which packet.
        kind: AckKind,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Reason Code.
        reason: ReasonCode,
    },
    /// The messages of a lane up to a number are dealt with.
    LaneAnswered {
        /// Where it begins.
        node: u64,
        /// Which lane.
        lane: u64,
        /// The last of them.
        number: u64,
        /// Those that were not accepted.
        refused: Vec<(u64, ReasonCode)>,
    },
    /// An entry of the outbox is to be routed.
    Route {
        /// Its position, which is its number in the outbox's lane.
        position: u64,
    },
    /// It is decided who gets an entry of the outbox of shared subscriptions, or there is no such entry any more.
    Picked {
        /// Its position.
        position: u64,
    },
    /// The same of its shared subscriptions up to this one, in the order of their names.
    PickedUpTo {
        /// Its position.
        position: u64,
        /// `$share/NAME/FILTER`.
        share: Arc<str>,
    },
    /// A page of retained messages was taken in, or is to be read again.
    RetainedTaken {
        /// Whose.
        owner: Owner,
        /// Of which claim.
        epoch: u64,
        /// What is said of it.
        answer: PageAnswer,
    },
    /// A fence was applied.
    Fenced {
        /// Whose incarnations.
        node: u64,
        /// The first that is not over.
        below: u64,
        /// Sessions of older incarnations are still to be released.
        more: bool,
    },
    /// An incarnation is lost, and what its connections left behind is free.
    Lost {
        /// The node whose incarnation it was.
        node: u64,
        /// Which one.
        incarnation: u64,
        /// Some of it is still to be set free.
        more: bool,
    },
    /// Messages did not reach a session, and never will.
    Dropped {
        /// Why.
        reason: Drop,
        /// How many.
        count: u64,
    },
    /// A message found no room among the retained ones: it was delivered, but is not kept.
    RetainedNotKept,
    /// A will was handed to the outbox.
    WillPublished,
    /// A session expired.
    SessionExpired,
}

/// What a group says of a page of retained messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAnswer {
    /// Which read.
    pub read: u64,
    /// Which page; those of the session before it are dealt with as well. 0: a version that does not say so.
    pub page: u64,
    /// How often live messages have gone on before their turn. A page whose node knew of fewer was not taken.
    pub overflows: u64,
    /// How the session's queue stands now.
    pub queue: QueueAtGroup,
}

/// The queue of a persistent session whose client is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAtGroup {
    /// Messages that wait behind its window.
    pub queued: usize,
    /// Messages that there is room for beside the live ones that wait for the read, what the window takes included.
    pub messages_free: usize,
    /// Bytes, likewise.
    pub bytes_free: usize,
    /// Messages that the window takes. What is larger than the queue may go there, and nowhere else. `None`: an older leader, or an older
    /// feature level, by which one message of any size may wait.
    pub window_free: Option<usize>,
}

/// Why a message is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// The session's queue holds as many messages as it may.
    QueueMessages,
    /// It holds as many bytes as it may.
    QueueBytes,
    /// Its Message Expiry Interval ran out.
    Expired,
    /// The session ended.
    SessionEnded,
    /// A shared subscription has no member.
    NoMember,
    /// As many delayed messages wait as may.
    Delayed,
}

impl From<Full> for Drop {
    fn from(full: Full) -> Self {
        match full {
            Full::Messages => Self::QueueMessages,
            Full::Bytes => Self::QueueBytes,
        }
    }
}

/// A granted claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedSession {
    /// To whom.
    pub owner: Owner,
    /// Which session.
    pub client_id: Arc<str>,
    /// Of this claim.
    pub epoch: u64,
    /// Whether this group keeps the session.
    pub persistent: bool,
    /// A stored session is resumed [MQTT-3.2.2-3].
    pub session_present: bool,
    /// Its subscriptions, as if each had just been granted.
    pub subscriptions: Vec<FilterOutcome>,
    /// QoS 2 identifiers whose PUBREL is still to come.
    pub received: Vec<PacketId>,
}

/// What became of one filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterOutcome {
    /// As subscribed.
    pub filter: String,
    /// For SUBACK.
    pub reason: ReasonCode,
    /// As granted.
    pub options: SubscriptionOptions,
    /// Subscription Identifier.
    pub identifier: Option<NonZeroU32>,
    /// Retained messages are to be read under this number; until the last page, live messages of this subscription
    /// wait.
    pub read: Option<u64>,
}

/// A message of a session's window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// To whom.
    pub owner: Owner,
    /// Of which claim.
    pub epoch: u64,
    /// Given by the state machine.
    pub packet_id: PacketId,
    /// 1 or 2.
    pub qos: QoS,
    /// A re-delivery.
    pub dup: bool,
    /// RETAIN as it goes to this client.
    pub retain: bool,
    /// Of the subscriptions it came by.
    pub identifiers: Vec<u32>,
    /// The message, its expiry on the group's clock.
    pub message: Arc<Message>,
    /// Milliseconds that it may still wait.
    pub expiry_left_ms: Option<u64>,
    /// It came by a shared subscription.
    pub shared: bool,
}
