//! What a seed makes of the clients: who they are, and what they tend to do.

use kentongan_proto::mqtt::ProtocolVersion;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

/// Few, so that everybody meets everybody.
pub(in crate::simulation) const TOPICS: [&str; 8] = ["t/0/a", "t/0/b", "t/1/a", "t/1/b", "t/2/a", "u/0", "u/1", "v"];

/// Of interest in a rush only, and matched by no wildcard [MQTT-4.7.2-1]: many a node has nobody who wants them, and so nobody
/// to wait for before it acknowledges.
pub(in crate::simulation) const QUIET_TOPICS: [&str; 5] = ["$x/0", "$x/1", "$x/2", "$x/3", "$x/4"];

/// The same, in a rush of which nobody wanted them before.
pub(in crate::simulation) const WHISPERED_TOPICS: [&str; 3] = ["$y/0", "$y/1", "$y/2"];

/// Where retained messages are read and written most.
pub(super) const RETAINED_TOPICS: [&str; 3] = ["t/0/a", "u/0", "v"];

/// Exact ones first: several of them match no more than one topic.
pub(super) const FILTERS: [&str; 13] =
    ["t/0/a", "t/0/b", "t/1/a", "t/1/b", "t/2/a", "u/0", "u/1", "v", "t/+/a", "t/0/#", "u/+", "+/0", "#"];

pub(super) const SHARES: [&str; 5] = ["$share/g/t/+/a", "$share/g/u/#", "$share/h/t/0/a", "$share/h/#", "$share/g/v"];

/// Read by those that come for retained messages only.
pub(super) const READ_FILTERS: [&str; 4] = ["#", "t/+/a", "u/0", "v"];

/// The longest Will Delay Interval that a client asks for.
pub(super) const WILL_DELAY_SECONDS_MAX: u32 = 3;

const KEEP_ALIVE_SECONDS_MAX: u16 = 4;

/// A connection whose client says nothing any more is noticed within that time: one and a half times the Keep Alive, and
/// what is due once a second is done.
pub(super) const SILENCE_SECONDS_MAX: u64 = KEEP_ALIVE_SECONDS_MAX as u64 * 3 / 2 + 2;

/// What the clients of one run are drawn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPlan {
    /// Everything else is drawn from it.
    pub seed: u64,
    /// Client Identifiers. Each has two clients, which take it from each other.
    pub identifiers: usize,
    /// Mean time between two things that a connected client does of its own, in milliseconds.
    pub pace_ms: u64,
}

impl WorkloadPlan {
    /// One that suits most runs: a minute of it is some thousands of packets.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, identifiers: 12, pace_ms: 500 }
    }
}

/// What a Client Identifier is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Listens, and is there most of the time.
    Subscriber,
    /// Talks most of the time.
    Publisher,
    /// Shares subscriptions with others.
    Member,
    /// Comes, reads what is retained, and goes.
    Reader,
    /// Takes its Client Identifier from itself, over and over.
    Claimer,
    /// Reads what is retained on one node at the very end.
    LastReader,
}

/// In this order, so that a small run has one of each.
const KINDS: [Kind; 10] = [
    Kind::Subscriber,
    Kind::Publisher,
    Kind::Member,
    Kind::Claimer,
    Kind::Reader,
    Kind::Subscriber,
    Kind::Member,
    Kind::Publisher,
    Kind::Subscriber,
    Kind::Subscriber,
];

/// What a client can do of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Publish,
    /// Several messages at once.
    Burst,
    Subscribe,
    Unsubscribe,
    /// Says goodbye: normally, or so that the will is published.
    Disconnect,
    /// Closes the connection without a word.
    Close,
    /// Is gone, and so is the connection.
    Vanish,
    /// Answers no more, and goes some time later.
    FallSilent,
    /// Connects again while the connection lives.
    TakeOver,
}

impl Kind {
    pub(super) fn of(number: usize) -> Self {
        KINDS[number % KINDS.len()]
    }

