//! Claims: who holds a Client Identifier, from CONNECT to the end of its session and its will.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kentongan_proto::mqtt::ReasonCode;

use super::{
    GroupState, Timer, close_effect, disown, opened, own, queue_caps, same_incarnation, session_effect,
    transient_opened, unrouted_effect,
};
use crate::plants::{Plant, is_planted};
use crate::replicated::command;
use crate::replicated::command::Owner;
use crate::replicated::effect::{Drop, Effect};
use crate::replicated::session::{Before, PersistentSession, Waiting};
use crate::replicated::store::Key;
use crate::session::handshake::NEVER_EXPIRES;
use crate::session::outbound::{Outbound, OutboundLimits, QueueCaps};

/// How long a claim waits for what its client sent before: as long as one waits for a group that answers nothing.
pub(super) const HELD_BACK_MS_MAX: u64 = 4000;

/// What became of the connection that a claim was granted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client said DISCONNECT, and wants no will published.
    Normal,
    /// Anything else.
    Abnormal,
    /// It never was one: the client was refused after all, or gone before it was told.
    NeverBegan,
}

impl End {
    const fn of(publish_will: bool, never_began: bool) -> Self {
        match (never_began, publish_will) {
            (true, _) => Self::NeverBegan,
            (false, true) => Self::Abnormal,
            (false, false) => Self::Normal,
        }
    }
}

impl GroupState {
    pub(super) fn connect(&mut self, connect: command::Connect, effects: &mut Vec<Effect>) {
        let Some(owner) = connect.owner else {
            return;
        };
        if self.is_fenced(owner.node, owner.incarnation) {
            // Nobody would ever release it.
            effects.push(Effect::Refused { owner, reason: ReasonCode::ServerUnavailable });
            return;
        }
        let client_id: Arc<str> = Arc::from(connect.client_id.as_str());
        self.end_if_overdue(&client_id, effects);
        let known = self.sessions.get(&client_id);
        let is_known = known.is_some();
        if known.is_some_and(|session| *session.identity != *connect.identity) {
            effects.push(Effect::Refused { owner, reason: ReasonCode::NotAuthorized });
            return;
        }
        let Some(connect) = self.wait_until_lost(&client_id, connect, effects) else {
            return;
        };
        if !is_known {
            // As most clients: nobody waits, nobody owns it, and there is nothing to end.
            self.last_epoch += 1;
            let epoch = self.last_epoch;
            return self.open(&client_id, owner, epoch, connect, effects);
        }
        if self.is_held_back(&client_id) {
            let waiting = self.sessions.get(&client_id).and_then(|session| session.waiting.as_ref());
            if waiting.is_some_and(|waiting| waiting.connect.owner == Some(owner)) {
                return; // Proposed again; it waits for the same.
            }
            self.refuse_held_back(&client_id, ReasonCode::SessionTakenOver, effects);
        }
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let present = self.sessions.get(&client_id).and_then(|session| Some((session.owner?, session.resumed)));
        if let Some((present, resumed)) = present
            && present == owner
        {
            // Proposed again because the answer was lost: the same answer, and nothing ends.
            self.attach(&client_id, owner, epoch, resumed, connect, effects);
            return;
        }
        if connect.wait_for_release && present.is_some() {
            self.wait(&client_id, connect, epoch, effects);
            return;
        }
        // Another that waited comes too late: this one is granted.
        self.refuse_waiting(&client_id, effects);
        self.detach(&client_id, End::Abnormal, None, connect.clean_start, effects);
        self.open(&client_id, owner, epoch, connect, effects);
    }

    /// P7: nothing of the new connection before the old one is gone, nothing of the old one from here on.
    pub(super) fn wait(
        &mut self,
        client_id: &Arc<str>,
        connect: command::Connect,
        epoch: u64,
        effects: &mut Vec<Effect>,
    ) {
        let waiting = self.sessions.get(client_id).and_then(|session| session.waiting.as_ref());
        if waiting.is_some_and(|waiting| waiting.connect.owner == connect.owner) {
            effects.extend(self.sessions.get(client_id).and_then(close_effect));
            return;
        }
        let owner_epoch = self.refuse_waiting(client_id, effects);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let owner_epoch = owner_epoch.unwrap_or(session.epoch);
        session.epoch = epoch;
        own(&mut self.owned, connect.owner, client_id);
        session.waiting = Some(Box::new(Waiting { connect, owner_epoch }));
        self.dirty.changed(Key::Session(session.number));
        effects.extend(close_effect(session));
    }

