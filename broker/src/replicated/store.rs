//! What of a group's state goes to disk at a checkpoint, and how it comes back.
//!
//! Only what changed since the last checkpoint is written, and what came and went between two is never written at all. So nothing that
//! grows without a small bound is one value: a session's head is, and its subscriptions and messages have rows of their own.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, hash_map};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt as _};
use kentongan_cluster::state::{Pair, StateError};
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode, RetainHandling, SubscriptionOptions};
use prost::Message as _;
use ring::digest::{SHA256, digest};

use super::bodies::{read_entries, references_value};
use super::command::{self, MessageRecord, Owner, PickTargetRecord, WillRecord};
use super::rows::{Pairs, StoredRows};
use super::session::{Before, Entry, HeldBack, PersistentSession, Subscription, Waiting};
use super::state::{
    GroupConfig, GroupState, LaneState, LaterClaim, LeftBehind, OutboxEntry, PickTarget, absolute, queue_caps,
};
use crate::message::Message;
use crate::session::outbound::{Middle, Outbound, Stage};

/// What can be stored on its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Session(u64),
    /// Of a session, by its filter.
    Subscription(u64, Arc<str>),
    /// Of a session, by sequence.
    Held(u64, u64),
    /// Of a session, by sequence.
    Entry(u64, u64),
    Body(u64),
    /// To a body, where there are several.
    References(u64),
    Retained(Arc<str>),
    Outbox(u64),
    /// Of a shared subscription.
    Turn(Arc<str>),
    /// A Client Identifier.
    LeftBehind(Arc<str>),
}

impl Key {
    /// What belongs together stands together, in its order.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Session(number) => [&b"s"[..], &number.to_be_bytes()].concat(),
            Self::Subscription(session, filter) => named([&b"f"[..], &session.to_be_bytes()].concat(), filter),
            Self::Held(session, sequence) => [&b"h"[..], &session.to_be_bytes(), &sequence.to_be_bytes()].concat(),
            Self::References(number) => [&b"c"[..], &number.to_be_bytes()].concat(),
            Self::Entry(session, sequence) => [&b"q"[..], &session.to_be_bytes(), &sequence.to_be_bytes()].concat(),
            Self::Body(number) => [&b"b"[..], &number.to_be_bytes()].concat(),
            Self::Retained(topic) => named(b"r".to_vec(), topic),
            Self::Turn(share) => named(b"t".to_vec(), share),
            Self::LeftBehind(client_id) => named(b"l".to_vec(), client_id),
            Self::Outbox(position) => [&b"o"[..], &position.to_be_bytes()].concat(),
        }
    }
}

/// Longer names are in the value, for a key of the store has 65,535 bytes at most, with all that is before the name; and a name
/// may have that many itself.
const NAME_BYTES_MAX: usize = 60_000;

/// Stands behind what a key has of a longer name. No name has it, for it is not UTF-8.
const CUT: u8 = 0xff;

fn named(mut key: Vec<u8>, name: &str) -> Vec<u8> {
    match name.as_bytes().get(..NAME_BYTES_MAX) {
        Some(begin) if name.len() > NAME_BYTES_MAX => {
            key.extend_from_slice(begin);
            key.push(CUT);
            key.extend_from_slice(digest(&SHA256, name.as_bytes()).as_ref());
        }
        _ => key.extend_from_slice(name.as_bytes()),
    }
    key
}

/// What the value has of a name.
fn beside_key(name: &str) -> Option<String> {
    (name.len() > NAME_BYTES_MAX).then(|| name.to_owned())
}

/// The name that a key has, or its value.
fn name_of(in_key: &[u8], in_value: Option<String>) -> Result<Arc<str>, RestoreError> {
    match in_value {
        Some(name) => Ok(Arc::from(name)),
        None => str::from_utf8(in_key).map(Arc::from).map_err(|_| RestoreError::Incomplete("a name in a key")),
    }
}

const META_KEY: &[u8] = b"m";

/// What changed since the last checkpoint; `true`: it was not stored before.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    keys: HashMap<Key, bool>,
    touched: bool,
}

impl Dirty {
    /// A command was applied: clock, lanes and counters may have changed.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    pub fn created(&mut self, key: Key) {
        self.keys.entry(key).or_insert(true);
    }

    pub fn changed(&mut self, key: Key) {
        self.keys.entry(key).or_insert(false);
    }

    pub fn deleted(&mut self, key: Key) {
        match self.keys.entry(key) {
            hash_map::Entry::Occupied(new) if *new.get() => drop(new.remove()),
            hash_map::Entry::Occupied(_) => {}
            hash_map::Entry::Vacant(place) => drop(place.insert(false)),
        }
    }

    /// What is gone, where only its owner knows whether it was stored.
    pub fn unwritten(&mut self, key: Key, was_stored: bool) {
        if was_stored {
            self.keys.insert(key, false);
        } else {
            self.keys.remove(&key);
        }
    }

    /// Whether it is to be written, or deleted.
    pub fn contains(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.touched = false;
    }
}

