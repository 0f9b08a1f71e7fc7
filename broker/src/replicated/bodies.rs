//! The bodies of the messages that sessions of a group hold, each stored once, and how much of them is in memory.
//!
//! The middle of a long queue is in the store only (`session::outbound::Middle`), and a body to which nothing in memory refers any more
//! is let go of. Both come back as they were when they are needed, so what is in memory changes nothing of what a command does; it
//! is not the same on every replica. Only what a *completed* checkpoint has may go.
//!
//! [`Bodies::read`] waits for the disk, on the thread that applies, for a few rows. So that it is seldom called, the front of a
//! queue that is being emptied is filled up beforehand by another thread: see [`Bodies::ask`].

use std::collections::{BTreeMap, btree_map, hash_map};
use std::sync::Arc;

use foldhash::HashMap;
use prost::Message as _;

use super::command::MessageRecord;
use super::rows::StoredRows;
use super::session::Entry;
use super::store::{Dirty, EntryRecord, Key, ReferencesRecord, RestoreError, number};
use crate::message::Message;
use crate::session::outbound::{Middle, Page};

/// Messages that are read back at once while everybody waits.
const READ_NOW_MAX: usize = 64;

/// Messages that are read back at once beforehand.
const READ_AHEAD_MAX: usize = 1024;

/// What an entry takes in memory beside its body, about.
const ENTRY_BYTES: usize = size_of::<Entry>() + 24;

/// What a body takes beside what it weighs: tables, and the heads of allocations. About.
const BODY_BYTES: usize = 128;

#[derive(Debug)]
struct Body {
    message: Arc<Message>,
    /// Entries of all sessions that refer to it.
    references: u32,
    /// Those of them that are in memory.
    in_memory: u32,
    /// How many the store knows of once what was handed out to be written is.
    stored: u32,
    /// Whether it is known that this is to be written anew.
    is_marked: bool,
}

impl Body {
    /// One that a single entry in memory refers to.
    fn of_one_entry(message: Arc<Message>, references: u32) -> Self {
        Self { message, references, in_memory: 1, stored: references, is_marked: false }
    }

    fn memory_bytes(&self) -> usize {
        self.message.weight_bytes() + BODY_BYTES
    }

    fn mark(&mut self, number: u64, dirty: &mut Dirty) {
        if !std::mem::replace(&mut self.is_marked, true) {
            dirty.changed(Key::References(number));
        }
    }
}

/// What is to be read of the middle of a queue before it is needed.
#[derive(Debug)]
pub struct PageRequest {
    rows: Arc<dyn StoredRows>,
    session: u64,
    from: u64,
    until: u64,
    /// What of the bodies had been let go of.
    round: u64,
}

/// It was read.
#[derive(Debug)]
pub struct ReadPage {
    rows: Arc<dyn StoredRows>,
    pub(super) session: u64,
    from: u64,
    round: u64,
    entries: Vec<(u64, EntryRecord)>,
    bodies: BTreeMap<u64, (Arc<Message>, u32)>,
}

impl PageRequest {
    /// Reads it. Waits for the disk.
    ///
    /// # Errors
    /// The store failed, or does not have what was put there.
    pub fn read(self) -> Result<ReadPage, RestoreError> {
        let Self { rows, session, from, until, round } = self;
        let entries = read_entries(&*rows, session, from, until, READ_AHEAD_MAX)?;
        let mut bodies = BTreeMap::new();
        for (_, record) in &entries {
            if let btree_map::Entry::Vacant(place) = bodies.entry(record.body) {
                place.insert(read_body(&*rows, record.body)?);
            }
        }
        Ok(ReadPage { rows, session, from, round, entries, bodies })
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Where what is not in memory is. `None`: everything is.
    rows: Option<Arc<dyn StoredRows>>,
    bodies: HashMap<u64, Body>,
    /// Bodies that nothing in memory referred to when they came here. They go when what the store knows of them is right.
    idle: Vec<u64>,
    memory_bytes: usize,
    /// Rises whenever bodies were let go of.
    round: u64,
    /// Session → from where on its queue is being read.
    asked: HashMap<u64, u64>,
}

impl Bodies {
    /// From now on what is stored there may be let go of.
    pub(super) fn keep_in(&mut self, rows: Arc<dyn StoredRows>) {
        self.rows = Some(rows);
    }

    /// Bodies in memory.
    pub(super) fn len(&self) -> usize {
        self.bodies.len()
    }

    /// What bodies and entries take in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Those in memory.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.bodies.keys().copied()
    }

    pub(super) fn message(&self, number: u64) -> Option<&Arc<Message>> {
        Some(&self.bodies.get(&number)?.message)
    }

    /// How many entries refer to a body that is in memory.
    pub(super) fn references(&self, number: u64) -> Option<u32> {
        Some(self.bodies.get(&number)?.references)
    }