    /// The claim that waits does so no more. Returns the epoch of the owner it waited for.
    pub(super) fn refuse_waiting(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) -> Option<u64> {
        let session = self.sessions.get_mut(client_id)?;
        let waiting = session.waiting.take()?;
        self.dirty.changed(Key::Session(session.number));
        if let Some(owner) = waiting.connect.owner {
            if session.owner.is_none_or(|present| !same_incarnation(present, owner)) {
                disown(&mut self.owned, Some(owner), client_id);
            }
            effects.push(Effect::Refused { owner, reason: ReasonCode::SessionTakenOver });
        }
        Some(waiting.owner_epoch)
    }

    pub(super) fn released(&mut self, released: &command::Released, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.owned_under(&released.client_id, released.epoch) else {
            return;
        };
        self.let_go(&client_id, End::of(released.publish_will, released.never_began), None, effects);
    }

    /// The session whose owner has that epoch, also while a claim waits for it to let go.
    fn owned_under(&self, client_id: &str, epoch: u64) -> Option<Arc<str>> {
        let session = self.sessions.get(client_id).filter(|session| session.owner.is_some())?;
        let owner_epoch = session.waiting.as_ref().map_or(session.epoch, |waiting| waiting.owner_epoch);
        let is_of_owner = owner_epoch == epoch || is_planted(Plant::IgnoreEpoch);
        is_of_owner.then(|| Arc::clone(&session.client_id))
    }

    /// The owner is gone; whoever waited for that is next.
    pub(super) fn let_go(
        &mut self,
        client_id: &Arc<str>,
        end: End,
        expiry_seconds: Option<u32>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let leaves_will = session.will.is_some() && end == End::Abnormal;
        if session.transient && session.owner.is_some() && session.waiting.is_none() && !leaves_will {
            return self.forget_transient(client_id);
        }
        let epoch = session.epoch;
        let waiting = session.waiting.take();
        let clean_start = waiting.as_ref().is_some_and(|waiting| waiting.connect.clean_start);
        disown(&mut self.owned, waiting.as_ref().and_then(|waiting| waiting.connect.owner), client_id);
        self.detach(client_id, end, expiry_seconds, clean_start, effects);
        if let Some(waiting) = waiting
            && let Some(owner) = waiting.connect.owner
        {
            self.open(client_id, owner, epoch, waiting.connect, effects);
        } else {
            self.hand_on_waiting(client_id, effects);
        }
    }

    /// Of a session that had nothing but a claim nothing is left, and nobody is told.
    fn forget_transient(&mut self, client_id: &Arc<str>) {
        let Some(session) = self.sessions.remove(client_id) else {
            return;
        };
        disown(&mut self.owned, session.owner, client_id);
        self.names.remove(&session.number);
        self.dirty.deleted(Key::Session(session.number));
    }

    /// P11: what waits for a member of a shared subscription that went away goes to those here that are connected. What
    /// is in flight stays: its client may come back with the answer. So does what came by one that it has left since, unless
    /// others of its shared subscriptions have such members.
    pub(super) fn hand_on_waiting(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let number = session.number;
        let shares = &self.shares;
        let has_members = |share: &Arc<str>| shares.get(share).is_some_and(|share| share.online > 0);
        // A long queue is read back for it, by everybody who keeps it: not for nothing, each time that its client goes.
        let hands_on = session.may_queue_shared && session.subscriptions.keys().any(has_members);
        if hands_on {
            while let Some(middle) = session.outbound.middle() {
                session.outbound.take_page(self.bodies.read(number, middle));
            }
        }
        let before = session.outbound.backlog();
        let extracted = match hands_on {
            true => session.outbound.extract_queued(|entry| entry.share.as_ref().is_some_and(has_members)),
            false => Vec::new(),
        };
        self.backlog += session.outbound.backlog() - before;
        if !extracted.is_empty() {
            self.fresh_gaps.insert(number);
        }
        for entry in extracted {
            self.body = None;
            if let Some(share) = &entry.share {
                self.deliver_to_share(&entry.message, share, effects);
            }
            self.settle(number, &entry);
        }
        self.dirty.changed(Key::Session(number));
    }

