//! Which Topic Filter wants which Topic Name, written from the specification and from nothing else: a checker that
//! borrowed the broker's matching would agree with its mistakes.

/// Whether `filter`, without any `$share` prefix, matches `topic` [MQTT-4.7].
pub fn matches(filter: &str, topic: &str) -> bool {
    // [MQTT-4.7.2-1]: a filter that begins with a wildcard leaves topics that begin with `$` alone.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut filter = filter.split('/');
    let mut topic = topic.split('/');
    loop {
        match (filter.next(), topic.next()) {
            // `#` includes the parent level [MQTT-4.7.1-2].
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// The share name and the filter inside a `$share/NAME/FILTER` [MQTT-4.8.2]; none for any other filter.
pub fn split_share(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_specification_tells() {
        let cases = [
            ("sport/tennis/#", "sport/tennis", true),
            ("sport/tennis/#", "sport/tennis/player1/ranking", true),
            ("sport/#", "sport", true),
            ("#", "sport/tennis", true),
            ("#", "$SYS/uptime", false),
            ("+/uptime", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("$SYS/+", "$SYS/uptime", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("a/b", "a/b", true),
            ("a/b", "a/B", false),
            ("a/b", "a/b/", false),
        ];
        for (filter, topic, expected) in cases {
            assert_eq!(matches(filter, topic), expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn a_share_is_a_name_and_a_filter() {
        assert_eq!(split_share("$share/group/a/+"), Some(("group", "a/+")));
        assert_eq!(split_share("$share/group//a"), Some(("group", "/a")));
        assert_eq!(split_share("a/$share/b"), None);
    }
}
