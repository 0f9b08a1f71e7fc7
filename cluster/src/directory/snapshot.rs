//! The directory as bytes: equal states are equal bytes, so that replicas can be compared by a digest.

use prost::Message as _;

use super::bans::Bans;
use super::{Dead, Directory, Member, Placement, SLOTS, VOTERS, command};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};

/// Why bytes are no state of a directory. They come from a checkpoint or a peer whose checksums agreed: never go on
/// without them.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not protobuf.
    #[error("the directory's snapshot cannot be read: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// It contradicts itself.
    #[error("the directory's snapshot is not what this program writes: {0}")]
    Invalid(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(uint64, tag = "1")]
    applied: u64,
    #[prost(bytes = "vec", tag = "2")]
    cluster_id: Vec<u8>,
    #[prost(uint32, tag = "3")]
    feature_level: u32,
    #[prost(uint32, tag = "4")]
    groups: u32,
    #[prost(message, repeated, tag = "5")]
    members: Vec<MemberState>,
    #[prost(message, repeated, tag = "6")]
    dead: Vec<DeadState>,
    #[prost(message, repeated, tag = "7")]
    fences: Vec<command::Departed>,
    #[prost(message, repeated, tag = "8")]
    placements: Vec<command::Placement>,
    /// The group of each slot.
    #[prost(uint32, repeated, tag = "9")]
    slots: Vec<u32>,
    #[prost(uint32, tag = "10")]
    voters: u32,
    #[prost(uint64, repeated, tag = "11")]
    removed: Vec<u64>,
    #[prost(message, repeated, tag = "12")]
    placed_at: Vec<PlacedAt>,
    #[prost(bytes = "vec", repeated, tag = "13")]
    succeeded: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "16")]
    chosen: Vec<command::Prefer>,
    #[prost(message, repeated, tag = "17")]
    bans: Vec<command::Ban>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PlacedAt {
    #[prost(uint32, tag = "1")]
    group: u32,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberState {
    #[prost(message, optional, tag = "1")]
    record: Option<command::MemberRecord>,
    /// 0: none lives.
    #[prost(uint64, tag = "2")]
    living: u64,
    #[prost(uint64, tag = "3")]
    newest: u64,
    #[prost(uint64, tag = "4")]
    attempt: u64,
    #[prost(bool, tag = "5")]
    leaves: bool,
    #[prost(bool, tag = "8")]
    drains: bool,
    /// 0: none does.
    #[prost(uint64, tag = "9")]
    stops: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeadState {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(uint64, repeated, tag = "3")]
    witnesses: Vec<u64>,
}

impl Directory {
    /// The whole state as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        Snapshot {
            applied: self.applied,
            cluster_id: self.cluster_id.clone(),
            feature_level: self.feature_level,
            groups: u32::from(self.groups),
            members: self.members.iter().map(|(&node, member)| member_state(node, member)).collect(),
            dead: self.dead.iter().map(|(&incarnation, dead)| dead_state(incarnation, dead)).collect(),
            fences: (self.fences.iter())
                .map(|(node, fence)| command::Departed { node: node.get(), incarnation: fence.0 })
                .collect(),
            placements: self.placements.iter().map(|(&group, placement)| placement.command(group)).collect(),
            slots: self.slots.iter().map(|group| u32::from(group.0)).collect(),
            voters: u32::from(self.voters),
            removed: self.removed.iter().map(|node| node.get()).collect(),
            placed_at: (self.placed_at.iter())
                .map(|(group, &index)| PlacedAt { group: u32::from(group.0), index })
                .collect(),
            succeeded: self.succeeded.clone(),
            chosen: (self.chosen.iter())
                .map(|(group, node)| command::Prefer { group: u32::from(group.0), node: node.get() })
                .collect(),
            bans: self.bans.records(),
        }
        .encode_to_vec()
    }

    /// The state that [`Directory::snapshot`] wrote.
    ///
    /// # Errors
    /// The bytes are not what it writes.
    pub fn restore(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot = Snapshot::decode(bytes)?;
        if !matches!(snapshot.slots.len(), 0 | SLOTS) {
            return Err(SnapshotError::Invalid("the number of slots"));
        }
        Ok(Self {
            applied: snapshot.applied,
            cluster_id: snapshot.cluster_id,
            feature_level: snapshot.feature_level,
            groups: group(snapshot.groups)?.0,
            voters: match u16::try_from(snapshot.voters) {
                Ok(voters @ 1..) => voters,
                // Written before there was such a setting.
                _ => VOTERS,
            },
            members: snapshot.members.into_iter().map(member).collect::<Result<_, _>>()?,
            dead: snapshot.dead.into_iter().map(dead).collect::<Result<_, _>>()?,
            fences: (snapshot.fences.into_iter())
                .map(|fence| Ok((node(fence.node)?, Incarnation(fence.incarnation))))
                .collect::<Result<_, SnapshotError>>()?,
            placements: snapshot.placements.into_iter().map(placement).collect::<Result<_, _>>()?,
            placed_at: (snapshot.placed_at.into_iter())
                .map(|placed| Ok((group(placed.group)?, placed.index)))
                .collect::<Result<_, SnapshotError>>()?,
            chosen: (snapshot.chosen.into_iter())
                .map(|chosen| Ok((group(chosen.group)?, node(chosen.node)?)))
                .collect::<Result<_, SnapshotError>>()?,
            removed: snapshot.removed.into_iter().map(node).collect::<Result<_, _>>()?,
            slots: snapshot.slots.into_iter().map(group).collect::<Result<_, _>>()?,
            succeeded: snapshot.succeeded,
            bans: Bans::of_records(snapshot.bans),
        })
    }
}

