//! Raft messages as bytes, and what is checked of them: `raft-rs` ends the process over a message that an honest peer
//! would not send.

use bytes::Bytes;
use prost011::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};

use super::configuration::Configuration;
use crate::identity::NodeId;

/// Why a peer's message was not taken. The peer's doing, but for [`Self::Forgotten`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes are no message.
    #[error("what node {from} sent is no Raft message: {what}")]
    Malformed {
        /// Who sent it.
        from: NodeId,
        /// What is wrong.
        what: String,
    },
    /// No honest peer in its right mind would send it.
    #[error("node {from} sent a Raft message that cannot be: {what}")]
    Impossible {
        /// Who sent it.
        from: NodeId,
        /// What is wrong.
        what: &'static str,
    },
    /// The leader counts on entries that this node acknowledged, and does not have.
    #[error(
        "node {from} counts on entry {commit}, which this node has acknowledged and does not have: its log ends with {last}"
    )]
    Forgotten {
        /// Who sent it.
        from: NodeId,
        /// What it says is committed and here.
        commit: u64,
        /// Where the log here ends.
        last: u64,
    },
    /// This node has no such group.
    #[error("node {from} sent a Raft message for a group that is not here")]
    UnknownGroup {
        /// Who sent it.
        from: NodeId,
    },
}

/// Length of the context of a question for a read index: who asks, and the question's number there.
pub(super) const READ_CONTEXT_BYTES: usize = 16;

/// Bytes of an entry in a message beside its payload, about.
const ENTRY_OVERHEAD_BYTES: usize = 24;

pub(super) fn encode(message: &Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Cuts a message behind `bytes_max` of entries, or behind the first entry if that is longer. Returns the rest, which is to follow
/// it. Only appends have several entries.
pub(super) fn cut(message: &mut Message, bytes_max: usize) -> Option<Message> {
    let mut bytes = 0;
    let at = message.entries.iter().position(|entry| {
        let is_first = bytes == 0;
        bytes += entry.data.len() + ENTRY_OVERHEAD_BYTES;
        bytes > bytes_max && !is_first
    })?;
    let rest = message.entries.split_off(at);
    let entries = std::mem::take(&mut message.entries);
    let (index, log_term) = entries.last().map(|last| (last.index, last.term))?;
    let rest = Message { index, log_term, entries: rest, ..message.clone() };
    message.entries = entries;
    Some(rest)
}

/// What a group knows that its messages must agree with.
pub(super) struct Known<'a> {
    pub(super) me: NodeId,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) committed: u64,
    pub(super) last: u64,
    /// It may have had more.
    pub(super) forgets: bool,
    pub(super) term_of: &'a dyn Fn(u64) -> Option<u64>,
}

/// The message in `bytes`, if it is one that this group can take from `from`.
pub(super) fn decode(from: NodeId, bytes: Bytes, known: &Known<'_>) -> Result<Message, MessageError> {
    let malformed = |error: prost011::DecodeError| MessageError::Malformed { from, what: error.to_string() };
    let message = Message::decode(bytes).map_err(malformed)?;
    match impossible(from, &message, known) {
        Some(what) => Err(MessageError::Impossible { from, what }),
        None if is_forgotten(&message, known) => {
            Err(MessageError::Forgotten { from, commit: message.commit, last: known.last })
        }
        None => Ok(message),
    }
}

/// A leader says in a heartbeat only what is committed and was acknowledged to it by this node in its term. A log that is synced before it
/// is acknowledged has that, unless it is an older copy, or its disk has lost what it said was safe.
fn is_forgotten(message: &Message, known: &Known<'_>) -> bool {
    let is_heartbeat = message.msg_type == MessageType::MsgHeartbeat as i32;
    is_heartbeat && message.term >= known.term && message.commit > known.last && !known.forgets
}

