//! Durability `memory`: a power cut may take back what a node acknowledged.
//!
//! A leader goes on with what it counted before, though the node's log ends earlier now, or even with entries of an earlier term that were
//! overwritten. Terms and votes are never taken back, so that is a matter of one term: leaders of later ones count anew. In that term the node
//! believes no commit beyond what it has heard of since its start, and says so as if it had refused entries; and a leader that hears of
//! less than it counted counts less. What is committed stays so: others have it.

use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, RawNode};

use super::storage::GroupStorage;

/// What a node knows of its log that may have lost its end.
#[derive(Debug)]
pub(super) struct Forgetful {
    /// The term at the start.
    started_in: u64,
    /// Up to here the log is that of a leader that was heard since.
    verified: u64,
}

impl Forgetful {
    pub(super) fn new(started_in: u64) -> Self {
        Self { started_in, verified: 0 }
    }

    /// Before a message is taken. Returns what to say to its sender.
    pub(super) fn amend(&mut self, raw: &mut RawNode<GroupStorage>, message: &mut Message) -> Option<Message> {
        match message.get_msg_type() {
            MessageType::MsgAppend => self.verify(raw, message),
            MessageType::MsgHeartbeat => return self.doubt(raw, message),
            MessageType::MsgAppendResponse if message.reject => count_less(raw, message),
            _ => {}
        }
        None
    }

    fn verify(&mut self, raw: &RawNode<GroupStorage>, message: &Message) {
        let raft = &raw.raft;
        if message.term >= raft.term && raft.raft_log.match_term(message.index, message.log_term) {
            self.verified = self.verified.max(message.index + message.entries.len() as u64);
        }
    }

    /// A commit index that counts on what may be gone is none.
    fn doubt(&self, raw: &RawNode<GroupStorage>, message: &mut Message) -> Option<Message> {
        let log = &raw.raft.raft_log;
        let known = self.verified.min(log.last_index()).max(log.committed);
        let is_doubtful = message.term == self.started_in || message.commit > log.last_index();
        if !is_doubtful || message.term != raw.raft.term || message.commit <= known {
            return None;
        }
        let refusal = Message {
            msg_type: MessageType::MsgAppendResponse as i32,
            from: message.to,
            to: message.from,
            term: message.term,
            index: message.commit,
            reject: true,
            reject_hint: known,
            log_term: log.term(known).unwrap_or(0),
            ..Message::default()
        };
        message.commit = known;
        Some(refusal)
    }
}

/// At the leader. That a refusal is an old one does no harm: then something is sent once more.
fn count_less(raw: &mut RawNode<GroupStorage>, refusal: &Message) {
    if refusal.term != raw.raft.term {
        return;
    }
    if let Some(progress) = raw.raft.mut_prs().get_mut(refusal.from)
        && progress.state != ProgressState::Snapshot
        && refusal.reject_hint < progress.matched
    {
        progress.matched = refusal.reject_hint;
        progress.become_probe();
    }
}
