//! The clients that take too little of what is for them.
//!
//! Nothing is kept for this: when somebody asks, the connections are looked at, a few at a time.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

/// Clients in one answer.
pub const LIMIT_MAX: usize = 1000;

/// By what clients are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SlowBy)]
pub enum Ranking {
    /// Bytes that are kept in memory for the connection: its out-buffer, and its queue if its session is transient.
    #[default]
    Bytes,
    /// Messages that wait or are not acknowledged.
    Messages,
    /// For how long its socket has taken nothing.
    Blocked,
}

/// A client for which something waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SlowSubscriber {
    /// Client Identifier.
    pub clientid: String,
    /// Who it is.
    pub username: Option<String>,
    /// Where it comes from.
    pub ip_address: Option<String>,
    /// The node that it is connected to.
    pub node: String,
    /// Bytes that were not written, because its socket takes no more.
    pub out_buffer_bytes: u64,
    /// Messages in its queue, and their bytes. `None`: its session outlives the connection, and a group keeps them.
    pub mqueue_len: Option<u64>,
    /// See `mqueue_len`.
    pub mqueue_bytes: Option<u64>,
    /// Messages sent and not acknowledged, as far as the node knows that it is connected to.
    pub inflight_cnt: u64,
    /// Seconds since its socket last took anything; 0 if it is not full.
    pub blocked_seconds: u32,
    /// Seconds since anything came from it: what it has not acknowledged is that old at least.
    pub silent_seconds: u32,
}

impl SlowSubscriber {
    /// Whether anything waits for it at all.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.out_buffer_bytes != 0
            || self.mqueue_len.is_some_and(|messages| messages != 0)
            || self.inflight_cnt != 0
            || self.blocked_seconds != 0
    }

    fn rank(&self, ranking: Ranking) -> u64 {
        match ranking {
            Ranking::Bytes => self.out_buffer_bytes + self.mqueue_bytes.unwrap_or(0),
            Ranking::Messages => self.mqueue_len.unwrap_or(0) + self.inflight_cnt,
            Ranking::Blocked => self.blocked_seconds.into(),
        }
    }
}

/// Those that are most behind, of however many were looked at.
#[derive(Debug, Clone)]
pub struct Slowest {
    ranking: Ranking,
    limit: usize,
    found: Vec<SlowSubscriber>,
    /// What the last of a full list has: whoever has no more has no place.
    least: u64,
}

impl Slowest {
    /// So many of them.
    #[must_use]
    pub fn new(ranking: Ranking, limit: usize) -> Self {
        Self { ranking, limit: limit.clamp(1, LIMIT_MAX), found: Vec::new(), least: 0 }
    }

    /// Looks at one more.
    pub fn look_at(&mut self, one: SlowSubscriber) {
        if !one.is_behind() || (self.least > 0 && one.rank(self.ranking) <= self.least) {
            return;
        }
        self.found.push(one);
        if self.found.len() >= self.limit * 2 {
            self.keep_the_first();
        }
    }

    fn keep_the_first(&mut self) {
        let ranking = self.ranking;
        self.found.sort_unstable_by(|one, other| {
            (Reverse(one.rank(ranking)), &one.clientid).cmp(&(Reverse(other.rank(ranking)), &other.clientid))
        });
        self.found.truncate(self.limit);
        self.least = self.found.get(self.limit - 1).map_or(0, |last| last.rank(ranking));
    }

    /// The slowest first.
    #[must_use]
    pub fn in_order(mut self) -> Vec<SlowSubscriber> {
        self.keep_the_first();
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_many_are_kept_and_those_who_keep_up_are_not() {
        let slowest = |ranking| {
            let mut slowest = Slowest::new(ranking, 3);
            for number in 0..1000_u64 {
                slowest.look_at(SlowSubscriber {
                    clientid: format!("c{number}"),
                    out_buffer_bytes: if number == 7 { 5000 } else { number },
                    mqueue_bytes: Some(if number == 8 { 6000 } else { 0 }),
                    inflight_cnt: 1000 - number,
                    blocked_seconds: u32::from(number == 9),
                    ..SlowSubscriber::default()
                });
                assert!(slowest.found.len() <= 6);
            }
            slowest.look_at(SlowSubscriber { silent_seconds: 99, ..SlowSubscriber::default() });
            slowest.in_order().into_iter().map(|one| one.clientid).collect::<Vec<_>>()
        };
        assert_eq!(slowest(Ranking::Bytes), ["c8", "c7", "c999"]);
        assert_eq!(slowest(Ranking::Messages), ["c0", "c1", "c2"]);
        assert_eq!(slowest(Ranking::Blocked)[0], "c9");
        assert!(Slowest::new(Ranking::Bytes, 3).in_order().is_empty());
    }
}
