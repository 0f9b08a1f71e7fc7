//! The log of all groups: segments of records, one writer, one sync a round.
//!
//! A segment is a file `log-NUMBER-SALT`: a header, an *opening*, then records, and in the last segment perhaps zeros. A record is
//!
//! ```text
//! mark u32 | crc u32 | length u32 | synced u64 | kind u8 | group u16 | three numbers u64 | payload
//! ```
//!
//! An *entry* has index, term and payload; it takes the place of whatever stood at its index and behind (Raft lets a
//! leader overwrite what was never committed). A *hard state* has term, vote and commit. A *base* has the index and term
//! after which the group's log begins; it is written when a group is made and when a snapshot took the place of its log. One that the
//! log goes through needs none: a torn write may leave a base and nothing that was to stand behind it, so entries that somebody counts
//! on are never written again behind one, but in an opening.
//! The opening of a segment is the base and hard state of every group as of its beginning, so that the segments before
//! it may go. Of a group that was idle and has entries that no checkpoint can take, it has those entries as well, behind a
//! base before them: else they would keep every segment from theirs on. An opening is whole or was never begun, so what
//! stands in it takes the place of what stood before it, and none of it can be lost in between.
//!
//! `crc` covers everything after it. `synced` is the position in the log (bytes since its beginning, over all segments)
//! up to which everything was known to be on disk when the record was written. That tells a torn end, which a power cut
//! may leave, from damage to what was acknowledged: if a later record says that the damaged place had been synced, the log
//! is damaged and is not touched.
//!
//! Small rounds find room that was *written ahead*: zeros behind the records, so that their sync has nothing to write but them, and not
//! the file's new length and blocks as well. What a power cut leaves is the same but for such zeros, which are no record and vouch for
//! none: they are cut off at start. A segment is written ahead only when its header and opening are safe, since bytes behind an opening
//! say that it was, and not beyond the length at which it is full. So all that was written ahead is records when the next segment is
//! begun, and only the last one may have anything else.
//!
//! What is left of a torn record may be a part of its payload, and payloads are what clients send: one that looks like a record behind it, and
//! guesses where it stands, would make a power cut pass for such damage, and keep the node from starting. So each segment has a *salt*, drawn
//! by the process that begins it, which goes into the marks and CRCs of its records. It stands in the name, which is safe whatever becomes of
//! the bytes. Segments of version 2 have none: they are read and, if one is the last, written on until it is full.

mod record;
mod under_way;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::record::{EntryKind, HardState, LogEntry, LogId};
use self::record::{Record, Salt, parse, u32_at, u64_at, was_synced};
pub use self::under_way::UnderWay;
use crate::disk::{AppendFile, Disk, SyncSite, is_out_of_descriptors};
use crate::identity::GroupId;

const SEGMENT_MAGIC: &[u8; 8] = b"KTGLOG\0\0";

/// Raised when the bytes of a segment change their meaning.
pub const FORMAT_VERSION: u32 = 3;

/// The first that is read as well: segments without a salt.
const FORMAT_VERSION_MIN: u32 = 2;

/// Magic, version, the segment's position in the log, length of the opening, CRC of those.
const HEADER_BYTES: usize = 8 + 4 + 8 + 4 + 4;

/// Payload that one opening may take over. Several times what a group may have uncommitted.
const CARRIED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The log is written ahead up to the next multiple of this.
const AHEAD_BYTES: u64 = 256 * 1024;

