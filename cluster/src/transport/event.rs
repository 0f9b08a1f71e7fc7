//! What the transport tells the node.

use std::fmt;

use crossbeam::channel::Sender;
use kentongan_proto::peer::{Batch, wire};

use super::copies::Copied;
use super::credit::Credit;
use super::identity::{NodeId, PeerHello};

/// Classes of traffic. Each has a connection of its own in each direction, so that none waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Small and urgent: heartbeats, votes, leases, interest.
    Control,
    /// Raft messages that carry entries.
    Append,
    /// Lanes, and what groups tell the owners of sessions.
    Forward,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; Class::COUNT] = [Class::Control, Class::Append, Class::Forward];

    /// How many there are.
    pub(super) const COUNT: usize = 3;

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn to_wire(self) -> wire::TrafficClass {
        match self {
            Class::Control => wire::TrafficClass::Control,
            Class::Append => wire::TrafficClass::Append,
            Class::Forward => wire::TrafficClass::Forward,
        }
    }

    pub(super) fn from_wire(class: i32) -> Option<Class> {
        match wire::TrafficClass::try_from(class).ok()? {
            wire::TrafficClass::Unspecified => None,
            wire::TrafficClass::Control => Some(Class::Control),
            wire::TrafficClass::Append => Some(Class::Append),
            wire::TrafficClass::Forward => Some(Class::Forward),
        }
    }
}

/// Names one life of a link: one direction between two nodes, for one class. What was sent in it arrives in order, all
/// but an unknown end, and before anything that is sent in the next one.
///
/// The dialler chooses it. Unequal between processes (upper half), rising within one (lower half).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkEpoch(pub u64);

impl LinkEpoch {
    /// Tells the processes that chose them apart.
    #[must_use]
    pub fn process(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether both were chosen by one process, and this one first.
    pub(super) fn is_before(self, other: LinkEpoch) -> bool {
        self.0 >> 32 == other.0 >> 32 && self.0 < other.0
    }
}

impl fmt::Display for LinkEpoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:08x}.{}", self.0 >> 32, self.0 as u32)
    }
}

/// Which way the messages of a link go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From us to the peer: dialled by us.
    Outgoing,
    /// From the peer to us: dialled by it.
    Incoming,
}

/// Something the node must know of.
#[derive(Debug)]
pub enum Event {
    /// A link began. Nothing of an earlier epoch of it can still arrive at the other end. If it is outgoing, whoever keeps
    /// what was not answered sends it again.
    LinkUp {
        /// The other end.
        peer: NodeId,
        /// What the link carries.
        class: Class,
        /// Who sends.
        direction: Direction,
        /// The same at both ends.
        epoch: LinkEpoch,
        /// Who the peer says it is.
        hello: PeerHello,
    },
    /// A link ended; follows each `LinkUp`.
    LinkDown {
        /// The other end.
        peer: NodeId,
        /// What the link carried.
        class: Class,
        /// Who sent.
        direction: Direction,
        /// That of its `LinkUp`.
        epoch: LinkEpoch,
    },
    /// Messages came.
    Batch(Incoming),
    /// A peer says that this node was removed from the cluster.
    Removed {
        /// Who says so.
        by: NodeId,
    },
    /// A peer says that what this node has on its disk is not the newest that it has.
    Copied {
        /// Who says so.
        by: NodeId,
        /// How that is known.
        how: Copied,
    },
}

/// Messages from a peer, in order. Between the `LinkUp` and the `LinkDown` of their epoch.
#[derive(Debug)]
pub struct Incoming {
    /// Who sent them.
    pub from: NodeId,
    /// Their class.
    pub class: Class,
    /// The life of the link in which they came.
    pub epoch: LinkEpoch,
    /// What they are.
    pub messages: Batch,
    /// Room that they take from the peer. Drop it once they are dealt with: until then the peer may send only so much more.
    pub credit: Credit,
}

/// Takes events. Called on the transport's own thread, or on the one that sets the peers, so it must not wait;
/// [`Incoming::credit`] bounds what it holds. Of the transport it may call [`send`](super::Transport::send) only.
pub trait Sink: Send + Sync + 'static {
    /// Takes one event. Those of one link come in order.
    fn on_event(&self, event: Event);
}

/// For an unbounded channel; the credit bounds it.
impl Sink for Sender<Event> {
    fn on_event(&self, event: Event) {
        // A receiver that is gone stopped before the transport did: nobody is left to be told.
        let _ = self.send(event);
    }
}
