//! What clients do, and how often.

use std::sync::Arc;

use kentongan_proto::mqtt::ProtocolVersion;

/// What the clients of a run do, all of them together.
#[derive(Debug, Clone)]
pub struct Habits {
    /// How many there are.
    pub clients: usize,
    /// Messages of QoS 1 and 2 a second; some of QoS 0 come beside.
    pub messages_per_second: f64,
    /// SUBSCRIBEs a second, beside those of new sessions.
    pub subscribes_per_second: f64,
    /// UNSUBSCRIBEs a second.
    pub unsubscribes_per_second: f64,
    /// How often a second somebody leaves with DISCONNECT, as often without, and as often by taking the own connection over
    /// with another.
    pub departures_per_second: f64,
    /// Where they publish, and what they subscribe to.
    pub topics: SubscribedTopics,
}

/// Topic Names and the filters that match them.
#[derive(Debug, Clone)]
pub struct SubscribedTopics {
    /// Without RETAIN.
    pub plain: Vec<Arc<str>>,
    /// With RETAIN.
    pub retained: Vec<Arc<str>>,
    /// What matches the former, and wills.
    pub filters: Vec<Arc<str>>,
    /// What matches the latter.
    pub retained_filters: Vec<Arc<str>>,
}

impl SubscribedTopics {
    /// A few topics on which everybody meets everybody.
    #[must_use]
    pub fn crowded() -> Self {
        Self {
            plain: texts(&["t/1", "t/2", "t/3"]),
            retained: texts(&["r/1", "r/2"]),
            filters: texts(&["t/1", "t/2", "t/#", "t/+", "#", "w/#", "$share/s/t/#"]),
            retained_filters: texts(&["r/1", "r/2", "r/#"]),
        }
    }

    /// So many topics that a message has a few subscribers, and some of them overlapping filters.
    #[must_use]
    pub fn spread(topics: usize) -> Self {
        let plain: Vec<Arc<str>> = (0..topics).map(|topic| format!("t/{}/{topic}", topic % 5).into()).collect();
        let mut filters = plain.clone();
        filters.extend((0..topics / 2).map(|topic| format!("t/+/{topic}").into()));
        filters.extend(texts(&["t/0/#", "w/#", "w/#", "w/#", "$share/s/t/1/#", "$share/s/t/2/#", "$share/u/t/+/7"]));
        Self {
            plain,
            retained: texts(&["r/1", "r/2", "r/3", "r/4"]),
            filters,
            retained_filters: texts(&["r/1", "r/2", "r/3", "r/4", "r/+"]),
        }
    }
}

fn texts(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|&text| text.into()).collect()
}

/// What kind of client it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its version.
    pub version: ProtocolVersion,
    /// How long its sessions outlive their connections.
    pub session: Keeps,
}

/// How long sessions outlive their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Not at all.
    Nothing,
    /// A few seconds.
    Briefly,
    /// Longer than any run.
    Everything,
}

impl Kind {
    /// That of the client with this number: most have a session that stays.
    #[must_use]
    pub fn of(number: usize) -> Self {
        let (version, session) = match number % 8 {
            0 => (ProtocolVersion::V5, Keeps::Nothing),
            1 => (ProtocolVersion::V3_1_1, Keeps::Everything),
            3 | 7 => (ProtocolVersion::V5, Keeps::Briefly),
            4 => (ProtocolVersion::V3_1_1, Keeps::Nothing),
            _ => (ProtocolVersion::V5, Keeps::Everything),
        };
        Self { version, session }
    }
}
