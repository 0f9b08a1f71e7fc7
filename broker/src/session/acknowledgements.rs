//! PUBACK and PUBREC leave in the order in which their PUBLISH came [MQTT-4.6.0-2, MQTT-4.6.0-3 of 3.1.1],
//! although the groups that a message waits for answer in any order.

use std::collections::VecDeque;

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode};

use super::handshake::Refusal;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// For PUBACK or PUBREC.
    pub reason: ReasonCode,
    /// Why it was refused, for the Reason String.
    pub text: Option<&'static str>,
}

impl From<ReasonCode> for Verdict {
    fn from(reason: ReasonCode) -> Self {
        Self { reason, text: None }
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, text: Some(refusal.text) }
    }
}

/// An acknowledgement that may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// PUBACK or PUBREC.
    pub kind: AckKind,
    /// Of the PUBLISH.
    pub packet_id: PacketId,
    /// What became of the message.
    pub verdict: Verdict,
}

#[derive(Debug)]
struct Slot {
    kind: AckKind,
    packet_id: PacketId,
    settled: Option<Verdict>,
}

/// The acknowledgements a client is owed, oldest first. Empty it holds no memory worth counting.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    slots: VecDeque<Slot>,
    /// Ticket of the first slot.
    first: u64,
}

impl Acknowledgements {
    /// Whether nothing is owed, so that a message settled at once may be acknowledged at once.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many are owed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Remembers that a PUBLISH is to be acknowledged; the ticket is for [`Self::settle`].
    pub fn owe(&mut self, kind: AckKind, packet_id: PacketId) -> u64 {
        self.slots.push_back(Slot { kind, packet_id, settled: None });
        self.first + self.slots.len() as u64 - 1
    }

    /// The message behind `ticket` is safe, or refused. [`Self::pop`] then says what may leave.
    pub fn settle(&mut self, ticket: u64, verdict: Verdict) {
        let slot = ticket.checked_sub(self.first).and_then(|index| self.slots.get_mut(index as usize));
        if let Some(slot) = slot {
            slot.settled = Some(verdict);
        }
    }

    /// As [`Self::settle`], for who knows the packet but no ticket.
    pub fn settle_packet(&mut self, kind: AckKind, packet_id: PacketId, verdict: Verdict) {
        let slot = self.slots.iter_mut().find(|slot| slot.packet_id == packet_id && slot.kind == kind);
        if let Some(slot) = slot {
            slot.settled = Some(verdict);
        }
    }

    /// The packets of a kind whose message is not settled.
    pub fn unsettled(&self, kind: AckKind) -> impl Iterator<Item = PacketId> + '_ {
        self.slots.iter().filter(move |slot| slot.kind == kind && slot.settled.is_none()).map(|slot| slot.packet_id)
    }

    /// The next acknowledgement whose turn has come.
    pub fn pop(&mut self) -> Option<Acknowledgement> {
        let verdict = self.slots.front()?.settled?;
        let slot = self.slots.pop_front()?;
        self.first += 1;
        Some(Acknowledgement { kind: slot.kind, packet_id: slot.packet_id, verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    /// [MQTT-4.6.0-2]: the second message is safe first, yet its PUBACK waits for the first one's.
    #[test]
    fn acknowledgements_leave_in_the_order_of_their_publish() {
        let mut owed = Acknowledgements::default();
        let first = owed.owe(AckKind::PubAck, id(7));
        let second = owed.owe(AckKind::PubAck, id(3));
        owed.settle(second, ReasonCode::Success.into());
        assert_eq!(owed.pop(), None);
        owed.settle(first, ReasonCode::QuotaExceeded.into());
        let left: Vec<_> = std::iter::from_fn(|| owed.pop()).map(|ack| (ack.packet_id, ack.verdict.reason)).collect();
        assert_eq!(left, [(id(7), ReasonCode::QuotaExceeded), (id(3), ReasonCode::Success)]);
        assert!(owed.is_empty());
        let third = owed.owe(AckKind::PubRec, id(3));
        assert_eq!(third, 2, "tickets are never used twice");
    }

    #[test]
    fn a_ticket_of_the_past_settles_nothing() {
        let mut owed = Acknowledgements::default();
        let first = owed.owe(AckKind::PubAck, id(1));
        owed.settle(first, ReasonCode::Success.into());
        assert!(owed.pop().is_some());
        owed.owe(AckKind::PubAck, id(2));
        owed.settle(first, ReasonCode::Success.into());
        assert_eq!(owed.pop(), None);
    }
}
