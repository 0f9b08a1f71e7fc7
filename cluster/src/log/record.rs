//! What the log is made of: records, and their bytes.

use bytes::Bytes;

use crate::identity::GroupId;

const RECORD_MARK: u32 = 0x4B52_4543;

/// Mixed into the mark and the CRC of each record of a segment. Payloads are what clients send, and no client knows it: so none can make
/// one that looks like a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Salt(pub(super) u64);

impl Salt {
    fn mark(self) -> [u8; 4] {
        (RECORD_MARK ^ (self.0 >> 32) as u32).to_le_bytes()
    }

    fn crc(self, covered: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0 as u32);
        hasher.update(covered);
        hasher.finalize()
    }
}

/// Mark, CRC, length, synced, kind, group, three numbers.
pub(super) const RECORD_BYTES: usize = 4 + 4 + 4 + 8 + 1 + 2 + 3 * 8;

/// Largest payload of one record; larger is damage.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// A place in a group's log: an index, and the term of the entry there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogId {
    /// Counted from 1.
    pub index: u64,
    /// Of the leader that proposed the entry.
    pub term: u64,
}

/// What a group must remember over a restart (Raft, figure 2: `currentTerm`, `votedFor`), and how far it knew the log
/// to be committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: u64,
    /// Who got this node's vote in it; 0 if nobody.
    pub vote: u64,
    /// Known to be committed; may lag.
    pub commit: u64,
}

/// What an entry's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Packed commands, or nothing.
    Commands,
    /// One change of the voters.
    ConfChange,
    /// Changes of the voters, perhaps by a joint step.
    ConfChangeV2,
}

/// An entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub id: LogId,
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes.
    pub payload: Bytes,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Goes to the end of the group's log, or takes the place of what stands at its index and behind.
    Entry(LogEntry),
    HardState(HardState),
    /// The group's log begins after this. Whatever it held is gone, unless it ends exactly here.
    Base(LogId),
}

const KIND_COMMANDS: u8 = 0;
const KIND_CONF_CHANGE: u8 = 1;
const KIND_CONF_CHANGE_V2: u8 = 2;
const KIND_HARD_STATE: u8 = 3;
const KIND_BASE: u8 = 4;

impl EntryKind {
    fn code(self) -> u8 {
        match self {
            Self::Commands => KIND_COMMANDS,
            Self::ConfChange => KIND_CONF_CHANGE,
            Self::ConfChangeV2 => KIND_CONF_CHANGE_V2,
        }
    }
}

pub(super) fn encode_entry(
    buffer: &mut Vec<u8>,
    (salt, synced): (Salt, u64),
    group: GroupId,
    id: LogId,
    kind: EntryKind,
    payload: &[u8],
) {
    encode(buffer, (salt, synced), group, kind.code(), [id.index, id.term, 0], payload);
}

pub(super) fn encode_hard_state(buffer: &mut Vec<u8>, at: (Salt, u64), group: GroupId, hard: HardState) {
    encode(buffer, at, group, KIND_HARD_STATE, [hard.term, hard.vote, hard.commit], &[]);
}

pub(super) fn encode_base(buffer: &mut Vec<u8>, at: (Salt, u64), group: GroupId, base: LogId) {
    encode(buffer, at, group, KIND_BASE, [base.index, base.term, 0], &[]);
}

fn encode(
    buffer: &mut Vec<u8>,
    (salt, synced): (Salt, u64),
    group: GroupId,
    kind: u8,
    numbers: [u64; 3],
    payload: &[u8],
) {
    let start = buffer.len();
    buffer.extend_from_slice(&salt.mark());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&synced.to_le_bytes());
    buffer.push(kind);
    buffer.extend_from_slice(&group.0.to_le_bytes());
    for number in numbers {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
    buffer.extend_from_slice(payload);
    let crc = salt.crc(&buffer[start + 8..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// A record as it was found.
pub(super) struct Parsed {
    pub(super) group: GroupId,
    pub(super) record: Record,
    pub(super) synced: u64,
    pub(super) length: usize,
}

pub(super) fn parse(bytes: &Bytes, at: usize, salt: Salt) -> Option<Parsed> {
    if *bytes.get(at..at + 4)? != salt.mark() {
        return None;
    }
    let length = u32_at(bytes, at + 8)? as usize;
    if length > PAYLOAD_BYTES_MAX {
        return None;
    }
    let end = at.checked_add(RECORD_BYTES)?.checked_add(length)?;
    let covered = bytes.get(at + 8..end)?;
    if salt.crc(covered) != u32_at(bytes, at + 4)? {
        return None;
    }
    let group = GroupId(u16::from_le_bytes(bytes.get(at + 21..at + 23)?.try_into().ok()?));
    let [first, second, third] = [u64_at(bytes, at + 23)?, u64_at(bytes, at + 31)?, u64_at(bytes, at + 39)?];
    let entry = |kind| {
        let payload = bytes.slice(at + RECORD_BYTES..end);
        Record::Entry(LogEntry { id: LogId { index: first, term: second }, kind, payload })
    };
    let record = match *bytes.get(at + 20)? {
        KIND_COMMANDS => entry(EntryKind::Commands),
        KIND_CONF_CHANGE => entry(EntryKind::ConfChange),
        KIND_CONF_CHANGE_V2 => entry(EntryKind::ConfChangeV2),
        KIND_HARD_STATE => Record::HardState(HardState { term: first, vote: second, commit: third }),
        KIND_BASE => Record::Base(LogId { index: first, term: second }),
        _ => return None,
    };
    Some(Parsed { group, record, synced: u64_at(bytes, at + 12)?, length: end - at })
}

/// Whether some record behind the damage at `damaged` knew that place to be on disk. `start` is the segment's position.
///
/// Payloads are what clients send, and in a segment that was begun without a salt one may look like a record. Within one that is whole
/// nothing is looked for; within what is left of one that is not, whoever claims to know of more than stands before it is none of ours.
pub(super) fn was_synced(start: u64, bytes: &Bytes, damaged: usize, salt: Salt) -> bool {
    let mark = salt.mark();
    let mut from = damaged + 1;
    while let Some(found) = bytes[from.min(bytes.len())..].windows(4).position(|window| window == mark) {
        let at = from + found;
        from = at + 1;
        if let Some(parsed) = parse(bytes, at, salt) {
            if parsed.synced > start + damaged as u64 && parsed.synced <= start + at as u64 {
                return true;
            }
            from = at + parsed.length;
        }
    }
    false
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
