//! What an operator looks at while something is wrong: one client or topic as it goes on ([`trace`]), which topics have most
//! ([`top_topics`]), who takes too little ([`slow`]).
//!
//! Nothing of it costs anything while nobody looks: on the way of a packet there is one relaxed load of [`Watches::is_on`]'s flag. While
//! somebody does, all is bounded: how many look, what is kept for them, and for how long, since whoever looks may have gone.

pub mod slow;
mod space_saving;
pub mod top_topics;
pub mod trace;

use std::sync::atomic::{AtomicU8, Ordering};

use top_topics::TopTopics;
use trace::Traces;

/// A trace is on.
const TRACING: u8 = 1;

/// Topics are counted.
const COUNTING_TOPICS: u8 = 2;

/// Who looks at this node.
#[derive(Debug)]
pub struct Watches {
    on: AtomicU8,
    traces: Traces,
    topics: TopTopics,
}

impl Watches {
    /// Nobody, on a node with so many arbiters.
    #[must_use]
    pub fn new(arbiters: usize) -> Self {
        Self { on: AtomicU8::new(0), traces: Traces::default(), topics: TopTopics::new(arbiters) }
    }

    /// Whether anybody looks at what clients publish.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed) != 0
    }

    /// Whether there is a trace.
    #[inline]
    #[must_use]
    pub fn is_tracing(&self) -> bool {
        self.on.load(Ordering::Relaxed) & TRACING != 0
    }

    /// Whether topics are counted.
    #[must_use]
    pub fn is_counting_topics(&self) -> bool {
        self.on.load(Ordering::Relaxed) & COUNTING_TOPICS != 0
    }

    /// The traces.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Begins a trace. One of that number that is on goes on as it is.
    ///
    /// # Errors
    /// As many are on as may be, or what is to be traced is no topic filter.
    pub fn begin_trace(&self, wanted: trace::Wanted, now_ms: u64) -> Result<(), trace::NoTrace> {
        self.traces.begin(wanted, now_ms)?;
        self.on.fetch_or(TRACING, Ordering::Relaxed);
        Ok(())
    }

    /// Ends a trace.
    pub fn end_trace(&self, number: u64) {
        if self.traces.end(number) == 0 {
            self.on.fetch_and(!TRACING, Ordering::Relaxed);
        }
    }

    /// Counts topics for so many seconds from now; if they are counted already, for that long at least.
    pub fn count_topics(&self, seconds: u32, now_ms: u64) {
        self.topics.begin(seconds, now_ms);
        self.on.fetch_or(COUNTING_TOPICS, Ordering::Relaxed);
    }

    /// What was counted, or is being counted.
    #[must_use]
    pub fn topics(&self) -> &TopTopics {
        &self.topics
    }

    /// Ends what is over. Once a second.
    pub fn end_what_is_over(&self, now_ms: u64) {
        if self.is_tracing() && self.traces.end_old(now_ms) == 0 {
            self.on.fetch_and(!TRACING, Ordering::Relaxed);
        }
        if self.topics.end_if_over(now_ms) {
            self.on.fetch_and(!COUNTING_TOPICS, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_again_when_everything_is_over() {
        let watches = Watches::new(1);
        assert!(!watches.is_on());
        watches.count_topics(2, 1000);
        assert!(watches.is_on() && watches.is_counting_topics() && !watches.is_tracing());
        watches.end_what_is_over(2999);
        assert!(watches.is_counting_topics());
        let of_client = || trace::Wanted {
            number: 7,
            target: trace::Target::Client("a".into()),
            seconds: 60,
            payload_bytes_max: 0,
        };
        watches.begin_trace(of_client(), 2000).unwrap();
        watches.end_what_is_over(3000);
        assert!(watches.is_on() && watches.is_tracing() && !watches.is_counting_topics());
        watches.end_trace(7);
        assert!(!watches.is_on());
        watches.begin_trace(of_client(), 4000).unwrap();
        watches.end_what_is_over(4000 + trace::UNASKED_MS_MAX);
        assert!(!watches.is_on(), "nobody has asked for it");
    }
}
