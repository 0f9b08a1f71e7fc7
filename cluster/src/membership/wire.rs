//! What nodes say to each other about members, leases and interest.
//!
//! Protobuf, so that fields and kinds of messages can be added: a node skips what it does not know. Who sent a message is
//! known from the link and stands in none.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::directory::command::{Join, MemberRecord};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{Content, SourceId, Update, Version};

/// Bytes that no node of ours sends: close the link to the one that did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not protobuf.
    #[error("the peer sent what cannot be read: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// It contradicts itself, or says something about others than its sender.
    #[error("the peer sent what no node would: {0}")]
    Invalid(&'static str),
}

/// The envelope. Empty if it holds a message of a later version.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// The message.
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<Body>,
}

/// A message.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// To the directory's leader: propose this.
    #[prost(message, tag = "1")]
    Join(Registration),
    /// To the directory's leader.
    #[prost(message, tag = "2")]
    Renewal(Renewal),
    /// The answer to a renewal.
    #[prost(message, tag = "3")]
    Granted(Granted),
    /// The other answer: that incarnation is dead.
    #[prost(message, tag = "4")]
    Refused(Refused),
    /// Interest is to be had here.
    #[prost(message, tag = "5")]
    Offer(Offer),
    /// Send it, and go on sending.
    #[prost(message, tag = "6")]
    Request(Request),
    /// A piece of it.
    #[prost(message, tag = "7")]
    Update(UpdateRecord),
    /// It is held.
    #[prost(message, tag = "8")]
    Confirm(Confirm),
    /// What the wall clock says.
    #[prost(message, tag = "9")]
    WallClock(WallClock),
    /// Whether it holds a lease.
    #[prost(message, tag = "10")]
    Lease(Lease),
}

/// What a [`Join`] is proposed of. Its fields have the same numbers, for older nodes send and read a `Join` here; what follows them is for who
/// proposes it, and does not go into the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Registration {
    /// See [`Join::member`].
    #[prost(message, optional, tag = "1")]
    pub member: Option<MemberRecord>,
    /// See [`Join::attempt`].
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
    /// See [`Join::newest`].
    #[prost(uint64, tag = "3")]
    pub newest: u64,
    /// Members, living or not, that its sender does not hear.
    #[prost(uint64, repeated, tag = "4")]
    pub unheard: Vec<u64>,
}

impl From<Registration> for Join {
    fn from(Registration { member, attempt, newest, unheard: _ }: Registration) -> Self {
        Self { member, attempt, newest }
    }
}

/// A lease is to be renewed. Says also what its sender has fenced, again and again, so that a new leader needs nothing of
/// the one before.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Renewal {
    /// As what it asks.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Comes back with the answer.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Dead incarnations whose lanes its sender dropped.
    #[prost(uint64, repeated, tag = "3")]
    pub dropped: Vec<u64>,
    /// What groups have fenced, as its sender knows from their committed state.
    #[prost(message, repeated, tag = "4")]
    pub fenced: Vec<Fenced>,
    /// Groups that its sender leads and that are kept where the directory says.
    #[prost(message, repeated, tag = "5")]
    pub settled: Vec<Settled>,
    /// Its sender is about to end: it is to be drained as long as this incarnation lives.
    #[prost(bool, tag = "8")]
    pub stops: bool,
    /// Clients connected to it; unset if it takes no more of them.
    #[prost(uint64, optional, tag = "9")]
    pub connections: Option<u64>,
    /// Members, living or not, that its sender does not hear.
    #[prost(uint64, repeated, tag = "10")]
    pub unheard: Vec<u64>,
}

/// How many clients a node has.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Load {
    /// Which node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Clients connected to it.
    #[prost(uint64, tag = "2")]
    pub connections: u64,
}

/// A group is kept where the directory says.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Settled {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// The entry of the directory that said so.
    #[prost(uint64, tag = "2")]
    pub placed_at: u64,
}

/// The fence of one group is complete.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Fenced {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// The dead incarnation.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// The lease is renewed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Granted {
    /// As what it was asked for.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Of the renewal.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Of every living node that takes clients, as it said last.
    #[prost(message, repeated, tag = "4")]
    pub loads: Vec<Load>,
}

/// There is no lease for the dead.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Refused {
    /// The dead incarnation.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
}

/// Whose interest.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SourceRecord {
    /// The node, if it is that of a node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The incarnation, if it is that of a node.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// The group, if it is that of a group.
    #[prost(uint32, optional, tag = "3")]
    pub group: Option<u32>,
}