/// From this length on a round makes up for its sync's work on the file, and would have to be written twice.
const LARGE_ROUND_BYTES: usize = 16 * 1024;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("log: {0}")]
    Io(#[from] io::Error),
    /// Written by another version.
    #[error(
        "{file} has log format {found}; this version knows {FORMAT_VERSION_MIN} to {FORMAT_VERSION}: use the version that wrote it"
    )]
    OtherFormat {
        /// The segment.
        file: String,
        /// Its version.
        found: u32,
    },
    /// Bytes that had been synced are not what was written.
    #[error(
        "{file} is damaged at byte {offset}, where records were safely on disk before: restore this data directory from \
         a backup, or start with an empty one; nothing was changed"
    )]
    Damaged {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
    },
    /// Entries are missing between a checkpoint and the log, or within the log.
    #[error("the log of group {group} goes on at {found} where {expected} was expected: part of it is missing")]
    Gap {
        /// Whose.
        group: GroupId,
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
}

/// What the log has of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLog {
    /// The entries begin after this. The term is 0 where it is no longer known; then a checkpoint lies beyond.
    pub base: LogId,
    /// Consecutive.
    pub entries: Vec<LogEntry>,
    /// As last written.
    pub hard: HardState,
}

impl GroupLog {
    /// Where it ends.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    /// The term of the entry at `index`, if that is still known.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        let behind_base = index.checked_sub(self.base.index)? as usize;
        match behind_base.checked_sub(1) {
            None => Some(self.base.term),
            Some(at) => self.entries.get(at).map(|entry| entry.id.term),
        }
    }

    fn put(&mut self, group: GroupId, entry: LogEntry) -> Result<(), LogError> {
        let (index, expected) = (entry.id.index, self.last().index + 1);
        if index > expected {
            return Err(LogError::Gap { group, expected, found: index });
        }
        match index.checked_sub(self.base.index + 1) {
            Some(kept) => self.entries.truncate(kept as usize),
            // The overwritten entries are in segments that went because a checkpoint lies beyond them.
            None => {
                self.base = LogId { index: index.saturating_sub(1), term: 0 };
                self.entries.clear();
            }
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// What a segment's opening says of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Tail {
    last: LogId,
    hard: HardState,
}

/// What a new segment takes over of a group, so that those before it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Up to where a checkpoint has everything.
    pub base: LogId,
    /// All that the log has behind it.
    pub entries: Vec<LogEntry>,
}

impl Carried {
    /// Whether nothing is missing between the checkpoint and where the log ends.
    fn is_whole(&self, last: LogId) -> bool {
        self.entries.first().is_some_and(|first| first.id.index == self.base.index + 1)
            && self.entries.last().is_some_and(|entry| entry.id == last)
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.payload.len()).sum()
    }
}

#[derive(Debug)]
struct Segment {
    name: String,
    /// Its first byte's position in the log.
    start: u64,
    salt: Salt,
    /// Up to where each group needs a segment before it: where its log ended when it was begun, or what was taken over
    /// begins.
    opening: BTreeMap<GroupId, u64>,
}

/// The log, open for writing.
pub struct Log {
    disk: Arc<dyn Disk>,
    segments: Vec<Segment>,
    file: Box<dyn AppendFile>,
    /// Length of the last segment: of its records, not of what is written ahead.
    length: u64,
    /// Where its file ends.
    file_length: u64,
    /// A small round that ends beyond this is cause to write ahead.
    ahead: u64,
    /// Nothing is written ahead that would leave less free.
    free_bytes_reserve: u64,
    salt: Salt,
    /// Position up to which everything is on disk.
    synced: u64,
    segment_bytes: u64,
    buffer: Vec<u8>,
    /// Every group with what was added.
    tails: BTreeMap<GroupId, Tail>,
    /// Syncs of rounds, and the time they took.
    syncs: (u64, Duration),
    under_way: Arc<UnderWay>,
    /// See [`Self::is_overlong`]; that it is so has been said.
    is_overlong: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Log").field("segments", &self.segments.len()).field("synced", &self.synced).finish()
    }
}

