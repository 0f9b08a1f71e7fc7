//! What is proposed to the directory. Protobuf, so that fields can be added: a node that does not know one skips it.

use bytes::Bytes;
use prost::Message as _;

/// A cluster begins. Counts once: later ones change nothing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Form {
    /// Sixteen random bytes that tell this cluster from every other.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster_id: Bytes,
    /// How many data groups there are, numbered from 0. Slots are dealt to them in turn.
    #[prost(uint32, tag = "2")]
    pub groups: u32,
    /// The nodes it begins with. None of them lives before its own `Join`.
    #[prost(message, repeated, tag = "3")]
    pub members: Vec<MemberRecord>,
    /// Where the groups are kept.
    #[prost(message, repeated, tag = "4")]
    pub placements: Vec<Placement>,
    /// The feature level from the first entry on.
    #[prost(uint32, tag = "5")]
    pub feature_level: u32,
    /// How many nodes vote in each data group once there are as many; 0 for [`super::VOTERS`].
    #[prost(uint32, tag = "6")]
    pub voters: u32,
}

/// What is known of a node beside whether it lives.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberRecord {
    /// Its [`crate::identity::NodeId`].
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Its label; no two living nodes have the same.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other nodes reach it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients reach it.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// The highest feature level that its program knows.
    #[prost(uint32, tag = "5")]
    pub feature_level: u32,
    /// What it shares its fate with: a rack, a room, a site. Empty if nobody said.
    #[prost(string, tag = "6")]
    pub zone: String,
    /// The lowest feature level that its program still knows; 0 of one from before that was said.
    #[prost(uint32, tag = "7")]
    pub feature_level_min: u32,
    /// Whether `client_address` is for clients from anywhere, so that other nodes may send theirs there.
    #[prost(bool, tag = "10")]
    pub is_advertised: bool,
}

/// A node registers. The index of this entry becomes its incarnation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Join {
    /// As it is now.
    #[prost(message, optional, tag = "1")]
    pub member: Option<MemberRecord>,
    /// Random, drawn for each registration: by it the node knows its own `Join` among those in the log.
    #[prost(uint64, tag = "2")]
    pub attempt: u64,
    /// The newest incarnation of this node that it knows of, living or dead; 0 for none.
    ///
    /// The `Join` counts only if there is no newer one. Without that, a `Join` of an earlier start which the network
    /// delivers late would end the living incarnation at once, while the process behind it holds a lease: sessions would
    /// move away under an owner that still acknowledges.
    #[prost(uint64, tag = "3")]
    pub newest: u64,
}

/// An incarnation of a node is over, or over and forgotten.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Departed {
    /// Which node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Which of its incarnations.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// A node that the cluster did not begin with becomes a member. It lives only from its `Join` on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Admit {
    /// As it says of itself.
    #[prost(message, optional, tag = "1")]
    pub member: Option<MemberRecord>,
}

/// What becomes of a member.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Departing {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

/// A member is to lead no group and to have no clients, or may again.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Drain {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Whether it begins or is over.
    #[prost(bool, tag = "2")]
    pub on: bool,
    /// 0: until somebody says that it is over, whatever becomes of the node meanwhile. Else this incarnation ends: for as
    /// long as it lives.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
}

/// Who is to lead a group.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Prefer {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// One of its voters; 0: whoever the cluster chooses.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// Somebody is kept out of the cluster, or may come in again. Not proposed below [`super::bans::BANS_LEVEL`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ban {
    /// Who. What it says is for those who let clients in.
    #[prost(string, tag = "1")]
    pub subject: String,
    /// The end of it, in seconds since 1970; 0: none.
    #[prost(uint64, tag = "2")]
    pub until_seconds: u64,
    /// Why, for people.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// It is over, if it is there.
    #[prost(bool, tag = "4")]
    pub lifted: bool,
    /// The wall clock of whoever proposed it: bans that ended before are dropped.
    #[prost(uint64, tag = "5")]
    pub now_seconds: u64,
}

/// Where a group is kept from now on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Placement {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Nodes that vote.
    #[prost(uint64, repeated, tag = "2")]
    pub voters: Vec<u64>,
    /// Nodes that follow.
    #[prost(uint64, repeated, tag = "3")]
    pub learners: Vec<u64>,
}

/// Commands may use what was added up to this level.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FeatureLevel {
    /// Never lowered.
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

/// The envelope.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Envelope {
    #[prost(oneof = "Command", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14")]
    command: Option<Command>,
}

/// A command for the directory.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Command {
    /// See [`Form`].
    #[prost(message, tag = "1")]
    Form(Form),
    /// See [`Join`].
    #[prost(message, tag = "2")]
    Join(Join),
    /// Final: a lease ran out. Ignored unless it names the living incarnation.
    #[prost(message, tag = "3")]
    Dead(Departed),
    /// All groups, and all nodes that lived when it died, refuse what comes of it.
    #[prost(message, tag = "4")]
    Lost(Departed),
    /// See [`Placement`].
    #[prost(message, tag = "5")]
    Placement(Placement),
    /// See [`FeatureLevel`].
    #[prost(message, tag = "6")]
    FeatureLevel(FeatureLevel),
    /// See [`Admit`].
    #[prost(message, tag = "7")]
    Admit(Admit),
    /// A member is to go: first the groups that it keeps are moved away.
    #[prost(message, tag = "8")]
    Remove(Departing),
    /// No group counts on it any more: it is no member from here on, and never will be again.
    #[prost(message, tag = "9")]
    Removed(Departing),
    /// See [`Drain`].
    #[prost(message, tag = "12")]
    Drain(Drain),
    /// See [`Prefer`].
    #[prost(message, tag = "13")]
    Prefer(Prefer),
    /// See [`Ban`].
    #[prost(message, tag = "14")]
    Ban(Ban),
}

/// As it stands in the log.
#[must_use]
pub fn encode(command: Command) -> Bytes {
    Envelope { command: Some(command) }.encode_to_vec().into()
}

/// From the log. `Ok(None)`: a command of a later version, which must not have been proposed before every node knew it.
///
/// # Errors
/// The bytes are no command: the log is not ours, or damaged beyond what its checksums saw.
pub fn decode(bytes: Bytes) -> Result<Option<Command>, prost::DecodeError> {
    Envelope::decode(bytes).map(|envelope| envelope.command)
}
