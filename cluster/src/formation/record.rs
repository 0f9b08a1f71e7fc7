//! What is written down about a formation, on disk and on the wire.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;

use crate::directory::command::{self, MemberRecord};
use crate::directory::{Placement, VOTERS};
use crate::transport::ClusterId;
use crate::{GroupId, NodeId};

/// Nodes that may form a cluster together.
pub const MEMBERS_MAX: usize = 256;

/// Nodes that vote in the directory, where there are as many. The others follow it: it is what every node must know.
const DIRECTORY_VOTERS: usize = 5;

/// What the node that forms a cluster decides for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// How many data groups there are; never changed.
    pub groups: u16,
    /// How many nodes vote in each of them, once there are as many.
    pub voters: u16,
    /// What the state machines must agree on, as they wrote it.
    pub settings: Bytes,
}

/// How a cluster began: what each of its first members must know before it takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formation {
    /// Tells this cluster from every other.
    pub cluster_id: ClusterId,
    /// What was decided with it.
    pub terms: Terms,
    /// The nodes it begins with, see [`Self::placements`]; or those that there were when this node was admitted.
    pub members: Vec<MemberRecord>,
    /// This node joined a cluster that there was: it keeps nothing before others send it.
    pub is_joined: bool,
}

/// Bytes are not a formation: whoever wrote or sent them is not of our kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no record of how a cluster was formed: {0}")]
pub struct FormationRecordError(&'static str);

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct FormationRecord {
    #[prost(bytes = "bytes", tag = "1")]
    cluster_id: Bytes,
    #[prost(uint32, tag = "2")]
    groups: u32,
    #[prost(message, repeated, tag = "3")]
    members: Vec<MemberRecord>,
    #[prost(bytes = "bytes", tag = "4")]
    settings: Bytes,
    /// 0 in records from before there was such a setting.
    #[prost(uint32, tag = "5")]
    voters: u32,
    #[prost(bool, tag = "6")]
    is_joined: bool,
}

impl Formation {
    /// As it is kept and sent.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = FormationRecord {
            cluster_id: cluster_bytes(self.cluster_id),
            groups: self.terms.groups.into(),
            members: self.members.clone(),
            settings: self.terms.settings.clone(),
            voters: self.terms.voters.into(),
            is_joined: self.is_joined,
        };
        record.encode_to_vec().into()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// It is something else, or names no usable cluster.
    pub fn decode(bytes: Bytes) -> Result<Self, FormationRecordError> {
        let record = FormationRecord::decode(bytes).map_err(|_| FormationRecordError("not its format"))?;
        let cluster_id =
            read_cluster(&record.cluster_id).ok_or(FormationRecordError("a cluster id of another length"))?;
        let groups = u16::try_from(record.groups).ok().filter(|groups| (1..GroupId::DIRECTORY.0).contains(groups));
        let groups = groups.ok_or(FormationRecordError("an impossible number of groups"))?;
        let nodes: BTreeSet<u64> = record.members.iter().map(|member| member.node).collect();
        let is_set = nodes.len() == record.members.len() && !nodes.contains(&0);
        if !is_set || nodes.is_empty() || nodes.len() > MEMBERS_MAX {
            return Err(FormationRecordError("no members, too many, or one twice"));
        }
        // A copy: what it was part of need not stay.
        let settings = Bytes::copy_from_slice(&record.settings);
        let voters = match record.voters {
            0 => VOTERS,
            voters => u16::try_from(voters).map_err(|_| FormationRecordError("an impossible number of voters"))?,
        };
        let terms = Terms { groups, voters, settings };
        Ok(Self { cluster_id, terms, members: record.members, is_joined: record.is_joined })
    }

    /// The first command of the directory's log.
    #[must_use]
    pub fn form_command(&self) -> command::Form {
        let placements = self.placements();
        command::Form {
            cluster_id: cluster_bytes(self.cluster_id),
            groups: self.terms.groups.into(),
            members: self.members.clone(),
            placements: placements.iter().map(|(&group, placement)| placement.command(group)).collect(),
            // What all of them know.
            feature_level: self.members.iter().map(|member| member.feature_level).min().unwrap_or_default(),
            voters: self.terms.voters.into(),
        }
    }

    /// The nodes it begins with.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.members.iter().map(|member| NodeId(member.node)).collect()
    }

    /// Who keeps what at first: each group is with as many nodes as are to vote, dealt out in turn, and the directory with
    /// all of them. Nobody keeps anything as far as a node knows that joined: it must be told.
    #[must_use]
    pub fn placements(&self) -> BTreeMap<GroupId, Placement> {
        if self.is_joined {
            let groups = (0..self.terms.groups).map(GroupId).chain([GroupId::DIRECTORY]);
            return groups.map(|group| (group, Placement::default())).collect();
        }
        let (nodes, voters) = (self.nodes(), usize::from(self.terms.voters));
        let groups = (0..self.terms.groups).map(|group| {
            // Where all keep it, only the one that votes by itself has its turn.
            let turn = if nodes.len() > voters { voters } else { 1 };
            let keepers = nodes.iter().copied().cycle().skip(usize::from(group) * turn % nodes.len().max(1));
            let keepers: Vec<_> = keepers.take(nodes.len().min(voters)).collect();
            (GroupId(group), place(voters, &keepers))
        });
        groups.chain([(GroupId::DIRECTORY, place(DIRECTORY_VOTERS, &nodes))]).collect()
    }

    /// Whether it names this node.
    #[must_use]
    pub fn lists(&self, node: NodeId) -> bool {
        self.members.iter().any(|member| member.node == node.0)
    }
}

