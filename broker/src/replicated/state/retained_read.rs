//! Retained messages for a SUBSCRIBE of a persistent session, and the live ones that wait behind them.

use std::num::NonZeroU32;
use std::sync::Arc;

use kentongan_proto::mqtt::QoS;

use super::{GroupState, Terms};
use crate::later::{HELD_LEVEL, ROOM_LEVEL};
use crate::message::Message;
use crate::replicated::command;
use crate::replicated::effect::{Effect, PageAnswer, QueueAtGroup};
use crate::replicated::session::{HeldBack, PersistentSession};
use crate::replicated::store::Key;

impl GroupState {
    pub(super) fn take_retained(&mut self, page: command::RetainedPage, clock_ms: u64, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(page.client_id.as_str()) else {
            return;
        };
        let client_id = Arc::clone(&session.client_id);
        let Some((filter, own)) = session.subscriptions.get_key_value(page.filter.as_str()) else {
            return;
        };
        if own.read != Some(page.read) {
            return;
        }
        if self.level >= ROOM_LEVEL && session.served().is_none() {
            // Another connection claims the session. Who handed this over went by a window into which nothing goes any more; the next one
            // reads anew.
            return;
        }
        let (filter, own) = (Arc::clone(filter), *own);
        if page.overflows < session.overflows && !page.messages.is_empty() {
            // They may be older than live ones that went on since, which would be followed by what they replaced.
            return self.answer_page(&client_id, page.read, page.number, effects);
        }
        for record in page.messages {
            let message = Arc::new(self.arrived(record, clock_ms));
            let qos = message.qos.min(own.options.qos);
            // What a client published itself, it does not get [MQTT-3.8.3-3].
            let is_local = own.options.no_local && message.publisher == client_id;
            if qos == QoS::AtMostOnce || is_local {
                continue;
            }
            let copy = self.enqueue_held_before(&client_id, &message, effects);
            // It is one message, by what all subscriptions together ask for [MQTT-3.3.4-2].
            let own_identifier = own.identifier.map(NonZeroU32::get);
            let (live_qos, live) = copy.map_or((qos, Vec::new()), |copy| (copy.qos, copy.identifiers));
            let others = live.into_iter().filter(|&identifier| Some(identifier) != own_identifier);
            let (qos, identifiers) = (qos.max(live_qos), own_identifier.into_iter().chain(others).collect());
            let terms = Terms { qos, retain: true, identifiers, share: None };
            self.enqueue(&client_id, &message, terms, effects);
        }
        if self.level >= ROOM_LEVEL {
            // Before the live messages that waited need the room.
            self.pump(&client_id, effects);
        }
        if page.last {
            self.end_read(&client_id, &filter);
            self.finish_reads(&client_id, effects);
        }
        self.pump(&client_id, effects);
        self.answer_page(&client_id, page.read, page.number, effects);
    }

    fn answer_page(&mut self, client_id: &Arc<str>, read: u64, page: u64, effects: &mut Vec<Effect>) {
        let Some((owner, epoch)) = self.owner(client_id) else {
            return;
        };
        effects.extend(self.sessions.get(client_id).map(|session| {
            let (overflows, queue) = (session.overflows, self.queue_of(session));
            Effect::RetainedTaken { owner, epoch, answer: PageAnswer { read, page, overflows, queue } }
        }));
    }

    /// What is read must not take the room of live messages, of which those that wait behind it will need some as well. As long as nothing
    /// else waits, it goes by the window alone.
    fn queue_of(&self, session: &PersistentSession) -> QueueAtGroup {
        let (outbound, limits) = (&session.outbound, session.outbound.limits());
        let queued = outbound.queue_len();
        let passing = outbound.window_free().saturating_sub(queued);
        let (passing, at_once) = match self.level >= ROOM_LEVEL {
            true => (outbound.window_free(), passing),
            false => (0, passing.min(limits.queue_messages_max).min(1)),
        };
        let messages_max = limits.queue_messages_max.saturating_add(passing);
        let messages_free = messages_max.saturating_sub(queued + session.held.len()).max(at_once);
        let bytes_free = limits.queue_bytes_max.saturating_sub(outbound.queue_bytes() + session.held_bytes);
        let window_free = (self.level >= ROOM_LEVEL).then(|| outbound.window_free());
        QueueAtGroup { queued, messages_free, bytes_free, window_free }
    }

