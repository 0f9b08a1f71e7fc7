//! Checkpoints: what the state machines had applied, on disk, and the chain that proves it.
//!
//! Data goes to fjall, one atomic batch a group with the applied index in it; then fjall is synced; then a line goes into
//! our own synced manifest; only then may the log be purged. At start both must agree: fjall's journal silently drops
//! what it cannot parse, and a log silently starts over a gap, so neither is believed alone.
//!
//! Of the lines that were being written when the power went, any part may be missing: the first, and not the last. So each
//! line says how much of the manifest was safe before it. What is damaged behind that was never relied upon and is cut off.
//!
//! Another node's checkpoint may be too long for one batch. It comes in a file, which is safe before one batch takes away what the
//! store says of the group, and notes the file instead. Then the group's rows are replaced bit by bit; the last batch says again how far
//! the group goes, and takes the note away. A start that finds the note does all of it again: the file has everything. A program that
//! knows no such notes finds a group of which a checkpoint was completed and nothing is stored, and ends.

mod backend;
mod snapshot;
mod spool;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use fjall::{Database, KeyspaceCreateOptions};

pub use backend::{MemoryState, PairIter, StateReader};
pub use snapshot::{SnapshotStreamError, Unpacked, chunks, collect, cut};
pub use spool::{Spool, SpoolError, Spooler};

use self::backend::Backend;
use self::spool::{SPOOL_PREFIX, STORE_TIMES};
use crate::disk::{
    AppendFile, Disk, SyncSite, forget_cached_in, is_out_of_descriptors, make_durable_directory, sync_directory,
};
use crate::group::{CheckpointBase, Configuration};
use crate::identity::GroupId;
use crate::log::LogId;

const MANIFEST: &str = "manifest";
const MANIFEST_NEW: &str = "manifest-new";

/// The manifest is rewritten when it has grown beyond this.
const MANIFEST_BYTES_MAX: usize = 64 * 1024;

/// Tables of the store that are kept open, unless somebody says how many. fjall itself would keep 900.
pub const OPEN_TABLES_MAX: usize = 64;

/// Fewer are no use to it.
pub const OPEN_TABLES_MIN: usize = 10;

/// What [`StateStore::fill`] and [`StateStore::install`] have in memory at a time, but for a value that is longer.
const FILL_BYTES: usize = 1024 * 1024;

/// What a start leaves free of the disk while it puts another node's checkpoint into the store: the log is opened behind that.
const START_BYTES_FREE: u64 = 128 * 1024;

/// One stored pair of key and value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// One write: a value, or `None` to delete the key.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// Why the stored state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed.
    #[error("state: {0}")]
    Store(#[from] fjall::Error),
    /// The store cannot be opened.
    #[error("the stored state cannot be opened: {error}. {}", advice(error))]
    Open {
        /// What the store said.
        error: fjall::Error,
    },
    /// The disk failed.
    #[error("state: {0}")]
    Io(#[from] io::Error),
    /// A line of the manifest is not what was written, and was safe.
    #[error(
        "the manifest is damaged at line {line}: restore this data directory from a backup, or start with an empty one; nothing was changed"
    )]
    Manifest {
        /// Counted from 1.
        line: usize,
    },
    /// What the store says of itself is not what was written.
    #[error(
        "the state says nothing sensible of how far it goes: restore this data directory from a backup, or start with an empty one; nothing was changed"
    )]
    Applied,
    /// The state of a group was being replaced by another node's, and cannot be any more.
    #[error(
        "the state of group {group} is half replaced by what another node sent, and {file}, which has the whole, cannot be read: \
         {error}. Restore this data directory from a backup, or start with an empty one; nothing was changed"
    )]
    Spool {
        /// Which group.
        group: u16,
        /// The name of the file, beside the log.
        file: String,
        /// What is the matter with it.
        error: Box<StateError>,
    },
    /// The state of a group was being replaced by another node's, and the disk has no room to go on with that.
    #[error(
        "the state of group {group} is half replaced by what another node sent, and there is no room to finish that: {needed} bytes \
         must be free on the disk of the data directory, and {free} are. Make room there and start again: nothing is lost, and the \
         start goes on where it stopped"
    )]
    NoRoom {
        /// Which group.
        group: u16,
        /// Bytes that must be free.
        needed: u64,
        /// Bytes that are.
        free: u64,
    },
    /// The manifest is not where the store says it was.
    #[error(
        "the manifest lists group {group} at {listed}, where the state knows of a checkpoint at {previous} before its last: part \
         of the manifest was lost. Restore this data directory from a backup, or start with an empty one; nothing was changed"
    )]
    ManifestBehind {
        /// Which group.
        group: u16,
        /// What the manifest says.
        listed: u64,
        /// What the store says must be there.
        previous: u64,
    },
    /// The store is not where the manifest says it is.
    #[error(
        "the state of group {group} is at {stored} where a checkpoint at {expected} was completed: part of it was lost. \
         Restore this data directory from a backup, or start with an empty one; nothing was changed"
    )]
    Chain {
        /// Which group.
        group: u16,
        /// What the manifest says.
        expected: u64,
        /// What the store has.
        stored: u64,
    },
}

