//! The server's half of QoS 1 and 2 towards one client: what is in flight, and what waits for room.
//!
//! Nothing here performs I/O or reads a clock. `M` is whatever the holder queues: a shared message on a
//! connection, a small record in a group's state machine. There is this one implementation for both.
//!
//! A message moves `queue → AwaitingPubAck → (gone)` with QoS 1 and
//! `queue → AwaitingPubRec → AwaitingPubComp → (gone)` with QoS 2. The window is a ring indexed by the Packet
//! Identifier modulo its capacity, so that neither sending nor acknowledging looks anything up.

use std::collections::VecDeque;

use kentongan_proto::mqtt::{PacketId, QoS};

/// Slots of a window when it is first needed; it doubles from there.
const WINDOW_CAPACITY_MIN: usize = 16;

/// What gives way when the queue is full. QoS 0 always goes first, whatever the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DropPolicy {
    /// Refuse what arrives.
    #[default]
    Newest,
    /// Drop from the head.
    Oldest,
}

/// The bounds of one client's outgoing messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboundLimits {
    /// Unacknowledged QoS 1 and 2 messages at once: the lower of the client's Receive Maximum and our limit.
    pub window_max: u16,
    /// Messages waiting for room in the window.
    pub queue_messages_max: usize,
    /// Their weight in bytes.
    pub queue_bytes_max: usize,
    /// What gives way beyond these two.
    pub drop_policy: DropPolicy,
}

/// What an unfinished delivery waits for from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// A QoS 1 PUBLISH is out.
    AwaitingPubAck,
    /// A QoS 2 PUBLISH is out.
    AwaitingPubRec,
    /// A PUBREL is out. The message itself is no longer needed.
    AwaitingPubComp,
}

/// The client acknowledged a Packet Identifier that waits for no such acknowledgement. Its doing: MQTT 5 answers a
/// PUBREC with a PUBREL that carries 0x92, the other acknowledgements are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no delivery awaits this acknowledgement of packet identifier {0}")]
pub struct UnknownPacketIdentifier(pub PacketId);

/// What became of an offered message.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer<M> {
    /// It is queued.
    Accepted,
    /// The queue is full; here it is back.
    DroppedNew(M),
    /// It is queued, and these had to make room.
    DroppedOldest(Vec<M>),
}

/// A message to send now.
#[derive(Debug, PartialEq, Eq)]
pub enum Sendable<'a, M> {
    /// QoS 1 or 2: it stays in the window until acknowledged.
    InFlight {
        /// Its new Packet Identifier.
        packet_id: PacketId,
        /// Never QoS 0.
        qos: QoS,
        /// See [`Slot::sent`].
        sent: u64,
        /// What to send.
        message: &'a M,
    },
    /// QoS 0: it is the caller's now, nothing is remembered.
    AtMostOnce(M),
}

/// One unfinished delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot<M> {
    /// Its Packet Identifier.
    pub packet_id: PacketId,
    /// What it waits for.
    pub stage: Stage,
    /// Its place in the order of re-sending; a PUBREC gives it a new one, since PUBRELs follow the order of the
    /// PUBRECs [MQTT-4.6.0-4].
    pub sequence: u64,
    /// Increasing in the order in which things were sent on this connection; 0 means not yet on this one. Whoever
    /// relays the sending to another node learns from it what that node already has.
    pub sent: u64,
    /// Gone after PUBREC.
    pub message: Option<M>,
}

/// What was unfinished when a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished<M> {
    /// The message.
    pub message: M,
    /// The QoS it was to be delivered with.
    pub qos: QoS,
    /// It had a Packet Identifier: a QoS 2 message then belongs to this session alone [MQTT-4.8.2-5].
    pub begun: bool,
}

#[derive(Debug, Clone)]
struct Waiting<M> {
    message: M,
    weight_bytes: usize,
    qos: QoS,
}

/// All that an idle client does without.
#[derive(Debug, Clone)]
struct Hot<M> {
    /// A power of two long; slot `id % len` holds `id` or nothing.
    ring: Vec<Option<Slot<M>>>,
    in_flight: usize,
    /// Of those in flight, how many went out on this connection.
    sent_here: usize,
    /// In flight since an earlier connection and not yet re-sent: (identifier, sequence), in order.
    to_resend: VecDeque<(PacketId, u64)>,
    queue: VecDeque<Waiting<M>>,
    queue_bytes: usize,
    queue_qos0: usize,
}

impl<M> Default for Hot<M> {
    fn default() -> Self {
        Self {
            ring: Vec::new(),
            in_flight: 0,
            sent_here: 0,
            to_resend: VecDeque::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            queue_qos0: 0,
        }
    }
}

/// The outgoing deliveries of one session. Owns no heap until the first message.
#[derive(Debug, Clone)]
pub struct Outbound<M> {
    limits: OutboundLimits,
    /// The identifier tried next.
    next_id: u16,
    /// Of [`Slot::sequence`] and [`Slot::sent`], which share it.
    next_sequence: u64,
    hot: Option<Box<Hot<M>>>,
}

