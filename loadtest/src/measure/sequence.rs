//! Order and completeness of one publisher's messages at one receiver.

use std::collections::BTreeMap;

/// What one arrival meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The next number.
    InOrder,
    /// A number further on: those between are missing for now.
    Ahead,
    /// A missing number came after its successors.
    Late,
    /// A number that had come before.
    Duplicate,
}

/// Follows one stream that is numbered 0, 1, 2, …
///
/// A number that was skipped is missing until it arrives late; what is still missing when
/// everything was awaited is lost. Only gaps cost memory, and neighbouring ones are one entry, so a
/// broker that drops half of everything does not exhaust the tester.
#[derive(Debug, Default, Clone)]
pub struct SequenceChecker {
    /// The lowest number above all that arrived.
    next: u64,
    /// Missing numbers below `next`: start → end (exclusive), disjoint.
    gaps: BTreeMap<u64, u64>,
    /// Arrivals of numbers that had come before.
    pub duplicated: u64,
    /// Arrivals after a successor.
    pub out_of_order: u64,
}

impl SequenceChecker {
    /// Takes the arrival of number `sequence`.
    #[inline]
    pub fn observe(&mut self, sequence: u64) -> Observation {
        if sequence == self.next {
            self.next += 1;
            return Observation::InOrder;
        }
        self.observe_unexpected(sequence)
    }

    #[cold]
    fn observe_unexpected(&mut self, sequence: u64) -> Observation {
        if sequence > self.next {
            self.gaps.insert(self.next, sequence);
            self.next = sequence + 1;
            return Observation::Ahead;
        }
        let gap = self.gaps.range(..=sequence).next_back();
        let Some((start, end)) = gap.map(|(s, e)| (*s, *e)).filter(|(_, end)| sequence < *end) else {
            self.duplicated += 1;
            return Observation::Duplicate;
        };
        self.gaps.remove(&start);
        if start < sequence {
            self.gaps.insert(start, sequence);
        }
        if sequence + 1 < end {
            self.gaps.insert(sequence + 1, end);
        }
        self.out_of_order += 1;
        Observation::Late
    }

    /// How many of the first `sent` numbers have not arrived.
    pub fn missing(&self, sent: u64) -> u64 {
        let within: u64 = self.gaps.iter().map(|(start, end)| end - start).sum();
        within + sent.saturating_sub(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(arrivals: &[u64]) -> (SequenceChecker, Vec<Observation>) {
        let mut checker = SequenceChecker::default();
        let seen = arrivals.iter().map(|s| checker.observe(*s)).collect();
        (checker, seen)
    }

    #[test]
    fn a_complete_ordered_stream_has_no_findings() {
        let (checker, _) = after(&[0, 1, 2, 3]);
        assert_eq!((checker.missing(4), checker.duplicated, checker.out_of_order), (0, 0, 0));
    }

    #[test]
    fn a_lost_message_is_missing() {
        let (checker, seen) = after(&[0, 1, 3]);
        assert_eq!(seen[2], Observation::Ahead);
        assert_eq!((checker.missing(4), checker.duplicated, checker.out_of_order), (1, 0, 0));
    }

    #[test]
    fn a_lost_tail_is_missing() {
        assert_eq!(after(&[0, 1]).0.missing(5), 3);
        assert_eq!(after(&[]).0.missing(2), 2);
    }

    #[test]
    fn a_repeated_message_is_a_duplicate() {
        let (checker, seen) = after(&[0, 1, 1, 2, 0]);
        assert_eq!(seen[2], Observation::Duplicate);
        assert_eq!((checker.missing(3), checker.duplicated, checker.out_of_order), (0, 2, 0));
    }

    #[test]
    fn swapped_messages_are_out_of_order_and_not_lost() {
        let (checker, seen) = after(&[0, 2, 1, 3]);
        assert_eq!(seen[1..3], [Observation::Ahead, Observation::Late]);
        assert_eq!((checker.missing(4), checker.duplicated, checker.out_of_order), (0, 0, 1));
    }

    #[test]
    fn a_late_message_that_comes_twice_is_late_once_and_then_a_duplicate() {
        let (checker, _) = after(&[0, 5, 2, 2, 4, 1, 3]);
        assert_eq!((checker.missing(6), checker.duplicated, checker.out_of_order), (0, 1, 4));
    }

    #[test]
    fn a_gap_is_split_by_what_arrives_within_it() {
        let (checker, _) = after(&[10, 4]);
        assert_eq!(checker.missing(11), 9);
        assert_eq!(checker.gaps.into_iter().collect::<Vec<_>>(), [(0, 4), (5, 10)]);
    }
}