/// What to do about a store that cannot be opened.
fn advice(error: &fjall::Error) -> &'static str {
    use fjall::{Error, LsmError};
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "Make room on the disk of the data directory, and start again; nothing is lost"
            }
            _ if is_out_of_descriptors(error) => {
                "The process may open too few files (RLIMIT_NOFILE): raise that limit, and start again; nothing is lost"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "Let this process's user read and write the data directory, and start again; nothing is lost"
            }
            _ => {
                "See whether the disk is in order. If part of the state is lost, restore this data directory from a backup, or start with \
                 an empty one"
            }
        },
        Error::Locked => "Another process has it: stop that one",
        _ => "It is damaged: restore this data directory from a backup, or start with an empty one",
    }
}

/// The state store of all groups, and its manifest.
pub struct StateStore {
    backend: Backend,
    disk: Arc<dyn Disk>,
    bases: BTreeMap<GroupId, CheckpointBase>,
    manifest: Length,
    /// Stays open once it is there: what the store has taken must not wait for a descriptor to be listed.
    manifest_file: Option<Box<dyn AppendFile>>,
    /// The checkpoint of each group that the manifest lists for sure, whatever a power cut takes.
    listed: BTreeMap<GroupId, u64>,
}

/// How long the manifest is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Length {
    bytes: usize,
    /// How much of it is safe at least.
    synced: usize,
}

/// What the manifest says.
#[derive(Debug, Default)]
struct Manifest {
    /// Its lines: group, applied index, and where the line begins.
    lines: Vec<(GroupId, u64, usize)>,
    length: Length,
}

impl Manifest {
    /// Of each group the last checkpoint that is listed.
    fn listed(&self) -> BTreeMap<GroupId, u64> {
        self.lines.iter().map(|&(group, applied, _)| (group, applied)).collect()
    }

    /// The same of what a power cut cannot take any more.
    fn listed_safely(&self) -> BTreeMap<GroupId, u64> {
        let safe = self.lines.iter().filter(|&&(.., at)| at < self.length.synced);
        safe.map(|&(group, applied, _)| (group, applied)).collect()
    }
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StateStore").field("bases", &self.bases).finish_non_exhaustive()
    }
}

/// What one group's checkpoint writes.
#[derive(Debug)]
pub struct Checkpoint {
    /// Whose.
    pub group: GroupId,
    /// Everything up to here is in it.
    pub base: CheckpointBase,
    /// What changed since the last one.
    pub writes: Vec<Write>,
}

impl StateStore {
    /// Opens the store in `directory` and holds it against the manifest on `disk`.
    ///
    /// # Errors
    /// The disk failed, or a completed checkpoint is not all there.
    pub fn open(directory: &Path, disk: Arc<dyn Disk>) -> Result<Self, StateError> {
        Self::open_within(directory, disk, OPEN_TABLES_MAX)
    }

