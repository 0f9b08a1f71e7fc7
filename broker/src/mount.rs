//! Mount points: the part of the topics in which the clients of a listener live without knowing it.
//!
//! Within the broker a topic is always whole. The prefix is put in front of what a mounted client says, topics, filters and
//! Response Topics alike, before anything looks at them, and taken off what is written to it. So rights are judged on whole
//! topics, and a session keeps whole filters.
//!
//! Topics that begin with `$` are the broker's, and there is one broker: below a mount there are none. If `tenant/$SYS` were
//! reached by `$SYS`, a client could speak for the broker to its neighbours; and `#`, which never matches such topics
//! [MQTT-4.7.2-1], would match them as `tenant/#`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kentongan_proto::mqtt::{PublishProperties, ReasonCode, Will};
use kentongan_proto::topic::{ParsedFilter, TOPIC_BYTES_MAX, TopicFilter, check_topic_name};
use serde::{Deserialize, Serialize};

use crate::auth::{is_dangerous, with_names};
use crate::message;
use crate::session::handshake::Refusal;

/// Longest mount point as it is written: most of a topic is the client's.
const MOUNT_POINT_BYTES_MAX: usize = 1024;

/// A mount point as a listener has it: where `%u` and `%c` stand, each client has a place of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPoint {
    text: String,
    has_user: bool,
    has_client_id: bool,
}

impl MountPoint {
    /// Where a client is. `identity` is empty for one that is nobody in particular.
    ///
    /// # Errors
    /// It has no place: a name that it would need is missing, or would reach into another one's.
    pub fn of_client(&self, identity: &str, client_id: &str) -> Result<Mount, Refusal> {
        if self.has_user && identity.is_empty() {
            let text = "clients of this listener have topics by their user names, and this one has none";
            return Err(Refusal { reason: ReasonCode::NotAuthorized, text });
        }
        let begins_with = |name| self.text.starts_with(name);
        if self.has_user && (is_dangerous(identity) || (begins_with("%u") && identity.starts_with('$'))) {
            let text = "no topic can begin with that user name";
            return Err(Refusal { reason: ReasonCode::NotAuthorized, text });
        }
        if self.has_client_id && (is_dangerous(client_id) || (begins_with("%c") && client_id.starts_with('$'))) {
            let text = "no topic can begin with that client identifier";
            return Err(Refusal { reason: ReasonCode::ClientIdentifierNotValid, text });
        }
        let prefix = with_names(&self.text, identity, client_id);
        if prefix.len() >= TOPIC_BYTES_MAX {
            let text = "with that client identifier no topic is short enough";
            return Err(Refusal { reason: ReasonCode::ClientIdentifierNotValid, text });
        }
        Ok(Mount(Arc::from(prefix)))
    }
}

impl FromStr for MountPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = check_topic_name(text).map_err(|error| error.to_string());
        let wrong = if let Err(error) = name {
            Some(error)
        } else if !text.ends_with('/') {
            Some(String::from("it must end with \"/\", so that whole levels are in front"))
        } else if text.starts_with('$') {
            Some(String::from("topics that begin with \"$\" are the broker's"))
        } else if text.len() > MOUNT_POINT_BYTES_MAX {
            Some(format!("it may have {MOUNT_POINT_BYTES_MAX} bytes"))
        } else if text.chars().any(char::is_control) {
            Some(String::from("it has a control character"))
        } else if text.split('/').any(|level| level.matches("%u").count() + level.matches("%c").count() > 1) {
            Some(String::from("at most one of %u and %c in a level, or two clients could get the same"))
        } else {
            None
        };
        match wrong {
            Some(wrong) => Err(format!("{text:?} is no mount point: {wrong}")),
            None => {
                let (has_user, has_client_id) = (text.contains("%u"), text.contains("%c"));
                Ok(Self { text: text.to_owned(), has_user, has_client_id })
            }
        }
    }
}

impl TryFrom<String> for MountPoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MountPoint> for String {
    fn from(mount_point: MountPoint) -> Self {
        mount_point.text
    }
}

