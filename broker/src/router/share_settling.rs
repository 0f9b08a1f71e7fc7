//! Messages of shared subscriptions that were handed to another node for a member there, until they are settled (P11).
//!
//! The *origin* is the arbiter that picked the node, or the group whose outbox the message comes from. It keeps the message
//! until one of these:
//!
//! - The node says that it is settled: a member acknowledged it (PUBACK), or it was dropped there as any message may be, or
//!   it is *taken* (below).
//! - The node gives it back: no member is left there. The origin picks again.
//! - The node is lost. The origin picks again among the others.
//!
//! On the *target* the message stays what it is, one that another node answers for: a member that goes leaves it to another
//! connection there, never to a group or a further node, which would have to answer to two. So there is one answer a message,
//! and it comes from whoever has it last.
//!
//! Answers go by the lane of the arbiter that has them to the origin's node, between its messages, or to the group. A lane brings
//! each item once, whatever is lost or repeated below it, and ends only with the node that it leads to or comes from. That is
//! all that is needed here:
//!
//! - No answer is lost while both nodes live. So nothing is kept for ever.
//! - No answer comes twice. If one did, it would find nothing: the number in the origin's lane, or the position in the outbox,
//!   names one message, and is never given again.
//! - An origin that is lost takes with it what it kept; answers for it end with the lane, and a message that its member leaves
//!   after that is the target's own. A group is not lost. What it keeps is told in `replicated::state::outbox`.
//! - A target that is lost has no living member, so what it left unanswered can be picked again without a second copy on a
//!   living connection.
//!
//! What a member begins at QoS 2 nobody else may get [MQTT-4.8.2-5], what it gets at QoS 0 is sent once, and when a node is lost,
//! nobody knows what of that happened there. So such a message is *taken*: the node says first that it is settled, and its member
//! gets it when the lane has answered, for then the origin has let go of it; or when the origin is lost, for then nobody else
//! picks it again. If the node is lost in between, nobody gets it, and the member's session is gone with it. Meanwhile the
//! member may leave: the message is the node's own by then, and goes to whoever else may have it, here or elsewhere.
//!
//! Nothing else waits for what is taken, as a shared subscription promises no order [MQTT-4.6.0-6]. What one publisher sends at one
//! QoS comes to one member in order all the same, by the lanes there and back.
//!
//! The publisher waits for none of this, only for the lane's answer. So what is kept is bounded by dropping: what a member is
//! handed that never acknowledges stops nobody else, be it who publishes here or a member elsewhere that keeps up.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::connection_key::ConnectionKey;
use crate::message::Message;
use crate::session::outbound::Full;
use crate::subscription::{NodeNumber, ShareGroup};

/// Messages that an arbiter keeps from which on some shared subscriptions of some nodes get no more; see
/// [`ShareSettling::full`]. More than waits for one member by default, so that its own queue says what gives way.
const KEPT_MESSAGES_MAX: usize = 128 * 1024;

/// The same in bytes.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Messages that an arbiter has taken for its members and that others have not let go of yet; what finds no room is dropped.
const TAKEN_MESSAGES_MAX: usize = 64 * 1024;

/// The same in bytes.
const TAKEN_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Times that a message is given back before it counts as one that nobody takes: nodes whose counts of members are wrong
/// must not hand it round for ever.
const GIVEN_BACK_MAX: u8 = 16;

/// Which message it was that another node handed to this one, for a member here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareOrigin {
    /// Who keeps it.
    pub keeper: ShareKeeper,
    /// Which of the shared subscriptions that the item was for.
    pub share: u16,
    /// Of the item in the lane; of an outbox, its position.
    pub number: NonZeroU64,
}

impl ShareOrigin {
    /// What a group has at `position` of its outbox. `None`: they count from 1.
    #[must_use]
    pub fn outbox(group: u16, position: u64) -> Option<Self> {
        Some(Self { keeper: ShareKeeper::Outbox { group }, share: 0, number: NonZeroU64::new(position)? })
    }
}