    /// The same, with at most so many tables kept open, and [`OPEN_TABLES_MIN`] at least.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_within(directory: &Path, disk: Arc<dyn Disk>, open_tables_max: usize) -> Result<Self, StateError> {
        make_durable_directory(directory, SyncSite::StateDirectory)?;
        forget_cached_in(directory)?;
        let database = Database::builder(directory)
            .cache_size(16 * 1024 * 1024)
            .max_cached_files(Some(open_tables_max.max(OPEN_TABLES_MIN)))
            .worker_threads(1)
            .open()
            .map_err(|error| StateError::Open { error })?;
        let data =
            database.keyspace("groups", KeyspaceCreateOptions::default).map_err(|error| StateError::Open { error })?;
        // fjall syncs the directory of its keyspaces before it makes any in it: without this, a power cut may take them.
        sync_directories(directory)?;
        Self::over(Backend::Fjall { database, data }, disk)
    }

    /// A store in memory, for simulations: what was written and not synced is lost when its owner says so.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn in_memory(state: &MemoryState, disk: Arc<dyn Disk>) -> Result<Self, StateError> {
        Self::over(Backend::Memory(state.clone()), disk)
    }

    fn over(backend: Backend, disk: Arc<dyn Disk>) -> Result<Self, StateError> {
        let manifest = read_manifest(&*disk)?;
        let (bases, listed) = (BTreeMap::new(), manifest.listed_safely());
        let manifest_file = (manifest.length.bytes > 0).then(|| disk.append_to(MANIFEST)).transpose()?;
        let mut store = Self { backend, disk, bases, manifest: manifest.length, manifest_file, listed };
        store.finish_installing()?;
        store.check_chain(&manifest.listed())?;
        store.remove_spooled(&[])?;
        Ok(store)
    }

    /// Removes all that came from other nodes but what is noted. What was on its way when the process ended is fetched again.
    fn remove_spooled(&self, needed: &[Note]) -> Result<(), StateError> {
        let is_needed = |name: &str| needed.iter().any(|note| note.file == name);
        for name in self.disk.list()?.iter().filter(|name| name.starts_with(SPOOL_PREFIX) && !is_needed(name)) {
            self.disk.remove(name)?;
        }
        Ok(())
    }

    /// Does again what a process before this one had begun to install. The manifest need not list it, as with any checkpoint
    /// whose line was not written any more.
    fn finish_installing(&self) -> Result<(), StateError> {
        let view = self.backend.read();
        let (mut notes, mut stale) = (Vec::new(), Vec::new());
        for pair in view.prefix(b"i") {
            let (key, value) = pair?;
            let note = parse_note(&key, &value).ok_or(StateError::Applied)?;
            if view.base(note.group)?.is_some() {
                // A program that knows no such notes made the group anew.
                stale.push((key, None));
            } else {
                notes.push(note);
            }
        }
        // What is taken up again may need the room.
        self.remove_spooled(&notes)?;
        if notes.is_empty() && stale.is_empty() {
            return Ok(());
        }
        self.backend.commit(stale)?;
        for Note { group, previous, checksum, file } in notes {
            let lost = |error| match error {
                // The next start may find one.
                StateError::Io(error) if is_out_of_descriptors(&error) => StateError::Io(error),
                error => StateError::Spool { group: group.0, file: file.clone(), error: Box::new(error) },
            };
            let spool = Spool::reopen(&self.disk, &file, checksum, group, self.reader()).map_err(lost)?;
            self.check_room(&spool)?;
            tracing::info!(%group, applied = spool.base().applied.index, "taking up another node's checkpoint again");
            self.replace_rows(&spool, previous)?;
        }
        // Before the files go.
        SyncSite::StateBatches.sync(|| self.backend.sync())?;
        Ok(())
    }

    /// What finds no room half way takes the little there is, and so does each start after it.
    fn check_room(&self, spool: &Spool) -> Result<(), StateError> {
        let needed = STORE_TIMES * spool.bytes() + START_BYTES_FREE;
        match self.disk.free_bytes() {
            Ok(free) if free < needed => Err(StateError::NoRoom { group: spool.group().0, needed, free }),
            // A disk that fails says so when it is written to.
            _ => Ok(()),
        }
    }

    /// The store must have what the manifest lists. It may have more: a checkpoint whose line was not written any
    /// more is whole all the same, for its index stands in its own batch.
    fn check_chain(&mut self, expected: &BTreeMap<GroupId, u64>) -> Result<(), StateError> {
        for pair in self.backend.read().prefix(b"a") {
            let (key, value) = pair?;
            let Some((group, base, previous)) = parse_base(&key, &value) else {
                return Err(StateError::Applied);
            };
            // What a checkpoint says was before it was listed safely when it was begun.
            let listed = expected.get(&group).copied().unwrap_or(0);
            if listed < previous {
                return Err(StateError::ManifestBehind { group: group.0, listed, previous });
            }
            self.bases.insert(group, base);
        }
        for (&group, &applied) in expected {
            let stored = self.bases.get(&group).map_or(0, |base| base.applied.index);
            if stored < applied {
                return Err(StateError::Chain { group: group.0, expected: applied, stored });
            }
        }
        Ok(())
    }

    /// How far each group's last checkpoint goes.
    #[must_use]
    pub fn bases(&self) -> &BTreeMap<GroupId, CheckpointBase> {
        &self.bases
    }

    /// Everything stored for a group, in the order of its keys.
    ///
    /// # Errors
    /// The store failed.
    pub fn load(&self, group: GroupId) -> Result<Vec<Pair>, StateError> {
        self.backend.read().group(group).collect()
    }

    /// Reads what is stored, beside the thread that writes.
    #[must_use]
    pub fn reader(&self) -> StateReader {
        StateReader::of(self.backend.clone())
    }

    /// Writes checkpoints and makes them safe. When this returns, the log before them may go.
    ///
    /// # Errors
    /// The disk failed. The process must end: what the disk has now is unknown.
    pub fn write(&mut self, checkpoints: Vec<Checkpoint>) -> Result<(), StateError> {
        let mut lines = String::new();
        self.open_manifest()?;
        for Checkpoint { group, base, writes } in checkpoints {
            let mut batch = Vec::with_capacity(writes.len() + 1);
            let prefix = data_prefix(group);
            batch.extend(writes.into_iter().map(|(key, value)| ([&prefix[..], &key].concat(), value)));
            // Not what the store had: that may never have been listed, if the process before this one ended in between.
            let previous = self.listed.get(&group).copied().unwrap_or(0);
            batch.push((base_key(group).to_vec(), Some(base_bytes(&base, previous))));
            self.backend.commit(batch)?;
            lines.push_str(&line(group, base.applied.index, previous, self.manifest.synced));
            self.bases.insert(group, base);
        }
        SyncSite::StateBatches.sync(|| self.backend.sync())?;
        self.write_manifest(&lines)?;
        self.listed = self.bases.iter().map(|(&group, base)| (group, base.applied.index)).collect();
        Ok(())
    }

    /// Puts another node's checkpoint in the place of what is stored of its group, and makes it safe. When this returns, its file is gone,
    /// and the log before it may go.
    ///
    /// # Errors
    /// The disk failed. The process must end: the next start goes on with it.
    pub fn install(&mut self, spool: &Spool) -> Result<(), StateError> {
        let (group, base) = (spool.group(), spool.base().clone());
        let previous = self.listed.get(&group).copied().unwrap_or(0);
        self.open_manifest()?;
        spool.begins();
        let note = (note_key(group).to_vec(), Some(note_bytes(previous, spool.checksum(), spool.name())));
        self.backend.commit(vec![(base_key(group).to_vec(), None), note])?;
        SyncSite::StateBatches.sync(|| self.backend.sync())?;
        self.replace_rows(spool, previous)?;
        SyncSite::StateBatches.sync(|| self.backend.sync())?;
        let applied = base.applied.index;
        self.bases.insert(group, base);
        self.write_manifest(&line(group, applied, previous, self.manifest.synced))?;
        self.listed.insert(group, applied);
        spool.installed();
        Ok(())
    }

    /// However often it was broken off before. The note stands until the last batch.
    fn replace_rows(&self, spool: &Spool, previous: u64) -> Result<(), StateError> {
        let group = spool.group();
        let prefix = data_prefix(group);
        let mut batch = Batch::default();
        for pair in self.backend.read().prefix(&prefix) {
            batch.put(&self.backend, (pair?.0, None))?;
        }
        spool.for_each(|(key, value)| batch.put(&self.backend, ([&prefix[..], &key].concat(), Some(value))))?;
        let base = (base_key(group).to_vec(), Some(base_bytes(spool.base(), previous)));
        batch.writes.extend([base, (note_key(group).to_vec(), None)]);
        self.backend.commit(batch.writes)
    }

    /// Writes a group of which nothing is stored, a part after the other, and says how many pairs it has. It is whole only after a
    /// good end, and safe then.
    ///
    /// # Errors
    /// The disk failed, or the pairs broke off.
    pub fn fill<E: From<StateError>>(
        &mut self,
        group: GroupId,
        base: CheckpointBase,
        pairs: impl IntoIterator<Item = Result<Pair, E>>,
    ) -> Result<u64, E> {
        let prefix = data_prefix(group);
        let (mut batch, mut count) = (Batch::default(), 0);
        for pair in pairs {
            let (key, value) = pair?;
            count += 1;
            batch.put(&self.backend, ([&prefix[..], &key].concat(), Some(value)))?;
        }
        self.backend.commit(batch.writes)?;
        self.write(vec![Checkpoint { group, base, writes: Vec::new() }])?;
        Ok(count)
    }

    fn open_manifest(&mut self) -> io::Result<()> {
        if self.manifest_file.is_none() {
            self.manifest_file = Some(self.disk.append_to(MANIFEST)?);
        }
        Ok(())
    }

    fn write_manifest(&mut self, lines: &str) -> io::Result<()> {
        if self.manifest.bytes + lines.len() > MANIFEST_BYTES_MAX {
            match self.disk.append_to(MANIFEST_NEW) {
                Ok(file) => return self.rewrite_manifest(file),
                // Nothing is wrong with the old one but its length.
                Err(error) if is_out_of_descriptors(&error) => {
                    tracing::warn!(%error, "the manifest cannot be rewritten yet, and becomes longer");
                }
                Err(error) => return Err(error),
            }
        }
        let new = self.manifest.bytes == 0;
        let file = self.manifest_file.as_mut().expect("opened before anything is written");
        file.append(lines.as_bytes())?;
        file.sync(SyncSite::ManifestLines)?;
        if new {
            self.disk.sync_directory(SyncSite::ManifestName)?;
        }
        let bytes = self.manifest.bytes + lines.len();
        self.manifest = Length { bytes, synced: bytes };
        Ok(())
    }

    /// Into a `file` that takes its place.
    fn rewrite_manifest(&mut self, mut file: Box<dyn AppendFile>) -> io::Result<()> {
        let lines = |synced| -> String {
            let bases = self.bases.iter().map(|(&group, base)| (group, base.applied.index));
            bases.map(|(group, applied)| line(group, applied, applied, synced)).collect()
        };
        // All of it is safe before it has its name.
        let bytes = lines(0).len();
        let lines = lines(bytes);
        file.truncate(0)?;
        file.append(lines.as_bytes())?;
        file.sync(SyncSite::ManifestRewritten)?;
        self.disk.rename(MANIFEST_NEW, MANIFEST)?;
        self.disk.sync_directory(SyncSite::ManifestReplaced)?;
        self.manifest_file = Some(file);
        self.manifest = Length { bytes, synced: bytes };
        Ok(())
    }
}

