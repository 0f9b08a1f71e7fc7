//! The node's half of leases.
//!
//! A [`Holder`] lives as long as one incarnation. Nothing here performs I/O or reads a clock: `now_ns` is
//! [`crate::clock::boottime_ns`].
//!
//! ```text
//! Joining → Serving ⇄ Lapsed → LapsedLong → Serving
//!     any of them → Dead
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use super::{HELD_NS, KEEP_CLIENTS_NS, LeaseCell, RENEW_INTERVAL_NS};
use crate::identity::Incarnation;

/// Renewals whose answers are still worth something: those sent within one lease, and one more.
const UNANSWERED_MAX: usize = (HELD_NS / RENEW_INTERVAL_NS) as usize + 2;

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Registered, but no lease counts before the interest of every living node and group is in, taken after they applied
    /// this `Join`: until then others acknowledge subscriptions that this node knows nothing of.
    Joining,
    /// Everything.
    Serving,
    /// Withhold QoS 1 and 2 acknowledgements, refuse CONNECT, be not ready.
    Lapsed,
    /// Close the clients as well, so that they find the majority.
    LapsedLong,
    /// Over: close all clients, then register again.
    Dead,
}

/// What the node must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HolderOutput {
    /// Ask the directory's leader, whoever that is now.
    Renew {
        /// As what.
        incarnation: Incarnation,
        /// Comes back with the answer.
        sequence: u64,
    },
    /// What the node may do has changed.
    Changed(Standing),
}

/// Keeps the lease of one incarnation of this node.
#[derive(Debug)]
pub struct Holder {
    incarnation: Incarnation,
    cell: Arc<LeaseCell>,
    standing: Standing,
    /// By what was granted, whether it counts yet or not.
    valid_until_ns: u64,
    interest_complete: bool,
    alone: bool,
    /// Sequence, and when it was sent.
    unanswered: VecDeque<(u64, u64)>,
    next_sequence: u64,
    renew_at_ns: u64,
}

impl Holder {
    /// This node's `Join` was committed.
    #[must_use]
    pub fn new(incarnation: Incarnation, cell: Arc<LeaseCell>) -> Self {
        cell.set(0);
        Self {
            incarnation,
            cell,
            standing: Standing::Joining,
            valid_until_ns: 0,
            interest_complete: false,
            alone: false,
            unanswered: VecDeque::new(),
            next_sequence: 1,
            renew_at_ns: 0,
        }
    }

    /// As what it asks.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What the node may do, as of the last input.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Time passed. `now_ns` must be read just before, so that it is before the renewal leaves.
    pub fn tick(&mut self, now_ns: u64, outputs: &mut Vec<HolderOutput>) {
        if self.standing == Standing::Dead {
            return;
        }
        if now_ns >= self.renew_at_ns {
            self.renew(now_ns, outputs);
        }
        self.judge(now_ns, outputs);
    }

    /// The leader granted the renewal with this sequence.
    pub fn on_granted(&mut self, now_ns: u64, sequence: u64, outputs: &mut Vec<HolderOutput>) {
        let Some(&(_, sent_ns)) = self.unanswered.iter().find(|&&(unanswered, _)| unanswered == sequence) else {
            return; // So old that it is worth nothing, or not ours.
        };
        // Answers to earlier ones can only say less.
        self.unanswered.retain(|&(unanswered, _)| unanswered > sequence);
        self.valid_until_ns = self.valid_until_ns.max(sent_ns + HELD_NS);
        self.judge(now_ns, outputs);
    }

    /// The interest of all others is in; see [`Standing::Joining`].
    pub fn on_interest_complete(&mut self, now_ns: u64, outputs: &mut Vec<HolderOutput>) {
        self.interest_complete = true;
        self.judge(now_ns, outputs);
    }

    /// Whether nobody else was ever a member. Then nobody can take the lease away, so it does not end; it is renewed all the
    /// same, to be valid when somebody joins.
    pub fn set_alone(&mut self, now_ns: u64, alone: bool, outputs: &mut Vec<HolderOutput>) {
        if self.alone != alone {
            self.alone = alone;
            self.judge(now_ns, outputs);
        }
    }

    /// The directory says that `incarnation` is dead.
    pub fn on_dead(&mut self, incarnation: Incarnation, outputs: &mut Vec<HolderOutput>) {
        if incarnation == self.incarnation {
            self.enter(Standing::Dead, outputs);
        }
    }

    fn renew(&mut self, now_ns: u64, outputs: &mut Vec<HolderOutput>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.renew_at_ns = now_ns + RENEW_INTERVAL_NS;
        if self.unanswered.len() == UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((sequence, now_ns));
        outputs.push(HolderOutput::Renew { incarnation: self.incarnation, sequence });
    }

    fn judge(&mut self, now_ns: u64, outputs: &mut Vec<HolderOutput>) {
        let valid = self.alone || now_ns < self.valid_until_ns;
        let standing = match self.standing {
            Standing::Dead => Standing::Dead,
            Standing::Joining if !(valid && self.interest_complete) => Standing::Joining,
            _ if valid => Standing::Serving,
            _ if now_ns - self.valid_until_ns >= KEEP_CLIENTS_NS => Standing::LapsedLong,
            _ => Standing::Lapsed,
        };
        self.enter(standing, outputs);
    }

    fn enter(&mut self, standing: Standing, outputs: &mut Vec<HolderOutput>) {
        let counts = !matches!(standing, Standing::Joining | Standing::Dead);
        self.cell.set(match (counts, self.alone) {
            (false, _) => 0,
            (true, false) => self.valid_until_ns,
            (true, true) => u64::MAX,
        });
        if standing != self.standing {
            self.standing = standing;
            outputs.push(HolderOutput::Changed(standing));
        }
    }
}

#[cfg(test)]
#[path = "holder_tests.rs"]
mod tests;
