//! The way from the arbiters to the groups: commands to be committed, and questions in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kentongan_cluster::{GroupId, PipelineHandle};
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode, Subscribe, Unsubscribe};

use super::command::{self, Command, MessageRecord};
use super::{ClaimRequest, RetainedCursor, Slots};
use crate::message::Message;
use crate::router::ConnectionKey;
use crate::router::client::PersistentSession;

/// What the thread that applies commands is asked beside them.
#[derive(Debug)]
pub enum Query {
    /// Nothing is replayed any more: begin to act on effects.
    Lead,
    /// A CONNECT that must ask who else has its Client Identifier.
    Claim(ClaimRequest),
    /// A connection that was to be taken over is done.
    Released(Arc<str>),
    /// A part of the retained messages.
    RetainedPage {
        /// Who asks.
        connection: ConnectionKey,
        /// The read's number there.
        number: u64,
        /// Which topics.
        filter: String,
        /// Where to go on.
        cursor: RetainedCursor,
    },
}

/// Hands commands and questions to the groups. From one thread they arrive in the order in which it said them.
#[derive(Debug, Clone)]
pub struct Submitter {
    pipeline: PipelineHandle<Query>,
    slots: Slots,
    full: Arc<AtomicBool>,
}

impl Submitter {
    /// `full` is kept by whoever watches the free space of the disk.
    #[must_use]
    pub fn new(pipeline: PipelineHandle<Query>, slots: Slots, full: Arc<AtomicBool>) -> Self {
        Self { pipeline, slots, full }
    }

    /// Whether publishers should pause until the groups caught up.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.pipeline.is_overloaded()
    }

    /// Whether the disk has only its reserve left, so that nothing new is accepted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Proposes a command to a group.
    pub fn propose(&self, group: u16, command: Command) {
        self.pipeline.propose(GroupId(group), command::encode(&command));
    }

    /// Asks for a Client Identifier that may be contended for.
    pub fn claim(&self, request: ClaimRequest) {
        self.pipeline.query(Query::Claim(request));
    }

    /// A connection let go of its Client Identifier, and somebody may wait for that.
    pub fn released(&self, client_id: &Arc<str>) {
        self.pipeline.query(Query::Released(Arc::clone(client_id)));
    }

    /// Asks for a part of the retained messages that match `filter`.
    pub fn retained_page(&self, connection: ConnectionKey, number: u64, filter: &str, cursor: RetainedCursor) {
        self.pipeline.query(Query::RetainedPage { connection, number, filter: filter.to_owned(), cursor });
    }

    /// The connection of a persistent session ended.
    pub fn disconnect(
        &self,
        client_id: &Arc<str>,
        session: PersistentSession,
        publish_will: bool,
        session_expiry_seconds: Option<u32>,
    ) {
        let command = command::Disconnect {
            client_id: client_id.to_string(),
            epoch: session.epoch,
            publish_will,
            session_expiry_seconds,
        };
        self.propose(session.group, Command::Disconnect(command));
    }

    /// What a subscriber acknowledged, in its order; PUBREL among it is a publisher's.
    pub fn acknowledge(
        &self,
        session: PersistentSession,
        client_id: &Arc<str>,
        items: impl Iterator<Item = (AckKind, PacketId, ReasonCode)>,
    ) {
        let items = items
            .map(|(kind, packet_id, reason)| command::AcknowledgeItem {
                kind: kind as u32,
                packet_id: u32::from(packet_id.get()),
                reason: reason as u32,
            })
            .collect();
        let command = command::Acknowledge { client_id: client_id.to_string(), epoch: session.epoch, items };
        self.propose(session.group, Command::Acknowledge(command));
    }

    /// A QoS 2 message of a persistent session.
    pub fn receive(
        &self,
        message: &Message,
        session: PersistentSession,
        client_id: &Arc<str>,
        packet_id: PacketId,
        now_ms: u64,
    ) {
        let command = command::Receive {
            client_id: client_id.to_string(),
            epoch: session.epoch,
            packet_id: u32::from(packet_id.get()),
            message: Some(MessageRecord::from_message(message, now_ms)),
        };
        self.propose(session.group, Command::Receive(command));
    }

    /// SUBSCRIBE of a persistent session; `refusals` stand for filters that were refused before.
    pub fn subscribe(
        &self,
        session: PersistentSession,
        client_id: &Arc<str>,
        subscribe: &Subscribe,
        refusals: &[Option<ReasonCode>],
    ) {
        let filters = subscribe
            .filters
            .iter()
            .zip(refusals)
            .map(|((filter, options), refusal)| command::SubscribeFilter {
                filter: filter.clone(),
                qos: options.qos as u32,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                retain_handling: options.retain_handling as u32,
                subscription_identifier: subscribe.subscription_identifier,
                refused: refusal.map(|reason| reason as u32),
            })
            .collect();
        let command = command::Subscribe {
            client_id: client_id.to_string(),
            epoch: session.epoch,
            packet_id: u32::from(subscribe.packet_id.get()),
            filters,
        };
        self.propose(session.group, Command::Subscribe(command));
    }

    /// UNSUBSCRIBE of a persistent session.
    pub fn unsubscribe(&self, session: PersistentSession, client_id: &Arc<str>, unsubscribe: &Unsubscribe) {
        let command = command::Unsubscribe {
            client_id: client_id.to_string(),
            epoch: session.epoch,
            packet_id: u32::from(unsubscribe.packet_id.get()),
            filters: unsubscribe.filters.clone(),
        };
        self.propose(session.group, Command::Unsubscribe(command));
    }

    /// The mapping of names to groups.
    #[must_use]
    pub fn slots(&self) -> Slots {
        self.slots
    }
}
