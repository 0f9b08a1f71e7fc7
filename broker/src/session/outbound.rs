//! The server's half of QoS 1 and 2: the in-flight window of a client and the queue behind it.
//!
//! One implementation for transient sessions, whose messages live with the connection, and for persistent ones, whose
//! messages live in a group's state: `M` is whatever they keep of a message.
//!
//! The middle of a long queue may be in a store only ([`Middle`]). It counts against the bounds like the rest, and is read back, a
//! [`Page`] at a time, when the front runs out: what is in memory changes nothing of what is done.

use std::collections::VecDeque;

use kentongan_proto::mqtt::{PacketId, QoS};

/// Slots that a window has at first; it doubles as more are in flight.
const FIRST_SLOTS: usize = 16;

/// One for each identifier.
const SLOTS_MAX: usize = 1 << 16;

/// Bounds of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboundLimits {
    /// Unacknowledged messages at once: the lower of the client's Receive Maximum and ours [MQTT-3.3.4-9].
    pub window_max: u16,
    /// Messages behind the window.
    pub queue_messages_max: usize,
    /// Their weight.
    pub queue_bytes_max: usize,
    /// What gives way.
    pub drop_policy: DropPolicy,
}

/// What gives way when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropPolicy {
    /// The message that comes.
    New,
    /// The one that waited longest.
    Oldest,
}

impl From<crate::config::QueueDropPolicy> for DropPolicy {
    fn from(policy: crate::config::QueueDropPolicy) -> Self {
        match policy {
            crate::config::QueueDropPolicy::DropNew => Self::New,
            crate::config::QueueDropPolicy::DropOldest => Self::Oldest,
        }
    }
}

/// What a message in the window waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// QoS 1: PUBACK.
    AwaitingPubAck,
    /// QoS 2: PUBREC.
    AwaitingPubRec,
    /// QoS 2: PUBCOMP; only the identifier is left to be kept.
    AwaitingPubComp,
}

/// What became of a message that was offered to the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer<M> {
    /// It waits.
    Accepted,
    /// The queue is full and keeps what it has.
    DroppedNew(Full),
    /// It waits; these, the oldest, had to go.
    DroppedOldest(Full, Vec<M>),
}

/// Which bound of a queue was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// That on messages.
    Messages,
    /// That on their weight.
    Bytes,
}

/// What is held for a client, or for several together; also as the difference between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages behind the window.
    pub queued_messages: i64,
    /// Their weight.
    pub queued_bytes: i64,
    /// Messages in the window.
    pub in_flight: i64,
}

impl std::ops::AddAssign for Backlog {
    fn add_assign(&mut self, other: Self) {
        self.queued_messages += other.queued_messages;
        self.queued_bytes += other.queued_bytes;
        self.in_flight += other.in_flight;
    }
}

impl std::ops::Sub for Backlog {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            queued_messages: self.queued_messages - other.queued_messages,
            queued_bytes: self.queued_bytes - other.queued_bytes,
            in_flight: self.in_flight - other.in_flight,
        }
    }
}

/// An acknowledgement for a packet that is not in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("packet identifier {0} is not in flight")]
pub struct UnknownPacketIdentifier(pub PacketId);

#[derive(Debug)]
struct Slot<M> {
    id: PacketId,
    sequence: u64,
    stage: Stage,
    qos: QoS,
    message: Option<M>,
}

#[derive(Debug)]
struct Queued<M> {
    message: M,
    qos: QoS,
    weight_bytes: usize,
}

/// The part of a queue that only a store has: behind the front, which goes out first, before the tail, which came last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Middle {
    /// How many.
    pub messages: usize,
    /// Their weight.
    pub bytes: usize,
    /// The place in the session of the first, or one between that and the front's last.
    pub from: u64,
    /// A place behind the last one, and no further than the tail's first.
    pub until: u64,
}

/// What was read back from the beginning of a [`Middle`].
#[derive(Debug)]
pub struct Page<M> {
    /// Each with its weight and its QoS, in order.
    pub messages: Vec<(M, usize, QoS)>,
    /// The place behind the last of them.
    pub next: u64,
}

impl<M> Page<M> {
    /// That of a queue whose middle is in memory.
    fn none(_: Middle) -> Self {
        Self { messages: Vec::new(), next: 0 }
    }
}

#[derive(Debug)]
struct Beyond<M> {
    middle: Middle,
    tail: VecDeque<Queued<M>>,
}

#[derive(Debug)]
struct Window<M> {
    /// Indexed by Packet Identifier modulo its length, a power of two.
    slots: Vec<Option<Slot<M>>>,
    in_flight: usize,
    last_id: u16,
    sequence: u64,
    /// The front of it, or all.
    queue: VecDeque<Queued<M>>,
    /// What stands behind the front, where that is not all.
    beyond: Option<Box<Beyond<M>>>,
    /// Of all three parts.
    queue_bytes: usize,
}

