//! What happened under load, and whether the promises held.
//!
//! The recorder notes what clients said and saw, each with a tick of one clock that all clients share.
//! [`check`] is a plain function over that record, so that it can be shown to reject what it should.

use std::collections::{HashMap, HashSet};

use kentongan_proto::mqtt::QoS;

/// A moment: greater is later, whichever client noted it.
pub type Tick = u64;

/// One message of one publisher. Its sequence numbers begin at 1 and have no gaps; each publisher has one topic.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    pub publisher: usize,
    pub sequence: u64,
    pub qos: QoS,
    pub retained: bool,
    /// After a break the publisher sends it again as its session demands: at QoS 1 that is a new message.
    pub sent_again: bool,
    /// Taken before the first byte left.
    pub sent_at: Tick,
    /// Taken after PUBACK or PUBREC without an error was read.
    pub acknowledged_at: Option<Tick>,
}

/// What the persistent subscriber was handed, in its order. At QoS 2, past the removal of duplicates that
/// Packet Identifiers allow.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub publisher: usize,
    pub sequence: u64,
    pub dup: bool,
    /// Which of the subscriber's connections brought it, counted up.
    pub connection: usize,
}

/// What a new subscription found retained on a publisher's topic.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub publisher: usize,
    /// Taken before SUBSCRIBE left.
    pub started_at: Tick,
    /// Taken after the retained messages were read.
    pub ended_at: Tick,
    pub sequence: Option<u64>,
}

/// Everything that was noted in one run.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub published: Vec<Published>,
    pub received: Vec<Received>,
    /// In order: one ended before the next started.
    pub reads: Vec<Read>,
    /// Client Identifiers that came back to Session Present 0 though their sessions had not ended.
    pub sessions_lost: Vec<String>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged, and never handed to the subscriber.
    Lost { publisher: usize, sequence: u64 },
    /// Handed on, though nobody published it.
    Invented { publisher: usize, sequence: u64 },
    /// QoS 2, and handed on again.
    HandedOnTwice { publisher: usize, sequence: u64 },
    /// First handed on after a later message of its publisher.
    Reordered { publisher: usize, sequence: u64, after: u64 },
    /// QoS 1 again without a new connection in between, or without DUP.
    NotARedelivery { publisher: usize, sequence: u64 },
    /// A subscription found an older value than one acknowledged, or seen, before it; or found none.
    Stale { publisher: usize, found: Option<u64>, known: u64 },
    /// A subscription found a value that nobody had sent yet.
    RetainedInvented { publisher: usize, sequence: u64 },
    /// A session that should have lived did not.
    SessionLost { client_id: String },
}

/// The promises that a run broke; none is the answer hoped for.
pub fn check(history: &History) -> Vec<Violation> {
    let published: HashMap<_, _> =
        history.published.iter().map(|message| ((message.publisher, message.sequence), message)).collect();
    let mut violations: Vec<_> =
        history.sessions_lost.iter().map(|id| Violation::SessionLost { client_id: id.clone() }).collect();
    check_complete(history, &mut violations);
    check_received(history, &published, &mut violations);
    check_retained(history, &published, &mut violations);
    violations
}

type ByName<'a> = HashMap<(usize, u64), &'a Published>;

/// What was acknowledged was handed on.
fn check_complete(history: &History, violations: &mut Vec<Violation>) {
    let received: HashSet<_> = history.received.iter().map(|one| (one.publisher, one.sequence)).collect();
    for message in history.published.iter().filter(|message| !message.retained && message.acknowledged_at.is_some()) {
        if !received.contains(&(message.publisher, message.sequence)) {
            violations.push(Violation::Lost { publisher: message.publisher, sequence: message.sequence });
        }
    }
}

/// What was handed on was published, once or as a proper redelivery, and first in its publisher's order.
fn check_received(history: &History, published: &ByName<'_>, violations: &mut Vec<Violation>) {
    let mut newest: HashMap<usize, u64> = HashMap::new();
    let mut last_connection: HashMap<(usize, u64), usize> = HashMap::new();
    for &Received { publisher, sequence, dup, connection } in &history.received {
        let Some(message) = published.get(&(publisher, sequence)).filter(|message| !message.retained) else {
            violations.push(Violation::Invented { publisher, sequence });
            continue;
        };
        match last_connection.insert((publisher, sequence), connection) {
            Some(_) if message.qos == QoS::ExactlyOnce => {
                violations.push(Violation::HandedOnTwice { publisher, sequence });
            }
            Some(before) if !message.sent_again && (before == connection || !dup) => {
                violations.push(Violation::NotARedelivery { publisher, sequence });
            }
            Some(_) => {}
            None => {
                let newest = newest.entry(publisher).or_default();
                if sequence < *newest {
                    violations.push(Violation::Reordered { publisher, sequence, after: *newest });
                }
                *newest = sequence.max(*newest);
            }
        }
    }
}

/// A retained topic is a register: what was acknowledged or seen before a read began, the read finds, or newer.
fn check_retained(history: &History, published: &ByName<'_>, violations: &mut Vec<Violation>) {
    let mut seen: HashMap<usize, u64> = HashMap::new();
    for read in &history.reads {
        let publisher = read.publisher;
        let acknowledged = history
            .published
            .iter()
            .filter(|write| write.retained && write.publisher == publisher)
            .filter(|write| write.acknowledged_at.is_some_and(|tick| tick < read.started_at))
            .map(|write| write.sequence)
            .max();
        let known = acknowledged.max(seen.get(&publisher).copied()).unwrap_or(0);
        if read.sequence.unwrap_or(0) < known {
            violations.push(Violation::Stale { publisher, found: read.sequence, known });
        }
        let Some(sequence) = read.sequence else {
            continue;
        };
        if published.get(&(publisher, sequence)).is_none_or(|write| !write.retained || write.sent_at > read.ended_at) {
            violations.push(Violation::RetainedInvented { publisher, sequence });
        }
        seen.insert(publisher, sequence.max(known));
    }
}

