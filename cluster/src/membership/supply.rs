//! One source at its origin: who is sent it, and who waits until everyone has it.

use std::collections::BTreeMap;

use super::Limits;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{Barrier, Content, Feed, Source, Update, Version};

/// How often a source is offered to a node that does not ask for it.
const OFFER_INTERVAL_NS: u64 = 300_000_000;

#[derive(Debug)]
struct Sent {
    receiver: Incarnation,
    feed: Feed,
    /// Bytes that may go before the next tick.
    budget: usize,
}

/// The feeds of one source, and its barrier.
///
/// A receiver asks for what it was *offered*: so nobody needs to know who leads a group, and a feed that either side lost is
/// begun again. What is sent to one receiver between two ticks is bounded, the rest waits in the source.
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
    pub(super) fn on_request(
        &mut self,
        source: &Source,
        peer: NodeId,
        receiver: Incarnation,
        have: Option<Version>,
        budget: usize,
    ) {
        self.feeds.insert(peer, Sent { receiver, feed: source.feed(have), budget });
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

    /// A tick: each receiver may be sent something again.
    pub(super) fn refill(&mut self, limits: &Limits) {
        for sent in self.feeds.values_mut() {
            sent.budget = limits.feed_bytes_per_tick;
        }
    }

    /// What is to be sent now.
    pub(super) fn next(&mut self, source: &Source, limits: &Limits) -> Vec<(NodeId, Update)> {
        let mut updates = Vec::new();
        for (&peer, sent) in &mut self.feeds {
            while sent.budget > 0 {
                let Some(update) = source.next(&mut sent.feed, self.as_of, limits.update_bytes_max) else { break };
                sent.budget = sent.budget.saturating_sub(update_bytes(&update));
                updates.push((peer, update));
            }
        }
        updates
    }
}

fn update_bytes(update: &Update) -> usize {
    let (Content::Snapshot { entries, .. } | Content::Delta { changes: entries, .. }) = &update.content;
    64 + entries.iter().map(|(filter, _)| filter.len() + 16).sum::<usize>()
}