/// Writes that are handed over before they are too many.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    bytes: usize,
}

impl Batch {
    fn put(&mut self, backend: &Backend, (key, value): Write) -> Result<(), StateError> {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.writes.push((key, value));
        if self.bytes > FILL_BYTES {
            self.bytes = 0;
            backend.commit(std::mem::take(&mut self.writes))?;
        }
        Ok(())
    }
}

fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    sync_directory(directory, SyncSite::StateKeyspaces)
}

fn data_prefix(group: GroupId) -> [u8; 3] {
    let [high, low] = group.0.to_be_bytes();
    [b'd', high, low]
}

fn base_key(group: GroupId) -> [u8; 3] {
    let [high, low] = group.0.to_be_bytes();
    [b'a', high, low]
}

fn note_key(group: GroupId) -> [u8; 3] {
    let [high, low] = group.0.to_be_bytes();
    [b'i', high, low]
}

/// What begins a note that has a checksum. No name of a file begins so: before there were checksums, the name stood here.
const NOTE_HAS_CHECKSUM: u8 = 1;

/// That a group is half replaced by what a file has.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    group: GroupId,
    /// Index of the checkpoint before.
    previous: u64,
    /// CRC-32 of the file. `None`: whoever wrote this counted none.
    checksum: Option<u32>,
    file: String,
}

