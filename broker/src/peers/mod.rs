//! The other nodes, as arbiters and groups see them.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use kentongan_cluster::NodeId;
use kentongan_cluster::transport::{ClusterId, PeerAddress};

pub mod administration;
pub mod backup;
pub mod links;
pub mod plain;
pub mod status;
pub mod wire;

/// There is no room on the way to that node now. Whoever wanted to say something keeps it, and says it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFull;

/// The way to the other nodes. Never blocks.
pub trait Peers: Send + Sync + fmt::Debug {
    /// Says something to `node`. What was said may still be lost with the link.
    ///
    /// # Errors
    /// No room, or no link.
    fn forward(&self, node: u64, forwarded: wire::Forwarded) -> Result<(), PeerFull>;

    /// Says something of membership to `node`. It arrives, in order, or the link breaks.
    fn control(&self, node: u64, message: Bytes);

    /// From here on these are the nodes that there are. Those that were linked with and are not among them are no more.
    fn members(&self, members: Vec<PeerAddress>);

    /// What the cluster uses, and who was a member once: by both, others are refused from here on.
    fn admission(&self, _feature_level: u32, _removed: BTreeSet<NodeId>) {}
    /// The cluster has taken the place of these: their nodes are told so.
    fn succeeded(&self, _: Vec<ClusterId>) {}
}