    /// A new entry refers to a body, perhaps a new one.
    pub(super) fn reference(&mut self, number: u64, message: &Arc<Message>, dirty: &mut Dirty) {
        self.memory_bytes += ENTRY_BYTES;
        match self.bodies.entry(number) {
            hash_map::Entry::Occupied(mut known) => {
                let body = known.get_mut();
                body.references += 1;
                body.in_memory += 1;
                body.mark(number, dirty);
            }
            hash_map::Entry::Vacant(place) => {
                let body = place.insert(Body::of_one_entry(Arc::clone(message), 1));
                self.memory_bytes += body.memory_bytes();
                dirty.created(Key::Body(number));
            }
        }
    }

    fn insert(&mut self, number: u64, message: Arc<Message>, references: u32) {
        let body = Body::of_one_entry(message, references);
        self.memory_bytes += body.memory_bytes();
        self.bodies.insert(number, body);
    }

    /// An entry that was in memory is no more.
    pub(super) fn release(&mut self, number: u64, dirty: &mut Dirty) {
        self.memory_bytes -= ENTRY_BYTES;
        let Some(body) = self.bodies.get_mut(&number) else {
            return;
        };
        body.references -= 1;
        body.in_memory -= 1;
        if body.references > 0 {
            body.mark(number, dirty);
            if body.in_memory == 0 {
                self.idle.push(number);
            }
            return;
        }
        let known_to_store = body.stored > 1;
        self.memory_bytes -= body.memory_bytes();
        self.bodies.remove(&number);
        dirty.deleted(Key::Body(number));
        dirty.unwritten(Key::References(number), known_to_store);
    }

    /// What a checkpoint has to write of how often a body is referred to. The outer `None`: nothing.
    pub(super) fn references_to_write(&mut self, number: u64) -> Option<Option<Vec<u8>>> {
        let Some(body) = self.bodies.get_mut(&number) else {
            return Some(None);
        };
        body.is_marked = false;
        if std::mem::replace(&mut body.stored, body.references) == body.references {
            return None;
        }
        Some(references_value(body.references))
    }

    /// Entries left memory, and are in the store.
    pub(super) fn put_away(&mut self, entries: Vec<Entry>) {
        for Entry { body: number, .. } in entries {
            self.memory_bytes -= ENTRY_BYTES;
            if let Some(body) = self.bodies.get_mut(&number) {
                body.in_memory -= 1;
                if body.in_memory == 0 {
                    self.idle.push(number);
                }
            }
        }
    }

    /// Lets go of the bodies that nothing in memory refers to, as far as the store has all of them. A checkpoint must be complete.
    pub(super) fn let_go(&mut self) {
        let idle = std::mem::take(&mut self.idle);
        for number in idle {
            let Some(body) = self.bodies.get(&number).filter(|body| body.in_memory == 0) else {
                continue;
            };
            if body.is_marked || body.stored != body.references {
                self.idle.push(number);
                continue;
            }
            self.memory_bytes -= body.memory_bytes();
            self.bodies.remove(&number);
            self.round += 1;
        }
        self.idle.sort_unstable();
        self.idle.dedup();
        if self.bodies.len() * 4 < self.bodies.capacity() {
            self.bodies.shrink_to_fit();
        }
    }

