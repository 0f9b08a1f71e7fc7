//! Questions for a read index (Raft, section 6.4) that wait for their answer.
//!
//! `raft-rs` drops such a question silently where there is no leader, or the leader has not committed in its term yet. So
//! each is asked again after a while, and given up after a longer one.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes};

use super::message::READ_CONTEXT_BYTES;
use crate::identity::NodeId;

#[derive(Debug, Clone, Copy)]
struct Read {
    token: u64,
    give_up_at: u64,
}

#[derive(Debug)]
struct Asked {
    reads: Vec<Read>,
    again_at: u64,
}

/// All reads of one group on one node. Times are ticks.
#[derive(Debug)]
pub(super) struct Reads {
    me: NodeId,
    again_ticks: u64,
    waiting: Vec<Read>,
    /// Reads that wait for the answer to one question.
    asked: BTreeMap<u64, Asked>,
    /// Reads that wait for their index to be handed out.
    confirmed: VecDeque<(u64, Vec<Read>)>,
    /// Begins at random at each start: an answer meant for an earlier process must not pass for one of this.
    next_question: u64,
}

/// Retries after which a read is given up.
const ATTEMPTS: u64 = 8;

impl Reads {
    pub(super) fn new(me: NodeId, again_ticks: u64, first_question: u64) -> Self {
        Self {
            me,
            again_ticks,
            waiting: Vec::new(),
            asked: BTreeMap::new(),
            confirmed: VecDeque::new(),
            next_question: first_question,
        }
    }

    pub(super) fn add(&mut self, token: u64, now: u64) {
        self.waiting.push(Read { token, give_up_at: now + self.again_ticks * ATTEMPTS });
    }

    /// The question to be asked for all that wait.
    pub(super) fn ask(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.waiting.is_empty() {
            return None;
        }
        let question = self.next_question;
        self.next_question = question.wrapping_add(1);
        let asked = Asked { reads: std::mem::take(&mut self.waiting), again_at: now + self.again_ticks };
        self.asked.insert(question, asked);
        Some([self.me.0.to_be_bytes(), question.to_be_bytes()].concat())
    }

    pub(super) fn answered(&mut self, index: u64, context: &[u8]) {
        if context.len() != READ_CONTEXT_BYTES {
            return;
        }
        let mut context = Bytes::copy_from_slice(context);
        if context.get_u64() == self.me.0
            && let Some(asked) = self.asked.remove(&context.get_u64())
        {
            self.confirmed.push_back((index, asked.reads));
        }
    }

    /// Tokens of reads that may be answered from what was handed out.
    pub(super) fn take_ready(&mut self, handed_out: u64) -> Vec<(u64, u64)> {
        let mut ready = Vec::new();
        self.confirmed.retain(|(index, reads)| {
            if *index <= handed_out {
                ready.extend(reads.iter().map(|read| (read.token, *index)));
            }
            *index > handed_out
        });
        ready
    }

    /// Reads whose answer is late are asked again; tokens of those that are given up are returned.
    pub(super) fn tick(&mut self, now: u64) -> Vec<u64> {
        while let Some(entry) = self.asked.first_entry()
            && entry.get().again_at <= now
        {
            self.waiting.extend(entry.remove().reads);
        }
        let mut given_up = Vec::new();
        self.waiting.retain(|read| {
            if read.give_up_at <= now {
                given_up.push(read.token);
            }
            read.give_up_at > now
        });
        given_up
    }
}