/// Index of the checkpoint before, checksum and name of the file that has the one after.
fn note_bytes(previous: u64, checksum: u32, file: &str) -> Vec<u8> {
    [&previous.to_be_bytes()[..], &[NOTE_HAS_CHECKSUM], &checksum.to_be_bytes(), file.as_bytes()].concat()
}

fn parse_note(key: &[u8], value: &[u8]) -> Option<Note> {
    let group = GroupId(u16::from_be_bytes(key.get(1..)?.try_into().ok()?));
    let (&previous, mut file) = value.split_first_chunk()?;
    let mut checksum = None;
    if let Some((&NOTE_HAS_CHECKSUM, rest)) = file.split_first() {
        let (&noted, name) = rest.split_first_chunk()?;
        (checksum, file) = (Some(u32::from_be_bytes(noted)), name);
    }
    let file = String::from_utf8(file.to_vec()).ok()?;
    Some(Note { group, previous: u64::from_be_bytes(previous), checksum, file })
}

/// Index, index of the checkpoint before, term, members.
fn base_bytes(base: &CheckpointBase, previous: u64) -> Vec<u8> {
    let LogId { index, term } = base.applied;
    let mut bytes = [index, previous, term].map(u64::to_be_bytes).concat();
    bytes.extend_from_slice(&base.configuration.to_bytes());
    bytes
}

fn parse_base(key: &[u8], value: &[u8]) -> Option<(GroupId, CheckpointBase, u64)> {
    let group = GroupId(u16::from_be_bytes(key.get(1..)?.try_into().ok()?));
    let number = |at: usize| Some(u64::from_be_bytes(value.get(at..at + 8)?.try_into().ok()?));
    let (index, previous, term) = (number(0)?, number(8)?, number(16)?);
    let configuration = Configuration::from_bytes(value.get(24..)?)?;
    Some((group, CheckpointBase { applied: LogId { index, term }, configuration }, previous))
}

