//! What a client did, written as its session's group will read it.

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode, Subscribe, Unsubscribe};

use super::PersistentSession;
use super::command::{self, MessageRecord, SessionCommand};
use crate::message::Message;

impl SessionCommand {
    /// What it is, for the log.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Disconnect(_) => "disconnect",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Acknowledge(_) => "acknowledge",
            Self::Receive(_) => "receive",
            Self::RetainedPage(_) => "retained page",
            Self::Released(_) => "released",
            Self::OutboxSettled(_) => "settled outbox",
        }
    }

    /// The connection of a session ended.
    #[must_use]
    pub fn disconnect(
        client_id: &str,
        session: PersistentSession,
        publish_will: bool,
        session_expiry_seconds: Option<u32>,
    ) -> Self {
        let client_id = client_id.to_owned();
        let epoch = session.epoch;
        Self::Disconnect(command::Disconnect {
            client_id,
            epoch,
            publish_will,
            session_expiry_seconds,
            never_began: false,
        })
    }

    /// A claim was granted, and no connection came of it.
    #[must_use]
    pub fn never_began(client_id: &str, session: PersistentSession) -> Self {
        Self::Disconnect(command::Disconnect {
            client_id: client_id.to_owned(),
            epoch: session.epoch,
            never_began: true,
            ..command::Disconnect::default()
        })
    }

    /// What a subscriber acknowledged, in its order; PUBREL among it is a publisher's.
    #[must_use]
    pub fn acknowledge(
        client_id: &str,
        session: PersistentSession,
        items: impl Iterator<Item = (AckKind, PacketId, ReasonCode)>,
    ) -> Self {
        let items = items
            .map(|(kind, packet_id, reason)| command::AcknowledgeItem {
                kind: kind as u32,
                packet_id: u32::from(packet_id.get()),
                reason: reason as u32,
            })
            .collect();
        Self::Acknowledge(command::Acknowledge { client_id: client_id.to_owned(), epoch: session.epoch, items })
    }

    /// A QoS 2 message of a persistent session.
    #[must_use]
    pub fn receive(
        client_id: &str,
        session: PersistentSession,
        message: &Message,
        packet_id: PacketId,
        now_ms: u64,
    ) -> Self {
        let mut record = MessageRecord::from_message(message, 0);
        let delayed = crate::message::delayed(&message.topic).map(|(seconds, topic)| (seconds, topic.to_owned()));
        let delay_ms = delayed.map(|(seconds, topic)| {
            record.topic = topic;
            now_ms.saturating_add(seconds.saturating_mul(1000))
        });
        Self::Receive(command::Receive {
            client_id: client_id.to_owned(),
            epoch: session.epoch,
            packet_id: u32::from(packet_id.get()),
            message: Some(record),
            delay_ms,
        })
    }

    /// SUBSCRIBE of a persistent session; `refusals` stand for filters that were refused before.
    #[must_use]
    pub fn subscribe(
        client_id: &str,
        session: PersistentSession,
        subscribe: &Subscribe,
        refusals: &[Option<ReasonCode>],
        retained_possible: bool,
        ticket: u64,
    ) -> Self {
        let filters = subscribe
            .filters
            .iter()
            .zip(refusals)
            .map(|((filter, options), refusal)| command::SubscribeFilter {
                filter: filter.clone(),
                qos: options.qos as u32,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                // Where there is nothing to be read, the group need not wait for it.
                retain_handling: if retained_possible { options.retain_handling as u32 } else { 2 },
                subscription_identifier: subscribe.subscription_identifier,
                refused: refusal.map(|reason| reason as u32),
            })
            .collect();
        Self::Subscribe(command::Subscribe {
            client_id: client_id.to_owned(),
            epoch: session.epoch,
            packet_id: u32::from(subscribe.packet_id.get()),
            filters,
            again: false,
            ticket,
        })
    }

    /// UNSUBSCRIBE of a persistent session.
    #[must_use]
    pub fn unsubscribe(client_id: &str, session: PersistentSession, unsubscribe: &Unsubscribe, ticket: u64) -> Self {
        Self::Unsubscribe(command::Unsubscribe {
            client_id: client_id.to_owned(),
            epoch: session.epoch,
            packet_id: u32::from(unsubscribe.packet_id.get()),
            filters: unsubscribe.filters.clone(),
            again: false,
            ticket,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use kentongan_proto::mqtt::QoS;

    use super::*;
    use crate::message::MessageIdentity;

    /// The group sees the topic that is meant, and how long it waits.
    #[test]
    fn a_delayed_message_is_received_under_its_own_topic() {
        let message = Message {
            identity: MessageIdentity { lane: 1, number: 1 },
            topic: Arc::from("$delayed/3/a/b"),
            payload: Bytes::from_static(b"x"),
            qos: QoS::ExactlyOnce,
            retain: false,
            publisher: Arc::from("p"),
            properties: None,
            expires_at_ms: None,
        };
        let session = PersistentSession { group: 0, epoch: 9 };
        let id = PacketId::new(5).expect("not zero");
        let SessionCommand::Receive(receive) = SessionCommand::receive("p", session, &message, id, 0) else {
            panic!("a receive");
        };
        assert_eq!((receive.epoch, receive.packet_id, receive.delay_ms), (9, 5, Some(3000)));
        assert_eq!(receive.message.expect("a message").topic, "a/b");
    }
}
