//! The leader's half of leases.
//!
//! A [`Granter`] lives as long as one leadership of the directory. Nothing here performs I/O or reads a clock: `now_ns` is
//! [`crate::clock::boottime_ns`] of the leader.

use std::collections::{BTreeMap, VecDeque};

use super::{GRANTED_NS, LEASE_NS, RENEW_INTERVAL_NS};
use crate::directory::Directory;
use crate::identity::{Incarnation, NodeId};

/// A proof of leadership older than this is worth nothing: the leader may have been cut off or stopped, and who is
/// silent may be so on its account.
const PROOF_AGE_NS_MAX: u64 = LEASE_NS / 2;

/// How long a ReadIndex round is waited for before another is begun: it may be lost. One that is only slow, as on a node whose disk
/// takes its time for each sync, still counts.
const READ_TIMEOUT_NS: u64 = RENEW_INTERVAL_NS;

/// Rounds that may still be answered. Those of a lease's time and more: what an older one answers is over.
const ROUNDS_MAX: usize = (LEASE_NS / READ_TIMEOUT_NS) as usize + 1;

/// How often a death is proposed until it is committed.
const PROPOSE_INTERVAL_NS: u64 = RENEW_INTERVAL_NS;

/// Names one ReadIndex round of this leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadToken(pub u64);

/// What the leader must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GranterOutput {
    /// Begin a ReadIndex round in the directory group and call [`Granter::on_read`] once its index is applied here.
    StartRead(ReadToken),
    /// Tell the node that the renewal with this sequence is granted.
    Grant {
        /// Which node.
        node: NodeId,
        /// As what it asked.
        incarnation: Incarnation,
        /// Of its renewal.
        sequence: u64,
    },
    /// Tell the node that this incarnation is dead.
    Refuse {
        /// Which node.
        node: NodeId,
        /// As what it asked.
        incarnation: Incarnation,
    },
    /// Propose `Dead`. Nothing follows before it is committed: the leader may be deposed, and the lease renewed elsewhere.
    ProposeDead {
        /// Which node.
        node: NodeId,
        /// Which of its incarnations.
        incarnation: Incarnation,
    },
}

#[derive(Debug, Clone, Copy)]
struct Renewal {
    incarnation: Incarnation,
    sequence: u64,
    received_ns: u64,
}

/// One a node: only its last renewal is worth an answer.
type Renewals = BTreeMap<NodeId, Renewal>;

#[derive(Debug)]
struct Round {
    token: ReadToken,
    begun_ns: u64,
    /// Those that had arrived when it was begun.
    renewals: Renewals,
}

#[derive(Debug)]
struct Lease {
    incarnation: Incarnation,
    ends_ns: u64,
    /// When its death was last proposed.
    condemned_ns: Option<u64>,
}

/// Grants leases while this node leads the directory, and proposes the death of members that fell silent.
///
/// Why a grant can be believed:
/// - It follows a ReadIndex round that was *begun after the renewal arrived*, however long that took. A deposed leader that wakes
///   completes no round, so it grants nothing; and the state the round leads to holds every `Dead` committed before the renewal arrived.
/// - Whose death this leader has proposed is granted nothing more. The proposal may be on its way, not in the state of the round;
///   a lease given meanwhile would outlive the death.
///
/// Why a death is not proposed too early:
/// - A new leader gives every member one full lease: it does not know what the one before it granted last.
/// - A leader that had no quorum for a while, or was stopped, does so too: then nobody's renewals could be answered.
/// - Whose renewal waits for a round is not silent.
#[derive(Debug)]
pub struct Granter {
    leases: BTreeMap<NodeId, Lease>,
    waiting: Renewals,
    /// Under way, the one begun last behind the others.
    rounds: VecDeque<Round>,
    next_token: u64,
    /// When leadership was last known for sure.
    proven_ns: u64,
}

impl Granter {
    /// This node was elected, which proves its leadership as well as a round.
    #[must_use]
    pub fn new(now_ns: u64, directory: &Directory) -> Self {
        let mut granter = Self {
            leases: BTreeMap::new(),
            waiting: Renewals::new(),
            rounds: VecDeque::new(),
            next_token: 1,
            proven_ns: now_ns,
        };
        granter.follow(now_ns, directory);
        granter
    }

    /// A renewal arrived.
    pub fn on_renewal(
        &mut self,
        now_ns: u64,
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        outputs: &mut Vec<GranterOutput>,
    ) {
        self.waiting.insert(node, Renewal { incarnation, sequence, received_ns: now_ns });
        if self.rounds.is_empty() {
            self.begin_round(now_ns, outputs);
        }
    }