impl<M> Outbound<M> {
    /// With nothing in it.
    #[must_use]
    pub fn new(limits: OutboundLimits) -> Self {
        Self {
            limits,
            next_id: 1,
            next_sequence: 1,
            hot: None,
        }
    }

    /// The bounds in force.
    #[must_use]
    pub fn limits(&self) -> OutboundLimits {
        self.limits
    }

    /// Puts other bounds in force. What exceeds them already stays until it is settled.
    pub fn set_limits(&mut self, limits: OutboundLimits) {
        self.limits = limits;
    }

    /// Deliveries that the client has not finished acknowledging.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.hot.as_ref().map_or(0, |hot| hot.in_flight)
    }

    /// Messages waiting for room.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.hot.as_ref().map_or(0, |hot| hot.queue.len())
    }

    /// The weight of those waiting.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.hot.as_ref().map_or(0, |hot| hot.queue_bytes)
    }

    /// Neither in flight nor waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hot
            .as_ref()
            .is_none_or(|hot| hot.in_flight == 0 && hot.queue.is_empty())
    }

    /// Whether a new QoS 1 or 2 message may go out now: nothing older waits and the window has room.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        match &self.hot {
            None => self.limits.window_max > 0,
            Some(hot) => {
                hot.to_resend.is_empty() && hot.in_flight < usize::from(self.limits.window_max)
            }
        }
    }

    /// Gives the memory back if nothing is in it. Packet Identifiers go on where they were.
    pub fn release_memory(&mut self) {
        if self.is_empty() {
            self.hot = None;
        }
    }

    /// Sends without queueing: the common case, in which the client keeps up. Gives the message back if something
    /// waits before it or the window is full [MQTT-4.9.0-2].
    ///
    /// `qos` must be 1 or 2.
    #[inline]
    pub fn send_now(&mut self, message: M, qos: QoS) -> Result<PacketId, M> {
        debug_assert_ne!(qos, QoS::AtMostOnce);
        if self.queued() > 0 || !self.has_room() {
            return Err(message);
        }
        Ok(self.enter_window(message, qos).packet_id)
    }

    /// Queues a message behind those that wait.
    ///
    /// If the queue is full, QoS 0 gives way first, then what the policy says. A message that alone outweighs the
    /// limit is refused.
    pub fn offer(&mut self, message: M, weight_bytes: usize, qos: QoS) -> Offer<M> {
        let limits = self.limits;
        let hot = self.hot.get_or_insert_default();
        if weight_bytes > limits.queue_bytes_max || limits.queue_messages_max == 0 {
            return Offer::DroppedNew(message);
        }
        let fits = |hot: &Hot<M>| {
            hot.queue.len() < limits.queue_messages_max
                && hot.queue_bytes + weight_bytes <= limits.queue_bytes_max
        };
        let mut dropped = Vec::new();
        while !fits(hot) && hot.queue_qos0 > 0 && qos != QoS::AtMostOnce {
            dropped.extend(hot.remove_oldest_qos0());
        }
        while !fits(hot) {
            if limits.drop_policy == DropPolicy::Newest
                || (qos == QoS::AtMostOnce && hot.queue_qos0 == 0)
            {
                // QoS 0 dropped above for a message that cannot be kept either would be a loss for nothing, but
                // it can happen only at the limit in bytes, and what was dropped must be reported.
                dropped.push(message);
                return match dropped.len() {
                    1 => Offer::DroppedNew(dropped.remove(0)),
                    _ => Offer::DroppedOldest(dropped),
                };
            }
            match qos {
                QoS::AtMostOnce => dropped.extend(hot.remove_oldest_qos0()),
                _ => dropped.extend(hot.pop_front().map(|waiting| waiting.message)),
            }
        }
        hot.push_back(Waiting {
            message,
            weight_bytes,
            qos,
        });
        if dropped.is_empty() {
            Offer::Accepted
        } else {
            Offer::DroppedOldest(dropped)
        }
    }

    /// Takes the next waiting message that may be sent: one that is not `expired`, if the window has room for it.
    /// QoS 0 needs no room, but keeps its place in the order. The expired ones end in `dropped`.
    pub fn pop_sendable(
        &mut self,
        mut expired: impl FnMut(&M) -> bool,
        dropped: &mut Vec<M>,
    ) -> Option<Sendable<'_, M>> {
        let room = self.has_room();
        loop {
            let hot = self.hot.as_mut()?;
            let head = hot.queue.front()?;
            if expired(&head.message) {
                dropped.extend(hot.pop_front().map(|waiting| waiting.message));
                continue;
            }
            if !room && (head.qos != QoS::AtMostOnce || !hot.to_resend.is_empty()) {
                return None;
            }
            let waiting = hot.pop_front()?;
            if waiting.qos == QoS::AtMostOnce {
                return Some(Sendable::AtMostOnce(waiting.message));
            }
            let slot = self.enter_window(waiting.message, waiting.qos);
            let message = slot.message.as_ref()?;
            return Some(Sendable::InFlight {
                packet_id: slot.packet_id,
                qos: waiting.qos,
                sent: slot.sent,
                message,
            });
        }
    }

    /// PUBACK, with whatever reason: it is final [MQTT-4.8.2-6]. Gives the message back.
    pub fn on_puback(&mut self, packet_id: PacketId) -> Result<Option<M>, UnknownPacketIdentifier> {
        self.leave_window(packet_id, Stage::AwaitingPubAck)
    }

    /// PUBREC. A reason of 0x80 and above ends the delivery [MQTT-4.3.3-4]; any other moves it on, and the caller
    /// answers PUBREL. `Ok(None)` is a repeated PUBREC, answered all the same.
    pub fn on_pubrec(
        &mut self,
        packet_id: PacketId,
        is_error: bool,
    ) -> Result<Option<M>, UnknownPacketIdentifier> {
        let unknown = UnknownPacketIdentifier(packet_id);
        let sequence = self.next_sequence;
        let hot = self.hot.as_mut().ok_or(unknown)?;
        let slot = hot.slot_mut(packet_id).ok_or(unknown)?;
        if slot.stage == Stage::AwaitingPubAck {
            return Err(unknown);
        }
        let message = slot.message.take();
        if is_error {
            hot.remove(packet_id);
            return Ok(message);
        }
        if slot.stage == Stage::AwaitingPubRec {
            slot.stage = Stage::AwaitingPubComp;
            slot.sequence = sequence;
            let was_sent = slot.sent != 0;
            slot.sent = sequence;
            // An answer to a PUBLISH of the connection before: its PUBREL goes out on this one.
            hot.sent_here += usize::from(!was_sent);
            self.next_sequence += 1;
        }
        Ok(message)
    }

    /// PUBCOMP, with whatever reason: the identifier is free again.
    pub fn on_pubcomp(&mut self, packet_id: PacketId) -> Result<(), UnknownPacketIdentifier> {
        self.leave_window(packet_id, Stage::AwaitingPubComp)
            .map(|_| ())
    }

    /// Takes the message out of a slot, which stays.
    pub fn take(&mut self, packet_id: PacketId) -> Option<M> {
        self.hot.as_mut()?.slot_mut(packet_id)?.message.take()
    }

    /// One unfinished delivery.
    #[must_use]
    pub fn slot(&self, packet_id: PacketId) -> Option<&Slot<M>> {
        self.hot.as_ref()?.slot(packet_id)
    }

    /// A new connection took the session up: everything in flight is to be sent again [MQTT-4.4.0-1], through
    /// [`Self::pop_resend`] and before anything new.
    pub fn resume(&mut self, window_max: u16) {
        self.limits.window_max = window_max;
        let Some(hot) = self.hot.as_mut() else { return };
        for slot in hot.ring.iter_mut().flatten() {
            slot.sent = 0;
        }
        hot.sent_here = 0;
        hot.list_to_resend();
    }

    /// The next unfinished delivery to repeat on this connection, in the original order [MQTT-4.6.0-1]: a PUBLISH
    /// with DUP, or a PUBREL, as its stage says. PUBLISH waits for room under the new Receive Maximum.
    pub fn pop_resend(&mut self) -> Option<&Slot<M>> {
        let window_max = usize::from(self.limits.window_max);
        let hot = self.hot.as_mut()?;
        loop {
            let &(packet_id, sequence) = hot.to_resend.front()?;
            let stage = match hot.slot(packet_id) {
                Some(slot) if slot.sequence == sequence && slot.sent == 0 => slot.stage,
                // Settled meanwhile: a late acknowledgement came on this connection.
                _ => {
                    hot.to_resend.pop_front();
                    continue;
                }
            };
            if stage != Stage::AwaitingPubComp && hot.sent_here >= window_max {
                return None;
            }
            hot.to_resend.pop_front();
            hot.sent_here += 1;
            let slot = hot.slot_mut(packet_id)?;
            slot.sent = self.next_sequence;
            self.next_sequence += 1;
            return Some(slot);
        }
    }

    /// What is in flight, in the order of [`Slot::sequence`].
    #[must_use]
    pub fn in_order(&self) -> Vec<&Slot<M>> {
        let mut slots: Vec<_> = self.slots().collect();
        slots.sort_unstable_by_key(|slot| slot.sequence);
        slots
    }

    /// What is in flight, in no particular order.
    pub fn slots(&self) -> impl Iterator<Item = &Slot<M>> {
        self.hot.iter().flat_map(|hot| hot.ring.iter().flatten())
    }

    /// What waits, oldest first: message, weight, QoS.
    pub fn waiting(&self) -> impl Iterator<Item = (&M, usize, QoS)> {
        self.hot
            .iter()
            .flat_map(|hot| &hot.queue)
            .map(|waiting| (&waiting.message, waiting.weight_bytes, waiting.qos))
    }

    /// Takes out of the queue what `chosen` says, in order; what is in flight stays.
    pub fn extract_waiting(&mut self, mut chosen: impl FnMut(&M) -> bool) -> Vec<(M, QoS)> {
        let Some(hot) = self.hot.as_mut() else {
            return Vec::new();
        };
        let mut extracted = Vec::new();
        for _ in 0..hot.queue.len() {
            let Some(waiting) = hot.pop_front() else {
                break;
            };
            if chosen(&waiting.message) {
                extracted.push((waiting.message, waiting.qos));
            } else {
                hot.push_back(waiting);
            }
        }
        extracted
    }

    /// Empties all because the session ends: unfinished deliveries whose message is still here, then what waits.
    pub fn drain(&mut self) -> Vec<Unfinished<M>> {
        let Some(hot) = self.hot.take() else {
            return Vec::new();
        };
        let mut slots: Vec<_> = hot.ring.into_iter().flatten().collect();
        slots.sort_unstable_by_key(|slot| slot.sequence);
        let begun = slots.into_iter().filter_map(|slot| {
            let qos = match slot.stage {
                Stage::AwaitingPubAck => QoS::AtLeastOnce,
                Stage::AwaitingPubRec | Stage::AwaitingPubComp => QoS::ExactlyOnce,
            };
            slot.message.map(|message| Unfinished {
                message,
                qos,
                begun: true,
            })
        });
        let waiting = hot.queue.into_iter().map(|waiting| Unfinished {
            message: waiting.message,
            qos: waiting.qos,
            begun: false,
        });
        begun.chain(waiting).collect()
    }

    /// The identifier tried next and the next sequence: with the slots and the queue, all there is to store.
    #[must_use]
    pub fn counters(&self) -> (u16, u64) {
        (self.next_id, self.next_sequence)
    }

    /// Puts stored [`Self::counters`] back.
    pub fn restore_counters(&mut self, next_id: u16, next_sequence: u64) {
        self.next_id = next_id;
        self.next_sequence = next_sequence;
    }

    /// Puts a stored slot back. [`Self::restored`] must follow the last.
    pub fn restore_slot(&mut self, slot: Slot<M>) {
        let hot = self.hot.get_or_insert_default();
        while hot
            .ring
            .get(ring_index(&hot.ring, slot.packet_id))
            .is_none_or(Option::is_some)
        {
            hot.grow();
        }
        hot.in_flight += 1;
        hot.sent_here += usize::from(slot.sent != 0);
        let index = ring_index(&hot.ring, slot.packet_id);
        hot.ring[index] = Some(slot);
    }

    /// Puts a stored waiting message back behind those there are, whatever the limits say.
    pub fn restore_waiting(&mut self, message: M, weight_bytes: usize, qos: QoS) {
        self.hot.get_or_insert_default().push_back(Waiting {
            message,
            weight_bytes,
            qos,
        });
    }

    /// All is back. `connected` says whether a connection was being served.
    pub fn restored(&mut self, connected: bool) {
        if let Some(hot) = self.hot.as_mut().filter(|_| connected) {
            hot.list_to_resend();
        }
    }

    /// Panics if the counts do not describe what is held.
    pub fn assert_invariants(&self) {
        let Some(hot) = &self.hot else { return };
        let occupied = hot.ring.iter().flatten().count();
        assert_eq!(occupied, hot.in_flight, "slots are counted");
        assert!(hot.ring.is_empty() || hot.ring.len().is_power_of_two());
        for (index, slot) in hot.ring.iter().enumerate() {
            let Some(slot) = slot else { continue };
            assert_eq!(
                ring_index(&hot.ring, slot.packet_id),
                index,
                "a slot stands where its identifier says"
            );
            assert!(slot.sequence < self.next_sequence && slot.sent < self.next_sequence);
        }
        assert_eq!(
            hot.ring
                .iter()
                .flatten()
                .filter(|slot| slot.sent != 0)
                .count(),
            hot.sent_here
        );
        assert_eq!(
            hot.queue
                .iter()
                .map(|waiting| waiting.weight_bytes)
                .sum::<usize>(),
            hot.queue_bytes
        );
        assert_eq!(
            hot.queue
                .iter()
                .filter(|waiting| waiting.qos == QoS::AtMostOnce)
                .count(),
            hot.queue_qos0
        );
    }

    /// There is room: the caller checked.
    #[inline]
    fn enter_window(&mut self, message: M, qos: QoS) -> &Slot<M> {
        let hot = self.hot.get_or_insert_default();
        // A ring that is nearly full makes the search for a free identifier long.
        if hot.in_flight * 4 >= hot.ring.len() * 3
            && hot.ring.len() < usize::from(self.limits.window_max).next_power_of_two()
            || hot.in_flight == hot.ring.len()
        {
            hot.grow();
        }
        let (packet_id, index) = loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            let Some(packet_id) = PacketId::new(id) else {
                continue;
            };
            let index = ring_index(&hot.ring, packet_id);
            if hot.ring[index].is_none() {
                break (packet_id, index);
            }
        };
        let stage = if qos == QoS::ExactlyOnce {
            Stage::AwaitingPubRec
        } else {
            Stage::AwaitingPubAck
        };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        hot.in_flight += 1;
        hot.sent_here += 1;
        hot.ring[index].insert(Slot {
            packet_id,
            stage,
            sequence,
            sent: sequence,
            message: Some(message),
        })
    }

    #[inline]
    fn leave_window(
        &mut self,
        packet_id: PacketId,
        stage: Stage,
    ) -> Result<Option<M>, UnknownPacketIdentifier> {
        let unknown = UnknownPacketIdentifier(packet_id);
        let hot = self.hot.as_mut().ok_or(unknown)?;
        match hot.slot(packet_id) {
            Some(slot) if slot.stage == stage => Ok(hot.remove(packet_id)),
            _ => Err(unknown),
        }
    }
}