impl Log {
    /// Reads what is there, cuts a torn end off, and opens the log for writing.
    ///
    /// # Errors
    /// The disk failed, or what was safely written before is not there.
    pub fn open(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<(Self, BTreeMap<GroupId, GroupLog>), LogError> {
        let mut names: Vec<_> = disk.list()?.into_iter().filter(|name| name.starts_with("log-")).collect();
        let (mut last, unfinished) = part_unfinished(&*disk, &mut names)?;
        // A segment is begun only where the log is safe.
        let safe = unfinished.iter().map(|name| begin_of(name).0).max().unwrap_or(0);
        let mut segments: Vec<Segment> = Vec::new();
        let mut groups: BTreeMap<GroupId, GroupLog> = BTreeMap::new();
        let mut position = None;
        for (number, name) in names.iter().enumerate() {
            let bytes = match last.take_if(|_| number + 1 == names.len()) {
                Some(bytes) => bytes,
                None => Bytes::from(disk.read(name)?),
            };
            let (start, salt) = begin_of(name);
            // A power cut may bring one back that an earlier process began at the same place, and that was removed as unfinished.
            let is_last = names[number + 1..].iter().all(|next| begin_of(next).0 == start);
            // The first segment kept has all that is known: only the very first one may be unfinished.
            let may_be_unfinished = is_last && (number > 0 || start == 0);
            let Some(header) = read_header(name, &bytes, may_be_unfinished)? else {
                // Made, but its opening never reached the disk: nothing was ever acknowledged from it.
                disk.remove(name)?;
                continue;
            };
            if position.is_some_and(|position| position != header.start) {
                return Err(LogError::Damaged { file: name.clone(), offset: 0 });
            }
            let opening_end = HEADER_BYTES + header.opening;
            let mut opening = BTreeMap::new();
            let end = read_records((name, header.start, salt), &bytes, is_last, opening_end, |at, group, record| {
                if at < opening_end
                    && let Record::Base(base) = record
                {
                    opening.insert(group, base.index);
                }
                take(&mut groups, group, record)
            })?;
            // The one that was begun there, and never finished, says so.
            if is_last && header.start + (end as u64) < safe {
                return Err(LogError::Damaged { file: name.clone(), offset: end as u64 });
            }
            if end < bytes.len() {
                let mut file = disk.append_to(name)?;
                file.truncate(end as u64)?;
                // Zeros alone were written ahead.
                if bytes[end..].iter().any(|&byte| byte != 0) {
                    tracing::warn!(file = %name, bytes = bytes.len() - end, "cut the torn end of the log off: as far as the log can tell, it was never acknowledged");
                }
            }
            position = Some(header.start + end as u64);
            segments.push(Segment { name: name.clone(), start: header.start, salt, opening });
        }
        // Not before: they say what may not be missing, at the next start too.
        for name in &unfinished {
            disk.remove(name)?;
        }
        let log = match segments.last() {
            None => Self::start(disk, segment_bytes)?,
            Some(last) => {
                let end = position.unwrap_or(last.start);
                let mut file = disk.append_to(&last.name)?;
                // Whole records that an earlier process wrote but did not sync are taken, so they must be safe now, and
                // so must the name of their segment. What was cut off or removed above is gone for good with them.
                file.sync(SyncSite::LogReopened)?;
                disk.sync_directory(SyncSite::LogReopenedNames)?;
                let (length, salt) = (end - last.start, last.salt);
                let tails = groups.iter().map(|(&group, log)| (group, Tail { last: log.last(), hard: log.hard }));
                let tails = tails.collect();
                let syncs = Default::default();
                Self {
                    disk,
                    segments,
                    file,
                    length,
                    file_length: length,
                    ahead: length,
                    free_bytes_reserve: 0,
                    salt,
                    synced: end,
                    segment_bytes,
                    buffer: Vec::new(),
                    tails,
                    syncs,
                    under_way: Arc::default(),
                    is_overlong: false,
                }
            }
        };
        Ok((log, groups))
    }

    fn start(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<Self, LogError> {
        let (name, salt) = segment_at(&*disk, 0);
        let file = disk.append_to(&name)?;
        let mut log = Self {
            disk,
            segments: Vec::new(),
            file,
            length: 0,
            file_length: 0,
            ahead: 0,
            free_bytes_reserve: 0,
            salt,
            synced: 0,
            segment_bytes,
            buffer: Vec::new(),
            tails: BTreeMap::new(),
            syncs: Default::default(),
            under_way: Arc::default(),
            is_overlong: false,
        };
        log.begin_segment(0, &BTreeMap::new())?;
        Ok(log)
    }

    fn begin_segment(&mut self, start: u64, carried: &BTreeMap<GroupId, Carried>) -> io::Result<()> {
        let (name, salt) = segment_at(&*self.disk, start);
        let at = (salt, self.synced);
        let mut opening = Vec::new();
        let mut bases = BTreeMap::new();
        for (&group, tail) in &self.tails {
            let carried = carried.get(&group);
            let base = carried.map_or(tail.last, |carried| carried.base);
            record::encode_base(&mut opening, at, group, base);
            for entry in carried.iter().flat_map(|carried| &carried.entries) {
                record::encode_entry(&mut opening, at, group, entry.id, entry.kind, &entry.payload);
            }
            record::encode_hard_state(&mut opening, at, group, tail.hard);
            bases.insert(group, base.index);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + opening.len());
        bytes.extend_from_slice(SEGMENT_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&(opening.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend_from_slice(&opening);
        let _under_way = self.under_way.begin();
        let mut file = self.disk.append_to(&name)?;
        file.truncate(0)?;
        file.append(&bytes)?;
        // All of it is written, so it may come back whole after a power cut, whatever is done about it now: nobody may go on without
        // it as if there had been no room.
        file.sync(SyncSite::LogSegmentHeader).map_err(io::Error::other)?;
        self.disk.sync_directory(SyncSite::LogSegmentName).map_err(io::Error::other)?;
        self.file = file;
        self.length = bytes.len() as u64;
        (self.file_length, self.ahead) = (self.length, self.length);
        self.salt = salt;
        self.synced = start + self.length;
        self.segments.push(Segment { name, start, salt, opening: bases });
        Ok(())
    }

    /// Adds an entry to the round, in the place of whatever stands at its index and behind. Nothing is written before
    /// [`Self::write`].
    ///
    /// # Panics
    /// Entries would be missing before it: a broken invariant of ours, which must not reach the disk.
    pub fn add_entry(&mut self, group: GroupId, id: LogId, kind: EntryKind, payload: &[u8]) {
        let tail = self.tails.entry(group).or_default();
        assert!(id.index <= tail.last.index + 1, "the log of group {group} would have a gap before {}", id.index);
        tail.last = id;
        record::encode_entry(&mut self.buffer, (self.salt, self.synced), group, id, kind, payload);
    }

    /// Adds a group's hard state to the round.
    pub fn add_hard_state(&mut self, group: GroupId, hard: HardState) {
        self.tails.entry(group).or_default().hard = hard;
        record::encode_hard_state(&mut self.buffer, (self.salt, self.synced), group, hard);
    }

    /// Adds to the round that the log of a group begins after `base`.
    pub fn add_base(&mut self, group: GroupId, base: LogId) {
        self.tails.entry(group).or_default().last = base;
        record::encode_base(&mut self.buffer, (self.salt, self.synced), group, base);
    }

    /// Whether something was added and not written.
    #[must_use]
    pub fn has_round(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Writes the round. On an error it is still there, to be written again when there is room.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end = self.length + self.buffer.len() as u64;
        let _under_way = self.under_way.begin();
        if self.buffer.len() < LARGE_ROUND_BYTES && end > self.ahead {
            self.write_ahead(end);
        }
        if let Err(error) = self.file.append(&self.buffer) {
            // A part of it may stand there now.
            self.cut_ahead()?;
            return Err(error);
        }
        self.length = end;
        self.file_length = self.file_length.max(end);
        self.buffer.clear();
        if self.buffer.capacity() > 8 * 1024 * 1024 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Writes ahead of a round that will end at `end`. The log goes on if that fails.
    fn write_ahead(&mut self, end: u64) {
        // Not beyond the end of a full segment, so that it has its records only. The header and the opening are safe.
        let until = (end / AHEAD_BYTES + 1).saturating_mul(AHEAD_BYTES).min(self.segment_bytes);
        if until <= end {
            return;
        }
        // Whether there is room or not: the next try is at the next step.
        self.ahead = until;
        // As much again must be left, also where nothing is kept free for others.
        let room = 2 * until.saturating_sub(self.file_length);
        let has_room = |free: u64| free.saturating_sub(self.free_bytes_reserve) >= room;
        if !self.disk.free_bytes().is_ok_and(has_room) {
            return;
        }
        // Where it failed, a part of it may stand there.
        self.file_length = until;
        if let Err(error) = self.file.reserve(until) {
            tracing::debug!(%error, "the log is not written ahead");
        }
    }

    /// Leaves nothing behind the records, whatever stands there.
    fn cut_ahead(&mut self) -> io::Result<()> {
        self.file.truncate(self.length)?;
        self.file_length = self.length;
        Ok(())
    }

    /// Nothing is written ahead that would leave less than this free. At first that is 0.
    pub fn keep_free(&mut self, bytes: u64) {
        self.free_bytes_reserve = bytes;
    }

    /// Makes what was written survive a power cut, and leaves nothing behind it: for now nothing more is added.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn end(&mut self) -> io::Result<()> {
        if self.file_length > self.length {
            self.cut_ahead()?;
        }
        self.sync(SyncSite::LogEnd)
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// The disk failed. The process must end: what the disk has now is unknown.
    pub fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        let began = Instant::now();
        let _under_way = self.under_way.begin();
        self.file.sync(site)?;
        self.syncs.0 += 1;
        self.syncs.1 += began.elapsed();
        if let Some(segment) = self.segments.last() {
            self.synced = segment.start + self.length;
        }
        Ok(())
    }

    /// Tells from any thread how long the log has waited for the disk.
    #[must_use]
    pub fn under_way(&self) -> &Arc<UnderWay> {
        &self.under_way
    }

    /// How often [`Self::sync`] was called, and the time it took.
    #[must_use]
    pub fn syncs(&self) -> (u64, Duration) {
        self.syncs
    }

    /// Begins a new segment if the last one is full. Call after [`Self::sync`]. Where there is no room for one, or no descriptor, the
    /// old segment is just longer.
    ///
    /// `stuck` is asked for each group of which nothing came since the last segment began: what its log has behind its
    /// checkpoint, if no checkpoint can take that.
    ///
    /// # Errors
    /// The disk failed.
    pub fn rotate_if_full(&mut self, stuck: impl Fn(GroupId) -> Option<Carried>) -> io::Result<()> {
        let Some(segment) = self.segments.last() else {
            return Ok(());
        };
        // What is still to be written has the salt of this segment.
        if self.length < self.segment_bytes || self.has_round() {
            return Ok(());
        }
        debug_assert_eq!(self.file_length, self.length, "a full segment has nothing but its records");
        let end = segment.start + self.length;
        let is_idle = |(&group, tail): (&GroupId, &Tail)| {
            (segment.opening.get(&group) == Some(&tail.last.index)).then_some((group, tail.last))
        };
        let idle = self.tails.iter().filter_map(is_idle);
        let mut room = CARRIED_BYTES_MAX;
        let mut taken_over = BTreeMap::new();
        for (group, last) in idle {
            // Whoever finds no room has its turn at a later segment.
            if let Some(carried) = stuck(group).filter(|carried| carried.is_whole(last) && carried.bytes() <= room) {
                room -= carried.bytes();
                taken_over.insert(group, carried);
            }
        }
        match self.begin_segment(end, &taken_over) {
            Err(error) if is_full(&error) => {
                // Nor is its directory synced, for which there may be no room either. Not all of it was written: if a power cut brings
                // it back, it is the last segment and is found unfinished, because a later one is only begun with a directory that
                // has lost it. What was written to the old one meanwhile goes on behind its place, and may be torn.
                match self.disk.remove(&segment_at(&*self.disk, end).0) {
                    // There was no room for its name.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                }
            }
            // Nothing was made: it is the first thing that a segment takes.
            Err(error) if is_out_of_descriptors(&error) => {
                if !std::mem::replace(&mut self.is_overlong, true) {
                    tracing::error!(
                        %error,
                        "no new segment of the log can be opened (RLIMIT_NOFILE): the old one is written on until one can be"
                    );
                }
                Ok(())
            }
            result => {
                if std::mem::take(&mut self.is_overlong) {
                    tracing::info!("a new segment of the log can be opened again");
                }
                result
            }
        }
    }

    /// Removes the segments of which every entry is in a checkpoint; the last one always stays.
    ///
    /// # Errors
    /// The disk failed.
    pub fn purge(&mut self, checkpointed: &BTreeMap<GroupId, u64>) -> io::Result<usize> {
        let _under_way = self.under_way.begin();
        let covered = |(group, last): (&GroupId, &u64)| checkpointed.get(group).is_some_and(|applied| applied >= last);
        // What lies before a segment is no longer needed once every group's checkpoint reaches its opening.
        let needless = self.segments.iter().rposition(|segment| segment.opening.iter().all(covered)).unwrap_or(0);
        // In their order, and none is forgotten that is still there: a segment behind one that stayed would be missing at the next start.
        for _ in 0..needless {
            let removed = self.segments.first().map_or(Ok(()), |segment| self.disk.remove(&segment.name));
            match removed {
                // Somebody else did.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.segments.remove(0)),
            }
        }
        if needless > 0 {
            self.disk.sync_directory(SyncSite::LogPurged)?;
        }
        Ok(needless)
    }

    /// Bytes from the first record kept to the last one's end. What is written ahead does not count.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match (self.segments.first(), self.segments.last()) {
            (Some(first), Some(last)) => last.start + self.length - first.start,
            _ => 0,
        }
    }

    /// Bytes that the disk can still take.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let _under_way = self.under_way.begin();
        self.disk.free_bytes()
    }

    /// Whether the last segment is longer than it should be, because no descriptor was left for the next one.
    #[must_use]
    pub fn is_overlong(&self) -> bool {
        self.is_overlong
    }

    /// Whether a checkpoint would find the descriptors that it wants.
    #[must_use]
    pub fn can_open_more(&self) -> bool {
        self.disk.can_open_more()
    }

    /// Bytes ever written.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.start + self.length)
    }
}

/// The segment that this process begins at a position: its name, and its salt, each time the same, so that one that was removed for want of
/// room stands in nobody's way.
fn segment_at(disk: &dyn Disk, start: u64) -> (String, Salt) {
    let salt = disk.secret(start);
    (format!("log-{start:020}-{salt:016x}"), Salt(salt))
}

/// Where a segment begins, and its salt, by its name.
fn begin_of(name: &str) -> (u64, Salt) {
    let number = name.strip_prefix("log-").unwrap_or_default();
    let (start, salt) = number.split_once('-').unwrap_or((number, "0"));
    (start.parse().unwrap_or(0), Salt(u64::from_str_radix(salt, 16).unwrap_or(0)))
}

/// Whether the disk had no room, so that the same may be tried again.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Parts from the end those that were made, and of which the opening never reached the disk: nothing was ever acknowledged from them, and
/// what stands before them is the last one. Returns that one's bytes, and them.
fn part_unfinished(disk: &dyn Disk, names: &mut Vec<String>) -> Result<(Option<Bytes>, Vec<String>), LogError> {
    let mut unfinished = Vec::new();
    while let Some(name) = names.pop() {
        let bytes = Bytes::from(disk.read(&name)?);
        // The first segment kept has all that is known: only the very first one may be unfinished.
        let may_be_unfinished = !names.is_empty() || begin_of(&name).0 == 0;
        if read_header(&name, &bytes, may_be_unfinished)?.is_some() {
            names.push(name);
            return Ok((Some(bytes), unfinished));
        }
        unfinished.push(name);
    }
    Ok((None, unfinished))
}

struct Header {
    /// The segment's position in the log.
    start: u64,
    /// Bytes of the opening.
    opening: usize,
}

/// `None`: the segment was never finished.
fn read_header(name: &str, bytes: &Bytes, may_be_unfinished: bool) -> Result<Option<Header>, LogError> {
    let damaged = || LogError::Damaged { file: name.to_owned(), offset: 0 };
    let (start, salt) = begin_of(name);
    let version = u32_at(bytes, 8).unwrap_or(FORMAT_VERSION);
    // 0 is what a write that was cut short may leave.
    let is_known = (FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version);
    if bytes.starts_with(SEGMENT_MAGIC) && !is_known && version != 0 {
        return Err(LogError::OtherFormat { file: name.to_owned(), found: version });
    }
    let whole = bytes.len() >= HEADER_BYTES
        && bytes.starts_with(SEGMENT_MAGIC)
        && u32_at(bytes, HEADER_BYTES - 4) == Some(crc32fast::hash(&bytes[..HEADER_BYTES - 4]));
    let header = match (u64_at(bytes, 12), u32_at(bytes, 20)) {
        (Some(start), Some(opening)) if whole => Header { start, opening: opening as usize },
        // Header and opening are one write, of which any part may be missing. A record behind them knows that they were safe.
        _ if may_be_unfinished && !was_synced(start, bytes, 0, salt) => return Ok(None),
        _ => return Err(damaged()),
    };
    // The opening is synced with the header before the first record is written: with records behind it, it was safe.
    let opening_end = HEADER_BYTES.saturating_add(header.opening);
    if may_be_unfinished && bytes.len() <= opening_end && !is_whole(bytes, opening_end, salt) {
        return Ok(None);
    }
    Ok(Some(header))
}

/// Whether whole records reach from the header to `end`.
fn is_whole(bytes: &Bytes, end: usize, salt: Salt) -> bool {
    let mut at = HEADER_BYTES;
    while at < end {
        match parse(bytes, at, salt) {
            Some(parsed) => at += parsed.length,
            None => return false,
        }
    }
    true
}

/// Hands out the whole records and returns where they end.
fn read_records(
    (name, start, salt): (&str, u64, Salt),
    bytes: &Bytes,
    is_last: bool,
    opening_end: usize,
    mut take: impl FnMut(usize, GroupId, Record) -> Result<(), LogError>,
) -> Result<usize, LogError> {
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let Some(parsed) = parse(bytes, at, salt) else {
            // The opening was safe before anything stood behind it, be it what was written ahead.
            if !is_last || at < opening_end || was_synced(start, bytes, at, salt) {
                return Err(LogError::Damaged { file: name.to_owned(), offset: at as u64 });
            }
            return Ok(at);
        };
        take(at, parsed.group, parsed.record)?;
        at += parsed.length;
    }
    Ok(at)
}

fn take(groups: &mut BTreeMap<GroupId, GroupLog>, group: GroupId, record: Record) -> Result<(), LogError> {
    let log = groups.entry(group).or_default();
    match record {
        Record::Entry(entry) => log.put(group, entry)?,
        Record::HardState(hard) => log.hard = hard,
        // In an opening: it only says again where the log ends.
        Record::Base(base) if base == log.last() => {}
        Record::Base(base) => {
            log.base = base;
            log.entries.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