mod tests {
    use super::*;

    const LIVE: usize = 0;
    const KEPT: usize = 1;

    fn published(publisher: usize, sequence: u64, qos: QoS) -> Published {
        Published {
            publisher,
            sequence,
            qos,
            retained: publisher == KEPT,
            sent_again: false,
            sent_at: sequence * 10,
            acknowledged_at: Some(sequence * 10 + 5),
        }
    }

    fn received(sequence: u64) -> Received {
        Received { publisher: LIVE, sequence, dup: false, connection: 1 }
    }

    fn again(sequence: u64) -> Received {
        Received { dup: true, connection: 2, ..received(sequence) }
    }

    fn read(started_at: Tick, sequence: Option<u64>) -> Read {
        Read { publisher: KEPT, started_at, ended_at: started_at + 1, sequence }
    }

    /// Three messages, all acknowledged and received; three retained values, the last one read.
    fn good(qos: QoS) -> History {
        History {
            published: [LIVE, KEPT].into_iter().flat_map(|who| (1..=3).map(move |n| published(who, n, qos))).collect(),
            received: (1..=3).map(received).collect(),
            reads: vec![read(16, Some(1)), read(40, Some(3))],
            sessions_lost: Vec::new(),
        }
    }

    #[test]
    fn a_good_history_passes() {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            assert_eq!(check(&good(qos)), []);
        }
    }

    #[test]
    fn a_lost_message_is_found_unless_it_was_never_acknowledged() {
        let mut history = good(QoS::AtLeastOnce);
        history.received.remove(1);
        assert_eq!(check(&history), [Violation::Lost { publisher: LIVE, sequence: 2 }]);
        history.published[1].acknowledged_at = None;
        assert_eq!(check(&history), []);
    }

    #[test]
    fn an_unacknowledged_message_may_come_or_not() {
        let mut history = good(QoS::ExactlyOnce);
        history.published[2].acknowledged_at = None;
        assert_eq!(check(&history), []);
        history.received.pop();
        assert_eq!(check(&history), []);
    }

    #[test]
    fn a_second_qos_2_message_is_found() {
        let mut history = good(QoS::ExactlyOnce);
        history.received.push(again(2));
        assert_eq!(check(&history), [Violation::HandedOnTwice { publisher: LIVE, sequence: 2 }]);
    }

    #[test]
    fn a_second_qos_1_message_needs_dup_and_a_new_connection() {
        let mut history = good(QoS::AtLeastOnce);
        history.received.push(again(2));
        assert_eq!(check(&history), []);
        for bad in [Received { dup: false, ..again(2) }, Received { connection: 1, ..again(2) }] {
            *history.received.last_mut().expect("pushed above") = bad;
            assert_eq!(check(&history), [Violation::NotARedelivery { publisher: LIVE, sequence: 2 }]);
        }
        // The publisher's own second try is a new message.
        history.published[1].sent_again = true;
        assert_eq!(check(&history), []);
    }

    #[test]
    fn a_reordered_message_is_found() {
        let mut history = good(QoS::AtLeastOnce);
        history.received.swap(0, 1);
        assert_eq!(check(&history), [Violation::Reordered { publisher: LIVE, sequence: 1, after: 2 }]);
    }

    #[test]
    fn a_redelivery_may_come_after_later_messages() {
        let mut history = good(QoS::AtLeastOnce);
        history.received.extend([again(1), again(2), again(3)]);
        assert_eq!(check(&history), []);
    }

    #[test]
    fn an_invented_message_is_found() {
        let mut history = good(QoS::AtLeastOnce);
        history.received.push(received(4));
        history.received.push(Received { publisher: KEPT, ..received(1) });
        let invented = |publisher, sequence| Violation::Invented { publisher, sequence };
        assert_eq!(check(&history), [invented(LIVE, 4), invented(KEPT, 1)]);
    }

    #[test]
    fn a_stale_or_missing_retained_value_is_found() {
        for found in [None, Some(2)] {
            let mut history = good(QoS::AtLeastOnce);
            history.reads[1].sequence = found;
            assert_eq!(check(&history), [Violation::Stale { publisher: KEPT, found, known: 3 }]);
        }
    }

    #[test]
    fn a_retained_value_may_be_newer_than_what_was_acknowledged_but_not_go_back() {
        let mut history = good(QoS::AtLeastOnce);
        history.published[5].acknowledged_at = None;
        history.reads.push(read(50, Some(3)));
        assert_eq!(check(&history), []);
        history.reads[2].sequence = Some(2);
        assert_eq!(check(&history), [Violation::Stale { publisher: KEPT, found: Some(2), known: 3 }]);
    }

    #[test]
    fn a_retained_value_from_the_future_is_found() {
        let mut history = good(QoS::AtLeastOnce);
        history.reads[0].sequence = Some(3);
        assert_eq!(check(&history), [Violation::RetainedInvented { publisher: KEPT, sequence: 3 }]);
        history.reads[0].sequence = Some(1);
        history.reads[1].sequence = Some(9);
        assert_eq!(check(&history), [Violation::RetainedInvented { publisher: KEPT, sequence: 9 }]);
    }

    #[test]
    fn a_lost_session_is_found() {
        let mut history = good(QoS::AtLeastOnce);
        history.sessions_lost.push("subscriber".to_owned());
        assert_eq!(check(&history), [Violation::SessionLost { client_id: "subscriber".to_owned() }]);
    }
}
