//! The log of all groups: segments of records, one writer, one sync a round.
//!
//! A segment is a file `log-NUMBER`: a header, then records. A record is
//!
//! ```text
//! mark u32 | crc u32 | length u32 | synced u64 | group u16 | index u64 | payload
//! ```
//!
//! `crc` covers everything after it. `synced` is the position in the log (bytes since its beginning, over all segments)
//! up to which everything was known to be on disk when the record was written. That tells a torn end, which a power cut
//! may leave, from damage to what was acknowledged: if a later record says that the damaged place had been synced, the log
//! is damaged and is not touched.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{AppendFile, Disk, SyncSite};
use crate::pipeline::GroupId;

const SEGMENT_MAGIC: &[u8; 8] = b"KTGLOG\0\0";

/// Raised when the bytes of a segment change their meaning.
pub const FORMAT_VERSION: u32 = 1;

/// Magic, version, the segment's position in the log, CRC of those.
const HEADER_BYTES: usize = 8 + 4 + 8 + 4;

const RECORD_MARK: u32 = 0x4B52_4543;
const RECORD_BYTES: usize = 4 + 4 + 4 + 8 + 2 + 8;

/// Largest payload of one record; larger is damage.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("log: {0}")]
    Io(#[from] io::Error),
    /// Written by a later version.
    #[error("{file} has log format {found}; this version knows up to {FORMAT_VERSION}: use the version that wrote it")]
    NewerFormat {
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
        group: u16,
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose.
    pub group: GroupId,
    /// Its place in the group's log.
    pub index: u64,
    /// What was proposed.
    pub payload: Bytes,
}

#[derive(Debug)]
struct Segment {
    name: String,
    /// Its first byte's position in the log.
    start: u64,
    /// Highest index of each group in it.
    last: BTreeMap<GroupId, u64>,
}

/// The log, open for writing.
pub struct Log {
    disk: Arc<dyn Disk>,
    segments: Vec<Segment>,
    file: Box<dyn AppendFile>,
    /// Length of the last segment.
    length: u64,
    /// Position up to which everything is on disk.
    synced: u64,
    segment_bytes: u64,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Log").field("segments", &self.segments.len()).field("synced", &self.synced).finish()
    }
}

impl Log {
    /// Reads what is there, hands every whole record to `take`, cuts a torn end off, and opens the log for writing.
    ///
    /// # Errors
    /// The disk failed, or what was safely written before is not there.
    pub fn open(disk: Arc<dyn Disk>, segment_bytes: u64, mut take: impl FnMut(Record)) -> Result<Self, LogError> {
        let names: Vec<_> = disk.list()?.into_iter().filter(|name| name.starts_with("log-")).collect();
        let mut segments: Vec<Segment> = Vec::new();
        let mut position = None;
        for (number, name) in names.iter().enumerate() {
            let bytes = Bytes::from(disk.read(name)?);
            let is_last = number + 1 == names.len();
            let Some(start) = read_header(name, &bytes, is_last)? else {
                // Made, but its header never reached the disk: nothing was ever acknowledged from it.
                disk.remove(name)?;
                continue;
            };
            if position.is_some_and(|position| position != start) {
                return Err(LogError::Damaged { file: name.clone(), offset: 0 });
            }
            let mut segment = Segment { name: name.clone(), start, last: BTreeMap::new() };
            let end = read_records(&segment.name, start, &bytes, is_last, |record| {
                segment.last.insert(record.group, record.index);
                take(record);
            })?;
            if end < bytes.len() {
                let mut file = disk.append_to(name)?;
                file.truncate(end as u64)?;
                tracing::warn!(file = %name, bytes = bytes.len() - end, "cut the torn end of the log off: it was never acknowledged");
            }
            position = Some(start + end as u64);
            segments.push(segment);
        }
        match segments.last() {
            None => Self::start(disk, segment_bytes),
            Some(last) => {
                let end = position.unwrap_or(last.start);
                let mut file = disk.append_to(&last.name)?;
                // Whole records that an earlier process wrote but did not sync are taken, so they must be safe now, and
                // so must the name of their segment. What was cut off or removed above is gone for good with them.
                file.sync(SyncSite::LogReopened)?;
                disk.sync_directory(SyncSite::LogReopenedNames)?;
                let length = end - last.start;
                Ok(Self { disk, segments, file, length, synced: end, segment_bytes, buffer: Vec::new() })
            }
        }
    }

    fn start(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<Self, LogError> {
        let file = disk.append_to(&segment_name(0))?;
        let mut log =
            Self { disk, segments: Vec::new(), file, length: 0, synced: 0, segment_bytes, buffer: Vec::new() };
        log.begin_segment(0)?;
        Ok(log)
    }

    fn begin_segment(&mut self, start: u64) -> Result<(), LogError> {
        let name = segment_name(start);
        let mut file = self.disk.append_to(&name)?;
        file.truncate(0)?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(SEGMENT_MAGIC);
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        header.extend_from_slice(&start.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        file.append(&header)?;
        file.sync(SyncSite::LogSegmentHeader)?;
        self.disk.sync_directory(SyncSite::LogSegmentName)?;
        self.file = file;
        self.length = HEADER_BYTES as u64;
        self.synced = start + self.length;
        self.segments.push(Segment { name, start, last: BTreeMap::new() });
        Ok(())
    }

    /// Adds a record to the round. Nothing is written before [`Self::write`].
    pub fn add(&mut self, record: &Record) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&RECORD_MARK.to_le_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&self.synced.to_le_bytes());
        self.buffer.extend_from_slice(&record.group.0.to_le_bytes());
        self.buffer.extend_from_slice(&record.index.to_le_bytes());
        self.buffer.extend_from_slice(&record.payload);
        let crc = crc32fast::hash(&self.buffer[start + 8..]);
        self.buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        if let Some(segment) = self.segments.last_mut() {
            segment.last.insert(record.group, record.index);
        }
    }

