//! Another node's checkpoint in a file of its own, from when it comes until it is in the store.
//!
//! However long it is, only a place now and then is in memory. Its state machine reads rows of it as it would read the store's, and goes
//! on doing so until [`StateStore::install`](super::StateStore::install) has them all: that takes the file away, and from then on they
//! are read there.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::{Pair, SnapshotStreamError, StateError, StateReader, Unpacked};
use crate::disk::{AppendFile, Disk, ReadFile, SyncSite};
use crate::group::CheckpointBase;
use crate::identity::GroupId;

/// What the names of these files begin with. Nothing else on the log's disk is called so.
pub(super) const SPOOL_PREFIX: &str = "snapshot-";

/// So much of the file is between two places that are in memory, and is read at once, if no value is longer.
const PLACE_BYTES: u64 = 16 * 1024;

/// Of a key that stands for a place: so much tells where to begin.
const PLACE_KEY_BYTES: usize = 256;

/// What the store needs of room beyond the file: its journal has everything, and then its tables.
pub(super) const STORE_TIMES: u64 = 2;

/// Why another node's checkpoint is not there.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It broke off.
    #[error(transparent)]
    Stream(Box<dyn std::error::Error + Send + Sync>),
    /// It would take what the disk keeps free.
    #[error("there is no room on disk for it: at least {wanted} bytes must be free, and {free} are")]
    NoRoom {
        /// So many it wants, as far as it came or more.
        wanted: u64,
        /// So many there are without it.
        free: u64,
    },
    /// The disk failed.
    #[error("the file that it is put into: {0}")]
    Disk(io::Error),
}

/// Takes checkpoints of other nodes in.
#[derive(Clone)]
pub struct Spooler(Arc<Source>);

struct Source {
    disk: Arc<dyn Disk>,
    reader: StateReader,
    /// Another one in each process: who comes late writes into no file of who came after it.
    nonce: u64,
    begun: AtomicU64,
    free_bytes_min: u64,
    /// Groups whose last one found no room.
    short: Mutex<BTreeMap<GroupId, Short>>,
}

/// What is known of a checkpoint that found no room. Nobody says beforehand how long one is.
#[derive(Debug, Clone, Copy, Default)]
struct Short {
    /// With fewer bytes free it is not tried.
    wanted: u64,
    /// How often it was left out since it was tried.
    left_out: u32,
}

/// Left out so often, it is tried all the same, for what is sent may have become less. It is offered every few seconds.
const LEFT_OUT_MAX: u32 = 150;

impl std::fmt::Debug for Spooler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Spooler").finish_non_exhaustive()
    }
}