/// `synced`: bytes of the manifest that were safe before this was written.
fn line(group: GroupId, applied: u64, previous: u64, synced: usize) -> String {
    // However long the manifest is, a line that says so is as long.
    let text = format!("{} {applied} {previous} {synced:010}", group.0);
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

fn read_manifest(disk: &dyn Disk) -> Result<Manifest, StateError> {
    let bytes = match disk.read(MANIFEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
        Err(error) => return Err(error.into()),
    };
    let Manifest { mut lines, mut length } = Manifest::default();
    let (mut at, mut is_whole) = (0, true);
    for text in bytes.split_inclusive(|&byte| byte == b'\n') {
        let line = parse_line(text, at);
        is_whole &= line.is_some();
        if let Some((group, applied, synced)) = line {
            // Also by what stands behind a damaged line.
            length.synced = length.synced.max(synced);
            if is_whole {
                lines.push((group, applied, at));
                length.bytes += text.len();
            }
        }
        at += text.len();
    }
    if length.bytes < length.synced {
        return Err(StateError::Manifest { line: lines.len() + 1 });
    }
    if length.bytes < bytes.len() {
        // These lines were being written when the power went: their checkpoints are judged by the store alone. If they come
        // back, they are cut off again; the next line is synced in the same file.
        disk.append_to(MANIFEST)?.truncate(length.bytes as u64)?;
    }
    Ok(Manifest { lines, length })
}

/// Group, applied index, and how much of the manifest was safe before: for a line of an earlier version, which does not say so,
/// all before it.
fn parse_line(line: &[u8], at: usize) -> Option<(GroupId, u64, usize)> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (text, crc) = line.rsplit_once(' ')?;
    if u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(text.as_bytes()) {
        return None;
    }
    let mut fields = text.split(' ');
    let group = GroupId(fields.next()?.parse().ok()?);
    let (applied, _previous) = (fields.next()?.parse().ok()?, fields.next()?);
    let synced = fields.next().map_or(Ok(at), str::parse);
    Some((group, applied, synced.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{SimDisk, Unsynced};
    use crate::identity::NodeId;

    fn checkpoint(group: u16, applied: u64, key: &str) -> Checkpoint {
        let writes = vec![(key.as_bytes().to_vec(), Some(b"x".to_vec()))];
        let configuration = Configuration::of([NodeId(1)]);
        Checkpoint {
            group: GroupId(group),
            base: CheckpointBase { applied: LogId { index: applied, term: 1 }, configuration },
            writes,
        }
    }

    #[test]
    fn what_a_checkpoint_wrote_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let mut store = StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened");
        store.write(vec![checkpoint(1, 5, "a"), checkpoint(2, 6, "b")]).expect("written");
        store.write(vec![checkpoint(1, 7, "c")]).expect("written");
        drop(store);
        let store = StateStore::open(directory.path(), disk).expect("opened");
        let applied: Vec<_> = store.bases().iter().map(|(&group, base)| (group, base.applied.index)).collect();
        assert_eq!(applied, [(GroupId(1), 7), (GroupId(2), 6)]);
        assert_eq!(store.bases()[&GroupId(1)].configuration, Configuration::of([NodeId(1)]));
        let keys: Vec<_> = store.load(GroupId(1)).expect("loaded").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"a".to_vec(), b"c".to_vec()]);
    }

    /// Whether they are synced or not, the newest writes are what is read, and of one group only.
    #[test]
    fn rows_are_read_as_they_were_written_last() {
        let directory = tempfile::tempdir().expect("a directory");
        let on_disk = StateStore::open(directory.path(), Arc::new(SimDisk::new())).expect("opened");
        let state = MemoryState::default();
        let in_memory = StateStore::in_memory(&state, Arc::new(SimDisk::new())).expect("opened");
        for mut store in [on_disk, in_memory] {
            let reader = store.reader();
            store.write(vec![checkpoint(1, 5, "a"), checkpoint(2, 5, "b")]).expect("written");
            store.write(vec![checkpoint(1, 6, "b"), checkpoint(1, 7, "c"), checkpoint(1, 8, "d")]).expect("written");
            let writes = vec![(b"a".to_vec(), Some(b"y".to_vec())), (b"c".to_vec(), None)];
            store.write(vec![Checkpoint { writes, ..checkpoint(1, 9, "") }]).expect("written");
            assert_eq!(reader.get(GroupId(1), b"a").expect("read"), Some(b"y".to_vec()));
            assert_eq!(reader.get(GroupId(1), b"c").expect("read"), None);
            let keys = |from: &str, until: &str, pairs_max| {
                let pairs = reader.range(GroupId(1), from.as_bytes(), until.as_bytes(), pairs_max).expect("read");
                pairs.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect::<String>()
            };
            assert_eq!([keys("a", "d", 9), keys("b", "z", 9), keys("a", "z", 2)], ["ab", "bd", "ab"]);
            // What was handed over and not synced counts as well.
            store
                .backend
                .commit(vec![(b"d\x00\x01e".to_vec(), Some(vec![])), (b"d\x00\x01b".to_vec(), None)])
                .expect("taken");
            assert_eq!(keys("a", "z", 9), "ade");
            assert_eq!(reader.get(GroupId(1), b"b").expect("read"), None);
        }
    }

    /// Whoever reads it need not know the store.
    #[test]
    fn a_store_that_cannot_be_opened_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        drop(StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened"));
        fs::write(directory.path().join("version"), b"something else").expect("written");
        let refused = StateStore::open(directory.path(), disk).expect_err("refused").to_string();
        assert!(refused.contains("restore this data directory from a backup, or start with an empty one"), "{refused}");
        let full = StateError::Open { error: fjall::Error::Io(io::ErrorKind::StorageFull.into()) }.to_string();
        assert!(full.contains("Make room on the disk"), "{full}");
    }

    /// A store that lost a completed checkpoint is refused, not started from an older state.
    #[test]
    fn a_store_behind_its_manifest_is_refused() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let full = tempfile::tempdir().expect("a directory");
        StateStore::open(full.path(), Arc::clone(&disk))
            .expect("opened")
            .write(vec![checkpoint(1, 5, "a")])
            .expect("written");
        let empty = tempfile::tempdir().expect("a directory");
        let refused = StateStore::open(empty.path(), disk).expect_err("refused");
        assert!(matches!(refused, StateError::Chain { group: 1, expected: 5, stored: 0 }), "{refused}");
    }

    /// A manifest that lost a line could not tell a lost checkpoint: it is refused as well.
    #[test]
    fn a_manifest_behind_its_store_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let mut store = StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened");
        store.write(vec![checkpoint(1, 5, "a")]).expect("written");
        store.write(vec![checkpoint(1, 6, "b")]).expect("written");
        drop(store);
        disk.remove(MANIFEST).expect("removed");
        let refused = StateStore::open(directory.path(), disk).expect_err("refused");
        assert!(matches!(refused, StateError::ManifestBehind { group: 1, listed: 0, previous: 5 }), "{refused}");
    }

    /// A store whose manifest has two writes of two lines each, and the length of one line.
    fn with_two_writes(disk: &SimDisk) -> (StateStore, MemoryState, usize) {
        let state = MemoryState::default();
        let mut store = StateStore::in_memory(&state, Arc::new(disk.clone())).expect("opened");
        store.write(vec![checkpoint(1, 5, "a"), checkpoint(2, 5, "b")]).expect("written");
        store.write(vec![checkpoint(1, 6, "a"), checkpoint(2, 6, "b")]).expect("written");
        (store, state, line(GroupId(1), 5, 0, 0).len())
    }

    #[test]
    fn a_damaged_line_is_told_from_a_torn_one() {
        let disk = SimDisk::new();
        let (_, _, line_bytes) = with_two_writes(&disk);
        disk.damage(MANIFEST, |bytes| bytes.truncate(4 * line_bytes - 12));
        let manifest = read_manifest(&disk).expect("a torn line is cut off");
        assert_eq!(manifest.listed(), BTreeMap::from([(GroupId(1), 6), (GroupId(2), 5)]));
        assert_eq!(manifest.listed_safely(), BTreeMap::from([(GroupId(1), 5), (GroupId(2), 5)]));
        assert_eq!(manifest.length, Length { bytes: 3 * line_bytes, synced: 2 * line_bytes });
        disk.damage(MANIFEST, |bytes| bytes[line_bytes + 2] = b'9');
        assert!(matches!(read_manifest(&disk), Err(StateError::Manifest { line: 2 })));
    }

    /// F9: lines that are written together are not written in their order, and whatever is missing of them was never relied upon (found by
    /// simulation, seed 3317). What came before them was.
    #[test]
    fn lines_whose_beginning_never_reached_the_disk_are_cut_off() {
        let disk = SimDisk::new();
        let (mut store, state, line_bytes) = with_two_writes(&disk);
        // The last of what `write` does to the disk is the sync.
        disk.ignore_sync(Some(SyncSite::ManifestLines));
        store.write(vec![checkpoint(1, 7, "a"), checkpoint(2, 7, "b")]).expect("written");
        let torn = disk.after_power_cut(Unsynced::Kept, Unsynced::Holed);
        torn.ignore_sync(None);
        let left = torn.contents()[MANIFEST].clone();
        assert!(left.ends_with(line(GroupId(2), 7, 6, 4 * line_bytes).as_bytes()) && left[4 * line_bytes] == 0);
        let reopened = StateStore::in_memory(&state, Arc::new(torn)).expect("opened");
        assert_eq!(reopened.manifest, Length { bytes: 4 * line_bytes, synced: 2 * line_bytes });
        let applied: Vec<_> = reopened.bases().values().map(|base| base.applied.index).collect();
        assert_eq!(applied, [7, 7], "the store has them");
        // A process that was killed has not synced what the next one finds and adds to.
        let killed = disk.after_kill();
        let mut store = StateStore::in_memory(&state, Arc::new(killed.clone())).expect("opened");
        store.write(vec![checkpoint(1, 8, "a")]).expect("written");
        let torn = killed.after_power_cut(Unsynced::Kept, Unsynced::Holed);
        assert!(torn.contents()[MANIFEST].ends_with(line(GroupId(1), 8, 6, 4 * line_bytes).as_bytes()));
        StateStore::in_memory(&state, Arc::new(torn.clone())).expect("opened");
        // But what was synced must be there.
        for damaged in [0, line_bytes, 3 * line_bytes] {
            let disk = torn.after_kill();
            disk.damage(MANIFEST, |bytes| bytes[damaged + 2] ^= 1);
            let refused = StateStore::in_memory(&state, Arc::new(disk)).expect_err("refused");
            // What the manifest itself cannot tell, the store knows.
            let expected = if damaged == 3 * line_bytes { "ManifestBehind" } else { "Manifest {" };
            assert!(format!("{refused:?}").starts_with(expected), "at {damaged}: {refused:?}");
        }
    }

    /// F9: whatever is left of lines that were written together, their checkpoints are there, and what is written next is as safe as ever.
    #[test]
    fn lines_that_are_torn_at_any_byte_are_cut_off() {
        type Loss = fn(&mut Vec<u8>, usize, usize);
        let losses: [(&str, Loss); 3] = [
            ("their beginning is left", |bytes, from, at| bytes.truncate(from + at)),
            ("their end is left", |bytes, from, at| bytes[from..from + at].fill(0)),
            ("their end is not written", |bytes, from, at| bytes[from + at..].fill(0)),
        ];
        let line_bytes = line(GroupId(1), 5, 0, 0).len();
        for (what, loss) in losses {
            for at in 0..=2 * line_bytes {
                let disk = SimDisk::new();
                let (mut store, state, _) = with_two_writes(&disk);
                store.write(vec![checkpoint(1, 7, "a"), checkpoint(2, 7, "b")]).expect("written");
                drop(store);
                disk.damage(MANIFEST, |bytes| loss(bytes, 4 * line_bytes, at));
                for applied in [7, 9, 11] {
                    let store = StateStore::in_memory(&state, Arc::new(disk.clone()));
                    let mut store = store.unwrap_or_else(|error| panic!("{what} at {at}, behind {applied}: {error}"));
                    let found: Vec<_> = store.bases().values().map(|base| base.applied.index).collect();
                    assert_eq!(found, [applied; 2], "{what} at {at}");
                    // The second of them relies on the first.
                    for next in [applied + 1, applied + 2] {
                        store.write(vec![checkpoint(1, next, "a"), checkpoint(2, next, "b")]).expect("written");
                    }
                    disk.power_cycle(|_, _| 0);
                }
            }
        }
    }

    /// It was all one line at a time.
    #[test]
    fn a_manifest_of_an_earlier_version_is_read_as_strictly_as_then() {
        let disk = SimDisk::new();
        let old = |text: &str| format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()));
        let mut file = disk.append_to(MANIFEST).expect("a file");
        file.append([old("1 5 0"), old("2 6 0")].concat().as_bytes()).expect("written");
        let manifest = read_manifest(&disk).expect("read");
        assert_eq!(manifest.listed(), BTreeMap::from([(GroupId(1), 5), (GroupId(2), 6)]));
        disk.damage(MANIFEST, |bytes| bytes[2] = b'9');
        assert!(matches!(read_manifest(&disk), Err(StateError::Manifest { line: 1 })));
    }

    /// All of it was synced before it got its name, whatever is missing.
    #[test]
    fn no_damage_to_a_manifest_that_was_rewritten_is_taken_for_a_torn_write() {
        let disk = SimDisk::new();
        let (mut store, state, line_bytes) = with_two_writes(&disk);
        store.manifest.bytes = MANIFEST_BYTES_MAX;
        store.write(vec![checkpoint(1, 7, "a")]).expect("written");
        for cut in [1, line_bytes] {
            let damaged = disk.after_kill();
            damaged.damage(MANIFEST, |bytes| bytes.truncate(2 * line_bytes - cut));
            let refused = StateStore::in_memory(&state, Arc::new(damaged)).expect_err("refused");
            assert!(matches!(refused, StateError::Manifest { line: 2 }), "{refused}");
        }
        StateStore::in_memory(&state, Arc::new(disk)).expect("opened");
    }

    /// F10: what the store has taken is listed without another descriptor, and a manifest that is to be rewritten waits for one.
    #[test]
    fn checkpoints_are_listed_while_no_file_can_be_opened() {
        let disk = SimDisk::new();
        let (store, state, _) = with_two_writes(&disk);
        drop(store);
        let mut store = StateStore::in_memory(&state, Arc::new(disk.clone())).expect("opened");
        disk.set_out_of_descriptors(true);
        store.write(vec![checkpoint(1, 7, "a")]).expect("written");
        let bytes = std::mem::replace(&mut store.manifest.bytes, MANIFEST_BYTES_MAX);
        store.manifest.synced = bytes;
        store.write(vec![checkpoint(1, 8, "a")]).expect("written to the old one");
        disk.set_out_of_descriptors(false);
        assert_eq!(read_manifest(&disk).expect("read").listed()[&GroupId(1)], 8);
        store.write(vec![checkpoint(1, 9, "a")]).expect("written");
        assert!(store.manifest.bytes < 100, "rewritten");
        store.write(vec![checkpoint(1, 10, "a")]).expect("written to the new one");
        disk.power_cycle(|_, _| 0);
        assert_eq!(read_manifest(&disk).expect("read").listed()[&GroupId(1)], 10);
        StateStore::in_memory(&state, Arc::new(disk)).expect("opened");
    }

    #[test]
    fn a_long_manifest_is_rewritten_short() {
        let directory = tempfile::tempdir().expect("a directory");
        let sim = SimDisk::new();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let mut store = StateStore::open(directory.path(), Arc::clone(&disk)).expect("opened");
        store.manifest.bytes = MANIFEST_BYTES_MAX;
        store.write(vec![checkpoint(1, 5, "a")]).expect("written");
        assert!(store.manifest.bytes < 100);
        sim.power_cycle(|_, _| 0);
        let manifest = read_manifest(&*disk).expect("read");
        assert_eq!(manifest.listed(), BTreeMap::from([(GroupId(1), 5)]));
    }
}