    /// Writes the round. On an error it is still there, to be written again when there is room.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.append(&self.buffer) {
            // A part of it may stand there now.
            self.file.truncate(self.length)?;
            return Err(error);
        }
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        if self.buffer.capacity() > 8 * 1024 * 1024 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// The disk failed. The process must end: what the disk has now is unknown.
    pub fn sync(&mut self, site: SyncSite) -> io::Result<()> {
        self.file.sync(site)?;
        if let Some(segment) = self.segments.last() {
            self.synced = segment.start + self.length;
        }
        Ok(())
    }

    /// Begins a new segment if the last one is full. Call after [`Self::sync`].
    ///
    /// # Errors
    /// The disk is full (then the old segment is just longer), or failed.
    pub fn rotate_if_full(&mut self) -> Result<(), LogError> {
        let Some(segment) = self.segments.last() else {
            return Ok(());
        };
        if self.length < self.segment_bytes {
            return Ok(());
        }
        let end = segment.start + self.length;
        self.begin_segment(end)
    }

    /// Removes the segments of which every record is in a checkpoint; the last one always stays.
    ///
    /// # Errors
    /// The disk failed.
    pub fn purge(&mut self, checkpointed: &BTreeMap<GroupId, u64>) -> io::Result<usize> {
        let mut removed = 0;
        while self.segments.len() > 1 {
            let safe = self.segments[0]
                .last
                .iter()
                .all(|(group, index)| checkpointed.get(group).is_some_and(|applied| applied >= index));
            if !safe {
                break;
            }
            self.disk.remove(&self.segments[0].name)?;
            self.segments.remove(0);
            removed += 1;
        }
        if removed > 0 {
            self.disk.sync_directory(SyncSite::LogPurged)?;
        }
        Ok(removed)
    }

    /// Bytes from the first record kept to the end.
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
        self.disk.free_bytes()
    }

    /// Bytes ever written.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.start + self.length)
    }
}

fn segment_name(start: u64) -> String {
    format!("log-{start:020}")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The segment's position in the log; `None`: the last segment was never finished.
fn read_header(name: &str, bytes: &[u8], is_last: bool) -> Result<Option<u64>, LogError> {
    let damaged = || LogError::Damaged { file: name.to_owned(), offset: 0 };
    if bytes.len() < HEADER_BYTES {
        return if is_last { Ok(None) } else { Err(damaged()) };
    }
    let (magic, version) = (&bytes[..8], u32_at(bytes, 8).unwrap_or(0));
    if magic == SEGMENT_MAGIC && version > FORMAT_VERSION {
        return Err(LogError::NewerFormat { file: name.to_owned(), found: version });
    }
    let whole =
        magic == SEGMENT_MAGIC && u32_at(bytes, HEADER_BYTES - 4) == Some(crc32fast::hash(&bytes[..HEADER_BYTES - 4]));
    match u64_at(bytes, 12) {
        Some(start) if whole => Ok(Some(start)),
        // Its header is synced before the first record is written, so with records behind it, it was safe.
        _ if is_last && bytes.len() == HEADER_BYTES => Ok(None),
        _ => Err(damaged()),
    }
}

struct Parsed {
    record: Record,
    synced: u64,
    length: usize,
}

fn parse(bytes: &Bytes, at: usize) -> Option<Parsed> {
    if u32_at(bytes, at)? != RECORD_MARK {
        return None;
    }
    let length = u32_at(bytes, at + 8)? as usize;
    if length > PAYLOAD_BYTES_MAX {
        return None;
    }
    let end = at.checked_add(RECORD_BYTES)?.checked_add(length)?;
    let covered = bytes.get(at + 8..end)?;
    if crc32fast::hash(covered) != u32_at(bytes, at + 4)? {
        return None;
    }
    let group = GroupId(u16::from_le_bytes(bytes.get(at + 20..at + 22)?.try_into().ok()?));
    let index = u64_at(bytes, at + 22)?;
    let payload = bytes.slice(at + RECORD_BYTES..end);
    Some(Parsed { record: Record { group, index, payload }, synced: u64_at(bytes, at + 12)?, length: end - at })
}

/// Hands out the whole records and returns where they end.
fn read_records(
    name: &str,
    start: u64,
    bytes: &Bytes,
    is_last: bool,
    mut take: impl FnMut(Record),
) -> Result<usize, LogError> {
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let Some(parsed) = parse(bytes, at) else {
            if !is_last || was_synced(start, bytes, at) {
                return Err(LogError::Damaged { file: name.to_owned(), offset: at as u64 });
            }
            return Ok(at);
        };
        at += parsed.length;
        take(parsed.record);
    }
    Ok(at)
}

/// Whether some record behind the damage at `damaged` knew that place to be on disk.
fn was_synced(start: u64, bytes: &Bytes, damaged: usize) -> bool {
    let mark = RECORD_MARK.to_le_bytes();
    let mut from = damaged + 1;
    while let Some(found) = bytes[from.min(bytes.len())..].windows(4).position(|window| window == mark) {
        let at = from + found;
        if parse(bytes, at).is_some_and(|parsed| parsed.synced > start + damaged as u64) {
            return true;
        }
        from = at + 1;
    }
    false
}

#[cfg(test)]
mod tests;