/// The answer to a node that wants to be a member.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Joined {
    /// The record of the cluster, if the node is a member now.
    #[prost(bytes = "bytes", tag = "1")]
    pub formation: Bytes,
    /// Where to ask instead, if it is known.
    #[prost(string, tag = "2")]
    pub elsewhere: String,
    /// Why the cluster does not take the node.
    #[prost(string, tag = "3")]
    pub refusal: String,
    /// It does not because it removed it. Older versions do not say so.
    #[prost(bool, tag = "4")]
    pub removed: bool,
}

/// A cluster that one node, its *decider*, wants to form, and what others promise: to be part of it and of none with a
/// lower number.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Proposal {
    /// The cluster's id: sixteen bytes, drawn by the decider.
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) cluster_id: Bytes,
    /// Proposals are in this order.
    #[prost(uint32, tag = "2")]
    pub number: u32,
    /// Who decides that the cluster is formed. Nobody else can.
    #[prost(uint64, tag = "3")]
    pub decider: u64,
    /// Its name, to tell people.
    #[prost(string, tag = "4")]
    pub decider_name: String,
    /// The nodes that it is to begin with, the decider among them. In a promise: all that were ever named for it.
    #[prost(uint64, repeated, tag = "5")]
    pub members: Vec<u64>,
    /// In a promise: nodes that must be among the members whatever is promised from here on, because of what was promised
    /// before. Empty on the wire.
    #[prost(uint64, repeated, tag = "6")]
    pub(super) bound: Vec<u64>,
}

impl Proposal {
    /// One for a cluster of these members.
    #[must_use]
    pub fn new(cluster: ClusterId, number: u32, decider: &MemberRecord, members: Vec<u64>) -> Self {
        let (node, name) = (decider.node, decider.name.clone());
        Self {
            cluster_id: cluster_bytes(cluster),
            number,
            decider: node,
            decider_name: name,
            members,
            bound: Vec::new(),
        }
    }

    /// The cluster's id; `None` if it has none, which no proposal of ours lacks.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        read_cluster(&self.cluster_id)
    }
}

/// What a node says to a [`Proposal`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Promised {
    /// Who it is, if it promised.
    #[prost(message, optional, tag = "1")]
    pub member: Option<MemberRecord>,
    /// Why it did not.
    #[prost(string, tag = "2")]
    pub refusal: String,
    /// The number that it promised already: one above it might be taken.
    #[prost(uint32, tag = "3")]
    pub number: u32,
}

/// The first of `nodes` vote, an odd number of them and `voters` at most, and the others follow.
fn place(voters: usize, nodes: &[NodeId]) -> Placement {
    let most = nodes.len().min(voters);
    let (voting, following) = nodes.split_at(most.saturating_sub(usize::from(most.is_multiple_of(2))));
    Placement { voters: voting.iter().copied().collect(), learners: following.iter().copied().collect() }
}

fn cluster_bytes(cluster: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&cluster.0.to_be_bytes())
}

