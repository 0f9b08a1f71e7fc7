//! Answers to lanes of other nodes for which nobody waits: of many, the last one says it all.
//!
//! An answer wakes two threads of the node that gets it. Where all of a batch is of QoS 0 it only frees memory there, so it
//! may come later: with one of the next batches, or by [`PatientAnswers::take_due`].
//!
//! All others wait here while the arbiters have too much before them, so that the lanes fill up where the messages come from,
//! and publishers there pause.

use std::collections::BTreeMap;

use crate::peers::wire::MessagesAnswer;

/// From one answer of a busy lane to the next.
const ANSWER_INTERVAL_MS: u64 = 5;

#[derive(Debug, Default)]
struct Lane {
    answered_ms: u64,
    pending: Option<MessagesAnswer>,
}

/// Of all lanes from other nodes, by node and lane.
#[derive(Debug, Default)]
pub struct PatientAnswers(BTreeMap<(u64, u32), Lane>);

impl PatientAnswers {
    /// A batch that nobody waits for was handed on. Returns its answer if it is time for one.
    pub fn on_patient(&mut self, node: u64, answer: MessagesAnswer, now_ms: u64) -> Option<MessagesAnswer> {
        let lane = self.0.entry((node, answer.lane)).or_default();
        if now_ms.saturating_sub(lane.answered_ms) < ANSWER_INTERVAL_MS {
            lane.pending = Some(answer);
            return None;
        }
        *lane = Lane { answered_ms: now_ms, pending: None };
        Some(answer)
    }

    /// A batch was handed on, and is answered when the arbiters have less before them.
    pub fn hold(&mut self, node: u64, answer: MessagesAnswer) {
        self.0.entry((node, answer.lane)).or_default().pending = Some(answer);
    }

    /// A lane was answered otherwise: what was pending is said by that.
    pub fn on_answered(&mut self, node: u64, lane: u32, now_ms: u64) {
        if let Some(lane) = self.0.get_mut(&(node, lane)) {
            *lane = Lane { answered_ms: now_ms, pending: None };
        }
    }

    /// What is pending still, and for whom.
    pub fn take_due(&mut self, now_ms: u64) -> Vec<(u64, MessagesAnswer)> {
        let is_due = |lane: &Lane| now_ms.saturating_sub(lane.answered_ms) >= ANSWER_INTERVAL_MS;
        let due = self.0.iter_mut().filter(|(_, lane)| is_due(lane));
        due.filter_map(|(&(node, _), lane)| Some((node, lane.pending.take()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: u64) -> MessagesAnswer {
        MessagesAnswer { lane: 1, number, ..MessagesAnswer::default() }
    }

    #[test]
    fn a_busy_lane_is_answered_now_and_then_and_at_its_end() {
        let mut answers = PatientAnswers::default();
        assert_eq!(answers.on_patient(7, answer(1), 100), Some(answer(1)));
        assert_eq!(answers.on_patient(7, answer(2), 101), None);
        assert_eq!(answers.on_patient(7, answer(3), 104), None);
        assert_eq!(answers.take_due(104), [], "its interval is not over");
        assert_eq!(answers.on_patient(7, answer(4), 105), Some(answer(4)));
        assert_eq!(answers.take_due(200), [], "said by the answer to the fourth");
        assert_eq!(answers.on_patient(7, answer(5), 105), None);
        assert_eq!(answers.take_due(110), [(7, answer(5))]);
        assert_eq!(answers.take_due(200), []);
    }

    #[test]
    fn what_is_held_is_said_once() {
        let mut answers = PatientAnswers::default();
        answers.hold(7, answer(1));
        answers.hold(7, answer(2));
        assert_eq!(answers.take_due(100), [(7, answer(2))]);
        assert_eq!(answers.take_due(200), []);
    }

    #[test]
    fn an_answer_that_somebody_waited_for_says_what_was_pending() {
        let mut answers = PatientAnswers::default();
        answers.on_patient(7, answer(1), 100);
        answers.on_patient(7, answer(2), 101);
        answers.on_answered(7, 1, 102);
        assert_eq!(answers.take_due(200), []);
        assert_eq!(answers.on_patient(8, answer(1), 103), Some(answer(1)), "another node's lane");
    }
}