fn member_state(node: NodeId, member: &Member) -> MemberState {
    MemberState {
        record: Some(member.record(node)),
        living: member.living.unwrap_or_default().0,
        newest: member.newest.0,
        attempt: member.attempt,
        leaves: member.leaves,
        drains: member.drains,
        stops: member.stops.unwrap_or_default().0,
    }
}

fn member(state: MemberState) -> Result<(NodeId, Member), SnapshotError> {
    let record = state.record.ok_or(SnapshotError::Invalid("a member without a record"))?;
    let living = (state.living != 0).then_some(Incarnation(state.living));
    let id = node(record.node)?;
    let newest = Incarnation(state.newest);
    let stops = (state.stops != 0).then_some(Incarnation(state.stops));
    let MemberState { attempt, leaves, drains, .. } = state;
    Ok((id, Member { living, newest, attempt, leaves, drains, stops, ..Member::new(record) }))
}

fn dead_state(incarnation: Incarnation, dead: &Dead) -> DeadState {
    let witnesses = dead.witnesses.iter().map(|witness| witness.0).collect();
    DeadState { node: dead.node.get(), incarnation: incarnation.0, witnesses }
}

fn dead(state: DeadState) -> Result<(Incarnation, Dead), SnapshotError> {
    let witnesses = state.witnesses.into_iter().map(Incarnation).collect();
    Ok((Incarnation(state.incarnation), Dead { node: node(state.node)?, witnesses }))
}

fn placement(state: command::Placement) -> Result<(GroupId, Placement), SnapshotError> {
    let nodes = |ids: Vec<u64>| ids.into_iter().map(node).collect::<Result<_, _>>();
    Ok((group(state.group)?, Placement { voters: nodes(state.voters)?, learners: nodes(state.learners)? }))
}

fn node(id: u64) -> Result<NodeId, SnapshotError> {
    NodeId::new(id).ok_or(SnapshotError::Invalid("a node without an id"))
}

fn group(id: u32) -> Result<GroupId, SnapshotError> {
    u16::try_from(id).map(GroupId).map_err(|_| SnapshotError::Invalid("the number of a group"))
}
