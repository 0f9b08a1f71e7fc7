//! What a node says of what goes on there: who is slow, what is published most, and a trace line by line.

use serde::{Deserialize, Serialize};

use super::{Answered, Operator, say};
use crate::watching::slow::{self, SlowSubscriber, Slowest};
use crate::watching::top_topics::{self, Counts};
use crate::watching::trace::{Lines, Wanted};

/// Places of connections that are looked at in one visit to an arbiter.
const PLACES_A_VISIT: usize = 2000;

/// What is asked of a node about what goes on there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchAsked {
    /// The clients that are most behind.
    SlowSubscribers {
        /// By what.
        ranking: slow::Ranking,
        /// How many.
        limit: usize,
    },
    /// That topics are counted for so many seconds.
    CountTopics(u32),
    /// What was counted.
    TopTopics {
        /// By what.
        ranking: top_topics::Ranking,
        /// How many.
        limit: usize,
    },
    /// That a trace begins; it goes on if it is there.
    BeginTrace(Wanted),
    /// What has gathered of the trace of that number. `None`: there is no such trace.
    TakeTrace(u64),
    /// That it is over.
    EndTrace(u64),
}

impl Operator {
    pub(super) fn watch_here(&self, asked: &WatchAsked) -> Result<Vec<u8>, String> {
        let (watches, now_ms) = (&self.shared.watches, self.shared.now_ms());
        match asked {
            WatchAsked::SlowSubscribers { ranking, limit } => say(&self.slow_here(*ranking, *limit)),
            WatchAsked::CountTopics(seconds) => {
                watches.count_topics(*seconds, now_ms);
                say(&Ok(()))
            }
            WatchAsked::TopTopics { ranking, limit } => {
                say(&Answered::<Counts>::Ok(watches.topics().counts(*ranking, *limit, now_ms)))
            }
            WatchAsked::BeginTrace(wanted) => {
                say(&watches.begin_trace(wanted.clone(), now_ms).map_err(|error| error.to_string()))
            }
            WatchAsked::TakeTrace(number) => {
                say(&Answered::<Option<Lines>>::Ok(watches.traces().take(*number, now_ms)))
            }
            WatchAsked::EndTrace(number) => {
                watches.end_trace(*number);
                say(&Ok(()))
            }
        }
    }

    fn slow_here(&self, ranking: slow::Ranking, limit: usize) -> Answered<Vec<SlowSubscriber>> {
        let mut slowest = Slowest::new(ranking, limit);
        for arbiter in 0..self.shared.inboxes.len() {
            let mut place = Some(0);
            while let Some(from) = place {
                let so_far = slowest;
                let visited = self.visit(arbiter as u16, move |arbiter| {
                    let mut slowest = so_far;
                    let next = arbiter.look_for_slow(from, PLACES_A_VISIT, &mut slowest);
                    (slowest, next)
                });
                let busy = "this node is too busy to say which clients are slow: ask again";
                (slowest, place) = visited.ok_or(busy)?;
            }
        }
        Ok(slowest.in_order())
    }
}