fn impossible(from: NodeId, message: &Message, known: &Known<'_>) -> Option<&'static str> {
    let Some(kind) = MessageType::from_i32(message.msg_type) else {
        return Some("unknown type");
    };
    if message.from != from.0 || from == known.me || message.to != known.me.0 {
        return Some("not from its sender to this node");
    }
    let has_term = message.term != 0;
    if has_term == (kind == MessageType::MsgReadIndex) {
        return Some("a term where there must be none, or none where there must be one");
    }
    // Of a leader that was deposed: only told of the newer term.
    if has_term && message.term < known.term {
        return None;
    }
    match kind {
        MessageType::MsgAppend => impossible_append(message, known),
        // Terms are never forgotten, and leaders of later ones count anew.
        MessageType::MsgHeartbeat if known.forgets && message.commit > known.last && message.term != known.term => {
            Some("commits what this node does not have")
        }
        MessageType::MsgAppendResponse if message.request_snapshot != 0 => Some("asks for a snapshot of its choice"),
        MessageType::MsgAppendResponse
            if known.leads && message.term == known.term && !message.reject && message.index > known.last =>
        {
            Some("acknowledges what was never sent")
        }
        MessageType::MsgSnapshot => impossible_snapshot(message),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            let sound = matches!(&message.entries[..], [entry] if entry.data.len() == READ_CONTEXT_BYTES);
            (!sound).then_some("a read without its context")
        }
        MessageType::MsgAppendResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => None,
        // Proposals and transfers are not forwarded; the rest never leaves a node.
        _ => Some("a type that does not travel"),
    }
}

/// Whether the entries of an append begin behind its index, and leave none out.
pub(super) fn entries_follow(message: &Message) -> bool {
    let indexes = (message.index..u64::MAX).skip(1);
    message.entries.iter().map(|entry| entry.index).eq(indexes.take(message.entries.len()))
}

fn impossible_append(message: &Message, known: &Known<'_>) -> Option<&'static str> {
    if !entries_follow(message) {
        return Some("entries that do not follow each other");
    }
    if message.entries.iter().any(|entry| entry.term > message.term || EntryType::from_i32(entry.entry_type).is_none())
    {
        return Some("entries of a later term, or of no type");
    }
    // Leader Completeness (Raft, section 5.4): what is committed stands in the log of every later leader.
    let contradicts = |entry: &Entry| {
        entry.index <= known.committed && (known.term_of)(entry.index).is_some_and(|term| term != entry.term)
    };
    message.entries.iter().any(contradicts).then_some("overwrites what is committed")
}

fn impossible_snapshot(message: &Message) -> Option<&'static str> {
    match message.snapshot.as_ref().map(configuration_of) {
        Some(Some(configuration)) if configuration.is_sound() => None,
        _ => Some("a snapshot without a sound configuration"),
    }
}