/// Who sends this has the interest of a source, and does not send it to the receiver yet.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Offer {
    /// Which source.
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceRecord>,
}

/// Send the interest of a source from here on.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Request {
    /// Which source.
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceRecord>,
    /// The version that is held already.
    #[prost(uint64, optional, tag = "2")]
    pub have: Option<u64>,
    /// As what the sender asks.
    #[prost(uint64, tag = "3")]
    pub receiver: u64,
}

/// See [`Update`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRecord {
    /// Which source.
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceRecord>,
    /// The version it leads to.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The index of the directory that the source is complete as of.
    #[prost(uint64, tag = "3")]
    pub as_of: u64,
    /// The version it begins at, if it says what changed.
    #[prost(uint64, optional, tag = "4")]
    pub from: Option<u64>,
    /// The number of the piece, if it is one of a snapshot.
    #[prost(uint32, tag = "5")]
    pub piece: u32,
    /// There is no further piece of the snapshot.
    #[prost(bool, tag = "6")]
    pub last: bool,
    /// The filters.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<EntryRecord>,
}

/// A filter and its value.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EntryRecord {
    /// The filter.
    #[prost(string, tag = "1")]
    pub filter: String,
    /// Its value.
    #[prost(uint32, tag = "2")]
    pub value: u32,
}

/// A version is held.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Confirm {
    /// Of which source.
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceRecord>,
    /// Which version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Who holds it.
    #[prost(uint64, tag = "3")]
    pub receiver: u64,
}

/// What the sender's wall clock says as it sends this.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct WallClock {
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub wall_ms: u64,
}

/// Whether the sender holds a lease as it sends this.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Lease {
    /// It does, and what others want is known there.
    #[prost(bool, tag = "1")]
    pub held: bool,
}

/// As it goes over a link.
#[must_use]
pub fn encode(body: Body) -> Bytes {
    Envelope { body: Some(body) }.encode_to_vec().into()
}

/// From a link. `Ok(None)`: a message of a later version.
///
/// # Errors
/// The bytes are no message.
pub fn decode(bytes: Bytes) -> Result<Option<Body>, Malformed> {
    Ok(Envelope::decode(bytes)?.body)
}

impl From<SourceId> for SourceRecord {
    fn from(source: SourceId) -> Self {
        match source {
            SourceId::Node(node, Incarnation(incarnation)) => Self { node: node.get(), incarnation, group: None },
            SourceId::Group(GroupId(group)) => Self { node: 0, incarnation: 0, group: Some(group.into()) },
        }
    }
}

/// The source that a message must name.
pub(super) fn source(record: Option<SourceRecord>) -> Result<SourceId, Malformed> {
    let SourceRecord { node, incarnation, group } = record.ok_or(Malformed::Invalid("no source"))?;
    match group {
        Some(group) => u16::try_from(group).map(|group| SourceId::Group(GroupId(group))).ok(),
        None => NodeId::new(node).map(|node| SourceId::Node(node, Incarnation(incarnation))),
    }
    .ok_or(Malformed::Invalid("a source that cannot exist"))
}

impl From<Update> for UpdateRecord {
    fn from(update: Update) -> Self {
        let Update { source, version, as_of, content } = update;
        let (from, piece, last, entries) = match content {
            Content::Snapshot { piece, last, entries } => (None, piece, last, entries),
            Content::Delta { from, changes } => (Some(from.0), 0, true, changes),
        };
        let entry = |(filter, value): (Arc<str>, u32)| EntryRecord { filter: filter.as_ref().into(), value };
        let entries = entries.into_iter().map(entry).collect();
        Self { source: Some(source.into()), version: version.0, as_of, from, piece, last, entries }
    }
}

impl TryFrom<UpdateRecord> for Update {
    type Error = Malformed;

    fn try_from(record: UpdateRecord) -> Result<Self, Malformed> {
        let UpdateRecord { source: from_source, version, as_of, from, piece, last, entries } = record;
        if from.is_some_and(|from| from > version) {
            return Err(Malformed::Invalid("a change that leads back"));
        }
        let entries = entries.into_iter().map(|entry| (Arc::from(entry.filter), entry.value)).collect();
        let content = match from {
            Some(from) => Content::Delta { from: Version(from), changes: entries },
            None => Content::Snapshot { piece, last, entries },
        };
        Ok(Self { source: source(from_source)?, version: Version(version), as_of, content })
    }
}
