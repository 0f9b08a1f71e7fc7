//! What a [`super::Membership`] is asked for, answers and wants done.

use std::sync::Arc;

use bytes::Bytes;

use crate::directory::JoinRefusal;
use crate::directory::bans::BanRefusal;
use crate::group::Target;
use crate::identity::{GroupId, Incarnation, NodeId};
use crate::interest::{BarrierFull, SourceId};
use crate::lease::Standing;

/// What is kept and sent at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of one update of interest; a longer filter or entry of a group goes alone.
    pub update_bytes_max: usize,
    /// What one node is sent of all sources between two ticks, about.
    pub feed_bytes_per_tick: usize,
    /// Recent changes that each source keeps.
    pub recent_bytes_max: usize,
    /// Who may wait at one barrier.
    pub waiters_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            update_bytes_max: 64 * 1024,
            feed_bytes_per_tick: 1024 * 1024,
            recent_bytes_max: 16 * 1024 * 1024,
            waiters_max: 100_000,
        }
    }
}

/// What the node must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message to another node. May be lost only together with the link.
    Send {
        /// To whom.
        to: NodeId,
        /// See [`wire`].
        message: Bytes,
    },
    /// Propose a command to the directory group, unless this node does not lead it in this term any more.
    Propose {
        /// In which it led.
        term: u64,
        /// See [`command`].
        command: Bytes,
    },
    /// Begin a ReadIndex round of the directory group, and call [`Membership::on_read`] once its index is applied here.
    StartDirectoryRead {
        /// Names the round.
        token: u64,
    },
    /// The same of a group that this node leads.
    StartGroupRead {
        /// Which group.
        group: GroupId,
        /// Names the round.
        token: u64,
    },
    /// Propose to a group that is led here: refuse the lanes of that node's incarnations below this, release their sessions.
    /// Repeats itself until [`Membership::on_group_fenced`].
    ProposeFence {
        /// To which group.
        group: GroupId,
        /// Which node.
        node: NodeId,
        /// The lowest incarnation that is not dead.
        below: Incarnation,
    },
    /// The subscription index changes. Carry it out before what follows: a confirmation may be among that.
    Interest {
        /// Whose filter.
        source: SourceId,
        /// The filter.
        filter: Arc<str>,
        /// Its value before; 0 if it was not wanted.
        old: u32,
        /// Its value now; 0 if it is not wanted any more.
        new: u32,
    },
    /// Every node holds the version that was waited for. Like every acknowledgement, SUBACK needs a lease as well.
    Released {
        /// At the barrier of this group, or of this node.
        group: Option<GroupId>,
        /// As it was given.
        waiter: u64,
    },
    /// Incarnations of a node are dead: refuse their lanes, drop what goes to them. Carry it out before what follows: this
    /// node says next that it is done.
    Died {
        /// Which node.
        node: NodeId,
        /// The lowest incarnation that is not dead.
        below: Incarnation,
    },
    /// Nobody waits for an incarnation any more: lanes to it are settled.
    Lost {
        /// Which node.
        node: NodeId,
        /// Which of its incarnations.
        incarnation: Incarnation,
    },
    /// This process is registered; its standing is [`Standing::Joining`]. Lanes to it begin with the fences of
    /// [`Membership::directory`].
    Joined {
        /// As what.
        incarnation: Incarnation,
    },
    /// The cluster does not take this node. It is asked again; an operator must do something.
    JoinRefused {
        /// Why.
        reason: JoinRefusal,
    },
    /// A group that is led here is to be kept like this; see [`crate::node::Node::place`].
    Place {
        /// Which group.
        group: GroupId,
        /// In which it is led.
        term: u64,
        /// Where it is to be kept.
        target: Target,
    },
    /// Links are to be kept with the members as [`Membership::directory`] has them, and with nobody else.
    Members,
    /// Others are banned than before; see [`Directory::bans`].
    Bans,
    /// The cluster uses another feature level than this node has heard of. What cannot be done by it must not go on: the node ends
    /// before it applies anything else, see [`crate::feature_level::FeatureLevels::check`].
    FeatureLevel {
        /// Which.
        used: u32,
    },
    /// This node is no member any more, and never will be again: it serves nobody and ends. [`Standing::Dead`] came before.
    Removed,
    /// What the node may do has changed. After [`Standing::Dead`] it registers again when
    /// [`Membership::on_clients_closed`] says that nobody is left who could count on the dead incarnation.
    Standing(Standing),
}

/// An entry of the directory's log that this program cannot apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCommand {
    /// Its checksum was right, so these are the bytes that were written: not a disk's fault.
    #[error("it is no command: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// One of a later version.
    #[error("it is a command of a later version of the program")]
    Newer,
}

/// Why one cannot wait at a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Try again later.
    #[error(transparent)]
    Full(#[from] BarrierFull),
    /// This node is no member now: its clients are to be closed.
    #[error("this node is not registered")]
    NotRegistered,
    /// The SUBSCRIBE comes again to the group's leader, with the resync.
    #[error("this node does not lead the group")]
    NotLed,
}

/// What became of a wish that only the leader of the directory can fulfil. Unless it is fulfilled or refused, ask again soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It is so, by the committed directory, as whoever leads it has it. What is final any node may say.
    Fulfilled,
    /// It was proposed.
    Proposed,
    /// Another node leads: ask it.
    Elsewhere {
        /// Where it is.
        address: String,
    },
    /// Nobody leads as far as this node knows.
    NoLeader,
    /// It cannot be.
    Refused(WishRefusal),
}

/// Why a wish cannot be fulfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WishRefusal {
    /// To be a member.
    #[error(transparent)]
    Join(#[from] JoinRefusal),
    /// That somebody is banned.
    #[error(transparent)]
    Ban(#[from] BanRefusal),
    /// That a member has clients again.
    #[error("the node is being removed, which cannot be undone")]
    Leaves,
    /// That a member is drained.
    #[error(
        "no other node could take what it has: all others are down, drained, stopping or leaving, or just about to be drained"
    )]
    NobodyLeft,
}

/// What time it is by the wall clocks of the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgreedWallClock {
    /// Milliseconds since 1970 less those since this machine booted ([`crate::clock::boottime_ns`]).
    pub ahead_ms: i64,
    /// By how many milliseconds this machine's own is ahead of it.
    pub own_ahead_ms: i64,
}
