//! Topic Aliases, both ways. A mapping belongs to one connection and dies with it [MQTT-3.3.2-7].

use std::sync::Arc;

use hashbrown::HashMap;

use super::SessionError;

/// Aliases that the client set.
#[derive(Debug, Default)]
pub struct InboundAliases {
    maximum: u16,
    topics: Vec<Option<Arc<str>>>,
}

impl InboundAliases {
    /// Aliases from 1 to `maximum` are accepted [MQTT-3.3.2-12].
    #[must_use]
    pub fn new(maximum: u16) -> Self {
        Self { maximum, topics: Vec::new() }
    }

    /// The topic that a PUBLISH with `alias` is for; a `topic` that is not empty sets the alias.
    ///
    /// # Errors
    /// The alias is out of range [MQTT-3.3.2-8, 3.3.2-9], or stands for nothing.
    pub fn resolve(&mut self, alias: u16, topic: &str) -> Result<Arc<str>, SessionError> {
        if alias == 0 || alias > self.maximum {
            return Err(SessionError::TopicAliasInvalid { alias, maximum: self.maximum });
        }
        let index = usize::from(alias - 1);
        if topic.is_empty() {
            let known = self.topics.get(index).and_then(Option::as_ref);
            return known.cloned().ok_or(SessionError::TopicAliasUnknown { alias });
        }
        if self.topics.len() <= index {
            self.topics.resize(index + 1, None);
        }
        if let Some(known) = &self.topics[index]
            && **known == *topic
        {
            return Ok(Arc::clone(known));
        }
        let topic: Arc<str> = Arc::from(topic);
        self.topics[index] = Some(Arc::clone(&topic));
        Ok(topic)
    }
}

/// Aliases that we set towards the client: its first topics get one each, and keep it.
#[derive(Debug, Default)]
pub struct OutboundAliases {
    maximum: u16,
    aliases: HashMap<Box<str>, u16, foldhash::fast::RandomState>,
}

/// How to write a topic to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AliasUse {
    /// The Topic Name alone.
    None,
    /// Topic Name and alias: sets it.
    Set(u16),
    /// The alias alone.
    Known(u16),
}

impl OutboundAliases {
    /// At most `maximum` aliases, the lower of the client's Topic Alias Maximum and our own [MQTT-3.1.2-26].
    #[must_use]
    pub fn new(maximum: u16) -> Self {
        Self { maximum, aliases: HashMap::default() }
    }

    /// Whether the client takes any [MQTT-3.1.2-27].
    #[inline]
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.maximum == 0
    }

    /// How `topic` may be written now. An alias that this would set is known only from [`Self::set`] on: the packet may turn out to be
    /// too large with it.
    #[inline]
    #[must_use]
    pub fn look(&self, topic: &str) -> AliasUse {
        if let Some(&alias) = self.aliases.get(topic) {
            return AliasUse::Known(alias);
        }
        if self.aliases.len() >= usize::from(self.maximum) {
            return AliasUse::None;
        }
        AliasUse::Set(self.aliases.len() as u16 + 1)
    }

    /// A packet goes to the client that sets this alias, as [`Self::look`] has just said.
    pub fn set(&mut self, topic: &str, alias: u16) {
        debug_assert_eq!(self.look(topic), AliasUse::Set(alias));
        self.aliases.insert(Box::from(topic), alias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [MQTT-3.3.2-12]: every alias up to the maximum; [MQTT-3.3.2-8]: never 0; [MQTT-3.2.2-17]: none above.
    #[test]
    fn inbound_aliases_stay_in_range_and_can_be_reset() {
        let mut aliases = InboundAliases::new(2);
        assert_eq!(aliases.resolve(0, "a"), Err(SessionError::TopicAliasInvalid { alias: 0, maximum: 2 }));
        assert_eq!(aliases.resolve(3, "a"), Err(SessionError::TopicAliasInvalid { alias: 3, maximum: 2 }));
        assert_eq!(aliases.resolve(2, ""), Err(SessionError::TopicAliasUnknown { alias: 2 }));
        assert_eq!(aliases.resolve(2, "a").as_deref(), Ok("a"));
        assert_eq!(aliases.resolve(2, "").as_deref(), Ok("a"));
        assert_eq!(aliases.resolve(2, "b").as_deref(), Ok("b"));
        assert_eq!(aliases.resolve(2, "").as_deref(), Ok("b"));
    }

    /// [MQTT-3.1.2-26], [MQTT-3.1.2-27].
    #[test]
    fn outbound_aliases_stay_within_the_clients_maximum() {
        let mut aliases = OutboundAliases::new(1);
        assert_eq!(aliases.look("a"), AliasUse::Set(1));
        assert_eq!(aliases.look("b"), AliasUse::Set(1), "nobody was told of the other");
        aliases.set("a", 1);
        assert_eq!(aliases.look("b"), AliasUse::None);
        assert_eq!(aliases.look("a"), AliasUse::Known(1));
        assert!(OutboundAliases::new(0).is_off());
    }
}
