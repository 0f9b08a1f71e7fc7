//! What of the queues is in memory, and how those of sessions that ended leave it. Nothing here changes what a command does.

use std::collections::VecDeque;
use std::sync::Arc;

use super::GroupState;
use crate::replicated::bodies::{PageRequest, ReadPage};
use crate::replicated::rows::StoredRows;
use crate::replicated::session::Entry;
use crate::replicated::store::Key;
use crate::session::outbound::Outbound;

/// How much of the front of a queue stays, at first. Then less and less, until it is enough.
const FRONT_MESSAGES: [usize; 5] = [1024, 256, 64, 16, 0];

/// Messages in the front of a queue that is being emptied below which more is read.
const FRONT_LOW: usize = 256;

/// How much of the queues of sessions that ended is let go of at once, in messages: a millisecond or two, on the thread that keeps the
/// lease.
pub const LET_GO_MESSAGES_MAX: usize = 2000;

/// What may be left of them for later.
const ENDED_MESSAGES_MAX: usize = 1_000_000;

/// Queues of sessions that ended, as far as their rows and bodies are still there. Nobody sees them any more: not the same on every
/// replica, and gone before anything is written.
#[derive(Debug, Default)]
pub(in crate::replicated) struct EndedQueues {
    queues: VecDeque<(u64, Outbound<Entry>)>,
    messages: usize,
}

/// Whether a queue that is being emptied should have more of its middle read.
pub(super) fn is_running_out(outbound: &Outbound<Entry>) -> bool {
    outbound.middle().is_some() && outbound.front_len() < FRONT_LOW
}

impl GroupState {
    /// From now on what is stored there may be [put away](Self::put_away).
    pub fn keep_in(&mut self, rows: Arc<dyn StoredRows>) {
        self.bodies.keep_in(rows);
    }

    /// What messages of sessions take in memory, about.
    #[must_use]
    pub fn queue_memory_bytes(&self) -> usize {
        self.bodies.memory_bytes()
    }

    /// Everything that was taken to be written is stored: lets go of the middle of long queues until what is left takes no more than
    /// so much memory, as far as it can.
    pub fn put_away(&mut self, memory_bytes_max: usize) {
        for front_max in FRONT_MESSAGES {
            // What an earlier checkpoint could not let go of goes first.
            self.bodies.let_go();
            if self.bodies.memory_bytes() <= memory_bytes_max {
                return;
            }
            let dirty = &self.dirty;
            for session in self.sessions.values_mut() {
                let number = session.number;
                // What a gap holds would be read back with what is around it.
                if session.outbound.queue_len() > front_max && !self.fresh_gaps.contains(&number) {
                    let is_stored = |sequence| !dirty.contains(&Key::Entry(number, sequence));
                    let away =
                        session.outbound.put_away(front_max, |entry| is_stored(entry.sequence), |entry| entry.sequence);
                    self.bodies.put_away(away);
                }
            }
        }
        self.bodies.let_go();
    }

    /// The session `number` ended, and nobody gets what waited for it.
    pub(super) fn let_queue_go(&mut self, number: u64, queue: Outbound<Entry>) {
        self.ended.messages += queue.queue_len();
        self.ended.queues.push_back((number, queue));
        // What is short goes at once, and what is too much.
        let surplus = self.ended.messages.saturating_sub(ENDED_MESSAGES_MAX);
        self.let_ended_go(surplus.max(LET_GO_MESSAGES_MAX));
    }

    /// Lets go of up to so many messages that waited for sessions which ended. `false`: there are more.
    pub fn let_ended_go(&mut self, messages_max: usize) -> bool {
        let mut left = messages_max;
        while let Some((number, queue)) = self.ended.queues.front_mut() {
            let number = *number;
            while left > 0
                && let Some(entry) = queue.pop_queued(|middle| self.bodies.read(number, middle))
            {
                left -= 1;
                self.ended.messages -= 1;
                self.dirty.deleted(Key::Entry(number, entry.sequence));
                self.bodies.release(entry.body, &mut self.dirty);
            }
            if queue.queue_len() > 0 {
                return false;
            }
            self.ended.queues.pop_front();
        }
        true
    }

    /// Messages that waited for sessions which ended, and are still there.
    #[must_use]
    pub fn ended_messages(&self) -> usize {
        self.ended.messages
    }

    /// What should be read before it is needed.
    pub fn take_page_requests(&mut self) -> Vec<PageRequest> {
        let mut requests = Vec::new();
        for number in std::mem::take(&mut self.running_out) {
            let session = self.names.get(&number).and_then(|name| self.sessions.get(name));
            if let Some(middle) = session.and_then(|session| session.outbound.middle()) {
                requests.extend(self.bodies.ask(number, middle));
            }
        }
        requests
    }

    /// It was read. What comes too late is let go.
    pub fn take_page(&mut self, page: ReadPage) {
        let session = self.names.get(&page.session).and_then(|name| self.sessions.get_mut(name));
        let middle = session.as_ref().and_then(|session| session.outbound.middle());
        let page = self.bodies.take(page, middle);
        if let (Some(session), Some(page)) = (session, page) {
            session.outbound.take_page(page);
        }
    }
}
