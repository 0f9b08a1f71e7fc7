//! A subscriber: which messages it must get, and what came instead.

use crate::measure::{Observation, SequenceChecker};

/// Which publishers' messages a subscriber must get, and in what order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// All messages of publishers `first .. first + count`, each publisher's in order.
    Each {
        /// Index of the first publisher.
        first: u32,
        /// How many publishers.
        count: u32,
    },
    /// Its part of what shared group `group` gets of all publishers. What one member gets of one
    /// publisher must be in order.
    Member {
        /// Index of the group.
        group: usize,
        /// How many publishers there are in all.
        publishers: u32,
    },
    /// Messages `number`, `number + stride`, `number + 2 · stride`, … of one publisher, in order.
    Every {
        /// Index of the publisher.
        publisher: u32,
        /// The first message.
        number: u64,
        /// From one message to the next.
        stride: u64,
    },
    /// Messages `0 .. count` of one publisher, once each, in any order; those of others are not
    /// looked at.
    Set {
        /// Index of the publisher.
        publisher: u32,
        /// How many messages.
        count: u64,
    },
}

/// What came that should not have come so, or did not come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Findings {
    /// Never arrived.
    pub lost: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived after a later one.
    pub out_of_order: u64,
    /// Arrived at a subscriber that had not asked for them, or had never been sent.
    pub foreign: u64,
    /// Arrived with a payload that is not the one sent.
    pub corrupt: u64,
    /// Arrived with a DUP, QoS or RETAIN that it should not have.
    pub wrong_flags: u64,
    /// Not acknowledged to the publisher, or not completely.
    pub unacknowledged: u64,
    /// Acknowledged with a Reason Code of failure.
    pub refused: u64,
}

#[derive(Debug)]
enum Check {
    Each {
        first: u32,
        checkers: Vec<SequenceChecker>,
    },
    /// `next` is by publisher the number above all that this member got.
    Member {
        group: usize,
        next: Vec<u64>,
        out_of_order: u64,
    },
    Every {
        publisher: u32,
        number: u64,
        stride: u64,
        checker: SequenceChecker,
    },
    Set {
        publisher: u32,
        seen: Vec<u64>,
        count: u64,
        arrived: u64,
        duplicated: u64,
    },
}

/// The receiving half of a closed loop.
#[derive(Debug)]
pub struct Subscriber {
    check: Check,
    /// Packet Identifiers of QoS 2 messages that wait for PUBREL, one bit each.
    inbound: Option<Box<[u64; 1024]>>,
    /// Arrivals, of whatever kind.
    pub arrived: u64,
    foreign: u64,
    corrupt: u64,
    wrong_flags: u64,
}

/// What a subscriber makes of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is the first of its kind here: the publisher's window hears of it.
    First,
    /// It changes nothing.
    Ignored,
}

impl Subscriber {
    /// A subscriber that must get what `expected` says.
    pub fn new(expected: &Expected) -> Self {
        let check = match *expected {
            Expected::Each { first, count } => {
                Check::Each { first, checkers: vec![SequenceChecker::default(); count as usize] }
            }
            Expected::Member { group, publishers } => {
                Check::Member { group, next: vec![0; publishers as usize], out_of_order: 0 }
            }
            Expected::Every { publisher, number, stride } => {
                Check::Every { publisher, number, stride, checker: SequenceChecker::default() }
            }
            Expected::Set { publisher, count } => {
                let seen = vec![0; count.div_ceil(64) as usize];
                Check::Set { publisher, seen, count, arrived: 0, duplicated: 0 }
            }
        };
        Self { check, inbound: None, arrived: 0, foreign: 0, corrupt: 0, wrong_flags: 0 }
    }

    /// A payload came that is not one of ours, or not as it was sent. A set is read with a filter
    /// that finds what others have retained as well.
    pub fn on_corrupt(&mut self) {
        self.arrived += 1;
        self.corrupt += u64::from(!matches!(self.check, Check::Set { .. }));
    }

    /// A message of a publisher that sends with flags `sent` arrived with `flags`. Subscriptions
    /// have the QoS of their publishers; nothing here is ever re-sent, so DUP must be 0
    /// [MQTT-3.3.1-3]; RETAIN is 1 only for what was stored before the subscription
    /// [MQTT-3.3.1-8, MQTT-3.3.1-9].
    #[inline]
    pub fn on_flags(&mut self, flags: u8, sent: u8) {
        let expected = if matches!(self.check, Check::Set { .. }) { sent } else { sent & !1 };
        self.wrong_flags += u64::from(flags != expected);
    }