impl<M> Hot<M> {
    fn slot(&self, packet_id: PacketId) -> Option<&Slot<M>> {
        self.ring
            .get(ring_index(&self.ring, packet_id))?
            .as_ref()
            .filter(|slot| slot.packet_id == packet_id)
    }

    fn slot_mut(&mut self, packet_id: PacketId) -> Option<&mut Slot<M>> {
        let index = ring_index(&self.ring, packet_id);
        self.ring
            .get_mut(index)?
            .as_mut()
            .filter(|slot| slot.packet_id == packet_id)
    }

    fn remove(&mut self, packet_id: PacketId) -> Option<M> {
        let index = ring_index(&self.ring, packet_id);
        let slot = self.ring.get_mut(index)?.take()?;
        self.in_flight -= 1;
        self.sent_here -= usize::from(slot.sent != 0);
        slot.message
    }

    /// Identifiers that differ modulo the old capacity differ modulo the new one: nothing collides.
    #[cold]
    fn grow(&mut self) {
        let capacity = (self.ring.len() * 2).max(WINDOW_CAPACITY_MIN);
        let mut ring: Vec<Option<Slot<M>>> = Vec::new();
        ring.resize_with(capacity, || None);
        for slot in std::mem::take(&mut self.ring).into_iter().flatten() {
            let index = ring_index(&ring, slot.packet_id);
            ring[index] = Some(slot);
        }
        self.ring = ring;
    }