    /// The round was confirmed by a majority, and `directory` is applied to its index or beyond. Says as much of those that were begun
    /// before it.
    pub fn on_read(&mut self, now_ns: u64, token: ReadToken, directory: &Directory, outputs: &mut Vec<GranterOutput>) {
        let Some(round) = self.take_rounds(token) else {
            return; // A later one was confirmed before.
        };
        self.follow(now_ns, directory);
        self.prove(now_ns, round.begun_ns);
        for (node, renewal) in round.renewals {
            self.answer(node, renewal, directory, outputs);
        }
        if !self.waiting.is_empty() && self.rounds.is_empty() {
            self.begin_round(now_ns, outputs);
        }
    }

    /// Time passed. Call at least every [`RENEW_INTERVAL_NS`].
    pub fn tick(&mut self, now_ns: u64, directory: &Directory, outputs: &mut Vec<GranterOutput>) {
        self.follow(now_ns, directory);
        self.retry_round(now_ns, outputs);
        if now_ns.saturating_sub(self.proven_ns) > PROOF_AGE_NS_MAX {
            return;
        }
        // Who waits for an answer is not silent.
        let in_rounds = self.rounds.iter().map(|round| &round.renewals);
        let asking = |node| in_rounds.clone().chain([&self.waiting]).any(|renewals| renewals.contains_key(&node));
        for (&node, lease) in &mut self.leases {
            let proposed_lately = lease.condemned_ns.is_some_and(|at| now_ns.saturating_sub(at) < PROPOSE_INTERVAL_NS);
            // But once its death is proposed there is no way back: nothing it asks is granted.
            let spared = lease.condemned_ns.is_none() && asking(node);
            if now_ns >= lease.ends_ns && !proposed_lately && !spared {
                lease.condemned_ns = Some(now_ns);
                outputs.push(GranterOutput::ProposeDead { node, incarnation: lease.incarnation });
            }
        }
    }

    /// Knows exactly those who live; who is new among them gets one full lease.
    fn follow(&mut self, now_ns: u64, directory: &Directory) {
        self.leases.retain(|&node, lease| directory.is_living(node, lease.incarnation));
        for (node, incarnation) in directory.living() {
            let new = || Lease { incarnation, ends_ns: now_ns + GRANTED_NS, condemned_ns: None };
            self.leases.entry(node).or_insert_with(new);
        }
    }

    /// Leadership is known as of `begun_ns`.
    fn prove(&mut self, now_ns: u64, begun_ns: u64) {
        if now_ns.saturating_sub(self.proven_ns) > PROOF_AGE_NS_MAX {
            for lease in self.leases.values_mut() {
                lease.ends_ns = lease.ends_ns.max(now_ns + GRANTED_NS);
            }
        }
        self.proven_ns = self.proven_ns.max(begun_ns);
    }

    fn answer(&mut self, node: NodeId, renewal: Renewal, directory: &Directory, outputs: &mut Vec<GranterOutput>) {
        let Renewal { incarnation, sequence, received_ns } = renewal;
        if !directory.is_living(node, incarnation) {
            outputs.push(GranterOutput::Refuse { node, incarnation });
            return;
        }
        let Some(lease) = self.leases.get_mut(&node).filter(|lease| lease.condemned_ns.is_none()) else {
            return; // It hears of its death once that is committed.
        };
        lease.ends_ns = lease.ends_ns.max(received_ns + GRANTED_NS);
        outputs.push(GranterOutput::Grant { node, incarnation, sequence });
    }

    fn begin_round(&mut self, now_ns: u64, outputs: &mut Vec<GranterOutput>) {
        let token = ReadToken(self.next_token);
        self.next_token += 1;
        if self.rounds.len() == ROUNDS_MAX
            && let Some(oldest) = self.rounds.pop_front()
            && let Some(next) = self.rounds.front_mut()
        {
            let newer = std::mem::replace(&mut next.renewals, oldest.renewals);
            next.renewals.extend(newer);
        }
        self.rounds.push_back(Round { token, begun_ns: now_ns, renewals: std::mem::take(&mut self.waiting) });
        outputs.push(GranterOutput::StartRead(token));
    }

    /// That round, with the renewals of those before it: they had arrived when it was begun.
    fn take_rounds(&mut self, token: ReadToken) -> Option<Round> {
        let place = self.rounds.iter().position(|round| round.token == token)?;
        let mut rounds = self.rounds.drain(..=place);
        let mut last = rounds.next()?;
        for mut round in rounds {
            last.renewals.append(&mut round.renewals);
            last = Round { renewals: last.renewals, ..round };
        }
        Some(last)
    }

    /// Rounds get lost with the messages that carry them. Also keeps leadership proven while nobody renews.
    fn retry_round(&mut self, now_ns: u64, outputs: &mut Vec<GranterOutput>) {
        let begun_ns = self.rounds.back().map_or(self.proven_ns, |round| round.begun_ns);
        if now_ns.saturating_sub(begun_ns) >= READ_TIMEOUT_NS {
            self.begin_round(now_ns, outputs);
        }
    }
}

#[cfg(test)]
#[path = "granter_tests.rs"]
mod tests;