    /// Message `sequence` of `publisher`, which has sent `sent` messages, arrived. `groups` are the
    /// checkers of the shared groups, by group and publisher.
    #[inline]
    pub fn on_message(
        &mut self,
        publisher: u32,
        sequence: u64,
        sent: u64,
        groups: &mut [Vec<SequenceChecker>],
    ) -> Arrival {
        self.arrived += 1;
        if sequence >= sent {
            self.foreign += 1;
            return Arrival::Ignored;
        }
        let observation = match &mut self.check {
            Check::Each { first, checkers } => {
                let index = publisher.wrapping_sub(*first) as usize;
                checkers.get_mut(index).map(|checker| checker.observe(sequence))
            }
            Check::Member { group, next, out_of_order } => next.get_mut(publisher as usize).map(|next| {
                *out_of_order += u64::from(sequence < *next);
                *next = (*next).max(sequence + 1);
                groups[*group][publisher as usize].observe(sequence)
            }),
            Check::Every { publisher: wanted, number, stride, checker } => {
                let is_ours = publisher == *wanted && sequence % *stride == *number;
                is_ours.then(|| checker.observe(sequence / *stride))
            }
            Check::Set { publisher: wanted, seen, count, arrived, duplicated } => {
                if publisher == *wanted && sequence < *count {
                    let (word, bit) = (sequence as usize / 64, 1 << (sequence % 64));
                    let again = seen[word] & bit != 0;
                    seen[word] |= bit;
                    *arrived += u64::from(!again);
                    *duplicated += u64::from(again);
                }
                return Arrival::Ignored;
            }
        };
        match observation {
            Some(Observation::InOrder | Observation::Ahead | Observation::Late) => Arrival::First,
            Some(Observation::Duplicate) => Arrival::Ignored,
            None => {
                self.foreign += 1;
                Arrival::Ignored
            }
        }
    }

    /// A QoS 2 PUBLISH with `packet_id` arrived: true if it is new, false if it is a repetition
    /// that must be answered and not taken again [MQTT-4.3.3-10].
    pub fn begin_exactly_once(&mut self, packet_id: u16) -> bool {
        let words = self.inbound.get_or_insert_with(|| Box::new([0; 1024]));
        let (word, bit) = (usize::from(packet_id) / 64, 1 << (packet_id % 64));
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        is_new
    }

    /// A PUBREL arrived.
    pub fn end_exactly_once(&mut self, packet_id: u16) {
        if let Some(words) = &mut self.inbound {
            words[usize::from(packet_id) / 64] &= !(1 << (packet_id % 64));
        }
    }

    /// How many messages of an [`Expected::Set`] have arrived.
    pub fn set_arrived(&self) -> u64 {
        if let Check::Set { arrived, .. } = self.check { arrived } else { 0 }
    }

    /// What is wrong so far, `sent` being how many messages each publisher has sent.
    /// What a shared group has lost or got twice is not a member's: see [`group_findings`].
    pub fn findings(&self, sent: impl Fn(u32) -> u64) -> Findings {
        let mut findings = Findings {
            foreign: self.foreign,
            corrupt: self.corrupt,
            wrong_flags: self.wrong_flags,
            ..Findings::default()
        };
        match &self.check {
            Check::Each { first, checkers } => {
                for (checker, publisher) in checkers.iter().zip(*first..) {
                    add(&mut findings, checker, sent(publisher));
                }
            }
            Check::Member { out_of_order, .. } => findings.out_of_order = *out_of_order,
            Check::Every { publisher, number, stride, checker } => {
                let count = (sent(*publisher) + stride - 1 - number) / stride;
                add(&mut findings, checker, count);
            }
            Check::Set { publisher, count, arrived, duplicated, .. } => {
                findings.lost = sent(*publisher).min(*count).saturating_sub(*arrived);
                findings.duplicated = *duplicated;
            }
        }
        findings
    }
}

/// What a shared group as a whole has lost or got twice.
pub fn group_findings(checkers: &[SequenceChecker], sent: impl Fn(u32) -> u64) -> Findings {
    let mut findings = Findings::default();
    for (checker, publisher) in checkers.iter().zip(0..) {
        add(&mut findings, checker, sent(publisher));
    }
    // Members do not wait for each other.
    findings.out_of_order = 0;
    findings
}