    /// Nobody owns the session: the claim is granted.
    pub(super) fn open(
        &mut self,
        client_id: &Arc<str>,
        owner: Owner,
        epoch: u64,
        connect: command::Connect,
        effects: &mut Vec<Effect>,
    ) {
        let mut session_present = self.sessions.contains_key(client_id);
        if connect.clean_start && session_present {
            self.end_session(client_id, effects);
            session_present = false;
        }
        let transient = !session_present && connect.session_expiry_seconds == 0;
        if transient && self.unrouted.contains_key(client_id) {
            return self.hold_back(client_id, epoch, connect, effects);
        }
        if transient && !connect.keep_transient {
            effects.push(Effect::Opened(transient_opened(owner, client_id, epoch)));
            return;
        }
        if !session_present {
            self.begin_session(client_id, &connect, transient, effects);
        }
        self.attach(client_id, owner, epoch, session_present, connect, effects);
    }

    /// P5: what a transient session sends goes by no outbox, and would overtake what the client had sent before. So its claim
    /// waits until that is routed, which takes a moment as a rule. The entry of the session stands for the claim meanwhile.
    fn hold_back(&mut self, client_id: &Arc<str>, epoch: u64, connect: command::Connect, effects: &mut Vec<Effect>) {
        self.begin_session(client_id, &connect, true, effects);
        // An only node has nobody else to send its client to: there it waits as long as the client does.
        let due = connect.keep_transient.then(|| self.latest_ms() + HELD_BACK_MS_MAX);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        own(&mut self.owned, connect.owner, client_id);
        session.epoch = epoch;
        session.expires_at_ms = due;
        session.waiting = Some(Box::new(Waiting { connect, owner_epoch: epoch }));
        self.timers.extend(due.map(|due| (due, Timer::SessionExpiry(Arc::clone(client_id)))));
    }

    /// Whether a claim waits until what its client sent before is routed. Nobody owns the session then: it has yet to begin.
    pub(super) fn is_held_back(&self, client_id: &str) -> bool {
        let session = self.sessions.get(client_id);
        session.is_some_and(|session| session.transient && session.owner.is_none() && session.waiting.is_some())
    }

    /// What the claim waited for is done.
    pub(super) fn open_held_back(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        if let Some((connect, epoch)) = self.take_held_back(client_id, effects)
            && let Some(owner) = connect.owner
        {
            self.open(client_id, owner, epoch, connect, effects);
        }
    }

    /// The claim waits no more, and is not granted: its will is that of no connection.
    fn refuse_held_back(&mut self, client_id: &Arc<str>, reason: ReasonCode, effects: &mut Vec<Effect>) {
        if let Some((connect, _)) = self.take_held_back(client_id, effects)
            && let Some(owner) = connect.owner
        {
            effects.push(Effect::Refused { owner, reason });
        }
    }

    fn take_held_back(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) -> Option<(command::Connect, u64)> {
        if !self.is_held_back(client_id) {
            return None;
        }
        let session = self.sessions.get_mut(client_id)?;
        let (waiting, epoch) = (session.waiting.take()?, session.epoch);
        disown(&mut self.owned, waiting.connect.owner, client_id);
        self.end_session(client_id, effects);
        Some((waiting.connect, epoch))
    }

