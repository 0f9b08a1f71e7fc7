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

/// Small, as thousands of them are written and read again in a moment.
#[derive(Debug)]
struct Record {
    topic: Range<u32>,
    payload: Range<u32>,
    hash: u64,
    identity: MessageIdentity,
    expires_at_ms: Option<u64>,
    properties: Option<Box<PublishProperties>>,
    rare: Option<Box<Rare>>,
    qos: QoS,
    retain: bool,
}

/// What most messages have nothing of.
#[derive(Debug)]
struct Rare {
    large: Option<Bytes>,
    addressee: Addressee,
    origin: Option<ShareOrigin>,
    passed_on: u8,
}

/// Messages from one arbiter to another. Emptied ones go back to where they were filled.
#[derive(Debug, Default)]
pub struct Batch {
    /// Topics, that of a run of messages once.
    topics: String,
    payloads: Vec<u8>,
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
        self.topics.len() + self.payloads.len() + self.large_bytes + self.records.len() * size_of::<Record>()
    }

    /// Memory that it keeps when it is emptied.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.topics.capacity() + self.payloads.capacity() + self.records.capacity() * size_of::<Record>()
    }

    /// The oldest message in it was read then.
    pub fn set_oldest(&mut self, oldest: Duration) {
        self.oldest = Some(oldest);
    }

    /// When that was, if it was read by an arbiter of this node.
    pub fn take_oldest(&mut self) -> Option<Duration> {
        self.oldest.take()
    }

    /// Copies a message in for whoever subscribes there; a large payload is shared.
    #[inline]
    pub fn push_to_subscribers(&mut self, publication: &mut Publication<'_>) {
        let is_large = publication.payload.len() >= SHARED_PAYLOAD_BYTES_MIN;
        if is_large || publication.origin.is_some() || publication.passed_on != 0 {
            return self.push(publication, Addressee::Subscribers);
        }
        let start = self.payloads.len() as u32;
        self.payloads.extend_from_slice(publication.payload.as_slice());
        let payload = start..self.payloads.len() as u32;
        self.push_record(publication, payload, None);
    }

    /// The same for any addressee.
    pub fn push(&mut self, publication: &mut Publication<'_>, addressee: Addressee) {
        let (payload, large) = if publication.payload.len() >= SHARED_PAYLOAD_BYTES_MIN {
            let large = publication.payload.share();
            self.large_bytes += large.len();
            (0..0, Some(large))
        } else {
            let start = self.payloads.len() as u32;
            self.payloads.extend_from_slice(publication.payload.as_slice());
            (start..self.payloads.len() as u32, None)
        };
        let rare = Rare { large, addressee, origin: publication.origin, passed_on: publication.passed_on };
        self.push_record(publication, payload, Some(Box::new(rare)));
    }

    #[inline]
    fn push_record(&mut self, publication: &Publication<'_>, payload: Range<u32>, rare: Option<Box<Rare>>) {
        let topic = self.topic_of(publication);
        self.records.push(Record {
            topic,
            payload,
            hash: publication.topic_hash,
            identity: publication.identity,
            expires_at_ms: publication.expires_at_ms,
            properties: publication.properties.map(|properties| Box::new(properties.clone())),
            rare,
            qos: publication.qos,
            retain: publication.retain,
        });
    }

    /// Where its topic is: that of the message before, or a copy.
    #[inline]
    fn topic_of(&mut self, publication: &Publication<'_>) -> Range<u32> {
        if let Some(before) = self.records.last()
            && before.hash == publication.topic_hash
            && self.topics[before.topic.start as usize..before.topic.end as usize] == *publication.topic
        {
            return before.topic.clone();
        }
        let start = self.topics.len() as u32;
        self.topics.push_str(publication.topic);
        start..self.topics.len() as u32
    }

    /// Hands each message to `take`, in the order they were pushed, and empties the batch. `true`: it is of the same topic as the one
    /// before.
    pub fn drain(&mut self, mut take: impl FnMut(&mut Publication<'_>, &Addressee, bool)) {
        let mut topic_before = None;
        for record in &self.records {
            let again = topic_before.replace(&record.topic) == Some(&record.topic);
            let rare = record.rare.as_deref();
            let payload = match rare.and_then(|rare| rare.large.as_ref()) {
                Some(large) => Payload::shared(large),
                None => Payload::copied(&self.payloads[record.payload.start as usize..record.payload.end as usize]),
            };
            let addressee = rare.map_or(&Addressee::Subscribers, |rare| &rare.addressee);
            let mut publication = Publication {
                identity: record.identity,
                topic: &self.topics[record.topic.start as usize..record.topic.end as usize],
                topic_hash: record.hash,
                payload,
                qos: record.qos,
                retain: record.retain,
                properties: record.properties.as_deref(),
                expires_at_ms: record.expires_at_ms,
                publisher: None,
                publisher_id: match addressee {
                    Addressee::Subscribers => None,
                    Addressee::Member(_, _, publisher) => publisher.as_ref(),
                },
                origin: rare.and_then(|rare| rare.origin),
                passed_on: rare.map_or(0, |rare| rare.passed_on),
                message: None,
            };
            take(&mut publication, addressee, again);
        }
        self.topics.clear();
        self.payloads.clear();
        self.records.clear();
        self.large_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::share_settling::ShareKeeper;
    use crate::subscription::{NodeNumber, ShareMember, ShareTarget, SubscriptionIndex};

    fn publication<'a>(number: u64, topic: &'a str, payload: &'a [u8]) -> Publication<'a> {
        Publication {
            identity: MessageIdentity { lane: 7, number },
            topic,
            topic_hash: topic.len() as u64,
            payload: Payload::copied(payload),
            qos: QoS::AtLeastOnce,
            retain: number.is_multiple_of(2),
            properties: None,
            expires_at_ms: number.is_multiple_of(3).then_some(number),
            publisher: None,
            publisher_id: None,
            origin: None,
            passed_on: 0,
            message: None,
        }
    }

    fn drained(batch: &mut Batch) -> Vec<(u64, String, Vec<u8>)> {
        let mut all = Vec::new();
        let mut before = None;
        batch.drain(|publication, _, again| {
            assert_eq!(
                again,
                before.replace(publication.topic.to_owned()).is_some_and(|before| before == publication.topic)
            );
            let MessageIdentity { lane, number } = publication.identity;
            let as_pushed = (7, number.is_multiple_of(2), number.is_multiple_of(3).then_some(number));
            assert_eq!((lane, publication.retain, publication.expires_at_ms), as_pushed);
            assert_eq!(publication.topic_hash, publication.topic.len() as u64);
            all.push((number, publication.topic.to_owned(), publication.payload.as_slice().to_vec()));
        });
        all
    }

    /// Topics that have one hash are still two, and a batch that was emptied knows none.
    #[test]
    fn messages_come_out_as_they_went_in_whatever_topics_stand_beside_each_other() {
        let large = vec![b'l'; SHARED_PAYLOAD_BYTES_MIN];
        let payloads: [&[u8]; 3] = [b"", b"small", &large];
        let topics = ["t/a", "t/a", "t/b", "t/a", "\u{e9}", "", "", "t/b", "t/b", "t/long"];
        let mut batch = Batch::default();
        for round in 0..2 {
            let mut expected = Vec::new();
            for (number, topic) in (round..).zip(topics) {
                let payload = payloads[number as usize % payloads.len()];
                batch.push_to_subscribers(&mut publication(number, topic, payload));
                expected.push((number, topic.to_owned(), payload.to_vec()));
            }
            assert_eq!(batch.len(), topics.len());
            assert_eq!(batch.topics.len(), "t/at/bt/a\u{e9}t/bt/long".len(), "of each run one");
            assert!(batch.weight_bytes() > large.len() * 3);
            assert_eq!(drained(&mut batch), expected);
            assert!(batch.is_empty());
            assert_eq!(batch.weight_bytes(), 0);
        }
    }

    /// What few messages have stays with theirs.
    #[test]
    fn a_member_gets_what_was_said_for_it_and_nobody_else_does() {
        let node: NodeNumber = 5;
        let keeper = ShareKeeper::Arbiter { node, arbiter: 3 };
        let origin = ShareOrigin { keeper, share: 1, number: std::num::NonZeroU64::MIN };
        let properties = PublishProperties { content_type: Some("text".to_owned()), ..PublishProperties::default() };
        let mut batch = Batch::default();
        batch.push_to_subscribers(&mut publication(1, "t", b"1"));
        batch.push_to_subscribers(&mut Publication { origin: Some(origin), ..publication(2, "t", b"2") });
        batch.push_to_subscribers(&mut Publication { passed_on: 4, ..publication(3, "t", b"3") });
        batch.push_to_subscribers(&mut Publication { properties: Some(&properties), ..publication(4, "t", b"4") });
        let member = ConnectionKey::new(1, 2, 3);
        let index = SubscriptionIndex::new();
        let target = ShareTarget::Session { group: 0 };
        index.join_share("s", "t", ShareMember { target, client_id_hash: 0, node: 0, qos0_only: false });
        let share = index.share("s", "t").expect("it has a member");
        let publisher: Arc<str> = Arc::from("publisher");
        let addressee = Addressee::Member(member, Arc::clone(&share), Some(Arc::clone(&publisher)));
        batch.push(&mut publication(5, "t", b"5"), addressee);
        batch.push_to_subscribers(&mut publication(6, "t", b"6"));

        let mut seen = Vec::new();
        batch.drain(|publication, addressee, _| {
            let content_type = publication.properties.and_then(|properties| properties.content_type.clone());
            let member = match addressee {
                Addressee::Subscribers => None,
                Addressee::Member(member, _, _) => Some(*member),
            };
            let publisher = publication.publisher_id.cloned();
            seen.push((publication.origin, publication.passed_on, content_type, member, publisher));
        });
        let nothing = (None, 0, None, None, None);
        let expected = [
            nothing.clone(),
            (Some(origin), 0, None, None, None),
            (None, 4, None, None, None),
            (None, 0, Some("text".to_owned()), None, None),
            (None, 0, None, Some(member), Some(publisher)),
            nothing,
        ];
        assert_eq!(seen, expected);
    }
}