fn read_cluster(bytes: &[u8]) -> Option<ClusterId> {
    Some(ClusterId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64) -> MemberRecord {
        MemberRecord {
            node,
            name: format!("n{node}"),
            peer_address: format!("127.0.0.1:{node}"),
            client_address: String::new(),
            is_advertised: false,
            feature_level: 1,
            zone: String::new(),
            feature_level_min: 1,
        }
    }

    fn formation() -> Formation {
        let terms = Terms { groups: 2, voters: 3, settings: Bytes::from_static(b"settings") };
        Formation { cluster_id: ClusterId(7), terms, members: (1..=3).map(member).collect(), is_joined: false }
    }

    #[test]
    fn a_formation_is_read_back() {
        assert_eq!(Formation::decode(formation().encode()), Ok(formation()));
    }

    /// Voters and learners of each group, in the order of the groups, the directory last.
    fn placed(nodes: u64, groups: u16) -> Vec<(Vec<u64>, Vec<u64>)> {
        let terms = Terms { groups, ..formation().terms };
        let form = Formation { terms, members: (1..=nodes).map(member).collect(), ..formation() }.form_command();
        let numbers: Vec<_> = form.placements.iter().map(|placed| placed.group).collect();
        assert_eq!(numbers, (0..u32::from(groups)).chain([u16::MAX.into()]).collect::<Vec<_>>());
        form.placements.into_iter().map(|placed| (placed.voters, placed.learners)).collect()
    }

    #[test]
    fn who_joined_keeps_nothing_before_it_is_told() {
        let joined = Formation { is_joined: true, ..formation() };
        assert_eq!(Formation::decode(joined.encode()), Ok(joined.clone()));
        assert!(joined.placements().values().all(|placed| placed == &Placement::default()));
        assert_eq!(joined.placements().len(), 3, "but it knows which groups there are");
    }

    #[test]
    fn the_first_command_says_what_was_agreed() {
        let form = formation().form_command();
        assert_eq!((form.groups, form.members, form.feature_level), (2, formation().members, 1));
    }

    #[test]
    fn each_group_is_with_three_nodes_and_the_directory_with_all() {
        let all = |nodes: &[u64]| (nodes.to_vec(), Vec::new());
        assert_eq!(placed(1, 2), [all(&[1]), all(&[1]), all(&[1])]);
        assert_eq!(placed(3, 2), [all(&[1, 2, 3]), all(&[1, 2, 3]), all(&[1, 2, 3])]);
        let of_five = [&[1, 2, 3][..], &[1, 4, 5], &[2, 3, 4], &[1, 2, 5], &[3, 4, 5], &[1, 2, 3], &[1, 2, 3, 4, 5]];
        assert_eq!(placed(5, 6), of_five.map(all));
    }

    /// An even number of voters bears no more losses than one less.
    #[test]
    fn an_odd_number_votes_and_the_others_follow() {
        assert_eq!(placed(2, 2), [(vec![1], vec![2]), (vec![2], vec![1]), (vec![1], vec![2])]);
        assert_eq!(placed(4, 1), [(vec![1, 2, 3], vec![]), (vec![1, 2, 3], vec![4])]);
        assert_eq!(placed(7, 1).last(), Some(&(vec![1, 2, 3, 4, 5], vec![6, 7])));
    }

    /// Capacity grows with the nodes.
    #[test]
    fn no_node_keeps_two_groups_more_than_another() {
        for nodes in 3..=20 {
            let placed = placed(nodes, 16);
            let kept = |node| placed[..16].iter().filter(|(voters, _)| voters.contains(&node)).count();
            let kept: Vec<_> = (1..=nodes).map(kept).collect();
            let (least, most) = (kept.iter().min().copied(), kept.iter().max().copied());
            assert!(most <= least.map(|least| least + 1), "of {nodes}: {kept:?}");
        }
    }

    #[test]
    fn what_names_no_usable_cluster_is_refused() {
        for wrong in [
            Formation { terms: Terms { groups: 0, ..formation().terms }, ..formation() },
            Formation { terms: Terms { groups: u16::MAX, ..formation().terms }, ..formation() },
            Formation { members: Vec::new(), ..formation() },
            Formation { members: vec![member(1), member(1)], ..formation() },
            Formation { members: vec![member(1), member(0)], ..formation() },
        ] {
            assert!(Formation::decode(wrong.encode()).is_err(), "{wrong:?}");
        }
        assert!(Formation::decode(Bytes::from_static(b"\xff\xff")).is_err());
        assert!(Formation::decode(Bytes::new()).is_err());
    }
}