    pub(super) fn begin_session(
        &mut self,
        client_id: &Arc<str>,
        connect: &command::Connect,
        transient: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.last_number += 1;
        let session = PersistentSession {
            number: self.last_number,
            client_id: Arc::clone(client_id),
            identity: Arc::from(connect.identity.as_str()),
            epoch: 0,
            owner: None,
            waiting: None,
            transient,
            resumed: false,
            expiry_seconds: 0,
            expires_at_ms: None,
            will: None,
            will_due_ms: None,
            before: None,
            expires_before_ms: None,
            subscriptions: BTreeMap::new(),
            reads: 0,
            outbound: Outbound::new(self.limits(0, QueueCaps::default())),
            to_resend: VecDeque::new(),
            sent_before: BTreeSet::new(),
            received: BTreeSet::new(),
            held: Vec::new(),
            held_bytes: 0,
            overflows: 0,
            next_sequence: 0,
            may_queue_shared: false,
            window_max: 0,
            caps: QueueCaps::default(),
        };
        if !transient {
            self.persistent += 1;
            effects.push(session_effect(&session, true));
            if self.unrouted.contains_key(client_id) {
                effects.push(unrouted_effect(client_id, false));
            }
        }
        self.names.insert(session.number, Arc::clone(client_id));
        self.dirty.created(Key::Session(session.number));
        self.sessions.insert(Arc::clone(client_id), session);
    }

    pub(in crate::replicated) fn limits(&self, window_max: u16, caps: QueueCaps) -> OutboundLimits {
        OutboundLimits {
            window_max,
            queue_messages_max: self.config.queue_messages_max,
            queue_bytes_max: self.config.queue_bytes_max,
            drop_policy: self.config.drop_policy,
        }
        .capped(caps)
    }