    fn list_to_resend(&mut self) {
        let mut unsent: Vec<_> = self
            .ring
            .iter()
            .flatten()
            .filter(|slot| slot.sent == 0)
            .map(|slot| (slot.packet_id, slot.sequence))
            .collect();
        unsent.sort_unstable_by_key(|&(_, sequence)| sequence);
        self.to_resend = unsent.into();
    }

    fn push_back(&mut self, waiting: Waiting<M>) {
        self.queue_bytes += waiting.weight_bytes;
        self.queue_qos0 += usize::from(waiting.qos == QoS::AtMostOnce);
        self.queue.push_back(waiting);
    }

    fn pop_front(&mut self) -> Option<Waiting<M>> {
        let waiting = self.queue.pop_front()?;
        self.forget(&waiting);
        Some(waiting)
    }

    fn remove_oldest_qos0(&mut self) -> Option<M> {
        let index = self
            .queue
            .iter()
            .position(|waiting| waiting.qos == QoS::AtMostOnce)?;
        let waiting = self.queue.remove(index)?;
        self.forget(&waiting);
        Some(waiting.message)
    }

    fn forget(&mut self, waiting: &Waiting<M>) {
        self.queue_bytes -= waiting.weight_bytes;
        self.queue_qos0 -= usize::from(waiting.qos == QoS::AtMostOnce);
    }
}