/// One write: a value, or `None` to delete the key.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, PartialEq, prost::Message)]
struct LaneRecord {
    #[prost(uint64, tag = "1")]
    lane: u64,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    node: u64,
    #[prost(uint64, tag = "4")]
    incarnation: u64,
    #[prost(message, repeated, tag = "5")]
    refused: Vec<RefusedRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RefusedRecord {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint32, tag = "2")]
    reason: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FencedRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    below: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetainedRecord {
    #[prost(message, optional, tag = "1")]
    message: Option<MessageRecord>,
    /// When it is forgotten, on the group's clock.
    #[prost(uint64, optional, tag = "2")]
    due_ms: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TurnRecord {
    #[prost(string, tag = "1")]
    last: String,
    /// The share, if the key does not have it.
    #[prost(string, optional, tag = "2")]
    share: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WaitingRecord {
    #[prost(message, optional, tag = "1")]
    connect: Option<command::Connect>,
    #[prost(uint64, tag = "2")]
    owner_epoch: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeftBehindRecord {
    /// The Client Identifier, if the key does not have it.
    #[prost(string, optional, tag = "1")]
    client_id: Option<String>,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
    /// The claim that waits.
    #[prost(message, optional, tag = "4")]
    connect: Option<command::Connect>,
    /// When it is refused, on the group's clock.
    #[prost(uint64, tag = "5")]
    due_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetaRecord {
    #[prost(uint64, tag = "1")]
    clock_ms: u64,
    #[prost(uint64, tag = "2")]
    wall_ms: u64,
    #[prost(uint64, tag = "3")]
    last_epoch: u64,
    #[prost(uint64, tag = "4")]
    last_number: u64,
    #[prost(uint64, tag = "5")]
    last_body: u64,
    #[prost(uint64, tag = "6")]
    last_position: u64,
    #[prost(uint64, tag = "7")]
    last_read: u64,
    #[prost(message, repeated, tag = "10")]
    fenced: Vec<FencedRecord>,
    #[prost(message, repeated, tag = "9")]
    lanes: Vec<LaneRecord>,
    #[prost(uint32, tag = "11")]
    level: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SubscriptionRecord {
    /// The filter, if the key does not have it.
    #[prost(string, optional, tag = "1")]
    filter: Option<String>,
    #[prost(uint32, tag = "2")]
    qos: u32,
    #[prost(bool, tag = "3")]
    no_local: bool,
    #[prost(bool, tag = "4")]
    retain_as_published: bool,
    #[prost(uint32, tag = "5")]
    retain_handling: u32,
    #[prost(uint32, optional, tag = "6")]
    identifier: Option<u32>,
    #[prost(uint64, optional, tag = "7")]
    read: Option<u64>,
    #[prost(bool, tag = "8")]
    held: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WindowRecord {
    #[prost(uint32, tag = "1")]
    packet_id: u32,
    /// 0 PUBACK, 1 PUBREC, 2 PUBCOMP is awaited.
    #[prost(uint32, tag = "2")]
    stage: u32,
    #[prost(uint32, tag = "3")]
    qos: u32,
    /// The entry, unless only the identifier is left.
    #[prost(uint64, optional, tag = "4")]
    sequence: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeldRecord {
    #[prost(message, optional, tag = "1")]
    message: Option<MessageRecord>,
    #[prost(uint32, tag = "2")]
    qos: u32,
    #[prost(bool, tag = "3")]
    retain: bool,
    #[prost(uint32, repeated, tag = "4")]
    identifiers: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionRecord {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    identity: String,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(message, optional, tag = "4")]
    owner: Option<Owner>,
    #[prost(uint32, tag = "5")]
    expiry_seconds: u32,
    #[prost(uint64, optional, tag = "6")]
    expires_at_ms: Option<u64>,
    #[prost(message, optional, tag = "7")]
    will: Option<WillRecord>,
    #[prost(uint64, optional, tag = "8")]
    will_due_ms: Option<u64>,
    #[prost(message, repeated, tag = "10")]
    window: Vec<WindowRecord>,
    #[prost(uint32, tag = "11")]
    last_id: u32,
    #[prost(uint32, repeated, tag = "12")]
    received: Vec<u32>,
    #[prost(uint64, tag = "14")]
    next_sequence: u64,
    #[prost(uint32, tag = "15")]
    window_max: u32,
    #[prost(uint32, repeated, tag = "16")]
    to_resend: Vec<u32>,
    #[prost(uint32, tag = "17")]
    window_slots: u32,
    #[prost(bool, tag = "18")]
    transient: bool,
    #[prost(message, optional, tag = "19")]
    waiting: Option<WaitingRecord>,
    #[prost(bool, tag = "20")]
    resumed: bool,
    #[prost(uint64, optional, tag = "21")]
    queue_messages_max: Option<u64>,
    #[prost(uint64, optional, tag = "22")]
    queue_bytes_max: Option<u64>,
    /// Of the messages behind the window, whose entries follow those in it.
    #[prost(uint64, tag = "23")]
    queued_messages: u64,
    #[prost(uint64, tag = "24")]
    queued_bytes: u64,
    #[prost(bool, tag = "25")]
    may_queue_shared: bool,
    #[prost(uint32, repeated, tag = "26")]
    sent_before: Vec<u32>,
    #[prost(message, optional, tag = "27")]
    before: Option<BeforeRecord>,
    #[prost(uint64, optional, tag = "28")]
    expires_before_ms: Option<u64>,
    #[prost(uint64, tag = "29")]
    overflows: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BeforeRecord {
    #[prost(uint32, tag = "1")]
    expiry_seconds: u32,
    #[prost(message, optional, tag = "2")]
    will: Option<WillRecord>,
    #[prost(uint64, tag = "3")]
    will_due_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReferencesRecord {
    #[prost(uint32, tag = "1")]
    pub(super) references: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EntryRecord {
    #[prost(uint64, tag = "1")]
    pub(super) body: u64,
    #[prost(uint32, tag = "2")]
    qos: u32,
    #[prost(bool, tag = "3")]
    retain: bool,
    #[prost(uint32, repeated, tag = "4")]
    identifiers: Vec<u32>,
    #[prost(string, optional, tag = "5")]
    share: Option<String>,
}

impl EntryRecord {
    pub(super) fn into_entry(self, sequence: u64, message: Arc<Message>) -> Entry {
        Entry {
            body: self.body,
            sequence,
            message,
            qos: command::qos(self.qos),
            retain: self.retain,
            identifiers: self.identifiers,
            share: self.share.map(Arc::from),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct OutboxRecord {
    #[prost(message, optional, tag = "1")]
    message: Option<MessageRecord>,
    #[prost(uint64, optional, tag = "2")]
    due_ms: Option<u64>,
    #[prost(string, optional, tag = "3")]
    share: Option<String>,
    #[prost(message, optional, tag = "4")]
    pick: Option<PickTargetRecord>,
    #[prost(bool, tag = "5")]
    picked: bool,
    #[prost(bool, tag = "6")]
    routed: bool,
    #[prost(uint32, tag = "7")]
    given_back: u32,
    /// A node.
    #[prost(message, optional, tag = "8")]
    passed_over: Option<PickTargetRecord>,
    #[prost(message, optional, tag = "9")]
    awaited_by: Option<HeldPubRecRecord>,
    #[prost(bool, tag = "10")]
    received: bool,
    #[prost(string, optional, tag = "11")]
    will_of: Option<String>,
    #[prost(bool, tag = "12")]
    is_granted: bool,
    #[prost(string, optional, tag = "13")]
    picked_up_to: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeldPubRecRecord {
    #[prost(uint64, tag = "1")]
    session: u64,
    #[prost(uint32, tag = "2")]
    packet_id: u32,
}

/// What is stored does not make sense: it was written by something else, or is damaged.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A value is no record.
    #[error("a stored record cannot be read: {0}")]
    Record(#[from] prost::DecodeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StateError),
    /// A record refers to one that is not there.
    #[error("the stored state is incomplete: {0}")]
    Incomplete(&'static str),
}

impl GroupState {
    /// What changed since this was last asked; empty if nothing did.
    pub fn take_dirty(&mut self) -> Vec<Write> {
        if !self.dirty.touched {
            return Vec::new();
        }
        // Or rows of no session would be stored.
        self.let_ended_go(usize::MAX);
        let mut keys: Vec<Key> = self.dirty.keys.keys().cloned().collect();
        // So that the same history writes the same bytes.
        keys.sort_unstable();
        let entries = self.entries_of(&keys);
        let mut writes = vec![(META_KEY.to_vec(), Some(self.meta().encode_to_vec()))];
        for key in &keys {
            let value = match key {
                Key::References(number) => match self.bodies.references_to_write(*number) {
                    Some(value) => value,
                    None => continue,
                },
                key => self.value(key, &entries),
            };
            writes.push((key.encode(), value));
        }
        self.dirty.clear();
        self.fresh_gaps.clear();
        writes
    }

    /// All that a checkpoint would have to write if there had been none before, in the order of the keys.
    ///
    /// # Panics
    /// What is not in memory cannot be read; or something of sessions that ended is [still there](Self::ended_messages).
    pub fn snapshot(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        assert_eq!(self.ended_messages(), 0);
        let of_session = |session: &PersistentSession| {
            let number = session.number;
            let in_flight: Vec<_> = session.outbound.resend().into_iter().filter_map(|(.., entry)| entry).collect();
            let entries = in_flight.into_iter().chain(session.outbound.queued());
            let entries = entries.map(|entry| Key::Entry(number, entry.sequence));
            let subscriptions =
                session.subscriptions.keys().map(|filter| Key::Subscription(number, Arc::clone(filter)));
            let held = session.held.iter().map(|held| Key::Held(number, held.sequence));
            let rows: Vec<_> = subscriptions.chain(held).chain(entries).collect();
            std::iter::once(Key::Session(number)).chain(rows)
        };
        let keys: Vec<_> = (self.sessions.values().flat_map(of_session))
            .chain(self.bodies.numbers().flat_map(|number| [Key::Body(number), Key::References(number)]))
            .chain(self.retained.iter().map(|message| Key::Retained(Arc::clone(&message.topic))))
            .chain(self.outbox.keys().map(|&position| Key::Outbox(position)))
            .chain(self.turns.keys().map(|share| Key::Turn(Arc::clone(share))))
            .chain(self.left_behind.keys().map(|client_id| Key::LeftBehind(Arc::clone(client_id))))
            .collect();
        let entries = self.entries_of(&keys);
        let mut snapshot: BTreeMap<_, _> =
            keys.iter().filter_map(|key| Some((key.encode(), self.value(key, &entries)?))).collect();
        snapshot.insert(META_KEY.to_vec(), self.meta().encode_to_vec());
        for session in self.sessions.values() {
            self.add_away(session, &mut snapshot);
        }
        snapshot
    }

    /// What of a session is in the store only.
    fn add_away(&self, session: &PersistentSession, snapshot: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let Some(middle) = session.outbound.middle() else {
            return;
        };
        let mut add = |sequence, record: EntryRecord| {
            snapshot.insert(Key::Entry(session.number, sequence).encode(), record.encode_to_vec());
            if self.bodies.message(record.body).is_none() {
                let (message, references) =
                    self.bodies.read_body(record.body).expect("what is not in memory is stored");
                snapshot.insert(Key::Body(record.body).encode(), absolute(&message).encode_to_vec());
                let references = references_value(references);
                snapshot.extend(references.map(|value| (Key::References(record.body).encode(), value)));
            }
        };
        self.bodies.for_each_away(session.number, middle, &mut add).expect("what is not in memory is stored");
    }

    /// What replicas that applied the same log have in common, and no two different states: FNV-1a over
    /// [`Self::snapshot`].
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in (bytes.len() as u64).to_be_bytes().iter().chain(bytes) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        for (key, value) in self.snapshot() {
            add(&key);
            add(&value);
        }
        hash
    }

    fn meta(&self) -> MetaRecord {
        MetaRecord {
            clock_ms: self.clock_ms,
            wall_ms: self.wall_ms,
            last_epoch: self.last_epoch,
            last_number: self.last_number,
            last_body: self.last_body,
            last_position: self.last_position,
            last_read: self.last_read,
            fenced: self.fenced_below.iter().map(|(&node, &below)| FencedRecord { node, below }).collect(),
            lanes: self.lanes.iter().map(lane_record).collect(),
            level: self.level,
        }
    }

    /// The entries that `keys` name. What is in the store only did not change.
    fn entries_of(&self, keys: &[Key]) -> HashMap<(u64, u64), EntryRecord> {
        let mut wanted: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for key in keys {
            if let Key::Entry(session, sequence) = key {
                wanted.entry(*session).or_default().insert(*sequence);
            }
        }
        let mut found = HashMap::new();
        for (number, sequences) in wanted {
            let Some(session) = self.names.get(&number).and_then(|name| self.sessions.get(name)) else {
                continue;
            };
            let in_flight = session.outbound.resend().into_iter().filter_map(|(.., entry)| entry);
            let queued = sequences
                .iter()
                .filter_map(|sequence| session.outbound.find_queued(|entry| entry.sequence.cmp(sequence)));
            for entry in in_flight.filter(|entry| sequences.contains(&entry.sequence)).chain(queued) {
                found.insert((number, entry.sequence), entry_record(entry));
            }
        }
        found
    }

    fn value(&self, key: &Key, entries: &HashMap<(u64, u64), EntryRecord>) -> Option<Vec<u8>> {
        match key {
            Key::Session(number) => {
                let session = self.names.get(number).and_then(|name| self.sessions.get(name))?;
                Some(session_record(session).encode_to_vec())
            }
            Key::Entry(session, sequence) => Some(entries.get(&(*session, *sequence))?.encode_to_vec()),
            Key::Subscription(number, filter) => {
                let session = self.names.get(number).and_then(|name| self.sessions.get(name))?;
                Some(subscription_record(filter, session.subscriptions.get(filter)?).encode_to_vec())
            }
            Key::Held(number, sequence) => {
                let session = self.names.get(number).and_then(|name| self.sessions.get(name))?;
                let at = session.held.binary_search_by_key(sequence, |held| held.sequence).ok()?;
                Some(held_record(&session.held[at]).encode_to_vec())
            }
            Key::Body(number) => Some(absolute(self.bodies.message(*number)?).encode_to_vec()),
            Key::References(number) => references_value(self.bodies.references(*number)?),
            Key::Retained(topic) => {
                let message = Some(absolute(self.retained.get(topic)?));
                Some(RetainedRecord { message, due_ms: self.retained_dues.get(topic).copied() }.encode_to_vec())
            }
            Key::Turn(share) => {
                let last = self.turns.get(share)?.to_string();
                Some(TurnRecord { last, share: beside_key(share) }.encode_to_vec())
            }
            Key::LeftBehind(client_id) => {
                let LeftBehind { node, incarnation, claim } = self.left_behind.get(client_id)?.clone();
                let due_ms = claim.as_ref().map_or(0, |claim| claim.due_ms);
                let connect = claim.map(|claim| claim.connect);
                let client_id = beside_key(client_id);
                Some(LeftBehindRecord { client_id, node, incarnation, connect, due_ms }.encode_to_vec())
            }
            Key::Outbox(position) => {
                let entry = self.outbox.get(position)?;
                let node = |(node, incarnation)| PickTarget::Node { node, incarnation }.record();
                let record = OutboxRecord {
                    message: Some(absolute(&entry.message)),
                    due_ms: entry.due_ms,
                    share: entry.share.as_deref().map(str::to_owned),
                    pick: entry.pick.map(PickTarget::record),
                    picked: entry.picked,
                    routed: entry.routed,
                    given_back: entry.given_back,
                    passed_over: entry.passed_over.map(node),
                    awaited_by: entry.awaited_by.map(|(session, packet_id)| HeldPubRecRecord {
                        session,
                        packet_id: u32::from(packet_id.get()),
                    }),
                    received: entry.received,
                    will_of: entry.will_of.as_deref().map(str::to_owned),
                    is_granted: entry.is_granted,
                    picked_up_to: entry.picked_up_to.as_deref().map(str::to_owned),
                };
                Some(record.encode_to_vec())
            }
        }
    }

    /// The state that another node's checkpoints left behind, from all its keys. All of it is in memory until some of it is
    /// [put away](Self::put_away).
    ///
    /// # Errors
    /// What came is not a whole state.
    pub fn restore<'a>(config: GroupConfig, stored: impl Into<Cow<'a, [Pair]>>) -> Result<Self, RestoreError> {
        Self::read(config, &Pairs::new(stored), usize::MAX)
    }

    /// The state that checkpoints left behind in `rows`, where long queues stay but for their first `front_max` messages.
    ///
    /// # Errors
    /// What is stored is not a whole state, or the store failed.
    pub fn resume(config: GroupConfig, rows: Arc<dyn StoredRows>, front_max: usize) -> Result<Self, RestoreError> {
        let mut state = Self::read(config, &*rows, front_max)?;
        state.keep_in(rows);
        Ok(state)
    }

    fn read(config: GroupConfig, rows: &dyn StoredRows, front_max: usize) -> Result<Self, RestoreError> {
        let mut state = Self::new(config);
        if let Some(meta) = rows.get(META_KEY)? {
            state.restore_meta(MetaRecord::decode(&meta[..])?);
        }
        scan(rows, b'r', |_, value| state.restore_retained(RetainedRecord::decode(value)?))?;
        scan(rows, b'o', |rest, value| {
            let entry = outbox_entry(OutboxRecord::decode(value)?)?;
            state.outbox.insert(number(rest)?, entry);
            Ok(())
        })?;
        scan(rows, b't', |share, value| {
            let record = TurnRecord::decode(value)?;
            state.turns.insert(name_of(share, record.share)?, Arc::from(record.last));
            Ok(())
        })?;
        scan(rows, b'l', |client_id, value| {
            let LeftBehindRecord { client_id: name, node, incarnation, connect, due_ms } =
                LeftBehindRecord::decode(value)?;
            let claim = connect.map(|connect| Box::new(LaterClaim { connect, due_ms }));
            state.left_behind.insert(name_of(client_id, name)?, LeftBehind { node, incarnation, claim });
            Ok(())
        })?;
        let mut subscriptions: HashMap<u64, BTreeMap<Arc<str>, Subscription>> = HashMap::new();
        scan(rows, b'f', |rest, value| {
            let (session, filter) = rest.split_at_checked(8).ok_or(RestoreError::Incomplete(WRONG_LENGTH))?;
            let own = subscriptions.entry(number(session)?).or_default();
            let mut record = SubscriptionRecord::decode(value)?;
            own.insert(name_of(filter, record.filter.take())?, subscription(&record));
            Ok(())
        })?;
        let mut held: HashMap<u64, Vec<HeldBack>> = HashMap::new();
        scan(rows, b'h', |rest, value| {
            let (session, sequence) = rest.split_at_checked(8).ok_or(RestoreError::Incomplete(WRONG_LENGTH))?;
            let record = held_back(number(sequence)?, HeldRecord::decode(value)?)?;
            held.entry(number(session)?).or_default().push(record);
            Ok(())
        })?;
        scan(rows, b's', |rest, value| {
            let number = number(rest)?;
            let own = subscriptions.remove(&number).unwrap_or_default();
            let held = held.remove(&number).unwrap_or_default();
            let session = state.restore_session(rows, front_max, number, SessionRecord::decode(value)?, own, held)?;
            state.sessions.insert(Arc::clone(&session.client_id), session);
            Ok(())
        })?;
        state.rebuild();
        Ok(state)
    }

    fn restore_meta(&mut self, meta: MetaRecord) {
        self.level = meta.level;
        self.clock_ms = meta.clock_ms;
        self.wall_ms = meta.wall_ms;
        self.last_epoch = meta.last_epoch;
        self.last_number = meta.last_number;
        self.last_body = meta.last_body;
        self.last_position = meta.last_position;
        self.last_read = meta.last_read;
        self.fenced_below = meta.fenced.into_iter().map(|fenced| (fenced.node, fenced.below)).collect();
        self.lanes = meta.lanes.into_iter().map(lane_state).collect();
    }

    fn restore_retained(&mut self, record: RetainedRecord) -> Result<(), RestoreError> {
        let message = record.message.ok_or(RestoreError::Incomplete("a retained message that is not there"))?;
        let message = Arc::new(message.into_message(0));
        // It was within the bounds when it was stored; whether it still is, is for the next one to find out.
        self.retained.restore(Arc::clone(&message));
        if let Some(due) = record.due_ms {
            self.arm_retained_timer(&message.topic, due);
        }
        Ok(())
    }

    fn restore_session(
        &mut self,
        rows: &dyn StoredRows,
        front_max: usize,
        number: u64,
        record: SessionRecord,
        subscriptions: BTreeMap<Arc<str>, Subscription>,
        held: Vec<HeldBack>,
    ) -> Result<PersistentSession, RestoreError> {
        let window_max = u16::try_from(record.window_max).unwrap_or(u16::MAX);
        let caps = queue_caps(record.queue_messages_max, record.queue_bytes_max);
        let outbound = self.restore_outbound(rows, front_max, number, &record)?;
        Ok(PersistentSession {
            number,
            client_id: Arc::from(record.client_id),
            identity: Arc::from(record.identity),
            epoch: record.epoch,
            owner: record.owner,
            waiting: record.waiting.map(waiting).transpose()?,
            transient: record.transient,
            resumed: record.resumed,
            expiry_seconds: record.expiry_seconds,
            expires_at_ms: record.expires_at_ms,
            will: record.will,
            will_due_ms: record.will_due_ms,
            before: record.before.map(|before| {
                let BeforeRecord { expiry_seconds, will, will_due_ms } = before;
                Box::new(Before { expiry_seconds, will: will.map(|will| (will, will_due_ms)) })
            }),
            expires_before_ms: record.expires_before_ms,
            reads: subscriptions.values().filter(|own| own.read.is_some()).count(),
            subscriptions,
            outbound,
            to_resend: record.to_resend.into_iter().map(id).collect::<Result<_, _>>()?,
            sent_before: record.sent_before.into_iter().map(id).collect::<Result<_, _>>()?,
            received: record.received.into_iter().map(id).collect::<Result<_, _>>()?,
            held_bytes: held.iter().map(|held| held.message.weight_bytes()).sum(),
            held,
            overflows: record.overflows,
            next_sequence: record.next_sequence,
            may_queue_shared: record.may_queue_shared,
            window_max,
            caps,
        })
    }

    /// The window, and of what waits behind it the first messages.
    fn restore_outbound(
        &mut self,
        rows: &dyn StoredRows,
        front_max: usize,
        number: u64,
        record: &SessionRecord,
    ) -> Result<Outbound<Entry>, RestoreError> {
        let window_max = u16::try_from(record.window_max).unwrap_or(u16::MAX);
        let limits = self.limits(window_max, queue_caps(record.queue_messages_max, record.queue_bytes_max));
        let queued_messages = usize::try_from(record.queued_messages).unwrap_or(usize::MAX);
        let queued_bytes = usize::try_from(record.queued_bytes).unwrap_or(usize::MAX);
        let in_flight = record.window.iter().filter(|slot| slot.sequence.is_some()).count();
        // What is in flight came before what waits.
        let front = queued_messages.min(front_max);
        let wanted = in_flight.saturating_add(front);
        let read = if wanted == 0 { Vec::new() } else { read_entries(rows, number, 0, record.next_sequence, wanted)? };
        if read.len() != wanted {
            return Err(RestoreError::Incomplete("a message in flight, or one that waits, has no entry"));
        }
        let next = read.last().map_or(0, |(sequence, _)| sequence + 1);
        let mut entries: BTreeMap<_, _> = read.into_iter().collect();
        let mut window = Vec::new();
        for slot in &record.window {
            let entry = match slot.sequence {
                Some(sequence) => {
                    let missing = RestoreError::Incomplete("a message in flight has no entry");
                    Some(self.bodies.restore(rows, sequence, entries.remove(&sequence).ok_or(missing)?)?)
                }
                None => None,
            };
            window.push((id(slot.packet_id)?, stage(slot.stage), command::qos(slot.qos), entry));
        }
        let mut queue = Vec::with_capacity(entries.len());
        for (sequence, record) in entries {
            let entry = self.bodies.restore(rows, sequence, record)?;
            let (weight_bytes, qos) = (entry.message.weight_bytes(), entry.qos);
            queue.push((entry, weight_bytes, qos));
        }
        let front_bytes = queue.iter().map(|(_, weight_bytes, _)| weight_bytes).sum();
        let bytes =
            queued_bytes.checked_sub(front_bytes).ok_or(RestoreError::Incomplete("a queue that weighs more"))?;
        let messages = queued_messages - queue.len();
        let middle = (messages > 0).then_some(Middle { messages, bytes, from: next, until: record.next_sequence });
        let slots = record.window_slots as usize;
        Ok(Outbound::restore(limits, record.last_id as u16, slots, window, queue, middle))
    }
}

const WRONG_LENGTH: &str = "a key of the wrong length";

/// Pairs that are read at once.
const SCAN_PAIRS: usize = 1024;

/// All rows of one kind, by what follows it in their keys.
fn scan(
    rows: &dyn StoredRows,
    kind: u8,
    mut take: impl FnMut(&[u8], Bytes) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let mut from = vec![kind];
    loop {
        let pairs = rows.range(&from, &[kind + 1], SCAN_PAIRS)?;
        let Some((last, _)) = pairs.last() else {
            return Ok(());
        };
        from = [last, &[0][..]].concat();
        for (key, value) in pairs {
            take(&key[1..], value.into())?;
        }
    }
}

fn lane_record((&(node, lane), state): (&(u64, u64), &LaneState)) -> LaneRecord {
    let refused = state.refused.iter();
    LaneRecord {
        lane,
        number: state.last,
        node,
        incarnation: state.incarnation,
        refused: refused.map(|&(number, reason)| RefusedRecord { number, reason: reason as u32 }).collect(),
    }
}

fn lane_state(record: LaneRecord) -> ((u64, u64), LaneState) {
    let reason = |reason: u32| ReasonCode::from_byte(reason as u8).unwrap_or(ReasonCode::UnspecifiedError);
    let refused = record.refused.into_iter().map(|refused| (refused.number, reason(refused.reason))).collect();
    ((record.node, record.lane), LaneState { incarnation: record.incarnation, last: record.number, refused })
}

fn waiting(record: WaitingRecord) -> Result<Box<Waiting>, RestoreError> {
    let connect = record.connect.ok_or(RestoreError::Incomplete("a claim that waits and is not there"))?;
    Ok(Box::new(Waiting { connect, owner_epoch: record.owner_epoch }))
}

pub(super) fn number(bytes: &[u8]) -> Result<u64, RestoreError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| RestoreError::Incomplete(WRONG_LENGTH))
}

fn id(number: u32) -> Result<PacketId, RestoreError> {
    u16::try_from(number)
        .ok()
        .and_then(PacketId::new)
        .ok_or(RestoreError::Incomplete("a packet identifier out of range"))
}

fn stage(number: u32) -> Stage {
    match number {
        0 => Stage::AwaitingPubAck,
        1 => Stage::AwaitingPubRec,
        _ => Stage::AwaitingPubComp,
    }
}

fn entry_record(entry: &Entry) -> EntryRecord {
    EntryRecord {
        body: entry.body,
        qos: entry.qos as u32,
        retain: entry.retain,
        identifiers: entry.identifiers.clone(),
        share: entry.share.as_deref().map(str::to_owned),
    }
}

fn outbox_entry(record: OutboxRecord) -> Result<OutboxEntry, RestoreError> {
    let message = record.message.ok_or(RestoreError::Incomplete("an outbox entry without a message"))?;
    let target = |pick| PickTarget::from_record(pick).ok_or(RestoreError::Incomplete("a group that was picked"));
    let held = |held: HeldPubRecRecord| Ok::<_, RestoreError>((held.session, id(held.packet_id)?));
    Ok(OutboxEntry {
        message: Arc::new(message.into_message(0)),
        due_ms: record.due_ms,
        share: record.share.map(Arc::from),
        pick: record.pick.map(target).transpose()?,
        picked: record.picked,
        routed: record.routed,
        given_back: record.given_back,
        passed_over: record.passed_over.map(|node| (node.node, node.incarnation)),
        awaited_by: record.awaited_by.map(held).transpose()?,
        received: record.received,
        will_of: record.will_of.map(Arc::from),
        is_granted: record.is_granted,
        picked_up_to: record.picked_up_to.map(Arc::from),
    })
}

fn held_record(held: &HeldBack) -> HeldRecord {
    HeldRecord {
        message: Some(absolute(&held.message)),
        qos: held.qos as u32,
        retain: held.retain,
        identifiers: held.identifiers.clone(),
    }
}

fn held_back(sequence: u64, record: HeldRecord) -> Result<HeldBack, RestoreError> {
    let message = record.message.ok_or(RestoreError::Incomplete("a held message that is not there"))?;
    Ok(HeldBack {
        sequence,
        message: Arc::new(message.into_message(0)),
        qos: command::qos(record.qos),
        retain: record.retain,
        identifiers: record.identifiers,
        // Counted when the subscriptions are entered, which hold from then on.
        holders: 0,
    })
}

fn subscription_record(filter: &str, own: &Subscription) -> SubscriptionRecord {
    SubscriptionRecord {
        filter: beside_key(filter),
        qos: own.options.qos as u32,
        no_local: own.options.no_local,
        retain_as_published: own.options.retain_as_published,
        retain_handling: own.options.retain_handling as u32,
        identifier: own.identifier.map(std::num::NonZeroU32::get),
        read: own.read,
        held: own.held,
    }
}

fn subscription(record: &SubscriptionRecord) -> Subscription {
    let options = SubscriptionOptions {
        qos: command::qos(record.qos),
        no_local: record.no_local,
        retain_as_published: record.retain_as_published,
        retain_handling: match record.retain_handling {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            _ => RetainHandling::Never,
        },
    };
    let identifier = record.identifier.and_then(std::num::NonZeroU32::new);
    Subscription { options, identifier, read: record.read, held: record.held }
}

fn session_record(session: &PersistentSession) -> SessionRecord {
    let window =
        session.outbound.resend().into_iter().map(|(packet_id, stage, qos, entry): (_, _, QoS, _)| WindowRecord {
            packet_id: u32::from(packet_id.get()),
            stage: match stage {
                Stage::AwaitingPubAck => 0,
                Stage::AwaitingPubRec => 1,
                Stage::AwaitingPubComp => 2,
            },
            qos: qos as u32,
            sequence: entry.map(|entry| entry.sequence),
        });
    SessionRecord {
        client_id: session.client_id.to_string(),
        identity: session.identity.to_string(),
        epoch: session.epoch,
        owner: session.owner,
        expiry_seconds: session.expiry_seconds,
        expires_at_ms: session.expires_at_ms,
        will: session.will.clone(),
        will_due_ms: session.will_due_ms,
        before: session.before.as_deref().map(|before| BeforeRecord {
            expiry_seconds: before.expiry_seconds,
            will: before.will.as_ref().map(|(will, _)| will.clone()),
            will_due_ms: before.will.as_ref().map_or(0, |(_, due)| *due),
        }),
        expires_before_ms: session.expires_before_ms,
        overflows: session.overflows,
        window: window.collect(),
        last_id: u32::from(session.outbound.last_id()),
        received: session.received.iter().map(|id| u32::from(id.get())).collect(),
        next_sequence: session.next_sequence,
        window_max: u32::from(session.window_max),
        to_resend: session.to_resend.iter().map(|id| u32::from(id.get())).collect(),
        sent_before: session.sent_before.iter().map(|id| u32::from(id.get())).collect(),
        window_slots: session.outbound.window_slots() as u32,
        transient: session.transient,
        resumed: session.resumed,
        queue_messages_max: session.caps.messages_max.map(|bound| bound as u64),
        queue_bytes_max: session.caps.bytes_max.map(|bound| bound as u64),
        queued_messages: session.outbound.queue_len() as u64,
        queued_bytes: session.outbound.queue_bytes() as u64,
        may_queue_shared: session.may_queue_shared,
        waiting: session
            .waiting
            .as_deref()
            .map(|waiting| WaitingRecord { connect: Some(waiting.connect.clone()), owner_epoch: waiting.owner_epoch }),
    }
}