impl fmt::Display for MountPoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why something that a client said has no place below its mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// It begins with `$`.
    OfTheBroker,
    /// It would be longer than a topic can be [MQTT-4.7.3-3].
    TooLong,
    /// It is no Topic Filter in the first place.
    NoFilter,
}

impl Unreachable {
    /// Of a topic.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        let (reason, text) = match self {
            Self::OfTheBroker => {
                (ReasonCode::NotAuthorized, "topics that begin with $ are out of reach on this listener")
            }
            Self::TooLong | Self::NoFilter => {
                (ReasonCode::TopicNameInvalid, "with the mount point of this listener the topic is too long")
            }
        };
        Refusal { reason, text }
    }

    /// Of a filter.
    #[must_use]
    pub fn reason_of_filter(self) -> ReasonCode {
        match self {
            Self::OfTheBroker => ReasonCode::NotAuthorized,
            Self::TooLong | Self::NoFilter => ReasonCode::TopicFilterInvalid,
        }
    }
}

/// The prefix that the topics of one client have within the broker. It ends with `/` and does not begin with `$`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount(Arc<str>);

/// The topics of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeTopics {
    /// Topic Name.
    pub topic: String,
    /// Response Topic.
    pub response_topic: Option<String>,
}

impl Mount {
    /// The whole topic of one that the client published to; the prefix stands behind `$delayed/SECONDS/`.
    ///
    /// # Errors
    /// There is no such topic here.
    pub fn whole_topic(&self, topic: &str) -> Result<String, Unreachable> {
        let reached = message::delayed(topic).map_or(topic, |(_, reached)| reached);
        self.insert(topic, topic.len() - reached.len())
    }

    /// The whole filter; within a shared subscription the prefix stands in front of the filter inside.
    ///
    /// # Errors
    /// It can match nothing here, or is none.
    pub fn whole_filter(&self, filter: &str) -> Result<String, Unreachable> {
        // Judged as the client said it: a prefix could make a filter of what is none.
        let parsed = ParsedFilter::parse(filter).map_err(|_| Unreachable::NoFilter)?;
        self.insert(filter, filter.len() - parsed.filter().as_str().len())
    }

    fn insert(&self, text: &str, at: usize) -> Result<String, Unreachable> {
        let (front, own) = text.split_at(at);
        if own.starts_with('$') {
            return Err(Unreachable::OfTheBroker);
        }
        if text.len() + self.0.len() > TOPIC_BYTES_MAX {
            return Err(Unreachable::TooLong);
        }
        Ok([front, &self.0, own].concat())
    }

