//! Shared subscriptions (section 4.8.2).

use super::{TopicError, TopicFilter};

/// `$share/NAME/FILTER`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SharedFilter {
    name: Box<str>,
    filter: TopicFilter,
}

impl SharedFilter {
    /// The ShareName.
    #[must_use]
    pub fn share_name(&self) -> &str {
        &self.name
    }

    /// The Topic Filter behind it.
    #[must_use]
    pub fn filter(&self) -> &TopicFilter {
        &self.filter
    }
}

/// What a SUBSCRIBE asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ParsedFilter {
    /// Messages for this session.
    Plain(TopicFilter),
    /// Messages for one of a group.
    Shared(SharedFilter),
}

impl ParsedFilter {
    /// Takes the text of a SUBSCRIBE.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        if text == "$share" || text.starts_with("$share/") {
            return parse_shared(text).map(Self::Shared);
        }
        TopicFilter::parse(text).map(Self::Plain)
    }

    /// The Topic Filter, behind the ShareName if there is one.
    #[must_use]
    pub fn filter(&self) -> &TopicFilter {
        match self {
            Self::Plain(filter) => filter,
            Self::Shared(shared) => shared.filter(),
        }
    }
}

fn parse_shared(text: &str) -> Result<SharedFilter, TopicError> {
    let rest = text.strip_prefix("$share/").ok_or(TopicError::Share)?;
    // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    let (name, filter) = rest.split_once('/').ok_or(TopicError::Share)?;
    if name.is_empty() || filter.is_empty() || name.contains(['+', '#']) {
        return Err(TopicError::Share);
    }
    Ok(SharedFilter { name: Box::from(name), filter: TopicFilter::parse(filter)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [MQTT-4.8.2-1], [MQTT-4.8.2-2].
    #[test]
    fn a_share_has_a_name_and_a_filter() {
        let Ok(ParsedFilter::Shared(shared)) = ParsedFilter::parse("$share/group/a/+/#") else {
            panic!("a shared filter");
        };
        assert_eq!((shared.share_name(), shared.filter().as_str()), ("group", "a/+/#"));
        for text in ["$share", "$share/", "$share/a", "$share/a/", "$share//a", "$share/+/a", "$share/a#/b"] {
            assert_eq!(ParsedFilter::parse(text), Err(TopicError::Share), "{text}");
        }
        assert_eq!(ParsedFilter::parse("$share/a/b#"), Err(TopicError::WildcardMisplaced));
        assert!(matches!(ParsedFilter::parse("$shared/a"), Ok(ParsedFilter::Plain(_))));
    }
}