impl Spooler {
    /// Onto the disk of the log, of which so much stays free. `reader` is that of the store which the checkpoints go to.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, reader: StateReader, nonce: u64, free_bytes_min: u64) -> Self {
        Self(Arc::new(Source {
            disk,
            reader,
            nonce,
            begun: AtomicU64::new(0),
            free_bytes_min,
            short: Mutex::default(),
        }))
    }

    /// Whether to fetch one of a group. What found no room would be written again, as far as there is some, each time that it is offered.
    ///
    /// # Errors
    /// It would find no room.
    pub fn expects_room(&self, group: GroupId) -> Result<(), SpoolError> {
        let mut short = self.short();
        let Some(Short { wanted, left_out }) = short.get_mut(&group) else {
            return Ok(());
        };
        match self.0.disk.free_bytes() {
            Ok(free) if free < *wanted && *left_out < LEFT_OUT_MAX => {
                *left_out += 1;
                Err(SpoolError::NoRoom { wanted: *wanted, free })
            }
            _ => Ok(()),
        }
    }

    /// One of this group wants so many bytes free at least, and there are fewer.
    pub(crate) fn found_no_room(&self, group: GroupId, wanted: u64) {
        let mut short = self.short();
        let Short { wanted: before, left_out } = short.entry(group).or_default();
        *left_out = 0;
        if wanted > *before {
            // A little more room each time is not worth another try each time.
            *before = wanted.max(*before + *before / 4);
        }
    }

    fn short(&self) -> MutexGuard<'_, BTreeMap<GroupId, Short>> {
        self.0.short.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts all of one into a file, which is safe then.
    ///
    /// # Errors
    /// It broke off, is malformed, or finds no room. Nothing is left of it.
    pub fn take_in<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        group: GroupId,
        chunks: impl Iterator<Item = Result<Bytes, E>>,
    ) -> Result<Spool, SnapshotStreamError<SpoolError>> {
        let Source { disk, reader, nonce, begun, free_bytes_min, .. } = &*self.0;
        let name = format!("{SPOOL_PREFIX}{group}-{nonce:016x}-{}", begun.fetch_add(1, Ordering::Relaxed));
        let on_disk = |error| SnapshotStreamError::Stream(SpoolError::Disk(error));
        let remains = Remains { disk: Arc::clone(disk), name, is_needed: AtomicBool::new(false) };
        let file = disk.append_to(&remains.name).map_err(on_disk)?;
        // Before anything is fetched: who installs it cannot wait for a descriptor.
        let reading = disk.open_to_read(&remains.name).map_err(on_disk)?;
        let checksum = crc32fast::Hasher::new();
        let mut spooling =
            Spooling { chunks, disk: &**disk, file, written: 0, checksum, free_bytes_min: *free_bytes_min };
        let (base, mut index) = read_through(group, &mut spooling).inspect_err(|error| {
            if let SnapshotStreamError::Stream(SpoolError::NoRoom { wanted, .. }) = error {
                self.found_no_room(group, *wanted);
            }
        })?;
        // Of what came, whatever the file says later.
        index.checksum = spooling.checksum.finalize();
        spooling.file.sync(SyncSite::SnapshotSpooled).map_err(on_disk)?;
        disk.sync_directory(SyncSite::SnapshotSpooledName).map_err(on_disk)?;
        self.short().remove(&group);
        Ok(Spool::new(group, base, index, reading, remains, reader.clone()))
    }
}

/// Puts each chunk into the file before it is read.
struct Spooling<'a, I> {
    chunks: I,
    disk: &'a dyn Disk,
    file: Box<dyn AppendFile>,
    written: u64,
    checksum: crc32fast::Hasher,
    free_bytes_min: u64,
}

impl<I> Spooling<'_, I> {
    fn put(&mut self, chunk: &[u8]) -> Result<(), SpoolError> {
        let length = chunk.len() as u64;
        let all = self.written + length;
        let needed = self.free_bytes_min + length + STORE_TIMES * all;
        // A disk that fails says so when it is written to.
        if let Ok(free) = self.disk.free_bytes()
            && free < needed
        {
            // Before the next try this one's file is gone.
            return Err(SpoolError::NoRoom { wanted: needed + self.written, free: free + self.written });
        }
        self.file.append(chunk).map_err(SpoolError::Disk)?;
        self.checksum.update(chunk);
        self.written += length;
        Ok(())
    }
}

impl<E, I> Iterator for Spooling<'_, I>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Iterator<Item = Result<Bytes, E>>,
{
    type Item = Result<Bytes, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.chunks.next()?.map_err(|error| SpoolError::Stream(error.into()));
        Some(chunk.and_then(|chunk| self.put(&chunk).map(|()| chunk)))
    }
}

/// Where what is in the file.
#[derive(Debug, Default)]
struct Index {
    /// Of a pair now and then, its key, or the beginning of that, and where it begins.
    places: Vec<(Vec<u8>, u64)>,
    /// Where the first one begins, and the last one ends.
    begin: u64,
    end: u64,
    /// Of all keys and values.
    bytes: u64,
    /// CRC-32 of the whole file.
    checksum: u32,
    /// Who reads on goes on here: the last key that was read, and where it ends.
    last_read: Mutex<(Vec<u8>, u64)>,
}

impl Index {
    /// Not behind the first pair from `key` on.
    fn place(&self, key: &[u8]) -> u64 {
        // What begins with less is less. What begins with the same may be anything.
        let behind = self.places.partition_point(|(place, _)| &place[..] < beginning(key));
        let indexed = behind.checked_sub(1).map_or(self.begin, |before| self.places[before].1);
        let (last, at) = &*self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        if &last[..] < key { indexed.max(*at) } else { indexed }
    }
}

fn beginning(key: &[u8]) -> &[u8] {
    &key[..key.len().min(PLACE_KEY_BYTES)]
}

