//! What a node tells an operator about itself, as protobuf: fields may be added, and who does not know one skips it.

use std::collections::BTreeMap;

use bytes::Bytes;
use kentongan_cluster::directory::Directory;
use kentongan_cluster::group::{self, Role};
use kentongan_cluster::lease;
use kentongan_cluster::transport::{Class, PeerStatus};
use kentongan_cluster::{GroupId, NodeId};
use prost::Message as _;

use crate::router::backlog::Backlog;
use crate::router::cluster::Leader;

/// How a node is, as it sees things itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeStatus {
    /// Who it is.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Its label.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its program's version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Its cluster, in hexadecimal digits; empty if there is none yet.
    #[prost(string, tag = "4")]
    pub cluster: String,
    /// Its registration; 0 before there is one.
    #[prost(uint64, tag = "5")]
    pub incarnation: u64,
    /// What it may do.
    #[prost(enumeration = "Standing", tag = "6")]
    pub standing: i32,
    /// How long its lease still lasts; 0: it is over, and nobody has looked since. Unset: for ever, since it is alone, or there
    /// never was one; see `standing`.
    #[prost(uint64, optional, tag = "7")]
    pub lease_ms_left: Option<u64>,
    /// Clients connected to it.
    #[prost(uint64, tag = "8")]
    pub connections: u64,
    /// The nodes that it knows of, itself among them.
    #[prost(message, repeated, tag = "9")]
    pub members: Vec<MemberStatus>,
    /// The groups that it keeps, the directory last.
    #[prost(message, repeated, tag = "10")]
    pub groups: Vec<GroupStatus>,
    /// Its links with other nodes.
    #[prost(message, repeated, tag = "11")]
    pub links: Vec<LinkStatus>,
    /// What the cluster uses, as far as this node has heard; 0 if it has not.
    #[prost(uint32, tag = "15")]
    pub feature_level: u32,
    /// The lowest feature level that its program knows.
    #[prost(uint32, tag = "16")]
    pub feature_level_min: u32,
    /// The highest.
    #[prost(uint32, tag = "17")]
    pub feature_level_max: u32,
    /// All groups but the directory, with where what it has for them goes.
    #[prost(message, repeated, tag = "14")]
    pub routes: Vec<RouteStatus>,
    /// The groups whose leader an operator chose, as far as it has applied the directory.
    #[prost(message, repeated, tag = "20")]
    pub chosen: Vec<ChosenStatus>,
    /// Its disk has only `storage.free_bytes_reserve` left, or not even that.
    #[prost(bool, tag = "21")]
    pub disk_full: bool,
    /// What it holds to be the cluster's wall clock, in milliseconds since 1970. Unset: an older version, or there is no cluster yet.
    #[prost(uint64, optional, tag = "22")]
    pub cluster_wall_ms: Option<u64>,
}

/// What a node may do, as it knows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Standing {
    /// It has not registered.
    Unregistered = 0,
    /// It waits for what others want to receive.
    Joining = 1,
    /// Everything.
    Serving = 2,
    /// Its lease ran out: it acknowledges nothing.
    Lapsed = 3,
    /// And so long ago that it sent its clients away.
    LapsedLong = 4,
    /// It was declared dead and has not registered again.
    Dead = 5,
}

/// A node as another one knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberStatus {
    /// Who it is.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Its label.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other nodes dial it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients dial it.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// The registration that lives; 0 if none does.
    #[prost(uint64, tag = "5")]
    pub incarnation: u64,
    /// What it shares its fate with; empty if nobody said.
    #[prost(string, tag = "6")]
    pub zone: String,
    /// It is to go: its groups move away.
    #[prost(bool, tag = "7")]
    pub leaves: bool,
    /// The lowest feature level that its program knew when it registered last.
    #[prost(uint32, tag = "8")]
    pub feature_level_min: u32,
    /// The highest.
    #[prost(uint32, tag = "9")]
    pub feature_level_max: u32,
    /// An operator drains it.
    #[prost(bool, tag = "20")]
    pub drains: bool,
    /// Its process is about to end.
    #[prost(bool, tag = "21")]
    pub stops: bool,
    /// Other nodes may send clients to `client_address`.
    #[prost(bool, tag = "22")]
    pub is_advertised: bool,
}

/// Who is to lead a group, because an operator said so.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ChosenStatus {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// One of its voters.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// A group as one node sees it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupStatus {
    /// Which; 65535 is the directory.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Whether this node leads it.
    #[prost(bool, tag = "2")]
    pub leads: bool,
    /// Who leads, as far as it knows; 0 if it does not.
    #[prost(uint64, tag = "3")]
    pub leader: u64,
    /// The latest term it saw.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// The index up to which it knows entries to be committed.
    #[prost(uint64, tag = "5")]
    pub committed: u64,
    /// The index up to which it has applied them.
    #[prost(uint64, tag = "6")]
    pub applied: u64,
    /// The index at which its log ends.
    #[prost(uint64, tag = "7")]
    pub last: u64,
    /// The nodes that vote in it, as far as it has applied.
    #[prost(uint64, repeated, tag = "8")]
    pub voters: Vec<u64>,
    /// The nodes that follow it without a vote.
    #[prost(uint64, repeated, tag = "9")]
    pub learners: Vec<u64>,
}