/// Messages on their way to one client. Costs one pointer until the first QoS 1 or 2 message.
#[derive(Debug)]
pub struct Outbound<M> {
    limits: OutboundLimits,
    window: Option<Box<Window<M>>>,
}

impl<M> Window<M> {
    fn new() -> Self {
        Self {
            slots: (0..FIRST_SLOTS).map(|_| None).collect(),
            in_flight: 0,
            last_id: 0,
            sequence: 0,
            queue: VecDeque::new(),
            beyond: None,
            queue_bytes: 0,
        }
    }

    #[inline]
    fn index(&self, id: u16) -> usize {
        usize::from(id) & (self.slots.len() - 1)
    }

    #[inline]
    fn slot(&mut self, id: PacketId) -> Option<&mut Slot<M>> {
        let index = self.index(id.get());
        self.slots[index].as_mut().filter(|slot| slot.id == id)
    }

    /// A free identifier: the next one whose slot is free [MQTT-2.2.1-4].
    #[inline]
    fn next_id(&mut self) -> PacketId {
        if self.in_flight * 2 > self.slots.len() {
            self.grow();
        }
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.last_id)
                && self.slots[self.index(self.last_id)].is_none()
            {
                return id;
            }
        }
    }

    fn grow(&mut self) {
        let length = (self.slots.len() * 2).min(SLOTS_MAX);
        if length == self.slots.len() {
            return;
        }
        let old = std::mem::replace(&mut self.slots, (0..length).map(|_| None).collect());
        for slot in old.into_iter().flatten() {
            let index = self.index(slot.id.get());
            self.slots[index] = Some(slot);
        }
    }

    #[inline]
    fn begin(&mut self, message: M, qos: QoS) -> PacketId {
        let id = self.next_id();
        let stage = if qos == QoS::ExactlyOnce { Stage::AwaitingPubRec } else { Stage::AwaitingPubAck };
        let index = self.index(id.get());
        self.slots[index] = Some(Slot { id, sequence: self.sequence, stage, qos, message: Some(message) });
        self.sequence += 1;
        self.in_flight += 1;
        id
    }

    #[inline]
    fn free(&mut self, id: PacketId) -> Option<M> {
        let index = self.index(id.get());
        self.in_flight -= 1;
        self.slots[index].take().and_then(|slot| slot.message)
    }

    fn queue_len(&self) -> usize {
        let beyond = self.beyond.as_ref().map_or(0, |beyond| beyond.middle.messages + beyond.tail.len());
        self.queue.len() + beyond
    }

    fn is_queue_empty(&self) -> bool {
        self.queue.is_empty() && self.beyond.is_none()
    }

    fn push(&mut self, queued: Queued<M>) {
        self.queue_bytes += queued.weight_bytes;
        match &mut self.beyond {
            Some(beyond) => beyond.tail.push_back(queued),
            None => self.queue.push_back(queued),
        }
    }

    /// What was read back joins the front.
    fn take_page(&mut self, page: Page<M>) {
        let Some(beyond) = &mut self.beyond else {
            return;
        };
        let middle = &mut beyond.middle;
        middle.from = page.next;
        for (message, weight_bytes, qos) in page.messages {
            middle.messages -= 1;
            middle.bytes -= weight_bytes;
            self.queue.push_back(Queued { message, qos, weight_bytes });
        }
        if middle.messages == 0 {
            let tail = std::mem::take(&mut beyond.tail);
            self.queue.extend(tail);
            self.beyond = None;
        }
    }

    /// Makes the first of the queue stand in memory, read back by `read` if it has to be.
    fn read_front(&mut self, read: &mut impl FnMut(Middle) -> Page<M>) {
        if self.queue.is_empty()
            && let Some(beyond) = &self.beyond
        {
            let page = read(beyond.middle);
            self.take_page(page);
        }
    }

    /// The first of the queue.
    fn dequeue(&mut self, read: &mut impl FnMut(Middle) -> Page<M>) -> Option<Queued<M>> {
        self.read_front(read);
        let queued = self.queue.pop_front()?;
        self.queue_bytes -= queued.weight_bytes;
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        Some(queued)
    }
}

/// Bounds that the listener adds to those of the node: the lower ones hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCaps {
    /// On the messages that wait.
    pub messages_max: Option<usize>,
    /// On their weight.
    pub bytes_max: Option<usize>,
}

impl OutboundLimits {
    /// The bound that one more message behind the window would exceed.
    fn reached<M>(&self, window: &Window<M>, weight_bytes: usize) -> Option<Full> {
        if window.queue_len() >= self.queue_messages_max {
            return Some(Full::Messages);
        }
        (window.queue_bytes.saturating_add(weight_bytes) > self.queue_bytes_max).then_some(Full::Bytes)
    }