fn read_through<E>(
    group: GroupId,
    chunks: impl Iterator<Item = Result<Bytes, E>>,
) -> Result<(CheckpointBase, Index), SnapshotStreamError<E>> {
    let mut pairs = Unpacked::begin(group, chunks)?;
    let mut index = Index { begin: pairs.taken(), end: pairs.taken(), ..Index::default() };
    let mut before: Option<Vec<u8>> = None;
    while let Some(pair) = pairs.next() {
        let (key, value) = pair?;
        if before.as_ref().is_some_and(|before| *before >= key) {
            return Err(SnapshotStreamError::Malformed("keys that are not in their order"));
        }
        if index.places.last().is_none_or(|&(_, at)| index.end - at >= PLACE_BYTES) {
            index.places.push((beginning(&key).to_vec(), index.end));
        }
        index.bytes += (key.len() + value.len()) as u64;
        index.end = pairs.taken();
        before = Some(key);
    }
    Ok((pairs.base, index))
}

/// A file that goes with its owner, unless the store needs it at the next start.
struct Remains {
    disk: Arc<dyn Disk>,
    name: String,
    is_needed: AtomicBool,
}

impl Remains {
    fn remove(&self) {
        if let Err(error) = self.disk.remove(&self.name) {
            tracing::debug!(%error, file = self.name, "what is left of a snapshot takes room until the next start");
        }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if !*self.is_needed.get_mut() {
            self.remove();
        }
    }
}

/// Another node's checkpoint. Its file goes when it is installed, or with this if it never is to be.
pub struct Spool {
    group: GroupId,
    base: CheckpointBase,
    bytes: u64,
    checksum: u32,
    remains: Remains,
    /// `None`: the store has everything, and perhaps more by now.
    spooled: RwLock<Option<Spooled>>,
    reader: StateReader,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, base, bytes, .. } = self;
        formatter.debug_struct("Spool").field("group", group).field("base", base).field("bytes", bytes).finish()
    }
}

/// What is read until the store has it.
struct Spooled {
    index: Index,
    /// Stays open: what is read for a group must not wait for a descriptor.
    file: Box<dyn ReadFile>,
}

/// Pairs of a file, in order.
type FilePairs<'a> = Unpacked<Blocks<'a>>;

impl Spool {
    fn new(
        group: GroupId,
        base: CheckpointBase,
        index: Index,
        file: Box<dyn ReadFile>,
        remains: Remains,
        reader: StateReader,
    ) -> Self {
        let (bytes, checksum) = (index.bytes, index.checksum);
        Self { group, base, bytes, checksum, remains, spooled: RwLock::new(Some(Spooled { index, file })), reader }
    }

    /// One that an earlier process had begun to install. `checksum` is what it noted, if it did.
    pub(super) fn reopen(
        disk: &Arc<dyn Disk>,
        name: &str,
        checksum: Option<u32>,
        group: GroupId,
        reader: StateReader,
    ) -> Result<Self, StateError> {
        let remains = Remains { disk: Arc::clone(disk), name: name.to_owned(), is_needed: AtomicBool::new(true) };
        let file = disk.open_to_read(name)?;
        let mut blocks = Blocks::of(&*file, 0, u64::MAX);
        let (base, mut index) = read_through(group, &mut blocks).map_err(from_file)?;
        index.checksum = blocks.checksum.finalize();
        if checksum.is_some_and(|noted| noted != index.checksum) {
            return Err(damaged());
        }
        Ok(Self::new(group, base, index, file, remains, reader))
    }

    /// Whose it is.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// What it is the state after.
    #[must_use]
    pub fn base(&self) -> &CheckpointBase {
        &self.base
    }