    /// The first messages of the middle of a session's queue. Waits for the disk. A store that does not have what was put there
    /// ends the process.
    pub(super) fn read(&mut self, session: u64, middle: Middle) -> Page<Entry> {
        let page = self.rows.clone().ok_or(RestoreError::Incomplete("a queue that is stored nowhere"));
        match page.and_then(|rows| self.page(&*rows, session, middle)) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "what was stored of a session's queue cannot be read back; this process ends");
                kentongan_cluster::ending::abort();
            }
        }
    }

    fn page(&mut self, rows: &dyn StoredRows, session: u64, middle: Middle) -> Result<Page<Entry>, RestoreError> {
        let entries = read_entries(rows, session, middle.from, middle.until, READ_NOW_MAX)?;
        let next = entries.last().map(|(sequence, _)| sequence + 1);
        let next = next.ok_or(RestoreError::Incomplete("a part of a queue is not there"))?;
        let messages = entries.into_iter().map(|(sequence, record)| {
            let entry = self.restore(rows, sequence, record)?;
            let (weight_bytes, qos) = (entry.message.weight_bytes(), entry.qos);
            Ok((entry, weight_bytes, qos))
        });
        let page = Page { messages: messages.collect::<Result<_, RestoreError>>()?, next };
        let bytes: usize = page.messages.iter().map(|(_, weight_bytes, _)| weight_bytes).sum();
        if page.messages.len() > middle.messages || bytes > middle.bytes {
            return Err(RestoreError::Incomplete("a part of a queue is more than it was"));
        }
        Ok(page)
    }

    /// An entry comes (back) from the store.
    pub(super) fn restore(
        &mut self,
        rows: &dyn StoredRows,
        sequence: u64,
        record: EntryRecord,
    ) -> Result<Entry, RestoreError> {
        let number = record.body;
        match self.bodies.get_mut(&number) {
            Some(body) => body.in_memory += 1,
            None => {
                let (message, references) = read_body(rows, number)?;
                self.insert(number, message, references);
            }
        }
        Ok(self.entry(sequence, record))
    }

    /// Of a body that is there and knows of it.
    fn entry(&mut self, sequence: u64, record: EntryRecord) -> Entry {
        self.memory_bytes += ENTRY_BYTES;
        let Some(body) = self.bodies.get(&record.body) else {
            unreachable!("its caller has just found it, or put it there");
        };
        record.into_entry(sequence, Arc::clone(&body.message))
    }

    /// What is to be read of a session's queue beforehand, unless that was asked for already.
    pub(super) fn ask(&mut self, session: u64, middle: Middle) -> Option<PageRequest> {
        let rows = Arc::clone(self.rows.as_ref()?);
        let Middle { from, until, .. } = middle;
        if self.asked.insert(session, from) == Some(from) {
            return None;
        }
        Some(PageRequest { rows, session, from, until, round: self.round })
    }

    /// The session is over.
    pub(super) fn forget(&mut self, session: u64) {
        self.asked.remove(&session);
    }

    /// It was read. `None`: it comes too late, or what it read may be no longer so.
    pub(super) fn take(&mut self, page: ReadPage, middle: Option<Middle>) -> Option<Page<Entry>> {
        let ReadPage { rows, session, from, round, entries, mut bodies } = page;
        let is_of_this = self.rows.as_ref().is_some_and(|own| Arc::ptr_eq(own, &rows));
        if !is_of_this {
            return None;
        }
        self.asked.remove(&session);
        // One that has more than there was is not believed: it is read again when it is needed, and found out.
        let is_of_middle = |middle: Middle| middle.from == from && entries.len() <= middle.messages;
        if round != self.round || !middle.is_some_and(is_of_middle) {
            return None;
        }
        let next = entries.last()?.0 + 1;
        let mut messages = Vec::with_capacity(entries.len());
        for (sequence, record) in entries {
            let number = record.body;
            match self.bodies.get_mut(&number) {
                Some(body) => body.in_memory += 1,
                None => {
                    let (message, references) = bodies.remove(&number)?;
                    self.insert(number, message, references);
                }
            }
            let entry = self.entry(sequence, record);
            let (weight_bytes, qos) = (entry.message.weight_bytes(), entry.qos);
            messages.push((entry, weight_bytes, qos));
        }
        Some(Page { messages, next })
    }

    /// Every entry in the middle of a session's queue, as it is stored.
    pub(super) fn for_each_away(
        &self,
        session: u64,
        middle: Middle,
        mut tell: impl FnMut(u64, EntryRecord),
    ) -> Result<(), RestoreError> {
        let Some(rows) = &self.rows else {
            return Ok(());
        };
        let Middle { mut from, until, .. } = middle;
        loop {
            let entries = read_entries(&**rows, session, from, until, READ_AHEAD_MAX)?;
            let Some((last, _)) = entries.last() else {
                return Ok(());
            };
            from = last + 1;
            entries.into_iter().for_each(|(sequence, record)| tell(sequence, record));
        }
    }

    /// A body that is not in memory, and how many entries refer to it.
    pub(super) fn read_body(&self, number: u64) -> Result<(Arc<Message>, u32), RestoreError> {
        let rows = self.rows.as_ref().ok_or(RestoreError::Incomplete("a body that is stored nowhere"))?;
        read_body(&**rows, number)
    }
}

/// How often a body is referred to, as it is stored: nothing if once, as most are.
pub(super) fn references_value(references: u32) -> Option<Vec<u8>> {
    (references > 1).then(|| ReferencesRecord { references }.encode_to_vec())
}

fn read_body(rows: &dyn StoredRows, number: u64) -> Result<(Arc<Message>, u32), RestoreError> {
    let body = rows.get(&Key::Body(number).encode())?;
    let record = MessageRecord::decode(&body.ok_or(RestoreError::Incomplete("a queued message has no body"))?[..])?;
    let references = match rows.get(&Key::References(number).encode())? {
        Some(record) => ReferencesRecord::decode(&record[..])?.references,
        None => 1,
    };
    Ok((Arc::new(record.into_message(0)), references.max(1)))
}

/// Entries of a session in the order of their sequence.
pub(super) fn read_entries(
    rows: &dyn StoredRows,
    session: u64,
    from: u64,
    until: u64,
    entries_max: usize,
) -> Result<Vec<(u64, EntryRecord)>, RestoreError> {
    let key = |sequence| Key::Entry(session, sequence).encode();
    let pairs = rows.range(&key(from), &key(until), entries_max)?;
    let entry = |(key, value): (Vec<u8>, Vec<u8>)| {
        let sequence = number(key.get(9..).unwrap_or_default())?;
        Ok((sequence, EntryRecord::decode(&value[..])?))
    };
    pairs.into_iter().map(entry).collect()
}