    /// The lower of each bound and its cap.
    #[must_use]
    pub fn capped(self, caps: QueueCaps) -> Self {
        Self {
            queue_messages_max: self.queue_messages_max.min(caps.messages_max.unwrap_or(usize::MAX)),
            queue_bytes_max: self.queue_bytes_max.min(caps.bytes_max.unwrap_or(usize::MAX)),
            ..self
        }
    }
}

impl<M> Outbound<M> {
    /// An idle one.
    #[must_use]
    pub fn new(limits: OutboundLimits) -> Self {
        Self { limits, window: None }
    }

    /// New bounds, as a resuming client brings them along. What is in flight stays.
    pub fn set_limits(&mut self, limits: OutboundLimits) {
        self.limits = limits;
    }

    /// The bounds in force.
    #[must_use]
    pub fn limits(&self) -> OutboundLimits {
        self.limits
    }

    /// Messages behind the window.
    #[must_use]
    pub fn queue_len(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.queue_len())
    }

    /// Their weight.
    #[must_use]
    pub fn queue_bytes(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.queue_bytes)
    }

    /// Messages in the window.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.in_flight)
    }

    /// All of these.
    #[inline]
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.window.as_ref().map_or_else(Backlog::default, |window| Backlog {
            queued_messages: window.queue_len() as i64,
            queued_bytes: window.queue_bytes as i64,
            in_flight: window.in_flight as i64,
        })
    }

    fn has_room(&self) -> bool {
        self.window_free() > 0
    }

    /// Whether a message may go out at once: nothing waits before it and the window has room [MQTT-4.9.0-2].
    #[inline]
    #[must_use]
    pub fn can_send(&self) -> bool {
        match &self.window {
            None => self.limits.window_max > 0,
            Some(window) => window.is_queue_empty() && window.in_flight < usize::from(self.limits.window_max),
        }
    }

    /// Puts a message into the window past an empty queue; `None` if [`Self::can_send`] says no.
    #[inline]
    pub fn send_now(&mut self, message: M, qos: QoS) -> Option<PacketId> {
        if !self.can_send() {
            return None;
        }
        let window = self.window.get_or_insert_with(|| Box::new(Window::new()));
        Some(window.begin(message, qos))
    }

    /// Puts a message behind the window, within its bounds. One that alone exceeds them is dropped, whatever the policy.
    pub fn offer(&mut self, message: M, weight_bytes: usize, qos: QoS) -> Offer<M> {
        self.offer_reading(message, weight_bytes, qos, 0, Page::none)
    }

    /// The same where the middle of the queue may have to be read back, and up to `passing` messages only pass through the queue.
    pub fn offer_reading(
        &mut self,
        message: M,
        weight_bytes: usize,
        qos: QoS,
        passing: usize,
        mut read: impl FnMut(Middle) -> Page<M>,
    ) -> Offer<M> {
        let limits = self.limits;
        let window = self.window.get_or_insert_with(|| Box::new(Window::new()));
        if window.queue_len() < passing {
            window.push(Queued { message, qos, weight_bytes });
            return Offer::Accepted;
        }
        let reached = |window: &Window<M>| limits.reached(window, weight_bytes);
        let never_fits = limits.queue_messages_max == 0 || weight_bytes > limits.queue_bytes_max;
        let full = reached(window);
        if let Some(full) = full
            && (never_fits || limits.drop_policy == DropPolicy::New)
        {
            return Offer::DroppedNew(full);
        }
        let mut dropped = Vec::new();
        while reached(window).is_some()
            && let Some(oldest) = window.dequeue(&mut read)
        {
            dropped.push(oldest.message);
        }
        window.push(Queued { message, qos, weight_bytes });
        full.map_or(Offer::Accepted, |full| Offer::DroppedOldest(full, dropped))
    }

    /// Where the queue has no room for a message: takes those from its front that `is_expired` says have expired, until it has. What is
    /// never sent must not cost another its place.
    pub fn take_expired(&mut self, weight_bytes: usize, is_expired: impl Fn(&M) -> bool) -> Vec<M> {
        self.take_expired_reading(weight_bytes, is_expired, Page::none)
    }

    /// The same where the middle of the queue may have to be read back.
    pub fn take_expired_reading(
        &mut self,
        weight_bytes: usize,
        is_expired: impl Fn(&M) -> bool,
        mut read: impl FnMut(Middle) -> Page<M>,
    ) -> Vec<M> {
        let limits = self.limits;
        let mut expired = Vec::new();
        let Some(window) = &mut self.window else {
            return expired;
        };
        while limits.reached(window, weight_bytes).is_some() {
            window.read_front(&mut read);
            if !window.queue.front().is_some_and(|first| is_expired(&first.message)) {
                break;
            }
            expired.extend(window.dequeue(&mut read).map(|first| first.message));
        }
        expired
    }

    /// Messages that the window has room for.
    #[must_use]
    pub fn window_free(&self) -> usize {
        usize::from(self.limits.window_max).saturating_sub(self.in_flight())
    }

    /// Moves the next message from the queue into the window, if it has room. Those that `is_expired` says have
    /// expired are left out and handed to `dropped` [MQTT-3.3.2-5]: their delivery never began.
    pub fn pop_sendable(
        &mut self,
        is_expired: impl Fn(&M) -> bool,
        dropped: impl FnMut(M),
    ) -> Option<(PacketId, QoS, &mut M)> {
        self.pop_sendable_reading(is_expired, dropped, Page::none)
    }

    /// The same where the middle of the queue may have to be read back.
    pub fn pop_sendable_reading(
        &mut self,
        is_expired: impl Fn(&M) -> bool,
        mut dropped: impl FnMut(M),
        mut read: impl FnMut(Middle) -> Page<M>,
    ) -> Option<(PacketId, QoS, &mut M)> {
        if !self.has_room() {
            return None;
        }
        let window = self.window.as_mut()?;
        let queued = loop {
            let queued = window.dequeue(&mut read)?;
            if is_expired(&queued.message) {
                dropped(queued.message);
            } else {
                break queued;
            }
        };
        let id = window.begin(queued.message, queued.qos);
        let message = window.slot(id).and_then(|slot| slot.message.as_mut())?;
        Some((id, queued.qos, message))
    }

    /// PUBACK, whatever its reason [MQTT-4.4.0-2].
    ///
    /// # Errors
    /// The packet is not in flight at QoS 1.
    #[inline]
    pub fn on_puback(&mut self, id: PacketId) -> Result<Option<M>, UnknownPacketIdentifier> {
        let window = self.window.as_mut().ok_or(UnknownPacketIdentifier(id))?;
        match window.slot(id) {
            Some(slot) if slot.stage == Stage::AwaitingPubAck => Ok(window.free(id)),
            _ => Err(UnknownPacketIdentifier(id)),
        }
    }

    /// PUBREC: one that refuses ends the exchange, another leaves the identifier alone in the window and gives the
    /// message back [MQTT-4.3.3-6].
    ///
    /// # Errors
    /// The packet is not in flight at QoS 2.
    #[inline]
    pub fn on_pubrec(&mut self, id: PacketId, refused: bool) -> Result<Option<M>, UnknownPacketIdentifier> {
        let window = self.window.as_mut().ok_or(UnknownPacketIdentifier(id))?;
        match window.slot(id) {
            Some(slot) if slot.stage != Stage::AwaitingPubAck => {
                if refused {
                    return Ok(window.free(id));
                }
                slot.stage = Stage::AwaitingPubComp;
                Ok(slot.message.take())
            }
            _ => Err(UnknownPacketIdentifier(id)),
        }
    }

    /// PUBCOMP.
    ///
    /// # Errors
    /// No PUBREL was sent for it.
    #[inline]
    pub fn on_pubcomp(&mut self, id: PacketId) -> Result<(), UnknownPacketIdentifier> {
        let window = self.window.as_mut().ok_or(UnknownPacketIdentifier(id))?;
        match window.slot(id) {
            Some(slot) if slot.stage == Stage::AwaitingPubComp => {
                window.free(id);
                Ok(())
            }
            _ => Err(UnknownPacketIdentifier(id)),
        }
    }

    /// What a resumed connection is sent again, in the original order [MQTT-4.4.0-1, MQTT-4.6.0-1].
    #[must_use]
    pub fn resend(&self) -> Vec<(PacketId, Stage, QoS, Option<&M>)> {
        let mut slots: Vec<_> = self.window.iter().flat_map(|window| window.slots.iter().flatten()).collect();
        slots.sort_by_key(|slot| slot.sequence);
        slots.into_iter().map(|slot| (slot.id, slot.stage, slot.qos, slot.message.as_ref())).collect()
    }

    /// What is in flight under an identifier.
    #[must_use]
    pub fn in_flight_under(&self, id: PacketId) -> Option<(Stage, Option<&M>)> {
        let window = self.window.as_ref()?;
        let slot = window.slots[window.index(id.get())].as_ref().filter(|slot| slot.id == id)?;
        Some((slot.stage, slot.message.as_ref()))
    }

    /// What waits behind the window and is in memory, in order.
    pub fn queued(&self) -> impl Iterator<Item = &M> {
        let parts = self.window.iter().flat_map(|window| {
            let tail = window.beyond.iter().flat_map(|beyond| &beyond.tail);
            window.queue.iter().chain(tail)
        });
        parts.map(|queued| &queued.message)
    }

    /// What waits and is in memory, found by its place.
    pub fn find_queued(&self, place: impl Fn(&M) -> std::cmp::Ordering) -> Option<&M> {
        let window = self.window.as_ref()?;
        let tail = window.beyond.as_ref().map(|beyond| &beyond.tail);
        let mut parts = std::iter::once(&window.queue).chain(tail);
        let found = parts.find_map(|part| part.get(part.binary_search_by(|queued| place(&queued.message)).ok()?));
        found.map(|queued| &queued.message)
    }

    /// What of the queue is in a store only.
    #[must_use]
    pub fn middle(&self) -> Option<Middle> {
        Some(self.window.as_ref()?.beyond.as_ref()?.middle)
    }

    /// How many messages stand before the middle; all that wait, if it has none.
    #[must_use]
    pub fn front_len(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.queue.len())
    }

    /// What was read back from the beginning of the middle joins the front.
    pub fn take_page(&mut self, page: Page<M>) {
        if let Some(window) = &mut self.window {
            window.take_page(page);
        }
    }

    /// Takes the first message out of the queue, whatever it is.
    pub fn pop_queued(&mut self, mut read: impl FnMut(Middle) -> Page<M>) -> Option<M> {
        Some(self.window.as_mut()?.dequeue(&mut read)?.message)
    }

    /// Lets go of what a store has, beyond the first `front_max` messages, and gives it back. `place` is that of a message in
    /// the session. What is not stored must be newer than all that is.
    pub fn put_away(&mut self, front_max: usize, is_stored: impl Fn(&M) -> bool, place: impl Fn(&M) -> u64) -> Vec<M> {
        let Some(window) = self.window.as_mut() else {
            return Vec::new();
        };
        let mut gone = Vec::new();
        match &mut window.beyond {
            None => {
                let front = window.queue.len().min(front_max);
                let mut rest = window.queue.split_off(front);
                let stored = rest.partition_point(|queued| is_stored(&queued.message));
                let tail = rest.split_off(stored);
                let (Some(first), Some(last)) = (rest.front(), rest.back()) else {
                    window.queue.extend(tail);
                    return gone;
                };
                let bytes = rest.iter().map(|queued| queued.weight_bytes).sum();
                let (from, until) = (place(&first.message), place(&last.message) + 1);
                let middle = Middle { messages: rest.len(), bytes, from, until };
                gone.extend(rest.into_iter().map(|queued| queued.message));
                window.beyond = Some(Box::new(Beyond { middle, tail }));
            }
            Some(beyond) => {
                let middle = &mut beyond.middle;
                // All of the front is stored: what is behind it is.
                let back = window.queue.split_off(window.queue.len().min(front_max));
                if let Some(first) = back.front() {
                    middle.from = place(&first.message);
                }
                let stored = beyond.tail.partition_point(|queued| is_stored(&queued.message));
                let tail = beyond.tail.split_off(stored);
                let older = std::mem::replace(&mut beyond.tail, tail);
                if let Some(last) = older.back() {
                    middle.until = place(&last.message) + 1;
                }
                for queued in back.into_iter().chain(older) {
                    middle.messages += 1;
                    middle.bytes += queued.weight_bytes;
                    gone.push(queued.message);
                }
            }
        }
        window.queue.shrink_to_fit();
        if let Some(beyond) = &mut window.beyond {
            beyond.tail.shrink_to_fit();
        }
        gone
    }

    /// Takes out of the queue what `is_wanted` says, in order. What is in flight stays. All of the queue must be in memory.
    pub fn extract_queued(&mut self, mut is_wanted: impl FnMut(&M) -> bool) -> Vec<M> {
        let Some(window) = self.window.as_mut() else {
            return Vec::new();
        };
        let mut extracted = Vec::new();
        for queued in std::mem::take(&mut window.queue) {
            if is_wanted(&queued.message) {
                window.queue_bytes -= queued.weight_bytes;
                extracted.push(queued.message);
            } else {
                window.queue.push_back(queued);
            }
        }
        extracted
    }

    /// The identifier given last: the next one follows it.
    #[must_use]
    pub fn last_id(&self) -> u16 {
        self.window.as_ref().map_or(0, |window| window.last_id)
    }

    /// Slots of the window. The next identifier depends on it: replicas must agree on it, and remember it.
    #[must_use]
    pub fn window_slots(&self) -> usize {
        self.window.as_ref().map_or(FIRST_SLOTS, |window| window.slots.len())
    }

    /// Takes up what [`Self::resend`], [`Self::queued`], [`Self::last_id`] and [`Self::window_slots`] said, after a
    /// restart. `queue` is what stands before `middle`, or all.
    #[must_use]
    pub fn restore(
        limits: OutboundLimits,
        last_id: u16,
        window_slots: usize,
        in_flight: Vec<(PacketId, Stage, QoS, Option<M>)>,
        queue: Vec<(M, usize, QoS)>,
        middle: Option<Middle>,
    ) -> Self {
        let mut window = Window::new();
        while window.slots.len() < window_slots.min(SLOTS_MAX) {
            window.grow();
        }
        // What was in flight fitted; a store that says otherwise must not make us lose any of it.
        while !all_differ(in_flight.iter().map(|(id, ..)| window.index(id.get()))) && window.slots.len() < SLOTS_MAX {
            window.grow();
        }
        for (id, stage, qos, message) in in_flight {
            let index = window.index(id.get());
            window.slots[index] = Some(Slot { id, sequence: window.sequence, stage, qos, message });
            window.sequence += 1;
            window.in_flight += 1;
        }
        window.last_id = last_id;
        for (message, weight_bytes, qos) in queue {
            window.push(Queued { message, qos, weight_bytes });
        }
        if let Some(middle) = middle {
            window.queue_bytes += middle.bytes;
            window.beyond = Some(Box::new(Beyond { middle, tail: VecDeque::new() }));
        }
        Self { limits, window: Some(Box::new(window)) }
    }

    /// What was begun at QoS 2 and not answered by PUBREC: no other session may get it [MQTT-4.8.2-5]. It stays in the
    /// window, as an identifier alone.
    pub fn take_begun(&mut self) -> Vec<M> {
        let slots = self.window.iter_mut().flat_map(|window| window.slots.iter_mut().flatten());
        slots.filter(|slot| slot.stage == Stage::AwaitingPubRec).filter_map(|slot| slot.message.take()).collect()
    }

    /// Empties it: what another session may get instead, in order. QoS 2 that was begun is not among it
    /// [MQTT-4.8.2-5]. All of the queue must be in memory.
    pub fn drain_undelivered(&mut self) -> Vec<M> {
        let mut drained = self.drain_in_flight();
        let queue = self.window.take().map(|window| window.queue);
        drained.extend(queue.into_iter().flatten().map(|queued| queued.message));
        drained
    }

    /// Empties the window alone: what another session may get instead, in order.
    pub fn drain_in_flight(&mut self) -> Vec<M> {
        let Some(window) = self.window.as_mut() else {
            return Vec::new();
        };
        let mut slots: Vec<_> = window.slots.iter_mut().filter_map(Option::take).collect();
        window.in_flight = 0;
        slots.sort_by_key(|slot| slot.sequence);
        let acknowledged_once = slots.into_iter().filter(|slot| slot.stage == Stage::AwaitingPubAck);
        acknowledged_once.filter_map(|slot| slot.message).collect()
    }
}