    /// Acts and their weights.
    fn acts(self) -> &'static [(Act, u32)] {
        match self {
            Self::Subscriber => &[
                (Act::Nothing, 45),
                (Act::Publish, 30),
                (Act::Subscribe, 10),
                (Act::Unsubscribe, 5),
                (Act::Disconnect, 3),
                (Act::Close, 2),
                (Act::Vanish, 2),
                (Act::FallSilent, 2),
                (Act::TakeOver, 2),
            ],
            Self::Publisher => &[
                (Act::Publish, 84),
                (Act::Burst, 4),
                (Act::Subscribe, 3),
                (Act::Disconnect, 2),
                (Act::Close, 2),
                (Act::Vanish, 2),
                (Act::FallSilent, 1),
                (Act::TakeOver, 2),
            ],
            Self::Member => &[
                (Act::Nothing, 50),
                (Act::Publish, 20),
                (Act::Subscribe, 12),
                (Act::Unsubscribe, 7),
                (Act::Disconnect, 3),
                (Act::Close, 2),
                (Act::Vanish, 2),
                (Act::FallSilent, 2),
                (Act::TakeOver, 2),
            ],
            Self::Reader => &[(Act::Nothing, 10), (Act::Subscribe, 40), (Act::Disconnect, 40), (Act::Close, 10)],
            Self::Claimer => &[
                (Act::Publish, 55),
                (Act::Subscribe, 8),
                (Act::Unsubscribe, 4),
                (Act::TakeOver, 25),
                (Act::Vanish, 4),
                (Act::FallSilent, 4),
            ],
            Self::LastReader => &[(Act::Nothing, 1)],
        }
    }

    pub(super) fn act(self, random: &mut SmallRng) -> Act {
        let acts = self.acts();
        let mut drawn = random.random_range(0..acts.iter().map(|(_, weight)| weight).sum());
        let chosen = acts.iter().find(|(_, weight)| {
            let chosen = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            chosen
        });
        chosen.map_or(Act::Nothing, |(act, _)| *act)
    }

    pub(super) fn filter(self, random: &mut SmallRng) -> &'static str {
        let filters: &[&str] = match self {
            Self::Member if random.random_bool(0.75) => &SHARES,
            Self::Reader => &READ_FILTERS,
            Self::LastReader => &["#"],
            // What matches much makes the most packets.
            _ if random.random_bool(0.8) => &FILTERS[..FILTERS.len() - 5],
            _ => &FILTERS,
        };
        filters.choose(random).copied().unwrap_or("#")
    }
}

/// How the clients of one Client Identifier are, as long as the run lasts.
#[derive(Debug, Clone)]
pub(super) struct Character {
    pub(super) kind: Kind,
    pub(super) version: ProtocolVersion,
    /// Session Expiry Interval in seconds; `u32::MAX` means never. MQTT 3.1.1 has only this and 0.
    pub(super) expiry: u32,
    /// How many of a hundred CONNECTs begin a new session.
    pub(super) clean_percent: u32,
    pub(super) keep_alive: u16,
    pub(super) receive_maximum: Option<u16>,
    /// Of the server towards it.
    pub(super) topic_alias_maximum: Option<u16>,
    pub(super) maximum_packet_size: Option<u32>,
    /// Reads only now and then.
    pub(super) is_slow: bool,
    pub(super) will_percent: u32,
    /// Is not there when the run ends.
    pub(super) leaves: bool,
}

impl Character {
    pub(super) fn draw(kind: Kind, random: &mut SmallRng) -> Self {
        let version = if random.random_bool(0.6) { ProtocolVersion::V5 } else { ProtocolVersion::V3_1_1 };
        let keeps = match kind {
            Kind::Subscriber | Kind::Member | Kind::Claimer => random.random_bool(0.75),
            Kind::Publisher => random.random_bool(0.4),
            Kind::Reader => random.random_bool(0.4),
            Kind::LastReader => false,
        };
        let expiry = match (keeps, version) {
            (false, _) => 0,
            (true, ProtocolVersion::V5) => [2, 4, 8, 3600, u32::MAX].choose(random).copied().unwrap_or(u32::MAX),
            (true, _) => u32::MAX,
        };
        Self {
            kind,
            version,
            expiry,
            clean_percent: match (expiry, version) {
                (0, ProtocolVersion::V5) => 80,
                (0, _) => 100,
                _ => [0, 0, 5, 25].choose(random).copied().unwrap_or(0),
            },
            keep_alive: random.random_range(2..=KEEP_ALIVE_SECONDS_MAX),
            receive_maximum: (version.is_v5() && random.random_bool(0.3)).then(|| random.random_range(1..=8)),
            topic_alias_maximum: (version.is_v5() && random.random_bool(0.4)).then(|| random.random_range(1..=5)),
            maximum_packet_size: (version.is_v5() && random.random_bool(0.1)).then(|| random.random_range(400..3000)),
            // Whoever publishes reads its answers, or they would seem late.
            is_slow: kind == Kind::Member && random.random_bool(0.3),
            will_percent: if kind == Kind::LastReader { 0 } else { 50 },
            leaves: kind != Kind::LastReader && random.random_bool(0.1),
        }
    }

    /// One that reads at the end.
    pub(super) fn last_reader(random: &mut SmallRng) -> Self {
        Self {
            version: ProtocolVersion::V5,
            receive_maximum: None,
            maximum_packet_size: None,
            ..Self::draw(Kind::LastReader, random)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn acts_are_drawn_as_often_as_their_weights_say() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut drawn = BTreeMap::<String, u32>::new();
        for _ in 0..10_000 {
            *drawn.entry(format!("{:?}", Kind::Reader.act(&mut random))).or_default() += 1;
        }
        let share = |act: Act| drawn.get(&format!("{act:?}")).copied().unwrap_or(0) / 100;
        assert!((8..12).contains(&share(Act::Nothing)), "{drawn:?}");
        assert!((37..43).contains(&share(Act::Subscribe)), "{drawn:?}");
        assert!((8..12).contains(&share(Act::Close)), "{drawn:?}");
    }
}
