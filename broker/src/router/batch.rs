//! What crosses to an arbiter from another, or from another node: the messages of a turn in one flat arena.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kentongan_proto::mqtt::{PublishProperties, QoS};

use super::ConnectionKey;
use super::publish::{Payload, Publication};
use super::share_settling::ShareOrigin;
use crate::connection::SHARED_PAYLOAD_BYTES_MIN;
use crate::message::MessageIdentity;
use crate::subscription::ShareGroup;

/// For whom a record is on the arbiter that gets it.
#[derive(Debug, Clone)]
pub enum Addressee {
    /// Whoever subscribes there; that arbiter matches.
    Subscribers,
    /// This member of a shared subscription. With the publisher's Client Identifier if the member was picked by that: the
    /// next one is, should this one be gone.
    Member(ConnectionKey, Arc<ShareGroup>, Option<Arc<str>>),
}

#[derive(Debug)]
struct Record {
    topic: Range<u32>,
    payload: Range<u32>,
    large: Option<Bytes>,
    hash: u64,
    identity: MessageIdentity,
    expires_at_ms: Option<u64>,
    properties: Option<Box<PublishProperties>>,
    qos: QoS,
    retain: bool,
    addressee: Addressee,
    origin: Option<ShareOrigin>,
    passed_on: u8,
}

/// Messages from one arbiter to another. Emptied ones go back to where they were filled.
#[derive(Debug, Default)]
pub struct Batch {
    arena: Vec<u8>,
    records: Vec<Record>,
    large_bytes: usize,
    /// When the oldest of them was read, on the process clock, if it was read here.
    oldest: Option<Duration>,
}

impl Batch {
    /// Whether there is nothing to hand over.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Messages in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// What it weighs against the bound of the inbox.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.arena.len() + self.large_bytes + self.records.len() * size_of::<Record>()
    }

    /// Memory that it keeps when it is emptied.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.arena.capacity() + self.records.capacity() * size_of::<Record>()
    }

    /// The oldest message in it was read then.
    pub fn set_oldest(&mut self, oldest: Duration) {
        self.oldest = Some(oldest);
    }

    /// When that was, if it was read by an arbiter of this node.
    pub fn take_oldest(&mut self) -> Option<Duration> {
        self.oldest.take()
    }

    /// Copies a message in; a large payload is shared.
    #[inline]
    pub fn push(&mut self, publication: &mut Publication<'_>, addressee: Addressee) {
        let topic = self.copy(publication.topic.as_bytes());
        let (payload, large) = if publication.payload.len() >= SHARED_PAYLOAD_BYTES_MIN {
            let large = publication.payload.share();
            self.large_bytes += large.len();
            (0..0, Some(large))
        } else {
            (self.copy(publication.payload.as_slice()), None)
        };
        self.records.push(Record {
            topic,
            payload,
            large,
            hash: publication.topic_hash,
            identity: publication.identity,
            expires_at_ms: publication.expires_at_ms,
            properties: publication.properties.map(|properties| Box::new(properties.clone())),
            qos: publication.qos,
            retain: publication.retain,
            addressee,
            origin: publication.origin,
            passed_on: publication.passed_on,
        });
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<u32> {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        start..self.arena.len() as u32
    }

    /// Hands each message to `take`, in the order they were pushed, and empties the batch.
    pub fn drain(&mut self, mut take: impl FnMut(&mut Publication<'_>, &Addressee)) {
        for record in &self.records {
            let text = &self.arena[record.topic.start as usize..record.topic.end as usize];
            let Ok(topic) = std::str::from_utf8(text) else {
                unreachable!("a topic was copied from a str");
            };
            let payload = match &record.large {
                Some(large) => Payload::shared(large),
                None => Payload::copied(&self.arena[record.payload.start as usize..record.payload.end as usize]),
            };
            let mut publication = Publication {
                identity: record.identity,
                topic,
                topic_hash: record.hash,
                payload,
                qos: record.qos,
                retain: record.retain,
                properties: record.properties.as_deref(),
                expires_at_ms: record.expires_at_ms,
                publisher: None,
                publisher_id: match &record.addressee {
                    Addressee::Subscribers => None,
                    Addressee::Member(_, _, publisher) => publisher.as_ref(),
                },
                origin: record.origin,
                passed_on: record.passed_on,
                message: None,
            };
            take(&mut publication, &record.addressee);
        }
        self.arena.clear();
        self.records.clear();
        self.large_bytes = 0;
    }
}
