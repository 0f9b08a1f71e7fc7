//! Events that wait for the webhook: a queue bounded by number and by bytes.

use std::collections::VecDeque;

use crate::metrics::EventDrop;

/// Bytes that an event takes beside its text, about.
const EVENT_BYTES: usize = 48;

/// Those that wait, the one that came first in front.
#[derive(Debug)]
pub(super) struct Waiting {
    events: VecDeque<String>,
    bytes: usize,
    events_max: usize,
    bytes_max: usize,
    /// Left out since the last batch was taken.
    left_out: u64,
}

/// Events that go in one request.
#[derive(Debug)]
pub(super) struct Batch {
    /// Each as JSON.
    pub(super) events: Vec<String>,
    /// How many were left out since the batch before.
    pub(super) left_out: u64,
}

impl Waiting {
    pub(super) fn new(events_max: usize, bytes_max: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, events_max, bytes_max, left_out: 0 }
    }

    /// Takes one more in; the one that finds no room is left out, so that what is told is without a gap up to there.
    pub(super) fn push(&mut self, event: String) -> Result<(), EventDrop> {
        let bytes = event.len() + EVENT_BYTES;
        let full = if self.events.len() >= self.events_max {
            Err(EventDrop::QueueEvents)
        } else if self.bytes + bytes > self.bytes_max {
            Err(EventDrop::QueueBytes)
        } else {
            Ok(())
        };
        if full.is_err() {
            self.left_out += 1;
            return full;
        }
        self.bytes += bytes;
        self.events.push_back(event);
        Ok(())
    }

    /// A batch of at most so many; `None` if nothing waits.
    pub(super) fn take(&mut self, events_max: usize) -> Option<Batch> {
        if self.events.is_empty() {
            return None;
        }
        let count = self.events.len().min(events_max);
        let events: Vec<String> = self.events.drain(..count).collect();
        self.bytes -= events.iter().map(|event| event.len() + EVENT_BYTES).sum::<usize>();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        Some(Batch { events, left_out: std::mem::take(&mut self.left_out) })
    }

    /// Others were left out after they had been taken.
    pub(super) fn note_left_out(&mut self, count: u64) {
        self.left_out += count;
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_left_out_and_the_next_batch_says_so() {
        let mut waiting = Waiting::new(2, 1000);
        assert_eq!(waiting.push("a".into()), Ok(()));
        assert_eq!(waiting.push("x".repeat(1000)), Err(EventDrop::QueueBytes));
        assert_eq!(waiting.push("b".into()), Ok(()));
        assert_eq!(waiting.push("c".into()), Err(EventDrop::QueueEvents));
        assert_eq!((waiting.len(), waiting.bytes()), (2, 2 * (EVENT_BYTES + 1)));
        let batch = waiting.take(1).unwrap();
        assert_eq!((batch.events, batch.left_out), (vec![String::from("a")], 2));
        waiting.note_left_out(3);
        let batch = waiting.take(9).unwrap();
        assert_eq!((batch.events, batch.left_out), (vec![String::from("b")], 3));
        assert_eq!((waiting.len(), waiting.bytes()), (0, 0));
        assert!(waiting.take(9).is_none());
    }
}