fn all_differ(mut indexes: impl Iterator<Item = usize>) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    indexes.all(|index| seen.insert(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(window_max: u16, queue_messages_max: usize) -> Outbound<u32> {
        Outbound::new(OutboundLimits {
            window_max,
            queue_messages_max,
            queue_bytes_max: 1000,
            drop_policy: DropPolicy::New,
        })
    }

    fn pop(outbound: &mut Outbound<u32>) -> Option<(u16, u32)> {
        outbound.pop_sendable(|_| false, |_| {}).map(|(id, _, message)| (id.get(), *message))
    }

    /// [MQTT-3.3.4-9], [MQTT-4.9.0-2]: never more in flight than the Receive Maximum.
    #[test]
    fn the_window_holds_no_more_than_its_maximum() {
        let mut outbound = outbound(2, 10);
        let first = outbound.send_now(1, QoS::AtLeastOnce).expect("room");
        assert!(outbound.send_now(2, QoS::ExactlyOnce).is_some());
        assert_eq!(outbound.send_now(3, QoS::AtLeastOnce), None);
        assert_eq!(outbound.offer(3, 10, QoS::AtLeastOnce), Offer::Accepted);
        assert_eq!(pop(&mut outbound), None);
        assert_eq!(outbound.on_puback(first), Ok(Some(1)));
        assert!(!outbound.can_send(), "the queue goes first");
        assert_eq!(pop(&mut outbound), Some((3, 3)));
    }

    /// [MQTT-2.2.1-4]: an identifier in flight is not used for another message, however often they wrap.
    #[test]
    fn identifiers_in_flight_are_never_reused() {
        let mut outbound = outbound(100, 10);
        let stuck = outbound.send_now(0, QoS::ExactlyOnce).expect("room");
        for number in 1..200_000 {
            let id = outbound.send_now(number, QoS::AtLeastOnce).expect("room");
            assert_ne!(id, stuck);
            assert_eq!(outbound.on_puback(id), Ok(Some(number)));
        }
        assert_eq!(outbound.in_flight(), 1);
    }

    /// [MQTT-4.3.3-4], [MQTT-4.3.3-5], [MQTT-4.3.3-6]: after PUBREC only the identifier is kept, until PUBCOMP.
    #[test]
    fn a_qos_2_exchange_keeps_its_identifier_to_the_end() {
        let mut outbound = outbound(2, 10);
        let id = outbound.send_now(1, QoS::ExactlyOnce).expect("room");
        assert_eq!(outbound.on_puback(id), Err(UnknownPacketIdentifier(id)));
        assert_eq!(outbound.on_pubcomp(id), Err(UnknownPacketIdentifier(id)));
        assert_eq!(outbound.on_pubrec(id, false), Ok(Some(1)));
        assert_eq!(outbound.resend(), [(id, Stage::AwaitingPubComp, QoS::ExactlyOnce, None)]);
        assert_eq!(outbound.on_pubrec(id, false), Ok(None), "a repeated PUBREC is answered again");
        assert_eq!(outbound.on_pubcomp(id), Ok(()));
        assert_eq!(outbound.in_flight(), 0);
    }

    /// [MQTT-4.4.0-2]: PUBREC of 0x80 or more ends the exchange.
    #[test]
    fn a_refusing_pubrec_frees_the_identifier() {
        let mut outbound = outbound(1, 10);
        let id = outbound.send_now(1, QoS::ExactlyOnce).expect("room");
        assert_eq!(outbound.on_pubrec(id, true), Ok(Some(1)));
        assert!(outbound.can_send());
    }

    /// [MQTT-4.4.0-1], [MQTT-4.6.0-1]: the original order, not that of the identifiers.
    #[test]
    fn resending_keeps_the_original_order() {
        let mut outbound = outbound(20, 10);
        let ids: Vec<_> = (0..20).filter_map(|number| outbound.send_now(number, QoS::AtLeastOnce)).collect();
        assert!(outbound.on_puback(ids[3]).is_ok());
        let order: Vec<_> = outbound.resend().iter().filter_map(|(.., message)| message.copied()).collect();
        assert_eq!(order, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn a_full_queue_drops_by_policy() {
        let mut outbound = outbound(0, 2);
        assert_eq!(outbound.offer(1, 10, QoS::AtLeastOnce), Offer::Accepted);
        assert_eq!(outbound.offer(2, 10, QoS::AtLeastOnce), Offer::Accepted);
        assert_eq!(outbound.offer(3, 10, QoS::AtLeastOnce), Offer::DroppedNew(Full::Messages));
        outbound.limits.drop_policy = DropPolicy::Oldest;
        assert_eq!(outbound.offer(3, 10, QoS::AtLeastOnce), Offer::DroppedOldest(Full::Messages, vec![1]));
        assert_eq!(outbound.queue_bytes(), 20);
        outbound.limits.queue_messages_max = 10;
        let dropped = Offer::DroppedOldest(Full::Bytes, vec![2, 3]);
        assert_eq!(outbound.offer(4, 995, QoS::AtLeastOnce), dropped, "as many as it takes");
        assert_eq!(outbound.offer(5, 1001, QoS::AtLeastOnce), Offer::DroppedNew(Full::Bytes), "it would never fit");
        assert_eq!(outbound.backlog(), Backlog { queued_messages: 1, queued_bytes: 995, in_flight: 0 });
    }

    /// As many as it takes, from the front only: the queue is not gone through for each message that comes.
    #[test]
    fn what_expired_makes_room_where_there_is_none() {
        let mut outbound = outbound(0, 4);
        for number in [1, 2, 5, 3] {
            assert_eq!(outbound.offer(number, 10, QoS::AtLeastOnce), Offer::Accepted);
        }
        let expired = |&number: &u32| number < 5;
        assert_eq!(outbound.take_expired(10, expired), [1]);
        assert!(outbound.take_expired(10, expired).is_empty(), "there is room");
        assert_eq!(outbound.take_expired(980, expired), [2], "not what would have to wait for its turn");
        assert_eq!((outbound.queue_len(), outbound.queue_bytes()), (2, 20));
    }

    /// What only passes through the queue is not bounded by it.
    #[test]
    fn what_the_window_has_room_for_passes_through_the_queue() {
        let mut outbound = outbound(2, 0);
        let mut offer = |number, passing| outbound.offer_reading(number, 2000, QoS::AtLeastOnce, passing, Page::none);
        assert_eq!(offer(1, 2), Offer::Accepted);
        assert_eq!(offer(2, 2), Offer::Accepted);
        assert_eq!(offer(3, 2), Offer::DroppedNew(Full::Messages));
        assert_eq!((pop(&mut outbound), pop(&mut outbound), pop(&mut outbound)), (Some((1, 1)), Some((2, 2)), None));
        assert_eq!(outbound.window_free(), 0);
    }

    /// [MQTT-3.3.2-5]: what expired before its delivery began is not sent.
    #[test]
    fn expired_messages_are_left_out_of_the_window() {
        let mut outbound = outbound(5, 10);
        for number in 1..=3 {
            assert_eq!(outbound.offer(number, 1, QoS::AtLeastOnce), Offer::Accepted);
        }
        let mut expired = Vec::new();
        let sent = outbound.pop_sendable(|&number| number < 3, |number| expired.push(number));
        assert_eq!(sent.map(|(id, _, message)| (id.get(), *message)), Some((1, 3)));
        assert_eq!(expired, [1, 2]);
    }

    /// What a log says about an identifier must mean the same message after a restart.
    #[test]
    fn a_restored_window_gives_the_identifiers_that_the_old_one_would_have_given() {
        let mut old = outbound(100, 10);
        let ids: Vec<_> = (0..60).filter_map(|number| old.send_now(number, QoS::AtLeastOnce)).collect();
        for &id in &ids[1..] {
            assert!(old.on_puback(id).is_ok());
        }
        let in_flight = old.resend().into_iter().map(|(id, stage, qos, message)| (id, stage, qos, message.copied()));
        let mut new =
            Outbound::restore(old.limits, old.last_id(), old.window_slots(), in_flight.collect(), Vec::new(), None);
        for number in 0..100_000 {
            let id = old.send_now(number, QoS::AtLeastOnce).expect("room");
            assert_eq!(new.send_now(number, QoS::AtLeastOnce), Some(id));
            assert!(old.on_puback(id).is_ok() && new.on_puback(id).is_ok());
        }
    }

    /// P11, [MQTT-4.8.2-5]: unacknowledged QoS 1 and what waits goes elsewhere, QoS 2 that was begun does not.
    #[test]
    fn what_another_member_may_get_is_handed_on_in_order() {
        let mut outbound = outbound(2, 10);
        outbound.send_now(1, QoS::AtLeastOnce);
        outbound.send_now(2, QoS::ExactlyOnce);
        outbound.offer(3, 1, QoS::ExactlyOnce);
        assert_eq!(outbound.drain_undelivered(), [1, 3]);
        assert_eq!((outbound.in_flight(), outbound.queue_len()), (0, 0));
    }

    #[test]
    fn what_is_extracted_leaves_the_rest_in_order() {
        let mut outbound = outbound(1, 10);
        outbound.send_now(1, QoS::AtLeastOnce);
        for number in 2..=5 {
            assert_eq!(outbound.offer(number, 10, QoS::AtLeastOnce), Offer::Accepted);
        }
        assert_eq!(outbound.extract_queued(|number| number % 2 == 1), [3, 5]);
        assert_eq!(outbound.queued().copied().collect::<Vec<_>>(), [2, 4]);
        assert_eq!((outbound.in_flight(), outbound.queue_bytes()), (1, 20));
    }

    /// A long queue whose middle is stored does what one does that is in memory, whenever it is put away.
    #[test]
    fn a_queue_whose_middle_is_away_is_the_same_queue() {
        let mut whole = outbound(1, 20);
        let mut paged = outbound(1, 20);
        for queue in [&mut whole, &mut paged] {
            queue.limits.drop_policy = DropPolicy::Oldest;
            queue.send_now(0, QoS::AtLeastOnce);
        }
        let read = |stored: &[u32], middle: Middle| {
            let numbers = stored.iter().copied().filter(|&number| (middle.from..middle.until).contains(&number.into()));
            let messages: Vec<_> = numbers.take(2).map(|number| (number, 10, QoS::AtLeastOnce)).collect();
            let next = messages.last().map_or(middle.until, |(number, ..)| u64::from(*number) + 1);
            Page { messages, next }
        };
        let mut last = 0;
        for step in 0..2_000_u32 {
            match step * 7 % 11 {
                0..=4 => {
                    last += 1;
                    let stored: Vec<u32> = (1..last).collect();
                    let expected = whole.offer(last, 10, QoS::AtLeastOnce);
                    let offered = paged.offer_reading(last, 10, QoS::AtLeastOnce, 0, |middle| read(&stored, middle));
                    assert_eq!(offered, expected);
                }
                5 | 6 => {
                    let known = last.saturating_sub(step % 3);
                    let (front, before) = (step as usize % 4, paged.backlog());
                    paged.put_away(front, |&number| number <= known, |&number| number.into());
                    assert_eq!(paged.backlog(), before);
                    assert!(paged.front_len() <= front || paged.middle().is_none());
                }
                _ => {
                    let stored: Vec<u32> = (1..=last).collect();
                    let id = |queue: &Outbound<u32>| queue.resend().first().map(|slot| slot.0);
                    if let Some(id) = id(&whole) {
                        assert_eq!(whole.on_puback(id), paged.on_puback(id));
                    }
                    let (expected, mut dropped) = (pop(&mut whole), Vec::new());
                    let read = |middle| read(&stored, middle);
                    let next = paged.pop_sendable_reading(|_| false, |number| dropped.push(number), read);
                    assert_eq!(next.map(|(id, _, number)| (id.get(), *number)), expected);
                }
            }
            assert_eq!(whole.backlog(), paged.backlog());
        }
        assert!(last > 500 && paged.queue_len() > 0);
    }

    #[test]
    fn an_idle_client_costs_next_to_nothing() {
        assert!(size_of::<Outbound<u64>>() <= 40);
    }
}
