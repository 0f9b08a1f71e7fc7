//! How long an arbiter takes, for metrics: one look at the clock for a turn and for an acknowledgement that is watched, none for
//! a message.

use std::time::Duration;

use kentongan_proto::mqtt::{PacketId, QoS};

use super::ConnectionKey;
use crate::metrics::ArbiterCounters;

/// When the turn at hand began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Turn {
    began: Duration,
    /// When the oldest message in it was read, or came from a group or another node.
    pub(super) oldest: Duration,
}

/// What is timed at present.
#[derive(Debug, Default)]
pub(super) struct Timing {
    turn: Turn,
    /// Messages sent since the counters were flushed, as of the end of the last turn.
    sent: u64,
    /// A PUBLISH whose acknowledgement is watched: by whom, under which identifier, since when.
    watched: Option<(ConnectionKey, PacketId, Duration)>,
}

impl Timing {
    /// Something happened that is to be written when the turn ends.
    #[inline]
    pub(super) fn begin_turn(&mut self, now: Duration) {
        self.turn = Turn { began: now, oldest: now };
    }

    /// Messages came from another arbiter, the oldest of which was read then.
    pub(super) fn heard_of(&mut self, oldest: Duration) {
        self.turn.oldest = self.turn.oldest.min(oldest);
    }

    /// The turn at hand.
    #[inline]
    pub(super) fn turn(&self) -> Turn {
        self.turn
    }

    /// Everything of the turn was written.
    pub(super) fn end_turn(&mut self, turn: Turn, now: Duration, counters: &ArbiterCounters) {
        counters.arbiter_turn_seconds.record(now.saturating_sub(turn.began));
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
        let sent = qos.map(|qos| counters.messages_sent.unflushed(qos)).iter().sum();
        if sent != self.sent {
            self.sent = sent;
            counters.publish_deliver_seconds.record(now.saturating_sub(turn.oldest));
        }
    }

    /// The counters begin from 0 again.
    pub(super) fn counters_flushed(&mut self) {
        self.sent = 0;
    }

    /// A PUBLISH was read whose acknowledgement must wait. One is watched at a time.
    #[inline]
    pub(super) fn owes(&mut self, key: ConnectionKey, id: PacketId, now: Duration) {
        if self.watched.is_none() {
            self.watched = Some((key, id, now));
        }
    }

    /// It is acknowledged: since when it was watched, if it was.
    #[inline]
    pub(super) fn acknowledged(&mut self, key: ConnectionKey, id: PacketId) -> Option<Duration> {
        let (_, _, since) = self.watched.take_if(|(by, own, _)| (*by, *own) == (key, id))?;
        Some(since)
    }

    /// The connection is gone, and what it waits for never comes.
    pub(super) fn forget(&mut self, key: ConnectionKey) {
        self.watched.take_if(|(by, ..)| *by == key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn turn(timing: &mut Timing, began: u64, oldest: Option<u64>, ended: u64, counters: &ArbiterCounters) {
        timing.begin_turn(MS(began));
        oldest.into_iter().for_each(|oldest| timing.heard_of(MS(oldest)));
        timing.end_turn(timing.turn(), MS(ended), counters);
    }

    #[test]
    fn a_turn_that_sent_nothing_delivered_nothing() {
        let (mut timing, counters) = (Timing::default(), Metrics::isolated().arbiter());
        let counted = || (counters.arbiter_turn_seconds.unflushed(), counters.publish_deliver_seconds.unflushed());
        turn(&mut timing, 1, None, 2, &counters);
        assert_eq!(counted(), (1, 0));
        counters.messages_sent.inc(QoS::AtLeastOnce);
        turn(&mut timing, 3, Some(1), 4, &counters);
        assert_eq!(counted(), (2, 1));
        turn(&mut timing, 5, None, 6, &counters);
        assert_eq!(counted(), (3, 1));
        counters.flush();
        timing.counters_flushed();
        turn(&mut timing, 7, None, 8, &counters);
        assert_eq!(counted(), (1, 0), "that the counters begin anew is no message");
    }

    #[test]
    fn a_delivery_counts_from_when_the_oldest_message_was_read() {
        let metrics = Metrics::isolated();
        let (mut timing, counters) = (Timing::default(), metrics.arbiter());
        counters.messages_sent.inc(QoS::AtMostOnce);
        turn(&mut timing, 100, Some(40), 103, &counters);
        counters.flush();
        let text = metrics.render();
        for line in ["kentongan_arbiter_turn_seconds_sum 0.003", "kentongan_publish_deliver_seconds_sum 0.063"] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn one_acknowledgement_is_watched_until_it_is_sent_or_its_connection_gone() {
        let mut timing = Timing::default();
        let (one, other) = (ConnectionKey::new(0, 1, 1), ConnectionKey::new(0, 2, 1));
        let id = |number| PacketId::new(number).unwrap();
        timing.owes(one, id(1), MS(1));
        timing.owes(one, id(2), MS(2));
        assert_eq!(timing.acknowledged(one, id(2)), None, "the first is watched");
        assert_eq!(timing.acknowledged(other, id(1)), None, "another's");
        assert_eq!(timing.acknowledged(one, id(1)), Some(MS(1)));
        assert_eq!(timing.acknowledged(one, id(1)), None, "once");

        timing.owes(one, id(3), MS(3));
        timing.forget(other);
        timing.forget(one);
        timing.owes(other, id(1), MS(4));
        assert_eq!(timing.acknowledged(other, id(1)), Some(MS(4)));
    }
}
