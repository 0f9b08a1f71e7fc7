//! Why a node turns a peer away, in words for whoever must mend it.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::copies::{COPIED_KEY, Copied};
use super::identity::{ClusterId, NodeId};
use crate::feature_level::UnknownLevel;

/// The code by which a node that was removed hears of it.
pub(super) const REMOVED: Code = Code::AlreadyExists;

/// Why a peer was turned away. The text reads the same on both sides: "the peer" is the one that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that no build of ours sends.
    #[error("the peer broke the protocol: {0}")]
    Malformed(&'static str),
    /// One of two clusters has a wrong address in its list.
    #[error(
        "the peer belongs to cluster {}, not to {}: check the addresses and seeds of both",
        show(theirs),
        show(ours)
    )]
    WrongCluster {
        /// That of the peer.
        theirs: Option<ClusterId>,
        /// That of the refusing node.
        ours: Option<ClusterId>,
    },
    /// What the peer has on its disk was given up when this cluster took the place of its own.
    #[error(
        "the peer belongs to cluster {theirs}, whose place cluster {} has taken (it was recovered, or restored from a backup): nobody \
         counts on what the peer has on its disk; stop it, and start it with an empty data directory to have it join",
        show(ours)
    )]
    Succeeded {
        /// That of the peer.
        theirs: ClusterId,
        /// That of the refusing node.
        ours: Option<ClusterId>,
    },
    /// The peer's certificate was made for another node.
    #[error(
        "the peer calls itself {name:?}, but its certificate is for another name: its node name must be one of the DNS names in its certificate"
    )]
    WrongCertificate {
        /// What it calls itself.
        name: String,
    },
    /// Another node answers at a member's address.
    #[error(
        "expected node {expected} ({expected_name:?}) but the peer is {found} ({found_name:?}): its address is stale, or its disk was replaced"
    )]
    WrongNode {
        /// Who should be there.
        expected: NodeId,
        /// Its name.
        expected_name: String,
        /// Who is there.
        found: NodeId,
        /// Its name.
        found_name: String,
    },
    /// The peer dialled another node, that had this address.
    #[error("the peer wants node {wanted}, but here is {found}: the address is stale, or the disk here was replaced")]
    NotTheOne {
        /// Whom it wants.
        wanted: NodeId,
        /// Who refuses.
        found: NodeId,
    },
    /// The peer is not, or not yet, a member as far as this node knows.
    #[error("node {node} is no member that this node knows of yet")]
    UnknownPeer {
        /// The peer.
        node: NodeId,
    },
    /// The versions are too far apart for a rolling upgrade.
    #[error(
        "the peer speaks protocol versions {min} to {max}, none of which this node speaks: upgrade one step at a time"
    )]
    Version {
        /// Its lowest.
        min: u32,
        /// Its highest.
        max: u32,
    },
    /// Its program does not know the feature level that the cluster uses.
    #[error(transparent)]
    FeatureLevel(#[from] UnknownLevel),
    /// It was a member once, and is none any more.
    #[error(
        "node {node} was removed from the cluster: what it has on its disk nobody counts on. Start it with an empty data \
         directory, and it joins as a new node"
    )]
    Removed {
        /// The peer.
        node: NodeId,
    },
    /// What the peer has on its disk is not the newest that its node has.
    #[error("node {node}: {how}")]
    Copied {
        /// The peer.
        node: NodeId,
        /// How that is known.
        how: Copied,
    },
    /// It was started again, and the links of the process before it are not seen to have ended.
    #[error("another process of node {node} has links here that have not ended: this one is let in once they have")]
    NotGone {
        /// The peer.
        node: NodeId,
    },
    /// A link that its own dialler has given up for a newer one, or that was taken from the set of peers.
    #[error("a newer link has taken the place of this one, or the peer is no longer a member")]
    Superseded,
    /// As many as may be served are being served.
    #[error("busy with other requests: try again later")]
    Busy,
    /// What was asked for is not here, or not now.
    #[error("{0}")]
    Unavailable(String),
}

fn show(cluster: &Option<ClusterId>) -> String {
    cluster.map_or_else(|| "none".to_owned(), |cluster| cluster.to_string())
}

impl Refusal {
    /// How it crosses the wire. Each has a code of its own, but for the two that tell of a stale address.
    pub(super) fn to_status(&self) -> Status {
        let code = match self {
            Refusal::Malformed(_) => Code::InvalidArgument,
            // It may be of the same one in a moment: a cluster forms.
            Refusal::WrongCluster { ours: None, .. } => Code::Unavailable,
            Refusal::WrongCluster { .. } | Refusal::Succeeded { .. } | Refusal::Copied { .. } => {
                Code::FailedPrecondition
            }
            Refusal::WrongCertificate { .. } => Code::Unauthenticated,
            Refusal::WrongNode { .. } | Refusal::NotTheOne { .. } => Code::PermissionDenied,
            Refusal::UnknownPeer { .. } => Code::NotFound,
            Refusal::Version { .. } => Code::Unimplemented,
            Refusal::FeatureLevel(_) => Code::DataLoss,
            Refusal::Removed { .. } => REMOVED,
            Refusal::Superseded => Code::Aborted,
            Refusal::Busy => Code::ResourceExhausted,
            Refusal::Unavailable(_) | Refusal::NotGone { .. } => Code::Unavailable,
        };
        let mut status = Status::new(code, self.to_string());
        if let Refusal::Copied { how, .. } = self {
            status.metadata_mut().insert(COPIED_KEY, MetadataValue::from_static(how.word()));
        }
        status
    }
}