    /// A live copy of a retained message may wait: it is returned, and goes with the retained one, and what waits of the same topic
    /// from before it goes first, so that the order stays.
    pub(super) fn enqueue_held_before(
        &mut self,
        client_id: &Arc<str>,
        retained: &Message,
        effects: &mut Vec<Effect>,
    ) -> Option<HeldBack> {
        let session = self.sessions.get_mut(client_id)?;
        let copy = session.held.iter().position(|held| held.message.is_copy_of(retained))?;
        let dropped = session.held.remove(copy);
        session.held_bytes -= dropped.message.weight_bytes();
        let number = session.number;
        self.dirty.deleted(Key::Held(number, dropped.sequence));
        let (older, rest) = std::mem::take(&mut session.held)
            .into_iter()
            .enumerate()
            .partition::<Vec<_>, _>(|(at, held)| *at < copy && held.message.topic == retained.topic);
        session.held = rest.into_iter().map(|(_, held)| held).collect();
        session.held_bytes -= older.iter().map(|(_, held)| held.message.weight_bytes()).sum::<usize>();
        for (_, HeldBack { sequence, message, qos, retain, identifiers, .. }) in older {
            self.dirty.deleted(Key::Held(number, sequence));
            self.body = None;
            self.enqueue(client_id, &message, Terms { qos, retain, identifiers, share: None }, effects);
        }
        Some(dropped)
    }

    pub(super) fn end_read(&mut self, client_id: &Arc<str>, filter: &Arc<str>) {
        if let Some(session) = self.sessions.get_mut(client_id)
            && let Some(own) = session.subscriptions.get_mut(filter)
        {
            session.reads -= usize::from(own.read.take().is_some());
            self.dirty.changed(Key::Subscription(session.number, Arc::clone(filter)));
        }
    }

    /// Once no subscription of the session waits for retained messages, the live ones that waited follow.
    pub(super) fn finish_reads(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        if session.is_reading() {
            return;
        }
        let number = session.number;
        // Not all subscriptions are looked at: the end of a session with many of them comes here for each.
        let mut released = self.matcher.release_held(number);
        released.sort_unstable();
        for filter in released {
            if let Some(subscription) = session.subscriptions.get_mut(&*filter) {
                subscription.held = false;
                self.dirty.changed(Key::Subscription(number, Arc::from(filter)));
            }
        }
        self.enqueue_all_held(client_id, effects);
    }

    /// No more can wait behind retained messages: all that do go on. What was read by now of a topic that one of them changed is out
    /// of date for this client.
    pub(super) fn let_held_overflow(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        if self.level >= HELD_LEVEL
            && let Some(session) = self.sessions.get_mut(client_id)
        {
            // What others said is as much newer than the retained one as it ever was.
            session.overflows += u64::from(session.held.iter().any(|held| held.message.retain));
            self.dirty.changed(Key::Session(session.number));
        }
        self.enqueue_all_held(client_id, effects);
    }

    fn enqueue_all_held(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let held = self.sessions.get_mut(client_id).map(|session| std::mem::take(&mut session.held));
        self.enqueue_held(client_id, held.unwrap_or_default(), effects);
    }

    /// A subscription is gone that held messages back. Those that no other one holds back as well must not be overtaken by what
    /// another subscription lets through from now on.
    pub(super) fn enqueue_no_longer_held(&mut self, client_id: &Arc<str>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id) else {
            return;
        };
        // The table knows the same filters as the session to hold, for those of shared subscriptions never do.
        self.matcher.recount_holders(session.number, &mut session.held);
        let free = session.held.extract_if(.., |held| held.holders == 0).collect();
        self.enqueue_held(client_id, free, effects);
    }

    fn enqueue_held(&mut self, client_id: &Arc<str>, held: Vec<HeldBack>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(client_id).filter(|_| !held.is_empty()) else {
            return;
        };
        session.held_bytes = session.held.iter().map(|held| held.message.weight_bytes()).sum();
        let number = session.number;
        for HeldBack { sequence, message, qos, retain, identifiers, .. } in held {
            self.dirty.deleted(Key::Held(number, sequence));
            // After a restart no two that wait share a body, so they never do.
            self.body = None;
            self.enqueue(client_id, &message, Terms { qos, retain, identifiers, share: None }, effects);
        }
        self.pump(client_id, effects);
    }
}
