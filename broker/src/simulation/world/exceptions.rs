//! What the checker must know of the faults: which clocks went wrong, and who was cut off.

use std::collections::BTreeSet;

use kentongan_history::{Action, Promise, Violation, What};

use super::{CLOCK_RATE_PERMILLE_MAX, CUT_OFF_NS, World};
use crate::simulation::faults::{Fault, Planned, SECOND};
use crate::simulation::workload::Workload;

impl World {
    /// Time may be told by clocks that run fast or slow, and after a stop of all replicas by ones that were set. One of three counts for
    /// nothing; two of five would be most of three that hear each other.
    pub(in crate::simulation) fn judged_by(&self) -> kentongan_history::Settings {
        let set = |planned: &Planned| match planned.fault {
            Fault::WallJump(host, _) => Some(host),
            _ => None,
        };
        let set: BTreeSet<usize> = self.faults.iter().filter_map(set).collect();
        // Who founds a cluster is alone for a while.
        let set_max = if self.plan.grows || self.plan.nodes < 3 { 0 } else { 1 };
        let set_ns = if set.len() > set_max { 2 * 3600 * SECOND } else { 0 };
        kentongan_history::Settings {
            clock_skew_max: self.now_ns / 25 + set_ns,
            clocks_set_max: set_ns,
            clocks_fast_permille_max: CLOCK_RATE_PERMILLE_MAX - 1000,
            transient_wills_die_with_node: self.plan.alone,
            ..Workload::settings()
        }
    }

    /// Others take a node that they do not hear of for dead, before it closes its clients: their wills are published while the
    /// connections live. And it serves QoS 0 to its own clients as long as they are there (F12).
    pub(super) fn is_of_a_node_cut_off(&self, violation: &Violation) -> bool {
        let events = violation.events.iter().map(|(index, _)| &self.workload.history().events()[*index]);
        let client_of = |event: &kentongan_history::Event| match &event.what {
            What::Client { node, action, .. } => Some((event.at, usize::from(*node), action.clone())),
            _ => None,
        };
        let events: Vec<_> = events.filter_map(client_of).collect();
        let seen_at_ns = |(at, ..): &(u64, usize, Action)| *at;
        let until_ns = events.iter().map(seen_at_ns).max().unwrap_or(0);
        let is_qos0 = |action: &Action| matches!(action, Action::Delivered(delivery) if delivery.qos == 0);
        match violation.promise {
            Promise::P9 => {
                violation.summary.contains("was published")
                    && !violation.summary.contains("normal DISCONNECT")
                    && events.first().is_some_and(|&(_, node, _)| self.was_cut_off(node, until_ns))
            }
            Promise::P7 => {
                events.last().is_some_and(|(at, node, action)| is_qos0(action) && self.was_cut_off(*node, *at))
            }
            _ => false,
        }
    }

    /// Whether others may have been unable to hear of the node shortly before.
    pub(super) fn was_cut_off(&self, node: usize, at_ns: u64) -> bool {
        let touches = |fault: Fault| match fault {
            Fault::Pause(host) | Fault::Isolate(host) | Fault::DiskFull(host, _) | Fault::DiskStall(host) => {
                host == node
            }
            Fault::DiskSlow(which, _) => which.is_none_or(|host| host == node),
            Fault::OneWay(one, other) | Fault::Apart(one, other) | Fault::Break(one, other) => {
                one == node || other == node
            }
            Fault::Delay => true,
            _ => false,
        };
        let is_on = |planned: &Planned| {
            planned.at_ns <= at_ns && at_ns <= planned.at_ns + planned.lasts_ns + CUT_OFF_NS && touches(planned.fault)
        };
        self.faults.iter().any(is_on)
    }

    /// A violation, with what its client saw just before.
    pub(super) fn tell(&self, violation: &Violation) -> String {
        violation.to_string()
    }
}