pub(super) fn configuration_of(snapshot: &Snapshot) -> Option<Configuration> {
    let metadata = snapshot.metadata.as_ref()?;
    (metadata.index > 0).then_some(())?;
    metadata.conf_state.as_ref().map(Configuration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known<'static> {
        Known {
            me: NodeId(1),
            term: 5,
            leads: true,
            committed: 7,
            last: 9,
            forgets: false,
            term_of: &|index| (index <= 9).then_some(5),
        }
    }

    fn message(kind: MessageType) -> Message {
        Message { msg_type: kind as i32, from: 2, to: 1, term: 5, ..Message::default() }
    }

    fn taken(message: &Message) -> bool {
        decode(NodeId(2), encode(message), &known()).is_ok()
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    #[test]
    fn what_an_honest_peer_sends_is_taken() {
        let append = Message { index: 7, entries: vec![entry(8, 5), entry(9, 5)], ..message(MessageType::MsgAppend) };
        assert!(taken(&append));
        assert!(taken(&Message { commit: 9, ..message(MessageType::MsgHeartbeat) }));
        assert!(taken(&message(MessageType::MsgRequestVote)));
        // An old leader does not know what was committed since.
        assert!(taken(&Message { index: 5, entries: vec![entry(6, 4)], term: 4, ..message(MessageType::MsgAppend) }));
    }

    /// What goes out as one append and does not fit into one message is taken as the same, and no part is empty.
    #[test]
    fn an_append_in_parts_is_the_same_append() {
        let sizes = [0, 0, 300, 10, 10, 10, 900, 0, 40, 40, 40, 5000];
        let all: Vec<Entry> = (8..)
            .zip(sizes)
            .map(|(index, size)| Entry { data: vec![index as u8; size].into(), ..entry(index, 3 + index % 2) })
            .collect();
        let whole =
            Message { index: 7, log_term: 3, entries: all.clone(), commit: 9, ..message(MessageType::MsgAppend) };
        for bytes_max in [0, 1, 100, 350, 1000, 10_000] {
            let (mut next, mut joined) = (Some(whole.clone()), Vec::new());
            let mut before = (7, 3);
            while let Some(mut part) = next {
                next = cut(&mut part, bytes_max);
                assert_eq!((part.index, part.log_term), before, "at most {bytes_max} bytes");
                assert_eq!((part.commit, part.term, part.to), (whole.commit, whole.term, whole.to));
                assert!(entries_follow(&part) && !part.entries.is_empty());
                let bytes: usize = part.entries.iter().map(|entry| entry.data.len()).sum();
                assert!(bytes <= bytes_max || part.entries.len() == 1, "{bytes} bytes, at most {bytes_max}");
                before = part.entries.last().map(|last| (last.index, last.term)).unwrap();
                joined.extend(part.entries);
            }
            assert_eq!(joined, all, "at most {bytes_max} bytes");
        }
        assert_eq!(cut(&mut message(MessageType::MsgHeartbeat), 0), None);
    }

    /// F14: each of these ends the process inside of raft-rs.
    #[test]
    fn what_would_end_the_process_is_refused() {
        let append = |index, entries| Message { index, entries, ..message(MessageType::MsgAppend) };
        let impossible = [
            append(7, vec![entry(8, 5), entry(10, 5)]),
            append(6, vec![entry(7, 4)]),
            append(u64::MAX, vec![entry(8, 5)]),
            append(7, vec![entry(8, 6)]),
            Message { index: 10, ..message(MessageType::MsgAppendResponse) },
            Message { term: 0, entries: vec![], ..message(MessageType::MsgReadIndex) },
            message(MessageType::MsgReadIndexResp),
            message(MessageType::MsgPropose),
            message(MessageType::MsgHup),
            message(MessageType::MsgSnapshot),
            Message { from: 3, ..message(MessageType::MsgHeartbeat) },
            Message { term: 0, ..message(MessageType::MsgReadIndexResp) },
            Message { msg_type: 99, ..message(MessageType::MsgHeartbeat) },
        ];
        for message in impossible {
            assert!(!taken(&message), "{message:?}");
        }
        let later = Message { term: 6, commit: 10, ..message(MessageType::MsgHeartbeat) };
        let forgets = Known { forgets: true, ..known() };
        assert!(matches!(decode(NodeId(2), encode(&later), &forgets), Err(MessageError::Impossible { .. })));
        assert!(matches!(
            decode(NodeId(2), Bytes::from_static(b"\xff\xff\xff"), &known()),
            Err(MessageError::Malformed { .. })
        ));
    }
    /// It would end the process inside of raft-rs. What a leader of an earlier term says counts for nothing, and who does not wait for
    /// its syncs may lack what it acknowledged in this term.
    #[test]
    fn a_leader_that_counts_on_more_than_there_is_tells_of_a_log_that_was_lost() {
        let heartbeat = |term, commit| encode(&Message { term, commit, ..message(MessageType::MsgHeartbeat) });
        let forgotten = |term, commit, known: &Known<'_>| {
            matches!(decode(NodeId(2), heartbeat(term, commit), known), Err(MessageError::Forgotten { .. }))
        };
        assert!(forgotten(5, 10, &known()) && forgotten(6, 10, &known()));
        assert!(!forgotten(5, 9, &known()) && !forgotten(4, 10, &known()));
        assert!(decode(NodeId(2), heartbeat(5, 10), &Known { forgets: true, ..known() }).is_ok());
    }
}