fn add(findings: &mut Findings, checker: &SequenceChecker, sent: u64) {
    findings.lost += checker.missing(sent);
    findings.duplicated += checker.duplicated;
    findings.out_of_order += checker.out_of_order;
}

impl std::ops::AddAssign for Findings {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.foreign += other.foreign;
        self.corrupt += other.corrupt;
        self.wrong_flags += other.wrong_flags;
        self.unacknowledged += other.unacknowledged;
        self.refused += other.refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: u64 = 4;

    fn each(arrivals: &[(u32, u64)]) -> Findings {
        let mut subscriber = Subscriber::new(&Expected::Each { first: 5, count: 2 });
        for (publisher, sequence) in arrivals {
            subscriber.on_message(*publisher, *sequence, SENT, &mut []);
        }
        subscriber.findings(|_| SENT)
    }

    #[test]
    fn two_whole_streams_interleaved_are_clean() {
        let arrivals = [(5, 0), (6, 0), (6, 1), (5, 1), (5, 2), (6, 2), (5, 3), (6, 3)];
        assert_eq!(each(&arrivals), Findings::default());
    }

    #[test]
    fn a_lost_a_repeated_and_a_swapped_message_are_reported() {
        let arrivals = [(5, 0), (5, 2), (5, 1), (5, 3), (6, 0), (6, 1), (6, 1), (6, 3)];
        let expected = Findings { lost: 1, duplicated: 1, out_of_order: 1, ..Findings::default() };
        assert_eq!(each(&arrivals), expected);
    }

    #[test]
    fn messages_of_others_and_from_the_future_are_foreign() {
        let findings = each(&[(4, 0), (7, 0), (5, SENT)]);
        assert_eq!((findings.foreign, findings.lost), (3, 8));
    }

    #[test]
    fn a_group_is_complete_together_and_each_member_in_order() {
        let mut groups = vec![vec![SequenceChecker::default()]];
        let member = Expected::Member { group: 0, publishers: 1 };
        let (mut a, mut b) = (Subscriber::new(&member), Subscriber::new(&member));
        let mut arrivals = [(&mut a, 1), (&mut b, 0)];
        for (subscriber, sequence) in &mut arrivals {
            assert_eq!(subscriber.on_message(0, *sequence, SENT, &mut groups), Arrival::First);
        }
        assert_eq!(a.on_message(0, 0, SENT, &mut groups), Arrival::Ignored, "b had it");
        let group = group_findings(&groups[0], |_| SENT);
        assert_eq!(group, Findings { lost: 2, duplicated: 1, ..Findings::default() });
        assert_eq!(a.findings(|_| SENT).out_of_order, 1);
        assert_eq!(b.findings(|_| SENT), Findings::default());
    }

    #[test]
    fn every_third_message_is_expected_and_counted() {
        let every = Expected::Every { publisher: 0, number: 1, stride: 3 };
        let mut subscriber = Subscriber::new(&every);
        subscriber.on_message(0, 1, 9, &mut []);
        subscriber.on_message(0, 2, 9, &mut []);
        let findings = subscriber.findings(|_| 9);
        assert_eq!((findings.lost, findings.foreign), (2, 1));
        assert_eq!(Subscriber::new(&every).findings(|_| 1).lost, 0);
        assert_eq!(Subscriber::new(&every).findings(|_| 2).lost, 1);
    }

    #[test]
    fn a_set_is_complete_in_any_order_and_once_each() {
        let mut subscriber = Subscriber::new(&Expected::Set { publisher: 1, count: 3 });
        for (publisher, sequence) in [(1, 2), (1, 0), (0, 0), (1, 2)] {
            subscriber.on_message(publisher, sequence, SENT, &mut []);
        }
        let findings = subscriber.findings(|_| 3);
        assert_eq!((findings.lost, findings.duplicated, findings.foreign), (1, 1, 0));
        assert_eq!(subscriber.set_arrived(), 2);
    }

    #[test]
    fn a_repeated_qos2_publish_is_not_taken_again_until_released() {
        let mut subscriber = Subscriber::new(&Expected::Each { first: 0, count: 1 });
        assert!(subscriber.begin_exactly_once(65_535));
        assert!(!subscriber.begin_exactly_once(65_535));
        subscriber.end_exactly_once(65_535);
        assert!(subscriber.begin_exactly_once(65_535));
    }
}
