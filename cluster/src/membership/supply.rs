//! One source at its origin: who is sent it, and who waits until everyone has it; and how much one node is sent of all of them.

use std::collections::BTreeMap;

use super::Limits;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{Barrier, Content, Feed, Source, SourceId, Update, Version};

/// How often a source is offered to a node that does not ask for it.
const OFFER_INTERVAL_NS: u64 = 300_000_000;

#[derive(Debug)]
struct Sent {
    receiver: Incarnation,
    feed: Feed,
}

/// The feeds of one source, and its barrier.
///
/// A receiver asks for what it was *offered*: so nobody needs to know who leads a group, and a feed that either side lost is
/// begun again. What is sent to one receiver between two ticks is bounded ([`Budgets`]), the rest waits in the source.
#[derive(Debug)]
pub(super) struct Supply {
    pub(super) barrier: Barrier,
    /// The index of the directory that what is sent is complete as of; see [`Source::next`].
    pub(super) as_of: u64,
    feeds: BTreeMap<NodeId, Sent>,
    offered_ns: BTreeMap<NodeId, u64>,
}

impl Supply {
    pub(super) fn new(barrier: Barrier, as_of: u64) -> Self {
        Self { barrier, as_of, feeds: BTreeMap::new(), offered_ns: BTreeMap::new() }
    }

    /// A node asks to be sent `source` from what it has.
    pub(super) fn on_request(&mut self, source: &Source, peer: NodeId, receiver: Incarnation, have: Option<Version>) {
        self.feeds.insert(peer, Sent { receiver, feed: source.feed(have) });
    }

    /// Of the nodes that are there, those to offer the source to now.
    pub(super) fn offers(&mut self, now_ns: u64, there: &[(NodeId, Incarnation)]) -> Vec<NodeId> {
        self.offered_ns.retain(|peer, _| there.iter().any(|(node, _)| node == peer));
        let mut offers = Vec::new();
        for &(peer, incarnation) in there {
            let is_sent = self.feeds.get(&peer).is_some_and(|sent| sent.receiver == incarnation);
            let offered_lately =
                self.offered_ns.get(&peer).is_some_and(|&at| now_ns.saturating_sub(at) < OFFER_INTERVAL_NS);
            if !is_sent && !offered_lately {
                self.offered_ns.insert(peer, now_ns);
                offers.push(peer);
            }
        }
        offers
    }

    /// The link to a node is another, or the node is: what was on its way to it may be lost.
    pub(super) fn forget(&mut self, peer: NodeId) {
        self.feeds.remove(&peer);
        self.offered_ns.remove(&peer);
    }

    /// Whoever asked for it has a turn, or will have it ([`Turns::later`]).
    pub(super) fn take_turns(&mut self, source: &Source, budgets: &mut Budgets, turns: &mut Turns) {
        for (&peer, sent) in &mut self.feeds {
            if budgets.is_among_first(peer, source.id()) {
                sent.take_turn(peer, source, self.as_of, budgets, turns);
            } else {
                turns.later.push((source.id(), peer));
            }
        }
    }

    /// A node has another turn.
    pub(super) fn take_turn(&mut self, source: &Source, peer: NodeId, budgets: &mut Budgets, turns: &mut Turns) {
        if let Some(sent) = self.feeds.get_mut(&peer) {
            sent.take_turn(peer, source, self.as_of, budgets, turns);
        }
    }
}

impl Sent {
    /// What comes next goes, if there is something and room for it.
    fn take_turn(&mut self, peer: NodeId, source: &Source, as_of: u64, budgets: &mut Budgets, turns: &mut Turns) {
        if !budgets.has_room(peer) {
            return;
        }
        if let Some(update) = source.next(&mut self.feed, as_of, budgets.update_bytes_max) {
            budgets.spend(peer, &update);
            turns.later.push((update.source, peer));
            turns.updates.push((peer, update));
        }
    }
}

/// What goes to others now.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) updates: Vec<(NodeId, Update)>,
    /// Whose next turn comes when all others have had theirs: what they are sent, and to whom that is.
    pub(super) later: Vec<(SourceId, NodeId)>,
}

/// What may go to each other node before the next tick, of all sources together: one queue takes it, which other messages need too.
///
/// Sources take turns, an update each. Where the bytes do not suffice, the next tick goes on with the source behind the last one,
/// so that none waits for all that the others have.
#[derive(Debug)]
pub(super) struct Budgets {
    /// Nobody else's publishes wait for what a node says to itself, and no queue takes it.
    me: NodeId,
    update_bytes_max: usize,
    bytes_per_tick: usize,
    /// Of the nodes that were sent something since the last tick, or before it more than was theirs.
    spent: BTreeMap<NodeId, Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    bytes: usize,
    /// The source that had the last turn before there was no room any more.
    last: Option<SourceId>,
}

impl Budgets {
    pub(super) fn new(me: NodeId, limits: &Limits) -> Self {
        let Limits { update_bytes_max, feed_bytes_per_tick: bytes_per_tick, .. } = *limits;
        Self { me, update_bytes_max, bytes_per_tick, spent: BTreeMap::new() }
    }

    fn has_room(&self, peer: NodeId) -> bool {
        self.spent.get(&peer).is_none_or(|spent| spent.bytes < self.bytes_per_tick)
    }

    /// Whether a source has its turn before those that had it when there was still room. They have it in the order of their ids.
    fn is_among_first(&self, peer: NodeId, source: SourceId) -> bool {
        self.spent.get(&peer).and_then(|spent| spent.last).is_none_or(|last| source > last)
    }

    fn spend(&mut self, peer: NodeId, update: &Update) {
        if peer == self.me {
            return;
        }
        let spent = self.spent.entry(peer).or_default();
        spent.bytes = spent.bytes.saturating_add(update_bytes(update));
        if spent.bytes >= self.bytes_per_tick {
            spent.last = Some(update.source);
        }
    }

    /// A tick: each node may be sent something again.
    pub(super) fn refill(&mut self) {
        self.spent.retain(|_, spent| std::mem::take(&mut spent.bytes) >= self.bytes_per_tick);
    }
}

fn update_bytes(update: &Update) -> usize {
    let (Content::Snapshot { entries, .. } | Content::Delta { changes: entries, .. }) = &update.content;
    64 + entries.iter().map(|(filter, _)| filter.len() + 16).sum::<usize>()
}
