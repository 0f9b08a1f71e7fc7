//! Who wants what: the filters of every node and group, known to every node.
//!
//! A [`Source`] is a set of filters that changes: one for the transient sessions of each incarnation of a node, one for the
//! persistent sessions of each group. It is sent to every node as a snapshot and then as what changed, and each receiver
//! keeps all sources in a [`Table`], from which the subscription index is fed. A receiver confirms the version it holds, and
//! a [`Barrier`] at the source tells when a version is held by everyone: then SUBACK may leave.
//!
//! The version of a node's source counts its changes. That of a group's is the index of the last entry that changed it, the
//! same at every replica: so a stale leader can only be behind, and a new one goes on where the old one was.

mod barrier;
mod source;
mod table;

use std::fmt;
use std::sync::Arc;

use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};

pub use barrier::{Barrier, BarrierFull};
pub use source::{Feed, Source};
pub use table::{LinkId, Table, TableOutput};

/// Whose interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceId {
    /// The transient sessions of one incarnation of a node.
    Node(NodeId, Incarnation),
    /// The persistent sessions of a group.
    Group(GroupId),
}

/// How far a source has got. 0: nothing yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A filter and its value. What a value says is for the product to decide, the number of connected members of a shared
/// subscription say; 0 is "not wanted".
pub type Entry = (Arc<str>, u32);

/// A piece of a source on its way to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Of which source.
    pub source: SourceId,
    /// What the receiver holds once it has taken this; for a snapshot, once it has taken its last piece.
    pub version: Version,
    /// An index of the directory: with `version` everything is held that was acknowledged without waiting for some node
    /// which had joined by then. 0 if nothing can be said.
    pub as_of: u64,
    /// The piece.
    pub content: Content,
}

/// What an update holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A piece of everything.
    Snapshot {
        /// Counts the pieces from 0.
        piece: u32,
        /// There is no further one.
        last: bool,
        /// In order of the filters.
        entries: Vec<Entry>,
    },
    /// What changed.
    Delta {
        /// The receiver must hold at least this.
        from: Version,
        /// In their order; the last of a filter counts.
        changes: Vec<Entry>,
    },
}

/// Bytes that an entry counts for, on a wire or in memory.
fn entry_bytes(filter: &str) -> usize {
    filter.len() + 16
}

#[cfg(test)]
mod tests;
