//! Topic Filters (section 4.7).

use std::fmt;
use std::sync::Arc;

use super::{TopicError, check_text};

/// A Topic Filter that obeys the rules. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    /// Takes a text as a Topic Filter; `$share/…` is none, see [`super::ParsedFilter`].
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            let wildcard = level.bytes().any(|byte| matches!(byte, b'+' | b'#'));
            let whole = level == "+" || (level == "#" && levels.peek().is_none());
            if wildcard && !whole {
                return Err(TopicError::WildcardMisplaced);
            }
        }
        Ok(Self(Arc::from(text)))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its levels, empty ones included.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether it can match more than one Topic Name.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.0.bytes().any(|byte| matches!(byte, b'+' | b'#'))
    }

    /// Whether it matches a Topic Name.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        matches(&self.0, topic)
    }

    /// Whether every Topic Name that `other` matches is matched by this one too.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        contains(&self.0, &other.0)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether a Topic Filter matches a Topic Name, character by character [MQTT-4.7.3-4].
///
/// Goes through both byte by byte rather than level by level: most filters that do not match differ early.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    // [MQTT-4.7.2-1]
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (filter, topic) = (filter.as_bytes(), topic.as_bytes());
    let (mut own, mut at) = (0, 0);
    loop {
        match (filter.get(own), topic.get(at)) {
            (Some(b'#'), _) | (None, None) => return true,
            (Some(b'+'), _) => {
                own += 1;
                at += topic[at..].iter().take_while(|&&byte| byte != b'/').count();
            }
            (Some(wanted), Some(byte)) if wanted == byte => {
                own += 1;
                at += 1;
            }
            // Also the parent level: `sport/#` matches `sport` (4.7.1.2).
            (Some(b'/'), None) => return filter.get(own + 1) == Some(&b'#'),
            _ => return false,
        }
    }
}

/// Whether every Topic Name that the Topic Filter `narrow` matches is matched by `wide` too.
#[must_use]
pub fn contains(wide: &str, narrow: &str) -> bool {
    // A wildcard at the first level does not reach topics that begin with `$` [MQTT-4.7.2-1].
    if wide.starts_with(['+', '#']) && narrow.starts_with('$') {
        return false;
    }
    let mut wide = wide.split('/');
    let mut narrow = narrow.split('/');
    loop {
        match (wide.next(), narrow.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(own), Some(level)) if own == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of section 4.7.
    #[test]
    fn the_specifications_own_examples_match() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "anything/at/all", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/broker", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("ACCOUNTS", "Accounts", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} against {topic}");
        }
    }

    /// [MQTT-4.7.1-1], [MQTT-4.7.1-2].
    #[test]
    fn misplaced_wildcards_are_refused() {
        for text in ["sport+", "sport/tennis#", "sport/#/ranking", "a/+b", "#/a", "##"] {
            assert_eq!(TopicFilter::parse(text), Err(TopicError::WildcardMisplaced), "{text}");
        }
        for text in ["+", "#", "+/tennis/#", "sport/+/player1", "/", "//+"] {
            assert!(TopicFilter::parse(text).is_ok(), "{text}");
        }
        assert_eq!(TopicFilter::parse(""), Err(TopicError::Empty));
        assert_eq!(TopicFilter::parse("a\0"), Err(TopicError::Nul));
        assert_eq!(TopicFilter::parse(&"a".repeat(65_536)), Err(TopicError::TooLong));
    }

    /// Section 4.7 as it is written: level by level.
    fn matches_by_levels(filter: &str, topic: &str) -> bool {
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let mut topic_levels = topic.split('/');
        for level in filter.split('/') {
            match (level, topic_levels.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, found) if found == Some(level) => {}
                _ => return false,
            }
        }
        topic_levels.next().is_none()
    }

    proptest! {
        #[test]
        fn a_filter_matches_what_its_levels_match(
            filter in "([ab$]{0,2}|[+])(/([ab$]{0,2}|[+])){0,3}(/#)?|#", topic in "[ab$]{0,2}(/[ab$]{0,2}){0,4}",
        ) {
            prop_assert_eq!(matches(&filter, &topic), matches_by_levels(&filter, &topic), "{} against {}", filter, topic);
        }

        /// Containment is never claimed where a topic escapes it.
        #[test]
        fn a_containing_filter_matches_whatever_the_contained_one_does(
            wide in "[ab+$]{1}(/[ab+]){0,3}(/#)?", narrow in "[ab+$]{1}(/[ab+]){0,3}(/#)?", topic in "[ab$]{1}(/[ab]){0,4}",
        ) {
            let (wide, narrow) = (TopicFilter::parse(&wide).unwrap(), TopicFilter::parse(&narrow).unwrap());
            if wide.contains(&narrow) && narrow.matches(&topic) {
                prop_assert!(wide.matches(&topic), "{wide} contains {narrow} but not {topic}");
            }
        }
    }
}