/// The leader of a group as the clients' threads of a node know it, which need not keep the group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RouteStatus {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Who leads; 0 if they have heard of nobody.
    #[prost(uint64, tag = "2")]
    pub leader: u64,
    /// In which term.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// What this node's lanes have for it without an answer, within the last second.
    #[prost(uint64, tag = "4")]
    pub backlog: u64,
}

/// The links between one node and another, as the former sees them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinkStatus {
    /// The other.
    #[prost(uint64, tag = "1")]
    pub peer: u64,
    /// Whether all links are up, in both directions.
    #[prost(bool, tag = "2")]
    pub up: bool,
    /// Why the last attempt to reach it failed; empty since a link came up.
    #[prost(string, tag = "3")]
    pub last_error: String,
    /// What the former's lanes have for clients of the latter without an answer, within the last second.
    #[prost(uint64, tag = "4")]
    pub backlog: u64,
}

impl NodeStatus {
    /// The answer to [`Question::Status`](kentongan_cluster::transport::Question::Status).
    #[must_use]
    pub fn encode_answer(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Reads such an answer.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode_answer(answer: Bytes) -> Result<Self, prost::DecodeError> {
        Self::decode(answer)
    }
}

impl From<Option<lease::Standing>> for Standing {
    /// `None`: not registered.
    fn from(standing: Option<lease::Standing>) -> Self {
        match standing {
            None => Self::Unregistered,
            Some(lease::Standing::Joining) => Self::Joining,
            Some(lease::Standing::Serving) => Self::Serving,
            Some(lease::Standing::Lapsed) => Self::Lapsed,
            Some(lease::Standing::LapsedLong) => Self::LapsedLong,
            Some(lease::Standing::Dead) => Self::Dead,
        }
    }
}

impl Standing {
    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Lapsed => "lapsed",
            Self::LapsedLong => "lapsed long ago",
            Self::Dead => "dead",
        }
    }
}

impl MemberStatus {
    /// All members that a directory has.
    #[must_use]
    pub fn of(directory: &Directory) -> Vec<Self> {
        let member = |(node, member): (&NodeId, &kentongan_cluster::directory::Member)| Self {
            node: node.0,
            name: member.name.clone(),
            peer_address: member.peer_address.clone(),
            client_address: member.client_address.clone(),
            incarnation: member.living.map_or(0, |living| living.0),
            zone: member.zone.clone(),
            leaves: member.leaves,
            feature_level_min: member.feature_levels.min,
            feature_level_max: member.feature_levels.max,
            drains: member.drains,
            stops: member.stops.is_some(),
            is_advertised: member.is_advertised,
        };
        directory.members().iter().map(member).collect()
    }
}

impl GroupStatus {
    /// Of a group that node `own` keeps and has applied up to `applied`.
    #[must_use]
    pub fn new(group: GroupId, own: NodeId, status: &group::GroupStatus, applied: u64) -> Self {
        let (leads, leader) = match status.role {
            Role::Leader { .. } => (true, Some(own)),
            Role::Follower { leader } => (false, leader),
        };
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        Self {
            group: group.0.into(),
            leads,
            leader: leader.map_or(0, |leader| leader.0),
            term: status.term,
            committed: status.committed,
            applied,
            last: status.last,
            voters: ids(&status.configuration.voters),
            learners: ids(&status.configuration.learners),
        }
    }
}

impl RouteStatus {
    /// Of all `groups`.
    #[must_use]
    pub fn of(groups: u16, leaders: &BTreeMap<u16, Leader>, backlog: &Backlog) -> Vec<Self> {
        let route = |group| {
            let leader = leaders.get(&group);
            let (node, term) = leader.map_or((0, 0), |leader| (leader.node, leader.term));
            let backlog = backlog.groups.get(usize::from(group)).copied().unwrap_or(0);
            Self { group: group.into(), leader: node, term, backlog }
        };
        (0..groups).map(route).collect()
    }
}

impl ChosenStatus {
    /// All that a directory has.
    #[must_use]
    pub fn of(directory: &Directory) -> Vec<Self> {
        let chosen = |(group, node): (&GroupId, &NodeId)| Self { group: group.0.into(), node: node.get() };
        directory.chosen().iter().map(chosen).collect()
    }
}

impl LinkStatus {
    /// Of a peer, for which lanes have so much.
    #[must_use]
    pub fn new(status: PeerStatus, backlog: &Backlog) -> Self {
        let is_up = |classes: &[Class]| Class::ALL.iter().all(|class| classes.contains(class));
        Self {
            peer: status.peer.node.0,
            up: is_up(&status.outgoing) && is_up(&status.incoming),
            last_error: status.last_error.unwrap_or_default(),
            backlog: backlog.nodes.get(&status.peer.node.get()).copied().unwrap_or(0),
        }
    }
}