    /// A connection takes the session up: whatever waited for its absence to end is off.
    pub(super) fn attach(
        &mut self,
        client_id: &Arc<str>,
        owner: Owner,
        epoch: u64,
        session_present: bool,
        connect: command::Connect,
        effects: &mut Vec<Effect>,
    ) {
        let window_max = u16::try_from(connect.window_max).unwrap_or(u16::MAX).max(1);
        let caps = queue_caps(connect.queue_messages_max, connect.queue_bytes_max);
        let limits = self.limits(window_max, caps);
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let expires_at_ms = session.expires_at_ms.take();
        if let Some(due) = expires_at_ms {
            self.timers.remove(&(due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        let will_due_ms = session.will_due_ms.take();
        if let Some(due) = will_due_ms {
            // Resumed before the delay ran out: the old will is never sent [MQTT-3.1.3-9].
            self.timers.remove(&(due, Timer::Will(Arc::clone(client_id))));
        }
        // A claim that is granted again is the same claim.
        if session.owner.is_none() && session_present {
            let will = session.will.take().zip(will_due_ms);
            let expiry_seconds = session.expiry_seconds;
            let is_changed = will.is_some() || expiry_seconds != connect.session_expiry_seconds;
            session.before = is_changed.then(|| Box::new(Before { expiry_seconds, will }));
            session.expires_before_ms = expires_at_ms;
        }
        session.owner = Some(owner);
        own(&mut self.owned, Some(owner), client_id);
        session.epoch = epoch;
        session.resumed = session_present;
        session.expiry_seconds = connect.session_expiry_seconds;
        session.will = connect.will;
        session.window_max = window_max;
        session.caps = caps;
        session.outbound.set_limits(limits);
        let in_flight = session.outbound.resend();
        session.to_resend = in_flight.iter().map(|(id, ..)| *id).collect();
        session.sent_before = in_flight.iter().filter_map(|(id, .., entry)| entry.map(|_| *id)).collect();
        self.dirty.changed(Key::Session(session.number));
        let transient = session.transient;
        effects.push(Effect::Opened(opened(session, owner, &self.held_pubrecs)));
        if transient {
            return;
        }
        self.update_shares_online(client_id, effects);
        self.pump(client_id, effects);
    }

    /// The session has no connection any more. `ends` says that it does not outlive this, whatever its expiry.
    pub(super) fn detach(
        &mut self,
        client_id: &Arc<str>,
        end: End,
        expiry_seconds: Option<u32>,
        ends: bool,
        effects: &mut Vec<Effect>,
    ) {
        let (clock, latest) = (self.clock_ms, self.latest_ms());
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(owner) = session.owner.take() else {
            return;
        };
        disown(&mut self.owned, Some(owner), client_id);
        if session.outbound.in_flight() > 0 {
            effects.push(Effect::LetGo { owner });
        }
        session.to_resend.clear();
        session.sent_before.clear();
        // What was to end with the connection does so, whatever DISCONNECT says.
        if let Some(seconds) = expiry_seconds.filter(|_| session.expiry_seconds != 0) {
            session.expiry_seconds = seconds;
        }
        self.dirty.changed(Key::Session(session.number));
        let (before, expires_before_ms) = (session.before.take(), session.expires_before_ms.take());
        if end != End::Abnormal {
            session.will = None;
        }
        let mut due = None;
        if end == End::NeverBegan
            && let Some(before) = before
        {
            session.expiry_seconds = before.expiry_seconds;
            (session.will, due) = before.will.unzip();
        }
        let expiry = session.expiry_seconds;
        if let Some(will) = &session.will {
            // Whichever comes first, the delay or the end of the session [MQTT-3.1.2-8].
            let due = due.unwrap_or_else(|| match will.delay_seconds.min(expiry) {
                0 => clock,
                delay_seconds => latest + u64::from(delay_seconds) * 1000,
            });
            session.will_due_ms = Some(due);
            self.timers.insert((due, Timer::Will(Arc::clone(client_id))));
        }
        let is_due = session.will_due_ms.is_some_and(|due| due <= clock);
        // Nobody heard of a session that began with such a claim.
        let ends = ends || (end == End::NeverBegan && !session.resumed);
        if expiry != NEVER_EXPIRES {
            // Else a client that never gets through would keep it for ever.
            let goes_on = expires_before_ms.filter(|_| end == End::NeverBegan);
            let due = goes_on.unwrap_or_else(|| latest + u64::from(expiry) * 1000);
            session.expires_at_ms = Some(due);
            self.timers.insert((due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        if ends || expiry == 0 {
            self.end_session(client_id, effects);
            return;
        }
        self.update_shares_online(client_id, effects);
        if is_due {
            self.fire_will(client_id, effects);
        }
    }

    /// Timers may lag behind the clock when many are due at once: what is over is over.
    pub(super) fn end_if_overdue(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let clock = self.clock_ms;
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let (expires, will) = (session.expires_at_ms, session.will_due_ms);
        if expires.is_some_and(|due| due <= clock) {
            self.expire(client_id, effects);
        } else if will.is_some_and(|due| due <= clock) {
            self.fire_will(client_id, effects);
        }
    }

    /// The time of a session is over, or that of a claim that is held back.
    pub(super) fn expire(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        if self.is_held_back(client_id) {
            return self.refuse_held_back(client_id, ReasonCode::ServerUnavailable, effects);
        }
        effects.push(Effect::SessionExpired);
        self.end_session(client_id, effects);
    }

    /// Whether an incarnation of a node is over, as far as this group knows.
    #[must_use]
    pub fn is_fenced(&self, node: u64, incarnation: u64) -> bool {
        self.fenced_below.get(&node).is_some_and(|&below| incarnation < below)
    }

    /// A connection ended of its own accord. With that its owner has let go, whoever waits for it: this is said once everything
    /// that came by the connection is settled, and it alone tells whether the client had said DISCONNECT (P9).
    pub(super) fn disconnect(&mut self, disconnect: &command::Disconnect, effects: &mut Vec<Effect>) {
        let Some(client_id) = self.owned_under(&disconnect.client_id, disconnect.epoch) else {
            return;
        };
        let end = End::of(disconnect.publish_will, disconnect.never_began);
        self.let_go(&client_id, end, disconnect.session_expiry_seconds, effects);
    }

    /// The session of that claim; commands of an older epoch change nothing.
    pub(super) fn claimed(&self, client_id: &str, epoch: u64) -> Option<Arc<str>> {
        let session = self.sessions.get(client_id)?;
        (session.epoch == epoch && session.served().is_some()).then(|| Arc::clone(&session.client_id))
    }

    /// [`Self::claimed`], of a session that is kept here.
    pub(super) fn current(&self, client_id: &str, epoch: u64) -> Option<Arc<str>> {
        self.claimed(client_id, epoch)
            .filter(|client_id| self.sessions.get(client_id).is_some_and(|own| !own.transient))
    }

    pub(super) fn end_session(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        self.fire_will(client_id, effects);
        let filters: Vec<_> =
            self.sessions.get(client_id).iter().flat_map(|session| session.subscriptions.keys().cloned()).collect();
        for filter in filters {
            self.remove_subscription(client_id, &filter, effects);
        }
        let Some(mut session) = self.sessions.remove(client_id) else {
            return;
        };
        self.names.remove(&session.number);
        self.backlog = self.backlog - session.outbound.backlog();
        if let Some(due) = session.expires_at_ms {
            self.timers.remove(&(due, Timer::SessionExpiry(Arc::clone(client_id))));
        }
        let number = session.number;
        for entry in session.outbound.take_begun() {
            self.dirty.deleted(Key::Entry(number, entry.sequence));
            self.bodies.release(entry.body, &mut self.dirty);
        }
        let clock = self.clock_ms;
        let (mut dropped, mut expired) = (0, 0);
        let mut undelivered = session.outbound.drain_in_flight().into_iter();
        // Nobody gets what is in a queue without anything shared, which may be long: it goes bit by bit.
        let goes_to_others = session.may_queue_shared;
        if !goes_to_others {
            dropped += session.outbound.queue_len() as u64;
        }
        // A page after the other: the queue may be longer than there is memory.
        while let Some(entry) = undelivered.next().or_else(|| {
            let read = |middle| self.bodies.read(number, middle);
            if goes_to_others { session.outbound.pop_queued(read) } else { None }
        }) {
            match &entry.share {
                // What was in flight may be over by now, and is begun with nobody else [MQTT-3.3.2-5].
                Some(_) if entry.message.expires_at_ms.is_some_and(|at| at <= clock) => expired += 1,
                Some(share) => {
                    self.post(Arc::clone(&entry.message), None, Some(Arc::clone(share)), effects);
                }
                None => dropped += 1,
            }
            self.dirty.deleted(Key::Entry(number, entry.sequence));
            self.bodies.release(entry.body, &mut self.dirty);
        }
        self.let_queue_go(
            number,
            std::mem::replace(&mut session.outbound, Outbound::new(self.limits(0, session.caps))),
        );
        self.bodies.forget(number);
        for (reason, count) in [(Drop::SessionEnded, dropped), (Drop::Expired, expired)] {
            if count > 0 {
                effects.push(Effect::Dropped { reason, count });
            }
        }
        self.dirty.deleted(Key::Session(session.number));
        if !session.transient {
            self.persistent -= 1;
            if self.unrouted.contains_key(client_id) {
                effects.push(unrouted_effect(client_id, true));
            }
            effects.push(session_effect(&session, false));
        }
    }

    /// The will of a session goes to the outbox, once.
    pub(super) fn fire_will(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let latest = self.latest_ms();
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(due) = session.will_due_ms.take() else {
            return;
        };
        self.timers.remove(&(due, Timer::Will(Arc::clone(client_id))));
        self.dirty.changed(Key::Session(session.number));
        let Some(will) = session.will.take() else {
            return;
        };
        let Some(record) = will.message else {
            return;
        };
        let identity = Arc::clone(&session.identity);
        let message = Arc::new(record.into_message(latest));
        effects.push(Effect::WillPublished);
        if will.publish_delay_ms.is_some() && self.delay_refusal(&message).is_some() {
            // Its publisher is gone and cannot be told.
            effects.push(Effect::Dropped { reason: Drop::Delayed, count: 1 });
            return;
        }
        let due_ms = will.publish_delay_ms.map(|delay_ms| latest.saturating_add(delay_ms));
        if is_planted(Plant::WillTwice) && due_ms.is_none() {
            self.post_will(Arc::clone(&message), &identity, will.is_granted, None, effects);
        }
        self.post_will(message, &identity, will.is_granted, due_ms, effects);
    }

    pub(super) fn fence(&mut self, fence: command::Fence, effects: &mut Vec<Effect>) {
        let fenced = self.fenced_below.entry(fence.node).or_default();
        *fenced = fence.below.max(*fenced);
        let below = *fenced;
        self.lanes.retain(|&(node, _), lane| node != fence.node || lane.incarnation >= below);
        let dead = self.owned.range((fence.node, 0)..(fence.node, below));
        let sessions_max = fence.sessions_max.max(1) as usize;
        let owned: Vec<_> = dead.flat_map(|(_, sessions)| sessions.iter().cloned()).take(sessions_max).collect();
        let picked = self.picked_at.range((fence.node, 0)..(fence.node, below));
        let picks_max = sessions_max - owned.len();
        let picked: Vec<u64> = picked.flat_map(|(_, positions)| positions.iter().copied()).take(picks_max).collect();
        for client_id in owned {
            self.release_dead(&client_id, effects);
        }
        for position in picked {
            self.pick_again(position, effects);
        }
        let more = self.has_of_dead(fence.node, below);
        effects.push(Effect::Fenced { node: fence.node, below, more });
    }

    /// Everybody who was connected is gone, whatever node that was.
    pub(super) fn begin_anew(&mut self, anew: command::BeginAnew, effects: &mut Vec<Effect>) {
        self.last_position += anew.positions;
        let owners = self.owned.keys().chain(self.picked_at.keys()).map(|&(node, _)| node);
        for node in owners.collect::<BTreeSet<u64>>() {
            self.fence(command::Fence { below: anew.below, sessions_max: u32::MAX, node }, effects);
        }
        self.forget_all_left_behind();
    }

    /// Whether incarnations of a node below `below` have sessions here, or something to settle.
    pub(super) fn has_of_dead(&self, node: u64, below: u64) -> bool {
        let dead = (node, 0)..(node, below);
        self.owned.range(dead.clone()).next().is_some() || self.picked_at.range(dead).next().is_some()
    }

    /// Whether it has something of a node that was alone: there are no such owners in a cluster.
    pub fn has_of_node_alone(&self) -> bool {
        self.has_of_dead(0, u64::MAX)
    }

    /// The node of a session's owner is dead, or that of the claim that waits for it.
    pub(super) fn release_dead(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(client_id) else {
            return;
        };
        let next = session.waiting.as_ref().and_then(|waiting| waiting.connect.owner);
        let owner = session.owner;
        let is_dead = |owner: Option<Owner>| owner.is_some_and(|owner| self.is_fenced(owner.node, owner.incarnation));
        let (owner_is_dead, next_is_dead) = (is_dead(owner), is_dead(next));
        if next_is_dead && self.is_held_back(client_id) {
            return self.refuse_held_back(client_id, ReasonCode::ServerUnavailable, effects);
        }
        if next_is_dead {
            self.forget_waiting(client_id, effects);
        }
        if let Some(owner) = owner.filter(|_| owner_is_dead) {
            // A node that was alone has nothing on its way to others.
            if owner.node != 0 {
                self.leave_behind(client_id, owner);
            }
            self.let_go(client_id, End::Abnormal, None, effects);
        }
    }

    /// The node of the claim that waits is dead. The present owner goes all the same: what it said since the claim did not count, and
    /// it may not have heard of that, so it would wait for answers that never come.
    fn forget_waiting(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        let Some(waiting) = session.waiting.as_mut() else {
            return;
        };
        let dead = std::mem::take(&mut waiting.connect).owner;
        if dead.is_some_and(|dead| session.owner.is_none_or(|present| !same_incarnation(present, dead))) {
            disown(&mut self.owned, dead, client_id);
        }
        self.dirty.changed(Key::Session(session.number));
        effects.extend(close_effect(session));
    }

    pub(super) fn owner(&self, client_id: &str) -> Option<(Owner, u64)> {
        let session = self.sessions.get(client_id)?;
        Some((session.served()?, session.epoch))
    }
}