    /// Of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn name(&self) -> &str {
        &self.remains.name
    }

    /// What is stored under a key.
    ///
    /// # Errors
    /// The disk failed.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match &*self.spooled.read().unwrap_or_else(PoisonError::into_inner) {
            None => self.reader.get(self.group, key),
            Some(spooled) => {
                let (found, _) = self.find(spooled, key, &[key, &[0]].concat(), 1)?;
                Ok(found.into_iter().next().map(|(_, value)| value))
            }
        }
    }

    /// What is stored from one key on and below another, in order, and no more than so many pairs.
    ///
    /// # Errors
    /// The disk failed.
    pub fn range(&self, from: &[u8], until: &[u8], pairs_max: usize) -> Result<Vec<Pair>, StateError> {
        match &*self.spooled.read().unwrap_or_else(PoisonError::into_inner) {
            None => self.reader.range(self.group, from, until, pairs_max),
            Some(spooled) => {
                let (found, end) = self.find(spooled, from, until, pairs_max)?;
                if let Some((last, _)) = found.last() {
                    *spooled.index.last_read.lock().unwrap_or_else(PoisonError::into_inner) = (last.clone(), end);
                }
                Ok(found)
            }
        }
    }

    /// The pairs, and where the last of them ends.
    fn find(
        &self,
        spooled: &Spooled,
        from: &[u8],
        until: &[u8],
        pairs_max: usize,
    ) -> Result<(Vec<Pair>, u64), StateError> {
        let at = spooled.index.place(from);
        let mut pairs = self.pairs_from(spooled, at);
        let (mut found, mut end) = (Vec::new(), at);
        while found.len() < pairs_max
            && let Some(pair) = pairs.next().transpose().map_err(from_file)?
            && &pair.0[..] < until
        {
            if &pair.0[..] >= from {
                found.push(pair);
                end = at + pairs.taken();
            }
        }
        Ok((found, end))
    }

    fn pairs_from<'a>(&self, Spooled { index, file }: &'a Spooled, at: u64) -> FilePairs<'a> {
        Unpacked::goes_on(self.base.clone(), Blocks::of(&**file, at, index.end))
    }

    /// CRC-32 of its file.
    pub(super) fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Hands all pairs over, one after the other. For the store, which has not got them yet. Only after a good end they are what came.
    pub(super) fn for_each(&self, mut take: impl FnMut(Pair) -> Result<(), StateError>) -> Result<(), StateError> {
        match &*self.spooled.read().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(Spooled { index, file }) => {
                let mut blocks = Blocks::of(&**file, 0, index.end);
                let lost = |error| self.lost(from_file(error));
                let mut pairs = Unpacked::begin(self.group, &mut blocks).map_err(lost)?;
                pairs.try_for_each(|pair| take(pair.map_err(lost)?))?;
                if blocks.checksum.finalize() == self.checksum { Ok(()) } else { Err(self.lost(damaged())) }
            }
        }
    }

    fn lost(&self, error: StateError) -> StateError {
        StateError::Spool { group: self.group.0, file: self.name().to_owned(), error: Box::new(error) }
    }

    /// From here on the next start needs the file.
    pub(super) fn begins(&self) {
        self.remains.is_needed.store(true, Ordering::Relaxed);
    }

    /// The store has everything, and says so itself.
    pub(super) fn installed(&self) {
        *self.spooled.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.remains.remove();
    }

    /// Bytes that are in memory of it, whatever it has.
    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        let spooled = self.spooled.read().expect("nobody panicked");
        spooled
            .iter()
            .flat_map(|spooled| &spooled.index.places)
            .map(|(key, _)| key.len() + size_of::<(Vec<u8>, u64)>())
            .sum()
    }
}

fn from_file(error: SnapshotStreamError<io::Error>) -> StateError {
    match error {
        SnapshotStreamError::Stream(error) => StateError::Io(error),
        malformed @ SnapshotStreamError::Malformed(_) => {
            StateError::Io(io::Error::new(io::ErrorKind::InvalidData, malformed.to_string()))
        }
    }
}

fn damaged() -> StateError {
    let what = "its checksum is not that of what was sent";
    StateError::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// A file, bit by bit.
struct Blocks<'a> {
    file: &'a dyn ReadFile,
    at: u64,
    end: u64,
    /// Of what was read.
    checksum: crc32fast::Hasher,
}

impl<'a> Blocks<'a> {
    fn of(file: &'a dyn ReadFile, at: u64, end: u64) -> Self {
        Self { file, at, end, checksum: crc32fast::Hasher::new() }
    }
}

impl Iterator for Blocks<'_> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let wanted = self.end.saturating_sub(self.at).min(PLACE_BYTES);
        if wanted == 0 {
            return None;
        }
        match self.file.read_at(self.at, wanted as usize) {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                self.checksum.update(&bytes);
                Some(Ok(bytes.into()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests;