    /// The topic as the client knows it; `None`: it knows of no such topic.
    #[must_use]
    pub fn own_topic<'a>(&self, whole: &'a str) -> Option<&'a str> {
        let own = whole.strip_prefix(&*self.0)?;
        (!own.is_empty() && !own.starts_with('$')).then_some(own)
    }

    /// Whether a whole filter matches nothing that is not here.
    #[must_use]
    pub fn holds(&self, whole: &TopicFilter) -> bool {
        self.own_topic(whole.as_str()).is_some()
    }

    /// Topic levels of the prefix.
    #[must_use]
    pub fn levels(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Makes the topics of a will whole.
    ///
    /// # Errors
    /// There is no such topic here.
    pub fn enter_will(&self, will: &mut Will) -> Result<(), Unreachable> {
        let whole = self.whole_publish(&will.topic, will.properties.response_topic.as_deref())?;
        will.topic = whole.topic;
        will.properties.response_topic = whole.response_topic;
        Ok(())
    }

    /// The topics of a PUBLISH, whole.
    ///
    /// # Errors
    /// There is no such topic here.
    pub fn whole_publish(&self, topic: &str, response_topic: Option<&str>) -> Result<WholeTopics, Unreachable> {
        let response_topic = response_topic.map(|topic| self.whole_topic(topic)).transpose()?;
        Ok(WholeTopics { topic: self.whole_topic(topic)?, response_topic })
    }

    /// Properties as the client is to see them, if they are others. A Response Topic out of its reach is left out: what it
    /// would be taken for is another one.
    #[must_use]
    pub fn own_properties(&self, whole: &PublishProperties) -> Option<PublishProperties> {
        let response_topic = whole.response_topic.as_deref()?;
        let (front, reached) = match message::delayed(response_topic) {
            Some((_, reached)) => (&response_topic[..response_topic.len() - reached.len()], reached),
            None => ("", response_topic),
        };
        let response_topic = self.own_topic(reached).map(|own| [front, own].concat());
        Some(PublishProperties { response_topic, ..whole.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mount(text: &str) -> Mount {
        text.parse::<MountPoint>().unwrap().of_client("ana", "dev-1").unwrap()
    }

    #[test]
    fn names_are_put_in_and_each_client_has_a_place_of_its_own() {
        for (text, expected) in
            [("a/", "a/"), ("%u/", "ana/"), ("t/%c/", "t/dev-1/"), ("/x-%u/%c/", "/x-ana/dev-1/"), ("100%/", "100%/")]
        {
            assert_eq!(mount(text).whole_topic("x").as_deref(), Ok(&*format!("{expected}x")), "{text}");
        }
    }

    #[test]
    fn what_would_not_be_whole_levels_of_topics_is_no_mount_point() {
        for text in ["", "a", "+/", "a/#/", "$SYS/", "a\0/", "a\n/", "%u%c/", "a/%u-%u/", &"x".repeat(1024)] {
            assert!(text.parse::<MountPoint>().is_err(), "{text}");
        }
        assert!(format!("{}/", "x".repeat(1024)).parse::<MountPoint>().unwrap_err().contains("1024"));
    }

    /// Abuse: [names-in-patterns]
    #[test]
    fn no_name_reaches_into_the_place_of_another() {
        let user: MountPoint = "%u/x/".parse().unwrap();
        let client: MountPoint = "%c/".parse().unwrap();
        for name in ["a/b", "+", "#", "a#", "a\0", "a\n", "$SYS", "$share"] {
            let reason = |refused: Result<Mount, Refusal>| refused.unwrap_err().reason;
            assert_eq!(reason(user.of_client(name, "c")), ReasonCode::NotAuthorized, "{name}");
            assert_eq!(reason(client.of_client("u", name)), ReasonCode::ClientIdentifierNotValid, "{name}");
        }
        assert!(user.of_client("", "c").is_err(), "nobody in particular has no place");
        assert!(user.of_client("ana", "a/#").is_ok(), "only names that are asked for matter");
        let inner: MountPoint = "t/%u/".parse().unwrap();
        assert_eq!(inner.of_client("$a", "c").unwrap().whole_topic("x").as_deref(), Ok("t/$a/x"));
        assert_eq!(inner.of_client("%c", "c").unwrap().whole_topic("x").as_deref(), Ok("t/%c/x"), "no pattern itself");
    }

    #[test]
    fn the_prefix_stands_before_what_is_reached() {
        let mount = mount("t/");
        assert_eq!(mount.whole_topic("$delayed/5/a").as_deref(), Ok("$delayed/5/t/a"));
        assert_eq!(mount.whole_topic("/a").as_deref(), Ok("t//a"));
        for (filter, whole) in [("#", "t/#"), ("+/a", "t/+/a"), ("$share/g/#", "$share/g/t/#"), ("/", "t//")] {
            assert_eq!(mount.whole_filter(filter).as_deref(), Ok(whole), "{filter}");
        }
    }

    /// [MQTT-4.7.2-1]
    #[test]
    fn nothing_that_begins_with_a_dollar_is_reached() {
        let mount = mount("t/");
        for topic in ["$SYS/broker/uptime", "$x", "$delayed/x/a", "$delayed/5/", "$delayed/5/$SYS/a"] {
            assert_eq!(mount.whole_topic(topic), Err(Unreachable::OfTheBroker), "{topic}");
        }
        for filter in ["$SYS/#", "$share/g/$SYS/#", "$x"] {
            assert_eq!(mount.whole_filter(filter), Err(Unreachable::OfTheBroker), "{filter}");
        }
        for filter in ["", "a+", "$share/g", "$share/g/", "$share//a"] {
            assert_eq!(mount.whole_filter(filter), Err(Unreachable::NoFilter), "{filter}");
        }
        for whole in ["t", "t/", "tx/a", "u/a", "$SYS/t/a", "t/$SYS/a"] {
            assert_eq!(mount.own_topic(whole), None, "{whole}");
        }
    }

    /// [MQTT-4.7.3-3]
    #[test]
    fn a_whole_topic_is_no_longer_than_a_topic_can_be() {
        let mount = mount("tenant/");
        for (length, is_one) in [(TOPIC_BYTES_MAX - 7, true), (TOPIC_BYTES_MAX - 6, false)] {
            let own = "x".repeat(length);
            assert_eq!(mount.whole_topic(&own).is_ok(), is_one);
            assert_eq!(mount.whole_filter(&own).is_ok(), is_one);
        }
        let refusal = Unreachable::TooLong.refusal();
        assert_eq!(
            (refusal.reason, Unreachable::TooLong.reason_of_filter()),
            (ReasonCode::TopicNameInvalid, ReasonCode::TopicFilterInvalid)
        );
    }

    #[test]
    fn a_response_topic_out_of_reach_is_left_out() {
        let mount = mount("t/");
        let seen = |topic: &str| {
            let whole = PublishProperties {
                response_topic: Some(topic.to_owned()),
                content_type: Some(String::from("text")),
                ..PublishProperties::default()
            };
            let own = mount.own_properties(&whole).unwrap();
            assert_eq!(own.content_type.as_deref(), Some("text"));
            own.response_topic
        };
        assert_eq!(seen("t/a").as_deref(), Some("a"));
        assert_eq!(seen("$delayed/5/t/a").as_deref(), Some("$delayed/5/a"));
        assert_eq!((seen("u/a"), seen("$delayed/5/u/a"), seen("t/$SYS/a")), (None, None, None));
        assert_eq!(mount.own_properties(&PublishProperties::default()), None, "nothing to change");
    }

    proptest! {
        #[test]
        fn what_is_put_in_front_is_taken_off_again(
            prefix in "[a-z%/é]{0,12}/",
            topic in "[a-zA-Z0-9 $/éü]{1,40}",
            user in "[a-z]{1,5}",
        ) {
            prop_assume!(prefix.parse::<MountPoint>().is_ok());
            let mount = prefix.parse::<MountPoint>().unwrap().of_client(&user, "c").unwrap();
            match mount.whole_topic(&topic) {
                Ok(whole) => {
                    prop_assert!(check_topic_name(&whole).is_ok());
                    prop_assert_eq!(mount.own_topic(&whole), Some(&*topic));
                }
                Err(error) => prop_assert!(topic.starts_with('$') && error == Unreachable::OfTheBroker),
            }
        }

        /// What a filter matches below its mount is what the whole one matches, and nothing else.
        #[test]
        fn a_filter_matches_below_its_mount_what_it_would_match_without(
            filter in "([ab$]|\\+)(/([ab]|\\+)){0,2}(/#)?",
            topic in "[ab$]{0,2}(/[ab]{0,2}){0,3}",
            elsewhere in any::<bool>(),
        ) {
            let mount = mount("t/%u/");
            let whole = if elsewhere { format!("t/bob/{topic}") } else { format!("t/ana/{topic}") };
            let is_sent = |filter: &str| {
                kentongan_proto::topic::matches(filter, &whole) && mount.own_topic(&whole).is_some()
            };
            if let Ok(whole_filter) = mount.whole_filter(&filter) {
                let expected = !elsewhere && !topic.is_empty() && !topic.starts_with('$')
                    && kentongan_proto::topic::matches(&filter, &topic);
                prop_assert_eq!(is_sent(&whole_filter), expected);
            }
        }
    }
}
