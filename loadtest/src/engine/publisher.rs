//! A publisher: its window, its Packet Identifiers in flight, and when its next message goes.

use std::collections::VecDeque;

use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Fault, connection::Outbox};
use crate::wire::{PublishTemplate, Target, append_ack, packet_type};

/// What one publisher is to do.
#[derive(Debug, Clone)]
pub struct PublisherPlan {
    /// Where its messages go.
    pub target: Target,
    /// QoS of its messages.
    pub qos: QoS,
    /// RETAIN of its messages.
    pub retain: bool,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// How many subscribers get each message. With 0, only acknowledgements bound what is under
    /// way, and QoS 0 is not allowed.
    pub receivers: u32,
    /// Messages sent and not yet received by all receivers; also the bound of what is
    /// unacknowledged.
    pub window: u32,
    /// Messages in all.
    pub messages_max: u64,
    /// Messages go when the pacer says, not as soon as the window allows.
    pub paced: bool,
    /// Index of the histogram for its messages.
    pub latency_class: usize,
}

/// The sending half of a closed loop.
#[derive(Debug)]
pub struct Publisher {
    /// The connection that it sends on.
    pub connection: usize,
    /// Bytes of its payloads, for the receivers' check.
    pub payload_bytes: usize,
    /// QoS and RETAIN of its messages, as in the fixed header.
    pub flags: u8,
    /// See [`PublisherPlan::latency_class`].
    pub latency_class: usize,
    /// Number of the next message: as many were sent.
    pub next: u64,
    /// Already among those that may send.
    pub is_ready: bool,
    template: PublishTemplate,
    window: u32,
    messages_max: u64,
    paced: bool,
    /// When the paced messages that could not go yet were due.
    owed: VecDeque<u64>,
    receivers: u32,
    /// Messages sent and not yet received by all; at most `window`.
    outstanding: u32,
    /// With several receivers: how many still lack message n, at n modulo the length.
    lacking: Box<[u32]>,
    in_flight: Option<InFlight>,
    /// Acknowledgements with a Reason Code of failure.
    pub refused: u64,
}

impl Publisher {
    /// A publisher on `connection` that stamps its messages with `who`: (run, index).
    pub fn new(plan: &PublisherPlan, version: ProtocolVersion, connection: usize, who: (u32, u32)) -> Self {
        assert!(plan.window > 0, "a window of 0 would never send");
        assert!(plan.receivers > 0 || plan.qos != QoS::AtMostOnce, "nothing would bound what is under way");
        let template = PublishTemplate::new(version, plan.qos, plan.retain, &plan.target, plan.payload_bytes, who);
        let ring = if plan.receivers > 1 { plan.window.next_power_of_two() as usize } else { 0 };
        Self {
            connection,
            payload_bytes: template.payload_bytes(),
            flags: (plan.qos as u8) << 1 | u8::from(plan.retain),
            latency_class: plan.latency_class,
            next: 0,
            is_ready: false,
            template,
            window: plan.window,
            messages_max: plan.messages_max,
            paced: plan.paced,
            owed: VecDeque::new(),
            receivers: plan.receivers,
            outstanding: 0,
            lacking: vec![0; ring].into(),
            in_flight: (plan.qos != QoS::AtMostOnce).then(|| InFlight::new(plan.qos, plan.window)),
            refused: 0,
        }
    }

