//! The retained messages of one group.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use kentongan_proto::topic;

use crate::message::Message;

/// Bounds of one group: its share of those in the settings. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetainedLimits {
    /// Messages.
    pub messages_max: u64,
    /// Their weight.
    pub bytes_max: u64,
}

/// A part of what a filter matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their topics.
    pub messages: Vec<Arc<Message>>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Arc<str>>,
}

/// Topic → the message retained there.
#[derive(Debug, Default)]
pub struct Retained {
    limits: RetainedLimits,
    messages: BTreeMap<Arc<str>, Arc<Message>>,
    bytes: u64,
}

impl Retained {
    /// Empty.
    #[must_use]
    pub fn new(limits: RetainedLimits) -> Self {
        Self { limits, messages: BTreeMap::new(), bytes: 0 }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Their weight.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The one of a topic.
    #[must_use]
    pub fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        self.messages.get(topic)
    }

    /// Replaces what is retained for the message's topic [MQTT-3.3.1-5]. `false`: the bounds do not allow it, and what
    /// was there stays.
    pub fn set(&mut self, message: Arc<Message>) -> bool {
        let before = self.messages.get(&message.topic).map_or(0, |old| old.weight_bytes() as u64);
        let bytes = self.bytes - before + message.weight_bytes() as u64;
        let messages = self.messages.len() as u64 + u64::from(before == 0);
        let limits = self.limits;
        if (limits.messages_max != 0 && messages > limits.messages_max)
            || (limits.bytes_max != 0 && bytes > limits.bytes_max)
        {
            return false;
        }
        self.restore(message);
        true
    }

    /// [`Self::set`], whatever the bounds: it was there before.
    pub fn restore(&mut self, message: Arc<Message>) {
        self.bytes += message.weight_bytes() as u64;
        if let Some(old) = self.messages.insert(Arc::clone(&message.topic), message) {
            self.bytes -= old.weight_bytes() as u64;
        }
    }

    /// Removes what is retained for a topic [MQTT-3.3.1-6].
    pub fn remove(&mut self, topic: &str) -> Option<Arc<Message>> {
        let message = self.messages.remove(topic)?;
        self.bytes -= message.weight_bytes() as u64;
        Some(message)
    }

    /// What `filter` matches among the topics after `after`, at most `messages_max`, and none once there are `bytes_max`, looking
    /// at no more than `scan_max` topics: a call's work is bounded, however many topics there are.
    #[must_use]
    pub fn page(
        &self,
        filter: &str,
        after: Option<&str>,
        messages_max: usize,
        bytes_max: usize,
        scan_max: usize,
    ) -> Page {
        let Some(wildcard) = filter.find(['+', '#']) else {
            let message = self.messages.get(filter).filter(|_| after.is_none());
            return Page { messages: message.into_iter().cloned().collect(), next: None };
        };
        // Everything it matches begins so; `sport/#` also matches `sport`, which sorts before `sport/`.
        let prefix = filter[..wildcard].trim_end_matches('/');
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let mut last = None;
        let range = self.messages.range::<str, _>((start, Bound::Unbounded));
        for (scanned, (name, message)) in range.enumerate() {
            if !name.starts_with(prefix) {
                return Page { messages, next: None };
            }
            if scanned == scan_max || messages.len() == messages_max || bytes >= bytes_max {
                return Page { messages, next: last };
            }
            last = Some(Arc::clone(name));
            if topic::matches(filter, name) {
                bytes += message.weight_bytes();
                messages.push(Arc::clone(message));
            }
        }
        Page { messages, next: None }
    }

    /// All of them, in the order of their topics.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Message>> {
        self.messages.values()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kentongan_proto::mqtt::QoS;

    use super::*;
    use crate::message::MessageIdentity;

    fn message(topic: &str) -> Arc<Message> {
        Arc::new(Message {
            identity: MessageIdentity::default(),
            topic: Arc::from(topic),
            payload: Bytes::from_static(b"x"),
            qos: QoS::AtLeastOnce,
            retain: true,
            publisher: Arc::from(""),
            properties: None,
            expires_at_ms: None,
        })
    }

    fn all(
        retained: &Retained,
        filter: &str,
        (messages_max, bytes_max, scan_max): (usize, usize, usize),
    ) -> Vec<String> {
        let mut topics = Vec::new();
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = retained.page(filter, after.as_deref(), messages_max, bytes_max, scan_max);
            topics.extend(page.messages.iter().map(|message| message.topic.to_string()));
            match page.next {
                Some(next) => after = Some(next),
                None => return topics,
            }
        }
    }

    /// Whatever the size of the pages, together they are what the filter matches, each topic once.
    #[test]
    fn pages_cover_exactly_what_the_filter_matches() {
        let mut retained = Retained::default();
        let topics = ["a", "a/b", "a/b/c", "a!", "ab", "ab/c", "b", "b/x", "$SYS/a", "/", "/a", "a//b", "a/c", "c/x"];
        for name in topics {
            assert!(retained.set(message(name)));
        }
        for filter in ["#", "+", "a/#", "a/+", "+/x", "a/b", "+/+/c", "$SYS/#", "/#", "/+", "zz/#", "a/+/#"] {
            let mut expected: Vec<_> = topics.iter().filter(|name| topic::matches(filter, name)).collect();
            expected.sort();
            for bounds in [(1, 1000, 100), (100, 1000, 1), (2, 1000, 3), (100, 1, 100), (100, 1000, 100)] {
                assert_eq!(
                    all(&retained, filter, bounds),
                    *expected.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
                    "{filter}"
                );
            }
        }
    }

    /// One page goes to another node in one frame.
    #[test]
    fn a_page_has_no_more_than_one_message_beyond_its_bytes() {
        let mut retained = Retained::default();
        let payload = Bytes::from(vec![0; 10_000]);
        for number in 0..10 {
            let large = Message { payload: payload.clone(), ..Message::clone(&message(&format!("t/{number}"))) };
            assert!(retained.set(Arc::new(large)));
        }
        let page = retained.page("t/#", None, 100, 25_000, 100);
        assert_eq!((page.messages.len(), page.next.as_deref()), (3, Some("t/2")));
        let page = retained.page("t/#", Some("t/8"), 100, 1, 100);
        assert_eq!((page.messages.len(), page.next), (1, None));
    }

    #[test]
    fn bounds_keep_what_is_there_and_removal_gives_room() {
        let mut retained = Retained::new(RetainedLimits { messages_max: 1, bytes_max: 0 });
        assert!(retained.set(message("a")));
        assert!(!retained.set(message("b")));
        assert!(retained.set(message("a")), "replacing is no growth");
        assert!(retained.remove("a").is_some());
        assert_eq!((retained.len(), retained.bytes()), (0, 0));
        assert!(retained.set(message("b")));
    }
}
