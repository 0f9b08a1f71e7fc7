//! One persistent session as a group keeps it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use kentongan_proto::mqtt::{PacketId, QoS, SubscriptionOptions};

use super::command::{Connect, Owner, WillRecord};
use crate::message::Message;
use crate::session::outbound::{Outbound, QueueCaps};
use crate::subscription::Waits;

/// A subscription of a persistent session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    /// As granted.
    pub options: SubscriptionOptions,
    /// Subscription Identifier.
    pub identifier: Option<NonZeroU32>,
    /// Its retained messages are being read.
    pub read: Option<u64>,
    /// Live messages wait: from when a read begins until no read of the session is under way, so that none overtakes
    /// another that waits.
    pub held: bool,
}

/// A claim that waits until the owner before it has let go; nobody's, if its node died meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The claim; its epoch is the session's already.
    pub connect: Connect,
    /// Of the owner that has to let go.
    pub owner_epoch: u64,
}

/// What a session was, while nobody was connected, before the present claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Before {
    /// Session Expiry Interval.
    pub expiry_seconds: u32,
    /// The will that waited for its delay, and until when.
    pub will: Option<(WillRecord, u64)>,
}

/// A message in a session's queue or window.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where its body is stored: bodies are stored once a group.
    pub body: u64,
    /// Its place in the session, which is also its key in the store.
    pub sequence: u64,
    /// The message.
    pub message: Arc<Message>,
    /// As delivered.
    pub qos: QoS,
    /// RETAIN as delivered.
    pub retain: bool,
    /// Subscription Identifiers.
    pub identifiers: Vec<u32>,
    /// The shared subscription it came by.
    pub share: Option<Arc<str>>,
}

/// A live message that waits until retained ones are sent.
#[derive(Debug, Clone)]
pub struct HeldBack {
    /// Its place in the session, which is also its key in the store.
    pub sequence: u64,
    /// The message.
    pub message: Arc<Message>,
    /// As delivered.
    pub qos: QoS,
    /// RETAIN as delivered.
    pub retain: bool,
    /// Subscription Identifiers.
    pub identifiers: Vec<u32>,
    /// The filters that hold it back. Not stored: it follows from the subscriptions.
    pub holders: u32,
}

impl Waits for HeldBack {
    fn topic(&self) -> &str {
        &self.message.topic
    }

    fn holders(&mut self) -> &mut u32 {
        &mut self.holders
    }
}

/// A persistent session.
#[derive(Debug)]
pub struct PersistentSession {
    /// Names it within the group, shorter than its Client Identifier.
    pub number: u64,
    /// Its Client Identifier.
    pub client_id: Arc<str>,
    /// Whom it belongs to.
    pub identity: Arc<str>,
    /// Of the last claim.
    pub epoch: u64,
    /// The connection, while there is one.
    pub owner: Option<Owner>,
    /// The claim that comes next: while there is an owner, whose commands then count no more; or, of a transient session, until
    /// what its client sent before is routed.
    pub waiting: Option<Box<Waiting>>,
    /// Nothing but a claim, and perhaps a will: the rest of the session lives and dies with its connection.
    pub transient: bool,
    /// Session Present, as the last claim was told.
    pub resumed: bool,
    /// Session Expiry Interval.
    pub expiry_seconds: u32,
    /// On the group's clock, while nobody is connected; also when a claim has waited in vain.
    pub expires_at_ms: Option<u64>,
    /// Published at an abnormal end.
    pub will: Option<WillRecord>,
    /// On the group's clock, while a will waits for its delay.
    pub will_due_ms: Option<u64>,
    /// If the present claim changed it. Counts again if no connection came of the claim.
    pub before: Option<Box<Before>>,
    /// When it would have ended if the present claim had not come. Counts again if no connection came of that.
    pub expires_before_ms: Option<u64>,
    /// By Topic Filter.
    pub subscriptions: BTreeMap<Arc<str>, Subscription>,
    /// How many of them wait for their retained messages.
    pub reads: usize,
    /// Messages to the client.
    pub outbound: Outbound<Entry>,
    /// In-flight PUBLISH that a resumed client with a smaller Receive Maximum has not been sent again yet.
    pub to_resend: VecDeque<PacketId>,
    /// PUBLISH that was in flight when the present connection took the session up, and still is: it may come for the second time.
    pub sent_before: BTreeSet<PacketId>,
    /// QoS 2 identifiers of the client whose PUBREL is still to come.
    pub received: BTreeSet<PacketId>,
    /// Live messages behind retained ones.
    pub held: Vec<HeldBack>,
    /// Their weight.
    pub held_bytes: usize,
    /// How often some of them, which replaced retained ones, went on before these were there, for there was no room for more.
    pub overflows: u64,
    /// Of the next entry.
    pub next_sequence: u64,
    /// Whether anything came by a shared subscription since the queue was empty.
    pub may_queue_shared: bool,
    /// In-flight window of the present connection.
    pub window_max: u16,
    /// What the listener of the last claim allows to wait, if less than the group does.
    pub caps: QueueCaps,
}

impl PersistentSession {
    /// The connection that is sent what there is: one that has to let go gets nothing more.
    #[must_use]
    pub fn served(&self) -> Option<Owner> {
        self.owner.filter(|_| self.waiting.is_none())
    }

    /// Whether some subscription waits for its retained messages.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.reads > 0
    }
}