/// Who keeps a message of a shared subscription that a member of this node is to settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareKeeper {
    /// An arbiter of another node.
    Arbiter {
        /// The node.
        node: NodeNumber,
        /// The arbiter there.
        arbiter: u16,
    },
    /// A group, in its outbox.
    Outbox {
        /// Which.
        group: u16,
    },
}

/// A message that a member here gets once whoever keeps it has let go of it.
#[derive(Debug)]
pub(super) struct Taken {
    pub message: Arc<Message>,
    pub share: Arc<ShareGroup>,
    pub member: ConnectionKey,
}

impl Taken {
    fn weight_bytes(&self) -> usize {
        self.message.weight_bytes() + size_of::<Self>()
    }
}

/// By which lane the keeper of a message is told that it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TellingLane {
    /// To the node of the arbiter that keeps it.
    Node(NodeNumber),
    /// To the group in whose outbox it is.
    Group(u16),
}

/// All that an arbiter has taken, until those who kept it have let go.
#[derive(Debug, Default)]
pub(super) struct ShareTaking {
    /// What other nodes are told of when the turn ends, by node.
    untold: BTreeMap<NodeNumber, Vec<Taken>>,
    /// By the lane, and the number in it behind which it may go on.
    told: BTreeMap<(TellingLane, u64), Vec<Taken>>,
    messages: usize,
    bytes: usize,
}

impl ShareTaking {
    /// The bound that there is no room within for one more.
    pub(super) fn full(&self) -> Option<Full> {
        match self {
            _ if self.messages >= TAKEN_MESSAGES_MAX => Some(Full::Messages),
            _ if self.bytes >= TAKEN_BYTES_MAX => Some(Full::Bytes),
            _ => None,
        }
    }

    /// The group whose outbox has it is told by `number` in the lane.
    pub(super) fn take_from_outbox(&mut self, group: u16, number: u64, taken: Taken) {
        self.added(&taken);
        self.told.entry((TellingLane::Group(group), number)).or_default().push(taken);
    }

    /// The node that has it is told when the turn ends.
    pub(super) fn take_from_node(&mut self, node: NodeNumber, taken: Taken) {
        self.added(&taken);
        self.untold.entry(node).or_default().push(taken);
    }

    /// The node is told, of all so far, by what stands in the lane up to `number`.
    pub(super) fn on_told(&mut self, node: NodeNumber, number: u64) {
        if let Some(taken) = self.untold.remove(&node) {
            self.told.entry((TellingLane::Node(node), number)).or_default().extend(taken);
        }
    }

    /// The lane has answered up to `number`. Returns what may go on, in the order in which it was taken.
    pub(super) fn on_answer(&mut self, lane: TellingLane, number: u64) -> Vec<Taken> {
        if self.told.is_empty() {
            return Vec::new();
        }
        let answered = self.told.extract_if((lane, 0)..=(lane, number), |_, _| true);
        let taken: Vec<Taken> = answered.flat_map(|(_, taken)| taken).collect();
        self.removed(&taken);
        taken
    }

    /// The node is lost, so nobody else picks what it kept. Returns what may go on.
    pub(super) fn on_node_lost(&mut self, node: NodeNumber) -> Vec<Taken> {
        let mut taken = self.on_answer(TellingLane::Node(node), u64::MAX);
        let untold = self.untold.remove(&node).unwrap_or_default();
        self.removed(&untold);
        taken.extend(untold);
        taken
    }

    fn added(&mut self, taken: &Taken) {
        self.messages += 1;
        self.bytes += taken.weight_bytes();
    }

    fn removed(&mut self, taken: &[Taken]) {
        self.messages -= taken.len();
        self.bytes -= taken.iter().map(Taken::weight_bytes).sum::<usize>();
    }

    /// Messages that are taken and not let go.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn len(&self) -> usize {
        self.messages
    }
}

/// What became of a message that was handed to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareOutcome {
    /// Nobody else is to get it.
    Settled,
    /// There was nobody who could.
    GivenBack,
}

/// What a node answers for one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareAnswer {
    /// Of the item in the origin's lane.
    pub number: u64,
    /// Which of its shared subscriptions.
    pub share: u16,
    /// What became of it.
    pub outcome: ShareOutcome,
}