    /// Never have more unacknowledged than the broker's Receive Maximum [MQTT-3.3.4-7].
    pub fn set_receive_maximum(&mut self, receive_maximum: u16) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.limit(receive_maximum);
        }
    }

    /// A paced message became due.
    pub fn owe(&mut self, due_ns: u64) {
        self.owed.push_back(due_ns);
    }

    /// May send `messages` more than before.
    pub fn allow(&mut self, messages: u64) {
        self.messages_max = self.messages_max.saturating_add(messages);
    }

    /// Sends no new message from now on.
    pub fn stop(&mut self) {
        self.messages_max = self.next;
        self.owed.clear();
    }

    /// Appends the messages that may go now; returns how many.
    pub fn fill(&mut self, out: &mut Outbox, now_ns: u64) -> u64 {
        let before = self.next;
        while self.next < self.messages_max && self.has_room() {
            let sent_ns = if self.paced {
                let Some(due) = self.owed.pop_front() else {
                    break;
                };
                due
            } else {
                now_ns
            };
            let packet_id = self.in_flight.as_mut().map_or(0, InFlight::take);
            if self.template.is_large() {
                out.bodies.push_back((self.template.share(packet_id, self.next, sent_ns), 0));
            } else {
                self.template.append(&mut out.bytes, packet_id, self.next, sent_ns);
            }
            self.outstanding += u32::from(self.receivers > 0);
            if let Some(slot) = self.slot(self.next) {
                self.lacking[slot] = self.receivers;
            }
            self.next += 1;
        }
        self.next - before
    }

    fn has_room(&self) -> bool {
        self.outstanding < self.window
            && self.in_flight.as_ref().is_none_or(InFlight::has_room)
            // Only after a loss or reordering can the slot's earlier message be under way still.
            && self.slot(self.next).is_none_or(|slot| self.lacking[slot] == 0)
    }

    fn slot(&self, sequence: u64) -> Option<usize> {
        (!self.lacking.is_empty()).then(|| sequence as usize & (self.lacking.len() - 1))
    }

    /// One receiver got message `sequence` for the first time. True when the window opened.
    #[inline]
    pub fn on_received(&mut self, sequence: u64) -> bool {
        if let Some(slot) = self.slot(sequence) {
            self.lacking[slot] = self.lacking[slot].saturating_sub(1);
            if self.lacking[slot] > 0 {
                return false;
            }
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        true
    }

    /// Takes PUBACK, PUBREC or PUBCOMP; true when a Packet Identifier became free.
    pub fn on_ack(&mut self, packet_type: u8, packet_id: u16, reason: u8, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let unexpected = Fault::UnexpectedAck { packet_type, packet_id };
        let Some(in_flight) = &mut self.in_flight else {
            return Err(unexpected);
        };
        self.refused += u64::from(reason >= 0x80);
        match in_flight.on_ack(packet_type, packet_id, reason >= 0x80).ok_or(unexpected)? {
            Step::Freed => Ok(true),
            Step::Release => {
                append_ack(out, packet_type::PUBREL, packet_id);
                Ok(false)
            }
        }
    }

    /// Messages whose acknowledgement is not complete.
    pub fn unacknowledged(&self) -> usize {
        self.in_flight.as_ref().map_or(0, |in_flight| in_flight.used)
    }

    /// Nothing is under way and nothing is left to send.
    pub fn is_done(&self) -> bool {
        self.next >= self.messages_max && self.outstanding == 0 && self.unacknowledged() == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    PubAck,
    PubRec,
    PubComp,
}

enum Step {
    Freed,
    Release,
}

/// Packet Identifiers of QoS 1 and 2 messages in flight. They are used in turn, so that one is
/// reused as late as possible.
#[derive(Debug)]
struct InFlight {
    begins: Awaiting,
    /// By Packet Identifier; index 0 is unused.
    awaiting: Vec<Awaiting>,
    free: VecDeque<u16>,
    /// At most `limit`, at most the Receive Maximum.
    used: usize,
    limit: usize,
}

impl InFlight {
    fn new(qos: QoS, window: u32) -> Self {
        let limit = window.min(u32::from(u16::MAX)) as u16;
        Self {
            begins: if qos == QoS::AtLeastOnce { Awaiting::PubAck } else { Awaiting::PubRec },
            awaiting: vec![Awaiting::Nothing; usize::from(limit) + 1],
            free: (1..=limit).collect(),
            used: 0,
            limit: usize::from(limit),
        }
    }

    fn limit(&mut self, receive_maximum: u16) {
        self.limit = self.limit.min(usize::from(receive_maximum));
    }

    fn has_room(&self) -> bool {
        self.used < self.limit
    }

    /// Callers asked `has_room` first.
    fn take(&mut self) -> u16 {
        let id = self.free.pop_front().expect("there is room, so an identifier is free");
        self.awaiting[usize::from(id)] = self.begins;
        self.used += 1;
        id
    }

    /// `None` when this acknowledgement is not awaited.
    fn on_ack(&mut self, packet_type: u8, packet_id: u16, refused: bool) -> Option<Step> {
        let awaiting = self.awaiting.get_mut(usize::from(packet_id))?;
        match (*awaiting, packet_type) {
            (Awaiting::PubRec, packet_type::PUBREC) if !refused => {
                *awaiting = Awaiting::PubComp;
                return Some(Step::Release);
            }
            (Awaiting::PubAck, packet_type::PUBACK)
            | (Awaiting::PubRec, packet_type::PUBREC)
            | (Awaiting::PubComp, packet_type::PUBCOMP) => *awaiting = Awaiting::Nothing,
            _ => return None,
        }
        self.free.push_back(packet_id);
        self.used -= 1;
        Some(Step::Freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(qos: QoS, window: u32, receivers: u32) -> Publisher {
        let plan = PublisherPlan {
            target: Target::Topic("t".into()),
            qos,
            retain: false,
            payload_bytes: 64,
            receivers,
            window,
            messages_max: u64::MAX,
            paced: false,
            latency_class: 0,
        };
        Publisher::new(&plan, ProtocolVersion::V5, 0, (1, 0))
    }

    #[test]
    fn a_message_is_done_when_all_receivers_got_it() {
        let mut publisher = publisher(QoS::AtMostOnce, 2, 3);
        let mut out = Outbox::default();
        assert_eq!(publisher.fill(&mut out, 0), 2);
        assert!(!publisher.on_received(0));
        assert!(!publisher.on_received(0));
        assert_eq!(publisher.fill(&mut out, 0), 0);
        assert!(publisher.on_received(0));
        assert_eq!(publisher.fill(&mut out, 0), 1);
    }

    #[test]
    fn the_window_needs_receipt_and_acknowledgement() {
        let mut publisher = publisher(QoS::AtLeastOnce, 1, 1);
        let mut out = Outbox::default();
        assert_eq!(publisher.fill(&mut out, 0), 1);
        assert!(publisher.on_received(0));
        assert_eq!(publisher.fill(&mut out, 0), 0, "received, not acknowledged");
        assert!(publisher.on_ack(packet_type::PUBACK, 1, 0, &mut out.bytes).unwrap());
        assert_eq!(publisher.fill(&mut out, 0), 1);
        assert!(publisher.on_ack(packet_type::PUBACK, 1, 0, &mut out.bytes).unwrap());
        assert_eq!(publisher.fill(&mut out, 0), 0, "acknowledged, not received");
    }

    #[test]
    fn receive_maximum_is_never_exceeded() {
        let mut publisher = publisher(QoS::ExactlyOnce, 10, 1);
        publisher.set_receive_maximum(3);
        assert_eq!(publisher.fill(&mut Outbox::default(), 0), 3);
    }

    #[test]
    fn qos2_goes_through_release() {
        let mut publisher = publisher(QoS::ExactlyOnce, 1, 1);
        let mut out = Outbox::default();
        publisher.fill(&mut out, 0);
        out.bytes.clear();
        assert!(publisher.on_ack(packet_type::PUBCOMP, 1, 0, &mut out.bytes).is_err());
        assert!(!publisher.on_ack(packet_type::PUBREC, 1, 0, &mut out.bytes).unwrap());
        assert_eq!(out.bytes, [0x62, 2, 0, 1]);
        assert!(publisher.on_ack(packet_type::PUBCOMP, 1, 0, &mut out.bytes).unwrap());
        assert_eq!(publisher.unacknowledged(), 0);
    }

    #[test]
    fn a_refused_qos2_message_is_over_and_counted() {
        let mut publisher = publisher(QoS::ExactlyOnce, 1, 1);
        let mut out = Outbox::default();
        publisher.fill(&mut out, 0);
        assert!(publisher.on_ack(packet_type::PUBREC, 1, 0x97, &mut out.bytes).unwrap());
        assert_eq!((publisher.refused, publisher.unacknowledged()), (1, 0));
    }

    #[test]
    fn an_acknowledgement_of_nothing_is_a_fault() {
        let mut publisher = publisher(QoS::AtLeastOnce, 1, 1);
        for id in [0, 1, 2, u16::MAX] {
            assert!(publisher.on_ack(packet_type::PUBACK, id, 0, &mut Vec::new()).is_err());
        }
    }
}
