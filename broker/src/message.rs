//! The Application Message as the broker keeps it.

use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::{PublishProperties, QoS};

/// What tells one publication from every other within this process: which lane it came in on, and its number there.
///
/// A retained message read at SUBSCRIBE and the same message arriving live are known to be one by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct MessageIdentity {
    /// The lane: an arbiter of a node's incarnation, or a group's outbox.
    pub lane: u64,
    /// Increasing within the lane.
    pub number: u64,
}

/// What a message weighs beside its bytes, and what its properties do: about what they take in memory. Fixed, because replicas that
/// run different versions must reckon the same.
const MESSAGE_BYTES: usize = 112;
const PROPERTIES_BYTES: usize = 144;

/// An Application Message on its way, or at rest in a queue. Never changed once made; share it by [`Arc`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Which publication this is.
    pub identity: MessageIdentity,
    /// Topic Name.
    pub topic: Arc<str>,
    /// The payload.
    pub payload: Bytes,
    /// As published.
    pub qos: QoS,
    /// RETAIN as published.
    pub retain: bool,
    /// Client Identifier of the publisher, for No Local; empty for messages of the broker itself.
    pub publisher: Arc<str>,
    /// What to forward. Never holds a Topic Alias or Subscription Identifiers; the expiry interval in here is the
    /// one received, `expires_at_ms` is what counts.
    pub properties: Option<Box<PublishProperties>>,
    /// Milliseconds on the clock of whoever holds it (an arbiter's, or a group's elapsed time).
    pub expires_at_ms: Option<u64>,
}

/// How long a message lives that comes with a Message Expiry Interval. One of 0 lasts to the end of its second: it is for those who are
/// connected, and is not to be over before the way to them is, by a batch, a lane or a log.
#[must_use]
pub fn lifetime_ms(interval_seconds: u32) -> u64 {
    match interval_seconds {
        0 => 999,
        seconds => u64::from(seconds) * 1000,
    }
}

impl Message {
    /// Whether both are the same publication; those that have no identity never are.
    #[must_use]
    pub fn is_copy_of(&self, other: &Self) -> bool {
        self.identity == other.identity && self.identity != MessageIdentity::default()
    }

    /// What the message weighs against byte limits: payload, topic, properties and a constant.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |properties| {
            let users: usize =
                properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
            let correlation = properties.correlation_data.as_ref().map_or(0, Bytes::len);
            let texts = properties.response_topic.as_ref().map_or(0, String::len)
                + properties.content_type.as_ref().map_or(0, String::len);
            PROPERTIES_BYTES + users + correlation + texts
        });
        MESSAGE_BYTES + self.topic.len() + self.payload.len() + properties
    }
}

/// What Subscription Identifiers weigh that wait with a message: about what a box of them takes in memory. A client may have as many
/// as it has subscriptions, and each message that matches them all brings them along.
#[must_use]
pub fn identifiers_weight_bytes(identifiers: &[u32]) -> usize {
    const BOX_BYTES: usize = 16;
    match identifiers {
        [] => 0,
        some => BOX_BYTES + size_of_val(some),
    }
}

/// What topics of delayed messages begin with.
pub const DELAYED: &str = "$delayed/";

/// What `$delayed/SECONDS/TOPIC` stands for. TOPIC is none that is delayed again: when it is due it would be taken for its name, and reach
/// nobody.
#[inline]
#[must_use]
pub fn delayed(topic: &str) -> Option<(u64, &str)> {
    // Every message is asked, and hardly one is delayed.
    delayed_parts(topic.strip_prefix(DELAYED)?)
}

#[cold]
fn delayed_parts(rest: &str) -> Option<(u64, &str)> {
    let (seconds, topic) = rest.split_once('/')?;
    let seconds = seconds.parse().ok()?;
    (!topic.is_empty() && !topic.starts_with(DELAYED)).then_some((seconds, topic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delayed_topic_names_seconds_and_topic() {
        assert_eq!(delayed("$delayed/30/plant/1"), Some((30, "plant/1")));
        assert_eq!(delayed("$delayed/x/plant"), None);
        assert_eq!(delayed("$delayed/3/"), None);
        assert_eq!(delayed("$delayed/1/$delayed/1/plant"), None);
        assert_eq!(delayed("$delayed/1/plant/$delayed/1"), Some((1, "plant/$delayed/1")));
        assert_eq!(delayed("plant/1"), None);
    }
}