/// A message that another node has for one of its members.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub message: Arc<Message>,
    pub share: Arc<ShareGroup>,
    /// How often it came back.
    pub given_back: u8,
}

impl Kept {
    fn weight_bytes(&self) -> usize {
        self.message.weight_bytes() + size_of::<Self>()
    }

    /// Whether it may be picked for somebody once more.
    pub(super) fn may_go_on(&self) -> bool {
        self.given_back < GIVEN_BACK_MAX
    }
}

/// A shared subscription and a node with members of it, while something is kept for them.
type NodeShare = (NodeNumber, usize);

fn address(share: &Arc<ShareGroup>) -> usize {
    Arc::as_ptr(share).addr()
}

/// So much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, kept: &Kept) {
        self.messages += 1;
        self.bytes += kept.weight_bytes();
    }

    fn remove(&mut self, kept: &Kept) {
        self.messages -= 1;
        self.bytes -= kept.weight_bytes();
    }
}

/// All that an arbiter keeps, by (node, number in the lane to it, which shared subscription of that item).
#[derive(Debug, Default)]
pub(super) struct ShareSettling {
    kept: BTreeMap<(NodeNumber, u64, u16), Kept>,
    total: Load,
    /// Of `total`, whom it is for. What is kept holds the group, so that an address names one as long as it stands here.
    loads: HashMap<NodeShare, Load, foldhash::fast::RandomState>,
}

impl ShareSettling {
    /// The bound that the node may get no more within for its members of a shared subscription. What is kept for all together
    /// is shared out evenly from a mark on: whoever has less than its part is not kept from it by others that have more, and
    /// twice as much is never kept.
    pub(super) fn full(&self, node: NodeNumber, share: &Arc<ShareGroup>) -> Option<Full> {
        let Load { messages, bytes } = self.total;
        if messages < KEPT_MESSAGES_MAX && bytes < KEPT_BYTES_MAX {
            return None;
        }
        let own = self.loads.get(&(node, address(share))).copied().unwrap_or_default();
        let is_full = |total: usize, own: usize, max: usize| {
            total >= 2 * max || (total >= max && own >= max / self.loads.len().max(1))
        };
        match own {
            _ if is_full(messages, own.messages, KEPT_MESSAGES_MAX) => Some(Full::Messages),
            _ if is_full(bytes, own.bytes, KEPT_BYTES_MAX) => Some(Full::Bytes),
            _ => None,
        }
    }

    /// The message stands in the lane to `node`.
    pub(super) fn keep(&mut self, node: NodeNumber, number: u64, share: u16, kept: Kept) {
        self.total.add(&kept);
        self.loads.entry((node, address(&kept.share))).or_default().add(&kept);
        self.kept.insert((node, number, share), kept);
    }

    /// The node answers for a message, which is kept no more. `None`: it was not.
    pub(super) fn on_answer(&mut self, node: NodeNumber, answer: ShareAnswer) -> Option<Kept> {
        let mut kept = self.kept.remove(&(node, answer.number, answer.share))?;
        self.removed(node, &kept);
        if answer.outcome == ShareOutcome::GivenBack {
            kept.given_back += 1;
        }
        Some(kept)
    }

    /// The node is lost. Returns what it had, in order.
    pub(super) fn on_node_lost(&mut self, node: NodeNumber) -> Vec<Kept> {
        let of_node = self.kept.extract_if((node, 0, 0)..=(node, u64::MAX, u16::MAX), |_, _| true);
        let left: Vec<Kept> = of_node.map(|(_, kept)| kept).collect();
        for kept in &left {
            self.removed(node, kept);
        }
        left
    }

    /// This node is lost itself. Returns what it kept, each with the node that has it.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (NodeNumber, Kept)> + use<> {
        std::mem::take(self).kept.into_iter().map(|((node, ..), kept)| (node, kept))
    }

    fn removed(&mut self, node: NodeNumber, kept: &Kept) {
        self.total.remove(kept);
        let of = (node, address(&kept.share));
        if let Some(load) = self.loads.get_mut(&of) {
            load.remove(kept);
            if load.messages == 0 {
                self.loads.remove(&of);
            }
        }
    }

    /// Messages that are kept.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests;