/// Out of range for an empty ring: callers go through `get`.
#[inline]
fn ring_index<T>(ring: &[T], packet_id: PacketId) -> usize {
    usize::from(packet_id.get()) & ring.len().wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: OutboundLimits = OutboundLimits {
        window_max: 2,
        queue_messages_max: 3,
        queue_bytes_max: 100,
        drop_policy: DropPolicy::Newest,
    };

    fn id(id: u16) -> PacketId {
        PacketId::new(id).expect("not zero")
    }

    /// (identifier, message) of what may be sent now.
    fn pop(outbound: &mut Outbound<u32>) -> Vec<(u16, u32)> {
        let mut sent = Vec::new();
        while let Some(sendable) = outbound.pop_sendable(|_| false, &mut Vec::new()) {
            sent.push(match sendable {
                Sendable::InFlight {
                    packet_id, message, ..
                } => (packet_id.get(), *message),
                Sendable::AtMostOnce(message) => (0, message),
            });
        }
        outbound.assert_invariants();
        sent
    }

    fn resend(outbound: &mut Outbound<u32>) -> Vec<(u16, Stage, Option<u32>)> {
        let mut sent = Vec::new();
        while let Some(slot) = outbound.pop_resend() {
            sent.push((slot.packet_id.get(), slot.stage, slot.message));
        }
        outbound.assert_invariants();
        sent
    }

    #[test]
    fn an_idle_outbound_is_small() {
        assert!(size_of::<Outbound<std::sync::Arc<u32>>>() <= 64);
    }

    /// [MQTT-3.3.4-9], [MQTT-4.9.0-2].
    #[test]
    fn no_more_than_receive_maximum_is_in_flight() {
        let mut outbound = Outbound::new(LIMITS);
        for message in 0..3 {
            assert_eq!(
                outbound.offer(message, 1, QoS::AtLeastOnce),
                Offer::Accepted
            );
        }
        assert_eq!(pop(&mut outbound), [(1, 0), (2, 1)]);
        assert_eq!(outbound.on_puback(id(1)), Ok(Some(0)));
        assert_eq!(pop(&mut outbound), [(3, 2)]);
    }

    /// [MQTT-2.2.1-3]: an identifier in use is not given again, and zero is none.
    #[test]
    fn identifiers_skip_zero_and_those_in_use() {
        let mut outbound = Outbound::new(LIMITS);
        outbound.restore_counters(65535, 1);
        assert_eq!(outbound.send_now(1, QoS::AtLeastOnce), Ok(id(65535)));
        assert_eq!(outbound.send_now(2, QoS::AtLeastOnce), Ok(id(1)));
        assert_eq!(outbound.send_now(3, QoS::AtLeastOnce), Err(3));
        outbound.on_puback(id(1)).expect("in flight");
        outbound.restore_counters(65535, 3);
        assert_eq!(outbound.send_now(4, QoS::AtLeastOnce), Ok(id(1)));
        outbound.assert_invariants();
    }

    /// [MQTT-4.3.3-4]: PUBREC with an error ends the delivery; any other is followed by PUBREL and PUBCOMP.
    #[test]
    fn qos2_ends_with_pubcomp_or_an_erroneous_pubrec() {
        let mut outbound = Outbound::new(LIMITS);
        outbound.send_now(1, QoS::ExactlyOnce).expect("room");
        outbound.send_now(2, QoS::ExactlyOnce).expect("room");
        assert_eq!(outbound.on_pubrec(id(1), true), Ok(Some(1)));
        assert_eq!(outbound.on_pubrec(id(2), false), Ok(Some(2)));
        assert_eq!(outbound.on_pubrec(id(2), false), Ok(None), "repeated");
        assert_eq!(outbound.on_pubcomp(id(2)), Ok(()));
        assert!(outbound.is_empty());
        outbound.assert_invariants();
    }

    #[test]
    fn an_acknowledgement_that_fits_nothing_is_reported_and_changes_nothing() {
        let mut outbound = Outbound::new(LIMITS);
        assert_eq!(
            outbound.on_puback(id(9)),
            Err(UnknownPacketIdentifier(id(9)))
        );
        outbound.send_now(1, QoS::ExactlyOnce).expect("room");
        outbound.send_now(2, QoS::AtLeastOnce).expect("room");
        assert!(outbound.on_puback(id(1)).is_err());
        assert!(outbound.on_pubcomp(id(1)).is_err());
        assert!(outbound.on_pubrec(id(2), false).is_err());
        assert!(
            outbound.on_pubrec(id(17), false).is_err(),
            "same slot, another identifier"
        );
        assert_eq!(outbound.in_flight(), 2);
    }

    /// [MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-4.6.0-4]: PUBLISH in the order of sending, PUBREL in that of the PUBRECs.
    #[test]
    fn a_new_connection_gets_everything_unfinished_in_order() {
        let mut outbound = Outbound::new(OutboundLimits {
            window_max: 10,
            ..LIMITS
        });
        for message in 1..=4 {
            outbound.send_now(message, QoS::ExactlyOnce).expect("room");
        }
        outbound.send_now(5, QoS::AtLeastOnce).expect("room");
        outbound.on_pubrec(id(3), false).expect("in flight");
        outbound.on_pubrec(id(1), false).expect("in flight");
        outbound.resume(10);
        assert_eq!(
            outbound.send_now(6, QoS::AtLeastOnce),
            Err(6),
            "nothing new overtakes what is repeated"
        );
        assert_eq!(
            resend(&mut outbound),
            [
                (2, Stage::AwaitingPubRec, Some(2)),
                (4, Stage::AwaitingPubRec, Some(4)),
                (5, Stage::AwaitingPubAck, Some(5)),
                (3, Stage::AwaitingPubComp, None),
                (1, Stage::AwaitingPubComp, None),
            ]
        );
        assert_eq!(resend(&mut outbound), [], "once a connection");
    }

    /// [MQTT-3.3.4-9]: a client may come back with a lower Receive Maximum than is in flight.
    #[test]
    fn repeating_respects_a_lower_receive_maximum() {
        let mut outbound = Outbound::new(OutboundLimits {
            window_max: 4,
            ..LIMITS
        });
        for message in 1..=4 {
            outbound.send_now(message, QoS::AtLeastOnce).expect("room");
        }
        outbound.resume(2);
        let publish = |n: u32| (n as u16, Stage::AwaitingPubAck, Some(n));
        assert_eq!(resend(&mut outbound), [publish(1), publish(2)]);
        outbound.offer(5, 1, QoS::AtLeastOnce);
        assert_eq!(pop(&mut outbound), []);
        outbound.on_puback(id(1)).expect("in flight");
        assert_eq!(resend(&mut outbound), [publish(3)]);
        outbound
            .on_puback(id(4))
            .expect("a late answer to the connection before is as good");
        outbound.on_puback(id(2)).expect("in flight");
        assert_eq!(resend(&mut outbound), []);
        assert_eq!(pop(&mut outbound), [(5, 5)]);
    }

    #[test]
    fn a_full_queue_drops_qos0_first_and_then_by_policy() {
        let mut outbound = Outbound::new(LIMITS);
        outbound.offer(1, 1, QoS::AtLeastOnce);
        outbound.offer(2, 1, QoS::AtMostOnce);
        outbound.offer(3, 1, QoS::AtLeastOnce);
        assert_eq!(outbound.offer(4, 1, QoS::AtMostOnce), Offer::DroppedNew(4));
        assert_eq!(
            outbound.offer(5, 1, QoS::AtLeastOnce),
            Offer::DroppedOldest(vec![2])
        );
        assert_eq!(outbound.offer(6, 1, QoS::AtLeastOnce), Offer::DroppedNew(6));
        outbound.set_limits(OutboundLimits {
            drop_policy: DropPolicy::Oldest,
            ..LIMITS
        });
        assert_eq!(
            outbound.offer(7, 99, QoS::AtLeastOnce),
            Offer::DroppedOldest(vec![1, 3]),
            "by bytes"
        );
        assert_eq!(
            outbound.offer(8, 101, QoS::AtLeastOnce),
            Offer::DroppedNew(8),
            "never fits"
        );
        assert_eq!(outbound.queued_bytes(), 100);
        outbound.assert_invariants();
    }

    /// [MQTT-3.3.2-5].
    #[test]
    fn expired_messages_are_skipped_and_reported() {
        let mut outbound = Outbound::new(LIMITS);
        for message in 1..=3 {
            outbound.offer(message, 1, QoS::AtLeastOnce);
        }
        let mut dropped = Vec::new();
        let sendable = outbound.pop_sendable(|message| *message < 3, &mut dropped);
        assert!(matches!(
            sendable,
            Some(Sendable::InFlight { message: 3, .. })
        ));
        assert_eq!(dropped, [1, 2]);
    }

    /// [MQTT-4.8.2-5], [MQTT-4.8.2-6].
    #[test]
    fn draining_tells_what_was_begun() {
        let mut outbound = Outbound::new(LIMITS);
        outbound.send_now(1, QoS::ExactlyOnce).expect("room");
        outbound.send_now(2, QoS::AtLeastOnce).expect("room");
        outbound.offer(3, 1, QoS::ExactlyOnce);
        let unfinished = |message, qos, begun| Unfinished {
            message,
            qos,
            begun,
        };
        assert_eq!(
            outbound.drain(),
            [
                unfinished(1, QoS::ExactlyOnce, true),
                unfinished(2, QoS::AtLeastOnce, true),
                unfinished(3, QoS::ExactlyOnce, false),
            ]
        );
        assert!(outbound.is_empty());
    }

    mod against_a_naive_model {
        use std::collections::BTreeMap;

        use proptest::prelude::*;

        use super::*;

        #[derive(Debug, Clone)]
        enum Step {
            Offer(QoS),
            SendNow(QoS),
            Pop,
            PubAck(u16),
            PubRec(u16, bool),
            PubComp(u16),
            Resume(u16),
            Store,
        }

        fn step() -> impl Strategy<Value = Step> {
            let qos = prop_oneof![
                Just(QoS::AtMostOnce),
                Just(QoS::AtLeastOnce),
                Just(QoS::ExactlyOnce)
            ];
            let sent = prop_oneof![Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)];
            prop_oneof![
                4 => qos.prop_map(Step::Offer),
                4 => sent.prop_map(Step::SendNow),
                3 => Just(Step::Pop),
                4 => (0u16..64).prop_map(Step::PubAck),
                4 => (0u16..64, any::<bool>()).prop_map(|(n, error)| Step::PubRec(n, error)),
                4 => (0u16..64).prop_map(Step::PubComp),
                1 => (1u16..40).prop_map(Step::Resume),
                1 => Just(Step::Store),
            ]
        }

        /// As plainly as it can be said.
        #[derive(Default)]
        struct Model {
            in_flight: BTreeMap<u16, (Stage, u64, Option<u32>)>,
            order: u64,
            waiting: Vec<(u32, QoS)>,
        }

        impl Model {
            fn enter(&mut self, id: u16, message: u32, qos: QoS) {
                let stage = if qos == QoS::ExactlyOnce {
                    Stage::AwaitingPubRec
                } else {
                    Stage::AwaitingPubAck
                };
                self.order += 1;
                assert!(
                    self.in_flight
                        .insert(id, (stage, self.order, Some(message)))
                        .is_none(),
                    "identifier in use"
                );
            }

            /// The n-th identifier in flight, or one that is not.
            fn pick(&self, n: u16) -> PacketId {
                let known = self.in_flight.keys().nth(usize::from(n)).copied();
                PacketId::new(known.unwrap_or(60_000 + n)).expect("not zero")
            }
        }

        fn stored(outbound: &Outbound<u32>) -> Outbound<u32> {
            let mut copy = Outbound::new(outbound.limits());
            let (next_id, next_sequence) = outbound.counters();
            copy.restore_counters(next_id, next_sequence);
            outbound
                .slots()
                .for_each(|slot| copy.restore_slot(slot.clone()));
            outbound
                .waiting()
                .for_each(|(message, weight, qos)| copy.restore_waiting(*message, weight, qos));
            copy.restored(true);
            copy
        }

        proptest! {
            #[test]
            fn every_step_does_what_the_model_does(
                window_max in 1u16..40,
                first_id in any::<u16>(),
                steps in proptest::collection::vec(step(), 1..300),
            ) {
                let limits = OutboundLimits { window_max, queue_messages_max: 1000, queue_bytes_max: 1_000_000, ..LIMITS };
                let mut outbound = Outbound::new(limits);
                outbound.restore_counters(first_id, 1);
                let mut model = Model::default();
                for (message, step) in (0u32..).zip(steps) {
                    match step {
                        Step::Offer(qos) => {
                            prop_assert_eq!(outbound.offer(message, 7, qos), Offer::Accepted);
                            model.waiting.push((message, qos));
                        }
                        Step::SendNow(qos) => if let Ok(id) = outbound.send_now(message, qos) {
                            prop_assert!(model.waiting.is_empty());
                            model.enter(id.get(), message, qos);
                        },
                        Step::Pop => {
                            while let Some(sendable) = outbound.pop_sendable(|_| false, &mut Vec::new()) {
                                let (expected, qos) = model.waiting.remove(0);
                                match sendable {
                                    Sendable::InFlight { packet_id, message, .. } => {
                                        prop_assert_eq!(*message, expected);
                                        model.enter(packet_id.get(), expected, qos);
                                    }
                                    Sendable::AtMostOnce(message) => {
                                        prop_assert_eq!((message, QoS::AtMostOnce), (expected, qos));
                                    }
                                }
                            }
                        }
                        Step::PubAck(n) => {
                            let id = model.pick(n);
                            let expected = match model.in_flight.get(&id.get()) {
                                Some(&(Stage::AwaitingPubAck, _, message)) => Ok(message),
                                _ => Err(UnknownPacketIdentifier(id)),
                            };
                            if expected.is_ok() { model.in_flight.remove(&id.get()); }
                            prop_assert_eq!(outbound.on_puback(id), expected);
                        }
                        Step::PubRec(n, error) => {
                            let id = model.pick(n);
                            let expected = match model.in_flight.get_mut(&id.get()) {
                                Some(slot) if slot.0 != Stage::AwaitingPubAck => {
                                    if slot.0 == Stage::AwaitingPubRec {
                                        model.order += 1;
                                        (slot.0, slot.1) = (Stage::AwaitingPubComp, model.order);
                                    }
                                    Ok(slot.2.take())
                                }
                                _ => Err(UnknownPacketIdentifier(id)),
                            };
                            if error && expected.is_ok() { model.in_flight.remove(&id.get()); }
                            prop_assert_eq!(outbound.on_pubrec(id, error), expected);
                        }
                        Step::PubComp(n) => {
                            let id = model.pick(n);
                            let known = matches!(model.in_flight.get(&id.get()), Some((Stage::AwaitingPubComp, ..)));
                            if known { model.in_flight.remove(&id.get()); }
                            prop_assert_eq!(outbound.on_pubcomp(id).is_ok(), known);
                        }
                        Step::Resume(window_max) => {
                            outbound.resume(window_max);
                            let mut expected: Vec<_> = model.in_flight.iter()
                                .map(|(&id, &(stage, order, message))| (order, id, stage, message)).collect();
                            expected.sort_unstable();
                            let mut room = usize::from(window_max);
                            let may_go: Vec<_> = expected.into_iter().map_while(|(_, id, stage, message)| {
                                if stage != Stage::AwaitingPubComp && room == 0 { return None; }
                                room = room.saturating_sub(1);
                                Some((id, stage, message))
                            }).collect();
                            prop_assert_eq!(resend(&mut outbound), may_go);
                        }
                        Step::Store => outbound = stored(&outbound),
                    }
                    outbound.assert_invariants();
                    let mut held: Vec<_> = outbound.in_order().iter()
                        .map(|slot| (slot.packet_id.get(), slot.stage, slot.message)).collect();
                    held.sort_unstable_by_key(|slot| slot.0);
                    let expected: Vec<_> = model.in_flight.iter()
                        .map(|(&id, &(stage, _, message))| (id, stage, message)).collect();
                    prop_assert_eq!(held, expected);
                    prop_assert_eq!(outbound.queued(), model.waiting.len());
                }
            }
        }
    }
}
